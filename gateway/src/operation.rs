//! The one table from (method, what it is about, sub-resource) to operation.
//!
//! A request's *sub-resource* is the one query parameter that says what is meant beside the bucket or object. Every
//! sub-resource S3 has is listed here, so that one we have not built answers 501 with its operation's name. A parameter that
//! looks like a sub-resource (no value) and is none we know answers 501 too: it never falls through to the plain operation,
//! which would mistake, say, `PUT /bucket?new-feature` for CreateBucket. Other unknown parameters (`x-id=PutObject`) are
//! ignored, as by S3.
//!
//! Invariants:
//! * At most one sub-resource counts; two are refused.
//! * Routing looks at method, target, query and two headers, and at no state.
//!
//! Not here: permission (each handler names its action), what operations do.

use http::{HeaderMap, Method};

use crate::error::S3Error;
use crate::query::Query;

use Operation as Op;

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// No bucket: `/`.
    Service,
    /// A bucket.
    Bucket,
    /// A key in a bucket.
    Object,
}

/// Declares the operations and their names.
macro_rules! operations {
    ($($name:ident)*) => {
        /// An S3 operation. The variants are those that are built; all others are `NotBuilt` with their name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Operation {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                $name,
            )*
            /// S3 has it, we have not.
            NotBuilt(&'static str),
        }

        impl Operation {
            /// All that are built.
            #[cfg(test)]
            pub(crate) const BUILT: &'static [Operation] = &[$(Operation::$name,)*];

            /// Its name in AWS's documentation.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Operation::$name => stringify!($name),)*
                    Operation::NotBuilt(name) => name,
                }
            }
        }
    };
}

operations! {
    ListBuckets
    CreateBucket
    HeadBucket
    DeleteBucket
    GetBucketLocation
    GetBucketVersioning
    GetBucketAcl
    PutBucketAcl
    GetBucketAbac
    GetBucketAccelerateConfiguration
    GetBucketAnalyticsConfiguration
    ListBucketAnalyticsConfigurations
    GetBucketCors
    GetBucketEncryption
    GetBucketIntelligentTieringConfiguration
    ListBucketIntelligentTieringConfigurations
    GetBucketInventoryConfiguration
    ListBucketInventoryConfigurations
    GetBucketLifecycleConfiguration
    GetBucketLogging
    GetBucketMetadataConfiguration
    GetBucketMetadataTableConfiguration
    GetBucketMetricsConfiguration
    ListBucketMetricsConfigurations
    GetBucketNotificationConfiguration
    GetBucketOwnershipControls
    GetBucketPolicy
    GetBucketPolicyStatus
    GetBucketReplication
    GetBucketRequestPayment
    GetBucketTagging
    GetBucketWebsite
    GetObjectLockConfiguration
    GetPublicAccessBlock
    ListObjects
    ListObjectsV2
    ListObjectVersions
    ListMultipartUploads
    DeleteObjects
    PutObject
    CopyObject
    GetObject
    HeadObject
    DeleteObject
    GetObjectAttributes
    GetObjectAcl
    PutObjectAcl
    GetObjectTagging
    GetObjectRetention
    GetObjectLegalHold
    CreateMultipartUpload
    UploadPart
    UploadPartCopy
    CompleteMultipartUpload
    AbortMultipartUpload
    ListParts
}

/// A sub-resource with the operation of each method that it has.
struct Row {
    scope: Scope,
    subresource: &'static str,
    methods: &'static [(&'static str, Operation)],
}

