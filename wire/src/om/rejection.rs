//! Why OM refuses. Part of the replies that Raft keeps: append variants, never reorder.

use serde::{Deserialize, Serialize};

use super::{BucketInfo, UserId};
use crate::checksum::{ChecksumAlgorithm, Etag};
use crate::ids::BlockId;

/// Why OM refused. Deterministic: part of the reply that every replica computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// No such bucket.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// The name is taken.
    #[error("the bucket name is taken")]
    BucketExists {
        /// Its owner.
        owner: UserId,
    },
    /// The bucket still has keys.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The owner has as many buckets as are allowed.
    #[error("the owner has too many buckets")]
    TooManyBuckets,
    /// The caller's knowledge of the bucket is old: decide again by this.
    #[error("the bucket's configuration has changed")]
    StaleBucket(Box<BucketInfo>),
    /// The caller's knowledge of users is old.
    #[error("users or access keys have changed")]
    StaleAccess {
        /// The current version.
        access_version: u64,
    },
    /// No such access key.
    #[error("the access key does not exist")]
    NoSuchAccessKey,
    /// No such key.
    #[error("the key does not exist")]
    NoSuchKey,
    /// The condition of a write does not hold.
    #[error("the condition does not hold")]
    PreconditionFailed {
        /// What is there.
        current: Option<Etag>,
    },
    /// No such upload (or it was aborted).
    #[error("the upload does not exist")]
    NoSuchUpload,
    /// A part of Complete is missing or has another ETag.
    #[error("part {part} is missing or has another ETag")]
    InvalidPart {
        /// Which.
        part: u32,
        /// The ETag that is there.
        actual: Option<Etag>,
    },
    /// The parts of Complete are not in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// A part that is not the last is too small.
    #[error("part {part} has {size} bytes, less than {minimum}")]
    PartTooSmall {
        /// Which.
        part: u32,
        /// Its size.
        size: u64,
        /// What it must have.
        minimum: u64,
    },
    /// A checksum given at Complete differs from the one computed (or a part's from the stored one).
    #[error("the {} checksum does not match: computed {computed}", .algorithm.name())]
    ChecksumMismatch {
        /// Which algorithm.
        algorithm: ChecksumAlgorithm,
        /// In base64, as S3 prints it.
        computed: String,
    },
    /// The object would have another size than the client declared (x-amz-mp-object-size).
    #[error("the object has {actual} bytes, not {declared}")]
    SizeMismatch {
        /// Declared.
        declared: u64,
        /// Actual.
        actual: u64,
    },
    /// The session has ended: open another. Its blocks are reclaimed.
    #[error("the session has ended")]
    SessionEnded,
    /// A block of the commit stands in no loan of this session: reclaimed, or never lent. Final.
    #[error("block {0} is not on loan to this session")]
    NotOnLoan(BlockId),
    /// The source of a copy is no longer the version that was read.
    #[error("the source of the copy has changed")]
    SourceChanged,
    /// The source has too many blocks to share, or another replication type: copy the bytes.
    #[error("the source cannot share its blocks")]
    CannotShare,
    /// A command of this session that old is no longer remembered.
    #[error("the command's reply is no longer kept")]
    Forgotten,
    /// Anything else that is wrong with the request.
    #[error("{0}")]
    Invalid(String),
    /// A row this call must read is damaged: answered by a sole voter only.
    #[error("a stored row is damaged")]
    DamagedRow,
    /// A bound of the bucket or of its volume would be passed.
    #[error("the quota of {of} is {limit} {}, this would make it {wanted}", .unit.name())]
    QuotaExceeded {
        /// Whose: `bucket NAME` or `volume NAME`.
        of: String,
        /// What is bounded.
        unit: QuotaUnit,
        /// The bound.
        limit: u64,
        /// What there would be.
        wanted: u64,
    },
    /// No such volume.
    #[error("the volume does not exist")]
    NoSuchVolume,
    /// The name is taken, by a volume of another owner or with other bounds.
    #[error("the volume name is taken")]
    VolumeExists,
    /// The volume still has buckets.
    #[error("the volume is not empty")]
    VolumeNotEmpty,
}

/// What a quota bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaUnit {
    /// Bytes of keys, before replication.
    Bytes,
    /// Keys of a bucket.
    Keys,
    /// Buckets of a volume.
    Buckets,
}

impl QuotaUnit {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Keys => "keys",
            Self::Buckets => "buckets",
        }
    }
}
