//! What the raft thread, the apply thread and the handles see of one another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use platform::disk::DiskIo;
use platform::watch;
use tokio::sync::oneshot;

use wire::group::{Member, MemberInfo, MembershipChange};

use crate::driver::{Install, SendEvent};
use crate::error::{ChangeError, ProposeError, ReadError, StoreError};
use crate::group::{GroupStatus, Leadership, Priority};
use crate::lives::{self, Lives, Question};
use crate::members::Membership;
use crate::metrics::Metrics;
use crate::packet::{Mark, Packet};
use crate::reads::ReadReply;
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
    Read(ReadReply),
    Packet(Box<Packet>),
    Change(MembershipChange, ChangeReply),
    Transfer(u64, ChangeReply),
    /// A snapshot lies beside the state, whole and durable.
    Install(Box<Install>),
    /// What became of a snapshot for a peer; the number says which.
    Send(u64, u64, SendEvent),
    /// Somebody may live under a peer's raft id: its address is to be asked.
    Ask(Question),
    /// A peer asks who lives here; the number goes back.
    Asked(Box<Member>, u64),
    Tick,
    /// Something that the raft thread looks at has changed: apply has room again, or made a checkpoint.
    Wake,
    Stop,
}

/// The way back to whoever asked for a change.
pub(crate) type ChangeReply = oneshot::Sender<Result<(), ChangeError>>;

