//! The calling side of a call: connections pooled, kept alive, bounded; calls signed, answers checked, failures sorted.
//!
//! Invariants:
//! * An answer without a valid proof is never taken for one: `Unknown`.
//! * A peer that does not answer takes up its own calls' places, not those of others.
//!
//! Not here: what bodies hold (`rpc`, `upload`, `block_stream`), connections (`connect`).

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::rustls;
use wire::clock::{Clock, SystemClock, UnixMs};
use wire::cluster_key::{ClusterKey, body_digest};
use wire::host::HostPort;
use wire::limits::CLOCK_SKEW_MS;
use wire::status::{Failure, Status};

use super::auth::{self, AnswerHead, BodyDigest, CallHead, Nonce, ahead_or_behind, check_answer};
use super::connect::Connector;
use super::frame::{FrameReader, MESSAGE_BYTES_MAX};
use super::rpc::{decode_answer, only_failure};
use super::tls::Tls;
use super::{IDLE_TIMEOUT, PING_PATH, RPC_DEADLINE};

/// Calls of one process to one peer under way at most; more wait. Each holds a connection.
const CALLS_PER_PEER_MAX: usize = 512;
/// Questions of one process whether a peer lives, under way at most. They have places of their own: they are asked when
/// calls hold all of theirs.
const PINGS_PER_PEER_MAX: usize = 16;
/// Idle connections kept per peer. Each takes one of the places that a listener has for all processes.
const IDLE_PER_PEER_MAX: usize = 64;
/// Peers whose calls are counted apart.
const PEERS_MAX: usize = 4096;
/// A clock that is off is logged once in so many milliseconds.
const WARN_INTERVAL_MS: u64 = 60_000;
/// Bytes of a refusal's text at most.
const REFUSAL_BYTES_MAX: usize = 1024;

/// An error inside a body that is sent.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body that is sent.
pub(crate) type OutBody = UnsyncBoxBody<Bytes, BodyError>;

/// What a process calls others with.
#[derive(Clone)]
pub struct TransportConfig {
    /// Proves its calls, and theirs.
    pub key: ClusterKey,
    /// Its node's name, for the others' logs.
    pub node: String,
    /// Its certificates; None where all is on one host.
    pub tls: Option<Arc<Tls>>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl TransportConfig {
    /// Without TLS, by the machine's clock.
    pub fn new(key: ClusterKey, node: &str) -> Self {
        Self { key, node: node.to_owned(), tls: None, clock: Arc::new(SystemClock) }
    }
}

/// The way to other processes of the cluster. One per process; stubs share it.
pub struct Transport {
    client: Client<Connector, OutBody>,
    key: ClusterKey,
    node: String,
    clock: Arc<dyn Clock>,
    peers: Mutex<BTreeMap<HostPort, Arc<Peer>>>,
}

struct Peer {
    calls: Semaphore,
    pings: Semaphore,
    clock_off: metrics::Gauge,
    warned_ms: Mutex<UnixMs>,
}

impl Transport {
    /// A transport whose calls are proven by `key`, without TLS.
    pub fn new(key: ClusterKey) -> Arc<Self> {
        Self::of_node(TransportConfig::new(key, "unnamed"))
    }

