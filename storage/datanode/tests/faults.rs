//! Disks that fail, wholly or in a sector, before the start and after it; what a crash leaves; answers for what is not here.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::service::{DatanodeService, Datanodes};
use datanode::{Datanode, DatanodeConfig, OpenError};
use futures_util::StreamExt;
use platform::disk::DiskIo;
use platform::simulated::{Faults, SimulatedDisk};
use rig::{FakeScm, NEWEST, Rig, pattern, simulated};
use wire::chunk::ChunkRun;
use wire::ids::{ClusterId, ContainerId, Generation, LocalId};
use wire::scm::{DatanodeAction, ReplicaCondition, ReplicaReport, ScmRequest};
use wire::status::Status;

const NAME: &str = "0000000000000001.container";

fn names(disk: &SimulatedDisk) -> Vec<String> {
    disk.list().unwrap()
}

/// A rig whose datanode has two disks; the rig's own is the first.
async fn two_disks() -> (Rig, SimulatedDisk) {
    let (one, two) = (SimulatedDisk::new(1 << 28), SimulatedDisk::new(1 << 28));
    let mut rig = Rig::on(one, |config| config.growth_step = 256 << 10).await;
    rig.datanode.shutdown().await;
    rig.disk.kill();
    reopen(&mut rig, &[&two]).await.unwrap();
    (rig, two)
}

/// Opens the rig's disk and others.
async fn reopen(rig: &mut Rig, others: &[&SimulatedDisk]) -> Result<(), OpenError> {
    let mut ios: Vec<Arc<dyn DiskIo>> = vec![Arc::new(rig.disk.clone())];
    ios.extend(others.iter().map(|disk| Arc::new((*disk).clone()) as Arc<dyn DiskIo>));
    rig.datanode = Datanode::open_on(rig.config.clone(), ios)?;
    rig.datanode.start(rig.scm.clone(), rig.datanodes.clone());
    rig.datanode.wait_registered().await;
    Ok(())
}

fn told(rig: &Rig, container: u64) -> Vec<ReplicaReport> {
    let requests = rig.scm.requests.lock();
    let reports = requests.iter().flat_map(|request| match request {
        ScmRequest::Heartbeat(beat) => beat.replicas.clone(),
        ScmRequest::RegisterDatanode(register) => register.replicas.clone(),
        _ => Vec::new(),
    });
    reports.filter(|report| report.container == ContainerId(container)).collect()
}

async fn is_told(rig: &Rig, container: u64, condition: ReplicaCondition) {
    rig.until(|rig| told(rig, container).iter().any(|report| report.condition == condition)).await;
}

/// Writes containers until both disks have one: their ids, of the rig's disk first.
async fn spread(rig: &Rig, two: &SimulatedDisk) -> (u64, u64) {
    for container in 1.. {
        rig.write(container, 1, &pattern(container, 300_000)).await.unwrap();
        let on = |disk: &SimulatedDisk| names(disk).into_iter().find(|name| name.ends_with(".container"));
        if let (Some(first), Some(second)) = (on(&rig.disk), on(two)) {
            let id = |name: String| u64::from_str_radix(&name[..16], 16).unwrap();
            return (id(first), id(second));
        }
    }
    unreachable!("containers go to the emptier disk")
}

#[test]
fn an_index_that_cannot_be_read_is_not_made_again() {
    simulated(1, async {
        let mut rig = Rig::new().await;
        let gone = rig.write(1, 1, b"gone").await.unwrap();
        rig.write(2, 1, b"dropped").await.unwrap();
        let delete = DatanodeAction::DeleteBlocks { transaction: 1, blocks: vec![LocalId(1)] };
        rig.command(1, delete).await;
        rig.command(2, DatanodeAction::DeleteReplica).await;
        rig.until(|rig| rig.report_of(1).unwrap().deletion_done == 1 && rig.report_of(2).is_none()).await;
        rig.datanode.shutdown().await;
        rig.disk.kill();
        rig.disk.make_unreadable("index.redb", 0, 4096);
        let refused = reopen(&mut rig, &[]).await.unwrap_err();
        assert!(matches!(refused, OpenError::Index { .. }), "{refused}");
        assert!(!names(&rig.disk).contains(&"index.damaged".to_owned()));
        rig.disk.kill();
        rig.disk.make_readable();

        // No room is no damage either; the message says what to do.
        rig.disk.set_faults(Faults { has_no_room: true, ..Faults::default() });
        let refused = reopen(&mut rig, &[]).await.unwrap_err();
        assert!(matches!(refused, OpenError::Full { .. }), "{refused}");
        assert!(!names(&rig.disk).contains(&"index.damaged".to_owned()));
        rig.disk.kill();
        rig.disk.set_faults(Faults::default());

        rig.reopen().await;
        assert_eq!(rig.report_of(1).unwrap().deletion_done, 1);
        assert_eq!(rig.read(&gone, 0, 1).await.unwrap_err().status, Status::NotFound);
        assert_eq!(
            rig.write(2, 2, b"late").await.unwrap_err().status,
            Status::Refused,
            "the tombstone stands"
        );
    });
}

