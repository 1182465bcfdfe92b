//! Service traits of OM, SCM and datanode with their two implementations' common ground, and the key reader and writer.
//!
//! * `service`: one trait a service, typed calls.
//! * `failover`: OM and SCM as groups of peers: finds the leader and repeats calls.
//! * `session`: a gateway's session with OM: sequences, loans, renewal.
//! * `key_writer`, `key_reader`: bytes of a key to blocks on datanodes and back. `block_write`: one block to all its
//!   replicas; `degrade`: leaving out those that failed; `failed_nodes`: going round them for a while.
//! * `http`: the same traits over HTTP: stubs, and the routers that serve an implementation.
//!
//! Not here: what the services do (meta, scm, datanode), S3 (gateway).

mod block_write;
mod degrade;
mod error;
mod failed_nodes;
pub mod failover;
pub mod http;
pub mod key_reader;
pub mod key_writer;
mod loans;
pub mod metrics;
pub mod service;
pub mod session;
