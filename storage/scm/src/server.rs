//! The shell: turns calls into commands, proposes them, answers; and a worker that rotates keys and looks at silence.
//!
//! Invariants:
//! * Whatever OM acts on (a lease, the acceptance of a deletion) is applied before it is answered.
//! * Views that decide an answer are linearizable.
//!
//! Not here: policy (`prepare`), effects (`state`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::ScmService;
use consensus::{Group, GroupConfig, Priority, ReadView};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::block::{ContainerLocation, TokenKey};
use wire::clock::{Clock, SystemClock};
use wire::failpoint;
use wire::ids::{ContainerId, DatanodeId};
use wire::scm::{
    ContainerInfo, DatanodeCommand, GrantLease, Heartbeat, HeartbeatReply, Lease, LeasesSynced,
    LocateContainers, LogDeletions, RegisterDatanode, Registered, ScmReply, ScmRequest, SyncLeases,
};
use wire::status::{Failure, Status};

use crate::command::{self, Command};
use crate::config::{ScmConfig, TOKEN_KEY_PUBLISH_MS};
use crate::error::{ScmError, propose_failure, read_failure, store_failure};
use crate::fleet::{Fleet, Liveness};
use crate::metrics;
use crate::prepare::{Scene, cut_deletions, cut_returns, note_orders};
use crate::schema::{DATANODE, DatanodeRow, DiskRow, META, active_containers, load, meta};
use crate::state::{Reply, ScmState, live_keys, locate};
use crate::status::{self, ScmStatus};

/// A grant whose container was closed while it was on its way is prepared anew, this often.
const GRANT_ATTEMPTS: usize = 3;

/// The Storage Container Manager.
pub struct Scm {
    group: Group<ScmState>,
    config: ScmConfig,
    clock: Arc<dyn Clock>,
    fleet: Mutex<Fleet>,
    /// One grant at a time: two at once would each open a container where one serves both.
    granting: tokio::sync::Mutex<()>,
    stop: watch::Sender<bool>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl Scm {
    /// Opens or creates an SCM, makes its first token key and starts its worker.
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
        let mut group_config = GroupConfig::new("scm", config.dir.clone(), config.cluster.0);
        group_config.log_segment_bytes = config.log_segment_bytes;
        group_config.cache_bytes = config.cache_bytes;
        let opened = tokio::task::spawn_blocking(move || Group::open(group_config, ScmState)).await;
        let group = opened.expect("opening a group does not panic")?;
        group.wait_leader().await.map_err(|error| ScmError::Start(read_failure(error)))?;
        let scm = Arc::new(Self {
            group,
            fleet: Mutex::new(Fleet::new(clock.steady_ns())),
            config,
            clock,
            granting: tokio::sync::Mutex::new(()),
            stop: watch::Sender::new(false),
            worker: Mutex::new(None),
        });
        scm.rotate_token_keys().await.map_err(ScmError::Start)?;
        let worker = tokio::spawn(work(Arc::downgrade(&scm), scm.stop.subscribe()));
        *scm.worker.lock() = Some(worker);
        Ok(scm)
    }

