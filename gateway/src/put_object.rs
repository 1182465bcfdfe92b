//! PutObject: the one way of a small or large object into the store.
//!
//! ```text
//!   head checked: key, headers, length, bucket, permission, condition   (nothing read: no 100 Continue yet)
//!   body: stored and digested (`object_body`)                            durable, but nobody knows of it
//!   commit_key in a task of its own: OM decides (`commit_object`)         visible
//!   200
//! ```
//!
//! Invariant: nothing is visible unless every claim about the body was true.
//!
//! Not here: multipart uploads (see `upload_part`), the decision (meta).

use std::sync::Arc;

use auth::Action;
use http::header::{ETAG, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use wire::checksum::Checksum;
use wire::om::{LookupKey, Rejection, WriteCondition};

use crate::access::Bucket;
use crate::checksum::{self, Claims};
use crate::commit_object::{NewKey, commit_object};
use crate::conditions::write_condition;
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::get_object::is_no_such_key;
use crate::headers;
use crate::object_body;
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

    let new = NewKey { condition, storage_class, replication, attributes };
    let committed = commit_object(context, body, new).await?;

    let mut answer = response::empty(StatusCode::OK);
    let headers = answer.headers_mut();
    set(headers, ETAG, &format!("\"{}\"", committed.etag));
    set_checksum(headers, committed.checksum.as_ref());
    Ok(answer)
}

/// Answers a checksum in its header.
pub(crate) fn set_checksum(headers: &mut HeaderMap, checksum: Option<&Checksum>) {
    if let Some(checksum) = checksum {
        set(headers, HeaderName::from_static(checksum.algorithm.header()), &checksum::encode(checksum));
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
        return context.current_bucket(Action::PutObject).await;
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
