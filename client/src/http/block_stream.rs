//! Blocks over HTTP: bodies stream both ways as frames.
//!
//! ```text
//!   write  PUT /block/v1        head(WriteBlock) run run .. end  -->      <-- Answer<BlockReceipt>
//!   read   POST /block/v1/read  head(ReadBlock)                  -->      <-- run run .. end | error
//! ```
//!
//! A datanode that refuses a write early answers at once and goes on reading while the writer, seeing the answer, ends
//! its body: closing with bytes unread would reset the connection, and the reason with it.
//!
//! Invariants:
//! * Both sides check every chunk against its CRC as it arrives.
//! * A write whose source fails breaks its connection: the datanode sees no end frame and keeps nothing.
//!
//! Not here: what a datanode checks (token, ids, lengths) and how it stores blocks.

use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, StreamBody};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use wire::block::DatanodeAddress;
use wire::chunk::ChunkRun;
use wire::cluster_key::body_digest;
use wire::datanode::{BlockReceipt, ReadBlock, WriteBlock};
use wire::host::HostPort;
use wire::limits::CHUNK_RUN_BYTES_MAX;
use wire::status::{Failure, Status};

use super::auth::{AuthError, Verifier};
use super::frame::{
    Frame, FrameReader, MESSAGE_BYTES_MAX, decode_message, encode_end, encode_error, encode_head,
    encode_run_head,
};
use super::rpc::{Answer, Refusal, collect, encode_answer};
use super::transport::{BodyError, OutBody, Transport, whole};
use super::{BODY_IDLE_DEADLINE, DRAIN_DEADLINE, READ_IDLE_DEADLINE, READ_PATH, WRITE_DEADLINE, WRITE_PATH};
use crate::service::{CallError, ChunkStream, DatanodeService};

/// Pieces of a body between its source and the connection: enough to keep both busy.
const PIECES_MAX: usize = 4;
/// What a refused writer may still have on its way: buffers of both kernels and ours.
const DRAIN_BYTES_MAX: usize = 64 << 20;

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

    async fn receipt(
        &self,
        response: http::Response<hyper::body::Incoming>,
    ) -> Result<BlockReceipt, Failure> {
        let bytes = collect(response.into_body(), MESSAGE_BYTES_MAX).await?;
        let answer: Answer<BlockReceipt> = rmp_serde::from_slice(&bytes).map_err(|error| {
            Failure::new(Status::Unknown, format!("cannot decode the answer of {}: {error}", self.peer))
        })?;
        Result::from(answer).map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Rejected(_) => Failure::new(Status::Internal, "a datanode answered as om does"),
        })
    }

    fn late(&self) -> Failure {
        Failure::new(Status::Unknown, format!("no answer from {} in time", self.peer))
    }
}

#[async_trait]
impl DatanodeService for DatanodeStub {
    async fn write_block(&self, request: WriteBlock, body: ChunkStream) -> Result<BlockReceipt, Failure> {
        let (head, message) = encode_head(&request)?;
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let digest = body_digest(&message);
        let exchange =
            self.transport.send(&self.peer, Method::PUT, WRITE_PATH, &digest, channel_body(received));
        // Boxed, so that dropping the feed drops its end of the channel.
        let (exchange, feed) = (pin!(exchange), Box::pin(feed(head, body, pieces)));
        let response = match select(exchange, feed).await {
            // An early answer is a refusal: dropping the feed ends the body, so that the datanode ends its answer.
            Either::Left((response, feed)) => {
                drop(feed);
                response?
            }
            Either::Right((fed, exchange)) => {
                // The source failed: its failure is the answer, and the connection breaks with it.
                fed?;
                timeout(WRITE_DEADLINE, exchange).await.map_err(|_| self.late())??
            }
        };
        timeout(WRITE_DEADLINE, self.receipt(response)).await.map_err(|_| self.late())?
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        let (head, message) = encode_head(&request)?;
        let mut bytes = BytesMut::with_capacity(head.len() + body.data.len() + 256);
        bytes.extend_from_slice(&head);
        if !body.data.is_empty() {
            bytes.extend_from_slice(&encode_run_head(&body));
            bytes.extend_from_slice(&body.data);
        }
        bytes.extend_from_slice(&encode_end(body.data.len() as u64));
        let digest = body_digest(&message);
        let exchange = async {
            let body = whole(bytes.freeze());
            let response = self.transport.send(&self.peer, Method::PUT, WRITE_PATH, &digest, body).await?;
            self.receipt(response).await
        };
        timeout(WRITE_DEADLINE, exchange).await.map_err(|_| self.late())?
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        let (head, message) = encode_head(&request)?;
        let digest = body_digest(&message);
        let sent = self.transport.send(&self.peer, Method::POST, READ_PATH, &digest, whole(head));
        let response = timeout(READ_IDLE_DEADLINE, sent).await.map_err(|_| self.late()).and_then(|sent| sent);
        // A read has no effect: whatever failed, it may be tried again.
        let response = response.map_err(harmless)?;
        let mut frames = FrameReader::new(response.into_body().into_data_stream());
        let first = next_run(&mut frames, READ_IDLE_DEADLINE, Status::Corrupt).await?;
        let rest = runs(frames, READ_IDLE_DEADLINE, Status::Corrupt);
        match first {
            Some(run) => Ok(Box::pin(stream::iter([Ok(run)]).chain(rest))),
            None => Ok(Box::pin(stream::empty())),
        }
    }
}

