//! Tables, row keys and rows of OM: a format (docs/formats/om.md).
//!
//! Row keys are big-endian and clustered by prefix, so that a bucket's keys, an upload's parts, a container's blocks
//! each are one range. Rows are MessagePack arrays: fields are appended with a default, never moved or removed.
//!
//! Invariant: a key row begins with its [`KeyHead`] as a value of its own: a listing decodes nothing else.
//!
//! Not here: the CRC over key and value of every row (consensus adds and verifies it).

use consensus::{StoreError, Table};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use wire::block::{BlockEntry, Pipeline, Replication};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use wire::clock::UnixMs;
use wire::ids::{
    BlockId, BucketId, ContainerId, Generation, LeaseId, LoanId, LocalId, SessionId, VersionId, WriteId,
};
use wire::names::{BucketName, KeyName, VolumeName};
use wire::om::{
    BucketInfo, KeyAttributes, KeyHead, KeyInfo, PartInfo, PartRun, StorageClass, UploadCompleted,
    UploadInfo, UserId, UserInfo,
};
use wire::operator::Quota;

/// Singletons by name: clock, access version, defaults, hand-over in progress.
pub(crate) const META: Table = Table::new(0, "meta");
/// name -> [`VolumeRow`].
pub(crate) const VOLUME: Table = Table::new(1, "volume");
/// volume, 0, name -> [`BucketRow`].
pub(crate) const BUCKET: Table = Table::new(2, "bucket");
/// owner (length first), bucket -> nothing; with an empty bucket: how many there are.
pub(crate) const OWNER: Table = Table::new(3, "owner");
/// 'b', bucket id | 'v', volume -> [`UsageRow`].
pub(crate) const USAGE: Table = Table::new(4, "usage");
/// bucket id, key -> [`KeyRow`].
pub(crate) const KEY: Table = Table::new(5, "key");
/// write id, first byte -> block entries.
pub(crate) const LAYOUT: Table = Table::new(6, "layout");
/// bucket id, upload id -> [`UploadRow`].
pub(crate) const UPLOAD: Table = Table::new(7, "upload");
/// bucket id, escaped key, index of creation -> upload id.
pub(crate) const UPLOAD_ORDER: Table = Table::new(8, "upload_order");
/// index of completion -> [`UploadDoneRow`].
pub(crate) const UPLOAD_DONE: Table = Table::new(9, "upload_done");
/// upload id, part number -> [`PartRow`].
pub(crate) const PART: Table = Table::new(10, "part");
/// container, local id -> [`BlockRow`].
pub(crate) const BLOCK: Table = Table::new(11, "block");
/// container, local id, write id -> [`BlockRefRow`]: owners beside the first.
pub(crate) const BLOCK_REF: Table = Table::new(12, "block_ref");
/// session id -> [`SessionRow`].
pub(crate) const SESSION: Table = Table::new(13, "session");
/// session id, sequence -> the command's reply.
pub(crate) const REQUEST: Table = Table::new(14, "request");
/// lease id -> [`LeaseRow`].
pub(crate) const LEASE: Table = Table::new(15, "lease");
/// container, first local id -> [`LoanRow`].
pub(crate) const LOAN: Table = Table::new(16, "loan");
/// session id, loan id -> container, first local id.
pub(crate) const LOAN_SESSION: Table = Table::new(17, "loan_session");
/// index, ordinal -> [`DeletedRow`].
pub(crate) const DELETED: Table = Table::new(18, "deleted");
/// queue, index, ordinal -> [`WorkRow`].
pub(crate) const WORK: Table = Table::new(19, "work");
/// kind, 0, name -> [`UserInfo`] | [`AccessKeyRow`].
pub(crate) const ACCESS: Table = Table::new(20, "access");
/// nonce -> session id: who opens a session twice gets the same.
pub(crate) const SESSION_NONCE: Table = Table::new(21, "session_nonce");
/// bucket id -> volume, 0, name.
pub(crate) const BUCKET_ID: Table = Table::new(22, "bucket_id");
/// owner (length first), volume -> nothing.
pub(crate) const VOLUME_OWNER: Table = Table::new(23, "volume_owner");
/// container -> [`RetiredRow`]: declared empty; takes nothing any more.
pub(crate) const RETIRED: Table = Table::new(24, "retired");

