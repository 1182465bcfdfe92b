//! A container replica: which extents its file has given out, which blocks are durable, who is reading.
//!
//! ```text
//! file: | header | seal | extent | extent | (hole) | extent | ... zeros, prepared | reserved |
//!                                                   next_offset ^   zeroed_end ^   ^ allocated_end
//! ```
//!
//! Space is given out once and in order: an extent belongs to one write for ever, also when that write fails. A write
//! passes through `writing` and `in_flight` until its bytes are synced, then its block is in `recent` until the index
//! has it. Readers pin a block, so that deletion punches only what nobody reads.
//!
//! Locks, in the order in which they may be taken: `growth`, then `state`; the disk's index writer before `state`.
//!
//! Invariants:
//! * A local id is written at most once; a deleted one never.
//! * Zeros are written only at or above `zeroed_end`, under `growth`; nobody is given space there meanwhile.
//!
//! Not here: bytes of extents (`write`, `read`), the sync (`group_commit`), deletion (`deletion`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use wire::ids::{BlockId, ContainerId, Generation, LocalId};
use wire::scm::{ReplicaCondition, ReplicaReport};

use crate::deletion::Deletion;
use crate::disk::Disk;
use crate::error::BlockError;
use crate::extent::{ContainerHeader, ExtentHeader, PAGE_BYTES};
use crate::index::{ContainerRow, Extent, IndexBatch, IndexError};
use crate::layout::ContainerLayout;
use platform::disk::{BlockFile, OpenMode, write_zeros};

/// Zeros written while the growth lock is held: a writer that comes meanwhile waits for no more than this.
const PREPARE_SLICE_BYTES: u64 = 256 << 10;

/// One replica on one disk.
pub(crate) struct Container {
    pub(crate) header: ContainerHeader,
    pub(crate) layout: &'static dyn ContainerLayout,
    pub(crate) disk: Arc<Disk>,
    file: Mutex<Option<Arc<dyn BlockFile>>>,
    pub(crate) growth: Mutex<()>,
    pub(crate) state: Mutex<State>,
    /// Whether writes whose bytes are not all here are to end: it has been closing for too long.
    is_cut_short: platform::watch::Sender<bool>,
}

/// What changes in a container's life.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) next_offset: u64,
    pub(crate) zeroed_end: u64,
    pub(crate) allocated_end: u64,
    /// Durably sealed.
    pub(crate) is_sealed: bool,
    /// Told to close; sealed once no write is under way.
    pub(crate) is_closing: bool,
    /// Since when, on the steady clock. None until the first attempt to seal.
    pub(crate) closing_since_ns: Option<u64>,
    /// A block did not fit.
    pub(crate) is_full: bool,
    /// The replica is dropped.
    pub(crate) is_dropped: bool,
    /// Damage was found: bytes of an indexed block, a row, or the header are not what they were.
    pub(crate) is_unhealthy: bool,
    /// Pages a crash left that are no whole block. No damage: nobody was promised them, as far as is known here.
    pub(crate) suspect_pages: u64,
    /// Of these, the extents whose header can be read.
    pub(crate) suspects: Vec<(LocalId, Extent)>,
    pub(crate) used_bytes: u64,
    pub(crate) block_count: u64,
    pub(crate) deletion_done: u64,
    /// Copies that are being made from this replica: nothing is punched meanwhile.
    pub(crate) fetches: u32,
    /// Ids with a write under way.
    pub(crate) writing: HashSet<LocalId>,
    /// Extents given out and not yet durable, by offset.
    pub(crate) in_flight: BTreeMap<u64, LocalId>,
    /// Durable blocks that the index has not got yet.
    pub(crate) recent: BTreeMap<LocalId, Extent>,
    /// Ids that no write may take. Only while the container is open.
    pub(crate) deleted: HashSet<LocalId>,
    /// Extents of deleted blocks whose readers have not gone yet, or whose punch is due.
    pub(crate) to_punch: Vec<(LocalId, Extent)>,
    /// Readers by block.
    pub(crate) pins: HashMap<LocalId, u32>,
}

impl State {
    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self { is_dropped: true, .. } => Some("its replica here is dropped"),
            Self { is_sealed: true, .. } => Some("it is sealed"),
            Self { is_closing: true, .. } => Some("it is closing"),
            Self { is_full: true, .. } => Some("it is full"),
            _ => None,
        }
    }

    /// Everything below is in the index, in `recent`, or of no meaning.
    pub(crate) fn accounted_end(&self) -> u64 {
        self.in_flight.first_key_value().map_or(self.next_offset, |(offset, _)| *offset)
    }
}

