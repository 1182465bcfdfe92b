//! S3's XML: what we send, what we read.
//!
//! Keys in listings come percent-encoded (`encoding-type=url`), so that XML's rules on whitespace and control
//! characters cannot change them. Elements we do not know are skipped, as servers differ.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use quick_xml::events::Event;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, S3Error};
use crate::multipart::UploadedPart;

/// A page of 1,000 keys of 1,024 bytes, each encoded threefold, with what belongs to it, fits four times.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListBucketResult {
    #[serde(default)]
    pub(crate) is_truncated: bool,
    pub(crate) next_continuation_token: Option<String>,
    pub(crate) encoding_type: Option<String>,
    #[serde(default)]
    pub(crate) contents: Vec<Contents>,
    #[serde(default)]
    pub(crate) common_prefixes: Vec<CommonPrefix>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Contents {
    pub(crate) key: String,
    pub(crate) size: u64,
    #[serde(rename = "ETag", default)]
    pub(crate) etag: String,
    #[serde(default)]
    pub(crate) last_modified: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CommonPrefix {
    pub(crate) prefix: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ListAllMyBucketsResult {
    #[serde(default)]
    pub(crate) buckets: Buckets,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Buckets {
    #[serde(default)]
    pub(crate) bucket: Vec<Bucket>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Bucket {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) creation_date: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DeleteResult {
    #[serde(rename = "Error", default)]
    pub(crate) errors: Vec<DeleteError>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DeleteError {
    #[serde(default)]
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InitiateMultipartUploadResult {
    pub(crate) upload_id: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CompleteMultipartUploadResult {
    #[serde(rename = "ETag")]
    pub(crate) etag: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorDocument {
    code: String,
    message: String,
    request_id: String,
}

/// Reads a document whose root element is `root`.
///
/// CompleteMultipartUpload and its like may answer 200 and then an error, so `<Error>` in place of the root is one.
pub(crate) fn read<T: DeserializeOwned>(root: &str, body: &Bytes) -> Result<T, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Error::Response("XML is not UTF-8".into()))?;
    let found = root_name(text).ok_or_else(|| Error::Response(format!("no XML where {root} should be")))?;
    if found == "Error" {
        return Err(error(StatusCode::OK, &HeaderMap::new(), body));
    }
    if found != root {
        return Err(Error::Response(format!("XML root is {found}, not {root}")));
    }
    quick_xml::de::from_str(text).map_err(|cause| Error::Response(format!("{root}: {cause}")))
}

/// The error that an unsuccessful response stands for, whatever its body is.
pub(crate) fn error(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let document: ErrorDocument = std::str::from_utf8(body)
        .ok()
        .filter(|text| root_name(text).as_deref() == Some("Error"))
        .and_then(|text| quick_xml::de::from_str(text).ok())
        .unwrap_or_default();
    let header = || {
        headers.get("x-amz-request-id").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let request_id = if document.request_id.is_empty() { header() } else { document.request_id };
    Error::S3(Box::new(S3Error { status, code: document.code, message: document.message, request_id }))
}

/// The body of DeleteObjects, quiet.
pub(crate) fn delete_request(keys: &[&str]) -> String {
    let mut text =
        String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>");
    for key in keys {
        text.push_str("<Object><Key>");
        push_escaped(&mut text, key);
        text.push_str("</Key></Object>");
    }
    text.push_str("</Delete>");
    text
}

/// The body of CompleteMultipartUpload.
pub(crate) fn complete_request(parts: &[UploadedPart]) -> String {
    let mut text =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        write!(text, "<Part><PartNumber>{}</PartNumber><ETag>", part.number)
            .expect("a String takes every write");
        push_escaped(&mut text, &part.etag);
        text.push_str("</ETag></Part>");
    }
    text.push_str("</CompleteMultipartUpload>");
    text
}

/// The body of CreateBucket in another region than Amazon's first.
pub(crate) fn location_request(region: &str) -> String {
    let mut text = String::from(
        "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LocationConstraint>",
    );
    push_escaped(&mut text, region);
    text.push_str("</LocationConstraint></CreateBucketConfiguration>");
    text
}

/// Control characters become references, since a parser may normalise them otherwise (carriage return to line feed).
fn push_escaped(text: &mut String, raw: &str) {
    for character in raw.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            control if control.is_control() => {
                write!(text, "&#x{:X};", u32::from(control)).expect("a String takes every write");
            }
            other => text.push(other),
        }
    }
}

fn root_name(text: &str) -> Option<String> {
    let mut reader = quick_xml::Reader::from_str(text);
    loop {
        match reader.read_event().ok()? {
            Event::Start(element) | Event::Empty(element) => {
                return Some(element.local_name().as_ref().to_owned());
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_is_read_with_unknown_elements_and_namespace() {
        let body = Bytes::from_static(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>
            <IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>
            <Contents><Key>a%26b</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>
            <ETag>&quot;e&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
            <Contents><Key>c</Key><Size>0</Size></Contents>
            <CommonPrefixes><Prefix>d/</Prefix></CommonPrefixes><EncodingType>url</EncodingType></ListBucketResult>"#,
        );
        let list: ListBucketResult = read("ListBucketResult", &body).unwrap();
        assert!(list.is_truncated);
        assert_eq!(list.next_continuation_token.as_deref(), Some("t&1"));
        assert_eq!(list.contents.len(), 2);
        assert_eq!((list.contents[0].etag.as_str(), list.contents[0].size), ("\"e\"", 7));
        assert_eq!(list.common_prefixes[0].prefix, "d/");
    }

    #[test]
    fn empty_listing_is_read() {
        let body =
            Bytes::from_static(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>");
        let list: ListBucketResult = read("ListBucketResult", &body).unwrap();
        assert!(!list.is_truncated && list.contents.is_empty());
    }

    #[test]
    fn error_in_a_successful_response_is_an_error() {
        let body = Bytes::from_static(b"<Error><Code>InternalError</Code><Message>later</Message></Error>");
        let error =
            read::<CompleteMultipartUploadResult>("CompleteMultipartUploadResult", &body).unwrap_err();
        assert_eq!(error.kind(), "InternalError");
        assert!(error.is_retryable(false));
    }

    #[test]
    fn other_documents_are_refused() {
        for body in [
            "",
            "not xml",
            "<html></html>",
            "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        ] {
            let error = read::<ListBucketResult>("ListBucketResult", &Bytes::from_static(body.as_bytes()))
                .unwrap_err();
            assert!(matches!(error, Error::Response(_)), "{body}: {error}");
        }
    }

    #[test]
    fn error_document_gives_code_message_and_request() {
        let body = br#"<?xml version="1.0"?><Error><Code>NoSuchKey</Code><Message>no &lt;such&gt; key</Message><Resource>/b/k</Resource><RequestId>R1</RequestId></Error>"#;
        let error = error(StatusCode::NOT_FOUND, &HeaderMap::new(), body);
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "NoSuchKey (404): no <such> key [request R1]");
    }

    #[test]
    fn status_remains_where_the_body_is_no_error_document() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-request-id", "R2".parse().unwrap());
        for body in ["", "<html>Bad gateway</html>", "\u{0}", "<Error"] {
            let error = error(StatusCode::BAD_GATEWAY, &headers, body.as_bytes());
            assert_eq!(error.to_string(), "502 Bad Gateway [request R2]", "{body}");
            assert_eq!(error.kind(), "http 502");
        }
    }

    #[test]
    fn keys_survive_the_delete_document() {
        let keys = ["a&b<c>\"d", "line\nfeed\r", " space "];
        let text = delete_request(&keys);
        assert!(text.contains("<Key>a&amp;b&lt;c&gt;&quot;d</Key>"));
        assert!(text.contains("<Key>line&#xA;feed&#xD;</Key>"));
        assert!(text.contains("<Key> space </Key>"));
    }

    #[test]
    fn complete_document_lists_parts() {
        let text = complete_request(&[UploadedPart { number: 1, etag: "\"e\"".into() }]);
        assert!(text.contains("<Part><PartNumber>1</PartNumber><ETag>&quot;e&quot;</ETag></Part>"));
    }
}
