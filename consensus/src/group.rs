//! A replicated group: opens it, proposes to it, reads from it.
//!
//! At start the state says how far it durably is and the log what came after. They must fit: the log begins at or
//! before the entry after the applied one and holds the applied one with its term. Then everything up to the applied
//! entry was committed, whatever the log knew of it, and raft hands out the rest again: that is the replay. If they
//! do not fit, one of them lost acknowledged entries, and opening is refused.
//!
//! Invariants:
//! * raft's `applied` starts at the durable applied index, never at the commit index: entries in between would never
//!   be applied.
//!
//! Not here: threads' work (see `driver`, `apply`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use platform::disk::{Directory, DiskIo};
use raft::RawNode;
use raft::eraftpb::HardState;
use uuid::Uuid;

use crate::apply::{Applier, Pace};
use crate::driver::{APPLY_INBOX, Driver, Room};
use crate::error::{OpenError, ProposeError, ReadError, StoreError};
use crate::log::{Identity, Log, LogConfig, SegmentedLog};
use crate::logger::raft_logger;
use crate::machine::StateMachine;
use crate::replica::{Replica, io_error};
use crate::shared::{Input, Phase, Proposal, Reply, Shared, Ticket};
use crate::space::{RESERVE, Reserve};
use crate::state::{Progress, STATE, StateConfig, StateFile};
use crate::storage::LogStore;
use crate::store::{ReadView, check_tables};

/// The longest command: raft panics on a Ready that is much longer than this.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes of commands that share one append at most: bounds how long the first one waits.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Entries in a message to a peer, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Committed entries in one Ready, in bytes: what a replay holds in memory at once.
const READY_BYTES_MAX: u64 = 4 << 20;

/// Proposed and not committed, in bytes; raft drops proposals beyond it.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Ticks of 100 ms: an election after at least 1 s, a heartbeat every tick.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;

/// A segment holds its header and some commands, and its offsets are 32-bit.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=1 << 30;

/// Inputs to the raft thread besides proposals: wake-ups and a stop.
const INBOX_EXTRA: usize = 64;

/// How a group is opened.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// `om` or `scm`: names threads, metrics and log lines.
    pub name: String,
    /// The group's directory.
    pub disk: Arc<dyn DiskIo>,
    /// The cluster; a directory of another one is refused.
    pub cluster_id: Uuid,
    /// This replica's raft id, 1 for the sole voter. Never 0.
    pub raft_id: u64,
    /// Size of new log segments, 16 KiB to 1 GiB. Two exist at least, zero-filled when made. Default 64 MiB.
    pub log_segment_bytes: u64,
    /// What redb may keep in memory for reads and unwritten pages. Default 32 MiB.
    pub cache_bytes: usize,
    /// Commands under way at most; more are answered [`ProposeError::Overloaded`]. Default 4,096.
    pub proposals_max: usize,
    /// The longest command, at most [`COMMAND_BYTES_MAX`], which is the default, and a quarter of a segment.
    pub command_bytes_max: usize,
    /// The state becomes durable at least this often while commands come. Default 5 s: bounds the replay.
    pub checkpoint_interval: Duration,
    /// Rows written between two checkpoints at first; adapted so that a checkpoint takes about 20 ms. Default 16,384.
    pub checkpoint_rows: u64,
    /// With less free space than this, only commands that free space pass. Default 64 MiB.
    pub disk_free_min_bytes: u64,
    /// Space kept in a file for commands that free space, once nothing else is left. At least as much as
    /// `cache_bytes` is wise, as that much may be unwritten. Default 32 MiB.
    pub reserve_bytes: u64,
}

impl GroupConfig {
    /// The defaults for a sole voter on `disk`.
    pub fn new(name: &str, disk: Arc<dyn DiskIo>, cluster_id: Uuid) -> Self {
        GroupConfig {
            name: name.to_owned(),
            disk,
            cluster_id,
            raft_id: 1,
            log_segment_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            proposals_max: 4096,
            command_bytes_max: COMMAND_BYTES_MAX,
            checkpoint_interval: Duration::from_secs(5),
            checkpoint_rows: 16_384,
            disk_free_min_bytes: 64 << 20,
            reserve_bytes: 32 << 20,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let refuse = |text: &str| Err(OpenError::Config(text.to_owned()));
        if self.raft_id == 0 {
            return refuse("a raft id is never 0");
        }
        if !SEGMENT_BYTES.contains(&self.log_segment_bytes) || !self.log_segment_bytes.is_multiple_of(4096) {
            return refuse("a log segment has 16 KiB to 1 GiB, in whole pages of 4 KiB");
        }
        if self.proposals_max == 0 || self.command_bytes_max == 0 {
            return refuse("no command could ever be proposed");
        }
        Ok(())
    }

    /// Where the files are, for messages.
    fn dir(&self) -> PathBuf {
        PathBuf::from(self.disk.name())
    }

    fn identity(&self) -> Identity {
        Identity { cluster_id: self.cluster_id, raft_id: self.raft_id }
    }

    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX.min(self.log_segment_bytes / 4) as usize
    }

