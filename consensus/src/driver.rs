//! The raft thread: turns proposals into durable, committed entries.
//!
//! Everything that comes in meanwhile shares the next append and the next fdatasync, so batches form by themselves
//! and a lone proposal waits for nothing. Each Ready is performed in raft's order, which is law:
//!
//! ```text
//!  ready --> append entries, then hard state --> fdatasync --> advance_append --> committed --> apply thread
//! ```
//!
//! With peers, messages of a leader leave before the append and `persisted_messages` after the sync; snapshots and
//! conf changes enter at `perform`, ticks and received messages at `run`. None of these exist with one voter, and
//! meeting one is a bug.
//!
//! Apply may fall behind. Then batches wait here and no further proposal is taken until it has room again; this
//! thread itself never waits for it, for with peers it owes them heartbeats.
//!
//! Invariants:
//! * Nothing is handed to apply that is not durable in the log.
//! * A command is proposed only if its record fits into the log for sure.
//!
//! Not here: what is on disk (see `log`), replies of applied commands (see `apply`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType};
use raft::{RawNode, Ready, StateRole};

use crate::abort::AbortOnPanic;
use crate::apply::{ApplyInput, Batch};
use crate::error::ProposeError;
use crate::group::Priority;
use crate::log::entry_record_size;
use crate::shared::{Input, Phase, Proposal, Reply, Shared};
use crate::space::{Admission, Reserve};
use crate::storage::LogStore;

/// Commands in one append at most: bounds how long its first one waits.
const BATCH_ENTRIES_MAX: usize = 1024;

/// Batches that may wait in the apply thread's inbox: enough to keep it busy, few enough that a replay stays small.
pub(crate) const APPLY_INBOX: usize = 4;

/// How often the disk's free space is looked at.
const ADMISSION_INTERVAL_NS: u64 = 100_000_000;

/// A proposal whose entry is in the log and not committed yet.
struct Pending<R> {
    index: u64,
    term: u64,
    reply: Reply<R>,
}

/// The raft thread's state.
pub(crate) struct Driver<R> {
    pub(crate) node: RawNode<LogStore>,
    pub(crate) inbox: Receiver<Input<R>>,
    pub(crate) apply: SyncSender<ApplyInput<R>>,
    pub(crate) applier: Option<JoinHandle<()>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) room: Room,
    /// Taken from the inbox, not proposed yet. Bounded by the tickets.
    waiting: VecDeque<Proposal<R>>,
    pending: VecDeque<Pending<R>>,
    /// Committed batches that the apply thread has no room for.
    outbox: VecDeque<Batch<R>>,
    rolls_seen: u64,
    checkpoint_seen: u64,
}

/// What limits proposals besides their number.
pub(crate) struct Room {
    reserve: Arc<Reserve>,
    free_min: u64,
    /// Bytes of log that only commands which free space may use.
    log_keep: u64,
    batch_bytes_max: usize,
    admission: Admission,
    looked_ns: Option<u64>,
}

