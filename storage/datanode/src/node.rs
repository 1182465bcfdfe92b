//! The datanode as a whole: its containers over all disks, its token keys, and how it starts and ends.
//!
//! Not here: what callers ask of it (`service`), what it tells SCM (`heartbeat`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use client::service::{Datanodes, ScmService};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use wire::block::{BlockClaim, DatanodeAddress, Replication, TokenKey};
use wire::ids::{ContainerId, DatanodeId, Generation};
use wire::scm::{DiskReport, ReplicaCondition, ReplicaReport};

use crate::config::DatanodeConfig;
use crate::container::Container;
use crate::copy::Copies;
use crate::deletion;
use crate::disk::{Changes, Disk};
use crate::error::{BlockError, OpenError};
use crate::extent::{ContainerHeader, Salt};
use crate::fetch::FETCHES_MAX;
use crate::heartbeat;
use crate::layout::LAYOUT_CURRENT;
use crate::metrics;
use crate::open::{LeftOut, create_container, open_disks};
use platform::actor::Ended;
use platform::disk::{Directory, DiskIo};
use platform::task;

/// Dropped replicas remembered at most. Tokens of the oldest have long expired by then.
const TOMBSTONES_MAX: usize = 1 << 20;

/// A datanode in service. Cheap to clone.
#[derive(Clone)]
pub struct Datanode {
    pub(crate) node: Arc<Node>,
}

