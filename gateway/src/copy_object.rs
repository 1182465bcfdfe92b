//! CopyObject: shares the source's blocks where it can, and copies bytes where it must.
//!
//! Blocks are shared if the copy has the same replication type, needs no other checksum than the source has, and is not
//! too long for one command. A copy onto itself changes metadata in place and moves no bytes.
//!
//! Invariant: the copy is of one version of the source: the one whose conditions were judged.
//!
//! Not here: UploadPartCopy (see `upload_part`).

use std::sync::Arc;

use auth::Action;
use percent_encoding::percent_decode_str;
use platform::task;
use wire::block::Replication;
use wire::checksum::{ChecksumAlgorithm, ChecksumKind};
use wire::limits::PUT_BYTES_MAX;
use wire::names::{BucketName, KeyName};
use wire::om::{
    BucketRef, CopyKey, KeyAttributes, KeyFound, KeyInfo, LookupKey, Rejection, StorageClass, WriteCondition,
};

use crate::access::{Bucket, Interrupted};
use crate::checksum::{encode, parse_algorithm};
use crate::commit_object::{Committed, NewKey, commit_object};
use crate::conditions::write_condition;
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::get_object::{open_stream, shown_checksum};
use crate::headers;
use crate::object_body;
use crate::put_object::check_before_body;
use crate::read_conditions::{COPY_SOURCE, Verdict};
use crate::request::RequestContext;
use crate::response;
use crate::xml::XmlWriter;

/// How often a copy begins again because its source was overwritten meanwhile.
const ATTEMPTS_MAX: usize = 5;
const COPY_SOURCE_HEADER: &str = "x-amz-copy-source";

/// CopyObject.
pub(crate) async fn copy_object(context: &Arc<RequestContext>) -> Outcome {
    context.key()?;
    let source = Source::of(context)?;
    let mut wanted = Wanted::of(context)?;
    wanted.check_self_copy(context, &source)?;
    let bucket = check_before_body(context, wanted.condition).await?;
    wanted.replication = headers::replication_of(wanted.storage_class, &bucket.info);
    for _ in 0..ATTEMPTS_MAX {
        let (bucket, found) = read_source(context, &source, Some(0)).await?;
        let size = found.info.head.size;
        if size > PUT_BYTES_MAX {
            return Err(S3Error::invalid_request(format!(
                "The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
            )));
        }
        let shared = match wanted.needs_new_checksum(&found.info) {
            true => Err(Interrupted::from(client::service::CallError::Rejected(Rejection::CannotShare))),
            false => share(context, &source, &found.info, &wanted).await,
        };
        let copied = match shared {
            Ok(copied) => copied,
            Err(Interrupted::Call(client::service::CallError::Rejected(Rejection::SourceChanged))) => {
                continue;
            }
            Err(Interrupted::Call(client::service::CallError::Rejected(Rejection::CannotShare))) => {
                copy_bytes(context, bucket, found, &wanted).await?
            }
            Err(error) => return Err(error.into()),
        };
        return Ok(answer(&copied));
    }
    Err(S3Error::conflict())
}

/// What a copy comes from.
pub(crate) struct Source {
    pub(crate) bucket: BucketName,
    pub(crate) key: KeyName,
}

impl Source {
    /// Reads `x-amz-copy-source`: `bucket/key`, percent-encoded once, with or without a leading slash, perhaps with
    /// `?versionId=`.
    pub(crate) fn of(context: &RequestContext) -> Result<Self, S3Error> {
        let text = context.header(COPY_SOURCE_HEADER).unwrap_or("");
        Self::parse(text)
    }

