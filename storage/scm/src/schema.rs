//! Tables, row keys and rows of SCM's state. A format: see docs/formats/scm.md.
//!
//! Rows are MessagePack arrays; a field is only ever appended, with `#[serde(default)]`. Row keys are big-endian.
//!
//! Not here: what changes them (`state`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, Table, WriteBatch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::block::Replication;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId, PipelineId};
use wire::scm::ContainerState;

/// Counters and other single values, by name.
pub(crate) const META: Table = Table::new(0, "meta");
/// Containers by id.
pub(crate) const CONTAINER: Table = Table::new(1, "container");
/// Ids of containers that are OPEN or CLOSING: what regular work looks at.
pub(crate) const ACTIVE: Table = Table::new(2, "active");
/// Datanodes by id.
pub(crate) const DATANODE: Table = Table::new(3, "datanode");
/// Pipelines by id.
pub(crate) const PIPELINE: Table = Table::new(4, "pipeline");
/// Leases not yet returned, by id.
pub(crate) const LEASE: Table = Table::new(5, "lease");
/// OM's request number -> lease id, as long as the lease stands.
pub(crate) const REQUEST: Table = Table::new(6, "request");
/// Deletion transactions that some replica has not passed: (container, transaction).
pub(crate) const DELETION: Table = Table::new(7, "deletion");
/// Block token keys by id.
pub(crate) const TOKEN_KEY: Table = Table::new(8, "token_key");

/// Ids of containers with a replica that is COPYING or DELETING: what the replication manager has begun.
pub(crate) const TENDED: Table = Table::new(9, "tended");

/// Every table, in order.
pub(crate) const TABLES: &[Table] =
    &[META, CONTAINER, ACTIVE, DATANODE, PIPELINE, LEASE, REQUEST, DELETION, TOKEN_KEY, TENDED];

/// Names of the rows in [`META`].
pub(crate) mod meta {
    /// The last container id given.
    pub(crate) const LAST_CONTAINER: &[u8] = b"last_container";
    /// The last pipeline id given.
    pub(crate) const LAST_PIPELINE: &[u8] = b"last_pipeline";
    /// The last lease id given.
    pub(crate) const LAST_LEASE: &[u8] = b"last_lease";
    /// The last token key id given.
    pub(crate) const LAST_TOKEN_KEY: &[u8] = b"last_token_key";
    /// The time of the last command that carried one: state's time never goes back.
    pub(crate) const CLOCK: &[u8] = b"clock";
    /// How far OM's last deletion batch has been logged.
    pub(crate) const DELETION_BATCH: &[u8] = b"deletion_batch";
}

/// Local ids of a container stay below this: 2^32 blocks of one chunk would be far beyond any container size.
pub(crate) const LOCAL_IDS_MAX: u64 = 1 << 32;

/// The state of one replica, as logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ReplicaState {
    /// Holds every acknowledged block of its container.
    Valid,
    /// Being copied; not read from.
    Copying,
    /// Missed something; not read from.
    Invalid,
    /// To be dropped.
    Deleting,
}

/// One replica of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaRow {
    pub(crate) datanode: DatanodeId,
    pub(crate) generation: Generation,
    /// 0 for replication; the shard's number under erasure coding.
    pub(crate) index: u8,
    pub(crate) state: ReplicaState,
    /// While COPYING: the replica it is a copy of.
    #[serde(default)]
    pub(crate) source: Option<(DatanodeId, Generation)>,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRow {
    pub(crate) state: ContainerState,
    pub(crate) replication: Replication,
    pub(crate) pipeline: PipelineId,
    /// The generation that writers of the open container name.
    pub(crate) generation: Generation,
    pub(crate) created_ms: UnixMs,
    /// The first local id that was never granted.
    pub(crate) next_local: LocalId,
    /// The number of the last deletion transaction logged; 0 if none.
    pub(crate) last_deletion: u64,
    /// Transactions up to here are passed by all and dropped: a replica behind it is INVALID.
    pub(crate) purged_deletion: u64,
    pub(crate) replicas: Vec<ReplicaRow>,
    /// When it left OPEN; 0 while it is open.
    #[serde(default)]
    pub(crate) closing_ms: UnixMs,
    /// The highest generation given to a replica of this container; none is ever given again.
    #[serde(default)]
    pub(crate) last_generation: Generation,
}

/// Whether operators want a datanode to take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationalState {
    /// Takes writes.
    InService,
    /// Is being emptied.
    Decommissioning,
    /// Is empty and may be switched off.
    Decommissioned,
    /// Is away for a while; its replicas are not replaced.
    Maintenance,
    /// Is about to be away: its containers are being made safe without it.
    EnteringMaintenance,
}

/// A disk of a datanode, as it registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRow {
    pub(crate) path: String,
    pub(crate) capacity_bytes: u64,
}

/// A datanode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DatanodeRow {
    /// `host:port` of its internal listener, or None while it serves inside its own process only.
    pub(crate) address: Option<wire::host::HostPort>,
    pub(crate) incarnation: u64,
    pub(crate) registered_ms: UnixMs,
    pub(crate) operational: OperationalState,
    pub(crate) disks: Vec<DiskRow>,
    /// Its name in the configuration.
    #[serde(default)]
    pub(crate) node: String,
    /// Its rack; empty if none was named.
    #[serde(default)]
    pub(crate) rack: String,
    /// When a maintenance ends by itself.
    #[serde(default)]
    pub(crate) maintenance_until_ms: Option<UnixMs>,
}

