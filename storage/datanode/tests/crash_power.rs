//! Power cuts at every kind of moment: nothing acknowledged is lost, nothing half written is seen, nothing deleted
//! comes back to be written again.

mod rig;

use std::sync::Arc;

use parking_lot::Mutex;
use platform::simulated::SimulatedDisk;
use rig::{Rig, pattern};
use wire::block::BlockEntry;
use wire::ids::LocalId;
use wire::scm::DatanodeAction;
use wire::status::Status;

/// What the writers were told before the lights went out.
#[derive(Default)]
struct Told {
    written: Vec<BlockEntry>,
    /// Blocks whose deletion was commanded: they may be gone or not.
    deleted: Vec<(u64, Vec<u64>)>,
}

fn length_of(local: u64) -> usize {
    match local % 5 {
        0 => 1 + local as usize,
        1 => 4096,
        2 => 70_000,
        3 => 3900 + local as usize * 13,
        _ => 200_000,
    }
}

async fn write_all(rig: Rig, told: Arc<Mutex<Told>>, lane: u64) {
    for step in 0..12 {
        let local = lane * 100 + step;
        let data = pattern(local, length_of(local));
        let written = if local % 5 == 4 {
            rig.stream(1 + lane % 2, local, &data, 262_144).await
        } else {
            rig.write(1 + lane % 2, local, &data).await
        };
        match written {
            Ok(entry) => told.lock().written.push(entry),
            Err(_) => return,
        }
        if step == 6 {
            let container = 1 + lane % 2;
            let blocks = [lane * 100, lane * 100 + 1, lane * 100 + 50];
            let earlier = told.lock().deleted.iter().filter(|(of, _)| *of == container).count();
            let transaction = earlier as u64 + 1;
            told.lock().deleted.push((container, blocks.to_vec()));
            let blocks = blocks.map(LocalId).to_vec();
            rig.command(container, DatanodeAction::DeleteBlocks { transaction, blocks }).await;
        }
    }
}

async fn run_one(crash_after: u64, seed: u64) {
    let disk = SimulatedDisk::new(1 << 30);
    let mut rig = Rig::on(disk, |config| config.growth_step = 256 << 10).await;
    rig.disk.crash_after(crash_after, seed);
    let told = Arc::new(Mutex::new(Told::default()));
    let lanes: Vec<_> = (0..4).map(|lane| tokio::spawn(write_all(rig.clone(), told.clone(), lane))).collect();
    for lane in lanes {
        lane.await.expect("a writer does not panic");
    }
    if rig.disk.cancel_crash() {
        rig.disk.crash(seed);
    }
    rig.datanode.shutdown().await;
    // What was not commanded before the cut is not commanded after it.
    rig.scm.forget();
    rig.reopen().await;
    let recovered = rig.datanode.report().1;
    let told = std::mem::take(&mut *told.lock());
    let is_maybe_deleted = |entry: &BlockEntry| {
        told.deleted.iter().any(|(container, blocks)| {
            *container == entry.block.container.0 && blocks.contains(&entry.block.local.0)
        })
    };
    for entry in &told.written {
        let data = pattern(entry.block.local.0, length_of(entry.block.local.0));
        match rig.read(entry, 0, entry.length).await {
            Ok(bytes) => assert!(bytes == data, "block {} has other bytes", entry.block),
            Err(failure) => {
                let is_deleted = is_maybe_deleted(entry) && failure.status == Status::NotFound;
                assert!(is_deleted, "block {} is lost: {failure}", entry.block);
            }
        }
    }
    for replica in &recovered {
        assert!(replica.is_sealed, "a crash seals");
    }
    // Once more: recovery itself must leave a state that opens the same.
    rig.disk.crash(seed ^ 77);
    rig.datanode.shutdown().await;
    rig.reopen().await;
    let again = rig.datanode.report().1;
    for (first, second) in recovered.iter().zip(&again) {
        assert_eq!((first.container, first.block_count), (second.container, second.block_count));
    }
    assert_eq!(recovered.len(), again.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_lose_nothing_acknowledged() {
    for round in 0..24 {
        run_one(20 + round * round * 3 / 2, round * 7919).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_was_reported_stands_after_power_cuts() {
    for seed in 0..6 {
        let mut rig = Rig::new().await;
        let gone = rig.write(1, 1, &pattern(1, 50_000)).await.unwrap();
        let kept = rig.write(1, 2, &pattern(2, 50_000)).await.unwrap();
        let blocks = vec![gone.block.local, LocalId(9)];
        rig.command(1, DatanodeAction::DeleteBlocks { transaction: 1, blocks }).await;
        rig.until(|rig| rig.datanode.report().1[0].deletion_done == 1).await;
        rig.disk.crash(seed);
        rig.datanode.shutdown().await;
        rig.reopen().await;
        assert_eq!(rig.datanode.report().1[0].deletion_done, 1);
        assert_eq!(rig.read(&gone, 0, 1).await.unwrap_err().status, Status::NotFound);
        assert!(rig.read(&kept, 0, 50_000).await.unwrap() == pattern(2, 50_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_lost_or_damaged_is_made_again_from_the_files() {
    let mut rig = Rig::new().await;
    let mut entries = Vec::new();
    for local in 0..40 {
        let data = pattern(local, length_of(local));
        entries.push((rig.write(1 + local % 3, local, &data).await.unwrap(), data));
    }
    let streamed = pattern(99, 1_500_000);
    entries.push((rig.stream(1, 99, &streamed, 4 << 20).await.unwrap(), streamed));
    rig.datanode.shutdown().await;
    rig.disk.kill();
    // A wrong magic number: redb refuses the file.
    rig.disk.damage("index.redb", 0, &[0; 64]);
    rig.reopen().await;
    for (entry, data) in &entries {
        assert!(rig.read(entry, 0, entry.length).await.unwrap() == *data);
    }
    let blocks: u64 = rig.datanode.report().1.iter().map(|replica| replica.block_count).sum();
    assert_eq!(blocks, 41);
}