/// Serves a datanode's blocks.
pub fn datanode_router(datanode: Arc<dyn DatanodeService>, verifier: Arc<Verifier>) -> Router {
    let state = Served { datanode, verifier };
    Router::new().route(WRITE_PATH, put(serve_write)).route(READ_PATH, post(serve_read)).with_state(state)
}

#[derive(Clone)]
struct Served {
    datanode: Arc<dyn DatanodeService>,
    verifier: Arc<Verifier>,
}

/// The frames of a request, shared between the stream that a datanode consumes and the drain after it.
type SharedFrames = Arc<Mutex<FrameReader<BodyDataStream>>>;

async fn serve_write(State(served): State<Served>, request: Request<Body>) -> Response {
    let (request, frames) = match open(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal.into_response(),
    };
    let frames = Arc::new(Mutex::new(frames));
    let outcome = write(&*served.datanode, request, &frames).await;
    let answer = match outcome {
        Ok(receipt) => Answer::Done(receipt),
        Err(failure) => Answer::Failed(failure),
    };
    let bytes = Bytes::from(encode_answer(&answer));
    if frames.lock().await.is_done() {
        return bytes.into_response();
    }
    // Answer first, then read what is still on its way: see the module's comment.
    let drained = stream::once(async move {
        let mut frames = frames.lock().await;
        let _ = timeout(DRAIN_DEADLINE, frames.drain(DRAIN_BYTES_MAX)).await;
        Bytes::new()
    });
    let pieces = stream::iter([bytes]).chain(drained).map(Ok::<_, std::convert::Infallible>);
    Body::from_stream(pieces).into_response()
}

async fn write(
    datanode: &dyn DatanodeService,
    request: WriteBlock,
    frames: &SharedFrames,
) -> Result<BlockReceipt, Failure> {
    if request.is_exact && request.length <= CHUNK_RUN_BYTES_MAX as u64 {
        let run = collect_run(&mut *frames.lock().await, request.length as usize).await?;
        return datanode.write_small_block(request, run).await;
    }
    let body = stream::try_unfold(frames.clone(), |frames| async move {
        let run = next_run(&mut *frames.lock().await, BODY_IDLE_DEADLINE, Status::Retry).await?;
        Ok(run.map(|run| (run, frames)))
    });
    datanode.write_block(request, Box::pin(body)).await
}

/// A short block whole, whatever runs it was cut into.
async fn collect_run(frames: &mut FrameReader<BodyDataStream>, length: usize) -> Result<ChunkRun, Failure> {
    let mut whole = ChunkRun { data: Bytes::new(), crcs: Vec::new() };
    while let Some(run) = next_run(frames, BODY_IDLE_DEADLINE, Status::Retry).await? {
        if whole.data.is_empty() {
            whole = run;
        } else if whole.data.len() + run.data.len() <= length {
            whole.data = [whole.data, run.data].concat().into();
            whole.crcs.extend(run.crcs);
        } else {
            return Err(Failure::new(Status::Invalid, "a block is longer than announced"));
        }
    }
    Ok(whole)
}