    /// A command must fit into a segment beside what is kept there.
    fn command_bytes_max(&self) -> usize {
        self.command_bytes_max.min(COMMAND_BYTES_MAX).min(self.batch_bytes_max())
    }
}

/// A directory of the operating system as a group's disk, made if absent.
///
/// # Errors
/// If it cannot be made or opened.
pub fn directory(path: &Path) -> Result<Arc<dyn DiskIo>, OpenError> {
    let opened = Directory::open(path);
    let failed = |source| OpenError::Io { action: "make", path: path.to_owned(), source };
    Ok(Arc::new(opened.map_err(failed)?))
}

/// Whether a command needs room or makes room: what a full disk lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Refused with [`ProposeError::Full`] as soon as the disk has less than the reserve left.
    Ordinary,
    /// Frees space, or is needed so that others can: may use up the reserve.
    Freeing,
}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// The current term.
    pub term: u64,
    /// Whether this replica leads and has applied an entry of its term.
    pub is_leader: bool,
    /// The leader's raft id, 0 if unknown.
    pub leader: u64,
    /// Entries up to here are committed.
    pub commit_index: u64,
    /// Entries up to here are applied.
    pub applied_index: u64,
    /// Entries up to here are applied durably: replay starts after it.
    pub checkpoint_index: u64,
    /// The first entry in the log.
    pub log_first_index: u64,
    /// The last entry in the log.
    pub log_last_index: u64,
    /// The hash over all rows at `applied_index`.
    pub state_hash: u128,
}

/// A handle to a replicated group. Clones share it; the group stops when the last is gone.
pub struct Group<M: StateMachine> {
    handle: Arc<Handle<M::Reply>>,
}

struct Handle<R> {
    shared: Arc<Shared>,
    inbox: SyncSender<Input<R>>,
    proposals_max: usize,
    command_bytes_max: usize,
}

impl<M: StateMachine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group { handle: Arc::clone(&self.handle) }
    }
}

impl<R> Drop for Handle<R> {
    fn drop(&mut self) {
        // The threads finish by themselves. A full inbox drains, so this waits for a moment at most.
        let _ = self.inbox.send(Input::Stop);
    }
}

impl<M: StateMachine> Group<M> {
    /// Opens or creates the group, recovers it and starts its threads. The replay goes on when it returns: see
    /// [`Group::wait_leader`]. Blocking: call it off the reactor.
    ///
    /// # Errors
    /// Says what the operator can do.
    pub fn open(config: GroupConfig, machine: M) -> Result<Group<M>, OpenError> {
        config.check()?;
        check_tables(M::TABLES);
        let replica = Replica::lock(&config.disk)?;
        if !replica.exists()? {
            replica.create(config.identity(), || create_files::<M>(&config))?;
        }
        replica.check(config.identity())?;
        let reserve = open_reserve(&config)?;
        let (state, progress) = StateFile::open(&state_config::<M>(&config, &reserve))?;
        let log = SegmentedLog::open(log_config(&config))?;
        check_fit(&replica, &log, &progress)?;
        start(config, machine, Opened { replica, reserve, state, progress, log })
    }

