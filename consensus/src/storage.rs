//! Raft's view of the log: a [`raft::Storage`] over a [`Log`] with the newest entries in memory.
//!
//! Raft asks for an entry three times within a millisecond: when it is appended, when it is committed, and (later,
//! with peers) when it is sent. The entries that are not handed to apply yet are therefore kept; older ones come from
//! the log.
//!
//! Invariants:
//! * Errors other than those raft knows how to live with never reach it: a log that cannot be read ends the process.
//!
//! Not here: the order of persist, send and apply (see `driver`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::abort::fatal;
use crate::log::Log;

/// The log as raft sees it.
pub(crate) struct LogStore {
    group: String,
    log: Box<dyn Log>,
    /// The newest entries, contiguous up to the log's end; those at or below `handed` are dropped.
    recent: VecDeque<Entry>,
    /// What the next batch will write: raft reports a new commit index after the batch that raised it.
    hard_state: HardState,
    conf_state: ConfState,
    desk: RefCell<Desk>,
}

/// What raft and the driver tell each other about snapshots for peers.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// Peers that raft would like to send one to.
    pub(crate) wanted: BTreeSet<u64>,
    /// What can be sent at once, by peer.
    pub(crate) made: BTreeMap<u64, SnapshotMetadata>,
}

impl LogStore {
    /// A store over an opened log. `hard_state` is the log's with the commit index raised to what the state has
    /// applied, `conf_state` the membership at the applied index.
    pub(crate) fn new(group: &str, log: Box<dyn Log>, hard_state: HardState, conf_state: ConfState) -> Self {
        let (recent, desk) = (VecDeque::new(), RefCell::default());
        LogStore { group: group.to_owned(), log, recent, hard_state, conf_state, desk }
    }

    /// Snapshots for peers.
    pub(crate) fn desk(&mut self) -> &mut Desk {
        self.desk.get_mut()
    }

    /// Gives up all entries for a state that came from a snapshot and is durable. Durable when it returns.
    pub(crate) fn restart_at(&mut self, index: u64, term: u64, hard_state: &HardState) {
        self.hard_state = hard_state.clone();
        if wire::planted::is_on("snapshot_forgets_vote") {
            self.hard_state = HardState { term, commit: index, ..HardState::default() };
        }
        self.recent.clear();
        let noted = self.log.reset(index, term).and_then(|()| self.log.append(&[], &self.hard_state));
        // What the log had before is of no use to anybody.
        let noted = noted.and_then(|()| self.log.sync()).and_then(|()| self.log.compact(index));
        if let Err(error) = noted {
            fatal(&self.group, "cannot reset the log", &error);
        }
    }

    /// Appends what a Ready holds and makes it durable if it must be.
    pub(crate) fn persist(&mut self, entries: Vec<Entry>, hard_state: Option<&HardState>, must_sync: bool) {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Err(error) = self.log.append(&entries, &self.hard_state) {
            fatal(&self.group, "cannot append to the log", &error);
        }
        wire::failpoint::hit("consensus_log_appended");
        if must_sync && !wire::planted::is_on("log_not_synced") {
            if let Err(error) = self.log.sync() {
                fatal(&self.group, "cannot sync the log", &error);
            }
            wire::failpoint::hit("consensus_log_synced");
        }
        if let Some(first) = entries.first() {
            while self.recent.back().is_some_and(|last| last.index >= first.index) {
                self.recent.pop_back();
            }
            if self.recent.back().is_none_or(|last| last.index + 1 == first.index) {
                self.recent.extend(entries);
            }
        }
    }

    /// Notes a commit index for the next batch to write. It needs no sync: a start raises it to what was applied.
    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Forgets the copies of entries that were handed to apply.
    pub(crate) fn handed(&mut self, index: u64) {
        while self.recent.front().is_some_and(|first| first.index <= index) {
            self.recent.pop_front();
        }
    }

    /// Writes the newest commit index and makes it durable, so that damage to the log's end cannot go unnoticed.
    pub(crate) fn close(&mut self) {
        if let Err(error) = self.log.append(&[], &self.hard_state).and_then(|()| self.log.sync()) {
            fatal(&self.group, "cannot close the log", &error);
        }
    }

    /// Recycles segments, see [`Log::compact`].
    pub(crate) fn compact(&mut self, index: u64) {
        if let Err(error) = self.log.compact(index) {
            fatal(&self.group, "cannot recycle log segments", &error);
        }
    }

    pub(crate) fn log(&self) -> &dyn Log {
        &*self.log
    }

    pub(crate) fn log_mut(&mut self) -> &mut dyn Log {
        &mut *self.log
    }
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        size_max: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let size_max = size_max.into().unwrap_or(u64::MAX);
        if low < self.log.first_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(
            high <= self.log.last_index() + 1,
            "raft asks for entry {} of {}",
            high - 1,
            self.log.last_index()
        );
        if self.recent.front().is_some_and(|first| first.index <= low) {
            return Ok(from_recent(&self.recent, low, high, size_max));
        }
        match self.log.entries(low, high, size_max) {
            Ok(entries) => Ok(entries),
            Err(error) => fatal(&self.group, "cannot read the log", &error),
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index + 1 < self.log.first_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.log.term(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    /// Raft asks for one only to send it to a peer that has fallen behind. It gets what the driver has made for this
    /// peer, or asks again.
    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut desk = self.desk.borrow_mut();
        if let Some(metadata) = desk.made.get(&to) {
            let mut snapshot = Snapshot::default();
            snapshot.set_metadata(metadata.clone());
            return Ok(snapshot);
        }
        desk.wanted.insert(to);
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

fn from_recent(recent: &VecDeque<Entry>, low: u64, high: u64, size_max: u64) -> Vec<Entry> {
    let first = recent.front().map_or(low, |entry| entry.index);
    let wanted = recent.range((low - first) as usize..(high - first) as usize);
    let mut size = 0;
    let mut entries = Vec::with_capacity(wanted.len());
    for entry in wanted {
        size += (entry.data.len() + entry.context.len()) as u64;
        if size > size_max && !entries.is_empty() {
            break;
        }
        // A clone shares the bytes.
        entries.push(entry.clone());
    }
    entries
}
