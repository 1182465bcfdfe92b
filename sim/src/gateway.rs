//! A simulated gateway: what the S3 gateway does with OM and datanodes, without HTTP around it.
//!
//! It goes the same way through the `client` crate: a session, loans, blocks written and read, commands. What it leaves
//! out is syntax: signatures, XML, digests.
//!
//! Not here: which operations are asked for (`workload`).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::key_reader::KeyReader;
use client::key_writer::KeyWriter;
use client::service::{CallError, Datanodes, OmService};
use client::session::Session;
use futures_util::StreamExt;
use parking_lot::Mutex;
use wire::block::Replication;
use wire::checksum::Etag;
use wire::clock;
use wire::ids::WriteId;
use wire::limits::CHUNK_RUN_BYTES_MAX;
use wire::names::{BucketName, KeyName};
use wire::om::{
    AbortUpload, BucketRef, CommitKey, CommitPart, CompleteUpload, CompletedPart, CopyKey, CreateBucket,
    CreateUpload, DeleteKeys, GetBucket, KeyAttributes, ListItem, ListKeys, LookupKey, Rejection,
    StorageClass, UserId, UserInfo, WriteCondition,
};
use wire::status::{Failure, Status};

use checker::{Answer, Condition, History, KeyIndex, OpId, Page, body_of, etag_of, upload_etag_of};

/// The one bucket of a run.
pub(crate) const BUCKET: &str = "simulated";

/// Keys of one page: small, so that listings have several.
const PAGE_KEYS: u32 = 8;

/// A gateway's life.
pub(crate) struct SimulatedGateway {
    session: Arc<Session>,
    writer: KeyWriter,
    reader: Arc<KeyReader>,
    bucket: Mutex<Option<BucketRef>>,
    history: Arc<Mutex<History>>,
    /// A block list of this age or less still names blocks that are there.
    readable_ms: u64,
}

/// Where a writer takes its time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Holds {
    /// In the midst of a body.
    pub(crate) midst: Duration,
    /// Before the commit, as for a slow client's last bytes.
    pub(crate) end: Duration,
}

/// The name of a key; sorts as the numbers do.
pub(crate) fn key_name(key: KeyIndex) -> KeyName {
    KeyName::new(&format!("key-{key:04}")).expect("digits make a legal key")
}

fn key_index(name: &KeyName) -> Option<KeyIndex> {
    name.as_str().strip_prefix("key-")?.parse().ok()
}

fn owner() -> UserInfo {
    UserInfo { id: UserId("simulated-owner".to_owned()), display_name: "owner".to_owned(), email: None }
}

impl SimulatedGateway {
    /// Opens a session. Must run as the gateway's node.
    pub(crate) async fn open(
        om: Arc<dyn OmService>,
        datanodes: Arc<Datanodes>,
        history: Arc<Mutex<History>>,
        readable_ms: u64,
    ) -> Result<Arc<Self>, CallError> {
        let session = Session::open(om).await?;
        let writer = KeyWriter::new(session.clone(), datanodes.clone());
        let reader = KeyReader::new(session.clone(), datanodes);
        Ok(Arc::new(Self { session, writer, reader, bucket: Mutex::new(None), history, readable_ms }))
    }

