//! How replicas of a group reach one another: what the driver asks of a network, and what a network hands to it.
//!
//! ```text
//!  driver --PeerTransport::send--> network --PeerEndpoint::receive--> driver of the peer
//! ```
//!
//! Batches of messages may be lost, delayed, repeated and reordered. A snapshot goes as a stream of its own, so that it
//! never stands in heartbeats' way. The network has authenticated the peer before it calls an endpoint; the bytes are
//! still checked here.
//!
//! Not here: HTTP (see the crate `peers`), what messages say (raft).

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use wire::group::Member;
use wire::status::Failure;

/// Pieces of a snapshot on their way, in order. A stream that ends early says so by an error or by lacking its end.
pub type SnapshotStream = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// What a group sends through.
#[async_trait]
pub trait PeerTransport: Send + Sync + 'static {
    /// Queues an encoded batch of messages for a member. Never blocks; drops the batch if the member's queue is full or
    /// it cannot be reached. Batches for one member usually arrive in order.
    fn send(&self, group: &str, to: &Member, batch: Bytes);

    /// Streams a snapshot to a member; `Ok` once the member has installed it.
    async fn send_snapshot(
        &self,
        group: &str,
        to: &Member,
        head: Bytes,
        body: SnapshotStream,
    ) -> Result<(), Failure>;
}

/// What a network hands to a group.
#[async_trait]
pub trait PeerEndpoint: Send + Sync + 'static {
    /// `om` or `scm`.
    fn group(&self) -> &str;

    /// Takes an encoded batch of messages. Refused if it is malformed, or not from a member and to this life of this
    /// replica.
    async fn receive(&self, batch: Bytes) -> Result<(), Failure>;

    /// Takes a snapshot in and answers once it is installed, or why not.
    async fn receive_snapshot(&self, head: Bytes, body: SnapshotStream) -> Result<(), Failure>;
}
