//! The shell: turns calls into commands, proposes them, answers.
//!
//! Every replica is opened; only the leader answers, all but `GetGroup`. Others name the leader and had no part in it.
//!
//! Invariants:
//! * Whatever OM acts on (a lease, a degrade, the acceptance of a deletion) is applied before it is answered.
//! * Views that decide an answer to OM or an operator are linearizable.
//! * A heartbeat asks no quorum: what it is answered is true for ever (see `orders`).
//!
//! Not here: policy (`prepare`, `replication`), regular work (`leader`), operators' calls (`operator`), effects (`state`).

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::ScmService;
use consensus::{
    BackupInfo, Follower, Group, GroupConfig, Leadership, OpenError, PeerEndpoint, Priority, ProposeError,
    ReadError, ReadView, RestoreError, SnapshotStream,
};
use parking_lot::RwLock;
use platform::task;
use platform::watch;
use wire::block::ContainerLocation;
use wire::clock::{Clock, SystemClock, UnixMs};
use wire::failpoint;
use wire::host::HostPort;
use wire::ids::ContainerId;
use wire::limits::CLOCK_SKEW_MS;
use wire::scm::{
    ContainerInfo, DegradeContainer, Degraded, GrantLease, Heartbeat, HeartbeatReply, Lease, LeasesSynced,
    ListRetirable, LocateContainers, LogDeletions, RegisterDatanode, Registered, RetireContainer, ScmReply,
    ScmRequest, SyncLeases,
};
use wire::status::{Failure, Status};

use crate::command::{self, Command};
use crate::config::ScmConfig;
use crate::error::{ScmError, propose_failure, read_failure, store_failure};
use crate::fleet::{Liveness, News};
use crate::leader::{self, Leader};
use crate::metrics;
use crate::prepare::{cut_deletions, cut_returns};
use crate::schema::{DATANODE, DatanodeRow, DiskRow, META, load, meta};
use crate::state::{Reply, ScmState, locate};
use crate::status::{self, ScmStatus};

/// A grant whose container was closed while it was on its way is prepared anew, this often.
const GRANT_ATTEMPTS: usize = 3;

/// The Storage Container Manager of this process: one replica of it.
pub struct Scm {
    group: Group<ScmState>,
    config: ScmConfig,
    clock: Arc<dyn Clock>,
    leadership: watch::Receiver<Leadership>,
    /// Of the term this replica leads, or led last.
    leader: RwLock<Arc<Leader>>,
    follower: Follower,
}

fn group_config(config: &ScmConfig) -> Result<GroupConfig, OpenError> {
    let disk = match &config.disk {
        Some(disk) => Arc::clone(disk),
        None => consensus::directory(&config.dir)?,
    };
    let mut group_config = GroupConfig::new("scm", disk, config.cluster.0);
    config.place.configure(&mut group_config);
    group_config.log_segment_bytes = config.log_segment_bytes;
    group_config.cache_bytes = config.cache_bytes;
    Ok(group_config)
}

/// Makes a fresh directory of SCM out of a backup. Blocking.
///
/// # Errors
/// Says what the operator can do.
pub fn restore(config: &ScmConfig, file: &mut dyn Read) -> Result<BackupInfo, RestoreError> {
    consensus::restore::<ScmState>(&group_config(config)?, file)
}

impl Scm {
    /// Opens or creates a replica of SCM. Its worker runs while it leads; see [`Self::wait_ready`].
    ///
    /// # Errors
    /// Says what the operator can do.
    pub async fn open(config: ScmConfig) -> Result<Arc<Self>, ScmError> {
        Self::open_with(config, Arc::new(SystemClock)).await
    }

