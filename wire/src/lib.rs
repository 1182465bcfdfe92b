//! Names, ids, limits, RPC messages, framing, status codes: what every crate agrees on. No sockets, no tokio.

pub mod clock;
pub mod failpoint;
pub mod random;
