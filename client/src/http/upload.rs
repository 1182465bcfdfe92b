//! Streams into a service: long blocks to a datanode, snapshots to a peer.
//!
//! ```text
//!   caller                            service
//!   head frame       ---------->      looks at it; takes the stream ...
//!                    <----------      go                          ... or refuses: receipt, and no run has moved
//!   run run .. end   ---------->
//!                    <----------      receipt
//! ```
//!
//! The answer begins before the body has ended: HTTP/1.1 lets both flow at once. A service that fails half way sends its
//! receipt at once and reads on while the caller, seeing it, ends its body: closing with bytes unread would reset the
//! connection, and the reason with it.
//!
//! Invariants:
//! * No run leaves its source before the service asked for the first one.
//! * Both sides check every chunk against its CRC as it arrives.
//! * A stream whose source fails breaks its connection: the service sees no end frame and keeps nothing.
//!
//! Not here: what is streamed (`block_stream`, the crate `peers`).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use http::{Method, Request};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, StreamBody};
use platform::task;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wire::chunk::ChunkRun;
use wire::cluster_key::body_digest;
use wire::host::HostPort;
use wire::status::{Failure, Status};

use super::auth::{Nonce, Verifier};
use super::exchange::Exchange;
use super::frame::{
    Frame, FrameReader, MESSAGE_BYTES_MAX, encode_end, encode_go, encode_head, encode_receipt,
    encode_run_head,
};
use super::rpc::{Answer, decode_answer, encode_answer, only_failure};
use super::transport::{BodyError, OutBody, Transport};
use super::{BODY_IDLE_DEADLINE, DRAIN_DEADLINE, WRITE_DEADLINE};
use crate::service::{CallError, ChunkStream};

/// Pieces of a body between its source and the connection: enough to keep both busy.
const PIECES_MAX: usize = 4;
/// What a refused caller may still have on its way: buffers of both kernels and ours.
const DRAIN_BYTES_MAX: usize = 64 << 20;

/// The frames of a request, shared between the stream that a service consumes and the drain after it.
pub(crate) type SharedFrames = Arc<Mutex<FrameReader<BodyDataStream>>>;

/// Where a stream goes to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The peer.
    pub peer: &'a HostPort,
    /// PUT or POST, as in the table of routes.
    pub method: &'a Method,
    /// Its path.
    pub path: &'a str,
    /// After the last run the receipt comes within this.
    pub receipt_deadline: Duration,
}

impl Transport {
    /// Streams `body` to a service and answers with its receipt. `head` is what the stream begins with, at most 16 KiB.
    ///
    /// Dropping the future breaks the stream off. That the first run is taken from `body` says that the service has
    /// taken the stream; each further one, that bytes are moving.
    pub async fn upload<R: DeserializeOwned>(
        &self,
        target: Target<'_>,
        head: Bytes,
        body: ChunkStream,
    ) -> Result<R, Failure> {
        if head.len() > MESSAGE_BYTES_MAX {
            let message = format!("a stream's head of {} bytes is over {MESSAGE_BYTES_MAX}", head.len());
            return Err(Failure::new(Status::Invalid, message));
        }
        let peer = target.peer;
        let late = || Failure::new(Status::Unknown, format!("no answer from {peer} in time"));
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let digest = body_digest(&head);
        pieces.try_send(Ok(encode_head(&head))).expect("the channel is empty");
        let sent = self.send(peer, target.method.clone(), target.path, &digest, channel_body(received));
        let reply = timeout(WRITE_DEADLINE, sent).await.map_err(|_| late())??;
        let nonce = reply.nonce;
        let mut frames = reply.frames();
        match timeout(WRITE_DEADLINE, frames.next()).await.map_err(|_| late())? {
            Ok(Frame::Go) => {}
            other => return self.receipt(peer, &nonce, other),
        }
        // Boxed, so that dropping the feed drops its end of the channel.
        let feed = Box::pin(feed(body, pieces));
        let receipt = pin!(frames.next());
        let receipt = match select(receipt, feed).await {
            // An early receipt: dropping the feed ends the body, so that the service ends its answer.
            Either::Left((receipt, feed)) => {
                drop(feed);
                receipt
            }
            Either::Right((fed, receipt)) => {
                // The source failed: its failure is the answer, and the connection breaks with it.
                fed?;
                timeout(target.receipt_deadline, receipt).await.map_err(|_| late())?
            }
        };
        self.receipt(peer, &nonce, receipt)
    }

    fn receipt<R: DeserializeOwned>(
        &self,
        peer: &HostPort,
        nonce: &Nonce,
        frame: Result<Frame, Failure>,
    ) -> Result<R, Failure> {
        let unknown =
            |why: &str| Err(Failure::new(Status::Unknown, format!("{peer} answered a stream {why}")));
        match frame {
            Ok(Frame::Receipt(mac, message)) if self.check_receipt(nonce, &message, &mac) => {
                only_failure(decode_answer(peer, &message))
            }
            Ok(Frame::Receipt(..)) => unknown("without a proof of the cluster key"),
            Ok(_) => unknown("out of turn"),
            Err(failure) => unknown(&format!("not to its end: {failure}")),
        }
    }
}