    /// A transport.
    pub fn of_node(config: TransportConfig) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_PEER_MAX)
            .build(Connector::new(config.tls));
        let node = auth::name_in_header(&config.node);
        Arc::new(Self { client, key: config.key, node, clock: config.clock, peers: Mutex::default() })
    }

    /// Sends a call and answers the response's head. `digest` is that of the body, or of its head frame.
    pub(crate) async fn send(
        &self,
        peer: &HostPort,
        method: Method,
        path: &str,
        digest: &BodyDigest,
        body: OutBody,
    ) -> Result<Reply, Failure> {
        let known = self.peer(peer);
        let places = if path == PING_PATH { &known.pings } else { &known.calls };
        let _place = places.acquire().await.expect("the semaphore is never closed");
        let nonce: Nonce = wire::random::array();
        let sent_ms = self.clock.now_ms();
        let proof = auth::sign(
            &self.key,
            CallHead {
                method: method.as_str(),
                path,
                from: &self.node,
                to: peer.as_str(),
                digest,
                now_ms: sent_ms,
                nonce: &nonce,
            },
        );
        let uri = Uri::builder().scheme("http").authority(peer.to_string()).path_and_query(path).build();
        let uri =
            uri.map_err(|error| Failure::new(Status::Internal, format!("no address {peer}: {error}")))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().extend(proof);
        let response = self.client.request(request).await;
        let response = response.map_err(|error| unanswered(peer, &error))?;
        let head = check_answer(&self.key, &nonce, response.status().as_u16(), response.headers());
        if let Some(head) = &head {
            self.compare_clocks(peer, &known, sent_ms, head.time_ms);
        }
        match (response.status(), head) {
            (StatusCode::OK, Some(AnswerHead { digest, .. })) => {
                Ok(Reply { peer: peer.clone(), nonce, digest, body: response.into_body() })
            }
            (StatusCode::OK, None) => Err(unproven(peer)),
            (status, head) => Err(refused(peer, status, head.is_some(), response).await),
        }
    }

    /// Calls with a whole body a service that answers nothing but its outcome.
    pub async fn exchange(&self, peer: &HostPort, path: &str, body: Bytes) -> Result<(), Failure> {
        let exchange = async {
            let reply = self.send(peer, Method::POST, path, &body_digest(&body), whole(body)).await?;
            reply.collect(MESSAGE_BYTES_MAX).await
        };
        let late = |_| Failure::new(Status::Unknown, format!("no answer from {peer} in time"));
        let bytes = timeout(RPC_DEADLINE, exchange).await.map_err(late)??;
        only_failure(decode_answer(peer, &bytes))
    }

    /// Whether a streamed answer's last message is proven.
    pub(crate) fn check_receipt(&self, nonce: &Nonce, message: &[u8], mac: &[u8; 32]) -> bool {
        auth::check_receipt(&self.key, nonce, message, mac)
    }

    fn peer(&self, peer: &HostPort) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        if let Some(known) = peers.get(peer) {
            return known.clone();
        }
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        let clock_off = crate::metrics::peer_clock_off(peer);
        let (calls, pings) = (Semaphore::new(CALLS_PER_PEER_MAX), Semaphore::new(PINGS_PER_PEER_MAX));
        let known = Arc::new(Peer { calls, pings, clock_off, warned_ms: Mutex::new(0) });
        peers.insert(peer.clone(), known.clone());
        known
    }

    /// Tells operators of a clock that is off, this node's or the peer's. The answer was given between sending and now.
    fn compare_clocks(&self, peer: &HostPort, known: &Peer, sent_ms: UnixMs, answered_ms: UnixMs) {
        let now_ms = self.clock.now_ms();
        let off_ms = if answered_ms < sent_ms {
            answered_ms as i64 - sent_ms as i64
        } else {
            answered_ms.saturating_sub(now_ms) as i64
        };
        known.clock_off.set(off_ms as f64 / 1000.0);
        if off_ms.unsigned_abs() <= CLOCK_SKEW_MS {
            return;
        }
        let mut warned_ms = known.warned_ms.lock();
        if now_ms.abs_diff(*warned_ms) >= WARN_INTERVAL_MS {
            *warned_ms = now_ms;
            tracing::error!(
                "clock off: the clock of {peer} is {} s {} this node's; calls are refused beyond {} s: set both by NTP",
                off_ms.unsigned_abs() / 1000,
                ahead_or_behind(off_ms),
                CLOCK_SKEW_MS / 1000
            );
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({:?})", self.key)
    }
}