/// How a write begins.
pub(crate) enum Begin {
    /// Space is given out.
    Reserved(Reservation),
    /// The block is durable already: perhaps a repeat.
    Exists(Extent),
    /// The file must grow first, which may block: ask again from a blocking thread.
    MustWait,
}

impl Container {
    pub(crate) fn new(
        header: ContainerHeader,
        layout: &'static dyn ContainerLayout,
        disk: Arc<Disk>,
        file: Arc<dyn BlockFile>,
        state: State,
    ) -> Self {
        Self {
            header,
            layout,
            disk,
            file: Mutex::new(Some(file)),
            growth: Mutex::new(()),
            state: Mutex::new(state),
            is_cut_short: platform::watch::Sender::default(),
        }
    }

    pub(crate) fn id(&self) -> ContainerId {
        self.header.container
    }

    pub(crate) fn block(&self, local: LocalId) -> BlockId {
        BlockId { container: self.id(), local }
    }

    /// The open file; opened again if the cache had closed it.
    pub(crate) fn file(self: &Arc<Self>) -> Result<Arc<dyn BlockFile>, BlockError> {
        let mut slot = self.file.lock();
        if let Some(file) = &*slot {
            return Ok(file.clone());
        }
        let opened = self.disk.io.open(&file_name(self.id()), OpenMode::Existing);
        let file = opened.map_err(|error| self.disk.io_failed("open a container", error))?;
        *slot = Some(file.clone());
        drop(slot);
        self.disk.files.opened(self);
        Ok(file)
    }

    /// Closes the file if nothing is going to be written to it. Readers keep theirs.
    pub(crate) fn close_file_if_sealed(&self) -> bool {
        let is_idle = {
            let state = self.state.lock();
            state.is_sealed && state.to_punch.is_empty()
        };
        if is_idle {
            *self.file.lock() = None;
        }
        is_idle
    }

    /// Ends the writes that still wait for bytes of their blocks.
    pub(crate) fn cut_short(&self) {
        if self.is_cut_short.send_if_modified(|is_cut_short| !std::mem::replace(is_cut_short, true)) {
            tracing::info!(container = %self.id(), "closing for too long: breaking off blocks that are still arriving");
        }
    }

    /// Tells when [`Self::cut_short`] was called.
    pub(crate) fn when_cut_short(&self) -> platform::watch::Receiver<bool> {
        self.is_cut_short.subscribe()
    }

    /// Gives out space for one block.
    pub(crate) fn begin_write(
        self: &Arc<Self>,
        local: LocalId,
        reserved: u64,
        is_exact: bool,
        may_block: bool,
    ) -> Result<Begin, BlockError> {
        self.disk.check(self.id())?;
        {
            let mut state = self.state.lock();
            if state.deleted.contains(&local) {
                return Err(BlockError::Refused(self.id(), "the block was deleted"));
            }
            if let Some(extent) = state.recent.get(&local) {
                return Ok(Begin::Exists(*extent));
            }
            if !state.writing.insert(local) {
                return Err(BlockError::Busy(self.block(local)));
            }
        }
        let begun = self.begin_claimed(local, reserved, is_exact, may_block);
        if !matches!(begun, Ok(Begin::Reserved(_))) {
            self.state.lock().writing.remove(&local);
        }
        begun
    }

    fn begin_claimed(
        self: &Arc<Self>,
        local: LocalId,
        reserved: u64,
        is_exact: bool,
        may_block: bool,
    ) -> Result<Begin, BlockError> {
        // After `recent`: a block goes to the index before it leaves `recent`, so one of both looks finds it.
        let existing = self.disk.index.block(self.id(), local);
        if let Some(extent) = existing.map_err(|error| BlockError::Index(error.to_string()))? {
            return Ok(Begin::Exists(extent));
        }
        if let Some(why) = self.state.lock().refusal() {
            return Err(BlockError::Refused(self.id(), why));
        }
        let size = self.layout.extent_bytes(reserved);
        let Some(offset) = self.allocate(local, size, may_block)? else { return Ok(Begin::MustWait) };
        let header = ExtentHeader {
            block: self.block(local),
            generation: self.header.generation,
            nonce: wire::random::u64(),
            reserved,
            is_exact,
        };
        Ok(Begin::Reserved(Reservation { container: self.clone(), header, offset, size, is_settled: false }))
    }

