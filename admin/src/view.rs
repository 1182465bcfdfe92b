//! Answers that join several calls of OM and SCM.

use serde::{Deserialize, Serialize};
use wire::block::Replication;
use wire::clock::UnixMs;
use wire::group::GroupInfo;
use wire::ids::{ContainerId, LocalId};
use wire::operator::{ContainerHealth, DatanodeInfo, OmOverview, RepairInfo, ReplicaInfo, ScmOverview};
use wire::scm::ContainerState;

pub use crate::error::ErrorBody;

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Data cannot be read or written now.
    Critical,
    /// Nothing is lost, but one more failure could do harm.
    Warning,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub action: String,
}

/// The cluster at a glance. What did not answer is left out, and among the problems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The worst first; empty if all is well.
    pub problems: Vec<Problem>,
    /// OM's Raft group.
    pub om_group: Option<GroupInfo>,
    /// SCM's Raft group.
    pub scm_group: Option<GroupInfo>,
    /// OM.
    pub om: Option<OmOverview>,
    /// SCM.
    pub scm: Option<ScmOverview>,
    /// Datanodes.
    pub datanodes: Vec<DatanodeInfo>,
    /// The replication manager.
    pub repair: Option<RepairInfo>,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// Its entries, in order.
    pub items: Vec<T>,
    /// Ask for more with `after` at this; None at the end.
    pub next: Option<String>,
}

/// Where a key's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLocation {
    /// Its bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// ETag.
    pub etag: String,
    /// When it was written.
    pub modified_ms: UnixMs,
    /// Its replication type.
    pub replication: Replication,
    /// Its blocks in order, from the asked byte.
    pub blocks: Vec<BlockLocation>,
    /// Ask with `from` at this byte for further blocks; None at the end.
    pub next_from: Option<u64>,
}

/// Where a block is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLocation {
    /// The object's byte at which it begins.
    pub start: u64,
    /// Bytes of the object in it.
    pub length: u64,
    /// Its container.
    pub container: ContainerId,
    /// Its number there.
    pub local: LocalId,
    /// The container's state; None if SCM does not know it.
    pub state: Option<ContainerState>,
    /// What is wrong with the container, the worst first.
    pub health: Vec<ContainerHealth>,
    /// Its replicas.
    pub replicas: Vec<ReplicaInfo>,
}

/// What would be lost with a datanode that never returned: what lies there and nowhere else where it can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Containers.
    pub containers: u64,
    /// The first of them.
    pub named: Vec<ContainerId>,
    /// Some of their keys: `bucket/key`.
    pub keys: Vec<String>,
    /// There are more keys.
    pub more_keys: bool,
}
