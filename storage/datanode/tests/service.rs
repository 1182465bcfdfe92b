//! A datanode as its callers see it: writing, reading, refusing, deleting, restarting.

mod rig;

use bytes::Bytes;
use client::service::DatanodeService;
use rig::{Rig, pattern};
use wire::block::{BlockOperation, BlockToken};
use wire::chunk::ChunkRun;
use wire::scm::DatanodeAction;
use wire::status::Status;

#[tokio::test]
async fn what_was_written_is_read_in_any_range() {
    let rig = Rig::new().await;
    for (local, length) in [(1, 1), (2, 4096), (3, 65_536), (4, 70_000), (5, 300_000), (6, 3_000_000)] {
        let data = pattern(local, length);
        let entry = rig.write(1, local, &data).await.unwrap();
        for (from, to) in
            [(0, length), (length - 1, length), (length / 3, length / 3 + 1), (length / 2, length)]
        {
            let got = rig.read(&entry, from as u64, (to - from) as u64).await.unwrap();
            assert!(got == data[from..to], "block {local}, bytes {from} to {to}");
        }
    }
}

#[tokio::test]
async fn streamed_blocks_of_known_and_unknown_length_come_back() {
    let rig = Rig::new().await;
    let mut local = 100;
    for length in [1, 65_535, 65_536, 1 << 20, (1 << 20) + 4095, 5_000_000] {
        for reserved in [length as u64, length as u64 + 1, 6 << 20] {
            let data = pattern(local, length);
            let entry = rig.stream(1, local, &data, reserved).await.unwrap();
            assert!(rig.read(&entry, 0, length as u64).await.unwrap() == data, "{length} in {reserved}");
            local += 1;
        }
    }
}

#[tokio::test]
async fn blocks_survive_orderly_and_sudden_ends() {
    let mut rig = Rig::new().await;
    let mut entries = Vec::new();
    for local in 0..50 {
        let data = pattern(local, 100 + local as usize * 3000);
        entries.push((rig.write(1, local, &data).await.unwrap(), data));
    }
    for is_orderly in [true, false, false, true] {
        rig.restart(is_orderly).await;
        for (entry, data) in &entries {
            assert!(rig.read(entry, 0, data.len() as u64).await.unwrap() == *data);
        }
        let replicas = rig.datanode.report().1;
        assert_eq!(replicas.len(), 1);
        assert_eq!(replicas[0].block_count, 50);
        assert!(!replicas[0].is_unhealthy);
    }
    assert!(rig.datanode.report().1[0].is_sealed, "a crash seals");
    let refused = rig.write(1, 1000, b"late").await.unwrap_err();
    assert_eq!(refused.status, Status::Refused);
}

#[tokio::test]
async fn an_orderly_restart_goes_on_writing() {
    let mut rig = Rig::new().await;
    rig.write(1, 1, b"one").await.unwrap();
    rig.restart(true).await;
    let entry = rig.write(1, 2, b"two").await.unwrap();
    assert_eq!(rig.read(&entry, 0, 3).await.unwrap(), b"two");
    assert_eq!(rig.datanode.report().1[0].block_count, 2);
}

#[tokio::test]
async fn an_id_is_written_once() {
    let rig = Rig::new().await;
    let first = rig.write(1, 7, b"the first").await.unwrap();
    assert_eq!(rig.write(1, 7, b"the first").await.unwrap(), first, "a repeat is answered as before");
    assert_eq!(rig.stream(1, 7, b"the first", 9).await.unwrap(), first);
    assert_eq!(rig.write(1, 7, b"the other").await.unwrap_err().status, Status::Refused);
    assert_eq!(rig.stream(1, 7, b"the other", 9).await.unwrap_err().status, Status::Refused);
    assert_eq!(rig.read(&first, 0, 9).await.unwrap(), b"the first");
}

#[tokio::test]
async fn of_concurrent_writes_of_an_id_one_wins() {
    let rig = Rig::new().await;
    let mut tasks = Vec::new();
    for writer in 0..8u8 {
        let rig = rig.clone();
        tasks.push(tokio::spawn(async move { rig.write(1, 3, &[writer; 5000]).await }));
    }
    let mut won = Vec::new();
    for task in tasks {
        won.extend(task.await.unwrap());
    }
    assert_eq!(won.len(), 1);
    let bytes = rig.read(&won[0], 0, 5000).await.unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
}

