//! Which process speaks for a peer: of two under one raft id, one alone is listened to.
//!
//! A data directory that was copied and started on another host has the raft id and the incarnation of the first one. Were
//! both listened to, one could vote for this and the other for that candidate of a term, and what one of them has would be
//! taken for what the other holds: acknowledged entries could be lost. So each process draws a number, its *life*, and says it
//! in every packet. Who is heard under another life than before may have restarted, or be a copy; the address decides:
//!
//! ```text
//!  another life --> doubted: nothing of it counts; the address where the peer is known is asked who lives there
//!     the new life answers there --> it has restarted: listened to
//!     the former one answers -----> two processes: the other is refused, and somebody has to stop one of them
//!     nobody answers for a second -> it has moved: listened to, unless it was once refused
//! ```
//!
//! The question carries a random number that the answer repeats, so that only who can be reached at the address answers.
//!
//! Invariants:
//! * Messages of two lives of a raft id never count together, unless the former one's address is silent.
//! * A life that was heard beside another one is never listened to, however silent that one becomes: the network may be cut
//!   between it and us alone.
//!
//! What remains: who has never heard the two together, since it is cut off from the first one, takes the copy for it.
//!
//! Not here: who is a member (see `members`); the questions a node asks before it starts (its configuration's part).

use std::collections::{BTreeMap, VecDeque};

use wire::group::Member;
use wire::host::HostPort;

/// An address that gave no answer for so many ticks has none to give: a second.
const PATIENCE_TICKS: u64 = 10;

/// So often a peer has to answer while another speaks in its name before that is called two processes: once may be a packet
/// that was long on its way.
const PROOFS_MIN: u32 = 3;

/// Copies of a peer remembered at most, the latest.
const TWINS_MAX: usize = 8;

/// Peers remembered at most. Groups have five members; who has more begins anew, as after a restart.
const PEERS_MAX: usize = 64;

/// What to do with what somebody says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is the peer.
    Current,
    /// Nobody knows yet. If it is given, this question is to be asked at once.
    Doubted(Option<Question>),
    /// Another process answers where the peer is known. Its address is told once.
    Twin(Option<HostPort>),
}

/// Asks who lives at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) raft_id: u64,
    pub(crate) address: HostPort,
    /// Never 0.
    pub(crate) number: u64,
}

/// The processes that speak for peers.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    peers: BTreeMap<u64, Peer>,
    now: u64,
}

#[derive(Debug, Default)]
struct Peer {
    /// Who is listened to, and where it is.
    current: Option<(u64, HostPort)>,
    claim: Option<Claim>,
    /// Lives that spoke while another one answered where the peer is known.
    twins: VecDeque<u64>,
}

/// Another life that says it is the peer.
#[derive(Debug)]
struct Claim {
    life: u64,
    address: HostPort,
    /// Where the peer is known, and what is asked there.
    known: HostPort,
    number: u64,
    /// The question waits for an answer.
    is_open: bool,
    /// The tick since which nobody has answered.
    since: u64,
    /// Times the peer has answered while this one spoke.
    proofs: u32,
    is_told: bool,
}

/// Never 0, which says nothing.
pub(crate) fn draw() -> u64 {
    wire::random::u64().max(1)
}

impl Lives {
    /// `from` speaks as a process of this life, perhaps to answer a question. `recorded` is where the membership knows it.
    pub(crate) fn hear(
        &mut self,
        from: &Member,
        life: u64,
        answer: u64,
        recorded: Option<&HostPort>,
    ) -> Heard {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&from.raft_id) {
            self.peers.clear();
        }
        let now = self.now;
        let peer = self.peers.entry(from.raft_id).or_default();
        let is_answer = |claim: &Claim| claim.is_open && answer == claim.number;
        if peer.current.as_ref().is_some_and(|(current, _)| *current == life) {
            if let Some(claim) = &mut peer.claim {
                claim.since = now;
                if is_answer(claim) {
                    claim.is_open = false;
                    claim.proofs += 1;
                    if !peer.twins.contains(&claim.life) {
                        peer.twins.truncate(TWINS_MAX - 1);
                        peer.twins.push_front(claim.life);
                    }
                }
            }
            return Heard::Current;
        }
        let known = peer.current.as_ref().map(|(_, address)| address).or(recorded).cloned();
        let is_first = peer.current.is_none() && known.as_ref().is_none_or(|known| *known == from.address);
        if is_first || peer.claim.as_ref().is_some_and(is_answer) {
            (peer.current, peer.claim) = (Some((life, from.address.clone())), None);
            return Heard::Current;
        }
        let known = known.expect("who is known nowhere is the first");
        let address = from.address.clone();
        let fresh =
            Claim { life, address, known, number: 0, is_open: false, since: now, proofs: 0, is_told: false };
        let claim = match &mut peer.claim {
            Some(claim) if claim.life == life => claim,
            other => other.insert(fresh),
        };
        let question = (!claim.is_open).then(|| {
            (claim.is_open, claim.since, claim.number) = (true, now, draw());
            claim.question(from.raft_id)
        });
        if claim.proofs == 0 {
            return Heard::Doubted(question);
        }
        // A question that was just opened is asked by the next tick.
        let is_due = claim.proofs >= PROOFS_MIN && !claim.is_told;
        claim.is_told |= is_due;
        Heard::Twin(is_due.then(|| claim.known.clone()))
    }

    /// Time passes: what is to be asked (again).
    pub(crate) fn tick(&mut self) -> Vec<Question> {
        self.now += 1;
        let mut questions = Vec::new();
        for (raft_id, peer) in &mut self.peers {
            let Some(claim) = peer.claim.as_ref().filter(|claim| claim.is_open) else { continue };
            if self.now < claim.since + PATIENCE_TICKS || peer.twins.contains(&claim.life) {
                questions.push(claim.question(*raft_id));
                continue;
            }
            tracing::info!(raft_id, address = %claim.address, former = %claim.known, "a replica has moved: its former address is silent");
            (peer.current, peer.claim) = (Some((claim.life, claim.address.clone())), None);
        }
        questions
    }

    /// These are no members any more.
    pub(crate) fn forget(&mut self, former: &[u64]) {
        self.peers.retain(|raft_id, _| !former.contains(raft_id));
    }
}

