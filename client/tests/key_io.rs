//! Key writer and reader against an OM and datanodes in memory that refuse, fail and break off.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use client::key_reader::KeyReader;
use client::key_writer::{KeyWriter, WrittenBlocks};
use client::service::{CallError, ChunkStream, DatanodeService, Datanodes, OmService};
use client::session::Session;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use wire::block::*;
use wire::chunk::{BlockDigest, ChunkRun};
use wire::datanode::{BlockReceipt, ReadBlock, WriteBlock};
use wire::ids::*;
use wire::limits::CHUNK_BYTES;
use wire::om::{BucketRef, LayoutPage, Loan, OmReply, OmRequest};
use wire::status::{Failure, Status};

const BLOCK_MAX: u64 = 3 << 20;

#[derive(Default)]
struct FakeOm {
    loans: AtomicU64,
    members: Vec<DatanodeAddress>,
    released: Mutex<HashSet<BlockId>>,
    avoided: Mutex<HashSet<ContainerId>>,
}

#[async_trait]
impl OmService for FakeOm {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        match request {
            OmRequest::OpenSession(_) => Ok(OmReply::OpenSession(SessionId(1))),
            OmRequest::TakeLoan(request) => {
                self.avoided.lock().extend(request.avoid);
                let number = self.loans.fetch_add(1, Ordering::SeqCst) + 1;
                let container = ContainerId(number);
                let claim = BlockClaim {
                    operation: BlockOperation::Write,
                    container,
                    generation: Generation(1),
                    replication: request.replication,
                    first: LocalId(0),
                    count: 4,
                    session: SessionId(1),
                    length_max: BLOCK_MAX,
                    expires_ms: u64::MAX,
                };
                let key = TokenKey { id: 1, secret: [1; 32], expires_ms: u64::MAX };
                let members = self.members.clone();
                let pipeline = Pipeline { id: PipelineId(1), replication: request.replication, members };
                Ok(OmReply::TakeLoan(Loan {
                    id: LoanId(number),
                    container,
                    generation: Generation(1),
                    first: LocalId(0),
                    count: 4,
                    pipeline,
                    token: BlockToken::sign(claim, &key),
                }))
            }
            OmRequest::ReleaseBlocks(request) => {
                self.released.lock().extend(request.blocks);
                Ok(OmReply::ReleaseBlocks(()))
            }
            OmRequest::RefreshLocations(_) => Ok(OmReply::RefreshLocations(Vec::new())),
            other => panic!("unexpected {}", other.name()),
        }
    }
}

#[derive(Default)]
struct FakeDatanode {
    blocks: Mutex<HashMap<BlockId, Vec<u8>>>,
    refused: Mutex<HashSet<ContainerId>>,
    /// Reads break off after so many runs.
    breaks_after: Option<usize>,
}

#[async_trait]
impl DatanodeService for FakeDatanode {
    async fn write_block(&self, request: WriteBlock, mut body: ChunkStream) -> Result<BlockReceipt, Failure> {
        if self.refused.lock().contains(&request.block.container) {
            return Err(Failure::new(Status::Refused, "container is full"));
        }
        let (mut data, mut crcs) = (Vec::new(), Vec::new());
        while let Some(run) = body.next().await {
            let run = run?;
            assert!(run.is_intact());
            assert!(data.len().is_multiple_of(CHUNK_BYTES), "only the last run may end in a short chunk");
            data.extend_from_slice(&run.data);
            crcs.extend(run.crcs);
        }
        let length = data.len() as u64;
        assert!(length == request.length || (!request.is_exact && length < request.length));
        assert!(self.blocks.lock().insert(request.block, data).is_none(), "an id is written once");
        Ok(BlockReceipt { length, digest: BlockDigest::new(request.block, length, &crcs) })
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        self.write_block(request, Box::pin(stream::iter([Ok(body)]))).await
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        let data = self.blocks.lock().get(&request.block).cloned();
        let data = data.ok_or_else(|| Failure::new(Status::NotFound, "no such block"))?;
        let from = request.offset as usize / CHUNK_BYTES * CHUNK_BYTES;
        let to = ((request.offset + request.length) as usize).next_multiple_of(CHUNK_BYTES).min(data.len());
        let runs: Vec<_> = data[from..to]
            .chunks(2 * CHUNK_BYTES)
            .map(|run| Ok(ChunkRun::new(Bytes::copy_from_slice(run))))
            .collect();
        let runs = stream::iter(runs);
        Ok(match self.breaks_after {
            Some(count) => {
                let error = stream::iter([Err(Failure::new(Status::Corrupt, "damaged"))]);
                Box::pin(runs.take(count).chain(error))
            }
            None => Box::pin(runs),
        })
    }
}

struct Rig {
    om: Arc<FakeOm>,
    nodes: Vec<Arc<FakeDatanode>>,
    datanodes: Arc<Datanodes>,
    session: Arc<Session>,
    writer: KeyWriter,
}

