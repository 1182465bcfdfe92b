//! Datanodes: who they are, where they listen, which life they lead, what operators want of them.
//!
//! Not here: whether they live (leader memory), what they hold (their reports).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, WriteBatch};
use wire::ids::DatanodeId;

use super::container::save_container;
use super::{Reply, advance_clock};
use crate::command::{ForgetDatanode, RegisterDatanode, SetDatanode};
use crate::schema::{DATANODE, DatanodeRow, OperationalState, container, load, parse_datanode, save, scan};

/// Records a datanode's new life.
pub(super) fn register(batch: &mut WriteBatch<'_>, command: RegisterDatanode) -> Result<Reply, StoreError> {
    let row_key = *command.datanode.id.0.as_bytes();
    let known: Option<DatanodeRow> = load(batch, DATANODE, &row_key)?;
    let (operational, maintenance_until_ms) =
        known.map_or((OperationalState::InService, None), |row| (row.operational, row.maintenance_until_ms));
    let row = DatanodeRow {
        address: command.datanode.address,
        incarnation: command.incarnation,
        registered_ms: advance_clock(batch, command.now_ms)?,
        operational,
        disks: command.disks,
        node: command.node,
        rack: command.rack,
        maintenance_until_ms,
    };
    save(batch, DATANODE, &row_key, &row)?;
    Ok(Reply::Done)
}

/// Records what operators want of a datanode, or how far that has come.
pub(super) fn set(batch: &mut WriteBatch<'_>, command: &SetDatanode) -> Result<Reply, StoreError> {
    let row_key = *command.datanode.0.as_bytes();
    let Some(mut row) = load::<DatanodeRow>(batch, DATANODE, &row_key)? else {
        return Ok(Reply::Refused("this datanode is not known"));
    };
    // Two operators at once, or two leaders: each check alone was right.
    if let Some(needed) = command.others_in_service
        && others_in_service(batch, command.datanode)? < needed
    {
        return Ok(Reply::Refused("other datanodes were taken out of service meanwhile"));
    }
    row.operational = command.operational;
    row.maintenance_until_ms = command.maintenance_until_ms;
    save(batch, DATANODE, &row_key, &row)?;
    Ok(Reply::Done)
}

fn others_in_service(rows: &impl Rows, id: DatanodeId) -> Result<u64, StoreError> {
    let mut count = 0;
    scan(rows, DATANODE, &[], None, |row_key, row: DatanodeRow| {
        let is_other = parse_datanode(row_key)? != id;
        count += u64::from(is_other && row.operational == OperationalState::InService);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

/// Strikes off a datanode's replicas, then the datanode. A last VALID replica stays on the books: should the datanode
/// return against all expectation, its container is readable again. Until then the container counts as missing, and goes
/// once OM has declared it empty.
pub(super) fn forget(batch: &mut WriteBatch<'_>, command: &ForgetDatanode) -> Result<Reply, StoreError> {
    let mut struck = Vec::new();
    for id in &command.containers {
        let Some(mut row) = container(batch, *id)? else { continue };
        let before = row.replicas.len();
        let has_other = row.valid().any(|replica| replica.datanode != command.datanode);
        row.replicas
            .retain(|replica| replica.datanode != command.datanode || (row_is_valid(replica) && !has_other));
        if row.replicas.len() < before {
            row.finish_deleting();
            struck.push((*id, row));
        }
    }
    let row_key = *command.datanode.0.as_bytes();
    let is_known = load::<DatanodeRow>(batch, DATANODE, &row_key)?.is_some();
    for (id, row) in struck {
        save_container(batch, id, &row)?;
    }
    if command.is_last && is_known {
        batch.delete(DATANODE, &row_key)?;
    }
    Ok(Reply::Done)
}

fn row_is_valid(replica: &crate::schema::ReplicaRow) -> bool {
    replica.state == crate::schema::ReplicaState::Valid
}
