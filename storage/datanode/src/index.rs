//! The index of a disk: where each block lies, what each container is up to, and which deletions are under way.
//!
//! redb holds it. Rows of blocks go in by non-durable commits off the write path, and become durable at checkpoints: a
//! crash loses the newest, and `recovery` finds their extents in the files again. Deletion intents and tombstones are
//! durable commits of their own, since no file tells of them. Every durable commit asks for quick repair, or the next
//! crash would cost a walk of the whole file.
//!
//! An error of the disk under redb is told from damage by asking the file: redb mixes the two.
//!
//! Rows carry a CRC over key and value (redb does not check pages on reads). A block row is fixed: offset, extent size,
//! length, digest, CRC. A container row is MessagePack, so that later fields may be appended.
//!
//! Invariants:
//! * A block's row names an extent whose bytes were synced before.
//! * Everything below a container's `checkpoint_end` is in the index or of no meaning.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use wire::block::Replication;
use wire::chunk::BlockDigest;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, Generation, LocalId};

use platform::disk::BlockFile;

const BLOCK: TableDefinition<'static, (u64, u64), &[u8]> = TableDefinition::new("block");
const CONTAINER: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("container");
const INTENT: TableDefinition<'static, (u64, u64), &[u8]> = TableDefinition::new("intent");
const DELETED: TableDefinition<'static, (u64, u64), ()> = TableDefinition::new("deleted");
const SUSPECT: TableDefinition<'static, (u64, u64), &[u8]> = TableDefinition::new("suspect");
const TOMBSTONE: TableDefinition<'static, u64, (u64, u64)> = TableDefinition::new("tombstone");

/// Where a block lies in its container file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, a multiple of the page size.
    pub offset: u64,
    /// Bytes of the whole extent.
    pub size: u64,
    /// Bytes of data.
    pub length: u64,
    /// The block's digest.
    pub digest: BlockDigest,
}

/// A container as the index keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerRow {
    /// The replica's life.
    pub(crate) generation: Generation,
    /// Its replication type.
    pub(crate) replication: Replication,
    /// Where the next extent would begin.
    pub(crate) next_offset: u64,
    /// All below is accounted for by the index.
    pub(crate) checkpoint_end: u64,
    /// Zero-filled up to here.
    pub(crate) zeroed_end: u64,
    /// Takes no more blocks.
    pub(crate) is_sealed: bool,
    /// Damage was found.
    pub(crate) is_unhealthy: bool,
    /// Pages that are neither zero nor part of a known extent.
    pub(crate) suspect_pages: u64,
    /// Bytes of live blocks.
    pub(crate) used_bytes: u64,
    /// Live blocks.
    pub(crate) block_count: u64,
    /// The last deletion transaction that is durable.
    pub(crate) deletion_done: u64,
}

/// The index failed. The text is for logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IndexError {
    /// The disk failed under it.
    #[error("{reason}")]
    Io {
        /// What the disk said.
        reason: String,
        /// There is no room.
        is_full: bool,
    },
    /// redb failed on bytes that could be read: damage.
    #[error("{0}")]
    Redb(String),
    /// A row's CRC does not fit.
    #[error("a row of table {0} is corrupt")]
    Corrupt(&'static str),
}

fn fail<E: Into<redb::Error>>(error: E) -> IndexError {
    IndexError::Redb(error.into().to_string())
}

/// The open index of a disk.
pub(crate) struct Index {
    database: Database,
    trouble: Arc<Trouble>,
}

/// The first error of the index's file.
type Trouble = Mutex<Option<(String, bool)>>;

/// What an error of redb means: the disk's if the file has had one.
fn with_trouble(trouble: &Trouble, error: IndexError) -> IndexError {
    match (&*trouble.lock(), error) {
        (Some((reason, is_full)), IndexError::Redb(_)) => {
            IndexError::Io { reason: reason.clone(), is_full: *is_full }
        }
        (_, error) => error,
    }
}

/// Changes that commit together.
#[derive(Default)]
pub(crate) struct IndexBatch {
    /// Containers whose rows go first of all: they describe another file than the one that is here.
    pub(crate) purge: Vec<ContainerId>,
    /// Blocks that are durable now.
    pub(crate) put_blocks: Vec<(ContainerId, LocalId, Extent)>,
    /// Blocks that are no more.
    pub(crate) remove_blocks: Vec<(ContainerId, LocalId)>,
    /// Containers that changed.
    pub(crate) put_containers: Vec<(ContainerId, ContainerRow)>,
    /// Extents to punch.
    pub(crate) put_intents: Vec<(ContainerId, LocalId, Extent)>,
    /// Extents that are punched, by their place.
    pub(crate) remove_intents: Vec<(ContainerId, u64)>,
    /// Extents that are no whole block, but whose header can be read.
    pub(crate) put_suspects: Vec<(ContainerId, LocalId, Extent)>,
    /// Suspects that are to be punched, by their place.
    pub(crate) remove_suspects: Vec<(ContainerId, u64)>,
    /// Ids that no write may take any more.
    pub(crate) put_deleted: Vec<(ContainerId, LocalId)>,
    /// A container that is sealed and bars no single ids any more.
    pub(crate) clear_deleted: Option<ContainerId>,
    /// A replica that is dropped: all its rows go, the tombstone stays.
    pub(crate) drop_container: Option<(ContainerId, Generation, UnixMs)>,
    /// Tombstones that no token is old enough for.
    pub(crate) remove_tombstones: Vec<ContainerId>,
}

