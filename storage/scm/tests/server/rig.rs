//! SCM in a fresh directory, its clock, and datanodes that the test plays: single calls of one, or a fleet that obeys.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::service::call_scm;
use scm::{Scm, ScmConfig};
use uuid::Uuid;
use wire::block::{BlockOperation, DatanodeAddress, Replication};
use wire::clock::Clock;
use wire::ids::{ClusterId, ContainerId, DatanodeId, Generation, LeaseId};
use wire::operator::{
    CloseContainer, ContainerDetails, DatanodeWish, GetContainers, ListDatanodes, SetDatanode,
};
use wire::scm::{
    ContainerState, DatanodeAction, DegradeContainer, Degraded, DiskReport, GrantLease, Heartbeat,
    HeartbeatReply, Lease, RegisterDatanode, Registered, ReplicaCondition, ReplicaReport, SyncLeases,
};
use wire::status::Failure;

pub(crate) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(77));
pub(crate) const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A clock that only the test moves.
#[derive(Default)]
pub(crate) struct HandClock(AtomicU64);

impl HandClock {
    pub(crate) fn advance_ms(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.load(Ordering::SeqCst)
    }

    fn steady_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst) * 1_000_000
    }
}

pub(crate) struct Cluster {
    pub(crate) scm: Arc<Scm>,
    pub(crate) clock: Arc<HandClock>,
}

impl Cluster {
    pub(crate) async fn open(dir: &Path) -> Self {
        let clock = Arc::new(HandClock::default());
        Self::open_with(config(dir), clock).await
    }

    pub(crate) async fn open_with(config: ScmConfig, clock: Arc<HandClock>) -> Self {
        let scm = Scm::open_with(config, clock.clone()).await.unwrap();
        scm.wait_ready().await.unwrap();
        Self { scm, clock }
    }

    /// With datanodes 1, 2 and 3 in their first life.
    pub(crate) async fn of_three(dir: &Path) -> Self {
        let cluster = Self::open(dir).await;
        for number in 1..=3 {
            cluster.register(number, 1).await;
        }
        cluster
    }

    pub(crate) async fn register(&self, number: u128, incarnation: u64) -> Registered {
        call_scm(&*self.scm, registration(CLUSTER, number, incarnation)).await.unwrap()
    }

    pub(crate) async fn heartbeat(
        &self,
        number: u128,
        incarnation: u64,
        replicas: Vec<ReplicaReport>,
    ) -> HeartbeatReply {
        let heartbeat = Heartbeat {
            datanode: DatanodeId(Uuid::from_u128(number)),
            incarnation,
            disks: vec![disk()],
            replicas,
            is_urgent: false,
            now_ms: 0,
            sequence: 0,
        };
        call_scm(&*self.scm, heartbeat).await.unwrap()
    }

    pub(crate) async fn grant(
        &self,
        replication: Replication,
        request: u64,
        avoid: &[u64],
    ) -> Result<Lease, Failure> {
        let avoid = avoid.iter().map(|id| ContainerId(*id)).collect();
        call_scm(&*self.scm, GrantLease { replication, request, avoid, avoid_datanodes: Vec::new() }).await
    }

    /// A lease of three replicas for a writer that this datanode has just failed.
    pub(crate) async fn grant_around(&self, request: u64, without: u128) -> Lease {
        let avoid_datanodes = vec![DatanodeId(Uuid::from_u128(without))];
        let (replication, avoid) = (Replication::Three, Vec::new());
        call_scm(&*self.scm, GrantLease { replication, request, avoid, avoid_datanodes }).await.unwrap()
    }

    /// Which of these leases OM is told to end.
    pub(crate) async fn ends(&self, held: &[&Lease]) -> Vec<LeaseId> {
        let held = held.iter().map(|lease| lease.id).collect();
        call_scm(&*self.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap().end
    }

    /// A writer leaves this datanode out of the lease's container.
    pub(crate) async fn complain(&self, lease: &Lease, failed: u128) {
        let members = members_of(lease).into_iter().filter(|number| *number != failed);
        let request = DegradeContainer {
            container: lease.container,
            generation: Generation(1),
            acknowledged: members.map(|number| DatanodeId(Uuid::from_u128(number))).collect(),
            failed: vec![DatanodeId(Uuid::from_u128(failed))],
        };
        assert_eq!(call_scm(&*self.scm, request).await.unwrap(), Degraded::Accepted);
    }
}

pub(crate) fn config(dir: &Path) -> ScmConfig {
    let mut config = ScmConfig::new(dir.to_owned(), CLUSTER);
    config.log_segment_bytes = 1 << 20;
    config.container_bytes_max = 16 << 20;
    // The worker is not wanted here: the test decides what happens when.
    config.heartbeat_interval_ms = 3_600_000;
    config
}

pub(crate) fn registration(cluster: ClusterId, number: u128, incarnation: u64) -> RegisterDatanode {
    let datanode = DatanodeAddress { id: DatanodeId(Uuid::from_u128(number)), address: None };
    RegisterDatanode {
        cluster,
        datanode,
        incarnation,
        disks: vec![disk()],
        replicas: Vec::new(),
        node: String::new(),
        rack: String::new(),
        now_ms: 0,
        sequence: 0,
    }
}

pub(crate) fn disk() -> DiskReport {
    let (capacity_bytes, available_bytes) = (1 << 40, 1 << 39);
    DiskReport { path: "disk0".to_owned(), capacity_bytes, available_bytes, is_failed: false }
}

pub(crate) fn replica(container: ContainerId) -> ReplicaReport {
    ReplicaReport {
        container,
        generation: Generation(1),
        replication: Replication::One,
        is_sealed: false,
        written_bytes: 4096,
        used_bytes: 4096,
        block_count: 1,
        deletion_done: 0,
        is_unhealthy: false,
        condition: wire::scm::ReplicaCondition::Whole,
        disk: String::new(),
    }
}

/// Numbers of a lease's members.
pub(crate) fn members_of(lease: &Lease) -> Vec<u128> {
    lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect()
}

/// Replicas as the test's datanodes hold them, by datanode number and container.
pub(crate) type Held = std::collections::BTreeMap<(u128, u64), ReplicaReport>;

/// A cluster of datanodes that obey at once.
pub(crate) struct Fleet {
    pub(crate) cluster: Cluster,
    pub(crate) held: Held,
    pub(crate) silent: Vec<u128>,
    pub(crate) count: u128,
}

impl Fleet {
    pub(crate) async fn open(dir: &Path, count: u128) -> Self {
        let cluster = Cluster::open_with(fleet_config(dir), Arc::default()).await;
        for number in 1..=count {
            cluster.register(number, 1).await;
        }
        Self { cluster, held: Held::new(), silent: Vec::new(), count }
    }