/// All tables, each at its index. Append only.
pub(crate) const TABLES: &[Table] = &[
    META,
    VOLUME,
    BUCKET,
    OWNER,
    USAGE,
    KEY,
    LAYOUT,
    UPLOAD,
    UPLOAD_ORDER,
    UPLOAD_DONE,
    PART,
    BLOCK,
    BLOCK_REF,
    SESSION,
    REQUEST,
    LEASE,
    LOAN,
    LOAN_SESSION,
    DELETED,
    WORK,
    ACCESS,
    SESSION_NONCE,
    BUCKET_ID,
    VOLUME_OWNER,
    RETIRED,
];

/// The latest time of any applied command.
pub(crate) const META_CLOCK: &[u8] = b"clock";
/// Raised by every change of users and access keys.
pub(crate) const META_ACCESS_VERSION: &[u8] = b"access_version";
/// [`DefaultsRow`].
pub(crate) const META_DEFAULTS: &[u8] = b"defaults";
/// [`HandoverRow`], while a batch of freed blocks is on its way to SCM.
pub(crate) const META_HANDOVER: &[u8] = b"handover";
/// The number of the last batch handed to SCM.
pub(crate) const META_HANDOVER_BATCH: &[u8] = b"handover_batch";

/// The work queue whose rows are worked off at once.
pub(crate) const WORK_NOW: u8 = 0;
/// The work queue whose rows wait for the delete grace: block lists that readers may still page through.
pub(crate) const WORK_AFTER_GRACE: u8 = 1;

/// What holds for buckets that name nothing of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DefaultsRow {
    /// Replication of new keys.
    pub(crate) replication: Replication,
    /// Counts changes. Added to every bucket's own `config_version`, so that whoever knows the old default is refused.
    pub(crate) version: u64,
}

impl Default for DefaultsRow {
    fn default() -> Self {
        Self { replication: Replication::One, version: 0 }
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRow {
    pub(crate) owner: UserId,
    pub(crate) created_ms: UnixMs,
    #[serde(default)]
    pub(crate) quota: Quota,
    /// How many buckets and links it has.
    #[serde(default)]
    pub(crate) buckets: u64,
}

/// A bucket, or a link to one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BucketRow {
    pub(crate) id: BucketId,
    pub(crate) owner: UserInfo,
    pub(crate) created_ms: UnixMs,
    pub(crate) location: String,
    /// Counts changes of this row that callers must know.
    pub(crate) config_version: u64,
    /// Replication of new keys; None: the cluster's default.
    #[serde(default)]
    pub(crate) replication: Option<Replication>,
    #[serde(default)]
    pub(crate) quota: Quota,
    /// A link: volume and name of the bucket it stands for. It has no keys of its own.
    #[serde(default)]
    pub(crate) source: Option<(VolumeName, BucketName)>,
}

impl BucketRow {
    pub(crate) fn info(self, name: BucketName, defaults: DefaultsRow) -> BucketInfo {
        BucketInfo {
            id: self.id,
            name,
            owner: self.owner,
            created_ms: self.created_ms,
            location: self.location,
            config_version: self.config_version + defaults.version,
            replication: self.replication.unwrap_or(defaults.replication),
        }
    }
}

/// A container that OM has declared empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetiredRow {
    pub(crate) retired_ms: UnixMs,
}

/// Counters of a bucket or volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UsageRow {
    /// Live keys.
    pub(crate) keys: i64,
    /// Their bytes.
    pub(crate) bytes: i64,
}

impl UsageRow {
    pub(crate) fn add(&mut self, delta: &Self) {
        self.keys += delta.keys;
        self.bytes += delta.bytes;
    }
}

/// Where a version's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Data {
    /// Nowhere: no bytes.
    Empty,
    /// In the row. Reserved.
    Inline(ByteBuf),
    /// In a few blocks.
    Blocks(Vec<BlockEntry>),
    /// In the blocks of `layout` rows.
    Layout {
        /// How many entries those rows hold.
        entries: u64,
    },
}

