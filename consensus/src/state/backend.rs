//! The file below redb: blocks are allocated before they are written, a failed sync ends the process.
//!
//! redb doubles its file and would meet a full disk in the middle of a transaction, or worse in a late write-back.
//! Here a growing file is only a longer hole; each piece is allocated when it is first written, from the reserve if
//! the disk has nothing left. So the error redb cannot live with does not occur while admission works.
//!
//! Not here: admission (see `space`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use platform::disk::BlockFile;
use redb::StorageBackend;

use crate::abort::fatal;
use crate::space::{Reserve, is_full};

/// Blocks are allocated in pieces of this size: few calls, little waste in a young file.
const PIECE: u64 = 1 << 20;

/// What is given back of the reserve at once: more than the piece, as others may take some of it meanwhile.
const RELEASE: u64 = 4 * PIECE;

#[derive(Debug)]
pub(crate) struct StateBackend {
    group: String,
    file: Arc<dyn BlockFile>,
    /// The file's length, for those who watch it grow.
    length: Arc<AtomicU64>,
    /// Which pieces are known to be allocated, a bit each.
    allocated: Mutex<Vec<u64>>,
    /// None of a file that must not use it.
    reserve: Option<Arc<Reserve>>,
}

impl StateBackend {
    pub(crate) fn open(
        group: &str,
        file: Arc<dyn BlockFile>,
        length: Arc<AtomicU64>,
        reserve: Option<Arc<Reserve>>,
    ) -> io::Result<Self> {
        length.store(file.length()?, Ordering::Relaxed);
        Ok(StateBackend { group: group.to_owned(), file, length, allocated: Mutex::new(Vec::new()), reserve })
    }

    fn ensure_allocated(&self, offset: u64, size: u64) -> io::Result<()> {
        let mut allocated = self.allocated.lock();
        for piece in offset / PIECE..(offset + size).div_ceil(PIECE) {
            let (word, bit) = ((piece / 64) as usize, 1 << (piece % 64));
            if allocated.len() <= word {
                allocated.resize(word + 1, 0);
            }
            if allocated[word] & bit == 0 {
                self.allocate_piece(piece)?;
                allocated[word] |= bit;
            }
        }
        Ok(())
    }

    fn allocate_piece(&self, piece: u64) -> io::Result<()> {
        loop {
            match self.file.reserve(piece * PIECE, PIECE) {
                Err(error) if is_full(&error) => {
                    let Some(reserve) = &self.reserve else { return Err(error) };
                    if !reserve.release(RELEASE)? {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }
}

impl StorageBackend for StateBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_into(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut allocated = self.allocated.lock();
        // What is cut off and grown again is a hole again.
        let whole = len / PIECE;
        allocated.truncate((whole / 64 + 1) as usize);
        if let Some(word) = allocated.get_mut((whole / 64) as usize) {
            *word &= (1 << (whole % 64)) - 1;
        }
        self.file.set_length(len)?;
        self.length.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            fatal(&self.group, "cannot sync the state file", &error);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.ensure_allocated(offset, data.len() as u64)?;
        self.file.write_at(offset, &[data])
    }
}
