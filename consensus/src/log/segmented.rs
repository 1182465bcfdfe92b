//! The log in zero-filled, recycled segments.
//!
//! ```text
//!  recycled when at or           the segment being written            the reserve
//!  below a checkpoint
//!  +------------------+ seal     +----------+-------------------+     +----------------+
//!  | log.0001         |--------->| log.0002 | zeros or garbage  |     | spare.0000     |
//!  +------------------+          +----------+-------------------+     +----------------+
//! ```
//!
//! **A roll** happens between two batches: the header of the next segment is made durable in a spare, then a seal
//! that names it is made durable in the old one, then the spare is renamed. Whatever step a crash falls on, opening
//! finishes it or starts it anew.
//!
//! **Opening** reads every segment in order. A segment ends at its seal or, the last one, at the first bytes that are
//! not the expected record. Were they ever promised durable? They were if any later record says so; then this is
//! damage and the log is refused. Otherwise they are what a crash left of an unfinished batch, and are cut. After a
//! cut the record numbers jump, so that garbage behind the cut never continues the log.
//!
//! **A full disk** must not meet an append midway: there is always a spare, made ahead, and [`Log::admit`] says before
//! anything is proposed whether the records will fit.
//!
//! Invariants:
//! * Only the last segment is written; the others are durable.
//! * Entries at or below the commit index are never cut.
//!
//! Not here: bytes of records and headers (see `record`, `files`).

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use platform::disk::{BlockFile, DiskIo};
use platform::{actor, node};
use raft::eraftpb::{Entry, HardState};

use super::Log;
use super::files::{
    BadHeader, Identity, LOG_FORMAT, SEGMENT_HEADER_SIZE, SegmentHeader, io_error, list, open_as_stored,
    open_file, prepare_spare, promote_spare, remove_segment, retire_segment,
};
use super::record::{
    CONTROL_RECORD_SIZE, Found, RECORD_HEADER_SIZE, Record, Stamp, claimed_size, decode, to_entry,
};
use crate::error::LogError;

/// Room kept in each segment for records that are not entries: truncate, hard state, opened and seal.
const CONTROL_ROOM: u64 = 4 * CONTROL_RECORD_SIZE;

/// Spares beyond this are removed rather than kept: one to roll into, one from a burst.
const SPARES_MAX: usize = 2;

/// Entries are read back in windows of this size.
const READ_WINDOW: u64 = 256 << 10;

/// After a spare could not be made, wait this long before trying again: the disk is full, and each try costs a call.
const PREPARE_RETRY_NS: u64 = 500_000_000;

/// How the log is opened.
#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    pub(crate) disk: Arc<dyn DiskIo>,
    pub(crate) identity: Identity,
    /// Size of new segments. Existing ones keep theirs.
    pub(crate) segment_bytes: u64,
    /// Names the thread that prepares segments.
    pub(crate) name: String,
}

/// The one implementation of [`Log`].
pub(crate) struct SegmentedLog {
    config: LogConfig,
    /// Oldest first; the last is written. Never empty.
    segments: VecDeque<Segment>,
    spares: Vec<String>,
    preparer: Option<Preparer>,
    /// A spare is being made.
    preparing: bool,
    prepare_failed_ns: Option<u64>,
    /// Where the next record goes in the last segment.
    position: u64,
    /// Records encoded and not written yet; they end at `position`.
    buffer: Vec<u8>,
    /// Written since the last sync.
    unsynced: bool,
    next_number: u64,
    synced_number: u64,
    terms: Terms,
    last_index: u64,
    hard_state: HardState,
    rolls: u64,
}

/// One segment and where its entries are.
struct Segment {
    stamp: Stamp,
    capacity: u64,
    name: String,
    file: Arc<dyn BlockFile>,
    /// The index of the entry at `offsets[0]`; meaningless while there is none.
    first_index: u64,
    /// Segments are far below 4 GiB.
    offsets: Vec<u32>,
}

/// Makes spares on a thread of its own, as zero-filling one takes longer than a commit may.
struct Preparer {
    orders: tokio::sync::mpsc::Sender<()>,
    outcomes: Receiver<Result<String, LogError>>,
}

