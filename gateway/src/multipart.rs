//! CreateMultipartUpload, CompleteMultipartUpload, AbortMultipartUpload.
//!
//! Not here: parts' bytes (see `upload_part`), listings (see `list_uploads`), how Complete joins parts (meta).

use std::sync::Arc;

use auth::Action;
use client::service::CallError;
use http::{HeaderMap, HeaderName, StatusCode};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use wire::ids::WriteId;
use wire::limits::{PARTS_MAX, PUT_BYTES_MAX};
use wire::om::{AbortUpload, CompleteUpload, CompletedPart, CreateUpload};

use crate::access::Bucket;
use crate::checksum::{self, parse_algorithm};
use crate::conditions::write_condition;
use crate::dispatch::{Outcome, detached};
use crate::error::S3Error;
use crate::headers::{attributes, replication_of, storage_class};
use crate::request::RequestContext;
use crate::request_body::{Source, read_unclaimed};
use crate::response;
use crate::xml::{self, Element, XmlWriter};

/// Bytes of a Complete's body at most: 10,000 parts with ETag and checksum, generously indented.
const COMPLETE_XML_BYTES_MAX: usize = 4 << 20;
/// S3: an object has at most 10,000 parts of 5 GiB; larger sizes are nonsense.
const OBJECT_BYTES_MAX: u64 = PARTS_MAX as u64 * PUT_BYTES_MAX;

/// Begins an upload.
pub(crate) async fn create_multipart_upload(context: &Arc<RequestContext>) -> Outcome {
    let key = context.key()?.clone();
    let owner = context.owner()?;
    let storage_class = storage_class(context.headers())?;
    let attributes = attributes(context.headers())?;
    let checksum = checksum_wish(context.headers())?;
    let work = context.clone();
    let shown = key.clone();
    let upload = detached(async move {
        let command = |bucket: Bucket| {
            let (work, key, owner, attributes) = (&work, &key, &owner, &attributes);
            async move {
                let make = |context| CreateUpload {
                    context,
                    bucket: bucket.reference.clone(),
                    key: key.clone(),
                    owner: owner.clone(),
                    storage_class,
                    replication: replication_of(storage_class, &bucket.info),
                    attributes: attributes.clone(),
                    checksum,
                };
                work.gateway.session.command(make).await
            }
        };
        work.with_bucket::<_, CallError, _>(Action::PutObject, command).await
    })
    .await??;
    let mut xml = XmlWriter::of("InitiateMultipartUploadResult");
    xml.text("Bucket", context.target.bucket.as_deref().unwrap_or(""));
    xml.echo("Key", shown.as_str());
    xml.text("UploadId", &upload.to_string());
    xml.close("InitiateMultipartUploadResult");
    let mut response = response::xml(xml);
    if let Some((algorithm, kind)) = checksum {
        let headers = response.headers_mut();
        response::set(headers, HeaderName::from_static("x-amz-checksum-algorithm"), algorithm.name());
        response::set(headers, HeaderName::from_static("x-amz-checksum-type"), kind.name());
    }
    Ok(response)
}

/// `x-amz-checksum-algorithm` and `x-amz-checksum-type`.
fn checksum_wish(headers: &HeaderMap) -> Result<Option<(ChecksumAlgorithm, ChecksumKind)>, S3Error> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("").trim());
    let kind = text("x-amz-checksum-type").map(parse_kind).transpose()?;
    let Some(algorithm) = text("x-amz-checksum-algorithm").map(parse_algorithm).transpose()? else {
        return match kind {
            None => Ok(None),
            Some(_) => Err(S3Error::invalid_request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )),
        };
    };
    let kind = match (algorithm, kind) {
        (ChecksumAlgorithm::Crc64Nvme, None) => ChecksumKind::FullObject,
        (_, None) => ChecksumKind::Composite,
        (ChecksumAlgorithm::Crc64Nvme, Some(ChecksumKind::Composite))
        | (ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256, Some(ChecksumKind::FullObject)) => {
            let kind = kind.map_or("", ChecksumKind::name);
            return Err(S3Error::invalid_request(format!(
                "The {kind} checksum type cannot be used with the {} checksum algorithm.",
                algorithm.name().to_ascii_lowercase()
            )));
        }
        (_, Some(kind)) => kind,
    };
    Ok(Some((algorithm, kind)))
}

