//! How far this replica's clock is off its peers': each packet says when it was sent.
//!
//! Who leads stamps commands with its time, and what waits for time (an upload nobody completed, a block whose grace is
//! over) would be done too early by a leader whose clock runs ahead. So a leader that is off its peers' median leaves that to
//! be done later, or by another. A packet is on its way for milliseconds; the bound is half a minute.
//!
//! A packet that was long on its way makes its sender's clock look slow, never fast. So the last few of a peer are kept, and
//! the one that says the latest time counts: it was delayed the least. What was sent before something that is here already
//! came late or twice, and says nothing; but a clock that was set back goes on to be earlier, and is believed after a few.
//!
//! Invariants:
//! * One peer whose clock is wrong convinces nobody: of two middle values the one nearer to this clock counts.
//! * A packet that was late convinces nobody; the one that says the latest time counts once three are here.
//! * A clock that was just set, or that no peer has been compared with yet, is not acted by.
//!
//! Not here: what is left undone (the services' part).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

use super::Driver;

/// A clock that is further off than this is not acted by.
const OFF_MAX_MS: u64 = 30_000;

/// This clock was set by as much, as the steady one says: what was compared with it before counts no more.
const SET_MS: u64 = OFF_MAX_MS / 2;

/// What a peer said longer ago than so many ticks says nothing of now.
const FRESH_TICKS: u64 = 100;

/// Packets of a peer that are kept.
const SAMPLES_MAX: usize = 8;
/// A peer of which fewer are here says nothing.
const SAMPLES_MIN: usize = 3;
/// So many packets in a row that were sent earlier than others before them: the clock was set back.
const EARLIER_MAX: u32 = 8;

/// What peers' packets say of their clocks.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    peers: BTreeMap<u64, Heard>,
    /// Our wall clock before the steady one, at the last tick.
    lead_ms: Option<i64>,
    /// Some peer has spoken often enough since our clock was set.
    is_compared: bool,
    /// As it was told.
    is_off: bool,
}

/// The last packets of a peer.
#[derive(Debug, Default)]
struct Heard {
    /// How far its clock is ahead of ours in ms, at least, and when it said so.
    samples: VecDeque<(i64, u64)>,
    /// The latest time it told.
    sent_ms: u64,
    /// Packets since then that were sent earlier.
    earlier: u32,
}

impl Heard {
    fn note(&mut self, sent_ms: u64, now_ms: u64, tick: u64) {
        if sent_ms < self.sent_ms {
            self.earlier += 1;
            if self.earlier < EARLIER_MAX {
                return;
            }
            self.samples.clear();
        }
        (self.sent_ms, self.earlier) = (sent_ms, 0);
        let ahead = i64::try_from(i128::from(sent_ms) - i128::from(now_ms)).unwrap_or(i64::MAX);
        self.samples.push_back((ahead, tick));
        if self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// How far it is ahead, if it has said so often enough of late.
    fn ahead(&self) -> Option<i64> {
        let best = self.samples.iter().map(|(ahead, _)| *ahead).max();
        best.filter(|_| self.samples.len() >= SAMPLES_MIN)
    }
}

impl Clocks {
    /// A packet of `peer` was sent at `sent_ms` by its clock and arrived at `now_ms` by ours. 0 says nothing.
    pub(super) fn note(&mut self, peer: u64, sent_ms: u64, now_ms: u64, tick: u64) {
        if sent_ms != 0 {
            self.peers.entry(peer).or_default().note(sent_ms, now_ms, tick);
        }
    }

    /// Our wall clock is so far before the steady one.
    fn note_own(&mut self, lead_ms: i64) {
        let before = self.lead_ms.replace(lead_ms).unwrap_or(lead_ms);
        if lead_ms.abs_diff(before) > SET_MS {
            self.peers.clear();
            self.is_compared = false;
        }
    }

    /// Whether there is nobody to compare with, or somebody was compared with.
    fn is_compared(&mut self, is_alone: bool) -> bool {
        self.is_compared |= is_alone || self.peers.values().any(|heard| heard.ahead().is_some());
        self.is_compared
    }

