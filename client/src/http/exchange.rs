//! The serving side of a call: authenticated first, then read, then answered with a proof.
//!
//! Invariants:
//! * No byte of a body is looked at before its call's head is proven.
//! * Every answer to a call with a nonce carries a proof, also a refusal.
//!
//! Not here: what bodies hold (see `rpc`, `upload`, `block_stream`).

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, BodyDataStream};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use wire::cluster_key::body_digest;
use wire::limits::RPC_BYTES_MAX;
use wire::status::{Failure, Status};

use super::auth::{AuthError, Nonce, Verifier};
use super::frame::{Frame, FrameReader};
use super::lobby::Standing;
use super::rpc::{Answer, encode_answer};
use super::{BODY_IDLE_DEADLINE, DRAIN_DEADLINE};
use crate::service::CallError;

/// An authenticated call that is being answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    verifier: Arc<Verifier>,
    /// None only of a stranger without one.
    nonce: Option<Nonce>,
}

impl Exchange {
    /// Authenticates a call and reads its body, at most `bytes_max` bytes. `Err` is the answer to a call that is not let in.
    pub async fn receive(
        verifier: &Arc<Verifier>,
        request: Request<Body>,
        bytes_max: usize,
    ) -> Result<(Self, Bytes), Response> {
        let (head, body) = request.into_parts();
        let (exchange, digest) = Self::begin(verifier, &head);
        match read_whole(&digest, body, bytes_max).await {
            Ok(bytes) => Ok((exchange, bytes)),
            Err(refusal) => Err(exchange.refuse(refusal)),
        }
    }

    /// The same of a message of an RPC.
    pub(crate) async fn receive_message<Q: DeserializeOwned>(
        verifier: &Arc<Verifier>,
        request: Request<Body>,
    ) -> Result<(Self, Q), Response> {
        let (exchange, bytes) = Self::receive(verifier, request, RPC_BYTES_MAX).await?;
        match rmp_serde::from_slice(&bytes) {
            Ok(message) => Ok((exchange, message)),
            Err(error) => Err(exchange.malformed(format!("cannot decode the request: {error}"))),
        }
    }

    /// Authenticates a call whose body is frames and reads its head frame.
    pub(crate) async fn receive_head(
        verifier: &Arc<Verifier>,
        request: Request<Body>,
    ) -> Result<(Self, Bytes, FrameReader<BodyDataStream>), Response> {
        let (head, body) = request.into_parts();
        let (exchange, digest) = Self::begin(verifier, &head);
        match read_head(&digest, body).await {
            Ok((message, frames)) => Ok((exchange, message, frames)),
            Err(refusal) => Err(exchange.refuse(refusal)),
        }
    }

    fn begin(verifier: &Arc<Verifier>, head: &Parts) -> (Self, Result<[u8; 32], AuthError>) {
        let digest = verifier.verify(head.method.as_str(), head.uri.path(), &head.headers);
        if let (Ok(_), Some(standing)) = (&digest, head.extensions.get::<Standing>()) {
            standing.prove();
        }
        (Self { verifier: verifier.clone(), nonce: Verifier::nonce(&head.headers) }, digest)
    }

    /// Answers with a reply, a rejection or a failure.
    pub fn answer<T: Serialize>(&self, outcome: Result<T, CallError>) -> Response {
        let encoded = encode_answer(&Answer::from(outcome));
        let bytes = if encoded.len() <= RPC_BYTES_MAX {
            encoded
        } else {
            let message =
                format!("an answer of {} bytes is over the limit of {RPC_BYTES_MAX}", encoded.len());
            encode_answer(&Answer::<()>::Failed(Failure::new(Status::Internal, message)))
        };
        self.answer_bytes(bytes)
    }

    /// Answers with `bytes`.
    pub(crate) fn answer_bytes(&self, bytes: Vec<u8>) -> Response {
        (self.proof(StatusCode::OK, Some(&body_digest(&bytes))), Bytes::from(bytes)).into_response()
    }

    /// The answer to a call whose bytes cannot be understood.
    pub fn malformed(&self, text: String) -> Response {
        self.refuse(Refusal::new(StatusCode::BAD_REQUEST, text))
    }