/// The current version of a key: [`KeyHead`], then this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRest {
    pub(crate) version: VersionId,
    pub(crate) write_id: WriteId,
    pub(crate) replication: Replication,
    pub(crate) attributes: KeyAttributes,
    pub(crate) checksums: Vec<Checksum>,
    pub(crate) parts: Vec<PartRun>,
    pub(crate) data: Data,
    /// See `KeyInfo::part_checksums`.
    #[serde(default)]
    pub(crate) part_checksums: ByteBuf,
}

/// The current version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub(crate) head: KeyHead,
    pub(crate) rest: KeyRest,
}

impl KeyRow {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(256);
        rmp_serde::encode::write(&mut value, &self.head).expect("memory takes every row");
        rmp_serde::encode::write(&mut value, &self.rest).expect("memory takes every row");
        value
    }

    pub(crate) fn decode(row_key: &[u8], value: &[u8]) -> Result<Self, StoreError> {
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(value);
        let head = KeyHead::deserialize(&mut deserializer).map_err(|_| corrupt(KEY, row_key))?;
        let rest = KeyRest::deserialize(&mut deserializer).map_err(|_| corrupt(KEY, row_key))?;
        Ok(Self { head, rest })
    }

    /// The head alone: all that a listing reads.
    pub(crate) fn decode_head(row_key: &[u8], value: &[u8]) -> Result<KeyHead, StoreError> {
        decode(KEY, row_key, value)
    }

    pub(crate) fn into_info(self) -> (KeyInfo, Data) {
        let KeyRest { version, write_id, replication, attributes, checksums, parts, data, part_checksums } =
            self.rest;
        (
            KeyInfo {
                version,
                head: self.head,
                attributes,
                checksums,
                parts,
                replication,
                write_id,
                part_checksums,
            },
            data,
        )
    }
}

/// A multipart upload, in progress or completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadRow {
    pub(crate) key: KeyName,
    /// Raft index of its creation: orders uploads of one key.
    pub(crate) created_index: u64,
    pub(crate) initiated_ms: UnixMs,
    pub(crate) owner: UserInfo,
    pub(crate) storage_class: StorageClass,
    pub(crate) replication: Replication,
    pub(crate) attributes: KeyAttributes,
    pub(crate) checksum: Option<(ChecksumAlgorithm, ChecksumKind)>,
    /// Set by Complete; a repeat is answered with it.
    pub(crate) completed: Option<UploadCompleted>,
}

impl UploadRow {
    pub(crate) fn info(self, upload: WriteId) -> UploadInfo {
        UploadInfo {
            upload,
            key: self.key,
            initiated_ms: self.initiated_ms,
            owner: self.owner,
            storage_class: self.storage_class,
            replication: self.replication,
            checksum: self.checksum,
        }
    }
}

/// A completed upload whose row waits for its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadDoneRow {
    pub(crate) bucket: BucketId,
    pub(crate) upload: WriteId,
    pub(crate) completed_ms: UnixMs,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRow {
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) modified_ms: UnixMs,
    pub(crate) checksums: Vec<Checksum>,
    pub(crate) blocks: Vec<BlockEntry>,
}

impl PartRow {
    pub(crate) fn info(self, part: u32) -> PartInfo {
        PartInfo {
            part,
            size: self.size,
            etag: self.etag,
            modified_ms: self.modified_ms,
            checksums: self.checksums,
        }
    }
}

/// Whether a block lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BlockState {
    /// Versions or parts refer to it.
    #[serde(rename = "o")]
    Owned,
    /// Nothing does, or nothing ever did: queued for deletion. Final.
    #[serde(rename = "f")]
    Freed,
}

/// A block that is not on loan any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockRow {
    pub(crate) state: BlockState,
    /// The write that owns it; further owners stand in `block_ref`. Zero if it was never committed.
    pub(crate) owner: WriteId,
    /// The bucket of that write.
    pub(crate) bucket: BucketId,
    /// How many writes own it.
    pub(crate) references: u32,
    /// Bytes of the whole block.
    pub(crate) length: u64,
    /// Raft index of the command that committed it, and its time: the answer to a late repeat.
    pub(crate) committed_index: u64,
    pub(crate) committed_ms: UnixMs,
    /// The key, or the key of the upload, that the owner wrote it for. None once it is freed.
    ///
    /// It stands here and not in a row per write, so that a commit writes no further row; blocks are large or alone in
    /// their key, so the name is a small part of what they hold.
    #[serde(default)]
    pub(crate) key: Option<KeyName>,
}

