//! Signature Version 4 in the `Authorization` header.
//!
//! `aws-sigv4` has a whole-request signer, which derives the signing key anew for each request (four HMACs) and
//! copies every header twice. Under a benchmark that is the client's largest cost, so we build the canonical request
//! here, keep the key for its day, and take key derivation and signature from the crate. The tests hold us to the
//! crate's own signer.
//!
//! Invariants:
//! * Every header of the request except `content-length` is signed.
//! * Secrets appear in no `Debug` output.

use std::fmt;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::Error;

/// SHA-256 of nothing, in hexadecimal: the digest of every request without a body.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The digest's place for a body that is not covered by the signature.
pub(crate) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// An access key and its secret.
#[derive(Clone)]
pub struct Credentials {
    access_key: String,
    secret_key: Zeroizing<String>,
    session_token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// Long-lived credentials.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            access_key: access_key.into(),
            secret_key: Zeroizing::new(secret_key.into()),
            session_token: None,
        }
    }

    /// The same with the token of a temporary session.
    pub fn with_session_token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(Zeroizing::new(token.into()));
        self
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Signs requests of one identity for one region.
pub(crate) struct Signer {
    credentials: Credentials,
    region: String,
    current: Mutex<Option<Arc<Moment>>>,
}

/// All that depends only on the second (and, the key, on the day).
struct Moment {
    unix_s: u64,
    /// `20260101T000000Z`.
    amz_date: String,
    date_header: HeaderValue,
    /// `20260101/us-east-1/s3/aws4_request`.
    scope: String,
    key: Zeroizing<Vec<u8>>,
}

impl Signer {
    pub(crate) fn new(credentials: Credentials, region: String) -> Self {
        Self { credentials, region, current: Mutex::new(None) }
    }

    /// Adds date, payload digest, token and signature to `headers`, which must already hold `host`.
    pub(crate) fn sign(
        &self,
        now_ms: u64,
        method: &str,
        path: &str,
        query: &str,
        payload_sha256: &str,
        headers: &mut HeaderMap,
    ) -> Result<(), Error> {
        debug_assert!(headers.contains_key(HOST));
        let moment = self.moment(now_ms / 1000)?;
        headers.insert(AMZ_DATE, moment.date_header.clone());
        headers.insert(CONTENT_SHA256, header_value(payload_sha256)?);
        if let Some(token) = &self.credentials.session_token {
            headers.insert(SECURITY_TOKEN, header_value(token)?);
        }

        let (canonical, signed_at) = canonical_request(method, path, query, payload_sha256, headers)?;
        let signed_headers = &canonical[signed_at..canonical.len() - payload_sha256.len() - 1];
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{}\n{digest}", moment.amz_date, moment.scope);
        let signature = calculate_signature(moment.key.as_slice(), to_sign.as_bytes());
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={signed_headers}, Signature={signature}",
            self.credentials.access_key, moment.scope
        );
        headers.insert(AUTHORIZATION, header_value(&authorization)?);
        Ok(())
    }

    /// Date texts and key for this second, made anew only when it changes.
    fn moment(&self, unix_s: u64) -> Result<Arc<Moment>, Error> {
        let mut current = self.current.lock();
        if let Some(moment) = current.as_ref().filter(|moment| moment.unix_s == unix_s) {
            return Ok(Arc::clone(moment));
        }
        let amz_date = amz_date(unix_s)?;
        let day = &amz_date[..8];
        let key = match current.as_ref().filter(|moment| moment.scope.starts_with(day)) {
            Some(moment) => moment.key.clone(),
            None => {
                let time = UNIX_EPOCH + Duration::from_secs(unix_s);
                let key = generate_signing_key(&self.credentials.secret_key, time, &self.region, "s3");
                Zeroizing::new(key.as_ref().to_vec())
            }
        };
        let moment = Arc::new(Moment {
            unix_s,
            scope: format!("{day}/{}/s3/aws4_request", self.region),
            date_header: header_value(&amz_date)?,
            amz_date,
            key,
        });
        *current = Some(Arc::clone(&moment));
        Ok(moment)
    }
}

