//! Connections of a stub: pooled, kept alive, bounded; calls signed and their failures sorted.
//!
//! Not here: what bodies hold (`rpc`, `block_stream`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use wire::clock::{Clock, SystemClock};
use wire::cluster_key::{ClusterKey, SECRET_BYTES};
use wire::host::HostPort;
use wire::status::{Failure, Status};

use super::{CONNECT_DEADLINE, auth};

/// Calls of one process under way at most; more wait. Each holds a connection.
const CALLS_MAX: usize = 512;
/// Idle connections kept per peer.
const IDLE_PER_PEER_MAX: usize = 64;
/// An idle connection is closed after this: sooner than the server closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// An error inside a body that is sent.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body that is sent.
pub(crate) type OutBody = UnsyncBoxBody<Bytes, BodyError>;

/// The way to other processes of the cluster. One per process; stubs share it.
pub struct Transport {
    client: Client<HttpConnector, OutBody>,
    key: ClusterKey,
    clock: Arc<dyn Clock>,
    calls: Semaphore,
}

impl Transport {
    /// A transport whose calls are proven by `key`.
    pub fn new(key: ClusterKey) -> Arc<Self> {
        Self::with_clock(key, Arc::new(SystemClock))
    }

    /// The same, with another clock.
    pub fn with_clock(key: ClusterKey, clock: Arc<dyn Clock>) -> Arc<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_PEER_MAX)
            .build(connector);
        Arc::new(Self { client, key, clock, calls: Semaphore::new(CALLS_MAX) })
    }

    /// Sends a call and answers the response's head. `digest` is that of the body, or of its head frame.
    pub(crate) async fn send(
        &self,
        peer: &HostPort,
        method: Method,
        path: &'static str,
        digest: &[u8; SECRET_BYTES],
        body: OutBody,
    ) -> Result<Response<Incoming>, Failure> {
        let _slot = self.calls.acquire().await.expect("the semaphore is never closed");
        let nonce = wire::random::array();
        let headers = auth::sign(&self.key, method.as_str(), path, digest, self.clock.now_ms(), nonce);
        let uri = Uri::builder().scheme("http").authority(peer.to_string()).path_and_query(path).build();
        let uri =
            uri.map_err(|error| Failure::new(Status::Internal, format!("no address {peer}: {error}")))?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().extend(headers);
        let response = self.client.request(request).await.map_err(|error| {
            // Only a connection that never stood proves that nothing was sent.
            let status = if error.is_connect() { Status::Retry } else { Status::Unknown };
            Failure::new(status, format!("no answer from {peer}: {}", root_cause(&error)))
        })?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(refused(peer, status, response).await),
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({:?})", self.key)
    }
}

/// A body that is wholly here.
pub(crate) fn whole(bytes: Bytes) -> OutBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// What a status other than 200 means: the call was turned away before it had an effect.
async fn refused(peer: &HostPort, status: StatusCode, response: Response<Incoming>) -> Failure {
    /// Bytes of a refusal's text at most.
    const TEXT_BYTES_MAX: usize = 1024;
    let text = http_body_util::Limited::new(response.into_body(), TEXT_BYTES_MAX).collect().await;
    let text = text.map(|text| text.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let meaning = match status {
        StatusCode::UNAUTHORIZED => Status::Denied,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Status::Invalid,
        StatusCode::SERVICE_UNAVAILABLE => Status::Retry,
        StatusCode::REQUEST_TIMEOUT => Status::Retry,
        _ => Status::Internal,
    };
    Failure::new(meaning, format!("{peer} answered {}: {text}", status.as_u16()))
}

/// The innermost error: the outer ones say only that a request failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
