//! Rot under a sole voter: what needs the row fails or waits, everything else goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use meta::OmConfig;
use redb::ReadableTable;
use support::{FakeScm, Rig, bucket_ref, config, entry, key, until};
use tempfile::TempDir;
use wire::checksum::Etag;
use wire::om::{
    BucketRef, CompleteUpload, CompletedPart, DeleteKeys, EndSession, GetBucket, OpenSession, WriteCondition,
};
use wire::operator::GetOmOverview;

const PART: u64 = 5 << 20;

fn state_file(dir: &Path) -> Option<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| match path.is_dir() {
        true => state_file(&path),
        false => path.file_name().is_some_and(|name| name == "state.redb").then_some(path),
    })
}

/// Flips a bit in the n-th row of a table.
fn rot(dir: &TempDir, table: &str, at: usize) {
    let db = redb::Database::open(state_file(dir.path()).unwrap()).unwrap();
    let mut txn = db.begin_write().unwrap();
    txn.set_quick_repair(true);
    {
        let definition = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        let mut opened = txn.open_table(definition).unwrap();
        let (row_key, mut stored) = {
            let (row_key, stored) = opened.iter().unwrap().nth(at).unwrap().unwrap();
            (row_key.value().to_vec(), stored.value().to_vec())
        };
        *stored.last_mut().unwrap() ^= 1;
        opened.insert(row_key.as_slice(), stored.as_slice()).unwrap();
    }
    txn.commit().unwrap();
}

/// So that nothing is reclaimed before the rows are damaged.
fn patient(dir: &TempDir) -> OmConfig {
    OmConfig { delete_grace_ms: 60 * 60 * 1000, work_interval_ms: 60 * 60 * 1000, ..config(dir) }
}

/// A key of five blocks, which stand in rows of their own.
async fn put_long(rig: &mut Rig, bucket: &BucketRef, name: &str) {
    let loan = rig.loan(5).await;
    let upload = rig.create_upload(bucket, name).await;
    for part in 1..=5 {
        rig.put_part(bucket, name, upload, part, entry(&loan, u64::from(part) - 1, PART)).await;
    }
    let named = |part: u32| CompletedPart { part, etag: Some(Etag::whole([part as u8; 16])), checksum: None };
    let complete = CompleteUpload {
        context: rig.context(),
        bucket: bucket.clone(),
        key: key(name),
        upload,
        parts: (1..=5).map(named).collect(),
        condition: WriteCondition::None,
        expected: None,
        expected_size: None,
    };
    rig.call(complete).await.unwrap();
}

async fn delete(rig: &mut Rig, bucket: &BucketRef, name: &str) {
    let context = rig.context();
    let keys = vec![(key(name), WriteCondition::None)];
    rig.call(DeleteKeys { context, bucket: bucket.clone(), keys }).await.unwrap();
}

#[tokio::test]
async fn damage_in_the_deletion_queue_keeps_one_block_not_all() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open_with(patient(&dir), scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(8).await;
    for at in 0..7 {
        rig.put(&bucket, "same", vec![entry(&loan, at, 10)]).await;
    }
    rig.om.shutdown().await;
    // The head of the queue, and the row of the block that the second stands for.
    rot(&dir, "deleted", 0);
    rot(&dir, "block", 1);
    let rig = Rig::open_with(config(&dir), scm.clone()).await;
    until("all others are handed over", || scm.state.lock().deleted.len() == 5).await;
    until("none of them is left", || rig.om.status().unwrap().deletion_backlog_blocks == 0).await;
    assert!(!scm.state.lock().deleted.contains(&entry(&loan, 0, 10).block));
    rig.om.shutdown().await;
    // What was passed over is passed over again, and nothing goes twice.
    let mut rig = Rig::open_with(config(&dir), scm.clone()).await;
    let again = rig.loan(1).await;
    rig.put(&bucket, "same", vec![entry(&again, 0, 10)]).await;
    until("the next one is handed over", || scm.state.lock().deleted.len() == 6).await;
    assert_eq!(scm.state.lock().deleted[5], entry(&loan, 6, 10).block);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn damage_in_queued_work_keeps_one_piece_not_all() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open_with(patient(&dir), scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    for name in ["one", "two", "three"] {
        put_long(&mut rig, &bucket, name).await;
    }
    for name in ["one", "two", "three"] {
        delete(&mut rig, &bucket, name).await;
    }
    rig.om.shutdown().await;
    // Of six pieces of work the first cannot be read, and the fifth needs a list of blocks that cannot.
    rot(&dir, "work", 0);
    rot(&dir, "layout", 1);
    let rig = Rig::open_with(config(&dir), scm.clone()).await;
    until("the blocks of two are freed and handed over", || scm.state.lock().deleted.len() == 10).await;
    until("two pieces are left", || rig.om.status().unwrap().queued_work == 1).await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_damaged_session_fails_alone() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open_with(patient(&dir), scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(3).await;
    rig.put(&bucket, "kept", vec![entry(&loan, 0, 10)]).await;
    rig.om.shutdown().await;
    rot(&dir, "session", 0);
    let short = OmConfig { session_silence_ms: 200, ..config(&dir) };
    let mut other = Rig::open_with(short, scm.clone()).await;
    assert_ne!(other.session, rig.session);
    // The same nonce is the same session, without looking at any other.
    let nonce = [7; 16];
    let opened = other.call(OpenSession { nonce }).await.unwrap();
    assert_eq!(other.call(OpenSession { nonce }).await.unwrap(), opened);
    let info = other.call(GetBucket { name: bucket.name }).await.unwrap();
    let bucket = bucket_ref(info);
    let loan = other.loan(1).await;
    other.put(&bucket, "new", vec![entry(&loan, 0, 10)]).await;
    assert!(other.call(Rig::lookup(&bucket, "kept")).await.is_ok());
    other.call(EndSession { session: opened }).await.unwrap();
    let done = |om: &meta::Om| om.status().unwrap().workers[1].done;
    until("silent sessions end beside it", || done(&other.om) >= 1).await;
    let overview = other.call(GetOmOverview {}).await.unwrap();
    assert_eq!((overview.keys, overview.bytes, overview.buckets, overview.volumes), (2, 20, 1, 1));
    other.om.shutdown().await;
}
