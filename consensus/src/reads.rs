//! Reads that wait for a quorum to confirm that this replica still leads.
//!
//! All reads that arrive while a round is being begun share it: one heartbeat to everybody with a context of its own. A
//! round that began before a read arrived never answers it. Lost heartbeats do no harm, as raft repeats the newest
//! context with every heartbeat, and its confirmation stands for all rounds before.
//!
//! Invariants:
//! * A read is answered only by a round that began after it, and only while this replica leads in the term of the round.
//!
//! Not here: asking (see `driver`), the view that is then read (see `shared`).

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::error::ReadError;

/// Rounds under way at most. More reads wait for the next one.
const ROUNDS_MAX: usize = 64;

/// A reader that waits.
pub(crate) type ReadReply = oneshot::Sender<Result<(), ReadError>>;

struct Waiting {
    reply: ReadReply,
    /// The tick at which it is told to try again.
    expires: u64,
}

struct Round {
    number: u64,
    reads: Vec<Waiting>,
}

/// All reads that are not answered.
#[derive(Default)]
pub(crate) struct Reads {
    waiting: Vec<Waiting>,
    rounds: VecDeque<Round>,
    last_number: u64,
}

impl Reads {
    pub(crate) fn add(&mut self, reply: ReadReply, expires: u64) {
        self.waiting.push(Waiting { reply, expires });
    }

    pub(crate) fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < ROUNDS_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }

    /// Begins a round for all that wait; answers its context.
    pub(crate) fn begin(&mut self) -> Vec<u8> {
        self.last_number += 1;
        let reads = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { number: self.last_number, reads });
        self.last_number.to_be_bytes().to_vec()
    }

    /// A quorum has confirmed a round, and with it all before.
    pub(crate) fn confirm(&mut self, context: &[u8]) {
        let Ok(number) = context.try_into().map(u64::from_be_bytes) else { return };
        while self.rounds.front().is_some_and(|round| round.number <= number) {
            let round = self.rounds.pop_front().expect("looked at above");
            round.reads.into_iter().for_each(|read| answer(read, Ok(())));
        }
    }

    /// Leadership is lost, or never was.
    pub(crate) fn refuse(&mut self, hint: Option<u64>) {
        let reads = self.rounds.drain(..).flat_map(|round| round.reads).chain(self.waiting.drain(..));
        reads.for_each(|read| answer(read, Err(ReadError::NotLeader { hint })));
    }

    /// Tells those whose time is over. Their rounds stay: raft may still confirm them.
    pub(crate) fn expire(&mut self, now: u64) {
        let lists = self.rounds.iter_mut().map(|round| &mut round.reads).chain([&mut self.waiting]);
        for list in lists {
            for read in list.extract_if(.., |read| now >= read.expires) {
                answer(read, Err(ReadError::TimedOut));
            }
        }
    }
}

fn answer(read: Waiting, outcome: Result<(), ReadError>) {
    // A reader that has gone away does not mind.
    let _ = read.reply.send(outcome);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_answers_only_those_who_came_before_it() {
        let mut reads = Reads::default();
        let (early, mut early_answer) = oneshot::channel();
        let (late, mut late_answer) = oneshot::channel();
        reads.add(early, 10);
        let context = reads.begin();
        reads.add(late, 10);
        reads.confirm(&context);
        assert!(matches!(early_answer.try_recv(), Ok(Ok(()))));
        assert!(late_answer.try_recv().is_err());
        let context = reads.begin();
        reads.confirm(b"junk");
        reads.confirm(&context);
        assert!(matches!(late_answer.try_recv(), Ok(Ok(()))));
        assert!(reads.is_empty());
    }

    #[test]
    fn late_rounds_are_told_so() {
        let mut reads = Reads::default();
        let (asked, mut asked_answer) = oneshot::channel();
        let (waits, mut waits_answer) = oneshot::channel();
        reads.add(asked, 10);
        reads.begin();
        reads.add(waits, 11);
        reads.expire(10);
        assert!(matches!(asked_answer.try_recv(), Ok(Err(ReadError::TimedOut))));
        reads.refuse(Some(3));
        assert!(matches!(waits_answer.try_recv(), Ok(Err(ReadError::NotLeader { hint: Some(3) }))));
    }
}