impl Index {
    /// Opens or makes the index in `file`. [`IndexError::Redb`] means that the file is damaged.
    pub(crate) fn open(file: Arc<dyn BlockFile>, cache_bytes: usize) -> Result<Self, IndexError> {
        let trouble = Arc::new(Trouble::default());
        let backend = Backend { file, trouble: trouble.clone() };
        let opened = Self::open_backend(backend, cache_bytes, trouble.clone());
        opened.map_err(|error| with_trouble(&trouble, error))
    }

    fn open_backend(backend: Backend, cache_bytes: usize, trouble: Arc<Trouble>) -> Result<Self, IndexError> {
        let builder = Database::builder().set_cache_size(cache_bytes).create_with_backend(backend);
        let index = Self { database: builder.map_err(fail)?, trouble };
        let txn = index.begin(true)?;
        txn.open_table(BLOCK).map_err(fail)?;
        txn.open_table(CONTAINER).map_err(fail)?;
        txn.open_table(INTENT).map_err(fail)?;
        txn.open_table(DELETED).map_err(fail)?;
        txn.open_table(SUSPECT).map_err(fail)?;
        txn.open_table(TOMBSTONE).map_err(fail)?;
        txn.commit().map_err(fail)?;
        Ok(index)
    }

    fn begin(&self, is_durable: bool) -> Result<WriteTransaction, IndexError> {
        let mut txn = self.database.begin_write().map_err(fail)?;
        if is_durable {
            txn.set_quick_repair(true);
        } else {
            txn.set_durability(Durability::None).map_err(fail)?;
        }
        Ok(txn)
    }

    /// Commits `batch`; durable if asked.
    pub(crate) fn commit(&self, batch: &IndexBatch, is_durable: bool) -> Result<(), IndexError> {
        self.commit_batch(batch, is_durable).map_err(|error| with_trouble(&self.trouble, error))
    }

    fn commit_batch(&self, batch: &IndexBatch, is_durable: bool) -> Result<(), IndexError> {
        let txn = self.begin(is_durable)?;
        for container in &batch.purge {
            remove_rows(&txn, *container)?;
        }
        {
            let mut blocks = txn.open_table(BLOCK).map_err(fail)?;
            for (container, local, extent) in &batch.put_blocks {
                let row = encode_extent(*container, *local, extent);
                blocks.insert((container.0, local.0), row.as_slice()).map_err(fail)?;
            }
            for (container, local) in &batch.remove_blocks {
                blocks.remove((container.0, local.0)).map_err(fail)?;
            }
            let mut containers = txn.open_table(CONTAINER).map_err(fail)?;
            for (container, row) in &batch.put_containers {
                containers.insert(container.0, encode_container(*container, row).as_slice()).map_err(fail)?;
            }
            let mut intents = txn.open_table(INTENT).map_err(fail)?;
            for (container, local, extent) in &batch.put_intents {
                let row = encode_placed(*container, *local, extent);
                intents.insert((container.0, extent.offset), row.as_slice()).map_err(fail)?;
            }
            for (container, offset) in &batch.remove_intents {
                intents.remove((container.0, *offset)).map_err(fail)?;
            }
            let mut suspects = txn.open_table(SUSPECT).map_err(fail)?;
            for (container, local, extent) in &batch.put_suspects {
                let row = encode_placed(*container, *local, extent);
                suspects.insert((container.0, extent.offset), row.as_slice()).map_err(fail)?;
            }
            for (container, offset) in &batch.remove_suspects {
                suspects.remove((container.0, *offset)).map_err(fail)?;
            }
            let mut deleted = txn.open_table(DELETED).map_err(fail)?;
            for (container, local) in &batch.put_deleted {
                deleted.insert((container.0, local.0), ()).map_err(fail)?;
            }
            if let Some(container) = batch.clear_deleted {
                let all = (container.0, 0)..=(container.0, u64::MAX);
                deleted.retain_in(all, |_, ()| false).map_err(fail)?;
            }
            let mut tombstones = txn.open_table(TOMBSTONE).map_err(fail)?;
            for container in &batch.remove_tombstones {
                tombstones.remove(container.0).map_err(fail)?;
            }
        }
        if let Some((container, generation, now_ms)) = batch.drop_container {
            remove_rows(&txn, container)?;
            let mut tombstones = txn.open_table(TOMBSTONE).map_err(fail)?;
            tombstones.insert(container.0, (generation.0, now_ms)).map_err(fail)?;
        }
        txn.commit().map_err(fail)
    }

