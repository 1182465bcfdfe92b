//! A datanode on a simulated disk with an SCM that says what a test wants it to say.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of the rig")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::{DatanodeService, Datanodes, ScmService};
use datanode::{Datanode, DatanodeConfig};
use futures_util::StreamExt;
use parking_lot::Mutex;
use platform::disk::DiskIo;
use platform::simulated::SimulatedDisk;
use wire::block::{BlockClaim, BlockEntry, BlockOperation, BlockToken, Replication, TokenKey};
use wire::chunk::ChunkRun;
use wire::datanode::{FetchReplica, ReadBlock, WriteBlock};
use wire::ids::{BlockId, ClusterId, ContainerId, Generation, LocalId, SessionId};
use wire::scm::ReplicaReport;
use wire::scm::{DatanodeAction, DatanodeCommand, HeartbeatReply, Registered, ScmReply, ScmRequest};
use wire::status::{Failure, Status};
use wire::world::World;

/// Containers up to this were opened before any datanode registered.
pub const NEWEST: u64 = 1000;

/// An SCM that hands out keys and the commands it was given.
#[derive(Default)]
pub struct FakeScm {
    commands: Mutex<Vec<DatanodeCommand>>,
    /// How often it wants to hear of the datanode; 0 for often.
    pub interval_ms: AtomicU64,
    /// The newest container when a datanode registers; 0 for `NEWEST`.
    pub newest: AtomicU64,
    /// Answers the next heartbeat with the wish to hear all again.
    pub has_forgotten: AtomicBool,
    pub requests: Mutex<Vec<ScmRequest>>,
}

impl FakeScm {
    pub fn command(&self, commands: Vec<DatanodeCommand>) {
        self.commands.lock().extend(commands);
    }

    pub fn forget(&self) {
        self.commands.lock().clear();
    }
}

pub fn key() -> TokenKey {
    TokenKey { id: 1, secret: [5; 32], expires_ms: u64::MAX }
}

#[async_trait]
impl ScmService for FakeScm {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        self.requests.lock().push(request.clone());
        let commands = std::mem::take(&mut *self.commands.lock());
        match request {
            ScmRequest::RegisterDatanode(_) => Ok(ScmReply::RegisterDatanode(Registered {
                token_keys: vec![key()],
                heartbeat_interval_ms: self.interval_ms.load(Ordering::SeqCst).max(10),
                commands,
                newest_container: ContainerId(match self.newest.load(Ordering::SeqCst) {
                    0 => NEWEST,
                    newest => newest,
                }),
            })),
            ScmRequest::Heartbeat(_) => Ok(ScmReply::Heartbeat(HeartbeatReply {
                register_again: self.has_forgotten.swap(false, Ordering::SeqCst),
                token_keys: vec![key()],
                commands,
            })),
            _ => Err(Failure::new(Status::Invalid, "not asked here")),
        }
    }
}

#[derive(Clone)]
pub struct Rig {
    pub disk: SimulatedDisk,
    pub config: DatanodeConfig,
    pub datanode: Datanode,
    pub scm: Arc<FakeScm>,
    /// Others it may copy from.
    pub datanodes: Arc<Datanodes>,
}

/// Time and randomness of a simulated run; `on_step` is called at every durable step.
struct TestWorld {
    origin: tokio::time::Instant,
    random: Cell<u64>,
    on_step: Box<dyn Fn(&'static str)>,
}

impl World for TestWorld {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.origin.elapsed().as_millis() as u64
    }

    fn steady_ns(&self) -> u64 {
        1 + self.origin.elapsed().as_nanos() as u64
    }

    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            let next = self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.random.set(next);
            *byte = (next >> 56) as u8;
        }
    }

    fn step(&self, name: &'static str) {
        (self.on_step)(name);
    }
}

