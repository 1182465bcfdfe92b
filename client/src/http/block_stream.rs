//! Blocks over HTTP: bodies stream both ways as frames.
//!
//! ```text
//!   write  PUT /block/v1        head(WriteBlock) run end             -->      <-- Answer<BlockReceipt>    up to 1 MiB
//!                               head(WriteBlock), after go: run .. end -->    <-- go, receipt             longer
//!   read   POST /block/v1/read  head(ReadBlock)                      -->      <-- run run .. end | error
//!   ping   POST /block/v1/ping  head()                               -->      <-- Answer<()>
//! ```
//!
//! A short block goes in one round trip. A longer one waits for the datanode's go (see `upload`): a container that is full
//! or closing refuses it before a byte has moved.
//!
//! Invariants:
//! * Both sides check every chunk against its CRC as it arrives.
//!
//! Not here: what a datanode checks (token, ids, lengths) and how it stores blocks; whole replicas (`replica_stream`).

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::response::Response;
use axum::routing::{post, put};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::{Method, Request};
use tokio::time::timeout;
use wire::block::DatanodeAddress;
use wire::chunk::ChunkRun;
use wire::cluster_key::body_digest;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, WriteBlock};
use wire::host::HostPort;
use wire::limits::{CHUNK_BYTES, CHUNK_RUN_BYTES_MAX};
use wire::status::{Failure, Status};

use super::auth::Verifier;
use super::exchange::Exchange;
use super::frame::{
    FrameReader, MESSAGE_BYTES_MAX, decode_message, encode_end, encode_error, encode_head, encode_message,
    encode_run_head,
};
use super::replica_stream::{pieces_of, replica_of};
use super::rpc::{Answer, decode_answer, encode_answer, only_failure};
use super::transport::{Reply, Transport, in_parts, whole};
use super::upload::{Target, next_run};
use super::{
    BODY_IDLE_DEADLINE, DRAIN_DEADLINE, PING_PATH, READ_IDLE_DEADLINE, READ_PATH, REPLICA_PATH,
    WRITE_DEADLINE, WRITE_PATH,
};
use crate::service::{CallError, ChunkStream, DatanodeService, ReplicaStream};

/// What follows a short block that is refused, at most.
const DRAIN_BYTES_MAX: usize = 2 * CHUNK_RUN_BYTES_MAX;

/// A datanode in another process.
#[derive(Debug, Clone)]
pub struct DatanodeStub {
    transport: Arc<Transport>,
    peer: HostPort,
}

impl DatanodeStub {
    /// A stub for the datanode at `peer`.
    pub fn new(transport: Arc<Transport>, peer: HostPort) -> Self {
        Self { transport, peer }
    }

    /// A stub for a datanode by its address: what [`crate::service::Datanodes`] connects with.
    ///
    /// # Errors
    /// If the datanode serves only inside its own process.
    pub fn connect(transport: Arc<Transport>, datanode: &DatanodeAddress) -> Result<Self, Failure> {
        let peer = datanode.address.clone().ok_or_else(|| {
            Failure::new(Status::Retry, format!("datanode {} has no address to be reached at", datanode.id))
        })?;
        Ok(Self::new(transport, peer))
    }

    /// Asks for a stream. A read has no effect: whatever failed, it may be tried again.
    async fn ask(&self, path: &str, message: Bytes) -> Result<Reply, Failure> {
        let body = whole(encode_head(&message));
        let digest = body_digest(&message);
        let sent = self.transport.send(&self.peer, Method::POST, path, &digest, body);
        let reply = timeout(READ_IDLE_DEADLINE, sent).await.map_err(|_| self.late()).and_then(|sent| sent);
        reply.map_err(|failure| match failure.status {
            Status::Unknown => Failure { status: Status::Retry, ..failure },
            _ => failure,
        })
    }

