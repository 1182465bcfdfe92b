//! An SCM in memory and an OM over it, for tests of the whole service.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use client::service::{CallError, OmService, ScmService, call_om};
use meta::{Om, OmConfig};
use parking_lot::Mutex;
use tempfile::TempDir;
use wire::block::{BlockEntry, ContainerLocation, DatanodeAddress, Pipeline, Replication, TokenKey};
use wire::checksum::Etag;
use wire::chunk::BlockDigest;
use wire::ids::{
    BlockId, ClusterId, ContainerId, DatanodeId, Generation, LeaseId, LocalId, PipelineId, SessionId, WriteId,
};
use wire::names::{BucketName, KeyName};
use wire::om::{
    BucketInfo, BucketRef, CommitKey, CommitPart, CreateBucket, CreateUpload, KeyAttributes, KeyCommitted,
    Loan, LookupKey, OmCall, OpenSession, StorageClass, TakeLoan, UserId, UserInfo, WriteCondition,
    WriteContext,
};
use wire::scm::{Degraded, Lease, LeasesSynced, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

/// An SCM that grants what it is asked for.
#[derive(Default)]
pub(crate) struct FakeScm {
    pub(crate) state: Mutex<FakeState>,
    pub(crate) is_down: AtomicBool,
}

#[derive(Default)]
pub(crate) struct FakeState {
    pub(crate) leases: Vec<Lease>,
    pub(crate) returned: BTreeSet<LeaseId>,
    pub(crate) closed: BTreeSet<ContainerId>,
    pub(crate) deleted: Vec<BlockId>,
    pub(crate) last_batch: u64,
    /// Where SCM says that containers are.
    pub(crate) locations: BTreeMap<ContainerId, ContainerLocation>,
    /// Calls of LocateContainers.
    pub(crate) located: u32,
    /// Members of the next pipelines: those not to be avoided are taken.
    pub(crate) datanodes: Vec<DatanodeId>,
    /// Containers that OM declared empty.
    pub(crate) retired: BTreeSet<ContainerId>,
    /// Containers that were degraded.
    pub(crate) degraded: Vec<ContainerId>,
    /// Answers to the next calls of LogDeletions that get lost after they were logged.
    pub(crate) lost_answers: u32,
}

impl FakeState {
    fn member(&self, avoid: &[DatanodeId]) -> DatanodeId {
        let good = self.datanodes.iter().find(|datanode| !avoid.contains(datanode));
        good.or_else(|| self.datanodes.first()).copied().unwrap_or_default()
    }
}

#[async_trait]
impl ScmService for FakeScm {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Failure::new(Status::Retry, "no datanode is ready"));
        }
        let mut state = self.state.lock();
        match request {
            ScmRequest::GrantLease(request) => {
                let id = state.leases.len() as u64 + 1;
                let pipeline = Pipeline {
                    id: PipelineId(id),
                    replication: request.replication,
                    members: vec![DatanodeAddress {
                        id: state.member(&request.avoid_datanodes),
                        address: None,
                    }],
                };
                let lease = Lease {
                    id: LeaseId(id),
                    container: ContainerId(id),
                    generation: Generation(1),
                    first: LocalId(1),
                    count: 65_536,
                    pipeline,
                };
                state.leases.push(lease.clone());
                Ok(ScmReply::GrantLease(lease))
            }
            ScmRequest::SyncLeases(request) => {
                state.returned.extend(request.ended);
                let end = request.held.iter().filter(|id| {
                    let lease = state.leases.iter().find(|lease| lease.id == **id);
                    lease.is_none_or(|lease| state.closed.contains(&lease.container))
                });
                let end = end.copied().collect();
                let token_keys = vec![TokenKey { id: 1, secret: [5; 32], expires_ms: u64::MAX }];
                Ok(ScmReply::SyncLeases(LeasesSynced { end, unknown_to_om: Vec::new(), token_keys }))
            }
            ScmRequest::LogDeletions(request) => {
                if request.batch > state.last_batch {
                    state.last_batch = request.batch;
                    state.deleted.extend(request.blocks);
                }
                if state.lost_answers > 0 {
                    state.lost_answers -= 1;
                    return Err(Failure::new(Status::Unknown, "the answer was lost"));
                }
                Ok(ScmReply::LogDeletions(()))
            }
            ScmRequest::LocateContainers(request) => {
                state.located += 1;
                let known = request.containers.iter().filter_map(|id| state.locations.get(id).cloned());
                Ok(ScmReply::LocateContainers(known.collect()))
            }
            ScmRequest::DegradeContainer(request) => {
                if request.acknowledged.is_empty() {
                    return Ok(ScmReply::DegradeContainer(Degraded::Refused));
                }
                state.degraded.push(request.container);
                Ok(ScmReply::DegradeContainer(Degraded::Accepted))
            }
            ScmRequest::ListRetirable(request) => {
                let closed = state.closed.iter().filter(|id| **id > request.after);
                let left = closed.filter(|id| !state.retired.contains(id)).copied();
                Ok(ScmReply::ListRetirable(left.take(request.max as usize).collect()))
            }
            ScmRequest::RetireContainer(request) => {
                if state.lost_answers > 0 {
                    state.lost_answers -= 1;
                    return Err(Failure::new(Status::Unknown, "the call was lost"));
                }
                state.retired.insert(request.container);
                Ok(ScmReply::RetireContainer(()))
            }
            other => panic!("om asked scm {}", other.name()),
        }
    }
}

