//! The raft-rs driver: segmented log, redb state, checkpoints, replay. Generic over a state machine.
//!
//! ```text
//!  propose --> inbox --> raft thread --> committed batches --> apply thread --> reply
//!                        one append and fdatasync a batch      one redb transaction a batch,
//!                        (driver, storage, log)                a durable checkpoint now and then (apply, state)
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `group` | the handle: propose, read, status, shut down |
//! | `group::open` | brings state and log together at the start, starts the threads |
//! | `config` | how a group is opened |
//! | `machine` | what a service gives: tables and `apply` |
//! | `store` | rows with checksums, the state hash, a store in memory for tests |
//! | `driver` | the raft thread: batches proposals, performs each Ready in raft's order, changes membership |
//! | `incoming` | a snapshot on its way in |
//! | `backup` | a snapshot in a file, and a directory made of one |
//! | `reads` | reads that wait for a quorum |
//! | `terms` | what a daemon does only while its replica leads |
//! | `marker` | a note that a replica has lived |
//! | `members` | who belongs to the group |
//! | `lives` | which process speaks for a peer, if there are two |
//! | `peer`, `packet` | the network as the driver sees it; what goes over it |
//! | `apply` | the apply thread: transactions, replies, checkpoints |
//! | `storage` | raft's view of the log |
//! | `log` | segments and records on disk |
//! | `state` | the redb file: progress, identity, checkpoints |
//! | `replica` | the directory: lock, identity file, creation as a whole |
//! | `unsound` | a note that a replica is wrong |
//! | `space` | what passes when the disk is full |
//! | `shared` | what the threads and the handles see of one another |
//!
//! A command is acknowledged when it is durable in the log and applied. The state on disk may lag behind: a start
//! replays the log from the last checkpoint. Commands are opaque bytes here.
//!
//! A replica that is behind the log's beginning gets a snapshot: all rows at one index, as a stream that becomes a state
//! file of its own and takes the place of the replica's (`driver::snapshots`, `incoming`, `driver::install`).

mod abort;
mod apply;
mod backup;
mod config;
mod driver;
mod error;
mod group;
mod incoming;
mod lives;
mod log;
mod logger;
mod machine;
mod marker;
mod members;
mod metrics;
mod packet;
mod peer;
mod place;
mod reads;
mod replica;
mod shared;
mod space;
mod state;
mod storage;
mod store;
mod terms;
mod unsound;

pub use backup::{Backup, BackupInfo, restore};
pub use config::{COMMAND_BYTES_MAX, GroupConfig, directory};
pub use error::{
    ChangeError, LogError, OpenError, ProposeError, ReadError, RestoreError, SnapshotError, StoreError,
};
pub use group::{Group, GroupStatus, Leadership, Priority};
pub use machine::{Entry, StateMachine};
pub use marker::Marker;
pub use peer::{PeerEndpoint, PeerTransport, SnapshotStream};
pub use place::Place;
pub use store::{MemoryStore, ReadView, Row, Rows, Table, Visit, WriteBatch};
pub use terms::{Follower, Terms};