/// The terms of a contiguous range of indices, as runs.
#[derive(Debug, Default)]
struct Terms {
    base_index: u64,
    base_term: u64,
    /// (first index of the run, term), ascending.
    runs: VecDeque<(u64, u64)>,
}

impl SegmentedLog {
    /// Makes the first segment in an empty directory.
    pub(crate) fn create(config: LogConfig) -> Result<SegmentedLog, LogError> {
        let spare = prepare_spare(&*config.disk, config.segment_bytes)?;
        let mut log = SegmentedLog::empty(config);
        let (header, file) = log.write_header(&spare, 1)?;
        let name = promote_spare(&*log.config.disk, &spare, header.stamp.epoch)?;
        log.push_segment(&header, name, file);
        log.write_opened()?;
        Ok(log)
    }

    /// Opens the log, finishes what a crash interrupted and cuts what was never durable.
    pub(crate) fn open(config: LogConfig) -> Result<SegmentedLog, LogError> {
        let listing = list(&*config.disk)?;
        let mut log = SegmentedLog::empty(config);
        log.spares = listing.spares;
        let mut seal = None;
        for (epoch, name) in listing.segments {
            log.open_segment(epoch, name, seal)?;
            seal = log.replay_last()?;
        }
        if log.segments.is_empty() {
            return Err(log.damaged("there is no segment".to_owned()));
        }
        if let Some(next) = seal {
            log.finish_roll(next)?;
        }
        if log.hard_state.commit > log.last_index {
            return Err(log.damaged(format!(
                "entry {} was committed and the last one is {}",
                log.hard_state.commit, log.last_index
            )));
        }
        // Only committed entries are ever recycled.
        log.hard_state.commit = log.hard_state.commit.max(log.terms.base_index);
        log.drop_misfit_spares()?;
        log.write_opened()?;
        Ok(log)
    }

    fn empty(config: LogConfig) -> SegmentedLog {
        SegmentedLog {
            config,
            segments: VecDeque::new(),
            spares: Vec::new(),
            preparer: None,
            preparing: false,
            prepare_failed_ns: None,
            position: SEGMENT_HEADER_SIZE,
            buffer: Vec::new(),
            unsynced: false,
            next_number: 1,
            synced_number: 0,
            terms: Terms::default(),
            last_index: 0,
            hard_state: HardState::default(),
            rolls: 0,
        }
    }

    fn damaged(&self, what: String) -> LogError {
        LogError::Damaged { dir: self.dir(), what }
    }

    /// Where the log is, for messages.
    fn dir(&self) -> PathBuf {
        PathBuf::from(self.config.disk.name())
    }

    // Opening.

    /// Reads a segment's header and checks that it continues what was read so far.
    fn open_segment(&mut self, epoch: u64, name: String, seal: Option<Stamp>) -> Result<(), LogError> {
        let disk = &*self.config.disk;
        let file = open_as_stored(disk, &name, u64::MAX).map_err(io_error("open", disk, &name))?;
        let header = self.read_header(&*file, &name)?;
        if header.identity != self.config.identity {
            return Err(LogError::Foreign {
                dir: self.dir(),
                found: header.identity.to_string(),
                expected: self.config.identity.to_string(),
            });
        }
        if header.stamp.epoch != epoch {
            return Err(self.damaged(format!("the header of {name} has epoch {}", header.stamp.epoch)));
        }
        if self.segments.is_empty() {
            self.next_number = header.first_number;
            self.last_index = header.base_index;
            self.terms = Terms::new(header.base_index, header.base_term);
            self.hard_state = header.hard_state.clone();
        } else if seal != Some(header.stamp) || header.first_number != self.next_number {
            return Err(
                self.damaged(format!("records before {name} are missing, from record {}", self.next_number))
            );
        }
        self.push_segment(&header, name, file);
        Ok(())
    }

