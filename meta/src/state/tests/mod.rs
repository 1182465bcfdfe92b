//! Tests of apply over a store in memory: golden scripts, and properties against models.

mod format;
mod invariants;
mod listing;
mod model;
mod script;

use consensus::{Entry, MemoryStore, ReadView, StateMachine, StoreError};
use wire::block::{BlockEntry, DatanodeAddress, Pipeline, Replication};
use wire::checksum::{Checksum, ChecksumAlgorithm, Etag};
use wire::chunk::BlockDigest;
use wire::ids::{
    BlockId, BucketId, ContainerId, DatanodeId, Generation, LeaseId, LocalId, PipelineId, SessionId, WriteId,
};
use wire::names::{BucketName, KeyName};
use wire::om::{
    BucketRef, CommitKey, CommitPart, KeyAttributes, StorageClass, UserId, UserInfo, WriteCondition,
    WriteContext,
};
use wire::scm::Lease;

use crate::command::{self, Command};
use crate::schema::{BLOCK, TABLES, work_row_key};
use crate::state::{OmState, Reply, work};

/// OM's core without raft.
pub(crate) struct Core {
    pub(crate) store: MemoryStore,
    state: OmState,
    pub(crate) index: u64,
    pub(crate) now_ms: u64,
    /// All that was applied one by one, with its time and reply.
    pub(crate) history: Vec<(u64, Command, Reply)>,
}

impl Core {
    pub(crate) fn new() -> Self {
        Self {
            store: MemoryStore::new(TABLES),
            state: OmState::default(),
            index: 0,
            now_ms: 1_000_000,
            history: Vec::new(),
        }
    }

    pub(crate) fn view(&self) -> ReadView {
        self.store.view()
    }

    /// Applies a command in a batch of its own, from its bytes as a replica would.
    pub(crate) fn apply(&mut self, command: impl Into<Command>) -> Reply {
        self.index += 1;
        let command = command.into();
        let bytes = command.encode(self.now_ms);
        let entry = Entry { index: self.index, term: 1, command: &bytes };
        let state = &mut self.state;
        let reply = self.store.write(|batch| {
            batch.begin_entry();
            let reply = state.apply(batch, entry).expect("memory does not fail");
            state.finish_batch(batch).expect("memory does not fail");
            reply
        });
        self.history.push((self.now_ms, command, reply.clone()));
        reply
    }

    /// Applies commands in one batch, as a replica that is behind would.
    pub(crate) fn apply_batch(&mut self, commands: &[(u64, Command)]) -> Vec<Reply> {
        let (state, index) = (&mut self.state, &mut self.index);
        self.store.write(|batch| {
            let apply = |(now_ms, command): &(u64, Command)| {
                *index += 1;
                batch.begin_entry();
                let bytes = command.encode(*now_ms);
                state
                    .apply(batch, Entry { index: *index, term: 1, command: &bytes })
                    .expect("memory does not fail")
            };
            let replies = commands.iter().map(apply).collect();
            state.finish_batch(batch).expect("memory does not fail");
            replies
        })
    }

    /// Works off the queue, those rows that wait for the grace included if `after_grace`.
    pub(crate) fn work_off(&mut self, after_grace: bool) -> u64 {
        let mut steps = 0;
        let queued_before_ms = if after_grace { u64::MAX } else { 0 };
        while let Some(row_key) = work::next_due(&self.view(), queued_before_ms, &|_| false).unwrap() {
            self.apply(command::WorkOff { row_key: row_key.into() });
            steps += 1;
            assert!(steps < 10_000, "the queue comes to no end");
        }
        steps
    }

    /// Hands all freed blocks over.
    pub(crate) fn hand_over(&mut self) -> u32 {
        let mut count = 0;
        loop {
            let begin =
                command::BeginHandover { freed_before_ms: u64::MAX, count_max: 240, skip: Vec::new() };
            let Reply::Handover(Some(handover)) = self.apply(begin) else { return count };
            let Reply::Worked(done) =
                self.apply(command::FinishHandover { batch: handover.batch, ..Default::default() })
            else {
                panic!("finishing answers a count")
            };
            count += done;
        }
    }

