//! The driver's part in sending snapshots: to whom, when, and what raft is told of it.
//!
//! ```text
//!  raft wants one for a peer --> a view is taken, off this thread --> raft is given its index --> raft's message
//!      --> streamed by a task: message, head, rows --> raft is told of the outcome, whatever it is
//! ```
//!
//! Raft asks again with every heartbeat until it gets one, so nothing here remembers a wish. The log keeps what comes after
//! a snapshot that is on its way, within a limit: a peer that has installed it must not need the next one at once.
//!
//! Invariants:
//! * One snapshot a peer, [`SENDS_MAX`] in all, each read piece by piece.
//! * What ends, ends with a report to raft: a peer without one would never be sent to again.
//!
//! Not here: the stream's bytes (see `state::snapshot`), taking one in (see `install`, `incoming`).

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use platform::task;
use raft::SnapshotStatus;
use raft::eraftpb::{Message, SnapshotMetadata};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use wire::status::{Failure, Status};

use super::Driver;
use crate::abort::fatal;
use crate::error::SnapshotError;
use crate::packet::encode_call;
use crate::peer::SnapshotStream;
use crate::shared::Input;
use crate::state::snapshot::SnapshotSource;

/// Snapshots made or on their way at once: each pins pages of the state file and reads at the disk's speed.
const SENDS_MAX: usize = 2;

/// A snapshot that raft has not asked for again within so many ticks is given up: its view keeps pages from reuse.
const TAKEN_TICKS: u64 = 30;

/// After a failure a peer is not sent another for so many ticks, then for twice as many ...
const PAUSE_TICKS_FIRST: u64 = 5;

/// ... up to half a minute: its disk may be full.
const PAUSE_TICKS_MAX: u64 = 300;

/// A sender's task that has ended without a word, as it panicked, is noticed after so many ticks.
const LOST_TICKS: u64 = 10;

/// A stream of which nothing was taken for so long has failed.
const IDLE: Duration = Duration::from_secs(30);

/// What was taken whole is installed within this.
const INSTALL: Duration = Duration::from_secs(300);

/// A peer that has installed one has so many ticks to come near the log's end.
const CATCH_UP_TICKS: u64 = 600;

/// While a snapshot is on its way the log keeps so many times what it keeps otherwise.
const HOLD_FACTOR: u64 = 10;

/// All snapshots for peers.
#[derive(Default)]
pub(super) struct Sends {
    to: BTreeMap<u64, Send>,
    pauses: BTreeMap<u64, Pause>,
    /// Peers that catch up from the snapshot they have installed: up to where they are, and until when they are waited for.
    catching_up: BTreeMap<u64, (u64, u64)>,
    last_number: u64,
}

struct Send {
    number: u64,
    /// Of the snapshot, once it is made.
    index: u64,
    stage: Stage,
    task: JoinHandle<()>,
    /// When its task was first seen to have ended.
    ended: Option<u64>,
}

enum Stage {
    Making,
    /// Raft may have it until this tick.
    Made(Box<SnapshotSource>, u64),
    Streaming,
}

struct Pause {
    until: u64,
    ticks: u64,
}

/// The outcome of making one, or of sending it; the number says which.
pub(crate) enum SendEvent {
    Made(Result<Box<SnapshotSource>, SnapshotError>),
    Sent(Result<(), Failure>),
}

impl Sends {
    /// The oldest snapshot on its way.
    pub(super) fn oldest_index(&self) -> Option<u64> {
        let sent =
            self.to.values().filter(|send| !matches!(send.stage, Stage::Making)).map(|send| send.index);
        sent.chain(self.catching_up.values().map(|(index, _)| *index)).min()
    }

    fn is_paused(&self, to: u64, now: u64) -> bool {
        self.pauses.get(&to).is_some_and(|pause| now < pause.until)
    }

    fn pause(&mut self, to: u64, now: u64) {
        let pause = self.pauses.entry(to).or_insert(Pause { until: 0, ticks: PAUSE_TICKS_FIRST / 2 });
        pause.ticks = (pause.ticks * 2).clamp(PAUSE_TICKS_FIRST, PAUSE_TICKS_MAX);
        pause.until = now + pause.ticks;
    }
}