    fn read_header(&self, file: &dyn BlockFile, name: &str) -> Result<SegmentHeader, LogError> {
        let mut bytes = vec![0; SEGMENT_HEADER_SIZE as usize];
        let disk = &*self.config.disk;
        let size = file.length().map_err(io_error("look at", disk, name))?;
        if size >= SEGMENT_HEADER_SIZE {
            file.read_into(0, &mut bytes).map_err(io_error("read", disk, name))?;
        }
        match SegmentHeader::decode(&bytes) {
            Ok(header) if header.segment_bytes > size || header.segment_bytes > u64::from(u32::MAX) => {
                Err(self.damaged(format!("{name} has {size} of {} bytes", header.segment_bytes)))
            }
            Ok(header) => Ok(header),
            Err(BadHeader::Damaged) => Err(self.damaged(format!("the header of {name} is unreadable"))),
            Err(BadHeader::Format(found)) => {
                Err(LogError::Format { dir: self.dir(), found, known: LOG_FORMAT })
            }
        }
    }

    fn push_segment(&mut self, header: &SegmentHeader, name: String, file: Arc<dyn BlockFile>) {
        self.segments.push_back(Segment {
            stamp: header.stamp,
            capacity: header.segment_bytes,
            name,
            file,
            first_index: 0,
            offsets: Vec::new(),
        });
        self.position = SEGMENT_HEADER_SIZE;
    }

    /// Takes in the records of the last segment; answers the seal at its end.
    fn replay_last(&mut self) -> Result<Option<Stamp>, LogError> {
        let bytes = self.read_last()?;
        let stamp = self.last_segment().stamp;
        let mut position = SEGMENT_HEADER_SIZE as usize;
        let mut seal = None;
        while seal.is_none() {
            match decode(&bytes[position..], stamp) {
                Some(found) if self.continues(&found) => {
                    self.next_number = found.number + 1;
                    seal = self.replay_record(&found, position)?;
                    position += found.size;
                }
                _ => break,
            }
        }
        if seal.is_none() {
            self.check_never_synced(&bytes, position, stamp)?;
        }
        self.position = position as u64;
        Ok(seal)
    }

    fn read_last(&self) -> Result<Vec<u8>, LogError> {
        let segment = self.last_segment();
        let mut bytes = vec![0; segment.capacity as usize];
        segment.file.read_into(0, &mut bytes).map_err(io_error("read", &*self.config.disk, &segment.name))?;
        Ok(bytes)
    }

    /// Whether this is the next record. Numbers jump at an opening, and only there.
    fn continues(&self, found: &Found<'_>) -> bool {
        match found.record {
            Record::Opened { previous } => {
                previous + 1 == self.next_number && found.number >= self.next_number
            }
            _ => found.number == self.next_number,
        }
    }

    fn replay_record(&mut self, found: &Found<'_>, position: usize) -> Result<Option<Stamp>, LogError> {
        match found.record {
            Record::Entry { index, term, .. } => {
                if index != self.last_index + 1 || term < self.terms.last() {
                    return Err(self.damaged(format!(
                        "record {} holds entry {index} of term {term} after entry {} of term {}",
                        found.number,
                        self.last_index,
                        self.terms.last()
                    )));
                }
                self.note_entry(index, term, position as u64);
            }
            Record::HardState { term, vote, commit } => {
                self.hard_state = HardState { term, vote, commit, ..HardState::default() };
            }
            Record::Truncate { from, previous_term } => {
                if from > self.last_index + 1 {
                    return Err(self.damaged(format!("record {} cuts from entry {from}", found.number)));
                }
                self.cut_from(from, previous_term);
            }
            Record::Reset { index, term } => self.forget_entries(index, term),
            Record::Opened { .. } => {}
            Record::Seal { next_epoch, next_salt } => {
                return Ok(Some(Stamp { epoch: next_epoch, salt: next_salt }));
            }
            Record::Unknown { kind } => {
                return Err(self.damaged(format!("record {} is of kind {kind}, unknown here", found.number)));
            }
        }
        Ok(None)
    }

    /// The expected record is not at `position`. Refuses if a later one says that it was durable.
    fn check_never_synced(&self, bytes: &[u8], position: usize, stamp: Stamp) -> Result<(), LogError> {
        for at in (position..bytes.len().saturating_sub(RECORD_HEADER_SIZE)).step_by(8) {
            let Some(found) = decode(&bytes[at..], stamp) else { continue };
            if found.number >= self.next_number && found.synced >= self.next_number {
                return Err(self.damaged(format!(
                    "record {} at byte {position} of {} is unreadable, and record {} says that it was durable",
                    self.next_number,
                    self.last_segment().name,
                    found.number
                )));
            }
        }
        Ok(())
    }

