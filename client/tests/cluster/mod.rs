//! A cluster in memory for tests of writers and readers: datanodes that hang, refuse, die and answer late, an OM that lends,
//! and SCM's rules about degraded containers as a model. Under tokio's paused clock it takes no real time.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::http::{DatanodeStub, Transport, Verifier, datanode_router, serve};
use client::key_reader::KeyReader;
use client::key_writer::{KeyWriter, WrittenBlocks};
use client::service::{CallError, ChunkStream, DatanodeService, Datanodes, OmService};
use client::session::Session;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use wire::block::*;
use wire::chunk::{BlockDigest, ChunkRun};
use wire::cluster_key::ClusterKey;
use wire::datanode::{BlockReceipt, ReadBlock, WriteBlock};
use wire::host::HostPort;
use wire::ids::*;
use wire::limits::CHUNK_BYTES;
use wire::om::{BucketRef, LayoutPage, Loan, OmReply, OmRequest};
use wire::scm::Degraded;
use wire::status::{Failure, Status};

/// Bytes of a block at most.
pub const BLOCK_MAX: u64 = 3 << 20;
/// Ids in a loan.
pub const LOAN_IDS: u16 = 64;

/// How a datanode behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Well,
    /// SIGSTOP: takes connections, does nothing.
    Hangs,
    /// Takes so many runs, then nothing more.
    HangsAfter(usize),
    /// Nobody listens.
    Dead,
    /// Breaks off after so many runs.
    DiesAfter(usize),
    /// Takes so many runs, then refuses: the container has been closing for too long.
    RefusesAfter(usize),
    /// Gives up a body that stands still, as over HTTP.
    Impatient,
    /// Acknowledges this long after the last byte.
    AcksAfter(Duration),
    /// Takes a run in this time.
    Slow(Duration),
    /// Answers so to the head of every write.
    Refuses(Status),
    /// Acknowledges another digest.
    Lies,
}

/// A datanode.
pub struct Node {
    pub id: DatanodeId,
    pub mode: Mutex<Mode>,
    pub blocks: Mutex<BTreeMap<BlockId, (Vec<u8>, BlockDigest)>>,
    /// Refuses new blocks there.
    pub closed: Mutex<BTreeSet<ContainerId>>,
    /// Runs in its hands: taken and not dropped.
    pub reads: Mutex<u32>,
}

impl Node {
    fn mode(&self) -> Mode {
        *self.mode.lock()
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    pub fn has(&self, entry: &BlockEntry) -> bool {
        self.blocks
            .lock()
            .get(&entry.block)
            .is_some_and(|(data, digest)| *digest == entry.digest && data.len() as u64 == entry.block_length)
    }
}

fn dead() -> Failure {
    Failure::new(Status::Retry, "connection refused")
}

#[async_trait]
impl DatanodeService for Node {
    async fn write_block(&self, request: WriteBlock, mut body: ChunkStream) -> Result<BlockReceipt, Failure> {
        match self.mode() {
            Mode::Dead => return Err(dead()),
            Mode::Hangs => std::future::pending().await,
            Mode::Refuses(status) => return Err(Failure::new(status, "not this one")),
            _ => {}
        }
        if self.closed.lock().contains(&request.block.container) {
            return Err(Failure::new(Status::Refused, "it is closing"));
        }
        let (mut data, mut crcs, mut runs) = (Vec::new(), Vec::new(), 0);
        loop {
            match self.mode() {
                Mode::Dead => return Err(dead()),
                Mode::Hangs => std::future::pending().await,
                Mode::HangsAfter(count) if runs >= count => std::future::pending().await,
                Mode::DiesAfter(count) if runs >= count => {
                    return Err(Failure::new(Status::Unknown, "the connection broke"));
                }
                Mode::RefusesAfter(count) if runs >= count => {
                    return Err(Failure::new(
                        Status::Refused,
                        "it is closing, and the block came too slowly",
                    ));
                }
                Mode::Slow(pause) => sleep(pause).await,
                _ => {}
            }
            let run = match self.mode() {
                Mode::Impatient => tokio::time::timeout(client::http::BODY_IDLE_DEADLINE, body.next())
                    .await
                    .map_err(|_| Failure::new(Status::Retry, "a stream stands still"))?,
                _ => body.next().await,
            };
            let Some(run) = run else { break };
            let run = run?;
            assert!(run.is_intact());
            assert!(data.len().is_multiple_of(CHUNK_BYTES), "only the last run may end in a short chunk");
            data.extend_from_slice(&run.data);
            crcs.extend(run.crcs);
            runs += 1;
        }
        let length = data.len() as u64;
        assert!(length == request.length || (!request.is_exact && length < request.length));
        match self.mode() {
            Mode::AcksAfter(pause) => sleep(pause).await,
            Mode::Dead => return Err(dead()),
            Mode::Hangs => std::future::pending().await,
            _ => {}
        }
        let digest = BlockDigest::new(request.block, length, &crcs);
        let known = self.blocks.lock().insert(request.block, (data, digest));
        assert!(known.is_none(), "an id is written once");
        match self.mode() {
            Mode::Lies => Ok(BlockReceipt { length, digest: BlockDigest(digest.0 ^ 1) }),
            _ => Ok(BlockReceipt { length, digest }),
        }
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        self.write_block(request, Box::pin(stream::iter([Ok(body)]))).await
    }

