//! What SCM's Raft log holds. A format: variants and fields are appended, never reordered, renamed or removed.
//!
//! Every random choice and the proposer's time are in the command, so that apply is pure.

use serde::{Deserialize, Serialize};
use wire::block::{DatanodeAddress, Replication};
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, Generation, LeaseId, LocalId};

use crate::schema::{DiskRow, OperationalState};

/// One logged command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Grants a lease, and opens a container for it if need be.
    GrantLease(GrantLease),
    /// OM has logged the end of these leases.
    ReturnLeases(ReturnLeases),
    /// Containers take no more leases.
    CloseContainers(CloseContainers),
    /// Replicas have reported that they are sealed.
    SealContainer(SealContainer),
    /// A part of OM's batch of freed blocks.
    LogDeletions(LogDeletions),
    /// Replicas have reported how far their deletions are durable.
    PassDeletions(PassDeletions),
    /// A datanode introduced itself.
    RegisterDatanode(RegisterDatanode),
    /// A new token key.
    AddTokenKey(AddTokenKey),
    /// A writer leaves out those that did not acknowledge.
    DegradeContainer(DegradeContainer),
    /// OM has declared a container empty.
    RetireContainer(RetireContainer),
    /// Replicas that missed something, or may have.
    InvalidateReplicas(InvalidateReplicas),
    /// A copy is to be made.
    BeginCopy(BeginCopy),
    /// A copy was verified.
    EndCopy(EndCopy),
    /// Replicas that are to be dropped.
    DeleteReplicas(DeleteReplicas),
    /// Replicas that are gone.
    ForgetReplicas(ForgetReplicas),
    /// Containers of one replica that should have three.
    RaiseContainers(RaiseContainers),
    /// What operators want of a datanode.
    SetDatanode(SetDatanode),
    /// A datanode that will not return.
    ForgetDatanode(ForgetDatanode),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrantLease {
    pub(crate) request: u64,
    pub(crate) replication: Replication,
    /// The open container chosen, if one fits.
    pub(crate) container: Option<ContainerId>,
    /// The members of a new container, if `container` is absent or no longer open. Empty: there are too few.
    pub(crate) members: Vec<DatanodeId>,
    pub(crate) count: u64,
    pub(crate) now_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReturnLeases {
    pub(crate) leases: Vec<LeaseId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CloseContainers {
    pub(crate) containers: Vec<ContainerId>,
    pub(crate) now_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealContainer {
    pub(crate) container: ContainerId,
    /// Who is sealed, by generation.
    pub(crate) sealed: Vec<(DatanodeId, Generation)>,
}

/// Blocks of one container, to become one deletion transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeletionPart {
    pub(crate) container: ContainerId,
    pub(crate) blocks: Vec<LocalId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogDeletions {
    pub(crate) batch: u64,
    pub(crate) fingerprint: u64,
    /// This command's place in the batch, from 0.
    pub(crate) part: u32,
    pub(crate) deletions: Vec<DeletionPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PassDeletions {
    pub(crate) container: ContainerId,
    /// The last durable transaction of each replica.
    pub(crate) done: Vec<(DatanodeId, Generation, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegisterDatanode {
    pub(crate) datanode: DatanodeAddress,
    pub(crate) incarnation: u64,
    pub(crate) disks: Vec<DiskRow>,
    pub(crate) now_ms: UnixMs,
    /// Its name in the configuration.
    #[serde(default)]
    pub(crate) node: String,
    /// Its rack; empty if none was named.
    #[serde(default)]
    pub(crate) rack: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DegradeContainer {
    pub(crate) container: ContainerId,
    /// What the writer wrote.
    pub(crate) generation: Generation,
    pub(crate) acknowledged: Vec<DatanodeId>,
    pub(crate) now_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetireContainer {
    pub(crate) container: ContainerId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InvalidateReplicas {
    pub(crate) container: ContainerId,
    pub(crate) replicas: Vec<(DatanodeId, Generation)>,
    pub(crate) now_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BeginCopy {
    pub(crate) container: ContainerId,
    /// The replica that is copied.
    pub(crate) source: (DatanodeId, Generation),
    pub(crate) target: DatanodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndCopy {
    pub(crate) container: ContainerId,
    pub(crate) datanode: DatanodeId,
    pub(crate) generation: Generation,
    /// The last deletion transaction it has made durable.
    pub(crate) deletion_done: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeleteReplicas {
    pub(crate) container: ContainerId,
    pub(crate) replicas: Vec<(DatanodeId, Generation)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForgetReplicas {
    pub(crate) container: ContainerId,
    pub(crate) replicas: Vec<(DatanodeId, Generation)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RaiseContainers {
    pub(crate) containers: Vec<ContainerId>,
    pub(crate) now_ms: UnixMs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetDatanode {
    pub(crate) datanode: DatanodeId,
    pub(crate) operational: OperationalState,
    pub(crate) maintenance_until_ms: Option<UnixMs>,
    /// Only while so many other datanodes are in service: the check before counted on them.
    #[serde(default)]
    pub(crate) others_in_service: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForgetDatanode {
    pub(crate) datanode: DatanodeId,
    /// Containers whose replica there is struck off. The row goes with the command that `is_last`.
    pub(crate) containers: Vec<ContainerId>,
    pub(crate) is_last: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddTokenKey {
    #[serde(with = "serde_bytes")]
    pub(crate) secret: [u8; 32],
    pub(crate) expires_ms: UnixMs,
    /// Only if this is still the newest key: two workers make one key, not two.
    pub(crate) after: u32,
    pub(crate) now_ms: UnixMs,
}

impl std::fmt::Debug for AddTokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "AddTokenKey {{ secret: ***, expires_ms: {}, after: {}, now_ms: {} }}",
            self.expires_ms, self.after, self.now_ms
        )
    }
}

impl Command {
    /// The bytes that are logged.
    pub(crate) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("commands hold nothing that MessagePack cannot express")
    }

    /// A command from its bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }
}
