//! Calls of OM and SCM: one MessagePack message in, one out.
//!
//! An answer, a rejection and a failure of the service all travel as status 200 with a typed body; other statuses mean
//! that the call did not reach the service.
//!
//! Not here: blocks (`block_stream`).

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use wire::cluster_key::body_digest;
use wire::host::HostPort;
use wire::limits::RPC_BYTES_MAX;
use wire::om::{OmReply, OmRequest, Rejection};
use wire::scm::{ScmReply, ScmRequest};
use wire::status::{Failure, Status};

use super::auth::{AuthError, Verifier};
use super::transport::{Transport, whole};
use super::{BODY_IDLE_DEADLINE, DRAIN_DEADLINE, OM_PATH, RPC_DEADLINE, SCM_PATH};
use crate::service::{CallError, OmService, ScmService};

/// How a call ended, as it travels. A format: variants are appended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer<T> {
    /// The reply.
    Done(T),
    /// The request does not fit the state.
    Rejected(Rejection),
    /// The service gave no reply.
    Failed(Failure),
}

impl<T> From<Result<T, CallError>> for Answer<T> {
    fn from(outcome: Result<T, CallError>) -> Self {
        match outcome {
            Ok(reply) => Self::Done(reply),
            Err(CallError::Rejected(rejection)) => Self::Rejected(rejection),
            Err(CallError::Failed(failure)) => Self::Failed(failure),
        }
    }
}

impl<T> From<Answer<T>> for Result<T, CallError> {
    fn from(answer: Answer<T>) -> Self {
        match answer {
            Answer::Done(reply) => Ok(reply),
            Answer::Rejected(rejection) => Err(CallError::Rejected(rejection)),
            Answer::Failed(failure) => Err(CallError::Failed(failure)),
        }
    }
}

/// OM in another process.
#[derive(Debug, Clone)]
pub struct OmStub {
    transport: Arc<Transport>,
    peer: HostPort,
}

impl OmStub {
    /// A stub for the OM at `peer`.
    pub fn new(transport: Arc<Transport>, peer: HostPort) -> Self {
        Self { transport, peer }
    }
}

#[async_trait]
impl OmService for OmStub {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        call(&self.transport, &self.peer, OM_PATH, &request).await
    }
}

/// SCM in another process.
#[derive(Debug, Clone)]
pub struct ScmStub {
    transport: Arc<Transport>,
    peer: HostPort,
}

impl ScmStub {
    /// A stub for the SCM at `peer`.
    pub fn new(transport: Arc<Transport>, peer: HostPort) -> Self {
        Self { transport, peer }
    }
}

#[async_trait]
impl ScmService for ScmStub {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        call(&self.transport, &self.peer, SCM_PATH, &request).await.map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Rejected(_) => Failure::new(Status::Internal, "scm answered as om does"),
        })
    }
}

/// Serves an OM under [`OM_PATH`].
pub fn om_router(om: Arc<dyn OmService>, verifier: Arc<Verifier>) -> Router {
    async fn handle(
        State((om, verifier)): State<(Arc<dyn OmService>, Arc<Verifier>)>,
        request: Request<Body>,
    ) -> Response {
        match receive(&verifier, request).await {
            Ok(request) => answer(om.handle(request).await),
            Err(refusal) => refusal.into_response(),
        }
    }
    Router::new().route(OM_PATH, post(handle)).with_state((om, verifier))
}

/// Serves an SCM under [`SCM_PATH`].
pub fn scm_router(scm: Arc<dyn ScmService>, verifier: Arc<Verifier>) -> Router {
    async fn handle(
        State((scm, verifier)): State<(Arc<dyn ScmService>, Arc<Verifier>)>,
        request: Request<Body>,
    ) -> Response {
        match receive(&verifier, request).await {
            Ok(request) => answer(scm.handle(request).await.map_err(CallError::Failed)),
            Err(refusal) => refusal.into_response(),
        }
    }
    Router::new().route(SCM_PATH, post(handle)).with_state((scm, verifier))
}

/// Why a call did not reach the service.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    text: String,
    /// What was not read of the request.
    rest: Option<Body>,
}

