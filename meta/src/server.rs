//! The shell: answers requests, in process, from views and by proposing commands.
//!
//! ```text
//!   write: validate -> (choose, draw) -> command -> Group::propose -> reply -> (token)
//!   read:  validate -> Group::read -> rows of the view -> (tokens, locations)
//! ```
//!
//! Every replica is opened; only the leader answers, all but `GetGroup`. Others name the leader and had no part in it.
//!
//! Reads run where they are called: they look up a handful of rows in memory-mapped pages or redb's cache. Listings and
//! other reads of many rows move to a blocking thread, so that they do not hold up the reactor.
//!
//! Not here: decisions (see `state`), background work (see `worker`).

use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use client::service::{CallError, OmService, ScmService};
use consensus::{
    BackupInfo, Follower, Group, GroupConfig, GroupStatus, Leadership, PeerEndpoint, Priority, ProposeError,
    ReadError, ReadView, RestoreError, SnapshotStream, StoreError, Table,
};
use parking_lot::RwLock;
use platform::task;
use platform::watch;
use wire::clock;
use wire::group::MemberRole;
use wire::host::HostPort;
use wire::ids::WriteId;
use wire::om::{OmReply, OmRequest};
use wire::status::{Failure, Status};

use crate::command::Command;
use crate::config::OmConfig;
use crate::error::{self, OmError};
use crate::leader;
use crate::leases::LeaderMemory;
use crate::metrics::Metrics;
use crate::operators::{self, COUNTED_MAX};
use crate::prepare;
use crate::schema::WORK;
use crate::seal::Sealer;
use crate::state::{OmState, Reply, Stop, bucket, deletion};
use crate::worker::{WorkerStatus, Workers};

/// The Ozone Manager of this process.
pub struct Om {
    config: OmConfig,
    group: Group<OmState>,
    leadership: watch::Receiver<Leadership>,
    scm: Arc<dyn ScmService>,
    /// Of the term this replica leads, or led last.
    memory: RwLock<Arc<LeaderMemory>>,
    sealer: Sealer,
    metrics: Metrics,
    workers: Workers,
    follower: Follower,
}

/// What operators see of OM.
#[derive(Debug, Clone)]
pub struct OmStatus {
    /// Raft and state.
    pub group: GroupStatus,
    /// Buckets, counted up to 10,000.
    pub buckets: usize,
    /// Leases that still have ids.
    pub leases_open: usize,
    /// Ids left in them.
    pub lease_ids_left: u64,
    /// Freed blocks that wait, counted up to 10,000.
    pub deletion_backlog_blocks: usize,
    /// Since when the oldest of them waits.
    pub deletion_oldest_ms: Option<u64>,
    /// Rows of queued work, counted up to 10,000.
    pub queued_work: usize,
    /// What stands in the way of more leases.
    pub awaited: Option<String>,
    /// Background work.
    pub workers: Vec<WorkerStatus>,
}

fn group_config(config: &OmConfig) -> GroupConfig {
    let mut group_config = GroupConfig {
        log_segment_bytes: config.log_segment_bytes,
        cache_bytes: config.cache_bytes,
        ..GroupConfig::new("om", config.disk.clone(), config.cluster_id.0)
    };
    config.place.configure(&mut group_config);
    group_config
}

/// Makes a fresh directory of OM out of a backup. Blocking.
///
/// # Errors
/// Says what the operator can do.
pub fn restore(config: &OmConfig, file: &mut dyn Read) -> Result<BackupInfo, RestoreError> {
    consensus::restore::<OmState>(&group_config(config), file)
}

impl Om {
    /// Opens or creates an OM and starts its background work.
    pub async fn open(config: OmConfig, scm: Arc<dyn ScmService>) -> Result<Arc<Self>, OmError> {
        let group_config = group_config(&config);
        // Replay reads the disk for as long as it takes: not on the reactor.
        let opened = task::spawn_blocking(move || Group::open(group_config, OmState::default()));
        let group = opened.await.map_err(|_| OmError::Died)??;
        let leadership = group.leadership();
        Ok(Self::start(config, scm, group, leadership))
    }

    /// Over an open group, as leadership comes and goes.
    pub(crate) fn start(
        config: OmConfig,
        scm: Arc<dyn ScmService>,
        group: Group<OmState>,
        leadership: watch::Receiver<Leadership>,
    ) -> Arc<Self> {
        let om = Arc::new(Self {
            leadership,
            memory: RwLock::new(Arc::new(new_memory(0, &scm, &config))),
            scm,
            sealer: Sealer::new(&config.cluster_key),
            metrics: Metrics::new(),
            workers: Workers::new(),
            follower: Follower::default(),
            group,
            config,
        });
        let weak = Arc::downgrade(&om);
        om.follower.start(om.leadership.clone(), |terms| leader::follow(weak, terms));
        om
    }

    pub(crate) fn group(&self) -> &Group<OmState> {
        &self.group
    }