    async fn ping(&self) -> Result<(), Failure> {
        match self.mode() {
            Mode::Hangs | Mode::HangsAfter(_) => std::future::pending().await,
            Mode::Dead | Mode::DiesAfter(_) => Err(dead()),
            _ => Ok(()),
        }
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        *self.reads.lock() += 1;
        match self.mode() {
            Mode::Dead => return Err(dead()),
            Mode::Hangs => std::future::pending().await,
            Mode::Refuses(status) => return Err(Failure::new(status, "not this one")),
            _ if request.token.claim.expires_ms <= wire::clock::now_ms() => {
                return Err(Failure::new(Status::Denied, "the token has expired"));
            }
            _ => {}
        }
        let data = self.blocks.lock().get(&request.block).map(|(data, _)| data.clone());
        let data = data.ok_or_else(|| Failure::new(Status::NotFound, "no such container"))?;
        let from = request.offset as usize / CHUNK_BYTES * CHUNK_BYTES;
        let to = ((request.offset + request.length) as usize).next_multiple_of(CHUNK_BYTES).min(data.len());
        let runs: Vec<_> = data[from..to]
            .chunks(2 * CHUNK_BYTES)
            .map(|run| Ok(ChunkRun::new(Bytes::copy_from_slice(run))))
            .collect();
        let runs = stream::iter(runs);
        Ok(match self.mode() {
            Mode::DiesAfter(count) => {
                let error = stream::iter([Err(Failure::new(Status::Corrupt, "damaged"))]);
                Box::pin(runs.take(count).chain(error))
            }
            Mode::HangsAfter(count) => Box::pin(runs.take(count).chain(stream::pending())),
            Mode::Slow(pause) => Box::pin(runs.then(move |run| async move {
                sleep(pause).await;
                run
            })),
            _ => Box::pin(runs),
        })
    }
}

/// A container as SCM has it.
#[derive(Debug, Clone)]
pub struct Container {
    pub replication: Replication,
    pub members: Vec<DatanodeId>,
    pub valid: BTreeSet<DatanodeId>,
    pub is_open: bool,
    used: u64,
}

#[derive(Default)]
pub struct State {
    pub containers: BTreeMap<ContainerId, Container>,
    pub loans: u64,
    pub released: BTreeSet<BlockId>,
    pub degrades: Vec<(ContainerId, BTreeSet<DatanodeId>, Degraded)>,
    /// SCM's answer to the next degrades, whatever the state.
    pub refuses_degrade: bool,
    /// Nodes SCM opens nothing on: dead, or just degraded.
    pub out: BTreeSet<DatanodeId>,
    pub refreshes: u32,
    /// Tokens renewed, a number for each call; refused if `lives_no_more`.
    pub renewals: Vec<usize>,
    pub lives_no_more: bool,
    /// Containers that gateways did not want again.
    pub avoided: BTreeSet<ContainerId>,
    pub located: BTreeMap<ContainerId, Vec<DatanodeId>>,
}

/// OM and SCM in one.
pub struct FakeOm {
    pub nodes: Vec<DatanodeId>,
    /// Where they listen; not at all while they live in the gateway's process.
    pub addresses: BTreeMap<DatanodeId, HostPort>,
    pub state: Mutex<State>,
    /// How long a loan without some datanodes is sought in vain.
    pub patience: Duration,
    /// Whether a THREE container is opened on two nodes because a gateway wants to go round the others.
    pub opens_pairs: Mutex<bool>,
}

impl FakeOm {
    fn choose(
        &self,
        replication: Replication,
        avoid: &[ContainerId],
        without: &[DatanodeId],
    ) -> Option<ContainerId> {
        let mut state = self.state.lock();
        let found = state.containers.iter().find(|(id, container)| {
            container.is_open
                && container.replication == replication
                && !avoid.contains(id)
                && !container.members.iter().any(|member| without.contains(member))
        });
        if let Some((id, _)) = found {
            return Some(*id);
        }
        let live: Vec<DatanodeId> = self
            .nodes
            .iter()
            .copied()
            .filter(|node| !state.out.contains(node) && !without.contains(node))
            .collect();
        let (wanted, least) = match replication {
            Replication::One => (1, 1),
            Replication::Three if without.is_empty() || *self.opens_pairs.lock() => (3, 2),
            Replication::Three => (3, 3.min(self.nodes.len() - state.out.len())),
        };
        if live.len() < least.max(1) {
            return None;
        }
        let id = ContainerId(state.containers.len() as u64 + 1);
        let first = id.0 as usize % live.len();
        let mut members: Vec<DatanodeId> =
            live.iter().cycle().skip(first).take(wanted.min(live.len())).copied().collect();
        members.sort();
        let valid = members.iter().copied().collect();
        state.containers.insert(id, Container { replication, members, valid, is_open: true, used: 0 });
        Some(id)
    }

