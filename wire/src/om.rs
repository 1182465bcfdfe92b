//! Messages of the Ozone Manager: the namespace as gateways ask for it.
//!
//! Writes carry a [`WriteContext`], so that a repeated request has one effect and one answer. Calls about a bucket carry a
//! [`BucketRef`]: the gateway decides permission from what it cached, and OM refuses the call if that is no longer current.
//!
//! Not here: what Raft logs (meta's `command`), how rows are laid out (meta's `schema`).

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::block::{BlockEntry, BlockToken, ContainerLocation, Pipeline, Replication};
use crate::call::service_calls;
use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use crate::clock::UnixMs;
use crate::group::{GroupInfo, MembershipChange};
use crate::ids::{
    BlockId, BucketId, ContainerId, DatanodeId, Generation, LoanId, LocalId, SessionId, VersionId, WriteId,
};
use crate::names::{BucketName, KeyName};
use crate::operator::{
    ContainerKeys, CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, GetGroup,
    GetOmOverview, KeyBlocks, ListContainerKeys, ListNamespaceBuckets, ListVolumes, NamespaceBucket,
    OmOverview, SetBucketQuota, SetDefaultReplication, SetVolume, TransferLeadership, VolumeInfo, WhereKey,
};
use crate::scm::Degraded;

/// Who speaks and which of its commands this is. A repeat with the same numbers is answered as the first was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteContext {
    /// The session.
    pub session: SessionId,
    /// Increases by one with each command of the session.
    pub sequence: u64,
    /// Every command below this number has had its answer: OM forgets their replies.
    pub acknowledged: u64,
}

impl WriteContext {
    /// The id of the blocks written by this command.
    pub const fn write_id(&self) -> WriteId {
        WriteId { session: self.session, sequence: self.sequence }
    }
}

/// A canonical user id, as in `<Owner><ID>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Canonical id.
    pub id: UserId,
    /// As in `<Owner><DisplayName>`.
    pub display_name: String,
    /// For grants by e-mail.
    pub email: Option<String>,
}

/// A string that never shows in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The bucket a call is about, and how fresh the caller's knowledge of it and of its user is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRef {
    /// Its name, in volume `s3v`.
    pub name: BucketName,
    /// The id the caller knows: another means that it was deleted and created again.
    pub id: BucketId,
    /// The configuration the caller decided by.
    pub config_version: u64,
    /// The state of users and keys the caller decided by.
    pub access_version: u64,
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketInfo {
    /// Its id.
    pub id: BucketId,
    /// Its name.
    pub name: BucketName,
    /// Who owns it.
    pub owner: UserInfo,
    /// When it was created.
    pub created_ms: UnixMs,
    /// Its LocationConstraint; empty for us-east-1.
    pub location: String,
    /// Raised by every change of its configuration.
    pub config_version: u64,
    /// Replication of new keys of class STANDARD: the bucket's own, else the cluster's.
    #[serde(default = "one_replica")]
    pub replication: Replication,
}

fn one_replica() -> Replication {
    Replication::One
}

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

/// Begin a gateway's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// Drawn by the caller: a repeat with the same nonce answers with the same session.
    pub nonce: [u8; 16],
}

/// Still alive. Not logged; silence for `SESSION_SILENCE_MS` ends the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewSession {
    /// Which.
    pub session: SessionId,
    /// See [`WriteContext::acknowledged`].
    pub acknowledged: u64,
}

/// End a session in good order: its loans are reclaimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSession {
    /// Which.
    pub session: SessionId,
}

/// Lend block ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeLoan {
    /// Who and which.
    pub context: WriteContext,
    /// For keys of this type.
    pub replication: Replication,
    /// How many ids, at most `LOAN_IDS_MAX`.
    pub count: u16,
    /// Containers whose datanodes refused a write of this gateway (full, closing).
    pub avoid: Vec<ContainerId>,
    /// Datanodes that failed this gateway just now: a loan in a pipeline without them, if there can be one.
    #[serde(default)]
    pub avoid_datanodes: Vec<DatanodeId>,
}

/// Ids lent to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// Its id.
    pub id: LoanId,
    /// The container.
    pub container: ContainerId,
    /// The generation of its replicas.
    pub generation: Generation,
    /// First id.
    pub first: LocalId,
    /// How many ids follow from there.
    pub count: u16,
    /// Who writes the container.
    pub pipeline: Pipeline,
    /// Leave to write these ids.
    pub token: BlockToken,
}

/// Give back ids of failed writes, or whole loans no longer used: they become `freed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseBlocks {
    /// Who and which.
    pub context: WriteContext,
    /// Single ids, at most `LOAN_IDS_MAX`.
    pub blocks: Vec<BlockId>,
    /// Loans to end with all ids still in them, at most 1 a command.
    pub loan: Option<LoanId>,
}

/// A gateway could not have all replicas acknowledge: OM has SCM leave out the others and ends the container's lease.
/// Only after [`Degraded::Accepted`] may the blocks be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradeBlocks {
    /// Who asks.
    pub session: SessionId,
    /// The container.
    pub container: ContainerId,
    /// The generation of its replicas in the loan.
    pub generation: Generation,
    /// Members that acknowledged.
    pub acknowledged: Vec<DatanodeId>,
    /// Members that did not.
    pub failed: Vec<DatanodeId>,
}