fn parse_kind(text: &str) -> Result<ChecksumKind, S3Error> {
    match text {
        "COMPOSITE" => Ok(ChecksumKind::Composite),
        "FULL_OBJECT" => Ok(ChecksumKind::FullObject),
        _ => Err(S3Error::invalid_request("Value for x-amz-checksum-type header is invalid.")),
    }
}

/// The request's upload id; a text that was never one names no upload.
pub(crate) fn upload_id(context: &RequestContext) -> Result<WriteId, S3Error> {
    let text = context.query.get("uploadId").unwrap_or("");
    text.parse().map_err(|_| S3Error::no_such_upload(text))
}

/// Makes an object of the parts named.
pub(crate) async fn complete_multipart_upload(context: &Arc<RequestContext>, body: Source) -> Outcome {
    let key = context.key()?.clone();
    // Permission, and whether the bucket is there, before the body.
    context.bucket(Action::PutObject).await?;
    let condition = write_condition(context.headers())?;
    let expected = expected_checksum(context.headers())?;
    let expected_size = expected_size(context.headers())?;
    let body = read_unclaimed(context, body, COMPLETE_XML_BYTES_MAX).await?;
    let parts = completed_parts(&body)?;
    let upload = upload_id(context)?;
    let work = context.clone();
    let shown = key.clone();
    let completed = detached(async move {
        let command = |bucket: Bucket| {
            let (work, key, parts, expected) = (&work, &key, &parts, &expected);
            async move {
                let make = |context| CompleteUpload {
                    context,
                    bucket: bucket.reference.clone(),
                    key: key.clone(),
                    upload,
                    parts: parts.clone(),
                    condition,
                    expected: expected.clone(),
                    expected_size,
                };
                work.gateway.session.command(make).await
            }
        };
        work.with_bucket::<_, CallError, _>(Action::PutObject, command).await
    })
    .await??;
    context.witness(completed.version.index);
    let mut xml = XmlWriter::of("CompleteMultipartUploadResult");
    xml.text("Location", &location(context));
    xml.text("Bucket", context.target.bucket.as_deref().unwrap_or(""));
    xml.echo("Key", shown.as_str());
    xml.text("ETag", &format!("\"{}\"", completed.etag));
    if let Some(checksum) = &completed.checksum {
        write_checksum(&mut xml, checksum, completed.etag);
        xml.text("ChecksumType", checksum.kind.name());
    }
    xml.close("CompleteMultipartUploadResult");
    Ok(response::xml(xml))
}

/// The element of a checksum: `ChecksumCRC32` ...
pub(crate) const fn checksum_element(algorithm: ChecksumAlgorithm) -> &'static str {
    match algorithm {
        ChecksumAlgorithm::Crc32 => "ChecksumCRC32",
        ChecksumAlgorithm::Crc32c => "ChecksumCRC32C",
        ChecksumAlgorithm::Crc64Nvme => "ChecksumCRC64NVME",
        ChecksumAlgorithm::Sha1 => "ChecksumSHA1",
        ChecksumAlgorithm::Sha256 => "ChecksumSHA256",
    }
}

fn write_checksum(xml: &mut XmlWriter, checksum: &Checksum, etag: Etag) {
    let value = match checksum.kind {
        ChecksumKind::FullObject => checksum::encode(checksum),
        ChecksumKind::Composite => format!("{}-{}", checksum::encode(checksum), etag.parts),
    };
    xml.text(checksum_element(checksum.algorithm), &value);
}

/// The object's URL as the client reached it.
fn location(context: &RequestContext) -> String {
    let host = context.header("host").unwrap_or("");
    format!("http://{host}{}", context.parts.uri.path())
}

