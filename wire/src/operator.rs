//! What operators ask of OM and SCM: the calls behind the admin API and the command line.
//!
//! Answers serialize to JSON as they are; the admin API adds nothing but links between them. Lists come in pages of at most
//! [`PAGE_MAX`] entries after a given id.
//!
//! Not here: the calls that services make of one another (see `om`, `scm`).

use serde::{Deserialize, Serialize};

use crate::block::{BlockEntry, DatanodeAddress, Replication};
use crate::clock::UnixMs;
use crate::ids::{ContainerId, DatanodeId, Generation, LocalId, PipelineId, WriteId};
use crate::names::{BucketName, KeyName};
use crate::om::{KeyInfo, UserId};
use crate::scm::{ContainerState, DiskReport};

/// Entries of one page at most.
pub const PAGE_MAX: u32 = 1000;

// Any service.

/// The replicated group, as the replica that is asked sees it. Answered by every replica, not by the leader alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetGroup {}

/// Hand leadership to a voter. Answered by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLeadership {
    /// To whom; None picks the most advanced.
    pub raft_id: Option<u64>,
}

// SCM.

/// How long ago a datanode spoke to the leader of SCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LivenessInfo {
    /// Recently: may be written to.
    Live,
    /// A moment ago: no new writes.
    Silent,
    /// Long ago.
    Stale,
    /// So long ago that it is given up.
    Dead,
    /// Not yet in this leader's term.
    Unknown,
}

/// What operators want of a datanode (Ozone's terms).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationalInfo {
    /// Takes writes.
    InService,
    /// Is being emptied.
    Decommissioning,
    /// Is empty and may be switched off.
    Decommissioned,
    /// Is about to be away: its containers are being made safe without it.
    EnteringMaintenance,
    /// Is away for a while; its replicas are not replaced.
    Maintenance,
}

/// All datanodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDatanodes {}

/// A datanode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanodeInfo {
    /// Who and where.
    pub datanode: DatanodeAddress,
    /// Its name in the configuration.
    pub node: String,
    /// Its rack; empty if none was named.
    pub rack: String,
    /// When it spoke.
    pub liveness: LivenessInfo,
    /// Milliseconds since; None if not in this term.
    pub silent_ms: Option<u64>,
    /// What operators want of it.
    pub operational: OperationalInfo,
    /// When a maintenance ends by itself.
    pub maintenance_until_ms: Option<UnixMs>,
    /// Its disks, as last reported.
    pub disks: Vec<DiskReport>,
    /// Containers with a replica there.
    pub containers: u64,
    /// Of them: those that would fall below their target without it. 0 when it may be switched off.
    pub containers_needing_it: u64,
}

/// What to make of a datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatanodeWish {
    /// Empty it, then let it go.
    Decommission,
    /// Let it be away until a time, None for no end.
    Maintenance {
        /// Recommissioned by itself then.
        until_ms: Option<UnixMs>,
    },
    /// Take part again.
    Recommission,
    /// Forget it: it is dead or decommissioned and will not return. Its replicas are struck off.
    Forget,
}

/// Change what a datanode should do. Refused (`Invalid`, saying what would be lost) where it would take redundancy away,
/// unless forced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDatanode {
    /// Which.
    pub datanode: DatanodeId,
    /// What.
    pub wish: DatanodeWish,
    /// Even if data would be lost or stay below its target.
    pub force: bool,
}

/// What is wrong with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerHealth {
    /// Nothing.
    Healthy,
    /// No VALID replica is reachable: its keys cannot be read.
    Missing,
    /// Fewer healthy VALID replicas than its target.
    UnderReplicated,
    /// More than its target.
    OverReplicated,
    /// A replica reports damage.
    Unhealthy,
    /// Members of one rack hold all replicas though there are more racks.
    MisPlaced,
}

/// A replica of a container: what SCM has logged, and what was last reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Where.
    pub datanode: DatanodeId,
    /// The node's name.
    pub node: String,
    /// The disk, as reported; empty if not reported in this term.
    pub disk: String,
    /// Which life.
    pub generation: Generation,
    /// `valid`, `copying`, `invalid`, `deleting`.
    pub state: String,
    /// The datanode's liveness.
    pub liveness: LivenessInfo,
    /// Whether it was reported in this leader's term.
    pub is_reported: bool,
    /// Durably sealed.
    pub is_sealed: bool,
    /// Damage was found.
    pub is_unhealthy: bool,
    /// Bytes of live blocks.
    pub used_bytes: u64,
    /// Blocks in its index.
    pub block_count: u64,
    /// The last deletion transaction it has made durable.
    pub deletion_done: u64,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDetails {
    /// Its id.
    pub container: ContainerId,
    /// Its state.
    pub state: ContainerState,
    /// How many replicas it should have.
    pub replication: Replication,
    /// Who writes it, or wrote it.
    pub pipeline: PipelineId,
    /// When it was opened.
    pub created_ms: UnixMs,
    /// What is wrong with it, the worst first; `healthy` alone if nothing.
    pub health: Vec<ContainerHealth>,
    /// Its replicas.
    pub replicas: Vec<ReplicaInfo>,
}

