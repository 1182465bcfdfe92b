//! The driver's part in changes: who may join, leave or lead, and when.
//!
//! ```text
//!  change --> checked at the leader --> entry of a joint configuration --> committed --> leaving entry --> committed --> reply
//! ```
//!
//! A learner is added in one step, as it counts for nothing. What changes a quorum goes through a joint configuration,
//! which the leader leaves as soon as it has applied it; a new leader leaves the one that it finds.
//!
//! Invariants:
//! * One change at a time.
//! * A change that would stop the group is refused unless forced; the last voter never goes.
//!
//! Not here: the list of members itself (see `members`).

use std::sync::Arc;

use raft::eraftpb::{
    ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType,
};
use raft::{RawNode, StateRole};
use wire::group::{Member, MemberInfo, MemberRole, MembershipChange};

use super::Driver;
use crate::error::ChangeError;
use crate::members::{Membership, single};
use crate::shared::ChangeReply;
use crate::storage::LogStore;

/// A learner may be this many entries behind when it is promoted.
const PROMOTE_LAG_MAX: u64 = 1000;

/// A transfer that took longer than so many election timeouts has failed.
const TRANSFER_TIMEOUTS: u64 = 2;

/// A change whose reply waits.
pub(super) struct Changing {
    index: u64,
    term: u64,
    is_committed: bool,
    /// No other quorum counts any more.
    is_over: bool,
    reply: ChangeReply,
}

/// A transfer of leadership under way.
pub(super) struct Transferring {
    to: u64,
    expires: u64,
    reply: Option<ChangeReply>,
}