    /// A short block in one round trip. Its data is sent as it lies here: the writers of all its replicas share it.
    async fn write_at_once(&self, request: WriteBlock, runs: Vec<ChunkRun>) -> Result<BlockReceipt, Failure> {
        let message = encode_message(&request)?;
        let mut body = vec![encode_head(&message)];
        let mut length = 0;
        for run in runs {
            length += run.data.len() as u64;
            body.extend([encode_run_head(&run), run.data]);
        }
        body.push(encode_end(length));
        let digest = body_digest(&message);
        let exchange = async {
            let body = in_parts(body);
            let reply = self.transport.send(&self.peer, Method::PUT, WRITE_PATH, &digest, body).await?;
            reply.collect(MESSAGE_BYTES_MAX).await
        };
        let bytes = timeout(WRITE_DEADLINE, exchange).await.map_err(|_| self.late())??;
        only_failure(decode_answer(&self.peer, &bytes))
    }

    fn late(&self) -> Failure {
        Failure::new(Status::Unknown, format!("no answer from {} in time", self.peer))
    }
}

#[async_trait]
impl DatanodeService for DatanodeStub {
    async fn write_block(&self, request: WriteBlock, mut body: ChunkStream) -> Result<BlockReceipt, Failure> {
        if is_short(&request) {
            let (mut runs, mut bytes) = (Vec::new(), 0);
            while let Some(run) = body.next().await {
                let run = run?;
                bytes += run.data.len() as u64;
                if bytes > request.length {
                    return Err(too_long());
                }
                runs.push(run);
            }
            return self.write_at_once(request, runs).await;
        }
        let target = Target {
            peer: &self.peer,
            method: &Method::PUT,
            path: WRITE_PATH,
            receipt_deadline: WRITE_DEADLINE,
        };
        self.transport.upload(target, encode_message(&request)?, body).await
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        let runs = if body.data.is_empty() { Vec::new() } else { vec![body] };
        self.write_at_once(request, runs).await
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        let mut frames = self.ask(READ_PATH, encode_message(&request)?).await?.frames();
        let first = next_run(&mut frames, READ_IDLE_DEADLINE, Status::Corrupt).await?;
        let rest = stream::try_unfold(frames, |mut frames| async move {
            let run = next_run(&mut frames, READ_IDLE_DEADLINE, Status::Corrupt).await?;
            Ok(run.map(|run| (run, frames)))
        });
        match first {
            Some(run) => Ok(Box::pin(stream::iter([Ok(run)]).chain(rest))),
            None => Ok(Box::pin(stream::empty())),
        }
    }

    async fn ping(&self) -> Result<(), Failure> {
        let reply = self.ask(PING_PATH, encode_message(&())?).await?;
        let bytes = timeout(READ_IDLE_DEADLINE, reply.collect(MESSAGE_BYTES_MAX)).await;
        only_failure(decode_answer(&self.peer, &bytes.map_err(|_| self.late())??))
    }

    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        let frames = self.ask(REPLICA_PATH, encode_message(&request)?).await?.frames();
        replica_of(request.container, frames).await
    }
}

/// Whether a block goes in one round trip.
fn is_short(request: &WriteBlock) -> bool {
    request.is_exact && request.length <= CHUNK_RUN_BYTES_MAX as u64
}

fn too_long() -> Failure {
    Failure::new(Status::Invalid, "a block is longer than announced")
}

/// Receives a short block whole, whatever runs it was cut into. Most are one run, which is taken as it came.
async fn read_short(length: u64, frames: &mut FrameReader<BodyDataStream>) -> Result<ChunkRun, Failure> {
    let mut next = async || next_run(frames, BODY_IDLE_DEADLINE, Status::Retry).await;
    let Some(first) = next().await? else {
        return Ok(ChunkRun { data: Bytes::new(), crcs: Vec::new() });
    };
    let Some(second) = next().await? else { return Ok(first) };
    let mut data = BytesMut::with_capacity(length as usize);
    let mut crcs = first.crcs;
    data.extend_from_slice(&first.data);
    let mut following = Some(second);
    while let Some(run) = following {
        if (data.len() + run.data.len()) as u64 > length {
            return Err(too_long());
        }
        if !data.len().is_multiple_of(CHUNK_BYTES) {
            return Err(Failure::new(Status::Invalid, "only the last chunk of a block may be short"));
        }
        data.extend_from_slice(&run.data);
        crcs.extend(run.crcs);
        following = next().await?;
    }
    Ok(ChunkRun { data: data.freeze(), crcs })
}

