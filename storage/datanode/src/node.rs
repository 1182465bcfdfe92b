//! The datanode as a whole: its containers over all disks, its token keys, and how it starts and ends.
//!
//! Not here: what callers ask of it (`service`), what it tells SCM (`heartbeat`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use client::service::{Datanodes, ScmService};
use parking_lot::{Mutex, RwLock};
use wire::block::{BlockClaim, DatanodeAddress, TokenKey};
use wire::ids::{ContainerId, DatanodeId, Generation};
use wire::scm::{DiskReport, ReplicaReport};

use crate::config::DatanodeConfig;
use crate::container::Container;
use crate::deletion;
use crate::disk::{Changes, Disk};
use crate::error::{BlockError, OpenError};
use crate::extent::{ContainerHeader, Salt};
use crate::heartbeat;
use crate::layout::LAYOUT_CURRENT;
use crate::metrics;
use crate::open::{create_container, open_disks};
use platform::actor::Ended;
use platform::disk::{Directory, DiskIo};
use platform::task;

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
    tombstones: Mutex<BTreeMap<ContainerId, Generation>>,
    creating: Mutex<()>,
    pub(crate) keys: RwLock<Arc<Vec<TokenKey>>>,
    /// Whether SCM has taken us in and given us the token keys, without which every call is refused.
    pub(crate) is_registered: tokio::sync::watch::Sender<bool>,
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
        for path in &config.disks {
            let directory = Directory::open(path)
                .map_err(|source| OpenError::Unreachable { path: path.clone(), source })?;
            ios.push(Arc::new(directory));
        }
        Self::open_on(config, ios)
    }

    /// The same on disks of the caller's making: for tests and simulators. `config.disks` is not looked at.
    pub fn open_on(config: DatanodeConfig, ios: Vec<Arc<dyn DiskIo>>) -> Result<Self, OpenError> {
        let changes = Arc::new(Changes::default());
        let opened = open_disks(&config, ios, &changes, wire::clock::now_ms())?;
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
                tombstones: Mutex::new(opened.tombstones),
                creating: Mutex::new(()),
                keys: RwLock::default(),
                is_registered: tokio::sync::watch::Sender::default(),
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
        let report = task::spawn(heartbeat::report_loop(self.node.clone(), scm, datanodes));
        let keep = task::spawn(heartbeat::housekeeping_loop(self.node.clone()));
        self.node.tasks.lock().extend([report, keep]);
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
        self.containers.read().get(&id).cloned().ok_or(BlockError::NoContainer(id))
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
        if self.tombstones.lock().get(&claim.container).is_some_and(|dead| *dead >= claim.generation) {
            return Err(BlockError::Refused(claim.container, "its replica here was dropped"));
        }
        let disk = self.emptiest_disk()?;
        let header = ContainerHeader {
            layout: LAYOUT_CURRENT,
            container: claim.container,
            generation: claim.generation,
            replication: claim.replication,
            replica_index: 0,
            cluster: self.config.cluster,
            salt: Salt(wire::random::array()),
        };
        let container = create_container(&disk, header)?;
        tracing::info!(container = %claim.container, disk = %disk.io.name(), "container replica created");
        self.containers.write().insert(claim.container, container.clone());
        Ok(container)
    }

    fn emptiest_disk(&self) -> Result<Arc<Disk>, BlockError> {
        let healthy = self.disks.iter().filter(|disk| !disk.is_failed());
        let with_room = healthy.filter_map(|disk| Some((disk.room().ok()?.available, disk)));
        with_room
            .max_by_key(|(available, _)| *available)
            .map(|(_, disk)| disk.clone())
            .ok_or(BlockError::NoDisk)
    }

    /// Drops a replica and remembers that it was.
    pub(crate) fn drop_replica(&self, container: &Arc<Container>) -> Result<(), BlockError> {
        let _creating = self.creating.lock();
        self.tombstones.lock().insert(container.id(), container.header.generation);
        deletion::drop_replica(container, wire::clock::now_ms())?;
        self.containers.write().remove(&container.id());
        Ok(())
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
            .collect();
        metrics::disks_failed(reports.iter().filter(|report| report.is_failed).count());
        reports
    }

    pub(crate) fn replica_reports(&self) -> Vec<ReplicaReport> {
        let containers = self.containers.read();
        let reports: Vec<ReplicaReport> = containers.values().map(|container| container.report()).collect();
        drop(containers);
        metrics::replicas(reports.len(), reports.iter().map(|report| report.used_bytes).sum());
        reports
    }
}