    /// Stops the worker and closes the group after a durable checkpoint. Calls under way end with a failure.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let worker = self.worker.lock().take();
        if let Some(worker) = worker {
            // A worker that panicked has said so; there is nothing left to stop.
            let _ = worker.await;
        }
        self.group.shutdown().await;
    }

    /// SCM at a glance, for operators.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn status(&self) -> Result<ScmStatus, Failure> {
        let view = self.group.view().map_err(|error| store_failure(&error))?;
        let fleet = self.fleet.lock();
        status::collect(&view, &fleet, &self.config, self.group.status(), self.clock.steady_ns())
            .map_err(|error| store_failure(&error))
    }

    /// Up to `limit` containers after `after`, ascending, for operators.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn containers(&self, after: ContainerId, limit: usize) -> Result<Vec<ContainerInfo>, Failure> {
        let view = self.group.view().map_err(|error| store_failure(&error))?;
        status::containers(&view, after, limit).map_err(|error| store_failure(&error))
    }

    async fn grant_lease(&self, request: GrantLease) -> Result<Lease, Failure> {
        let _one_at_a_time = self.granting.lock().await;
        for _ in 0..GRANT_ATTEMPTS {
            let view = self.read().await?;
            let seed = wire::random::u64();
            let grant = self.decide(&view, |scene| scene.grant(&request, seed))?;
            if !grant.close.is_empty() {
                let close = self.decide(&view, |scene| Ok(scene.close(grant.close)))?;
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

    async fn sync_leases(&self, request: SyncLeases) -> Result<LeasesSynced, Failure> {
        for command in cut_returns(&request.ended) {
            self.propose(command, Priority::Freeing).await?;
        }
        let view = self.read().await?;
        let (end, unknown_to_om) =
            self.decide(&view, |scene| scene.compare_leases(&request.held, &request.ended))?;
        Ok(LeasesSynced { end, unknown_to_om, token_keys: self.signing_keys(&view)? })
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

    async fn register_datanode(&self, request: RegisterDatanode) -> Result<Registered, Failure> {
        if request.cluster != self.config.cluster {
            let (theirs, ours) = (request.cluster, self.config.cluster);
            let message = format!("datanode {} is of cluster {theirs}, this is {ours}", request.datanode.id);
            return Err(Failure::new(Status::Invalid, message));
        }
        let id = request.datanode.id;
        let disks: Vec<DiskRow> = request
            .disks
            .iter()
            .map(|disk| DiskRow { path: disk.path.clone(), capacity_bytes: disk.capacity_bytes })
            .collect();
        let view = self.read().await?;
        let known: Option<DatanodeRow> =
            load(&*view, DATANODE, id.0.as_bytes()).map_err(|error| store_failure(&error))?;
        let is_logged = known.is_some_and(|row| {
            row.incarnation == request.incarnation
                && row.address == request.datanode.address
                && row.disks == disks
        });
        if !is_logged {
            let command = command::RegisterDatanode {
                datanode: request.datanode,
                incarnation: request.incarnation,
                disks,
                now_ms: self.clock.now_ms(),
            };
            self.propose(Command::RegisterDatanode(command), Priority::Freeing).await?;
        }
        tracing::info!(datanode = %id, replicas = request.replicas.len(), "datanode registered");
        let now_ns = self.clock.steady_ns();
        self.fleet.lock().register(id, request.incarnation, request.disks, request.replicas, now_ns);
        let view = self.attend().await?;
        Ok(Registered {
            token_keys: self.checking_keys(&view)?,
            heartbeat_interval_ms: self.config.heartbeat_interval_ms,
            commands: self.orders(&view, id)?,
        })
    }

    async fn heartbeat(&self, request: Heartbeat) -> Result<HeartbeatReply, Failure> {
        metrics::heartbeat();
        let id = request.datanode;
        let now_ns = self.clock.steady_ns();
        let has_news = !request.replicas.is_empty();
        let is_known =
            self.fleet.lock().heartbeat(id, request.incarnation, request.disks, request.replicas, now_ns);
        if !is_known {
            return Ok(HeartbeatReply { register_again: true, token_keys: Vec::new(), commands: Vec::new() });
        }
        let view = if has_news { self.attend().await? } else { self.read().await? };
        Ok(HeartbeatReply {
            register_again: false,
            token_keys: self.checking_keys(&view)?,
            commands: self.orders(&view, id)?,
        })
    }

    /// Proposes what the reports ask for and answers a view that has it.
    async fn attend(&self) -> Result<Arc<ReadView>, Failure> {
        let view = self.read().await?;
        let commands = self.decide(&view, |scene| scene.attention())?;
        if commands.is_empty() {
            return Ok(view);
        }
        for command in commands {
            log_state_change(&command);
            self.propose(command, Priority::Freeing).await?;
        }
        self.read().await
    }

    fn orders(&self, view: &ReadView, datanode: DatanodeId) -> Result<Vec<DatanodeCommand>, Failure> {
        let term = self.group.status().term;
        let orders = self.decide(view, |scene| scene.orders(datanode, term))?;
        note_orders(&mut self.fleet.lock(), datanode, &orders, self.clock.steady_ns());
        Ok(orders)
    }

    /// Runs a decision over a view and the fleet as it is now.
    fn decide<T>(
        &self,
        view: &ReadView,
        decide: impl FnOnce(&Scene<'_, ReadView>) -> Result<T, consensus::StoreError>,
    ) -> Result<T, Failure> {
        let fleet = self.fleet.lock();
        let scene = Scene {
            rows: view,
            fleet: &fleet,
            config: &self.config,
            now_ms: self.clock.now_ms(),
            now_ns: self.clock.steady_ns(),
        };
        decide(&scene).map_err(|error| store_failure(&error))
    }

    /// All live keys: what datanodes check with.
    fn checking_keys(&self, view: &ReadView) -> Result<Vec<TokenKey>, Failure> {
        let keys = live_keys(view, self.clock.now_ms()).map_err(|error| store_failure(&error))?;
        Ok(keys.into_iter().map(|(key, _)| key).collect())
    }

    /// The keys OM may sign with, the one to use last: a new key only once every datanode has had time to learn it.
    fn signing_keys(&self, view: &ReadView) -> Result<Vec<TokenKey>, Failure> {
        let now_ms = self.clock.now_ms();
        let mut keys = live_keys(view, now_ms).map_err(|error| store_failure(&error))?;
        let published = |made_ms: u64| made_ms.saturating_add(TOKEN_KEY_PUBLISH_MS) <= now_ms;
        if keys.iter().any(|(_, made_ms)| published(*made_ms)) {
            keys.retain(|(_, made_ms)| published(*made_ms));
        }
        Ok(keys.into_iter().map(|(key, _)| key).collect())
    }

    /// Makes a key if there is none or the newest is a rotation old.
    async fn rotate_token_keys(&self) -> Result<(), Failure> {
        let view = self.read().await?;
        let now_ms = self.clock.now_ms();
        let keys = live_keys(&*view, now_ms).map_err(|error| store_failure(&error))?;
        let due_ms =
            keys.last().map(|(_, made_ms)| made_ms.saturating_add(self.config.token_key_rotation_ms));
        if due_ms.is_some_and(|due_ms| now_ms < due_ms) {
            return Ok(());
        }
        let last: Option<u64> =
            load(&*view, META, meta::LAST_TOKEN_KEY).map_err(|error| store_failure(&error))?;
        let command = command::AddTokenKey {
            secret: wire::random::array(),
            expires_ms: now_ms.saturating_add(self.config.token_key_life_ms()),
            after: last.unwrap_or(0) as u32,
            now_ms,
        };
        self.propose(Command::AddTokenKey(command), Priority::Freeing).await?;
        tracing::info!("made a block token key");
        Ok(())
    }

    async fn tick(&self) -> Result<(), Failure> {
        self.rotate_token_keys().await?;
        let view = self.attend().await?;
        let active = active_containers(&*view).map_err(|error| store_failure(&error))?;
        metrics::active_containers(active.len());
        let datanodes = self.status_of_datanodes(&view)?;
        metrics::live_datanodes(datanodes);
        Ok(())
    }

    fn status_of_datanodes(&self, view: &ReadView) -> Result<usize, Failure> {
        let fleet = self.fleet.lock();
        let nodes = status::datanodes(view, &fleet, &self.config, self.clock.steady_ns());
        let nodes = nodes.map_err(|error| store_failure(&error))?;
        Ok(nodes.iter().filter(|node| node.liveness == Liveness::Live).count())
    }

    async fn read(&self) -> Result<Arc<ReadView>, Failure> {
        self.group.read().await.map_err(read_failure)
    }

    async fn propose(&self, command: Command, priority: Priority) -> Result<Reply, Failure> {
        let bytes = Bytes::from(command.encode());
        self.group.propose_with(bytes, priority).await.map_err(propose_failure)
    }
}

#[async_trait]
impl ScmService for Scm {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        match request {
            ScmRequest::GrantLease(request) => self.grant_lease(request).await.map(ScmReply::GrantLease),
            ScmRequest::SyncLeases(request) => self.sync_leases(request).await.map(ScmReply::SyncLeases),
            ScmRequest::LogDeletions(request) => {
                self.log_deletions(request).await.map(ScmReply::LogDeletions)
            }
            ScmRequest::LocateContainers(request) => {
                self.locate_containers(request).await.map(ScmReply::LocateContainers)
            }
            ScmRequest::RegisterDatanode(request) => {
                self.register_datanode(request).await.map(ScmReply::RegisterDatanode)
            }
            ScmRequest::Heartbeat(request) => self.heartbeat(request).await.map(ScmReply::Heartbeat),
            other => Err(Failure::new(Status::Internal, format!("scm cannot do {} yet", other.name()))),
        }
    }
}

/// The worker: once a heartbeat interval, until SCM stops or is dropped.
async fn work(scm: Weak<Scm>, mut stop: watch::Receiver<bool>) {
    loop {
        let Some(interval_ms) = scm.upgrade().map(|scm| scm.config.heartbeat_interval_ms) else { return };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(Duration::from_millis(interval_ms)) => {}
        }
        let Some(scm) = scm.upgrade() else { return };
        if let Err(failure) = scm.tick().await
            && !*stop.borrow()
        {
            tracing::warn!(%failure, "the container manager's regular work failed; it is tried again");
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
    Ok(())
}

fn log_state_change(command: &Command) {
    match command {
        Command::CloseContainers(close) => {
            tracing::info!(containers = ?close.containers, "closing containers")
        }
        Command::SealContainer(seal) => tracing::info!(container = seal.container.0, "container closed"),
        _ => {}
    }
}