    /// Where messages of this replica's peers go in.
    pub fn peer_endpoint(&self) -> Arc<dyn PeerEndpoint> {
        Arc::new(self.group.clone())
    }

    /// The bytes of a backup of what this replica has applied.
    pub fn backup(&self) -> SnapshotStream {
        self.group.backup_stream()
    }

    /// Stops background work, hands leadership over, finishes what is under way, and closes log and state.
    pub async fn shutdown(&self) {
        self.follower.stop().await;
        self.group.shutdown().await;
    }

    /// Resolves when this OM leads and has applied an entry of its term: a sole voter after its replay, a replica of
    /// several perhaps never.
    pub async fn wait_ready(&self) -> Result<(), Failure> {
        let mut leadership = self.leadership.clone();
        match leadership.wait_for(|now| now.is_leading).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(Status::Retry, "om has stopped")),
        }
    }

    /// Where it stands.
    pub fn status(&self) -> Result<OmStatus, Failure> {
        let fault = |error| self.fault(&error);
        let memory = self.memory.read().clone();
        let view = self.group.view().map_err(fault)?;
        let leases = prepare::leases(&view).map_err(fault)?;
        let (deletion_backlog_blocks, deletion_oldest_ms) =
            deletion::backlog(&view, COUNTED_MAX).map_err(fault)?;
        Ok(OmStatus {
            group: self.group.status(),
            buckets: bucket::count(&view, COUNTED_MAX).map_err(fault)?,
            leases_open: leases.iter().filter(|(_, row)| row.left() > 0).count(),
            lease_ids_left: leases.iter().map(|(_, row)| row.left()).sum(),
            deletion_backlog_blocks,
            deletion_oldest_ms,
            queued_work: operators::count(&view, WORK).map_err(fault)? as usize,
            awaited: memory.awaited(),
            workers: self.workers.status(),
        })
    }

    /// Pauses or resumes a background worker by its name. False if there is none of that name.
    pub fn set_worker_paused(&self, name: &str, is_paused: bool) -> bool {
        self.workers.set_paused(name, is_paused)
    }

    pub(crate) fn config(&self) -> &OmConfig {
        &self.config
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What the leader of `term` knows; nothing if the term is new.
    pub(crate) fn memory_of(&self, term: u64) -> Arc<LeaderMemory> {
        let known = self.memory.read().clone();
        if known.term() == term {
            return known;
        }
        let mut memory = self.memory.write();
        // A late look at an earlier term must not wipe what the later one has learnt.
        if memory.term() < term {
            *memory = Arc::new(new_memory(term, &self.scm, &self.config));
        }
        memory.clone()
    }

    /// The leader's memory, if this replica leads.
    pub(crate) fn leading(&self) -> Result<Arc<LeaderMemory>, Failure> {
        let Leadership { term, is_leading, leader } = *self.leadership.borrow();
        if is_leading { Ok(self.memory_of(term)) } else { Err(self.not_leader(leader)) }
    }

    fn not_leader(&self, leader: Option<u64>) -> Failure {
        Failure::not_leader(leader.and_then(|leader| self.address_of(leader)))
    }

    fn address_of(&self, raft_id: u64) -> Option<HostPort> {
        self.group.member(raft_id).map(|member| member.address)
    }

    pub(crate) fn delete_grace_ms(&self) -> u64 {
        self.config.delete_grace_ms
    }

    /// Only what was freed or queued before this is out of readers' sight.
    pub(crate) fn grace_begins_ms(&self) -> u64 {
        if wire::planted::is_on("gc_without_grace") {
            return u64::MAX;
        }
        clock::now_ms().saturating_sub(self.config.delete_grace_ms)
    }

    /// Rows that could not be read, for a worker.
    pub(crate) fn fault(&self, error: &StoreError) -> Failure {
        error::failure_of(self.store_error(error))
    }

    /// Damaged rows that a worker met and passes over. A replica with peers does not come back from it.
    pub(crate) fn count_damaged(&self, memory: &LeaderMemory, table: Table, row_keys: &[Vec<u8>]) {
        for row_key in row_keys {
            let error = StoreError::Corrupt { table: table.name(), row_key: row_key.clone() };
            self.stop_if_damaged(&error);
            if memory.give_up(table.name(), row_key) {
                tracing::error!(%error, "a worker passes over a damaged row");
                self.metrics.damaged_rows.set(memory.given_up() as f64);
            }
        }
    }

    /// A replica with peers that has a damaged row ends for good and is rebuilt: answers from the others are right.
    pub(crate) fn stop_if_damaged(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. }) && self.has_peers() {
            self.group.condemn(&error.to_string());
        }
    }

    fn has_peers(&self) -> bool {
        self.group.info().members.iter().filter(|member| member.role == MemberRole::Voter).count() > 1
    }

    pub(crate) fn store_error(&self, error: &StoreError) -> CallError {
        self.stop_if_damaged(error);
        error::of_store(error)
    }

    pub(crate) fn stop_error(&self, stop: Stop) -> CallError {
        match stop {
            Stop::Reject(rejection) => rejection.into(),
            Stop::Fault(error) => self.store_error(&error),
        }
    }

    fn read_error(&self, error: ReadError) -> CallError {
        match error {
            ReadError::NotLeader { hint } => self.not_leader(hint).into(),
            ReadError::Store(error) => self.store_error(&error),
            error => Failure::new(Status::Retry, error.to_string()).into(),
        }
    }

    fn propose_error(&self, error: ProposeError) -> CallError {
        match error {
            ProposeError::NotLeader { hint } => self.not_leader(hint).into(),
            error => error::of_propose(&error),
        }
    }

    pub(crate) async fn propose(&self, command: impl Into<Command>) -> Result<Reply, CallError> {
        self.propose_with(command.into(), Priority::Ordinary).await
    }

    pub(crate) async fn propose_freeing(&self, command: impl Into<Command>) -> Result<Reply, CallError> {
        self.propose_with(command.into(), Priority::Freeing).await
    }

    async fn propose_with(&self, command: Command, priority: Priority) -> Result<Reply, CallError> {
        let started_ns = clock::steady_ns();
        let bytes = command.encode(clock::now_ms());
        drop(command);
        let reply = self.group.propose_with(bytes, priority).await;
        let reply = reply.map_err(|error| self.propose_error(error))?;
        self.metrics.command_seconds.record((clock::steady_ns() - started_ns) as f64 / 1e9);
        match reply {
            Reply::Rejected(rejection) => Err(rejection.into()),
            reply => Ok(reply),
        }
    }

    /// A linearizable view.
    pub(crate) async fn view(&self) -> Result<Arc<ReadView>, CallError> {
        self.group.read().await.map_err(|error| self.read_error(error))
    }

    /// What this replica has applied: for workers, whose commands are judged again in apply.
    pub(crate) fn applied_view(&self) -> Result<ReadView, Failure> {
        self.group.view().map_err(|error| self.fault(&error))
    }

    /// A read of many rows, away from the reactor.
    pub(crate) async fn read_many<T: Send + 'static>(
        &self,
        is_short: bool,
        read: impl FnOnce(&ReadView) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, CallError> {
        let view = match wire::planted::is_on("list_from_follower") {
            true => Arc::new(self.applied_view()?),
            false => self.view().await?,
        };
        if is_short {
            return read(&view).map_err(|stop| self.stop_error(stop));
        }
        let outcome = task::spawn_blocking(move || read(&view)).await;
        outcome
            .map_err(|_| Failure::new(Status::Internal, "a read has died"))?
            .map_err(|stop| self.stop_error(stop))
    }
}