    /// The last segment is sealed and its successor has no name yet: the crash came between seal and rename.
    fn finish_roll(&mut self, next: Stamp) -> Result<(), LogError> {
        for at in 0..self.spares.len() {
            let spare = self.spares[at].clone();
            let file = open_file(&*self.config.disk, &spare)?;
            let Ok(header) = self.read_header(&*file, &spare) else { continue };
            if header.stamp == next && header.first_number == self.next_number {
                self.spares.remove(at);
                let name = promote_spare(&*self.config.disk, &spare, next.epoch)?;
                self.push_segment(&header, name, file);
                return Ok(());
            }
        }
        Err(self.damaged(format!("segment {} is missing", next.epoch)))
    }

    /// Spares of another size than wanted would make [`Log::admit`] lie.
    fn drop_misfit_spares(&mut self) -> Result<(), LogError> {
        for spare in std::mem::take(&mut self.spares) {
            let disk = &*self.config.disk;
            let length = open_file(disk, &spare)?.length();
            let size = length.map_err(io_error("look at", disk, &spare))?;
            if size == self.config.segment_bytes && self.spares.len() < SPARES_MAX {
                self.spares.push(spare);
            } else {
                remove_segment(disk, &spare)?;
            }
        }
        Ok(())
    }

    /// Starts a new range of record numbers and makes durable whatever a killed process left in the page cache.
    fn write_opened(&mut self) -> Result<(), LogError> {
        if self.position + 2 * CONTROL_RECORD_SIZE > self.last_segment().capacity {
            self.roll()?;
        }
        let previous = self.next_number - 1;
        self.next_number = (previous | u64::from(u32::MAX)) + 1;
        self.encode(&Record::Opened { previous });
        self.unsynced = true;
        self.write_out()?;
        self.sync()
    }

    // Writing.

    fn last_segment(&self) -> &Segment {
        self.segments.back().expect("a log has a segment from its creation on")
    }

    /// Appends a record, rolling first if the last segment cannot take it.
    fn put(&mut self, record: &Record<'_>) -> Result<u64, LogError> {
        if self.position + record.size() + CONTROL_RECORD_SIZE > self.last_segment().capacity {
            self.roll()?;
        }
        Ok(self.encode(record))
    }

    fn encode(&mut self, record: &Record<'_>) -> u64 {
        let at = self.position;
        let before = self.buffer.len();
        let stamp = self.last_segment().stamp;
        record.encode(&mut self.buffer, stamp, self.next_number, self.synced_number);
        self.position += (self.buffer.len() - before) as u64;
        self.next_number += 1;
        at
    }

