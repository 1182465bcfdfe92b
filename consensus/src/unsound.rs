//! A note in a group's directory that its replica is wrong, and is not to be opened again.
//!
//! A replica whose rows differ from those of most others, or are damaged, ends itself. Whatever started it would start it
//! again, and a replay heals nothing: it would vote, perhaps lead, and answer from wrong rows until it is found out the next
//! time. So the verdict is durable before the process ends, and opening refuses with what to do.
//!
//! Not here: how it is found out (see `driver`, and the services).

use std::io;
use std::path::PathBuf;

use platform::disk::{DiskIo, OpenMode};

use crate::error::OpenError;
use crate::replica::io_error;

/// The note's name.
pub(crate) const UNSOUND: &str = "unsound";

/// Bytes of the reason that are read at most.
const WHY_BYTES_MAX: usize = 1024;

/// Notes durably that the replica is wrong.
pub(crate) fn mark(disk: &dyn DiskIo, why: &str) -> io::Result<()> {
    let file = disk.open(UNSOUND, OpenMode::Either)?;
    file.write_at(0, &[why.as_bytes(), b"\n"])?;
    file.sync_all()?;
    disk.sync_names()
}

/// Refuses a directory with the note.
pub(crate) fn refuse(disk: &dyn DiskIo, raft_id: u64) -> Result<(), OpenError> {
    let names = disk.list().map_err(io_error("list", disk, ""))?;
    if !names.iter().any(|name| name == UNSOUND) {
        return Ok(());
    }
    // The note counts by being there: a crash may have come before its text.
    let file = disk.open(UNSOUND, OpenMode::Existing).map_err(io_error("open", disk, UNSOUND))?;
    let text = file.read_at(0, WHY_BYTES_MAX).map_err(io_error("read", disk, UNSOUND))?;
    let text = String::from_utf8_lossy(&text);
    let why = text.lines().next().unwrap_or_default().to_owned();
    Err(OpenError::Unsound { dir: PathBuf::from(disk.name()), raft_id, why })
}
