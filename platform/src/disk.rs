//! What daemons need of a disk: one directory of files, written at offsets, punched and synced.
//!
//! Two traits stand between the daemons and the operating system, so that crash tests and the simulator put a disk
//! under the same code that forgets what was not synced (see `simulated`). The namespace is flat: a disk has few names,
//! and none comes from outside.
//!
//! Invariants of every implementation:
//! * What was written before [`BlockFile::sync_data`] returned `Ok` survives a power cut; what was not may survive in
//!   any part, page by page.
//! * A name survives only after [`DiskIo::sync_names`].
//!
//! Not here: which files there are and what is in them.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

/// Size and free space of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What is used, by anybody, and what is free for us.
    pub capacity: u64,
    /// Free for us.
    pub available: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Existing,
    /// Made, or cut to nothing.
    Fresh,
    /// Made if absent.
    Either,
}

/// A file that is read and written at offsets, by many threads at once.
pub trait BlockFile: Debug + Send + Sync + 'static {
    /// Reads `length` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Reads exactly as many bytes as `out` has.
    fn read_into(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.read_at(offset, out.len())?;
        if bytes.len() < out.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }

    /// The same if it needs no disk access (all of it is in memory); None otherwise. Never blocks.
    fn read_cached(&self, _offset: u64, _length: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Writes `parts`, one after the other, at `offset`.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Reserves room; what was never written reads as zeros. The file grows to the end of the range.
    fn allocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Reserves room without moving the file's end. Where the file system cannot, later writes take their chance.
    fn reserve(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Gives room back; the range reads as zeros.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// A hint that nobody will write this range again, so that its way to the disk may begin.
    fn start_writeback(&self, _offset: u64, _length: u64) {}

    /// Makes all data written so far durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes all data and the file's attributes (holes) durable.
    fn sync_all(&self) -> io::Result<()>;

    /// Forgets what memory holds, from the beginning of the file to at least `end`, of data that was synced: what is read
    /// next comes from the medium. To be called after a sync, by those who want to know what the disk really has.
    fn drop_cached(&self, _end: u64) -> io::Result<()> {
        Ok(())
    }

    /// The file's size in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file or extends it with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
}

/// A disk: a flat directory.
pub trait DiskIo: Debug + Send + Sync + 'static {
    /// What people call it.
    fn name(&self) -> String;

    /// Takes the disk for this process; false if another has it.
    fn lock(&self) -> io::Result<bool>;

    /// Lets go of the disk, so that it can be taken again.
    fn unlock(&self) -> io::Result<()>;

    /// Opens a file.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>>;

    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name; open files live on.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// All names.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes names durable.
    fn sync_names(&self) -> io::Result<()>;

    /// Size and free space.
    fn room(&self) -> io::Result<Room>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    lock: File,
}

impl Directory {
    /// Opens the directory, making it if it is absent.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let handle = File::open(path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        Ok(Self { path: path.to_owned(), handle, lock })
    }
}

