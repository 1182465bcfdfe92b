//! Connections of callers that have not proven themselves: few, short, and never in the way of those that have.
//!
//! Whoever reaches an internal port can open connections and say nothing. So a connection waits in the lobby until its first
//! call with a valid proof, which takes a caller with the cluster key a moment. When too many wait, the one that has waited
//! longest goes: a caller with the key has proven itself long before it is that one, and one without cannot keep others out.
//!
//! Invariants:
//! * At most `UNPROVEN_MAX` connections wait, and `UNPROVEN_PER_ADDRESS_MAX` from one address. Proven ones do not count.
//!
//! Not here: proofs (see `auth`), the accept loop (see `serve`).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Unproven connections at most.
pub(super) const UNPROVEN_MAX: usize = 1024;
/// The same from one address: as many calls as one process makes of another at once (`CALLS_PER_PEER_MAX`).
const UNPROVEN_PER_ADDRESS_MAX: usize = 512;
/// Who has an IPv6 address has a whole network of so many bits.
const NETWORK_BITS: u32 = 64;

/// Where connections wait.
#[derive(Debug, Default)]
pub(super) struct Lobby {
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    /// By address, those that came first first.
    waiting: BTreeMap<IpAddr, VecDeque<(u64, Arc<Notify>)>>,
    count: usize,
    next: u64,
}

/// A connection's place in the lobby. Clones share it; the last one gives it back.
#[derive(Debug, Clone)]
pub(super) struct Standing(Arc<Guest>);

#[derive(Debug)]
struct Guest {
    lobby: Arc<Lobby>,
    address: IpAddr,
    number: u64,
    is_proven: AtomicBool,
    sent_away: Arc<Notify>,
}

impl Lobby {
    /// Takes a connection in, and sends another one away if there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Standing {
        let address = network_of(address);
        let sent_away = Arc::new(Notify::new());
        let mut guests = self.guests.lock();
        if guests.waiting.get(&address).is_some_and(|waiting| waiting.len() >= UNPROVEN_PER_ADDRESS_MAX) {
            guests.send_away(address);
        } else if guests.count >= UNPROVEN_MAX {
            let fullest = guests.waiting.iter().max_by_key(|(_, waiting)| waiting.len());
            let fullest = *fullest.expect("somebody waits, or there were not too many").0;
            guests.send_away(fullest);
        }
        guests.next += 1;
        guests.count += 1;
        let number = guests.next;
        guests.waiting.entry(address).or_default().push_back((number, sent_away.clone()));
        drop(guests);
        let is_proven = AtomicBool::new(false);
        Standing(Arc::new(Guest { lobby: self.clone(), address, number, is_proven, sent_away }))
    }
}

impl Guests {
    fn send_away(&mut self, address: IpAddr) {
        let oldest = self.waiting.get_mut(&address).and_then(VecDeque::pop_front);
        if let Some((_, sent_away)) = oldest {
            sent_away.notify_one();
            self.forget(address);
        }
    }

    /// One of this address has gone.
    fn forget(&mut self, address: IpAddr) {
        self.count -= 1;
        if self.waiting.get(&address).is_some_and(VecDeque::is_empty) {
            self.waiting.remove(&address);
        }
    }

    fn leave(&mut self, guest: &Guest) {
        let Some(waiting) = self.waiting.get_mut(&guest.address) else { return };
        if let Ok(place) = waiting.binary_search_by_key(&guest.number, |(number, _)| *number) {
            waiting.remove(place);
            self.forget(guest.address);
        }
    }
}

impl Standing {
    /// A call with a valid proof has come.
    pub(super) fn prove(&self) {
        if !self.0.is_proven.swap(true, Ordering::AcqRel) {
            self.0.lobby.guests.lock().leave(&self.0);
        }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.0.is_proven.load(Ordering::Acquire)
    }

    /// Resolves when the connection has to make room, unless it has proven itself.
    pub(super) async fn sent_away(&self) {
        self.0.sent_away.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if !*self.is_proven.get_mut() {
            let lobby = self.lobby.clone();
            lobby.guests.lock().leave(self);
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> NETWORK_BITS << NETWORK_BITS).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_sent_away(standing: &Standing) -> bool {
        standing.sent_away().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_of_an_address_makes_room_and_proven_ones_stay() {
        let lobby = Arc::new(Lobby::default());
        let proven = lobby.enter(address(1));
        proven.prove();
        let mut waiting: Vec<_> = (0..UNPROVEN_PER_ADDRESS_MAX).map(|_| lobby.enter(address(1))).collect();
        assert!(!waiting.iter().any(is_sent_away));
        waiting.push(lobby.enter(address(1)));
        assert!(is_sent_away(&waiting[0]) && !waiting[1..].iter().any(is_sent_away));
        assert!(proven.is_proven() && !is_sent_away(&proven));
        // Another address is not concerned, and whoever leaves makes room.
        let other = lobby.enter(address(2));
        waiting.drain(..2);
        waiting.push(lobby.enter(address(1)));
        assert!(!waiting.iter().chain([&other]).any(is_sent_away));
    }

    #[test]
    fn of_all_addresses_the_one_with_the_most_makes_room() {
        let lobby = Arc::new(Lobby::default());
        let few: Vec<_> = (0..UNPROVEN_MAX - UNPROVEN_PER_ADDRESS_MAX).map(|_| address(1)).collect();
        let mut all: Vec<_> = few.into_iter().map(|address| lobby.enter(address)).collect();
        all.pop();
        let single = lobby.enter(address(3));
        let many: Vec<_> = (0..UNPROVEN_PER_ADDRESS_MAX).map(|_| lobby.enter(address(2))).collect();
        let next = lobby.enter(address(4));
        assert!(is_sent_away(&many[0]) && !is_sent_away(&single) && !is_sent_away(&next));
        assert!(!all.iter().any(is_sent_away));
        drop((all, many, single, next));
        let guests = lobby.guests.lock();
        assert_eq!((guests.count, guests.waiting.len()), (0, 0));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.7"), of("10.0.0.7"));
    }
}