    /// The offset of `size` bytes that are this write's for ever; None if that would block and must not.
    fn allocate(
        self: &Arc<Self>,
        local: LocalId,
        size: u64,
        may_block: bool,
    ) -> Result<Option<u64>, BlockError> {
        {
            let mut state = self.state.lock();
            self.check_fit(&mut state, size)?;
            if state.next_offset + size <= state.zeroed_end {
                let offset = take(&mut state, local, size);
                let is_low = state.zeroed_end - state.next_offset < self.disk.prepare_ahead() / 2;
                drop(state);
                if is_low {
                    self.disk.prepare_soon(self);
                }
                return Ok(Some(offset));
            }
        }
        let growth = if may_block { Some(self.growth.lock()) } else { self.growth.try_lock() };
        let Some(_growth) = growth else { return Ok(None) };
        let needed = {
            let mut state = self.state.lock();
            self.check_fit(&mut state, size)?;
            if state.next_offset + size <= state.allocated_end {
                let offset = take(&mut state, local, size);
                drop(state);
                self.disk.prepare_soon(self);
                return Ok(Some(offset));
            }
            if !may_block {
                return Ok(None);
            }
            state.next_offset + size
        };
        self.grow(needed)?;
        let mut state = self.state.lock();
        // Others may have taken from below `zeroed_end` meanwhile, so the end is looked at again.
        if let Some(why) = state.refusal() {
            return Err(BlockError::Refused(self.id(), why));
        }
        if state.next_offset + size > state.allocated_end {
            let needed = state.next_offset + size;
            drop(state);
            self.grow(needed + self.disk.growth_step())?;
            state = self.state.lock();
        }
        self.check_fit(&mut state, size)?;
        if state.next_offset + size > state.allocated_end {
            return Err(BlockError::Busy(self.block(local)));
        }
        Ok(Some(take(&mut state, local, size)))
    }

    /// A block that does not fit makes the container full. The first block always fits: a container smaller than one
    /// block would otherwise refuse for ever.
    fn check_fit(&self, state: &mut State, size: u64) -> Result<(), BlockError> {
        if let Some(why) = state.refusal() {
            return Err(BlockError::Refused(self.id(), why));
        }
        let is_empty = state.next_offset == self.layout.first_extent();
        if !is_empty && state.next_offset + size > self.disk.container_bytes_max() {
            state.is_full = true;
            self.disk.changed(self.id());
            return Err(BlockError::Refused(self.id(), "it is full"));
        }
        Ok(())
    }

    /// Reserves disk space so that the file ends at or beyond `end`. Under `growth`.
    fn grow(self: &Arc<Self>, end: u64) -> Result<(), BlockError> {
        let from = self.state.lock().allocated_end;
        if end <= from {
            return Ok(());
        }
        let step = self.disk.growth_step();
        let file = self.file()?;
        // A whole step if there is room, else just what is needed: the last blocks before the reserve still fit.
        for target in [end.next_multiple_of(step), end] {
            if !self.disk.has_room(target - from)? {
                continue;
            }
            match file.allocate(from, target - from) {
                Ok(()) => {
                    wire::failpoint::hit("datanode_container_grown");
                    self.state.lock().allocated_end = target;
                    return Ok(());
                }
                Err(error) if crate::error::is_full(&error) => {}
                Err(error) => return Err(self.disk.io_failed("grow a container", error)),
            }
        }
        Err(BlockError::DiskFull)
    }

    /// Writes zeros ahead of the next block, a slice at a time, so that syncs of small blocks change no file metadata.
    /// A convenience: it gives up quietly when there is no room.
    pub(crate) fn prepare(self: &Arc<Self>) -> Result<(), BlockError> {
        let mut is_dirty = false;
        let file = self.file()?;
        loop {
            let _growth = self.growth.lock();
            let (from, is_wanted) = {
                let state = self.state.lock();
                let ahead = state.zeroed_end.saturating_sub(state.next_offset);
                let is_wanted = state.refusal().is_none() && ahead < self.disk.prepare_ahead();
                (state.zeroed_end.max(state.next_offset), is_wanted)
            };
            let to = (from + PREPARE_SLICE_BYTES).min(self.disk.container_bytes_max());
            if !is_wanted || to <= from || self.disk.has_big_writes() {
                break;
            }
            if to > self.state.lock().allocated_end && self.grow(to).is_err() {
                break;
            }
            if let Err(error) = write_zeros(&*file, from, to - from) {
                return Err(self.disk.io_failed("prepare a container", error));
            }
            file.start_writeback(from, to - from);
            self.state.lock().zeroed_end = to;
            is_dirty = true;
        }
        if is_dirty {
            self.disk.sync("sync a prepared container", self.id(), || file.sync_data())?;
        }
        Ok(())
    }

