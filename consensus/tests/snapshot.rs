//! Replicas that come up by a snapshot: behind the log, new, with faults on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::net::{Net, SnapshotFault, member};
use common::{REGISTER, Registers};
use consensus::{
    Group, GroupConfig, GroupStatus, PeerEndpoint, PeerTransport, ProposeError, RestoreError, Rows,
    SnapshotError, SnapshotStream,
};
use futures_util::stream;
use wire::group::{Member, MemberRole, MembershipChange};
use wire::status::{Failure, Status};

/// A log that forgets soon.
fn forgetful(config: &mut GroupConfig) {
    config.log_segment_bytes = 16 << 10;
    config.log_keep_entries = 20;
}

async fn set(net: &Net, group: &Group<Registers>, name: &str, value: &str) -> Result<String, ProposeError> {
    net.during(group.propose(Bytes::from(format!("set {name} {value}")))).await
}

async fn get(net: &Net, group: &Group<Registers>, name: &str) -> Option<String> {
    let view = net.during(group.read()).await.unwrap();
    view.get(REGISTER, name.as_bytes()).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
}

fn id(group: &Group<Registers>) -> u64 {
    group.info().raft_id
}

fn others(all: &[u64], one: u64) -> Vec<u64> {
    all.iter().copied().filter(|other| *other != one).collect()
}

/// Writes until the log does not reach back to `index` any more.
async fn write_past(net: &Net, leader: &Group<Registers>, index: u64) {
    let value = "x".repeat(400);
    for count in 0..100 {
        for register in 0..10 {
            set(net, leader, &format!("p{register}"), &format!("{count} {value}")).await.unwrap();
        }
        if leader.status().log_first_index > index + 1 {
            return;
        }
    }
    panic!("the log never forgets: {:?}", leader.status());
}

/// A group of three of which one is behind the log.
async fn behind() -> (Net, Group<Registers>, u64) {
    let net = Net::with(3, forgetful);
    let leader = net.leader().await;
    set(&net, &leader, "a", "before").await.unwrap();
    net.agree(&[1, 2, 3]).await;
    let away = others(&[1, 2, 3], id(&leader))[0];
    net.isolate(away);
    let index = net.group(away).status().log_last_index;
    write_past(&net, &leader, index).await;
    (net, leader, away)
}

