//! A note outside of a group's directory that its replica has lived.
//!
//! A replica that lost its directory has forgotten its votes and what it acknowledged. Under its old raft id it could vote
//! a second time in one term, or be counted for entries that it does not hold, and two leaders or a lost write are the
//! outcome. Nothing inside the directory can tell such a replica from a new one, so the note stands elsewhere: beside the
//! node's configuration and keys, which an emptied or replaced data disk leaves as they are.
//!
//! ```text
//!  directory made, durable --> note durable --> the replica votes for the first time
//!  at the next start: note and no directory --> refused
//! ```
//!
//! The note's name carries group, raft id and incarnation: a node that joins anew, under a new id, has not lived.
//!
//! Invariants:
//! * Nobody hears of a replica whose note is not durable, unless it has no place for one (a cluster of one process).
//!
//! Not here: where notes are kept (the configuration's part).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use platform::disk::{DiskIo, OpenMode};
use uuid::Uuid;

use crate::error::OpenError;

/// For the person who finds it.
const TEXT: &str = "A replica of this cluster's metadata has lived on this node, in the directory that the configuration \
                    names. Should that be lost, it must not begin anew under its old raft id. Leave this file.\n";

/// Where the notes of a node's replicas are kept, apart from their directories.
#[derive(Debug, Clone)]
pub struct Marker {
    disk: Arc<dyn DiskIo>,
}

impl Marker {
    /// Notes in a directory that is lost neither with a group's nor before it.
    pub fn new(disk: Arc<dyn DiskIo>) -> Self {
        Marker { disk }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(self.disk.name()).join(name)
    }

    /// Whether a replica has lived, by the note of this name.
    pub(crate) fn is_set(&self, name: &str) -> Result<bool, OpenError> {
        let names = self.disk.list().map_err(|source| self.failed("look for", name, source))?;
        Ok(names.iter().any(|found| found == name))
    }

    /// The refusal of a fresh directory in a lived-in place.
    pub(crate) fn wiped(&self, name: &str, dir: PathBuf, raft_id: u64) -> OpenError {
        OpenError::Wiped { dir, note: self.path(name), raft_id }
    }

    /// Notes durably that the replica lives from here on.
    pub(crate) fn set(&self, name: &str) -> Result<(), OpenError> {
        if self.is_set(name)? {
            return Ok(());
        }
        let disk = &*self.disk;
        let written = disk
            .open(name, OpenMode::Either)
            .and_then(|file| file.write_at(0, &[TEXT.as_bytes()]).and_then(|()| file.sync_all()))
            .and_then(|()| disk.sync_names());
        written.map_err(|source| self.failed("write", name, source))
    }

    fn failed(&self, action: &'static str, name: &str, source: io::Error) -> OpenError {
        OpenError::Note { action, path: self.path(name), source }
    }
}

/// The note's name.
pub(crate) fn note_name(group: &str, raft_id: u64, incarnation: Uuid) -> String {
    format!("{group}-{raft_id}-{incarnation}.lived")
}
