//! The Ozone Manager (OM): volumes, buckets, keys, multipart uploads, blocks. A replicated state machine on redb.
//!
//! A write goes request -> prepare (leader: validate, stamp the time, draw random choices) -> command ->
//! consensus -> `state` apply (pure, every replica) -> reply. A read takes a linearizable view and answers from its rows.
//!
//! ```text
//!  server.rs    shell: OmService, proposals, views                worker/*.rs  background work, each with a status
//!  leader.rs    terms of leadership begin and end                 leases.rs    leader memory: leases, token keys
//!  prepare.rs   leader side, before the log                       locations.rs where containers are
//!  command.rs   what raft logs (a format)                         seal.rs      secrets at rest, signing keys
//!  answer.rs    what gateways ask: keys                           lending.rs   sessions and loans
//!  operators.rs what operators ask                                credentials.rs users, signing keys
//!  schema.rs    tables, row keys, rows (a format)                 state/*.rs   apply, one file a noun
//!  inspect.rs   rows and commands as text
//! ```
//!
//! Invariants:
//! * Nothing is handed out from memory: every lease, loan and version stands in a row written by a logged command.
//! * The `block` table names exactly the blocks that live; whatever leaves it has been handed to SCM.
//! * Apply reads no clock, draws nothing, and sees no setting.
//!
//! Not here: S3 words (gateway), bytes of keys (datanodes), who may do what (gateway decides, OM enforces freshness).

mod answer;
mod command;
mod config;
mod credentials;
mod error;
pub mod inspect;
mod leader;
mod leases;
mod lending;
mod locations;
mod metrics;
mod operators;
mod prepare;
mod schema;
mod seal;
mod server;
mod state;
mod worker;

pub use config::OmConfig;
pub use error::OmError;
pub use server::{Om, OmStatus, restore};
pub use worker::WorkerStatus;
