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
//! the same number, and SCM may answer it without looking.
//!
//! Not here: the grace (a setting of the leader, so it travels in the command).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use serde_bytes::ByteBuf;
use wire::block::BlockEntry;
use wire::ids::{BlockId, WriteId};

use crate::command::BeginHandover;
use crate::schema::{
    BLOCK, BlockRow, BlockState, DELETED, Data, DeletedRow, HandoverRow, META, META_HANDOVER,
    META_HANDOVER_BATCH, Work, decode,
};
use crate::state::{Reply, RowsExt, Txn, block, work};

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
    let due = txn.rows::<DeletedRow>(DELETED, &[], None, count_max)?;
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

/// The blocks of a batch.
pub(crate) fn handover_blocks(rows: &impl Rows, handover: &HandoverRow) -> Result<Vec<BlockId>, StoreError> {
    Ok(handover_rows(rows, handover)?.into_iter().map(|(_, row)| row.block).collect())
}

fn handover_rows(rows: &impl Rows, handover: &HandoverRow) -> Result<Vec<(Vec<u8>, DeletedRow)>, StoreError> {
    let end = [handover.last.as_slice(), &[0]].concat();
    rows.rows(DELETED, &[], Some(&end), HANDOVER_BLOCKS_MAX as usize)
}

/// SCM has logged the batch: queue and block rows go.
pub(crate) fn finish_handover(txn: &mut Txn<'_, '_>, batch: u64) -> Result<Reply, StoreError> {
    let Some(handover) = txn.row::<HandoverRow>(META, META_HANDOVER)?.filter(|row| row.batch == batch) else {
        return Ok(Reply::Worked(0));
    };
    let rows = handover_rows(txn, &handover)?;
    for (row_key, row) in &rows {
        let block_key = row.block.to_row_key();
        if txn.row::<BlockRow>(BLOCK, &block_key)?.is_some_and(|row| row.state == BlockState::Freed) {
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
    let mut fault = None;
    rows.scan(DELETED, &[], None, &mut |row_key, value| {
        if oldest_ms.is_none() {
            match decode::<DeletedRow>(DELETED, row_key, value) {
                Ok(row) => oldest_ms = Some(row.freed_ms),
                Err(error) => fault = Some(error),
            }
        }
        count += 1;
        if count >= count_max || fault.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    fault.map_or(Ok((count, oldest_ms)), Err)
}

/// Whether a batch is under way, or a freed block has waited long enough.
pub(crate) fn is_due(rows: &impl Rows, freed_before_ms: u64) -> Result<bool, StoreError> {
    if rows.contains(META, META_HANDOVER)? {
        return Ok(true);
    }
    let oldest = rows.rows::<DeletedRow>(DELETED, &[], None, 1)?.pop();
    Ok(oldest.is_some_and(|(_, row)| row.freed_ms < freed_before_ms))
}