/// Where containers are now: a reader met "no such container" or dead replicas. OM asks SCM, past its own cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshLocations {
    /// Which, at most `LAYOUT_PAGE_ENTRIES_MAX`.
    pub containers: Vec<ContainerId>,
}

/// Create or replace a user and its access key. From the configuration, at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutUser {
    /// The user.
    pub user: UserInfo,
    /// Access key id.
    pub access_key: String,
    /// Its secret. OM keeps it sealed by the cluster key.
    pub secret: Secret,
}

/// Drop access keys of the configuration that it no longer names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainAccessKeys {
    /// Those that stay.
    pub access_keys: Vec<String>,
}

/// The SigV4 signing key of (access key, day, region, service). The secret stays in OM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSigningKey {
    /// Access key id.
    pub access_key: String,
    /// `YYYYMMDD`.
    pub day: String,
    /// Region of the credential scope.
    pub region: String,
    /// Service of the credential scope: `s3`.
    pub service: String,
}

/// Answer to [`GetSigningKey`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Whose.
    pub user: UserInfo,
    /// HMAC chain's end.
    pub key: [u8; 32],
    /// For [`BucketRef::access_version`].
    pub access_version: u64,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({}, ***)", self.user.id.0)
    }
}

/// HMAC-SHA1 of a SigV2 string to sign, for presigned URLs of old clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignV2 {
    /// Access key id.
    pub access_key: String,
    /// What to sign.
    pub string_to_sign: String,
}

/// Answer to [`SignV2`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedV2 {
    /// Whose.
    pub user: UserInfo,
    /// The signature.
    pub signature: [u8; 20],
    /// For [`BucketRef::access_version`].
    pub access_version: u64,
}

/// CreateBucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBucket {
    /// Who and which.
    pub context: WriteContext,
    /// Its name.
    pub name: BucketName,
    /// Its owner.
    pub owner: UserInfo,
    /// LocationConstraint; empty for us-east-1.
    pub location: String,
}

/// HeadBucket and every look-up of a bucket's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBucket {
    /// Its name.
    pub name: BucketName,
}

/// DeleteBucket: only if it has no keys; unfinished uploads go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteBucket {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
}

/// ListBuckets of one owner, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListBuckets {
    /// Whose.
    pub owner: UserId,
    /// Only names that begin so.
    pub prefix: String,
    /// Only names after this one.
    pub after: String,
    /// At most so many.
    pub max: u32,
}

/// A page of buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketPage {
    /// In byte order.
    pub buckets: Vec<BucketInfo>,
    /// More follow.
    pub is_truncated: bool,
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

/// ListObjects, both versions; also ListObjectVersions of an unversioned bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKeys {
    /// The bucket.
    pub bucket: BucketRef,
    /// Only names that begin so.
    pub prefix: String,
    /// Names are cut at its first occurrence behind the prefix. Empty: not.
    pub delimiter: String,
    /// Only names, and common prefixes, after this one; a common prefix equal to it is passed over with all it holds.
    pub after: String,
    /// At most so many entries and prefixes together.
    pub max: u32,
}

/// A listing's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListItem {
    /// A key.
    Key(KeyName, KeyHead),
    /// Names cut at the delimiter, the delimiter included.
    Prefix(String),
}

/// A page of a listing, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// Keys and prefixes.
    pub items: Vec<ListItem>,
    /// More follow after the last item.
    pub is_truncated: bool,
    /// As [`KeyFound::read_index`].
    #[serde(default)]
    pub read_index: u64,
}

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
    /// As in [`ListKeys`].
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

service_calls! {
    /// A request to OM and the type of its answer.
    trait OmCall;
    /// What gateways ask of OM.
    enum OmRequest;
    /// OM's answers.
    enum OmReply;
    OpenSession => SessionId,
    RenewSession => (),
    EndSession => (),
    TakeLoan => Loan,
    ReleaseBlocks => (),
    DegradeBlocks => Degraded,
    RefreshLocations => Vec<ContainerLocation>,
    PutUser => (),
    RetainAccessKeys => (),
    GetSigningKey => SigningKey,
    SignV2 => SignedV2,
    CreateBucket => BucketInfo,
    GetBucket => BucketInfo,
    DeleteBucket => (),
    ListBuckets => BucketPage,
    CommitKey => KeyCommitted,
    LookupKey => KeyFound,
    GetLayout => LayoutPage,
    DeleteKeys => KeysDeleted,
    CopyKey => KeyCommitted,
    ListKeys => KeyPage,
    CreateUpload => WriteId,
    GetUpload => UploadInfo,
    CommitPart => KeyCommitted,
    CompleteUpload => UploadCompleted,
    AbortUpload => (),
    ListParts => PartPage,
    ListUploads => UploadPage,
    GetGroup => GroupInfo,
    MembershipChange => (),
    TransferLeadership => (),
    GetOmOverview => OmOverview,
    SetDefaultReplication => (),
    WhereKey => KeyBlocks,
    ListContainerKeys => ContainerKeys,
    CreateVolume => (),
    SetVolume => (),
    DeleteVolume => (),
    ListVolumes => Vec<VolumeInfo>,
    CreateNamespaceBucket => (),
    SetBucketQuota => (),
    DeleteNamespaceBucket => (),
    ListNamespaceBuckets => Vec<NamespaceBucket>,
}