    fn degrade(&self, container: ContainerId, acknowledged: BTreeSet<DatanodeId>) -> Degraded {
        let mut state = self.state.lock();
        let refuses = state.refuses_degrade;
        let row = state.containers.get_mut(&container).expect("degrade names a container that was lent");
        assert!(row.replication == Replication::Three && acknowledged.len() >= 2, "nothing to degrade");
        let answer = if refuses {
            Degraded::Refused
        } else if row.is_open {
            row.is_open = false;
            row.valid.retain(|member| acknowledged.contains(member));
            Degraded::Accepted
        } else if row.valid.is_subset(&acknowledged) {
            Degraded::Accepted
        } else {
            Degraded::Refused
        };
        let left_out: Vec<DatanodeId> =
            row.members.iter().copied().filter(|member| !acknowledged.contains(member)).collect();
        state.out.extend(left_out);
        state.degrades.push((container, acknowledged, answer));
        answer
    }
}

#[async_trait]
impl OmService for FakeOm {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        match request {
            OmRequest::OpenSession(_) => Ok(OmReply::OpenSession(SessionId(1))),
            OmRequest::RenewSession(_) => Ok(OmReply::RenewSession(())),
            OmRequest::TakeLoan(request) => {
                sleep(Duration::from_millis(1)).await;
                self.state.lock().avoided.extend(&request.avoid);
                let mut chosen = self.choose(request.replication, &request.avoid, &request.avoid_datanodes);
                if chosen.is_none() && !request.avoid_datanodes.is_empty() {
                    sleep(self.patience).await;
                    chosen = self.choose(request.replication, &request.avoid, &[]);
                }
                let id = chosen.ok_or_else(|| Failure::new(Status::Retry, "a lease is awaited"))?;
                let mut state = self.state.lock();
                state.loans += 1;
                let number = state.loans;
                let container = state.containers.get_mut(&id).expect("just chosen");
                let first = LocalId(container.used);
                container.used += u64::from(LOAN_IDS);
                let claim = BlockClaim {
                    operation: BlockOperation::Write,
                    container: id,
                    generation: Generation(1),
                    replication: request.replication,
                    first,
                    count: u64::from(LOAN_IDS),
                    session: SessionId(1),
                    length_max: BLOCK_MAX,
                    expires_ms: u64::MAX,
                };
                let address = |id: &DatanodeId| self.addresses.get(id).cloned();
                let members = container
                    .members
                    .iter()
                    .map(|id| DatanodeAddress { id: *id, address: address(id) })
                    .collect();
                let pipeline = Pipeline { id: PipelineId(id.0), replication: request.replication, members };
                Ok(OmReply::TakeLoan(Loan {
                    id: LoanId(number),
                    container: id,
                    generation: Generation(1),
                    first,
                    count: LOAN_IDS,
                    pipeline,
                    token: token_of(claim),
                }))
            }
            OmRequest::ReleaseBlocks(request) => {
                self.state.lock().released.extend(request.blocks);
                Ok(OmReply::ReleaseBlocks(()))
            }
            OmRequest::DegradeBlocks(request) => {
                sleep(Duration::from_millis(5)).await;
                let acknowledged = request.acknowledged.into_iter().collect();
                Ok(OmReply::DegradeBlocks(self.degrade(request.container, acknowledged)))
            }
            OmRequest::RefreshLocations(request) => {
                let mut state = self.state.lock();
                state.refreshes += 1;
                let found = request
                    .containers
                    .iter()
                    .filter_map(|id| Some(location_of(*id, state.located.get(id).cloned()?)));
                Ok(OmReply::RefreshLocations(found.collect()))
            }
            OmRequest::RenewTokens(request) => {
                let mut state = self.state.lock();
                state.renewals.push(request.blocks.len());
                if state.lives_no_more {
                    return Err(Failure::new(Status::NotFound, "the block lives no more").into());
                }
                let tokens =
                    request.blocks.into_iter().map(|(block, length)| read_token(block, length, u64::MAX));
                Ok(OmReply::RenewTokens(tokens.collect()))
            }
            other => panic!("unexpected {}", other.name()),
        }
    }
}

