//! The `block` table: which blocks live. Written by the transaction that commits or retires a version.
//!
//! ```text
//!   on loan --commit--> owned(1) --copy--> owned(n) --retire--> owned(n-1) ... --retire--> freed --> deleted queue
//!      +-----release, end of the loan------------------------------------------------------> freed
//! ```
//!
//! Invariants:
//! * `freed` is final: no row goes back to owned, no freed id to a loan.
//! * `references` is one more than the block's rows in `block_ref`.
//! * Every owner's row names its bucket and key, so that what a lost container hurts is one range of this table.
//!
//! Not here: when a freed block leaves OM (see `deletion`).

use consensus::{Rows, StoreError};
use wire::block::BlockEntry;
use wire::ids::{BlockId, BucketId, WriteId};
use wire::names::KeyName;

use crate::schema::{
    BLOCK, BLOCK_REF, BlockRefRow, BlockRow, BlockState, DELETED, DeletedRow, block_ref_row_key, encode,
    ordinal_row_key,
};
use crate::state::{RowsExt, Txn, end_of};

/// Blocks that left their loan become the write's.
pub(crate) fn own(
    txn: &mut Txn<'_, '_>,
    entries: &[BlockEntry],
    owner: WriteId,
    bucket: BucketId,
    key: &KeyName,
) -> Result<(), StoreError> {
    for entry in entries {
        let row = BlockRow {
            state: BlockState::Owned,
            owner,
            bucket,
            references: 1,
            length: entry.block_length,
            committed_index: txn.index,
            committed_ms: txn.now_ms,
            key: Some(key.clone()),
        };
        txn.put(BLOCK, &entry.block.to_row_key(), &row)?;
    }
    Ok(())
}

/// Whether some version or part owns the block.
pub(crate) fn lives(rows: &impl Rows, block: BlockId, length: u64) -> Result<bool, StoreError> {
    let row = rows.row::<BlockRow>(BLOCK, &block.to_row_key())?;
    Ok(row.is_some_and(|row| row.state == BlockState::Owned && row.length == length))
}

/// A further write owns the block. False if it does not live.
pub(crate) fn share(
    txn: &mut Txn<'_, '_>,
    block: BlockId,
    owner: WriteId,
    bucket: BucketId,
    key: &KeyName,
) -> Result<bool, StoreError> {
    let row_key = block.to_row_key();
    let Some(row) = txn.row::<BlockRow>(BLOCK, &row_key)?.filter(|row| row.state == BlockState::Owned) else {
        return Ok(false);
    };
    txn.put(BLOCK, &row_key, &BlockRow { references: row.references + 1, ..row })?;
    txn.put(BLOCK_REF, &block_ref_row_key(block, owner), &BlockRefRow { bucket, key: key.clone() })?;
    Ok(true)
}

/// A write owns the block no longer; the last one frees it. Two rows.
pub(crate) fn drop_reference(
    txn: &mut Txn<'_, '_>,
    block: BlockId,
    owner: WriteId,
) -> Result<(), StoreError> {
    let row_key = block.to_row_key();
    let row = txn.row::<BlockRow>(BLOCK, &row_key)?.filter(|row| row.state == BlockState::Owned);
    let Some(row) = row else {
        // Only rot or a bug leads here. Going on keeps the replica alive, and frees nothing twice.
        tracing::error!(%block, "a version names a block that is not owned");
        return Ok(());
    };
    if row.references == 1 || wire::planted::is_on("gc_ignores_references") {
        txn.put(BLOCK, &row_key, &BlockRow { state: BlockState::Freed, references: 0, key: None, ..row })?;
        return queue_freed(txn, block);
    }
    let references = row.references - 1;
    if row.owner != owner {
        txn.delete(BLOCK_REF, &block_ref_row_key(block, owner))?;
        return txn.put(BLOCK, &row_key, &BlockRow { references, ..row });
    }
    // The first owner goes: the next one takes its place in the row.
    let Some((ref_key, BlockRefRow { bucket, key })) =
        txn.rows::<BlockRefRow>(BLOCK_REF, &row_key, Some(&end_of(&row_key)), 1)?.pop()
    else {
        tracing::error!(%block, "a shared block has no second owner");
        return Ok(());
    };
    let next = ref_key.last_chunk().copied().map(WriteId::from_row_key).unwrap_or_default();
    txn.delete(BLOCK_REF, &ref_key)?;
    txn.put(BLOCK, &row_key, &BlockRow { references, owner: next, bucket, key: Some(key), ..row })
}

/// An id that was lent and never committed is freed. Two rows.
pub(crate) fn free_lent(txn: &mut Txn<'_, '_>, block: BlockId) -> Result<(), StoreError> {
    let row = BlockRow {
        state: BlockState::Freed,
        owner: WriteId::default(),
        bucket: BucketId::default(),
        references: 0,
        length: 0,
        committed_index: 0,
        committed_ms: 0,
        key: None,
    };
    txn.put(BLOCK, &block.to_row_key(), &row)?;
    queue_freed(txn, block)
}

fn queue_freed(txn: &mut Txn<'_, '_>, block: BlockId) -> Result<(), StoreError> {
    let row_key = ordinal_row_key(txn.index, txn.next_ordinal());
    let row = DeletedRow { block, freed_ms: txn.now_ms };
    txn.put_bytes(DELETED, &row_key, &encode(&row))
}
