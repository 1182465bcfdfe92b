//! Opens a group: brings state and log together, and starts the threads.
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
//! Not here: the threads' work (see `driver`, `apply`).

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use platform::actor;
use raft::RawNode;
use raft::eraftpb::HardState;
use tokio::runtime;
use tokio::sync::mpsc;

use super::{Group, GroupStatus, Handle};
use crate::apply::{Applier, ApplyInput, Pace};
use crate::config::GroupConfig;
use crate::driver::{APPLY_INBOX, Driver, Place, Room};
use crate::error::OpenError;
use crate::incoming::IncomingConfig;
use crate::log::{Log, LogConfig, SegmentedLog};
use crate::logger::raft_logger;
use crate::machine::StateMachine;
use crate::marker::note_name;
use crate::members::Membership;
use crate::replica::{Replica, io_error};
use crate::shared::{Input, Shared};
use crate::space::{RESERVE, Reserve};
use crate::state::{Progress, StateConfig, StateFile};
use crate::storage::LogStore;
use crate::unsound;

/// Entries in a message to a peer, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Committed entries in one Ready, in bytes: what a replay holds in memory at once.
pub(crate) const READY_BYTES_MAX: u64 = 4 << 20;

/// Proposed and not committed, in bytes; raft drops proposals beyond it.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Ticks of 100 ms: an election after 1 to 2 s, a heartbeat every tick.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;

/// Messages to one peer on their way at most.
const INFLIGHT_MAX: usize = 256;

/// How often the apply thread looks whether a checkpoint is due, at most and at least.
const APPLY_TICKS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);

/// Inputs to the raft thread besides proposals: wake-ups and a stop.
const INBOX_EXTRA: usize = 1024;

/// What opening found.
pub(super) struct Opened {
    replica: Replica,
    reserve: Arc<Reserve>,
    state: StateFile,
    progress: Progress,
    log: SegmentedLog,
}

/// Opens what is in the directory, or makes it, and brings it together.
pub(super) fn recover<M: StateMachine>(config: &GroupConfig) -> Result<Opened, OpenError> {
    let replica = Replica::lock(&config.disk)?;
    unsound::refuse(&*config.disk, config.raft_id)?;
    let note = note_name(&config.name, config.raft_id, config.incarnation);
    if !replica.exists()? {
        if let Some(marker) = &config.marker
            && marker.is_set(&note)?
        {
            return Err(marker.wiped(&note, config.dir(), config.raft_id));
        }
        replica.create(config.identity(), || create_files::<M>(config))?;
    }
    replica.check(config.identity())?;
    let reserve = open_reserve(config)?;
    let (state, mut progress) = StateFile::open(&state_config::<M>(config, &reserve))?;
    let mut log = SegmentedLog::open(log_config(config))?;
    take_over(&config.dir(), &state, &mut log, &mut progress)?;
    check_fit(&replica, &log, &progress)?;
    if let Some(marker) = &config.marker {
        marker.set(&note)?;
    }
    Ok(Opened { replica, reserve, state, progress, log })
}

fn create_files<M: StateMachine>(config: &GroupConfig) -> Result<(), OpenError> {
    let reserve = open_reserve(config)?;
    StateFile::create(&state_config::<M>(config, &reserve))?;
    create_log(config)
}

pub(crate) fn create_log(config: &GroupConfig) -> Result<(), OpenError> {
    SegmentedLog::create(log_config(config))?;
    Ok(())
}

pub(crate) fn open_reserve(config: &GroupConfig) -> Result<Arc<Reserve>, OpenError> {
    let opened = Reserve::open(&config.disk, config.reserve_bytes);
    Ok(Arc::new(opened.map_err(io_error("open", &*config.disk, RESERVE))?))
}