pub(crate) fn config(dir: &TempDir) -> OmConfig {
    let disk = Arc::new(platform::disk::Directory::open(&dir.path().join("om")).unwrap());
    OmConfig {
        log_segment_bytes: 1 << 20,
        lease_interval_ms: 10,
        deletion_interval_ms: 10,
        work_interval_ms: 10,
        retire_interval_ms: 10,
        delete_grace_ms: 50,
        ..OmConfig::new(disk, ClusterId(uuid::Uuid::from_u128(7)), [3; 32])
    }
}

/// A service with one session and one bucket.
pub(crate) struct Rig {
    pub(crate) om: Arc<Om>,
    pub(crate) session: SessionId,
    pub(crate) sequence: u64,
}

pub(crate) fn user(name: &str) -> UserInfo {
    UserInfo { id: UserId(name.to_owned()), display_name: name.to_owned(), email: None }
}

impl Rig {
    pub(crate) async fn open(dir: &TempDir, scm: Arc<FakeScm>) -> Self {
        Self::open_with(config(dir), scm).await
    }

    pub(crate) async fn open_with(config: OmConfig, scm: Arc<FakeScm>) -> Self {
        let om = Om::open(config, scm).await.unwrap();
        om.wait_ready().await.unwrap();
        let session = call_om(om.as_ref(), OpenSession { nonce: wire::random::array() }).await.unwrap();
        Self { om, session, sequence: 0 }
    }

    pub(crate) async fn call<C: OmCall>(&self, request: C) -> Result<C::Reply, CallError> {
        call_om(self.om.as_ref() as &dyn OmService, request).await
    }

    pub(crate) fn context(&mut self) -> WriteContext {
        self.sequence += 1;
        WriteContext { session: self.session, sequence: self.sequence, acknowledged: self.sequence }
    }

    pub(crate) async fn create_bucket(&mut self, name: &str) -> BucketRef {
        let request = CreateBucket {
            context: self.context(),
            name: BucketName::new(name).unwrap(),
            owner: user("root"),
            location: String::new(),
        };
        bucket_ref(self.call(request).await.unwrap())
    }

    pub(crate) async fn loan(&mut self, count: u16) -> Loan {
        let request = TakeLoan {
            context: self.context(),
            replication: Replication::One,
            count,
            avoid: Vec::new(),
            avoid_datanodes: Vec::new(),
        };
        self.call(request).await.unwrap()
    }

    pub(crate) fn commit_request(
        &mut self,
        bucket: &BucketRef,
        name: &str,
        blocks: Vec<BlockEntry>,
    ) -> CommitKey {
        CommitKey {
            context: self.context(),
            bucket: bucket.clone(),
            key: key(name),
            condition: WriteCondition::None,
            owner: UserId("root".into()),
            size: blocks.iter().map(|block| block.length).sum(),
            etag: Etag::whole([1; 16]),
            storage_class: StorageClass::Standard,
            replication: Replication::One,
            attributes: KeyAttributes::default(),
            checksum: None,
            checksums: Vec::new(),
            blocks,
        }
    }

    pub(crate) async fn put(
        &mut self,
        bucket: &BucketRef,
        name: &str,
        blocks: Vec<BlockEntry>,
    ) -> KeyCommitted {
        let request = self.commit_request(bucket, name, blocks);
        self.call(request).await.unwrap()
    }

    pub(crate) async fn create_upload(&mut self, bucket: &BucketRef, name: &str) -> WriteId {
        let request = CreateUpload {
            context: self.context(),
            bucket: bucket.clone(),
            key: key(name),
            owner: user("root"),
            storage_class: StorageClass::Standard,
            replication: Replication::One,
            attributes: KeyAttributes::default(),
            checksum: None,
        };
        self.call(request).await.unwrap()
    }

    pub(crate) async fn put_part(
        &mut self,
        bucket: &BucketRef,
        name: &str,
        upload: WriteId,
        part: u32,
        block: BlockEntry,
    ) {
        let request = CommitPart {
            context: self.context(),
            bucket: bucket.clone(),
            key: key(name),
            upload,
            part,
            size: block.length,
            etag: Etag::whole([part as u8; 16]),
            checksums: Vec::new(),
            blocks: vec![block],
        };
        self.call(request).await.unwrap();
    }

    pub(crate) fn lookup(bucket: &BucketRef, name: &str) -> LookupKey {
        LookupKey { bucket: bucket.clone(), key: key(name), layout_from: Some(0) }
    }
}

pub(crate) fn bucket_ref(info: BucketInfo) -> BucketRef {
    BucketRef { name: info.name, id: info.id, config_version: info.config_version, access_version: 0 }
}

pub(crate) fn key(name: &str) -> KeyName {
    KeyName::new(name).unwrap()
}

/// The id at a place of a loan, as a block of so many bytes.
pub(crate) fn entry(loan: &Loan, at: u64, length: u64) -> BlockEntry {
    let block = BlockId { container: loan.container, local: LocalId(loan.first.0 + at) };
    BlockEntry { block, offset: 0, length, block_length: length, digest: BlockDigest(at) }
}

/// Waits until a condition holds, with a deadline that only a hang meets.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {what}");
}
