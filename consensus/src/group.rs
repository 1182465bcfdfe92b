//! A replicated group: opens it, proposes to it, reads from it.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{OpenError, ProposeError, ReadError, StoreError};
use crate::machine::StateMachine;
use crate::store::ReadView;

/// How a group is opened.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// `om` or `scm`: names threads, metrics and log lines.
    pub name: String,
    /// The group's directory; made if absent.
    pub dir: PathBuf,
    /// The cluster; a directory of another one is refused.
    pub cluster_id: Uuid,
    /// This replica's raft id, 1 for the sole voter. Never 0.
    pub raft_id: u64,
    /// Size of a log segment. Two exist at least, zero-filled at creation.
    pub log_segment_bytes: u64,
    /// What redb may keep in memory for reads and unwritten pages.
    pub cache_bytes: usize,
    /// Commands under way at most; more are answered [`ProposeError::Overloaded`].
    pub proposals_max: usize,
}

impl GroupConfig {
    /// The defaults for a sole voter in `dir`.
    pub fn new(name: &str, dir: PathBuf, cluster_id: Uuid) -> Self {
        GroupConfig {
            name: name.to_owned(),
            dir,
            cluster_id,
            raft_id: 1,
            log_segment_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            proposals_max: 4096,
        }
    }
}

/// Whether a command needs room or makes room: what a full disk lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Refused with [`ProposeError::Full`] as soon as the disk has less than the reserve left.
    Ordinary,
    /// Frees space, or is needed so that others can: may use up the reserve.
    Freeing,
}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// The current term.
    pub term: u64,
    /// Whether this replica leads and has applied an entry of its term.
    pub is_leader: bool,
    /// The leader's raft id, 0 if unknown.
    pub leader: u64,
    /// Entries up to here are committed.
    pub commit_index: u64,
    /// Entries up to here are applied.
    pub applied_index: u64,
    /// Entries up to here are applied durably: replay starts after it.
    pub checkpoint_index: u64,
    /// The first entry in the log.
    pub log_first_index: u64,
    /// The last entry in the log.
    pub log_last_index: u64,
    /// The hash over all rows at `applied_index`.
    pub state_hash: u128,
}

/// A handle to a replicated group. Clones share it.
pub struct Group<M: StateMachine> {
    shared: Arc<M::Reply>,
}

impl<M: StateMachine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group { shared: Arc::clone(&self.shared) }
    }
}

impl<M: StateMachine> Group<M> {
    /// Opens or creates the group, recovers it and starts its threads. Blocking: call it off the reactor.
    ///
    /// # Errors
    /// Says what the operator can do.
    pub fn open(config: GroupConfig, machine: M) -> Result<Group<M>, OpenError> {
        let _ = (config, machine);
        unimplemented!("comes with the next commit")
    }

    /// Proposes a command and waits until it is applied here. Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// Why the command was not applied, or that its outcome is unknown.
    pub async fn propose(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Ordinary).await
    }

    /// Proposes a command that frees space: a full disk lets it pass as long as the reserve lasts.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub async fn propose_freeing(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Freeing).await
    }

    /// Proposes a command.
    ///
    /// # Errors
    /// As [`Group::propose`].
    pub async fn propose_with(&self, command: Bytes, priority: Priority) -> Result<M::Reply, ProposeError> {
        let _ = (command, priority);
        unimplemented!("comes with the next commit")
    }

    /// A linearizable view: it holds every command acknowledged before the call.
    ///
    /// # Errors
    /// If this replica does not lead or has stopped.
    pub async fn read(&self) -> Result<Arc<ReadView>, ReadError> {
        unimplemented!("comes with the next commit")
    }

    /// The newest applied rows, not linearizable with peers: for workers and metrics.
    ///
    /// # Errors
    /// If the state file fails.
    pub fn view(&self) -> Result<ReadView, StoreError> {
        unimplemented!("comes with the next commit")
    }

    /// Where the group stands.
    pub fn status(&self) -> GroupStatus {
        unimplemented!("comes with the next commit")
    }

    /// Resolves when this replica leads and has applied an entry of its term.
    pub async fn wait_leader(&self) {
        unimplemented!("comes with the next commit")
    }

    /// Finishes what is under way, makes a durable checkpoint and closes. Proposals after it answer
    /// [`ProposeError::Unknown`].
    pub async fn shutdown(&self) {
        unimplemented!("comes with the next commit")
    }
}