    /// Where a block lies.
    pub(crate) fn block(&self, container: ContainerId, local: LocalId) -> Result<Option<Extent>, IndexError> {
        self.look_up(container, local).map_err(|error| with_trouble(&self.trouble, error))
    }

    fn look_up(&self, container: ContainerId, local: LocalId) -> Result<Option<Extent>, IndexError> {
        let txn = self.database.begin_read().map_err(fail)?;
        let table = txn.open_table(BLOCK).map_err(fail)?;
        let Some(row) = table.get((container.0, local.0)).map_err(fail)? else { return Ok(None) };
        decode_extent(container, local, row.value()).map(Some).ok_or(IndexError::Corrupt("block"))
    }

    /// Visits all blocks of a container. A row that is corrupt is left out; answers how many there are.
    pub(crate) fn visit_blocks(
        &self,
        container: ContainerId,
        mut visit: impl FnMut(LocalId, Extent),
    ) -> Result<u64, IndexError> {
        self.visit(BLOCK, container, |row_key, value| {
            let local = LocalId(row_key);
            decode_extent(container, local, value).map(|extent| visit(local, extent)).is_some()
        })
    }

    /// All open deletion intents of a container.
    pub(crate) fn intents_of(&self, container: ContainerId) -> Result<Vec<(LocalId, Extent)>, IndexError> {
        self.placed_of(INTENT, container)
    }

    /// All suspects of a container whose header can be read.
    pub(crate) fn suspects_of(&self, container: ContainerId) -> Result<Vec<(LocalId, Extent)>, IndexError> {
        self.placed_of(SUSPECT, container)
    }

    fn placed_of(
        &self,
        table: TableDefinition<'static, (u64, u64), &'static [u8]>,
        container: ContainerId,
    ) -> Result<Vec<(LocalId, Extent)>, IndexError> {
        let mut found = Vec::new();
        self.visit(table, container, |_, value| {
            let placed = decode_placed(container, value);
            placed.map(|placed| found.push(placed)).is_some()
        })?;
        Ok(found)
    }

    /// Visits the rows of a container; `visit` says whether a row is right. Answers how many are not.
    fn visit(
        &self,
        table: TableDefinition<'static, (u64, u64), &'static [u8]>,
        container: ContainerId,
        mut visit: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<u64, IndexError> {
        let mut walk = || {
            let txn = self.database.begin_read().map_err(fail)?;
            let table = txn.open_table(table).map_err(fail)?;
            let mut corrupt = 0;
            for row in table.range((container.0, 0)..=(container.0, u64::MAX)).map_err(fail)? {
                let (row_key, value) = row.map_err(fail)?;
                corrupt += u64::from(!visit(row_key.value().1, value.value()));
            }
            Ok(corrupt)
        };
        walk().map_err(|error| with_trouble(&self.trouble, error))
    }

    /// All containers that have a row, with its generation if the row is right.
    pub(crate) fn containers(&self) -> Result<Vec<(ContainerId, Option<ContainerRow>)>, IndexError> {
        let txn = self.database.begin_read().map_err(fail)?;
        let table = txn.open_table(CONTAINER).map_err(fail)?;
        let mut found = Vec::new();
        for row in table.iter().map_err(fail)? {
            let (row_key, value) = row.map_err(fail)?;
            let container = ContainerId(row_key.value());
            found.push((container, decode_container(container, value.value())));
        }
        Ok(found)
    }

    /// Ids of a container that no write may take.
    pub(crate) fn deleted_of(&self, container: ContainerId) -> Result<Vec<LocalId>, IndexError> {
        let txn = self.database.begin_read().map_err(fail)?;
        let table = txn.open_table(DELETED).map_err(fail)?;
        let rows = table
            .range::<(u64, u64)>((
                Bound::Included((container.0, 0)),
                Bound::Included((container.0, u64::MAX)),
            ))
            .map_err(fail)?;
        rows.map(|row| Ok(LocalId(row.map_err(fail)?.0.value().1))).collect()
    }

    /// A container's row; an error if it is corrupt.
    pub(crate) fn container(&self, container: ContainerId) -> Result<Option<ContainerRow>, IndexError> {
        let txn = self.database.begin_read().map_err(fail)?;
        let table = txn.open_table(CONTAINER).map_err(fail)?;
        let Some(row) = table.get(container.0).map_err(fail)? else { return Ok(None) };
        decode_container(container, row.value()).map(Some).ok_or(IndexError::Corrupt("container"))
    }

    /// All tombstones: container, generation, when.
    pub(crate) fn tombstones(&self) -> Result<Vec<(ContainerId, Generation, UnixMs)>, IndexError> {
        let txn = self.database.begin_read().map_err(fail)?;
        let table = txn.open_table(TOMBSTONE).map_err(fail)?;
        let mut found = Vec::new();
        for row in table.iter().map_err(fail)? {
            let (container, value) = row.map_err(fail)?;
            let (generation, at_ms) = value.value();
            found.push((ContainerId(container.value()), Generation(generation), at_ms));
        }
        Ok(found)
    }
}

/// Takes away all that the index says of a container.
fn remove_rows(txn: &WriteTransaction, container: ContainerId) -> Result<(), IndexError> {
    for table in [BLOCK, INTENT, SUSPECT] {
        let mut rows = txn.open_table(table).map_err(fail)?;
        rows.retain_in((container.0, 0)..=(container.0, u64::MAX), |_, _| false).map_err(fail)?;
    }
    let mut deleted = txn.open_table(DELETED).map_err(fail)?;
    deleted.retain_in((container.0, 0)..=(container.0, u64::MAX), |_, ()| false).map_err(fail)?;
    txn.open_table(CONTAINER).map_err(fail)?.remove(container.0).map_err(fail)?;
    Ok(())
}

const EXTENT_ROW_BYTES: usize = 36;

fn extent_row_crc(container: ContainerId, local: LocalId, fields: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&container.0.to_le_bytes());
    digest.update(&local.0.to_le_bytes());
    digest.update(fields);
    digest.finalize() as u32
}

