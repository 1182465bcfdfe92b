//! SCM behind its service trait: real log and state in a fresh directory, datanodes played by the test.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::service::call_scm;
use scm::{Scm, ScmConfig};
use uuid::Uuid;
use wire::block::{DatanodeAddress, Replication};
use wire::clock::Clock;
use wire::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LocalId};
use wire::limits::LEASE_IDS;
use wire::scm::{
    DatanodeAction, DiskReport, GrantLease, Heartbeat, HeartbeatReply, Lease, LocateContainers, LogDeletions,
    RegisterDatanode, Registered, ReplicaReport, SyncLeases,
};
use wire::status::{Failure, Status};

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(77));
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A clock that only the test moves.
#[derive(Default)]
struct HandClock(AtomicU64);

impl HandClock {
    fn advance_ms(&self, ms: u64) {
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

struct Cluster {
    scm: Arc<Scm>,
    clock: Arc<HandClock>,
}

impl Cluster {
    async fn open(dir: &Path) -> Self {
        let clock = Arc::new(HandClock::default());
        Self::open_with(config(dir), clock).await
    }

    async fn open_with(config: ScmConfig, clock: Arc<HandClock>) -> Self {
        let scm = Scm::open_with(config, clock.clone()).await.unwrap();
        scm.wait_ready().await.unwrap();
        Self { scm, clock }
    }

    async fn register(&self, number: u128, incarnation: u64) -> Registered {
        call_scm(&*self.scm, registration(CLUSTER, number, incarnation)).await.unwrap()
    }

    async fn heartbeat(
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
        };
        call_scm(&*self.scm, heartbeat).await.unwrap()
    }

    async fn grant(&self, replication: Replication, request: u64, avoid: &[u64]) -> Result<Lease, Failure> {
        let avoid = avoid.iter().map(|id| ContainerId(*id)).collect();
        call_scm(&*self.scm, GrantLease { replication, request, avoid, avoid_datanodes: Vec::new() }).await
    }
}

fn config(dir: &Path) -> ScmConfig {
    let mut config = ScmConfig::new(dir.to_owned(), CLUSTER);
    config.log_segment_bytes = 1 << 20;
    config.container_bytes_max = 16 << 20;
    // The worker is not wanted here: the test decides what happens when.
    config.heartbeat_interval_ms = 3_600_000;
    config
}

fn registration(cluster: ClusterId, number: u128, incarnation: u64) -> RegisterDatanode {
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
    }
}

fn disk() -> DiskReport {
    let (capacity_bytes, available_bytes) = (1 << 40, 1 << 39);
    DiskReport { path: "disk0".to_owned(), capacity_bytes, available_bytes, is_failed: false }
}