/// An answer from a node that has proven itself; its body is still to come.
pub(crate) struct Reply {
    pub(crate) peer: HostPort,
    pub(crate) nonce: Nonce,
    digest: Option<BodyDigest>,
    body: Incoming,
}

impl Reply {
    /// The whole body. The call was made, so whatever fails here leaves its outcome unknown.
    pub(crate) async fn collect(self, bytes_max: usize) -> Result<Bytes, Failure> {
        let broken =
            |error| Failure::new(Status::Unknown, format!("the answer of {} broke off: {error}", self.peer));
        let bytes = Limited::new(self.body, bytes_max).collect().await.map_err(broken)?.to_bytes();
        if self.digest != Some(body_digest(&bytes)) {
            return Err(unproven(&self.peer));
        }
        Ok(bytes)
    }

    /// The frames of a streamed answer.
    pub(crate) fn frames(self) -> FrameReader<BodyDataStream<Incoming>> {
        FrameReader::new(self.body.into_data_stream())
    }
}

/// A body that is wholly here.
pub(crate) fn whole(bytes: Bytes) -> OutBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is wholly here, in pieces that others may hold as well: none is copied together.
pub(crate) fn in_parts(parts: Vec<Bytes>) -> OutBody {
    let left = parts.iter().map(|part| part.len() as u64).sum();
    Parts { parts: parts.into(), left }.map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Its length is known, so it travels with `Content-Length` like any whole body.
struct Parts {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.parts.pop_front();
        self.left -= next.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(next.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn unproven(peer: &HostPort) -> Failure {
    let message = format!(
        "the answer of {peer} carries no proof of the cluster key: is another program listening there?"
    );
    Failure::new(Status::Unknown, message)
}

/// Whether a handshake failed for a certificate, ours or theirs.
fn is_about_certificates(error: &rustls::Error) -> bool {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                // Signed by another authority of the same name.
                | Alert::DecryptError
                | Alert::AccessDenied
                | Alert::CertificateRequired
        ),
        _ => false,
    }
}

/// What it means that no answer came.
fn unanswered(peer: &HostPort, error: &hyper_util::client::legacy::Error) -> Failure {
    // Only a connection that never stood proves that nothing was sent.
    let mut status = if error.is_connect() { Status::Retry } else { Status::Unknown };
    let cause = root_cause(error);
    let mut text = cause.to_string();
    if cause.downcast_ref::<rustls::Error>().is_some_and(is_about_certificates) {
        // Whoever says so has not looked at the call.
        status = Status::Denied;
        text = format!(
            "{text}; are both certificates from the cluster's authority, for these names, and in date?"
        );
    }
    Failure::new(status, format!("no answer from {peer}: {text}"))
}

/// What a status other than 200 means: the call was turned away before it had an effect.
async fn refused(
    peer: &HostPort,
    status: StatusCode,
    is_proven: bool,
    response: Response<Incoming>,
) -> Failure {
    let mut body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).into_data_stream();
    let text = match timeout(RPC_DEADLINE, body.next()).await {
        Ok(Some(Ok(text))) => String::from_utf8_lossy(&text).into_owned(),
        _ => String::new(),
    };
    let meaning = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Status::Denied,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE if is_proven => Status::Invalid,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => Status::Retry,
        // The role does not run there, or not yet.
        StatusCode::NOT_FOUND => Status::Retry,
        _ if is_proven => Status::Internal,
        _ => Status::Unknown,
    };
    Failure::new(meaning, format!("{peer} answered {}: {text}", status.as_u16()))
}

/// The innermost error: the outer ones say only that a request failed.
fn root_cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    let mut cause = error;
    loop {
        // An I/O error hides the one it was made of from `source`.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let inner = inner.map(|inner| inner as &(dyn std::error::Error + 'static));
        match inner.or_else(|| cause.source()) {
            Some(next) => cause = next,
            None => return cause,
        }
    }
}
