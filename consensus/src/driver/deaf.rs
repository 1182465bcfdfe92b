//! A leader that is heard and hears nobody: it asks the follower that is furthest on to lead, at once.
//!
//! Without this the group would wait for its check of the quorum, one to two election timeouts, and the followers, who hear
//! its heartbeats, for one to two more. Raft lets any voter call an election at any time (Raft thesis, section 3.10, the
//! message of a leadership transfer), so a leader that is mistaken costs an election and nothing else.
//!
//! Not here: transfers that somebody asked for (see `membership`), giving up leadership (raft's check-quorum).

use raft::eraftpb::{Message, MessageType};

use super::Driver;

/// A leader to whom no quorum has spoken for so many ticks is deaf. Peers answer every heartbeat, which is every tick; most
/// of an election timeout, lest a moment's stall of the others moves the leader.
const DEAF_TICKS: u64 = 8;

impl<R: Send + 'static> Driver<R> {
    /// Asks another voter to lead if nobody answers, once in a term.
    pub(super) fn yield_if_deaf(&mut self) {
        let (me, term) = (self.node.raft.id, self.node.raft.term);
        if !self.is_leader() || self.yielded_in == term || self.now < self.leads_since + DEAF_TICKS {
            return;
        }
        let is_heard = |peer: &u64| self.heard.get(peer).is_some_and(|at| at + DEAF_TICKS > self.now);
        let prs = self.node.raft.prs();
        let heard = prs.iter().map(|(peer, _)| *peer).filter(|peer| *peer == me || is_heard(peer)).collect();
        if prs.has_quorum(&heard) {
            return;
        }
        // The one that is furthest on holds all that was acknowledged.
        let voters = &self.membership.conf_state.voters;
        let others = prs.iter().filter(|(peer, _)| **peer != me && voters.contains(peer));
        let Some((to, _)) = others.max_by_key(|(peer, progress)| (progress.matched, **peer)) else { return };
        let mut message = Message { from: me, to: *to, term, ..Message::default() };
        message.set_msg_type(MessageType::MsgTimeoutNow);
        tracing::info!(group = %self.shared.name, term, to, "no quorum answers: another replica is asked to lead");
        self.yielded_in = term;
        self.send(vec![message]);
    }
}
