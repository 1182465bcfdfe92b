//! The life of a container.
//!
//! ```text
//!   open()           close()                     seal()
//!  ---------> OPEN ----------> CLOSING ----------------------> CLOSED
//!             leases           no new leases; every VALID      never written again; may be
//!             are granted      replica is told to seal         copied and scrubbed whole
//! ```
//!
//! Invariants:
//! * Ids are given once, ascending, also across restarts.
//! * CLOSED means that every VALID replica has durably sealed, and that there is at least one.
//! * A container stands in `active` exactly while it is OPEN or CLOSING.
//!
//! Not here: why a container is closed (`prepare`); DELETING and DELETED, which only OM's word can begin.

use consensus::{Rows, StoreError, WriteBatch};
use wire::block::{ContainerLocation, DatanodeAddress, ReplicaLocation, Replication};
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};
use wire::scm::ContainerState;

use super::{Reply, advance_clock, next_number, pipeline};
use crate::command::{CloseContainers, SealContainer};
use crate::schema::{
    ACTIVE, CONTAINER, ContainerRow, DATANODE, DatanodeRow, ReplicaRow, ReplicaState, container, load, meta,
    save,
};

/// Replicas of a new container have this generation; a copy made later has a higher one.
const FIRST_GENERATION: Generation = Generation(1);

/// Opens a container on `members`.
pub(super) fn open(
    batch: &mut WriteBatch<'_>,
    replication: Replication,
    members: Vec<DatanodeId>,
    now_ms: UnixMs,
) -> Result<(ContainerId, ContainerRow), StoreError> {
    let replicas = members
        .iter()
        .map(|datanode| ReplicaRow {
            datanode: *datanode,
            generation: FIRST_GENERATION,
            index: 0,
            state: ReplicaState::Valid,
        })
        .collect();
    let pipeline = pipeline::create(batch, replication, members)?;
    let id = ContainerId(next_number(batch, meta::LAST_CONTAINER)?);
    let row = ContainerRow {
        state: ContainerState::Open,
        replication,
        pipeline,
        generation: FIRST_GENERATION,
        created_ms: now_ms,
        next_local: LocalId(1),
        last_deletion: 0,
        purged_deletion: 0,
        replicas,
        closing_ms: 0,
    };
    save(batch, ACTIVE, &id.to_be_bytes(), &())?;
    Ok((id, row))
}

/// OPEN -> CLOSING. Leases on it are ended by OM at its next call.
pub(super) fn close(batch: &mut WriteBatch<'_>, command: &CloseContainers) -> Result<Reply, StoreError> {
    let mut open = Vec::new();
    for id in &command.containers {
        if let Some(row) = container(batch, *id)?.filter(|row| row.state == ContainerState::Open) {
            open.push((*id, row));
        }
    }
    let now_ms = advance_clock(batch, command.now_ms)?;
    for (id, mut row) in open {
        row.state = ContainerState::Closing;
        row.closing_ms = now_ms;
        save(batch, CONTAINER, &id.to_be_bytes(), &row)?;
    }
    Ok(Reply::Done)
}

/// CLOSING -> CLOSED if `sealed` names every VALID replica.
pub(super) fn seal(batch: &mut WriteBatch<'_>, command: &SealContainer) -> Result<Reply, StoreError> {
    let row_key = command.container.to_be_bytes();
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    if row.state == ContainerState::Closing && row.is_sealed_by(&command.sealed) {
        row.state = ContainerState::Closed;
        save(batch, CONTAINER, &row_key, &row)?;
        batch.delete(ACTIVE, &row_key)?;
    }
    Ok(Reply::Done)
}

impl ContainerRow {
    /// The replicas that hold every acknowledged block.
    pub(crate) fn valid(&self) -> impl Iterator<Item = &ReplicaRow> {
        self.replicas.iter().filter(|replica| replica.state == ReplicaState::Valid)
    }

    /// The replica of `datanode` with this generation, if it is the container's.
    pub(crate) fn replica(&self, datanode: DatanodeId, generation: Generation) -> Option<&ReplicaRow> {
        self.replicas.iter().find(|replica| replica.datanode == datanode && replica.generation == generation)
    }

    /// Whether every VALID replica is in the list.
    pub(crate) fn is_sealed_by(&self, sealed: &[(DatanodeId, Generation)]) -> bool {
        self.valid().count() > 0
            && self.valid().all(|replica| sealed.contains(&(replica.datanode, replica.generation)))
    }
}

/// Where a container may be read; None if it does not exist or is gone.
pub(crate) fn locate(rows: &impl Rows, id: ContainerId) -> Result<Option<ContainerLocation>, StoreError> {
    let Some(row) = container(rows, id)?.filter(|row| row.state != ContainerState::Deleted) else {
        return Ok(None);
    };
    let mut replicas = Vec::new();
    for replica in row.valid() {
        let datanode = address(rows, replica.datanode)?;
        replicas.push(ReplicaLocation { datanode, generation: replica.generation });
    }
    Ok(Some(ContainerLocation { container: id, replicas }))
}

/// A datanode's current address.
pub(super) fn address(rows: &impl Rows, id: DatanodeId) -> Result<DatanodeAddress, StoreError> {
    let row: Option<DatanodeRow> = load(rows, DATANODE, id.0.as_bytes())?;
    Ok(DatanodeAddress { id, address: row.and_then(|row| row.address) })
}
