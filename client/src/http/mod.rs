//! The three services over HTTP/1.1 between processes of a cluster.
//!
//! ```text
//!   OmStub, ScmStub  --POST /om/v1, /scm/v1: MessagePack-->           om_router, scm_router  --> Arc<dyn ..Service>
//!   DatanodeStub     --PUT  /block/v1: WriteBlock, runs, end-->       datanode_router        --> Arc<dyn DatanodeService>
//!                    --POST /block/v1/read: ReadBlock-->  <--runs, end or error--
//!                    --POST /block/v1/replica-->          <--a whole replica--
//! ```
//!
//! * `auth`: every call proves knowledge of the cluster key, and so does every answer. `tls`: certificates beside that.
//! * `rpc`: one message in, one message out. `upload`: streams into a service. `block_stream`, `replica_stream`: what a
//!   datanode takes and gives. `frame`: their framing.
//! * `transport`, `connect`: the calling side. `exchange`, `serve`, `lobby`: the serving side.
//!
//! Invariants:
//! * No body is buffered beyond its limit: `RPC_BYTES_MAX` for messages, one frame for streams.
//! * A stream without its end frame is never taken for complete.
//! * A failure says whether the call may have had an effect: `Retry` only if the request was surely not sent.
//!
//! Not here: what the calls mean (`wire`), who leads (`crate::failover`), what Raft peers send (crate `peers`).

mod auth;
mod block_stream;
mod connect;
mod exchange;
mod frame;
mod lobby;
mod replica_stream;
mod rpc;
mod serve;
pub mod tls;
mod transport;
mod upload;

use std::time::Duration;

pub use auth::Verifier;
pub use block_stream::{DatanodeStub, datanode_router};
pub use exchange::Exchange;
pub use rpc::{OmStub, ScmStub, om_router, scm_router};
pub use serve::{serve, serve_operators};
pub use transport::{Transport, TransportConfig};
pub use upload::{Incoming, Target};

/// Where OM listens for calls.
pub const OM_PATH: &str = "/om/v1";
/// Where SCM listens for calls.
pub const SCM_PATH: &str = "/scm/v1";
/// Where a datanode takes blocks.
pub const WRITE_PATH: &str = "/block/v1";
/// Where a datanode gives blocks.
pub const READ_PATH: &str = "/block/v1/read";

/// Where a datanode says that it lives.
pub const PING_PATH: &str = "/block/v1/ping";
/// Where a datanode gives whole replicas.
pub const REPLICA_PATH: &str = "/block/v1/replica";
/// Where a member of a group takes batches of messages.
pub const PEER_MESSAGES_PATH: &str = "/raft/v1/{group}/messages";
/// Where it takes a snapshot.
pub const PEER_SNAPSHOT_PATH: &str = "/raft/v1/{group}/snapshot";

/// Every route of an internal listener: method and path. Tests call each one without a proof, with a wrong one, twice.
pub const ROUTES: &[(&str, &str)] = &[
    ("POST", OM_PATH),
    ("POST", SCM_PATH),
    ("PUT", WRITE_PATH),
    ("POST", READ_PATH),
    ("POST", PING_PATH),
    ("POST", REPLICA_PATH),
    ("POST", PEER_MESSAGES_PATH),
    ("POST", PEER_SNAPSHOT_PATH),
];

/// A connection is made within this, or the peer counts as away. A LAN needs a millisecond; a lost SYN one second.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// A message is answered within this. A commit behind a stalled disk takes seconds, a dead peer for ever.
pub const RPC_DEADLINE: Duration = Duration::from_secs(30);
/// A write is answered within this after its last byte: the datanode's fdatasync under full load.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// The next run of a block that is read comes within this.
pub const READ_IDLE_DEADLINE: Duration = Duration::from_secs(30);
/// A body that is being received makes progress within this. Longer than a slow S3 client may pause.
pub const BODY_IDLE_DEADLINE: Duration = Duration::from_secs(120);
/// After an early answer a request's rest is read for this long at most.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// An idle connection is closed after this: sooner than the server closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