    /// How far we are off the median of those who have spoken of late.
    fn off_ms(&mut self, tick: u64) -> u64 {
        for heard in self.peers.values_mut() {
            heard.samples.retain(|(_, at)| *at + FRESH_TICKS > tick);
        }
        let mut all: Vec<i64> = self.peers.values().filter_map(Heard::ahead).collect();
        all.sort_unstable();
        let middle = |at: usize| all.get(at).map_or(0, |ahead| ahead.unsigned_abs());
        match all.len() {
            0 => 0,
            count => middle((count - 1) / 2).min(middle(count / 2)),
        }
    }
}

impl<R: Send + 'static> Driver<R> {
    /// Compares clocks, and says so once when ours is off.
    pub(super) fn compare_clocks(&mut self) {
        let members = &self.membership;
        self.clocks.peers.retain(|peer, _| members.contains(*peer));
        let steady_ms = (wire::clock::steady_ns() / 1_000_000) as i64;
        self.clocks.note_own((wire::clock::now_ms() as i64).wrapping_sub(steady_ms));
        let off_ms = self.clocks.off_ms(self.now);
        let is_off = off_ms > OFF_MAX_MS;
        let is_compared = self.clocks.is_compared(members.is_alone(self.node.raft.id));
        self.shared.clock_is_trusted.store(is_compared && !is_off, Ordering::Release);
        if std::mem::replace(&mut self.clocks.is_off, is_off) != is_off {
            let group = &self.shared.name;
            if is_off {
                tracing::error!(
                    group,
                    off_ms,
                    "this node's clock is off its peers': set it; nothing is done by it"
                );
            } else {
                tracing::info!(group, "this node's clock agrees with its peers' again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000_000;

    /// Packets of a peer whose clock is ahead by so much, each so long on its way.
    fn hear(clocks: &mut Clocks, peer: u64, ahead: i64, delays: &[u64]) {
        for (number, delay) in (1..).zip(delays) {
            let now_ms = NOW_MS + 1000 * number;
            let sent_ms = (now_ms - delay).saturating_add_signed(ahead);
            clocks.note(peer, sent_ms, now_ms, 5);
        }
    }

    fn off(ahead: &[i64]) -> u64 {
        let mut clocks = Clocks::default();
        for (peer, ahead) in (2..).zip(ahead) {
            hear(&mut clocks, peer, *ahead, &[0; SAMPLES_MIN]);
        }
        clocks.off_ms(6)
    }

    #[test]
    fn the_median_counts_and_one_peer_convinces_nobody() {
        assert_eq!(off(&[]), 0);
        assert_eq!(off(&[40_000]), 40_000);
        assert_eq!(off(&[3_600_000, 10]), 10);
        assert_eq!(off(&[-900_000, -3]), 3);
        assert_eq!(off(&[-60_000, -60_010]), 60_000);
        assert_eq!(off(&[5, 999_000, 999_001, -7]), 5);
    }

    #[test]
    fn late_packets_do_not_make_a_clock_look_slow() {
        let mut clocks = Clocks::default();
        hear(&mut clocks, 2, 0, &[90_000]);
        assert_eq!(clocks.off_ms(6), 0, "one packet convinces nobody");
        hear(&mut clocks, 2, 0, &[80_000, 70_000, 60_000, 3]);
        assert_eq!(clocks.off_ms(6), 3, "the least delayed counts");
        hear(&mut clocks, 2, 0, &[90_000; EARLIER_MAX as usize - 1]);
        assert_eq!(clocks.off_ms(6), 3, "sent before what is here: late, or twice");
    }

    #[test]
    fn clock_that_was_set_is_believed_after_a_few_packets() {
        let mut clocks = Clocks::default();
        hear(&mut clocks, 2, 60_000, &[0; SAMPLES_MAX]);
        assert_eq!(clocks.off_ms(6), 60_000);
        hear(&mut clocks, 2, 0, &[0; EARLIER_MAX as usize + SAMPLES_MIN]);
        assert_eq!(clocks.off_ms(6), 0, "set back");
        hear(&mut clocks, 2, 60_000, &[0; SAMPLES_MIN]);
        assert_eq!(clocks.off_ms(6), 60_000, "set ahead");
    }

    #[test]
    fn own_clock_that_was_set_is_not_believed_before_it_was_compared() {
        let mut clocks = Clocks::default();
        assert!(!clocks.is_compared(false), "nobody has spoken");
        assert!(Clocks::default().is_compared(true));
        clocks.note_own(7_000);
        hear(&mut clocks, 2, 0, &[0; SAMPLES_MAX]);
        assert!(clocks.is_compared(false));
        clocks.note_own(7_400);
        assert!(clocks.is_compared(false), "a clock that is steered");
        clocks.note_own(7_400 + 700_000);
        assert!(!clocks.is_compared(false), "ten minutes ahead at once");
        hear(&mut clocks, 2, -700_000, &[0; SAMPLES_MIN]);
        assert!(clocks.is_compared(false));
        assert_eq!(clocks.off_ms(6), 700_000);
    }

    #[test]
    fn what_was_said_long_ago_says_nothing() {
        let mut clocks = Clocks::default();
        hear(&mut clocks, 2, 999_999, &[0; SAMPLES_MIN]);
        clocks.note(3, 0, 1, 5);
        assert_eq!(clocks.off_ms(5), 999_999);
        assert_eq!(clocks.off_ms(5 + FRESH_TICKS), 0);
    }
}
