//! Snapshots: all rows at one applied index as a stream of bytes, and a stream made into a state file.
//!
//! ```text
//!  head    "FZSNAPSH" | version u32 | length u32 | MessagePack | crc32c u32
//!  stream  row*  end
//!  row     1 u8 | table u16 | row key length u32 | stored length u32 | row key | stored value (its CRC in front)
//!  end     2 u8 | rows u64 | state hash u128 | crc32c of the record u32
//! ```
//!
//! The stream may be cut into pieces anywhere. Rows carry the checksum they have in the state file, which covers the
//! table's name and the row key, and the end carries count and state hash: a receiver believes nothing else.
//!
//! The sender computes the hash again while it reads. Rows that do not give the hash kept beside them are a bad
//! database, which must never spread: [`SnapshotError::Unsound`] ends the sender.
//!
//! The receiver writes beside the state file, under another name; [`ReceivedSnapshot::install`] renames. Whatever
//! step a crash falls on, the old state or the whole new one is there, the new one with its `installed` mark.
//!
//! Invariants:
//! * Before the rename the new file is complete and durable.
//! * One receiver at a time ([`ReceiverSlot`]).
//!
//! Not here: when one is sent (see `driver::snapshots`), who sends it (see `incoming`), what the log does about it
//! (see `driver::install`).

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use platform::disk::OpenMode;
use raft::eraftpb::ConfState;
use redb::Durability;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::group::Member;

use super::{
    IDENTITY, Progress, STATE, STATE_NEW, StateConfig, StateDb, StateFile, identity_row, open_database,
    put_progress, put_row, view_of,
};
use crate::error::{OpenError, SnapshotError, StoreError};
use crate::store::{ReadView, Rows, Table, WriteBatch, row_hash, seal_row, unseal_row};

/// The version of the stream.
const SNAPSHOT_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"FZSNAPSH";

/// Bytes of a piece at most.
pub(crate) const SNAPSHOT_PIECE_BYTES: usize = 256 << 10;

/// Bytes of a head at most: names of tables and of members.
pub(crate) const SNAPSHOT_HEAD_BYTES_MAX: usize = 64 << 10;

/// A row's key and value together: a command has at most 1 MiB, and a row hardly more than a command.
const ROW_BYTES_MAX: usize = 4 << 20;

/// A view that is read keeps pages from reuse. It is given up when the state file has grown to so many times its size ...
const GROWTH_FACTOR_MAX: u64 = 2;

/// ... and by so much: a small file may double.
const GROWTH_BYTES_MIN: u64 = 64 << 20;

/// Rows and bytes the receiver writes in one transaction.
const TRANSACTION_ROWS: usize = 8192;
const TRANSACTION_BYTES: usize = 4 << 20;

const KIND_ROW: u8 = 1;
const KIND_END: u8 = 2;
const ROW_HEADER: usize = 11;
const END_SIZE: usize = 29;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SnapshotHead {
    pub(crate) cluster_id: Uuid,
    /// Names of the state machine's tables, by index.
    pub(crate) tables: Vec<String>,
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) state_hash: u128,
    pub(crate) conf_state: ConfState,
    pub(crate) members: Vec<Member>,
    /// Raft ids that will never be members again.
    pub(crate) former: Vec<u64>,
    /// Bytes of the sender's state file: about what the receiver needs.
    pub(crate) file_bytes: u64,
}

/// [`SnapshotHead`] as sent. Append fields with `#[serde(default)]`, never reorder.
#[derive(Serialize, Deserialize)]
struct HeadRow {
    cluster_id: Uuid,
    tables: Vec<String>,
    applied_index: u64,
    applied_term: u64,
    state_hash: (u64, u64),
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
    members: Vec<Member>,
    file_bytes: u64,
    former: Vec<u64>,
}

