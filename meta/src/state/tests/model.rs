//! Random commands in random order, repeats and late ones included: the invariants hold after each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wire::block::{BlockEntry, Replication};
use wire::ids::{BlockId, ContainerId, LeaseId, LoanId, LocalId, SessionId, WriteId};
use wire::limits::PART_BYTES_MIN;
use wire::names::KeyName;
use wire::om::{
    AbortUpload, BucketRef, CompleteUpload, CompletedPart, CopyKey, CreateBucket, CreateUpload, DeleteKeys,
    ReleaseBlocks, StorageClass, UserId, WriteCondition, WriteContext,
};
use wire::operator::{Quota, SetBucketQuota, SetVolume};

use super::{Core, block_id, bucket_ref, commit_key, commit_part, entry_of, etag_of_size, invariants, user};
use crate::command::{self, Command};
use crate::schema::{LEASE, LOAN, LeaseRow};
use crate::state::bucket::s3_volume;
use crate::state::loan::first_of;
use crate::state::{Reply, RowsExt, key, lease};

#[derive(Debug, Clone)]
enum Op {
    Loan { session: bool, count: u16 },
    Commit { session: bool, key: u8, blocks: u8, steal: bool },
    Copy { session: bool, from: u8, to: u8 },
    Delete { session: bool, keys: Vec<u8> },
    Create { session: bool, key: u8 },
    Part { session: bool, upload: u8, part: u8, blocks: u8 },
    Complete { session: bool, upload: u8, parts: Vec<u8> },
    Abort { session: bool, upload: u8 },
    Release { session: bool, count: u8, whole: bool },
    End { session: bool },
    Expire,
    Repeat { back: u8 },
    Work { steps: u8, after_grace: bool },
    Handover,
    Quota { bytes: Option<u8>, count: Option<u8>, of_volume: bool },
    Retire { container: u8 },
    Lease { container: u8 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let session = any::<bool>();
    let key = 0u8..5;
    let op = prop_oneof![
        3 => (session, 1u16..40).prop_map(|(session, count)| Op::Loan { session, count }),
        6 => (session, key.clone(), 0u8..8, proptest::bool::weighted(0.1))
            .prop_map(|(session, key, blocks, steal)| Op::Commit { session, key, blocks, steal }),
        3 => (session, key.clone(), key.clone()).prop_map(|(session, from, to)| Op::Copy { session, from, to }),
        2 => (session, proptest::collection::vec(key.clone(), 1..4))
            .prop_map(|(session, keys)| Op::Delete { session, keys }),
        2 => (session, key).prop_map(|(session, key)| Op::Create { session, key }),
        6 => (session, 0u8..3, 1u8..6, 0u8..7)
            .prop_map(|(session, upload, part, blocks)| Op::Part { session, upload, part, blocks }),
        2 => (session, 0u8..3, proptest::collection::vec(1u8..6, 1..5))
            .prop_map(|(session, upload, parts)| Op::Complete { session, upload, parts }),
        1 => (session, 0u8..3).prop_map(|(session, upload)| Op::Abort { session, upload }),
        1 => (session, 0u8..40, any::<bool>())
            .prop_map(|(session, count, whole)| Op::Release { session, count, whole }),
        1 => session.prop_map(|session| Op::End { session }),
        1 => Just(Op::Expire),
        3 => (0u8..10).prop_map(|back| Op::Repeat { back }),
        3 => (1u8..5, any::<bool>()).prop_map(|(steps, after_grace)| Op::Work { steps, after_grace }),
        1 => Just(Op::Handover),
        1 => (proptest::option::of(0u8..90), proptest::option::of(0u8..5), any::<bool>())
            .prop_map(|(bytes, count, of_volume)| Op::Quota { bytes, count, of_volume }),
        1 => (1u8..5).prop_map(|container| Op::Retire { container }),
        1 => (1u8..5).prop_map(|container| Op::Lease { container }),
    ];
    proptest::collection::vec(op, 1..80)
}

struct World {
    core: Core,
    bucket: BucketRef,
    sessions: [SessionId; 2],
    next_nonce: u8,
    sequences: BTreeMap<SessionId, u64>,
    /// Ids that a session believes to hold.
    held: BTreeMap<SessionId, Vec<BlockId>>,
    loans: BTreeMap<SessionId, LoanId>,
    uploads: Vec<(WriteId, String)>,
    lent: BTreeSet<BlockId>,
    gone: usize,
    history: Vec<(Command, Reply)>,
}

impl World {
    fn new() -> Self {
        let mut core = Core::new();
        let sessions = [core.open_session(1), core.open_session(2)];
        core.add_lease(1, 1, 2000);
        core.add_lease(2, 2, 2000);
        let mut world = Self {
            bucket: bucket_ref("bucket", core.index + 1),
            core,
            sessions,
            next_nonce: 3,
            sequences: BTreeMap::new(),
            held: BTreeMap::new(),
            loans: BTreeMap::new(),
            uploads: Vec::new(),
            lent: BTreeSet::new(),
            gone: 0,
            history: Vec::new(),
        };
        let create = CreateBucket {
            context: world.context(sessions[0]),
            name: world.bucket.name.clone(),
            owner: user("root"),
            location: String::new(),
        };
        assert!(matches!(world.core.apply(create), Reply::Bucket(_)));
        world
    }