    fn parse(text: &str) -> Result<Self, S3Error> {
        let refuse = |why: &str| S3Error::invalid_argument(why, COPY_SOURCE_HEADER, text);
        if text.starts_with("arn:") {
            return Err(S3Error::not_implemented("a copy from an access point"));
        }
        // The version is split off before decoding: a key may hold an encoded question mark.
        let (path, version) = match text.split_once("?versionId=") {
            Some((path, version)) => (path, Some(version)),
            None => (text, None),
        };
        let decoded = percent_decode_str(path).collect::<Vec<u8>>();
        let decoded = decoded.strip_prefix(b"/").unwrap_or(&decoded);
        let Some(slash) = decoded.iter().position(|byte| *byte == b'/') else {
            return Err(refuse("Copy Source must mention the source bucket and key: sourcebucket/sourcekey"));
        };
        let (bucket, key) = (&decoded[..slash], &decoded[slash + 1..]);
        if bucket.is_empty() || key.is_empty() {
            return Err(refuse("Copy Source must mention the source bucket and key: sourcebucket/sourcekey"));
        }
        let bucket = std::str::from_utf8(bucket).map_err(|_| refuse("The source bucket is no text."))?;
        let key = KeyName::from_bytes(key)?;
        match version {
            None | Some("null") => {}
            Some(version) => return Err(S3Error::no_such_version(key.as_str(), version)),
        }
        Ok(Self { bucket: BucketName::new(bucket)?, key })
    }
}

/// The source's current version, if the caller may read it and its conditions hold.
pub(crate) async fn read_source(
    context: &RequestContext,
    source: &Source,
    layout_from: Option<u64>,
) -> Result<(BucketRef, KeyFound), S3Error> {
    let session = &context.gateway.session;
    let look_up = |bucket: Bucket| async move {
        let reference = bucket.reference;
        let request = LookupKey { bucket: reference.clone(), key: source.key.clone(), layout_from };
        session.call(request).await.map(|found| (reference, found))
    };
    let found = context.with_bucket_named(&source.bucket, Action::GetObject, look_up).await;
    let (bucket, found) = found.map_err(S3Error::from).map_err(|error| match error.code {
        "NoSuchKey" => S3Error::no_such_key(source.key.as_str()),
        _ => error,
    })?;
    let head = &found.info.head;
    match COPY_SOURCE.decide(context.headers(), head.etag, head.modified_ms) {
        Verdict::Holds => Ok((bucket, found)),
        Verdict::NotModified | Verdict::Failed => Err(S3Error::precondition_failed("x-amz-copy-source-If")),
    }
}

/// What the copy should be.
struct Wanted {
    condition: WriteCondition,
    /// None keeps the source's.
    attributes: Option<KeyAttributes>,
    storage_class: StorageClass,
    names_storage_class: bool,
    replication: Replication,
    algorithm: Option<ChecksumAlgorithm>,
}

impl Wanted {
    fn of(context: &RequestContext) -> Result<Self, S3Error> {
        let headers = context.headers();
        let attributes = match context.header("x-amz-metadata-directive") {
            None | Some("COPY") => None,
            Some("REPLACE") => Some(headers::attributes(headers)?),
            Some(other) => {
                return Err(S3Error::invalid_argument(
                    "Unknown metadata directive.",
                    "x-amz-metadata-directive",
                    other,
                ));
            }
        };
        let storage_class = headers::storage_class(headers)?;
        let algorithm = context.header("x-amz-checksum-algorithm").map(parse_algorithm).transpose()?;
        Ok(Self {
            condition: write_condition(headers)?,
            attributes,
            storage_class,
            names_storage_class: headers.contains_key("x-amz-storage-class"),
            // Known once the bucket is.
            replication: Replication::One,
            algorithm,
        })
    }

    /// S3 refuses a copy onto itself that changes nothing.
    fn check_self_copy(&self, context: &RequestContext, source: &Source) -> Result<(), S3Error> {
        let is_itself = context.bucket_name()? == &source.bucket && context.key()? == &source.key;
        let changes = self.attributes.is_some() || self.names_storage_class;
        if is_itself && !changes {
            return Err(S3Error::invalid_request(
                "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
            ));
        }
        Ok(())
    }

    /// Whether the copy asks for a checksum that the source does not have over all its bytes.
    fn needs_new_checksum(&self, info: &KeyInfo) -> bool {
        self.algorithm.is_some_and(|algorithm| {
            shown_checksum(info).is_none_or(|checksum| {
                checksum.algorithm != algorithm || checksum.kind != ChecksumKind::FullObject
            })
        })
    }
}