impl SnapshotHead {
    pub(crate) fn encode(&self) -> Bytes {
        let row = HeadRow {
            cluster_id: self.cluster_id,
            tables: self.tables.clone(),
            applied_index: self.applied_index,
            applied_term: self.applied_term,
            state_hash: ((self.state_hash >> 64) as u64, self.state_hash as u64),
            voters: self.conf_state.voters.clone(),
            learners: self.conf_state.learners.clone(),
            voters_outgoing: self.conf_state.voters_outgoing.clone(),
            learners_next: self.conf_state.learners_next.clone(),
            auto_leave: self.conf_state.auto_leave,
            members: self.members.clone(),
            file_bytes: self.file_bytes,
            former: self.former.clone(),
        };
        let body = rmp_serde::to_vec(&row).expect("numbers, lists and names encode");
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&body);
        out.extend_from_slice(&crc_fast::crc32_iscsi(&out).to_le_bytes());
        Bytes::from(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<SnapshotHead, SnapshotError> {
        let damaged = || SnapshotError::Damaged("its head is unreadable".to_owned());
        let (checked, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if bytes.len() > SNAPSHOT_HEAD_BYTES_MAX
            || checked.len() < 16
            || !checked.starts_with(MAGIC)
            || crc_fast::crc32_iscsi(checked).to_le_bytes() != *crc
        {
            return Err(damaged());
        }
        let format = u32::from_le_bytes(checked[8..12].try_into().expect("four bytes"));
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError::Format { found: format, known: SNAPSHOT_FORMAT });
        }
        let row: HeadRow = rmp_serde::from_slice(&checked[16..]).map_err(|_| damaged())?;
        Ok(SnapshotHead {
            cluster_id: row.cluster_id,
            tables: row.tables,
            applied_index: row.applied_index,
            applied_term: row.applied_term,
            state_hash: u128::from(row.state_hash.0) << 64 | u128::from(row.state_hash.1),
            conf_state: ConfState {
                voters: row.voters,
                learners: row.learners,
                voters_outgoing: row.voters_outgoing,
                learners_next: row.learners_next,
                auto_leave: row.auto_leave,
                ..ConfState::default()
            },
            members: row.members,
            former: row.former,
            file_bytes: row.file_bytes,
        })
    }

    fn progress(&self) -> Progress {
        Progress {
            applied_index: self.applied_index,
            applied_term: self.applied_term,
            state_hash: self.state_hash,
            conf_state: self.conf_state.clone(),
            installed: true,
            members: self.members.clone(),
            former: self.former.clone(),
        }
    }
}

/// Reads a snapshot out of a view. Blocking: pieces are read off the reactor.
pub(crate) struct SnapshotSource {
    view: ReadView,
    tables: &'static [Table],
    head: SnapshotHead,
    length: Arc<AtomicU64>,
    /// The table being read, and the row key to go on at.
    table: usize,
    from: Vec<u8>,
    rows: u64,
    state_hash: u128,
    /// Encoded and not handed out yet.
    ready: BytesMut,
    ended: bool,
}

impl SnapshotSource {
    /// A snapshot of the rows as they are now.
    pub(crate) fn new(
        db: &Arc<StateDb>,
        tables: &'static [Table],
        cluster_id: Uuid,
    ) -> Result<SnapshotSource, SnapshotError> {
        let view = view_of(db, tables)?;
        let progress = view.progress()?;
        let head = SnapshotHead {
            cluster_id,
            tables: tables.iter().map(|table| table.name().to_owned()).collect(),
            applied_index: progress.applied_index,
            applied_term: progress.applied_term,
            state_hash: progress.state_hash,
            conf_state: progress.conf_state,
            members: progress.members,
            former: progress.former,
            file_bytes: db.length().load(Ordering::Relaxed),
        };
        Ok(SnapshotSource {
            view,
            tables,
            head,
            length: Arc::clone(db.length()),
            table: 0,
            from: Vec::new(),
            rows: 0,
            state_hash: 0,
            ready: BytesMut::new(),
            ended: false,
        })
    }