    /// Proposes a command and waits until it is applied here. Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// Why the command was not applied, or that its outcome is unknown.
    ///
    /// # Panics
    /// If the command is empty: raft keeps empty entries for itself.
    pub async fn propose(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Ordinary).await
    }

    /// Proposes a command that frees space: a full disk lets it pass as long as the reserve lasts.
    ///
    /// # Errors
    /// As [`Group::propose`].
    ///
    /// # Panics
    /// As [`Group::propose`].
    pub async fn propose_freeing(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Freeing).await
    }

    /// Proposes a command.
    ///
    /// # Errors
    /// As [`Group::propose`].
    ///
    /// # Panics
    /// As [`Group::propose`].
    pub async fn propose_with(&self, command: Bytes, priority: Priority) -> Result<M::Reply, ProposeError> {
        assert!(!command.is_empty(), "a command has bytes");
        let handle = &self.handle;
        let (size, size_max) = (command.len(), handle.command_bytes_max);
        if size > size_max {
            return Err(ProposeError::TooLarge { size, size_max });
        }
        let Some(ticket) = Ticket::take(&handle.shared, handle.proposals_max) else {
            handle.shared.metrics.proposals_overloaded.increment(1);
            return Err(ProposeError::Overloaded);
        };
        let (reply, outcome) = Reply::new(ticket);
        match handle.inbox.try_send(Input::Propose(Proposal { command, priority, reply })) {
            Ok(()) => outcome.await.unwrap_or(Err(ProposeError::Unknown)),
            Err(TrySendError::Full(_)) => Err(ProposeError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(ProposeError::Unknown),
        }
    }

    /// A linearizable view: it holds every command acknowledged before the call.
    ///
    /// # Errors
    /// If this replica does not lead or has stopped.
    pub async fn read(&self) -> Result<Arc<ReadView>, ReadError> {
        let shared = &self.handle.shared;
        // Under a sole voter leadership cannot be lost to anybody; what was acknowledged is applied here. With peers
        // a quorum is asked at this point.
        if !shared.leading.load(Ordering::Acquire) {
            return Err(match *shared.phase.borrow() {
                Phase::Stopped => ReadError::Stopped,
                _ => ReadError::NotLeader {
                    hint: Some(shared.status.lock().leader).filter(|leader| *leader != 0),
                },
            });
        }
        shared.newest_view()
    }

    /// The newest applied rows, not linearizable with peers: for workers and metrics.
    ///
    /// # Errors
    /// If the state file fails or is closed.
    pub fn view(&self) -> Result<ReadView, StoreError> {
        Ok(self.handle.shared.fresh_view()?)
    }

    /// Where the group stands.
    pub fn status(&self) -> GroupStatus {
        let shared = &self.handle.shared;
        let status = *shared.status.lock();
        GroupStatus { is_leader: shared.leading.load(Ordering::Acquire), ..status }
    }

    /// Resolves when this replica leads and has applied an entry of its term; the log is replayed then.
    ///
    /// # Errors
    /// If the group stops before.
    pub async fn wait_leader(&self) -> Result<(), ReadError> {
        let mut phase = self.handle.shared.phase.subscribe();
        match phase.wait_for(|phase| *phase != Phase::Following).await.as_deref() {
            Ok(Phase::Leading) => Ok(()),
            _ => Err(ReadError::Stopped),
        }
    }

    /// Finishes what is under way, makes a durable checkpoint and closes; the directory can be opened again when it
    /// returns. Proposals after it answer [`ProposeError::Unknown`].
    pub async fn shutdown(&self) {
        // A full inbox: the driver drains it without our help, so trying again is enough.
        while let Err(TrySendError::Full(_)) = self.handle.inbox.try_send(Input::Stop) {
            tokio::task::yield_now().await;
        }
        let mut phase = self.handle.shared.phase.subscribe();
        let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    }
}

/// What opening found.
struct Opened {
    replica: Replica,
    reserve: Arc<Reserve>,
    state: StateFile,
    progress: Progress,
    log: SegmentedLog,
}

fn create_files<M: StateMachine>(config: &GroupConfig) -> Result<(), OpenError> {
    let reserve = open_reserve(config)?;
    StateFile::create(&state_config::<M>(config, &reserve))?;
    SegmentedLog::create(log_config(config))?;
    Ok(())
}

fn open_reserve(config: &GroupConfig) -> Result<Arc<Reserve>, OpenError> {
    let opened = Reserve::open(&config.disk, config.reserve_bytes);
    Ok(Arc::new(opened.map_err(io_error("open", &*config.disk, RESERVE))?))
}

fn state_config<'a, M: StateMachine>(config: &'a GroupConfig, reserve: &Arc<Reserve>) -> StateConfig<'a> {
    StateConfig {
        group: &config.name,
        disk: Arc::clone(&config.disk),
        identity: config.identity(),
        cache_bytes: config.cache_bytes,
        tables: M::TABLES,
        reserve: Arc::clone(reserve),
    }
}

fn log_config(config: &GroupConfig) -> LogConfig {
    LogConfig {
        disk: Arc::clone(&config.disk),
        identity: config.identity(),
        segment_bytes: config.log_segment_bytes,
        name: config.name.clone(),
    }
}

