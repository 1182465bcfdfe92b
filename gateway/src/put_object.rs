//! PutObject: the one way of a small or large object into the store.
//!
//! ```text
//!   head checked: key, headers, length, bucket, permission, condition   (nothing read: no 100 Continue yet)
//!   body: stored and digested (`object_body`)                            durable, but nobody knows of it
//!   commit_key in a task of its own: OM decides                          visible
//!   200
//! ```
//!
//! Invariants:
//! * Nothing is visible unless every claim about the body was true.
//! * A client that goes away during the commit does not stop it.
//!
//! Not here: multipart uploads (see `upload_part`), the decision (meta).

use std::sync::Arc;

use auth::Action;
use http::header::{ETAG, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use platform::task;
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use wire::om::{CommitKey, LookupKey, Rejection, WriteCondition};

use crate::access::Bucket;
use crate::checksum::{self, Claims};
use crate::conditions::write_condition;
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::get_object::is_no_such_key;
use crate::headers;
use crate::object_body::{self, StoredBody};
use crate::request::RequestContext;
use crate::request_body::Source;
use crate::response::{self, set};

/// PutObject.
pub(crate) async fn put_object(context: &Arc<RequestContext>, source: Source) -> Outcome {
    context.key()?;
    object_body::check_length(context)?;
    let claims = Claims::of(context.headers())?;
    let condition = write_condition(context.headers())?;
    let attributes = headers::attributes(context.headers())?;
    let storage_class = headers::storage_class(context.headers())?;
    let bucket = check_before_body(context, condition).await?;
    let replication = headers::replication_of(storage_class, &bucket.info);

    let body = object_body::store(context, source, &claims, None, replication, Some(context.key()?)).await?;

    let etag = Etag::whole(body.md5);
    let owner = context.owner()?.id;
    let context = context.clone();
    let commit = task::spawn(async move {
        wire::failpoint::hit("gateway_before_commit_key");
        let (key, body_ref, attributes, owner) = (context.key()?, &body, &attributes, &owner);
        let session = &context.gateway.session;
        let work = |bucket: Bucket| async move {
            let make = |write| CommitKey {
                context: write,
                bucket: bucket.reference.clone(),
                key: key.clone(),
                condition,
                owner: owner.clone(),
                size: body_ref.size,
                etag,
                storage_class,
                replication,
                attributes: attributes.clone(),
                checksum: body_ref.algorithm.map(|algorithm| (algorithm, ChecksumKind::FullObject)),
                checksums: body_ref.checksums.clone(),
                blocks: body_ref.blocks.entries().to_vec(),
            };
            session.command(make).await
        };
        // On an error the blocks are dropped, and so released. If OM did commit them after all, the release finds
        // them no longer on loan and changes nothing.
        let committed = context.with_bucket(Action::PutObject, work).await?;
        context.witness(committed.version.index);
        wire::failpoint::hit("gateway_after_commit_key");
        let StoredBody { blocks, checksums, algorithm, .. } = body;
        blocks.committed();
        Ok::<_, S3Error>((checksums, algorithm))
    });
    let (checksums, algorithm) = finished(commit).await?;

    let mut answer = response::empty(StatusCode::OK);
    let headers = answer.headers_mut();
    set(headers, ETAG, &format!("\"{etag}\""));
    set_checksum(headers, &checksums, algorithm);
    Ok(answer)
}

/// What a task came to. It is lost only when the runtime shuts down.
pub(crate) async fn finished<T>(task: tokio::task::JoinHandle<Result<T, S3Error>>) -> Result<T, S3Error> {
    task.await.map_err(|error| {
        tracing::error!(%error, "a commit ended without an outcome");
        S3Error::unavailable("The server is shutting down. The outcome of the request is not known.")
    })?
}

/// Answers the checksum the client gave; CRC64NVME, as S3 does, if it gave none.
pub(crate) fn set_checksum(
    headers: &mut HeaderMap,
    checksums: &[Checksum],
    algorithm: Option<ChecksumAlgorithm>,
) {
    let algorithm = algorithm.unwrap_or(ChecksumAlgorithm::Crc64Nvme);
    if let Some(checksum) = checksums.iter().find(|checksum| checksum.algorithm == algorithm) {
        set(headers, HeaderName::from_static(algorithm.header()), &checksum::encode(checksum));
        headers.insert("x-amz-checksum-type", HeaderValue::from_static(checksum.kind.name()));
    }
}

/// Refuses a write whose bucket is not the caller's, or whose condition does not hold now, before its body is read. OM
/// decides again when the body is in. Answers the bucket, for what its configuration says of new keys.
pub(crate) async fn check_before_body(
    context: &RequestContext,
    condition: WriteCondition,
) -> Result<Bucket, S3Error> {
    if condition == WriteCondition::None {
        return context.bucket(Action::PutObject).await;
    }
    let (key, session) = (context.key()?, &context.gateway.session);
    let look_up = |bucket: Bucket| async move {
        let request = LookupKey { bucket: bucket.reference.clone(), key: key.clone(), layout_from: None };
        match session.call(request).await {
            Ok(found) => Ok((bucket, Some(found.info.head.etag))),
            Err(error) if is_no_such_key(&error) => Ok((bucket, None)),
            Err(error) => Err(error),
        }
    };
    let (bucket, current) = context.with_bucket(Action::PutObject, look_up).await?;
    let holds = match (condition, current) {
        (WriteCondition::None, _) => true,
        (WriteCondition::IfAbsent, current) => current.is_none(),
        (WriteCondition::IfMatch(_) | WriteCondition::IfPresent, None) => {
            return Err(S3Error::no_such_key(key.as_str()));
        }
        (WriteCondition::IfMatch(etag), Some(current)) => etag == current,
        (WriteCondition::IfPresent, Some(_)) => true,
    };
    if holds { Ok(bucket) } else { Err(Rejection::PreconditionFailed { current }.into()) }
}
