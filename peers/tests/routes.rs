//! Every route of an internal listener, from the table: a call without a proof, with a wrong one, of another cluster, too
//! late, to another node, or made before is turned away and changes nothing.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[allow(dead_code, reason = "this test needs a part of it")]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use client::http::{
    DatanodeStub, OM_PATH, OmStub, PEER_MESSAGES_PATH, PEER_SNAPSHOT_PATH, PING_PATH, READ_PATH,
    REPLICA_PATH, ROUTES, SCM_PATH, ScmStub, Transport, TransportConfig, Verifier, WRITE_PATH,
    datanode_router, om_router, scm_router,
};
use client::service::{
    CallError, ChunkStream, DatanodeService, OmService, ReplicaStream, ScmService, call_om, call_scm,
};
use consensus::{PeerEndpoint, PeerTransport, SnapshotStream};
use futures_util::stream;
use peers::{HttpPeers, peer_router};
use support::{key, listen, member};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;
use wire::block::{BlockClaim, BlockOperation, BlockToken, Replication, TokenKey};
use wire::chunk::{BlockDigest, ChunkRun};
use wire::clock::{Clock, SystemClock, UnixMs};
use wire::cluster_key::ClusterKey;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, WriteBlock};
use wire::host::HostPort;
use wire::ids::{BlockId, ClusterId, ContainerId, Generation, LocalId, SessionId};
use wire::limits::CLOCK_SKEW_MS;
use wire::om::{OmReply, OmRequest, OpenSession};
use wire::scm::{ListRetirable, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

/// All services in one, counting what reaches them.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Counting {
    fn note<T>(&self) -> Result<T, Failure> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(Failure::new(Status::Refused, "only counted"))
    }
}

#[async_trait]
impl OmService for Counting {
    async fn handle(&self, _: OmRequest) -> Result<OmReply, CallError> {
        Ok(self.note()?)
    }
}

#[async_trait]
impl ScmService for Counting {
    async fn handle(&self, _: ScmRequest) -> Result<ScmReply, Failure> {
        self.note()
    }
}

#[async_trait]
impl DatanodeService for Counting {
    async fn write_block(&self, _: WriteBlock, _: ChunkStream) -> Result<BlockReceipt, Failure> {
        self.note()
    }

    async fn write_small_block(&self, _: WriteBlock, _: ChunkRun) -> Result<BlockReceipt, Failure> {
        self.note()
    }

    async fn read_block(&self, _: ReadBlock) -> Result<ChunkStream, Failure> {
        self.note()
    }

    async fn ping(&self) -> Result<(), Failure> {
        self.note()
    }

    async fn fetch_replica(&self, _: FetchReplica) -> Result<ReplicaStream, Failure> {
        self.note()
    }
}

#[async_trait]
impl PeerEndpoint for Counting {
    fn group(&self) -> &str {
        "om"
    }

    async fn receive(&self, _: Bytes) -> Result<(), Failure> {
        self.note()
    }

    async fn receive_snapshot(&self, _: Bytes, _: SnapshotStream) -> Result<(), Failure> {
        self.note()
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
        length_max: 100,
        expires_ms: 1,
    };
    BlockToken::sign(claim, &TokenKey { id: 1, secret: [1; 32], expires_ms: 1 })
}

const BLOCK: BlockId = BlockId { container: ContainerId(1), local: LocalId(1) };

/// Makes the call of a route to `peer`, as its stub makes it. Its outcome is of no interest here.
async fn call(path: &str, transport: Arc<Transport>, peer: HostPort) {
    let datanode = DatanodeStub::new(transport.clone(), peer.clone());
    match path {
        OM_PATH => drop(call_om(&OmStub::new(transport, peer), OpenSession { nonce: [0; 16] }).await),
        SCM_PATH => {
            let request = ListRetirable { after: ContainerId(0), max: 1 };
            drop(call_scm(&ScmStub::new(transport, peer), request).await);
        }
        WRITE_PATH => {
            let request =
                WriteBlock { block: BLOCK, token: token(BlockOperation::Write), length: 5, is_exact: true };
            drop(datanode.write_small_block(request, ChunkRun::new(Bytes::from_static(b"bytes"))).await);
        }
        READ_PATH => {
            let (token, digest) = (token(BlockOperation::Read), BlockDigest(1));
            let request = ReadBlock { block: BLOCK, token, offset: 0, length: 5, block_length: 5, digest };
            drop(datanode.read_block(request).await);
        }
        PING_PATH => drop(datanode.ping().await),
        REPLICA_PATH => {
            let token = token(BlockOperation::CopyReplica);
            let request = FetchReplica { container: ContainerId(1), generation: Generation(1), token };
            drop(datanode.fetch_replica(request).await);
        }
        PEER_MESSAGES_PATH => {
            HttpPeers::new(transport).send("om", &member(&peer), Bytes::from_static(b"batch"));
            // The lane delivers while the test waits for it.
            std::future::pending().await
        }
        PEER_SNAPSHOT_PATH => {
            let (head, body) = (Bytes::from_static(b"head"), Box::pin(stream::empty()));
            drop(HttpPeers::new(transport).send_snapshot("om", &member(&peer), head, body).await);
        }
        other => panic!("no call for {other}: add it here"),
    }
}