/// By reference: OM counts the blocks once more.
async fn share(
    context: &Arc<RequestContext>,
    source: &Source,
    info: &KeyInfo,
    wanted: &Wanted,
) -> Result<Committed, Interrupted> {
    let owner = context.owner()?.id;
    let (source_bucket, source_key, source_version) =
        (source.bucket.clone(), source.key.clone(), info.version);
    let (storage_class, replication, condition) =
        (wanted.storage_class, wanted.replication, wanted.condition);
    let attributes = wanted.attributes.clone();
    let work = context.clone();
    let commit = task::spawn(async move {
        let context = work;
        let (key, session, owner) = (context.key()?, &context.gateway.session, &owner);
        let (source_key, attributes, context_ref) = (&source_key, &attributes, &context);
        let from = |source: Bucket| async move {
            let source_ref = &source.reference;
            let to = |bucket: Bucket| async move {
                let make = |write| CopyKey {
                    context: write,
                    source_bucket: source_ref.clone(),
                    source_key: source_key.clone(),
                    source_version,
                    bucket: bucket.reference.clone(),
                    key: key.clone(),
                    condition,
                    owner: owner.clone(),
                    storage_class,
                    replication,
                    attributes: attributes.clone(),
                };
                session.command(make).await
            };
            context_ref.with_bucket_named(context_ref.bucket_name()?, Action::PutObject, to).await
        };
        context_ref.with_bucket_named(&source_bucket, Action::GetObject, from).await
    });
    let committed = commit.await.map_err(|_| S3Error::unavailable("The server is shutting down."))??;
    context.witness(committed.version.index);
    let checksum = shown_checksum(info).cloned();
    Ok(Committed { etag: info.head.etag, modified_ms: committed.modified_ms, checksum })
}

/// By bytes: a new object with its own ETag.
async fn copy_bytes(
    context: &Arc<RequestContext>,
    source_bucket: BucketRef,
    found: KeyFound,
    wanted: &Wanted,
) -> Result<Committed, S3Error> {
    let info = found.info.clone();
    let size = info.head.size;
    let algorithm = wanted.algorithm.or(info.head.checksum.map(|(algorithm, _)| algorithm));
    let stream = open_stream(context, source_bucket, found, 0..size);
    let body = object_body::store_copy(context, stream, size, algorithm, wanted.replication).await?;
    let new = NewKey {
        condition: wanted.condition,
        storage_class: wanted.storage_class,
        replication: wanted.replication,
        attributes: wanted.attributes.clone().unwrap_or(info.attributes),
    };
    commit_object(context, body, new).await
}

fn answer(copied: &Committed) -> response::Response {
    let mut xml = XmlWriter::of("CopyObjectResult");
    xml.text("LastModified", &response::iso_date(copied.modified_ms));
    xml.text("ETag", &format!("\"{}\"", copied.etag));
    if let Some(checksum) =
        copied.checksum.as_ref().filter(|checksum| checksum.kind == ChecksumKind::FullObject)
    {
        xml.text(&format!("Checksum{}", checksum.algorithm.name()), &encode(checksum));
        xml.text("ChecksumType", checksum.kind.name());
    }
    xml.close("CopyObjectResult");
    response::xml(xml)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_decoded_exactly_once() {
        let parse = |text| {
            Source::parse(text).map(|source| source.key.as_str().to_owned()).map_err(|error| error.code)
        };
        assert_eq!(parse("bucket/key"), Ok("key".to_owned()));
        assert_eq!(parse("/bucket/a/b"), Ok("a/b".to_owned()));
        assert_eq!(parse("bucket/a%20b%2525"), Ok("a b%25".to_owned()));
        assert_eq!(parse("bucket%2Fkey"), Ok("key".to_owned()));
        assert_eq!(parse("bucket/+"), Ok("+".to_owned()));
        assert_eq!(parse("bucket/..%2F..?versionId=null"), Ok("../..".to_owned()));
        assert_eq!(parse("bucket/what%3FversionId=x"), Ok("what?versionId=x".to_owned()));
        assert_eq!(parse("bucket/k?versionId=abc"), Err("NoSuchVersion"));
        for bad in ["", "bucket", "bucket/", "/", "//key"] {
            assert_eq!(parse(bad), Err("InvalidArgument"), "{bad}");
        }
        assert_eq!(parse("UPPER/key"), Err("InvalidBucketName"));
    }
}
