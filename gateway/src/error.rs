//! Every refusal as S3 says it: code, status, message, further elements. The one place where errors become S3 codes.
//!
//! Invariant: messages name the cause and never a path, an address or another internal of ours.
//!
//! A state that passes is a 503 with `Retry-After`, never a 500. Which state gives which answer: docs/errors.md.
//!
//! Not here: the XML (see `response`).

use auth::AuthError;
use client::service::CallError;
use http::StatusCode;
use wire::names::NameError;
use wire::om::Rejection;
use wire::status::{Failure, Status};

/// Seconds after which a client should try again when we are overloaded or starting.
const RETRY_AFTER_S: u64 = 1;

/// A refusal on its way to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub(crate) struct S3Error {
    /// `<Code>`.
    pub(crate) code: &'static str,
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// `<Message>`.
    pub(crate) message: String,
    /// Further elements of the body, in order.
    pub(crate) details: Vec<(&'static str, String)>,
    /// Headers that belong to this refusal.
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl S3Error {
    /// Any refusal.
    pub(crate) fn new(code: &'static str, status: StatusCode, message: impl Into<String>) -> Self {
        Self { code, status, message: message.into(), details: Vec::new(), headers: Vec::new() }
    }

    /// A refusal with status 400.
    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, StatusCode::BAD_REQUEST, message)
    }

    /// A refusal with status 404.
    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, StatusCode::NOT_FOUND, message)
    }

    /// Adds an element to the body.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// 400 InvalidArgument about one parameter or header.
    pub(crate) fn invalid_argument(message: impl Into<String>, name: &str, value: &str) -> Self {
        let error = Self::bad_request("InvalidArgument", message).with("ArgumentName", name);
        if value.is_empty() { error } else { error.with("ArgumentValue", clip(value)) }
    }

    /// 400 InvalidRequest.
    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::bad_request("InvalidRequest", message)
    }

    /// 400 InvalidURI: the path or query cannot be decoded.
    pub(crate) fn invalid_uri() -> Self {
        Self::bad_request("InvalidURI", "Couldn't parse the specified URI.")
    }

    /// 400 InvalidBucketName.
    pub(crate) fn invalid_bucket_name(name: &str) -> Self {
        Self::bad_request("InvalidBucketName", "The specified bucket is not valid.")
            .with("BucketName", clip(name))
    }

    /// 400 MalformedXML.
    pub(crate) fn malformed_xml() -> Self {
        Self::bad_request(
            "MalformedXML",
            "The XML you provided was not well-formed or did not validate against our published schema",
        )
    }

    /// 501 NotImplemented, with the name of what is asked for.
    pub(crate) fn not_implemented(what: &str) -> Self {
        let what = clip(what);
        let message = format!(
            "A header or query you provided requests a function that is not implemented: {what}. Nothing was stored."
        );
        Self::new("NotImplemented", StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 405 MethodNotAllowed.
    pub(crate) fn method_not_allowed(method: &str, resource: &'static str) -> Self {
        let message = "The specified method is not allowed against this resource.";
        Self::new("MethodNotAllowed", StatusCode::METHOD_NOT_ALLOWED, message)
            .with("Method", clip(method))
            .with("ResourceType", resource)
    }

    /// 403 AccessDenied.
    pub(crate) fn access_denied() -> Self {
        Self::new("AccessDenied", StatusCode::FORBIDDEN, "Access Denied")
    }

    /// 404 NoSuchBucket.
    pub(crate) fn no_such_bucket(name: &str) -> Self {
        Self::not_found("NoSuchBucket", "The specified bucket does not exist").with("BucketName", clip(name))
    }

    /// 404 NoSuchKey.
    pub(crate) fn no_such_key(key: &str) -> Self {
        Self::not_found("NoSuchKey", "The specified key does not exist.").with("Key", key)
    }

    /// 404 NoSuchVersion.
    pub(crate) fn no_such_version(key: &str, version: &str) -> Self {
        Self::not_found("NoSuchVersion", "The specified version does not exist.")
            .with("Key", key)
            .with("VersionId", clip(version))
    }

    /// 404 NoSuchUpload.
    pub(crate) fn no_such_upload(upload: &str) -> Self {
        let message = "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.";
        Self::not_found("NoSuchUpload", message).with("UploadId", clip(upload))
    }

    /// 412 PreconditionFailed, with the header that does not hold.
    pub(crate) fn precondition_failed(condition: &str) -> Self {
        let message = "At least one of the pre-conditions you specified did not hold";
        Self::new("PreconditionFailed", StatusCode::PRECONDITION_FAILED, message).with("Condition", condition)
    }

    /// 400 BadDigest: a digest of the body is another than the one declared.
    pub(crate) fn bad_digest(algorithm: &str, place: &str, declared: &str, computed: &str) -> Self {
        let message = format!("The {algorithm} you specified did not match the calculated checksum.");
        Self::bad_request("BadDigest", message)
            .with("Algorithm", algorithm)
            .with("Place", place)
            .with("ExpectedDigest", clip(declared))
            .with("CalculatedDigest", computed)
    }

    /// 400 InvalidDigest: Content-MD5 is none.
    pub(crate) fn invalid_digest(value: &str) -> Self {
        Self::bad_request("InvalidDigest", "The Content-MD5 you specified is not valid.")
            .with("Content-MD5", clip(value))
    }

    /// 400 IncompleteBody.
    pub(crate) fn incomplete_body() -> Self {
        Self::bad_request(
            "IncompleteBody",
            "You did not provide the number of bytes specified by the Content-Length HTTP header",
        )
    }

    /// 400 EntityTooLarge.
    pub(crate) fn entity_too_large(proposed: u64, maximum: u64) -> Self {
        Self::bad_request("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
            .with("ProposedSize", proposed.to_string())
            .with("MaxSizeAllowed", maximum.to_string())
    }

    /// 411 MissingContentLength.
    pub(crate) fn missing_content_length() -> Self {
        Self::new(
            "MissingContentLength",
            StatusCode::LENGTH_REQUIRED,
            "You must provide the Content-Length HTTP header.",
        )
    }

    /// 400 RequestTimeout: the body came too slowly.
    pub(crate) fn request_timeout() -> Self {
        let message =
            "Your socket connection to the server was not read from or written to within the timeout period.";
        Self::bad_request("RequestTimeout", message)
    }

    /// 503 SlowDown, with the limit that was hit.
    pub(crate) fn slow_down(limit: &str) -> Self {
        let message = format!("Please reduce your request rate: {limit}.");
        Self::new("SlowDown", StatusCode::SERVICE_UNAVAILABLE, message)
            .with_header("retry-after", RETRY_AFTER_S.to_string())
    }

    /// 503 ServiceUnavailable, with what is missing.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new("ServiceUnavailable", StatusCode::SERVICE_UNAVAILABLE, message)
            .with_header("retry-after", RETRY_AFTER_S.to_string())
    }

    /// 500 InternalError.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new("InternalError", StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 409 ConditionalRequestConflict or OperationAborted: another request won; try again.
    pub(crate) fn conflict() -> Self {
        let message = "A conflicting conditional operation is currently in progress against this resource. Please try again.";
        Self::new("OperationAborted", StatusCode::CONFLICT, message)
    }
}

/// Text of a client's own, cut so that answers stay small.
pub(crate) fn clip(text: &str) -> String {
    const ECHO_BYTES_MAX: usize = 1024;
    let end = (0..=ECHO_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

impl From<AuthError> for S3Error {
    fn from(error: AuthError) -> Self {
        let mut refusal = Self::new(error.s3_code(), error.status(), error.to_string());
        refusal.details = error.details();
        refusal
    }
}

impl From<NameError> for S3Error {
    fn from(error: NameError) -> Self {
        match &error {
            NameError::Bucket(name, why) => {
                Self::bad_request("InvalidBucketName", format!("The specified bucket is not valid: {why}."))
                    .with("BucketName", name.clone())
            }
            NameError::KeyTooLong(bytes) => Self::bad_request("KeyTooLongError", "Your key is too long")
                .with("Size", bytes.to_string())
                .with("MaxSizeAllowed", wire::limits::KEY_NAME_BYTES_MAX.to_string()),
            NameError::KeyEmpty => Self::invalid_argument("The key is empty.", "key", ""),
            NameError::KeyNotUtf8 => Self::invalid_uri(),
        }
    }
}

impl From<Rejection> for S3Error {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::NoSuchBucket => Self::not_found("NoSuchBucket", "The specified bucket does not exist"),
            Rejection::BucketExists { .. } => Self::new(
                "BucketAlreadyExists",
                StatusCode::CONFLICT,
                "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again.",
            ),
            Rejection::BucketNotEmpty => Self::new(
                "BucketNotEmpty",
                StatusCode::CONFLICT,
                "The bucket you tried to delete is not empty: it still has keys.",
            ),
            Rejection::TooManyBuckets => {
                Self::bad_request("TooManyBuckets", "You have attempted to create more buckets than allowed")
                    .with("MaxBuckets", wire::limits::BUCKETS_PER_OWNER_MAX.to_string())
            }
            // Both are worked off by evaluating again; they come here only when that did not end.
            Rejection::StaleBucket(_) | Rejection::StaleAccess { .. } => Self::conflict(),
            Rejection::NoSuchAccessKey => AuthError::InvalidAccessKeyId { access_key: String::new() }.into(),
            Rejection::NoSuchKey => Self::not_found("NoSuchKey", "The specified key does not exist."),
            Rejection::PreconditionFailed { current } => {
                let refusal = Self::new(
                    "PreconditionFailed",
                    StatusCode::PRECONDITION_FAILED,
                    "At least one of the pre-conditions you specified did not hold",
                );
                match current {
                    Some(etag) => refusal.with("CurrentETag", format!("\"{etag}\"")),
                    None => refusal,
                }
            }
            Rejection::NoSuchUpload => Self::not_found(
                "NoSuchUpload",
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.",
            ),
            Rejection::InvalidPart { part, actual } => {
                let refusal = Self::bad_request(
                    "InvalidPart",
                    "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag. All parts uploaded are kept.",
                )
                .with("PartNumber", part.to_string());
                match actual {
                    Some(etag) => refusal.with("ETag", format!("\"{etag}\"")),
                    None => refusal,
                }
            }
            Rejection::InvalidPartOrder => Self::bad_request(
                "InvalidPartOrder",
                "The list of parts was not in ascending order. The parts list must be specified in order by part number.",
            ),
            Rejection::PartTooSmall { part, size, minimum } => Self::bad_request(
                "EntityTooSmall",
                "Your proposed upload is smaller than the minimum allowed object size.",
            )
            .with("ProposedSize", size.to_string())
            .with("MinSizeAllowed", minimum.to_string())
            .with("PartNumber", part.to_string()),
            Rejection::ChecksumMismatch { algorithm, computed } => Self::bad_request(
                "BadDigest",
                format!("The {} you specified did not match the calculated checksum.", algorithm.name()),
            )
            .with("CalculatedDigest", computed),
            Rejection::SizeMismatch { declared, actual } => Self::invalid_request(format!(
                "The provided 'x-amz-mp-object-size' header does not match what was computed: {declared} declared, {actual} computed."
            )),
            // The gateway's session ended while the body was under way: nothing was stored, and another try succeeds.
            Rejection::SessionEnded | Rejection::NotOnLoan(_) | Rejection::Forgotten => {
                Self::slow_down("the request took too long and its space was reclaimed")
            }
            Rejection::SourceChanged => Self::conflict(),
            Rejection::CannotShare => Self::internal("The source cannot be copied by reference."),
            Rejection::Invalid(message) => Self::invalid_request(message),
            // S3 itself has no quotas; code and status as Ozone and Ceph answer.
            Rejection::QuotaExceeded { of, unit, limit, wanted } => {
                let message = format!(
                    "The quota of {of} is {limit} {}, this request would make it {wanted}. Nothing was stored.",
                    unit.name()
                );
                Self::new("QuotaExceeded", StatusCode::FORBIDDEN, message)
            }
            // Operators' calls only.
            Rejection::NoSuchVolume => {
                Self::not_found("NoSuchVolume", "The specified volume does not exist.")
            }
            Rejection::VolumeExists | Rejection::VolumeNotEmpty => Self::conflict(),
            Rejection::DamagedRow => Self::internal(
                "Stored metadata of this object is damaged. Nothing was changed; an operator must look at the server's log.",
            ),
        }
    }
}

impl From<Failure> for S3Error {
    fn from(failure: Failure) -> Self {
        match failure.status {
            Status::Retry | Status::Refused | Status::NotReady => {
                Self::slow_down("the service is starting or overloaded")
            }
            Status::NotLeader => {
                Self::unavailable("The Ozone Manager has no leader at the moment. Please try again.")
            }
            Status::Unknown => Self::unavailable(
                "The outcome of the request is not known. Please look whether it took effect, or repeat it.",
            ),
            Status::TooSlow => Self::request_timeout(),
            Status::DiskFull => Self::unavailable(
                "The server's disks are full: nothing was stored. Reading and deleting still work.",
            ),
            Status::Invalid => Self::invalid_request(failure.message),
            Status::Corrupt => Self::internal(
                "Stored bytes of this object are damaged and no whole replica is left. An operator must look at the server's log.",
            ),
            Status::Denied | Status::NotFound | Status::Internal => {
                Self::internal("We encountered an internal error. Please try again.")
            }
        }
    }
}

impl From<CallError> for S3Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rejected(rejection) => rejection.into(),
            CallError::Failed(failure) => {
                // Logged here, where it leaves us: the client sees no internals.
                tracing::warn!(status = ?failure.status, message = %failure.message, "a call failed");
                failure.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::checksum::Etag;
    use wire::om::UserId;

    #[test]
    fn rejections_have_their_codes() {
        let owner = UserId("u".to_owned());
        for (rejection, status, code) in [
            (Rejection::NoSuchBucket, 404, "NoSuchBucket"),
            (Rejection::BucketExists { owner }, 409, "BucketAlreadyExists"),
            (Rejection::BucketNotEmpty, 409, "BucketNotEmpty"),
            (Rejection::TooManyBuckets, 400, "TooManyBuckets"),
            (Rejection::NoSuchKey, 404, "NoSuchKey"),
            (Rejection::PreconditionFailed { current: Some(Etag::default()) }, 412, "PreconditionFailed"),
            (Rejection::NoSuchUpload, 404, "NoSuchUpload"),
            (Rejection::InvalidPart { part: 1, actual: None }, 400, "InvalidPart"),
            (Rejection::InvalidPartOrder, 400, "InvalidPartOrder"),
            (Rejection::PartTooSmall { part: 1, size: 1, minimum: 5 }, 400, "EntityTooSmall"),
            (Rejection::SizeMismatch { declared: 1, actual: 2 }, 400, "InvalidRequest"),
            (Rejection::SessionEnded, 503, "SlowDown"),
            (Rejection::DamagedRow, 500, "InternalError"),
            (
                Rejection::QuotaExceeded {
                    of: "bucket b".to_owned(),
                    unit: wire::om::QuotaUnit::Bytes,
                    limit: 1,
                    wanted: 2,
                },
                403,
                "QuotaExceeded",
            ),
        ] {
            let error = S3Error::from(rejection);
            assert_eq!((error.status.as_u16(), error.code), (status, code));
        }
    }

    #[test]
    fn failures_say_what_to_do_and_hide_internals() {
        let secret = "open /var/lib/x: permission denied";
        for (status, http, code, words) in [
            (Status::Retry, 503, "SlowDown", "overloaded"),
            (Status::NotLeader, 503, "ServiceUnavailable", "leader"),
            (Status::Unknown, 503, "ServiceUnavailable", "not known"),
            (Status::DiskFull, 503, "ServiceUnavailable", "disks are full"),
            (Status::Corrupt, 500, "InternalError", "damaged"),
            (Status::Internal, 500, "InternalError", "internal error"),
        ] {
            let error = S3Error::from(Failure::new(status, secret));
            assert_eq!((error.status.as_u16(), error.code), (http, code), "{status:?}");
            assert!(error.message.contains(words) && !error.message.contains("/var"), "{}", error.message);
            assert_eq!(error.headers.iter().any(|(name, _)| *name == "retry-after"), http == 503);
        }
    }

    #[test]
    fn echoes_are_short_and_cut_between_characters() {
        assert_eq!(clip(&"\u{e9}".repeat(2000)).len(), 1024);
        assert_eq!(clip(&format!("a{}", "\u{e9}".repeat(2000))).len(), 1023);
    }
}
