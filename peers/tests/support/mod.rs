//! A group that records what reaches it, and a listener for it.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use bytes::Bytes;
use client::http::{Verifier, serve};
use consensus::{PeerEndpoint, SnapshotStream};
use futures_util::StreamExt;
use parking_lot::Mutex;
use peers::peer_router;
use platform::watch;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use uuid::Uuid;
use wire::cluster_key::ClusterKey;
use wire::group::Member;
use wire::host::HostPort;
use wire::ids::ClusterId;
use wire::status::{Failure, Status};

pub(crate) fn key() -> ClusterKey {
    ClusterKey::new(ClusterId::default(), [1; 32])
}

pub(crate) fn member(address: &HostPort) -> Member {
    let incarnation = Uuid::from_u128(7);
    Member { raft_id: 2, incarnation, node: "m2".to_owned(), address: address.clone() }
}

/// A snapshot's head, and its bytes or how it broke off.
pub(crate) type Taken = (Bytes, Result<Vec<u8>, Failure>);

/// A replica of group `om`.
pub(crate) struct FakeGroup {
    pub(crate) batches: watch::Sender<Vec<Bytes>>,
    /// The last one.
    pub(crate) snapshot: Mutex<Option<Taken>>,
    /// Batches wait for a permit each.
    pub(crate) gate: Semaphore,
}

impl FakeGroup {
    pub(crate) fn open() -> Arc<Self> {
        Self::gated(Semaphore::MAX_PERMITS)
    }

    pub(crate) fn gated(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            batches: watch::Sender::new(Vec::new()),
            snapshot: Mutex::new(None),
            gate: Semaphore::new(permits),
        })
    }

    /// Resolves when so many batches have arrived.
    pub(crate) async fn arrived(&self, count: usize) -> Vec<Bytes> {
        let mut batches = self.batches.subscribe();
        batches.wait_for(|batches| batches.len() >= count).await.unwrap()
    }
}

#[async_trait]
impl PeerEndpoint for FakeGroup {
    fn group(&self) -> &str {
        "om"
    }

    async fn receive(&self, batch: Bytes) -> Result<(), Failure> {
        self.gate.acquire().await.unwrap().forget();
        self.batches.send_modify(|batches| batches.push(batch.clone()));
        match &batch[..] {
            b"malformed" => Err(Failure::new(Status::Invalid, "no batch")),
            _ => Ok(()),
        }
    }

    async fn receive_snapshot(&self, head: Bytes, mut body: SnapshotStream) -> Result<(), Failure> {
        if &head[..] == b"unwanted" {
            return Err(Failure::new(Status::Refused, "another snapshot is being installed"));
        }
        let mut bytes = Vec::new();
        let mut outcome = Ok(());
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(failure) => outcome = Err(failure),
            }
        }
        *self.snapshot.lock() = Some((head, outcome.clone().map(|()| bytes)));
        outcome
    }
}

/// Serves a router; ends with the test's runtime.
pub(crate) fn listen(listener: TcpListener, router: Router) -> JoinHandle<()> {
    tokio::spawn(async move { serve(listener, None, router, std::future::pending()).await.unwrap() })
}

/// Serves a group on a free port.
pub(crate) async fn serve_group(group: &Arc<FakeGroup>) -> (HostPort, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from(listener.local_addr().unwrap());
    let router = peer_router(vec![group.clone()], Verifier::of_node(key(), vec![address.clone()]));
    (address, listen(listener, router))
}