    pub(crate) fn open_session(&mut self, nonce: u8) -> SessionId {
        match self.apply(command::OpenSession { nonce: [nonce; 16] }) {
            Reply::Session(session) => session,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn add_lease(&mut self, id: u64, container: u64, count: u64) {
        self.add_lease_from(id, container, 1, count);
    }

    pub(crate) fn add_lease_from(&mut self, id: u64, container: u64, first: u64, count: u64) {
        let pipeline = Pipeline {
            id: PipelineId(container),
            replication: Replication::One,
            members: vec![DatanodeAddress { id: DatanodeId::default(), address: None }],
        };
        let lease = Lease {
            id: LeaseId(id),
            container: ContainerId(container),
            generation: Generation(1),
            first: LocalId(first),
            count,
            pipeline,
        };
        self.apply(command::AddLease { lease });
    }
}

#[test]
fn a_damaged_row_fails_its_command_and_leaves_nothing_half_done() {
    let mut core = Core::new();
    let session = core.open_session(1);
    core.add_lease(1, 1, 10);
    let bucket = bucket_ref("bucket", 3);
    let mut sequence = 0;
    let mut context = || {
        sequence += 1;
        WriteContext { session, sequence, acknowledged: sequence }
    };
    core.apply(wire::om::CreateBucket {
        context: context(),
        name: bucket.name.clone(),
        owner: user("root"),
        location: String::new(),
    });
    core.apply(command::TakeLoan { context: context(), lease: LeaseId(1), count: 4 });
    core.apply(commit_key(context(), bucket.clone(), "k", vec![entry_of(block_id(1, 1), 10)]));
    // The loan's row is read and rewritten before the damaged block row of the old version is met.
    core.store.corrupt_row(BLOCK, &block_id(1, 1).to_row_key());
    let before = core.store.state_hash();
    let commit = commit_key(context(), bucket.clone(), "k", vec![entry_of(block_id(1, 2), 20)]);
    let bytes = Command::from(commit).encode(core.now_ms);
    let state = &mut core.state;
    core.store.write(|batch| {
        batch.begin_entry();
        let outcome = state.apply(batch, Entry { index: 100, term: 1, command: &bytes });
        assert!(matches!(outcome, Err(StoreError::Corrupt { table: "block", .. })));
        batch.rollback_entry().unwrap();
        state.finish_batch(batch).unwrap();
    });
    assert_eq!(core.store.state_hash(), before);
    // What does not need the row goes on.
    core.index = 100;
    let other = commit_key(context(), bucket, "other", vec![entry_of(block_id(1, 2), 20)]);
    assert!(matches!(core.apply(other), Reply::Committed(_)));
}

#[test]
fn work_keys_sort_by_queue_then_age() {
    assert!(work_row_key(0, u64::MAX, 0) < work_row_key(1, 0, 0));
    assert!(work_row_key(0, 1, 9) < work_row_key(0, 2, 0));
}

pub(crate) fn user(name: &str) -> UserInfo {
    UserInfo { id: UserId(name.to_owned()), display_name: name.to_owned(), email: None }
}

pub(crate) fn bucket_ref(name: &str, id: u64) -> BucketRef {
    BucketRef { name: BucketName::new(name).unwrap(), id: BucketId(id), config_version: 1, access_version: 0 }
}

pub(crate) fn block_id(container: u64, local: u64) -> BlockId {
    BlockId { container: ContainerId(container), local: LocalId(local) }
}

pub(crate) fn entry_of(block: BlockId, length: u64) -> BlockEntry {
    BlockEntry { block, offset: 0, length, block_length: length, digest: BlockDigest(block.local.0) }
}

pub(crate) fn etag_of_size(size: u64) -> Etag {
    Etag::whole((u128::from(size) + 1).to_be_bytes())
}

pub(crate) fn crc_of_zeros(size: u64) -> Checksum {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &vec![0; size.min(4096) as usize]);
    Checksum::full(ChecksumAlgorithm::Crc64Nvme, crc.to_be_bytes())
}

pub(crate) fn commit_key(
    context: WriteContext,
    bucket: BucketRef,
    key: &str,
    blocks: Vec<BlockEntry>,
) -> CommitKey {
    let size = blocks.iter().map(|block| block.length).sum();
    CommitKey {
        context,
        bucket,
        key: KeyName::new(key).unwrap(),
        condition: WriteCondition::None,
        owner: UserId("root".into()),
        size,
        etag: etag_of_size(size),
        storage_class: StorageClass::Standard,
        replication: Replication::One,
        attributes: KeyAttributes::default(),
        checksum: None,
        checksums: Vec::new(),
        blocks,
    }
}

pub(crate) fn commit_part(
    context: WriteContext,
    bucket: BucketRef,
    key: &str,
    upload: WriteId,
    part: u32,
    blocks: Vec<BlockEntry>,
) -> CommitPart {
    let size = blocks.iter().map(|block| block.length).sum();
    CommitPart {
        context,
        bucket,
        key: KeyName::new(key).unwrap(),
        upload,
        part,
        size,
        etag: etag_of_size(size),
        checksums: vec![crc_of_zeros(size)],
        blocks,
    }
}
