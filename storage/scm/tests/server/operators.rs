//! What operators see, and nodes that are refused.

use std::sync::Arc;

use client::service::call_scm;
use uuid::Uuid;
use wire::block::Replication;
use wire::clock::Clock;
use wire::ids::{ContainerId, DatanodeId};
use wire::operator::{
    CloseContainer, ContainerHealth, DatanodeWish, GetGroup, GetRepair, GetScmOverview, ListContainers,
    ListDatanodes, ListPipelines, SetDatanode,
};
use wire::status::Status;

use crate::rig::{CLUSTER, Cluster, Fleet, config, registration};

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
