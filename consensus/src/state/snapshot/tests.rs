//! Snapshots from end to end, and what damage and crashes make of them.

use platform::disk::DiskIo;
use platform::node;
use platform::simulated::SimulatedDisk;

use super::*;
use crate::log::Identity;
use crate::space::Reserve;

const FRUIT: Table = Table::new(0, "fruit");
const COLOUR: Table = Table::new(1, "colour");
const TABLES: &[Table] = &[FRUIT, COLOUR];
const CLUSTER: Uuid = Uuid::from_u128(5);

fn config(disk: &SimulatedDisk, raft_id: u64) -> StateConfig {
    config_on(Arc::new(disk.clone()), raft_id)
}

fn config_on(disk: Arc<dyn DiskIo>, raft_id: u64) -> StateConfig {
    StateConfig {
        group: "test".to_owned(),
        disk: Arc::clone(&disk),
        identity: Identity { cluster_id: CLUSTER, raft_id },
        cache_bytes: 4 << 20,
        tables: TABLES,
        reserve: Arc::new(Reserve::open(&disk, 1 << 20).unwrap()),
        voters: Vec::new(),
    }
}

/// A state with so many rows, applied up to `index`.
fn filled(disk: &SimulatedDisk, raft_id: u64, index: u64, rows: u32) -> StateFile {
    let state = StateFile::create(&config(disk, raft_id)).unwrap();
    put(&state, index, 0, 0..rows);
    state.checkpoint().unwrap();
    state
}

fn put(state: &StateFile, index: u64, state_hash: u128, rows: std::ops::Range<u32>) -> u128 {
    let txn = state.begin().unwrap();
    let mut batch = WriteBatch::new(&txn, TABLES, state_hash);
    for row in rows {
        batch.begin_entry();
        let table = TABLES[row as usize % 2];
        batch.put(table, &row.to_be_bytes(), format!("value {row}").as_bytes()).unwrap();
    }
    let state_hash = batch.state_hash();
    drop(batch);
    let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let progress = Progress {
        applied_index: index,
        applied_term: 2,
        state_hash,
        conf_state,
        former: vec![9],
        ..Progress::default()
    };
    put_progress(&txn, &progress).unwrap();
    txn.commit().unwrap();
    state_hash
}

fn source(state: &StateFile) -> SnapshotSource {
    SnapshotSource::new(state.database(), TABLES, CLUSTER).unwrap()
}

fn streamed(mut source: SnapshotSource) -> (Bytes, Vec<Bytes>) {
    let mut pieces = Vec::new();
    while let Some(piece) = source.next_piece().unwrap() {
        assert!(piece.len() <= SNAPSHOT_PIECE_BYTES);
        pieces.push(piece);
    }
    (source.head().encode(), pieces)
}

fn begin(config: StateConfig, slot: &ReceiverSlot, head: &[u8]) -> Result<SnapshotReceiver, SnapshotError> {
    SnapshotReceiver::begin(config, slot, SnapshotHead::decode(head)?, 0)
}

fn receive(config: StateConfig, head: &[u8], pieces: &[Bytes]) -> Result<ReceivedSnapshot, SnapshotError> {
    let mut receiver = begin(config, &ReceiverSlot::default(), head)?;
    for piece in pieces {
        receiver.push(piece)?;
    }
    receiver.finish()
}

