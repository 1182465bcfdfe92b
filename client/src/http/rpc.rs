//! Calls of OM and SCM: one MessagePack message in, one out.
//!
//! An answer, a rejection and a failure of the service all travel as status 200 with a typed body; other statuses mean
//! that the call did not reach the service.
//!
//! Not here: blocks (`block_stream`), who leads (`crate::failover`).

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use http::{Method, Request};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use wire::cluster_key::body_digest;
use wire::host::HostPort;
use wire::limits::RPC_BYTES_MAX;
use wire::om::{OmReply, OmRequest, Rejection};
use wire::scm::{ScmReply, ScmRequest};
use wire::status::{Failure, Status};

use super::auth::Verifier;
use super::exchange::Exchange;
use super::transport::{Transport, whole};
use super::{OM_PATH, RPC_DEADLINE, SCM_PATH};
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
        only_failure(call(&self.transport, &self.peer, SCM_PATH, &request).await)
    }
}

/// The outcome of a call whose service rejects nothing.
pub(crate) fn only_failure<T>(outcome: Result<T, CallError>) -> Result<T, Failure> {
    outcome.map_err(|error| match error {
        CallError::Failed(failure) => failure,
        CallError::Rejected(_) => Failure::new(Status::Internal, "the peer answered as om does"),
    })
}

/// Serves an OM under [`OM_PATH`].
pub fn om_router(om: Arc<dyn OmService>, verifier: Arc<Verifier>) -> Router {
    async fn handle(
        State((om, verifier)): State<(Arc<dyn OmService>, Arc<Verifier>)>,
        request: Request<Body>,
    ) -> Response {
        match Exchange::receive_message(&verifier, request).await {
            Ok((exchange, request)) => exchange.answer(om.handle(request).await),
            Err(refusal) => refusal,
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
        match Exchange::receive_message(&verifier, request).await {
            Ok((exchange, request)) => exchange.answer(scm.handle(request).await.map_err(CallError::Failed)),
            Err(refusal) => refusal,
        }
    }
    Router::new().route(SCM_PATH, post(handle)).with_state((scm, verifier))
}

async fn call<Q: Serialize, R: DeserializeOwned>(
    transport: &Transport,
    peer: &HostPort,
    path: &str,
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
        response.collect(RPC_BYTES_MAX).await
    };
    let late = |_| Failure::new(Status::Unknown, format!("no answer from {peer} in time"));
    let bytes = timeout(RPC_DEADLINE, exchange).await.map_err(late)??;
    decode_answer(peer, &bytes)
}

/// An answer's bytes.
pub(crate) fn encode_answer<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    rmp_serde::to_vec(answer).expect("answers hold nothing that MessagePack cannot express")
}

/// An answer from its bytes. The call was made, so its outcome is unknown if they make no sense.
pub(crate) fn decode_answer<R: DeserializeOwned>(peer: &HostPort, bytes: &[u8]) -> Result<R, CallError> {
    let answer: Answer<R> = rmp_serde::from_slice(bytes).map_err(|error| {
        Failure::new(Status::Unknown, format!("cannot decode the answer of {peer}: {error}"))
    })?;
    answer.into()
}
