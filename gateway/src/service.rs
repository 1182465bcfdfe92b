//! ListBuckets.

use auth::Action;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wire::limits::BUCKETS_PER_OWNER_MAX;
use wire::om::{ListBuckets, UserInfo};

use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::request::RequestContext;
use crate::response;
use crate::xml::XmlWriter;

/// Buckets asked of OM in one call.
const PAGE: u32 = 1000;

/// Lists the caller's buckets.
pub(crate) async fn list_buckets(context: &RequestContext) -> Outcome {
    context.authorize_service(Action::ListAllMyBuckets)?;
    let owner = context.owner()?;
    let maximum = match context.query.get_set("max-buckets") {
        None => BUCKETS_PER_OWNER_MAX,
        Some(text) => {
            text.parse().ok().filter(|max| (1..=BUCKETS_PER_OWNER_MAX).contains(max)).ok_or_else(|| {
                S3Error::invalid_argument(
                    "max-buckets must be a number from 1 to 10000.",
                    "max-buckets",
                    text,
                )
            })?
        }
    };
    let prefix = context.query.get("prefix").unwrap_or("").to_owned();
    let mut after = match context.query.get_set("continuation-token") {
        None => String::new(),
        Some(token) => read_token(token)?,
    };
    let region = context.query.get_set("bucket-region");
    let is_elsewhere = region.is_some_and(|region| region != context.gateway.config.region);

    let mut buckets = Vec::new();
    let mut is_truncated = false;
    while !is_elsewhere && buckets.len() < maximum {
        let max = PAGE.min((maximum - buckets.len()) as u32);
        let request =
            ListBuckets { owner: owner.id.clone(), prefix: prefix.clone(), after: after.clone(), max };
        let page = context.gateway.session.call(request).await?;
        is_truncated = page.is_truncated;
        if let Some(last) = page.buckets.last() {
            after = last.name.as_str().to_owned();
        }
        buckets.extend(page.buckets);
        if !is_truncated {
            break;
        }
    }

    let mut xml = XmlWriter::of("ListAllMyBucketsResult");
    write_owner(&mut xml, "Owner", &owner);
    xml.open("Buckets");
    for bucket in &buckets {
        xml.open("Bucket");
        xml.text("Name", bucket.name.as_str());
        xml.text("CreationDate", &response::iso_date(bucket.created_ms));
        xml.text("BucketRegion", &context.gateway.config.region);
        xml.close("Bucket");
    }
    xml.close("Buckets");
    if is_truncated {
        xml.text("ContinuationToken", &write_token(&after));
    }
    if !prefix.is_empty() {
        xml.text("Prefix", &prefix);
    }
    xml.close("ListAllMyBucketsResult");
    Ok(response::xml(xml))
}

/// `<name><ID/><DisplayName/></name>`.
pub(crate) fn write_owner(xml: &mut XmlWriter, name: &str, owner: &UserInfo) {
    xml.open(name);
    xml.text("ID", &owner.id.0);
    xml.text("DisplayName", &owner.display_name);
    xml.close(name);
}

/// A continuation token: opaque to clients, and good for any listing, since it only names a place in byte order.
pub(crate) fn write_token(after: &str) -> String {
    URL_SAFE_NO_PAD.encode(after)
}

/// The place a token names.
pub(crate) fn read_token(token: &str) -> Result<String, S3Error> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
        S3Error::invalid_argument("The continuation token provided is incorrect", "continuation-token", token)
    })
}