/// A further owner of a block: the bucket and key of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockRefRow {
    pub(crate) bucket: BucketId,
    pub(crate) key: KeyName,
}

/// A gateway's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRow {
    #[serde(with = "serde_bytes")]
    pub(crate) nonce: [u8; 16],
    pub(crate) opened_ms: UnixMs,
    /// Refuses commands; its loans are being worked off.
    pub(crate) is_ended: bool,
    /// Commands below are refused: their replies are gone.
    pub(crate) low_water: u64,
}

/// A range of ids that SCM granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRow {
    pub(crate) container: ContainerId,
    pub(crate) generation: Generation,
    pub(crate) first: LocalId,
    pub(crate) count: u64,
    /// Ids lent so far.
    pub(crate) used: u64,
    pub(crate) pipeline: Pipeline,
    /// No more loans from it. The row goes once SCM has logged its return.
    pub(crate) is_ended: bool,
}

impl LeaseRow {
    pub(crate) fn left(&self) -> u64 {
        if self.is_ended { 0 } else { self.count - self.used }
    }
}

/// Ids lent to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoanRow {
    pub(crate) id: LoanId,
    pub(crate) session: SessionId,
    pub(crate) lease: LeaseId,
    pub(crate) taken_ms: UnixMs,
    pub(crate) count: u16,
    /// One bit per id, lowest first: still on loan.
    pub(crate) left: ByteBuf,
}

/// A freed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeletedRow {
    pub(crate) block: BlockId,
    pub(crate) freed_ms: UnixMs,
}

/// A batch of freed blocks on its way to SCM: the rows of `deleted` up to a row key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandoverRow {
    pub(crate) batch: u64,
    pub(crate) last: ByteBuf,
}

/// Work too large for one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkRow {
    pub(crate) queued_ms: UnixMs,
    pub(crate) work: Work,
}

/// See [`WorkRow`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Drop a write's references to these blocks.
    Release {
        /// The write.
        write_id: WriteId,
        /// What is left.
        blocks: Vec<BlockId>,
    },
    /// Drop a write's references to the blocks of its `layout` rows, and the rows.
    Layout {
        /// The write.
        write_id: WriteId,
    },
    /// Free ids that left their loan without a commit.
    Free {
        /// Their container.
        container: ContainerId,
        /// Runs of (first id, count).
        runs: Vec<(LocalId, u16)>,
    },
    /// Drop an upload's part rows, and the blocks of those not used.
    Parts {
        /// The upload.
        upload: WriteId,
        /// Parts that Complete used, as runs of (first number, count).
        used: Vec<(u32, u32)>,
    },
    /// Drop all uploads of a bucket that is gone.
    Uploads {
        /// The bucket.
        bucket: BucketId,
    },
    /// Reclaim the loans of an ended session, then drop its rows.
    Session {
        /// The session.
        session: SessionId,
    },
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccessKeyRow {
    pub(crate) user: UserId,
    /// Drawn in prepare.
    #[serde(with = "serde_bytes")]
    pub(crate) nonce: [u8; 12],
    /// The secret, sealed by the cluster key.
    pub(crate) sealed: ByteBuf,
}

/// Encodes a row.
pub(crate) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    rmp_serde::to_vec(row).expect("memory takes every row")
}

/// Decodes a row. A row that passed its CRC and does not decode was written by a newer version: damaged for us.
pub(crate) fn decode<T: DeserializeOwned>(
    table: Table,
    row_key: &[u8],
    value: &[u8],
) -> Result<T, StoreError> {
    rmp_serde::from_slice(value).map_err(|_| corrupt(table, row_key))
}

/// The fault of a row that cannot be read.
pub(crate) fn corrupt(table: Table, row_key: &[u8]) -> StoreError {
    StoreError::Corrupt { table: table.name(), row_key: row_key.to_vec() }
}

/// Two numbers, big-endian.
pub(crate) fn pair(high: u64, low: u64) -> [u8; 16] {
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}

