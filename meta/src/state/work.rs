//! Work too large for one command: a queue of rows, worked off by bounded commands.
//!
//! The leader's worker names the next row; apply does as much of it as fits and rewrites or drops the row. Rows of the
//! second queue wait for the delete grace first: they hold block lists that readers may still be paging through.
//!
//! Invariant: each step either drops the row or makes it smaller, so the queue comes to an end.
//!
//! Not here: pacing (see `worker`).

use consensus::{Row, Rows, StoreError};
use wire::block::BlockEntry;
use wire::ids::{BlockId, BucketId, ContainerId, LocalId, SessionId, WriteId};

use crate::schema::{
    LAYOUT, LOAN, LOAN_SESSION, LoanRow, PART, PartRow, UPLOAD, UploadRow, WORK, WORK_AFTER_GRACE, WORK_NOW,
    Work, WorkRow, corrupt, decode, encode, layout_row_key, pair, work_row_key,
};
use crate::state::loan::LOANS_ENDED_MAX;
use crate::state::{
    Reply, RowsExt, Txn, after, block, deletion, end_of, layout, lease, loan, multipart, session,
};

/// Blocks that one step frees at most: two rows each.
const STEP_BLOCKS_MAX: usize = 200;
/// Rows that one step drops at most.
const STEP_ROWS_MAX: usize = 300;
/// A step stops before a part that would take it beyond this many rows.
const STEP_PART_ROWS_MAX: usize = 440;
/// Uploads that one step drops at most: three rows each.
const STEP_UPLOADS_MAX: usize = 100;

/// Queues work to be done at once.
pub(crate) fn queue(txn: &mut Txn<'_, '_>, work: Work) -> Result<(), StoreError> {
    queue_in(txn, WORK_NOW, work)
}

/// Queues work to be done after the delete grace.
pub(crate) fn queue_after_grace(txn: &mut Txn<'_, '_>, work: Work) -> Result<(), StoreError> {
    queue_in(txn, WORK_AFTER_GRACE, work)
}

fn queue_in(txn: &mut Txn<'_, '_>, queue: u8, work: Work) -> Result<(), StoreError> {
    let row_key = work_row_key(queue, txn.index, txn.next_ordinal());
    let row = WorkRow { queued_ms: txn.now_ms, work };
    txn.put(WORK, &row_key, &row)
}

/// The next row that is due and was not given up: its key.
pub(crate) fn next_due(
    rows: &impl Rows,
    queued_before_ms: u64,
    is_given_up: &dyn Fn(&[u8]) -> bool,
) -> Result<Option<Vec<u8>>, StoreError> {
    if let Some((row_key, _)) = next_of(rows, &[WORK_NOW], Some(&[WORK_AFTER_GRACE]), is_given_up)? {
        return Ok(Some(row_key));
    }
    let Some((row_key, value)) = next_of(rows, &[WORK_AFTER_GRACE], None, is_given_up)? else {
        return Ok(None);
    };
    let row: WorkRow = decode(WORK, &row_key, &value)?;
    Ok((row.queued_ms < queued_before_ms).then_some(row_key))
}

fn next_of(
    rows: &impl Rows,
    from: &[u8],
    to: Option<&[u8]>,
    is_given_up: &dyn Fn(&[u8]) -> bool,
) -> Result<Option<Row>, StoreError> {
    let mut from = from.to_vec();
    loop {
        match rows.seek(WORK, &from, to) {
            Ok(Some((row_key, _))) if is_given_up(&row_key) => from = after(&row_key),
            Err(StoreError::Corrupt { row_key, .. }) if is_given_up(&row_key) => from = after(&row_key),
            outcome => return outcome,
        }
    }
}

/// Does the next piece of a row.
pub(crate) fn work_off(txn: &mut Txn<'_, '_>, row_key: &[u8]) -> Result<Reply, StoreError> {
    let Some(row) = txn.row::<WorkRow>(WORK, row_key)? else { return Ok(Reply::Worked(0)) };
    let left = match row.work {
        Work::Release { write_id, blocks } => release(txn, write_id, blocks)?,
        Work::Layout { write_id } => release_layout(txn, write_id)?,
        Work::Free { container, runs } => free(txn, container, runs)?,
        Work::Parts { upload, used } => drop_parts(txn, upload, used)?,
        Work::Uploads { bucket } => drop_uploads(txn, bucket)?,
        Work::Session { session } => reclaim_session(txn, session)?,
    };
    match left {
        Some(work) => txn.put(WORK, row_key, &WorkRow { queued_ms: row.queued_ms, work })?,
        None => {
            txn.delete(WORK, row_key)?;
        }
    }
    Ok(Reply::Worked(1))
}

fn release(
    txn: &mut Txn<'_, '_>,
    write_id: WriteId,
    mut blocks: Vec<BlockId>,
) -> Result<Option<Work>, StoreError> {
    let rest = blocks.split_off(blocks.len().min(STEP_BLOCKS_MAX));
    for block in blocks {
        block::drop_reference(txn, block, write_id)?;
    }
    Ok((!rest.is_empty()).then_some(Work::Release { write_id, blocks: rest }))
}