impl<R: Send + 'static> Driver<R> {
    pub(super) fn change(&mut self, change: MembershipChange, reply: ChangeReply) {
        if let Err(error) = self.check_change(&change).and_then(|()| self.propose_change(change)) {
            let _ = reply.send(Err(error));
            return;
        }
        let (index, term) = (self.node.raft.raft_log.last_index(), self.node.raft.term);
        self.changing = Some(Changing { index, term, is_committed: false, is_over: false, reply });
    }

    fn check_change(&self, change: &MembershipChange) -> Result<(), ChangeError> {
        let refuse = |why: String| Err(ChangeError::Refused(why));
        if !self.is_leader() || self.stop_by.is_some() {
            return Err(ChangeError::NotLeader { hint: self.leader_hint() });
        }
        if self.changing.is_some() || self.membership.is_joint() || self.node.raft.has_pending_conf() {
            return refuse("another change of membership is under way: wait for it".to_owned());
        }
        let membership = &self.membership;
        match change {
            MembershipChange::AddLearner(member) => check_new(membership, member),
            MembershipChange::Promote { raft_id } => {
                if !membership.conf_state.learners.contains(raft_id) {
                    return refuse(format!("replica {raft_id} is no learner"));
                }
                // It could make the quorum that leaves the joint configuration impossible, and with it every later change.
                if !self.is_active(*raft_id) {
                    return refuse(format!(
                        "replica {raft_id} does not answer: as a voter it would stand in the way of every write; start it, \
                         or remove it"
                    ));
                }
                let last = self.node.raft.raft_log.last_index();
                let held = self.node.raft.prs().get(*raft_id).map_or(0, |progress| progress.matched);
                if held + PROMOTE_LAG_MAX < last {
                    let behind = last - held;
                    return refuse(format!(
                        "replica {raft_id} is {behind} entries behind: wait until it has them"
                    ));
                }
                Ok(())
            }
            MembershipChange::Remove { raft_id, force } => self.check_removal(*raft_id, *force),
        }
    }

    fn check_removal(&self, raft_id: u64, force: bool) -> Result<(), ChangeError> {
        let refuse = |why: String| Err(ChangeError::Refused(why));
        if !self.membership.contains(raft_id) {
            return refuse(format!("replica {raft_id} is no member"));
        }
        let voters = &self.membership.conf_state.voters;
        if !voters.contains(&raft_id) {
            return Ok(());
        }
        let rest: Vec<u64> = voters.iter().copied().filter(|id| *id != raft_id).collect();
        if rest.is_empty() {
            return refuse(format!("replica {raft_id} is the last voter: all data would be lost"));
        }
        let active = rest.iter().filter(|id| self.is_active(**id)).count();
        if active <= rest.len() / 2 && !force {
            let count = rest.len();
            return refuse(format!(
                "without replica {raft_id} only {active} of {count} voters answer: nothing could be written; \
                 repair another one first, or force it"
            ));
        }
        Ok(())
    }

    fn propose_change(&mut self, change: MembershipChange) -> Result<(), ChangeError> {
        let (change, added) = match change {
            MembershipChange::AddLearner(member) => {
                (single(member.raft_id, ConfChangeType::AddLearnerNode), Some(member))
            }
            MembershipChange::Promote { raft_id } => (joint(raft_id, ConfChangeType::AddNode), None),
            MembershipChange::Remove { raft_id, .. } => (joint(raft_id, ConfChangeType::RemoveNode), None),
        };
        let context = self.membership.context(added);
        if !self.has_room_for(context.len()) {
            return Err(ChangeError::Refused("the disk has no room for it: make some first".to_owned()));
        }
        self.node.propose_conf_change(context, change).map_err(|error| {
            ChangeError::Refused(format!("the group takes no change at the moment ({error}): try again"))
        })
    }

    /// A leader in a joint configuration that is applied leaves it.
    pub(super) fn leave_joint(&mut self) {
        let is_due = self.is_leader() && self.membership.is_joint() && !self.node.raft.has_pending_conf();
        if is_due && self.has_room_for(0) {
            // If raft is too busy to take it, the next turn tries again.
            let _ = self.node.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
    }

    /// An entry is committed: perhaps the one that somebody waits for.
    pub(super) fn note_changed(&mut self, entry: &Entry) {
        let is_joint = self.membership.is_joint();
        let Some(changing) = &mut self.changing else { return };
        if entry.index == changing.index {
            changing.is_committed =
                entry.term == changing.term && entry.get_entry_type() == EntryType::EntryConfChangeV2;
            if !changing.is_committed {
                // Raft logs an empty entry in place of a change that it refuses.
                let why = "another change of membership is under way: wait for it".to_owned();
                self.answer_change(Err(ChangeError::Refused(why)));
                return;
            }
        }
        changing.is_over |= changing.is_committed && !is_joint;
    }

    /// A change that is over is answered once this leader would take the next one: it is applied then.
    pub(super) fn settle_change(&mut self) {
        if self.changing.as_ref().is_some_and(|changing| changing.is_over)
            && !self.node.raft.has_pending_conf()
        {
            self.answer_change(Ok(()));
        }
    }

    fn answer_change(&mut self, outcome: Result<(), ChangeError>) {
        if let Some(changing) = self.changing.take() {
            let _ = changing.reply.send(outcome);
        }
    }

    /// Leadership is lost with a change under way.
    pub(super) fn fail_change(&mut self) {
        let is_over = self.changing.as_ref().is_some_and(|changing| changing.is_over);
        self.answer_change(if is_over { Ok(()) } else { Err(ChangeError::Unknown) });
    }

    /// The membership has changed: lets everyone know.
    pub(super) fn adopt_membership(&mut self) {
        let me = self.node.raft.id;
        let alone = self.membership.is_alone(me);
        self.shared.alone.store(alone, std::sync::atomic::Ordering::Release);
        *self.shared.membership.lock() = Arc::new(self.membership.clone());
        let former = &self.membership.former;
        self.routes.retain(|id, _| !former.contains(id));
        self.shared.lives.lock().forget(former);
        if former.contains(&me) {
            tracing::warn!(group = %self.shared.name, raft_id = me, "this replica was removed from its group");
        }
        self.publish_members();
    }

    // Leadership.

    pub(super) fn transfer(&mut self, to: u64, reply: ChangeReply) {
        let refusal = if !self.is_leader() {
            Some(ChangeError::NotLeader { hint: self.leader_hint() })
        } else if !self.membership.is_voter(to) {
            Some(ChangeError::Refused(format!("replica {to} is no voter")))
        } else if self.transferring.is_some() {
            Some(ChangeError::Refused("another transfer of leadership is under way: wait for it".to_owned()))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(refusal));
        } else if to == self.node.raft.id {
            let _ = reply.send(Ok(()));
        } else {
            self.begin_transfer(to, Some(reply));
        }
    }

    pub(super) fn begin_transfer(&mut self, to: u64, reply: Option<ChangeReply>) {
        self.node.transfer_leader(to);
        let expires = self.now + TRANSFER_TIMEOUTS * self.place.election_ticks as u64;
        self.transferring = Some(Transferring { to, expires, reply });
    }

    /// Somebody leads, or (0) nobody does.
    pub(super) fn note_transferred(&mut self, leader: u64) {
        if leader == 0 || leader == self.node.raft.id {
            return;
        }
        let Some(transferring) = self.transferring.take() else { return };
        let outcome = if leader == transferring.to { Ok(()) } else { Err(ChangeError::Unknown) };
        if let Some(reply) = transferring.reply {
            let _ = reply.send(outcome);
        }
    }

    /// Hands leadership over before the end, if there is anybody to take it.
    pub(super) fn begin_stop(&mut self) {
        let patience = TRANSFER_TIMEOUTS * self.place.election_ticks as u64;
        self.stop_by = Some(self.now + patience);
        if !self.is_leader() || self.transferring.is_some() {
            return;
        }
        let me = self.node.raft.id;
        let voters = self.membership.conf_state.voters.iter().copied();
        let candidates = voters.filter(|id| *id != me && self.is_active(*id));
        let held = |id: &u64| self.node.raft.prs().get(*id).map_or(0, |progress| progress.matched);
        if let Some(to) = candidates.max_by_key(held) {
            self.begin_transfer(to, None);
        }
    }

    pub(super) fn tick_membership(&mut self) {
        if let Some(transferring) = self.transferring.take_if(|transferring| self.now >= transferring.expires)
            && let Some(reply) = transferring.reply
        {
            let why = format!("replica {} did not take over in time", transferring.to);
            let _ = reply.send(Err(ChangeError::Refused(why)));
        }
    }

    /// A leader that was removed tells the others what is committed, asks the one that is furthest on to lead, and goes
    /// at once: raft would let it lead on, and panics when it stores or commits anything more. Raft must not be left
    /// with messages either: this may happen in the midst of a Ready.
    pub(super) fn leave_office(&mut self) {
        let me = self.node.raft.id;
        if !self.is_leader() || self.membership.contains(me) {
            return;
        }
        let (term, committed) = (self.node.raft.term, self.node.raft.raft_log.committed);
        let voters = &self.membership.conf_state.voters;
        let held: Vec<(u64, u64)> = (self.node.raft.prs().iter())
            .filter(|(peer, _)| voters.contains(peer))
            .map(|(peer, progress)| (progress.matched, *peer))
            .collect();
        let message = |kind: MessageType, to: u64, commit: u64| {
            let mut message = Message { from: me, to, term, commit, ..Message::default() };
            message.set_msg_type(kind);
            message
        };
        let mut messages: Vec<Message> = (held.iter())
            .map(|(matched, peer)| message(MessageType::MsgHeartbeat, *peer, committed.min(*matched)))
            .collect();
        if let Some((_, heir)) = held.iter().max() {
            messages.push(message(MessageType::MsgTimeoutNow, *heir, 0));
        }
        self.node.raft.become_follower(term, 0);
        self.send(messages);
    }

    pub(super) fn is_active(&self, raft_id: u64) -> bool {
        // Half the time after which check-quorum would end a leader that hears nobody: it has to know before.
        let since = self.now.saturating_sub(self.place.election_ticks as u64 / 2);
        raft_id == self.node.raft.id || self.heard.get(&raft_id).is_some_and(|at| *at >= since)
    }

    pub(super) fn publish_members(&self) {
        let leads = self.is_leader();
        let info = |member: &Member| {
            let raft_id = member.raft_id;
            let is_voter = self.membership.is_voter(raft_id);
            MemberInfo {
                member: self.routes.get(&raft_id).unwrap_or(member).clone(),
                role: if is_voter { MemberRole::Voter } else { MemberRole::Learner },
                is_leader: self.node.raft.leader_id == raft_id,
                match_index: leads.then(|| held_by(&self.node, raft_id)),
                is_active: leads.then(|| self.is_active(raft_id)),
            }
        };
        *self.shared.member_infos.lock() = self.membership.members.values().map(info).collect();
    }
}

fn held_by(node: &RawNode<LogStore>, raft_id: u64) -> u64 {
    debug_assert!(node.raft.state == StateRole::Leader);
    node.raft.prs().get(raft_id).map_or(0, |progress| progress.matched)
}

fn check_new(membership: &Membership, member: &Member) -> Result<(), ChangeError> {
    let raft_id = member.raft_id;
    let refuse = |why: String| Err(ChangeError::Refused(why));
    if raft_id == 0 {
        return refuse("a raft id is never 0".to_owned());
    }
    if membership.contains(raft_id) || membership.former.contains(&raft_id) {
        return refuse(format!("raft id {raft_id} is or was a member's: take a new one"));
    }
    if membership.members.values().any(|other| other.incarnation == member.incarnation) {
        return refuse(format!("incarnation {} is another member's: draw a new one", member.incarnation));
    }
    Ok(())
}

fn joint(raft_id: u64, kind: ConfChangeType) -> ConfChangeV2 {
    let mut change = single(raft_id, kind);
    change.set_transition(ConfChangeTransition::Explicit);
    change
}