impl<R: std::marker::Send + 'static> Driver<R> {
    /// Makes snapshots for the peers that raft would like to send one to.
    pub(super) fn make_snapshots(&mut self) {
        let wanted = std::mem::take(&mut self.node.mut_store().desk().wanted);
        if !self.is_leader() || self.stop_by.is_some() || self.place.transport.is_none() {
            return;
        }
        for to in wanted {
            let is_free = !self.sends.to.contains_key(&to) && self.sends.to.len() < SENDS_MAX;
            if is_free && self.membership.contains(to) && !self.sends.is_paused(to, self.now) {
                self.make_snapshot(to);
            }
        }
    }

    fn make_snapshot(&mut self, to: u64) {
        let Some(db) = self.shared.db.read().clone() else { return };
        let (tables, cluster_id) = (self.shared.tables, self.place.cluster_id);
        let number = self.next_send();
        let inbox = self.inbox.clone();
        let task = self.spawn(async move {
            let made = task::spawn_blocking(move || SnapshotSource::new(&db, tables, cluster_id)).await;
            let Ok(made) = made else { return };
            if let Some(inbox) = inbox.upgrade() {
                // An error says that the driver is gone.
                let _ = inbox.send(Input::Send(to, number, SendEvent::Made(made.map(Box::new)))).await;
            }
        });
        self.sends.to.insert(to, Send { number, index: 0, stage: Stage::Making, task, ended: None });
    }

    fn next_send(&mut self) -> u64 {
        self.sends.last_number += 1;
        self.sends.last_number
    }

    fn spawn(&self, work: impl Future<Output = ()> + std::marker::Send + 'static) -> JoinHandle<()> {
        // This thread is none of the runtime's.
        let _inside = self.place.runtime.enter();
        task::spawn(work)
    }

    pub(super) fn note_send(&mut self, to: u64, number: u64, event: SendEvent) {
        // What was given up meanwhile is nobody's any more.
        if self.sends.to.get(&to).is_none_or(|send| send.number != number) {
            return;
        }
        match event {
            SendEvent::Made(Ok(source)) => self.note_made(to, source),
            SendEvent::Made(Err(error)) => {
                if !self.shared.stop_wanted.load(Ordering::Acquire) {
                    fatal(&self.shared.name, "cannot read the state for a snapshot", &error);
                }
                self.sends.to.remove(&to);
            }
            SendEvent::Sent(outcome) => self.note_sent(to, outcome),
        }
    }

    fn note_made(&mut self, to: u64, source: Box<SnapshotSource>) {
        let head = source.head();
        let conf_state = &head.conf_state;
        let knows_it = [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing]
            .iter()
            .any(|ids| ids.contains(&to));
        // Apply may lag behind the entry that added the peer; it would refuse a snapshot from before.
        if !knows_it || head.applied_index + 1 < self.node.store().log().first_index() {
            self.sends.to.remove(&to);
            return;
        }
        let metadata = SnapshotMetadata {
            index: head.applied_index,
            term: head.applied_term,
            conf_state: Some(conf_state.clone()).into(),
            ..SnapshotMetadata::default()
        };
        self.node.mut_store().desk().made.insert(to, metadata);
        if let Some(send) = self.sends.to.get_mut(&to) {
            send.index = source.head().applied_index;
            send.stage = Stage::Made(source, self.now + TAKEN_TICKS);
        }
    }

    /// Raft has taken the snapshot that was made for the receiver of `message`.
    pub(super) fn stream_snapshot(&mut self, message: Message) {
        let to = message.to;
        self.node.mut_store().desk().made.remove(&to);
        let made = self.sends.to.remove(&to);
        let (Some(Send { stage: Stage::Made(source, _), index, .. }), Some(transport)) =
            (made, self.place.transport.clone())
        else {
            return self.refuse_snapshot(to);
        };
        let Some(member) = self.routes.get(&to).or_else(|| self.membership.members.get(&to)).cloned() else {
            self.shared.metrics.messages_unroutable.increment(1);
            return self.refuse_snapshot(to);
        };
        tracing::info!(group = %self.shared.name, to, index, "sending a snapshot");
        let call = encode_call(&self.head_to(&member), message, &source.head().encode());
        let number = self.next_send();
        let (inbox, group) = (self.inbox.clone(), self.shared.name.clone());
        let task = self.spawn(async move {
            let taken = Arc::new(Taken::default());
            let body = stream_of(group.clone(), source, Arc::clone(&taken));
            let sent = transport.send_snapshot(&group, &member, call, body);
            let outcome = watched(sent, &taken).await;
            if let Some(inbox) = inbox.upgrade() {
                let _ = inbox.send(Input::Send(to, number, SendEvent::Sent(outcome))).await;
            }
        });
        self.sends.to.insert(to, Send { number, index, stage: Stage::Streaming, task, ended: None });
    }

    fn refuse_snapshot(&mut self, to: u64) {
        self.sends.pause(to, self.now);
        self.node.report_snapshot(to, SnapshotStatus::Failure);
    }

    fn note_sent(&mut self, to: u64, outcome: Result<(), Failure>) {
        let index = self.sends.to.remove(&to).map_or(0, |send| send.index);
        match outcome {
            Ok(()) => {
                tracing::info!(group = %self.shared.name, to, index, "a snapshot is installed");
                self.shared.metrics.snapshots_sent.increment(1);
                self.sends.pauses.remove(&to);
                self.sends.catching_up.insert(to, (index, self.now + CATCH_UP_TICKS));
                self.node.report_snapshot(to, SnapshotStatus::Finish);
            }
            Err(failure) => {
                tracing::warn!(group = %self.shared.name, to, index, %failure, "a snapshot did not arrive");
                self.shared.metrics.snapshots_failed.increment(1);
                self.refuse_snapshot(to);
            }
        }
        self.after_raft();
    }

    /// Gives up what nobody takes, and what has ended without a word.
    pub(super) fn tick_sends(&mut self) {
        let now = self.now;
        let (mut untaken, mut lost) = (Vec::new(), Vec::new());
        for (to, send) in &mut self.sends.to {
            let is_member = self.membership.contains(*to);
            match &send.stage {
                Stage::Made(_, until) if now >= *until || !is_member => untaken.push(*to),
                Stage::Made(..) => {}
                Stage::Making | Stage::Streaming => {
                    let is_over =
                        send.task.is_finished() && now >= *send.ended.get_or_insert(now) + LOST_TICKS;
                    if is_over || !is_member {
                        lost.push(*to);
                    }
                }
            }
        }
        for to in untaken {
            self.sends.to.remove(&to);
            self.node.mut_store().desk().made.remove(&to);
        }
        for to in lost {
            if let Some(send) = self.sends.to.remove(&to) {
                send.task.abort();
            }
            self.refuse_snapshot(to);
            self.after_raft();
        }
        let (membership, keep) = (&self.membership, self.place.log_keep_entries);
        self.sends.pauses.retain(|to, _| membership.contains(*to));
        let last = self.node.raft.raft_log.last_index();
        let progress = self.node.raft.prs();
        self.sends.catching_up.retain(|to, (index, until)| {
            *index = (*index).max(progress.get(*to).map_or(0, |progress| progress.matched));
            now < *until && membership.contains(*to) && *index + keep < last
        });
    }

    /// This replica does not lead any more: its snapshots would be refused at their end.
    pub(super) fn stop_sends(&mut self) {
        for (_, send) in std::mem::take(&mut self.sends.to) {
            send.task.abort();
        }
        self.sends.pauses.clear();
        self.sends.catching_up.clear();
        *self.node.mut_store().desk() = Default::default();
    }

    /// The log must not forget what comes after a snapshot that is on its way.
    pub(super) fn held_for_sends(&self, checkpoint: u64) -> u64 {
        let oldest = self.sends.oldest_index().unwrap_or(u64::MAX);
        oldest.max(checkpoint.saturating_sub(self.place.log_keep_entries.saturating_mul(HOLD_FACTOR)))
    }
}

