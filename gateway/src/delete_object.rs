//! DeleteObject and DeleteObjects.
//!
//! A bucket without versioning has one version of each key, `null`. A delete of it is a delete of the key.
//!
//! Not here: retirement of what was deleted (meta).

use std::sync::Arc;

use auth::Action;
use client::service::CallError;
use http::{HeaderName, StatusCode};
use wire::limits::DELETE_KEYS_MAX;
use wire::names::KeyName;
use wire::om::{DELETE_KEYS_PER_COMMAND, DeleteKeys, KeysDeleted, WriteCondition};

use crate::access::Bucket;
use crate::checksum::Claims;
use crate::conditions::{if_match, write_condition};
use crate::dispatch::{Outcome, detached};
use crate::error::S3Error;
use crate::request::{RequestContext, check_version_id};
use crate::request_body::{Source, read_whole};
use crate::response;
use crate::xml::{self, DELETE_XML_BYTES_MAX, Element, XmlWriter};

/// Deletes a key; its absence is a success too.
pub(crate) async fn delete_object(context: &Arc<RequestContext>) -> Outcome {
    context.check_version()?;
    let named = context.query.has("versionId");
    let condition = write_condition(context.headers())?;
    if condition == WriteCondition::IfAbsent {
        return Err(S3Error::not_implemented("If-None-Match on DeleteObject"));
    }
    if named && condition != WriteCondition::None {
        return Err(S3Error::not_implemented("If-Match together with versionId on DeleteObject"));
    }
    let action = if named { Action::DeleteObjectVersion } else { Action::DeleteObject };
    let keys = vec![(context.key()?.clone(), condition)];
    let deleted = delete(context, action, keys).await?;
    deleted.outcomes.into_iter().next().unwrap_or(Ok(()))?;
    let mut response = response::empty(StatusCode::NO_CONTENT);
    if named {
        response::set(response.headers_mut(), HeaderName::from_static("x-amz-version-id"), "null");
    }
    Ok(response)
}

/// One command: at most as many keys as it may hold.
async fn delete(
    context: &Arc<RequestContext>,
    action: Action,
    keys: Vec<(KeyName, WriteCondition)>,
) -> Result<KeysDeleted, S3Error> {
    let work = context.clone();
    let deleted = detached(async move {
        let command = |bucket: Bucket| {
            let (work, keys) = (&work, &keys);
            async move {
                let make =
                    |context| DeleteKeys { context, bucket: bucket.reference.clone(), keys: keys.clone() };
                work.gateway.session.command(make).await
            }
        };
        work.with_bucket::<_, CallError, _>(action, command).await
    })
    .await??;
    context.witness(deleted.index);
    Ok(deleted)
}

/// One object of the request.
struct Wanted {
    key: String,
    version: Option<String>,
    /// What is deleted, or why it cannot be.
    work: Result<(KeyName, WriteCondition), S3Error>,
}

/// Deletes up to a thousand keys, each for itself.
pub(crate) async fn delete_objects(context: &Arc<RequestContext>, body: Source) -> Outcome {
    if !Claims::of(context.headers())?.has_digest() {
        return Err(S3Error::invalid_request(
            "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
        ));
    }
    // Permission first: what follows reads the body.
    context.bucket(Action::DeleteObject).await.or_else(only_missing_key)?;
    let body = read_whole(context, body, DELETE_XML_BYTES_MAX).await?;
    let root = xml::read(&body, "Delete")?;
    let quiet = match root.child_text("Quiet").map(str::trim) {
        None | Some("" | "false") => false,
        Some("true") => true,
        Some(_) => return Err(S3Error::malformed_xml()),
    };
    let wanted = root.children_named("Object").map(wanted).collect::<Result<Vec<_>, S3Error>>()?;
    if wanted.is_empty() || wanted.len() > DELETE_KEYS_MAX {
        return Err(S3Error::malformed_xml());
    }

    let mut outcomes: Vec<Result<(), S3Error>> = Vec::with_capacity(wanted.len());
    for chunk in wanted.chunks(DELETE_KEYS_PER_COMMAND) {
        outcomes.extend(delete_chunk(context, chunk).await?);
    }

    let mut xml = XmlWriter::of("DeleteResult");
    for (wanted, outcome) in wanted.iter().zip(&outcomes) {
        match outcome {
            Ok(()) if quiet => {}
            Ok(()) => {
                xml.open("Deleted");
                xml.echo("Key", &wanted.key);
                if let Some(version) = &wanted.version {
                    xml.echo("VersionId", version);
                }
                xml.close("Deleted");
            }
            Err(refusal) => {
                xml.open("Error");
                xml.echo("Key", &wanted.key);
                if let Some(version) = &wanted.version {
                    xml.echo("VersionId", version);
                }
                xml.text("Code", refusal.code);
                xml.echo("Message", &refusal.message);
                xml.close("Error");
            }
        }
    }
    xml.close("DeleteResult");
    Ok(response::xml(xml))
}

/// Only the bucket's absence and the caller's lack of permission end the whole request.
fn only_missing_key(refusal: S3Error) -> Result<Bucket, S3Error> {
    Err(refusal)
}

/// Deletes what can be of up to a command's worth, answering in order. A chunk that fails as a whole fails for each key, so
/// that the client knows which ones of the others are gone.
async fn delete_chunk(
    context: &Arc<RequestContext>,
    chunk: &[Wanted],
) -> Result<Vec<Result<(), S3Error>>, S3Error> {
    let keys: Vec<_> = chunk.iter().filter_map(|wanted| wanted.work.as_ref().ok().cloned()).collect();
    let mut done = match keys.is_empty() {
        true => Vec::new(),
        false => match delete(context, Action::DeleteObject, keys.clone()).await {
            Ok(done) => done.outcomes.into_iter().map(|outcome| outcome.map_err(S3Error::from)).collect(),
            Err(refusal) if matches!(refusal.code, "NoSuchBucket" | "AccessDenied") => return Err(refusal),
            Err(refusal) => vec![Err(refusal); keys.len()],
        },
    }
    .into_iter();
    let missing = || Err(S3Error::internal("The outcome of this deletion is not known."));
    Ok(chunk
        .iter()
        .map(|wanted| match &wanted.work {
            Ok(_) => done.next().unwrap_or_else(missing),
            Err(refusal) => Err(refusal.clone()),
        })
        .collect())
}

fn wanted(element: &Element) -> Result<Wanted, S3Error> {
    let key = element
        .child_text("Key")
        .filter(|key| !key.is_empty())
        .ok_or_else(S3Error::malformed_xml)?
        .to_owned();
    let version = element.child_text("VersionId").map(str::to_owned);
    let condition = match element.child_text("ETag") {
        None => WriteCondition::None,
        Some(etag) => if_match(etag),
    };
    let unbuilt = ["LastModifiedTime", "Size"].into_iter().find(|name| element.child(name).is_some());
    let work = match unbuilt {
        Some(name) => Err(S3Error::not_implemented(&format!("the condition {name} of DeleteObjects"))),
        None => {
            check_version_id(version.as_deref(), &key).and_then(|()| Ok((KeyName::new(&key)?, condition)))
        }
    };
    Ok(Wanted { key, version, work })
}