/// Row key of a bucket.
pub(crate) fn bucket_row_key(volume: &str, name: &str) -> Vec<u8> {
    [volume.as_bytes(), &[0], name.as_bytes()].concat()
}

/// Volume and name in a bucket's row key.
pub(crate) fn bucket_of_row_key(row_key: &[u8]) -> Option<(&str, BucketName)> {
    let (volume, name) = std::str::from_utf8(row_key).ok()?.split_once('\0')?;
    Some((volume, BucketName::new(name).ok()?))
}

/// Row key of an owner's bucket in volume `s3v` (with an empty name, of their count), or of an owner's volume.
pub(crate) fn owner_row_key(owner: &UserId, bucket: &str) -> Vec<u8> {
    let length = owner.0.len() as u16;
    [&length.to_be_bytes(), owner.0.as_bytes(), bucket.as_bytes()].concat()
}

/// Row key of a key.
pub(crate) fn key_row_key(bucket: BucketId, key: &[u8]) -> Vec<u8> {
    [&bucket.to_be_bytes(), key].concat()
}

/// Row key of a `layout` row.
pub(crate) fn layout_row_key(write_id: WriteId, first_byte: u64) -> [u8; 24] {
    let mut row_key = [0; 24];
    row_key[..16].copy_from_slice(&write_id.to_row_key());
    row_key[16..].copy_from_slice(&first_byte.to_be_bytes());
    row_key
}

/// Row key of an upload.
pub(crate) fn upload_row_key(bucket: BucketId, upload: WriteId) -> [u8; 24] {
    let mut row_key = [0; 24];
    row_key[..8].copy_from_slice(&bucket.to_be_bytes());
    row_key[8..].copy_from_slice(&upload.to_row_key());
    row_key
}

/// Row key of an upload in listing order.
pub(crate) fn upload_order_row_key(bucket: BucketId, key: &[u8], created_index: u64) -> Vec<u8> {
    let mut row_key = bucket.to_be_bytes().to_vec();
    escape(key, &mut row_key);
    row_key.extend_from_slice(&ESCAPE_END);
    row_key.extend_from_slice(&created_index.to_be_bytes());
    row_key
}

/// Row key of a part.
pub(crate) fn part_row_key(upload: WriteId, part: u32) -> [u8; 20] {
    let mut row_key = [0; 20];
    row_key[..16].copy_from_slice(&upload.to_row_key());
    row_key[16..].copy_from_slice(&part.to_be_bytes());
    row_key
}

/// Row key of a further owner of a block.
pub(crate) fn block_ref_row_key(block: BlockId, write_id: WriteId) -> [u8; 32] {
    let mut row_key = [0; 32];
    row_key[..16].copy_from_slice(&block.to_row_key());
    row_key[16..].copy_from_slice(&write_id.to_row_key());
    row_key
}

/// Row key of index and ordinal.
pub(crate) fn ordinal_row_key(index: u64, ordinal: u32) -> [u8; 12] {
    let mut row_key = [0; 12];
    row_key[..8].copy_from_slice(&index.to_be_bytes());
    row_key[8..].copy_from_slice(&ordinal.to_be_bytes());
    row_key
}

/// Row key of queued work.
pub(crate) fn work_row_key(queue: u8, index: u64, ordinal: u32) -> [u8; 13] {
    let mut row_key = [queue; 13];
    row_key[1..].copy_from_slice(&ordinal_row_key(index, ordinal));
    row_key
}

/// Row key of a user or an access key.
pub(crate) fn access_row_key(kind: &str, name: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0], name.as_bytes()].concat()
}

/// Kinds of rows in `access`.
pub(crate) const ACCESS_USER: &str = "user";
/// See [`ACCESS_USER`].
pub(crate) const ACCESS_KEY: &str = "key";

/// Ends an escaped key: sorts below every continuation of it.
pub(crate) const ESCAPE_END: [u8; 2] = [0, 1];

/// Appends `key` so that byte order of keys is kept although something follows: 00 becomes 00 FF.
pub(crate) fn escape(key: &[u8], out: &mut Vec<u8>) {
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
}

/// The first row key behind all that begin with `prefix`. None if there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
