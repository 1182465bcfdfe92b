//! The receiving side: hands what arrives to the group it is for.
//!
//! Not here: the sending side (`lane`).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use client::http::{Exchange, PEER_MESSAGES_PATH, PEER_SNAPSHOT_PATH, Verifier};
use client::service::CallError;
use consensus::{PeerEndpoint, SnapshotStream};
use futures_util::StreamExt;
use http::Request;
use tokio::sync::Semaphore;
use wire::status::{Failure, Status};

use crate::batch::{BODY_BYTES_MAX, split};

/// Snapshots taken in at once, over all groups: each fills a disk.
const SNAPSHOTS_MAX: usize = 2;

#[derive(Clone)]
struct Served {
    groups: Arc<BTreeMap<String, Arc<dyn PeerEndpoint>>>,
    verifier: Arc<Verifier>,
    snapshots: Arc<Semaphore>,
}

impl Served {
    fn group(&self, name: &str) -> Result<Arc<dyn PeerEndpoint>, Failure> {
        let absent = || Failure::new(Status::Retry, format!("no replica of group {name} runs here"));
        self.groups.get(name).cloned().ok_or_else(absent)
    }
}

/// Serves the replicas of this process.
pub fn peer_router(groups: Vec<Arc<dyn PeerEndpoint>>, verifier: Arc<Verifier>) -> Router {
    let groups = groups.into_iter().map(|group| (group.group().to_owned(), group)).collect();
    let snapshots = Arc::new(Semaphore::new(SNAPSHOTS_MAX));
    Router::new()
        .route(PEER_MESSAGES_PATH, post(take_messages))
        .route(PEER_SNAPSHOT_PATH, post(take_snapshot))
        .with_state(Served { groups: Arc::new(groups), verifier, snapshots })
}

async fn take_messages(
    State(served): State<Served>,
    Path(group): Path<String>,
    request: Request<Body>,
) -> Response {
    let (exchange, body) = match Exchange::receive(&served.verifier, request, BODY_BYTES_MAX).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    let Some(batches) = split(body) else {
        return exchange.malformed("batches whose lengths disagree".to_owned());
    };
    let outcome = async {
        let group = served.group(&group)?;
        let mut outcome = Ok(());
        for batch in batches {
            // One that is refused says nothing of the next: they may be of different terms.
            let taken = group.receive(batch).await;
            outcome = outcome.and(taken);
        }
        outcome
    };
    exchange.answer(outcome.await.map_err(CallError::Failed))
}

async fn take_snapshot(
    State(served): State<Served>,
    Path(group): Path<String>,
    request: Request<Body>,
) -> Response {
    let (incoming, head) = match Exchange::receive_stream(&served.verifier, request).await {
        Ok(received) => received,
        Err(refusal) => return refusal,
    };
    incoming.take(|runs| async move {
        let group = served.group(&group)?;
        let busy = |_| Failure::new(Status::Retry, "enough snapshots are being taken in");
        let _slot = served.snapshots.try_acquire().map_err(busy)?;
        let pieces: SnapshotStream = Box::pin(runs.map(|run| run.map(|run| run.data)));
        group.receive_snapshot(head, pieces).await
    })
}
