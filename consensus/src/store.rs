//! Rows: tables of byte keys and byte values over redb, with a checksum a row and a hash over all rows.
//!
//! A state machine sees [`Rows`] for reading and [`WriteBatch`] for writing and never redb itself. The wrapper keeps
//! two promises that redb does not:
//!
//! ```text
//! stored value:  +-----------------------------+---------------+
//!                | crc32c(row), 4 bytes LE     | value         |
//!                +-----------------------------+---------------+
//! row:           table name | 0x00 | row key length, u32 LE | row key | value
//! ```
//!
//! redb does not verify page checksums on reads, so a flipped bit would be served as data; here it is
//! [`StoreError::Corrupt`] for that row and others stay readable. The *state hash* is the sum mod 2^128 of xxh3-128
//! over the same bytes of every row: it does not depend on the order of writes, so it is kept up with two hashes per
//! write, and equal hashes on two replicas mean equal rows.
//!
//! Invariants:
//! * A row is written or replaced only if what it replaces was readable; otherwise the hash could not be kept.
//! * [`WriteBatch::rollback_entry`] leaves rows and hash as they were at [`WriteBatch::begin_entry`].
//!
//! Not here: when a batch becomes durable (see `state`), what the rows mean (the state machine).

use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, OnceLock};

use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use xxhash_rust::xxh3::xxh3_128;

use crate::error::StoreError;
use crate::state::{Progress, StateDb};

/// Bytes in front of each stored value: the row's CRC32C.
const CRC_SIZE: usize = 4;

type Bounds<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);
type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type OpenTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;
type OpenReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A named table of byte keys and byte values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    index: usize,
    name: &'static str,
}

impl Table {
    /// A table by its position in [`StateMachine::TABLES`](crate::StateMachine::TABLES) and its name, which is a
    /// format: it never changes.
    pub const fn new(index: usize, name: &'static str) -> Table {
        Table { index, name }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its position in the list of tables.
    pub const fn index(&self) -> usize {
        self.index
    }

    fn definition(&self) -> Definition {
        TableDefinition::new(self.name)
    }

    fn corrupt(&self, row_key: &[u8]) -> StoreError {
        StoreError::Corrupt { table: self.name, row_key: row_key.to_vec() }
    }
}

/// A row with bytes of its own: (row key, value).
pub type Row = (Vec<u8>, Vec<u8>);

/// What a scan calls for each row: (row key, value).
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Reading rows, in a batch or in a view.
pub trait Rows {
    /// The value of one row.
    ///
    /// # Errors
    /// If the row is corrupt or the file fails.
    fn get(&self, table: Table, row_key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Calls `visit` for the rows in `[from, to)`, ascending, until it breaks. `to` of `None` is the table's end.
    ///
    /// # Errors
    /// If a row in between is corrupt or the file fails.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError>;

    /// The same, descending.
    ///
    /// # Errors
    /// If a row in between is corrupt or the file fails.
    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError>;

    /// Whether the row exists.
    ///
    /// # Errors
    /// If the row is corrupt or the file fails.
    fn contains(&self, table: Table, row_key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(table, row_key)?.is_some())
    }

