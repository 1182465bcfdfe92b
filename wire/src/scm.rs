//! Messages of the Storage Container Manager: what OM and datanodes ask of it.

use serde::{Deserialize, Serialize};

use crate::block::{BlockToken, ContainerLocation, DatanodeAddress, Pipeline, Replication, TokenKey};
use crate::call::service_calls;
use crate::clock::UnixMs;
use crate::group::{GroupInfo, MembershipChange};
use crate::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LeaseId, LocalId};
use crate::operator::{
    CloseContainer, ContainerDetails, DatanodeInfo, GetContainers, GetGroup, GetRepair, GetScmOverview,
    ListContainers, ListDatanodes, ListPipelines, PipelineInfo, RaiseReplication, Raised, RepairInfo,
    ScmOverview, SetDatanode, TransferLeadership,
};

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
    /// Datanodes that failed writers just now: a container without them, if there can be one.
    #[serde(default)]
    pub avoid_datanodes: Vec<DatanodeId>,
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

/// A writer could not have all replicas acknowledge: leave out those that did not (design: `degrade`). From OM, for a
/// gateway. Idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradeContainer {
    /// The container.
    pub container: ContainerId,
    /// The generation the writer used.
    pub generation: Generation,
    /// Members that acknowledged every block the writer will commit there. At least two for THREE, one for ONE.
    pub acknowledged: Vec<DatanodeId>,
    /// Members that did not, for SCM's picture of who is live.
    pub failed: Vec<DatanodeId>,
}

/// Answer to [`DegradeContainer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Degraded {
    /// The VALID replicas are now among those that acknowledged: the blocks may be committed. The container takes no
    /// more blocks.
    Accepted,
    /// They cannot be: write the blocks elsewhere.
    Refused,
}

/// OM has declared a container empty and refuses grants and commits for it from now on: drop its replicas. Idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetireContainer {
    /// Which.
    pub container: ContainerId,
}

/// Containers that are CLOSED and hold few live bytes, after `after`: candidates for OM to look at and declare empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRetirable {
    /// Only ids after this.
    pub after: ContainerId,
    /// At most so many.
    pub max: u32,
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
    DegradeContainer => Degraded,
    RetireContainer => (),
    ListRetirable => Vec<ContainerId>,
    RegisterDatanode => Registered,
    Heartbeat => HeartbeatReply,
    GetGroup => GroupInfo,
    MembershipChange => (),
    TransferLeadership => (),
    ListDatanodes => Vec<DatanodeInfo>,
    SetDatanode => (),
    ListContainers => Vec<ContainerDetails>,
    GetContainers => Vec<ContainerDetails>,
    CloseContainer => (),
    RaiseReplication => Raised,
    ListPipelines => Vec<PipelineInfo>,
    GetRepair => RepairInfo,
    GetScmOverview => ScmOverview,
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
    /// Its name in the configuration, for people.
    #[serde(default)]
    pub node: String,
    /// Where it stands, for placement: members of one container are put into distinct racks where racks exist.
    #[serde(default)]
    pub rack: String,
    /// Its wall clock; 0 if not told. One that is far off is refused: tokens would expire early or late there.
    #[serde(default)]
    pub now_ms: UnixMs,
    /// Counts the reports of a life up: one that comes after a later one is old news, and dropped. 0 if not told.
    #[serde(default)]
    pub sequence: u64,
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
    /// The newest container there is: what a datanode lacks a disk for was opened no later.
    #[serde(default)]
    pub newest_container: ContainerId,
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
    /// Its wall clock; 0 if not told.
    #[serde(default)]
    pub now_ms: UnixMs,
    /// Counts the reports of a life up: one that comes after a later one is old news, and dropped. 0 if not told.
    #[serde(default)]
    pub sequence: u64,
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

/// What a datanode reports as the life of a replica of which it can read nothing, not even that. Real ones begin at 1.
pub const GENERATION_UNKNOWN: Generation = Generation(0);

/// A replica as a datanode sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The container.
    pub container: ContainerId,
    /// Which life; [`GENERATION_UNKNOWN`] if it cannot be read.
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
    /// What it is.
    #[serde(default)]
    pub condition: ReplicaCondition,
    /// The disk it lies on, as in [`DiskReport::path`].
    #[serde(default)]
    pub disk: String,
}

/// What a replica on a datanode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReplicaCondition {
    /// Written or completely copied, durable.
    #[default]
    Whole,
    /// A copy in progress: not readable, dropped at a restart.
    Copying {
        /// Bytes received, and then those read back as well: up to twice the replica's. It moves as long as the copy does.
        received_bytes: u64,
    },
    /// A copy that has arrived, was synced, read back past the page cache and found right. SCM may make it VALID.
    CopyVerified,
    /// The copy failed (source gone, checks wrong, disk full): SCM may order another.
    CopyFailed,
    /// Dropped on order; reported once more until SCM has logged it.
    Dropped,
    /// Its disk has failed, or its file is unreadable: nothing of it can be read.
    Lost,
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
    /// Drop the replica: SCM has logged it as DELETING. A replica of a lower generation than the command's is dropped;
    /// one of a higher is kept.
    DeleteReplica,
    /// Fetch a whole sealed replica from `source` and keep it as generation [`DatanodeCommand::generation`]. SCM has
    /// logged it as COPYING. Idempotent while it is under way or done.
    CopyReplica {
        /// Who has it.
        source: DatanodeAddress,
        /// The generation of the replica there.
        source_generation: Generation,
        /// Leave to fetch it: operation `CopyReplica`.
        token: BlockToken,
        /// Bytes a second at most, 0 for no limit.
        bytes_per_second: u64,
    },
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