#[test]
fn a_crash_leaves_suspects_that_are_no_damage_and_go_with_their_id() {
    let mut seen = 0;
    for seed in 0..12 {
        simulated(seed, async {
            let mut rig = Rig::with(|config| config.growth_step = 4 << 20).await;
            let kept = rig.write(1, 1, &pattern(1, 5000)).await.unwrap();
            // The disk dies in the middle of a large block.
            rig.disk.crash_after(3, seed);
            assert!(rig.stream(1, 7, &pattern(7, 3_000_000), 3_000_000).await.is_err());
            if rig.disk.cancel_crash() {
                rig.disk.crash(seed);
            }
            rig.datanode.shutdown().await;
            rig.reopen().await;
            let report = rig.report_of(1).unwrap();
            assert!(report.is_sealed && !report.is_unhealthy, "nobody was promised what a crash tore");
            assert!(rig.read(&kept, 0, 5000).await.unwrap() == pattern(1, 5000));
            let bytes = rig.disk.contents(NAME).unwrap();
            assert_eq!(bytes.len() as u64, report.written_bytes, "what no extent got is cut off");
            let header_at = 8192 + 8192;
            let has_header = bytes.len() > header_at && bytes[header_at..].starts_with(b"FzBlock1");
            let fetch = rig.fetch(1).await.map(|_| ()).map_err(|failure| failure.status);
            assert_eq!(fetch, if has_header { Err(Status::Corrupt) } else { Ok(()) });
            if !has_header {
                return;
            }
            seen += 1;
            // Again after a restart, for the suspect is remembered.
            rig.restart(true).await;
            assert_eq!(rig.fetch(1).await.err().unwrap().status, Status::Corrupt);
            let delete = DatanodeAction::DeleteBlocks { transaction: 1, blocks: vec![LocalId(7)] };
            rig.command(1, delete).await;
            rig.until(|rig| rig.disk.contents(NAME).unwrap()[header_at..].iter().all(|byte| *byte == 0))
                .await;
            assert!(rig.fetch(1).await.is_ok());
            rig.restart(false).await;
            assert!(rig.read(&kept, 0, 5000).await.unwrap() == pattern(1, 5000));
            assert!(rig.fetch(1).await.is_ok());
        });
    }
    assert!(seen > 0, "some crash leaves a header");
}