fn new_memory(term: u64, scm: &Arc<dyn ScmService>, config: &OmConfig) -> LeaderMemory {
    LeaderMemory::new(term, scm.clone(), &config.replications, config.block_bytes_max)
}

/// Apply answered another question.
pub(crate) fn unexpected() -> CallError {
    Failure::new(Status::Internal, "apply answered another question than was asked").into()
}

/// A bug planted for the simulator.
fn is_listed_by_followers(request: &OmRequest) -> bool {
    matches!(request, OmRequest::ListKeys(_)) && wire::planted::is_on("list_from_follower")
}

/// The session of a write, if it has one.
fn session_of(request: &OmRequest) -> Option<WriteId> {
    use OmRequest as Q;
    let context = match request {
        Q::TakeLoan(request) => request.context,
        Q::ReleaseBlocks(request) => request.context,
        Q::CreateBucket(request) => request.context,
        Q::DeleteBucket(request) => request.context,
        Q::CommitKey(request) => request.context,
        Q::DeleteKeys(request) => request.context,
        Q::CopyKey(request) => request.context,
        Q::CreateUpload(request) => request.context,
        Q::CommitPart(request) => request.context,
        Q::CompleteUpload(request) => request.context,
        Q::AbortUpload(request) => request.context,
        _ => return None,
    };
    Some(context.write_id())
}

#[async_trait]
impl OmService for Om {
    async fn handle(&self, mut request: OmRequest) -> Result<OmReply, CallError> {
        self.metrics.count_request(request.name());
        prepare::validate(&mut request)?;
        if let OmRequest::GetGroup(_) = request {
            let info = self.group.info();
            // Who waits to be added, or was removed, knows nothing of the group: others are to be asked.
            if !info.is_of_a_member() {
                self.leading()?;
            }
            return Ok(OmReply::GetGroup(info));
        }
        let memory = match self.leading() {
            Err(_) if is_listed_by_followers(&request) => self.memory.read().clone(),
            leading => leading?,
        };
        if let Some(write_id) = session_of(&request) {
            memory.touch(write_id.session);
        }
        let outcome = self.answer(&memory, request).await;
        match &outcome {
            Ok(_) => {}
            Err(CallError::Rejected(_)) => self.metrics.rejections.increment(1),
            Err(CallError::Failed(failure)) => {
                self.metrics.failures.increment(1);
                tracing::debug!(%failure, "a request got no answer");
            }
        }
        outcome
    }
}