/// The bytes of a route's call, addressed to `to`, that has not reached anybody.
async fn captured(path: &'static str, config: TransportConfig) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = HostPort::from(listener.local_addr().unwrap());
    let calling = tokio::spawn(call(path, Transport::of_node(config), peer));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    while !is_whole(&bytes) {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        bytes.extend_from_slice(&piece[..read]);
    }
    calling.abort();
    bytes
}

/// Whether a request is here, or the head and first chunk of one that streams.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let body = &bytes[head + 4..];
    match text.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        Some(length) => body.len() >= length.parse().unwrap(),
        None => {
            let Some(end) = body.windows(2).position(|window| window == b"\r\n") else { return false };
            let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
            body.len() >= end + 2 + length + 2
        }
    }
}

/// Sends bytes and answers the status that comes back.
async fn status(server: &HostPort, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(server.as_str()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
}

/// The request with one header's value changed by `change`.
fn with_header(request: &[u8], name: &str, change: impl Fn(&str) -> String) -> Vec<u8> {
    let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let text = std::str::from_utf8(&request[..head]).unwrap();
    let lines = text.split("\r\n").map(|line| match line.split_once(": ") {
        Some((found, value)) if found.eq_ignore_ascii_case(name) => change(value),
        _ => line.to_owned(),
    });
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    [lines.join("\r\n").as_bytes(), &request[head..]].concat()
}

struct OffClock;

impl Clock for OffClock {
    fn now_ms(&self) -> UnixMs {
        SystemClock.now_ms() - CLOCK_SKEW_MS - 5000
    }

    fn steady_ns(&self) -> u64 {
        SystemClock.steady_ns()
    }
}

async fn start(services: &Arc<Counting>, receivers: Vec<HostPort>) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from(listener.local_addr().unwrap());
    let verifier = Verifier::of_node(key(), receivers);
    let router = om_router(services.clone(), verifier.clone())
        .merge(scm_router(services.clone(), verifier.clone()))
        .merge(datanode_router(services.clone(), verifier.clone()))
        .merge(peer_router(vec![services.clone()], verifier));
    listen(listener, router);
    address
}

#[tokio::test]
async fn every_route_asks_for_a_proof_and_takes_it_once() {
    let services = Arc::new(Counting::default());
    // The calls are captured on their way to other addresses.
    let anyones = start(&services, Vec::new()).await;
    let own = start(&services, vec![HostPort::new("m1:9002").unwrap()]).await;
    let config = || TransportConfig::new(key(), "m1");
    let mut effects = 0;
    for (method, path) in ROUTES {
        let genuine = captured(path, config()).await;
        let expected = format!("{method} {} ", path.replace("{group}", "om"));
        assert!(genuine.starts_with(expected.as_bytes()), "{path}");
        let other_cluster = ClusterKey::new(ClusterId(Uuid::from_u128(5)), [1; 32]);
        let refused = [
            (401, "bare", with_header(&genuine, "x-ferrozone-mac", |_| String::new())),
            (
                401,
                "forged",
                with_header(&genuine, "x-ferrozone-mac", |_| format!("x-ferrozone-mac: {}", "0".repeat(64))),
            ),
            (
                401,
                "garbled",
                with_header(&genuine, "x-ferrozone-time", |_| "x-ferrozone-time: now".to_owned()),
            ),
            (
                401,
                "of another node",
                with_header(&genuine, "x-ferrozone-from", |_| "x-ferrozone-from: m2".to_owned()),
            ),
            (403, "another cluster", captured(path, TransportConfig::new(other_cluster, "m1")).await),
            (
                401,
                "another key",
                captured(path, TransportConfig::new(ClusterKey::new(key().id, [2; 32]), "m1")).await,
            ),
            (401, "expired", captured(path, TransportConfig { clock: Arc::new(OffClock), ..config() }).await),
        ];
        for (code, what, request) in refused {
            assert_eq!(status(&anyones, &request).await, code, "{path}, {what}");
        }
        assert_eq!(status(&own, &genuine).await, 403, "{path}, to another node");
        assert_eq!(services.0.load(Ordering::SeqCst), effects, "{path}");
        assert_eq!(status(&anyones, &genuine).await, 200, "{path}");
        effects += 1;
        assert_eq!(status(&anyones, &genuine).await, 401, "{path}, replayed");
        assert_eq!(services.0.load(Ordering::SeqCst), effects, "{path}");
    }
    let unknown = with_header(&captured(OM_PATH, config()).await, "x-none", |_| String::new());
    let moved = String::from_utf8_lossy(&unknown).replacen(OM_PATH, "/om/v2", 1).into_bytes();
    assert_eq!(status(&anyones, &moved).await, 404);
}
