//! Names, ids, limits, RPC messages, framing, status codes: what every crate agrees on. No sockets, no tokio.

pub mod block;
mod call;
pub mod checksum;
pub mod chunk;
pub mod clock;
pub mod cluster_key;
pub mod datanode;
pub mod failpoint;
pub mod group;
pub mod host;
pub mod ids;
pub mod limits;
pub mod names;
pub mod om;
pub mod operator;
pub mod planted;
pub mod random;
pub mod scm;
pub mod status;
pub mod world;
