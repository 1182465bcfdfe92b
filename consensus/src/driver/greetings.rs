//! The driver's part in knowing which process speaks for a peer: asks, answers, and says that it is there.
//!
//! A packet without messages carries each of these. A process that has just started speaks to all members by itself, also
//! once it has a leader, since followers say nothing to one another: all then know it before its first vote or
//! acknowledgement, which would not count while they ask.
//!
//! Not here: who is believed (see `lives`).

use wire::group::Member;

use super::Driver;
use crate::lives::Question;
use crate::packet::encode;

/// A replica speaks up until it has lived for so many ticks: longer than others doubt it ...
const GREETING_TICKS: u64 = 20;
/// ... once in so many.
const GREETING_INTERVAL: u64 = 2;

impl<R: Send + 'static> Driver<R> {
    /// Asks again where no answer has come, and greets.
    pub(super) fn ask_who_lives(&mut self) {
        let questions = self.shared.lives.lock().tick();
        for question in questions {
            self.ask(question);
        }
        if self.now <= GREETING_TICKS && self.now.is_multiple_of(GREETING_INTERVAL) {
            let me = self.node.raft.id;
            for (raft_id, member) in &self.membership.members {
                if *raft_id != me {
                    self.send_empty(self.routes.get(raft_id).unwrap_or(member), 0, 0);
                }
            }
        }
    }

    pub(super) fn ask(&self, question: Question) {
        let Question { raft_id, address, number } = question;
        let known = self.routes.get(&raft_id).or_else(|| self.membership.members.get(&raft_id));
        if let Some(member) = known {
            self.send_empty(&Member { address, ..member.clone() }, number, 0);
        }
    }

    pub(super) fn send_empty(&self, member: &Member, question: u64, answer: u64) {
        let Some(transport) = &self.place.transport else { return };
        let head = crate::packet::Head { question, answer, marks: Vec::new(), ..self.head_to(member) };
        for packet in encode(&head, &[]) {
            transport.send(&self.shared.name, member, packet);
        }
    }
}
