//! The Storage Container Manager: containers, datanodes, leases, deletion transactions.
//!
//! ```text
//!   OM --GrantLease, SyncLeases, LogDeletions, LocateContainers--+
//!                                                                v
//!   datanode --RegisterDatanode, Heartbeat--> server --prepare--> command --raft--> state (redb)
//!                                               |        ^
//!                                               +-> fleet (leader memory: who spoke when, what was reported)
//! ```
//!
//! * `state/`: the core, one file a noun; `command`: what the log holds; `schema`: tables and rows.
//! * `prepare`: the leader's decisions, from rows and reports; `placement`: who holds a new container.
//! * `fleet`: liveness and reports; `server`: calls in and out, the worker.
//!
//! Not here: which blocks live (OM alone knows), block data (datanode).

mod command;
mod config;
mod error;
mod fleet;
mod metrics;
mod placement;
mod prepare;
mod schema;
mod server;
mod state;
mod status;

pub use config::ScmConfig;
pub use error::ScmError;
pub use fleet::Liveness;
pub use schema::OperationalState;
pub use server::Scm;
pub use status::{DatanodeStatus, ScmStatus};
