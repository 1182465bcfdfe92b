//! SigV2 presigned URLs: HMAC-SHA1 of a string that names method, expiry, `x-amz-*` headers and resource.
//!
//! Only for URLs that old clients still make (`aws s3 presign`, boto3 in us-east-1); never in the `Authorization`
//! header. The scheme signs none of the query but a fixed list of sub-resources, so a sub-resource outside that list
//! is refused: whoever holds the URL could have added it.
//!
//! Clients move the `x-amz-*` headers of what they presign into the query; they are signed as if they were headers.
//!
//! Not here: the secret. The caller has [`PresentedV2::strings_to_sign`] signed by whoever keeps it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, HeaderName};
use http::request::Parts;
use std::collections::BTreeMap;

use crate::canonical::write_values;
use crate::error::{AuthError, Mismatch, clip};
use crate::key::{SecretKey, same_signature, sign_v2};
use crate::parse;
use crate::payload::Payload;
use crate::settings::Settings;
use crate::uri;
use crate::v4::ACCESS_KEY_BYTES_MAX;
use crate::verified::{Scheme, Verified};

/// Query parameters that are part of the signed resource (S3 developer guide, "Signing and authenticating REST
/// requests", and what botocore and boto sign beyond it).
const SIGNED_SUBRESOURCES: [&str; 35] = [
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Sub-resources that came after SigV2 and that no client signs with it.
const UNCOVERED_SUBRESOURCES: [&str; 14] = [
    "attributes",
    "encryption",
    "intelligent-tiering",
    "legal-hold",
    "metadataConfiguration",
    "metadataTable",
    "ownershipControls",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "retention",
    "session",
    "abac",
    "annotation",
];

/// A SigV2 signature as presented in a query, checked in all that needs no secret.
#[derive(Debug, Clone)]
pub struct PresentedV2 {
    access_key: String,
    /// As sent: the text is signed.
    expires: String,
    /// Base64.
    signature: String,
    payload: Payload,
}

impl PresentedV2 {
    pub(crate) fn from_query(
        parts: &Parts,
        query: &str,
        now_ms: i64,
        settings: &Settings,
    ) -> Result<Self, AuthError> {
        if !settings.sigv2_presign {
            return Err(AuthError::SigV2Refused);
        }
        let [access_key, expires, signature] = query_parameters(query)?;
        if access_key.is_empty() || access_key.len() > ACCESS_KEY_BYTES_MAX {
            return Err(AuthError::InvalidAccessKeyId { access_key: clip(&access_key) });
        }
        let digits_only = !expires.is_empty() && expires.bytes().all(|byte| byte.is_ascii_digit());
        let seconds: i64 = match expires.parse() {
            Ok(seconds) if digits_only => seconds,
            _ => return Err(AuthError::QueryV2Date { value: clip(&expires) }),
        };
        let expires_ms = seconds.saturating_mul(1000);
        if now_ms >= expires_ms {
            return Err(AuthError::Expired { lifetime_s: None, expires_ms, now_ms });
        }
        if let Some(name) = uri::pairs(query)
            .map(|(name, _)| name)
            .find(|name| UNCOVERED_SUBRESOURCES.iter().any(|uncovered| uri::is(name, uncovered)))
        {
            return Err(AuthError::QueryV2Uncovered { name: clip(name) });
        }
        // Every x-amz-* header is signed, this one too.
        let payload = parse::payload_header(&parts.headers)?.unwrap_or(Payload::Unsigned);
        if payload.has_signed_chunks() {
            return Err(AuthError::StreamingUnsignedRequest);
        }
        Ok(PresentedV2 { access_key, expires, signature, payload })
    }

    /// Whose signature it claims to be.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// What protects the body.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// The strings that a right signature may be of: one, or two for a bucket, which some clients sign with a
    /// trailing slash that they do not send. `host_bucket` is the bucket that the host names, if it does.
    pub fn strings_to_sign(&self, parts: &Parts, host_bucket: Option<&str>) -> Vec<String> {
        let path = parts.uri.path();
        let resource = match host_bucket {
            Some(bucket) => format!("/{bucket}{path}"),
            None => path.to_owned(),
        };
        let mut resources = vec![resource.clone()];
        let is_bucket = resource.trim_matches('/').bytes().all(|byte| byte != b'/') && resource.len() > 1;
        if is_bucket {
            resources.push(match resource.strip_suffix('/') {
                Some(bare) => bare.to_owned(),
                None => resource + "/",
            });
        }
        resources.iter().map(|resource| self.string_to_sign(parts, resource)).collect()
    }

    /// Compares the signature with the right one of `string_to_sign`, one of [`Self::strings_to_sign`].
    pub fn check(&self, string_to_sign: &str, right_signature: &[u8; 20]) -> Result<Verified, AuthError> {
        let computed = STANDARD.encode(right_signature);
        if same_signature(computed.as_bytes(), self.signature.as_bytes()) {
            return Ok(Verified::new(&self.access_key, Scheme::QueryV2, &self.payload, None));
        }
        Err(AuthError::SignatureDoesNotMatch(Box::new(Mismatch {
            access_key: self.access_key.clone(),
            string_to_sign: string_to_sign.to_owned(),
            canonical_request: None,
            signature_provided: clip(&self.signature),
            hint: "Check your secret access key and signing method.".to_owned(),
        })))
    }

    /// As [`Self::check`] for all strings to sign, where the secret is at hand.
    pub fn verify(
        &self,
        parts: &Parts,
        secret: &SecretKey,
        host_bucket: Option<&str>,
    ) -> Result<Verified, AuthError> {
        let mut refusal = AuthError::AccessDenied;
        for (position, string) in self.strings_to_sign(parts, host_bucket).iter().enumerate() {
            match self.check(string, &sign_v2(secret, string)) {
                Ok(verified) => return Ok(verified),
                // The first is the form S3 documents: show that one.
                Err(error) if position == 0 => refusal = error,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    fn string_to_sign(&self, parts: &Parts, resource: &str) -> String {
        let query = parts.uri.query().unwrap_or("");
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(parts.method.as_str().as_bytes());
        for name in [HeaderName::from_static("content-md5"), CONTENT_TYPE] {
            out.push(b'\n');
            write_header_or_parameter(parts, query, &name, &mut out);
        }
        out.push(b'\n');
        out.extend_from_slice(self.expires.as_bytes());
        out.push(b'\n');
        write_amz_headers(parts, query, &mut out);
        out.extend_from_slice(resource.as_bytes());
        write_subresources(query, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// AWSAccessKeyId, Expires and Signature, decoded, each exactly once.
fn query_parameters(query: &str) -> Result<[String; 3], AuthError> {
    let mut found: [Option<String>; 3] = Default::default();
    for (name, value) in uri::pairs(query) {
        let Some(slot) =
            ["AWSAccessKeyId", "Expires", "Signature"].iter().position(|wanted| uri::is(name, wanted))
        else {
            continue;
        };
        if found[slot].replace(uri::decode(value)).is_some() {
            return Err(AuthError::QueryV2Incomplete);
        }
    }
    match found {
        [Some(access_key), Some(expires), Some(signature)] => Ok([access_key, expires, signature]),
        _ => Err(AuthError::QueryV2Incomplete),
    }
}

/// A header counts before a parameter of its name: it is the header that takes effect.
fn write_header_or_parameter(parts: &Parts, query: &str, name: &HeaderName, out: &mut Vec<u8>) {
    if let Some(value) = parts.headers.get(name) {
        out.extend_from_slice(value.as_bytes().trim_ascii());
    } else if let Some((_, value)) =
        uri::pairs(query).find(|(other, _)| uri::is_ignoring_case(other, name.as_str()))
    {
        out.extend(uri::decoded_value(value));
    }
}

/// `name:value` lines of every `x-amz-*` header, and of parameters of such a name, sorted by name.
fn write_amz_headers(parts: &Parts, query: &str, out: &mut Vec<u8>) {
    let mut lines: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, value) in uri::pairs(query) {
        let name = uri::decode(name).to_ascii_lowercase();
        if name.starts_with("x-amz-") {
            lines.entry(name).or_insert_with(|| uri::decoded_value(value).collect());
        }
    }
    for name in parts.headers.keys().filter(|name| name.as_str().starts_with("x-amz-")) {
        let mut value = Vec::new();
        write_values(&parts.headers, name.as_str(), &mut value);
        lines.insert(name.as_str().to_owned(), value);
    }
    for (name, value) in lines {
        out.extend_from_slice(name.as_bytes());
        out.push(b':');
        out.extend_from_slice(&value);
        out.push(b'\n');
    }
}

/// `?acl&versionId=x`: the signed sub-resources, sorted, with decoded values.
fn write_subresources(query: &str, out: &mut Vec<u8>) {
    let mut found: Vec<(&str, Option<Vec<u8>>)> = query
        .split('&')
        .filter_map(|pair| {
            let (name, value) = match pair.split_once('=') {
                Some((name, value)) => (name, Some(uri::decoded_value(value).collect())),
                None => (pair, None),
            };
            SIGNED_SUBRESOURCES.iter().find(|wanted| uri::is(name, wanted)).map(|wanted| (*wanted, value))
        })
        .collect();
    found.sort();
    for (position, (name, value)) in found.iter().enumerate() {
        out.push(if position == 0 { b'?' } else { b'&' });
        out.extend_from_slice(name.as_bytes());
        if let Some(value) = value {
            out.push(b'=');
            out.extend_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Presented, parse};
    use http::Request;

    const NOW_MS: u64 = 1_175_135_000_000;

    fn secret() -> SecretKey {
        SecretKey::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned())
    }

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn verify(parts: &Parts, host_bucket: Option<&str>) -> Result<Verified, AuthError> {
        match parse(parts, NOW_MS, &Settings::default())? {
            Presented::V2(presented) => presented.verify(parts, &secret(), host_bucket),
            other => panic!("{other:?}"),
        }
    }

    /// A URL signed over the string given here, which the test writes out by hand.
    fn signed(uri: &str, string_to_sign: &str) -> String {
        let signature = STANDARD.encode(sign_v2(&secret(), string_to_sign));
        let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let glue = if uri.contains('?') { '&' } else { '?' };
        format!("{uri}{glue}AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Expires=1175139620&Signature={signature}")
    }

    #[test]
    fn documented_presigned_url_verifies_on_a_bucket_host() {
        // S3 developer guide, "Query string request authentication alternative": bucket johnsmith by host.
        let uri = "/photos/puppy.jpg?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE\
                   &Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620";
        let parts = parts("GET", uri, &[("host", "johnsmith.s3.amazonaws.com")]);
        assert_eq!(verify(&parts, Some("johnsmith")).unwrap().access_key(), "AKIAIOSFODNN7EXAMPLE");
        assert_eq!(verify(&parts, None).unwrap_err().s3_code(), "SignatureDoesNotMatch");
    }

    #[test]
    fn subresources_and_moved_headers_are_signed() {
        let string = "PUT\n\ntext/plain\n1175139620\nx-amz-acl:private\n/b/k%20e?partNumber=1&uploadId=a/b";
        let uri = signed(
            "/b/k%20e?uploadId=a%2Fb&partNumber=1&x-amz-acl=private&content-type=text%2Fplain&x-id=1",
            string,
        );
        assert!(verify(&parts("PUT", &uri, &[]), None).is_ok());
        assert!(verify(&parts("PUT", &uri, &[("content-type", "text/plain")]), None).is_ok());
        for header in [("x-amz-acl", "public-read"), ("x-amz-meta-a", "1"), ("content-type", "text/html")] {
            let error = verify(&parts("PUT", &uri, &[header]), None).unwrap_err();
            assert_eq!(error.s3_code(), "SignatureDoesNotMatch", "{header:?}");
        }
        assert!(verify(&parts("GET", &uri, &[]), None).is_err());
        assert!(verify(&parts("PUT", &format!("{uri}&acl"), &[]), None).is_err());
    }

    #[test]
    fn bucket_may_be_signed_with_or_without_its_slash() {
        for (sent, signed_as) in [("/b", "/b/"), ("/b/", "/b"), ("/b", "/b"), ("/b/", "/b/")] {
            let uri = signed(sent, &format!("GET\n\n\n1175139620\n{signed_as}"));
            assert!(verify(&parts("GET", &uri, &[]), None).is_ok(), "{sent} {signed_as}");
        }
        let uri = signed("/b/k", "GET\n\n\n1175139620\n/b/k/");
        assert!(verify(&parts("GET", &uri, &[]), None).is_err());
    }

    #[test]
    fn incomplete_expired_and_uncovered_urls_are_refused() {
        let base = "/b/k?AWSAccessKeyId=A&Signature=c2ln";
        for (uri, code, words) in [
            (base.to_owned(), "AccessDenied", "Query-string authentication requires"),
            (format!("{base}&Expires=x"), "AccessDenied", "seconds since epoch"),
            (format!("{base}&Expires=-1"), "AccessDenied", "seconds since epoch"),
            (format!("{base}&Expires="), "AccessDenied", "seconds since epoch"),
            (format!("{base}&Expires=1175134999"), "AccessDenied", "expired"),
            (format!("{base}&Expires=1175139620&Expires=1175139621"), "AccessDenied", "requires"),
            (format!("{base}&Expires=1175139620&retention"), "AccessDenied", "retention"),
            (format!("{base}&Expires=1175139620"), "SignatureDoesNotMatch", "does not match"),
            (format!("{base}&Expires=1175139620&X-Amz-Signature=00"), "InvalidArgument", "Only one"),
        ] {
            let error = verify(&parts("GET", &uri, &[]), None).unwrap_err();
            assert_eq!(error.s3_code(), code, "{uri}");
            assert!(error.to_string().contains(words), "{uri}: {error}");
        }
    }

    #[test]
    fn switched_off_means_refused() {
        let uri = signed("/b/k", "GET\n\n\n1175139620\n/b/k");
        let settings = Settings { sigv2_presign: false, ..Settings::default() };
        let error = parse(&parts("GET", &uri, &[]), NOW_MS, &settings).unwrap_err();
        assert_eq!(error, AuthError::SigV2Refused);
    }
}