/// State hashes kept to be compared with those of peers, the newest last.
const MARKS_MAX: usize = 4;

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
    pub(crate) raft_id: u64,
    /// The group's directory.
    pub(crate) disk: Arc<dyn DiskIo>,
    pub(crate) tables: &'static [Table],
    pub(crate) metrics: Metrics,
    pub(crate) status: Mutex<GroupStatus>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Gone once the group has stopped, so that followers of leadership hear of it.
    leadership: Mutex<Option<watch::Sender<Leadership>>>,
    pub(crate) membership: Mutex<Arc<Membership>>,
    /// The members as the raft thread last saw them.
    pub(crate) member_infos: Mutex<Vec<MemberInfo>>,
    /// This process, among all that ever ran as this replica.
    pub(crate) life: u64,
    /// The processes that speak for peers.
    pub(crate) lives: Mutex<Lives>,
    /// This replica's hashes at indices that all replicas mark.
    marks: Mutex<Vec<Mark>>,
    /// This replica is the only one there is: nobody else could lead.
    pub(crate) alone: AtomicBool,
    pub(crate) stop_wanted: AtomicBool,
    /// The apply thread has closed the state file.
    pub(crate) applier_ended: AtomicBool,
    /// Whether the phase is `Leading`, for the path of every read.
    pub(crate) leading: AtomicBool,
    /// The term this replica leads in, 0 if it does not.
    leader_term: AtomicU64,
    pub(crate) applied_index: AtomicU64,
    pub(crate) checkpoint_index: AtomicU64,
    /// The snapshot whose rows the apply thread has taken over last.
    pub(crate) installed_index: AtomicU64,
    /// This node's clock was compared with its peers', and agrees.
    pub(crate) clock_is_trusted: AtomicBool,
    /// The log was reset for it: the state may forget that it came from one.
    pub(crate) log_reset: AtomicBool,
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
    pub(crate) fn new(
        name: &str,
        raft_id: u64,
        disk: Arc<dyn DiskIo>,
        tables: &'static [Table],
        db: Arc<StateDb>,
        status: GroupStatus,
        membership: Membership,
    ) -> Self {
        let leadership = Leadership { term: status.term, is_leading: false, leader: None };
        Shared {
            leadership: Mutex::new(Some(watch::Sender::new(leadership))),
            membership: Mutex::new(Arc::new(membership)),
            member_infos: Mutex::default(),
            life: lives::draw(),
            lives: Mutex::default(),
            marks: Mutex::default(),
            alone: AtomicBool::new(false),
            stop_wanted: AtomicBool::new(false),
            applier_ended: AtomicBool::new(false),
            name: name.to_owned(),
            raft_id,
            disk,
            tables,
            metrics: Metrics::new(name),
            status: Mutex::new(status),
            phase: watch::Sender::new(Phase::Following),
            leading: AtomicBool::new(false),
            leader_term: AtomicU64::new(0),
            applied_index: AtomicU64::new(status.applied_index),
            checkpoint_index: AtomicU64::new(status.checkpoint_index),
            installed_index: AtomicU64::new(0),
            clock_is_trusted: AtomicBool::new(false),
            log_reset: AtomicBool::new(false),
            backlogged: AtomicBool::new(false),
            checkpoint_wanted: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            db: RwLock::new(Some(db)),
            view: Mutex::new(None),
        }
    }

    /// This replica is wrong: it ends, and is not opened again.
    pub(crate) fn condemn(&self, why: &str) -> ! {
        crate::abort::condemn(&self.name, &*self.disk, why)
    }

    /// The raft thread: who leads now. Whoever leads anew has to apply an entry of its term first.
    pub(crate) fn note_leader(&self, term: u64, leader: u64, leader_term: u64) {
        let sender = self.leadership.lock();
        if self.leader_term.swap(leader_term, Ordering::AcqRel) != leader_term {
            // The bug: whoever is elected is asked at once, and answers from what it has applied.
            let early = leader_term != 0 && wire::planted::is_on("read_before_term_start");
            self.set_phase(if early { Phase::Leading } else { Phase::Following });
        }
        let is_leading = self.leading.load(Ordering::Acquire);
        announce(
            &sender,
            Leadership { term, is_leading, leader: Some(leader).filter(|leader| *leader != 0) },
        );
    }

    /// The apply thread: an entry of this term is applied; true if this replica leads since then.
    pub(crate) fn note_applied_term(&self, applied_term: u64) -> bool {
        let sender = self.leadership.lock();
        let leads = self.leader_term.load(Ordering::Acquire) == applied_term;
        if !leads || self.leading.load(Ordering::Acquire) {
            return false;
        }
        self.set_phase(Phase::Leading);
        let leader = Some(self.status.lock().leader);
        announce(&sender, Leadership { term: applied_term, is_leading: true, leader });
        true
    }

    fn set_phase(&self, phase: Phase) {
        self.leading.store(phase == Phase::Leading, Ordering::Release);
        self.phase.send_if_modified(|current| std::mem::replace(current, phase) != phase);
    }

    /// The threads are gone.
    pub(crate) fn note_stopped(&self) {
        self.leadership.lock().take();
        self.set_phase(Phase::Stopped);
    }

    pub(crate) fn follow_leadership(&self) -> watch::Receiver<Leadership> {
        match &*self.leadership.lock() {
            Some(sender) => sender.subscribe(),
            None => {
                let status = *self.status.lock();
                watch::channel(Leadership { term: status.term, is_leading: false, leader: None }).1
            }
        }
    }

    pub(crate) fn note_mark(&self, mark: Mark) {
        let mut marks = self.marks.lock();
        if marks.len() == MARKS_MAX {
            marks.remove(0);
        }
        marks.push(mark);
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.marks.lock().clone()
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

    /// The rows are those of another file from here on. Views of the old one live on.
    pub(crate) fn replace_db(&self, db: Arc<StateDb>) {
        *self.db.write() = Some(db);
        self.expire_view();
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

fn announce(sender: &Option<watch::Sender<Leadership>>, now: Leadership) {
    if let Some(sender) = sender {
        sender.send_if_modified(|known| std::mem::replace(known, now) != now);
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
            ReadError::Stopped | ReadError::TimedOut | ReadError::NotLeader { .. } => {
                StoreError::Redb(Box::new(redb::Error::DatabaseClosed))
            }
        }
    }
}