#[test]
fn deletions_out_of_turn_and_without_room_change_nothing() {
    simulated(2, async {
        let rig = Rig::new().await;
        let first = rig.write(1, 1, &pattern(1, 9000)).await.unwrap();
        let delete = |transaction| DatanodeAction::DeleteBlocks { transaction, blocks: vec![LocalId(1)] };
        rig.command(1, delete(2)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = rig.report_of(1).unwrap();
        assert_eq!((before.deletion_done, before.block_count, before.used_bytes), (0, 1, 9000));
        rig.disk.remove("ballast").ok();
        let room = rig.disk.room().unwrap();
        rig.disk.set_capacity(room.capacity - room.available);
        rig.command(1, delete(1)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.report_of(1).unwrap(), before);
        assert!(rig.read(&first, 0, 9000).await.unwrap() == pattern(1, 9000));
        rig.disk.set_capacity(room.capacity);
        rig.command(1, delete(1)).await;
        rig.until(|rig| rig.report_of(1).unwrap().deletion_done == 1).await;
        let after = rig.report_of(1).unwrap();
        assert_eq!((after.block_count, after.used_bytes), (0, 0));
        rig.command(1, delete(1)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rig.report_of(1).unwrap(), after, "a repeat changes nothing");
    });
}

#[test]
fn a_disk_that_does_not_work_is_left_out_of_the_start() {
    simulated(3, async {
        let (mut rig, two) = two_disks().await;
        let (one_id, two_id) = spread(&rig, &two).await;
        rig.datanode.shutdown().await;
        rig.disk.kill();
        two.kill();
        two.set_faults(Faults { reads_fail: true, ..Faults::default() });
        let id = rig.datanode.id();
        reopen(&mut rig, &[&two]).await.unwrap();
        assert_eq!(rig.datanode.id(), id);
        assert!(rig.report_of(one_id).is_some());
        assert!(rig.report_of(two_id).is_none());
        let failed: Vec<bool> = rig.datanode.report().0.iter().map(|disk| disk.is_failed).collect();
        assert_eq!(failed, [false, true]);
        // What is not found may have been there.
        rig.command(two_id, DatanodeAction::Close).await;
        is_told(&rig, two_id, ReplicaCondition::Lost).await;
        assert!(rig.report_of(two_id).is_none());
        // The same if the disk is not even named.
        rig.datanode.shutdown().await;
        rig.disk.kill();
        two.kill();
        rig.scm.requests.lock().clear();
        reopen(&mut rig, &[]).await.unwrap();
        rig.command(two_id, DatanodeAction::Close).await;
        is_told(&rig, two_id, ReplicaCondition::Lost).await;
        // None is left: refused, with the reason.
        rig.datanode.shutdown().await;
        rig.disk.kill();
        rig.disk.set_faults(Faults { reads_fail: true, ..Faults::default() });
        let refused = reopen(&mut rig, &[&two]).await.unwrap_err();
        assert!(matches!(refused, OpenError::Io { .. }), "{refused}");
        rig.disk.kill();
        two.kill();
        // An empty disk beside one that cannot be read is not given a name of its own.
        let empty = SimulatedDisk::new(1 << 28);
        let refused = reopen(&mut rig, &[&empty]).await.unwrap_err();
        assert!(matches!(refused, OpenError::Io { .. }), "{refused}");
        assert!(names(&empty).is_empty());
        rig.disk.kill();
        rig.disk.set_faults(Faults::default());
        two.set_faults(Faults::default());
        reopen(&mut rig, &[&two]).await.unwrap();
        assert!(rig.report_of(one_id).is_some() && rig.report_of(two_id).is_some());
    });
}

#[test]
fn a_disk_whose_formatting_was_cut_off_is_not_missed_and_one_that_was_emptied_is() {
    for step in 1..40 {
        simulated(step, async {
            let mut rig = Rig::on(SimulatedDisk::new(1 << 28), |_| {}).await;
            rig.datanode.shutdown().await;
            rig.disk.kill();
            let two = SimulatedDisk::new(1 << 28);
            // The machine dies while the second disk is formatted.
            two.crash_after(step, step);
            let opened = reopen(&mut rig, &[&two]).await;
            if !two.cancel_crash() {
                two.crash(step);
            }
            if opened.is_ok() {
                rig.datanode.shutdown().await;
            }
            rig.disk.crash(step);
            reopen(&mut rig, &[&two]).await.unwrap();
            rig.command(9, DatanodeAction::Close).await;
            rig.until(|rig| rig.report_of(9).is_some_and(|report| report.is_sealed)).await;

            rig.datanode.shutdown().await;
            rig.disk.kill();
            let wiped = SimulatedDisk::new(1 << 28);
            reopen(&mut rig, &[&wiped]).await.unwrap();
            rig.command(8, DatanodeAction::Close).await;
            is_told(&rig, 8, ReplicaCondition::Lost).await;
        });
    }
}

#[test]
fn replicas_of_a_disk_that_fails_are_reported_lost_and_others_go_on() {
    simulated(4, async {
        for fault in ["sync", "gone", "reads"] {
            let (rig, two) = two_disks().await;
            let (one_id, two_id) = spread(&rig, &two).await;
            let data = pattern(one_id, 300_000);
            let kept = rig.write(one_id, 1, &data).await.expect("the repeat of a write is answered");
            let lost = rig.write(two_id, 1, &pattern(two_id, 300_000)).await.unwrap();
            match fault {
                "sync" => {
                    two.set_faults(Faults { next_sync_fails: true, ..Faults::default() });
                    assert!(rig.write(two_id, 2, b"never acknowledged").await.is_err());
                }
                "gone" => two.set_gone(true),
                _ => {
                    two.set_faults(Faults { reads_fail: true, ..Faults::default() });
                    assert!(rig.read(&lost, 0, 1).await.is_err());
                }
            }
            is_told(&rig, two_id, ReplicaCondition::Lost).await;
            let report = told(&rig, two_id).pop().unwrap();
            assert_eq!(report.generation, Generation(1));
            assert_eq!(rig.read(&kept, 0, 300_000).await.unwrap(), data, "{fault}");
            assert!(rig.read(&lost, 0, 1).await.is_err());
            let failed: Vec<bool> = rig.datanode.report().0.iter().map(|disk| disk.is_failed).collect();
            assert_eq!(failed, [false, true], "{fault}");
            rig.write(100, 1, b"elsewhere").await.unwrap();
        }
    });
}

#[test]
fn an_idle_disk_that_vanishes_is_noticed() {
    simulated(5, async {
        // Put back between two heartbeats as another disk: its identity is not what it was.
        let rig = Rig::new().await;
        rig.disk.damage("identity", 30, &[1, 2, 3]);
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert!(rig.datanode.report().0[0].is_failed);
    });
}

#[test]
fn an_unreadable_sector_costs_one_container_its_health() {
    simulated(6, async {
        let mut rig = Rig::new().await;
        let small = rig.write(1, 1, &pattern(1, 3000)).await.unwrap();
        let large = rig.write(1, 2, &pattern(2, 200_000)).await.unwrap();
        let other = rig.write(2, 1, &pattern(3, 3000)).await.unwrap();
        rig.disk.make_unreadable(NAME, 8192 + 4096 + 70_000, 10);
        assert_eq!(rig.read(&large, 0, 200_000).await.unwrap_err().status, Status::Corrupt);
        assert!(rig.report_of(1).unwrap().is_unhealthy);
        assert!(!rig.datanode.report().0[0].is_failed);
        assert!(rig.read(&small, 0, 3000).await.unwrap() == pattern(1, 3000));
        // Found by a recovery: the container is sealed, and what can be read is served.
        for sector in [Some(8192 + 4096 + 70_000), Some(0), None] {
            rig.disk.crash(1);
            rig.datanode.shutdown().await;
            if let Some(sector) = sector {
                rig.disk.make_unreadable(NAME, sector, 10);
            }
            rig.reopen().await;
            let report = rig.report_of(1).unwrap();
            assert!(report.is_sealed && report.is_unhealthy && report.condition == ReplicaCondition::Whole);
            assert!(rig.read(&small, 0, 3000).await.unwrap() == pattern(1, 3000));
            assert!(rig.read(&other, 0, 3000).await.unwrap() == pattern(3, 3000));
            assert!(!rig.datanode.report().0[0].is_failed);
        }
    });
}

#[test]
fn a_file_that_is_gone_is_a_lost_replica_until_it_is_dropped() {
    simulated(7, async {
        let mut rig = Rig::new().await;
        rig.write(1, 1, b"bytes").await.unwrap();
        rig.datanode.shutdown().await;
        rig.disk.kill();
        rig.disk.remove(NAME).unwrap();
        rig.reopen().await;
        for is_orderly in [true, false] {
            let report = rig.report_of(1).unwrap();
            assert_eq!((report.condition, report.generation), (ReplicaCondition::Lost, Generation(1)));
            assert_eq!(rig.write(1, 2, b"beside it").await.unwrap_err().status, Status::Refused);
            rig.command(1, DatanodeAction::Close).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(
                rig.report_of(1).unwrap().condition,
                ReplicaCondition::Lost,
                "no empty one in its place"
            );
            rig.restart(is_orderly).await;
        }
        rig.command(1, DatanodeAction::DeleteReplica).await;
        is_told(&rig, 1, ReplicaCondition::Dropped).await;
        rig.restart(true).await;
        assert!(rig.report_of(1).is_none());
    });
}

#[test]
fn a_replica_copied_anew_beats_the_one_on_a_disk_that_comes_back() {
    simulated(9, async {
        let (mut rig, two) = two_disks().await;
        let (_, two_id) = spread(&rig, &two).await;
        let data = pattern(two_id, 300_000);
        let source = Rig::new().await;
        let entry = source.write(two_id, 1, &data).await.unwrap();
        source.command(two_id, DatanodeAction::Close).await;
        source.until(|rig| rig.report_of(two_id).unwrap().is_sealed).await;
        two.set_faults(Faults { next_sync_fails: true, ..Faults::default() });
        assert!(rig.write(two_id, 2, b"never acknowledged").await.is_err());
        is_told(&rig, two_id, ReplicaCondition::Lost).await;
        let address = wire::block::DatanodeAddress { id: source.datanode.id(), address: None };
        rig.datanodes.insert(address.id, Arc::new(source.datanode.clone()));
        let mut order = rig.make_command(
            two_id,
            DatanodeAction::CopyReplica {
                source: address,
                source_generation: Generation(1),
                token: rig.token(wire::block::BlockOperation::CopyReplica, two_id),
                bytes_per_second: 0,
            },
        );
        order.generation = Generation(2);
        rig.scm.command(vec![order]);
        is_told(&rig, two_id, ReplicaCondition::CopyVerified).await;
        assert_eq!(rig.read(&entry, 0, 300_000).await.unwrap(), data);
        for _ in 0..2 {
            rig.datanode.shutdown().await;
            rig.disk.kill();
            two.kill();
            two.set_faults(Faults::default());
            reopen(&mut rig, &[&two]).await.unwrap();
            let reports: Vec<_> = rig.datanode.report().1;
            let of_it: Vec<_> =
                reports.iter().filter(|report| report.container == ContainerId(two_id)).collect();
            assert_eq!(of_it.len(), 1);
            assert_eq!(of_it[0].generation, Generation(2));
            assert_eq!(rig.read(&entry, 0, 300_000).await.unwrap(), data);
        }
    });
}

#[test]
fn commands_for_what_was_never_here_end() {
    simulated(8, async {
        let mut rig = Rig::new().await;
        rig.command(1, DatanodeAction::Close).await;
        rig.until(|rig| rig.report_of(1).is_some_and(|report| report.is_sealed)).await;
        let report = rig.report_of(1).unwrap();
        assert_eq!((report.block_count, report.generation), (0, Generation(1)));
        assert_eq!(rig.write(1, 1, b"late").await.unwrap_err().status, Status::Refused);
        // Ids that were deleted before the first block came stay barred, others may be written.
        rig.command(2, DatanodeAction::DeleteBlocks { transaction: 1, blocks: vec![LocalId(5)] }).await;
        rig.until(|rig| rig.report_of(2).is_some_and(|report| report.deletion_done == 1)).await;
        assert_eq!(rig.write(2, 5, b"dead").await.unwrap_err().status, Status::Refused);
        rig.write(2, 6, b"alive").await.unwrap();
        // A copy that is not here was never verified, or is lost: no empty one stands in for it.
        let mut close = rig.make_command(3, DatanodeAction::Close);
        close.generation = Generation(2);
        rig.scm.command(vec![close]);
        is_told(&rig, 3, ReplicaCondition::Lost).await;
        assert!(rig.report_of(3).is_none());
        rig.command(4, DatanodeAction::DeleteReplica).await;
        is_told(&rig, 4, ReplicaCondition::Dropped).await;
        rig.restart(false).await;
        assert!(rig.report_of(1).unwrap().is_sealed);
        assert_eq!(rig.report_of(2).unwrap().deletion_done, 1);
    });
}

#[test]
fn what_may_be_on_a_missing_disk_does_not_begin_anew() {
    simulated(9, async {
        let (mut rig, two) = two_disks().await;
        let (one_id, two_id) = spread(&rig, &two).await;
        rig.datanode.shutdown().await;
        rig.disk.kill();
        two.kill();
        reopen(&mut rig, &[]).await.unwrap();
        rig.write(one_id, 7, b"more").await.unwrap();
        // An empty replica would pass for one that has the blocks acknowledged before.
        assert_eq!(rig.write(two_id, 7, b"more").await.unwrap_err().status, Status::Refused);
        is_told(&rig, two_id, ReplicaCondition::Lost).await;
        // What was opened since the disk was there cannot have been on it.
        rig.write(NEWEST + 1, 1, b"new").await.unwrap();
        rig.command(NEWEST + 2, DatanodeAction::Close).await;
        rig.until(|rig| rig.report_of(NEWEST + 2).is_some_and(|report| report.is_sealed)).await;
        // What SCM says when it hears from this life again changes nothing: these were opened meanwhile.
        rig.scm.newest.store(NEWEST + 50, std::sync::atomic::Ordering::SeqCst);
        rig.scm.has_forgotten.store(true, std::sync::atomic::Ordering::SeqCst);
        let registrations = |rig: &Rig| {
            let requests = rig.scm.requests.lock();
            requests.iter().filter(|request| matches!(request, ScmRequest::RegisterDatanode(_))).count()
        };
        let before = registrations(&rig);
        rig.until(|rig| registrations(rig) > before).await;
        rig.write(NEWEST + 3, 1, b"new").await.unwrap();
    });
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_left_out_if_another_can() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"in the way").unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("file/disk"));
    let config = |disks| DatanodeConfig::new(disks, ClusterId(rig::uuid_of(1)));
    let open = |disks| {
        let config = config(disks);
        tokio::task::spawn_blocking(move || Datanode::open(config))
    };
    let refused = open(vec![bad.clone()]).await.unwrap().err().unwrap();
    assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused}");
    // The bad one may know whose disks these are: an empty one is not formatted beside it.
    let refused = open(vec![bad.clone(), good.clone()]).await.unwrap().err().unwrap();
    assert!(matches!(refused, OpenError::Unreachable { .. }), "{refused}");
    let first = open(vec![good.clone()]).await.unwrap().unwrap();
    first.shutdown().await;
    drop(first);
    let datanode = open(vec![bad, good.clone()]).await.unwrap().unwrap();
    let scm = Arc::new(FakeScm::default());
    datanode.start(scm, Arc::new(Datanodes::local_only()));
    datanode.wait_registered().await;
    assert_eq!(datanode.report().0.iter().filter(|disk| disk.is_failed).count(), 1);
    // The directory goes while the process runs.
    std::fs::rename(&good, dir.path().join("away")).unwrap();
    let is_failed = async {
        while !datanode.report().0.iter().all(|disk| disk.is_failed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), is_failed).await.unwrap();
    datanode.shutdown().await;
}

