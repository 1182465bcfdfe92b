//! A disk in memory that behaves as badly as real ones may: for crash tests and simulators.
//!
//! Every page (4 KiB) has a durable version and perhaps a newer one that was written and not synced. A crash keeps or
//! forgets each unsynced page by a coin toss, and each change of names since the last [`DiskIo::sync_names`] likewise.
//! Faults can be set: a sync that fails, reads and writes that fail, pages that cannot be read, a disk that is full or
//! has vanished. Bits can be flipped, also under the cache.
//!
//! A handle belongs to the life of the machine in which it called [`DiskIo::lock`], a file to that in which it was opened:
//! after a crash they do nothing any more. A handle that never locked (a test's own) lives on.
//!
//! Deterministic: the same calls and the same seeds give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::disk::{BlockFile, DiskIo, OpenMode, Room};

/// Bytes that survive or vanish together.
const PAGE_BYTES: u64 = 4096;

const PAGE: usize = PAGE_BYTES as usize;

type Page = Arc<[u8; PAGE]>;

static ZERO_BYTES: [u8; PAGE] = [0; PAGE];

/// The page that all zeroed pages share.
fn zero_page() -> Page {
    static ZERO_PAGE: OnceLock<Page> = OnceLock::new();
    Arc::clone(ZERO_PAGE.get_or_init(|| Arc::new(ZERO_BYTES)))
}

/// A disk in memory. Clones share it.
#[derive(Debug)]
pub struct SimulatedDisk {
    shared: Arc<Mutex<Shared>>,
    /// The life in which this handle locked the disk, [`UNBOUND`] before.
    life: AtomicU64,
}

const UNBOUND: u64 = u64::MAX;

impl Clone for SimulatedDisk {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), life: AtomicU64::new(UNBOUND) }
    }
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next_file: u64,
    capacity: u64,
    faults: Faults,
    /// Handles of an earlier life do nothing.
    life: u64,
    is_locked: bool,
    sync_count: u64,
    operations: u64,
    crash_at: Option<(u64, u64)>,
    /// Pages, by file, whose sectors the medium cannot read.
    unreadable: BTreeSet<(u64, u64)>,
    is_gone: bool,
    trace: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// The next sync of a file fails and its pages stay unsynced; later ones succeed, as on Linux.
    pub next_sync_fails: bool,
    /// So does the one after so many that succeed; 0 for none.
    pub sync_fails_after: u32,
    /// Reads fail.
    pub reads_fail: bool,
    /// Writes fail.
    pub writes_fail: bool,
    /// Writes find no room, whatever the disk says of its free space: a quota, or somebody faster.
    pub has_no_room: bool,
}

#[derive(Debug, Clone, Default)]
struct Contents {
    pages: BTreeMap<u64, Page>,
    length: u64,
    durable_pages: BTreeMap<u64, Page>,
    durable_length: u64,
    dirty: BTreeSet<u64>,
    /// Pages that have room and no bytes.
    reserved: BTreeSet<u64>,
}

impl Contents {
    fn stored(&self) -> u64 {
        (self.pages.len() + self.reserved.len()) as u64 * PAGE_BYTES
    }

    fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        self.length = self.length.max(offset + data.len() as u64);
        while !data.is_empty() {
            let (number, at) = (offset / PAGE_BYTES, (offset % PAGE_BYTES) as usize);
            let count = data.len().min(PAGE - at);
            if count == PAGE && data[..PAGE] == ZERO_BYTES {
                // Files are zero-filled ahead; all their pages share one.
                self.pages.insert(number, zero_page());
            } else {
                let page = self.pages.entry(number).or_insert_with(zero_page);
                Arc::make_mut(page)[at..at + count].copy_from_slice(&data[..count]);
            }
            self.reserved.remove(&number);
            self.dirty.insert(number);
            offset += count as u64;
            data = &data[count..];
        }
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = (offset + length as u64).min(self.length);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        self.read_into(offset, &mut out);
        out
    }

    /// Fills `out`, which ends at or before the file's end.
    fn read_into(&self, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let (number, at) = (offset / PAGE_BYTES, (offset % PAGE_BYTES) as usize);
            let count = out.len().min(PAGE - at);
            let (part, rest) = out.split_at_mut(count);
            match self.pages.get(&number) {
                Some(page) => part.copy_from_slice(&page[at..at + count]),
                None => part.fill(0),
            }
            out = rest;
            offset += count as u64;
        }
    }

    fn reserve(&mut self, offset: u64, length: u64) {
        let pages = offset / PAGE_BYTES..(offset + length).div_ceil(PAGE_BYTES);
        self.reserved.extend(pages.filter(|number| !self.pages.contains_key(number)));
    }

    fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            match self.pages.get(&number) {
                Some(page) => self.durable_pages.insert(number, page.clone()),
                None => self.durable_pages.remove(&number),
            };
        }
        self.durable_length = self.length;
    }

    fn drop_cached(&mut self, end: u64) {
        let end = end.div_ceil(PAGE_BYTES);
        let mut pages = self.durable_pages.clone();
        pages.retain(|number, _| *number < end);
        pages.extend(
            self.pages
                .iter()
                .filter(|(number, _)| **number >= end)
                .map(|(number, page)| (*number, page.clone())),
        );
        for number in &self.dirty {
            match self.pages.get(number) {
                Some(page) => pages.insert(*number, page.clone()),
                None => pages.remove(number),
            };
        }
        self.pages = pages;
    }

    fn crash(&mut self, coin: &mut Coin) {
        for number in std::mem::take(&mut self.dirty) {
            if coin.toss() {
                match self.pages.get(&number) {
                    Some(page) => self.durable_pages.insert(number, page.clone()),
                    None => self.durable_pages.remove(&number),
                };
            }
        }
        if coin.toss() {
            self.durable_length = self.length;
        }
        let lost = self.pages.keys().filter(|number| !self.durable_pages.contains_key(number));
        self.reserved.extend(lost);
        self.pages = self.durable_pages.clone();
        self.length = self.durable_length;
        let end = self.length.div_ceil(PAGE_BYTES);
        self.pages.retain(|number, _| *number < end);
        let pages = &self.pages;
        self.reserved.retain(|number| *number < end && !pages.contains_key(number));
        self.durable_pages = self.pages.clone();
    }
}

/// SplitMix64: small, and repeats from its seed.
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn toss(&mut self) -> bool {
        self.next() >> 63 == 1
    }
}

impl Shared {
    fn crash(&mut self, seed: u64) {
        let mut coin = Coin(seed);
        for contents in self.files.values_mut() {
            contents.crash(&mut coin);
        }
        let changed: BTreeSet<String> = self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for name in changed {
            let (now, durable) = (self.names.get(&name).copied(), self.durable_names.get(&name).copied());
            if now != durable && coin.toss() {
                match now {
                    Some(file) => self.durable_names.insert(name, file),
                    None => self.durable_names.remove(&name),
                };
            }
        }
        self.names = self.durable_names.clone();
        self.life += 1;
        self.is_locked = false;
        self.faults = Faults::default();
        self.crash_at = None;
    }

