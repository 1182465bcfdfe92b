//! Keys: commit, look-up, deletion, copy, and the block lists behind them.
//!
//! Not here: listings (`listing`), keys put in parts (`multipart`).

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{BucketRef, Rejection, UserId, WriteContext};
use crate::block::{BlockEntry, BlockToken, ContainerLocation, Replication};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use crate::clock::UnixMs;
use crate::ids::{VersionId, WriteId};
use crate::names::KeyName;

/// S3's storage classes that are taken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum StorageClass {
    /// `STANDARD`: the bucket's or cluster's default replication.
    #[default]
    Standard,
    /// `REDUCED_REDUNDANCY`: one replica.
    ReducedRedundancy,
}

/// What a listing shows of a key: decoded alone from its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHead {
    /// Bytes.
    pub size: u64,
    /// ETag.
    pub etag: Etag,
    /// Last-Modified.
    pub modified_ms: UnixMs,
    /// Who owns it.
    pub owner: UserId,
    /// Its class.
    pub storage_class: StorageClass,
    /// The checksum a client gave or asked for.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

/// What S3 keeps beside the bytes: content headers and user metadata, as the client sent them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyAttributes {
    /// Content-Type.
    pub content_type: Option<String>,
    /// Cache-Control.
    pub cache_control: Option<String>,
    /// Content-Disposition.
    pub content_disposition: Option<String>,
    /// Content-Encoding, without `aws-chunked`.
    pub content_encoding: Option<String>,
    /// Content-Language.
    pub content_language: Option<String>,
    /// Expires, as text.
    pub expires: Option<String>,
    /// x-amz-website-redirect-location.
    pub website_redirect: Option<String>,
    /// x-amz-meta-*: lower-case names without the prefix, in the order sent.
    pub user_metadata: Vec<(String, String)>,
}

/// A run of parts of equal size, in object order (run-length coded: 10,000 equal parts are one entry).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRun {
    /// How many parts.
    pub count: u32,
    /// Bytes of each.
    pub size: u64,
}

/// A key's current version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Which version.
    pub version: VersionId,
    /// Size, ETag, times ...
    pub head: KeyHead,
    /// Content headers and metadata.
    pub attributes: KeyAttributes,
    /// Checksums; CRC64NVME over the whole object is always among them if it could be computed.
    pub checksums: Vec<Checksum>,
    /// Part sizes of a multipart object; empty otherwise.
    pub parts: Vec<PartRun>,
    /// Its replication type.
    pub replication: Replication,
    /// The write that owns its blocks.
    pub write_id: WriteId,
    /// Checksums of the parts, one value after the other in object order, of the algorithm in `head.checksum`. Empty if
    /// it was put whole, if no algorithm was asked for, or beyond `PART_CHECKSUM_BYTES_MAX`.
    #[serde(default)]
    pub part_checksums: ByteBuf,
}

/// A page of a block list, with what is needed to read the blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutPage {
    /// Byte of the object at which the first entry begins.
    pub start: u64,
    /// Entries in object order.
    pub entries: Vec<BlockEntry>,
    /// One read token per entry.
    pub tokens: Vec<BlockToken>,
    /// Where the entries' containers are.
    pub locations: Vec<ContainerLocation>,
}

/// Block entries of a [`LayoutPage`] at most.
pub const LAYOUT_PAGE_ENTRIES_MAX: usize = 256;

/// When a write may replace what is there. Decided in apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WriteCondition {
    /// Always.
    #[default]
    None,
    /// `If-None-Match: *`: only if the key does not exist.
    IfAbsent,
    /// `If-Match: "etag"`: only if the key has this ETag.
    IfMatch(Etag),
    /// `If-Match: *`: only if the key exists.
    IfPresent,
}

/// Make a key visible (PutObject).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitKey {
    /// Who and which; the blocks' write id.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// When it may.
    pub condition: WriteCondition,
    /// Who will own it.
    pub owner: UserId,
    /// Bytes.
    pub size: u64,
    /// ETag.
    pub etag: Etag,
    /// Its class.
    pub storage_class: StorageClass,
    /// Its replication type.
    pub replication: Replication,
    /// Content headers and metadata.
    pub attributes: KeyAttributes,
    /// The checksum a client gave or asked for, if any.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    /// All checksums computed.
    pub checksums: Vec<Checksum>,
    /// Its blocks, at most `COMMIT_BLOCKS_MAX`.
    pub blocks: Vec<BlockEntry>,
}

/// A key became visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCommitted {
    /// The new version.
    pub version: VersionId,
    /// Last-Modified, as apply chose it.
    pub modified_ms: UnixMs,
}

/// HeadObject and GetObject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupKey {
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// Also the block list from the entry that holds this byte. None: attributes only.
    pub layout_from: Option<u64>,
}

/// Answer to [`LookupKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFound {
    /// The version.
    pub info: KeyInfo,
    /// If asked for and the byte lies inside the key.
    pub layout: Option<LayoutPage>,
    /// The applied index of the view that answered: a checker's witness. 0 if it is not told.
    #[serde(default)]
    pub read_index: u64,
}

/// The next page of a long block list, by the write that owns it: good until the blocks are reclaimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetLayout {
    /// Where the permission came from.
    pub bucket: BucketRef,
    /// [`KeyInfo::write_id`].
    pub write_id: WriteId,
    /// From the entry that holds this byte.
    pub from: u64,
}

/// DeleteObject, DeleteObjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteKeys {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// At most [`DELETE_KEYS_PER_COMMAND`].
    pub keys: Vec<(KeyName, WriteCondition)>,
}

/// Answer to [`DeleteKeys`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysDeleted {
    /// One for each key, in the order asked.
    pub outcomes: Vec<Result<(), Rejection>>,
    /// The Raft index of the deletion.
    pub index: u64,
}

/// Keys of one [`DeleteKeys`] at most: each may touch several rows of the 512 a command writes. Callers cut larger requests.
pub const DELETE_KEYS_PER_COMMAND: usize = 64;

/// CopyObject by sharing blocks, or a change of metadata in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyKey {
    /// Who and which.
    pub context: WriteContext,
    /// Where the source is.
    pub source_bucket: BucketRef,
    /// The source.
    pub source_key: KeyName,
    /// The version of the source that the gateway evaluated: another by now is `SourceChanged`.
    pub source_version: VersionId,
    /// Where to.
    pub bucket: BucketRef,
    /// The new key.
    pub key: KeyName,
    /// When it may.
    pub condition: WriteCondition,
    /// Who will own it.
    pub owner: UserId,
    /// Its class.
    pub storage_class: StorageClass,
    /// Its replication type; another than the source's is `CannotShare`.
    pub replication: Replication,
    /// New content headers and metadata; None keeps the source's.
    pub attributes: Option<KeyAttributes>,
}

/// Whether a body of this length would pass a bound of the bucket or its volume now: asked before the body is read. The
/// commit decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckQuota {
    /// The bucket.
    pub bucket: BucketRef,
    /// The key that would be replaced; None for a part of an upload.
    pub key: Option<KeyName>,
    /// Bytes of the body.
    pub bytes: u64,
}