    /// Answers with `bytes`, and ends the answer once `rest` is done.
    pub(crate) fn answer_then(
        &self,
        bytes: Vec<u8>,
        rest: impl Future<Output = ()> + Send + 'static,
    ) -> Response {
        let proof = self.proof(StatusCode::OK, Some(&body_digest(&bytes)));
        let rest = stream::once(async move {
            rest.await;
            Bytes::new()
        });
        let pieces = stream::iter([Bytes::from(bytes)]).chain(rest).map(Ok::<_, Infallible>);
        (proof, Body::from_stream(pieces)).into_response()
    }

    /// Answers with a stream of frames.
    pub(crate) fn stream(&self, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response {
        let pieces = pieces.filter(|piece| std::future::ready(!piece.is_empty()));
        (self.proof(StatusCode::OK, None), Body::from_stream(pieces.map(Ok::<_, Infallible>))).into_response()
    }

    /// The proof of the message that ends a streamed answer.
    pub(crate) fn receipt_mac(&self, message: &[u8]) -> [u8; 32] {
        self.verifier.receipt_mac(&self.nonce.unwrap_or_default(), message)
    }

    fn refuse(&self, refusal: Refusal) -> Response {
        let text = Bytes::from(refusal.text);
        let proof = self.proof(refusal.status, Some(&body_digest(&text)));
        let Some(rest) = refusal.rest else { return (refusal.status, proof, text).into_response() };
        let pieces = stream::iter([text]).chain(stream::once(drain(rest))).map(Ok::<_, Infallible>);
        (refusal.status, proof, Body::from_stream(pieces)).into_response()
    }

    fn proof(&self, status: StatusCode, digest: Option<&[u8; 32]>) -> HeaderMap {
        let Some(nonce) = &self.nonce else { return HeaderMap::new() };
        self.verifier.prove(nonce, status.as_u16(), digest)
    }
}

async fn read_whole(
    digest: &Result<[u8; 32], AuthError>,
    body: Body,
    bytes_max: usize,
) -> Result<Bytes, Refusal> {
    let digest = match digest {
        Ok(digest) => digest,
        Err(error) => return Err(Refusal::from(error.clone()).unread(body)),
    };
    let too_large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {bytes_max} bytes"));
    if http_body::Body::size_hint(&body).lower() > bytes_max as u64 {
        return Err(too_large().unread(body));
    }
    let bytes = match timeout(BODY_IDLE_DEADLINE, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")));
        }
        Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come")),
    };
    if body_digest(&bytes) != *digest {
        return Err(AuthError::OtherBody.into());
    }
    Ok(bytes)
}

async fn read_head(
    digest: &Result<[u8; 32], AuthError>,
    body: Body,
) -> Result<(Bytes, FrameReader<BodyDataStream>), Refusal> {
    let digest = match digest {
        Ok(digest) => digest,
        Err(error) => return Err(Refusal::from(error.clone()).unread(body)),
    };
    let mut frames = FrameReader::new(body.into_data_stream());
    let invalid = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let frame = timeout(BODY_IDLE_DEADLINE, frames.next()).await;
    let frame = frame.map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request did not come"))?;
    let Frame::Head(message) = frame.map_err(|failure| invalid(failure.message))? else {
        return Err(invalid("a stream begins with its head".to_owned()));
    };
    if body_digest(&message) != *digest {
        return Err(AuthError::OtherBody.into());
    }
    Ok((message, frames))
}

/// Why a call did not reach the service.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
    /// What was not read of the request.
    rest: Option<Body>,
}

impl Refusal {
    /// A refusal of a request whose body has been read.
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), rest: None }
    }

    /// The same, of one whose body has not been read.
    fn unread(self, body: Body) -> Self {
        Self { rest: Some(body), ..self }
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        let status = match error {
            AuthError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            AuthError::OtherCluster | AuthError::OtherReceiver(_) | AuthError::OtherProtocol { .. } => {
                StatusCode::FORBIDDEN
            }
            AuthError::Missing
            | AuthError::Forged
            | AuthError::Skewed { .. }
            | AuthError::Replayed
            | AuthError::OtherBody => StatusCode::UNAUTHORIZED,
        };
        Self::new(status, error.to_string())
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
