//! What raft logs: a format (docs/formats/om.md).
//!
//! A command is one byte that says which, then a MessagePack array of the proposer's clock and the body. Kinds are
//! appended, never renumbered; bodies are arrays whose fields are appended with a default.
//!
//! Every random choice and every setting that a decision depends on stands in the command, since apply sees neither.
//!
//! Not here: what a command does (see `state`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use wire::block::Replication;
use wire::clock::UnixMs;
use wire::ids::{BlockId, ContainerId, LeaseId, LocalId, SessionId};
use wire::om::{
    AbortUpload, CommitKey, CommitPart, CompleteUpload, CopyKey, CreateBucket, CreateUpload, DeleteBucket,
    DeleteKeys, ReleaseBlocks, UserInfo, WriteContext,
};
use wire::operator::{
    CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, SetBucketQuota,
    SetDefaultReplication, SetVolume,
};
use wire::scm::Lease;

/// Begin a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenSession {
    #[serde(with = "serde_bytes")]
    pub(crate) nonce: [u8; 16],
}

/// End a session: refuses its commits from here on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndSession {
    pub(crate) session: SessionId,
}

/// SCM granted a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddLease {
    pub(crate) lease: Lease,
}

/// These leases take no more loans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndLeases {
    pub(crate) leases: Vec<LeaseId>,
}

/// SCM has logged the return of these leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DropLeases {
    pub(crate) leases: Vec<LeaseId>,
}

/// Lend ids of the lease that the leader chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakeLoan {
    pub(crate) context: WriteContext,
    pub(crate) lease: LeaseId,
    pub(crate) count: u16,
}

/// End loans, named by container and first id, if they were taken before a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExpireLoans {
    pub(crate) loans: Vec<(ContainerId, LocalId)>,
    pub(crate) taken_before_ms: UnixMs,
}

/// Do the next bounded piece of queued work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkOff {
    pub(crate) row_key: ByteBuf,
}

/// Choose the next batch of freed blocks for SCM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BeginHandover {
    /// Only blocks freed before.
    pub(crate) freed_before_ms: UnixMs,
    /// At most so many.
    pub(crate) count_max: u32,
    /// Damaged rows that are left out: row keys of `deleted`.
    #[serde(default)]
    pub(crate) skip: Vec<ByteBuf>,
}

/// SCM has logged this batch: drop queue and rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FinishHandover {
    pub(crate) batch: u64,
    /// Damaged rows of the batch that stay: row keys of `deleted`.
    #[serde(default)]
    pub(crate) skip: Vec<ByteBuf>,
    /// Blocks of the batch whose damaged row stays.
    #[serde(default)]
    pub(crate) skip_blocks: Vec<BlockId>,
}

/// Forget completed uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExpireUploads {
    /// Which: row keys of `upload_done`.
    pub(crate) rows: Vec<ByteBuf>,
    /// Only those completed before.
    pub(crate) completed_before_ms: UnixMs,
}

/// Declare a container empty, if it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetireContainer {
    pub(crate) container: ContainerId,
}

/// The replication of new keys where neither bucket nor cluster names one yet: from the configuration, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitDefaults {
    pub(crate) replication: Replication,
}

/// Create or replace a user and its access key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PutUser {
    pub(crate) user: UserInfo,
    pub(crate) access_key: String,
    #[serde(with = "serde_bytes")]
    pub(crate) nonce: [u8; 12],
    pub(crate) sealed: ByteBuf,
}

/// Drop all access keys but these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetainAccessKeys {
    pub(crate) access_keys: Vec<String>,
}

macro_rules! commands {
    ($($kind:literal => $name:ident,)+) => {
        /// A logged command.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "decoded once and consumed at once")]
        pub(crate) enum Command {
            $($name($name),)+
        }

        impl Command {
            /// All numbers.
            #[cfg(test)]
            pub(crate) const KINDS: &[u8] = &[$($kind),+];

            /// The number that stands first in the log.
            pub(crate) const fn kind(&self) -> u8 {
                match self { $(Self::$name(_) => $kind,)+ }
            }

            /// Bytes for the log.
            pub(crate) fn encode(&self, now_ms: UnixMs) -> Bytes {
                let mut bytes = Vec::with_capacity(512);
                bytes.push(self.kind());
                match self {
                    $(Self::$name(body) => rmp_serde::encode::write(&mut bytes, &(now_ms, body)),)+
                }
                .expect("memory takes every command");
                bytes.into()
            }

            /// The proposer's clock and the command. None if a newer version wrote it.
            pub(crate) fn decode(bytes: &[u8]) -> Option<(UnixMs, Self)> {
                let (kind, body) = bytes.split_first()?;
                match kind {
                    $($kind => {
                        let (now_ms, body) = rmp_serde::from_slice::<(UnixMs, $name)>(body).ok()?;
                        Some((now_ms, Self::$name(body)))
                    })+
                    _ => None,
                }
            }
        }

        $(impl From<$name> for Command {
            fn from(body: $name) -> Self {
                Self::$name(body)
            }
        })+
    };
}

commands! {
    1 => OpenSession,
    2 => EndSession,
    3 => AddLease,
    4 => EndLeases,
    5 => DropLeases,
    6 => TakeLoan,
    7 => ReleaseBlocks,
    8 => ExpireLoans,
    9 => WorkOff,
    10 => BeginHandover,
    11 => FinishHandover,
    12 => ExpireUploads,
    13 => PutUser,
    14 => RetainAccessKeys,
    15 => CreateBucket,
    16 => DeleteBucket,
    17 => CommitKey,
    18 => DeleteKeys,
    19 => CopyKey,
    20 => CreateUpload,
    21 => CommitPart,
    22 => CompleteUpload,
    23 => AbortUpload,
    24 => RetireContainer,
    25 => InitDefaults,
    26 => SetDefaultReplication,
    27 => CreateVolume,
    28 => SetVolume,
    29 => DeleteVolume,
    30 => CreateNamespaceBucket,
    31 => SetBucketQuota,
    32 => DeleteNamespaceBucket,
}
