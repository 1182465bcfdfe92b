//! The apply thread: committed entries become rows, proposers get their replies, state becomes durable.
//!
//! Whatever batches wait are merged into one redb transaction, which costs more than the rows in it. It is not
//! durable: the log already is. A **checkpoint** makes all transactions durable, on this thread, so that raft's never
//! waits for it. It is due after so many written rows that it takes about 20 ms (measured as we go), or rarer where that would take a good part of the time, after
//! `checkpoint_interval` at the latest, and when the log would like to recycle a segment.
//!
//! A corrupt row under a sole voter fails the commands that need it and no others. Replicas with peers stop instead
//! and are rebuilt: two replicas that answer differently are worse than one that is gone.
//!
//! Invariants:
//! * A reply leaves after its batch is committed and the shared view expired: who heard of a write can read it.
//! * The applied index, its term, the state hash and the rows change in one transaction.
//!
//! Not here: durability of entries (see `driver`).

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raft::eraftpb::{Entry as RaftEntry, EntryType};
use tokio::sync::mpsc::WeakSender;

use crate::abort::{AbortOnPanic, fatal};
use crate::error::{ProposeError, StoreError};
use crate::machine::{Entry, StateMachine};
use crate::members::Membership;
use crate::packet::Mark;
use crate::shared::{Input, Reply, Shared};
use crate::state::snapshot::ReceivedSnapshot;
use crate::state::{Progress, StateFile, put_progress};
use crate::store::WriteBatch;

/// Entries in one transaction at most: bounds its dirty pages and how long its replies wait.
const TRANSACTION_ENTRIES_MAX: usize = 4096;

/// Bytes of commands in one transaction at most.
const TRANSACTION_BYTES_MAX: u64 = 8 << 20;

/// A checkpoint is due at the latest after this many bytes of log: what a start has to replay.
const CHECKPOINT_LOG_BYTES: u64 = 64 << 20;

/// A checkpoint that took longer makes the next come sooner, so that the longest stays under 25 ms.
const CHECKPOINT_LONG_NS: u64 = 20_000_000;

/// A checkpoint that took less makes the next come later: each rewrites branches and allocator state.
const CHECKPOINT_SHORT_NS: u64 = 10_000_000;

/// Checkpoints that take more than one part in so many of the time are too many, however long each is: pages that several
/// batches change are written again and again, and where the disk is the limit rarer ones are the only cure.
const CHECKPOINT_SHARE: u64 = 8;

/// Rows between checkpoints never fall below this by adapting: on a slow disk even an empty checkpoint is long.
const CHECKPOINT_ROWS_MIN: u64 = 4096;

/// Nor grow above this: some two seconds of replay at a start, and as much as a cache holds dirty.
const CHECKPOINT_ROWS_MAX: u64 = 1 << 17;

/// Committed entries with the replies that wait for them, both by ascending index.
pub(crate) struct Batch<R> {
    pub(crate) entries: Vec<RaftEntry>,
    pub(crate) replies: VecDeque<(u64, Reply<R>)>,
    /// What the group is after each of its changes among the entries.
    pub(crate) changes: Vec<(u64, Membership)>,
}

/// What the apply thread waits for.
pub(crate) enum ApplyInput<R> {
    Batch(Batch<R>),
    /// Rows from a snapshot take the place of the state's.
    Install(Box<ReceivedSnapshot>),
    /// Time goes on: a checkpoint may be due.
    Tick,
    Stop,
}

/// The apply thread's state.
pub(crate) struct Applier<M: StateMachine> {
    pub(crate) machine: M,
    pub(crate) state: StateFile,
    pub(crate) progress: Progress,
    pub(crate) raft: WeakSender<Input<M::Reply>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pace: Pace,
    /// Every so many entries all replicas note their state hash.
    pub(crate) mark_entries: u64,
    /// Changes of membership among the entries that are being applied.
    pub(crate) changes: VecDeque<(u64, Membership)>,
}

/// When the next checkpoint is due.
pub(crate) struct Pace {
    interval_ns: u64,
    rows_min: u64,
    /// Rows between checkpoints, as adapted.
    rows_due: u64,
    rows: u64,
    log_bytes: u64,
    /// When the oldest transaction that is not durable was committed.
    since_ns: Option<u64>,
}