/// Checks that the log continues the state.
fn check_fit(replica: &Replica, log: &dyn Log, progress: &Progress) -> Result<(), OpenError> {
    let Progress { applied_index, applied_term, installed, ref conf_state, .. } = *progress;
    if installed || conf_state.voters.len() != 1 {
        let what = "it is a replica of several, which this program cannot run yet".to_owned();
        return Err(replica.damaged(STATE, what));
    }
    if log.first_index() > applied_index + 1 {
        let what =
            format!("the state ends at entry {applied_index}, the log begins at {}", log.first_index());
        return Err(replica.damaged("log", what));
    }
    if log.term(applied_index) != Some(applied_term) {
        let what = format!(
            "the state holds entry {applied_index} of term {applied_term}, the log ends at {} and has term {:?} there",
            log.last_index(),
            log.term(applied_index)
        );
        return Err(replica.damaged("log", what));
    }
    Ok(())
}

fn start<M: StateMachine>(
    config: GroupConfig,
    mut machine: M,
    opened: Opened,
) -> Result<Group<M>, OpenError> {
    let Opened { replica, reserve, state, progress, log } = opened;
    let recover = |source| OpenError::Recover { dir: config.dir(), source };
    let view = state.view().map_err(recover)?;
    machine.recovered(&view).map_err(recover)?;
    drop(view);

    let status = status_at_start(&log, &progress);
    let shared = Arc::new(Shared::new(&config.name, M::TABLES, Arc::clone(state.database()), status));
    let node = make_node(&config, log, &progress)?;
    let (raft_sender, raft_inbox) = sync_channel(config.proposals_max + INBOX_EXTRA);
    let (apply_sender, apply_inbox) = sync_channel(APPLY_INBOX);
    let applier = Applier {
        machine,
        state,
        progress,
        inbox: apply_inbox,
        raft: raft_sender.clone(),
        shared: Arc::clone(&shared),
        pace: Pace::new(config.checkpoint_interval, config.checkpoint_rows),
    };
    let applier = spawn(&config, "apply", move || applier.run())?;
    let room =
        Room::new(reserve, config.disk_free_min_bytes, config.log_segment_bytes, config.batch_bytes_max());
    let driver = Driver::new(node, raft_inbox, apply_sender, applier, Arc::clone(&shared), room);
    let stopping = Arc::clone(&shared);
    spawn(&config, "raft", move || {
        driver.run();
        // Only now may another process have the directory, and only now does a shutdown return.
        drop(replica);
        stopping.set_phase(Phase::Stopped);
    })?;
    tracing::info!(
        group = %config.name,
        checkpoint_index = status.checkpoint_index,
        log_last_index = status.log_last_index,
        "opened"
    );
    let handle = Handle {
        shared,
        inbox: raft_sender,
        proposals_max: config.proposals_max,
        command_bytes_max: config.command_bytes_max(),
    };
    Ok(Group { handle: Arc::new(handle) })
}

fn status_at_start(log: &dyn Log, progress: &Progress) -> GroupStatus {
    GroupStatus {
        term: log.hard_state().term,
        is_leader: false,
        leader: 0,
        commit_index: log.hard_state().commit.max(progress.applied_index),
        applied_index: progress.applied_index,
        checkpoint_index: progress.applied_index,
        log_first_index: log.first_index(),
        log_last_index: log.last_index(),
        state_hash: progress.state_hash,
    }
}

fn make_node(
    config: &GroupConfig,
    log: SegmentedLog,
    progress: &Progress,
) -> Result<RawNode<LogStore>, OpenError> {
    let raft_config = raft::Config {
        id: config.raft_id,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        applied: progress.applied_index,
        check_quorum: true,
        pre_vote: true,
        max_size_per_msg: MESSAGE_BYTES_MAX,
        max_inflight_msgs: 256,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: READY_BYTES_MAX,
        ..raft::Config::default()
    };
    let found = log.hard_state();
    // The commit index is not synced for its own sake; what was applied was committed.
    let commit = found.commit.max(progress.applied_index);
    let hard_state = HardState { commit, ..found.clone() };
    let store = LogStore::new(&config.name, Box::new(log), hard_state, progress.conf_state.clone());
    RawNode::new(&raft_config, store, &raft_logger()).map_err(|error| OpenError::Config(error.to_string()))
}

fn spawn(
    config: &GroupConfig,
    role: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new()
        .name(format!("{}-{role}", config.name))
        .spawn(run)
        .map_err(|source| OpenError::Io { action: "start a thread for", path: config.dir(), source })
}