    /// Makes the bucket if it is not there.
    pub(crate) async fn create_bucket(&self) -> Result<(), CallError> {
        let name = BucketName::new(BUCKET).expect("a legal name");
        let make =
            |context| CreateBucket { context, name: name.clone(), owner: owner(), location: String::new() };
        match self.session.command(make).await {
            Ok(_) | Err(CallError::Rejected(Rejection::BucketExists { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn bucket(&self) -> Result<BucketRef, CallError> {
        if let Some(bucket) = self.bucket.lock().clone() {
            return Ok(bucket);
        }
        let name = BucketName::new(BUCKET).expect("a legal name");
        let info = self.session.call(GetBucket { name: name.clone() }).await?;
        let bucket = BucketRef { name, id: info.id, config_version: info.config_version, access_version: 0 };
        *self.bucket.lock() = Some(bucket.clone());
        Ok(bucket)
    }

    /// The write condition, as OM takes it. The ETag of an upload is another than that of its parts.
    fn condition(&self, condition: Condition) -> WriteCondition {
        match condition {
            Condition::None => WriteCondition::None,
            Condition::IfAbsent => WriteCondition::IfAbsent,
            Condition::IfMatch(id) => WriteCondition::IfMatch(self.etag_named(id)),
        }
    }

    fn etag_named(&self, id: OpId) -> Etag {
        let history = self.history.lock();
        [etag_of(id), upload_etag_of(id, UPLOAD_PARTS)]
            .into_iter()
            .find(|etag| history.content_of(etag).is_some())
            .unwrap_or_else(|| etag_of(id))
    }

    /// PutObject.
    pub(crate) async fn put(
        &self,
        id: OpId,
        key: KeyIndex,
        condition: Condition,
        bytes: u64,
        replication: Replication,
        holds: Holds,
    ) -> Answer {
        self.history.lock().name_content(etag_of(id), id);
        let put = async {
            let bucket = self.bucket().await?;
            let blocks = self.store(body_of(id, bytes), replication, holds.midst).await?;
            if !holds.end.is_zero() {
                tokio::time::sleep(holds.end).await;
            }
            let make = |context| CommitKey {
                context,
                bucket: bucket.clone(),
                key: key_name(key),
                condition: self.condition(condition),
                owner: owner().id,
                size: bytes,
                etag: etag_of(id),
                storage_class: StorageClass::Standard,
                replication,
                attributes: KeyAttributes::default(),
                checksum: None,
                checksums: Vec::new(),
                blocks: blocks.entries().to_vec(),
            };
            let committed = self.session.command(make).await?;
            blocks.committed();
            Ok(Answer::Written { index: committed.version.index, content: id })
        };
        put.await.unwrap_or_else(|error| self.refused(&error))
    }

    async fn store(
        &self,
        mut body: Bytes,
        replication: Replication,
        hold: Duration,
    ) -> Result<client::key_writer::WrittenBlocks, CallError> {
        if body.len() <= CHUNK_RUN_BYTES_MAX {
            return Ok(self.writer.write_small(replication, body).await?);
        }
        let mut sink = self.writer.begin(replication, Some(body.len() as u64));
        if !hold.is_zero() {
            sink.push(body.split_to(body.len() / 2)).await?;
            tokio::time::sleep(hold).await;
        }
        sink.push(body).await?;
        Ok(sink.finish().await?)
    }

    /// A multipart upload of [`UPLOAD_PARTS`] parts. The smallest size of a part is S3's, so all but the last hold it.
    pub(crate) async fn upload(
        &self,
        id: OpId,
        key: KeyIndex,
        condition: Condition,
        bytes: u64,
        replication: Replication,
        is_aborted: bool,
    ) -> Answer {
        self.history.lock().name_content(upload_etag_of(id, UPLOAD_PARTS), id);
        let upload = async {
            let bucket = self.bucket().await?;
            let create = |context| CreateUpload {
                context,
                bucket: bucket.clone(),
                key: key_name(key),
                owner: owner(),
                storage_class: StorageClass::Standard,
                replication,
                attributes: KeyAttributes::default(),
                checksum: None,
            };
            let upload: WriteId = self.session.command(create).await?;
            let blocks = self.store(body_of(id, bytes), replication, Duration::ZERO).await?;
            let part = |context| CommitPart {
                context,
                bucket: bucket.clone(),
                key: key_name(key),
                upload,
                part: 1,
                size: bytes,
                etag: etag_of(id),
                checksums: Vec::new(),
                blocks: blocks.entries().to_vec(),
            };
            self.session.command(part).await?;
            blocks.committed();
            if is_aborted {
                let abort =
                    |context| AbortUpload { context, bucket: bucket.clone(), key: key_name(key), upload };
                self.session.command(abort).await?;
                return Ok(Answer::Failed);
            }
            let complete = |context| CompleteUpload {
                context,
                bucket: bucket.clone(),
                key: key_name(key),
                upload,
                parts: vec![CompletedPart { part: 1, etag: Some(etag_of(id)), checksum: None }],
                condition: self.condition(condition),
                expected: None,
                expected_size: None,
            };
            let completed = self.session.command(complete).await?;
            Ok(Answer::Written { index: completed.version.index, content: id })
        };
        upload.await.unwrap_or_else(|error| self.refused(&error))
    }

    /// DeleteObject.
    pub(crate) async fn delete(&self, key: KeyIndex) -> Answer {
        let delete = async {
            let bucket = self.bucket().await?;
            let keys = vec![(key_name(key), WriteCondition::None)];
            let make = |context| DeleteKeys { context, bucket: bucket.clone(), keys: keys.clone() };
            let deleted = self.session.command(make).await?;
            Ok(Answer::Deleted { index: deleted.index })
        };
        delete.await.unwrap_or_else(|error| self.refused(&error))
    }

    /// CopyObject by sharing blocks.
    pub(crate) async fn copy(&self, from: KeyIndex, to: KeyIndex) -> Answer {
        let copy = async {
            let bucket = self.bucket().await?;
            let lookup = LookupKey { bucket: bucket.clone(), key: key_name(from), layout_from: None };
            let found = self.session.call(lookup).await?;
            let content = self.history.lock().content_of(&found.info.head.etag);
            let make = |context| CopyKey {
                context,
                source_bucket: bucket.clone(),
                source_key: key_name(from),
                source_version: found.info.version,
                bucket: bucket.clone(),
                key: key_name(to),
                condition: WriteCondition::None,
                owner: owner().id,
                storage_class: StorageClass::Standard,
                replication: found.info.replication,
                attributes: None,
            };
            let committed = self.session.command(make).await?;
            // A copy of a multipart object is an object of its own kind, with the same bytes: the body tells.
            Ok(Answer::Written { index: committed.version.index, content: content.unwrap_or(OpId::MAX) })
        };
        match copy.await {
            Ok(answer) => answer,
            Err(CallError::Rejected(
                Rejection::NoSuchKey | Rejection::SourceChanged | Rejection::CannotShare,
            )) => Answer::Failed,
            Err(error) => self.refused(&error),
        }
    }

    /// GetObject: every byte is compared. `hold` is waited between the look-up and the first block.
    pub(crate) async fn get(&self, key: KeyIndex, hold: Duration) -> Result<Answer, String> {
        let begun_ns = clock::steady_ns();
        let lookup = async {
            let bucket = self.bucket().await?;
            let request = LookupKey { bucket: bucket.clone(), key: key_name(key), layout_from: Some(0) };
            Ok((self.session.call(request).await?, bucket))
        };
        let (found, bucket) = match lookup.await {
            Ok(found) => found,
            Err(CallError::Rejected(Rejection::NoSuchKey)) => return Ok(Answer::Absent),
            Err(error) => return Ok(self.refused(&error)),
        };
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        let mut body = BytesMut::new();
        if let Some(page) = found.layout {
            let range = 0..found.info.head.size;
            let mut stream = self.reader.read(bucket, found.info.write_id, page, range);
            while let Some(bytes) = stream.next().await {
                match bytes {
                    Ok(bytes) => body.extend_from_slice(&bytes),
                    Err(failure) => {
                        let age_ms = (clock::steady_ns() - begun_ns) / 1_000_000;
                        // Whoever may hold it was asked, and says that it is not there.
                        if failure.status == Status::NotFound && age_ms < self.readable_ms {
                            return Err(format!(
                                "key {key} lost its blocks {age_ms} ms after its look-up: {failure}"
                            ));
                        }
                        return Ok(Answer::Unknown);
                    }
                }
            }
        }
        let history = self.history.lock();
        let etag = found.info.head.etag;
        let Some(content) = history.content_of(&etag) else {
            return Err(format!("key {key} has an ETag that nobody wrote: {etag}"));
        };
        let bytes = history.bytes_of(content).unwrap_or(0);
        if body[..] != body_of(content, bytes)[..] {
            return Err(format!(
                "key {key}: wrong bytes under the ETag of op {content}: {} of {bytes} bytes",
                body.len()
            ));
        }
        Ok(Answer::Found { content, version: found.info.version.index, as_of: found.read_index })
    }

    /// ListObjectsV2, page after page.
    pub(crate) async fn list(&self) -> Result<Answer, String> {
        let mut pages = Vec::new();
        let mut after: Option<KeyIndex> = None;
        loop {
            let begun = self.history.lock().tick();
            let list = async {
                let bucket = self.bucket().await?;
                let request = ListKeys {
                    bucket,
                    prefix: "key-".to_owned(),
                    delimiter: String::new(),
                    after: after.map(|key| key_name(key).as_str().to_owned()).unwrap_or_default(),
                    max: PAGE_KEYS,
                };
                self.session.call(request).await
            };
            let page = match list.await {
                Ok(page) => page,
                Err(error) => return Ok(self.refused(&error)),
            };
            let mut history = self.history.lock();
            let ended = history.tick();
            let mut keys = Vec::new();
            for item in &page.items {
                let ListItem::Key(name, head) = item else {
                    return Err("a prefix nobody asked for".to_owned());
                };
                let (Some(key), Some(content)) = (key_index(name), history.content_of(&head.etag)) else {
                    return Err(format!("a listing shows {name:?} with {}, which nobody wrote", head.etag));
                };
                keys.push((key, content));
            }
            let last = keys.last().map(|(key, _)| *key);
            let until = if page.is_truncated { last } else { None };
            pages.push(Page { after, until, keys, as_of: page.read_index, begun, ended });
            match until {
                Some(key) => after = Some(key),
                None => return Ok(Answer::Listed { pages }),
            }
        }
    }

    /// What a client makes of an error.
    fn refused(&self, error: &CallError) -> Answer {
        match error {
            CallError::Rejected(Rejection::PreconditionFailed { current }) => Answer::Refused {
                current: current.as_ref().and_then(|etag| self.history.lock().content_of(etag)),
            },
            CallError::Rejected(Rejection::StaleBucket(info)) => {
                let mut bucket = self.bucket.lock();
                if let Some(bucket) = bucket.as_mut() {
                    bucket.id = info.id;
                    bucket.config_version = info.config_version;
                }
                Answer::Failed
            }
            CallError::Rejected(Rejection::StaleAccess { access_version }) => {
                if let Some(bucket) = self.bucket.lock().as_mut() {
                    bucket.access_version = *access_version;
                }
                Answer::Failed
            }
            // A new session after a lost answer: the command may have been done under the old one.
            CallError::Rejected(Rejection::SessionEnded | Rejection::Forgotten) => Answer::Unknown,
            CallError::Rejected(_) => Answer::Failed,
            CallError::Failed(Failure {
                status: Status::Retry | Status::NotLeader | Status::Unknown,
                ..
            }) => Answer::Unknown,
            CallError::Failed(_) => Answer::Unknown,
        }
    }
}

/// Parts of an upload: one, since S3 wants 5 MiB of every other.
pub(crate) const UPLOAD_PARTS: u32 = 1;
