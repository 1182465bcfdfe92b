//! Deletion transactions: numbered lists of blocks per container that every replica must drop.
//!
//! ```text
//!  OM's batch --cut by container--> transaction 7 of container 3 --DeleteBlocks--> each replica
//!                                            ^ kept until all VALID and COPYING replicas report >= 7
//! ```
//!
//! Invariants:
//! * Numbers of a container ascend by one, from 1, and never return.
//! * A transaction is kept until every VALID and COPYING replica has passed it.
//! * A batch is logged once: its parts are applied in order, each one once.
//!
//! Not here: which blocks may be deleted. OM alone decides it.

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, WriteBatch};
use wire::scm::ContainerState;

use super::Reply;
use super::container::save_container;
use crate::command::{LogDeletions, PassDeletions};
use crate::schema::{
    ContainerRow, DELETION, DeletionBatchRow, DeletionRow, META, ReplicaState, container, deletion_key, load,
    meta, parse_deletion_key, save,
};

/// Transactions one command drops at most; the rest goes with the next.
const PURGE_MAX: usize = 256;

/// Logs one part of a batch.
pub(super) fn log(batch: &mut WriteBatch<'_>, command: LogDeletions) -> Result<Reply, StoreError> {
    let last: DeletionBatchRow = load(batch, META, meta::DELETION_BATCH)?.unwrap_or_default();
    let is_same = last.batch == command.batch && last.fingerprint == command.fingerprint;
    let parts_done = if is_same { last.parts_done } else { 0 };
    if command.batch < last.batch || command.part < parts_done {
        return Ok(Reply::Done);
    }
    if command.part > parts_done {
        return Ok(Reply::OutOfOrder);
    }
    let mut changed = Vec::new();
    for part in command.deletions {
        // A container that never was or is gone holds no blocks.
        let live = container(batch, part.container)?
            .filter(|row| !matches!(row.state, ContainerState::Deleting | ContainerState::Deleted));
        if let Some(row) = live {
            changed.push((part, row));
        }
    }
    for (part, row) in changed {
        // One container may have several parts: count on from what the last one wrote.
        let mut row = container(batch, part.container)?.unwrap_or(row);
        row.last_deletion += 1;
        let row_key = deletion_key(part.container, row.last_deletion);
        save(batch, DELETION, &row_key, &DeletionRow { blocks: part.blocks })?;
        save_container(batch, part.container, &row)?;
    }
    let progress = DeletionBatchRow {
        batch: command.batch,
        fingerprint: command.fingerprint,
        parts_done: command.part + 1,
    };
    save(batch, META, meta::DELETION_BATCH, &progress)?;
    Ok(Reply::Done)
}

/// Drops the transactions that all have passed.
pub(super) fn pass(batch: &mut WriteBatch<'_>, command: &PassDeletions) -> Result<Reply, StoreError> {
    let Some(mut row) = container(batch, command.container)? else { return Ok(Reply::Done) };
    let through = row.passed_by_all(&command.done);
    if through <= row.purged_deletion {
        return Ok(Reply::Done);
    }
    let mut passed = Vec::new();
    let from = deletion_key(command.container, 0);
    let to = deletion_key(command.container, through + 1);
    batch.scan(DELETION, &from, Some(&to), &mut |row_key, _| {
        passed.push(row_key.to_vec());
        if passed.len() < PURGE_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    row.purged_deletion = match passed.last() {
        Some(row_key) if passed.len() == PURGE_MAX => parse_deletion_key(row_key)?.1,
        _ => through,
    };
    for row_key in &passed {
        batch.delete(DELETION, row_key)?;
    }
    save_container(batch, command.container, &row)?;
    Ok(Reply::Done)
}

impl ContainerRow {
    /// The last transaction that every VALID and COPYING replica has made durable; 0 if one has not said. Of a container
    /// that is being dropped or gone, nobody needs to pass any.
    pub(crate) fn passed_by_all(&self, done: &[(wire::ids::DatanodeId, wire::ids::Generation, u64)]) -> u64 {
        if matches!(self.state, ContainerState::Deleting | ContainerState::Deleted) {
            return self.last_deletion;
        }
        let passed = |datanode, generation| {
            let found = done.iter().find(|(id, life, _)| (*id, *life) == (datanode, generation));
            found.map_or(0, |(_, _, transaction)| *transaction)
        };
        self.replicas
            .iter()
            .filter(|replica| matches!(replica.state, ReplicaState::Valid | ReplicaState::Copying))
            .map(|replica| passed(replica.datanode, replica.generation))
            .min()
            .unwrap_or(0)
            .min(self.last_deletion)
    }
}