#[test]
fn a_killed_node_does_nothing_more_and_its_successor_finds_what_was_acknowledged() {
    const NODE: platform::node::NodeIndex = 2;
    for seed in 0..8 {
        simulated(seed, async {
            let disk = SimulatedDisk::new(1 << 28);
            let here = disk.clone();
            let rig = platform::node::scope(Some(NODE), async move {
                let rig = Rig::on(here, |_| {}).await;
                for local in 0..4 {
                    rig.write(1, local, &pattern(local, 20_000)).await.unwrap();
                }
                // Cut off while it streams.
                let streaming = rig.clone();
                platform::task::spawn(async move {
                    let run = ChunkRun::new(Bytes::from(pattern(9, 65_536)));
                    let body = futures_util::stream::iter(0..30).then(move |_| {
                        let run = run.clone();
                        async move {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            Ok(run)
                        }
                    });
                    let request = streaming.write_request(1, 100, 30 * 65_536);
                    streaming.datanode.write_block(request, Box::pin(body)).await.map(|_| ())
                });
                tokio::time::sleep(Duration::from_millis(seed * 5)).await;
                rig
            })
            .await;
            let entry =
                rig.write(1, 3, &pattern(3, 20_000)).await.expect("the repeat of a write is answered");
            // The power first, then the tasks: what they let go of writes nothing any more.
            disk.crash(seed);
            let at_the_cut = disk.trace_hash();
            platform::node::kill(NODE);
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(disk.trace_hash(), at_the_cut);
            let config = rig.config.clone();
            drop(rig);
            let again = platform::node::scope(Some(NODE), Rig::on(disk, |set| *set = config)).await;
            assert!(again.read(&entry, 0, 20_000).await.unwrap() == pattern(3, 20_000));
            assert!(again.report_of(1).unwrap().is_sealed);
        });
    }
}

#[test]
fn an_scm_that_has_forgotten_hears_all_again() {
    simulated(10, async {
        let rig = Rig::new().await;
        rig.write(1, 1, b"bytes").await.unwrap();
        is_told(&rig, 1, ReplicaCondition::Whole).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.scm.requests.lock().clear();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(told(&rig, 1).is_empty(), "nothing is new");
        rig.scm.interval_ms.store(60_000, std::sync::atomic::Ordering::SeqCst);
        rig.scm.has_forgotten.store(true, std::sync::atomic::Ordering::SeqCst);
        is_told(&rig, 1, ReplicaCondition::Whole).await;
        let registers = |request: &ScmRequest| matches!(request, ScmRequest::RegisterDatanode(_));
        assert_eq!(rig.scm.requests.lock().iter().filter(|request| registers(request)).count(), 1);
        // And everybody once an hour.
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.scm.requests.lock().clear();
        tokio::time::sleep(Duration::from_secs(62 * 60)).await;
        assert_eq!(told(&rig, 1).len(), 1);
    });
}