#[tokio::test]
async fn tokens_are_asked_for() {
    let rig = Rig::new().await;
    let entry = rig.write(1, 1, b"bytes").await.unwrap();
    let run = || ChunkRun::new(Bytes::from_static(b"bytes"));
    let good = rig.write_request(1, 2, 5);

    let mut forged = good.clone();
    forged.token.claim.count += 1;
    let mut foreign = good.clone();
    foreign.block.container.0 = 2;
    let mut long = good.clone();
    long.length = 1 << 40;
    let mut reads = good.clone();
    reads.token.claim.operation = BlockOperation::Read;
    reads.token = BlockToken::sign(reads.token.claim, &rig.key());
    let mut late = good.clone();
    late.token.claim.expires_ms = 1;
    late.token = BlockToken::sign(late.token.claim, &rig.key());
    for request in [forged, foreign, long, reads, late] {
        let failure = rig.datanode.write_small_block(request, run()).await.unwrap_err();
        assert_eq!(failure.status, Status::Denied, "{failure}");
    }
    let mut young = rig.key();
    young.id += 1;
    let mut signed_by_young = good.clone();
    signed_by_young.token = BlockToken::sign(signed_by_young.token.claim, &young);
    let failure = rig.datanode.write_small_block(signed_by_young, run()).await.unwrap_err();
    assert_eq!(failure.status, Status::NotReady, "a key that is not known yet");
    let mut read = rig.read_request(&entry, 0, 5);
    read.token = good.token.clone();
    assert_eq!(rig.datanode.read_block(read).await.err().unwrap().status, Status::Denied);
    rig.datanode.write_small_block(good, run()).await.unwrap();
}

#[tokio::test]
async fn damaged_short_and_long_bodies_leave_nothing() {
    let rig = Rig::new().await;
    let mut damaged = ChunkRun::new(Bytes::from(vec![1; 100_000]));
    damaged.crcs[1] ^= 1;
    let request = rig.write_request(1, 1, 100_000);
    let failure = rig.datanode.write_small_block(request.clone(), damaged.clone()).await.unwrap_err();
    assert_eq!(failure.status, Status::Corrupt);
    let body = Box::pin(futures_util::stream::iter([Ok(damaged)]));
    assert_eq!(rig.datanode.write_block(request, body).await.unwrap_err().status, Status::Corrupt);

    let run = ChunkRun::new(Bytes::from(vec![1; 100]));
    for length in [0, 99, 101] {
        let request = rig.write_request(1, 1, length);
        let failure = rig.datanode.write_small_block(request.clone(), run.clone()).await.unwrap_err();
        assert_eq!(failure.status, Status::Invalid);
        let body = Box::pin(futures_util::stream::iter([Ok(run.clone())]));
        assert_eq!(rig.datanode.write_block(request, body).await.unwrap_err().status, Status::Invalid);
    }
    // The id is not burnt, and no byte of the failed writes counts.
    let entry = rig.write(1, 1, b"good").await.unwrap();
    assert_eq!(rig.read(&entry, 0, 4).await.unwrap(), b"good");
    assert_eq!(rig.datanode.report().1[0].used_bytes, 4);
    assert_eq!(rig.datanode.report().1[0].block_count, 1);
}

#[tokio::test]
async fn a_body_that_breaks_ends_the_write() {
    let rig = Rig::new().await;
    let broken = wire::status::Failure::new(Status::Unknown, "the client went away");
    let runs = [Ok(ChunkRun::new(Bytes::from(vec![1; 65_536]))), Err(broken.clone())];
    let request = rig.write_request(1, 1, 200_000);
    let body = Box::pin(futures_util::stream::iter(runs));
    assert_eq!(rig.datanode.write_block(request, body).await.unwrap_err(), broken);
    let entry = rig.write(1, 1, b"again").await.unwrap();
    assert_eq!(rig.read(&entry, 0, 5).await.unwrap(), b"again");
}