impl<R: Send + 'static> Driver<R> {
    pub(crate) fn new(
        node: RawNode<LogStore>,
        inbox: Receiver<Input<R>>,
        apply: SyncSender<ApplyInput<R>>,
        applier: JoinHandle<()>,
        shared: Arc<Shared>,
        room: Room,
    ) -> Self {
        Driver {
            node,
            inbox,
            apply,
            applier: Some(applier),
            shared,
            room,
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            outbox: VecDeque::new(),
            rolls_seen: 0,
            checkpoint_seen: 0,
        }
    }

    /// Runs until told to stop; then everything taken in is applied and durable.
    pub(crate) fn run(mut self) {
        let _guard = AbortOnPanic;
        // A sole voter need not wait for an election timeout: there is nobody it could disturb.
        self.node.campaign().expect("a sole voter may campaign");
        self.turn();
        while let Ok(input) = self.inbox.recv() {
            let mut stop = self.take_in(input);
            while let Ok(input) = self.inbox.try_recv() {
                stop |= self.take_in(input);
            }
            self.turn();
            if stop {
                break;
            }
        }
        self.close();
    }

    /// Notes one input; true if it says stop.
    fn take_in(&mut self, input: Input<R>) -> bool {
        match input {
            Input::Propose(proposal) => self.waiting.push_back(proposal),
            Input::Wake => {}
            Input::Stop => return true,
        }
        false
    }

    /// Does everything that can be done now. What apply has no room for waits, in raft or in the inbox.
    fn turn(&mut self) {
        self.hand_over();
        self.keep_house();
        while self.outbox.is_empty() && self.has_work() {
            // A batch is admitted only when the log holds all before it, so nothing may wait in raft then.
            if !self.node.has_ready() {
                self.propose_waiting();
            }
            self.perform_all();
        }
    }

    fn has_work(&self) -> bool {
        self.node.has_ready() || !self.waiting.is_empty()
    }

    // Proposals.

    /// Proposes waiting commands as one message: they share an append.
    fn propose_waiting(&mut self) {
        if self.node.raft.state != StateRole::Leader {
            let hint = Some(self.node.raft.leader_id).filter(|leader| *leader != 0);
            for proposal in self.waiting.drain(..) {
                proposal.reply.send(Err(ProposeError::NotLeader { hint }));
            }
            return;
        }
        let (entries, replies) = self.admit_waiting();
        if entries.is_empty() {
            return;
        }
        let bytes: u64 = entries.iter().map(|entry| entry.data.len() as u64).sum();
        let mut message = Message { from: self.node.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        if let Err(error) = self.node.step(message) {
            // Raft took none of them: too much is uncommitted, or leadership is being transferred.
            tracing::debug!(group = %self.shared.name, %error, "raft dropped proposals");
            replies.into_iter().for_each(|reply| reply.send(Err(ProposeError::Overloaded)));
            return;
        }
        self.shared.metrics.log_entries.increment(replies.len() as u64);
        self.shared.metrics.log_bytes.increment(bytes);
        let term = self.node.raft.term;
        let first = self.node.raft.raft_log.last_index() + 1 - replies.len() as u64;
        let pending = (first..).zip(replies).map(|(index, reply)| Pending { index, term, reply });
        self.pending.extend(pending);
    }

    /// Takes as many waiting commands as make a batch, answering those the disk has no room for.
    fn admit_waiting(&mut self) -> (Vec<Entry>, Vec<Reply<R>>) {
        let admission = self.room.look(&self.shared.name);
        let count = self.waiting.len().min(BATCH_ENTRIES_MAX);
        let (mut entries, mut replies) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let (mut bytes, mut log_bytes) = (0, 0);
        while entries.len() < BATCH_ENTRIES_MAX {
            let full = |proposal: &Proposal<R>| {
                !entries.is_empty() && bytes + proposal.command.len() > self.room.batch_bytes_max
            };
            if self.waiting.front().is_none_or(full) {
                break;
            }
            let proposal = self.waiting.pop_front().expect("looked at above");
            let record_size = entry_record_size(proposal.command.len());
            let (passes, keep) = match proposal.priority {
                Priority::Ordinary => (admission == Admission::All, self.room.log_keep),
                Priority::Freeing => (admission != Admission::Nothing, 0),
            };
            if !passes || !self.node.mut_store().log_mut().admit(log_bytes + record_size, keep) {
                self.shared.metrics.proposals_full.increment(1);
                proposal.reply.send(Err(ProposeError::Full));
                continue;
            }
            bytes += proposal.command.len();
            log_bytes += record_size;
            entries.push(Entry { data: proposal.command, ..Entry::default() });
            replies.push(proposal.reply);
        }
        (entries, replies)
    }

    // Ready.

    fn perform_all(&mut self) {
        while self.outbox.is_empty() && self.node.has_ready() {
            let ready = self.node.ready();
            self.perform(ready);
        }
        self.publish();
    }

    fn perform(&mut self, mut ready: Ready) {
        assert!(ready.snapshot().is_empty(), "a sole voter is sent no snapshot");
        assert!(ready.messages().is_empty(), "a sole voter has no peers to write to");
        assert!(ready.persisted_messages().is_empty(), "a sole voter has no peers to write to");
        assert!(ready.read_states().is_empty(), "reads do not go through raft under a sole voter");
        if let Some(soft) = ready.ss() {
            let term = if soft.raft_state == StateRole::Leader { self.node.raft.term } else { 0 };
            self.note_leader(soft.leader_id, term);
        }
        self.commit(ready.take_committed_entries());
        self.persist(&mut ready);
        let mut light = self.node.advance_append(ready);
        assert!(light.messages().is_empty(), "a sole voter has no peers to write to");
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().set_commit(commit);
        }
        self.commit(light.take_committed_entries());
    }

    fn persist(&mut self, ready: &mut Ready) {
        let entries = ready.take_entries();
        if entries.is_empty() && ready.hs().is_none() {
            return;
        }
        let started = wire::clock::steady_ns();
        let count = entries.len();
        let store = self.node.mut_store();
        store.persist(entries, ready.hs(), ready.must_sync());
        let rolls = store.log().rolls();
        if rolls != self.rolls_seen {
            self.rolls_seen = rolls;
            self.shared.checkpoint_wanted.store(true, Ordering::Release);
        }
        let took = Duration::from_nanos(wire::clock::steady_ns() - started);
        self.shared.metrics.log_sync_seconds.record(took.as_secs_f64());
        self.shared.metrics.log_batch_entries.record(count as f64);
    }

    fn note_leader(&self, leader: u64, leader_term: u64) {
        self.shared.leader_term.store(leader_term, Ordering::Release);
        self.shared.status.lock().leader = leader;
        if leader_term == 0 {
            self.shared.set_phase(Phase::Following);
        } else {
            tracing::info!(group = %self.shared.name, term = leader_term, "leading");
        }
    }

    /// Passes committed entries on, with the replies that wait for them.
    fn commit(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let first = entries[0].index;
        let mut replies = VecDeque::new();
        while self.pending.front().is_some_and(|pending| pending.index <= last) {
            let Pending { index, term, reply } = self.pending.pop_front().expect("looked at above");
            let kept = index.checked_sub(first).is_some_and(|at| entries[at as usize].term == term);
            if kept {
                replies.push_back((index, reply));
            } else {
                // Another leader's entry took its place in the log: the command is not applied, ever.
                reply.send(Err(ProposeError::NotLeader { hint: None }));
            }
        }
        self.node.mut_store().handed(last);
        self.outbox.push_back(Batch { entries, replies });
        // Before apply can announce them: whoever waits for leadership then finds the term in the status.
        self.publish();
        self.hand_over();
    }

    /// Gives the apply thread what it has room for.
    fn hand_over(&mut self) {
        while let Some(batch) = self.outbox.pop_front() {
            if let Some(batch) = self.try_hand_over(batch) {
                // Ask to be woken, then try again: room made in between would wake nobody.
                self.shared.backlogged.store(true, Ordering::Release);
                if let Some(batch) = self.try_hand_over(batch) {
                    self.outbox.push_front(batch);
                    return;
                }
            }
        }
    }

    fn try_hand_over(&self, batch: Batch<R>) -> Option<Batch<R>> {
        match self.apply.try_send(ApplyInput::Batch(batch)) {
            Ok(()) => None,
            Err(TrySendError::Full(ApplyInput::Batch(batch))) => Some(batch),
            Err(_) => unreachable!("the apply thread ends after this one, or aborts the process"),
        }
    }

    // The rest.

    /// Tells raft what is applied and recycles what is checkpointed.
    fn keep_house(&mut self) {
        let applied = self.shared.applied_index.load(Ordering::Acquire);
        if applied > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(applied);
        }
        let checkpoint = self.shared.checkpoint_index.load(Ordering::Acquire);
        let store = self.node.mut_store();
        if checkpoint != self.checkpoint_seen {
            self.checkpoint_seen = checkpoint;
            store.compact(checkpoint);
        }
        store.log_mut().maintain();
    }

    fn publish(&self) {
        let log = self.node.store().log();
        let mut status = self.shared.status.lock();
        status.term = self.node.raft.term;
        status.commit_index = self.node.raft.raft_log.committed;
        status.log_first_index = log.first_index();
        status.log_last_index = log.last_index();
    }

    /// Finishes what was taken in, waits for apply's last checkpoint, and leaves a log that says all of it.
    fn close(mut self) {
        while !self.outbox.is_empty() || self.has_work() {
            if let Some(batch) = self.outbox.pop_front() {
                let _ = self.apply.send(ApplyInput::Batch(batch));
            } else {
                self.turn();
            }
        }
        let _ = self.apply.send(ApplyInput::Stop);
        let applier = self.applier.take().expect("a driver closes once");
        // A panic over there has aborted the process.
        let _ = applier.join();
        self.keep_house();
        self.node.mut_store().close();
        tracing::info!(group = %self.shared.name, "stopped");
    }
}

impl Room {
    pub(crate) fn new(
        reserve: Arc<Reserve>,
        free_min: u64,
        segment_bytes: u64,
        batch_bytes_max: usize,
    ) -> Self {
        Room {
            reserve,
            free_min,
            log_keep: segment_bytes / 4,
            batch_bytes_max,
            admission: Admission::All,
            looked_ns: None,
        }
    }

    /// What the disk lets pass, looked at now and then.
    fn look(&mut self, group: &str) -> Admission {
        let now = wire::clock::steady_ns();
        if self.looked_ns.is_some_and(|at| now < at + ADMISSION_INTERVAL_NS) {
            return self.admission;
        }
        self.looked_ns = Some(now);
        let found = self.reserve.admission(self.free_min).unwrap_or_else(|error| {
            tracing::warn!(group, %error, "cannot look at the disk's free space");
            self.admission
        });
        if found != self.admission {
            match found {
                Admission::All => tracing::info!(group, "the disk has room again: all commands pass"),
                Admission::FreeingOnly => {
                    tracing::warn!(group, "the disk is full: only commands that free space pass")
                }
                Admission::Nothing => {
                    tracing::error!(group, "the disk is full and the reserve used: no command passes")
                }
            }
            self.admission = found;
        }
        found
    }
}