#[tokio::test]
async fn a_replica_behind_the_log_catches_up_by_a_snapshot() {
    let (mut net, leader, away) = behind().await;
    let last = net.group(away).status().log_last_index;
    let old_view = net.group(away).view().unwrap();
    net.heal();
    net.agree(&[1, 2, 3]).await;
    assert!(net.group(away).status().log_first_index > last + 1, "{:?}", net.group(away).status());
    assert_eq!(net.snapshots().len(), 1);
    assert_eq!(old_view.get(REGISTER, b"p0").unwrap(), None, "a view shows what it showed");
    assert!(net.group(away).view().unwrap().get(REGISTER, b"p0").unwrap().is_some());

    // It is a member like any other: it restarts, votes, leads.
    drop(old_view);
    net.stop(away).await;
    net.start(away);
    set(&net, &leader, "a", "after").await.unwrap();
    net.agree(&[1, 2, 3]).await;
    net.during(leader.transfer_leadership(away)).await.unwrap();
    let leader = net.leader().await;
    assert_eq!(id(&leader), away);
    assert_eq!(get(&net, &leader, "a").await.as_deref(), Some("after"));
    set(&net, &leader, "a", "by another leader").await.unwrap();
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_replica_that_dies_right_after_the_install_comes_back() {
    let (mut net, leader, away) = behind().await;
    let last = net.group(away).status().log_last_index;
    net.heal();
    net.until("the install", || (net.group(away).status().log_first_index > last + 1).then_some(())).await;
    net.kill(away);
    assert!(net.group(away).status().applied_index > last);
    set(&net, &leader, "a", "after").await.unwrap();
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_new_replica_joins_by_a_snapshot() {
    let mut net = Net::with(1, forgetful);
    let leader = net.leader().await;
    write_past(&net, &leader, 50).await;
    for raft_id in [2, 3] {
        net.start(raft_id);
        net.during(leader.change_membership(MembershipChange::AddLearner(member(raft_id)))).await.unwrap();
        net.agree(&[1, raft_id]).await;
        net.during(leader.change_membership(MembershipChange::Promote { raft_id })).await.unwrap();
        net.agree(&[1, raft_id]).await;
        let info = net.group(raft_id).info();
        assert!(info.log_first_index > 50 && info.members.iter().all(|info| info.role == MemberRole::Voter));
        assert_eq!(info.members.len() as u64, raft_id);
    }
    // The first one was never in an entry that the others have read.
    net.isolate(1);
    let next = net.leader_among(&[2, 3]).await;
    set(&net, &next, "a", "without 1").await.unwrap();
    net.heal();
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_leader_that_is_lost_meanwhile_is_replaced_as_sender() {
    let (net, leader, away) = behind().await;
    net.hold_snapshots(true);
    net.heal();
    net.until("a snapshot", || (!net.snapshots().is_empty()).then_some(())).await;
    net.isolate(id(&leader));
    // The one that is behind votes for the other one, though its rows are still on their way.
    let other = 6 - away - id(&leader);
    net.until("another leader", || (net.group(away).status().leader == other).then_some(())).await;
    net.hold_snapshots(false);
    let next = net.leader_among(&[away, other]).await;
    assert_eq!(id(&next), other);
    set(&net, &next, "a", "by the next leader").await.unwrap();
    net.agree(&others(&[1, 2, 3], id(&leader))).await;
    net.heal();
    net.agree(&[1, 2, 3]).await;
    assert!(net.snapshots().iter().any(|(from, to, _)| (*from, *to) == (id(&next), away)));
}

#[tokio::test]
async fn what_does_not_arrive_whole_is_sent_again() {
    let (net, _leader, away) = behind().await;
    let before = net.group(away).status();
    net.fail_snapshots(&[
        SnapshotFault::Broken(3),
        SnapshotFault::Short(2),
        SnapshotFault::Short(0),
        SnapshotFault::Flipped(1),
        SnapshotFault::Head(40),
        SnapshotFault::Head(400),
    ]);
    net.heal();
    net.until("the last try", || {
        let tries = net.snapshots().len();
        let is_before = net.group(away).status().applied_index == before.applied_index;
        assert!(tries == 7 || is_before, "one of {tries} was taken over that did not arrive whole");
        (tries == 7).then_some(())
    })
    .await;
    net.agree(&[1, 2, 3]).await;
    assert!(!net.dir(away).join("state.new").exists());
}

#[tokio::test]
async fn writes_go_on_while_a_snapshot_is_on_its_way() {
    let (net, leader, away) = behind().await;
    net.hold_snapshots(true);
    net.heal();
    net.until("a snapshot", || (!net.snapshots().is_empty()).then_some(())).await;
    let index = leader.status().applied_index;
    for count in 0..120 {
        set(&net, &leader, &format!("m{}", count % 7), &"y".repeat(400)).await.unwrap();
    }
    assert!(leader.status().log_first_index <= index + 1, "it keeps what comes after the snapshot");
    net.hold_snapshots(false);
    net.agree(&[1, 2, 3]).await;
    assert_eq!(net.snapshots().iter().filter(|(_, to, _)| *to == away).count(), 1, "one was enough");
}

#[tokio::test]
async fn snapshots_for_others_are_refused() {
    let (net, leader, away) = behind().await;
    net.hold_snapshots(true);
    net.heal();
    let (_, to, head) = net.until("a snapshot", || net.snapshots().pop()).await;
    assert_eq!(to, away);
    let nothing = || Box::pin(stream::iter([]));
    for raft_id in others(&[1, 2, 3], to) {
        let refused = net.group(raft_id).receive_snapshot(head.clone(), nothing()).await.unwrap_err();
        assert_eq!(refused.status, Status::Invalid, "{refused}");
    }
    for cut in [0, 3, 20, head.len() - 1] {
        let refused = net.group(to).receive_snapshot(head.slice(..cut), nothing()).await.unwrap_err();
        assert_eq!(refused.status, Status::Invalid, "cut at {cut}: {refused}");
    }
    // The place for one is taken while it is on its way.
    let busy = net.group(to).receive_snapshot(head.clone(), nothing()).await.unwrap_err();
    assert_eq!(busy.status, Status::Retry, "{busy}");
    net.hold_snapshots(false);
    net.agree(&[1, 2, 3]).await;
    // Once it has all of it, it is stale.
    let stale = net.group(to).receive_snapshot(head, nothing()).await.unwrap_err();
    assert!(stale.to_string().contains("stale"), "{stale}");
    assert!(leader.status().is_leader);
}

#[tokio::test]
async fn a_lost_voter_is_replaced_by_a_new_one() {
    let mut net = Net::with(3, forgetful);
    let leader = net.leader().await;
    net.agree(&[1, 2, 3]).await;
    let lost = others(&[1, 2, 3], id(&leader))[0];
    net.stop(lost).await;
    write_past(&net, &leader, 20).await;
    // Its machine is new: the old one is removed, and a new one joins under an id that was never used.
    let change = MembershipChange::Remove { raft_id: lost, force: false };
    net.during(leader.change_membership(change)).await.unwrap();
    net.start(4);
    net.during(leader.change_membership(MembershipChange::AddLearner(member(4)))).await.unwrap();
    let rest = [others(&[1, 2, 3], lost), vec![4]].concat();
    net.agree(&rest).await;
    net.during(leader.change_membership(MembershipChange::Promote { raft_id: 4 })).await.unwrap();
    net.agree(&rest).await;
    // Three voters again: one may fail.
    net.isolate(id(&leader));
    let next = net.leader_among(&others(&rest, id(&leader))).await;
    set(&net, &next, "a", "with the new one").await.unwrap();
    net.heal();
    net.agree(&rest).await;
    assert_eq!(net.group(4).info().members.len(), 3);
}

/// The bytes of a replica's backup.
fn backup_of(group: &Group<Registers>) -> Vec<u8> {
    let mut backup = group.backup().unwrap();
    assert_eq!(backup.info().applied_index, group.status().applied_index);
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn a_backup_becomes_a_group_of_one_that_grows_again() {
    let mut net = Net::with(3, forgetful);
    let leader = net.leader().await;
    for count in 0..40 {
        set(&net, &leader, &format!("r{count}"), "kept").await.unwrap();
    }
    net.agree(&[1, 2, 3]).await;
    let follower = others(&[1, 2, 3], id(&leader))[0];
    let hash = leader.status().state_hash;
    let bytes = backup_of(&net.group(follower));
    set(&net, &leader, "r0", "after the backup").await.unwrap();

    let config = net.config(9);
    let info = consensus::restore::<Registers>(&config, &mut &bytes[..]).unwrap();
    assert_eq!((info.group.as_str(), info.members.len(), info.state_hash), ("test", 3, hash));
    let again = consensus::restore::<Registers>(&config, &mut &bytes[..]).unwrap_err();
    assert!(matches!(again, RestoreError::NotEmpty { .. }), "{again}");
    drop(config);

    // It leads at once. The old members may live on: neither side listens to the other.
    net.start(9);
    let restored = net.leader_among(&[9]).await;
    assert_eq!(get(&net, &restored, "r0").await.as_deref(), Some("kept"));
    set(&net, &restored, "r0", "restored").await.unwrap();
    let (_, _, packet) = net.past().pop().unwrap();
    assert!(restored.receive(packet).await.is_err());
    net.start(10);
    net.during(restored.change_membership(MembershipChange::AddLearner(member(10)))).await.unwrap();
    net.agree(&[9, 10]).await;
    let old = net.during(restored.change_membership(MembershipChange::AddLearner(member(2)))).await;
    assert!(old.is_err(), "an id of the lost group never returns");
    assert_eq!(get(&net, &leader, "r0").await.as_deref(), Some("after the backup"));
}

#[tokio::test]
async fn a_damaged_backup_makes_nothing() {
    let mut net = Net::with(1, forgetful);
    let leader = net.leader().await;
    for count in 0..40 {
        set(&net, &leader, &format!("r{count}"), "kept").await.unwrap();
    }
    let bytes = backup_of(&leader);
    let config = net.config(9);
    let restore =
        |bytes: &[u8], config: &GroupConfig| consensus::restore::<Registers>(config, &mut &*bytes).map(drop);
    for at in (0..bytes.len()).step_by(23) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        assert!(restore(&damaged, &config).is_err(), "byte {at}");
    }
    for length in (0..bytes.len()).step_by(101) {
        assert!(restore(&bytes[..length], &config).is_err(), "cut at {length}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(restore(&longer, &config), Err(RestoreError::Snapshot(SnapshotError::Damaged(_)))));
    let old_id = wire::group::Member { raft_id: 1, ..member(9) };
    let taken = GroupConfig { raft_id: 1, member: Some(old_id), ..config.clone() };
    assert!(matches!(restore(&bytes, &taken), Err(RestoreError::Taken { raft_id: 1 })));
    let foreign = GroupConfig { cluster_id: uuid::Uuid::from_u128(1), ..config.clone() };
    assert!(matches!(restore(&bytes, &foreign), Err(RestoreError::Snapshot(SnapshotError::Foreign { .. }))));
    let other = GroupConfig { name: "other".to_owned(), ..config.clone() };
    assert!(matches!(restore(&bytes, &other), Err(RestoreError::Group { .. })));
    restore(&bytes, &config).unwrap();
}

#[tokio::test]
async fn a_group_of_one_process_is_restored_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let group = common::open(dir.path()).await;
    common::ask(&group, "set apple kept").await;
    let bytes = backup_of(&group);
    common::ask(&group, "set apple lost").await;
    group.shutdown().await;
    let fresh = tempfile::tempdir().unwrap();
    consensus::restore::<Registers>(&common::config(fresh.path()), &mut &bytes[..]).unwrap();
    let group = common::open(fresh.path()).await;
    assert_eq!(common::read(&group, "apple").await.as_deref(), Some("kept"));
    common::ask(&group, "set apple new").await;
    group.shutdown().await;
    let group = common::open(fresh.path()).await;
    assert_eq!(common::read(&group, "apple").await.as_deref(), Some("new"));
    group.shutdown().await;
}

/// A network that delivers at once, on the runtime's threads.
#[derive(Default)]
struct Direct {
    endpoints: Mutex<BTreeMap<u64, Group<Registers>>>,
    away: AtomicU64,
}

struct DirectEnd {
    from: u64,
    direct: Arc<Direct>,
    runtime: tokio::runtime::Handle,
}

impl DirectEnd {
    fn endpoint(&self, to: u64) -> Option<Group<Registers>> {
        let away = self.direct.away.load(Ordering::SeqCst);
        let is_cut = away == to || away == self.from;
        self.direct.endpoints.lock().unwrap().get(&to).filter(|_| !is_cut).cloned()
    }
}

#[async_trait::async_trait]
impl PeerTransport for DirectEnd {
    fn send(&self, _group: &str, to: &Member, batch: Bytes) {
        if let Some(endpoint) = self.endpoint(to.raft_id) {
            self.runtime.spawn(async move {
                let _ = endpoint.receive(batch).await;
            });
        }
    }

    async fn send_snapshot(
        &self,
        _group: &str,
        to: &Member,
        head: Bytes,
        body: SnapshotStream,
    ) -> Result<(), Failure> {
        match self.endpoint(to.raft_id) {
            Some(endpoint) => endpoint.receive_snapshot(head, body).await,
            None => Err(Failure::new(Status::Retry, "the way is cut")),
        }
    }
}

/// As in a server: loops on threads of their own, time from the clock, disks of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn threads_of_a_server_do_the_same() {
    let direct = Arc::new(Direct::default());
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let voters: Vec<_> = (1..=3).map(member).collect();
    for (raft_id, dir) in (1..).zip(&dirs) {
        let end = DirectEnd {
            from: raft_id,
            direct: Arc::clone(&direct),
            runtime: tokio::runtime::Handle::current(),
        };
        let mut config = GroupConfig {
            raft_id,
            incarnation: member(raft_id).incarnation,
            member: Some(member(raft_id)),
            voters: voters.clone(),
            transport: Some(Arc::new(end)),
            ..common::config(dir.path())
        };
        forgetful(&mut config);
        let group = Group::open(config, Registers::new()).unwrap();
        direct.endpoints.lock().unwrap().insert(raft_id, group);
    }
    let groups: Vec<_> = direct.endpoints.lock().unwrap().values().cloned().collect();
    let leads = groups.iter().map(|group| Box::pin(group.wait_leader()));
    futures_util::future::select_all(leads).await.0.unwrap();
    let leader = groups.iter().find(|group| group.status().is_leader).unwrap();
    let away = others(&[1, 2, 3], id(leader))[0];
    direct.away.store(away, Ordering::SeqCst);
    let last = groups[away as usize - 1].status().log_last_index;
    let mut count = 0;
    while leader.status().log_first_index <= last + 1 {
        count += 1;
        let _ = leader.propose(Bytes::from(format!("set r{} {}", count % 9, "x".repeat(400)))).await;
    }
    direct.away.store(0, Ordering::SeqCst);
    let behind = &groups[away as usize - 1];
    let is_there = |now: GroupStatus| {
        now.log_first_index > last + 1 && now.applied_index >= leader.status().applied_index
    };
    while !is_there(behind.status()) {
        tokio::task::yield_now().await;
    }
    let (one, other) = (leader.status(), behind.status());
    assert!(one.applied_index != other.applied_index || one.state_hash == other.state_hash);
    direct.endpoints.lock().unwrap().clear();
    for group in &groups {
        group.shutdown().await;
    }
}