#[tokio::test]
async fn damage_is_an_error_and_is_reported() {
    let rig = Rig::new().await;
    let small = rig.write(1, 1, &pattern(1, 5000)).await.unwrap();
    let large = rig.write(1, 2, &pattern(2, 400_000)).await.unwrap();
    let name = "0000000000000001.container";
    let bytes = rig.disk.contents(name).unwrap();
    let small_at = rig::position_of(&bytes, &pattern(1, 5000)[..64]);
    let large_at = rig::position_of(&bytes, &pattern(2, 400_000)[..64]);
    rig.disk.damage(name, small_at + 10, &[0xff ^ bytes[small_at as usize + 10]]);
    let third_chunk = large_at + 2 * 65_536 + 5;
    rig.disk.damage(name, third_chunk, &[0xff ^ bytes[third_chunk as usize]]);

    assert_eq!(rig.read(&small, 0, 10).await.unwrap_err().status, Status::Corrupt);
    assert_eq!(rig.read(&large, 0, 400_000).await.unwrap_err().status, Status::Corrupt);
    assert!(
        rig.read(&large, 0, 65_536).await.unwrap() == pattern(2, 400_000)[..65_536],
        "whole chunks are served"
    );
    assert!(rig.datanode.report().1[0].is_unhealthy);
    let mut wrong = large;
    wrong.digest.0 ^= 1;
    assert_eq!(rig.read(&wrong, 0, 1).await.unwrap_err().status, Status::Corrupt);
}

#[tokio::test]
async fn a_full_container_refuses_and_says_so() {
    let rig = Rig::with(|config| config.container_bytes_max = 1 << 20).await;
    let mut written = 0;
    let failure = loop {
        match rig.write(1, written, &[7; 100_000]).await {
            Ok(_) => written += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.status, Status::Refused);
    assert_eq!(written, 10);
    assert!(rig.datanode.report().1[0].written_bytes >= 1 << 20);
    rig.write(2, 0, &[7; 2_000_000]).await.expect("the first block of a container always fits");
}

#[tokio::test]
async fn closing_seals_durably_and_refuses_writes() {
    let mut rig = Rig::new().await;
    let entry = rig.write(1, 1, b"kept").await.unwrap();
    rig.command(1, DatanodeAction::Close).await;
    rig.until(|rig| rig.datanode.report().1[0].is_sealed).await;
    assert_eq!(rig.write(1, 2, b"late").await.unwrap_err().status, Status::Refused);
    rig.restart(false).await;
    assert!(rig.datanode.report().1[0].is_sealed);
    assert_eq!(rig.read(&entry, 0, 4).await.unwrap(), b"kept");
}

/// A body whose runs the test sends.
fn slow_body() -> (tokio::sync::mpsc::Sender<Vec<u8>>, client::service::ChunkStream) {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let runs = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let run = receiver.recv().await?;
        Some((Ok(ChunkRun::new(Bytes::from(run))), receiver))
    });
    (sender, Box::pin(runs))
}

#[test]
fn a_block_that_comes_too_slowly_does_not_keep_a_closing_container_from_its_seal() {
    rig::simulated(1, async {
        let rig = Rig::new().await;
        let kept = rig.write(1, 1, b"kept").await.unwrap();
        let start = |local, length| {
            let (sender, body) = slow_body();
            let (rig, request) = (rig.clone(), rig.write_request(1, local, length));
            (sender, tokio::spawn(async move { rig.datanode.write_block(request, body).await }))
        };
        let (stalls, stalled) = start(2, 2 * 65_536);
        let (ends, ended) = start(3, 2 * 65_536);
        stalls.send(vec![1; 65_536]).await.unwrap();
        ends.send(vec![1; 65_536]).await.unwrap();
        let patience = std::time::Duration::from_millis(rig.config.closing_patience_ms);
        let second = std::time::Duration::from_secs(1);
        rig.command(1, DatanodeAction::Close).await;
        let others = std::cell::Cell::new(0);
        rig.until_async(async |rig| {
            let is_refused = rig.write(1, 100 + others.get(), b"another").await.is_err();
            others.set(others.get() + u64::from(!is_refused));
            is_refused
        })
        .await;
        tokio::time::sleep(patience - 5 * second).await;
        ends.send(vec![2; 65_536]).await.unwrap();
        drop(ends);
        ended.await.unwrap().expect("it came in time");
        assert!(!stalled.is_finished() && !rig.report_of(1).unwrap().is_sealed, "a slow client has minutes");
        rig.until(|rig| rig.report_of(1).unwrap().is_sealed).await;
        assert_eq!(stalled.await.unwrap().unwrap_err().status, Status::Refused, "this datanode is well");
        assert_eq!(rig.report_of(1).unwrap().block_count, 2 + others.get());
        assert_eq!(rig.read(&kept, 0, 4).await.unwrap(), b"kept");
    });
}

