//! Messages of the Storage Container Manager: what OM and datanodes ask of it.

use serde::{Deserialize, Serialize};

use crate::block::{ContainerLocation, DatanodeAddress, Pipeline, Replication, TokenKey};
use crate::call::service_calls;
use crate::clock::UnixMs;
use crate::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LeaseId, LocalId};

/// Life of a container (design: OPEN -> CLOSING -> CLOSED -> DELETING -> DELETED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContainerState {
    /// Takes new blocks.
    Open,
    /// Takes no new blocks; replicas are being sealed.
    Closing,
    /// Every VALID replica has durably sealed.
    Closed,
    /// OM declared it empty; replicas are being dropped.
    Deleting,
    /// Gone. The row stays, so that the id is never taken for unknown.
    Deleted,
}

/// OM asks for ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantLease {
    /// For keys of this replication type.
    pub replication: Replication,
    /// OM's own number for this request: a repeat answers with the same lease.
    pub request: u64,
    /// Containers OM already holds leases of, or was refused by: SCM opens or picks another.
    pub avoid: Vec<ContainerId>,
}

/// A range of local ids in one OPEN container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// The container.
    pub container: ContainerId,
    /// The generation of its replicas.
    pub generation: Generation,
    /// First id.
    pub first: LocalId,
    /// How many.
    pub count: u64,
    /// Who writes it.
    pub pipeline: Pipeline,
}

/// OM's regular call: which leases are still good, and what changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncLeases {
    /// All leases that stand in OM's state as not ended.
    pub held: Vec<LeaseId>,
    /// Leases OM has logged the end of; SCM logs their return.
    pub ended: Vec<LeaseId>,
}

/// Answer to [`SyncLeases`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasesSynced {
    /// Of `held`: leases whose container has left OPEN (or that SCM does not know): OM ends them.
    pub end: Vec<LeaseId>,
    /// Open leases that SCM granted and OM does not name (a lost answer): OM lets them be returned by naming them in `ended`.
    pub unknown_to_om: Vec<LeaseId>,
    /// Current block token keys.
    pub token_keys: Vec<TokenKey>,
}

/// Blocks that OM freed and whose grace is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDeletions {
    /// OM's number for this batch, increasing: a repeat is answered without logging it twice.
    pub batch: u64,
    /// The blocks.
    pub blocks: Vec<BlockId>,
}

/// OM asks where containers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocateContainers {
    /// Which; those that do not exist are left out of the answer.
    pub containers: Vec<ContainerId>,
}

service_calls! {
    /// A request to SCM and the type of its answer.
    trait ScmCall;
    /// What OM and datanodes ask of SCM.
    enum ScmRequest;
    /// SCM's answers.
    enum ScmReply;
    GrantLease => Lease,
    SyncLeases => LeasesSynced,
    LogDeletions => (),
    LocateContainers => Vec<ContainerLocation>,
    RegisterDatanode => Registered,
    Heartbeat => HeartbeatReply,
}

/// A datanode introduces itself, with a full report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterDatanode {
    /// The cluster its disks belong to.
    pub cluster: ClusterId,
    /// Who and where.
    pub datanode: DatanodeAddress,
    /// Drawn at each start: a late message of an earlier life is dropped.
    pub incarnation: u64,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// All its replicas.
    pub replicas: Vec<ReplicaReport>,
}

/// Answer to [`RegisterDatanode`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Keys with which block tokens are checked.
    pub token_keys: Vec<TokenKey>,
    /// How often to send heartbeats.
    pub heartbeat_interval_ms: u64,
    /// First things to do.
    pub commands: Vec<DatanodeCommand>,
}

/// Every second: what changed since the last one that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub datanode: DatanodeId,
    /// Which life.
    pub incarnation: u64,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// Replicas that changed.
    pub replicas: Vec<ReplicaReport>,
    /// Whether there is news to report soon (used by the datanode's own pacing); informative.
    pub is_urgent: bool,
}

/// Answer to [`Heartbeat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// SCM does not know this life of the datanode: register again.
    pub register_again: bool,
    /// Keys with which block tokens are checked.
    pub token_keys: Vec<TokenKey>,
    /// What to do.
    pub commands: Vec<DatanodeCommand>,
}

/// A disk as a datanode sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Directory name of the disk in the datanode's configuration.
    pub path: String,
    /// Size of its file system.
    pub capacity_bytes: u64,
    /// Free there.
    pub available_bytes: u64,
    /// Out of service after an error.
    pub is_failed: bool,
}

/// A replica as a datanode sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The container.
    pub container: ContainerId,
    /// Which life.
    pub generation: Generation,
    /// Its replication type.
    pub replication: Replication,
    /// Durably sealed: takes no more blocks.
    pub is_sealed: bool,
    /// Bytes of its file that are written: where the next block would begin.
    pub written_bytes: u64,
    /// Bytes of live blocks.
    pub used_bytes: u64,
    /// Blocks in its index.
    pub block_count: u64,
    /// The last deletion transaction it has made durable.
    pub deletion_done: u64,
    /// Damage was found (suspect bytes, failed checks).
    pub is_unhealthy: bool,
}

/// What SCM tells a datanode to do. Each names container, generation and SCM's term; others are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanodeCommand {
    /// The container.
    pub container: ContainerId,
    /// The replica's life.
    pub generation: Generation,
    /// Raft term of the SCM leader that speaks.
    pub term: u64,
    /// What.
    pub action: DatanodeAction,
}

/// See [`DatanodeCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DatanodeAction {
    /// Seal it durably.
    Close,
    /// Delete these blocks; report `transaction` as done when it is durable.
    DeleteBlocks {
        /// The number of this deletion transaction of the container.
        transaction: u64,
        /// Which blocks.
        blocks: Vec<LocalId>,
    },
    /// Drop the replica: SCM has logged it as DELETING.
    DeleteReplica,
}

/// A container as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its id.
    pub container: ContainerId,
    /// Its state.
    pub state: ContainerState,
    /// When it was opened.
    pub created_ms: UnixMs,
    /// Its replication type.
    pub replication: Replication,
}
