//! Whatever step a crash falls on while a snapshot is taken over, the directory opens and keeps its vote.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use platform::disk::DiskIo;
use platform::node;
use platform::simulated::SimulatedDisk;
use raft::eraftpb::{ConfState, Entry as RaftEntry};
use uuid::Uuid;

use super::*;
use crate::error::StoreError;
use crate::machine::Entry;
use crate::marker::Marker;
use crate::state::put_progress;
use crate::state::snapshot::{ReceiverSlot, SnapshotHead, SnapshotReceiver, SnapshotSource};
use crate::store::{Rows, Table, WriteBatch};

const FRUIT: Table = Table::new(0, "fruit");

/// The snapshot's last entry, and the term it is of.
const INDEX: u64 = 700;
const SNAPSHOT_TERM: u64 = 6;

struct Nothing;

impl StateMachine for Nothing {
    type Reply = ();
    const TABLES: &'static [Table] = &[FRUIT];

    fn apply(&mut self, _: &mut WriteBatch<'_>, _: Entry<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

fn config(disk: Arc<dyn DiskIo>) -> GroupConfig {
    GroupConfig {
        raft_id: 2,
        log_segment_bytes: 16 << 10,
        cache_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        disk_free_min_bytes: 0,
        join: true,
        ..GroupConfig::new("test", disk, Uuid::from_u128(5))
    }
}

/// What a leader would send: head and pieces.
fn snapshot() -> (Bytes, Vec<Bytes>) {
    let disk: Arc<dyn DiskIo> = Arc::new(SimulatedDisk::new(64 << 20));
    let config = config(disk);
    let opened = recover::<Nothing>(&config).unwrap();
    let txn = opened.state.begin().unwrap();
    let mut batch = WriteBatch::new(&txn, Nothing::TABLES, 0);
    (0..50_u32).for_each(|row| batch.put(FRUIT, &row.to_be_bytes(), b"from the leader").unwrap());
    let progress = Progress {
        applied_index: INDEX,
        applied_term: SNAPSHOT_TERM,
        state_hash: batch.state_hash(),
        conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
        ..Progress::default()
    };
    drop(batch);
    put_progress(&txn, &progress).unwrap();
    txn.commit().unwrap();
    let mut source =
        SnapshotSource::new(opened.state.database(), Nothing::TABLES, config.cluster_id).unwrap();
    let mut pieces = Vec::new();
    while let Some(piece) = source.next_piece().unwrap() {
        pieces.push(piece);
    }
    (source.head().encode(), pieces)
}

/// A replica that has voted, and has entries that were never committed.
fn follower(vote: &HardState) -> SimulatedDisk {
    let disk = SimulatedDisk::new(64 << 20);
    let mut opened = recover::<Nothing>(&config(Arc::new(disk.clone()))).unwrap();
    let entries: Vec<_> = (1..=60)
        .map(|index| RaftEntry { index, term: 1, data: vec![7; 900].into(), ..RaftEntry::default() })
        .collect();
    opened.log.append(&entries, vote).unwrap();
    opened.log.sync().unwrap();
    disk
}

/// What the threads do with a snapshot, one after the other.
fn take_in(disk: Arc<dyn DiskIo>, head: &[u8], pieces: &[Bytes], vote: &HardState) {
    let config = config(disk);
    let Opened { replica: _replica, reserve, state, progress, log } = recover::<Nothing>(&config).unwrap();
    let mut store = LogStore::new("test", Box::new(log), vote.clone(), progress.conf_state);
    let head = SnapshotHead::decode(head).unwrap();
    let state_config = state_config::<Nothing>(&config, &reserve);
    let mut receiver = SnapshotReceiver::begin(state_config, &ReceiverSlot::default(), head, 0).unwrap();
    pieces.iter().for_each(|piece| receiver.push(piece).unwrap());
    let received = receiver.finish().unwrap();
    let (installed, mut progress) = received.install().unwrap();
    drop(state);
    store.restart_at(INDEX, SNAPSHOT_TERM, &HardState { commit: INDEX, ..vote.clone() });
    installed.clear_installed(&mut progress).unwrap();
}

fn check(disk: &SimulatedDisk, vote: &HardState, after: u64) -> bool {
    let mut is_new = false;
    // The second time there is nothing left to finish.
    for round in 0..2 {
        let opened = recover::<Nothing>(&config(Arc::new(disk.clone())))
            .unwrap_or_else(|error| panic!("after {after}, {round}: {error}"));
        let Progress { applied_index, applied_term, installed, .. } = opened.progress;
        is_new = applied_index == INDEX;
        assert!(!installed && (is_new || applied_index == 0), "after {after}");
        assert_eq!(opened.log.term(applied_index), Some(applied_term));
        let rows = opened.state.view().unwrap().seek(FRUIT, b"", None).unwrap();
        assert_eq!(rows.is_some(), is_new);
        let found = opened.log.hard_state();
        if vote.term >= SNAPSHOT_TERM {
            assert_eq!((found.term, found.vote), (vote.term, vote.vote), "after {after}");
        } else {
            let expected = if is_new { (SNAPSHOT_TERM, 0) } else { (vote.term, vote.vote) };
            assert_eq!((found.term, found.vote), expected, "after {after}");
        }
        assert_eq!(opened.log.last_index(), if is_new { INDEX } else { 60 }, "after {after}");
    }
    is_new
}

fn crash_everywhere(vote: &HardState, as_noted: &HardState) {
    let (head, pieces) = snapshot();
    let mut seen = [0, 0];
    for operations in 1.. {
        let disk = follower(vote);
        disk.crash_after(operations, operations);
        // A clone that locks the disk dies with the machine; as a simulated node, whose end can be outlived.
        let handle: Arc<dyn DiskIo> = Arc::new(disk.clone());
        let run = || take_in(handle, &head, &pieces, as_noted);
        let outcome = catch_unwind(AssertUnwindSafe(|| node::enter(Some(1), run)));
        if disk.cancel_crash() {
            outcome.unwrap();
            assert!(check(&disk, vote, operations));
            break;
        }
        seen[usize::from(check(&disk, vote, operations))] += 1;
    }
    assert!(seen[0] > 20 && seen[1] > 10, "{seen:?}");
}

#[test]
fn an_install_that_crashes_anywhere_opens_and_keeps_its_vote() {
    let vote = HardState { term: 8, vote: 3, ..HardState::default() };
    crash_everywhere(&vote, &vote);
}

#[test]
fn a_replica_that_never_heard_of_the_snapshots_term_does_not_fall_behind_it() {
    let vote = HardState { term: 2, vote: 3, ..HardState::default() };
    crash_everywhere(&vote, &HardState { term: SNAPSHOT_TERM, ..HardState::default() });
}

#[test]
fn a_wiped_replica_does_not_begin_anew_under_its_old_id() {
    let (notes, data) = (SimulatedDisk::new(1 << 20), SimulatedDisk::new(64 << 20));
    let on = |data: &SimulatedDisk| GroupConfig {
        marker: Some(Marker::new(Arc::new(notes.clone()))),
        ..config(Arc::new(data.clone()))
    };
    // Neither is there after a crash in between, or the directory alone is.
    for operations in 1.. {
        data.crash_after(operations, operations);
        let made = catch_unwind(AssertUnwindSafe(|| node::enter(Some(1), || recover::<Nothing>(&on(&data)))));
        if data.cancel_crash() {
            made.unwrap().unwrap();
            break;
        }
    }
    drop(recover::<Nothing>(&on(&data)).unwrap());
    notes.crash(7);
    drop(recover::<Nothing>(&on(&data)).unwrap());

    let empty = SimulatedDisk::new(64 << 20);
    let Err(refused) = recover::<Nothing>(&on(&empty)) else { panic!("it began anew") };
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::Wiped { raft_id: 2, .. }) && text.contains("add-node"), "{text}");
    assert_eq!(empty.contents("identity"), None, "nothing was made");
    // Another id, or another life, has not lived.
    let next = GroupConfig { raft_id: 4, incarnation: Uuid::from_u128(9), ..on(&empty) };
    drop(recover::<Nothing>(&next).unwrap());
}

#[test]
fn without_the_mark_a_log_that_does_not_fit_is_refused() {
    let (head, pieces) = snapshot();
    let vote = HardState { term: 8, vote: 3, ..HardState::default() };
    let disk = follower(&vote);
    take_in(Arc::new(disk.clone()), &head, &pieces, &vote);
    // An older log under the newer state.
    let old = follower(&vote);
    for name in disk.list().unwrap() {
        let is_log = crate::log::is_log_file(&name);
        if is_log {
            disk.remove(&name).unwrap();
        }
    }
    for name in old.list().unwrap() {
        if crate::log::is_log_file(&name) {
            let file = DiskIo::open(&disk, &name, platform::disk::OpenMode::Fresh).unwrap();
            file.write_at(0, &[&old.contents(&name).unwrap()]).unwrap();
        }
    }
    let Err(refused) = recover::<Nothing>(&config(Arc::new(disk))) else { panic!("it opened") };
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}