type Outcome<R> = Result<R, ProposeError>;

impl<M: StateMachine> Applier<M> {
    /// Takes what waits; breaks when told to stop, with everything durable.
    pub(crate) fn step(&mut self, inputs: &mut Vec<ApplyInput<M::Reply>>) -> ControlFlow<()> {
        let _guard = AbortOnPanic;
        // There is room in the inbox again, and the raft thread can fill it while we work.
        if self.shared.backlogged.swap(false, Ordering::AcqRel) {
            self.wake_raft();
        }
        if self.progress.installed && self.shared.log_reset.swap(false, Ordering::AcqRel) {
            self.clear_installed();
        }
        let mut stop = false;
        let mut merged = Batch::empty();
        let mut bytes = 0;
        for input in inputs.drain(..) {
            match input {
                ApplyInput::Batch(batch) => {
                    bytes += batch.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
                    merged.entries.extend(batch.entries);
                    merged.replies.extend(batch.replies);
                    merged.changes.extend(batch.changes);
                }
                ApplyInput::Install(received) => {
                    // Entries before it are in it, but their proposers may wait for an answer.
                    self.apply_batch(std::mem::replace(&mut merged, Batch::empty()));
                    bytes = 0;
                    self.install(*received);
                }
                ApplyInput::Tick => {}
                ApplyInput::Stop => stop = true,
            }
            if merged.entries.len() >= TRANSACTION_ENTRIES_MAX || bytes >= TRANSACTION_BYTES_MAX {
                self.apply_batch(std::mem::replace(&mut merged, Batch::empty()));
                self.pace.note_log(std::mem::take(&mut bytes));
            }
        }
        self.apply_batch(merged);
        self.pace.note_log(bytes);
        let wanted = self.shared.checkpoint_wanted.swap(false, Ordering::AcqRel);
        if stop || wanted || self.pace.is_due(wire::clock::steady_ns()) {
            self.checkpoint();
        }
        if stop {
            self.shared.close();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Applies a batch, in pieces that end where all replicas note their state hash.
    fn apply_batch(&mut self, batch: Batch<M::Reply>) {
        let Batch { entries, mut replies, changes } = batch;
        self.changes.extend(changes);
        let mut rest = &entries[..];
        while let Some(first) = rest.first() {
            let to_mark = (self.mark_entries - first.index % self.mark_entries) % self.mark_entries;
            let (piece, behind) = rest.split_at(rest.len().min(to_mark as usize + 1));
            let last = piece.last().expect("a piece has an entry").index;
            let later = replies.partition_point(|(index, _)| *index <= last);
            let later = replies.split_off(later);
            self.apply(piece, std::mem::replace(&mut replies, later));
            if last.is_multiple_of(self.mark_entries) {
                let hash = self.progress.state_hash;
                let hash = ((hash >> 64) as u64, hash as u64);
                self.shared.note_mark(Mark { raft_id: self.shared.raft_id, index: last, hash });
            }
            rest = behind;
        }
    }

    fn apply(&mut self, entries: &[RaftEntry], replies: VecDeque<(u64, Reply<M::Reply>)>) {
        let started = wire::clock::steady_ns();
        let outcomes = match self.transact(entries) {
            Ok(outcomes) => outcomes,
            Err(StoreError::Corrupt { .. }) if self.is_sole_voter() => self.apply_singly(entries),
            // A replay would meet it again, and the others have the row.
            Err(error @ StoreError::Corrupt { .. }) if self.progress.conf_state.voters.len() > 1 => {
                self.shared.condemn(&format!("cannot apply an entry: {error}"));
            }
            Err(error) => fatal(&self.shared.name, "cannot apply", &error),
        };
        wire::failpoint::hit("consensus_batch_applied");
        self.publish(started, entries.len());
        answer(entries, outcomes, replies);
    }

    /// Applies entries in one transaction. After an error nothing of them is in the rows.
    fn transact(&mut self, entries: &[RaftEntry]) -> Result<Vec<Outcome<M::Reply>>, StoreError> {
        let sole_voter = self.is_sole_voter();
        let txn = self.state.begin()?;
        let mut batch = WriteBatch::new(&txn, M::TABLES, self.progress.state_hash);
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            // The entry that raft logs at the start of a term is nobody's command, nor is a change of membership.
            if entry.data.is_empty() || entry.get_entry_type() != EntryType::EntryNormal {
                outcomes.push(Err(ProposeError::Unknown));
                continue;
            }
            batch.begin_entry();
            let command = Entry { index: entry.index, term: entry.term, command: &entry.data };
            outcomes.push(match self.machine.apply(&mut batch, command) {
                Ok(reply) => Ok(reply),
                Err(StoreError::Corrupt { table, row_key }) if sole_voter => {
                    batch.rollback_entry()?;
                    Err(self.corrupt(entry.index, table, row_key))
                }
                Err(error) => return Err(error),
            });
        }
        self.machine.finish_batch(&mut batch)?;
        let (state_hash, written) = (batch.state_hash(), batch.written());
        drop(batch);
        self.finish(txn, entries, state_hash, written)?;
        Ok(outcomes)
    }

    /// Commits a transaction with the progress it stands for.
    fn finish(
        &mut self,
        txn: redb::WriteTransaction,
        entries: &[RaftEntry],
        state_hash: u128,
        written: u64,
    ) -> Result<(), StoreError> {
        let last = entries.last().expect("a batch has an entry");
        let before = wire::planted::is_on("applied_index_apart").then(|| self.progress.clone());
        assert!(
            entries[0].index == self.progress.applied_index + 1,
            "entries are applied in order, each once"
        );
        while self.changes.front().is_some_and(|(index, _)| *index <= last.index) {
            let (_, membership) = self.changes.pop_front().expect("looked at above");
            self.progress.conf_state = membership.conf_state;
            self.progress.members = membership.members.into_values().collect();
            self.progress.former = membership.former;
        }
        self.progress.applied_index = last.index;
        self.progress.applied_term = last.term;
        self.progress.state_hash = state_hash;
        // The bug: the transaction of the next batch brings the index of this one.
        put_progress(&txn, before.as_ref().unwrap_or(&self.progress))?;
        txn.commit()?;
        self.pace.note_rows(written, wire::clock::steady_ns());
        Ok(())
    }

    /// The end of a batch met a corrupt row: apply each entry on its own, so that only those fail that cause it.
    fn apply_singly(&mut self, entries: &[RaftEntry]) -> Vec<Outcome<M::Reply>> {
        self.reset_machine();
        entries.iter().map(|entry| self.apply_alone(entry)).collect()
    }

    fn apply_alone(&mut self, entry: &RaftEntry) -> Outcome<M::Reply> {
        let alone = std::slice::from_ref(entry);
        match self.transact(alone) {
            Ok(mut outcomes) => outcomes.pop().expect("one entry has one outcome"),
            Err(StoreError::Corrupt { table, row_key }) => {
                self.reset_machine();
                let state_hash = self.progress.state_hash;
                let skipped = self.state.begin().and_then(|txn| self.finish(txn, alone, state_hash, 0));
                if let Err(error) = skipped {
                    fatal(&self.shared.name, "cannot note progress", &error);
                }
                Err(self.corrupt(entry.index, table, row_key))
            }
            Err(error) => fatal(&self.shared.name, "cannot apply", &error),
        }
    }

    /// What the machine has cached may come from the transaction that was taken back.
    fn reset_machine(&mut self) {
        if let Err(error) = self.state.view().and_then(|view| self.machine.recovered(&view)) {
            fatal(&self.shared.name, "cannot take over the state again", &error);
        }
    }

    fn corrupt(&self, index: u64, table: &'static str, row_key: Vec<u8>) -> ProposeError {
        self.shared.metrics.corrupt_rows.increment(1);
        tracing::error!(group = %self.shared.name, index, table, "a command needs a corrupt row and fails");
        ProposeError::Corrupt { table, row_key }
    }

    fn is_sole_voter(&self) -> bool {
        let conf_state = &self.progress.conf_state;
        conf_state.voters.len() == 1
            && conf_state.learners.is_empty()
            && conf_state.voters_outgoing.is_empty()
    }

    /// Lets everyone see how far we are, before the replies go out.
    fn publish(&self, started: u64, count: usize) {
        let Progress { applied_index, applied_term, state_hash, .. } = self.progress;
        let shared = &self.shared;
        shared.expire_view();
        {
            let mut status = shared.status.lock();
            status.applied_index = applied_index;
            status.state_hash = state_hash;
        }
        shared.applied_index.store(applied_index, Ordering::Release);
        // Reads may wait for this.
        if shared.note_applied_term(applied_term) {
            self.wake_raft();
        }
        let metrics = &shared.metrics;
        metrics.applied_index.set(applied_index as f64);
        metrics.apply_batch_entries.record(count as f64);
        metrics.apply_batch_seconds.record(seconds(wire::clock::steady_ns() - started));
    }

    fn checkpoint(&mut self) {
        if !self.pace.is_dirty() {
            return;
        }
        let started = wire::clock::steady_ns();
        wire::failpoint::hit("consensus_checkpoint_begun");
        if let Err(error) = self.state.checkpoint() {
            fatal(&self.shared.name, "cannot make a checkpoint", &error);
        }
        wire::failpoint::hit("consensus_checkpoint_done");
        let took = wire::clock::steady_ns() - started;
        self.pace.adapt(took, started);
        let index = self.progress.applied_index;
        self.shared.status.lock().checkpoint_index = index;
        self.shared.checkpoint_index.store(index, Ordering::Release);
        self.shared.metrics.checkpoint_index.set(index as f64);
        self.shared.metrics.checkpoint_seconds.record(seconds(took));
        self.wake_raft();
    }

    /// Goes on from the rows of a snapshot. The file's rename stands at its beginning: an error after it leaves no state
    /// to go on with.
    fn install(&mut self, received: ReceivedSnapshot) {
        match received.install() {
            Ok((state, progress)) => (self.state, self.progress) = (state, progress),
            Err(error) => fatal(&self.shared.name, "cannot take a snapshot over", &error),
        }
        self.changes.clear();
        self.pace.restart();
        self.reset_machine();
        self.shared.replace_db(Arc::clone(self.state.database()));
        let Progress { applied_index, state_hash, .. } = self.progress;
        {
            let mut status = self.shared.status.lock();
            (status.applied_index, status.checkpoint_index) = (applied_index, applied_index);
            status.state_hash = state_hash;
        }
        self.shared.applied_index.store(applied_index, Ordering::Release);
        self.shared.checkpoint_index.store(applied_index, Ordering::Release);
        self.shared.metrics.applied_index.set(applied_index as f64);
        self.shared.metrics.checkpoint_index.set(applied_index as f64);
        // Last: the raft thread then goes on.
        self.shared.installed_index.store(applied_index, Ordering::Release);
        self.wake_raft();
    }

    fn clear_installed(&mut self) {
        if let Err(error) = self.state.clear_installed(&mut self.progress) {
            fatal(&self.shared.name, "cannot note that a snapshot is in use", &error);
        }
    }

    /// A full inbox wakes the raft thread as well.
    fn wake_raft(&self) {
        if let Some(raft) = self.raft.upgrade() {
            let _ = raft.try_send(Input::Wake);
        }
    }
}

impl<R> Batch<R> {
    fn empty() -> Self {
        Batch { entries: Vec::new(), replies: VecDeque::new(), changes: Vec::new() }
    }
}

fn answer<R>(entries: &[RaftEntry], outcomes: Vec<Outcome<R>>, mut replies: VecDeque<(u64, Reply<R>)>) {
    for (entry, outcome) in entries.iter().zip(outcomes) {
        if replies.front().is_some_and(|(index, _)| *index == entry.index)
            && let Some((_, reply)) = replies.pop_front()
        {
            reply.send(outcome);
        }
    }
    debug_assert!(replies.is_empty(), "every reply belongs to an entry of its batch");
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

impl Pace {
    /// A checkpoint every `interval` and, to begin with, every `rows` rows.
    pub(crate) fn new(interval: Duration, rows: u64) -> Self {
        Pace {
            interval_ns: interval.as_nanos() as u64,
            rows_min: rows.min(CHECKPOINT_ROWS_MIN),
            rows_due: rows,
            rows: 0,
            log_bytes: 0,
            since_ns: None,
        }
    }

    fn note_rows(&mut self, rows: u64, now_ns: u64) {
        self.rows += rows;
        self.since_ns.get_or_insert(now_ns);
    }

    fn note_log(&mut self, bytes: u64) {
        self.log_bytes += bytes;
    }

    fn is_dirty(&self) -> bool {
        self.since_ns.is_some()
    }

    fn is_due(&self, now_ns: u64) -> bool {
        self.rows >= self.rows_due
            || self.log_bytes >= CHECKPOINT_LOG_BYTES
            || self.since_ns.is_some_and(|since| now_ns >= since + self.interval_ns)
    }

    /// Starts the next round, longer or shorter after what this one, which began at `started_ns`, took.
    fn adapt(&mut self, took_ns: u64, started_ns: u64) {
        let worked_ns = self.since_ns.map_or(0, |since| started_ns.saturating_sub(since));
        let came_by_rows = self.rows >= self.rows_due;
        let share = |parts: u64| took_ns.saturating_mul(parts) > worked_ns.saturating_add(took_ns);
        if came_by_rows && share(CHECKPOINT_SHARE) {
            self.rows_due = self.rows_due.saturating_mul(2).min(CHECKPOINT_ROWS_MAX);
        } else if took_ns > CHECKPOINT_LONG_NS && !share(2 * CHECKPOINT_SHARE) {
            // In proportion, as most of a long one is writing pages, but never to nothing by one slow sync.
            let shorter =
                (self.rows_due as u128 * u128::from(CHECKPOINT_LONG_NS) / u128::from(took_ns)) as u64;
            self.rows_due = shorter.max(self.rows_due / 2).max(self.rows_min);
        } else if took_ns < CHECKPOINT_SHORT_NS && came_by_rows {
            self.rows_due = (self.rows_due + self.rows_due / 4 + 1).min(CHECKPOINT_ROWS_MAX);
        }
        self.restart();
    }

    /// Everything is durable.
    fn restart(&mut self) {
        self.rows = 0;
        self.log_bytes = 0;
        self.since_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_come_by_rows_bytes_and_time() {
        let mut pace = Pace::new(Duration::from_secs(5), 10_000);
        assert!(!pace.is_dirty());
        pace.note_rows(9_999, 7);
        assert!(!pace.is_due(8));
        assert!(pace.is_due(5_000_000_007));
        pace.note_rows(1, 9);
        assert!(pace.is_due(9));
        pace.adapt(15_000_000, 1_000_000_000);
        assert!(!pace.is_dirty() && !pace.is_due(u64::MAX));
        pace.note_log(CHECKPOINT_LOG_BYTES);
        assert!(pace.is_due(0));
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn long_checkpoints_come_sooner_and_short_ones_later() {
        let mut pace = Pace::new(Duration::from_secs(5), 10_000);
        pace.note_rows(10_000, 0);
        pace.adapt(40_000_000, SECOND);
        assert_eq!(pace.rows_due, 5_000);
        for _ in 0..9 {
            pace.note_rows(5_000, 0);
            pace.adapt(400_000_000, 60 * SECOND);
        }
        assert_eq!(pace.rows_due, CHECKPOINT_ROWS_MIN);
        pace.note_rows(CHECKPOINT_ROWS_MIN, 0);
        pace.adapt(5_000_000, SECOND);
        assert!(pace.rows_due > CHECKPOINT_ROWS_MIN);
        let before = pace.rows_due;
        // One that the interval forced says nothing about how many rows would fit.
        pace.note_rows(1, 0);
        pace.adapt(5_000_000, SECOND);
        assert_eq!(pace.rows_due, before);
    }

    #[test]
    fn checkpoints_that_take_much_of_the_time_come_later() {
        let mut pace = Pace::new(Duration::from_secs(5), 10_000);
        pace.note_rows(10_000, 0);
        pace.adapt(400_000_000, SECOND);
        assert_eq!(pace.rows_due, 20_000);
        // Long, but not too much of the time: it stays as it is, so that the pace does not swing.
        pace.note_rows(20_000, 0);
        pace.adapt(400_000_000, 4 * SECOND);
        assert_eq!(pace.rows_due, 20_000);
        pace.note_rows(20_000, 0);
        pace.adapt(400_000_000, 20 * SECOND);
        assert_eq!(pace.rows_due, 10_000);
        for _ in 0..20 {
            pace.note_rows(CHECKPOINT_ROWS_MAX, 0);
            pace.adapt(SECOND, SECOND);
        }
        assert_eq!(pace.rows_due, CHECKPOINT_ROWS_MAX);
    }
}
