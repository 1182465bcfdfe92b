//! Datanodes: who they are, where they listen, which life they lead.
//!
//! Not here: whether they live (leader memory), what they hold (their reports).

use consensus::{StoreError, WriteBatch};

use super::{Reply, advance_clock};
use crate::command::RegisterDatanode;
use crate::schema::{DATANODE, DatanodeRow, OperationalState, load, save};

/// Records a datanode's new life.
pub(super) fn register(batch: &mut WriteBatch<'_>, command: RegisterDatanode) -> Result<Reply, StoreError> {
    let row_key = *command.datanode.id.0.as_bytes();
    let known: Option<DatanodeRow> = load(batch, DATANODE, &row_key)?;
    let row = DatanodeRow {
        address: command.datanode.address,
        incarnation: command.incarnation,
        registered_ms: advance_clock(batch, command.now_ms)?,
        operational: known.map_or(OperationalState::InService, |row| row.operational),
        disks: command.disks,
    };
    save(batch, DATANODE, &row_key, &row)?;
    Ok(Reply::Done)
}