    /// Counts an operation, and crashes before it if its time has come.
    fn begin_operation(&mut self, life: u64, trace: &[u64]) -> io::Result<()> {
        self.operations += 1;
        if let Some((at, seed)) = self.crash_at
            && self.operations >= at
        {
            self.crash(seed);
            return Err(crashed());
        }
        if life != self.life && life != UNBOUND {
            return Err(crashed());
        }
        self.note(trace);
        if self.is_gone { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    fn note(&mut self, trace: &[u64]) {
        for word in trace {
            self.trace = Coin(self.trace ^ word).next();
        }
    }

    /// The same for an operation on a name.
    fn begin_naming(&mut self, handle: &SimulatedDisk, kind: u64, name: &str) -> io::Result<()> {
        self.begin_operation(handle.life.load(Ordering::Relaxed), &[kind, hash(name.as_bytes())])
    }
}

fn crashed() -> io::Error {
    io::Error::other("the machine has crashed")
}

/// For traces: tells contents apart, guards against nothing.
fn hash(bytes: &[u8]) -> u64 {
    let word = |part: &[u8]| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    };
    let start = bytes.len() as u64;
    bytes
        .chunks(8)
        .fold(start, |sum, part| (sum.rotate_left(5) ^ word(part)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new(capacity: u64) -> Self {
        let shared = Shared {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            next_file: 0,
            capacity,
            faults: Faults::default(),
            life: 0,
            is_locked: false,
            sync_count: 0,
            operations: 0,
            crash_at: None,
            unreadable: BTreeSet::new(),
            is_gone: false,
            trace: 0,
        };
        Self { shared: Arc::new(Mutex::new(shared)), life: AtomicU64::new(UNBOUND) }
    }

    /// Power is cut: what was not synced survives by the tosses of `seed`. Handles opened before do nothing any more.
    pub fn crash(&self, seed: u64) {
        self.shared.lock().crash(seed);
    }

    /// Cuts the power when so many more operations on files have been begun.
    pub fn crash_after(&self, operations: u64, seed: u64) {
        let mut shared = self.shared.lock();
        shared.crash_at = Some((shared.operations + operations, seed));
    }

    /// Whether a crash that was set with [`Self::crash_after`] is still to come; it comes no more.
    pub fn cancel_crash(&self) -> bool {
        self.shared.lock().crash_at.take().is_some()
    }

    /// The process dies, the machine does not: nothing written is lost, handles do nothing any more.
    pub fn kill(&self) {
        let mut shared = self.shared.lock();
        shared.life += 1;
        shared.is_locked = false;
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.lock().faults = faults;
    }

    /// Sets the disk's size.
    pub fn set_capacity(&self, capacity: u64) {
        self.shared.lock().capacity = capacity;
    }

    /// How many syncs of files have succeeded.
    pub fn sync_count(&self) -> u64 {
        self.shared.lock().sync_count
    }

    /// The bytes of a file as they are now.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let shared = self.shared.lock();
        let contents = &shared.files[shared.names.get(name)?];
        Some(contents.read(0, contents.length as usize))
    }

    /// Changes bytes of a file behind everyone's back, durably.
    pub fn damage(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut shared = self.shared.lock();
        if let Some(file) = shared.names.get(name).copied()
            && let Some(contents) = shared.files.get_mut(&file)
        {
            contents.write(offset, bytes);
            contents.sync();
        }
    }

    /// Changes bytes on the medium; what memory holds of them stays right until [`BlockFile::drop_cached`] or a crash.
    pub fn rot(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut shared = self.shared.lock();
        if let Some(file) = shared.names.get(name).copied()
            && let Some(contents) = shared.files.get_mut(&file)
        {
            for (byte, position) in bytes.iter().zip(offset..) {
                let page = contents.durable_pages.entry(position / PAGE_BYTES).or_insert_with(zero_page);
                Arc::make_mut(page)[(position % PAGE_BYTES) as usize] = *byte;
            }
        }
    }

    /// Reads of these bytes fail from now on, until they are written.
    pub fn make_unreadable(&self, name: &str, offset: u64, length: u64) {
        let mut shared = self.shared.lock();
        if let Some(file) = shared.names.get(name).copied() {
            let pages = offset / PAGE_BYTES..(offset + length).div_ceil(PAGE_BYTES);
            shared.unreadable.extend(pages.map(|page| (file, page)));
        }
    }

    /// All bytes can be read again.
    pub fn make_readable(&self) {
        self.shared.lock().unreadable.clear();
    }

    /// The disk is pulled out, or put back: nothing is found on it meanwhile.
    pub fn set_gone(&self, is_gone: bool) {
        self.shared.lock().is_gone = is_gone;
    }

    /// How many operations were begun.
    pub fn operation_count(&self) -> u64 {
        self.shared.lock().operations
    }

    /// A hash over all operations so far, their places and their bytes: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.shared.lock().trace
    }

    fn used(shared: &Shared) -> u64 {
        // A file has one name, and each knows its number of pages.
        shared.names.values().filter_map(|file| shared.files.get(file)).map(Contents::stored).sum()
    }
}

impl DiskIo for SimulatedDisk {
    fn name(&self) -> String {
        "simulated".to_owned()
    }

    fn lock(&self) -> io::Result<bool> {
        let mut shared = self.shared.lock();
        self.life.store(shared.life, Ordering::Relaxed);
        Ok(!std::mem::replace(&mut shared.is_locked, true))
    }