fn encode_extent(container: ContainerId, local: LocalId, extent: &Extent) -> [u8; EXTENT_ROW_BYTES] {
    let mut row = [0; EXTENT_ROW_BYTES];
    row[..8].copy_from_slice(&extent.offset.to_le_bytes());
    row[8..16].copy_from_slice(&extent.size.to_le_bytes());
    row[16..24].copy_from_slice(&extent.length.to_le_bytes());
    row[24..32].copy_from_slice(&extent.digest.0.to_le_bytes());
    let crc = extent_row_crc(container, local, &row[..32]);
    row[32..].copy_from_slice(&crc.to_le_bytes());
    row
}

fn decode_extent(container: ContainerId, local: LocalId, row: &[u8]) -> Option<Extent> {
    let row: &[u8; EXTENT_ROW_BYTES] = row.try_into().ok()?;
    let number = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes were sliced"));
    if row[32..] != extent_row_crc(container, local, &row[..32]).to_le_bytes() {
        return None;
    }
    Some(Extent { offset: number(0), size: number(8), length: number(16), digest: BlockDigest(number(24)) })
}

/// A row whose key is a place: the id, then as a block's row.
fn encode_placed(container: ContainerId, local: LocalId, extent: &Extent) -> Vec<u8> {
    let mut row = local.0.to_le_bytes().to_vec();
    row.extend_from_slice(&encode_extent(container, local, extent));
    row
}

fn decode_placed(container: ContainerId, row: &[u8]) -> Option<(LocalId, Extent)> {
    let (local, row) = row.split_first_chunk::<8>()?;
    let local = LocalId(u64::from_le_bytes(*local));
    decode_extent(container, local, row).map(|extent| (local, extent))
}

fn container_row_crc(container: ContainerId, fields: &[u8]) -> u32 {
    extent_row_crc(container, LocalId(u64::MAX), fields)
}

fn encode_container(container: ContainerId, row: &ContainerRow) -> Vec<u8> {
    let fields = rmp_serde::to_vec(row).expect("numbers and flags encode");
    let mut bytes = container_row_crc(container, &fields).to_le_bytes().to_vec();
    bytes.extend_from_slice(&fields);
    bytes
}

fn decode_container(container: ContainerId, bytes: &[u8]) -> Option<ContainerRow> {
    let (crc, fields) = bytes.split_first_chunk::<4>()?;
    if *crc != container_row_crc(container, fields).to_le_bytes() {
        return None;
    }
    rmp_serde::from_slice(fields).ok()
}

/// redb over a file of the disk. The disk's lock keeps others away.
#[derive(Debug)]
struct Backend {
    file: Arc<dyn BlockFile>,
    trouble: Arc<Trouble>,
}

impl Backend {
    fn noted<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &done {
            self.trouble.lock().get_or_insert_with(|| (error.to_string(), crate::error::is_full(error)));
        }
        done
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.file.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.noted(self.file.read_at(offset, out.len()))?;
        if bytes.len() < out.len() {
            // Too short: damage, not an error of the disk.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.noted(self.file.set_length(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.noted(self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.noted(self.file.write_at(offset, &[data]))
    }
}