    fn context(&mut self, session: SessionId) -> WriteContext {
        let sequence = self.sequences.entry(session).or_default();
        *sequence += 1;
        // The last few commands may still be repeated.
        WriteContext { session, sequence: *sequence, acknowledged: sequence.saturating_sub(10) }
    }

    fn session(&self, second: bool) -> SessionId {
        self.sessions[usize::from(second)]
    }

    /// One that has ids left.
    fn lease(&self, choice: u16) -> LeaseId {
        let leases = self.core.view().rows::<LeaseRow>(LEASE, &[], None, 1000).unwrap();
        let good: Vec<_> = leases.into_iter().filter(|(_, row)| row.left() > 0).collect();
        let chosen = &good[usize::from(choice) % good.len()].0;
        LeaseId(u64::from_be_bytes(*chosen.last_chunk().unwrap()))
    }

    fn take(&mut self, session: SessionId, count: u8, length: u64) -> Vec<BlockEntry> {
        let held = self.held.entry(session).or_default();
        let taken = held.split_off(held.len().saturating_sub(usize::from(count)));
        taken.into_iter().map(|block| entry_of(block, length)).collect()
    }

    fn run(&mut self, command: impl Into<Command>) -> Reply {
        let command = command.into();
        let reply = self.core.apply(command.clone());
        self.history.push((command, reply.clone()));
        reply
    }