    pub(crate) fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// The next piece, at most [`SNAPSHOT_PIECE_BYTES`] long; None after the last.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let before = self.head.file_bytes;
        let length = self.length.load(Ordering::Relaxed);
        if length > before * GROWTH_FACTOR_MAX && length > before + GROWTH_BYTES_MIN {
            return Err(SnapshotError::Outgrown { before, length });
        }
        while self.ready.len() < SNAPSHOT_PIECE_BYTES && !self.ended {
            match self.tables.get(self.table) {
                Some(table) => self.read_rows(*table)?,
                None => self.end()?,
            }
        }
        let count = self.ready.len().min(SNAPSHOT_PIECE_BYTES);
        Ok((count > 0).then(|| self.ready.split_to(count).freeze()))
    }

    fn read_rows(&mut self, table: Table) -> Result<(), SnapshotError> {
        let (ready, rows, hash) = (&mut self.ready, &mut self.rows, &mut self.state_hash);
        let mut stopped_at = None;
        self.view.scan(table, &self.from, None, &mut |row_key, value| {
            let stored = seal_row(table.name(), row_key, value);
            ready.extend_from_slice(&[KIND_ROW]);
            ready.extend_from_slice(&(table.index() as u16).to_le_bytes());
            ready.extend_from_slice(&(row_key.len() as u32).to_le_bytes());
            ready.extend_from_slice(&(stored.len() as u32).to_le_bytes());
            ready.extend_from_slice(row_key);
            ready.extend_from_slice(&stored);
            *rows += 1;
            *hash = hash.wrapping_add(row_hash(table.name(), row_key, value));
            if ready.len() < SNAPSHOT_PIECE_BYTES {
                return ControlFlow::Continue(());
            }
            stopped_at = Some(row_key.to_vec());
            ControlFlow::Break(())
        })?;
        match stopped_at {
            Some(mut row_key) => {
                row_key.push(0);
                self.from = row_key;
            }
            None => {
                self.table += 1;
                self.from.clear();
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), SnapshotError> {
        if self.state_hash != self.head.state_hash {
            return Err(SnapshotError::Unsound);
        }
        let mut end = vec![KIND_END];
        end.extend_from_slice(&self.rows.to_le_bytes());
        end.extend_from_slice(&self.state_hash.to_le_bytes());
        end.extend_from_slice(&crc_fast::crc32_iscsi(&end).to_le_bytes());
        self.ready.extend_from_slice(&end);
        self.ended = true;
        Ok(())
    }
}

/// The place of the one receiver a group has at a time. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReceiverSlot(Arc<AtomicBool>);

#[derive(Debug)]
struct Taken(ReceiverSlot);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// Takes a snapshot in. Blocking. Dropped before [`SnapshotReceiver::finish`], it leaves nothing.
pub(crate) struct SnapshotReceiver {
    file: NewFile,
    head: SnapshotHead,
    db: Arc<StateDb>,
    /// Bytes of a record that is not whole yet.
    partial: BytesMut,
    /// Rows not written yet: table, row key, value.
    waiting: Vec<(Table, Bytes, Vec<u8>)>,
    waiting_bytes: usize,
    rows: u64,
    state_hash: u128,
    /// Free space that is left to others.
    free_min: u64,
    ended: bool,
}

/// The file in the making, removed unless it is installed.
struct NewFile {
    config: StateConfig,
    keep: bool,
    _taken: Taken,
}

impl NewFile {
    fn check_room(&self, free_min: u64) -> Result<(), SnapshotError> {
        let room = self.config.disk.room().map_err(io_failed("look at the room of", &self.config))?;
        if room.available < free_min {
            return Err(SnapshotError::File(OpenError::Full { dir: self.config.dir() }));
        }
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed now is at the next start.
            let _ = self.config.disk.remove(STATE_NEW);
        }
    }
}

impl SnapshotReceiver {
    /// Begins to take in the snapshot with this head, for the replica of `config`; gives up rather than leave the disk
    /// with less than `free_min`.
    pub(crate) fn begin(
        config: StateConfig,
        slot: &ReceiverSlot,
        head: SnapshotHead,
        free_min: u64,
    ) -> Result<Self, SnapshotError> {
        if head.cluster_id != config.identity.cluster_id {
            return Err(SnapshotError::Foreign { found: head.cluster_id });
        }
        let known: Vec<&str> = config.tables.iter().map(Table::name).collect();
        if head.tables.len() > known.len()
            || !known.iter().zip(&head.tables).all(|(known, sent)| known == sent)
        {
            return Err(SnapshotError::Tables { found: head.tables });
        }
        if slot.0.swap(true, Ordering::AcqRel) {
            return Err(SnapshotError::Busy);
        }
        let file = NewFile { config, keep: false, _taken: Taken(slot.clone()) };
        file.check_room(free_min)?;
        let db = open_database(&file.config, STATE_NEW, OpenMode::Fresh)?;
        Ok(SnapshotReceiver {
            file,
            head,
            db,
            partial: BytesMut::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            rows: 0,
            state_hash: 0,
            free_min,
            ended: false,
        })
    }

