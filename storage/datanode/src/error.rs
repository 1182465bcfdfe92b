//! The crate's errors: why a datanode does not open, and why a block is not written, read or deleted.
//!
//! Callers outside see [`wire::status::Failure`]: what to do and a message without paths or internals.

use std::io;
use std::path::PathBuf;

use wire::block::TokenError;
use wire::ids::{BlockId, ClusterId, ContainerId, DatanodeId};
use wire::status::{Failure, Status};

/// Why a datanode cannot start. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No disk was named.
    #[error("no disk is configured: name at least one directory")]
    NoDisks,
    /// A path could not be made or opened.
    #[error("cannot open the disk at {}: check that it is mounted and writable", path.display())]
    Unreachable {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading or writing the disk failed while it was opened.
    #[error("opening the disk {disk} failed")]
    Io {
        /// The disk.
        disk: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("the disk {disk} is in use by another process: stop it first, or name another directory")]
    Locked {
        /// The disk.
        disk: String,
    },
    /// The identity file cannot be believed.
    #[error(
        "the identity file of the disk {disk} is damaged: restore it from a backup, or empty the directory \
         to format it anew (its blocks are then repaired from other replicas, if there are any)"
    )]
    IdentityDamaged {
        /// The disk.
        disk: String,
    },
    /// The format is from the future.
    #[error(
        "the disk {disk} has format version {version}, this program knows {known}: start a newer program"
    )]
    UnknownVersion {
        /// The disk.
        disk: String,
        /// What is there.
        version: u32,
        /// What we know.
        known: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the disk {disk} belongs to cluster {found}, not {expected}: name the right directory, or empty it if \
         its data is no longer needed"
    )]
    WrongCluster {
        /// The disk.
        disk: String,
        /// What is there.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
    /// Disks of two datanodes were put together.
    #[error(
        "the disk {disk} belongs to datanode {found}, others here to {expected}: one process serves one datanode"
    )]
    WrongDatanode {
        /// The disk.
        disk: String,
        /// What is there.
        found: DatanodeId,
        /// What the first disk says.
        expected: DatanodeId,
    },
    /// Container files without an identity.
    #[error(
        "the disk {disk} holds container files but no identity file: restore the identity file from a backup, or \
         move the container files away to format the disk anew"
    )]
    IdentityMissing {
        /// The disk.
        disk: String,
    },
    /// The same container stands on two disks.
    #[error(
        "container {container} is on two disks of this datanode: remove the copy that was put there by hand"
    )]
    Duplicate {
        /// Which.
        container: ContainerId,
    },
    /// There is no room to open it.
    #[error("the disk {disk} is full: its index cannot be opened; make room and start again")]
    Full {
        /// The disk.
        disk: String,
    },
    /// The index failed.
    #[error("the index of the disk {disk} failed: {reason}")]
    Index {
        /// The disk.
        disk: String,
        /// What redb said.
        reason: String,
    },
}

impl OpenError {
    /// Whether it is the trouble of one disk, which others of the datanode need not share. What a person did wrong
    /// (another cluster's disk, a disk in use) is not: the start is refused.
    pub(crate) fn is_of_one_disk(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Io { .. } | Self::Full { .. } | Self::Index { .. })
    }
}

/// Why a block operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The disk is out of service.
    #[error("the disk that holds container {0} is out of service")]
    DiskFailed(ContainerId),
    /// No room, or only the reserve.
    #[error("the disk is full")]
    DiskFull,
    /// No healthy disk is left.
    #[error("no healthy disk is left on this datanode")]
    NoDisk,
    /// An input or output error. The disk leaves service.
    #[error("disk input or output failed")]
    Io(#[source] io::Error),
    /// The disk does not give the bytes back.
    #[error("stored bytes cannot be read")]
    Unreadable,
    /// The index failed.
    #[error("the block index failed: {0}")]
    Index(String),
    /// Damage on disk.
    #[error("block {0} is damaged: {1}")]
    Corrupt(BlockId, &'static str),
    /// Damage of a replica, in no block that could be named.
    #[error("the replica of container {0} is damaged: {1}")]
    Damaged(ContainerId, &'static str),
    /// Too much is asked at once.
    #[error("this datanode is sending as many replicas as it may: try again")]
    Overloaded,
    /// Damage on the way here.
    #[error("chunk {0} arrived damaged")]
    ArrivedDamaged(u64),
    /// No such block here.
    #[error("block {0} is not here")]
    NoBlock(BlockId),
    /// No such container here.
    #[error("container {0} is not here")]
    NoContainer(ContainerId),
    /// The container takes no blocks, or not this one.
    #[error("container {0} refuses the block: {1}")]
    Refused(ContainerId, &'static str),
    /// Another writer is at it.
    #[error("block {0} is being written")]
    Busy(BlockId),
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(&'static str),
    /// The token does not open the block.
    #[error("{0}")]
    Denied(TokenError),
    /// Not registered with SCM yet.
    #[error("this datanode has not got its token keys yet")]
    NoKeys,
    /// Shutting down.
    #[error("this datanode is shutting down")]
    Stopping,
    /// The writer's stream broke.
    #[error("{0}")]
    Stream(Failure),
}

impl BlockError {
    /// What the caller should do.
    pub fn status(&self) -> Status {
        match self {
            Self::DiskFailed(_) | Self::NoDisk | Self::Io(_) | Self::Index(_) => Status::Internal,
            Self::DiskFull => Status::DiskFull,
            Self::Corrupt(..) | Self::Damaged(..) | Self::ArrivedDamaged(_) | Self::Unreadable => {
                Status::Corrupt
            }
            Self::NoBlock(_) | Self::NoContainer(_) => Status::NotFound,
            Self::Refused(..) => Status::Refused,
            Self::Busy(_) | Self::Stopping | Self::Overloaded => Status::Retry,
            Self::NoKeys => Status::NotReady,
            Self::Invalid(_) => Status::Invalid,
            Self::Denied(_) => Status::Denied,
            Self::Stream(failure) => failure.status,
        }
    }

    /// An error of the disk, with a full disk told apart.
    pub fn from_io(error: io::Error) -> Self {
        if is_full(&error) { Self::DiskFull } else { Self::Io(error) }
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Stream(failure) => failure,
            error => Failure::new(error.status(), error.to_string()),
        }
    }
}

/// Whether the error says that there is no room (also by quota).
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