pub(crate) fn state_config<M: StateMachine>(config: &GroupConfig, reserve: &Arc<Reserve>) -> StateConfig {
    StateConfig {
        group: config.name.clone(),
        disk: Arc::clone(&config.disk),
        identity: config.identity(),
        cache_bytes: config.cache_bytes,
        tables: M::TABLES,
        reserve: Arc::clone(reserve),
        voters: config.first_voters(),
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

/// Finishes what a crash interrupted after a snapshot had taken the state's place: the log is reset if it does not hold
/// what the rows stand for, then the mark goes.
fn take_over(
    dir: &Path,
    state: &StateFile,
    log: &mut SegmentedLog,
    progress: &mut Progress,
) -> Result<(), OpenError> {
    if !progress.installed {
        return Ok(());
    }
    let (index, term) = (progress.applied_index, progress.applied_term);
    if log.term(index) != Some(term) || log.first_index() > index + 1 {
        log.reset(index, term)?;
    }
    let cleared = state.clear_installed(progress);
    cleared.map_err(|source| OpenError::of_recovery(dir.to_owned(), source))
}

/// Checks that the log continues the state.
fn check_fit(replica: &Replica, log: &dyn Log, progress: &Progress) -> Result<(), OpenError> {
    let Progress { applied_index, applied_term, .. } = *progress;
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

/// Starts the threads of what was opened.
pub(super) fn start<M: StateMachine>(
    config: GroupConfig,
    mut machine: M,
    opened: Opened,
) -> Result<Group<M>, OpenError> {
    let Opened { replica, reserve, state, progress, log } = opened;
    let recover = |source| OpenError::of_recovery(config.dir(), source);
    let view = state.view().map_err(recover)?;
    machine.recovered(&view).map_err(recover)?;
    drop(view);

    let status = status_at_start(&log, &progress);
    let me = config.me();
    let mut membership = Membership::new(progress.conf_state.clone(), &progress.members, &progress.former);
    if membership.members.is_empty() && membership.is_alone(config.raft_id) {
        // A state from before members were kept.
        membership.members.insert(config.raft_id, me.clone());
    }
    let alone = membership.is_alone(config.raft_id);
    let database = Arc::clone(state.database());
    let disk = Arc::clone(&config.disk);
    let shared =
        Arc::new(Shared::new(&config.name, config.raft_id, disk, M::TABLES, database, status, membership));
    shared.alone.store(alone, Ordering::Release);
    let node = make_node(&config, log, &progress)?;
    let (raft_sender, raft_inbox) = mpsc::channel(config.proposals_max + INBOX_EXTRA);
    let (apply_sender, apply_inbox) = mpsc::channel(APPLY_INBOX);
    let applier = Applier {
        machine,
        state,
        progress,
        raft: raft_sender.downgrade(),
        shared: Arc::clone(&shared),
        pace: Pace::new(config.checkpoint_interval, config.checkpoint_rows),
        mark_entries: config.state_hash_entries,
        changes: std::collections::VecDeque::new(),
    };
    let apply_tick = (config.checkpoint_interval / 4).clamp(*APPLY_TICKS.start(), *APPLY_TICKS.end());
    actor::ticks(apply_sender.downgrade(), apply_tick, || ApplyInput::Tick);
    start_applier(&config, applier, apply_inbox, raft_sender.downgrade())?;

    let incoming = IncomingConfig::new(
        state_config::<M>(&config, &reserve),
        // A follower's log must find room while rows come in, whatever else it needs.
        config.disk_free_min_bytes + config.log_segment_bytes,
    );
    let room =
        Room::new(reserve, config.disk_free_min_bytes, config.log_segment_bytes, config.batch_bytes_max());
    let place = Place {
        me,
        cluster_id: config.cluster_id,
        transport: config.transport.clone(),
        runtime: runtime::Handle::current(),
        election_ticks: ELECTION_TICKS,
        log_keep_entries: config.log_keep_entries,
    };
    let driver = Driver::new(node, raft_sender.downgrade(), apply_sender, Arc::clone(&shared), room, place);
    if !config.tick.is_zero() {
        actor::ticks(raft_sender.downgrade(), config.tick, || Input::Tick);
    }
    start_driver(&config, driver, raft_inbox, raft_sender.clone(), replica)?;
    // It begins when it is called, and it is called when there is something in its inbox.
    let _ = raft_sender.try_send(Input::Wake);
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
        raft_id: config.raft_id,
        incarnation: config.me().incarnation,
        cluster_id: config.cluster_id,
        incoming,
    };
    Ok(Group { handle: Arc::new(handle) })
}

fn start_driver<R: Send + 'static>(
    config: &GroupConfig,
    driver: Driver<R>,
    inbox: mpsc::Receiver<Input<R>>,
    own: mpsc::Sender<Input<R>>,
    replica: Replica,
) -> Result<(), OpenError> {
    let shared = driver.shared();
    // Its own sender keeps the loop alive when the last handle is gone: the directory stays locked until the apply thread has
    // closed the state.
    let mut running = Some((driver, replica, own));
    let mut begun = false;
    let step = move |inputs: &mut Vec<Input<R>>| {
        let Some((driver, ..)) = &mut running else { return ControlFlow::Break(()) };
        if !std::mem::replace(&mut begun, true) {
            driver.begin();
        }
        let flow = driver.step(inputs);
        if flow.is_break() {
            // Only then may another process have the directory, and only then does a shutdown return.
            running = None;
            shared.note_stopped();
        }
        flow
    };
    actor::start(&format!("{}-raft", config.name), inbox, step).map_err(no_thread(config))?;
    Ok(())
}

fn start_applier<M: StateMachine>(
    config: &GroupConfig,
    applier: Applier<M>,
    inbox: mpsc::Receiver<ApplyInput<M::Reply>>,
    raft: mpsc::WeakSender<Input<M::Reply>>,
) -> Result<(), OpenError> {
    let shared = Arc::clone(&applier.shared);
    let mut running = Some(applier);
    let step = move |inputs: &mut Vec<ApplyInput<M::Reply>>| {
        let Some(applier) = &mut running else { return ControlFlow::Break(()) };
        let flow = applier.step(inputs);
        if flow.is_break() {
            // The state file is closed before the raft thread hears of it. A full inbox wakes it as well.
            running = None;
            shared.applier_ended.store(true, Ordering::Release);
            if let Some(raft) = raft.upgrade() {
                let _ = raft.try_send(Input::Wake);
            }
        }
        flow
    };
    actor::start(&format!("{}-apply", config.name), inbox, step).map_err(no_thread(config))?;
    Ok(())
}

fn no_thread(config: &GroupConfig) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = config.dir();
    move |source| OpenError::Io { action: "start a thread for", path, source }
}

fn status_at_start(log: &dyn Log, progress: &Progress) -> GroupStatus {
    GroupStatus {
        term: log.hard_state().term,
        vote: log.hard_state().vote,
        is_leader: false,
        leader: 0,
        commit_index: log.hard_state().commit.max(progress.applied_index),
        applied_index: progress.applied_index,
        checkpoint_index: progress.applied_index,
        log_first_index: log.first_index(),
        log_last_index: log.last_index(),
        state_hash: progress.state_hash,
        state_mismatches: 0,
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
        max_inflight_msgs: INFLIGHT_MAX,
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

#[cfg(test)]
mod tests;
