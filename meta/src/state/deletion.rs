//! Retirement of versions, and the way of freed blocks out of OM.
//!
//! [`retire_version`] is the one function that removes a version's hold on its blocks. Freed blocks wait in `deleted`
//! with the time at which they were freed; after the delete grace the leader hands them to SCM in batches:
//!
//! ```text
//!   BeginHandover (logged: batch number, last row) -> LogDeletions to SCM -> FinishHandover (logged: rows dropped)
//! ```
//!
//! Which rows belong to a batch is logged before SCM hears of it, so a repeat after a crash has the same blocks under
//! the same number, and SCM may answer it without looking. A damaged row of `deleted`, or of a block in a batch, is named by
//! the leader of a sole voter and left where it is: apply never decides by what this replica alone cannot read.
//!
//! Not here: the grace (a setting of the leader, so it travels in the command).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use serde_bytes::ByteBuf;
use wire::block::BlockEntry;
use wire::ids::{BlockId, WriteId};

use crate::command::{BeginHandover, FinishHandover};
use crate::schema::{
    BLOCK, BlockRow, BlockState, DELETED, Data, DeletedRow, HandoverRow, META, META_HANDOVER,
    META_HANDOVER_BATCH, Work, decode,
};
use crate::state::{Reply, RowsExt, Txn, after, block, work};

/// Blocks of one batch at most: each is two rows of the command that finishes it.
pub(crate) const HANDOVER_BLOCKS_MAX: u32 = 240;
/// A command that has written this many rows queues further releases instead of doing them.
const ROWS_BEFORE_QUEUE: usize = 300;
/// Block lists up to this length are released by the retiring command itself.
const RELEASED_AT_ONCE_MAX: usize = wire::limits::ROW_BLOCKS_MAX;

/// Takes a version's hold off its blocks: short lists at once, long ones through the queue.
pub(crate) fn retire_version(
    txn: &mut Txn<'_, '_>,
    write_id: WriteId,
    data: &Data,
) -> Result<(), StoreError> {
    match data {
        Data::Empty | Data::Inline(_) => Ok(()),
        Data::Blocks(entries) => release_blocks(txn, write_id, entries),
        // Readers page through the rows of a long list: they stay as long as its blocks would.
        Data::Layout { .. } => work::queue_after_grace(txn, Work::Layout { write_id }),
    }
}

/// Takes a write's hold off the blocks of a list that stands in one row.
pub(crate) fn release_blocks(
    txn: &mut Txn<'_, '_>,
    write_id: WriteId,
    entries: &[BlockEntry],
) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    if entries.len() > RELEASED_AT_ONCE_MAX || txn.rows_written() > ROWS_BEFORE_QUEUE {
        let blocks = entries.iter().map(|entry| entry.block).collect();
        return work::queue(txn, Work::Release { write_id, blocks });
    }
    for entry in entries {
        block::drop_reference(txn, entry.block, write_id)?;
    }
    Ok(())
}

/// Chooses the next batch, or answers with the one under way.
pub(crate) fn begin_handover(txn: &mut Txn<'_, '_>, command: &BeginHandover) -> Result<Reply, StoreError> {
    if let Some(row) = txn.row::<HandoverRow>(META, META_HANDOVER)? {
        return Ok(Reply::Handover(Some(row)));
    }
    let count_max = command.count_max.min(HANDOVER_BLOCKS_MAX) as usize;
    let due = rows_but(txn, None, &command.skip, count_max)?;
    let Some((last, _)) = due.iter().take_while(|(_, row)| row.freed_ms < command.freed_before_ms).last()
    else {
        return Ok(Reply::Handover(None));
    };
    let batch = txn.row::<u64>(META, META_HANDOVER_BATCH)?.unwrap_or(0) + 1;
    let row = HandoverRow { batch, last: ByteBuf::from(last.clone()) };
    txn.put(META, META_HANDOVER, &row)?;
    txn.put(META, META_HANDOVER_BATCH, &batch)?;
    Ok(Reply::Handover(Some(row)))
}

