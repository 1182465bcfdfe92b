//! Pipelines: the datanodes that write an open container.
//!
//! Invariants:
//! * No datanode is in a pipeline twice.
//! * The same members of the same replication type are one pipeline for ever.
//!
//! Not here: choosing the members (`prepare`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, WriteBatch};
use wire::block::{Pipeline, Replication};
use wire::ids::{DatanodeId, PipelineId};

use super::container::address;
use super::next_number;
use crate::schema::{PIPELINE, PipelineRow, corrupt, load, meta, parse_number, save, scan};

/// The pipeline of `members`, recorded if they never were one.
pub(super) fn create(
    batch: &mut WriteBatch<'_>,
    replication: Replication,
    mut members: Vec<DatanodeId>,
) -> Result<PipelineId, StoreError> {
    members.sort();
    assert!(members.windows(2).all(|pair| pair[0] != pair[1]), "a datanode is twice in a pipeline");
    let row = PipelineRow { replication, members };
    // As many rows as there were sets of members, not as containers.
    let mut known = None;
    scan(batch, PIPELINE, &[], None, |row_key, found: PipelineRow| {
        if found == row {
            known = Some(PipelineId(parse_number(PIPELINE, row_key)?));
        }
        Ok(if known.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    if let Some(id) = known {
        return Ok(id);
    }
    let id = PipelineId(next_number(batch, meta::LAST_PIPELINE)?);
    save(batch, PIPELINE, &id.to_be_bytes(), &row)?;
    Ok(id)
}

/// The pipeline as writers need it, with the members' current addresses.
pub(super) fn describe(rows: &impl Rows, id: PipelineId) -> Result<Pipeline, StoreError> {
    let row: PipelineRow =
        load(rows, PIPELINE, &id.to_be_bytes())?.ok_or_else(|| corrupt(PIPELINE, &id.to_be_bytes()))?;
    let members = row.members.iter().map(|member| address(rows, *member)).collect::<Result<_, _>>()?;
    Ok(Pipeline { id, replication: row.replication, members })
}
