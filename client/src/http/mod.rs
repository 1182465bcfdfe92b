//! The three services over HTTP/1.1 between processes of a cluster.
//!
//! ```text
//!   OmStub, ScmStub  --POST /om/v1, /scm/v1: MessagePack-->           om_router, scm_router  --> Arc<dyn ..Service>
//!   DatanodeStub     --PUT  /block/v1: WriteBlock, runs, end-->       datanode_router        --> Arc<dyn DatanodeService>
//!                    --POST /block/v1/read: ReadBlock-->  <--runs, end or error--
//! ```
//!
//! * `auth`: every call proves knowledge of the cluster key; the server checks it before it reads a body.
//! * `rpc`: one message in, one message out. `block_stream`: bodies of blocks. `frame`: their framing.
//! * `transport`: pooled connections of a stub. `serve`: the accept loop.
//!
//! Invariants:
//! * No body is buffered beyond its limit: `RPC_BYTES_MAX` for messages, one frame for streams.
//! * A stream without its end frame is never taken for complete.
//! * A failure says whether the call may have had an effect: `Retry` only if the request was surely not sent.
//!
//! Not here: TLS (comes with several hosts), what the calls mean (`wire`).

mod auth;
mod block_stream;
mod frame;
mod rpc;
mod serve;
mod transport;

use std::time::Duration;

pub use auth::Verifier;
pub use block_stream::{DatanodeStub, datanode_router};
pub use rpc::{OmStub, ScmStub, om_router, scm_router};
pub use serve::serve;
pub use transport::Transport;

/// Where OM listens for calls.
pub const OM_PATH: &str = "/om/v1";
/// Where SCM listens for calls.
pub const SCM_PATH: &str = "/scm/v1";
/// Where a datanode takes blocks.
pub const WRITE_PATH: &str = "/block/v1";
/// Where a datanode gives blocks.
pub const READ_PATH: &str = "/block/v1/read";

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