async fn serve_read(State(served): State<Served>, request: Request<Body>) -> Response {
    let (request, mut frames): (ReadBlock, _) = match open(&served.verifier, request).await {
        Ok(opened) => opened,
        Err(refusal) => return refusal.into_response(),
    };
    // Nothing follows the head; reading to the end keeps the connection usable.
    let _ = timeout(DRAIN_DEADLINE, frames.drain(MESSAGE_BYTES_MAX)).await;
    let runs = match served.datanode.read_block(request).await {
        Ok(runs) => runs,
        Err(failure) => return encode_error(&failure).into_response(),
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
    let pieces = pieces.flat_map(stream::iter).filter(|piece| std::future::ready(!piece.is_empty()));
    Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>)).into_response()
}

/// Authenticates a call and decodes its head frame.
async fn open<Q: DeserializeOwned>(
    verifier: &Verifier,
    request: Request<Body>,
) -> Result<(Q, FrameReader<BodyDataStream>), Refusal> {
    let (head, body) = request.into_parts();
    let digest = match verifier.verify(head.method.as_str(), head.uri.path(), &head.headers) {
        Ok(digest) => digest,
        Err(error) => return Err(Refusal::from(error).unread(body)),
    };
    let mut frames = FrameReader::new(body.into_data_stream());
    let invalid = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let frame = timeout(BODY_IDLE_DEADLINE, frames.next()).await;
    let frame = frame.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request did not come"))?;
    let Frame::Head(message) = frame.map_err(|failure| invalid(failure.message))? else {
        return Err(invalid("a stream begins with its head".to_owned()));
    };
    if body_digest(&message) != digest {
        return Err(AuthError::OtherBody.into());
    }
    let request = decode_message(&message).map_err(|failure| invalid(failure.message))?;
    Ok((request, frames))
}

/// The runs left in a stream, checked; an error ends it.
fn runs<S, E>(
    frames: FrameReader<S>,
    idle: std::time::Duration,
    damaged: Status,
) -> impl Stream<Item = Result<ChunkRun, Failure>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::fmt::Display + Send,
{
    stream::try_unfold(frames, move |mut frames| async move {
        let run = next_run(&mut frames, idle, damaged).await?;
        Ok(run.map(|run| (run, frames)))
    })
}

/// The next run, checked; None at the end frame.
async fn next_run<S, E>(
    frames: &mut FrameReader<S>,
    idle: std::time::Duration,
    damaged: Status,
) -> Result<Option<ChunkRun>, Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let frame = timeout(idle, frames.next()).await;
    match frame.map_err(|_| Failure::new(Status::Retry, "a block stream stands still"))?? {
        Frame::Run(run) if run.is_intact() => Ok(Some(run)),
        Frame::Run(_) => {
            Err(Failure::new(damaged, "a chunk arrived with another checksum than it was sent with"))
        }
        Frame::End => Ok(None),
        Frame::Error(failure) => Err(failure),
        Frame::Head(_) => Err(Failure::new(Status::Invalid, "a block stream begins twice")),
    }
}

/// A piece of a body that is sent.
type Piece = Result<Bytes, BodyError>;

/// Sends a block's frames to the connection; its source's failure breaks the body.
async fn feed(head: Bytes, mut source: ChunkStream, pieces: mpsc::Sender<Piece>) -> Result<(), Failure> {
    let mut total = 0;
    push(&pieces, head).await?;
    while let Some(run) = source.next().await {
        let run = match run {
            Ok(run) => run,
            Err(failure) => {
                let _ = timeout(WRITE_DEADLINE, pieces.send(Err(failure.clone().into()))).await;
                return Err(failure);
            }
        };
        total += run.data.len() as u64;
        push(&pieces, encode_run_head(&run)).await?;
        push(&pieces, run.data).await?;
    }
    push(&pieces, encode_end(total)).await
}

async fn push(pieces: &mpsc::Sender<Piece>, piece: Bytes) -> Result<(), Failure> {
    match timeout(WRITE_DEADLINE, pieces.send(Ok(piece))).await {
        Ok(Ok(())) => Ok(()),
        // The receiver is gone: the exchange has ended and says why.
        Ok(Err(_)) => std::future::pending().await,
        Err(_) => Err(Failure::new(Status::Unknown, "the datanode takes no more bytes")),
    }
}

fn channel_body(received: mpsc::Receiver<Piece>) -> OutBody {
    let pieces = stream::unfold(received, |mut received| async move {
        let piece = received.recv().await?;
        Some((piece.map(BodyFrame::data), received))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn harmless(failure: Failure) -> Failure {
    match failure.status {
        Status::Unknown => Failure { status: Status::Retry, ..failure },
        _ => failure,
    }
}
