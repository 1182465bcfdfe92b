//! Requests signed by Amazon's own signer verify here, and stop doing so when anything signed is changed.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use auth::{Scheme, Settings};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::Request;
use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use std::time::{Duration, UNIX_EPOCH};
use support::*;

const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &STRICT.remove(b'/');

/// A request before it is signed.
#[derive(Debug, Clone)]
struct Draft {
    method: &'static str,
    key: String,
    query: Vec<(String, String)>,
    metadata: Vec<(String, String)>,
    region: &'static str,
    body: DraftBody,
}

#[derive(Debug, Clone)]
enum DraftBody {
    Bytes(Vec<u8>),
    Unsigned,
    UnsignedTrailer,
}

impl Draft {
    fn uri(&self) -> String {
        let query: Vec<String> = self
            .query
            .iter()
            .map(|(name, value)| {
                format!("{}={}", utf8_percent_encode(name, STRICT), utf8_percent_encode(value, STRICT))
            })
            .collect();
        let glue = if query.is_empty() { "" } else { "?" };
        format!("http://localhost:9000/b/{}{glue}{}", utf8_percent_encode(&self.key, PATH), query.join("&"))
    }

    fn sign(&self, location: SignatureLocation) -> Parts {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.uri())
            .header("host", "localhost:9000")
            .body(())
            .unwrap();
        for (name, value) in &self.metadata {
            let name = http::HeaderName::try_from(format!("x-amz-meta-{name}")).unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.signature_location = location;
        let body = match (&self.body, location) {
            (_, SignatureLocation::QueryParams) => {
                settings.expires_in = Some(Duration::from_secs(3600));
                SignableBody::UnsignedPayload
            }
            (DraftBody::Bytes(bytes), _) => SignableBody::Bytes(bytes),
            (DraftBody::Unsigned, _) => SignableBody::UnsignedPayload,
            (DraftBody::UnsignedTrailer, _) => SignableBody::StreamingUnsignedPayloadTrailer,
        };
        let identity = Credentials::new(ACCESS_KEY, SECRET, None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name("s3")
            .time(UNIX_EPOCH + Duration::from_millis(NOW_MS))
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let uri = request.uri().to_string();
        let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let signable = SignableRequest::new(self.method, &uri, headers, body).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request.into_parts().0
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    let method = prop::sample::select(vec!["GET", "PUT", "HEAD", "DELETE", "POST"]);
    let region = prop::sample::select(vec!["us-east-1", "eu-central-1", "auto", "x"]);
    let text = "[ -~àЖ☃]{0,12}";
    let key = "[ -~àЖ☃/]{0,20}";
    let metadata = prop::collection::vec(("[a-z][a-z0-9-]{0,6}", "[!-~]([ -~]{0,12}[!-~])?"), 0..4);
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(DraftBody::Bytes),
        Just(DraftBody::Unsigned),
        Just(DraftBody::UnsignedTrailer),
    ];
    (method, key, prop::collection::vec(("[a-zA-Z][a-zA-Z-]{0,8}", text), 0..5), metadata, region, body)
        .prop_map(|(method, key, query, metadata, region, body)| Draft {
            method,
            key,
            query,
            metadata,
            region,
            body,
        })
        .prop_filter("an accidental credential", |draft| {
            !draft.query.iter().any(|(name, _)| name.eq_ignore_ascii_case("signature"))
        })
}

/// Keeps path and query, as a server receives them.
fn received(mut parts: Parts) -> Parts {
    parts.uri = parts.uri.path_and_query().unwrap().as_str().parse().unwrap();
    parts
}

proptest! {
    #[test]
    fn headers_signed_by_amazons_signer_verify(draft in draft()) {
        let head = received(draft.sign(SignatureLocation::Headers));
        let verified = authenticate(&head).unwrap();
        prop_assert_eq!(verified.access_key(), ACCESS_KEY);
        prop_assert_eq!(verified.scheme(), Scheme::HeaderV4);
    }

    #[test]
    fn urls_presigned_by_amazons_signer_verify_until_they_expire(draft in draft()) {
        let head = received(draft.sign(SignatureLocation::QueryParams));
        prop_assert_eq!(authenticate(&head).unwrap().scheme(), Scheme::QueryV4);
        let after = authenticate_at(&head, NOW_MS + 3_600_000, &Settings::default()).unwrap_err();
        prop_assert_eq!(after.to_string(), "Request has expired");
    }

    #[test]
    fn a_changed_request_does_not_verify(draft in draft(), change in 0usize..7) {
        for location in [SignatureLocation::Headers, SignatureLocation::QueryParams] {
            let mut head = received(draft.sign(location));
            let target = head.uri.path_and_query().unwrap().as_str().to_owned();
            let (path, query) = target.split_once('?').unwrap_or((&target, ""));
            match change {
                0 => head.method = if head.method == "GET" { "PUT".parse().unwrap() } else { "GET".parse().unwrap() },
                1 => head.uri = format!("{path}x?{query}").parse().unwrap(),
                2 => head.uri = format!("/{path}?{query}").parse().unwrap(),
                3 => head.uri = format!("{path}?{query}&acl").parse().unwrap(),
                4 => { head.headers.insert("host", "localhost:9001".parse().unwrap()); }
                5 => { head.headers.append("x-amz-meta-a", "more".parse().unwrap()); }
                _ => { head.headers.append("x-amz-acl", "public-read".parse().unwrap()); }
            }
            let error = authenticate(&head).unwrap_err();
            prop_assert_eq!(error.status(), http::StatusCode::FORBIDDEN, "{}", error);
        }
    }
}

#[test]
fn paths_and_queries_verify_raw_and_encoded() {
    // What is sent, and the canonical path and query that S3 makes of it.
    for (sent, path, query) in [
        ("/b/a b", "/b/a%20b", ""),
        ("/b/a+b", "/b/a%2Bb", ""),
        ("/b/a%2bb", "/b/a%2Bb", ""),
        ("/b/%61", "/b/a", ""),
        ("/b//../c/./", "/b//../c/./", ""),
        ("/b/%2541", "/b/%2541", ""),
        ("/b/%E2%98%83=(*)!'", "/b/%E2%98%83%3D%28%2A%29%21%27", ""),
        ("/b?prefix=d/e&max-keys=2", "/b", "max-keys=2&prefix=d%2Fe"),
        ("/b?prefix=d%2fe", "/b", "prefix=d%2Fe"),
        ("/b?prefix=a+b%2Bc", "/b", "prefix=a%20b%2Bc"),
        ("/b?delimiter=&prefix", "/b", "delimiter=&prefix="),
        ("/b?tag=~*&tag=!", "/b", "tag=%21&tag=~%2A"),
        ("/b?a=b=c", "/b", "a=b%3Dc"),
    ] {
        let sent = sent.replace(' ', "%20");
        assert!(authenticate(&signed_head("GET", &sent, path, query)).is_ok(), "{sent}");
    }
}

#[test]
fn clients_may_sign_the_bytes_they_send() {
    for (sent, path, query) in
        [("/b/a%2fb+c(d)", "/b/a%2fb+c(d)", ""), ("/b?prefix=d/e%c3%a9", "/b", "prefix=d/e%c3%a9")]
    {
        assert!(authenticate(&signed_head("GET", sent, path, query)).is_ok(), "{sent}");
    }
    // But never another resource.
    for (sent, path) in
        [("/b/a%2541", "/b/aA"), ("/b/a/../c", "/b/c"), ("/b//a", "/b/a"), ("/b/a+b", "/b/a%20b")]
    {
        let error = authenticate(&signed_head("GET", sent, path, "")).unwrap_err();
        assert_eq!(error.s3_code(), "SignatureDoesNotMatch", "{sent}");
    }
    // A plus in a query is a space; a client that signs it as a plus must not be misread.
    for query in ["prefix=a+b", "prefix=a%2Bb"] {
        let error = authenticate(&signed_head("GET", "/b?prefix=a+b", "/b", query)).unwrap_err();
        assert_eq!(error.s3_code(), "SignatureDoesNotMatch", "{query}");
    }
}