    /// As [`Self::open`], with another clock.
    ///
    /// # Errors
    /// Says what the operator can do.
    pub async fn open_with(config: ScmConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, ScmError> {
        check(&config)?;
        let group_config = group_config(&config)?;
        let opened = task::spawn_blocking(move || Group::open(group_config, ScmState)).await;
        let group = opened.map_err(|_| ScmError::Died)??;
        let scm = Arc::new(Self {
            leadership: group.leadership(),
            leader: RwLock::new(Arc::new(Leader::new(0, clock.steady_ns()))),
            group,
            config,
            clock,
            follower: Follower::default(),
        });
        let weak = Arc::downgrade(&scm);
        scm.follower.start(scm.leadership.clone(), |terms| leader::follow(weak, terms));
        Ok(scm)
    }

    /// The bytes of a backup of what this replica has applied.
    pub fn backup(&self) -> SnapshotStream {
        self.group.backup_stream()
    }

    /// Where messages of this replica's peers go in.
    pub fn peer_endpoint(&self) -> Arc<dyn PeerEndpoint> {
        Arc::new(self.group.clone())
    }

    /// Resolves when this replica leads and has applied an entry of its term: a sole voter after its replay, a replica of
    /// several perhaps never.
    ///
    /// # Errors
    /// If it has stopped.
    pub async fn wait_ready(&self) -> Result<(), Failure> {
        let mut leadership = self.leadership.clone();
        match leadership.wait_for(|now| now.is_leading).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(Status::Retry, "scm has stopped")),
        }
    }

    /// Stops the worker and closes the group after a durable checkpoint. Calls under way end with a failure.
    pub async fn shutdown(&self) {
        self.follower.stop().await;
        self.group.shutdown().await;
    }

    /// SCM at a glance, for operators.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn status(&self) -> Result<ScmStatus, Failure> {
        let view = self.view()?;
        let leader = self.leader.read().clone();
        let fleet = leader.fleet.lock();
        status::collect(&view, &fleet, &self.config, self.group.status(), self.clock.steady_ns())
            .map_err(|error| store_failure(&error))
    }

    /// Up to `limit` containers after `after`, ascending, for operators.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn containers(&self, after: ContainerId, limit: usize) -> Result<Vec<ContainerInfo>, Failure> {
        status::containers(&self.view()?, after, limit).map_err(|error| store_failure(&error))
    }

    pub(crate) fn config(&self) -> &ScmConfig {
        &self.config
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// What the leader of `term` knows; nothing if the term is new.
    pub(crate) fn leader_of(&self, term: u64) -> Arc<Leader> {
        let known = self.leader.read().clone();
        if known.term == term {
            return known;
        }
        let mut leader = self.leader.write();
        // A late look at an earlier term must not wipe what the later one has learnt.
        if leader.term < term {
            *leader = Arc::new(Leader::new(term, self.clock.steady_ns()));
        }
        leader.clone()
    }

    /// The leader's memory, if this replica leads.
    pub(crate) fn leading(&self) -> Result<Arc<Leader>, Failure> {
        let Leadership { term, is_leading, leader } = *self.leadership.borrow();
        if is_leading { Ok(self.leader_of(term)) } else { Err(self.not_leader(leader)) }
    }

    pub(crate) fn not_leader(&self, leader: Option<u64>) -> Failure {
        let address: Option<HostPort> =
            leader.and_then(|leader| self.group.member(leader)).map(|member| member.address);
        Failure::not_leader(address)
    }

    async fn grant_lease(&self, leader: &Leader, request: GrantLease) -> Result<Lease, Failure> {
        let _one_at_a_time = leader.granting.lock().await;
        for _ in 0..GRANT_ATTEMPTS {
            let view = self.read().await?;
            let seed = wire::random::u64();
            let grant = self.decide(leader, &view, |scene| scene.grant(&request, seed))?;
            if !grant.close.is_empty() {
                let close = self.decide(leader, &view, |scene| Ok(scene.close(grant.close)))?;
                self.propose(close, Priority::Freeing).await?;
            }
            let reply = self.propose(Command::GrantLease(grant.command), Priority::Ordinary).await?;
            if let Reply::Lease(lease) = reply {
                metrics::lease_granted();
                tracing::debug!(lease = lease.id.0, container = lease.container.0, "granted a lease");
                return Ok(*lease);
            }
            if !grant.awaited.is_empty() {
                metrics::lease_refused();
                return Err(Failure::new(Status::Retry, grant.awaited));
            }
        }
        Err(Failure::new(Status::Retry, "containers close faster than they are granted"))
    }

    async fn sync_leases(&self, leader: &Leader, request: SyncLeases) -> Result<LeasesSynced, Failure> {
        for command in cut_returns(&request.ended) {
            self.propose(command, Priority::Freeing).await?;
        }
        let view = self.read().await?;
        let (end, unknown_to_om) =
            self.decide(leader, &view, |scene| scene.compare_leases(&request.held, &request.ended))?;
        // A fresh cluster: OM may come before the worker has made the first key.
        self.checking_keys(leader).await?;
        Ok(LeasesSynced { end, unknown_to_om, token_keys: self.signing_keys(&self.view()?)? })
    }

    async fn log_deletions(&self, request: LogDeletions) -> Result<(), Failure> {
        for command in cut_deletions(&request) {
            if self.propose(command, Priority::Freeing).await? == Reply::OutOfOrder {
                return Err(Failure::new(Status::Retry, "two deletion batches of one number met"));
            }
        }
        failpoint::hit("scm_deletion_logged");
        metrics::deletions_logged(request.blocks.len());
        Ok(())
    }

    async fn locate_containers(&self, request: LocateContainers) -> Result<Vec<ContainerLocation>, Failure> {
        let view = self.read().await?;
        let mut locations = Vec::new();
        for id in request.containers {
            locations.extend(locate(&*view, id).map_err(|error| store_failure(&error))?);
        }
        Ok(locations)
    }

    async fn degrade_container(
        &self,
        leader: &Leader,
        request: DegradeContainer,
    ) -> Result<Degraded, Failure> {
        let DegradeContainer { container, generation, acknowledged, failed } = request;
        let now_ns = self.clock.steady_ns();
        {
            let mut fleet = leader.fleet.lock();
            for datanode in failed.iter().filter(|datanode| !acknowledged.contains(datanode)) {
                fleet.complain(*datanode, now_ns);
            }
        }
        let now_ms = self.clock.now_ms();
        let command = command::DegradeContainer { container, generation, acknowledged, now_ms };
        let degraded = match self.propose(Command::DegradeContainer(command), Priority::Freeing).await? {
            Reply::Degraded(degraded) => degraded,
            _ => Degraded::Refused,
        };
        metrics::degraded(degraded == Degraded::Accepted);
        tracing::info!(container = container.0, ?failed, ?degraded, "a writer leaves out datanodes");
        Ok(degraded)
    }

    async fn retire_container(&self, request: RetireContainer) -> Result<(), Failure> {
        let id = request.container;
        let command = Command::RetireContainer(command::RetireContainer { container: id });
        match self.propose(command, Priority::Freeing).await? {
            Reply::Refused(why) => Err(Failure::new(Status::Retry, format!("container {id} stays: {why}"))),
            _ => Ok(()),
        }
    }

    async fn list_retirable(
        &self,
        leader: &Leader,
        request: ListRetirable,
    ) -> Result<Vec<ContainerId>, Failure> {
        let view = self.read().await?;
        self.decide(leader, &view, |scene| status::retirable(scene, request.after, request.max))
    }

    async fn register_datanode(
        &self,
        leader: &Leader,
        request: RegisterDatanode,
    ) -> Result<Registered, Failure> {
        let id = request.datanode.id;
        if request.cluster != self.config.cluster {
            let (theirs, ours) = (request.cluster, self.config.cluster);
            let message = format!(
                "datanode {id} is of cluster {theirs}, this is {ours}: give it the configuration of this cluster and \
                 empty disks"
            );
            return Err(Failure::new(Status::Invalid, message));
        }
        if let Some(off_ms) = self.clock_off_ms(request.now_ms) {
            let message = format!(
                "the clock of datanode {id} is {} s from that of the container manager: set both by NTP, then it \
                 registers by itself",
                off_ms / 1000
            );
            return Err(Failure::new(Status::Invalid, message));
        }
        self.check_sole_life(leader, &request)?;
        let disks: Vec<DiskRow> = request
            .disks
            .iter()
            .map(|disk| DiskRow { path: disk.path.clone(), capacity_bytes: disk.capacity_bytes })
            .collect();
        let view = self.read().await?;
        let known: Option<DatanodeRow> =
            load(&*view, DATANODE, id.0.as_bytes()).map_err(|error| store_failure(&error))?;
        let newest: Option<u64> =
            load(&*view, META, meta::LAST_CONTAINER).map_err(|error| store_failure(&error))?;
        drop(view);
        let is_logged = known.is_some_and(|row| {
            row.incarnation == request.incarnation
                && row.address == request.datanode.address
                && row.disks == disks
                && row.node == request.node
                && row.rack == request.rack
        });
        if !is_logged {
            let command = command::RegisterDatanode {
                datanode: request.datanode.clone(),
                incarnation: request.incarnation,
                disks,
                now_ms: self.clock.now_ms(),
                node: request.node,
                rack: request.rack,
            };
            self.propose(Command::RegisterDatanode(command), Priority::Freeing).await?;
        }
        tracing::info!(datanode = %id, replicas = request.replicas.len(), "datanode registered");
        let news = News {
            incarnation: request.incarnation,
            disks: request.disks,
            replicas: request.replicas,
            is_clock_off: false,
            sequence: request.sequence,
        };
        leader.fleet.lock().register(request.datanode, news, self.clock.steady_ns());
        self.attend(leader, None).await?;
        Ok(Registered {
            token_keys: self.checking_keys(leader).await?,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            commands: self.orders(leader, id)?,
            newest_container: ContainerId(newest.unwrap_or(0)),
        })
    }

    /// Two processes with one id would write over each other's back: the one that speaks stays, the newcomer is refused
    /// until the other has been silent for a while.
    fn check_sole_life(&self, leader: &Leader, request: &RegisterDatanode) -> Result<(), Failure> {
        let id = request.datanode.id;
        let fleet = leader.fleet.lock();
        let Some(node) = fleet.node(id) else { return Ok(()) };
        let is_other = node.incarnation != request.incarnation && node.address != request.datanode;
        let speaks = fleet.liveness(&self.config, id, self.clock.steady_ns()) == Liveness::Live;
        if !(is_other && speaks) {
            return Ok(());
        }
        let at = |address: &Option<HostPort>| {
            address.as_ref().map_or("its own process".to_owned(), HostPort::to_string)
        };
        let message = format!(
            "datanode {id} lives at {}: another one with its id wants in from {}. Stop one of the two; if disks were \
             copied, wipe the copy. If it has moved, this passes as soon as the former is silent",
            at(&node.address.address),
            at(&request.datanode.address),
        );
        Err(Failure::new(Status::Invalid, message))
    }

    /// How far a clock is from ours, if that is too far. 0 was not told.
    fn clock_off_ms(&self, their_ms: UnixMs) -> Option<u64> {
        let off_ms = their_ms.abs_diff(self.clock.now_ms());
        (their_ms != 0 && off_ms > CLOCK_SKEW_MS).then_some(off_ms)
    }

    async fn heartbeat(&self, leader: &Leader, request: Heartbeat) -> Result<HeartbeatReply, Failure> {
        metrics::heartbeat();
        let id = request.datanode;
        let off_ms = self.clock_off_ms(request.now_ms);
        if let Some(off_ms) = off_ms {
            tracing::warn!(datanode = %id, off_ms, "the clock of a datanode is off: it gets no new writes; set it by NTP");
        }
        let named: BTreeSet<ContainerId> = request.replicas.iter().map(|report| report.container).collect();
        let news = News {
            incarnation: request.incarnation,
            disks: request.disks,
            replicas: request.replicas,
            is_clock_off: off_ms.is_some(),
            sequence: request.sequence,
        };
        let is_known = leader.fleet.lock().heartbeat(id, news, self.clock.steady_ns());
        if !is_known {
            return Ok(HeartbeatReply { register_again: true, token_keys: Vec::new(), commands: Vec::new() });
        }
        if !named.is_empty() {
            self.attend(leader, Some(named)).await?;
        }
        Ok(HeartbeatReply {
            register_again: false,
            token_keys: self.checking_keys(leader).await?,
            commands: self.orders(leader, id)?,
        })
    }

    /// The newest rows of this replica.
    pub(crate) fn view(&self) -> Result<ReadView, Failure> {
        self.group.view().map_err(|error| store_failure(&error))
    }

    /// A linearizable view.
    pub(crate) async fn read(&self) -> Result<Arc<ReadView>, Failure> {
        self.group.read().await.map_err(|error| match error {
            ReadError::NotLeader { hint } => self.not_leader(hint),
            error => read_failure(error),
        })
    }

    pub(crate) async fn propose(&self, command: Command, priority: Priority) -> Result<Reply, Failure> {
        let bytes = Bytes::from(command.encode());
        self.group.propose_with(bytes, priority).await.map_err(|error| match error {
            ProposeError::NotLeader { hint } => self.not_leader(hint),
            error => propose_failure(error),
        })
    }
}

