//! The crate's errors, sorted by who must act: the operator (opening), the caller (proposing, reading), the apply
//! thread (rows).
//!
//! A rejection of a command is not here: it is part of the state machine's reply.

use std::path::PathBuf;
use wire::status::{Failure, Status};

use crate::space::is_full;

/// Reading or writing rows failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row's checksum does not fit its bytes. A sole voter fails what needs this row and goes on; a replica with
    /// peers stops and is rebuilt.
    #[error("row {} of table {table} is corrupt", hex_of(row_key))]
    Corrupt {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        row_key: Vec<u8>,
    },
    /// The state file failed. Nothing more may be written through this handle: the process aborts and replays.
    #[error("the state file failed")]
    Redb(#[source] Box<redb::Error>),
}

impl StoreError {
    /// Whether the state file found no room on its disk.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, StoreError::Redb(cause) if matches!(&**cause, redb::Error::Io(cause) if is_full(cause)))
    }
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        StoreError::Redb(Box::new(error.into()))
    }
}

/// The log could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that were known durable are damaged, missing or contradict one another.
    #[error(
        "the log in {} is damaged: {what}; entries that were acknowledged are unreadable, so nothing is served: \
         restore the directory from a backup, or remove this replica and let it rejoin under a new raft id",
        dir.display()
    )]
    Damaged {
        /// The log's directory.
        dir: PathBuf,
        /// What was found, and where.
        what: String,
    },
    /// The log was written by another version of the program.
    #[error("the log in {} has format {found}, this program knows {known}: use the program that wrote it", dir.display())]
    Format {
        /// The log's directory.
        dir: PathBuf,
        /// The version found.
        found: u32,
        /// The version this program writes.
        known: u32,
    },
    /// The log belongs to another cluster or replica.
    #[error("the log in {} belongs to {found}, not to {expected}: this is a wrong or copied directory", dir.display())]
    Foreign {
        /// The log's directory.
        dir: PathBuf,
        /// Cluster and replica in the segment's header.
        found: String,
        /// Cluster and replica that were to be opened.
        expected: String,
    },
    /// The file system has no room for another segment.
    #[error("no space for a log segment in {}", dir.display())]
    Full {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The operating system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// A group could not be opened. The text says what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory.
    #[error("{} is in use by another process: stop it first, or choose another directory", dir.display())]
    Locked {
        /// The group's directory.
        dir: PathBuf,
    },
    /// The directory belongs to another cluster or replica.
    #[error("{} belongs to {found}, not to {expected}: this is a wrong or copied directory", dir.display())]
    Foreign {
        /// The group's directory.
        dir: PathBuf,
        /// Cluster and replica in the identity file.
        found: String,
        /// Cluster and replica that were to be opened.
        expected: String,
    },
    /// The directory is fresh, and its replica has lived.
    #[error(
        "{} is empty, but {} says that replica {raft_id} has lived: what it voted and acknowledged is lost with the \
         directory, so it must not begin anew. Restore the directory; or remove replica {raft_id} from its group \
         (`ferrozone admin om remove-peer`, or `scm remove-peer`) and let this node join under a new raft id (`ferrozone cluster add-node`). Only \
         if the whole cluster begins anew, on all of its nodes, delete the note",
        dir.display(),
        note.display()
    )]
    Wiped {
        /// The group's directory.
        dir: PathBuf,
        /// The note beside the configuration.
        note: PathBuf,
        /// Whose directory it was.
        raft_id: u64,
    },
    /// The replica was found to be wrong, and noted so.
    #[error(
        "{} holds replica {raft_id}, which was found to be wrong: {why}. It would answer from wrong rows, so it is not opened \
         again. Remove it from its group (`ferrozone admin om remove-peer`, or `scm remove-peer`), delete the directory, and \
         let this node join under a new raft id (`ferrozone cluster add-node`)",
        dir.display()
    )]
    Unsound {
        /// The group's directory.
        dir: PathBuf,
        /// Whose directory it is.
        raft_id: u64,
        /// What was found.
        why: String,
    },
    /// The note that a replica has lived cannot be read or written. Without it a wiped replica could not be told from a
    /// new one.
    #[error(
        "cannot {action} {}, the note that this node's replica has lived: make its directory writable, or name another \
         one that is not lost with the data (cluster.marker_dir)",
        path.display()
    )]
    Note {
        /// What was tried.
        action: &'static str,
        /// The note.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file was written by another version of the program.
    #[error("{} has format {found}, this program knows {known}: use the program that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The version this program writes.
        known: u32,
    },
    /// A file is damaged or contradicts another one.
    #[error("{} is damaged: {what}; restore {} from a backup, or let this replica rejoin under a new raft id", path.display(), dir.display())]
    Damaged {
        /// The group's directory.
        dir: PathBuf,
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The settings contradict one another.
    #[error("consensus settings: {0}")]
    Config(String),
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is no room to replay or to start.
    #[error("the file system of {} is full: free some space and start again", dir.display())]
    Full {
        /// The group's directory.
        dir: PathBuf,
    },
    /// The state machine could not take over its recovered rows.
    #[error("the state in {} cannot be taken over", dir.display())]
    Recover {
        /// The group's directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The operating system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl OpenError {
    /// What the state file could not do while it was taken over.
    pub(crate) fn of_recovery(dir: PathBuf, source: StoreError) -> Self {
        if source.is_full() { OpenError::Full { dir } } else { OpenError::Recover { dir, source } }
    }
}

/// A snapshot could not be made, sent or taken in.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream is not what was sent, or ends early. Nothing of it is kept; it may be sent again.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// Another version of the program made it.
    #[error("the snapshot has format {found}, this program knows {known}")]
    Format {
        /// The version found.
        found: u32,
        /// The version this program knows.
        known: u32,
    },
    /// It is of another cluster.
    #[error("the snapshot is of cluster {found}")]
    Foreign {
        /// Whose it is.
        found: uuid::Uuid,
    },
    /// It holds tables this program does not know.
    #[error("the snapshot has tables {found:?}, which this program does not know")]
    Tables {
        /// Its tables.
        found: Vec<String>,
    },
    /// Another one is being taken in.
    #[error("another snapshot is being taken in")]
    Busy,
    /// So much was written while it was read that it is given up, and the pages it kept are free again.
    #[error("the state file grew from {before} to {length} bytes while a snapshot was read")]
    Outgrown {
        /// Bytes at its begin.
        before: u64,
        /// Bytes now.
        length: u64,
    },
    /// The rows do not give the hash that was kept beside them: this database is bad and must not spread.
    #[error("the rows of this replica do not fit their hash: let it rejoin under a new raft id")]
    Unsound,
    /// A row cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new file cannot be made or put in its place.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// A backup cannot be made into a directory. The directory is as fresh as before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Its first bytes are not those of a backup.
    #[error("the file is no backup, or its beginning is damaged")]
    NoBackup,
    /// It is of another group.
    #[error("the backup is of group {found}, not of {expected}")]
    Group {
        /// Whose it is.
        found: String,
        /// Which one was to be restored.
        expected: String,
    },
    /// Its group had a member of this raft id or incarnation, who may still live.
    #[error(
        "raft id {raft_id} or its incarnation was a member's when the backup was taken: restore under new ones \
         (`ferrozone cluster add-node` draws them)"
    )]
    Taken {
        /// The id.
        raft_id: u64,
    },
    /// There is a replica already.
    #[error("{} holds a replica: restore into a fresh directory", dir.display())]
    NotEmpty {
        /// The group's directory.
        dir: PathBuf,
    },
    /// The rows are not those that were written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The directory cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file cannot be read.
    #[error("cannot read the backup")]
    Read(#[from] std::io::Error),
}

