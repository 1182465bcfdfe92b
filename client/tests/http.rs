//! The three services over HTTP on loopback: round trips, and every way in which a call must not get through.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::failover::OmClient;
use client::http::{
    DatanodeStub, OmStub, ScmStub, Transport, TransportConfig, Verifier, datanode_router, om_router,
    scm_router, serve,
};
use client::service::{
    CallError, ChunkStream, DatanodeService, OmService, ReplicaStream, ScmService, call_om, call_scm,
};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wire::block::{BlockClaim, BlockOperation, BlockToken, Replication, TokenKey};
use wire::chunk::{BlockDigest, ChunkRun};
use wire::clock::{Clock, SystemClock};
use wire::cluster_key::ClusterKey;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, ReplicaPiece, WriteBlock};
use wire::host::HostPort;
use wire::ids::{BlockId, ClusterId, ContainerId, Generation, LocalId, SessionId};
use wire::limits::{CHUNK_BYTES, CHUNK_RUN_BYTES_MAX, CLOCK_SKEW_MS, RPC_BYTES_MAX};
use wire::om::{EndSession, GetSigningKey, OmReply, OmRequest, OpenSession, Rejection};
use wire::scm::{LocateContainers, LogDeletions, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

fn key(secret: u8) -> ClusterKey {
    ClusterKey::new(ClusterId::default(), [secret; 32])
}

struct FakeOm;

#[async_trait]
impl OmService for FakeOm {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        match request {
            OmRequest::OpenSession(_) => Ok(OmReply::OpenSession(SessionId(7))),
            OmRequest::EndSession(_) => Err(Rejection::NoSuchBucket.into()),
            _ => Err(Failure::new(Status::DiskFull, "full").into()),
        }
    }
}

struct FakeScm;

#[async_trait]
impl ScmService for FakeScm {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        match request {
            ScmRequest::LogDeletions(_) => Ok(ScmReply::LogDeletions(())),
            other => Err(Failure::new(Status::NotLeader, other.name())),
        }
    }
}

/// Keeps one block; refuses or breaks where the test says so.
#[derive(Default)]
struct FakeDatanode {
    block: Mutex<Vec<ChunkRun>>,
    small_writes: AtomicU64,
    /// Refuses writes without reading them.
    refuses: bool,
    /// Fails reads after the first run.
    breaks: bool,
    /// Told how a write's body failed.
    broken: Mutex<Option<oneshot::Sender<Failure>>>,
    /// What it gives as a replica.
    replica: Mutex<Vec<Result<ReplicaPiece, Failure>>>,
}

#[async_trait]
impl DatanodeService for FakeDatanode {
    async fn write_block(&self, request: WriteBlock, mut body: ChunkStream) -> Result<BlockReceipt, Failure> {
        if self.refuses {
            return Err(Failure::new(Status::Refused, "container 1 is closing"));
        }
        let mut runs = Vec::new();
        while let Some(run) = body.next().await {
            match run {
                Ok(run) => runs.push(run),
                Err(failure) => {
                    if let Some(told) = self.broken.lock().take() {
                        told.send(failure.clone()).unwrap();
                    }
                    return Err(failure);
                }
            }
        }
        Ok(self.keep(request, runs))
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        if self.refuses {
            return Err(Failure::new(Status::Refused, "container 1 is closing"));
        }
        self.small_writes.fetch_add(1, Ordering::SeqCst);
        Ok(self.keep(request, vec![body]))
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        if request.block.local != LocalId(1) {
            return Err(Failure::new(Status::NotFound, "no such block"));
        }
        let mut runs: Vec<_> = self.block.lock().iter().cloned().map(Ok).collect();
        if self.breaks {
            runs.truncate(1);
            runs.push(Err(Failure::new(Status::Corrupt, "chunk 16 is damaged")));
        }
        Ok(Box::pin(stream::iter(runs)))
    }

    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        if request.container != ContainerId(1) {
            return Err(Failure::new(Status::Refused, "the replica is not sealed"));
        }
        Ok(Box::pin(stream::iter(std::mem::take(&mut *self.replica.lock()))))
    }
}

impl FakeDatanode {
    fn keep(&self, request: WriteBlock, runs: Vec<ChunkRun>) -> BlockReceipt {
        let length = runs.iter().map(|run| run.data.len() as u64).sum();
        let crcs: Vec<u32> = runs.iter().flat_map(|run| run.crcs.clone()).collect();
        *self.block.lock() = runs;
        BlockReceipt { length, digest: BlockDigest::new(request.block, length, &crcs) }
    }
}

