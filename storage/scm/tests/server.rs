//! SCM behind its service trait: real log and state in a fresh directory, datanodes played by the test.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use client::service::call_scm;
use scm::{Scm, ScmConfig};
use uuid::Uuid;
use wire::block::{BlockOperation, DatanodeAddress, Replication};
use wire::clock::Clock;
use wire::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LocalId};
use wire::limits::LEASE_IDS;
use wire::operator::{
    CloseContainer, ContainerDetails, ContainerHealth, DatanodeWish, GetContainers, GetGroup, GetRepair,
    GetScmOverview, ListContainers, ListDatanodes, ListPipelines, LivenessInfo, OperationalInfo,
    RaiseReplication, SetDatanode,
};
use wire::scm::{
    ContainerState, DatanodeAction, DegradeContainer, Degraded, DiskReport, GrantLease, Heartbeat,
    HeartbeatReply, Lease, ListRetirable, LocateContainers, LogDeletions, RegisterDatanode, Registered,
    ReplicaCondition, ReplicaReport, RetireContainer, SyncLeases,
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
            sequence: 0,
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
        sequence: 0,
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

/// Numbers of a lease's members.
fn members_of(lease: &Lease) -> Vec<u128> {
    lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect()
}

#[tokio::test]
async fn faults_one_after_the_other_leave_a_place_to_write_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    for number in 1..=3 {
        cluster.register(number, 1).await;
    }
    let ends = async |held: &[&Lease]| {
        let held = held.iter().map(|lease| lease.id).collect();
        call_scm(&*cluster.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap().end
    };
    let around = async |request, without: u128| {
        let avoid_datanodes = vec![DatanodeId(Uuid::from_u128(without))];
        let (replication, avoid) = (Replication::Three, Vec::new());
        call_scm(&*cluster.scm, GrantLease { replication, request, avoid, avoid_datanodes }).await.unwrap()
    };
    let wide = cluster.grant(Replication::Three, 1, &[]).await.unwrap();
    assert_eq!(ends(&[&wide]).await, []);

    // Killed: a writer tells before SCM can know.
    let without_1 = around(2, 1).await;
    assert_eq!(members_of(&without_1), [2, 3]);
    // Silent for five seconds: nobody else need find out, and what is open stays so.
    for _ in 0..5 {
        cluster.clock.advance_ms(1000);
        for number in 2..=3 {
            cluster.heartbeat(number, 1, vec![replica(wide.container), replica(without_1.container)]).await;
        }
    }
    assert_eq!(ends(&[&wide, &without_1]).await, [wide.id]);
    assert_eq!(cluster.grant(Replication::Three, 3, &[]).await.unwrap().container, without_1.container);

    // Back, and at once the next one fails: a member of the only container that had been left.
    cluster.register(1, 2).await;
    let without_2 = around(4, 2).await;
    assert_eq!(members_of(&without_2), [1, 3]);
    // All are back: within seconds what has two members gives way to what has three.
    for _ in 0..6 {
        cluster.clock.advance_ms(1000);
        for number in 1..=3 {
            cluster
                .heartbeat(number, if number == 1 { 2 } else { 1 }, vec![replica(without_2.container)])
                .await;
        }
    }
    cluster.heartbeat(3, 1, vec![replica(without_1.container)]).await;
    assert_eq!(ends(&[&wide, &without_1, &without_2]).await, [without_1.id, without_2.id]);
    assert_eq!(cluster.grant(Replication::Three, 5, &[]).await.unwrap().container, wide.container);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn narrow_containers_stay_for_a_while_when_many_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    for number in 1..=3 {
        cluster.register(number, 1).await;
    }
    let mut opened = Vec::new();
    let mut last = None;
    for request in 1..=20 {
        let avoid_datanodes = vec![DatanodeId(Uuid::from_u128(1))];
        let (replication, avoid) = (Replication::Three, opened.clone());
        let grant = GrantLease { replication, request, avoid, avoid_datanodes };
        let lease = call_scm(&*cluster.scm, grant).await.unwrap();
        opened.push(lease.container);
        last = Some(lease);
    }
    let last = last.unwrap();
    for (second, expected) in [(6, vec![]), (60, vec![last.id])] {
        cluster.clock.advance_ms(second * 1000);
        for number in 1..=3 {
            cluster.heartbeat(number, 1, vec![]).await;
        }
        cluster.heartbeat(2, 1, vec![replica(last.container)]).await;
        let held = vec![last.id];
        let end = call_scm(&*cluster.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap().end;
        assert_eq!(end, expected, "after {second} s");
    }
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn full_datanodes_take_writes_only_if_nobody_else_can() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    for number in 1..=3 {
        cluster.register(number, 1).await;
    }
    let narrowed = cluster.grant(Replication::Three, 1, &[]).await.unwrap();
    assert_eq!(narrowed.pipeline.members.len(), 3);

    let mut full = registration(CLUSTER, 1, 1);
    full.disks[0].available_bytes = 1000;
    call_scm(&*cluster.scm, full.clone()).await.unwrap();
    // Not a lease more of the old container, and a new one without the full node.
    let lease = cluster.grant(Replication::Three, 2, &[]).await.unwrap();
    assert_ne!(lease.container, narrowed.container);
    let members: Vec<u128> = lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect();
    assert_eq!(members, [2, 3]);
    cluster.heartbeat(2, 1, vec![replica(narrowed.container)]).await;
    let held = vec![narrowed.id, lease.id];
    let end = call_scm(&*cluster.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap().end;
    assert_eq!(end, [narrowed.id]);

    // Two of three full: refusing everything would be worse than trying.
    full.datanode.id = DatanodeId(Uuid::from_u128(2));
    call_scm(&*cluster.scm, full).await.unwrap();
    let lease = cluster.grant(Replication::Three, 3, &[lease.container.0]).await.unwrap();
    assert_eq!(lease.pipeline.members.len(), 3);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn what_is_nearly_full_or_has_failed_others_takes_writes_rather_than_what_has_just_failed() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    for number in 1..=3 {
        cluster.register(number, 1).await;
    }
    let ends = async |held: &Lease| {
        let held = vec![held.id];
        call_scm(&*cluster.scm, SyncLeases { held, ended: Vec::new() }).await.unwrap().end
    };
    let around = async |request, without: u128| {
        let avoid_datanodes = vec![DatanodeId(Uuid::from_u128(without))];
        let (replication, avoid) = (Replication::Three, Vec::new());
        call_scm(&*cluster.scm, GrantLease { replication, request, avoid, avoid_datanodes }).await.unwrap()
    };
    let mut full = registration(CLUSTER, 1, 1);
    full.disks[0].available_bytes = 1000;
    call_scm(&*cluster.scm, full).await.unwrap();
    let beside_full = around(1, 2).await;
    assert_eq!(members_of(&beside_full), [1, 3]);
    // Two with room are there, as far as SCM knows, but one of them has failed: the container gets its time.
    cluster.heartbeat(3, 1, vec![replica(beside_full.container)]).await;
    assert_eq!(ends(&beside_full).await, []);
    cluster.clock.advance_ms(4000);
    for number in 2..=3 {
        cluster.heartbeat(number, 1, vec![]).await;
    }
    cluster.clock.advance_ms(2000);
    cluster.heartbeat(3, 1, vec![replica(beside_full.container)]).await;
    assert_eq!(ends(&beside_full).await, [beside_full.id]);

    // 1 has room again, 3 has failed a writer, and the next one meets that 2 is gone.
    cluster.register(1, 2).await;
    cluster.register(2, 2).await;
    let wide = cluster.grant(Replication::Three, 3, &[]).await.unwrap();
    assert_eq!(members_of(&wide), [1, 2, 3]);
    let degrade = DegradeContainer {
        container: wide.container,
        generation: Generation(1),
        acknowledged: [1, 2].map(|number| DatanodeId(Uuid::from_u128(number))).to_vec(),
        failed: vec![DatanodeId(Uuid::from_u128(3))],
    };
    assert_eq!(call_scm(&*cluster.scm, degrade).await.unwrap(), Degraded::Accepted);
    assert_eq!(members_of(&cluster.grant(Replication::Three, 4, &[]).await.unwrap()), [1, 2]);
    assert_eq!(members_of(&around(5, 2).await), [1, 3]);
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
    // Ready means that it leads; its worker may not have made the first key yet.
    while cluster.register(1, 10).await.token_keys.is_empty() {
        tokio::task::yield_now().await;
    }
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

// Several datanodes.

/// Replicas as the test's datanodes hold them, by datanode number and container.
type Held = std::collections::BTreeMap<(u128, u64), ReplicaReport>;

/// A cluster of datanodes that obey at once.
struct Fleet {
    cluster: Cluster,
    held: Held,
    silent: Vec<u128>,
    count: u128,
}

impl Fleet {
    async fn open(dir: &Path, count: u128) -> Self {
        let cluster = Cluster::open_with(fleet_config(dir), Arc::default()).await;
        for number in 1..=count {
            cluster.register(number, 1).await;
        }
        Self { cluster, held: Held::new(), silent: Vec::new(), count }
    }

    /// All that speak report all they hold, and do as told.
    async fn beat(&mut self) {
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
    async fn until(&mut self, container: ContainerId, is_wished: impl Fn(&ContainerDetails) -> bool) {
        for _ in 0..2000 {
            self.beat().await;
            if is_wished(&self.details(container).await) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("container {container} never came there: {:?}", self.details(container).await);
    }

    async fn details(&self, container: ContainerId) -> ContainerDetails {
        let get = GetContainers { containers: vec![container] };
        call_scm(&*self.cluster.scm, get).await.unwrap().remove(0)
    }

    /// A container of three with a replica on each member, closed.
    async fn closed(&mut self, request: u64) -> (ContainerId, Vec<u128>) {
        let lease = self.cluster.grant(Replication::Three, request, &[]).await.unwrap();
        let members: Vec<u128> = lease.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect();
        for member in &members {
            self.held.insert((*member, lease.container.0), replica(lease.container));
        }
        call_scm(&*self.cluster.scm, CloseContainer { container: lease.container }).await.unwrap();
        self.until(lease.container, |details| details.state == ContainerState::Closed).await;
        (lease.container, members)
    }

    async fn wish(&self, number: u128, wish: DatanodeWish, force: bool) -> Result<(), Failure> {
        let datanode = DatanodeId(Uuid::from_u128(number));
        call_scm(&*self.cluster.scm, SetDatanode { datanode, wish, force }).await
    }

    async fn info(&self, number: u128) -> wire::operator::DatanodeInfo {
        let all = call_scm(&*self.cluster.scm, ListDatanodes {}).await.unwrap();
        all.into_iter().find(|info| info.datanode.id.0.as_u128() == number).unwrap()
    }
}

fn fleet_config(dir: &Path) -> ScmConfig {
    let mut config = config(dir);
    config.heartbeat_interval_ms = 1;
    config.repair_delay_ms = 100_000;
    config
}

fn valid_on(details: &ContainerDetails) -> Vec<u128> {
    let mut on: Vec<u128> = details
        .replicas
        .iter()
        .filter(|replica| replica.state == "valid")
        .map(|replica| replica.datanode.0.as_u128())
        .collect();
    on.sort();
    on
}

fn is_whole_on(details: &ContainerDetails, nodes: &[u128]) -> bool {
    valid_on(details) == nodes && details.replicas.len() == nodes.len()
}

#[tokio::test(start_paused = true)]
async fn dead_node_is_replaced_after_the_delay_and_its_return_drops_the_excess() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 4).await;
    let (container, members) = fleet.closed(1).await;
    let (dead, spare) = (members[0], (1..=4).find(|number| !members.contains(number)).unwrap());
    fleet.silent = vec![dead];
    for _ in 0..100 {
        fleet.beat().await;
    }
    let details = fleet.details(container).await;
    assert_eq!((valid_on(&details).len(), details.replicas.len()), (3, 3), "dead, but it may come back");
    assert_eq!(details.health, [ContainerHealth::UnderReplicated]);
    assert_eq!(call_scm(&*fleet.cluster.scm, GetRepair {}).await.unwrap().under_replicated, 1);

    fleet
        .until(container, |details| valid_on(details).contains(&spare) && !valid_on(details).contains(&dead))
        .await;
    assert!(fleet.held.contains_key(&(dead, container.0)), "nobody told it yet");
    fleet.silent.clear();
    let mut living: Vec<u128> = members[1..].iter().copied().chain([spare]).collect();
    living.sort();
    fleet.until(container, |details| is_whole_on(details, &living)).await;
    assert!(!fleet.held.contains_key(&(dead, container.0)));
    fleet.cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn degraded_container_comes_back_to_three_on_the_same_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let lease = fleet.cluster.grant(Replication::Three, 1, &[]).await.unwrap();
    let container = lease.container;
    for number in 1..=3 {
        fleet.held.insert((number, container.0), replica(container));
    }
    let ids = |numbers: &[u128]| numbers.iter().map(|number| DatanodeId(Uuid::from_u128(*number))).collect();
    let degrade = |generation, acknowledged: &[u128]| DegradeContainer {
        container,
        generation: Generation(generation),
        acknowledged: ids(acknowledged),
        failed: ids(&[3]),
    };
    let scm = fleet.cluster.scm.clone();
    for (generation, acknowledged, expected) in [
        (2, &[1, 2][..], Degraded::Refused),
        (1, &[1], Degraded::Refused),
        (1, &[1, 2], Degraded::Accepted),
        (1, &[1, 2], Degraded::Accepted),
        (1, &[1, 3], Degraded::Refused),
    ] {
        assert_eq!(call_scm(&*scm, degrade(generation, acknowledged)).await.unwrap(), expected);
    }
    // At once there is a place to write, without the one that failed.
    let next = fleet.cluster.grant(Replication::Three, 2, &[]).await.unwrap();
    let members: Vec<u128> = next.pipeline.members.iter().map(|member| member.id.0.as_u128()).collect();
    assert_eq!(members, [1, 2]);
    fleet.until(container, |details| is_whole_on(details, &[1, 2, 3])).await;
    let details = fleet.details(container).await;
    let copied = details.replicas.iter().find(|replica| replica.datanode.0.as_u128() == 3).unwrap();
    assert_eq!(copied.generation, Generation(2), "the one that missed blocks was replaced, not taken back");
    scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn lost_and_damaged_replicas_are_replaced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let (container, _) = fleet.closed(1).await;
    fleet.held.get_mut(&(2, container.0)).unwrap().condition = ReplicaCondition::Lost;
    fleet
        .until(container, |details| {
            is_whole_on(details, &[1, 2, 3])
                && details.replicas.iter().any(|replica| replica.generation == Generation(2))
        })
        .await;
    // No other place than its own node: left out, then copied anew.
    fleet.held.get_mut(&(3, container.0)).unwrap().is_unhealthy = true;
    fleet
        .until(container, |details| {
            details.health == [ContainerHealth::Unhealthy] || !is_whole_on(details, &[1, 2, 3])
        })
        .await;
    fleet.held.get_mut(&(3, container.0)).unwrap().is_unhealthy = false;
    fleet
        .until(container, |details| {
            is_whole_on(details, &[1, 2, 3]) && details.health == [ContainerHealth::Healthy]
        })
        .await;
    fleet.cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn container_of_one_rack_is_spread_once_another_rack_can_take_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let in_rack =
        |number, rack: &str| RegisterDatanode { rack: rack.to_owned(), ..registration(CLUSTER, number, 1) };
    let scm = fleet.cluster.scm.clone();
    for number in 1..=3 {
        call_scm(&*scm, in_rack(number, "a")).await.unwrap();
    }
    let (container, _) = fleet.closed(1).await;
    assert_eq!(fleet.details(container).await.health, [ContainerHealth::Healthy], "there is one rack");

    // The second rack's node is full: what there is stays.
    let mut full = in_rack(4, "b");
    full.disks[0].available_bytes = 0;
    call_scm(&*scm, full).await.unwrap();
    (fleet.count, fleet.silent) = (4, vec![4]);
    for _ in 0..30 {
        fleet.beat().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let details = fleet.details(container).await;
    assert_eq!(details.health, [ContainerHealth::MisPlaced]);
    assert!(is_whole_on(&details, &[1, 2, 3]));
    assert_eq!(call_scm(&*scm, GetRepair {}).await.unwrap().mis_placed, 1);

    fleet.silent.clear();
    call_scm(&*scm, in_rack(4, "b")).await.unwrap();
    fleet
        .until(container, |details| {
            let on = valid_on(details);
            assert!(on.len() >= 3, "never fewer than the target: {details:?}");
            on.contains(&4) && on.len() == 3 && details.replicas.len() == 3
        })
        .await;
    assert_eq!(fleet.details(container).await.health, [ContainerHealth::Healthy]);
    // Now it stays as it is.
    for _ in 0..30 {
        fleet.beat().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(fleet.details(container).await.replicas.len(), 3);
    }
    scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn decommissioned_node_is_emptied_then_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 4).await;
    let (container, members) = fleet.closed(1).await;
    let leaving = members[0];
    let refused = fleet.wish(leaving, DatanodeWish::Forget, false).await.unwrap_err();
    assert_eq!(refused.status, Status::Invalid);
    assert!(refused.message.contains("neither dead nor decommissioned"), "{refused}");
    assert_eq!(fleet.info(leaving).await.containers_needing_it, 1);

    fleet.wish(leaving, DatanodeWish::Decommission, false).await.unwrap();
    let others: Vec<u128> = (1..=4).filter(|number| *number != leaving).collect();
    fleet.until(container, |details| others.iter().all(|other| valid_on(details).contains(other))).await;
    for _ in 0..2000 {
        if fleet.info(leaving).await.operational == OperationalInfo::Decommissioned {
            break;
        }
        fleet.beat().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let info = fleet.info(leaving).await;
    assert_eq!((info.operational, info.containers_needing_it), (OperationalInfo::Decommissioned, 0));

    // The next one would leave too few.
    let refused = fleet.wish(others[0], DatanodeWish::Decommission, false).await.unwrap_err();
    assert!(refused.message.starts_with("1 container (1) would stay below"), "{refused}");
    for force in [false, true] {
        let refused = fleet.wish(leaving, DatanodeWish::Forget, force).await.unwrap_err();
        assert_eq!(refused.status, Status::Invalid);
        assert!(refused.message.contains("switch it off first"), "{refused}");
    }
    assert_eq!(fleet.info(leaving).await.operational, OperationalInfo::Decommissioned);
    // Switched off, and forgotten in the same breath.
    fleet.silent = vec![leaving];
    let scm = fleet.cluster.scm.clone();
    let datanode = DatanodeId(Uuid::from_u128(leaving));
    let forgetting = call_scm(&*scm, SetDatanode { datanode, wish: DatanodeWish::Forget, force: false });
    let silence = async {
        for _ in 0..5 {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            fleet.beat().await;
        }
    };
    tokio::join!(forgetting, silence).0.unwrap();
    assert_eq!(call_scm(&*fleet.cluster.scm, ListDatanodes {}).await.unwrap().len(), 3);
    assert!(is_whole_on(&fleet.details(container).await, &others));
    fleet.cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_decommissioned_at_once_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 4).await;
    let (_, members) = fleet.closed(1).await;
    for wish in [DatanodeWish::Decommission, DatanodeWish::Maintenance { until_ms: None }] {
        let first = fleet.wish(members[0], DatanodeWish::Decommission, false);
        let (first, second) = tokio::join!(first, fleet.wish(members[1], wish, false));
        let granted = [first.is_ok(), second.is_ok()];
        match wish {
            DatanodeWish::Decommission => assert_eq!(granted, [true, false], "three must be left"),
            _ => assert_eq!(granted, [true, true], "two are enough while one is away"),
        }
        for number in &members {
            fleet.wish(*number, DatanodeWish::Recommission, false).await.unwrap();
        }
    }
    fleet.cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_forced_forget_gave_up_is_missing_until_its_keys_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 1).await;
    let scm = fleet.cluster.scm.clone();
    // One container sealed, one open, both on the one datanode there is.
    let (closed, open) = (ContainerId(1), ContainerId(2));
    for (request, container) in [(1, closed), (2, open)] {
        let lease =
            fleet.cluster.grant(Replication::One, request, &[1][..request as usize - 1]).await.unwrap();
        assert_eq!(lease.container, container);
        let full = ReplicaReport { used_bytes: 15 << 20, ..replica(container) };
        fleet.held.insert((1, container.0), full);
        if container == closed {
            call_scm(&*scm, CloseContainer { container }).await.unwrap();
            fleet.until(container, |details| details.state == ContainerState::Closed).await;
        }
    }
    let deleted = LogDeletions { batch: 1, blocks: vec![BlockId { container: closed, local: LocalId(1) }] };
    for number in 2..=3 {
        fleet.cluster.register(number, 1).await;
    }
    (fleet.count, fleet.silent) = (3, vec![1]);
    fleet.until(open, |details| details.state == ContainerState::Closing).await;
    let refused = fleet.wish(1, DatanodeWish::Forget, false).await.unwrap_err();
    assert!(refused.message.starts_with("2 containers (1, 2) have no other replica"), "{refused}");
    let after = ContainerId(0);
    assert_eq!(call_scm(&*scm, ListRetirable { after, max: 10 }).await.unwrap(), []);

    fleet.wish(1, DatanodeWish::Forget, true).await.unwrap();
    assert_eq!(fleet.wish(1, DatanodeWish::Forget, true).await.unwrap_err().status, Status::NotFound);
    scm.shutdown().await;
    drop(scm);
    drop(std::mem::take(&mut fleet.held));

    // Another leader, which begins with no silence at all, says so too, and names them.
    fleet.cluster = Cluster::open_with(fleet_config(dir.path()), fleet.cluster.clock.clone()).await;
    let scm = fleet.cluster.scm.clone();
    fleet.beat().await;
    assert_eq!(call_scm(&*scm, GetRepair {}).await.unwrap().missing, 2);
    let missing = Some(ContainerHealth::Missing);
    let list = ListContainers { after, max: 10, state: None, datanode: None, health: missing };
    let lost = call_scm(&*scm, list).await.unwrap();
    assert_eq!(lost.iter().map(|details| details.container).collect::<Vec<_>>(), [closed, open]);

    // Their keys are deleted: OM finds them empty.
    call_scm(&*scm, deleted).await.unwrap();
    assert_eq!(call_scm(&*scm, ListRetirable { after, max: 10 }).await.unwrap(), [closed, open]);
    let ended = vec![wire::ids::LeaseId(1), wire::ids::LeaseId(2)];
    call_scm(&*scm, SyncLeases { held: Vec::new(), ended }).await.unwrap();
    for container in [closed, open] {
        call_scm(&*scm, RetireContainer { container }).await.unwrap();
        fleet.until(container, |details| details.state == ContainerState::Deleted).await;
    }
    let repair = call_scm(&*scm, GetRepair {}).await.unwrap();
    assert_eq!((repair.missing, repair.under_replicated, repair.deleting), (0, 0, 0));
    fleet.beat().await;
    assert_eq!(call_scm(&*scm, GetScmOverview {}).await.unwrap().deletions_pending, 0);

    // It returns all the same: what it has is nobody's any more.
    fleet.cluster.register(1, 1).await;
    fleet.silent.clear();
    fleet.held.insert((1, closed.0), ReplicaReport { is_sealed: true, ..replica(closed) });
    for _ in 0..8 {
        fleet.beat().await;
    }
    assert!(fleet.held.is_empty());
    scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn maintenance_waits_for_safety_and_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let (container, _) = fleet.closed(1).await;
    let until_ms = Some(fleet.cluster.clock.now_ms() + 3_000_000);
    fleet.wish(1, DatanodeWish::Maintenance { until_ms }, false).await.unwrap();
    for _ in 0..2000 {
        if fleet.info(1).await.operational == OperationalInfo::Maintenance {
            break;
        }
        fleet.beat().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    fleet.silent = vec![1];
    for _ in 0..300 {
        fleet.beat().await;
    }
    let details = fleet.details(container).await;
    assert_eq!(details.health, [ContainerHealth::Healthy], "two elsewhere are enough for a while");
    assert!(is_whole_on(&details, &[1, 2, 3]));
    assert_eq!(fleet.info(1).await.liveness, LivenessInfo::Dead);
    let refused = fleet.wish(2, DatanodeWish::Maintenance { until_ms: None }, false).await.unwrap_err();
    assert!(refused.message.contains("1 other datanodes are in service"), "{refused}");

    fleet.cluster.clock.advance_ms(3_000_000);
    for _ in 0..2000 {
        if fleet.info(1).await.operational == OperationalInfo::InService {
            break;
        }
        fleet.beat().await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(fleet.info(1).await.operational, OperationalInfo::InService);
    fleet.cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn containers_of_one_are_raised_to_three() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let lease = fleet.cluster.grant(Replication::One, 1, &[]).await.unwrap();
    let member = lease.pipeline.members[0].id.0.as_u128();
    fleet.held.insert((member, lease.container.0), replica(lease.container));
    let scm = fleet.cluster.scm.clone();
    let after = ContainerId(0);
    assert_eq!(call_scm(&*scm, RaiseReplication { after, max: 10 }).await.unwrap().containers, 1);
    assert_eq!(call_scm(&*scm, RaiseReplication { after, max: 10 }).await.unwrap().containers, 0);
    fleet.until(lease.container, |details| is_whole_on(details, &[1, 2, 3])).await;
    scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn retired_container_is_dropped_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut fleet = Fleet::open(dir.path(), 3).await;
    let (container, _) = fleet.closed(1).await;
    let scm = fleet.cluster.scm.clone();
    let after = ContainerId(0);
    assert_eq!(call_scm(&*scm, ListRetirable { after, max: 10 }).await.unwrap(), [container]);
    let refused = call_scm(&*scm, RetireContainer { container }).await.unwrap_err();
    assert_eq!(
        (refused.status, &*refused.message),
        (Status::Retry, "container 1 stays: a lease of the container stands")
    );
    let ended = vec![wire::ids::LeaseId(1)];
    call_scm(&*scm, SyncLeases { held: Vec::new(), ended }).await.unwrap();
    call_scm(&*scm, RetireContainer { container }).await.unwrap();
    call_scm(&*scm, RetireContainer { container }).await.unwrap();
    fleet.until(container, |details| details.state == ContainerState::Deleted).await;
    assert!(
        fleet.held.is_empty() || fleet.held.values().all(|held| held.condition == ReplicaCondition::Dropped)
    );
    assert_eq!(call_scm(&*scm, ListRetirable { after, max: 10 }).await.unwrap(), []);

    // A replica that comes back from the dead goes again; one of a container that never was is left alone.
    fleet.held.insert((2, container.0), replica(container));
    fleet.held.insert((2, 77), replica(ContainerId(77)));
    for _ in 0..8 {
        fleet.beat().await;
    }
    assert_eq!(fleet.held.keys().copied().collect::<Vec<_>>(), [(2, 77)]);
    scm.shutdown().await;
}

/// Counts how often a future lets others have their turn.
async fn turns<T>(work: impl Future<Output = T>) -> (T, usize) {
    let mut work = std::pin::pin!(work);
    let mut count = 0;
    let outcome = std::future::poll_fn(|context| {
        count += 1;
        work.as_mut().poll(context)
    });
    (outcome.await, count)
}

#[tokio::test(start_paused = true)]
async fn looks_at_all_containers_let_others_have_their_turn() {
    const CONTAINERS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    (small.look_step, small.open_containers, small.open_containers_max) = (1, CONTAINERS, CONTAINERS);
    let cluster = Cluster::open_with(small, Arc::default()).await;
    cluster.register(1, 1).await;
    for request in 1..=CONTAINERS as u64 {
        cluster.grant(Replication::One, request, &[]).await.unwrap();
    }
    let scm = &*cluster.scm;
    let all = ListContainers { after: ContainerId(0), max: 100, state: None, datanode: None, health: None };
    let none = ListContainers { health: Some(ContainerHealth::Missing), ..all.clone() };
    let datanode = DatanodeId(Uuid::from_u128(1));
    let wish = SetDatanode { datanode, wish: DatanodeWish::Decommission, force: false };

    let (listed, listing) = turns(call_scm(scm, ListDatanodes {})).await;
    assert_eq!(listed.unwrap()[0].containers, CONTAINERS as u64);
    let (repair, repairing) = turns(call_scm(scm, GetRepair {})).await;
    assert_eq!(repair.unwrap().missing, 0);
    let (found, finding) = turns(call_scm(scm, all)).await;
    assert_eq!(found.unwrap().len(), CONTAINERS);
    let (missing, missed) = turns(call_scm(scm, none)).await;
    assert_eq!(missing.unwrap(), []);
    let (overview, viewing) = turns(call_scm(scm, GetScmOverview {})).await;
    assert_eq!(overview.unwrap().open, CONTAINERS as u64);
    let (refused, wishing) = turns(call_scm(scm, wish)).await;
    assert!(refused.unwrap_err().message.starts_with("40 containers (1, 2, 3, 4, 5, ...) would stay"));
    for count in [listing, repairing, finding, missed, viewing, wishing] {
        assert!(count >= CONTAINERS, "{count}");
    }
    cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn second_process_with_one_id_and_wrong_clocks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    let at = |port: u16, incarnation| {
        let mut registration = registration(CLUSTER, 1, incarnation);
        registration.datanode.address = Some(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into());
        registration
    };
    call_scm(&*cluster.scm, at(7001, 1)).await.unwrap();
    let refused = call_scm(&*cluster.scm, at(7002, 2)).await.unwrap_err();
    assert_eq!(refused.status, Status::Invalid);
    assert!(
        refused.message.contains("lives at 127.0.0.1:7001") && refused.message.contains("Stop one"),
        "{refused}"
    );
    // A restart where it was is none of that; nor is a move once the former is silent.
    call_scm(&*cluster.scm, at(7001, 3)).await.unwrap();
    cluster.clock.advance_ms(5000);
    call_scm(&*cluster.scm, at(7002, 4)).await.unwrap();

    let mut early = registration(CLUSTER, 2, 1);
    early.now_ms = cluster.clock.now_ms() - 31_000;
    let refused = call_scm(&*cluster.scm, early.clone()).await.unwrap_err();
    assert!(refused.message.contains("is 31 s from"), "{refused}");
    early.now_ms += 2000;
    call_scm(&*cluster.scm, early).await.unwrap();
    cluster.scm.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn operators_see_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::open(dir.path(), 1).await;
    let scm = fleet.cluster.scm.clone();
    let group = call_scm(&*scm, GetGroup {}).await.unwrap();
    assert_eq!((&*group.group, group.leader), ("scm", Some(1)));
    let overview = call_scm(&*scm, GetScmOverview {}).await.unwrap();
    assert_eq!(overview.awaiting, ["replication THREE awaits 2 more datanodes (1 of 3 can be written)"]);
    let lease = fleet.cluster.grant(Replication::One, 1, &[]).await.unwrap();
    let pipelines = call_scm(&*scm, ListPipelines {}).await.unwrap();
    assert_eq!(pipelines.len(), 1);
    assert_eq!(pipelines[0].containers, [lease.container]);
    let list = ListContainers { after: ContainerId(0), max: 10, state: None, datanode: None, health: None };
    assert_eq!(call_scm(&*scm, list.clone()).await.unwrap().len(), 1);
    let missing = ListContainers { health: Some(ContainerHealth::Missing), ..list };
    assert_eq!(call_scm(&*scm, missing).await.unwrap(), []);
    let refused = call_scm(&*scm, CloseContainer { container: ContainerId(9) }).await.unwrap_err();
    assert_eq!(refused.status, Status::NotFound);
    scm.shutdown().await;
}
