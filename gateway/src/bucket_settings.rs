//! Reads of sub-resources that nobody can set yet: each answers as AWS does for one that is not configured.
//!
//! Infrastructure tools read all of them on every refresh and take exactly these codes for "not there".
//!
//! Not here: their writes, which are not built and answer 501.

use auth::Action;

use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::operation::Operation;
use crate::request::RequestContext;
use crate::response;
use crate::xml::XmlWriter;

/// What AWS says of a setting nobody made.
enum Unset {
    /// 404 with this code and message.
    Missing(&'static str, &'static str),
    /// 200 with this root and content.
    Document(&'static str, &'static str),
}

/// Answers the read of a setting; None for any other operation.
fn unset(operation: Operation) -> Option<(Action, Unset)> {
    use Operation as Op;
    use Unset::{Document, Missing};
    let no_configuration = || Missing("NoSuchConfiguration", "The specified configuration does not exist.");
    Some(match operation {
        Op::GetBucketVersioning => (Action::GetBucketVersioning, Document("VersioningConfiguration", "")),
        Op::GetBucketAbac => (Action::GetBucketTagging, Document("AbacStatus", "<Status>Disabled</Status>")),
        Op::GetBucketAccelerateConfiguration => {
            (Action::GetAccelerateConfiguration, Document("AccelerateConfiguration", ""))
        }
        Op::GetBucketAnalyticsConfiguration => (Action::GetAnalyticsConfiguration, no_configuration()),
        Op::ListBucketAnalyticsConfigurations => (
            Action::GetAnalyticsConfiguration,
            Document("ListBucketAnalyticsConfigurationResult", "<IsTruncated>false</IsTruncated>"),
        ),
        Op::GetBucketCors => (
            Action::GetBucketCORS,
            Missing("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
        ),
        Op::GetBucketEncryption => (
            Action::GetEncryptionConfiguration,
            Missing(
                "ServerSideEncryptionConfigurationNotFoundError",
                "The server side encryption configuration was not found",
            ),
        ),
        Op::GetBucketIntelligentTieringConfiguration => {
            (Action::GetIntelligentTieringConfiguration, no_configuration())
        }
        Op::ListBucketIntelligentTieringConfigurations => (
            Action::GetIntelligentTieringConfiguration,
            Document("ListBucketIntelligentTieringConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
        ),
        Op::GetBucketInventoryConfiguration => (Action::GetInventoryConfiguration, no_configuration()),
        Op::ListBucketInventoryConfigurations => (
            Action::GetInventoryConfiguration,
            Document("ListInventoryConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
        ),
        Op::GetBucketLifecycleConfiguration => (
            Action::GetLifecycleConfiguration,
            Missing("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
        ),
        Op::GetBucketLogging => (Action::GetBucketLogging, Document("BucketLoggingStatus", "")),
        Op::GetBucketMetadataConfiguration => (
            Action::GetInventoryConfiguration,
            Missing("MetadataConfigurationNotFound", "The metadata configuration was not found"),
        ),
        Op::GetBucketMetadataTableConfiguration => (
            Action::GetInventoryConfiguration,
            Missing("MetadataTableConfigurationNotFound", "The metadata table configuration was not found"),
        ),
        Op::GetBucketMetricsConfiguration => (Action::GetMetricsConfiguration, no_configuration()),
        Op::ListBucketMetricsConfigurations => (
            Action::GetMetricsConfiguration,
            Document("ListMetricsConfigurationsResult", "<IsTruncated>false</IsTruncated>"),
        ),
        Op::GetBucketNotificationConfiguration => {
            (Action::GetBucketNotification, Document("NotificationConfiguration", ""))
        }
        Op::GetBucketOwnershipControls => (
            Action::GetBucketOwnershipControls,
            Missing("OwnershipControlsNotFoundError", "The bucket ownership controls were not found"),
        ),
        Op::GetBucketPolicy => {
            (Action::GetBucketPolicy, Missing("NoSuchBucketPolicy", "The bucket policy does not exist"))
        }
        Op::GetBucketPolicyStatus => {
            (Action::GetBucketPolicyStatus, Missing("NoSuchBucketPolicy", "The bucket policy does not exist"))
        }
        Op::GetBucketReplication => (
            Action::GetReplicationConfiguration,
            Missing("ReplicationConfigurationNotFoundError", "The replication configuration was not found"),
        ),
        Op::GetBucketRequestPayment => (
            Action::GetBucketRequestPayment,
            Document("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
        ),
        Op::GetBucketTagging => {
            (Action::GetBucketTagging, Missing("NoSuchTagSet", "The TagSet does not exist"))
        }
        Op::GetBucketWebsite => (
            Action::GetBucketWebsite,
            Missing(
                "NoSuchWebsiteConfiguration",
                "The specified bucket does not have a website configuration",
            ),
        ),
        Op::GetObjectLockConfiguration => (
            Action::GetBucketObjectLockConfiguration,
            Missing(
                "ObjectLockConfigurationNotFoundError",
                "Object Lock configuration does not exist for this bucket",
            ),
        ),
        Op::GetPublicAccessBlock => (
            Action::GetBucketPublicAccessBlock,
            Missing(
                "NoSuchPublicAccessBlockConfiguration",
                "The public access block configuration was not found",
            ),
        ),
        _ => return None,
    })
}

/// Answers the read of a setting nobody made.
pub(crate) async fn get_setting(context: &RequestContext) -> Outcome {
    let Some((action, answer)) = unset(context.operation) else {
        return Err(S3Error::not_implemented(context.operation.name()));
    };
    let bucket = context.fresh_bucket(action).await?;
    match answer {
        Unset::Missing(code, message) => {
            Err(S3Error::not_found(code, message).with("BucketName", bucket.info.name.as_str()))
        }
        Unset::Document(root, content) => {
            let mut xml = XmlWriter::of(root);
            xml.raw(content);
            xml.close(root);
            Ok(response::xml(xml))
        }
    }
}