/// The members of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PipelineRow {
    pub(crate) replication: Replication,
    pub(crate) members: Vec<DatanodeId>,
}

/// A lease that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRow {
    pub(crate) container: ContainerId,
    pub(crate) first: LocalId,
    pub(crate) count: u64,
    /// OM's number of the request it answered.
    pub(crate) request: u64,
}

/// A deletion transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeletionRow {
    pub(crate) blocks: Vec<LocalId>,
}

/// How far OM's last deletion batch is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeletionBatchRow {
    pub(crate) batch: u64,
    /// Tells two batches of one number apart: OM may have made it anew after a crash.
    pub(crate) fingerprint: u64,
    /// Commands of it that are applied.
    pub(crate) parts_done: u32,
}

/// A block token key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenKeyRow {
    #[serde(with = "serde_bytes")]
    pub(crate) secret: [u8; 32],
    pub(crate) created_ms: UnixMs,
    pub(crate) expires_ms: UnixMs,
}

impl std::fmt::Debug for TokenKeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenKeyRow(***, {}..{})", self.created_ms, self.expires_ms)
    }
}

/// The row key of a deletion transaction.
pub(crate) fn deletion_key(container: ContainerId, transaction: u64) -> [u8; 16] {
    let mut row_key = [0; 16];
    row_key[..8].copy_from_slice(&container.to_be_bytes());
    row_key[8..].copy_from_slice(&transaction.to_be_bytes());
    row_key
}

/// The inverse of [`deletion_key`].
pub(crate) fn parse_deletion_key(row_key: &[u8]) -> Result<(ContainerId, u64), StoreError> {
    let (container, transaction) = row_key.split_at_checked(8).ok_or_else(|| corrupt(DELETION, row_key))?;
    Ok((ContainerId(parse_number(DELETION, container)?), parse_number(DELETION, transaction)?))
}

/// A row key of eight bytes as a number.
pub(crate) fn parse_number(table: Table, row_key: &[u8]) -> Result<u64, StoreError> {
    let bytes = row_key.try_into().map_err(|_| corrupt(table, row_key))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The datanode of a row key.
pub(crate) fn parse_datanode(row_key: &[u8]) -> Result<DatanodeId, StoreError> {
    uuid::Uuid::from_slice(row_key).map(DatanodeId).map_err(|_| corrupt(DATANODE, row_key))
}

/// Reads and decodes one row.
pub(crate) fn load<T: DeserializeOwned>(
    rows: &impl Rows,
    table: Table,
    row_key: &[u8],
) -> Result<Option<T>, StoreError> {
    rows.get(table, row_key)?.map(|value| decode(table, row_key, &value)).transpose()
}

/// Encodes and writes one row.
pub(crate) fn save<T: Serialize>(
    batch: &mut WriteBatch<'_>,
    table: Table,
    row_key: &[u8],
    row: &T,
) -> Result<(), StoreError> {
    batch.put(table, row_key, &encode(row))
}

/// A row's bytes.
pub(crate) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    rmp_serde::to_vec(row).expect("rows hold nothing that MessagePack cannot express")
}

/// A row from its bytes. The checksum was right, so a failure means a newer format or a bug.
pub(crate) fn decode<T: DeserializeOwned>(
    table: Table,
    row_key: &[u8],
    value: &[u8],
) -> Result<T, StoreError> {
    rmp_serde::from_slice(value).map_err(|_| corrupt(table, row_key))
}

/// Decodes the rows in `[from, to)` and gives them to `visit` until it breaks.
pub(crate) fn scan<T: DeserializeOwned>(
    rows: &impl Rows,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    mut visit: impl FnMut(&[u8], T) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let mut failed = None;
    rows.scan(table, from, to, &mut |row_key, value| match decode(table, row_key, value)
        .and_then(|row| visit(row_key, row))
    {
        Ok(flow) => flow,
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// The ids in [`ACTIVE`], ascending.
pub(crate) fn active_containers(rows: &impl Rows) -> Result<Vec<ContainerId>, StoreError> {
    ids_in(rows, ACTIVE)
}

/// The ids in [`TENDED`], ascending.
pub(crate) fn tended_containers(rows: &impl Rows) -> Result<Vec<ContainerId>, StoreError> {
    ids_in(rows, TENDED)
}

fn ids_in(rows: &impl Rows, table: Table) -> Result<Vec<ContainerId>, StoreError> {
    let mut ids = Vec::new();
    scan(rows, table, &[], None, |row_key, (): ()| {
        ids.push(ContainerId(parse_number(table, row_key)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ids)
}

/// Containers that have deletion transactions, ascending: one seek each.
pub(crate) fn containers_with_deletions(rows: &impl Rows) -> Result<Vec<ContainerId>, StoreError> {
    let mut ids = Vec::new();
    let mut from = deletion_key(ContainerId(0), 0);
    while let Some((row_key, _)) = rows.seek(DELETION, &from, None)? {
        let (id, _) = parse_deletion_key(&row_key)?;
        ids.push(id);
        from = deletion_key(ContainerId(id.0 + 1), 0);
    }
    Ok(ids)
}

/// The container's row.
pub(crate) fn container(rows: &impl Rows, id: ContainerId) -> Result<Option<ContainerRow>, StoreError> {
    load(rows, CONTAINER, &id.to_be_bytes())
}

/// The error of a row that does not decode.
pub(crate) fn corrupt(table: Table, row_key: &[u8]) -> StoreError {
    StoreError::Corrupt { table: table.name(), row_key: row_key.to_vec() }
}
