//! Block lists: short ones in the version's row, long ones in `layout` rows of 16 KiB under (write id, first byte).
//!
//! A row is a MessagePack array of block entries in object order, so that a GET in the middle of a 5 TiB object reads
//! one row.
//!
//! Not here: removal (see `deletion` and `work`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::block::BlockEntry;
use wire::ids::WriteId;
use wire::limits::{LAYOUT_ROW_BYTES, ROW_BLOCKS_MAX};
use wire::om::Rejection;

use crate::schema::{Data, LAYOUT, decode, layout_row_key};
use crate::state::{Stop, Txn};

/// `layout` rows that one command writes at most: 5 TiB in 64 MiB blocks are 230.
const LAYOUT_ROWS_MAX: usize = 320;
/// MessagePack's marker of an array whose length follows in four bytes.
const ARRAY_32: u8 = 0xdd;

/// Stores a block list under its write.
pub(crate) fn store(
    txn: &mut Txn<'_, '_>,
    write_id: WriteId,
    entries: impl Iterator<Item = BlockEntry>,
) -> Result<Data, Stop> {
    let mut head: Vec<BlockEntry> = Vec::with_capacity(ROW_BLOCKS_MAX);
    let mut writer =
        RowWriter { write_id, first_byte: 0, next_byte: 0, count: 0, entries: 0, rows: 0, bytes: Vec::new() };
    for entry in entries {
        if writer.entries == 0 && head.len() < ROW_BLOCKS_MAX {
            head.push(entry);
            continue;
        }
        for entry in head.drain(..) {
            writer.push(txn, &entry)?;
        }
        writer.push(txn, &entry)?;
    }
    if writer.entries > 0 {
        writer.flush(txn)?;
        return Ok(Data::Layout { entries: writer.entries });
    }
    Ok(if head.is_empty() { Data::Empty } else { Data::Blocks(head) })
}

struct RowWriter {
    write_id: WriteId,
    first_byte: u64,
    next_byte: u64,
    /// Entries in `bytes`.
    count: u32,
    /// Entries in all.
    entries: u64,
    rows: usize,
    bytes: Vec<u8>,
}

impl RowWriter {
    fn push(&mut self, txn: &mut Txn<'_, '_>, entry: &BlockEntry) -> Result<(), Stop> {
        rmp_serde::encode::write(&mut self.bytes, entry).expect("memory takes every row");
        self.count += 1;
        self.entries += 1;
        self.next_byte += entry.length;
        if self.bytes.len() >= LAYOUT_ROW_BYTES { self.flush(txn) } else { Ok(()) }
    }

    fn flush(&mut self, txn: &mut Txn<'_, '_>) -> Result<(), Stop> {
        if self.count == 0 {
            return Ok(());
        }
        self.rows += 1;
        if self.rows > LAYOUT_ROWS_MAX {
            return Err(Rejection::Invalid("the object has too many blocks".to_owned()).into());
        }
        let value = [&[ARRAY_32], self.count.to_be_bytes().as_slice(), &self.bytes].concat();
        txn.put_bytes(LAYOUT, &layout_row_key(self.write_id, self.first_byte), &value)?;
        self.first_byte = self.next_byte;
        self.count = 0;
        self.bytes.clear();
        Ok(())
    }
}

/// Entries from the one that holds byte `from`, at most `count_max`, and the byte at which the first begins.
pub(crate) fn page(
    rows: &impl Rows,
    write_id: WriteId,
    data: &Data,
    from: u64,
    count_max: usize,
) -> Result<Option<(u64, Vec<BlockEntry>)>, StoreError> {
    match data {
        Data::Empty | Data::Inline(_) => Ok(None),
        Data::Blocks(entries) => {
            let mut page = Page { from, count_max, start: None, entries: Vec::new() };
            page.take(0, entries);
            Ok(page.found())
        }
        Data::Layout { .. } => layout_page(rows, write_id, from, count_max),
    }
}

/// As [`page`], of a list that is known to lie in `layout` rows.
pub(crate) fn layout_page(
    rows: &impl Rows,
    write_id: WriteId,
    from: u64,
    count_max: usize,
) -> Result<Option<(u64, Vec<BlockEntry>)>, StoreError> {
    let first = layout_row_key(write_id, 0);
    let end = crate::state::end_of(&write_id.to_row_key());
    // The row that holds the byte begins at or before it.
    let behind = match from.checked_add(1) {
        Some(next) => layout_row_key(write_id, next).to_vec(),
        None => end.clone(),
    };
    let Some((start_key, _)) = rows.seek_back(LAYOUT, &first, Some(&behind))? else { return Ok(None) };
    let mut page = Page { from, count_max, start: None, entries: Vec::new() };
    let mut fault = None;
    rows.scan(LAYOUT, &start_key, Some(&end), &mut |row_key, value| {
        match decode::<Vec<BlockEntry>>(LAYOUT, row_key, value) {
            Ok(entries) => page.take(first_byte_of(row_key), &entries),
            Err(error) => fault = Some(error),
        }
        let is_done = fault.is_some() || page.entries.len() >= count_max;
        if is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    fault.map_or(Ok(page.found()), Err)
}

/// First byte in a `layout` row's key.
pub(crate) fn first_byte_of(row_key: &[u8]) -> u64 {
    row_key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

struct Page {
    from: u64,
    count_max: usize,
    start: Option<u64>,
    entries: Vec<BlockEntry>,
}

impl Page {
    fn take(&mut self, mut at: u64, entries: &[BlockEntry]) {
        for entry in entries {
            let next = at + entry.length;
            if next > self.from && self.entries.len() < self.count_max {
                self.start.get_or_insert(at);
                self.entries.push(*entry);
            }
            at = next;
        }
    }

    fn found(self) -> Option<(u64, Vec<BlockEntry>)> {
        self.start.map(|start| (start, self.entries))
    }
}

/// A version's whole block list, if it has at most `count_max` entries.
pub(crate) fn whole(
    rows: &impl Rows,
    write_id: WriteId,
    data: &Data,
    count_max: usize,
) -> Result<Option<Vec<BlockEntry>>, StoreError> {
    match data {
        Data::Empty => Ok(Some(Vec::new())),
        Data::Layout { entries } if *entries as usize > count_max => Ok(None),
        Data::Inline(_) => Ok(None),
        data => Ok(Some(page(rows, write_id, data, 0, count_max)?.map_or_else(Vec::new, |(_, list)| list))),
    }
}