/// A command was not applied, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead; the command was not applied.
    #[error("this replica is not the leader")]
    NotLeader {
        /// The raft id of the leader, where known.
        hint: Option<u64>,
    },
    /// Too many commands are under way; this one was not taken. Try again later.
    #[error("too many commands are under way")]
    Overloaded,
    /// Leadership is about to go to another replica; the command was not taken. Try again in a moment.
    #[error("another replica is about to lead")]
    Yielding,
    /// The command is longer than the group takes.
    #[error("a command of {size} bytes is over the limit of {size_max}")]
    TooLarge {
        /// The command's length.
        size: usize,
        /// The longest allowed.
        size_max: usize,
    },
    /// The group stopped before the outcome was known: the command may or may not be applied.
    #[error("the outcome of the command is unknown")]
    Unknown,
    /// The command must read a row that is corrupt; it left no trace.
    #[error("row {} of table {table} is corrupt", hex_of(row_key))]
    Corrupt {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        row_key: Vec<u8>,
    },
    /// The disk is (nearly) full; the command was not taken. Commands that free space may still pass.
    #[error("the disk is full")]
    Full,
}

/// A linearizable view could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// This replica does not lead.
    #[error("this replica is not the leader")]
    NotLeader {
        /// The raft id of the leader, where known.
        hint: Option<u64>,
    },
    /// The group has stopped.
    #[error("the group has stopped")]
    Stopped,
    /// No quorum confirmed in time that this replica still leads. Try again.
    #[error("no quorum confirmed leadership in time")]
    TimedOut,
    /// The state file failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change of membership, or a transfer of leadership, did not take place, or it is not known whether it did.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// This replica does not lead; nothing changed.
    #[error("this replica is not the leader")]
    NotLeader {
        /// The raft id of the leader, where known.
        hint: Option<u64>,
    },
    /// It would do harm, or makes no sense; nothing changed. Says what to do.
    #[error("{0}")]
    Refused(String),
    /// Leadership was lost on the way, or time ran out: look at the members to see what became of it.
    #[error("the outcome of the change is unknown")]
    Unknown,
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        let status = match error {
            ChangeError::NotLeader { .. } => return Self::not_leader(None),
            ChangeError::Refused(_) => Status::Invalid,
            ChangeError::Unknown => Status::Unknown,
        };
        Self::new(status, error.to_string())
    }
}

/// A row key in hexadecimal: row keys are bytes and may hold anything.
fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