impl Claim {
    fn question(&self, raft_id: u64) -> Question {
        Question { raft_id, address: self.known.clone(), number: self.number }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const HOME: &str = "om1:9002";
    const AWAY: &str = "copy:9002";

    fn host(text: &str) -> HostPort {
        HostPort::new(text).unwrap()
    }

    fn member(address: &str) -> Member {
        Member { raft_id: 1, incarnation: Uuid::from_u128(6), node: "om1".to_owned(), address: host(address) }
    }

    fn hear(lives: &mut Lives, address: &str, life: u64, answer: u64) -> Heard {
        lives.hear(&member(address), life, answer, Some(&host(HOME)))
    }

    fn asked(heard: Heard) -> u64 {
        let Heard::Doubted(Some(question)) = heard else { panic!("{heard:?}") };
        assert_eq!((question.raft_id, question.address), (1, host(HOME)));
        question.number
    }

    #[test]
    fn who_restarts_in_place_is_heard_as_soon_as_it_answers() {
        let mut lives = Lives::default();
        assert_eq!(hear(&mut lives, HOME, 10, 0), Heard::Current);
        let number = asked(hear(&mut lives, HOME, 11, 0));
        assert_eq!(hear(&mut lives, HOME, 11, 0), Heard::Doubted(None));
        assert_eq!(hear(&mut lives, HOME, 11, number ^ 1), Heard::Doubted(None));
        assert_eq!(hear(&mut lives, HOME, 11, number), Heard::Current);
        // What the former process had sent is late.
        assert!(matches!(hear(&mut lives, HOME, 10, 0), Heard::Doubted(Some(_))));
    }

    #[test]
    fn who_moves_is_heard_after_a_second_of_silence() {
        let mut lives = Lives::default();
        hear(&mut lives, HOME, 10, 0);
        asked(hear(&mut lives, AWAY, 11, 0));
        for _ in 1..PATIENCE_TICKS {
            assert_eq!(lives.tick().len(), 1);
            assert_eq!(hear(&mut lives, AWAY, 11, 0), Heard::Doubted(None));
        }
        assert_eq!(lives.tick(), []);
        assert_eq!(hear(&mut lives, AWAY, 11, 0), Heard::Current);
    }

    #[test]
    fn a_copy_beside_a_living_process_never_counts() {
        let mut lives = Lives::default();
        hear(&mut lives, HOME, 10, 0);
        let mut told = 0;
        for round in 0..100 {
            let heard = hear(&mut lives, AWAY, 11, 0);
            assert_ne!(heard, Heard::Current);
            assert_eq!(matches!(heard, Heard::Twin(_)), round > 0, "round {round}");
            told += usize::from(heard == Heard::Twin(Some(host(HOME))));
            for question in lives.tick() {
                assert_eq!(hear(&mut lives, HOME, 10, question.number), Heard::Current);
            }
        }
        assert_eq!(told, 1, "once");
    }

    #[test]
    fn a_copy_that_was_once_refused_is_not_believed_when_the_network_is_cut() {
        let mut lives = Lives::default();
        hear(&mut lives, HOME, 10, 0);
        let number = asked(hear(&mut lives, AWAY, 11, 0));
        assert_eq!(hear(&mut lives, HOME, 10, number), Heard::Current);
        // From here on nobody is heard but copies.
        for _ in 0..10 * PATIENCE_TICKS {
            assert_ne!(hear(&mut lives, AWAY, 11, 0), Heard::Current);
            lives.tick();
        }
        // Another process in between, which nobody has seen beside the first, has moved for all that is known.
        for _ in 0..=PATIENCE_TICKS {
            hear(&mut lives, "third:9002", 12, 0);
            lives.tick();
        }
        assert_eq!(hear(&mut lives, "third:9002", 12, 0), Heard::Current);
        for _ in 0..10 * PATIENCE_TICKS {
            assert_ne!(hear(&mut lives, AWAY, 11, 0), Heard::Current);
            lives.tick();
        }
    }

    #[test]
    fn a_copy_that_speaks_first_gives_way_to_who_answers_at_the_address() {
        let mut lives = Lives::default();
        let number = asked(hear(&mut lives, AWAY, 11, 0));
        assert_eq!(hear(&mut lives, HOME, 10, number), Heard::Current);
        assert_ne!(hear(&mut lives, AWAY, 11, 0), Heard::Current);
        // At its own address it is the first: no question.
        let mut lives = Lives::default();
        asked(hear(&mut lives, AWAY, 11, 0));
        assert_eq!(hear(&mut lives, HOME, 10, 0), Heard::Current);
    }

    #[test]
    fn who_is_known_nowhere_is_heard() {
        let mut lives = Lives::default();
        assert_eq!(lives.hear(&member(AWAY), 11, 0, None), Heard::Current);
        lives.forget(&[1]);
        assert_eq!(hear(&mut lives, HOME, 10, 0), Heard::Current);
    }
}
