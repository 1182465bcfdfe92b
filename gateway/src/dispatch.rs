//! One request from head to answer.
//!
//! Order, and why: the target (a path that cannot be read belongs to nobody), the signature (nothing is told to strangers),
//! the operation, headers that ask for what is not built, and only then the handler, which makes its own checks before it
//! reads the body. So a client that waits for `100 Continue` hears every refusal first.
//!
//! Not here: connections (see `server`), what operations do (the handlers).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use auth::Action;
use http::request::Parts;
use http::{HeaderValue, StatusCode, Version};
use tracing::Instrument;
use wire::names::BucketName;

use crate::access::{self, Caller};
use crate::error::S3Error;
use crate::gateway::Gateway;
use crate::headers;
use crate::operation::{Operation, Scope, route};
use crate::query::Query;
use crate::request::RequestContext;
use crate::request_body::Source;
use crate::response::{self, Response, X_AMZ_BUCKET_REGION};
use crate::target::Target;
use crate::{
    acl, bucket, bucket_settings, copy_object, delete_object, get_object, list_objects, list_uploads,
    multipart, put_object, service, upload_part,
};

/// What a handler answers.
pub(crate) type Outcome = Result<Response, S3Error>;

/// Answers one request. Never fails: a refusal is an answer.
pub(crate) async fn answer(gateway: Arc<Gateway>, parts: Parts, body: Source) -> Response {
    let id = gateway.request_id();
    let started_ns = wire::clock::steady_ns();
    let method = parts.method.clone();
    let path = parts.uri.clone();
    let span =
        tracing::debug_span!("request", request_id = id.as_str(), method = %method, path = path.path());
    let invitation = body.invitation();
    let mut operation = "None";
    let outcome = handle(gateway, parts, body, &mut operation).instrument(span).await;
    let mut response = match outcome {
        Ok(response) => response,
        Err(refusal) => {
            let level_is_server =
                refusal.status.is_server_error() && refusal.status != StatusCode::NOT_IMPLEMENTED;
            if level_is_server {
                tracing::warn!(request_id = id.as_str(), operation, code = refusal.code, message = %refusal.message, "request failed");
            } else {
                tracing::debug!(request_id = id.as_str(), operation, code = refusal.code, message = %refusal.message, "request refused");
            }
            response::error(&refusal, &method, path.path(), id)
        }
    };
    response::stamp(&mut response, id);
    // The client waits for leave to send its body and now never gets it: whether it sends it nevertheless is its choice, so
    // nobody can say where its next request would begin.
    if invitation.is_some_and(|invited| !invited.load(Ordering::Acquire)) {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    crate::metrics::request_answered(operation, response.status(), wire::clock::steady_ns() - started_ns);
    response
}

async fn handle(
    gateway: Arc<Gateway>,
    parts: Parts,
    body: Source,
    operation_name: &mut &'static str,
) -> Outcome {
    if parts.version == Version::HTTP_11 && !parts.headers.contains_key(http::header::HOST) {
        return Err(S3Error::invalid_request("Missing required header for this request: Host"));
    }
    let target = Target::of(&parts, &gateway.config.domains)?;
    let query = Query::parse(parts.uri.query())?;
    let received_ms = wire::clock::now_ms();
    let caller = access::authenticate(&gateway, &parts, &target, received_ms).await?;
    let scope = match (&target.bucket, &target.key) {
        (None, _) => Scope::Service,
        (Some(_), None) => Scope::Bucket,
        (Some(_), Some(_)) => Scope::Object,
    };
    let operation = route(&parts.method, scope, &query, &parts.headers)?;
    *operation_name = operation.name();
    let bucket_name = target.bucket.as_deref().and_then(|name| BucketName::new(name).ok());
    let context = Arc::new(RequestContext {
        gateway,
        received_ms,
        operation,
        parts,
        query,
        target,
        bucket_name,
        caller,
        witness: AtomicU64::new(0),
        version_witness: AtomicU64::new(0),
    });
    refuse_anonymous(&context).await.or_else(|refusal| with_region(Err(refusal), &context).map(drop))?;
    headers::refuse_unbuilt(context.headers())?;
    headers::refuse_undecodable(context.headers(), context.caller.payload().is_chunked())?;
    let outcome = perform(&context, body).await.map_err(|refusal| with_subject(refusal, &context));
    let outcome = with_witness(outcome, &context);
    if scope == Scope::Bucket {
        return with_region(outcome, &context);
    }
    outcome
}

/// For tests, if configured: where the request took its place, also when its answer is a refusal that was read there.
fn with_witness(outcome: Outcome, context: &RequestContext) -> Outcome {
    const HEADER: &str = "x-ferrozone-witness";
    const VERSION_HEADER: &str = "x-ferrozone-version";
    let index = context.witness.load(Ordering::Acquire);
    if !context.gateway.config.witness || index == 0 {
        return outcome;
    }
    match outcome {
        Ok(mut response) => {
            let name = http::HeaderName::from_static(HEADER);
            response::set(response.headers_mut(), name, &index.to_string());
            let version = context.version_witness.load(Ordering::Acquire);
            if version > 0 {
                let name = http::HeaderName::from_static(VERSION_HEADER);
                response::set(response.headers_mut(), name, &version.to_string());
            }
            Ok(response)
        }
        Err(refusal) => Err(refusal.with_header(HEADER, index.to_string())),
    }
}

/// While nothing can be granted to everybody, a request nobody signed ends here, before its headers are judged: 404 if its
/// bucket is not there, as on AWS, else 403. The authorizer would say the same later.
async fn refuse_anonymous(context: &RequestContext) -> Result<(), S3Error> {
    match &context.caller {
        Caller::User(_) => Ok(()),
        Caller::Anonymous(_) => {
            if context.target.bucket.is_some() && context.operation != Operation::CreateBucket {
                context.bucket(Action::ListBucket).await?;
            }
            context.user().map(drop)
        }
    }
}

/// Clients learn a bucket's region from this header, also on errors.
fn with_region(outcome: Outcome, context: &RequestContext) -> Outcome {
    let region = context.gateway.config.region.as_str();
    match outcome {
        Ok(mut response) => {
            response::set(response.headers_mut(), X_AMZ_BUCKET_REGION, region);
            Ok(response)
        }
        Err(refusal) => Err(refusal.with_header("x-amz-bucket-region", region)),
    }
}

async fn perform(context: &Arc<RequestContext>, body: Source) -> Outcome {
    use Operation as Op;
    match context.operation {
        Op::ListBuckets => service::list_buckets(context).await,
        Op::CreateBucket => bucket::create_bucket(context, body).await,
        Op::HeadBucket => bucket::head_bucket(context).await,
        Op::DeleteBucket => bucket::delete_bucket(context).await,
        Op::GetBucketLocation => bucket::get_bucket_location(context).await,
        Op::GetBucketAcl => acl::get_bucket_acl(context).await,
        Op::PutBucketAcl | Op::PutObjectAcl => acl::put_acl(context, body).await,
        Op::GetBucketVersioning
        | Op::GetBucketAbac
        | Op::GetBucketAccelerateConfiguration
        | Op::GetBucketAnalyticsConfiguration
        | Op::ListBucketAnalyticsConfigurations
        | Op::GetBucketCors
        | Op::GetBucketEncryption
        | Op::GetBucketIntelligentTieringConfiguration
        | Op::ListBucketIntelligentTieringConfigurations
        | Op::GetBucketInventoryConfiguration
        | Op::ListBucketInventoryConfigurations
        | Op::GetBucketLifecycleConfiguration
        | Op::GetBucketLogging
        | Op::GetBucketMetadataConfiguration
        | Op::GetBucketMetadataTableConfiguration
        | Op::GetBucketMetricsConfiguration
        | Op::ListBucketMetricsConfigurations
        | Op::GetBucketNotificationConfiguration
        | Op::GetBucketOwnershipControls
        | Op::GetBucketPolicy
        | Op::GetBucketPolicyStatus
        | Op::GetBucketReplication
        | Op::GetBucketRequestPayment
        | Op::GetBucketTagging
        | Op::GetBucketWebsite
        | Op::GetObjectLockConfiguration
        | Op::GetPublicAccessBlock => bucket_settings::get_setting(context).await,
        Op::ListObjects => list_objects::list_objects(context).await,
        Op::ListObjectsV2 => list_objects::list_objects_v2(context).await,
        Op::ListObjectVersions => list_objects::list_object_versions(context).await,
        Op::ListMultipartUploads => list_uploads::list_multipart_uploads(context).await,
        Op::ListParts => list_uploads::list_parts(context).await,
        Op::PutObject => put_object::put_object(context, body).await,
        Op::CopyObject => copy_object::copy_object(context).await,
        Op::GetObject => get_object::get_object(context).await,
        Op::HeadObject => get_object::head_object(context).await,
        Op::GetObjectAttributes => get_object::get_object_attributes(context).await,
        Op::GetObjectAcl => acl::get_object_acl(context).await,
        Op::GetObjectTagging => acl::get_object_tagging(context).await,
        Op::GetObjectRetention | Op::GetObjectLegalHold => acl::get_object_lock(context).await,
        Op::DeleteObject => delete_object::delete_object(context).await,
        Op::DeleteObjects => delete_object::delete_objects(context, body).await,
        Op::CreateMultipartUpload => multipart::create_multipart_upload(context).await,
        Op::UploadPart => upload_part::upload_part(context, body).await,
        Op::UploadPartCopy => upload_part::upload_part_copy(context).await,
        Op::CompleteMultipartUpload => multipart::complete_multipart_upload(context, body).await,
        Op::AbortMultipartUpload => multipart::abort_multipart_upload(context).await,
        Op::NotBuilt(name) => {
            context.user()?;
            Err(S3Error::not_implemented(name))
        }
    }
}

/// Runs work to its end even if the client goes away meanwhile.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, S3Error> {
    platform::task::spawn(work.in_current_span()).await.map_err(|error| {
        tracing::error!(%error, "a request's work ended in a panic");
        S3Error::internal("We encountered an internal error. Please try again.")
    })
}

/// Names what a refusal of OM is about: OM does not repeat the names it was given.
fn with_subject(refusal: S3Error, context: &RequestContext) -> S3Error {
    let (name, value) = match refusal.code {
        "NoSuchBucket" => ("BucketName", context.target.bucket.clone()),
        "NoSuchKey" => ("Key", context.target.key.as_ref().map(|key| key.as_str().to_owned())),
        "NoSuchUpload" => ("UploadId", context.query.get("uploadId").map(crate::error::clip)),
        _ => return refusal,
    };
    match value {
        Some(value) if !refusal.details.iter().any(|(known, _)| *known == name) => refusal.with(name, value),
        _ => refusal,
    }
}
