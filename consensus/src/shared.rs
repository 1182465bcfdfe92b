//! What the raft thread, the apply thread and the handles see of one another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use crate::error::{ProposeError, ReadError, StoreError};
use crate::group::{GroupStatus, Priority};
use crate::metrics::Metrics;
use crate::state::{StateDb, view_of};
use crate::store::{ReadView, Table};

/// Where the group is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Recovering, or another replica leads.
    Following,
    /// This replica leads and has applied an entry of its term.
    Leading,
    /// The threads are gone.
    Stopped,
}

/// What the raft thread waits for.
pub(crate) enum Input<R> {
    Propose(Proposal<R>),
    /// Something that the raft thread looks at has changed: apply has room again, or made a checkpoint.
    Wake,
    Stop,
}

/// A command on its way into the log.
pub(crate) struct Proposal<R> {
    pub(crate) command: Bytes,
    pub(crate) priority: Priority,
    pub(crate) reply: Reply<R>,
}

/// The way back to a proposer. Dropped unanswered, it says that the outcome is unknown.
pub(crate) struct Reply<R> {
    sender: oneshot::Sender<Result<R, ProposeError>>,
    _ticket: Ticket,
}

/// One of the places for commands under way.
pub(crate) struct Ticket(Arc<Shared>);

/// State shared by threads and handles.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) tables: &'static [Table],
    pub(crate) metrics: Metrics,
    pub(crate) status: Mutex<GroupStatus>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Whether the phase is `Leading`, for the path of every read.
    pub(crate) leading: AtomicBool,
    /// The term this replica leads in, 0 if it does not.
    pub(crate) leader_term: AtomicU64,
    pub(crate) applied_index: AtomicU64,
    pub(crate) checkpoint_index: AtomicU64,
    /// The raft thread waits until apply takes the next batch.
    pub(crate) backlogged: AtomicBool,
    /// The raft thread asks for a checkpoint, so that it can recycle a segment.
    pub(crate) checkpoint_wanted: AtomicBool,
    in_flight: AtomicUsize,
    /// Gone once the group has stopped.
    pub(crate) db: RwLock<Option<Arc<StateDb>>>,
    /// The newest view, made by the first reader after a batch.
    view: Mutex<Option<Arc<ReadView>>>,
}

impl Shared {
    pub(crate) fn new(name: &str, tables: &'static [Table], db: Arc<StateDb>, status: GroupStatus) -> Self {
        Shared {
            name: name.to_owned(),
            tables,
            metrics: Metrics::new(name),
            status: Mutex::new(status),
            phase: watch::Sender::new(Phase::Following),
            leading: AtomicBool::new(false),
            leader_term: AtomicU64::new(0),
            applied_index: AtomicU64::new(status.applied_index),
            checkpoint_index: AtomicU64::new(status.checkpoint_index),
            backlogged: AtomicBool::new(false),
            checkpoint_wanted: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            db: RwLock::new(Some(db)),
            view: Mutex::new(None),
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.leading.store(phase == Phase::Leading, Ordering::Release);
        self.phase.send_if_modified(|current| std::mem::replace(current, phase) != phase);
    }

    /// A view of the newest committed batch. One is shared by all readers until the next batch.
    pub(crate) fn newest_view(&self) -> Result<Arc<ReadView>, ReadError> {
        let mut newest = self.view.lock();
        if let Some(view) = &*newest {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(self.fresh_view()?);
        *newest = Some(Arc::clone(&view));
        Ok(view)
    }

    pub(crate) fn fresh_view(&self) -> Result<ReadView, ReadError> {
        match &*self.db.read() {
            Some(db) => Ok(view_of(db, self.tables)?),
            None => Err(ReadError::Stopped),
        }
    }

    /// Drops the shared view. Called after a batch is committed and before anyone hears of it: a reader that comes
    /// after a reply must see what was replied.
    pub(crate) fn expire_view(&self) {
        let expired = self.view.lock().take();
        drop(expired);
    }

    /// Lets go of the state file.
    pub(crate) fn close(&self) {
        let db = self.db.write().take();
        self.expire_view();
        // Also for views that are still held: another process may have the file from here on.
        if let Some(db) = db {
            db.close();
        }
        // Reads must not go on in the moment until the raft thread has ended too.
        self.leading.store(false, Ordering::Release);
    }
}

impl Ticket {
    /// Takes one of `count_max` places.
    pub(crate) fn take(shared: &Arc<Shared>, count_max: usize) -> Option<Ticket> {
        if shared.in_flight.fetch_add(1, Ordering::AcqRel) >= count_max {
            shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Ticket(Arc::clone(shared)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<R> Reply<R> {
    pub(crate) fn new(ticket: Ticket) -> (Self, oneshot::Receiver<Result<R, ProposeError>>) {
        let (sender, receiver) = oneshot::channel();
        (Reply { sender, _ticket: ticket }, receiver)
    }

    /// Answers. A proposer that has gone away does not mind.
    pub(crate) fn send(self, outcome: Result<R, ProposeError>) {
        let _ = self.sender.send(outcome);
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error,
            ReadError::Stopped | ReadError::NotLeader { .. } => {
                StoreError::Redb(Box::new(redb::Error::DatabaseClosed))
            }
        }
    }
}
