//! Backups of the groups whose replicas run in this process, streamed as they are read.
//!
//! The one answer of the admin API that is no JSON: a backup is as long as the metadata. It breaks off if it cannot be read
//! to its end.
//!
//! Not here: what the bytes are (consensus), where they are kept (the caller's).

use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::CONTENT_TYPE;
use wire::status::Failure;

use crate::api::Operators;
use crate::error::ApiError;

/// The bytes of a backup.
pub type BackupStream = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// The replicas of this process.
pub trait Backups: Send + Sync {
    /// A backup of `om` or `scm`; None if this process has no replica of it.
    fn begin(&self, group: &str) -> Option<BackupStream>;
}

pub(crate) async fn get(
    State(operators): State<Arc<Operators>>,
    Path(group): Path<String>,
    request: Request,
) -> Response {
    match begin(&operators, &group, request).await {
        Ok(body) => ([(CONTENT_TYPE, "application/octet-stream")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn begin(operators: &Operators, group: &str, request: Request) -> Result<Body, ApiError> {
    operators.admit(request).await?;
    let service = match group {
        "om" => "om",
        "scm" => "scm",
        _ => return Err(ApiError::NotFound(format!("group {group}; there are om and scm"))),
    };
    let absent = || {
        ApiError::Conflict(format!(
            "no replica of {group} runs here: ask a node whose node.roles has {group}"
        ))
    };
    let mut pieces = operators.backups().and_then(|backups| backups.begin(group)).ok_or_else(absent)?;
    // What cannot even begin is told as a refusal.
    let first = match pieces.next().await {
        Some(Ok(first)) => first,
        Some(Err(failure)) => return Err(ApiError::Failed { service, failure }),
        None => Bytes::new(),
    };
    tracing::info!(group, "a backup is read");
    Ok(Body::from_stream(stream::iter([Ok(first)]).chain(pieces)))
}