    fn step(&mut self, op: Op) {
        self.core.now_ms += 1000;
        match op {
            Op::Loan { session, count } => {
                let session = self.session(session);
                let context = self.context(session);
                let lease = self.lease(count);
                if let Reply::Lent(lent) = self.run(command::TakeLoan { context, lease, count }) {
                    self.loans.insert(session, lent.id);
                    let locals = lent.first.0..lent.first.0 + u64::from(lent.count);
                    let ids: Vec<BlockId> = locals
                        .map(|local| BlockId { container: lent.container, local: LocalId(local) })
                        .collect();
                    for id in &ids {
                        assert!(self.lent.insert(*id), "{id} is lent twice");
                    }
                    self.held.entry(session).or_default().extend(ids);
                }
            }
            Op::Commit { session, key, blocks, steal } => {
                let session = self.session(session);
                let from = if steal { self.sessions.into_iter().find(|s| *s != session) } else { None };
                let entries = self.take(from.unwrap_or(session), blocks, 10);
                let context = self.context(session);
                let commit = commit_key(context, self.bucket.clone(), &name(key), entries);
                self.run(commit);
            }
            Op::Copy { session, from, to } => {
                let session = self.session(session);
                let source = key::get(&self.core.view(), self.bucket.id, &key_name(from)).unwrap();
                let Some(source) = source else { return };
                let copy = CopyKey {
                    context: self.context(session),
                    source_bucket: self.bucket.clone(),
                    source_key: key_name(from),
                    source_version: source.rest.version,
                    bucket: self.bucket.clone(),
                    key: key_name(to),
                    condition: WriteCondition::None,
                    owner: UserId("root".into()),
                    storage_class: StorageClass::Standard,
                    replication: Replication::One,
                    attributes: None,
                };
                self.run(copy);
            }
            Op::Delete { session, keys } => {
                let session = self.session(session);
                let keys = keys.into_iter().map(|key| (key_name(key), WriteCondition::None)).collect();
                let context = self.context(session);
                self.run(DeleteKeys { context, bucket: self.bucket.clone(), keys });
            }
            Op::Release { session, count, whole } => {
                let session = self.session(session);
                let blocks = self.take(session, count, 1).into_iter().map(|entry| entry.block).collect();
                let loan = self.loans.get(&session).copied().filter(|_| whole);
                let context = self.context(session);
                self.run(ReleaseBlocks { context, blocks, loan });
            }
            Op::End { session } => {
                let ended = self.session(session);
                self.run(command::EndSession { session: ended });
                self.next_nonce += 1;
                self.sessions[usize::from(session)] = self.core.open_session(self.next_nonce);
            }
            Op::Expire => {
                let rows = self.core.view().rows::<crate::schema::LoanRow>(LOAN, &[], None, 100).unwrap();
                let loans = rows.iter().map(|(row_key, _)| first_of(row_key)).collect();
                let taken_before_ms = self.core.now_ms - 20_000;
                self.run(command::ExpireLoans { loans, taken_before_ms });
            }
            Op::Repeat { back } => {
                let at = self.history.len().checked_sub(1 + usize::from(back));
                let Some((command, reply)) = at.and_then(|at| self.history.get(at).cloned()) else { return };
                let again = self.core.apply(command.clone());
                let is_numbered = matches!(command.kind(), 6 | 7 | 15..=23);
                let is_gone = matches!(
                    again,
                    Reply::Rejected(wire::om::Rejection::SessionEnded | wire::om::Rejection::Forgotten)
                );
                if is_numbered && !is_gone && reply != Reply::LeaseExhausted {
                    assert_eq!(again, reply, "a repeat is answered as the first was: {command:?}");
                }
            }
            Op::Work { steps, after_grace } => {
                for _ in 0..steps {
                    let before = if after_grace { u64::MAX } else { 0 };
                    let next = crate::state::work::next_due(&self.core.view(), before, &|_| false).unwrap();
                    let Some(row_key) = next else { return };
                    let before = invariants::going_with_their_container(&self.core.view());
                    self.core.apply(command::WorkOff { row_key: row_key.into() });
                    self.gone += before - invariants::going_with_their_container(&self.core.view());
                }
            }
            Op::Handover => self.gone += self.core.hand_over() as usize,
            Op::Quota { bytes, count, of_volume } => {
                let quota = Quota { bytes: bytes.map(u64::from), count: count.map(u64::from) };
                let volume = s3_volume();
                match of_volume {
                    true => {
                        let quota = Some(Quota { count: None, ..quota });
                        self.run(SetVolume { name: volume, owner: None, quota })
                    }
                    false => self.run(SetBucketQuota { volume, name: self.bucket.name.clone(), quota }),
                };
            }
            Op::Retire { container } => {
                let container = ContainerId(u64::from(container));
                let retired = self.run(command::RetireContainer { container });
                let view = self.core.view();
                assert_eq!(retired == Reply::Worked(1), lease::is_retired(&view, container).unwrap());
                if retired == Reply::Worked(1) {
                    assert!(lease::is_retirable(&view, container).unwrap(), "nothing names it");
                }
            }
            // Small ones, so that they are used up; ended ones go.
            Op::Lease { container } => {
                let id = self.core.index + 100;
                self.core.add_lease_from(id, u64::from(container), 10_000 + 10 * id, 5);
                let leases = self.core.view().rows::<LeaseRow>(LEASE, &[], None, 1000).unwrap();
                let ended = leases.iter().filter(|(_, row)| row.is_ended);
                let ended =
                    ended.map(|(row_key, _)| LeaseId(u64::from_be_bytes(*row_key.last_chunk().unwrap())));
                let ended: Vec<LeaseId> = ended.collect();
                self.run(command::DropLeases { leases: ended });
            }
            op => self.step_multipart(op),
        }
    }

