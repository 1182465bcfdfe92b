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

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use platform::disk::{BlockFile, DiskIo, OpenMode};

/// The reserve's file.
pub(crate) const RESERVE: &str = "reserve";

/// What the disk lets pass, most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Admission {
    All,
    FreeingOnly,
    Nothing,
}

impl Admission {
    /// As peers tell one another.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Admission::All => 0,
            Admission::FreeingOnly => 1,
            Admission::Nothing => 2,
        }
    }

    /// What a peer says; numbers to come mean less room rather than more.
    pub(crate) fn from_wire(level: u8) -> Admission {
        match level {
            0 => Admission::All,
            1 => Admission::FreeingOnly,
            _ => Admission::Nothing,
        }
    }
}

/// The reserve file of a group and the free space around it.
#[derive(Debug)]
pub(crate) struct Reserve {
    disk: Arc<dyn DiskIo>,
    file: Mutex<Arc<dyn BlockFile>>,
    size: u64,
    left: AtomicU64,
}

impl Reserve {
    /// Makes or opens the reserve and fills it up as far as there is room.
    pub(crate) fn open(disk: &Arc<dyn DiskIo>, size: u64) -> io::Result<Reserve> {
        let file = disk.open(RESERVE, OpenMode::Either)?;
        let left = file.length()?;
        let reserve =
            Reserve { disk: Arc::clone(disk), file: Mutex::new(file), size, left: AtomicU64::new(left) };
        if left > size {
            reserve.file.lock().set_length(size)?;
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
        file.set_length(rest)?;
        self.left.store(rest, Ordering::Release);
        Ok(true)
    }

    fn refill(&self, free_min: u64) -> io::Result<()> {
        let left = self.left.load(Ordering::Acquire);
        if left == self.size || self.free()? < (self.size - left) + free_min {
            return Ok(());
        }
        let file = self.file.lock();
        match file.allocate(left, self.size - left) {
            Ok(()) => self.left.store(self.size, Ordering::Release),
            Err(error) if is_full(&error) => file.set_length(left)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        Ok(self.disk.room()?.available)
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use platform::simulated::SimulatedDisk;

    use super::*;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn a_used_reserve_lets_pass_less_and_fills_up_again() {
        let disk = SimulatedDisk::new(64 * SIZE);
        let disk: Arc<dyn DiskIo> = Arc::new(disk);
        let reserve = Reserve::open(&disk, SIZE).unwrap();
        assert_eq!(reserve.admission(0).unwrap(), Admission::All);
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::FreeingOnly);
        assert!(reserve.release(SIZE / 4).unwrap());
        assert_eq!(disk.open(RESERVE, OpenMode::Existing).unwrap().length().unwrap(), SIZE / 4 * 3);
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::FreeingOnly);
        assert!(reserve.release(SIZE / 2).unwrap());
        assert_eq!(reserve.admission(u64::MAX / 2).unwrap(), Admission::Nothing);
        assert!(reserve.release(SIZE).unwrap());
        assert!(!reserve.release(1).unwrap(), "nothing is left to give");
        assert_eq!(reserve.admission(0).unwrap(), Admission::All);
        assert_eq!(disk.open(RESERVE, OpenMode::Existing).unwrap().length().unwrap(), SIZE);
    }

    #[test]
    fn a_smaller_reserve_is_cut_at_open() {
        let disk = SimulatedDisk::new(64 * SIZE);
        let disk: Arc<dyn DiskIo> = Arc::new(disk);
        drop(Reserve::open(&disk, SIZE).unwrap());
        let reserve = Reserve::open(&disk, SIZE / 2).unwrap();
        assert_eq!(reserve.left.load(Ordering::Acquire), SIZE / 2);
    }
}