const fn row(scope: Scope, subresource: &'static str, methods: &'static [(&'static str, Operation)]) -> Row {
    Row { scope, subresource, methods }
}

/// Every sub-resource of S3, as botocore 1.44 models them (116 operations), and a few that AWS documents beside it.
/// Where a further parameter or header decides, the row names the plain operation and `refine` the other.
const TABLE: &[Row] = &[
    row(Scope::Bucket, "abac", &[("GET", Op::GetBucketAbac), ("PUT", Op::NotBuilt("PutBucketAbac"))]),
    row(
        Scope::Bucket,
        "accelerate",
        &[
            ("GET", Op::GetBucketAccelerateConfiguration),
            ("PUT", Op::NotBuilt("PutBucketAccelerateConfiguration")),
        ],
    ),
    row(Scope::Bucket, "acl", &[("GET", Op::GetBucketAcl), ("PUT", Op::PutBucketAcl)]),
    row(
        Scope::Bucket,
        "analytics",
        &[
            ("GET", Op::ListBucketAnalyticsConfigurations),
            ("PUT", Op::NotBuilt("PutBucketAnalyticsConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketAnalyticsConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "cors",
        &[
            ("GET", Op::GetBucketCors),
            ("PUT", Op::NotBuilt("PutBucketCors")),
            ("DELETE", Op::NotBuilt("DeleteBucketCors")),
        ],
    ),
    row(Scope::Bucket, "delete", &[("POST", Op::DeleteObjects)]),
    row(
        Scope::Bucket,
        "encryption",
        &[
            ("GET", Op::GetBucketEncryption),
            ("PUT", Op::NotBuilt("PutBucketEncryption")),
            ("DELETE", Op::NotBuilt("DeleteBucketEncryption")),
        ],
    ),
    row(
        Scope::Bucket,
        "intelligent-tiering",
        &[
            ("GET", Op::ListBucketIntelligentTieringConfigurations),
            ("PUT", Op::NotBuilt("PutBucketIntelligentTieringConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketIntelligentTieringConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "inventory",
        &[
            ("GET", Op::ListBucketInventoryConfigurations),
            ("PUT", Op::NotBuilt("PutBucketInventoryConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketInventoryConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "lifecycle",
        &[
            ("GET", Op::GetBucketLifecycleConfiguration),
            ("PUT", Op::NotBuilt("PutBucketLifecycleConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketLifecycle")),
        ],
    ),
    row(Scope::Bucket, "location", &[("GET", Op::GetBucketLocation)]),
    row(
        Scope::Bucket,
        "logging",
        &[("GET", Op::GetBucketLogging), ("PUT", Op::NotBuilt("PutBucketLogging"))],
    ),
    row(
        Scope::Bucket,
        "metadataConfiguration",
        &[
            ("GET", Op::GetBucketMetadataConfiguration),
            ("POST", Op::NotBuilt("CreateBucketMetadataConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketMetadataConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "metadataTable",
        &[
            ("GET", Op::GetBucketMetadataTableConfiguration),
            ("POST", Op::NotBuilt("CreateBucketMetadataTableConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketMetadataTableConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "metadataAnnotationTable",
        &[("PUT", Op::NotBuilt("UpdateBucketMetadataAnnotationTableConfiguration"))],
    ),
    row(
        Scope::Bucket,
        "metadataInventoryTable",
        &[("PUT", Op::NotBuilt("UpdateBucketMetadataInventoryTableConfiguration"))],
    ),
    row(
        Scope::Bucket,
        "metadataJournalTable",
        &[("PUT", Op::NotBuilt("UpdateBucketMetadataJournalTableConfiguration"))],
    ),
    row(
        Scope::Bucket,
        "metrics",
        &[
            ("GET", Op::ListBucketMetricsConfigurations),
            ("PUT", Op::NotBuilt("PutBucketMetricsConfiguration")),
            ("DELETE", Op::NotBuilt("DeleteBucketMetricsConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "notification",
        &[
            ("GET", Op::GetBucketNotificationConfiguration),
            ("PUT", Op::NotBuilt("PutBucketNotificationConfiguration")),
        ],
    ),
    row(
        Scope::Bucket,
        "object-lock",
        &[("GET", Op::GetObjectLockConfiguration), ("PUT", Op::NotBuilt("PutObjectLockConfiguration"))],
    ),
    row(
        Scope::Bucket,
        "ownershipControls",
        &[
            ("GET", Op::GetBucketOwnershipControls),
            ("PUT", Op::NotBuilt("PutBucketOwnershipControls")),
            ("DELETE", Op::NotBuilt("DeleteBucketOwnershipControls")),
        ],
    ),
    row(
        Scope::Bucket,
        "policy",
        &[
            ("GET", Op::GetBucketPolicy),
            ("PUT", Op::NotBuilt("PutBucketPolicy")),
            ("DELETE", Op::NotBuilt("DeleteBucketPolicy")),
        ],
    ),
    row(Scope::Bucket, "policyStatus", &[("GET", Op::GetBucketPolicyStatus)]),
    row(
        Scope::Bucket,
        "publicAccessBlock",
        &[
            ("GET", Op::GetPublicAccessBlock),
            ("PUT", Op::NotBuilt("PutPublicAccessBlock")),
            ("DELETE", Op::NotBuilt("DeletePublicAccessBlock")),
        ],
    ),
    row(
        Scope::Bucket,
        "replication",
        &[
            ("GET", Op::GetBucketReplication),
            ("PUT", Op::NotBuilt("PutBucketReplication")),
            ("DELETE", Op::NotBuilt("DeleteBucketReplication")),
        ],
    ),
    row(
        Scope::Bucket,
        "requestPayment",
        &[("GET", Op::GetBucketRequestPayment), ("PUT", Op::NotBuilt("PutBucketRequestPayment"))],
    ),
    row(Scope::Bucket, "session", &[("GET", Op::NotBuilt("CreateSession"))]),
    row(
        Scope::Bucket,
        "tagging",
        &[
            ("GET", Op::GetBucketTagging),
            ("PUT", Op::NotBuilt("PutBucketTagging")),
            ("DELETE", Op::NotBuilt("DeleteBucketTagging")),
        ],
    ),
    row(Scope::Bucket, "uploads", &[("GET", Op::ListMultipartUploads)]),
    row(
        Scope::Bucket,
        "versioning",
        &[("GET", Op::GetBucketVersioning), ("PUT", Op::NotBuilt("PutBucketVersioning"))],
    ),
    row(Scope::Bucket, "versions", &[("GET", Op::ListObjectVersions)]),
    row(
        Scope::Bucket,
        "website",
        &[
            ("GET", Op::GetBucketWebsite),
            ("PUT", Op::NotBuilt("PutBucketWebsite")),
            ("DELETE", Op::NotBuilt("DeleteBucketWebsite")),
        ],
    ),
    row(Scope::Object, "acl", &[("GET", Op::GetObjectAcl), ("PUT", Op::PutObjectAcl)]),
    row(
        Scope::Object,
        "annotation",
        &[
            ("GET", Op::NotBuilt("GetObjectAnnotation")),
            ("PUT", Op::NotBuilt("PutObjectAnnotation")),
            ("DELETE", Op::NotBuilt("DeleteObjectAnnotation")),
        ],
    ),
    row(Scope::Object, "append", &[("PUT", Op::NotBuilt("AppendObject"))]),
    row(Scope::Object, "attributes", &[("GET", Op::GetObjectAttributes)]),
    row(Scope::Object, "encryption", &[("PUT", Op::NotBuilt("UpdateObjectEncryption"))]),
    row(
        Scope::Object,
        "legal-hold",
        &[("GET", Op::GetObjectLegalHold), ("PUT", Op::NotBuilt("PutObjectLegalHold"))],
    ),
    row(Scope::Object, "renameObject", &[("PUT", Op::NotBuilt("RenameObject"))]),
    row(Scope::Object, "restore", &[("POST", Op::NotBuilt("RestoreObject"))]),
    row(
        Scope::Object,
        "retention",
        &[("GET", Op::GetObjectRetention), ("PUT", Op::NotBuilt("PutObjectRetention"))],
    ),
    row(Scope::Object, "select", &[("POST", Op::NotBuilt("SelectObjectContent"))]),
    row(
        Scope::Object,
        "tagging",
        &[
            ("GET", Op::GetObjectTagging),
            ("PUT", Op::NotBuilt("PutObjectTagging")),
            ("DELETE", Op::NotBuilt("DeleteObjectTagging")),
        ],
    ),
    row(Scope::Object, "torrent", &[("GET", Op::NotBuilt("GetObjectTorrent"))]),
    row(
        Scope::Object,
        "uploadId",
        &[
            ("GET", Op::ListParts),
            ("PUT", Op::UploadPart),
            ("POST", Op::CompleteMultipartUpload),
            ("DELETE", Op::AbortMultipartUpload),
        ],
    ),
    row(Scope::Object, "uploads", &[("POST", Op::CreateMultipartUpload)]),
    // The identity services that AWS runs beside S3; some servers answer them on the same port.
    row(
        Scope::Service,
        "Action",
        &[("GET", Op::NotBuilt("IAM and STS")), ("POST", Op::NotBuilt("IAM and STS"))],
    ),
];

/// Operations without a sub-resource.
const PLAIN: &[Row] = &[
    row(Scope::Service, "", &[("GET", Op::ListBuckets), ("POST", Op::NotBuilt("IAM and STS"))]),
    row(
        Scope::Bucket,
        "",
        &[
            ("GET", Op::ListObjects),
            ("PUT", Op::CreateBucket),
            ("HEAD", Op::HeadBucket),
            ("DELETE", Op::DeleteBucket),
            ("POST", Op::NotBuilt("PostObject")),
            ("OPTIONS", Op::NotBuilt("PreflightRequest")),
        ],
    ),
    row(
        Scope::Object,
        "",
        &[
            ("GET", Op::GetObject),
            ("PUT", Op::PutObject),
            ("HEAD", Op::HeadObject),
            ("DELETE", Op::DeleteObject),
            ("OPTIONS", Op::NotBuilt("PreflightRequest")),
        ],
    ),
];

/// Parameters that may stand without a value and yet are no sub-resource. `x-*` and `response-*` are not listed.
const PARAMETERS: &[&str] = &[
    "AWSAccessKeyId",
    "Expires",
    "Signature",
    "annotation-prefix",
    "annotationName",
    "bucket-region",
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "id",
    "key-marker",
    "list-type",
    "marker",
    "max-buckets",
    "max-directory-buckets",
    "max-keys",
    "max-parts",
    "max-uploads",
    "part-number-marker",
    "partNumber",
    "prefix",
    "select-type",
    "start-after",
    "upload-id-marker",
    "version-id-marker",
    "versionId",
];

/// Finds the operation of a request, or the refusal for one that S3 does not have.
pub(crate) fn route(
    method: &Method,
    scope: Scope,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Operation, S3Error> {
    let found = subresource(scope, query)?;
    let row = match found {
        Some(row) => row,
        None => PLAIN.iter().find(|row| row.scope == scope).expect("every scope has a plain row"),
    };
    match row.methods.iter().find(|(name, _)| *name == method.as_str()) {
        Some((_, operation)) => refine(*operation, query, headers),
        None => {
            Err(S3Error::method_not_allowed(method.as_str(), resource_type(row))
                .with_header("allow", allow(row)))
        }
    }
}

/// The row of the one sub-resource in `query`.
fn subresource(scope: Scope, query: &Query) -> Result<Option<&'static Row>, S3Error> {
    let mut found: Option<&Row> = None;
    for parameter in query.iter() {
        let name = parameter.name.as_str();
        match TABLE.iter().find(|row| row.scope == scope && row.subresource == name) {
            Some(row) if found.is_some_and(|other| other.subresource != name) => {
                let other = found.map(|other| other.subresource).unwrap_or_default();
                return Err(S3Error::invalid_argument(
                    format!("Conflicting query string parameters: {other}, {name}"),
                    "ResourceType",
                    row.subresource,
                ));
            }
            Some(row) => found = Some(row),
            None if TABLE.iter().any(|row| row.subresource == name)
                || is_unknown_subresource(name, &parameter.value) =>
            {
                return Err(S3Error::not_implemented(&format!("the sub-resource {name:?}")));
            }
            None => {}
        }
    }
    Ok(found)
}

fn is_unknown_subresource(name: &str, value: &str) -> bool {
    let lower =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|front| front.eq_ignore_ascii_case(prefix));
    value.is_empty() && !lower("x-") && !lower("response-") && !PARAMETERS.contains(&name)
}

/// Where a parameter or header decides between two operations of one row.
fn refine(operation: Operation, query: &Query, headers: &HeaderMap) -> Result<Operation, S3Error> {
    let is_copy = headers.contains_key("x-amz-copy-source");
    let has_id = query.get_set("id").is_some();
    let refined = match operation {
        Op::PutObject if query.has("partNumber") => {
            return Err(S3Error::invalid_argument(
                "This operation does not accept a query parameter partNumber without an uploadId.",
                "partNumber",
                query.get("partNumber").unwrap_or(""),
            ));
        }
        Op::PutObject if is_copy => Op::CopyObject,
        Op::UploadPart if !query.has("partNumber") => {
            return Err(S3Error::invalid_argument(
                "An uploadId on PUT needs a partNumber.",
                "partNumber",
                "",
            ));
        }
        Op::UploadPart if is_copy => Op::UploadPartCopy,
        Op::ListObjects => match query.get_set("list-type") {
            None | Some("1") => Op::ListObjects,
            Some("2") => Op::ListObjectsV2,
            Some(other) => {
                return Err(S3Error::invalid_argument(
                    "Invalid List Type specified in request",
                    "list-type",
                    other,
                ));
            }
        },
        Op::ListBuckets if query.has("max-directory-buckets") => Op::NotBuilt("ListDirectoryBuckets"),
        Op::ListBucketAnalyticsConfigurations if has_id => Op::GetBucketAnalyticsConfiguration,
        Op::ListBucketIntelligentTieringConfigurations if has_id => {
            Op::GetBucketIntelligentTieringConfiguration
        }
        Op::ListBucketInventoryConfigurations if has_id => Op::GetBucketInventoryConfiguration,
        Op::ListBucketMetricsConfigurations if has_id => Op::GetBucketMetricsConfiguration,
        Op::NotBuilt("GetObjectAnnotation") if query.get_set("annotationName").is_none() => {
            Op::NotBuilt("ListObjectAnnotations")
        }
        other => other,
    };
    Ok(refined)
}

fn resource_type(row: &Row) -> &'static str {
    match (row.subresource, row.scope) {
        ("", Scope::Service) => "SERVICE",
        ("", Scope::Bucket) => "BUCKET",
        ("", Scope::Object) => "OBJECT",
        (name, _) => name,
    }
}

fn allow(row: &Row) -> String {
    row.methods.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// A method and URI for every cell of the table.
#[cfg(test)]
pub(crate) fn every_route(bucket: &str, key: &str) -> Vec<(&'static str, String)> {
    let mut routes = Vec::new();
    for row in TABLE.iter().chain(PLAIN) {
        let path = match row.scope {
            Scope::Service => "/".to_owned(),
            Scope::Bucket => bucket.to_owned(),
            Scope::Object => format!("{bucket}{key}"),
        };
        for (method, _) in row.methods {
            let query = match (row.subresource, *method) {
                ("", _) => String::new(),
                ("uploadId", "PUT") => "?uploadId=u&partNumber=1".to_owned(),
                (name, _) => format!("?{name}"),
            };
            routes.push((*method, format!("{path}{query}")));
        }
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(method: &str, scope: Scope, query: &str, copy: bool) -> Result<Operation, &'static str> {
        let mut headers = HeaderMap::new();
        if copy {
            headers.insert("x-amz-copy-source", "b/k".parse().unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        route(&method, scope, &Query::parse(Some(query)).unwrap(), &headers).map_err(|error| error.code)
    }

    #[test]
    fn plain_requests_find_their_operation() {
        use Scope::{Bucket, Object, Service};
        for (method, scope, query, operation) in [
            ("GET", Service, "", Op::ListBuckets),
            ("GET", Service, "x-id=ListBuckets", Op::ListBuckets),
            ("GET", Bucket, "prefix=&delimiter=", Op::ListObjects),
            ("GET", Bucket, "list-type=2&prefix", Op::ListObjectsV2),
            ("GET", Bucket, "foo=bar", Op::ListObjects),
            ("PUT", Bucket, "", Op::CreateBucket),
            ("HEAD", Bucket, "", Op::HeadBucket),
            ("GET", Bucket, "analytics", Op::ListBucketAnalyticsConfigurations),
            ("GET", Bucket, "analytics&id=a", Op::GetBucketAnalyticsConfiguration),
            ("POST", Bucket, "", Op::NotBuilt("PostObject")),
            ("PUT", Object, "x-id=PutObject", Op::PutObject),
            ("GET", Object, "partNumber=1&response-content-type=", Op::GetObject),
            ("DELETE", Object, "versionId=null", Op::DeleteObject),
            ("PUT", Object, "uploadId=u&partNumber=1", Op::UploadPart),
            ("GET", Object, "uploadId=u", Op::ListParts),
            ("POST", Object, "uploads=", Op::CreateMultipartUpload),
            ("POST", Object, "select&select-type=2", Op::NotBuilt("SelectObjectContent")),
            ("GET", Object, "annotation", Op::NotBuilt("ListObjectAnnotations")),
        ] {
            assert_eq!(routed(method, scope, query, false), Ok(operation), "{method} {query}");
        }
        assert_eq!(routed("PUT", Object, "", true), Ok(Op::CopyObject));
        assert_eq!(routed("PUT", Object, "uploadId=u&partNumber=1", true), Ok(Op::UploadPartCopy));
    }

    #[test]
    fn what_s3_has_not_never_falls_through() {
        use Scope::{Bucket, Object, Service};
        for (method, scope, query, code) in [
            ("PUT", Bucket, "new-feature", "NotImplemented"),
            ("DELETE", Bucket, "new-feature=", "NotImplemented"),
            ("DELETE", Object, "policy", "NotImplemented"),
            ("PUT", Bucket, "uploadId=u", "NotImplemented"),
            ("GET", Bucket, "acl&policy", "InvalidArgument"),
            ("POST", Bucket, "acl", "MethodNotAllowed"),
            ("HEAD", Bucket, "acl", "MethodNotAllowed"),
            ("POST", Object, "", "MethodNotAllowed"),
            ("PATCH", Object, "", "MethodNotAllowed"),
            ("PUT", Service, "", "MethodNotAllowed"),
            ("PUT", Object, "partNumber=1", "InvalidArgument"),
            ("PUT", Object, "uploadId=u", "InvalidArgument"),
            ("GET", Bucket, "list-type=3", "InvalidArgument"),
        ] {
            assert_eq!(routed(method, scope, query, false), Err(code), "{method} {query}");
        }
    }

    #[test]
    fn every_row_is_reached_and_every_built_operation_has_one() {
        let mut reached = Vec::new();
        for row in TABLE.iter().chain(PLAIN) {
            for (method, operation) in row.methods {
                let query = match (row.subresource, *method) {
                    ("uploadId", "PUT") => "uploadId=u&partNumber=1".to_owned(),
                    (name, _) => name.to_owned(),
                };
                let found = routed(method, row.scope, &query, false).unwrap();
                let is_refined = matches!(operation, Op::NotBuilt("GetObjectAnnotation"));
                assert!(found == *operation || is_refined, "{method} {query}");
                reached.push(found);
                reached.extend(routed(method, row.scope, &format!("{query}&id=x&list-type=2"), false));
                reached.extend(routed(method, row.scope, &query, true));
            }
        }
        for operation in Operation::BUILT {
            assert!(reached.contains(operation), "{}", operation.name());
        }
    }
}