#[async_trait]
impl ScmService for Scm {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        use ScmReply as A;
        use ScmRequest as Q;
        if let Q::GetGroup(_) = request {
            let info = self.group.info();
            // Who waits to be added, or was removed, knows nothing of the group: others are to be asked.
            if !info.is_of_a_member() {
                self.leading()?;
            }
            return Ok(A::GetGroup(info));
        }
        let leader = &*self.leading()?;
        match request {
            Q::GetGroup(_) => Ok(A::GetGroup(self.group.info())),
            Q::GrantLease(request) => self.grant_lease(leader, request).await.map(A::GrantLease),
            Q::SyncLeases(request) => self.sync_leases(leader, request).await.map(A::SyncLeases),
            Q::LogDeletions(request) => self.log_deletions(request).await.map(A::LogDeletions),
            Q::LocateContainers(request) => self.locate_containers(request).await.map(A::LocateContainers),
            Q::DegradeContainer(request) => {
                self.degrade_container(leader, request).await.map(A::DegradeContainer)
            }
            Q::RetireContainer(request) => self.retire_container(request).await.map(A::RetireContainer),
            Q::ListRetirable(request) => self.list_retirable(leader, request).await.map(A::ListRetirable),
            Q::RegisterDatanode(request) => {
                self.register_datanode(leader, request).await.map(A::RegisterDatanode)
            }
            Q::Heartbeat(request) => self.heartbeat(leader, request).await.map(A::Heartbeat),
            Q::ListDatanodes(_) => self.list_datanodes(leader).await.map(A::ListDatanodes),
            Q::SetDatanode(request) => self.set_datanode(leader, request).await.map(A::SetDatanode),
            Q::ListContainers(request) => self.list_containers(leader, request).await.map(A::ListContainers),
            Q::GetContainers(request) => self.get_containers(leader, request).await.map(A::GetContainers),
            Q::CloseContainer(request) => self.close_container(leader, request).await.map(A::CloseContainer),
            Q::RaiseReplication(request) => self.raise_replication(request).await.map(A::RaiseReplication),
            Q::ListPipelines(_) => self.list_pipelines().await.map(A::ListPipelines),
            Q::GetRepair(_) => self.get_repair(leader).await.map(A::GetRepair),
            Q::GetScmOverview(_) => self.get_overview(leader).await.map(A::GetScmOverview),
            Q::MembershipChange(change) => {
                self.group.change_membership(change).await?;
                Ok(A::MembershipChange(()))
            }
            Q::TransferLeadership(request) => {
                self.group.hand_over(request.raft_id).await?;
                Ok(A::TransferLeadership(()))
            }
        }
    }
}

fn check(config: &ScmConfig) -> Result<(), ScmError> {
    if config.container_bytes_max == 0 {
        return Err(ScmError::Config("a container must hold some bytes"));
    }
    if config.open_containers == 0 || config.open_containers_max < config.open_containers {
        return Err(ScmError::Config("open_containers must be at least 1 and at most open_containers_max"));
    }
    if config.heartbeat_interval_ms == 0 || config.token_key_rotation_ms == 0 {
        return Err(ScmError::Config("intervals must not be 0"));
    }
    if config.stale_silence_ms > config.dead_silence_ms {
        return Err(ScmError::Config("a datanode is stale before it is dead"));
    }
    if config.repair_copies_max == 0 {
        return Err(ScmError::Config("without any copy at once nothing would ever be repaired"));
    }
    Ok(())
}