#[tokio::test]
async fn deleted_blocks_are_gone_and_their_space_too() {
    let mut rig = Rig::new().await;
    let gone = rig.write(1, 1, &pattern(1, 500_000)).await.unwrap();
    let kept = rig.write(1, 2, &pattern(2, 500_000)).await.unwrap();
    let name = "0000000000000001.container";
    let gone_at = rig::position_of(&rig.disk.contents(name).unwrap(), &pattern(1, 500_000)[..64]) as usize;
    let blocks = vec![gone.block.local, wire::ids::LocalId(3)];
    rig.command(1, DatanodeAction::DeleteBlocks { transaction: 1, blocks }).await;
    rig.until(|rig| rig.datanode.report().1[0].deletion_done == 1).await;
    for restart in [None, Some(true), Some(false)] {
        if let Some(is_orderly) = restart {
            rig.restart(is_orderly).await;
        }
        assert_eq!(rig.read(&gone, 0, 1).await.unwrap_err().status, Status::NotFound);
        assert!(rig.read(&kept, 0, 500_000).await.unwrap() == pattern(2, 500_000));
        let report = rig.datanode.report().1[0].clone();
        assert_eq!((report.block_count, report.used_bytes, report.deletion_done), (1, 500_000, 1));
        for local in [1, 3] {
            let refused = rig.write(1, local, b"back to life").await.unwrap_err();
            assert_eq!(refused.status, Status::Refused, "block {local} was deleted");
        }
    }
    rig.until(|rig| {
        let bytes = rig.disk.contents(name).unwrap();
        bytes[gone_at..gone_at + 500_000].iter().all(|byte| *byte == 0)
    })
    .await;
}

#[tokio::test]
async fn deletion_waits_for_readers() {
    use futures_util::StreamExt;
    let rig = Rig::new().await;
    let data = pattern(1, 6 << 20);
    let entry = rig.stream(1, 1, &data, 6 << 20).await.unwrap();
    let mut reading = rig.datanode.read_block(rig.read_request(&entry, 0, 6 << 20)).await.unwrap();
    let mut got = reading.next().await.unwrap().unwrap().data.to_vec();
    let blocks = vec![entry.block.local];
    rig.command(1, DatanodeAction::DeleteBlocks { transaction: 1, blocks }).await;
    rig.until(|rig| rig.datanode.report().1[0].deletion_done == 1).await;
    assert_eq!(rig.read(&entry, 0, 1).await.unwrap_err().status, Status::NotFound);
    while let Some(run) = reading.next().await {
        got.extend_from_slice(&run.unwrap().data);
    }
    assert!(got == data, "a reader that had begun ends");
}

#[tokio::test]
async fn a_dropped_replica_is_not_made_again() {
    let mut rig = Rig::new().await;
    rig.write(1, 1, b"bytes").await.unwrap();
    rig.command(1, DatanodeAction::DeleteReplica).await;
    rig.until(|rig| rig.datanode.report().1.is_empty()).await;
    for restart in [None, Some(true), Some(false)] {
        if let Some(is_orderly) = restart {
            rig.restart(is_orderly).await;
        }
        assert_eq!(rig.write(1, 2, b"old token").await.unwrap_err().status, Status::Refused);
        assert!(rig.datanode.report().1.is_empty());
    }
}

#[tokio::test]
async fn commands_of_old_leaders_and_other_generations_do_nothing() {
    let rig = Rig::new().await;
    rig.write(1, 1, b"bytes").await.unwrap();
    rig.write(2, 1, b"bytes").await.unwrap();
    let mut other = rig.make_command(1, DatanodeAction::Close);
    other.generation.0 += 1;
    other.term = 9;
    let mut old = rig.make_command(1, DatanodeAction::Close);
    old.term = 8;
    let mut good = rig.make_command(2, DatanodeAction::Close);
    good.term = 9;
    rig.scm.command(vec![other, old, good]);
    rig.until(|rig| rig.datanode.report().1[1].is_sealed).await;
    assert!(!rig.datanode.report().1[0].is_sealed);
}

