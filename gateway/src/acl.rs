//! GetBucketAcl, GetObjectAcl, and the one ACL that can be put: private, which every bucket and object has.
//!
//! Also the object settings that are never made yet: tags, retention, legal hold.
//!
//! Not here: other ACLs, which are not built and answer 501.

use auth::Action;
use http::StatusCode;
use wire::om::{KeyInfo, LookupKey, UserInfo};

use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::operation::Operation;
use crate::request::RequestContext;
use crate::request_body::{Source, read_whole};
use crate::response;
use crate::service::write_owner;
use crate::xml::{self, Element, XML_BYTES_MAX, XmlWriter};

/// Answers the owner with FULL_CONTROL.
pub(crate) async fn get_bucket_acl(context: &RequestContext) -> Outcome {
    let bucket = context.fresh_bucket(Action::GetBucketAcl).await?;
    Ok(policy(&bucket.info.owner))
}

/// Answers the owner with FULL_CONTROL.
pub(crate) async fn get_object_acl(context: &RequestContext) -> Outcome {
    let (_, owner) = existing_key(context, Action::GetObjectAcl).await?;
    Ok(policy(&owner))
}

/// Takes the private ACL, which changes nothing.
pub(crate) async fn put_acl(context: &RequestContext, body: Source) -> Outcome {
    let owner = match context.operation {
        Operation::PutObjectAcl => existing_key(context, Action::PutObjectAcl).await?.1,
        _ => context.fresh_bucket(Action::PutBucketAcl).await?.info.owner.clone(),
    };
    let body = read_whole(context, body, XML_BYTES_MAX).await?;
    let has_header = context.headers().contains_key("x-amz-acl");
    match (has_header, body.trim_ascii().is_empty()) {
        (true, true) => {}
        (true, false) => {
            return Err(S3Error::bad_request("UnexpectedContent", "This request does not support content"));
        }
        (false, true) => {
            return Err(S3Error::bad_request(
                "MissingSecurityHeader",
                "Your request was missing a required header",
            ));
        }
        (false, false) => {
            let policy = xml::read(&body, "AccessControlPolicy")?;
            if !is_private(&policy, &owner)? {
                return Err(S3Error::not_implemented("ACLs other than private"));
            }
        }
    }
    Ok(response::empty(StatusCode::OK))
}

/// Whether the policy is the owner's FULL_CONTROL and nothing else.
fn is_private(policy: &Element, owner: &UserInfo) -> Result<bool, S3Error> {
    let grants = policy.child("AccessControlList").ok_or_else(S3Error::malformed_xml)?;
    let stranger =
        policy.child("Owner").and_then(|owner| owner.child_text("ID")).filter(|id| *id != owner.id.0);
    if stranger.is_some() {
        return Err(S3Error::access_denied());
    }
    let [grant] = grants.children.as_slice() else { return Ok(false) };
    let grantee = grant.child("Grantee").and_then(|grantee| grantee.child_text("ID"));
    Ok(grantee == Some(owner.id.0.as_str()) && grant.child_text("Permission") == Some("FULL_CONTROL"))
}

fn policy(owner: &UserInfo) -> response::Response {
    let mut xml = XmlWriter::of("AccessControlPolicy");
    write_owner(&mut xml, "Owner", owner);
    xml.open("AccessControlList");
    xml.open("Grant");
    xml.raw("<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"CanonicalUser\">");
    xml.text("ID", &owner.id.0);
    xml.text("DisplayName", &owner.display_name);
    xml.close("Grantee");
    xml.text("Permission", "FULL_CONTROL");
    xml.close("Grant");
    xml.close("AccessControlList");
    xml.close("AccessControlPolicy");
    response::xml(xml)
}

/// Answers that an object has no tags.
pub(crate) async fn get_object_tagging(context: &RequestContext) -> Outcome {
    existing_key(context, Action::GetObjectTagging).await?;
    let mut xml = XmlWriter::of("Tagging");
    xml.raw("<TagSet></TagSet>");
    xml.close("Tagging");
    Ok(response::xml(xml))
}

/// Answers that the bucket has no object lock.
pub(crate) async fn get_object_lock(context: &RequestContext) -> Outcome {
    let action = match context.operation {
        Operation::GetObjectLegalHold => Action::GetObjectLegalHold,
        _ => Action::GetObjectRetention,
    };
    existing_key(context, action).await?;
    Err(S3Error::invalid_request("Bucket is missing Object Lock Configuration"))
}

/// The request's key and the bucket's owner, or NoSuchKey.
async fn existing_key(context: &RequestContext, action: Action) -> Result<(KeyInfo, UserInfo), S3Error> {
    context.check_version()?;
    let key = context.key()?;
    context
        .with_bucket(action, |bucket| async move {
            let request = LookupKey { bucket: bucket.reference.clone(), key: key.clone(), layout_from: None };
            let found = context.gateway.session.call(request).await?;
            Ok::<_, client::service::CallError>((found.info, bucket.info.owner.clone()))
        })
        .await
}
