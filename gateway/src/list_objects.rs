//! ListObjects (both versions) and ListObjectVersions.
//!
//! All three are one listing of keys shown in three ways. A bucket without versioning has one version of each key, its id is
//! `null`.
//!
//! Invariant: a page, continued at the place it names, leaves out nothing and repeats nothing.

use auth::Action;
use wire::om::{BucketInfo, KeyHead, KeyPage, ListItem, ListKeys, UserInfo};

use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::headers::storage_class_name;
use crate::listing::{Encoding, name_parameter, page_size};
use crate::operation::Operation;
use crate::request::RequestContext;
use crate::response;
use crate::service::{read_token, write_owner, write_token};
use crate::xml::XmlWriter;

/// Bytes one entry takes in the answer, about: room made at once instead of by doubling.
const ENTRY_BYTES: usize = 320;

/// What all three ask.
struct Parameters {
    prefix: String,
    delimiter: String,
    encoding: Encoding,
    max: u32,
}

impl Parameters {
    fn of(context: &RequestContext) -> Result<Self, S3Error> {
        let query = &context.query;
        Ok(Self {
            prefix: name_parameter(query, "prefix")?,
            delimiter: name_parameter(query, "delimiter")?,
            encoding: Encoding::of(query)?,
            max: page_size(query, "max-keys")?,
        })
    }

    /// The elements that repeat the question.
    fn write(&self, xml: &mut XmlWriter, context: &RequestContext) {
        xml.text("Name", context.target.bucket.as_deref().unwrap_or(""));
        let is_first_version = context.operation == Operation::ListObjects;
        let prefix = match is_first_version {
            true => self.encoding.show_barely(&self.prefix),
            false => self.encoding.show(&self.prefix),
        };
        xml.text("Prefix", &prefix);
        if !self.delimiter.is_empty() {
            xml.text("Delimiter", &self.encoding.show(&self.delimiter));
        }
        xml.number("MaxKeys", u64::from(self.max));
        if self.encoding == Encoding::Url {
            xml.text("EncodingType", "url");
        }
    }

    fn write_prefixes(&self, xml: &mut XmlWriter, page: &KeyPage) {
        for item in &page.items {
            if let ListItem::Prefix(prefix) = item {
                xml.open("CommonPrefixes");
                xml.text("Prefix", &self.encoding.show(prefix));
                xml.close("CommonPrefixes");
            }
        }
    }
}

/// One page from OM, and whose bucket it is.
async fn page(
    context: &RequestContext,
    action: Action,
    parameters: &Parameters,
    after: &str,
) -> Result<(KeyPage, std::sync::Arc<BucketInfo>), S3Error> {
    if parameters.max == 0 {
        // AWS: empty and not truncated, whatever there is.
        let bucket = context.fresh_bucket(action).await?;
        return Ok((KeyPage { items: Vec::new(), is_truncated: false, read_index: 0 }, bucket.info));
    }
    context
        .with_bucket(action, |bucket| async move {
            let request = ListKeys {
                bucket: bucket.reference.clone(),
                prefix: parameters.prefix.clone(),
                delimiter: parameters.delimiter.clone(),
                after: after.to_owned(),
                max: parameters.max,
            };
            let page = context.gateway.session.call(request).await?;
            context.witness(page.read_index);
            Ok::<_, client::service::CallError>((page, bucket.info.clone()))
        })
        .await
}

fn last_name(page: &KeyPage) -> &str {
    match page.items.last() {
        Some(ListItem::Key(key, _)) => key.as_str(),
        Some(ListItem::Prefix(prefix)) => prefix,
        None => "",
    }
}

/// The owner of a key as listings show it. Only owners write to their buckets, so it is the bucket's.
fn owner_of(head: &KeyHead, bucket: &BucketInfo) -> UserInfo {
    if head.owner == bucket.owner.id {
        return bucket.owner.clone();
    }
    UserInfo { id: head.owner.clone(), display_name: head.owner.0.clone(), email: None }
}

/// The elements of an entry between its key and its owner.
fn write_head(xml: &mut XmlWriter, head: &KeyHead) {
    xml.text("LastModified", &response::iso_date(head.modified_ms));
    xml.open("ETag");
    xml.raw("&quot;");
    xml.escaped(&head.etag.to_string());
    xml.raw("&quot;");
    xml.close("ETag");
    if let Some((algorithm, kind)) = head.checksum {
        xml.text("ChecksumAlgorithm", algorithm.name());
        xml.text("ChecksumType", kind.name());
    }
    xml.number("Size", head.size);
}

