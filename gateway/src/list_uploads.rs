//! ListMultipartUploads and ListParts.

use auth::Action;
use client::service::CallError;
use wire::om::{ListParts, ListUploads, UploadInfo, UploadItem, UploadPage};

use crate::checksum;
use crate::dispatch::Outcome;
use crate::error::S3Error;
use crate::headers::storage_class_name;
use crate::listing::{Encoding, name_parameter, page_size};
use crate::multipart::{checksum_element, upload_id};
use crate::request::RequestContext;
use crate::response;
use crate::service::write_owner;
use crate::xml::XmlWriter;

/// Lists uploads in progress by key, then by age.
pub(crate) async fn list_multipart_uploads(context: &RequestContext) -> Outcome {
    let query = &context.query;
    let prefix = name_parameter(query, "prefix")?;
    let delimiter = name_parameter(query, "delimiter")?;
    let key_marker = name_parameter(query, "key-marker")?;
    let encoding = Encoding::of(query)?;
    let max = page_size(query, "max-uploads")?;
    // S3 looks at the upload's marker only beside a key's.
    let upload_marker = query.get_set("upload-id-marker").filter(|_| !key_marker.is_empty());
    let upload_after =
        match upload_marker {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                S3Error::invalid_argument("Invalid uploadId marker", "upload-id-marker", text)
            })?),
        };
    let page = if max == 0 {
        context.fresh_bucket(Action::ListBucketMultipartUploads).await?;
        UploadPage { items: Vec::new(), is_truncated: false }
    } else {
        let (prefix, delimiter, key_marker) = (&prefix, &delimiter, &key_marker);
        context
            .with_bucket::<_, CallError, _>(Action::ListBucketMultipartUploads, |bucket| async move {
                let request = ListUploads {
                    bucket: bucket.reference,
                    prefix: prefix.clone(),
                    delimiter: delimiter.clone(),
                    key_after: key_marker.clone(),
                    upload_after,
                    max,
                };
                context.gateway.session.call(request).await
            })
            .await?
    };

    let mut xml = XmlWriter::of("ListMultipartUploadsResult");
    xml.text("Bucket", context.target.bucket.as_deref().unwrap_or(""));
    xml.text("KeyMarker", &encoding.show(&key_marker));
    xml.text("UploadIdMarker", upload_marker.unwrap_or(""));
    if page.is_truncated {
        match page.items.last() {
            Some(UploadItem::Upload(upload)) => {
                xml.text("NextKeyMarker", &encoding.show(upload.key.as_str()));
                xml.text("NextUploadIdMarker", &upload.upload.to_string());
            }
            Some(UploadItem::Prefix(prefix)) => xml.text("NextKeyMarker", &encoding.show(prefix)),
            None => {}
        }
    }
    xml.text("Prefix", &encoding.show(&prefix));
    if !delimiter.is_empty() {
        xml.text("Delimiter", &encoding.show(&delimiter));
    }
    if encoding == Encoding::Url {
        xml.text("EncodingType", "url");
    }
    xml.number("MaxUploads", u64::from(max));
    xml.boolean("IsTruncated", page.is_truncated);
    for item in &page.items {
        if let UploadItem::Upload(upload) = item {
            xml.open("Upload");
            xml.text("Key", &encoding.show(upload.key.as_str()));
            xml.text("UploadId", &upload.upload.to_string());
            write_upload(&mut xml, upload);
            xml.text("Initiated", &response::iso_date(upload.initiated_ms));
            xml.close("Upload");
        }
    }
    for item in &page.items {
        if let UploadItem::Prefix(prefix) = item {
            xml.open("CommonPrefixes");
            xml.text("Prefix", &encoding.show(prefix));
            xml.close("CommonPrefixes");
        }
    }
    xml.close("ListMultipartUploadsResult");
    Ok(response::xml(xml))
}

/// Who, which class, which checksum: as both listings show it.
fn write_upload(xml: &mut XmlWriter, upload: &UploadInfo) {
    write_owner(xml, "Initiator", &upload.owner);
    write_owner(xml, "Owner", &upload.owner);
    xml.text("StorageClass", storage_class_name(upload.storage_class));
    if let Some((algorithm, kind)) = upload.checksum {
        xml.text("ChecksumAlgorithm", algorithm.name());
        xml.text("ChecksumType", kind.name());
    }
}

/// Lists an upload's parts in numeric order.
pub(crate) async fn list_parts(context: &RequestContext) -> Outcome {
    let query = &context.query;
    let encoding = Encoding::of(query)?;
    let max = page_size(query, "max-parts")?;
    let marker = match query.get_set("part-number-marker") {
        None => 0,
        Some(text) => {
            text.parse::<i32>().ok().and_then(|marker| u32::try_from(marker).ok()).ok_or_else(|| {
                S3Error::invalid_argument(
                    "Argument part-number-marker must be an integer between 0 and 2147483647",
                    "part-number-marker",
                    text,
                )
            })?
        }
    };
    let key = context.key()?;
    context.bucket(Action::ListMultipartUploadParts).await?;
    let upload = upload_id(context)?;
    let mut page = context
        .with_bucket::<_, CallError, _>(Action::ListMultipartUploadParts, |bucket| async move {
            let request = ListParts {
                bucket: bucket.reference,
                key: key.clone(),
                upload,
                after: marker,
                max: max.max(1),
            };
            context.gateway.session.call(request).await
        })
        .await?;
    if max == 0 {
        page.parts.clear();
        page.is_truncated = false;
    }

    let mut xml = XmlWriter::of("ListPartsResult");
    xml.text("Bucket", context.target.bucket.as_deref().unwrap_or(""));
    xml.echo("Key", &encoding.show(key.as_str()));
    if encoding == Encoding::Url {
        xml.text("EncodingType", "url");
    }
    xml.text("UploadId", &upload.to_string());
    write_upload(&mut xml, &page.upload);
    xml.number("PartNumberMarker", u64::from(marker));
    if let Some(last) = page.parts.last().filter(|_| page.is_truncated) {
        xml.number("NextPartNumberMarker", u64::from(last.part));
    }
    xml.number("MaxParts", u64::from(max));
    xml.boolean("IsTruncated", page.is_truncated);
    let wish = page.upload.checksum.map(|(algorithm, _)| algorithm);
    for part in &page.parts {
        xml.open("Part");
        xml.number("PartNumber", u64::from(part.part));
        xml.text("LastModified", &response::iso_date(part.modified_ms));
        xml.text("ETag", &format!("\"{}\"", part.etag));
        xml.number("Size", part.size);
        if let Some(checksum) = part.checksums.iter().find(|checksum| Some(checksum.algorithm) == wish) {
            xml.text(checksum_element(checksum.algorithm), &checksum::encode(checksum));
        }
        xml.close("Part");
    }
    xml.close("ListPartsResult");
    Ok(response::xml(xml))
}