/// Containers, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListContainers {
    /// Only ids after this.
    pub after: ContainerId,
    /// At most so many, up to [`PAGE_MAX`].
    pub max: u32,
    /// Only those in this state.
    pub state: Option<ContainerState>,
    /// Only those with a replica there.
    pub datanode: Option<DatanodeId>,
    /// Only those with this trouble.
    pub health: Option<ContainerHealth>,
}

/// Some containers by id; those that do not exist are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetContainers {
    /// Which, at most [`PAGE_MAX`].
    pub containers: Vec<ContainerId>,
}

/// Close an open container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseContainer {
    /// Which.
    pub container: ContainerId,
}

/// Raise containers of one replica to three: for a cluster that grew. The replication manager makes the copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseReplication {
    /// Only ids after this: the call works in pages.
    pub after: ContainerId,
    /// At most so many at once.
    pub max: u32,
}

/// Answer to [`RaiseReplication`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// Containers raised by this call.
    pub containers: u64,
    /// Where to go on; None at the end.
    pub next: Option<ContainerId>,
}

/// All pipelines with open containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPipelines {}

/// A pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineInfo {
    /// Its id.
    pub id: PipelineId,
    /// How many replicas it should have.
    pub replication: Replication,
    /// Its members.
    pub members: Vec<DatanodeId>,
    /// Open containers it writes.
    pub containers: Vec<ContainerId>,
}

/// What the replication manager does and has before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRepair {}

/// A copy under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInfo {
    /// The container.
    pub container: ContainerId,
    /// From where.
    pub source: DatanodeId,
    /// To where.
    pub target: DatanodeId,
    /// Bytes received, and then those read back as well, as reported: beyond `total_bytes` it is being verified.
    pub received_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Answer to [`GetRepair`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairInfo {
    /// Containers no VALID replica of which is reachable.
    pub missing: u64,
    /// Containers below their target.
    pub under_replicated: u64,
    /// Containers above it.
    pub over_replicated: u64,
    /// Containers with a damaged replica.
    pub unhealthy: u64,
    /// Replicas to be dropped.
    pub deleting: u64,
    /// Copies under way.
    pub copies: Vec<CopyInfo>,
    /// Bytes a second all copies together may take; 0 for no limit.
    pub bytes_per_second: u64,
    /// Containers all replicas of which stand in one rack, though there are more.
    #[serde(default)]
    pub mis_placed: u64,
}

/// SCM at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetScmOverview {}

/// Answer to [`GetScmOverview`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScmOverview {
    /// Containers by state.
    pub open: u64,
    /// Being sealed.
    pub closing: u64,
    /// Sealed.
    pub closed: u64,
    /// Being dropped.
    pub deleting: u64,
    /// Leases that stand.
    pub leases: u64,
    /// Deletion transactions that some replica has not passed.
    pub deletions_pending: u64,
    /// What writes wait for; empty if all can be written.
    pub awaiting: Vec<String>,
}

// OM.

/// OM at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetOmOverview {}

/// Answer to [`GetOmOverview`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OmOverview {
    /// Volumes.
    pub volumes: u64,
    /// Buckets.
    pub buckets: u64,
    /// Keys.
    pub keys: u64,
    /// Bytes of keys.
    pub bytes: u64,
    /// Sessions that live.
    pub sessions: u64,
    /// Loans that stand.
    pub loans: u64,
    /// Multipart uploads in progress.
    pub uploads: u64,
    /// Freed blocks not yet handed to SCM.
    pub deletion_backlog: u64,
    /// When the oldest of them was freed.
    pub deletion_oldest_ms: Option<UnixMs>,
    /// Work items queued (long layouts, bucket removal, ended sessions).
    pub work_backlog: u64,
    /// Replication of new keys where a bucket names none.
    pub default_replication: Replication,
    /// How long freed blocks are kept for readers before they are handed to SCM, by the configuration of the replica that
    /// answers; None from one that does not say.
    #[serde(default)]
    pub delete_grace_ms: Option<u64>,
}