#[tokio::test]
async fn a_failed_sync_takes_the_disk_out_before_anyone_is_answered() {
    let rig = Rig::new().await;
    let entry = rig.write(1, 1, b"before").await.unwrap();
    rig.disk.set_faults(platform::simulated::Faults { next_sync_fails: true, ..Default::default() });
    assert_eq!(rig.write(1, 2, b"lost").await.unwrap_err().status, Status::Internal);
    assert!(rig.datanode.report().0[0].is_failed);
    let syncs = rig.disk.sync_count();
    assert_eq!(rig.write(1, 3, b"more").await.unwrap_err().status, Status::Internal);
    assert_eq!(rig.read(&entry, 0, 1).await.unwrap_err().status, Status::Internal);
    assert_eq!(rig.disk.sync_count(), syncs, "no further sync is tried");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_goes_on_reading_and_deleting() {
    let rig = Rig::with(|config| config.reserve_bytes = 8 << 20).await;
    rig.disk.set_capacity(48 << 20);
    let mut entries = Vec::new();
    let failure = loop {
        match rig.write(1, entries.len() as u64, &[3; 200_000]).await {
            Ok(entry) => entries.push(entry),
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.status, Status::DiskFull);
    for entry in &entries {
        assert_eq!(rig.read(entry, 0, 3).await.unwrap(), [3; 3]);
    }
    let blocks = entries.iter().map(|entry| entry.block.local).collect();
    rig.command(1, DatanodeAction::DeleteBlocks { transaction: 1, blocks }).await;
    let next = entries.len() as u64 + 1;
    rig.until_async(async |rig| rig.write(1, next, b"room again").await.is_ok()).await;
    assert!(!rig.datanode.report().0[0].is_failed);
}

#[test]
fn a_disk_that_others_have_filled_still_deletes() {
    // In one thread: nothing is being written while the disk shrinks.
    rig::simulated(1, async {
        use platform::disk::DiskIo;
        let mut rig = Rig::with(|config| config.reserve_bytes = 32 << 20).await;
        let mut entries = Vec::new();
        for local in 0..20 {
            entries.push(rig.write(1, local, &[3; 100_000]).await.unwrap());
        }
        rig.until(|rig| rig.disk.contents("ballast").is_some_and(|bytes| !bytes.is_empty())).await;
        let room = rig.disk.room().unwrap();
        let used = room.capacity - room.available;
        rig.disk.set_capacity(used);
        let blocks = entries[..19].iter().map(|entry| entry.block.local).collect();
        rig.command(1, DatanodeAction::DeleteBlocks { transaction: 1, blocks }).await;
        rig.until(|rig| rig.datanode.report().1[0].deletion_done == 1).await;
        assert_eq!(rig.read(&entries[19], 0, 3).await.unwrap(), [3; 3]);
        let refused = rig.write(2, 0, &[1; 100_000]).await.unwrap_err();
        assert_eq!(refused.status, Status::DiskFull);
        rig.disk.set_capacity(room.capacity);
        rig.write(2, 0, &[1; 100_000]).await.unwrap();
        rig.restart(false).await;
        assert_eq!(rig.read(&entries[19], 0, 3).await.unwrap(), [3; 3]);
    });
}

#[tokio::test]
async fn changes_are_reported_once_and_all_at_registration() {
    use wire::scm::ScmRequest;
    let mut rig = Rig::new().await;
    rig.write(1, 1, b"news").await.unwrap();
    let beats_of = |rig: &Rig| -> Vec<usize> {
        let requests = rig.scm.requests.lock();
        let beats = requests.iter().filter_map(|request| match request {
            ScmRequest::Heartbeat(beat) => Some(beat.replicas.len()),
            _ => None,
        });
        beats.collect()
    };
    rig.until(|rig| beats_of(rig).contains(&1)).await;
    rig.until(|rig| beats_of(rig).iter().rev().take_while(|count| **count == 0).count() > 3).await;
    rig.restart(true).await;
    let requests = rig.scm.requests.lock();
    let registered = requests.iter().rev().find_map(|request| match request {
        ScmRequest::RegisterDatanode(register) => Some(register.clone()),
        _ => None,
    });
    let registered = registered.unwrap();
    assert_eq!(registered.replicas.len(), 1);
    assert_eq!(registered.replicas[0].block_count, 1);
    assert_eq!(registered.disks.len(), 1);
    assert_eq!(registered.datanode.id, rig.datanode.id());
}