fn replica(container: ContainerId) -> ReplicaReport {
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

#[tokio::test]
async fn lease_needs_a_datanode_and_repeats_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    let refused = cluster.grant(Replication::One, 1, &[]).await.unwrap_err();
    assert_eq!(refused.status, Status::Retry);
    assert_eq!(refused.message, "replication ONE awaits 1 datanode (0 of 1 can be written)");

    let registered = cluster.register(1, 10).await;
    assert_eq!(registered.token_keys.len(), 1);
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    assert_eq!(lease, cluster.grant(Replication::One, 1, &[]).await.unwrap());
    assert_eq!((lease.first, lease.count), (LocalId(1), LEASE_IDS));
    let second = cluster.grant(Replication::One, 2, &[]).await.unwrap();
    assert_eq!(second.container, lease.container);
    assert_eq!(second.first, LocalId(1 + LEASE_IDS));
    let avoiding = cluster.grant(Replication::One, 3, &[lease.container.0]).await.unwrap();
    assert_ne!(avoiding.container, lease.container);

    let refused = cluster.grant(Replication::Three, 4, &[]).await.unwrap_err();
    assert_eq!(refused.message, "replication THREE awaits 2 more datanodes (1 of 3 can be written)");
    cluster.register(2, 20).await;
    cluster.register(3, 30).await;
    let three = cluster.grant(Replication::Three, 4, &[]).await.unwrap();
    assert_eq!(three.pipeline.members.len(), 3);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn silent_datanode_gets_no_new_writes() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 10).await;
    cluster.grant(Replication::One, 1, &[]).await.unwrap();
    cluster.clock.advance_ms(5000);
    assert_eq!(cluster.grant(Replication::One, 2, &[]).await.unwrap_err().status, Status::Retry);
    assert!(!cluster.heartbeat(1, 10, Vec::new()).await.register_again);
    cluster.grant(Replication::One, 2, &[]).await.unwrap();
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn foreign_cluster_and_unknown_life_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    let foreign = registration(ClusterId(Uuid::from_u128(78)), 1, 10);
    assert_eq!(call_scm(&*cluster.scm, foreign).await.unwrap_err().status, Status::Invalid);
    assert!(cluster.heartbeat(1, 10, Vec::new()).await.register_again);
    cluster.register(1, 10).await;
    assert!(cluster.heartbeat(1, 9, Vec::new()).await.register_again);
    assert!(!cluster.heartbeat(1, 10, Vec::new()).await.register_again);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn full_container_is_sealed_and_its_leases_end() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 10).await;
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    let mut report = replica(lease.container);
    report.written_bytes = 15 << 20;
    let reply = cluster.heartbeat(1, 10, vec![report.clone()]).await;
    assert_eq!(reply.commands.len(), 1);
    assert_eq!(
        (reply.commands[0].container, &reply.commands[0].action),
        (lease.container, &DatanodeAction::Close)
    );
    assert!(cluster.heartbeat(1, 10, Vec::new()).await.commands.is_empty(), "told once, then given time");
    cluster.clock.advance_ms(5000);
    assert_eq!(cluster.heartbeat(1, 10, Vec::new()).await.commands.len(), 1, "told again");

    let other = cluster.grant(Replication::One, 2, &[]).await.unwrap();
    assert_ne!(other.container, lease.container);
    let held = vec![lease.id, other.id];
    let synced = call_scm(&*cluster.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap();
    assert_eq!((synced.end, synced.unknown_to_om), (vec![lease.id], Vec::new()));
    let sync = SyncLeases { held: Vec::new(), ended: vec![lease.id] };
    let synced = call_scm(&*cluster.scm, sync).await.unwrap();
    assert_eq!(synced.unknown_to_om, vec![other.id]);

    report.is_sealed = true;
    assert!(cluster.heartbeat(1, 10, vec![report]).await.commands.is_empty());
    let status = cluster.scm.status().unwrap();
    assert_eq!((status.open, status.closing, status.closed, status.leases), (1, 0, 1, 1));
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn containers_open_up_to_the_wanted_number_and_never_beyond_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(HandClock::default());
    let mut narrow = config(dir.path());
    (narrow.open_containers, narrow.open_containers_max) = (2, 3);
    let cluster = Cluster::open_with(narrow, clock).await;
    cluster.register(1, 10).await;
    let mut containers = Vec::new();
    for request in 1..=4 {
        containers.push(cluster.grant(Replication::One, request, &[]).await.unwrap().container.0);
    }
    assert_eq!(containers[..2], [1, 2]);
    assert!(containers[2..].iter().all(|id| [1, 2].contains(id)), "{containers:?}");

    // OM was refused by both: another is opened; then the limit is met and the fullest makes room.
    assert_eq!(cluster.grant(Replication::One, 5, &[1, 2]).await.unwrap().container.0, 3);
    let mut report = replica(ContainerId(2));
    report.written_bytes = 10 << 20;
    cluster.heartbeat(1, 10, vec![replica(ContainerId(1)), report]).await;
    assert_eq!(cluster.grant(Replication::One, 6, &[1, 2, 3]).await.unwrap().container.0, 4);
    let reply = cluster.heartbeat(1, 10, Vec::new()).await;
    let told: Vec<_> = reply.commands.iter().map(|command| (command.container.0, &command.action)).collect();
    assert_eq!(told, [(2, &DatanodeAction::Close)]);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn failed_disks_and_unhealthy_or_sealed_replicas_take_no_writes() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 10).await;
    for (request, is_sealed, is_unhealthy) in [(1, true, false), (2, false, true)] {
        let lease = cluster.grant(Replication::One, request, &[]).await.unwrap();
        let report = ReplicaReport { is_sealed, is_unhealthy, ..replica(lease.container) };
        cluster.heartbeat(1, 10, vec![report]).await;
        let other = cluster.grant(Replication::One, request + 10, &[]).await.unwrap();
        assert_ne!(other.container, lease.container);
        let (held, ended) = (vec![lease.id], vec![other.id]);
        assert_eq!(call_scm(&*cluster.scm, SyncLeases { held, ended }).await.unwrap().end, [lease.id]);
        // A report of another life of the replica says nothing of this one.
        let stray = ReplicaReport { generation: Generation(9), is_sealed: true, ..replica(other.container) };
        cluster.heartbeat(1, 10, vec![stray]).await;
        let again = cluster.grant(Replication::One, request + 20, &[]).await.unwrap();
        assert_eq!(again.container, other.container);
    }
    let mut broken = registration(CLUSTER, 1, 11);
    broken.disks[0].is_failed = true;
    call_scm(&*cluster.scm, broken).await.unwrap();
    let refused = cluster.grant(Replication::One, 50, &[]).await.unwrap_err();
    assert_eq!(refused.message, "replication ONE awaits 1 datanode (0 of 1 can be written)");
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn deletions_reach_the_datanode_until_it_has_passed_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 10).await;
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    let block = |local| BlockId { container: lease.container, local: LocalId(local) };
    let batch = LogDeletions { batch: 1, blocks: vec![block(3), block(2)] };
    call_scm(&*cluster.scm, batch.clone()).await.unwrap();
    call_scm(&*cluster.scm, batch).await.unwrap();
    // A number taken twice for different blocks, as after a crash of OM, loses none.
    call_scm(&*cluster.scm, LogDeletions { batch: 1, blocks: vec![block(4)] }).await.unwrap();
    assert_eq!(cluster.scm.status().unwrap().deletions, 2);

    let mut report = replica(lease.container);
    let reply = cluster.heartbeat(1, 10, vec![report.clone()]).await;
    let actions: Vec<_> = reply.commands.into_iter().map(|command| command.action).collect();
    let first = DatanodeAction::DeleteBlocks { transaction: 1, blocks: vec![LocalId(2), LocalId(3)] };
    let second = DatanodeAction::DeleteBlocks { transaction: 2, blocks: vec![LocalId(4)] };
    assert_eq!(actions, [first, second.clone()]);

    // Told and not done: nothing further goes out, since the datanode would record only the last number.
    call_scm(&*cluster.scm, LogDeletions { batch: 2, blocks: vec![block(5)] }).await.unwrap();
    assert!(cluster.heartbeat(1, 10, Vec::new()).await.commands.is_empty());

    report.deletion_done = 1;
    cluster.clock.advance_ms(5000);
    let reply = cluster.heartbeat(1, 10, vec![report.clone()]).await;
    let actions: Vec<_> = reply.commands.into_iter().map(|command| command.action).collect();
    let third = DatanodeAction::DeleteBlocks { transaction: 3, blocks: vec![LocalId(5)] };
    assert_eq!(actions, [second, third]);
    report.deletion_done = 3;
    assert!(cluster.heartbeat(1, 10, vec![report]).await.commands.is_empty());
    assert_eq!(cluster.scm.status().unwrap().deletions, 0);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn dead_datanodes_containers_close_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 10).await;
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    cluster.clock.advance_ms(60_000);
    cluster.register(2, 20).await;
    let status = cluster.scm.status().unwrap();
    assert_eq!((status.open, status.closing), (0, 1));
    let located = LocateContainers { containers: vec![lease.container, ContainerId(99)] };
    let located = call_scm(&*cluster.scm, located).await.unwrap();
    assert_eq!(located.len(), 1);
    assert_eq!(located[0].replicas.len(), 1, "the last valid replica waits for its node");
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn restart_keeps_grants_and_keys_and_asks_for_registration() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    let keys = cluster.register(1, 10).await.token_keys;
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    cluster.scm.shutdown().await;
    drop(cluster);

    let cluster = Cluster::open(dir.path()).await;
    assert!(cluster.heartbeat(1, 10, Vec::new()).await.register_again);
    assert_eq!(cluster.register(1, 11).await.token_keys, keys);
    let second = cluster.grant(Replication::One, 2, &[]).await.unwrap();
    assert_eq!((second.container, second.first), (lease.container, LocalId(1 + LEASE_IDS)));
    assert_eq!(cluster.grant(Replication::One, 1, &[]).await.unwrap(), lease);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn keys_rotate_daily_and_datanodes_learn_them_before_om_signs() {
    let dir = tempfile::tempdir().unwrap();
    let mut quick = config(dir.path());
    quick.heartbeat_interval_ms = 5;
    let clock = Arc::new(HandClock::default());
    let cluster = Cluster::open_with(quick, clock).await;
    cluster.clock.advance_ms(DAY_MS);
    // The worker sees the day pass by itself: wait for its key.
    let keys = loop {
        let keys = cluster.register(1, 10).await.token_keys;
        if keys.len() == 2 {
            break keys;
        }
        tokio::task::yield_now().await;
    };
    let sync = SyncLeases { held: Vec::new(), ended: Vec::new() };
    let signing = call_scm(&*cluster.scm, sync.clone()).await.unwrap().token_keys;
    assert_eq!(signing, keys[..1]);
    cluster.clock.advance_ms(60_000);
    assert_eq!(call_scm(&*cluster.scm, sync).await.unwrap().token_keys, keys);
    cluster.scm.shutdown().await;
}