    fn write_out(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let at = self.position - self.buffer.len() as u64;
        let segment = self.last_segment();
        let written = segment.file.write_at(at, &[&self.buffer]);
        written.map_err(io_error("write", &*self.config.disk, &segment.name))?;
        self.buffer.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Seals the last segment and begins the next one. The order is the module's promise: header, seal, name.
    fn roll(&mut self) -> Result<(), LogError> {
        let spare = self.take_spare()?;
        let seal_number = self.next_number;
        let (header, file) = self.write_header(&spare, seal_number + 1)?;
        self.encode(&Record::Seal { next_epoch: header.stamp.epoch, next_salt: header.stamp.salt });
        self.write_out()?;
        self.sync()?;
        wire::failpoint::hit("consensus_segment_rolled");
        let name = promote_spare(&*self.config.disk, &spare, header.stamp.epoch)?;
        self.push_segment(&header, name, file);
        self.rolls += 1;
        Ok(())
    }

    /// Makes the header of the next segment durable in a spare.
    fn write_header(
        &self,
        spare: &str,
        first_number: u64,
    ) -> Result<(SegmentHeader, Arc<dyn BlockFile>), LogError> {
        let epoch = self.segments.back().map_or(0, |segment| segment.stamp.epoch) + 1;
        let header = SegmentHeader {
            identity: self.config.identity,
            stamp: Stamp { epoch, salt: wire::random::u64() as u32 },
            first_number,
            base_index: self.last_index,
            base_term: self.terms.last(),
            hard_state: self.hard_state.clone(),
            segment_bytes: self.config.segment_bytes,
        };
        let disk = &*self.config.disk;
        let file = open_file(disk, spare)?;
        file.write_at(0, &[&header.encode()]).map_err(io_error("write", disk, spare))?;
        file.sync_all().map_err(io_error("sync", disk, spare))?;
        Ok((header, file))
    }

    // Spares.

    fn take_spare(&mut self) -> Result<String, LogError> {
        if self.spares.is_empty() && self.preparing {
            self.poll_preparing(true);
        }
        match self.spares.pop() {
            Some(spare) => Ok(spare),
            None => prepare_spare(&*self.config.disk, self.config.segment_bytes),
        }
    }

    fn start_preparing(&mut self) {
        let now = wire::clock::steady_ns();
        if self.preparing || self.prepare_failed_ns.is_some_and(|at| now < at + PREPARE_RETRY_NS) {
            return;
        }
        if node::current().is_some() {
            // A simulated node has one thread, and a write takes no time there.
            self.prepared(prepare_spare(&*self.config.disk, self.config.segment_bytes));
            return;
        }
        if self.preparer.is_none() {
            match Preparer::start(&self.config) {
                Ok(preparer) => self.preparer = Some(preparer),
                Err(error) => {
                    tracing::warn!(group = %self.config.name, %error, "cannot start a thread to prepare log segments");
                    self.prepare_failed_ns = Some(now);
                    return;
                }
            }
        }
        self.preparing = self.preparer.as_ref().is_some_and(|preparer| preparer.orders.try_send(()).is_ok());
    }

    /// Takes in a spare that has been prepared meanwhile, or waits for it.
    fn poll_preparing(&mut self, wait: bool) {
        let Some(preparer) = self.preparer.as_ref().filter(|_| self.preparing) else { return };
        let outcome = if wait {
            preparer.outcomes.recv().ok()
        } else {
            match preparer.outcomes.try_recv() {
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => None,
            }
        };
        self.preparing = false;
        match outcome {
            Some(outcome) => self.prepared(outcome),
            None => {
                self.preparer = None;
                self.prepare_failed_ns = Some(wire::clock::steady_ns());
            }
        }
    }

    fn prepared(&mut self, outcome: Result<String, LogError>) {
        match outcome {
            Ok(spare) => {
                self.prepare_failed_ns = None;
                self.spares.push(spare);
            }
            Err(error) => {
                if self.prepare_failed_ns.is_none() {
                    tracing::warn!(group = %self.config.name, %error, "no spare log segment");
                }
                self.prepare_failed_ns = Some(wire::clock::steady_ns());
            }
        }
    }

    /// Bytes of records that fit for sure.
    fn room(&self) -> u64 {
        let here = self.last_segment().capacity.saturating_sub(self.position + CONTROL_ROOM);
        if self.spares.is_empty() {
            return here;
        }
        here.max(self.config.segment_bytes - SEGMENT_HEADER_SIZE - CONTROL_ROOM)
    }

    // Entries in memory's picture.

    fn note_entry(&mut self, index: u64, term: u64, position: u64) {
        let segment = self.segments.back_mut().expect("a log has a segment from its creation on");
        if segment.offsets.is_empty() {
            segment.first_index = index;
        }
        segment.offsets.push(position as u32);
        self.terms.push(index, term);
        self.last_index = index;
    }

    fn cut_from(&mut self, from: u64, previous_term: u64) {
        for segment in &mut self.segments {
            let keep = from.saturating_sub(segment.first_index).min(segment.offsets.len() as u64);
            segment.offsets.truncate(keep as usize);
        }
        self.terms.cut_from(from, previous_term);
        self.last_index = from - 1;
    }

    fn forget_entries(&mut self, index: u64, term: u64) {
        for segment in &mut self.segments {
            segment.offsets.clear();
        }
        self.terms = Terms::new(index, term);
        self.last_index = index;
        self.hard_state.commit = self.hard_state.commit.max(index);
        if self.hard_state.term < term {
            // The crash came before the term in which the snapshot arrived was noted.
            (self.hard_state.term, self.hard_state.vote) = (term, 0);
        }
    }

    fn segment_of(&self, index: u64) -> Option<(&Segment, u64)> {
        self.segments.iter().rev().find_map(|segment| {
            let offset = segment.offsets.get(index.checked_sub(segment.first_index)? as usize)?;
            Some((segment, u64::from(*offset)))
        })
    }
}

impl Log for SegmentedLog {
    fn first_index(&self) -> u64 {
        self.terms.base_index + 1
    }