/// The object's checksum, which Complete carries where other requests carry their body's.
fn expected_checksum(headers: &HeaderMap) -> Result<Option<Checksum>, S3Error> {
    let stated =
        headers.get("x-amz-checksum-type").map(|value| parse_kind(value.to_str().unwrap_or("").trim()));
    let stated = stated.transpose()?;
    let mut found = None;
    for algorithm in ChecksumAlgorithm::ALL {
        let Some(value) = headers.get(algorithm.header()) else { continue };
        let checksum = parse_checksum(algorithm, value.to_str().unwrap_or(""), stated)
            .ok_or_else(|| checksum::invalid_value(algorithm.header()))?;
        if found.replace(checksum).is_some() {
            return Err(S3Error::invalid_request(
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
    }
    Ok(found)
}

/// `base64` or `base64-N`. The kind is the one stated, else the one the form tells.
fn parse_checksum(
    algorithm: ChecksumAlgorithm,
    text: &str,
    stated: Option<ChecksumKind>,
) -> Option<Checksum> {
    let text = text.trim();
    let (digits, form) = match text.split_once('-') {
        Some((digits, count)) => {
            count.parse::<u32>().ok()?;
            (digits, ChecksumKind::Composite)
        }
        None => (text, ChecksumKind::FullObject),
    };
    let mut checksum = Checksum::full(algorithm, checksum::decode(algorithm, digits)?);
    checksum.kind = stated.unwrap_or(form);
    Some(checksum)
}

fn expected_size(headers: &HeaderMap) -> Result<Option<u64>, S3Error> {
    let Some(value) = headers.get("x-amz-mp-object-size") else { return Ok(None) };
    let text = value.to_str().unwrap_or("");
    match text.parse() {
        Ok(size) if size <= OBJECT_BYTES_MAX => Ok(Some(size)),
        _ => Err(S3Error::invalid_argument(
            "The x-amz-mp-object-size header is not valid.",
            "x-amz-mp-object-size",
            text,
        )),
    }
}

/// The parts named by the body, in its order.
fn completed_parts(body: &[u8]) -> Result<Vec<CompletedPart>, S3Error> {
    let root = xml::read(body, "CompleteMultipartUpload")?;
    let parts = root.children_named("Part").map(completed_part).collect::<Result<Vec<_>, S3Error>>()?;
    if parts.is_empty() || parts.len() > PARTS_MAX as usize || parts.len() != root.children.len() {
        return Err(S3Error::malformed_xml());
    }
    Ok(parts)
}

fn completed_part(element: &Element) -> Result<CompletedPart, S3Error> {
    let number = element.child_text("PartNumber").ok_or_else(S3Error::malformed_xml)?.trim();
    let part = parse_part_number(number)
        .ok_or_else(|| S3Error::invalid_argument(PART_NUMBER_MESSAGE, "partNumber", number))?;
    let etag = element.child_text("ETag").ok_or_else(S3Error::malformed_xml)?;
    let mut checksum = None;
    for algorithm in ChecksumAlgorithm::ALL {
        let Some(text) = element.child_text(checksum_element(algorithm)) else { continue };
        let parsed = parse_checksum(algorithm, text, Some(ChecksumKind::FullObject)).ok_or_else(|| {
            S3Error::invalid_request(format!(
                "Value for {} of part {part} is invalid.",
                checksum_element(algorithm)
            ))
        })?;
        if checksum.replace(parsed).is_some() {
            return Err(S3Error::malformed_xml());
        }
    }
    Ok(CompletedPart { part, etag: Etag::parse(etag), checksum })
}

/// What S3 says of a part number out of range.
pub(crate) const PART_NUMBER_MESSAGE: &str = "Part number must be an integer between 1 and 10000, inclusive";

/// 1 to 10,000.
pub(crate) fn parse_part_number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| (1..=PARTS_MAX).contains(number))
}

/// Ends an upload and frees its parts.
pub(crate) async fn abort_multipart_upload(context: &Arc<RequestContext>) -> Outcome {
    let key = context.key()?.clone();
    if context.headers().contains_key("x-amz-if-match-initiated-time") {
        return Err(S3Error::not_implemented("the header x-amz-if-match-initiated-time"));
    }
    context.bucket(Action::AbortMultipartUpload).await?;
    let upload = upload_id(context)?;
    let work = context.clone();
    detached(async move {
        let command = |bucket: Bucket| {
            let (work, key) = (&work, &key);
            async move {
                let make = |context| AbortUpload {
                    context,
                    bucket: bucket.reference.clone(),
                    key: key.clone(),
                    upload,
                };
                work.gateway.session.command(make).await
            }
        };
        work.with_bucket::<_, CallError, _>(Action::AbortMultipartUpload, command).await
    })
    .await??;
    Ok(response::empty(StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn checksum_kinds_follow_their_algorithm() {
        use ChecksumAlgorithm::{Crc32, Crc64Nvme, Sha256};
        use ChecksumKind::{Composite, FullObject};
        for (algorithm, kind, expected) in [
            (None, None, Ok(None)),
            (Some("CRC32"), None, Ok(Some((Crc32, Composite)))),
            (Some("CRC32"), Some("FULL_OBJECT"), Ok(Some((Crc32, FullObject)))),
            (Some("CRC64NVME"), None, Ok(Some((Crc64Nvme, FullObject)))),
            (Some("sha256"), Some("COMPOSITE"), Ok(Some((Sha256, Composite)))),
            (Some("SHA256"), Some("FULL_OBJECT"), Err("InvalidRequest")),
            (Some("CRC64NVME"), Some("COMPOSITE"), Err("InvalidRequest")),
            (Some("MD5"), None, Err("InvalidRequest")),
            (Some("CRC32"), Some("HALF"), Err("InvalidRequest")),
            (None, Some("COMPOSITE"), Err("InvalidRequest")),
        ] {
            let pairs = [("x-amz-checksum-algorithm", algorithm), ("x-amz-checksum-type", kind)];
            let given: Vec<_> =
                pairs.iter().filter_map(|(name, value)| value.map(|value| (*name, value))).collect();
            assert_eq!(checksum_wish(&headers(&given)).map_err(|error| error.code), expected, "{given:?}");
        }
    }

    fn parts(body: &str) -> Result<Vec<CompletedPart>, &'static str> {
        completed_parts(body.as_bytes()).map_err(|error| error.code)
    }

    #[test]
    fn complete_bodies() {
        let part = |number: &str| {
            format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{}\"</ETag></Part>", "ab".repeat(16))
        };
        let body = |inner: &str| format!("<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>");
        let read = parts(&body(&format!("{} {}", part("1"), part("10000")))).unwrap();
        assert_eq!((read.len(), read[1].part, read[0].etag.is_some()), (2, 10000, true));
        let odd =
            "<Part><ETag>x</ETag><PartNumber>1</PartNumber><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part>";
        let read = parts(&body(odd)).unwrap();
        assert_eq!((read[0].etag, read[0].checksum.is_some()), (None, true));
        for (text, code) in [
            (String::new(), "MalformedXML"),
            (body(""), "MalformedXML"),
            (body("<Part><PartNumber>1</PartNumber></Part>"), "MalformedXML"),
            (body("<Part><ETag>x</ETag></Part>"), "MalformedXML"),
            (body(&format!("<Other/>{}", part("1"))), "MalformedXML"),
            (body(&part("0")), "InvalidArgument"),
            (body(&part("10001")), "InvalidArgument"),
            (body(&part("-1")), "InvalidArgument"),
            (
                body(
                    "<Part><PartNumber>1</PartNumber><ETag>x</ETag><ChecksumSHA1>AA==</ChecksumSHA1></Part>",
                ),
                "InvalidRequest",
            ),
        ] {
            assert_eq!(parts(&text).unwrap_err(), code, "{text}");
        }
    }

    #[test]
    fn expected_checksums_tell_their_kind() {
        let of = |value| expected_checksum(&headers(&[("x-amz-checksum-crc32", value)]));
        assert_eq!(of("AAAAAA==").unwrap().unwrap().kind, ChecksumKind::FullObject);
        assert_eq!(of("AAAAAA==-3").unwrap().unwrap().kind, ChecksumKind::Composite);
        assert_eq!(of("AAAA").unwrap_err().code, "BadDigest");
        assert_eq!(of("AAAAAA==-x").unwrap_err().code, "BadDigest");
        assert_eq!(expected_checksum(&headers(&[])).unwrap(), None);
    }
}