/// A running listener.
struct Server {
    peer: HostPort,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(datanode: Arc<FakeDatanode>) -> Self {
        let verifier = Verifier::new(key(1));
        let router = om_router(Arc::new(FakeOm), verifier.clone())
            .merge(scm_router(Arc::new(FakeScm), verifier.clone()))
            .merge(datanode_router(datanode, verifier));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = HostPort::from(listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        Self { peer, stop, task: tokio::spawn(serve(listener, None, router, shutdown)) }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    fn om(&self) -> OmStub {
        OmStub::new(Transport::new(key(1)), self.peer.clone())
    }

    fn datanode(&self) -> DatanodeStub {
        DatanodeStub::new(Transport::new(key(1)), self.peer.clone())
    }
}

fn token(operation: BlockOperation) -> BlockToken {
    let claim = BlockClaim {
        operation,
        container: ContainerId(1),
        generation: Generation(1),
        replication: Replication::One,
        first: LocalId(1),
        count: 1,
        session: SessionId(1),
        length_max: 1 << 30,
        expires_ms: u64::MAX,
    };
    BlockToken::sign(claim, &TokenKey { id: 1, secret: [5; 32], expires_ms: u64::MAX })
}

fn write_request(length: u64) -> WriteBlock {
    let block = BlockId { container: ContainerId(1), local: LocalId(1) };
    WriteBlock { block, token: token(BlockOperation::Write), length, is_exact: true }
}

fn read_request(local: u64, length: u64) -> ReadBlock {
    let block = BlockId { container: ContainerId(1), local: LocalId(local) };
    let digest = BlockDigest::default();
    ReadBlock { block, token: token(BlockOperation::Read), offset: 0, length, block_length: length, digest }
}

/// Runs of some megabytes, the last one short.
fn runs() -> Vec<ChunkRun> {
    let mut runs: Vec<_> = (0..5u8).map(|fill| run(fill, CHUNK_RUN_BYTES_MAX)).collect();
    runs.push(run(9, CHUNK_BYTES + 17));
    runs
}

fn run(fill: u8, bytes: usize) -> ChunkRun {
    ChunkRun::new(Bytes::from(vec![fill; bytes]))
}

fn body(items: Vec<Result<ChunkRun, Failure>>) -> ChunkStream {
    Box::pin(stream::iter(items))
}

fn total(runs: &[ChunkRun]) -> u64 {
    runs.iter().map(|run| run.data.len() as u64).sum()
}

#[tokio::test]
async fn om_answers_rejects_and_fails_as_in_process() {
    let server = Server::start(Arc::default()).await;
    let om = server.om();
    assert_eq!(call_om(&om, OpenSession { nonce: [0; 16] }).await, Ok(SessionId(7)));
    let rejected = call_om(&om, EndSession { session: SessionId(7) }).await;
    assert_eq!(rejected, Err(CallError::Rejected(Rejection::NoSuchBucket)));
    let request = signing_key_request("AKIA");
    assert_eq!(call_om(&om, request).await, Err(Failure::new(Status::DiskFull, "full").into()));
    server.stop().await;
}

fn signing_key_request(access_key: &str) -> GetSigningKey {
    GetSigningKey {
        access_key: access_key.to_owned(),
        day: "20260101".to_owned(),
        region: "us-east-1".to_owned(),
        service: "s3".to_owned(),
    }
}

#[tokio::test]
async fn scm_answers_and_fails_as_in_process() {
    let server = Server::start(Arc::default()).await;
    let scm = ScmStub::new(Transport::new(key(1)), server.peer.clone());
    assert_eq!(call_scm(&scm, LogDeletions { batch: 1, blocks: Vec::new() }).await, Ok(()));
    let failed = call_scm(&scm, LocateContainers { containers: Vec::new() }).await;
    assert_eq!(failed, Err(Failure::new(Status::NotLeader, "LocateContainers")));
    server.stop().await;
}

#[tokio::test]
async fn block_streams_both_ways() {
    let fake = Arc::new(FakeDatanode::default());
    let server = Server::start(fake.clone()).await;
    let datanode = server.datanode();
    let sent = runs();
    let length = total(&sent);
    let source = body(sent.iter().cloned().map(Ok).collect());
    let receipt = datanode.write_block(write_request(length), source).await.unwrap();
    assert_eq!(receipt.length, length);
    assert_eq!(*fake.block.lock(), sent);
    let read: Vec<_> = datanode.read_block(read_request(1, length)).await.unwrap().collect().await;
    assert_eq!(read, sent.into_iter().map(Ok).collect::<Vec<_>>());
    let missing = datanode.read_block(read_request(2, length)).await.err().unwrap();
    assert_eq!(missing, Failure::new(Status::NotFound, "no such block"));
    server.stop().await;
}

#[tokio::test]
async fn small_block_takes_the_short_path() {
    let fake = Arc::new(FakeDatanode::default());
    let server = Server::start(fake.clone()).await;
    let datanode = server.datanode();
    let small = run(3, CHUNK_BYTES + 1);
    let length = small.data.len() as u64;
    let receipt = datanode.write_small_block(write_request(length), small.clone()).await.unwrap();
    assert_eq!(receipt.digest, BlockDigest::new(write_request(1).block, length, &small.crcs));
    assert_eq!(
        (fake.small_writes.load(Ordering::SeqCst), fake.block.lock().clone()),
        (1, vec![small.clone()])
    );
    // The same block as a stream of two runs takes it as well.
    let halves = [small.data.slice(..CHUNK_BYTES), small.data.slice(CHUNK_BYTES..)];
    let source = body(halves.into_iter().map(|half| Ok(ChunkRun::new(half))).collect());
    datanode.write_block(write_request(length), source).await.unwrap();
    assert_eq!(
        (fake.small_writes.load(Ordering::SeqCst), fake.block.lock().clone()),
        (2, vec![small.clone()])
    );
    // Runs that do not fit together, or are more than was announced, never reach the datanode.
    for (cut, announced) in [(1, length), (CHUNK_BYTES, length - 1)] {
        let pieces = [small.data.slice(..cut), small.data.slice(cut..)];
        let source = body(pieces.into_iter().map(|piece| Ok(ChunkRun::new(piece))).collect());
        let refused = datanode.write_block(write_request(announced), source).await.unwrap_err();
        assert_eq!(refused.status, Status::Invalid, "{refused}");
    }
    assert_eq!(fake.small_writes.load(Ordering::SeqCst), 2);
    server.stop().await;
}

#[tokio::test]
async fn damaged_chunk_is_found_on_arrival() {
    let fake = Arc::new(FakeDatanode::default());
    let server = Server::start(fake.clone()).await;
    let datanode = server.datanode();
    let mut sent = runs();
    sent[2].crcs[3] ^= 1;
    let length = total(&sent);
    let source = body(sent.iter().cloned().map(Ok).collect());
    assert_eq!(datanode.write_block(write_request(length), source).await.unwrap_err().status, Status::Retry);
    assert!(fake.block.lock().is_empty());
    // A datanode that sends what does not fit its CRC is damaged.
    *fake.block.lock() = sent;
    let mut read = datanode.read_block(read_request(1, length)).await.unwrap();
    assert!(read.next().await.unwrap().is_ok());
    assert!(read.next().await.unwrap().is_ok());
    assert_eq!(read.next().await.unwrap().unwrap_err().status, Status::Corrupt);
    assert!(read.next().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn failing_source_never_passes_for_a_complete_block() {
    let (told, failure) = oneshot::channel();
    let fake = Arc::new(FakeDatanode { broken: Mutex::new(Some(told)), ..FakeDatanode::default() });
    let server = Server::start(fake.clone()).await;
    let mut items: Vec<_> = runs().into_iter().map(Ok).collect();
    items.push(Err(Failure::new(Status::Invalid, "the client went away")));
    // Not exact: the datanode cannot tell by the length.
    let request = WriteBlock { is_exact: false, ..write_request(64 << 20) };
    let failed = server.datanode().write_block(request, body(items)).await.unwrap_err();
    assert_eq!(failed, Failure::new(Status::Invalid, "the client went away"));
    assert_eq!(failure.await.unwrap().status, Status::Retry);
    assert!(fake.block.lock().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn abandoned_write_never_passes_for_a_complete_block() {
    let (told, failure) = oneshot::channel();
    let fake = Arc::new(FakeDatanode { broken: Mutex::new(Some(told)), ..FakeDatanode::default() });
    let server = Server::start(fake.clone()).await;
    let (reached, at_pause) = oneshot::channel();
    let pause = stream::once(async move {
        reached.send(()).unwrap();
        std::future::pending().await
    });
    let source = stream::iter(runs().into_iter().map(Ok)).chain(pause);
    let datanode = server.datanode();
    let request = WriteBlock { is_exact: false, ..write_request(64 << 20) };
    let writing = tokio::spawn(async move { datanode.write_block(request, Box::pin(source)).await });
    at_pause.await.unwrap();
    writing.abort();
    assert_eq!(failure.await.unwrap().status, Status::Retry);
    assert!(fake.block.lock().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn early_refusal_ends_an_endless_write() {
    let server = Server::start(Arc::new(FakeDatanode { refuses: true, ..FakeDatanode::default() })).await;
    let datanode = server.datanode();
    for _ in 0..20 {
        let endless = stream::repeat_with(|| Ok(run(1, CHUNK_RUN_BYTES_MAX)));
        let refused = datanode.write_block(write_request(256 << 20), Box::pin(endless)).await.unwrap_err();
        assert_eq!(refused, Failure::new(Status::Refused, "container 1 is closing"));
    }
    server.stop().await;
}

#[tokio::test]
async fn refusal_comes_before_a_byte_has_moved() {
    let server = Server::start(Arc::new(FakeDatanode { refuses: true, ..FakeDatanode::default() })).await;
    let datanode = server.datanode();
    for is_exact in [true, false] {
        let source = stream::once(async { panic!("a refused block is not read") });
        let request = WriteBlock { is_exact, ..write_request(2 << 20) };
        let refused = datanode.write_block(request, Box::pin(source)).await.unwrap_err();
        assert_eq!(refused.status, Status::Refused);
    }
    server.stop().await;
}

const REPLICA_BLOCKS: u64 = 3;

/// A replica of three blocks: of two runs, of a part of a chunk, and empty.
fn replica() -> Vec<Result<ReplicaPiece, Failure>> {
    let mut pieces = vec![ReplicaPiece::Head {
        replication: Replication::Three,
        deletion_done: 9,
        block_count: REPLICA_BLOCKS,
        used_bytes: CHUNK_RUN_BYTES_MAX as u64 + CHUNK_BYTES as u64 + 5,
    }];
    let blocks = [vec![run(1, CHUNK_RUN_BYTES_MAX), run(2, CHUNK_BYTES)], vec![run(3, 5)], vec![]];
    for (local, runs) in (1..).map(LocalId).zip(blocks) {
        let crcs: Vec<u32> = runs.iter().flat_map(|run| run.crcs.clone()).collect();
        let (length, id) = (total(&runs), BlockId { container: ContainerId(1), local });
        pieces.push(ReplicaPiece::Block { local, length, digest: BlockDigest::new(id, length, &crcs) });
        pieces.extend(runs.into_iter().map(ReplicaPiece::Run));
    }
    pieces.push(ReplicaPiece::End);
    pieces.into_iter().map(Ok).collect()
}

fn fetch_request(container: u64) -> FetchReplica {
    let token = token(BlockOperation::CopyReplica);
    FetchReplica { container: ContainerId(container), generation: Generation(1), token }
}

#[tokio::test]
async fn replica_arrives_as_it_was_sent() {
    let fake = Arc::new(FakeDatanode::default());
    *fake.replica.lock() = replica();
    let server = Server::start(fake).await;
    let arrived: Vec<_> = server.datanode().fetch_replica(fetch_request(1)).await.unwrap().collect().await;
    assert_eq!(arrived, replica());
    let refused = server.datanode().fetch_replica(fetch_request(2)).await.err().unwrap();
    assert_eq!(refused, Failure::new(Status::Refused, "the replica is not sealed"));
    server.stop().await;
}

#[tokio::test]
async fn replica_that_is_not_what_it_says_never_comes_to_its_end() {
    let fake = Arc::new(FakeDatanode::default());
    let server = Server::start(fake.clone()).await;
    let block = |pieces: &mut Vec<Result<ReplicaPiece, Failure>>,
                 change: &dyn Fn(&mut u64, &mut BlockDigest)| {
        let Ok(ReplicaPiece::Block { length, digest, .. }) = &mut pieces[1] else { panic!("a block") };
        change(length, digest);
    };
    type Lie<'a> = (&'a str, Status, Box<dyn Fn(&mut Vec<Result<ReplicaPiece, Failure>>) + 'a>);
    let lies: [Lie; 9] = [
        ("digest", Status::Corrupt, Box::new(|pieces| block(pieces, &|_, digest| digest.0 ^= 1))),
        ("block too long", Status::Invalid, Box::new(|pieces| block(pieces, &|length, _| *length -= 1))),
        ("block too short", Status::Invalid, Box::new(|pieces| block(pieces, &|length, _| *length += 1))),
        ("huge block", Status::Invalid, Box::new(|pieces| block(pieces, &|length, _| *length = 1 << 40))),
        ("block missing", Status::Invalid, Box::new(|pieces| drop(pieces.drain(4..6)))),
        ("head missing", Status::Invalid, Box::new(|pieces| drop(pieces.remove(0)))),
        ("two heads", Status::Invalid, Box::new(|pieces| pieces.insert(1, pieces[0].clone()))),
        ("no end", Status::Internal, Box::new(|pieces| drop(pieces.pop()))),
        (
            "damage",
            Status::Corrupt,
            Box::new(|pieces| {
                let Ok(ReplicaPiece::Run(run)) = &mut pieces[3] else { panic!("a run") };
                run.crcs[0] ^= 1;
            }),
        ),
    ];
    for (what, status, lie) in lies {
        let mut pieces = replica();
        lie(&mut pieces);
        *fake.replica.lock() = pieces;
        let failure = match server.datanode().fetch_replica(fetch_request(1)).await {
            Ok(arriving) => {
                let arrived: Vec<_> = arriving.collect().await;
                assert!(!arrived.contains(&Ok(ReplicaPiece::End)), "{what}");
                arrived.last().unwrap().clone().unwrap_err()
            }
            Err(failure) => failure,
        };
        assert_eq!(failure.status, status, "{what}: {failure}");
    }
    server.stop().await;
}

/// Answers every call with what `answer` gives, as a program would that has no key.
async fn squatter(answer: String) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = HostPort::from(listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                read_request_bytes(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    peer
}

#[tokio::test]
async fn program_without_the_key_cannot_answer_for_a_node() {
    // A genuine answer to another call.
    let server = Server::start(Arc::default()).await;
    let mut stream = TcpStream::connect(server.peer.as_str()).await.unwrap();
    stream.write_all(&captured_call().await).await.unwrap();
    let mut genuine = String::new();
    while !genuine.contains("\r\n\r\n") {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        genuine.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(genuine.starts_with("HTTP/1.1 200"));
    // One that says nothing, and one that would have been believed without a proof.
    let bare = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\u{0}\u{7}".to_owned();
    for answer in [genuine, bare] {
        let om = OmStub::new(Transport::new(key(1)), squatter(answer).await);
        let Err(CallError::Failed(failure)) = call_om(&om, OpenSession { nonce: [0; 16] }).await else {
            panic!("believed")
        };
        assert_eq!(failure.status, Status::Unknown);
        assert!(failure.message.contains("another program"), "{failure}");
    }
    server.stop().await;
}

#[tokio::test]
async fn clock_that_is_off_is_named_with_what_to_do() {
    let clock = Arc::new(OffClock(CLOCK_SKEW_MS as i64 + 15_000));
    let router = om_router(Arc::new(FakeOm), Verifier::with_clock(key(1), Vec::new(), clock));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = HostPort::from(listener.local_addr().unwrap());
    tokio::spawn(serve(listener, None, router, std::future::pending()));
    let om = OmStub::new(Transport::new(key(1)), peer);
    let Err(CallError::Failed(failure)) = call_om(&om, OpenSession { nonce: [0; 16] }).await else {
        panic!("refused")
    };
    assert_eq!(failure.status, Status::Denied);
    assert!(failure.message.contains("behind") && failure.message.contains("NTP"), "{failure}");
}

#[tokio::test]
async fn idle_strangers_keep_no_node_out() {
    /// More than a listener takes at once.
    const STRANGERS: usize = 1200;
    let server = Server::start(Arc::default()).await;
    let proven = server.om();
    call_om(&proven, OpenSession { nonce: [0; 16] }).await.unwrap();
    let soon = Duration::from_secs(5);
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        // A listener that takes no more leaves them to the kernel, which has no room for all either.
        let connected = tokio::time::timeout(soon, TcpStream::connect(server.peer.as_str()));
        strangers.push(connected.await.expect("all places are taken").unwrap());
    }
    // One that stands, and one that comes from the same address as the strangers.
    for om in [proven, server.om()] {
        let called = tokio::time::timeout(soon, call_om(&om, OpenSession { nonce: [1; 16] }));
        called.await.expect("it waits behind strangers").unwrap();
    }
    // Those who came first made room.
    let mut closed = [0; 1];
    let read = tokio::time::timeout(soon, strangers[0].read(&mut closed)).await.expect("it is kept");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    drop(strangers);
    server.stop().await;
}

#[tokio::test]
async fn leader_is_found_beside_peers_that_are_gone_hang_or_lie() {
    let server = Server::start(Arc::default()).await;
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Its kernel takes connections; nobody reads them, as with a process that is stopped.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peers = [
        HostPort::from(hanging.local_addr().unwrap()),
        HostPort::from(refusing.local_addr().unwrap()),
        squatter("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()).await,
        server.peer.clone(),
    ];
    drop(refusing);
    let transport = Transport::new(key(1));
    for _ in 0..peers.len() {
        let stub = |peer: &HostPort| {
            (peer.clone(), Arc::new(OmStub::new(transport.clone(), peer.clone())) as Arc<dyn OmService>)
        };
        let client = OmClient::new(peers.iter().map(stub).collect());
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            assert_eq!(call_om(&*client, OpenSession { nonce: [0; 16] }).await, Ok(SessionId(7)));
            assert!(began.elapsed() < Duration::from_secs(3));
        }
        peers.rotate_left(1);
    }
    server.stop().await;
}

#[tokio::test]
async fn error_in_mid_stream_reaches_the_reader() {
    let fake = Arc::new(FakeDatanode { breaks: true, ..FakeDatanode::default() });
    *fake.block.lock() = runs();
    let server = Server::start(fake).await;
    let read: Vec<_> = server.datanode().read_block(read_request(1, 1)).await.unwrap().collect().await;
    assert_eq!(read.len(), 2);
    assert!(read[0].is_ok());
    assert_eq!(read[1], Err(Failure::new(Status::Corrupt, "chunk 16 is damaged")));
    server.stop().await;
}

#[tokio::test]
async fn answer_cut_short_is_not_the_end_of_a_block() {
    let fake = Arc::new(FakeDatanode::default());
    *fake.block.lock() = runs();
    let server = Server::start(fake).await;
    // A connection that is cut in good order behind some of the runs.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = HostPort::from(listener.local_addr().unwrap());
    let target = server.peer.clone();
    let task = tokio::spawn(async move {
        let (mut caller, _) = listener.accept().await.unwrap();
        let mut served = TcpStream::connect(target.as_str()).await.unwrap();
        let request = read_request_bytes(&mut caller).await;
        served.write_all(&request).await.unwrap();
        tokio::io::copy(&mut served.take(3 << 20), &mut caller).await.unwrap();
    });
    let datanode = DatanodeStub::new(Transport::new(key(1)), proxy);
    let read: Vec<_> = datanode.read_block(read_request(1, 100)).await.unwrap().collect().await;
    assert_eq!(read.len(), 3);
    assert!(read[0].is_ok() && read[1].is_ok());
    assert_eq!(read[2].as_ref().unwrap_err().status, Status::Retry);
    task.await.unwrap();
    server.stop().await;
}

/// The machine's clock, moved.
struct OffClock(i64);

impl Clock for OffClock {
    fn now_ms(&self) -> u64 {
        SystemClock.now_ms().saturating_add_signed(self.0)
    }

    fn steady_ns(&self) -> u64 {
        SystemClock.steady_ns()
    }
}

#[tokio::test]
async fn wrong_key_and_wrong_time_are_denied() {
    let server = Server::start(Arc::default()).await;
    let skew_ms = CLOCK_SKEW_MS as i64 + 10_000;
    let off = |off_ms| {
        let clock = Arc::new(OffClock(off_ms));
        Transport::of_node(TransportConfig { clock, ..TransportConfig::new(key(1), "gw1") })
    };
    let transports = [
        Transport::new(key(2)),
        Transport::new(ClusterKey::new(ClusterId(uuid::Uuid::from_u128(9)), [1; 32])),
        off(skew_ms),
        off(-skew_ms),
    ];
    for transport in transports {
        let om = OmStub::new(transport.clone(), server.peer.clone());
        let Err(CallError::Failed(denied)) = call_om(&om, OpenSession { nonce: [0; 16] }).await else {
            panic!("denied")
        };
        assert_eq!(denied.status, Status::Denied);
        let datanode = DatanodeStub::new(transport, server.peer.clone());
        let source = body(runs().into_iter().map(Ok).collect());
        let denied = datanode.write_block(write_request(total(&runs())), source).await.unwrap_err();
        assert_eq!(denied.status, Status::Denied);
        let denied = datanode.read_block(read_request(1, 1)).await.err().unwrap();
        assert_eq!(denied.status, Status::Denied);
    }
    server.stop().await;
}

/// Reads one HTTP request with a Content-Length off a connection.
async fn read_request_bytes(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= head + 4 + length {
                return bytes;
            }
        }
    }
}

/// Sends bytes to the server and answers the status it gives.
async fn raw_status(peer: &HostPort, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(peer.as_str()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}

/// The bytes of a genuine call that has not reached its server.
async fn captured_call() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let om = OmStub::new(Transport::new(key(1)), listener.local_addr().unwrap().into());
    let calling = tokio::spawn(async move { call_om(&om, OpenSession { nonce: [0; 16] }).await });
    let (mut stream, _) = listener.accept().await.unwrap();
    let bytes = read_request_bytes(&mut stream).await;
    drop(stream);
    // Sent and not answered: the caller cannot know.
    let Err(CallError::Failed(failure)) = calling.await.unwrap() else { panic!("no answer") };
    assert_eq!(failure.status, Status::Unknown);
    bytes
}

#[tokio::test]
async fn bare_replayed_and_altered_calls_are_unauthorized() {
    let server = Server::start(Arc::default()).await;
    let bare = b"POST /om/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(raw_status(&server.peer, bare).await, 401);
    let call = captured_call().await;
    assert_eq!(raw_status(&server.peer, &call).await, 200);
    assert_eq!(raw_status(&server.peer, &call).await, 401, "a replay");

    let mut altered = captured_call().await;
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(raw_status(&server.peer, &altered).await, 401, "another body");
    let moved = captured_call().await;
    let moved = String::from_utf8_lossy(&moved[..moved.len()]).replacen("/om/v1", "/scm/v1", 1);
    assert_eq!(raw_status(&server.peer, moved.as_bytes()).await, 401, "another path");
    server.stop().await;
}

#[tokio::test]
async fn oversized_messages_are_refused_on_both_sides() {
    let server = Server::start(Arc::default()).await;
    let om = server.om();
    let huge = signing_key_request(&"x".repeat(RPC_BYTES_MAX));
    let Err(CallError::Failed(refused)) = call_om(&om, huge).await else { panic!("refused") };
    assert_eq!(refused.status, Status::Invalid);
    let fits = signing_key_request(&"x".repeat(RPC_BYTES_MAX - 100));
    assert_eq!(call_om(&om, fits).await, Err(Failure::new(Status::DiskFull, "full").into()));

    // A caller with the key that lies about the length: refused before anything is read.
    let call = String::from_utf8_lossy(&captured_call().await).to_lowercase();
    let head = call.split("\r\n\r\n").next().unwrap();
    let lines = head.lines().filter(|line| !line.starts_with("content-length"));
    let lines = lines.map(|line| match line.strip_prefix("post /om/v1 ") {
        Some(_) => "POST /om/v1 HTTP/1.1".to_owned(),
        None => line.to_owned(),
    });
    let mut request = lines.collect::<Vec<_>>().join("\r\n");
    request.push_str(&format!("\r\ncontent-length: {}\r\n\r\n", RPC_BYTES_MAX + 1));
    assert_eq!(raw_status(&server.peer, request.as_bytes()).await, 413);
    server.stop().await;
}

#[tokio::test]
async fn absent_peer_is_worth_a_retry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = HostPort::from(listener.local_addr().unwrap());
    drop(listener);
    let om = OmStub::new(Transport::new(key(1)), peer);
    let Err(CallError::Failed(failure)) = call_om(&om, OpenSession { nonce: [0; 16] }).await else {
        panic!("no peer")
    };
    assert_eq!(failure.status, Status::Retry);
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::start(Arc::default()).await;
    let om = server.om();
    for _ in 0..50 {
        call_om(&om, OpenSession { nonce: [0; 16] }).await.unwrap();
    }
    let calls = (0..100).map(|_| call_om(&om, OpenSession { nonce: [0; 16] }));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    server.stop().await;
}