/// One piece of one `layout` row: a row holds more entries than a step may free, so it shrinks from its front.
fn release_layout(txn: &mut Txn<'_, '_>, write_id: WriteId) -> Result<Option<Work>, StoreError> {
    let prefix = write_id.to_row_key();
    let end = end_of(&prefix);
    let Some((row_key, value)) = txn.seek(LAYOUT, &prefix, Some(&end))? else { return Ok(None) };
    let mut entries: Vec<BlockEntry> = decode(LAYOUT, &row_key, &value)?;
    let rest = entries.split_off(entries.len().min(STEP_BLOCKS_MAX));
    for entry in &entries {
        block::drop_reference(txn, entry.block, write_id)?;
    }
    txn.delete(LAYOUT, &row_key)?;
    if !rest.is_empty() {
        let first_byte =
            layout::first_byte_of(&row_key) + entries.iter().map(|entry| entry.length).sum::<u64>();
        txn.put_bytes(LAYOUT, &layout_row_key(write_id, first_byte), &encode(&rest))?;
        return Ok(Some(Work::Layout { write_id }));
    }
    let is_last = txn.seek(LAYOUT, &prefix, Some(&end))?.is_none();
    Ok((!is_last).then_some(Work::Layout { write_id }))
}

fn free(
    txn: &mut Txn<'_, '_>,
    container: ContainerId,
    runs: Vec<(LocalId, u16)>,
) -> Result<Option<Work>, StoreError> {
    // Ids that nobody committed have gone with their container.
    if lease::is_retired(txn, container)? {
        return Ok(None);
    }
    let mut budget = STEP_BLOCKS_MAX;
    let mut rest = Vec::new();
    for (first, count) in runs {
        let now = usize::from(count).min(budget);
        budget -= now;
        for local in first.0..first.0 + now as u64 {
            block::free_lent(txn, BlockId { container, local: LocalId(local) })?;
        }
        if now < usize::from(count) {
            rest.push((LocalId(first.0 + now as u64), count - now as u16));
        }
    }
    Ok((!rest.is_empty()).then_some(Work::Free { container, runs: rest }))
}

fn drop_parts(
    txn: &mut Txn<'_, '_>,
    upload: WriteId,
    used: Vec<(u32, u32)>,
) -> Result<Option<Work>, StoreError> {
    let prefix = upload.to_row_key();
    let parts = txn.rows::<PartRow>(PART, &prefix, Some(&end_of(&prefix)), STEP_ROWS_MAX)?;
    let is_last = parts.len() < STEP_ROWS_MAX;
    for (row_key, row) in parts {
        let part = row_key.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let is_used = multipart::runs_contain(&used, part);
        let cost = 1 + if is_used { 0 } else { 2 * row.blocks.len() };
        if txn.rows_written() > 0 && txn.rows_written() + cost > STEP_PART_ROWS_MAX {
            return Ok(Some(Work::Parts { upload, used }));
        }
        txn.delete(PART, &row_key)?;
        if !is_used {
            deletion::release_blocks(txn, upload, &row.blocks)?;
        }
    }
    Ok((!is_last).then_some(Work::Parts { upload, used }))
}

fn drop_uploads(txn: &mut Txn<'_, '_>, bucket: BucketId) -> Result<Option<Work>, StoreError> {
    let prefix = bucket.to_be_bytes();
    let uploads = txn.rows::<UploadRow>(UPLOAD, &prefix, Some(&end_of(&prefix)), STEP_UPLOADS_MAX)?;
    let is_last = uploads.len() < STEP_UPLOADS_MAX;
    for (row_key, row) in uploads {
        let upload = row_key.last_chunk().copied().map(WriteId::from_row_key).unwrap_or_default();
        multipart::drop_upload(txn, bucket, upload, &row)?;
    }
    Ok((!is_last).then_some(Work::Uploads { bucket }))
}

/// First the loans, then the remembered replies, then the session itself.
fn reclaim_session(txn: &mut Txn<'_, '_>, session: SessionId) -> Result<Option<Work>, StoreError> {
    let prefix = session.to_be_bytes();
    let end = end_of(&prefix);
    let mut loans = Vec::new();
    txn.scan(LOAN_SESSION, &prefix, Some(&end), &mut |_, value| {
        loans.push(value.to_vec());
        let is_full = loans.len() == LOANS_ENDED_MAX;
        if is_full { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    })?;
    if !loans.is_empty() {
        for loan_key in loans {
            let row = txn.row::<LoanRow>(LOAN, &loan_key)?.ok_or_else(|| corrupt(LOAN, &loan_key))?;
            let (container, first) = loan::first_of(&loan_key);
            loan::end(txn, container, first, &row)?;
        }
        return Ok(Some(Work::Session { session }));
    }
    let replies = session::row_keys(txn, &pair(session.0, 0), &end, STEP_ROWS_MAX)?;
    for row_key in &replies {
        txn.delete(crate::schema::REQUEST, row_key)?;
    }
    if replies.len() == STEP_ROWS_MAX {
        return Ok(Some(Work::Session { session }));
    }
    session::forget(txn, session)?;
    Ok(None)
}
