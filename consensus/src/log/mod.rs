//! The raft log: what it promises ([`Log`]) and the one implementation there is ([`SegmentedLog`]).
//!
//! Raft needs little of its log: append at the end, read back in order, forget the beginning, and never lie about
//! what a power cut would leave. So we keep our own instead of rows in redb: one `fdatasync` a batch into files that
//! were zero-filled beforehand, hence no file system metadata on the way. The bytes are in `docs/formats/log.md`.
//!
//! Not here: when something is appended (see `driver`), which entries are in memory (see `storage`).

mod files;
mod record;
mod segmented;

use raft::eraftpb::{Entry, HardState};

use crate::error::LogError;

pub(crate) use files::{Identity, is_log_file, open_as_stored};
pub(crate) use record::entry_record_size;
pub(crate) use segmented::{LogConfig, SegmentedLog};

/// What raft's storage needs of a log.
///
/// Invariants:
/// * Indices are contiguous from `first_index` to `last_index`; `first_index - 1` keeps its term.
/// * What was appended before a successful [`Log::sync`] survives a power cut.
/// * A failed write or sync must end the process: the pages may be lost though a later sync succeeds.
pub(crate) trait Log: Send {
    /// The first entry that can be read.
    fn first_index(&self) -> u64;

    /// The last entry; `first_index - 1` if there is none.
    fn last_index(&self) -> u64;

    /// The term of an entry in `[first_index - 1, last_index]`.
    fn term(&self, index: u64) -> Option<u64>;

    /// The newest term, vote and commit index in the log.
    fn hard_state(&self) -> &HardState;

    /// Entries `[low, high)`, at least one, then as many as fit into `size_max` bytes.
    fn entries(&self, low: u64, high: u64, size_max: u64) -> Result<Vec<Entry>, LogError>;

    /// Appends entries, first cutting what they contradict, then the hard state if it changed. Not durable yet.
    fn append(&mut self, entries: &[Entry], hard_state: &HardState) -> Result<(), LogError>;

    /// Makes everything appended durable.
    fn sync(&mut self) -> Result<(), LogError>;

    /// Voids all entries: the state came from a snapshot at `index`. Term and vote stay, unless the term is below the
    /// snapshot's: whoever never heard of a term has not voted in it. Durable when it returns.
    fn reset(&mut self, index: u64, term: u64) -> Result<(), LogError>;

    /// Whether records of `size` bytes can be appended for sure, leaving `keep` bytes. May wait for a segment that is
    /// being prepared, never for space.
    fn admit(&mut self, size: u64, keep: u64) -> bool;

    /// Whether records of `size` bytes lack room since no segment can be prepared: the disk is full. Never waits.
    fn is_short_of(&self, size: u64) -> bool;

    /// Recycles every segment whose entries are all at or below `index`, which must be durable in the state.
    fn compact(&mut self, index: u64) -> Result<(), LogError>;

    /// Has the next segment prepared, if it is time.
    fn maintain(&mut self);

    /// Counts the segments begun since the log was opened: a new one is a reason to checkpoint.
    fn rolls(&self) -> u64;
}
