//! Where writers may write: grants, containers that open and close, deletions and keys that datanodes are told.

use std::sync::Arc;

use client::service::call_scm;
use uuid::Uuid;
use wire::block::Replication;
use wire::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LocalId};
use wire::limits::LEASE_IDS;
use wire::scm::{DatanodeAction, GrantLease, LocateContainers, LogDeletions, ReplicaReport, SyncLeases};
use wire::status::Status;

use crate::rig::{CLUSTER, Cluster, DAY_MS, HandClock, config, members_of, registration, replica};

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
async fn faults_one_after_the_other_leave_a_place_to_write_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of_three(dir.path()).await;
    let wide = cluster.grant(Replication::Three, 1, &[]).await.unwrap();
    assert_eq!(cluster.ends(&[&wide]).await, []);

    // Killed: a writer tells before SCM can know.
    let without_1 = cluster.grant_around(2, 1).await;
    assert_eq!(members_of(&without_1), [2, 3]);
    // Silent for five seconds: nobody else need find out, and what is open stays so.
    for _ in 0..5 {
        cluster.clock.advance_ms(1000);
        for number in 2..=3 {
            cluster.heartbeat(number, 1, vec![replica(wide.container), replica(without_1.container)]).await;
        }
    }
    assert_eq!(cluster.ends(&[&wide, &without_1]).await, [wide.id]);
    assert_eq!(cluster.grant(Replication::Three, 3, &[]).await.unwrap().container, without_1.container);

    // Back, and at once the next one fails: a member of the only container that had been left.
    cluster.register(1, 2).await;
    let without_2 = cluster.grant_around(4, 2).await;
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
    assert_eq!(cluster.ends(&[&wide, &without_1, &without_2]).await, [without_1.id, without_2.id]);
    assert_eq!(cluster.grant(Replication::Three, 5, &[]).await.unwrap().container, wide.container);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn narrow_containers_stay_for_a_while_when_many_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of_three(dir.path()).await;
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
        assert_eq!(cluster.ends(&[&last]).await, expected, "after {second} s");
    }
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn full_datanodes_take_writes_only_if_nobody_else_can() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of_three(dir.path()).await;
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
    // What was just opened may have been opened so for want of a better one: it gets its time.
    for after_ms in [0, 3000, 3000] {
        cluster.clock.advance_ms(after_ms);
        call_scm(&*cluster.scm, full.clone()).await.unwrap();
        cluster.heartbeat(3, 1, vec![]).await;
        cluster.heartbeat(2, 1, vec![replica(narrowed.container)]).await;
    }
    assert_eq!(cluster.ends(&[&narrowed, &lease]).await, [narrowed.id]);

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
    let cluster = Cluster::of_three(dir.path()).await;
    let mut full = registration(CLUSTER, 1, 1);
    full.disks[0].available_bytes = 1000;
    call_scm(&*cluster.scm, full.clone()).await.unwrap();
    let beside_full = cluster.grant_around(1, 2).await;
    assert_eq!(members_of(&beside_full), [1, 3]);
    // Two with room are there, as far as SCM knows, but one of them has failed: the container gets its time.
    for (after_ms, expected) in [(0, vec![]), (4000, vec![]), (2000, vec![beside_full.id])] {
        cluster.clock.advance_ms(after_ms);
        call_scm(&*cluster.scm, full.clone()).await.unwrap();
        for number in 2..=3 {
            cluster.heartbeat(number, 1, vec![]).await;
        }
        cluster.heartbeat(3, 1, vec![replica(beside_full.container)]).await;
        assert_eq!(cluster.ends(&[&beside_full]).await, expected, "{after_ms} ms later");
    }

    // 1 has room again, 3 has failed a writer, and the next one meets that 2 is gone.
    cluster.register(1, 2).await;
    cluster.register(2, 2).await;
    let wide = cluster.grant(Replication::Three, 3, &[]).await.unwrap();
    assert_eq!(members_of(&wide), [1, 2, 3]);
    cluster.complain(&wide, 3).await;
    assert_eq!(members_of(&cluster.grant(Replication::Three, 4, &[]).await.unwrap()), [1, 2]);
    let last_resort = cluster.grant_around(5, 2).await;
    assert_eq!(members_of(&last_resort), [1, 3]);
    // What was known of 3 when that was opened ends no lease of it, and opens no other container.
    cluster.clock.advance_ms(1000);
    for number in 1..=3 {
        cluster.heartbeat(number, if number == 3 { 1 } else { 2 }, vec![]).await;
    }
    assert_eq!(cluster.ends(&[&last_resort]).await, []);
    assert_eq!(cluster.grant_around(6, 2).await.container, last_resort.container);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn a_writer_between_two_failures_gets_a_lease_that_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of_three(dir.path()).await;
    let old = cluster.grant_around(1, 1).await;
    assert_eq!(members_of(&old), [2, 3]);
    cluster.clock.advance_ms(1000);
    let wide = cluster.grant(Replication::Three, 2, &[old.container.0]).await.unwrap();
    assert_eq!(members_of(&wide), [1, 2, 3]);
    let beat = async || {
        cluster.clock.advance_ms(1000);
        for number in 1..=3 {
            cluster.heartbeat(number, 1, vec![]).await;
        }
    };
    beat().await;
    // Another writer has failed at 3: for most writers there are 1 and 2, so leases with 3 end.
    cluster.complain(&wide, 3).await;
    beat().await;
    assert_eq!(cluster.ends(&[&old]).await, [old.id]);
    // Whom 1 has failed has nobody but 2 and 3, and keeps what it gets.
    let lease = cluster.grant_around(3, 1).await;
    assert_eq!(members_of(&lease), [2, 3]);
    for request in 4..=8 {
        beat().await;
        assert_eq!(cluster.ends(&[&lease]).await, []);
        assert_eq!(cluster.grant_around(request, 1).await.container, lease.container);
    }
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn a_full_datanode_is_no_better_than_one_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    let mut full = registration(CLUSTER, 1, 1);
    full.disks[0].available_bytes = 0;
    call_scm(&*cluster.scm, full).await.unwrap();
    for number in 2..=3 {
        cluster.register(number, 1).await;
    }
    assert_eq!(members_of(&cluster.grant_around(1, 2).await), [2, 3]);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn leases_on_a_silent_datanode_end_though_the_third_was_complained_of() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::of_three(dir.path()).await;
    let lease = cluster.grant(Replication::Three, 1, &[]).await.unwrap();
    let other = cluster.grant(Replication::Three, 2, &[lease.container.0]).await.unwrap();
    cluster.complain(&other, 3).await;
    cluster.clock.advance_ms(5000);
    for number in [1, 3] {
        cluster.heartbeat(number, 1, vec![]).await;
    }
    assert_eq!(
        cluster.ends(&[&lease]).await,
        [lease.id],
        "2 is silent, and 1 and 3 could hold a new container"
    );
    assert_eq!(members_of(&cluster.grant(Replication::Three, 3, &[]).await.unwrap()), [1, 3]);
    cluster.scm.shutdown().await;
}

#[tokio::test]
async fn beside_nearly_full_datanodes_one_container_serves_many_grants() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await;
    for number in 1..=4 {
        let mut registration = registration(CLUSTER, number, 1);
        if number > 2 {
            registration.disks[0].available_bytes = 1000;
        }
        call_scm(&*cluster.scm, registration).await.unwrap();
    }
    // 1 has failed this writer: with 2 alone there is no container, so it is one with those that are nearly full.
    let mut containers = Vec::new();
    for request in 1..=5 {
        let lease = cluster.grant_around(request, 1).await;
        assert_eq!(members_of(&lease), [2, 3, 4]);
        containers.push(lease.container);
        cluster.clock.advance_ms(500);
    }
    assert!(containers.iter().all(|container| *container == containers[0]), "{containers:?}");
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
