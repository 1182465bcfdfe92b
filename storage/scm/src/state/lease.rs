//! Leases: ranges of local ids of one OPEN container, granted to OM.
//!
//! Invariants:
//! * No local id of a container is ever granted twice: the container's `next_local` only grows, and is logged with the
//!   lease in one transaction.
//! * A repeated request is answered with the lease it got, as long as that lease stands. A repeat that comes after the
//!   lease's return gets a new lease; OM does not know it, which its next `SyncLeases` brings to light.
//!
//! Not here: loans, which are OM's.

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, WriteBatch};
use wire::ids::{ContainerId, LeaseId, LocalId};
use wire::scm::{ContainerState, Lease};

use super::{Reply, advance_clock, container as containers, next_number, pipeline};
use crate::command::GrantLease;
use crate::schema::{
    CONTAINER, ContainerRow, LEASE, LOCAL_IDS_MAX, LeaseRow, REQUEST, container, corrupt, load, meta, save,
    scan,
};

/// Grants a lease.
pub(super) fn grant(batch: &mut WriteBatch<'_>, command: GrantLease) -> Result<Reply, StoreError> {
    let request_key = command.request.to_be_bytes();
    if let Some(id) = load::<LeaseId>(batch, REQUEST, &request_key)? {
        return Ok(Reply::Lease(Box::new(describe(batch, id)?)));
    }
    let chosen = match command.container {
        Some(id) => container(batch, id)?
            .filter(|row| row.replication == command.replication && row.can_grant(command.count))
            .map(|row| (id, row)),
        None => None,
    };
    if chosen.is_none() && command.members.is_empty() {
        return Ok(Reply::NoContainer);
    }
    let now_ms = advance_clock(batch, command.now_ms)?;
    let (container_id, mut row) = match chosen {
        Some(found) => found,
        None => containers::open(batch, command.replication, command.members, now_ms)?,
    };
    let first = row.next_local;
    row.next_local = LocalId(first.0 + command.count);
    containers::save_container(batch, container_id, &row)?;
    let id = LeaseId(next_number(batch, meta::LAST_LEASE)?);
    let lease = LeaseRow { container: container_id, first, count: command.count, request: command.request };
    save(batch, LEASE, &id.to_be_bytes(), &lease)?;
    save(batch, REQUEST, &request_key, &id)?;
    Ok(Reply::Lease(Box::new(describe(batch, id)?)))
}

/// Whether a lease of the container stands.
pub(super) fn is_leased(rows: &impl Rows, container: ContainerId) -> Result<bool, StoreError> {
    let mut found = false;
    scan(rows, LEASE, &[], None, |_, row: LeaseRow| {
        found = row.container == container;
        Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// Forgets leases whose end OM has logged. Unknown ones were returned before.
pub(super) fn give_back(batch: &mut WriteBatch<'_>, leases: &[LeaseId]) -> Result<Reply, StoreError> {
    let mut standing = Vec::new();
    for id in leases {
        if let Some(row) = load::<LeaseRow>(batch, LEASE, &id.to_be_bytes())? {
            standing.push((id, row.request));
        }
    }
    for (id, request) in standing {
        batch.delete(LEASE, &id.to_be_bytes())?;
        batch.delete(REQUEST, &request.to_be_bytes())?;
    }
    Ok(Reply::Done)
}

impl ContainerRow {
    /// Whether a lease of `count` ids can be granted.
    pub(crate) fn can_grant(&self, count: u64) -> bool {
        self.state == ContainerState::Open && self.next_local.0 + count <= LOCAL_IDS_MAX
    }
}

fn describe(rows: &impl Rows, id: LeaseId) -> Result<Lease, StoreError> {
    let lease_key = id.to_be_bytes();
    let lease: LeaseRow = load(rows, LEASE, &lease_key)?.ok_or_else(|| corrupt(LEASE, &lease_key))?;
    let container_id: ContainerId = lease.container;
    let row =
        container(rows, container_id)?.ok_or_else(|| corrupt(CONTAINER, &container_id.to_be_bytes()))?;
    Ok(Lease {
        id,
        container: container_id,
        generation: row.generation,
        first: lease.first,
        count: lease.count,
        pipeline: pipeline::describe(rows, row.pipeline)?,
    })
}