/// Rows of `deleted` before `end`, without those that the leader found damaged: they are not even looked at.
fn rows_but(
    rows: &impl Rows,
    end: Option<&[u8]>,
    skip: &[ByteBuf],
    count_max: usize,
) -> Result<Vec<(Vec<u8>, DeletedRow)>, StoreError> {
    let mut found = Vec::new();
    let mut from: Vec<u8> = Vec::new();
    let skip: BTreeSet<&[u8]> = skip.iter().map(|row_key| row_key.as_slice()).collect();
    for to in skip.into_iter().map(Some).chain([None]) {
        let bound = match (to, end) {
            (Some(to), Some(end)) => Some(to.min(end)),
            (to, end) => to.or(end),
        };
        found.extend(rows.rows(DELETED, &from, bound, count_max - found.len())?);
        from = to.map_or_else(Vec::new, after);
    }
    Ok(found)
}

fn end_of_batch(handover: &HandoverRow) -> Vec<u8> {
    after(&handover.last)
}

/// A batch as the leader reads it.
pub(crate) struct Batch {
    /// Its blocks.
    pub(crate) blocks: Vec<BlockId>,
    /// Rows of `deleted` in it that cannot be read.
    pub(crate) damaged_rows: Vec<Vec<u8>>,
    /// Blocks in it whose own row cannot be read.
    pub(crate) damaged_blocks: Vec<BlockId>,
}

/// Reads a batch.
pub(crate) fn read_batch(rows: &impl Rows, handover: &HandoverRow) -> Result<Batch, StoreError> {
    let end = end_of_batch(handover);
    let readable =
        rows.readable_rows::<DeletedRow>(DELETED, &[], Some(&end), HANDOVER_BLOCKS_MAX as usize)?;
    let blocks: Vec<BlockId> = readable.rows.into_iter().map(|(_, row)| row.block).collect();
    let mut damaged_blocks = Vec::new();
    for block in &blocks {
        match rows.row::<BlockRow>(BLOCK, &block.to_row_key()) {
            Ok(_) => {}
            Err(StoreError::Corrupt { .. }) => damaged_blocks.push(*block),
            Err(error) => return Err(error),
        }
    }
    Ok(Batch { blocks, damaged_rows: readable.damaged, damaged_blocks })
}

/// SCM has logged the batch: queue and block rows go. What the leader found damaged stays where it is.
pub(crate) fn finish_handover(txn: &mut Txn<'_, '_>, command: &FinishHandover) -> Result<Reply, StoreError> {
    let handover = txn.row::<HandoverRow>(META, META_HANDOVER)?.filter(|row| row.batch == command.batch);
    let Some(handover) = handover else { return Ok(Reply::Worked(0)) };
    let end = end_of_batch(&handover);
    let rows = rows_but(txn, Some(&end), &command.skip, HANDOVER_BLOCKS_MAX as usize)?;
    for (row_key, row) in &rows {
        let block_key = row.block.to_row_key();
        if !command.skip_blocks.contains(&row.block)
            && txn.row::<BlockRow>(BLOCK, &block_key)?.is_some_and(|row| row.state == BlockState::Freed)
        {
            txn.delete(BLOCK, &block_key)?;
        }
        txn.delete(DELETED, row_key)?;
    }
    txn.delete(META, META_HANDOVER)?;
    Ok(Reply::Worked(rows.len() as u32))
}

/// How many freed blocks wait, up to `count_max`, and since when the oldest does: for operators.
pub(crate) fn backlog(rows: &impl Rows, count_max: usize) -> Result<(usize, Option<u64>), StoreError> {
    let mut count = 0;
    let mut oldest_ms = None;
    rows.scan_readable(DELETED, &[], None, &mut |row_key, value| {
        if oldest_ms.is_none() {
            oldest_ms = Some(decode::<DeletedRow>(DELETED, row_key, value)?.freed_ms);
        }
        count += 1;
        Ok(if count >= count_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((count, oldest_ms))
}

/// Whether a batch is under way, or a freed block has waited long enough: then the keys of damaged rows before the end of
/// the next batch.
pub(crate) fn due(rows: &impl Rows, freed_before_ms: u64) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
    if rows.contains(META, META_HANDOVER)? {
        return Ok(Some(Vec::new()));
    }
    let next = rows.readable_rows::<DeletedRow>(DELETED, &[], None, HANDOVER_BLOCKS_MAX as usize)?;
    let is_due = next.rows.first().is_some_and(|(_, row)| row.freed_ms < freed_before_ms);
    Ok(is_due.then_some(next.damaged))
}