    fn step_multipart(&mut self, op: Op) {
        match op {
            Op::Create { session, key } => {
                let session = self.session(session);
                let create = CreateUpload {
                    context: self.context(session),
                    bucket: self.bucket.clone(),
                    key: key_name(key),
                    owner: user("root"),
                    storage_class: StorageClass::Standard,
                    replication: Replication::One,
                    attributes: Default::default(),
                    checksum: None,
                };
                if let Reply::Upload(upload) = self.run(create) {
                    self.uploads.push((upload, name(key)));
                }
            }
            Op::Part { session, upload, part, blocks } => {
                let session = self.session(session);
                let Some((upload, key)) = self.upload(upload) else { return };
                let entries = self.take(session, blocks, PART_BYTES_MIN);
                let context = self.context(session);
                let commit =
                    commit_part(context, self.bucket.clone(), &key, upload, u32::from(part), entries);
                self.run(commit);
            }
            Op::Complete { session, upload, mut parts } => {
                let session = self.session(session);
                let Some((upload, key)) = self.upload(upload) else { return };
                parts.sort_unstable();
                parts.dedup();
                let rows = self.core.view();
                let named = parts.iter().map(|part| {
                    let row_key = crate::schema::part_row_key(upload, u32::from(*part));
                    let row: Option<crate::schema::PartRow> =
                        rows.row(crate::schema::PART, &row_key).unwrap();
                    let etag = row.map_or_else(|| etag_of_size(0), |row| row.etag);
                    CompletedPart { part: u32::from(*part), etag: Some(etag), checksum: None }
                });
                let complete = CompleteUpload {
                    context: self.context(session),
                    bucket: self.bucket.clone(),
                    key: KeyName::new(&key).unwrap(),
                    upload,
                    parts: named.collect(),
                    condition: WriteCondition::None,
                    expected: None,
                    expected_size: None,
                };
                self.run(complete);
            }
            Op::Abort { session, upload } => {
                let session = self.session(session);
                let Some((upload, key)) = self.upload(upload) else { return };
                let context = self.context(session);
                let key = KeyName::new(&key).unwrap();
                self.run(AbortUpload { context, bucket: self.bucket.clone(), key, upload });
            }
            other => panic!("{other:?} is no multipart step"),
        }
    }

    /// One of the latest uploads, completed and aborted ones included.
    fn upload(&self, back: u8) -> Option<(WriteId, String)> {
        self.uploads.len().checked_sub(1 + usize::from(back)).map(|at| self.uploads[at].clone())
    }

    fn check(&self) {
        invariants::check(&self.core.view(), &self.lent, self.gone);
    }

    /// Another replica applies the same commands in other batches: the same rows, the same replies.
    fn check_batches(&self, sizes: &[usize]) {
        let mut other = Core::new();
        let mut sizes = sizes.iter().cycle();
        let mut rest = self.core.history.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            let commands: Vec<(u64, Command)> =
                now.iter().map(|(now_ms, command, _)| (*now_ms, command.clone())).collect();
            let replies = other.apply_batch(&commands);
            for (reply, (_, command, expected)) in replies.iter().zip(now) {
                assert_eq!(reply, expected, "{command:?}");
            }
            rest = later;
        }
        assert_eq!(other.store.state_hash(), self.core.store.state_hash(), "the same rows");
    }
}

fn name(key: u8) -> String {
    format!("key-{key}")
}

fn key_name(key: u8) -> KeyName {
    KeyName::new(&name(key)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn no_block_is_lost_or_held_twice(ops in ops(), sizes in proptest::collection::vec(1usize..30, 1..8)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
            world.check();
        }
        // At the end everything is given up: every id lent is gone.
        world.step(Op::Quota { bytes: None, count: None, of_volume: true });
        for key in 0..5 {
            let session = world.session(false);
            world.step(Op::Delete { session: session == world.session(true), keys: vec![key] });
        }
        let uploads = world.uploads.clone();
        for (upload, key) in uploads {
            let session = world.session(false);
            let context = world.context(session);
            let key = KeyName::new(&key).unwrap();
            world.run(AbortUpload { context, bucket: world.bucket.clone(), key, upload });
        }
        world.step(Op::End { session: false });
        world.step(Op::End { session: true });
        let before = invariants::going_with_their_container(&world.core.view());
        world.core.work_off(true);
        world.gone += before + world.core.hand_over() as usize;
        world.check();
        world.check_batches(&sizes);
        prop_assert_eq!(world.gone, world.lent.len());
        prop_assert!(!world.core.view().rows::<crate::schema::BlockRow>(crate::schema::BLOCK, &[], None, 1)
            .unwrap().iter().any(|_| true));
    }
}