pub fn token_of(claim: BlockClaim) -> BlockToken {
    BlockToken::sign(claim, &TokenKey { id: 1, secret: [1; 32], expires_ms: u64::MAX })
}

/// Leave to read a block until then.
pub fn read_token(block: BlockId, length: u64, expires_ms: u64) -> BlockToken {
    token_of(BlockClaim {
        operation: BlockOperation::Read,
        container: block.container,
        generation: Generation(1),
        replication: Replication::Three,
        first: block.local,
        count: 1,
        session: SessionId(1),
        length_max: length,
        expires_ms,
    })
}

/// What OM says of a key in these blocks, all of them `known` to be at these datanodes.
pub fn page_of(entries: &[BlockEntry], known: &[DatanodeId], expires_ms: u64) -> LayoutPage {
    let token = |entry: &BlockEntry| read_token(entry.block, entry.block_length, expires_ms);
    let location = |entry: &BlockEntry| location_of(entry.block.container, known.to_vec());
    LayoutPage {
        start: 0,
        entries: entries.to_vec(),
        tokens: entries.iter().map(token).collect(),
        locations: entries.iter().map(location).collect(),
    }
}

/// The bucket of every key.
pub fn bucket() -> BucketRef {
    BucketRef {
        name: wire::names::BucketName::new("bucket").expect("a legal name"),
        id: BucketId(1),
        config_version: 1,
        access_version: 1,
    }
}

pub fn location_of(container: ContainerId, datanodes: Vec<DatanodeId>) -> ContainerLocation {
    let replicas = datanodes
        .into_iter()
        .map(|id| ReplicaLocation {
            datanode: DatanodeAddress { id, address: None },
            generation: Generation(1),
        })
        .collect();
    ContainerLocation { container, replicas }
}

/// A gateway's end of it.
pub struct Cluster {
    pub om: Arc<FakeOm>,
    pub nodes: Vec<Arc<Node>>,
    pub datanodes: Arc<Datanodes>,
    pub session: Arc<Session>,
    pub writer: KeyWriter,
}

impl Cluster {
    /// So many datanodes in the gateway's process.
    pub async fn of(count: usize) -> Self {
        let nodes = nodes(count);
        let datanodes = Datanodes::local_only();
        for node in &nodes {
            datanodes.insert(node.id, node.clone());
        }
        Self::with(nodes, datanodes, BTreeMap::new()).await
    }

    /// So many datanodes behind listeners on loopback. For the real clock.
    pub async fn over_http(count: usize) -> Self {
        let key = ClusterKey::new(ClusterId::default(), [1; 32]);
        let nodes = nodes(count);
        let mut addresses = BTreeMap::new();
        for node in &nodes {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
            addresses.insert(node.id, listener.local_addr().expect("it is bound").into());
            let router = datanode_router(node.clone(), Verifier::new(key.clone()));
            tokio::spawn(serve(listener, None, router, std::future::pending()));
        }
        let transport = Transport::new(key);
        let datanodes = Datanodes::new(Box::new(move |datanode| {
            Ok(Arc::new(DatanodeStub::connect(transport.clone(), datanode)?))
        }));
        Self::with(nodes, datanodes, addresses).await
    }

