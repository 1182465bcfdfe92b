//! Request headers: those that ask for what is not built, and those that are kept with a key.
//!
//! Invariant: a header that would change what is stored, and that we do not honour, refuses the request: 501 for what S3 has
//! and we have not, 400 for what S3 has not either.
//!
//! Not here: checksums (see `checksum`), conditions (see `conditions`), signatures (auth).

use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, EXPIRES,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use wire::block::Replication;
use wire::limits::USER_METADATA_BYTES_MAX;
use wire::om::{BucketInfo, KeyAttributes, StorageClass};

use crate::error::S3Error;

const META_PREFIX: &str = "x-amz-meta-";

/// S3's canned ACLs.
const CANNED_ACLS: [&str; 8] = [
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
    "log-delivery-write",
];

/// S3's storage classes that are not taken here.
const OTHER_CLASSES: [&str; 10] = [
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "GLACIER_IR",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "SNOW",
    "EXPRESS_ONEZONE",
    "FSX_OPENZFS",
];

/// Header names, in whole or by prefix, that ask for what is not built.
const UNBUILT_PREFIXES: [&str; 10] = [
    "x-amz-server-side-encryption",
    "x-amz-copy-source-server-side-encryption",
    "x-amz-object-lock-",
    "x-amz-grant-",
    "x-amz-tagging",
    "x-amz-mfa",
    "x-amz-write-offset-bytes",
    "x-amz-rename-source",
    "x-amz-if-match-last-modified-time",
    "x-amz-if-match-size",
];