fn write_contents(
    xml: &mut XmlWriter,
    page: &KeyPage,
    encoding: Encoding,
    owner: impl Fn(&KeyHead) -> Option<UserInfo>,
) {
    for item in &page.items {
        let ListItem::Key(key, head) = item else { continue };
        xml.open("Contents");
        xml.text("Key", &encoding.show(key.as_str()));
        write_head(xml, head);
        if let Some(owner) = owner(head) {
            write_owner(xml, "Owner", &owner);
        }
        xml.text("StorageClass", storage_class_name(head.storage_class));
        xml.close("Contents");
    }
}

fn document(root: &str, page: &KeyPage) -> XmlWriter {
    let mut xml = XmlWriter::with_capacity(1024 + page.items.len() * ENTRY_BYTES);
    xml.root(root);
    xml
}

/// ListObjects, the first version.
pub(crate) async fn list_objects(context: &RequestContext) -> Outcome {
    let parameters = Parameters::of(context)?;
    let marker = name_parameter(&context.query, "marker")?;
    let (page, bucket) = page(context, Action::ListBucket, &parameters, &marker).await?;
    let mut xml = document("ListBucketResult", &page);
    parameters.write(&mut xml, context);
    xml.text("Marker", &parameters.encoding.show(&marker));
    if page.is_truncated && !parameters.delimiter.is_empty() {
        xml.text("NextMarker", &parameters.encoding.show(last_name(&page)));
    }
    xml.boolean("IsTruncated", page.is_truncated);
    write_contents(&mut xml, &page, parameters.encoding, |head| Some(owner_of(head, &bucket)));
    parameters.write_prefixes(&mut xml, &page);
    xml.close("ListBucketResult");
    Ok(response::xml(xml))
}

/// ListObjectsV2.
pub(crate) async fn list_objects_v2(context: &RequestContext) -> Outcome {
    let parameters = Parameters::of(context)?;
    let token = context.query.get("continuation-token");
    let start_after = name_parameter(&context.query, "start-after")?;
    // A token says where the last page ended and wins over where the first began.
    let after = match token {
        Some(token) if !token.is_empty() => read_token(token)?,
        _ => start_after.clone(),
    };
    let fetch_owner =
        context.query.get("fetch-owner").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let (page, bucket) = page(context, Action::ListBucket, &parameters, &after).await?;
    let mut xml = document("ListBucketResult", &page);
    parameters.write(&mut xml, context);
    if !start_after.is_empty() {
        xml.text("StartAfter", &parameters.encoding.show(&start_after));
    }
    if let Some(token) = token {
        xml.text("ContinuationToken", token);
    }
    if page.is_truncated {
        xml.text("NextContinuationToken", &write_token(last_name(&page)));
    }
    xml.number("KeyCount", page.items.len() as u64);
    xml.boolean("IsTruncated", page.is_truncated);
    write_contents(&mut xml, &page, parameters.encoding, |head| fetch_owner.then(|| owner_of(head, &bucket)));
    parameters.write_prefixes(&mut xml, &page);
    xml.close("ListBucketResult");
    Ok(response::xml(xml))
}

/// ListObjectVersions of a bucket without versioning.
pub(crate) async fn list_object_versions(context: &RequestContext) -> Outcome {
    let parameters = Parameters::of(context)?;
    let key_marker = name_parameter(&context.query, "key-marker")?;
    let version_marker = context.query.get_set("version-id-marker");
    if version_marker.is_some() && key_marker.is_empty() {
        return Err(S3Error::invalid_argument(
            "A version-id marker cannot be specified without a key marker.",
            "version-id-marker",
            version_marker.unwrap_or(""),
        ));
    }
    if let Some(other) = version_marker.filter(|marker| *marker != "null") {
        return Err(S3Error::invalid_argument("Invalid version id specified", "version-id-marker", other));
    }
    let (page, bucket) = page(context, Action::ListBucketVersions, &parameters, &key_marker).await?;
    let mut xml = document("ListVersionsResult", &page);
    parameters.write(&mut xml, context);
    xml.text("KeyMarker", &parameters.encoding.show(&key_marker));
    xml.text("VersionIdMarker", version_marker.unwrap_or(""));
    if page.is_truncated {
        xml.text("NextKeyMarker", &parameters.encoding.show(last_name(&page)));
        if matches!(page.items.last(), Some(ListItem::Key(..))) {
            xml.text("NextVersionIdMarker", "null");
        }
    }
    xml.boolean("IsTruncated", page.is_truncated);
    for item in &page.items {
        let ListItem::Key(key, head) = item else { continue };
        xml.open("Version");
        xml.text("Key", &parameters.encoding.show(key.as_str()));
        xml.text("VersionId", "null");
        xml.boolean("IsLatest", true);
        write_head(&mut xml, head);
        write_owner(&mut xml, "Owner", &owner_of(head, &bucket));
        xml.text("StorageClass", storage_class_name(head.storage_class));
        xml.close("Version");
    }
    parameters.write_prefixes(&mut xml, &page);
    xml.close("ListVersionsResult");
    Ok(response::xml(xml))
}