/// Serves a datanode's blocks.
pub fn datanode_router(datanode: Arc<dyn DatanodeService>, verifier: Arc<Verifier>) -> Router {
    Router::new()
        .route(WRITE_PATH, put(serve_write))
        .route(READ_PATH, post(serve_read))
        .route(PING_PATH, post(serve_ping))
        .route(REPLICA_PATH, post(serve_fetch))
        .with_state(Served { datanode, verifier })
}

#[derive(Clone)]
struct Served {
    datanode: Arc<dyn DatanodeService>,
    verifier: Arc<Verifier>,
}

async fn serve_write(State(served): State<Served>, request: Request<Body>) -> Response {
    let (incoming, head) = match Exchange::receive_stream(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let request: WriteBlock = match decode_message(&head) {
        Ok(request) => request,
        Err(failure) => return incoming.malformed(failure.message),
    };
    let datanode = served.datanode;
    if !is_short(&request) {
        return incoming.take(|body| async move { datanode.write_block(request, body).await });
    }
    let (exchange, mut frames) = incoming.into_parts();
    let outcome = match read_short(request.length, &mut frames).await {
        Ok(run) => datanode.write_small_block(request, run).await,
        Err(failure) => Err(failure),
    };
    let answer = encode_answer(&Answer::from(outcome.map_err(CallError::Failed)));
    if frames.is_done() {
        return exchange.answer_bytes(answer);
    }
    exchange.answer_then(answer, async move {
        let _ = timeout(DRAIN_DEADLINE, frames.drain(DRAIN_BYTES_MAX)).await;
    })
}

async fn serve_read(State(served): State<Served>, request: Request<Body>) -> Response {
    let (exchange, request) = match receive_question(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let runs = match served.datanode.read_block(request).await {
        Ok(runs) => runs,
        Err(failure) => return exchange.stream(stream::iter([encode_error(&failure)])),
    };
    let pieces = stream::unfold(Some((runs, 0)), |state| async move {
        let (mut runs, total) = state?;
        Some(match runs.next().await {
            Some(Ok(run)) => {
                let total = total + run.data.len() as u64;
                ([encode_run_head(&run), run.data], Some((runs, total)))
            }
            Some(Err(failure)) => ([encode_error(&failure), Bytes::new()], None),
            None => ([encode_end(total), Bytes::new()], None),
        })
    });
    exchange.stream(pieces.flat_map(stream::iter))
}

async fn serve_ping(State(served): State<Served>, request: Request<Body>) -> Response {
    let (exchange, ()) = match receive_question(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    let outcome = served.datanode.ping().await;
    exchange.answer_bytes(encode_answer(&Answer::from(outcome.map_err(CallError::Failed))))
}

async fn serve_fetch(State(served): State<Served>, request: Request<Body>) -> Response {
    let (exchange, request) = match receive_question(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal,
    };
    match served.datanode.fetch_replica(request).await {
        Ok(replica) => exchange.stream(pieces_of(replica)),
        Err(failure) => exchange.stream(stream::iter([encode_error(&failure)])),
    }
}

/// Authenticates a question that is one head frame.
async fn receive_question<Q: serde::de::DeserializeOwned>(
    verifier: &Arc<Verifier>,
    request: Request<Body>,
) -> Result<(Exchange, Q), Response> {
    let (exchange, head, mut frames) = Exchange::receive_head(verifier, request).await?;
    // Nothing follows the head; reading to the end keeps the connection usable.
    let _ = timeout(DRAIN_DEADLINE, frames.drain(MESSAGE_BYTES_MAX)).await;
    match decode_message(&head) {
        Ok(question) => Ok((exchange, question)),
        Err(failure) => Err(exchange.malformed(failure.message)),
    }
}
