//! Raft peers over HTTP: carries batches of messages and snapshots between replicas of a group.
//!
//! ```text
//!   driver --send--> lane of the member: bounded queue, one task --POST /raft/v1/{group}/messages--> peer_router --> driver
//!   driver --send_snapshot-----------------stream: POST /raft/v1/{group}/snapshot----------------> peer_router --> driver
//! ```
//!
//! Messages may be lost: what does not fit its queue, or cannot be delivered at once, is dropped, and raft sends anew
//! what still matters. A snapshot is a request of its own, so that it never stands in a heartbeat's way.
//!
//! Invariants:
//! * `send` never blocks and never waits for the network.
//! * A member that is away costs its lane's queue and one attempt at a time.
//! * No byte of a call is looked at before its proof is checked.
//! * A snapshot is never held whole.
//!
//! Not here: what messages say (see `consensus`), how a connection is authenticated (see `client::http`).

mod batch;
mod lane;
pub mod metrics;
mod router;

pub use lane::HttpPeers;
pub use router::peer_router;