#[test]
fn large_objects_stay_within_the_rows_of_a_command() {
    // apply asserts the bound itself: here the largest commands of each kind pass through it.
    let mut world = World::new();
    let session = world.session(false);
    for container in 10..14 {
        world.core.add_lease(container, container, 65_536);
    }
    let blocks = |world: &mut World, count: u64| -> Vec<BlockEntry> {
        let mut entries = Vec::new();
        while (entries.len() as u64) < count {
            let context = world.context(session);
            let lease = LeaseId(10 + entries.len() as u64 % 4);
            let Reply::Lent(lent) = world.run(command::TakeLoan { context, lease, count: 1 }) else {
                panic!("a lease is used up")
            };
            let block = block_id(lent.container.0, lent.first.0);
            world.lent.insert(block);
            entries.push(entry_of(block, PART_BYTES_MIN));
        }
        entries
    };
    // 128 blocks, each from a loan of its own, over a key of 128 blocks.
    for _ in 0..2 {
        let entries = blocks(&mut world, 128);
        let context = world.context(session);
        let commit = commit_key(context, world.bucket.clone(), "key-0", entries);
        assert!(matches!(world.run(commit), Reply::Committed(_)));
    }
    world.step(Op::Copy { session: false, from: 0, to: 1 });
    world.step(Op::Create { session: false, key: 2 });
    let (upload, _) = world.upload(0).unwrap();
    for part in [1, 2, 3, 3] {
        let entries = blocks(&mut world, 128);
        let context = world.context(session);
        let bucket = world.bucket.clone();
        assert!(matches!(
            world.run(commit_part(context, bucket, "key-2", upload, part, entries)),
            Reply::Committed(_)
        ));
    }
    world.step(Op::Complete { session: false, upload: 0, parts: vec![1, 3] });
    assert!(
        matches!(world.history.last(), Some((_, Reply::Completed(done))) if done.size == 256 * PART_BYTES_MIN)
    );
    world.check();
    world.core.work_off(false);
    world.check();
    // Small keys of four blocks each, deleted by one command.
    for key in 0..64 {
        let entries = blocks(&mut world, 4);
        let context = world.context(session);
        let commit = commit_key(context, world.bucket.clone(), &format!("small-{key}"), entries);
        world.run(commit);
    }
    let keys =
        (0..64).map(|key| (KeyName::new(&format!("small-{key}")).unwrap(), WriteCondition::None)).collect();
    let context = world.context(session);
    world.run(DeleteKeys { context, bucket: world.bucket.clone(), keys });
    world.core.work_off(true);
    world.check();
}

#[test]
fn ten_thousand_parts_complete_in_one_bounded_command() {
    let mut world = World::new();
    let session = world.session(false);
    world.core.add_lease(10, 10, 65_536);
    world.step(Op::Create { session: false, key: 0 });
    let (upload, key) = world.upload(0).unwrap();
    let mut parts = Vec::new();
    let mut lent: Option<(u64, u64)> = None;
    for part in 1..=10_000u32 {
        let (first, used) = match lent.filter(|(_, used)| *used < 256) {
            Some(loan) => loan,
            None => {
                let context = world.context(session);
                let take = command::TakeLoan { context, lease: LeaseId(10), count: 256 };
                let Reply::Lent(loan) = world.core.apply(take) else { panic!("a lease is used up") };
                let ids = (0..256).map(|distance| block_id(10, loan.first.0 + distance));
                world.lent.extend(ids);
                (loan.first.0, 0)
            }
        };
        lent = Some((first, used + 1));
        let entries = vec![entry_of(block_id(10, first + used), PART_BYTES_MIN)];
        let context = world.context(session);
        let commit = commit_part(context, world.bucket.clone(), &key, upload, part, entries);
        parts.push(CompletedPart {
            part,
            etag: Some(commit.etag),
            checksum: Some(commit.checksums[0].clone()),
        });
        assert!(matches!(world.core.apply(commit), Reply::Committed(_)));
    }
    let complete = CompleteUpload {
        context: world.context(session),
        bucket: world.bucket.clone(),
        key: KeyName::new(&key).unwrap(),
        upload,
        parts,
        condition: WriteCondition::None,
        expected: None,
        expected_size: Some(10_000 * PART_BYTES_MIN),
    };
    let bytes = Command::from(complete.clone()).encode(0);
    assert!(bytes.len() <= wire::limits::COMMAND_BYTES_MAX, "{} bytes", bytes.len());
    let Reply::Completed(done) = world.core.apply(complete) else { panic!("complete is refused") };
    assert_eq!((done.size, done.etag.parts), (10_000 * PART_BYTES_MIN, 10_000));
    assert!(done.checksum.is_some());
    let row = key::get(&world.core.view(), world.bucket.id, &key_name(0)).unwrap().unwrap();
    assert_eq!(row.rest.parts.len(), 1);
    let from = 7_777 * PART_BYTES_MIN + 1;
    let page = crate::state::layout::page(&world.core.view(), upload, &row.rest.data, from, 256).unwrap();
    let (start, entries) = page.unwrap();
    assert_eq!((start, entries.len()), (from - 1, 256));
    world.core.work_off(false);
    world.check();
    world.step(Op::Delete { session: false, keys: vec![0] });
    world.core.work_off(true);
    world.check();
    assert_eq!(world.core.hand_over(), 10_000);
}