    /// All that speak report all they hold, and do as told.
    pub(crate) async fn beat(&mut self) {
        for number in 1..=self.count {
            if self.silent.contains(&number) {
                continue;
            }
            let reports: Vec<_> = self
                .held
                .iter()
                .filter(|(key, _)| key.0 == number)
                .map(|(_, report)| report.clone())
                .collect();
            let mut reply = self.cluster.heartbeat(number, 1, reports.clone()).await;
            if reply.register_again {
                let mut registration = registration(CLUSTER, number, 1);
                registration.replicas = reports;
                let registered = call_scm(&*self.cluster.scm, registration).await.unwrap();
                reply.commands = registered.commands;
            }
            self.held.retain(|key, report| key.0 != number || report.condition != ReplicaCondition::Dropped);
            for command in reply.commands {
                let key = (number, command.container.0);
                let mut report = self.held.get(&key).cloned().unwrap_or_else(|| ReplicaReport {
                    generation: command.generation,
                    ..replica(command.container)
                });
                match command.action {
                    DatanodeAction::Close => report.is_sealed = true,
                    DatanodeAction::DeleteReplica => {
                        report.generation = command.generation;
                        report.condition = ReplicaCondition::Dropped;
                    }
                    DatanodeAction::CopyReplica { token, source, .. } => {
                        assert_eq!(token.claim.operation, BlockOperation::CopyReplica);
                        assert_ne!(source.id, DatanodeId(Uuid::from_u128(number)));
                        report.generation = command.generation;
                        (report.is_sealed, report.condition) = (true, ReplicaCondition::CopyVerified);
                    }
                    DatanodeAction::DeleteBlocks { transaction, .. } => report.deletion_done = transaction,
                }
                self.held.insert(key, report);
            }
        }
        self.cluster.clock.advance_ms(1000);
    }

    /// Beats until the container is as wished. The worker ticks meanwhile.
    pub(crate) async fn until(
        &mut self,
        container: ContainerId,
        is_wished: impl Fn(&ContainerDetails) -> bool,
    ) {
        for _ in 0..2000 {
            self.beat().await;
            if is_wished(&self.details(container).await) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("container {container} never came there: {:?}", self.details(container).await);
    }

    pub(crate) async fn details(&self, container: ContainerId) -> ContainerDetails {
        let get = GetContainers { containers: vec![container] };
        call_scm(&*self.cluster.scm, get).await.unwrap().remove(0)
    }

    /// A container of three with a replica on each member, closed.
    pub(crate) async fn closed(&mut self, request: u64) -> (ContainerId, Vec<u128>) {
        let lease = self.cluster.grant(Replication::Three, request, &[]).await.unwrap();
        let members: Vec<u128> = lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect();
        for member in &members {
            self.held.insert((*member, lease.container.0), replica(lease.container));
        }
        call_scm(&*self.cluster.scm, CloseContainer { container: lease.container }).await.unwrap();
        self.until(lease.container, |details| details.state == ContainerState::Closed).await;
        (lease.container, members)
    }

    pub(crate) async fn wish(&self, number: u128, wish: DatanodeWish, force: bool) -> Result<(), Failure> {
        let datanode = DatanodeId(Uuid::from_u128(number));
        call_scm(&*self.cluster.scm, SetDatanode { datanode, wish, force }).await
    }

    pub(crate) async fn info(&self, number: u128) -> wire::operator::DatanodeInfo {
        let all = call_scm(&*self.cluster.scm, ListDatanodes {}).await.unwrap();
        all.into_iter().find(|info| info.datanode.id.0.as_u128() == number).unwrap()
    }
}

pub(crate) fn fleet_config(dir: &Path) -> ScmConfig {
    let mut config = config(dir);
    config.heartbeat_interval_ms = 1;
    config.repair_delay_ms = 100_000;
    config
}

pub(crate) fn valid_on(details: &ContainerDetails) -> Vec<u128> {
    let mut on: Vec<u128> = details
        .replicas
        .iter()
        .filter(|replica| replica.state == "valid")
        .map(|replica| replica.datanode.0.as_u128())
        .collect();
    on.sort();
    on
}

pub(crate) fn is_whole_on(details: &ContainerDetails, nodes: &[u128]) -> bool {
    valid_on(details) == nodes && details.replicas.len() == nodes.len()
}
