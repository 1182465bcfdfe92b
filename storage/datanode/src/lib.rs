//! Stores blocks inside containers on disks.
//!
//! Code map, from the caller inwards:
//! * `node`, `service`: the datanode as a whole; tokens; [`Datanode`].
//! * `heartbeat`: reports to SCM, its commands, housekeeping.
//! * `write`, `read`: a block on its way in and out; `deletion`: blocks, seals, replicas on their way out.
//! * `container`: space, ids and readers of one replica; `group_commit`: the shared sync; `index`: where blocks lie.
//! * `disk`, `identity`, `file_cache`: a disk in service; `open`, `recovery`: how it comes into service.
//! * [`extent`], [`layout`]: the bytes of a container file (docs/formats/container.md).
//! * `platform::disk`: what is asked of a disk; `platform::simulated`: a disk in memory that forgets what was not synced.
//! * `fetch`, `copy`: a replica on its way out to another datanode, and in from one.
//! * `verify`: a block read back from its disk.
//! * `members`: which disks a datanode has, so that a missing one is missed.
//!
//! Not here: HTTP (`client::http` serves any `DatanodeService`), which blocks should live (OM), what to copy (SCM).

mod config;
mod container;
mod copy;
mod deletion;
mod disk;
mod error;
pub mod extent;
mod fetch;
mod file_cache;
mod group_commit;
mod heartbeat;
pub mod identity;
mod index;
pub mod layout;
pub mod members;
mod metrics;
mod node;
mod open;
mod read;
pub mod recovery;
mod service;
mod verify;
mod write;

pub use config::DatanodeConfig;
pub use error::OpenError;
pub use index::Extent;
pub use node::Datanode;
