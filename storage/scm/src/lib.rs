//! The Storage Container Manager: containers, datanodes, leases, deletion transactions.
//!
//! ```text
//!   OM, operators --calls----------+
//!                                  v
//!   datanode --heartbeat--> server --prepare, replication--> command --raft--> state (redb), on every replica
//!                             |  ^                                                 |
//!      orders <---------------+  +-- fleet (leader memory of one term: who spoke when, what was reported)
//! ```
//!
//! * `state/`: the core, one file a noun; `command`: what the log holds; `schema`: tables and rows.
//! * `prepare`: the leader's decisions about leases and closing; `replication`: about replicas; `placement`: who holds
//!   them; `orders`: what datanodes are told. Functions of rows and reports.
//! * `fleet`: liveness and reports; `leader`: one term's memory and regular work; `server`: calls in and out; `operator`:
//!   operators' calls; `status`: what they see.
//!
//! Not here: which blocks live (OM alone knows), block data (datanode).

mod command;
mod config;
mod error;
mod fleet;
mod leader;
mod metrics;
#[cfg(test)]
mod model;
mod operator;
mod orders;
mod placement;
mod prepare;
mod replication;
mod schema;
mod server;
mod state;
mod status;

pub use config::ScmConfig;
pub use error::ScmError;
pub use fleet::Liveness;
pub use schema::OperationalState;
pub use server::{Scm, restore};
pub use status::{DatanodeStatus, ScmStatus};
