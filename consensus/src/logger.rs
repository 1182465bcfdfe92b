//! raft-rs speaks slog; this forwards to tracing.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

/// The logger a raft node is made with.
pub(crate) fn raft_logger() -> Logger {
    Logger::root(Forward, o!())
}

struct Forward;

impl Drain for Forward {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        // The message is formatted only if somebody listens: raft logs every message it steps.
        match record.level() {
            Level::Critical | Level::Error => tracing::error!(target: "raft", "{}", record.msg()),
            Level::Warning => tracing::warn!(target: "raft", "{}", record.msg()),
            // An election is raft's INFO; an operator learns of it from the group's own line.
            Level::Info | Level::Debug => tracing::debug!(target: "raft", "{}", record.msg()),
            Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
        }
        Ok(())
    }
}