impl Exchange {
    /// Authenticates a stream and reads its head. `Err` is the answer to one that is not let in.
    pub async fn receive_stream(
        verifier: &Arc<Verifier>,
        request: Request<Body>,
    ) -> Result<(Incoming, Bytes), Response> {
        let (exchange, head, frames) = Self::receive_head(verifier, request).await?;
        Ok((Incoming { exchange, frames }, head))
    }
}

/// A stream whose head was read.
pub struct Incoming {
    exchange: Exchange,
    frames: FrameReader<BodyDataStream>,
}

impl Incoming {
    /// The answer to a stream whose head cannot be understood.
    pub fn malformed(&self, text: String) -> Response {
        self.exchange.malformed(text)
    }

    /// Its parts, for a stream short enough to be taken whole.
    pub(crate) fn into_parts(self) -> (Exchange, FrameReader<BodyDataStream>) {
        (self.exchange, self.frames)
    }

    /// Hands the runs to `work`; its outcome is the receipt. The caller sends once `work` takes the first run.
    pub fn take<T, W>(self, work: impl FnOnce(ChunkStream) -> W) -> Response
    where
        T: Serialize + Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let Self { exchange, frames } = self;
        let frames = Arc::new(Mutex::new(frames));
        let (pulls, pulled) = oneshot::channel();
        // A task of its own: when the connection breaks, the answer is dropped at once, but the service must still see its
        // stream fail.
        let work = task::spawn(work(Box::pin(body(frames.clone(), pulls))));
        let taking = Taking { exchange: exchange.clone(), frames, stage: Stage::Begun { work, pulled } };
        exchange.stream(stream::unfold(taking, Taking::next))
    }
}

/// A stream being taken: what of its answer comes next.
struct Taking<T> {
    exchange: Exchange,
    frames: SharedFrames,
    stage: Stage<T>,
}

type Work<T> = JoinHandle<Result<T, Failure>>;

enum Stage<T> {
    /// The service looks at the head.
    Begun { work: Work<T>, pulled: oneshot::Receiver<()> },
    /// It takes runs.
    Going(Work<T>),
    /// The receipt is given; the rest of the request is read.
    Done,
    /// So is that.
    Over,
}

impl<T: Serialize> Taking<T> {
    async fn next(self) -> Option<(Bytes, Self)> {
        let Self { exchange, frames, stage } = self;
        let outcome = match stage {
            Stage::Begun { work, pulled } => match select(work, pulled).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right((Ok(()), work)) => {
                    return Some((encode_go(), Self { exchange, frames, stage: Stage::Going(work) }));
                }
                // It has let go of the runs without taking one.
                Either::Right((Err(_), work)) => work.await,
            },
            Stage::Going(work) => work.await,
            Stage::Done => {
                let mut rest = frames.lock().await;
                if !rest.is_done() {
                    let _ = timeout(DRAIN_DEADLINE, rest.drain(DRAIN_BYTES_MAX)).await;
                }
                drop(rest);
                return Some((Bytes::new(), Self { exchange, frames, stage: Stage::Over }));
            }
            Stage::Over => return None,
        };
        let died = |_| Err(Failure::new(Status::Unknown, "the service's task has died"));
        let outcome = outcome.unwrap_or_else(died);
        let message = encode_answer(&Answer::from(outcome.map_err(CallError::Failed)));
        let receipt = encode_receipt(&exchange.receipt_mac(&message), &message);
        Some((receipt, Self { exchange, frames, stage: Stage::Done }))
    }
}

/// The runs of a request; `pulls` is told when the first is asked for.
fn body(
    frames: SharedFrames,
    pulls: oneshot::Sender<()>,
) -> impl Stream<Item = Result<ChunkRun, Failure>> + Send {
    stream::try_unfold((frames, Some(pulls)), |(frames, mut pulls)| async move {
        if let Some(pulls) = pulls.take() {
            let _ = pulls.send(());
        }
        let run = next_run(&mut *frames.lock().await, BODY_IDLE_DEADLINE, Status::Retry).await?;
        Ok(run.map(|run| (run, (frames, pulls))))
    })
}

/// The next run, checked; None at the end frame.
pub(crate) async fn next_run<S, E>(
    frames: &mut FrameReader<S>,
    idle: Duration,
    damaged: Status,
) -> Result<Option<ChunkRun>, Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    let frame = timeout(idle, frames.next()).await;
    match frame.map_err(|_| Failure::new(Status::Retry, "a stream stands still"))?? {
        Frame::Run(run) if run.is_intact() => Ok(Some(run)),
        Frame::Run(_) => {
            Err(Failure::new(damaged, "a chunk arrived with another checksum than it was sent with"))
        }
        Frame::End => Ok(None),
        Frame::Error(failure) => Err(failure),
        _ => Err(Failure::new(Status::Invalid, "a stream holds a frame out of turn")),
    }
}

/// A piece of a body that is sent.
type Piece = Result<Bytes, BodyError>;

/// Sends a stream's runs to the connection; its source's failure breaks the body.
async fn feed(mut source: ChunkStream, pieces: mpsc::Sender<Piece>) -> Result<(), Failure> {
    let mut total = 0;
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
        Err(_) => Err(Failure::new(Status::Unknown, "the peer takes no more bytes")),
    }
}

fn channel_body(received: mpsc::Receiver<Piece>) -> OutBody {
    let pieces = stream::unfold(received, |mut received| async move {
        let piece = received.recv().await?;
        Some((piece.map(BodyFrame::data), received))
    });
    StreamBody::new(pieces).boxed_unsync()
}