    fn unlock(&self) -> io::Result<()> {
        let mut shared = self.shared.lock();
        if self.life.load(Ordering::Relaxed) == shared.life {
            shared.is_locked = false;
        }
        Ok(())
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let mut shared = self.shared.lock();
        shared.begin_naming(self, 1, name)?;
        let existing = shared.names.get(name).copied();
        let file = match (existing, mode) {
            (Some(file), OpenMode::Fresh) => {
                let contents = shared.files.entry(file).or_default();
                contents.dirty = contents.pages.keys().copied().collect();
                contents.pages.clear();
                contents.reserved.clear();
                contents.length = 0;
                file
            }
            (Some(file), _) => file,
            (None, OpenMode::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) => {
                let file = shared.next_file;
                shared.next_file += 1;
                shared.files.insert(file, Contents::default());
                shared.names.insert(name.to_owned(), file);
                file
            }
        };
        Ok(Arc::new(SimulatedFile { shared: self.shared.clone(), file, life: shared.life }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.begin_naming(self, 2, to)?;
        let file = shared.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        shared.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.begin_naming(self, 3, name)?;
        let removed = shared.names.remove(name);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut shared = self.shared.lock();
        shared.begin_naming(self, 4, "")?;
        Ok(shared.names.keys().cloned().collect())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut shared = self.shared.lock();
        shared.begin_naming(self, 5, "")?;
        shared.durable_names = shared.names.clone();
        Ok(())
    }

    fn room(&self) -> io::Result<Room> {
        let shared = self.shared.lock();
        if shared.is_gone {
            return Err(io::ErrorKind::NotFound.into());
        }
        let used = Self::used(&shared);
        Ok(Room { capacity: shared.capacity, available: shared.capacity.saturating_sub(used) })
    }
}

#[derive(Debug)]
struct SimulatedFile {
    shared: Arc<Mutex<Shared>>,
    file: u64,
    life: u64,
}

impl SimulatedFile {
    fn with<R>(
        &self,
        trace: &[u64],
        act: impl FnOnce(&mut Contents, &mut Faults) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut shared = self.shared.lock();
        shared.begin_operation(self.life, &[self.file])?;
        shared.note(trace);
        let mut faults = shared.faults;
        let contents = shared.files.entry(self.file).or_default();
        let done = act(contents, &mut faults);
        shared.faults = faults;
        done
    }

    fn check_room(&self, pages: u64) -> io::Result<()> {
        let shared = self.shared.lock();
        if SimulatedDisk::used(&shared) + pages * PAGE_BYTES > shared.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Pages of the range that have no room yet.
    fn pages_lacking(&self, offset: u64, length: u64) -> io::Result<u64> {
        self.with(&[10, offset, length], |contents, _| {
            let pages = offset / PAGE_BYTES..(offset + length).div_ceil(PAGE_BYTES);
            Ok(pages
                .filter(|number| !contents.pages.contains_key(number) && !contents.reserved.contains(number))
                .count() as u64)
        })
    }
}

fn broken() -> io::Error {
    io::Error::other("simulated input or output error")
}

impl BlockFile for SimulatedFile {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let pages =
            (self.file, offset / PAGE_BYTES)..(self.file, (offset + length as u64).div_ceil(PAGE_BYTES));
        if self.shared.lock().unreadable.range(pages).next().is_some() {
            return Err(broken());
        }
        self.with(&[11, offset, length as u64], |contents, faults| {
            if faults.reads_fail { Err(broken()) } else { Ok(contents.read(offset, length)) }
        })
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        let mut shared = self.shared.lock();
        let pages = (self.file, offset / PAGE_BYTES)..(self.file, end.div_ceil(PAGE_BYTES));
        let is_unreadable = !shared.unreadable.is_empty() && shared.unreadable.range(pages).next().is_some();
        shared.begin_operation(self.life, &[self.file])?;
        shared.note(&[11, offset, out.len() as u64]);
        if is_unreadable || shared.faults.reads_fail {
            return Err(broken());
        }
        let contents = shared.files.entry(self.file).or_default();
        if contents.length < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        contents.read_into(offset, out);
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let lacking = self.pages_lacking(offset, total as u64)?;
        if lacking > 0 {
            self.check_room(lacking)?;
        }
        let bytes = parts.iter().fold(0u64, |sum, part| sum.rotate_left(1) ^ hash(part));
        let written = self.with(&[12, offset, bytes], |contents, faults| {
            if faults.writes_fail {
                return Err(broken());
            }
            if faults.has_no_room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut position = offset;
            for part in parts {
                contents.write(position, part);
                position += part.len() as u64;
            }
            Ok(())
        });
        let mut shared = self.shared.lock();
        if written.is_ok() && !shared.unreadable.is_empty() {
            // Disks put another sector in the place of a bad one that is written.
            let pages = offset / PAGE_BYTES..(offset + total as u64).div_ceil(PAGE_BYTES);
            shared.unreadable.retain(|(file, page)| *file != self.file || !pages.contains(page));
        }
        written
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.check_room(self.pages_lacking(offset, length)?)?;
        self.with(&[13, offset, length], |contents, _| {
            contents.reserve(offset, length);
            contents.length = contents.length.max(offset + length);
            Ok(())
        })
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        let lacking = self.pages_lacking(offset, length)?;
        if lacking > 0 {
            self.check_room(lacking)?;
        }
        self.with(&[19, offset, length], |contents, faults| {
            if faults.has_no_room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            contents.reserve(offset, length);
            Ok(())
        })
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.with(&[14, offset, length], |contents, faults| {
            if faults.writes_fail {
                return Err(broken());
            }
            for number in offset.div_ceil(PAGE_BYTES)..(offset + length) / PAGE_BYTES {
                contents.reserved.remove(&number);
                if contents.pages.remove(&number).is_some() {
                    contents.dirty.insert(number);
                }
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.with(&[15], |contents, faults| {
            if std::mem::take(&mut faults.next_sync_fails) {
                // As on Linux: the pages count as clean afterwards, so a second sync would say all is well.
                contents.dirty.clear();
                return Err(broken());
            }
            if faults.sync_fails_after > 0 {
                faults.sync_fails_after -= 1;
                faults.next_sync_fails = faults.sync_fails_after == 0;
            }
            contents.sync();
            Ok(())
        });
        self.shared.lock().sync_count += u64::from(synced.is_ok());
        synced
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn drop_cached(&self, end: u64) -> io::Result<()> {
        self.with(&[18], |contents, _| {
            contents.drop_cached(end);
            Ok(())
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(&[16], |contents, _| Ok(contents.length))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.with(&[17, length], |contents, _| {
            contents.length = length;
            contents.reserved.retain(|number| *number < length.div_ceil(PAGE_BYTES));
            let end = length.div_ceil(PAGE_BYTES);
            let cut: Vec<u64> = contents.pages.range(end..).map(|(number, _)| *number).collect();
            for number in cut {
                contents.pages.remove(&number);
                contents.dirty.insert(number);
            }
            // What is cut off reads as zeros when the file grows again.
            let kept = (length % PAGE_BYTES) as usize;
            if kept > 0
                && let Some(page) = contents.pages.get_mut(&(end - 1))
            {
                Arc::make_mut(page)[kept..].fill(0);
                contents.dirty.insert(end - 1);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_hides_rot_until_it_is_dropped() {
        let disk = SimulatedDisk::new(1 << 20);
        let file = disk.open("file", OpenMode::Fresh).unwrap();
        file.write_at(0, &[&[1; 8192]]).unwrap();
        file.sync_data().unwrap();
        file.write_at(4096, &[&[2; 10]]).unwrap();
        disk.rot("file", 7, &[9]);
        assert_eq!(file.read_at(7, 1).unwrap(), [1]);
        file.drop_cached(u64::MAX).unwrap();
        assert_eq!(file.read_at(7, 1).unwrap(), [9]);
        disk.rot("file", 4103, &[9]);
        file.drop_cached(4096).unwrap();
        assert_eq!(file.read_at(4096, 1).unwrap(), [2], "what was not synced is still only in memory");
    }

    #[test]
    fn unreadable_pages_fail_until_written_and_a_past_life_names_nothing() {
        let disk = SimulatedDisk::new(1 << 20);
        let handle: Arc<dyn DiskIo> = Arc::new(disk.clone());
        assert!(handle.lock().unwrap());
        let file = handle.open("file", OpenMode::Fresh).unwrap();
        file.write_at(0, &[&[1; 12288]]).unwrap();
        disk.make_unreadable("file", 5000, 1);
        assert!(file.read_at(0, 4097).is_err());
        assert_eq!(file.read_at(8192, 1).unwrap(), [1]);
        file.write_at(4096, &[&[3; 4096]]).unwrap();
        assert_eq!(file.read_at(0, 4097).unwrap()[4096], 3);
        disk.kill();
        assert!(handle.remove("file").is_err());
        assert!(handle.lock().unwrap());
        handle.remove("file").unwrap();
    }
}