    /// Where `local` lies, kept from being punched while the answer lives.
    pub(crate) fn pin(self: &Arc<Self>, local: LocalId) -> Result<Pinned, BlockError> {
        self.disk.check(self.id())?;
        let recent = {
            let mut state = self.state.lock();
            if state.is_dropped {
                return Err(BlockError::NoContainer(self.id()));
            }
            *state.pins.entry(local).or_insert(0) += 1;
            state.recent.get(&local).copied()
        };
        // Pinned before the look: a deletion that commits after the look finds the pin.
        let mut pinned = Pinned { container: self.clone(), local, extent: NOWHERE };
        pinned.extent = match recent {
            Some(extent) => extent,
            None => match self.disk.index.block(self.id(), local) {
                Ok(Some(extent)) => extent,
                Ok(None) => return Err(BlockError::NoBlock(self.block(local))),
                Err(IndexError::Io { reason, .. }) => {
                    let error = self.disk.read_failed("look up a block", std::io::Error::other(reason));
                    return Err(error);
                }
                Err(error) => {
                    self.found_damage("a row of the index is corrupt");
                    tracing::error!(block = %self.block(local), %error, "cannot look up a block");
                    return Err(BlockError::Corrupt(self.block(local), "its index row is damaged"));
                }
            },
        };
        Ok(pinned)
    }

    /// The same where the extent is known: for copies, which read what was here when they began.
    pub(crate) fn pin_known(self: &Arc<Self>, local: LocalId, extent: Extent) -> Result<Pinned, BlockError> {
        self.disk.check(self.id())?;
        let mut state = self.state.lock();
        if state.is_dropped {
            return Err(BlockError::NoContainer(self.id()));
        }
        *state.pins.entry(local).or_insert(0) += 1;
        Ok(Pinned { container: self.clone(), local, extent })
    }

    /// Marks the replica unhealthy; SCM hears of it.
    pub(crate) fn found_damage(self: &Arc<Self>, what: &str) {
        let is_news = !std::mem::replace(&mut self.state.lock().is_unhealthy, true);
        if is_news {
            tracing::error!(container = %self.id(), what, "container replica is damaged");
        }
        self.disk.mark_dirty(self);
    }

    /// A read of the file failed: the replica is unhealthy, and the disk must show whether it still works.
    pub(crate) fn read_failed(self: &Arc<Self>, error: std::io::Error) -> BlockError {
        self.found_damage("its file cannot be read everywhere");
        self.disk.read_failed("read a container", error)
    }

    /// The row the index should have, once `deletion` is done. Under the index writer.
    pub(crate) fn row(&self, state: &State, deletion: Option<&Deletion<'_>>) -> ContainerRow {
        let mut row = ContainerRow {
            generation: self.header.generation,
            replication: self.header.replication,
            next_offset: state.next_offset,
            checkpoint_end: state.accounted_end(),
            zeroed_end: state.zeroed_end,
            is_sealed: state.is_sealed,
            is_unhealthy: state.is_unhealthy,
            suspect_pages: state.suspect_pages,
            used_bytes: state.used_bytes,
            block_count: state.block_count,
            deletion_done: state.deletion_done,
        };
        if let Some(deletion) = deletion {
            let bytes: u64 = deletion.removed.iter().map(|(_, extent)| extent.length).sum();
            let suspect: u64 = deletion.suspects.iter().map(|(_, extent)| extent.size / PAGE_BYTES).sum();
            row.used_bytes = row.used_bytes.saturating_sub(bytes);
            row.block_count = row.block_count.saturating_sub(deletion.removed.len() as u64);
            row.suspect_pages = row.suspect_pages.saturating_sub(suspect);
            row.deletion_done = deletion.transaction;
        }
        row
    }

    /// Puts what the index lacks into `batch`. Under the index writer.
    pub(crate) fn collect(&self, batch: &mut IndexBatch, deletion: Option<&Deletion<'_>>) -> Vec<LocalId> {
        let state = self.state.lock();
        if state.is_dropped {
            return Vec::new();
        }
        let locals: Vec<LocalId> = state.recent.keys().copied().collect();
        batch.put_blocks.extend(state.recent.iter().map(|(local, extent)| (self.id(), *local, *extent)));
        batch.put_containers.push((self.id(), self.row(&state, deletion)));
        locals
    }