impl Refusal {
    /// A refusal of a request whose body has been read.
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), rest: None }
    }

    /// The same, of one whose body has not been read.
    pub(crate) fn unread(self, body: Body) -> Self {
        Self { rest: Some(body), ..self }
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        let status = match error {
            AuthError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let text = Bytes::from(self.text);
        let Some(rest) = self.rest else { return (self.status, text).into_response() };
        let pieces = stream::iter([text]).chain(stream::once(drain(rest)));
        (self.status, Body::from_stream(pieces.map(Ok::<_, Infallible>))).into_response()
    }
}

/// Reads on after an answer: closing with bytes unread would reset the connection, and the answer with it.
async fn drain(body: Body) -> Bytes {
    let read = async {
        let mut left = RPC_BYTES_MAX;
        let mut data = body.into_data_stream();
        while let Some(Ok(piece)) = data.next().await {
            left = left.saturating_sub(piece.len());
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(DRAIN_DEADLINE, read).await;
    Bytes::new()
}

async fn call<Q: Serialize, R: DeserializeOwned>(
    transport: &Transport,
    peer: &HostPort,
    path: &'static str,
    request: &Q,
) -> Result<R, CallError> {
    let body = rmp_serde::to_vec(request)
        .map_err(|error| Failure::new(Status::Internal, format!("cannot encode a request: {error}")))?;
    if body.len() > RPC_BYTES_MAX {
        let message = format!("a request of {} bytes is over the limit of {RPC_BYTES_MAX}", body.len());
        return Err(Failure::new(Status::Invalid, message).into());
    }
    let exchange = async {
        let digest = body_digest(&body);
        let response = transport.send(peer, Method::POST, path, &digest, whole(Bytes::from(body))).await?;
        collect(response.into_body(), RPC_BYTES_MAX).await
    };
    let late = |_| Failure::new(Status::Unknown, format!("no answer from {peer} in time"));
    let bytes = timeout(RPC_DEADLINE, exchange).await.map_err(late)??;
    let answer: Answer<R> = rmp_serde::from_slice(&bytes).map_err(|error| {
        Failure::new(Status::Unknown, format!("cannot decode the answer of {peer}: {error}"))
    })?;
    answer.into()
}

/// An answer's body. The call was made, so whatever fails here leaves its outcome unknown.
pub(crate) async fn collect(body: hyper::body::Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, bytes_max).collect().await;
    let broken = |error| Failure::new(Status::Unknown, format!("the answer broke off: {error}"));
    collected.map(|body| body.to_bytes()).map_err(broken)
}

/// Authenticates a call, then reads and decodes its message.
async fn receive<Q: DeserializeOwned>(verifier: &Verifier, request: Request<Body>) -> Result<Q, Refusal> {
    let (head, body) = request.into_parts();
    let digest = match verifier.verify(head.method.as_str(), head.uri.path(), &head.headers) {
        Ok(digest) => digest,
        Err(error) => return Err(Refusal::from(error).unread(body)),
    };
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {RPC_BYTES_MAX} bytes"));
    if http_body::Body::size_hint(&body).lower() > RPC_BYTES_MAX as u64 {
        return Err(too_large().unread(body));
    }
    let read = timeout(BODY_IDLE_DEADLINE, Limited::new(body, RPC_BYTES_MAX).collect()).await;
    let bytes = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")));
        }
        Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come")),
    };
    if body_digest(&bytes) != digest {
        return Err(AuthError::OtherBody.into());
    }
    rmp_serde::from_slice(&bytes)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("cannot decode the request: {error}")))
}

fn answer<T: Serialize>(outcome: Result<T, CallError>) -> Response {
    let encoded = encode_answer(&Answer::from(outcome));
    let body = if encoded.len() <= RPC_BYTES_MAX {
        encoded
    } else {
        let message = format!("an answer of {} bytes is over the limit of {RPC_BYTES_MAX}", encoded.len());
        encode_answer(&Answer::<()>::Failed(Failure::new(Status::Internal, message)))
    };
    Bytes::from(body).into_response()
}

/// An answer's bytes.
pub(crate) fn encode_answer<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    rmp_serde::to_vec(answer).expect("answers hold nothing that MessagePack cannot express")
}
