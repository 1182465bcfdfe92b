//! The life of a container.
//!
//! ```text
//!   open()        close(), degrade()             seal()           retire()              forget() of the last replica
//!  -------> OPEN -----------------> CLOSING --------------> CLOSED --------> DELETING -------------------> DELETED
//!           leases                  no new leases; every    never written    replicas are                  the row
//!           are granted             VALID replica is told   again; may be    dropped                       stays
//!                                   to seal                 copied whole
//! ```
//!
//! Invariants:
//! * Ids are given once, ascending, also across restarts.
//! * Every VALID replica holds every acknowledged block: `degrade` answers `Accepted` only if every VALID replica is among
//!   those that acknowledged.
//! * CLOSED means that every VALID replica has durably sealed, and that there is at least one.
//! * A container stands in `active` exactly while it is OPEN or CLOSING, in `tended` exactly while a replica of it is
//!   COPYING or DELETING.
//! * DELETING begins by OM's word alone.
//!
//! Not here: why a container is closed (`prepare`), what becomes of its replicas (`replica`).

use consensus::{Rows, StoreError, WriteBatch};
use wire::block::{ContainerLocation, DatanodeAddress, ReplicaLocation, Replication};
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, Generation, LocalId};
use wire::scm::{ContainerState, Degraded};

use super::{Reply, advance_clock, lease, next_number, pipeline};
use crate::command::{CloseContainers, DegradeContainer, RaiseContainers, SealContainer};
use crate::schema::{
    ACTIVE, CONTAINER, ContainerRow, DATANODE, DatanodeRow, ReplicaRow, ReplicaState, TENDED, container,
    load, meta, save,
};

/// Replicas of a new container have this generation; a copy made later has a higher one.
const FIRST_GENERATION: Generation = Generation(1);

/// Fewer members than this keep no new block safe: two carry THREE, under-replicated from birth.
pub(crate) const fn replicas_min(replication: Replication) -> usize {
    match replication {
        Replication::One => 1,
        Replication::Three => 2,
    }
}

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
            source: None,
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
        last_generation: FIRST_GENERATION,
    };
    save_container(batch, id, &row)?;
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
        row.close(now_ms);
        save_container(batch, id, &row)?;
    }
    Ok(Reply::Done)
}

/// CLOSING -> CLOSED if `sealed` names every VALID replica.
pub(super) fn seal(batch: &mut WriteBatch<'_>, command: &SealContainer) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    if row.state == ContainerState::Closing && row.is_sealed_by(&command.sealed) {
        row.state = ContainerState::Closed;
        save_container(batch, command.container, &row)?;
    }
    Ok(Reply::Done)
}

/// A writer has blocks on `acknowledged` alone. OPEN: the others become INVALID, and nobody writes on. Later: nobody is
/// marked, since another writer may rely on the one that would be; the writer is served only if no VALID replica lacks its
/// blocks.
pub(super) fn degrade(batch: &mut WriteBatch<'_>, command: &DegradeContainer) -> Result<Reply, StoreError> {
    let refused = Ok(Reply::Degraded(Degraded::Refused));
    let Some(mut row) = container(batch, command.container)? else { return refused };
    if row.generation != command.generation {
        return refused;
    }
    let min = replicas_min(row.replication);
    let has_it = |replica: &ReplicaRow| command.acknowledged.contains(&replica.datanode);
    match row.state {
        ContainerState::Open => {
            if row.valid().filter(|replica| has_it(replica)).count() < min {
                return refused;
            }
            let now_ms = advance_clock(batch, command.now_ms)?;
            if !wire::planted::is_on("degraded_stays_valid") {
                for replica in &mut row.replicas {
                    if replica.state == ReplicaState::Valid && !has_it(replica) {
                        replica.state = ReplicaState::Invalid;
                    }
                }
            }
            row.close(now_ms);
            save_container(batch, command.container, &row)?;
        }
        ContainerState::Closing | ContainerState::Closed => {
            if !row.valid().all(has_it) || row.valid().count() < min {
                return refused;
            }
        }
        ContainerState::Deleting | ContainerState::Deleted => return refused,
    }
    Ok(Reply::Degraded(Degraded::Accepted))
}