impl DiskIo for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(&self.lock, FlockOperation::Unlock)?)
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match mode {
            OpenMode::Existing => {}
            OpenMode::Fresh => {
                options.create(true).truncate(true);
            }
            OpenMode::Either => {
                options.create(true).truncate(false);
            }
        }
        Ok(Arc::new(SystemFile { file: options.open(self.path.join(name))? }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn room(&self) -> io::Result<Room> {
        // By path: an unmounted or removed directory must be noticed, and a handle would keep answering.
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(room_of(stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_frsize))
    }
}

/// Room by the counts of a file system's blocks. Those that are reserved for root are not ours to fill: they are neither
/// free nor used, as `df` reckons.
fn room_of(blocks: u64, free: u64, available: u64, block_bytes: u64) -> Room {
    let used = blocks.saturating_sub(free);
    let bytes = |blocks: u64| blocks.saturating_mul(block_bytes);
    Room { capacity: bytes(used.saturating_add(available)), available: bytes(available) }
}

#[derive(Debug)]
struct SystemFile {
    file: File,
}

impl BlockFile for SystemFile {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(length);
        while buffer.len() < length {
            let position = offset + buffer.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut buffer), position) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        buffer.truncate(length);
        Ok(buffer)
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < out.len() {
            match rustix::io::pread(&self.file, &mut out[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_cached(&self, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; length];
        let got = rustix::io::preadv2(
            &self.file,
            &mut [IoSliceMut::new(&mut buffer)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        match got {
            Ok(count) if count == length => Ok(Some(buffer)),
            // Partly in memory, or a file system that does not know the flag: the caller reads on a blocking thread.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        while done < total {
            let mut skip = done;
            let mut slices = Vec::with_capacity(parts.len());
            for part in parts {
                if skip >= part.len() {
                    skip -= part.len();
                } else {
                    slices.push(IoSlice::new(&part[skip..]));
                    skip = 0;
                }
            }
            match rustix::io::pwritev(&self.file, &slices, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, length) {
            Ok(()) => Ok(()),
            // Some file systems cannot reserve; a longer sparse file is the best they do.
            Err(Errno::OPNOTSUPP) => {
                let end = offset + length;
                if self.length()? < end { self.file.set_len(end) } else { Ok(()) }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(()),
            // Without holes the bytes must go all the same: they are overwritten.
            Err(Errno::OPNOTSUPP) => write_zeros(self, offset, length),
            Err(error) => Err(error.into()),
        }
    }

    fn start_writeback(&self, offset: u64, length: u64) {
        // Linux begins to write dirty pages of a range that is said not to be needed, without waiting, and drops only
        // clean ones, of which a range just written has none. A hint: errors do not matter.
        let length = std::num::NonZeroU64::new(length);
        let _ = rustix::fs::fadvise(&self.file, offset, length, Advice::DontNeed);
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.file)?)
    }

    fn drop_cached(&self, end: u64) -> io::Result<()> {
        // Clean pages only, and only folios that lie in the range as a whole. None is the whole file; a file system
        // without pages of its own (tmpfs) keeps them.
        let length = end.checked_next_multiple_of(FOLIO_BYTES_MAX).and_then(std::num::NonZeroU64::new);
        Ok(rustix::fs::fadvise(&self.file, 0, length, Advice::DontNeed)?)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
}

/// Linux caches files in units of up to this.
const FOLIO_BYTES_MAX: u64 = 4 << 20;

/// Zeros written at a time.
const ZEROS_BYTES: usize = 256 << 10;

/// Overwrites a range with zeros.
pub fn write_zeros(file: &dyn BlockFile, offset: u64, length: u64) -> io::Result<()> {
    static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];
    let mut done = 0;
    while done < length {
        let count = (length - done).min(ZEROS_BYTES as u64);
        file.write_at(offset + done, &[&ZEROS[..count as usize]])?;
        done += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_what_was_synced_and_reads_it_past_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::open(&dir.path().join("made")).unwrap();
        assert!(disk.lock().unwrap());
        let file = disk.open("new", OpenMode::Fresh).unwrap();
        file.allocate(0, 1 << 20).unwrap();
        file.write_at(4096, &[b"some ", b"bytes"]).unwrap();
        file.sync_all().unwrap();
        file.drop_cached(u64::MAX).unwrap();
        file.drop_cached(1).unwrap();
        assert_eq!(file.read_at(4096, 10).unwrap(), b"some bytes");
        assert_eq!(file.read_at((1 << 20) - 3, 10).unwrap(), [0; 3], "fewer only at the end");
        file.punch(4096, 4096).unwrap();
        assert_eq!(file.read_at(4096, 10).unwrap(), [0; 10]);
        disk.rename("new", "old").unwrap();
        disk.sync_names().unwrap();
        assert_eq!(disk.list().unwrap(), ["lock", "old"]);
        assert!(disk.open("new", OpenMode::Existing).is_err());
        let other = Directory::open(&dir.path().join("made")).unwrap();
        assert!(!other.lock().unwrap(), "one process serves a disk");
        assert!(disk.room().unwrap().capacity > 0);
        std::fs::remove_dir_all(dir.path().join("made")).unwrap();
        assert!(disk.room().is_err(), "a directory that is gone is noticed");
    }

    #[test]
    fn room_is_reckoned_as_df_does() {
        // ext4 keeps a twentieth for root: of 100 blocks 30 are used, 65 are for everybody.
        assert_eq!(room_of(100, 70, 65, 4096), Room { capacity: 95 * 4096, available: 65 * 4096 });
        // Nothing left for us, though root could go on: full.
        assert_eq!(room_of(100, 5, 0, 4096), Room { capacity: 95 * 4096, available: 0 });
        // Counts that do not fit each other, as network file systems give: no overflow.
        assert_eq!(room_of(0, 7, u64::MAX, 4096).available, u64::MAX);
    }
}