async fn rig(nodes: Vec<FakeDatanode>) -> Rig {
    let datanodes = Arc::new(Datanodes::local_only());
    let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
    let mut om = FakeOm::default();
    for node in &nodes {
        let id = DatanodeId::random();
        datanodes.insert(id, node.clone());
        om.members.push(DatanodeAddress { id, address: None });
    }
    let om = Arc::new(om);
    let session = Session::open(om.clone()).await.expect("the fake OM opens sessions");
    let writer = KeyWriter::new(session.clone(), datanodes.clone());
    Rig { om, nodes, datanodes, session, writer }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

impl Rig {
    async fn write(&self, data: &[u8], length: Option<u64>, piece: usize) -> Result<WrittenBlocks, Failure> {
        let mut sink = self.writer.begin(Replication::One, length);
        for piece in data.chunks(piece) {
            sink.push(Bytes::copy_from_slice(piece)).await?;
        }
        sink.finish().await
    }

    async fn read(&self, blocks: &[BlockEntry], from: u64, to: u64) -> Result<Vec<u8>, Failure> {
        let replicas: Vec<_> = self
            .om
            .members
            .iter()
            .map(|datanode| ReplicaLocation { datanode: datanode.clone(), generation: Generation(1) })
            .collect();
        let token = |entry: &BlockEntry| {
            let claim = BlockClaim {
                operation: BlockOperation::Read,
                container: entry.block.container,
                generation: Generation(1),
                replication: Replication::One,
                first: entry.block.local,
                count: 1,
                session: SessionId(1),
                length_max: entry.block_length,
                expires_ms: u64::MAX,
            };
            BlockToken::sign(claim, &TokenKey { id: 1, secret: [1; 32], expires_ms: u64::MAX })
        };
        let page = LayoutPage {
            start: 0,
            entries: blocks.to_vec(),
            tokens: blocks.iter().map(token).collect(),
            locations: blocks
                .iter()
                .map(|entry| ContainerLocation {
                    container: entry.block.container,
                    replicas: replicas.clone(),
                })
                .collect(),
        };
        let bucket = BucketRef {
            name: wire::names::BucketName::new("bucket").expect("a legal name"),
            id: BucketId(1),
            config_version: 1,
            access_version: 1,
        };
        let reader = KeyReader::new(self.session.clone(), self.datanodes.clone());
        let mut body = reader.read(bucket, WriteId::default(), page, from..to);
        let mut data = Vec::new();
        while let Some(bytes) = body.next().await {
            data.extend_from_slice(&bytes?);
        }
        Ok(data)
    }
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back() {
    let rig = rig(vec![FakeDatanode::default()]).await;
    let block = BLOCK_MAX as usize;
    for length in
        [1, CHUNK_BYTES - 1, CHUNK_BYTES, 4 * CHUNK_BYTES, block - 1, block, block + 1, 2 * block + 70_000]
    {
        let data = pattern(length);
        for known in [Some(length as u64), None] {
            for piece in [8192, 100_000, 1 << 20] {
                let written = rig.write(&data, known, piece).await.unwrap();
                let entries = written.entries().to_vec();
                written.committed();
                if known.is_some() {
                    assert_eq!(entries.len(), length.div_ceil(block), "no needless blocks");
                }
                assert!(rig.read(&entries, 0, length as u64).await.unwrap() == data);
                let (from, to) = (length / 3, length - length / 4);
                assert!(rig.read(&entries, from as u64, to as u64).await.unwrap() == data[from..to]);
            }
        }
    }
    assert!(rig.om.released.lock().is_empty(), "committed blocks are not released");
}

#[tokio::test]
async fn refused_container_is_left_for_another() {
    let rig = rig(vec![FakeDatanode::default()]).await;
    rig.nodes[0].refused.lock().insert(ContainerId(1));
    let small = rig.writer.write_small(Replication::One, Bytes::from_static(b"small")).await.unwrap();
    assert_ne!(small.entries()[0].block.container, ContainerId(1));
    assert!(rig.om.avoided.lock().contains(&ContainerId(1)));

    let open = small.entries()[0].block.container;
    rig.nodes[0].refused.lock().insert(open);
    let data = pattern(2 << 20);
    let written = rig.write(&data, Some(data.len() as u64), 8192).await.unwrap();
    let entries = written.entries().to_vec();
    assert!(entries.iter().all(|entry| entry.block.container != open));
    assert!(rig.read(&entries, 0, data.len() as u64).await.unwrap() == data);
}

#[tokio::test]
async fn abandoned_blocks_are_released() {
    let rig = rig(vec![FakeDatanode::default()]).await;
    let data = pattern(BLOCK_MAX as usize + 5);
    let mut sink = rig.writer.begin(Replication::One, Some(1 << 30));
    sink.push(Bytes::from(data.clone())).await.unwrap();
    drop(sink);
    let written = rig.writer.write_small(Replication::One, Bytes::from_static(b"x")).await.unwrap();
    let kept = written.entries()[0].block;
    drop(written);
    while rig.om.released.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(rig.om.released.lock().contains(&kept));
}

#[tokio::test]
async fn wrong_length_fails() {
    let rig = rig(vec![FakeDatanode::default()]).await;
    let short = rig.write(&pattern(10), Some(11), 4).await.err().map(|failure| failure.status);
    assert_eq!(short, Some(Status::Invalid));
    let long = rig.write(&pattern(12), Some(11), 4).await.err().map(|failure| failure.status);
    assert_eq!(long, Some(Status::Invalid));
}

#[tokio::test]
async fn reader_falls_over_in_mid_stream() {
    let broken = FakeDatanode { breaks_after: Some(2), ..FakeDatanode::default() };
    let rig = rig(vec![broken, FakeDatanode::default()]).await;
    let data = pattern(1 << 20);
    let written = rig.write(&data, Some(data.len() as u64), 65536).await.unwrap();
    let entries = written.entries().to_vec();
    assert!(rig.read(&entries, 1000, data.len() as u64).await.unwrap() == data[1000..]);

    rig.nodes[1].blocks.lock().clear();
    let failure = rig.read(&entries, 0, data.len() as u64).await.unwrap_err();
    assert_eq!(failure.status, Status::Corrupt, "the failure that says most is told");
}
