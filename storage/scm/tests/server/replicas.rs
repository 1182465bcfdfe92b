//! What becomes of replicas: repair, racks, nodes that leave or rest, containers that are raised or retired.

use client::service::call_scm;
use uuid::Uuid;
use wire::block::Replication;
use wire::clock::Clock;
use wire::ids::{BlockId, ContainerId, DatanodeId, Generation, LocalId};
use wire::operator::{
    CloseContainer, ContainerHealth, DatanodeWish, GetRepair, GetScmOverview, ListContainers, ListDatanodes,
    LivenessInfo, OperationalInfo, RaiseReplication, SetDatanode,
};
use wire::scm::{
    ContainerState, DatanodeAction, DegradeContainer, Degraded, GENERATION_UNKNOWN, ListRetirable,
    LogDeletions, RegisterDatanode, ReplicaCondition, ReplicaReport, RetireContainer, SyncLeases,
};
use wire::status::Status;

use crate::rig::{CLUSTER, Cluster, Fleet, fleet_config, is_whole_on, registration, replica, valid_on};

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

#[tokio::test]
async fn a_file_that_cannot_be_read_is_dropped_only_when_its_container_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    cluster.register(1, 1).await;
    let lease = cluster.grant(Replication::One, 1, &[]).await.unwrap();
    let unreadable = ReplicaReport {
        generation: GENERATION_UNKNOWN,
        condition: ReplicaCondition::Lost,
        ..replica(lease.container)
    };
    let mut drops = Vec::new();
    for _ in 0..3 {
        cluster.clock.advance_ms(6000);
        let reply = cluster.heartbeat(1, 1, vec![unreadable.clone()]).await;
        drops.extend(
            reply.commands.into_iter().filter(|command| command.action == DatanodeAction::DeleteReplica),
        );
    }
    assert_eq!(drops, [], "it may be the last, and readable after the next start");
    cluster.scm.shutdown().await;
}
