//! Room on the disk: what is refused when it runs out, so that deleting still works.
//!
//! A service that is full must go on reading and deleting, and deleting writes too: a log entry and rows of state.
//! The log keeps a spare segment for that (see `log`). The state file grows by pieces that are allocated before they
//! are written, and a *reserve* file stands ready to be shortened when the file system has nothing left:
//!
//! ```text
//!  free bytes     >= disk_free_min and reserve whole     everything passes
//!                 less, reserve at least half            only commands that free space
//!                 reserve less than half                 nothing; reads go on
//! ```
//!
//! The lower half of the reserve is for rows of commands that were admitted already: the state file's writes lag
//! behind in its cache. The reserve is filled up again as soon as there is room.
//!
//! Not here: who asks (see `driver`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

/// What the disk lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    All,
    FreeingOnly,
    Nothing,
}

/// The reserve file of a group and the free space around it.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: Mutex<File>,
    size: u64,
    left: AtomicU64,
}

impl Reserve {
    /// Makes or opens the reserve and fills it up as far as there is room.
    pub(crate) fn open(path: &Path, size: u64) -> io::Result<Reserve> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let left = file.metadata()?.len();
        let reserve = Reserve { file: Mutex::new(file), size, left: AtomicU64::new(left) };
        if left > size {
            reserve.file.lock().set_len(size)?;
            reserve.left.store(size, Ordering::Release);
        }
        reserve.refill(0)?;
        Ok(reserve)
    }

    /// Looks at the disk and says what may pass; fills the reserve up where there is room for it and `free_min`.
    pub(crate) fn admission(&self, free_min: u64) -> io::Result<Admission> {
        self.refill(free_min)?;
        let left = self.left.load(Ordering::Acquire);
        Ok(if left < self.size / 2 {
            Admission::Nothing
        } else if left < self.size || self.free()? < free_min {
            Admission::FreeingOnly
        } else {
            Admission::All
        })
    }

    /// Gives `bytes` of the reserve back to the file system; false if none are left.
    pub(crate) fn release(&self, bytes: u64) -> io::Result<bool> {
        let file = self.file.lock();
        let left = self.left.load(Ordering::Acquire);
        if left == 0 {
            return Ok(false);
        }
        let rest = left.saturating_sub(bytes);
        file.set_len(rest)?;
        self.left.store(rest, Ordering::Release);
        Ok(true)
    }

    fn refill(&self, free_min: u64) -> io::Result<()> {
        let left = self.left.load(Ordering::Acquire);
        if left == self.size || self.free()? < (self.size - left) + free_min {
            return Ok(());
        }
        let file = self.file.lock();
        match allocate(&file, left, self.size - left, true) {
            Ok(()) => self.left.store(self.size, Ordering::Release),
            Err(error) if is_full(&error) => file.set_len(left)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        let found = fstatvfs(&*self.file.lock())?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Allocates blocks so that writing them cannot run out of space; `extend` moves the end of the file along. Where the
/// file system cannot, a file that is extended is filled with zeros, any other one takes its chance.
pub(crate) fn allocate(file: &File, at: u64, size: u64, extend: bool) -> io::Result<()> {
    let flags = if extend { FallocateFlags::empty() } else { FallocateFlags::KEEP_SIZE };
    match fallocate(file, flags, at, size) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if extend => {
            let zeros = vec![0; 1 << 16];
            let mut done = 0;
            while done < size {
                let piece = zeros.len().min((size - done) as usize);
                file.write_all_at(&zeros[..piece], at + done)?;
                done += piece as u64;
            }
            Ok(())
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn a_used_reserve_lets_pass_less_and_fills_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = Reserve::open(&path, SIZE).unwrap();
        assert_eq!(reserve.admission(0).unwrap(), Admission::All);
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::FreeingOnly);
        assert!(reserve.release(SIZE / 4).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE / 4 * 3);
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::FreeingOnly);
        assert!(reserve.release(SIZE / 2).unwrap());
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::Nothing);
        assert!(reserve.release(SIZE).unwrap());
        assert!(!reserve.release(1).unwrap(), "nothing is left to give");
        assert_eq!(reserve.admission(0).unwrap(), Admission::All);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
    }

    #[test]
    fn a_smaller_reserve_is_cut_at_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        drop(Reserve::open(&path, SIZE).unwrap());
        let reserve = Reserve::open(&path, SIZE / 2).unwrap();
        assert_eq!(reserve.left.load(Ordering::Acquire), SIZE / 2);
    }
}
