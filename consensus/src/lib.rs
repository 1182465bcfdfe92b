//! The raft-rs driver: segmented log, redb state, checkpoints, replay. Generic over a state machine.

mod error;
mod group;
mod machine;
mod store;

pub use error::{LogError, OpenError, ProposeError, ReadError, StoreError};
pub use group::{Group, GroupConfig, GroupStatus, Priority};
pub use machine::{Entry, StateMachine};
pub use store::{MemoryStore, ReadView, Rows, Table, Visit, WriteBatch};