fn count(state: &StateFile) -> u32 {
    let mut count = 0;
    for table in TABLES {
        let view = view_of(state.database(), TABLES).unwrap();
        view.scan(*table, b"", None, &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    count
}

#[test]
fn many_rows_arrive_although_writes_go_on() {
    let (from, to) = (SimulatedDisk::new(256 << 20), SimulatedDisk::new(256 << 20));
    let sender = filled(&from, 1, 70, 100_000);
    let source = source(&sender);
    let expected = source.head().state_hash;
    put(&sender, 71, expected, 100_000..100_100);
    let (head, pieces) = streamed(source);
    assert!(pieces.len() > 10);
    let old = filled(&to, 2, 3, 10);
    let view = old.view().unwrap();
    let received = receive(config(&to, 2), &head, &pieces).unwrap();
    assert_eq!(received.progress().applied_index, 70);
    let (state, progress) = received.install().unwrap();
    assert_eq!((progress.applied_index, progress.applied_term, progress.state_hash), (70, 2, expected));
    assert!(progress.installed && progress.conf_state.voters == [1, 2, 3] && progress.former == [9]);
    assert_eq!(count(&state), 100_000);
    drop(old);
    assert!(
        view.contains(FRUIT, &8u32.to_be_bytes()).unwrap()
            && !view.contains(FRUIT, &10u32.to_be_bytes()).unwrap()
    );
    drop(state);
    assert_eq!(StateFile::open(&config(&to, 2)).unwrap().1.applied_index, 70);
}

#[test]
fn no_flipped_byte_and_no_early_end_is_taken() {
    let (from, to) = (SimulatedDisk::new(64 << 20), SimulatedDisk::new(64 << 20));
    let (head, pieces) = streamed(source(&filled(&from, 1, 7, 6)));
    drop(filled(&to, 2, 3, 2));
    let stream = pieces.concat();
    for at in 0..head.len() {
        let mut damaged = head.to_vec();
        damaged[at] ^= 0x10;
        assert!(receive(config(&to, 2), &damaged, &pieces).is_err(), "byte {at} of the head");
    }
    for at in 0..stream.len() {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        assert!(receive(config(&to, 2), &head, &[damaged.into()]).is_err(), "byte {at}");
        assert!(receive(config(&to, 2), &head, &[Bytes::copy_from_slice(&stream[..at])]).is_err());
    }
    let twice = [stream.clone(), stream.clone()].concat();
    assert!(receive(config(&to, 2), &head, &[twice.into()]).is_err(), "bytes behind the end");
    assert!(to.contents(STATE_NEW).is_none(), "a broken stream leaves nothing");
    let bytes: Vec<Bytes> = stream.iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect();
    drop(receive(config(&to, 2), &head, &bytes).unwrap());
    assert!(to.contents(STATE_NEW).is_none());
    assert_eq!(StateFile::open(&config(&to, 2)).unwrap().1.applied_index, 3);
}

#[test]
fn one_receiver_at_a_time_and_none_for_a_foreign_cluster() {
    let (from, to) = (SimulatedDisk::new(64 << 20), SimulatedDisk::new(64 << 20));
    let (head, _) = streamed(source(&filled(&from, 1, 7, 6)));
    let slot = ReceiverSlot::default();
    let first = begin(config(&to, 2), &slot, &head).unwrap();
    assert!(matches!(begin(config(&to, 2), &slot, &head), Err(SnapshotError::Busy)));
    assert!(to.contents(STATE_NEW).is_some(), "the second leaves the first alone");
    drop(first);
    let mut foreign = config(&to, 2);
    foreign.identity.cluster_id = Uuid::from_u128(6);
    assert!(matches!(begin(foreign, &slot, &head), Err(SnapshotError::Foreign { .. })));
    assert!(begin(config(&to, 2), &slot, &head).is_ok());
}

#[test]
fn a_bad_database_does_not_spread() {
    let disk = SimulatedDisk::new(64 << 20);
    let state = filled(&disk, 1, 7, 6);
    put(&state, 8, 1, 0..0);
    let mut source = source(&state);
    assert!(matches!(source.next_piece(), Err(SnapshotError::Unsound)), "all rows fit into one piece");
}

#[test]
fn an_install_that_crashes_anywhere_leaves_the_old_or_the_new() {
    let from = SimulatedDisk::new(64 << 20);
    let (head, pieces) = streamed(source(&filled(&from, 1, 7, 40)));
    let mut seen = [0, 0];
    for operations in 1.. {
        let to = SimulatedDisk::new(64 << 20);
        let old = filled(&to, 2, 3, 2);
        old.database().close();
        to.sync_names().unwrap();
        // A handle that locked the disk dies with the machine: nothing reaches the disk after the crash.
        let handle = to.clone();
        assert!(handle.lock().unwrap());
        let taken = config_on(Arc::new(handle), 2);
        to.crash_after(operations, operations);
        // As a simulated node, whose end at a failed sync can be outlived.
        let run = || receive(taken, &head, &pieces).and_then(ReceivedSnapshot::install).map(drop);
        let installed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| node::enter(Some(1), run)));
        if to.cancel_crash() {
            installed.unwrap().unwrap();
            break;
        }
        let (state, progress) = StateFile::open(&config(&to, 2)).unwrap();
        let is_new = progress.applied_index == 7;
        assert_eq!((progress.applied_index, progress.installed), if is_new { (7, true) } else { (3, false) });
        assert_eq!(count(&state), if is_new { 40 } else { 2 }, "after {operations}");
        assert!(to.contents(STATE_NEW).is_none());
        seen[usize::from(is_new)] += 1;
    }
    assert!(seen[0] > 5 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_full_disk_refuses_the_rows_and_keeps_its_reserve() {
    let from = SimulatedDisk::new(256 << 20);
    let (head, pieces) = streamed(source(&filled(&from, 1, 70, 60_000)));
    let to = SimulatedDisk::new(64 << 20);
    let old = filled(&to, 2, 3, 10);
    let available = to.room().unwrap().available;
    // What others need is left to them, from the beginning and on the way.
    let decoded = SnapshotHead::decode(&head).unwrap();
    for free_min in [available + 1, available - (2 << 20)] {
        let slot = ReceiverSlot::default();
        let outcome = SnapshotReceiver::begin(config(&to, 2), &slot, decoded.clone(), free_min).and_then(
            |mut receiver| {
                pieces.iter().try_for_each(|piece| receiver.push(piece))?;
                receiver.finish()
            },
        );
        let Err(refused) = outcome else { panic!("it took {available} bytes") };
        assert!(matches!(refused, SnapshotError::File(OpenError::Full { .. })), "{refused}");
        assert!(to.contents(STATE_NEW).is_none() && to.room().unwrap().available == available);
    }
    // A disk that is full all the same: the reserve is for others.
    to.set_capacity((64 << 20) - available + (1 << 20));
    assert!(receive(config(&to, 2), &head, &pieces).is_err());
    assert_eq!(to.contents(crate::space::RESERVE).unwrap().len(), 1 << 20);
    assert_eq!(count(&old), 10, "the old rows live on");
}