    fn last_index(&self) -> u64 {
        self.last_index
    }

    fn term(&self, index: u64) -> Option<u64> {
        (index <= self.last_index).then(|| self.terms.at(index)).flatten()
    }

    fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    fn entries(&self, low: u64, high: u64, size_max: u64) -> Result<Vec<Entry>, LogError> {
        assert!(
            self.first_index() <= low && high <= self.last_index + 1,
            "entries {low}..{high} are not in the log"
        );
        let mut entries = Vec::new();
        let mut size = 0;
        let mut window = Window::default();
        for index in low..high {
            let (segment, offset) = self
                .segment_of(index)
                .ok_or_else(|| self.damaged(format!("entry {index} is in no segment")))?;
            let bytes = window.record(segment, offset).map_err(io_error(
                "read",
                &*self.config.disk,
                &segment.name,
            ))?;
            let entry = match decode(bytes, segment.stamp).map(|found| found.record) {
                Some(Record::Entry { kind, index: found, term, context, data }) if found == index => {
                    to_entry(kind, index, term, context, data)
                }
                _ => None,
            };
            let entry = entry.ok_or_else(|| {
                self.damaged(format!("entry {index} at byte {offset} of {} is unreadable", segment.name))
            })?;
            size += (RECORD_HEADER_SIZE + entry.data.len() + entry.context.len()) as u64;
            if size > size_max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn append(&mut self, entries: &[Entry], hard_state: &HardState) -> Result<(), LogError> {
        if let Some(first) = entries.first() {
            assert!(
                self.hard_state.commit < first.index && first.index <= self.last_index + 1,
                "entry {} cannot follow {}, committed is {}",
                first.index,
                self.last_index,
                self.hard_state.commit
            );
            if first.index <= self.last_index {
                let previous_term =
                    self.terms.at(first.index - 1).expect("it is at or above the commit index");
                self.put(&Record::Truncate { from: first.index, previous_term })?;
                self.cut_from(first.index, previous_term);
            }
        }
        for entry in entries {
            let position = self.put(&Record::of_entry(entry))?;
            self.note_entry(entry.index, entry.term, position);
        }
        if *hard_state != self.hard_state {
            self.put(&Record::HardState {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
            })?;
            self.hard_state = hard_state.clone();
        }
        self.write_out()
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.unsynced {
            let segment = self.last_segment();
            segment.file.sync_data().map_err(io_error("sync", &*self.config.disk, &segment.name))?;
            self.unsynced = false;
            self.synced_number = self.next_number - 1;
        }
        Ok(())
    }

    fn reset(&mut self, index: u64, term: u64) -> Result<(), LogError> {
        assert!(
            self.hard_state.commit <= index,
            "a snapshot at {index} would void entry {}, which was committed",
            self.hard_state.commit
        );
        self.put(&Record::Reset { index, term })?;
        self.forget_entries(index, term);
        self.write_out()?;
        self.sync()
    }

    fn admit(&mut self, size: u64, keep: u64) -> bool {
        if self.room() >= size + keep {
            return true;
        }
        self.poll_preparing(false);
        if self.spares.is_empty() {
            self.start_preparing();
            self.poll_preparing(true);
        }
        self.room() >= size + keep
    }

    fn is_short_of(&self, size: u64) -> bool {
        self.prepare_failed_ns.is_some() && self.room() < size
    }

    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        while let [oldest, next, ..] = self.segments.make_contiguous() {
            // The entries of the segments behind it begin where its own end.
            let base = match oldest.offsets.len() {
                0 => self.terms.base_index,
                count => oldest.first_index + count as u64 - 1,
            };
            if base > index {
                break;
            }
            debug_assert!(next.offsets.is_empty() || next.first_index == base + 1);
            let name = oldest.name.clone();
            if self.spares.len() < SPARES_MAX && oldest.capacity == self.config.segment_bytes {
                let spare = retire_segment(&*self.config.disk, &name)?;
                self.spares.push(spare);
            } else {
                remove_segment(&*self.config.disk, &name)?;
            }
            self.terms.forget_to(base);
            self.segments.pop_front();
            wire::failpoint::hit("consensus_segment_recycled");
        }
        Ok(())
    }

    fn maintain(&mut self) {
        self.poll_preparing(false);
        // After a roll the old segment is about to be recycled; only if that takes half a segment is one made anew.
        let waiting = self.rolls > 0 && self.position < self.last_segment().capacity / 2;
        if self.spares.is_empty() && !waiting {
            self.start_preparing();
        }
    }

    fn rolls(&self) -> u64 {
        self.rolls
    }
}

impl Drop for SegmentedLog {
    fn drop(&mut self) {
        // A spare in the making would otherwise appear in a directory that somebody else has opened meanwhile.
        if self.preparing {
            self.poll_preparing(true);
        }
    }
}

impl Preparer {
    fn start(config: &LogConfig) -> io::Result<Preparer> {
        let (orders, inbox) = tokio::sync::mpsc::channel(1);
        let (sender, outcomes): (SyncSender<_>, _) = sync_channel(1);
        let (disk, segment_bytes) = (Arc::clone(&config.disk), config.segment_bytes);
        actor::start(&format!("{}-prepare", config.name), inbox, move |orders: &mut Vec<()>| {
            for () in orders.drain(..) {
                if sender.send(prepare_spare(&*disk, segment_bytes)).is_err() {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(Preparer { orders, outcomes })
    }
}

impl Terms {
    fn new(base_index: u64, base_term: u64) -> Self {
        Terms { base_index, base_term, runs: VecDeque::new() }
    }

    fn push(&mut self, index: u64, term: u64) {
        if self.runs.back().is_none_or(|(_, last)| *last != term) {
            self.runs.push_back((index, term));
        }
    }

    /// The term of the last entry, or of the base.
    fn last(&self) -> u64 {
        self.runs.back().map_or(self.base_term, |(_, term)| *term)
    }

    /// The term of an index at or above the base.
    fn at(&self, index: u64) -> Option<u64> {
        if index < self.base_index {
            return None;
        }
        if index == self.base_index {
            return Some(self.base_term);
        }
        let run = self.runs.partition_point(|(first, _)| *first <= index).checked_sub(1)?;
        Some(self.runs[run].1)
    }

    fn cut_from(&mut self, from: u64, previous_term: u64) {
        while self.runs.back().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop_back();
        }
        if from <= self.base_index {
            // The base stood for entries of older segments that were void already when those were recycled.
            *self = Terms::new(from - 1, previous_term);
        }
    }

    fn forget_to(&mut self, index: u64) {
        self.base_term = self.at(index).expect("only what was noted is forgotten");
        self.base_index = index;
        while self.runs.get(1).is_some_and(|(first, _)| *first <= index + 1) {
            self.runs.pop_front();
        }
    }
}

/// Bytes of a segment read ahead, since entries are mostly read in order.
#[derive(Default)]
struct Window {
    epoch: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Bytes from a record's start on that hold at least the whole record, as far as the file goes.
    fn record(&mut self, segment: &Segment, offset: u64) -> io::Result<&[u8]> {
        let held = self.epoch == segment.stamp.epoch && offset >= self.start;
        let at = (offset - self.start.min(offset)) as usize;
        let whole = held
            && self.bytes.len() >= at + RECORD_HEADER_SIZE
            && self.bytes.len() >= at + claimed_size(&self.bytes[at..]);
        if whole {
            return Ok(&self.bytes[at..]);
        }
        self.fill(segment, offset, READ_WINDOW)?;
        if self.bytes.len() >= RECORD_HEADER_SIZE && claimed_size(&self.bytes) > self.bytes.len() {
            self.fill(segment, offset, claimed_size(&self.bytes) as u64)?;
        }
        Ok(&self.bytes)
    }

    fn fill(&mut self, segment: &Segment, offset: u64, size: u64) -> io::Result<()> {
        let size = size.min(segment.capacity - offset) as usize;
        self.bytes.resize(size, 0);
        segment.file.read_into(offset, &mut self.bytes)?;
        self.epoch = segment.stamp.epoch;
        self.start = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