/// Runs a test as the simulator runs nodes: one thread, time that jumps, randomness from `seed`.
pub fn simulated<F: Future>(seed: u64, test: F) -> F::Output {
    simulated_with(seed, |_| {}, test)
}

/// The same with a hand at every durable step.
pub fn simulated_with<F: Future>(seed: u64, on_step: impl Fn(&'static str) + 'static, test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime starts");
    let outcome = runtime.block_on(platform::node::scope(Some(1), async {
        let random = Cell::new(seed);
        let origin = tokio::time::Instant::now();
        wire::world::install(Some(Rc::new(TestWorld { origin, random, on_step: Box::new(on_step) })));
        test.await
    }));
    drop(runtime);
    wire::world::install(None);
    outcome
}

/// Bytes that differ from block to block and from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Where `needle` lies in `hay`.
pub fn position_of(hay: &[u8], needle: &[u8]) -> u64 {
    hay.windows(needle.len()).position(|window| window == needle).expect("the bytes are in the file") as u64
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(set: impl FnOnce(&mut DatanodeConfig)) -> Self {
        Self::on(SimulatedDisk::new(1 << 30), set).await
    }

    pub async fn on(disk: SimulatedDisk, set: impl FnOnce(&mut DatanodeConfig)) -> Self {
        let mut config = DatanodeConfig::new(Vec::new(), ClusterId(uuid_of(1)));
        config.growth_step = 1 << 20;
        config.reserve_bytes = 1 << 20;
        config.index_flush_ms = 5;
        config.index_checkpoint_ms = 20;
        set(&mut config);
        let scm = Arc::new(FakeScm::default());
        let datanode = open(&config, &disk).await;
        let datanodes = Arc::new(Datanodes::local_only());
        let rig = Self { disk, config, datanode, scm, datanodes };
        rig.start().await;
        rig
    }

    async fn start(&self) {
        self.datanode.start(self.scm.clone(), self.datanodes.clone());
        let probe = self.write_request(u64::MAX, 0, 1);
        let mut bad = probe.clone();
        bad.token.claim.count = 0;
        // Registered once a bad token is denied rather than put off.
        self.until_async(async |rig| {
            let run = ChunkRun::new(Bytes::from_static(b"x"));
            rig.datanode
                .write_small_block(bad.clone(), run)
                .await
                .err()
                .is_some_and(|failure| failure.status == Status::Denied)
        })
        .await;
    }

    /// Ends and begins again. A sudden end is a power cut that keeps all that was synced and some of the rest.
    pub async fn restart(&mut self, is_orderly: bool) {
        if is_orderly {
            self.datanode.shutdown().await;
            self.disk.kill();
        } else {
            self.disk.crash(11);
            self.datanode.shutdown().await;
        }
        self.reopen().await;
    }

    /// Opens what is on the disk now.
    pub async fn reopen(&mut self) {
        self.datanode = open(&self.config, &self.disk).await;
        self.start().await;
    }

    pub fn key(&self) -> TokenKey {
        key()
    }

    pub fn token(&self, operation: BlockOperation, container: u64) -> BlockToken {
        let claim = BlockClaim {
            operation,
            container: ContainerId(container),
            generation: Generation(1),
            replication: Replication::One,
            first: LocalId(0),
            count: 1 << 40,
            session: SessionId(1),
            length_max: 256 << 20,
            expires_ms: u64::MAX,
        };
        BlockToken::sign(claim, &key())
    }

    pub fn write_request(&self, container: u64, local: u64, length: u64) -> WriteBlock {
        WriteBlock {
            block: BlockId { container: ContainerId(container), local: LocalId(local) },
            token: self.token(BlockOperation::Write, container),
            length,
            is_exact: true,
        }
    }

    pub fn read_request(&self, entry: &BlockEntry, offset: u64, length: u64) -> ReadBlock {
        ReadBlock {
            block: entry.block,
            token: self.token(BlockOperation::Read, entry.block.container.0),
            offset,
            length,
            block_length: entry.block_length,
            digest: entry.digest,
        }
    }

    /// Writes by the short path.
    pub async fn write(&self, container: u64, local: u64, data: &[u8]) -> Result<BlockEntry, Failure> {
        let request = self.write_request(container, local, data.len() as u64);
        let block = request.block;
        let run = ChunkRun::new(Bytes::copy_from_slice(data));
        if data.len() > wire::limits::CHUNK_RUN_BYTES_MAX {
            return self.stream(container, local, data, data.len() as u64).await;
        }
        let receipt = self.datanode.write_small_block(request, run).await?;
        Ok(entry(block, receipt))
    }

    /// Writes as a stream of runs; of unknown length if `reserved` is more than there is.
    pub async fn stream(
        &self,
        container: u64,
        local: u64,
        data: &[u8],
        reserved: u64,
    ) -> Result<BlockEntry, Failure> {
        let mut request = self.write_request(container, local, reserved);
        request.is_exact = reserved == data.len() as u64;
        let block = request.block;
        let runs: Vec<_> =
            data.chunks(1 << 20).map(|run| Ok(ChunkRun::new(Bytes::copy_from_slice(run)))).collect();
        let body = Box::pin(futures_util::stream::iter(runs));
        let receipt = self.datanode.write_block(request, body).await?;
        Ok(entry(block, receipt))
    }

    /// Reads exactly the asked bytes.
    pub async fn read(&self, entry: &BlockEntry, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
        let mut runs = self.datanode.read_block(self.read_request(entry, offset, length)).await?;
        let mut bytes = Vec::new();
        while let Some(run) = runs.next().await {
            let run = run?;
            assert!(run.is_intact());
            bytes.extend_from_slice(&run.data);
        }
        let skip = (offset % wire::limits::CHUNK_BYTES as u64) as usize;
        Ok(bytes[skip..skip + length as usize].to_vec())
    }

    pub fn make_command(&self, container: u64, action: DatanodeAction) -> DatanodeCommand {
        DatanodeCommand { container: ContainerId(container), generation: Generation(1), term: 1, action }
    }

    pub async fn command(&self, container: u64, action: DatanodeAction) {
        self.scm.command(vec![self.make_command(container, action)]);
    }

    /// Asks for a whole replica, to its end.
    pub async fn fetch(&self, container: u64) -> Result<usize, Failure> {
        let request = FetchReplica {
            container: ContainerId(container),
            generation: Generation(1),
            token: self.token(BlockOperation::CopyReplica, container),
        };
        let mut pieces = self.datanode.fetch_replica(request).await?;
        let mut count = 0;
        while let Some(piece) = pieces.next().await {
            piece?;
            count += 1;
        }
        Ok(count)
    }

    /// What is reported of a container, if anything.
    pub fn report_of(&self, container: u64) -> Option<ReplicaReport> {
        let replicas = self.datanode.report().1;
        replicas.into_iter().find(|report| report.container == ContainerId(container))
    }

    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        self.until_async(async |rig| condition(rig)).await;
    }

    pub async fn until_async(&self, condition: impl AsyncFn(&Self) -> bool) {
        let wait = async {
            while !condition(self).await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the condition comes true");
    }
}

fn entry(block: BlockId, receipt: wire::datanode::BlockReceipt) -> BlockEntry {
    BlockEntry {
        block,
        offset: 0,
        length: receipt.length,
        block_length: receipt.length,
        digest: receipt.digest,
    }
}

pub fn uuid_of(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte; 16])
}

async fn open(config: &DatanodeConfig, disk: &SimulatedDisk) -> Datanode {
    let (config, io) = (config.clone(), Arc::new(disk.clone()) as Arc<dyn DiskIo>);
    let opened = platform::task::spawn_blocking(move || Datanode::open_on(config, vec![io])).await;
    opened.expect("opening does not panic").expect("the disk opens")
}