/// The canonical request and the offset in it at which the list of signed headers begins.
fn canonical_request(
    method: &str,
    path: &str,
    query: &str,
    payload_sha256: &str,
    headers: &HeaderMap,
) -> Result<(String, usize), Error> {
    let mut names: Vec<&HeaderName> = headers.keys().filter(|name| *name != AUTHORIZATION).collect();
    names.sort_unstable_by_key(|name| name.as_str());
    let mut text = String::with_capacity(512 + path.len() + query.len());
    write!(text, "{method}\n{path}\n{query}\n").expect("a String takes every write");
    for name in &names {
        text.push_str(name.as_str());
        text.push(':');
        for (index, value) in headers.get_all(*name).iter().enumerate() {
            let value = value
                .to_str()
                .map_err(|_| Error::Request(format!("header {name} has a value that is not ASCII")))?;
            if index > 0 {
                text.push(',');
            }
            push_trimmed(&mut text, value);
        }
        text.push('\n');
    }
    text.push('\n');
    let signed_at = text.len();
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push(';');
        }
        text.push_str(name.as_str());
    }
    text.push('\n');
    text.push_str(payload_sha256);
    Ok((text, signed_at))
}

/// Surrounding spaces go and runs of spaces become one.
fn push_trimmed(text: &mut String, value: &str) {
    let mut previous_space = false;
    for character in value.trim().chars() {
        if character != ' ' || !previous_space {
            text.push(character);
        }
        previous_space = character == ' ';
    }
}

fn header_value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::Request("a credential or date does not fit a header".into()))
}

fn amz_date(unix_s: u64) -> Result<String, Error> {
    i64::try_from(unix_s)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map(|time| time.strftime("%Y%m%dT%H%M%SZ").to_string())
        .ok_or_else(|| Error::Request("the clock shows no date that a signature can carry".into()))
}

#[cfg(test)]
mod tests {
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4::SigningParams;

    use super::*;
    use crate::encode;

    const NOW_S: u64 = 1_791_000_000;

    /// What Amazon's own signer puts into `authorization` for the same request.
    fn reference(method: &str, path: &str, query: &str, sha256: &str, headers: &HeaderMap) -> String {
        let identity = aws_credential_types::Credentials::new("AKID", "secret", None, None, "test").into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = SigningParams::builder()
            .identity(&identity)
            .region("eu-west-1")
            .name("s3")
            .time(UNIX_EPOCH + Duration::from_secs(NOW_S))
            .settings(settings)
            .build()
            .unwrap();
        let uri =
            if query.is_empty() { format!("http://h:9{path}") } else { format!("http://h:9{path}?{query}") };
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let body = SignableBody::Precomputed(sha256.to_owned());
        let request = SignableRequest::new(method, uri, pairs, body).unwrap();
        let (instructions, _) = sign(request, &params.into()).unwrap().into_parts();
        instructions.headers().find(|(name, _)| *name == "authorization").unwrap().1.to_owned()
    }

    #[test]
    fn signatures_equal_those_of_the_whole_request_signer() {
        let signer = Signer::new(Credentials::new("AKID", "secret"), "eu-west-1".into());
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: [(&str, &str, &str, Pairs, &str); 5] = [
            ("GET", "b", "plain", &[], ""),
            (
                "PUT",
                "b",
                "a b/é+//../x~",
                &[("content-type", "text/plain"), ("x-amz-meta-a", "  two   words ")],
                "",
            ),
            ("GET", "b", "", &[("list-type", "2")], "q"),
            ("POST", "b", "k", &[("uploads", "")], "q"),
            ("GET", "b", "k", &[("prefix", "a/b c"), ("encoding-type", "url")], "q"),
        ];
        for (method, bucket, key, pairs, kind) in cases {
            let path = encode::path(bucket, key);
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "h:9".parse().unwrap());
            let mut query = String::new();
            if kind == "q" {
                query = encode::query(pairs);
            } else {
                for (name, value) in pairs {
                    headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
                }
            }
            for sha256 in [EMPTY_SHA256, UNSIGNED_PAYLOAD] {
                let expected = reference(method, &path, &query, sha256, &headers);
                let mut signed = headers.clone();
                signer.sign(NOW_S * 1000, method, &path, &query, sha256, &mut signed).unwrap();
                assert_eq!(signed[AUTHORIZATION], expected, "{method} {path}?{query}");
            }
        }
    }

    #[test]
    fn key_changes_with_the_day() {
        let signer = Signer::new(Credentials::new("AKID", "secret"), "r".into());
        let first = signer.moment(NOW_S).unwrap();
        let same_day = signer.moment(NOW_S + 1).unwrap();
        let next_day = signer.moment(NOW_S + 86_400).unwrap();
        assert_eq!(first.key, same_day.key);
        assert_ne!(first.key, next_day.key);
        assert_ne!(first.amz_date, same_day.amz_date);
    }

    #[test]
    fn secret_is_not_shown() {
        let text = format!("{:?}", Credentials::new("AKID", "hidden").with_session_token("hidden"));
        assert!(text.contains("AKID") && !text.contains("hidden"));
    }
}