    async fn with(
        nodes: Vec<Arc<Node>>,
        datanodes: Datanodes,
        addresses: BTreeMap<DatanodeId, HostPort>,
    ) -> Self {
        let datanodes = Arc::new(datanodes);
        let om = Arc::new(FakeOm {
            nodes: nodes.iter().map(|node| node.id).collect(),
            addresses,
            state: Mutex::default(),
            patience: Duration::from_secs(2),
            opens_pairs: Mutex::new(false),
        });
        let session = Session::open(om.clone()).await.expect("the fake OM opens sessions");
        let writer = KeyWriter::new(session.clone(), datanodes.clone());
        Self { om, nodes, datanodes, session, writer }
    }

    /// Writes a body as a gateway does, and how long it took.
    pub async fn put(
        &self,
        replication: Replication,
        data: &Bytes,
        is_known: bool,
    ) -> (Result<Vec<BlockEntry>, Failure>, Duration) {
        let started = Instant::now();
        let outcome = self.write(replication, data, is_known).await;
        let outcome = outcome.map(|written| {
            let entries = written.entries().to_vec();
            written.committed();
            entries
        });
        if let Ok(entries) = &outcome {
            self.check(entries);
        }
        (outcome, started.elapsed())
    }

    async fn write(
        &self,
        replication: Replication,
        data: &Bytes,
        is_known: bool,
    ) -> Result<WrittenBlocks, Failure> {
        if is_known && data.len() <= CHUNK_BYTES {
            return self.writer.write_small(replication, data.clone()).await;
        }
        self.stream(replication, data, is_known.then_some(data.len() as u64), 200_000).await
    }

    /// Writes a body that is declared to be so long and comes in pieces.
    pub async fn stream(
        &self,
        replication: Replication,
        data: &Bytes,
        declared: Option<u64>,
        piece: usize,
    ) -> Result<WrittenBlocks, Failure> {
        let mut sink = self.writer.begin(replication, declared);
        let mut rest = data.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(piece));
            sink.push(piece).await?;
        }
        sink.finish().await
    }

    /// Reads a range of the key that a page describes.
    pub async fn read(
        &self,
        reader: &Arc<KeyReader>,
        page: LayoutPage,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<u8>, Failure> {
        let range = range.start as u64..range.end as u64;
        let mut body = reader.read(bucket(), WriteId::default(), page, range);
        let mut data = Vec::new();
        while let Some(bytes) = body.next().await {
            data.extend_from_slice(&bytes?);
        }
        Ok(data)
    }

    /// All datanodes.
    pub fn ids(&self) -> Vec<DatanodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// The law: every committed block is whole on every replica that SCM counts VALID, and on two at least for THREE.
    pub fn check(&self, entries: &[BlockEntry]) {
        let state = self.om.state.lock();
        for entry in entries {
            let container = &state.containers[&entry.block.container];
            assert!(!container.valid.is_empty());
            for node in &self.nodes {
                if container.valid.contains(&node.id) {
                    assert!(node.has(entry), "{} is VALID and lacks {}: {container:?}", node.id, entry.block);
                }
            }
            let least = if container.replication == Replication::Three { 2 } else { 1 };
            assert!(self.nodes.iter().filter(|node| node.has(entry)).count() >= least);
        }
    }

    pub fn degrades(&self) -> usize {
        self.om.state.lock().degrades.len()
    }
}

fn nodes(count: usize) -> Vec<Arc<Node>> {
    let node = |number| Node {
        id: DatanodeId(uuid::Uuid::from_u128(number as u128 + 1)),
        mode: Mutex::new(Mode::Well),
        blocks: Mutex::default(),
        closed: Mutex::default(),
        reads: Mutex::default(),
    };
    (0..count).map(|number| Arc::new(node(number))).collect()
}

pub fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

/// Runs on a clock that jumps to the next timer.
pub fn on_paused_clock(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing of the machine");
    runtime.block_on(work);
}