    /// Takes in the next bytes of the stream.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), SnapshotError> {
        self.partial.extend_from_slice(piece);
        while let Some(kind) = self.partial.first() {
            if self.ended {
                return Err(damaged("bytes follow its end"));
            }
            let is_whole = match *kind {
                KIND_ROW => self.take_row()?,
                KIND_END => self.take_end()?,
                _ => return Err(damaged("a record is of no known kind")),
            };
            if !is_whole {
                break;
            }
        }
        Ok(())
    }

    /// Takes a row off the front; false if it is not whole.
    fn take_row(&mut self) -> Result<bool, SnapshotError> {
        let Some(header) = self.partial.get(..ROW_HEADER) else { return Ok(false) };
        let word =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes")) as usize;
        let index = usize::from(u16::from_le_bytes([header[1], header[2]]));
        let (key_size, stored_size) = (word(3), word(7));
        let config = &self.file.config;
        let table = config.tables.get(index).copied().ok_or_else(|| damaged("a row is of no table"))?;
        if key_size + stored_size > ROW_BYTES_MAX {
            return Err(damaged("a row is too long"));
        }
        if self.partial.len() < ROW_HEADER + key_size + stored_size {
            return Ok(false);
        }
        let mut record = self.partial.split_to(ROW_HEADER + key_size + stored_size).freeze();
        let stored = record.split_off(ROW_HEADER + key_size);
        let row_key = record.split_off(ROW_HEADER);
        let value = unseal_row(table.name(), &row_key, &stored)
            .ok_or_else(|| damaged("a row does not fit its checksum"))?;
        let value = value.to_vec();
        self.rows += 1;
        self.waiting_bytes += key_size + stored_size;
        self.waiting.push((table, row_key, value));
        if self.waiting.len() >= TRANSACTION_ROWS || self.waiting_bytes >= TRANSACTION_BYTES {
            self.write_rows()?;
        }
        Ok(true)
    }

    fn take_end(&mut self) -> Result<bool, SnapshotError> {
        let Some(end) = self.partial.get(..END_SIZE) else { return Ok(false) };
        let crc = u32::from_le_bytes(end[END_SIZE - 4..].try_into().expect("four bytes"));
        if crc_fast::crc32_iscsi(&end[..END_SIZE - 4]) != crc {
            return Err(damaged("its end does not fit its checksum"));
        }
        let rows = u64::from_le_bytes(end[1..9].try_into().expect("eight bytes"));
        let state_hash = u128::from_le_bytes(end[9..25].try_into().expect("sixteen bytes"));
        let _ = self.partial.split_to(END_SIZE);
        self.write_rows()?;
        if rows != self.rows || state_hash != self.state_hash || state_hash != self.head.state_hash {
            return Err(damaged("its rows are not those that were sent"));
        }
        self.ended = true;
        Ok(true)
    }

    fn write_rows(&mut self) -> Result<(), SnapshotError> {
        self.file.check_room(self.free_min)?;
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::None).map_err(|error| StoreError::from(redb::Error::from(error)))?;
        let mut batch = WriteBatch::new(&txn, self.file.config.tables, self.state_hash);
        for (table, row_key, value) in self.waiting.drain(..) {
            batch.begin_entry();
            batch.put(table, &row_key, &value)?;
        }
        self.state_hash = batch.state_hash();
        drop(batch);
        txn.commit().map_err(StoreError::from)?;
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Makes the whole snapshot durable beside the state.
    pub(crate) fn finish(self) -> Result<ReceivedSnapshot, SnapshotError> {
        if !self.ended {
            return Err(damaged("it ends early"));
        }
        let progress = self.head.progress();
        let mut txn = self.db.begin_write()?;
        txn.set_quick_repair(true);
        put_row(&txn, IDENTITY, &identity_row(&self.file.config))?;
        put_progress(&txn, &progress)?;
        txn.commit().map_err(StoreError::from)?;
        // Only now all of it is on the disk: as much as the cache holds was not seen before.
        self.file.check_room(self.free_min)?;
        // Closing writes once more; the sync behind it makes that durable too.
        self.db.close();
        let disk = &self.file.config.disk;
        let synced = disk.open(STATE_NEW, OpenMode::Existing).and_then(|file| file.sync_all());
        synced.and_then(|()| disk.sync_names()).map_err(io_failed("sync", &self.file.config))?;
        wire::failpoint::hit("consensus_snapshot_received");
        Ok(ReceivedSnapshot { file: self.file, progress })
    }
}

/// A snapshot that is whole and durable and not in use yet. Dropped, it leaves nothing.
pub(crate) struct ReceivedSnapshot {
    file: NewFile,
    progress: Progress,
}

impl ReceivedSnapshot {
    /// What the state will have applied.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Puts it in the state's place and opens it. Views of the old state live on. An error may come after the rename:
    /// the caller must not go on with the old state.
    pub(crate) fn install(mut self) -> Result<(StateFile, Progress), SnapshotError> {
        self.file.keep = true;
        let config = &self.file.config;
        config.disk.rename(STATE_NEW, STATE).map_err(io_failed("rename", config))?;
        config.disk.sync_names().map_err(io_failed("sync", config))?;
        wire::failpoint::hit("consensus_snapshot_renamed");
        Ok(StateFile::open(config)?)
    }
}

fn damaged(what: &str) -> SnapshotError {
    SnapshotError::Damaged(what.to_owned())
}

fn io_failed(action: &'static str, config: &StateConfig) -> impl FnOnce(io::Error) -> SnapshotError + use<> {
    let path = PathBuf::from(config.disk.name()).join(STATE_NEW);
    move |source| SnapshotError::File(OpenError::Io { action, path, source })
}

#[cfg(test)]
mod tests;