    /// The index has these now. Under the index writer.
    pub(crate) fn collected(&self, locals: &[LocalId], deletion: Option<&Deletion<'_>>) {
        let mut state = self.state.lock();
        for local in locals {
            state.recent.remove(local);
        }
        let Some(deletion) = deletion else { return };
        // Blocks that were settled since the row was made count too, so the difference is taken again.
        let row = self.row(&state, Some(deletion));
        (state.used_bytes, state.block_count) = (row.used_bytes, row.block_count);
        (state.suspect_pages, state.deletion_done) = (row.suspect_pages, row.deletion_done);
        state.to_punch.extend(deletion.removed.iter().chain(&deletion.suspects));
        state.suspects.retain(|suspect| !deletion.suspects.contains(suspect));
    }

    /// What SCM is told. A full container reports its limit as written, so that SCM closes it.
    pub(crate) fn report(&self) -> ReplicaReport {
        let state = self.state.lock();
        ReplicaReport {
            container: self.id(),
            generation: self.header.generation,
            replication: self.header.replication,
            is_sealed: state.is_sealed,
            written_bytes: if state.is_full {
                state.next_offset.max(self.disk.container_bytes_max())
            } else {
                state.next_offset
            },
            used_bytes: state.used_bytes,
            block_count: state.block_count,
            deletion_done: state.deletion_done,
            is_unhealthy: state.is_unhealthy,
            condition: match (self.disk.is_failed(), self.header.is_copy) {
                (true, _) => ReplicaCondition::Lost,
                // A copy has its name and its seal only once it was verified.
                (false, true) => ReplicaCondition::CopyVerified,
                (false, false) => ReplicaCondition::Whole,
            },
            disk: self.disk.io.name(),
        }
    }
}

/// The generation SCM opens containers with. Copies have higher ones.
pub(crate) const FIRST_GENERATION: Generation = Generation(1);

const NOWHERE: Extent = Extent { offset: 0, size: 0, length: 0, digest: wire::chunk::BlockDigest(0) };

fn take(state: &mut State, local: LocalId, size: u64) -> u64 {
    let offset = state.next_offset;
    state.next_offset += size;
    state.zeroed_end = state.zeroed_end.max(state.next_offset);
    state.in_flight.insert(offset, local);
    offset
}

/// The file of a container: its id in hexadecimal, since names must not depend on anything from outside.
pub(crate) fn file_name(container: ContainerId) -> String {
    format!("{:016x}.container", container.0)
}

/// The container of a file name.
pub(crate) fn container_of(name: &str) -> Option<ContainerId> {
    let digits = name.strip_suffix(".container")?;
    let id = ContainerId(u64::from_str_radix(digits, 16).ok()?);
    (file_name(id) == name).then_some(id)
}

/// Space given to one write. Dropped before it is durable, the write is taken back: nothing of it stays.
pub(crate) struct Reservation {
    pub(crate) container: Arc<Container>,
    pub(crate) header: ExtentHeader,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    is_settled: bool,
}

impl Reservation {
    pub(crate) fn local(&self) -> LocalId {
        self.header.block.local
    }

    /// The bytes are synced: the block is here from now on.
    pub(crate) fn settle(mut self, extent: Extent) -> Result<(), BlockError> {
        let container = self.container.clone();
        let mut state = container.state.lock();
        if state.is_dropped || state.deleted.contains(&self.local()) {
            drop(state);
            return Err(BlockError::Refused(container.id(), "the block was deleted meanwhile"));
        }
        self.is_settled = true;
        state.in_flight.remove(&self.offset);
        state.writing.remove(&self.local());
        state.recent.insert(self.local(), extent);
        state.used_bytes += extent.length;
        state.block_count += 1;
        drop(state);
        container.disk.mark_dirty(&container);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // Punched first: while the extent stands in `in_flight` no checkpoint passes it by.
        if !self.container.disk.is_failed()
            && let Ok(file) = self.container.file()
            && let Err(error) = file.punch(self.offset, self.size)
        {
            tracing::warn!(block = %self.header.block, %error, "cannot punch the extent of a write that failed");
        }
        let mut state = self.container.state.lock();
        state.in_flight.remove(&self.offset);
        state.writing.remove(&self.local());
        drop(state);
        self.container.disk.mark_dirty(&self.container);
    }
}

/// A block that stays where it is while this lives.
pub(crate) struct Pinned {
    pub(crate) container: Arc<Container>,
    pub(crate) local: LocalId,
    pub(crate) extent: Extent,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut state = self.container.state.lock();
        if let Some(count) = state.pins.get_mut(&self.local) {
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&self.local);
            }
        }
    }
}