pub(crate) struct Node {
    pub(crate) config: DatanodeConfig,
    pub(crate) id: DatanodeId,
    /// Drawn at each start: SCM drops late messages of an earlier life.
    pub(crate) incarnation: u64,
    pub(crate) disks: Vec<Arc<Disk>>,
    pub(crate) containers: RwLock<BTreeMap<ContainerId, Arc<Container>>>,
    /// Disks that were left out at the start.
    failed_disks: Vec<DiskReport>,
    /// Replicas that were here and of which nothing can be read.
    pub(crate) lost: Mutex<BTreeMap<ContainerId, ReplicaReport>>,
    /// All disks this datanode ever had were here at the start.
    is_whole: bool,
    /// The newest container there was when this life registered first; until then, as high as can be. What is newer cannot
    /// have been on a disk that is missing.
    newest_at_start: AtomicU64,
    tombstones: Mutex<BTreeMap<ContainerId, Generation>>,
    /// Held while a replica comes or goes.
    pub(crate) creating: Mutex<()>,
    /// Copies from other datanodes.
    pub(crate) copies: Copies,
    /// Places for copies to other datanodes.
    pub(crate) fetches: Arc<Semaphore>,
    /// Answers to commands for replicas that are not here, until SCM has heard them.
    pub(crate) answers: Mutex<BTreeMap<ContainerId, ReplicaReport>>,
    pub(crate) keys: RwLock<Arc<Vec<TokenKey>>>,
    /// Whether SCM has taken us in and given us the token keys, without which every call is refused.
    pub(crate) is_registered: platform::watch::Sender<bool>,
    pub(crate) changes: Arc<Changes>,
    /// The highest term an SCM leader has spoken with.
    pub(crate) term: AtomicU64,
    pub(crate) is_stopping: AtomicBool,
    pub(crate) stop: tokio::sync::Notify,
    loops: Mutex<Vec<Ended>>,
    pub(crate) tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Datanode {
    /// Opens the disks, recovering them if the last end was not an orderly one. Blocking: call off the
    /// reactor, but inside a runtime.
    pub fn open(config: DatanodeConfig) -> Result<Self, OpenError> {
        let mut ios: Vec<Arc<dyn DiskIo>> = Vec::new();
        let mut left_out = LeftOut::default();
        for path in &config.disks {
            match Directory::open(path) {
                Ok(directory) => ios.push(Arc::new(directory)),
                Err(source) => {
                    let error = OpenError::Unreachable { path: path.clone(), source };
                    left_out.add(path.display().to_string(), error)?;
                }
            }
        }
        Self::open_with(config, ios, left_out)
    }

    /// The same on disks of the caller's making: for tests and simulators. `config.disks` is not looked at.
    pub fn open_on(config: DatanodeConfig, ios: Vec<Arc<dyn DiskIo>>) -> Result<Self, OpenError> {
        Self::open_with(config, ios, LeftOut::default())
    }

    fn open_with(
        config: DatanodeConfig,
        ios: Vec<Arc<dyn DiskIo>>,
        left_out: LeftOut,
    ) -> Result<Self, OpenError> {
        let changes = Arc::new(Changes::default());
        let copies_max = config.copies_max;
        let opened = open_disks(&config, ios, left_out, &changes, wire::clock::now_ms())?;
        let mut loops = Vec::new();
        for disk in &opened.disks {
            let started = disk.start().map_err(|source| OpenError::Io { disk: disk.io.name(), source })?;
            loops.extend(started);
        }
        tracing::info!(
            datanode = %opened.datanode, disks = opened.disks.len(), containers = opened.containers.len(),
            "datanode opened"
        );
        Ok(Self {
            node: Arc::new(Node {
                config,
                id: opened.datanode,
                incarnation: wire::random::u64(),
                disks: opened.disks,
                containers: RwLock::new(opened.containers),
                failed_disks: opened.failed,
                lost: Mutex::new(opened.lost),
                is_whole: opened.is_whole,
                newest_at_start: AtomicU64::new(u64::MAX),
                tombstones: Mutex::new(opened.tombstones),
                creating: Mutex::new(()),
                copies: Copies::new(copies_max),
                fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
                answers: Mutex::default(),
                keys: RwLock::default(),
                is_registered: platform::watch::Sender::default(),
                changes,
                term: AtomicU64::new(0),
                is_stopping: AtomicBool::new(false),
                stop: tokio::sync::Notify::new(),
                loops: Mutex::new(loops),
                tasks: Mutex::default(),
            }),
        })
    }

    /// Who this is.
    pub fn id(&self) -> DatanodeId {
        self.node.id
    }

    /// Who and where this is.
    pub fn address(&self) -> DatanodeAddress {
        DatanodeAddress { id: self.node.id, address: self.node.config.address.clone() }
    }

    /// Spawns the loops that report to SCM, do what it says, and keep house. Replicas are copied from `datanodes`. Call
    /// once, inside a runtime.
    pub fn start(&self, scm: Arc<dyn ScmService>, datanodes: Arc<Datanodes>) {
        let (commands, queue) = heartbeat::commands();
        let report = task::spawn_vital(heartbeat::report_loop(self.node.clone(), scm, commands));
        let obey = task::spawn_vital(heartbeat::command_loop(self.node.clone(), datanodes, queue));
        let keep = task::spawn_vital(heartbeat::housekeeping_loop(self.node.clone()));
        self.node.tasks.lock().extend([report, obey, keep]);
    }

    /// Waits until SCM has taken the datanode in: before that it has no token keys and refuses every call.
    pub async fn wait_registered(&self) {
        let mut is_registered = self.node.is_registered.subscribe();
        // Fails only when the sender is gone, and we hold the node that owns it.
        let _ = is_registered.wait_for(|done| *done).await;
    }

    /// Ends in order: the writes under way finish or fail, the index is durable, the next start need not recover.
    pub async fn shutdown(&self) {
        let node = self.node.clone();
        if node.is_stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        node.stop.notify_waiters();
        node.changes.urgent.notify_waiters();
        let tasks = std::mem::take(&mut *node.tasks.lock());
        for task in tasks {
            task.abort();
            // Ended or aborted: either way it touches nothing any more.
            let _ = task.await;
        }
        for disk in &node.disks {
            disk.stop();
        }
        let loops = std::mem::take(&mut *node.loops.lock());
        for ended in loops {
            // Dropped without a word if it panicked, which the panic hook has told.
            let _ = ended.await;
        }
        let ended = task::spawn_blocking(move || node.finish());
        if ended.await.is_err() {
            tracing::error!("datanode shutdown did not finish: the next start recovers");
        }
    }

    /// Replicas and disks as SCM is told of them.
    pub fn report(&self) -> (Vec<DiskReport>, Vec<ReplicaReport>) {
        (self.node.disk_reports(), self.node.replica_reports())
    }
}

impl Node {
    fn finish(&self) {
        for disk in &self.disks {
            // Writes that were cut off punch their extents when dropped; open containers whose writers still live
            // would be recorded half way, so such a disk recovers at the next start.
            let is_idle = self
                .containers
                .read()
                .values()
                .filter(|container| Arc::ptr_eq(&container.disk, disk))
                .all(|container| container.state.lock().in_flight.is_empty());
            if disk.is_failed() || !is_idle {
                continue;
            }
            if let Err(error) = disk.finish() {
                tracing::error!(disk = %disk.io.name(), %error, "cannot mark the orderly end: the next start recovers");
            }
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// The container a reader names.
    pub(crate) fn container(&self, id: ContainerId) -> Result<Arc<Container>, BlockError> {
        let found = self.containers.read().get(&id).cloned();
        // On a disk that is out of service it may be: "not here" would be a verdict.
        let absent =
            || if self.never_had(id) { BlockError::NoContainer(id) } else { BlockError::DiskFailed(id) };
        found.ok_or_else(absent)
    }

    /// The container a writer's verified claim names, if it is here; its generation must be the claimed one.
    pub(crate) fn container_for(&self, claim: &BlockClaim) -> Result<Option<Arc<Container>>, BlockError> {
        let found = self.containers.read().get(&claim.container).cloned();
        match found {
            Some(container) if container.header.generation != claim.generation => {
                Err(BlockError::Refused(claim.container, "its replica here is of another generation"))
            }
            found => Ok(found),
        }
    }

    /// The same, making the replica if it is not here. Blocking.
    pub(crate) fn container_or_create(&self, claim: &BlockClaim) -> Result<Arc<Container>, BlockError> {
        let _creating = self.creating.lock();
        if let Some(container) = self.container_for(claim)? {
            return Ok(container);
        }
        if self.is_buried(claim.container, claim.generation) {
            return Err(BlockError::Refused(claim.container, "its replica here was dropped"));
        }
        if self.lost.lock().contains_key(&claim.container) {
            return Err(BlockError::Refused(claim.container, "its replica here is lost"));
        }
        if self.copies.is_running(claim.container) {
            return Err(BlockError::Refused(claim.container, "its replica here is being copied"));
        }
        if !self.may_begin(claim.container) {
            // A fresh one would pass for a replica that has all blocks.
            self.answer(claim.container, claim.generation, ReplicaCondition::Lost);
            return Err(BlockError::Refused(claim.container, "its replica may be on a disk that is missing"));
        }
        self.create(claim.container, claim.generation, claim.replication)
    }

    /// An empty replica of a container that was never here. Under `creating`.
    pub(crate) fn create(
        &self,
        id: ContainerId,
        generation: Generation,
        replication: Replication,
    ) -> Result<Arc<Container>, BlockError> {
        let disk = self.emptiest_disk()?;
        let header = ContainerHeader {
            layout: LAYOUT_CURRENT,
            container: id,
            generation,
            replication,
            replica_index: 0,
            is_copy: false,
            cluster: self.config.cluster,
            salt: Salt(wire::random::array()),
        };
        let container = create_container(&disk, header)?;
        tracing::info!(container = %id, disk = %disk.io.name(), "container replica created");
        self.containers.write().insert(id, container.clone());
        Ok(container)
    }

    pub(crate) fn emptiest_disk(&self) -> Result<Arc<Disk>, BlockError> {
        let healthy = self.disks.iter().filter(|disk| !disk.is_failed());
        let with_room = healthy.filter_map(|disk| Some((disk.room().ok()?.available, disk)));
        with_room
            .max_by_key(|(available, _)| *available)
            .map(|(_, disk)| disk.clone())
            .ok_or(BlockError::NoDisk)
    }

    /// Whether a replica of this or a later generation was dropped here.
    pub(crate) fn is_buried(&self, container: ContainerId, generation: Generation) -> bool {
        self.tombstones.lock().get(&container).is_some_and(|dead| *dead >= generation)
    }

    /// Whether a replica that is not found was never created: no disk is missing that could have had it.
    pub(crate) fn never_had(&self, id: ContainerId) -> bool {
        self.may_begin(id) && self.disks.iter().all(|disk| !disk.is_failed())
    }

    /// Whether a replica that no working or failed disk knows of may come into being here: it was not on a disk that was
    /// missing at the start.
    fn may_begin(&self, id: ContainerId) -> bool {
        self.is_whole || id.0 > self.newest_at_start.load(Ordering::SeqCst)
    }

    /// SCM has told which container is the newest. Only what it said first counts: later ones may begin here.
    pub(crate) fn learn_newest(&self, newest: ContainerId) {
        let order = Ordering::SeqCst;
        // Known already: nothing to do.
        let _ = self.newest_at_start.compare_exchange(u64::MAX, newest.0, order, order);
    }

    /// The replica of a lower generation; refused if there is one of this or a higher. Under `creating`.
    pub(crate) fn older_than(
        &self,
        id: ContainerId,
        generation: Generation,
    ) -> Result<Option<Arc<Container>>, BlockError> {
        let found = self.containers.read().get(&id).cloned();
        if found.as_ref().is_some_and(|container| container.header.generation >= generation)
            || self.is_buried(id, generation)
        {
            return Err(BlockError::Refused(id, "its replica here is of a later generation"));
        }
        Ok(found)
    }

    /// Drops a replica for good. One on a disk that has failed is forgotten: should the disk come back, SCM sees it and
    /// says so again. Under `creating`.
    pub(crate) fn drop_replica(&self, container: &Arc<Container>) -> Result<(), BlockError> {
        if !container.disk.is_failed() {
            deletion::drop_replica(container, wire::clock::now_ms())?;
        }
        self.bury(container.id(), container.header.generation);
        self.containers.write().remove(&container.id());
        Ok(())
    }

    /// Drops what is left of a lost replica: rows without a file, a file that cannot be read or was never entered into the
    /// index, or both. Under `creating`; no replica of this id may be in service.
    pub(crate) fn drop_lost(&self, id: ContainerId, generation: Generation) -> Result<(), BlockError> {
        for disk in self.disks.iter().filter(|disk| !disk.is_failed()) {
            deletion::drop_leftovers(disk, id, generation, wire::clock::now_ms())?;
        }
        self.lost.lock().remove(&id);
        self.bury(id, generation);
        Ok(())
    }

    /// Remembers that a replica was dropped: no late token or order makes it again.
    pub(crate) fn bury(&self, container: ContainerId, generation: Generation) {
        let mut tombstones = self.tombstones.lock();
        if tombstones.len() >= TOMBSTONES_MAX {
            tombstones.pop_first();
        }
        let dead = tombstones.entry(container).or_insert(generation);
        *dead = generation.max(*dead);
    }

    /// What SCM is told of one container: its replica here, a copy under way, a replica that was lost.
    pub(crate) fn reports_of(&self, id: ContainerId) -> Vec<ReplicaReport> {
        let replica = self.containers.read().get(&id).map(|container| container.report());
        let lost = self.lost.lock().get(&id).cloned();
        replica.into_iter().chain(self.copies.report(id)).chain(lost).collect()
    }

    /// Answers a command for a replica that is not here.
    pub(crate) fn answer(&self, id: ContainerId, generation: Generation, condition: ReplicaCondition) {
        let report = ReplicaReport {
            container: id,
            generation,
            replication: Replication::Three,
            is_sealed: false,
            written_bytes: 0,
            used_bytes: 0,
            block_count: 0,
            deletion_done: 0,
            is_unhealthy: false,
            condition,
            disk: String::new(),
        };
        self.answers.lock().insert(id, report);
        self.changes.urgent.notify_one();
    }

    pub(crate) fn disk_reports(&self) -> Vec<DiskReport> {
        let reports: Vec<DiskReport> = self
            .disks
            .iter()
            .map(|disk| {
                let room = disk.room().ok();
                DiskReport {
                    path: disk.io.name(),
                    capacity_bytes: room.map_or(0, |room| room.capacity),
                    available_bytes: disk.available_for_blocks(),
                    is_failed: disk.is_failed(),
                }
            })
            .chain(self.failed_disks.iter().cloned())
            .collect();
        metrics::disks_failed(reports.iter().filter(|report| report.is_failed).count());
        reports
    }

    pub(crate) fn replica_reports(&self) -> Vec<ReplicaReport> {
        let containers = self.containers.read();
        let mut reports: Vec<ReplicaReport> =
            containers.values().map(|container| container.report()).collect();
        drop(containers);
        reports.extend(self.copies.reports());
        reports.extend(self.lost.lock().values().cloned());
        metrics::replicas(reports.len(), reports.iter().map(|report| report.used_bytes).sum());
        reports
    }
}
