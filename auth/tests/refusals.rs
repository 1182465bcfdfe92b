//! What is refused before or by the signature, with the code, status and words that S3 has for it.

#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod support;

use auth::{AuthError, Payload, Presented, Settings, SigningKey, anonymous_chunk_decoder, parse};
use http::HeaderMap;
use proptest::prelude::*;
use support::*;

const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";

/// A well-formed head signed in the header, with a bad signature, and some headers replaced (or, if empty, dropped).
fn head_with(changes: &[(&'static str, &str)]) -> http::request::Parts {
    let authorization = authorization(SIGNED, &"0".repeat(64));
    let mut headers = vec![
        ("host", "h"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-date", TIMESTAMP),
        ("authorization", authorization.as_str()),
    ];
    headers.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    headers.extend(changes.iter().filter(|(_, value)| *value != "-"));
    parts("GET", "/b/k", &headers)
}

fn assert_refused(head: &http::request::Parts, status: u16, code: &str, words: &str) {
    let error = authenticate(head).unwrap_err();
    let context = format!("{:?} {:?}: {error}", head.uri, head.headers);
    assert_eq!((error.status().as_u16(), error.s3_code()), (status, code), "{context}");
    assert!(error.to_string().contains(words), "{context}");
}

#[test]
fn authorization_headers_of_every_bad_kind() {
    let good = authorization(SIGNED, &"0".repeat(64));
    let replaced = |from: &str, to: &str| good.replace(from, to);
    let malformed = "AuthorizationHeaderMalformed";
    for (value, status, code, words) in [
        (good.clone(), 403, "SignatureDoesNotMatch", "does not match"),
        (String::new(), 403, "AccessDenied", "Access Denied"),
        ("Basic YTpi".to_owned(), 400, "InvalidArgument", "Unsupported Authorization Type"),
        ("HAHAHA".to_owned(), 400, "InvalidArgument", "Unsupported"),
        ("AWS HAHAHA".to_owned(), 400, "InvalidArgument", "Unsupported"),
        ("AWS AK:c2ln".to_owned(), 400, "InvalidRequest", "Please use AWS4-HMAC-SHA256"),
        (replaced("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), 501, "NotImplemented", "SigV4A"),
        ("AWS4-HMAC-SHA256".to_owned(), 400, malformed, "three components"),
        (replaced(",Signature=", ",Sig="), 400, malformed, "three components"),
        (replaced("Credential=", "Signature="), 400, malformed, "three components"),
        (format!("{good},Signature=00"), 400, malformed, "three components"),
        (replaced("/s3/", "/ec2/"), 400, malformed, "incorrect service \"ec2\""),
        (replaced("aws4_request", "aws5_request"), 400, malformed, "incorrect terminal"),
        (replaced("/20130524/", "/2013-5-4/"), 400, malformed, "incorrect date format"),
        (replaced("/20130524/", "/20130523/"), 400, malformed, "Invalid credential date"),
        (replaced("/us-east-1/", "/us east/"), 400, malformed, "Credential is mal-formed"),
        (replaced(ACCESS_KEY, ""), 400, malformed, "Credential is mal-formed"),
        (replaced(&format!("{ACCESS_KEY}/"), ""), 400, malformed, "Credential is mal-formed"),
        (replaced("host;", "host;host;"), 400, malformed, "signed headers"),
        (replaced("host;", "host;Host;"), 400, malformed, "signed headers"),
        (replaced("host;", "ho st;"), 400, malformed, "signed headers"),
        (replaced("host;", ""), 403, "AccessDenied", "not signed"),
        (replaced("=0000", "=000"), 403, "SignatureDoesNotMatch", "does not match"),
        (replaced("=0000", "=xyz"), 403, "SignatureDoesNotMatch", "does not match"),
    ] {
        assert_refused(&head_with(&[("authorization", &value)]), status, code, words);
    }
}

#[test]
fn dates_and_payload_modes_of_every_bad_kind() {
    for (changes, status, code, words) in [
        (vec![("x-amz-date", "-")], 403, "AccessDenied", "valid Date or x-amz-date"),
        (vec![("x-amz-date", "")], 403, "AccessDenied", "valid Date or x-amz-date"),
        (vec![("x-amz-date", "Bad Date")], 403, "AccessDenied", "valid Date or x-amz-date"),
        (vec![("x-amz-date", "Tue, 07 Jul 1950 21:53:04 GMT")], 403, "AccessDenied", "valid Date"),
        (vec![("x-amz-date", "20130523T234459Z")], 403, "RequestTimeTooSkewed", "too large"),
        (vec![("x-amz-date", "20130524T001501Z")], 403, "RequestTimeTooSkewed", "too large"),
        (vec![("x-amz-date", "99990707T215304Z")], 403, "RequestTimeTooSkewed", "too large"),
        (vec![("x-amz-date", "20130524T001500Z")], 403, "SignatureDoesNotMatch", ""),
        (vec![("x-amz-content-sha256", "-")], 400, "InvalidRequest", "x-amz-content-sha256"),
        (vec![("x-amz-content-sha256", "")], 400, "InvalidArgument", "valid sha256"),
        (vec![("x-amz-content-sha256", "abc")], 400, "InvalidArgument", "valid sha256"),
        (
            vec![("x-amz-content-sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD")],
            501,
            "NotImplemented",
            "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
        ),
        (vec![("x-amz-acl", "public-read")], 403, "AccessDenied", "not signed"),
        (vec![("x-amz-security-token", "t")], 501, "NotImplemented", "session token"),
        (vec![("x-amz-s3session-token", "t")], 501, "NotImplemented", "session token"),
        // Added by proxies, or not S3's: no signature needed.
        (vec![("x-amz-cf-id", "1"), ("x-amzn-trace-id", "1")], 403, "SignatureDoesNotMatch", ""),
        (vec![("content-type", "a/b"), ("content-md5", "x")], 403, "SignatureDoesNotMatch", ""),
    ] {
        assert_refused(&head_with(&changes), status, code, words);
    }
}

#[test]
fn repeated_headers_leave_open_which_counts() {
    for name in ["authorization", "host", "x-amz-date", "x-amz-content-sha256"] {
        let mut head = head_with(&[]);
        head.headers.append(name, head.headers[name].clone());
        assert_refused(&head, 400, "InvalidArgument", name);
    }
}

#[test]
fn only_a_date_header_is_enough() {
    // botocore does so where the caller sets Date: it signs the ISO form.
    let canonical = "GET\n/b/k\n\ndate:Fri, 24 May 2013 00:00:00 GMT\nhost:h\n\ndate;host\nUNSIGNED-PAYLOAD";
    let authorization = authorization("date;host", &sign_canonical(canonical));
    let head = parts(
        "GET",
        "/b/k",
        &[
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("host", "h"),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("authorization", &authorization),
        ],
    );
    assert!(authenticate(&head).is_ok());
}

#[test]
fn error_bodies_say_what_the_client_must_know() {
    let error = authenticate(&head_with(&[("x-amz-date", "20130524T010000Z")])).unwrap_err();
    assert_eq!(
        error.details(),
        [
            ("RequestTime", "20130524T010000Z".to_owned()),
            ("ServerTime", "2013-05-24T00:00:00Z".to_owned()),
            ("MaxAllowedSkewMilliseconds", "900000".to_owned()),
            ("DifferenceSeconds", "3600".to_owned()),
        ]
    );
    let error = authenticate(&head_with(&[("x-amz-acl", "private"), ("x-amz-tagging", "a=b")])).unwrap_err();
    assert_eq!(error.details(), [("HeadersNotSigned", "x-amz-acl, x-amz-tagging".to_owned())]);

    let error = authenticate(&head_with(&[("x-forwarded-host", "s3.example.com")])).unwrap_err();
    assert!(error.to_string().contains("'h' arrived, 's3.example.com' was asked for"), "{error}");
    let details = error.details();
    let names: Vec<&str> = details.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "AWSAccessKeyId",
            "StringToSign",
            "SignatureProvided",
            "StringToSignBytes",
            "CanonicalRequest",
            "CanonicalRequestBytes"
        ]
    );
    assert!(
        details[1].1.starts_with("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n")
    );
    assert!(details[3].1.starts_with("41 57 53 34"));
    assert!(details[4].1.starts_with("GET\n/b/k\n\nhost:h\n"));
}

#[test]
fn strict_region_names_the_right_one() {
    let settings = Settings { region: "eu-west-1".to_owned(), strict_region: true, ..Settings::default() };
    let error = authenticate_at(&head_with(&[]), NOW_MS, &settings).unwrap_err();
    assert_eq!(error.s3_code(), "AuthorizationHeaderMalformed");
    assert!(error.to_string().contains("strict_region"));
    assert_eq!(error.details(), [("Region", "eu-west-1".to_owned())]);
}

/// A presigned URL with parameters replaced, or dropped if `-`; signed rightly over the default parameters only.
fn presigned(changes: &[(&str, &str)], more: &str, headers: &[(&str, &str)]) -> http::request::Parts {
    let mut parameters = vec![
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
        ("X-Amz-Credential", format!("{ACCESS_KEY}%2F{}", SCOPE.replace('/', "%2F"))),
        ("X-Amz-Date", TIMESTAMP.to_owned()),
        ("X-Amz-Expires", "60".to_owned()),
        ("X-Amz-SignedHeaders", "host".to_owned()),
    ];
    for (name, value) in changes {
        parameters
            .iter_mut()
            .filter(|(other, _)| other == name)
            .for_each(|(_, old)| *old = (*value).to_owned());
    }
    parameters.retain(|(_, value)| value != "-");
    let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let query = query.join("&");
    let signature = sign_canonical(&format!("GET\n/b/k\n{query}\nhost:h\n\nhost\nUNSIGNED-PAYLOAD"));
    let mut all = vec![("host", "h")];
    all.extend_from_slice(headers);
    parts("GET", &format!("/b/k?{query}&X-Amz-Signature={signature}{more}"), &all)
}

#[test]
fn presigned_urls_of_every_bad_kind() {
    assert!(authenticate(&presigned(&[], "", &[])).is_ok());
    assert!(authenticate(&presigned(&[("X-Amz-Expires", "604800")], "", &[])).is_ok());
    let malformed = "AuthorizationQueryParametersError";
    for (name, value, status, code, words) in [
        ("X-Amz-Expires", "0", 403, "AccessDenied", "Request has expired"),
        ("X-Amz-Expires", "-7", 403, malformed, "non-negative"),
        ("X-Amz-Expires", "604801", 403, malformed, "less than a week"),
        ("X-Amz-Expires", "99999999999999999999999", 403, malformed, "less than a week"),
        ("X-Amz-Expires", "abc", 400, malformed, "should be a number"),
        ("X-Amz-Expires", "", 400, malformed, "should be a number"),
        ("X-Amz-Expires", "%2B5", 400, malformed, "should be a number"),
        ("X-Amz-Expires", "-", 400, malformed, "requires the X-Amz-Algorithm"),
        ("X-Amz-Algorithm", "-", 400, malformed, "requires the X-Amz-Algorithm"),
        ("X-Amz-Algorithm", "AWS3", 400, malformed, "only supports"),
        ("X-Amz-Algorithm", "AWS4-ECDSA-P256-SHA256", 501, "NotImplemented", "SigV4A"),
        ("X-Amz-Credential", "a%2Fb", 400, malformed, "mal-formed"),
        ("X-Amz-Date", "2013-05-24", 400, malformed, "ISO8601 Long Format"),
        ("X-Amz-Date", "20130523T235959Z", 400, malformed, "Invalid credential date"),
        ("X-Amz-SignedHeaders", "", 403, "AccessDenied", "not signed"),
        ("X-Amz-SignedHeaders", "host%3Bhost", 400, malformed, "signed headers"),
        ("X-Amz-SignedHeaders", "host%0Ax", 400, malformed, "signed headers"),
    ] {
        assert_refused(&presigned(&[(name, value)], "", &[]), status, code, words);
    }
    for (more, status, code, words) in [
        ("&acl", 403, "SignatureDoesNotMatch", ""),
        ("&X-Amz-Expires=60", 400, malformed, "only once"),
        ("&X-Amz-Signature=00", 400, malformed, "only once"),
        ("&X-Amz-Security-Token=t", 501, "NotImplemented", "session token"),
        ("&Signature=c2ln", 400, "InvalidArgument", "Only one auth mechanism"),
    ] {
        assert_refused(&presigned(&[], more, &[]), status, code, words);
    }
    for (name, value) in [
        ("x-amz-acl", "public-read"),
        ("x-amz-copy-source", "b/other"),
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
    ] {
        assert_refused(&presigned(&[], "", &[(name, value)]), 403, "AccessDenied", "not signed");
    }
    // Repeats what was signed without it.
    assert!(authenticate(&presigned(&[], "", &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")])).is_ok());
    assert_refused(&presigned(&[], "", &[("authorization", "")]), 400, "InvalidArgument", "Only one");
    let misnamed = parts("GET", "/b/k?x-amz-signature=00&x-amz-credential=a", &[("host", "h")]);
    assert_refused(&misnamed, 400, malformed, "requires");
}

#[test]
fn presigned_urls_live_from_their_date_to_their_expiry() {
    let head = presigned(&[], "", &[]);
    let at = |now_ms| authenticate_at(&head, now_ms, &Settings::default());
    assert!(at(NOW_MS - 900_000).is_ok());
    assert_eq!(at(NOW_MS - 900_001).unwrap_err().to_string(), "Request is not valid yet");
    assert!(at(NOW_MS + 59_999).is_ok());
    let error = at(NOW_MS + 60_000).unwrap_err();
    assert_eq!(
        error.details(),
        [
            ("X-Amz-Expires", "60".to_owned()),
            ("Expires", "2013-05-24T00:01:00Z".to_owned()),
            ("ServerTime", "2013-05-24T00:01:00Z".to_owned()),
        ]
    );
}

#[test]
fn anonymous_requests_are_told_apart_from_unbuilt_ways() {
    let anonymous = |method: &str, uri: &str, headers: &[(&str, &str)]| {
        parse(&parts(method, uri, headers), NOW_MS, &Settings::default())
    };
    assert!(matches!(anonymous("GET", "/b/k?prefix=a", &[]), Ok(Presented::Anonymous(Payload::Unsigned))));
    assert!(matches!(
        anonymous("PUT", "/b/k", &[("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")]),
        Ok(Presented::Anonymous(Payload::StreamingUnsignedTrailer))
    ));
    let error = anonymous("PUT", "/b/k", &[("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")])
        .unwrap_err();
    assert_eq!(error, AuthError::StreamingUnsignedRequest);
    let error = anonymous("POST", "/b", &[("content-type", "Multipart/Form-Data; boundary=x")]).unwrap_err();
    assert_eq!(error.s3_code(), "NotImplemented");
    assert!(error.to_string().contains("POST policy"));
    let error = anonymous("GET", "/b", &[("x-amz-security-token", "t")]).unwrap_err();
    assert_eq!(error.s3_code(), "NotImplemented");
    assert!(anonymous("GET", "/b", &[("x-amz-security-token", "")]).is_ok());
    assert!(anonymous_chunk_decoder(&Payload::StreamingSigned, &HeaderMap::new()).is_err());
}

#[test]
fn a_decoy_key_verifies_nothing() {
    let head = signed_head("GET", "/b/k", "/b/k", "");
    let Presented::V4(presented) = parse(&head, NOW_MS, &Settings::default()).unwrap() else {
        panic!("a header signature")
    };
    assert_eq!(presented.verify(&head, &SigningKey::decoy()).unwrap_err().s3_code(), "SignatureDoesNotMatch");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever arrives is answered, and only a right signature is accepted.
    #[test]
    fn arbitrary_heads_never_panic_and_never_pass(
        target in "/[ -~àÿ☃]{0,40}(\\?[ -~é]{0,60})?",
        scheme in prop::sample::select(vec!["AWS4-HMAC-SHA256 ", "AWS ", ""]),
        rest in prop_oneof![
            "[ -~]{0,80}".boxed(),
            "Credential=[A-Z/0-9]{0,20}/20130524/[a-z]{0,4}/s3/aws4_request, SignedHeaders=[a-z;-]{0,20},Signature=[0-9a-f]{0,70}".boxed(),
        ],
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 4),
        query_credentials in any::<bool>(),
    ) {
        let glue = if target.contains('?') { '&' } else { '?' };
        let target = match query_credentials {
            false => target,
            true => format!("{target}{glue}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20130524%2F%2Fs3%2Faws4_request&X-Amz-Date={TIMESTAMP}&X-Amz-Expires=9&X-Amz-SignedHeaders=host&X-Amz-Signature=0"),
        };
        let Ok(uri) = target.parse::<http::Uri>() else { return Ok(()) };
        let mut head = parts("PUT", "/", &[("host", "h")]);
        head.uri = uri;
        if !query_credentials {
            head.headers.insert("authorization", format!("{scheme}{rest}").parse().unwrap());
        }
        let names = ["x-amz-date", "x-amz-content-sha256", "x-amz-meta-a", "content-type"];
        for (name, value) in names.into_iter().zip(values) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                head.headers.insert(name, value);
            }
        }
        if let Err(error) = authenticate(&head) {
            prop_assert!(error.status().is_client_error() || error.s3_code() == "NotImplemented");
            let _ = (error.to_string(), error.details());
        } else {
            prop_assert!(false, "accepted: {:?}", head);
        }
    }
}