/// How far a stream has come, for those who wait for it.
#[derive(Default)]
struct Taken {
    pieces: AtomicU64,
    is_whole: AtomicBool,
}

/// The pieces of a snapshot, each read off the reactor when it is asked for.
fn stream_of(group: String, source: Box<SnapshotSource>, taken: Arc<Taken>) -> SnapshotStream {
    Box::pin(stream::unfold(Some(source), move |source| {
        let (group, taken) = (group.clone(), Arc::clone(&taken));
        async move {
            let mut source = source?;
            let read = task::spawn_blocking(move || {
                let piece = source.next_piece();
                (source, piece)
            });
            let (source, piece) = match read.await {
                Ok(read) => read,
                Err(error) => return Some((Err(unreadable(&error)), None)),
            };
            taken.pieces.fetch_add(1, Ordering::AcqRel);
            match piece {
                Ok(Some(piece)) => Some((Ok::<Bytes, Failure>(piece), Some(source))),
                Ok(None) => {
                    taken.is_whole.store(true, Ordering::Release);
                    None
                }
                Err(
                    error
                    @ (SnapshotError::Unsound | SnapshotError::Store(crate::StoreError::Corrupt { .. })),
                ) => {
                    // It must not spread, and a replica with peers does not go on with it either.
                    fatal(&group, "this replica's rows cannot be sent", &error)
                }
                Err(error) => Some((Err(unreadable(&error)), None)),
            }
        }
    }))
}

fn unreadable(error: &dyn std::error::Error) -> Failure {
    Failure::new(Status::Internal, format!("the snapshot cannot be read: {error}"))
}

/// Waits for the outcome as long as pieces are taken, then for the receiver to install them.
async fn watched(sent: impl Future<Output = Result<(), Failure>>, taken: &Taken) -> Result<(), Failure> {
    let mut sent = pin!(sent);
    loop {
        let before = taken.pieces.load(Ordering::Acquire);
        let patience = if taken.is_whole.load(Ordering::Acquire) { INSTALL } else { IDLE };
        tokio::select! {
            biased;
            outcome = &mut sent => return outcome,
            () = sleep(patience) => {
                if taken.pieces.load(Ordering::Acquire) == before {
                    return Err(Failure::new(Status::Retry, "the receiver took nothing for too long"));
                }
            }
        }
    }
}