    /// The first row at or after `from` and before `to`.
    ///
    /// # Errors
    /// If that row is corrupt or the file fails.
    fn seek(&self, table: Table, from: &[u8], to: Option<&[u8]>) -> Result<Option<Row>, StoreError> {
        let mut found = None;
        self.scan(table, from, to, &mut |row_key, value| {
            found = Some((row_key.to_vec(), value.to_vec()));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// The last row before `to` and at or after `from`.
    ///
    /// # Errors
    /// If that row is corrupt or the file fails.
    fn seek_back(&self, table: Table, from: &[u8], to: Option<&[u8]>) -> Result<Option<Row>, StoreError> {
        let mut found = None;
        self.scan_back(table, from, to, &mut |row_key, value| {
            found = Some((row_key.to_vec(), value.to_vec()));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

/// One write transaction of an apply batch. Reads see its own writes.
pub struct WriteBatch<'t> {
    txn: &'t redb::WriteTransaction,
    declared: &'static [Table],
    /// Opened at first use: most batches touch a few tables.
    open: Vec<OnceCell<OpenTable<'t>>>,
    /// The state hash with this batch's writes.
    state_hash: u128,
    /// Rows put or deleted in this batch: checkpoints are paced by it.
    written: u64,
    scratch: Vec<u8>,
    undo: Vec<Undo>,
    undo_hash: u128,
}

/// What a write of the current entry replaced.
struct Undo {
    table: Table,
    row_key: Vec<u8>,
    /// The stored bytes, checksum included; `None` where there was no row.
    stored: Option<Vec<u8>>,
}

impl<'t> WriteBatch<'t> {
    pub(crate) fn new(txn: &'t redb::WriteTransaction, declared: &'static [Table], state_hash: u128) -> Self {
        let open = declared.iter().map(|_| OnceCell::new()).collect();
        WriteBatch {
            txn,
            declared,
            open,
            state_hash,
            written: 0,
            scratch: Vec::new(),
            undo: Vec::new(),
            undo_hash: state_hash,
        }
    }

    /// Writes or replaces a row.
    ///
    /// # Errors
    /// If the row it replaces is corrupt (nothing is changed then) or the file fails.
    pub fn put(&mut self, table: Table, row_key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        // The stored value is laid out behind the row bytes, so that one buffer serves hash, CRC and redb.
        row_bytes(&mut scratch, table.name, row_key, value);
        let row_size = scratch.len();
        let crc = crc_fast::crc32_iscsi(&scratch);
        let hash = xxh3_128(&scratch);
        scratch.extend_from_slice(&crc.to_le_bytes());
        scratch.extend_from_slice(value);
        let replaced =
            self.opened(table)?.insert(row_key, &scratch[row_size..])?.map(|guard| guard.value().to_vec());
        let outcome = self.account_replaced(table, row_key, replaced, &mut scratch);
        self.scratch = scratch;
        outcome?;
        self.state_hash = self.state_hash.wrapping_add(hash);
        Ok(())
    }

    /// Deletes a row; answers whether there was one.
    ///
    /// # Errors
    /// If the row is corrupt (it stays then) or the file fails.
    pub fn delete(&mut self, table: Table, row_key: &[u8]) -> Result<bool, StoreError> {
        let removed = match self.opened(table)?.remove(row_key)? {
            Some(guard) => guard.value().to_vec(),
            None => return Ok(false),
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        let outcome = self.account_replaced(table, row_key, Some(removed), &mut scratch);
        self.scratch = scratch;
        outcome.map(|()| true)
    }

    /// Starts an entry: what is written from here on can be taken back together.
    pub fn begin_entry(&mut self) {
        self.undo.clear();
        self.undo_hash = self.state_hash;
    }

    /// Takes back every write since [`WriteBatch::begin_entry`].
    ///
    /// # Errors
    /// If the file fails.
    pub fn rollback_entry(&mut self) -> Result<(), StoreError> {
        while let Some(undo) = self.undo.pop() {
            self.restore(undo)?;
        }
        self.state_hash = self.undo_hash;
        Ok(())
    }

    /// The hash over all rows, with this batch's writes.
    pub fn state_hash(&self) -> u128 {
        self.state_hash
    }

    /// Rows put or deleted in this batch.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the replaced row out of the hash and remembers it for a rollback. Puts it back if it is corrupt.
    fn account_replaced(
        &mut self,
        table: Table,
        row_key: &[u8],
        stored: Option<Vec<u8>>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        let row_key = row_key.to_vec();
        if let Some(bytes) = &stored {
            let intact = bytes.split_at_checked(CRC_SIZE).filter(|(crc, value)| {
                row_bytes(scratch, table.name, &row_key, value);
                crc_fast::crc32_iscsi(scratch).to_le_bytes() == *crc
            });
            if intact.is_none() {
                let error = table.corrupt(&row_key);
                self.restore(Undo { table, row_key, stored })?;
                return Err(error);
            }
            self.state_hash = self.state_hash.wrapping_sub(xxh3_128(scratch));
        }
        self.undo.push(Undo { table, row_key, stored });
        self.written += 1;
        Ok(())
    }

    fn restore(&mut self, undo: Undo) -> Result<(), StoreError> {
        let table = self.opened(undo.table)?;
        match &undo.stored {
            Some(bytes) => table.insert(undo.row_key.as_slice(), bytes.as_slice())?,
            None => table.remove(undo.row_key.as_slice())?,
        };
        Ok(())
    }

    fn opened(&mut self, table: Table) -> Result<&mut OpenTable<'t>, StoreError> {
        self.open_at(table)?;
        Ok(self.open[table.index].get_mut().expect("open_at has just filled the cell"))
    }

    fn open_at(&self, table: Table) -> Result<&OpenTable<'t>, StoreError> {
        assert_eq!(
            self.declared.get(table.index),
            Some(&table),
            "table {} is not declared at its index",
            table.name
        );
        let cell = &self.open[table.index];
        if cell.get().is_none() {
            let opened = self.txn.open_table(table.definition())?;
            assert!(cell.set(opened).is_ok(), "a batch belongs to one thread");
        }
        Ok(cell.get().expect("filled above"))
    }
}

impl Rows for WriteBatch<'_> {
    fn get(&self, table: Table, row_key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get_row(self.open_at(table)?, table, row_key)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        scan_rows(self.open_at(table)?, table, from, to, visit)
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        scan_rows_back(self.open_at(table)?, table, from, to, visit)
    }
}

/// One read transaction: the rows as they were after some batch, for as long as it is held. Keep it for seconds, not
/// for minutes: the pages it can see are not reused meanwhile.
pub struct ReadView {
    // Before the database it reads from: fields are dropped in order.
    open: Vec<OnceLock<Option<OpenReadTable>>>,
    txn: redb::ReadTransaction,
    /// Kept open for the view; None of a store in memory.
    _db: Option<Arc<StateDb>>,
    declared: &'static [Table],
    applied_index: OnceLock<u64>,
}

impl ReadView {
    pub(crate) fn new(
        txn: redb::ReadTransaction,
        declared: &'static [Table],
        db: Option<Arc<StateDb>>,
    ) -> Self {
        let open = declared.iter().map(|_| OnceLock::new()).collect();
        ReadView { open, txn, _db: db, declared, applied_index: OnceLock::new() }
    }

    /// The last entry whose rows it shows; 0 of a store that no log feeds. A reader's witness of when it read.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn applied_index(&self) -> Result<u64, StoreError> {
        if let Some(applied_index) = self.applied_index.get() {
            return Ok(*applied_index);
        }
        let applied_index = crate::state::applied_index_of(&self.txn)?;
        Ok(*self.applied_index.get_or_init(|| applied_index))
    }

    /// How far its rows have come.
    pub(crate) fn progress(&self) -> Result<Progress, StoreError> {
        crate::state::read_progress(&self.txn)
    }

    /// The open table, or `None` if nothing was ever written to it.
    fn open_at(&self, table: Table) -> Result<Option<&OpenReadTable>, StoreError> {
        assert_eq!(
            self.declared.get(table.index),
            Some(&table),
            "table {} is not declared at its index",
            table.name
        );
        let cell = &self.open[table.index];
        if let Some(opened) = cell.get() {
            return Ok(opened.as_ref());
        }
        let opened = match self.txn.open_table(table.definition()) {
            Ok(opened) => Some(opened),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        // Two readers may race to open it; both opened the same tree.
        Ok(cell.get_or_init(|| opened).as_ref())
    }
}

impl Rows for ReadView {
    fn get(&self, table: Table, row_key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.open_at(table)? {
            Some(opened) => get_row(opened, table, row_key),
            None => Ok(None),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        match self.open_at(table)? {
            Some(opened) => scan_rows(opened, table, from, to, visit),
            None => Ok(()),
        }
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        match self.open_at(table)? {
            Some(opened) => scan_rows_back(opened, table, from, to, visit),
            None => Ok(()),
        }
    }
}

/// A store in memory for tests of state machines: rows as in production, no raft, no file.
pub struct MemoryStore {
    db: redb::Database,
    tables: &'static [Table],
    state_hash: u128,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(tables: &'static [Table]) -> Self {
        check_tables(tables);
        let db = redb::Database::builder()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .expect("memory takes a new database");
        MemoryStore { db, tables, state_hash: 0 }
    }

    /// Runs `f` in one batch and commits it.
    pub fn write<R>(&mut self, f: impl FnOnce(&mut WriteBatch<'_>) -> R) -> R {
        let mut txn = self.db.begin_write().expect("memory does not fail");
        txn.set_durability(redb::Durability::None).expect("no savepoint was made");
        let mut batch = WriteBatch::new(&txn, self.tables, self.state_hash);
        let outcome = f(&mut batch);
        self.state_hash = batch.state_hash;
        drop(batch);
        txn.commit().expect("memory does not fail");
        outcome
    }

    /// The rows as they are now.
    pub fn view(&self) -> ReadView {
        ReadView::new(self.db.begin_read().expect("memory does not fail"), self.tables, None)
    }

    /// The hash over all rows.
    pub fn state_hash(&self) -> u128 {
        self.state_hash
    }

    /// Overwrites a row's stored bytes without fixing its checksum, as rot would: for tests of corrupt rows.
    pub fn corrupt_row(&mut self, table: Table, row_key: &[u8]) {
        let txn = self.db.begin_write().expect("memory does not fail");
        {
            let mut opened = txn.open_table(table.definition()).expect("memory does not fail");
            let mut stored = match opened.get(row_key).expect("memory does not fail") {
                Some(guard) => guard.value().to_vec(),
                None => panic!("no such row in table {}", table.name),
            };
            *stored.last_mut().expect("a stored row has a checksum") ^= 1;
            opened.insert(row_key, stored.as_slice()).expect("memory does not fail");
        }
        txn.commit().expect("memory does not fail");
    }
}

/// Asserts that each table stands at the position it names.
pub(crate) fn check_tables(tables: &[Table]) {
    for (position, table) in tables.iter().enumerate() {
        assert_eq!(table.index, position, "table {} must stand at its index", table.name);
    }
}

/// The bytes that checksum and hash cover. The lengths make two different rows never give the same bytes.
fn row_bytes(out: &mut Vec<u8>, table: &str, row_key: &[u8], value: &[u8]) {
    out.clear();
    out.extend_from_slice(table.as_bytes());
    out.push(0);
    out.extend_from_slice(&(row_key.len() as u32).to_le_bytes());
    out.extend_from_slice(row_key);
    out.extend_from_slice(value);
}

/// What a row adds to the state hash.
pub(crate) fn row_hash(table: &str, row_key: &[u8], value: &[u8]) -> u128 {
    let mut scratch = Vec::new();
    row_bytes(&mut scratch, table, row_key, value);
    xxh3_128(&scratch)
}

/// The value as stored: its row's checksum in front.
pub(crate) fn seal_row(table: &str, row_key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut scratch = Vec::new();
    row_bytes(&mut scratch, table, row_key, value);
    let mut stored = crc_fast::crc32_iscsi(&scratch).to_le_bytes().to_vec();
    stored.extend_from_slice(value);
    stored
}

/// Takes the checksum off a stored value; `None` if it does not fit.
pub(crate) fn unseal_row<'v>(table: &str, row_key: &[u8], stored: &'v [u8]) -> Option<&'v [u8]> {
    let (crc, value) = stored.split_at_checked(CRC_SIZE)?;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(table.as_bytes());
    digest.update(&[0]);
    digest.update(&(row_key.len() as u32).to_le_bytes());
    digest.update(row_key);
    digest.update(value);
    ((digest.finalize() as u32).to_le_bytes() == *crc).then_some(value)
}

fn checked<'v>(table: Table, row_key: &[u8], stored: &'v [u8]) -> Result<&'v [u8], StoreError> {
    unseal_row(table.name, row_key, stored).ok_or_else(|| table.corrupt(row_key))
}

fn get_row(
    opened: &impl ReadableTable<&'static [u8], &'static [u8]>,
    table: Table,
    row_key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    match opened.get(row_key)? {
        Some(guard) => Ok(Some(checked(table, row_key, guard.value())?.to_vec())),
        None => Ok(None),
    }
}

/// `[from, to)` as redb wants it, or `None` if it is empty: redb is not to see a reversed range.
fn bounds<'k>(from: &'k [u8], to: Option<&'k [u8]>) -> Option<Bounds<'k>> {
    match to {
        Some(to) if to <= from => None,
        Some(to) => Some((Bound::Included(from), Bound::Excluded(to))),
        None => Some((Bound::Included(from), Bound::Unbounded)),
    }
}

fn scan_rows(
    opened: &impl ReadableTable<&'static [u8], &'static [u8]>,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let Some(range) = bounds(from, to) else { return Ok(()) };
    for row in opened.range::<&[u8]>(range)? {
        let (row_key, stored) = row?;
        if visit(row_key.value(), checked(table, row_key.value(), stored.value())?).is_break() {
            break;
        }
    }
    Ok(())
}

fn scan_rows_back(
    opened: &impl ReadableTable<&'static [u8], &'static [u8]>,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let Some(range) = bounds(from, to) else { return Ok(()) };
    for row in opened.range::<&[u8]>(range)?.rev() {
        let (row_key, stored) = row?;
        if visit(row_key.value(), checked(table, row_key.value(), stored.value())?).is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRUIT: Table = Table::new(0, "fruit");
    const COLOUR: Table = Table::new(1, "colour");
    const TABLES: &[Table] = &[FRUIT, COLOUR];

    fn filled() -> MemoryStore {
        let mut store = MemoryStore::new(TABLES);
        store.write(|batch| {
            for (row_key, value) in [("apple", "green"), ("banana", "yellow"), ("cherry", "red")] {
                batch.put(FRUIT, row_key.as_bytes(), value.as_bytes()).unwrap();
            }
        });
        store
    }

    fn scanned(rows: &impl Rows, from: &[u8], to: Option<&[u8]>) -> Vec<String> {
        let mut found = Vec::new();
        let mut visit = |row_key: &[u8], _: &[u8]| {
            found.push(String::from_utf8(row_key.to_vec()).unwrap());
            ControlFlow::Continue(())
        };
        rows.scan(FRUIT, from, to, &mut visit).unwrap();
        found
    }

    #[test]
    fn rows_are_read_back_in_order() {
        let store = filled();
        let view = store.view();
        assert_eq!(view.get(FRUIT, b"banana").unwrap().unwrap(), b"yellow");
        assert_eq!(view.get(FRUIT, b"durian").unwrap(), None);
        assert_eq!(view.get(COLOUR, b"apple").unwrap(), None);
        assert_eq!(scanned(&view, b"", None), ["apple", "banana", "cherry"]);
        assert_eq!(scanned(&view, b"b", Some(b"cherry")), ["banana"]);
        assert!(scanned(&view, b"c", Some(b"b")).is_empty());
        assert_eq!(view.seek_back(FRUIT, b"", Some(b"cherry")).unwrap().unwrap().0, b"banana");
        assert_eq!(view.seek(FRUIT, b"bb", None).unwrap().unwrap().0, b"cherry");
    }

    #[test]
    fn a_view_does_not_move() {
        let mut store = filled();
        let before = store.view();
        store.write(|batch| assert!(batch.delete(FRUIT, b"apple").unwrap()));
        assert!(before.contains(FRUIT, b"apple").unwrap());
        assert!(!store.view().contains(FRUIT, b"apple").unwrap());
    }

    #[test]
    fn state_hash_depends_on_rows_alone() {
        let mut other = MemoryStore::new(TABLES);
        other.write(|batch| {
            batch.put(FRUIT, b"cherry", b"black").unwrap();
            batch.put(COLOUR, b"x", b"y").unwrap();
            batch.put(FRUIT, b"cherry", b"red").unwrap();
        });
        other.write(|batch| {
            batch.put(FRUIT, b"banana", b"yellow").unwrap();
            batch.delete(COLOUR, b"x").unwrap();
            assert!(!batch.delete(COLOUR, b"z").unwrap());
            batch.put(FRUIT, b"apple", b"green").unwrap();
        });
        assert_eq!(other.state_hash(), filled().state_hash());
        other.write(|batch| batch.put(COLOUR, b"apple", b"green").unwrap());
        assert_ne!(other.state_hash(), filled().state_hash());
    }

    #[test]
    fn rollback_leaves_an_entry_without_trace() {
        let mut store = filled();
        store.write(|batch| {
            batch.begin_entry();
            batch.put(FRUIT, b"apple", b"red").unwrap();
            batch.begin_entry();
            batch.put(FRUIT, b"apple", b"blue").unwrap();
            batch.put(FRUIT, b"durian", b"brown").unwrap();
            batch.delete(FRUIT, b"cherry").unwrap();
            batch.delete(FRUIT, b"apple").unwrap();
            batch.rollback_entry().unwrap();
        });
        let mut expected = filled();
        expected.write(|batch| batch.put(FRUIT, b"apple", b"red").unwrap());
        assert_eq!(scanned(&store.view(), b"", None), ["apple", "banana", "cherry"]);
        assert_eq!(store.view().get(FRUIT, b"apple").unwrap().unwrap(), b"red");
        assert_eq!(store.state_hash(), expected.state_hash());
    }

    #[test]
    fn a_corrupt_row_fails_alone() {
        let mut store = filled();
        let state_hash = store.state_hash();
        store.corrupt_row(FRUIT, b"banana");
        let view = store.view();
        assert!(matches!(view.get(FRUIT, b"banana"), Err(StoreError::Corrupt { table: "fruit", .. })));
        assert_eq!(view.get(FRUIT, b"apple").unwrap().unwrap(), b"green");
        assert_eq!(view.get(FRUIT, b"cherry").unwrap().unwrap(), b"red");
        let refused = view.scan(FRUIT, b"", None, &mut |_, _| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(StoreError::Corrupt { .. })));
        store.write(|batch| {
            assert!(matches!(batch.put(FRUIT, b"banana", b"x"), Err(StoreError::Corrupt { .. })));
            assert!(matches!(batch.delete(FRUIT, b"banana"), Err(StoreError::Corrupt { .. })));
        });
        assert!(matches!(store.view().get(FRUIT, b"banana"), Err(StoreError::Corrupt { .. })));
        assert_eq!(store.state_hash(), state_hash);
    }

    /// The bytes of a stored row are a format: a change here needs a new format version.
    #[test]
    fn stored_row_bytes_are_as_documented() {
        let store = filled();
        let txn = store.db.begin_read().unwrap();
        let opened = txn.open_table(FRUIT.definition()).unwrap();
        let stored = opened.get(b"apple".as_slice()).unwrap().unwrap().value().to_vec();
        let crc = crc_fast::crc32_iscsi(b"fruit\0\x05\0\0\0applegreen");
        assert_eq!(stored[..4], crc.to_le_bytes());
        assert_eq!(&stored[4..], b"green");
    }
}
