//! Multipart uploads. An upload's id is the write id of the command that created it, and owns the blocks of its parts.

use serde::{Deserialize, Serialize};

use super::{BucketRef, KeyAttributes, StorageClass, UserInfo, WriteCondition, WriteContext};
use crate::block::{BlockEntry, Replication};
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use crate::clock::UnixMs;
use crate::ids::{VersionId, WriteId};
use crate::names::KeyName;

/// CreateMultipartUpload. The context's write id is the upload id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateUpload {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// Who will own the key.
    pub owner: UserInfo,
    /// Its class.
    pub storage_class: StorageClass,
    /// Its replication type.
    pub replication: Replication,
    /// Content headers and metadata.
    pub attributes: KeyAttributes,
    /// Checksum algorithm and kind the client asked for.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

/// An upload in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadInfo {
    /// Its id.
    pub upload: WriteId,
    /// Its key.
    pub key: KeyName,
    /// When it was created.
    pub initiated_ms: UnixMs,
    /// Who initiated it and will own the key.
    pub owner: UserInfo,
    /// Its class.
    pub storage_class: StorageClass,
    /// Its replication type.
    pub replication: Replication,
    /// Checksum algorithm and kind the client asked for.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
}

/// Look an upload up before taking a part's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetUpload {
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// The upload.
    pub upload: WriteId,
}

/// UploadPart: the part's blocks are owned by the upload from now on; a part it replaces is retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitPart {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// The upload.
    pub upload: WriteId,
    /// 1 to `PARTS_MAX`.
    pub part: u32,
    /// Bytes.
    pub size: u64,
    /// MD5.
    pub etag: Etag,
    /// All checksums computed.
    pub checksums: Vec<Checksum>,
    /// Its blocks, at most `COMMIT_BLOCKS_MAX`.
    pub blocks: Vec<BlockEntry>,
}

/// A part, as ListParts shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Its number.
    pub part: u32,
    /// Bytes.
    pub size: u64,
    /// MD5.
    pub etag: Etag,
    /// When it was committed.
    pub modified_ms: UnixMs,
    /// Its checksums.
    pub checksums: Vec<Checksum>,
}

/// CompleteMultipartUpload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteUpload {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// The upload.
    pub upload: WriteId,
    /// In the order the client gave.
    pub parts: Vec<CompletedPart>,
    /// When it may.
    pub condition: WriteCondition,
    /// The checksum the client gave for the whole object (`x-amz-checksum-*`), as decoded from base64; a composite one without its `-N`.
    pub expected: Option<Checksum>,
    /// x-amz-mp-object-size.
    pub expected_size: Option<u64>,
}

/// A part named by Complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedPart {
    /// Its number.
    pub part: u32,
    /// The ETag the client was given. None if what it sent is no ETag: never matches.
    pub etag: Option<Etag>,
    /// A checksum the client named beside it.
    pub checksum: Option<Checksum>,
}

/// Answer to [`CompleteUpload`]; the same for a repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadCompleted {
    /// The new version.
    pub version: VersionId,
    /// `md5-N`.
    pub etag: Etag,
    /// The object's checksum of the algorithm asked for, or CRC64NVME.
    pub checksum: Option<Checksum>,
    /// Bytes.
    pub size: u64,
}

/// AbortMultipartUpload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortUpload {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// The upload.
    pub upload: WriteId,
}

/// ListParts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListParts {
    /// The bucket.
    pub bucket: BucketRef,
    /// The key.
    pub key: KeyName,
    /// The upload.
    pub upload: WriteId,
    /// Only parts after this number.
    pub after: u32,
    /// At most so many.
    pub max: u32,
}

/// A page of parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartPage {
    /// The upload.
    pub upload: UploadInfo,
    /// In numeric order.
    pub parts: Vec<PartInfo>,
    /// More follow.
    pub is_truncated: bool,
}

/// ListMultipartUploads: by key, then by initiation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListUploads {
    /// The bucket.
    pub bucket: BucketRef,
    /// Only keys that begin so.
    pub prefix: String,
    /// As in [`ListKeys`](super::ListKeys).
    pub delimiter: String,
    /// Only keys after this one, or the same key with uploads after `upload_after`.
    pub key_after: String,
    /// See `key_after`; None passes the whole key over.
    pub upload_after: Option<WriteId>,
    /// At most so many entries and prefixes together.
    pub max: u32,
}

/// An entry of [`UploadPage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadItem {
    /// An upload.
    Upload(UploadInfo),
    /// Keys cut at the delimiter.
    Prefix(String),
}

/// A page of uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPage {
    /// In order.
    pub items: Vec<UploadItem>,
    /// More follow.
    pub is_truncated: bool,
}