/// OM has declared the container empty, and refuses grants and commits for it from now on.
pub(super) fn retire(batch: &mut WriteBatch<'_>, id: ContainerId) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, id)? else {
        return Ok(Reply::Refused("this container was never opened"));
    };
    match row.state {
        ContainerState::Open => return Ok(Reply::Refused("the container is open")),
        ContainerState::Closing | ContainerState::Closed if lease::is_leased(batch, id)? => {
            return Ok(Reply::Refused("a lease of the container stands"));
        }
        ContainerState::Deleting | ContainerState::Deleted => return Ok(Reply::Done),
        ContainerState::Closing | ContainerState::Closed => {}
    }
    row.state = ContainerState::Deleting;
    for replica in &mut row.replicas {
        replica.state = ReplicaState::Deleting;
        replica.source = None;
    }
    row.finish_deleting();
    save_container(batch, id, &row)?;
    Ok(Reply::Done)
}

/// Containers of one replica should have three. Writers of an open one know of one member, so it is closed.
pub(super) fn raise(batch: &mut WriteBatch<'_>, command: &RaiseContainers) -> Result<Reply, StoreError> {
    let mut raised = Vec::new();
    for id in &command.containers {
        let found = container(batch, *id)?.filter(|row| row.replication == Replication::One);
        if let Some(row) = found {
            raised.push((*id, row));
        }
    }
    let now_ms = advance_clock(batch, command.now_ms)?;
    for (id, mut row) in raised {
        row.replication = Replication::Three;
        if row.state == ContainerState::Open {
            row.close(now_ms);
        }
        save_container(batch, id, &row)?;
    }
    Ok(Reply::Done)
}

/// Writes a container's row and its places in `active` and `tended`.
pub(super) fn save_container(
    batch: &mut WriteBatch<'_>,
    id: ContainerId,
    row: &ContainerRow,
) -> Result<(), StoreError> {
    let row_key = id.to_be_bytes();
    let is_active = matches!(row.state, ContainerState::Open | ContainerState::Closing);
    let is_tended = row
        .replicas
        .iter()
        .any(|replica| matches!(replica.state, ReplicaState::Copying | ReplicaState::Deleting));
    for (table, is_in) in [(ACTIVE, is_active), (TENDED, is_tended)] {
        let was_in = batch.get(table, &row_key)?.is_some();
        match (was_in, is_in) {
            (false, true) => save(batch, table, &row_key, &())?,
            (true, false) => {
                batch.delete(table, &row_key)?;
            }
            _ => {}
        }
    }
    save(batch, CONTAINER, &row_key, row)
}

impl ContainerRow {
    /// The replicas that hold every acknowledged block.
    pub(crate) fn valid(&self) -> impl Iterator<Item = &ReplicaRow> {
        self.replicas.iter().filter(|replica| replica.state == ReplicaState::Valid)
    }

    /// OPEN -> CLOSING.
    pub(super) fn close(&mut self, now_ms: UnixMs) {
        self.state = ContainerState::Closing;
        self.closing_ms = now_ms;
    }

    /// DELETING -> DELETED once no replica is left.
    pub(super) fn finish_deleting(&mut self) {
        if self.state == ContainerState::Deleting && self.replicas.is_empty() {
            self.state = ContainerState::Deleted;
        }
    }

    /// The highest generation ever given to a replica.
    pub(crate) fn last_generation(&self) -> Generation {
        let of_replicas = self.replicas.iter().map(|replica| replica.generation).max();
        self.last_generation.max(self.generation).max(of_replicas.unwrap_or_default())
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
pub(crate) fn address(rows: &impl Rows, id: DatanodeId) -> Result<DatanodeAddress, StoreError> {
    let row: Option<DatanodeRow> = load(rows, DATANODE, id.0.as_bytes())?;
    Ok(DatanodeAddress { id, address: row.and_then(|row| row.address) })
}