/// Replication of new keys where a bucket names none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDefaultReplication {
    /// For the cluster, or for one bucket of volume `s3v`.
    pub bucket: Option<BucketName>,
    /// Which; None (for a bucket) follows the cluster.
    pub replication: Option<Replication>,
}

/// Where a key's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereKey {
    /// Its bucket in volume `s3v` (a link is followed).
    pub bucket: BucketName,
    /// The key.
    pub key: KeyName,
    /// From the block that holds this byte.
    pub from: u64,
}

/// Answer to [`WhereKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBlocks {
    /// The key.
    pub info: KeyInfo,
    /// Byte of the object at which the first entry begins.
    pub start: u64,
    /// Block entries in object order, at most `LAYOUT_PAGE_ENTRIES_MAX`.
    pub entries: Vec<BlockEntry>,
}

/// Which keys lie in a container, by the block table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListContainerKeys {
    /// The container.
    pub container: ContainerId,
    /// Only blocks after this.
    pub after: LocalId,
    /// At most so many, up to [`PAGE_MAX`].
    pub max: u32,
}

/// One block of a container and who owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerKey {
    /// The block.
    pub local: LocalId,
    /// Its bytes.
    pub length: u64,
    /// Freed: waits for deletion.
    pub is_freed: bool,
    /// The write that owns it.
    pub write_id: WriteId,
    /// The bucket, if it still exists.
    pub bucket: Option<String>,
    /// The key, or the key of the upload in progress; None if it was freed or cannot be told.
    pub key: Option<String>,
}

/// A page of [`ContainerKey`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerKeys {
    /// In order of their ids.
    pub blocks: Vec<ContainerKey>,
    /// More follow.
    pub is_truncated: bool,
}

// OM: Ozone's namespace.

/// Bounds of a volume or bucket. None is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quota {
    /// Bytes of keys, before replication.
    pub bytes: Option<u64>,
    /// Keys (of a bucket), buckets (of a volume).
    pub count: Option<u64>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: UserId,
    /// When it was created.
    pub created_ms: UnixMs,
    /// Its bounds.
    pub quota: Quota,
    /// Bytes used.
    pub used_bytes: u64,
    /// Buckets in it.
    pub buckets: u64,
}

/// Create a volume. Volume names follow bucket names' rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Its name.
    pub name: BucketName,
    /// Its owner.
    pub owner: UserId,
    /// Its bounds.
    pub quota: Quota,
}

/// Change a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetVolume {
    /// Which.
    pub name: BucketName,
    /// Its new owner.
    pub owner: Option<UserId>,
    /// Its new bounds.
    pub quota: Option<Quota>,
}

/// Delete an empty volume. `s3v` cannot be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteVolume {
    /// Which.
    pub name: BucketName,
}

/// Volumes, of one owner or all, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVolumes {
    /// Only this owner's.
    pub owner: Option<UserId>,
    /// Only names after this.
    pub after: String,
    /// At most so many, up to [`PAGE_MAX`].
    pub max: u32,
}

/// A bucket as Ozone's namespace shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceBucket {
    /// Its volume.
    pub volume: String,
    /// Its name.
    pub name: BucketName,
    /// Its owner.
    pub owner: UserId,
    /// When it was created.
    pub created_ms: UnixMs,
    /// Its bounds.
    pub quota: Quota,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of them.
    pub used_bytes: u64,
    /// Replication it names for new keys.
    pub replication: Option<Replication>,
    /// If it is a link: volume and bucket it stands for.
    pub source: Option<(String, BucketName)>,
}

/// Create a bucket in a volume, or a link in volume `s3v` to a bucket of another volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateNamespaceBucket {
    /// The volume.
    pub volume: BucketName,
    /// The bucket's name.
    pub name: BucketName,
    /// Its owner.
    pub owner: UserId,
    /// Its bounds.
    pub quota: Quota,
    /// To make a link: volume and bucket it stands for.
    pub source: Option<(BucketName, BucketName)>,
}

/// Change a bucket's bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetBucketQuota {
    /// The volume.
    pub volume: BucketName,
    /// The bucket.
    pub name: BucketName,
    /// Its new bounds.
    pub quota: Quota,
}

/// Delete an empty bucket, or a link (never its source).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteNamespaceBucket {
    /// The volume.
    pub volume: BucketName,
    /// The bucket.
    pub name: BucketName,
}

/// Buckets of a volume, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListNamespaceBuckets {
    /// The volume.
    pub volume: BucketName,
    /// Only names after this.
    pub after: String,
    /// At most so many, up to [`PAGE_MAX`].
    pub max: u32,
}