/// Refuses headers that ask for something unbuilt. For every operation, before its handler.
pub(crate) fn refuse_unbuilt(headers: &HeaderMap) -> Result<(), S3Error> {
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with("x-amz-") {
            continue;
        }
        let text = value.to_str().unwrap_or("").trim();
        match name {
            "x-amz-acl" => check_canned_acl(text)?,
            "x-amz-storage-class" => drop(parse_storage_class(text)?),
            // The destination of a copy has no tags either way.
            "x-amz-tagging-directive" if text.eq_ignore_ascii_case("COPY") => {}
            // Has no effect on a bucket without object lock.
            "x-amz-bypass-governance-retention" => {}
            "x-amz-bucket-object-lock-enabled" if text.eq_ignore_ascii_case("false") => {}
            "x-amz-bucket-object-lock-enabled" => return Err(S3Error::not_implemented("object lock")),
            "x-amz-object-ownership" if text != "ObjectWriter" => {
                return Err(S3Error::not_implemented(&format!("the header {name} with the value {text:?}")));
            }
            _ if UNBUILT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {
                return Err(S3Error::not_implemented(&format!("the header {name}")));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_canned_acl(text: &str) -> Result<(), S3Error> {
    match text {
        "private" => Ok(()),
        _ if CANNED_ACLS.contains(&text) => Err(S3Error::not_implemented(&format!("the canned ACL {text}"))),
        _ => Err(S3Error::invalid_argument("The canned ACL is not valid.", "x-amz-acl", text)),
    }
}

fn parse_storage_class(text: &str) -> Result<StorageClass, S3Error> {
    match text {
        "STANDARD" => Ok(StorageClass::Standard),
        "REDUCED_REDUNDANCY" => Ok(StorageClass::ReducedRedundancy),
        _ if OTHER_CLASSES.contains(&text) => {
            Err(S3Error::not_implemented(&format!("the storage class {text}")))
        }
        _ => Err(S3Error::bad_request("InvalidStorageClass", "The storage class you specified is not valid")
            .with("StorageClassRequested", crate::error::clip(text))),
    }
}

/// The storage class of a new key.
pub(crate) fn storage_class(headers: &HeaderMap) -> Result<StorageClass, S3Error> {
    let text = headers.get("x-amz-storage-class").map(|value| value.to_str().unwrap_or("").trim());
    Ok(text.map(parse_storage_class).transpose()?.unwrap_or_default())
}

/// The replication type a class means in a bucket.
pub(crate) fn replication_of(class: StorageClass, bucket: &BucketInfo) -> Replication {
    match class {
        StorageClass::Standard => bucket.replication,
        StorageClass::ReducedRedundancy => Replication::One,
    }
}

/// A storage class's name.
pub(crate) const fn storage_class_name(class: StorageClass) -> &'static str {
    match class {
        StorageClass::Standard => "STANDARD",
        StorageClass::ReducedRedundancy => "REDUCED_REDUNDANCY",
    }
}

/// Content headers and user metadata of a new key.
pub(crate) fn attributes(headers: &HeaderMap) -> Result<KeyAttributes, S3Error> {
    let text = |name: HeaderName| headers.get(name).map(kept).filter(|text| !text.is_empty());
    let mut user_metadata = Vec::new();
    let mut bytes = 0;
    for name in headers.keys() {
        let Some(short) = name.as_str().strip_prefix(META_PREFIX) else { continue };
        // Several headers of one name are one value, joined as HTTP joins them.
        let value = headers.get_all(name).iter().map(kept).collect::<Vec<_>>().join(",");
        // Kept as Latin-1 (see `kept`), so characters are bytes.
        bytes += short.len() + value.chars().count();
        user_metadata.push((short.to_owned(), value));
    }
    if bytes > USER_METADATA_BYTES_MAX {
        return Err(S3Error::bad_request(
            "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
        )
        .with("Size", bytes.to_string())
        .with("MaxSizeAllowed", USER_METADATA_BYTES_MAX.to_string()));
    }
    Ok(KeyAttributes {
        content_type: text(CONTENT_TYPE),
        cache_control: text(CACHE_CONTROL),
        content_disposition: text(CONTENT_DISPOSITION),
        content_encoding: content_encoding(headers),
        content_language: text(CONTENT_LANGUAGE),
        expires: text(EXPIRES),
        website_redirect: text(HeaderName::from_static("x-amz-website-redirect-location")),
        user_metadata,
    })
}

/// A header's bytes as text, each byte one character (Latin-1), so that any bytes come back as they were sent.
fn kept(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

/// The inverse: a kept header, to be sent again. None if the text never was a header.
pub(crate) fn sent_again(text: &str) -> Option<HeaderValue> {
    let bytes: Result<Vec<u8>, _> =
        text.chars().map(|character| u8::try_from(u32::from(character))).collect();
    HeaderValue::from_bytes(&bytes.ok()?).ok()
}

/// Content-Encoding without `aws-chunked`, which describes the transfer and not the object.
fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let values: Vec<String> = headers.get_all(CONTENT_ENCODING).iter().map(kept).collect();
    let codings: Vec<&str> = values
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    if codings.is_empty() { None } else { Some(codings.join(", ")) }
}

/// Refuses a body that claims the aws-chunked coding without a payload mode that says how to take it off: framing must
/// never be stored as data.
pub(crate) fn refuse_undecodable(headers: &HeaderMap, is_chunked: bool) -> Result<(), S3Error> {
    let claims = headers.get_all(CONTENT_ENCODING).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"aws-chunked"))
    });
    let has_length = headers.contains_key("x-amz-decoded-content-length");
    if claims && has_length && !is_chunked {
        return Err(S3Error::new(
            "NotImplemented",
            StatusCode::NOT_IMPLEMENTED,
            "The body is aws-chunked, but x-amz-content-sha256 names no streaming mode. Nothing was stored.",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    #[test]
    fn unbuilt_headers_are_refused_by_name() {
        for (name, value, code) in [
            ("x-amz-acl", "public-read", "NotImplemented"),
            ("x-amz-acl", "public-ready", "InvalidArgument"),
            ("x-amz-storage-class", "GLACIER", "NotImplemented"),
            ("x-amz-storage-class", "FAST", "InvalidStorageClass"),
            ("x-amz-server-side-encryption", "AES256", "NotImplemented"),
            ("x-amz-server-side-encryption-customer-key", "x", "NotImplemented"),
            ("x-amz-copy-source-server-side-encryption-customer-algorithm", "AES256", "NotImplemented"),
            ("x-amz-object-lock-mode", "GOVERNANCE", "NotImplemented"),
            ("x-amz-bucket-object-lock-enabled", "true", "NotImplemented"),
            ("x-amz-tagging", "a=b", "NotImplemented"),
            ("x-amz-tagging-directive", "REPLACE", "NotImplemented"),
            ("x-amz-grant-read", "id=x", "NotImplemented"),
            ("x-amz-object-ownership", "BucketOwnerEnforced", "NotImplemented"),
        ] {
            assert_eq!(refuse_unbuilt(&map(&[(name, value)])).unwrap_err().code, code, "{name}: {value}");
        }
        let fine = [
            ("x-amz-acl", "private"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-bucket-object-lock-enabled", "false"),
            ("x-amz-tagging-directive", "COPY"),
            ("x-amz-meta-x-amz-tagging", "a"),
            ("x-amz-date", "x"),
        ];
        assert_eq!(refuse_unbuilt(&map(&fine)), Ok(()));
    }

    #[test]
    fn attributes_come_back_as_they_were_sent() {
        let headers = map(&[
            ("content-type", "text/plain"),
            ("content-encoding", "gzip, aws-chunked"),
            ("content-encoding", "br"),
            ("cache-control", ""),
            ("x-amz-meta-a", "Hello World\u{e9}"),
            ("x-amz-meta-b", "1"),
            ("x-amz-meta-b", "2"),
        ]);
        let attributes = attributes(&headers).unwrap();
        assert_eq!(attributes.content_type.as_deref(), Some("text/plain"));
        assert_eq!(attributes.content_encoding.as_deref(), Some("gzip, br"));
        assert_eq!(attributes.cache_control, None);
        let metadata = &attributes.user_metadata;
        assert_eq!(sent_again(&metadata[0].1).unwrap().as_bytes(), "Hello World\u{e9}".as_bytes());
        assert_eq!(metadata[1], ("b".to_owned(), "1,2".to_owned()));
        assert_eq!(sent_again("\u{100}"), None);
    }

    #[test]
    fn metadata_has_a_limit() {
        let at_limit = "x".repeat(USER_METADATA_BYTES_MAX - 1);
        assert!(attributes(&map(&[("x-amz-meta-a", &at_limit)])).is_ok());
        let above = at_limit + "x";
        assert_eq!(attributes(&map(&[("x-amz-meta-a", &above)])).unwrap_err().code, "MetadataTooLarge");
    }
}
