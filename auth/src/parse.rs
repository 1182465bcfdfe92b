//! The first phase: which one way does the request authenticate itself?
//!
//! Exactly one of header SigV4, query SigV4, query SigV2, anonymous. Two at once are refused, as are the ways that
//! S3 has and we have not built (SigV4A, session tokens, POST policies): by name, before any work.
//!
//! Invariants:
//! * A request with anything that looks like a credential never passes as anonymous.
//! * Which way counts depends on the head alone, never on which signature happens to be right.
//!
//! Not here: the grammar of each scheme (see `v4`, `v2`).

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use http::request::Parts;
use http::{HeaderMap, Method};
use wire::clock::UnixMs;

use crate::error::{AuthError, clip};
use crate::payload::Payload;
use crate::settings::Settings;
use crate::uri;
use crate::v2::PresentedV2;
use crate::v4::PresentedV4;

pub(crate) const X_AMZ_CONTENT_SHA256: &str = "x-amz-content-sha256";

/// Headers whose repetition would leave open which value counts.
const SINGLE_HEADERS: [&str; 6] =
    ["authorization", "host", "date", "x-amz-date", X_AMZ_CONTENT_SHA256, "x-amz-decoded-content-length"];

/// Temporary credentials, which need a token service.
const SESSION_HEADERS: [&str; 2] = ["x-amz-security-token", "x-amz-s3session-token"];

/// What a request presents to prove whose it is.
#[derive(Debug, Clone)]
pub enum Presented {
    /// Nothing. The body may still be framed.
    Anonymous(Payload),
    /// A SigV4 signature, in the header or the query.
    V4(PresentedV4),
    /// A SigV2 signature in the query.
    V2(PresentedV2),
}

/// Decides how the request authenticates itself and refuses what needs no key to be refused.
pub fn parse(parts: &Parts, now_ms: UnixMs, settings: &Settings) -> Result<Presented, AuthError> {
    refuse_repeated_headers(&parts.headers)?;
    let query = parts.uri.query().unwrap_or("");
    let authorization = parts.headers.get(AUTHORIZATION);
    let in_query = QueryCredentials::find(query);
    // A time beyond year 292 million does not occur; saturate rather than wrap.
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);

    match (authorization, in_query.v4, in_query.v2) {
        (Some(value), true, _) | (Some(value), _, true) => Err(AuthError::SeveralMechanisms {
            authorization: Some(clip(&String::from_utf8_lossy(value.as_bytes()))),
        }),
        (None, true, true) => Err(AuthError::SeveralMechanisms { authorization: None }),
        (Some(value), false, false) => {
            refuse_session_token(parts, query)?;
            let value = value.to_str().map_err(|_| AuthError::UnsupportedAuthorization {
                value: "not printable ASCII".to_owned(),
            })?;
            authorization_header(parts, value.trim(), now_ms, settings)
        }
        (None, true, false) => {
            refuse_session_token(parts, query)?;
            PresentedV4::from_query(parts, query, now_ms, settings).map(Presented::V4)
        }
        (None, false, true) => {
            refuse_session_token(parts, query)?;
            PresentedV2::from_query(parts, query, now_ms, settings).map(Presented::V2)
        }
        (None, false, false) => anonymous(parts, query),
    }
}

/// Which kinds of credential the query holds. Names are matched whatever their case, so that a mis-cased credential
/// is refused rather than ignored.
struct QueryCredentials {
    v4: bool,
    v2: bool,
}

impl QueryCredentials {
    fn find(query: &str) -> Self {
        let mut found = QueryCredentials { v4: false, v2: false };
        for (name, _) in uri::pairs(query) {
            found.v4 |= ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"]
                .iter()
                .any(|wanted| uri::is_ignoring_case(name, wanted));
            found.v2 |=
                ["AWSAccessKeyId", "Signature"].iter().any(|wanted| uri::is_ignoring_case(name, wanted));
        }
        found
    }
}

fn authorization_header(
    parts: &Parts,
    value: &str,
    now_ms: i64,
    settings: &Settings,
) -> Result<Presented, AuthError> {
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    match scheme {
        // AWS: an empty header is no permission to be anonymous.
        "" => Err(AuthError::AccessDenied),
        "AWS4-HMAC-SHA256" => PresentedV4::from_header(parts, rest, now_ms, settings).map(Presented::V4),
        "AWS4-ECDSA-P256-SHA256" => {
            Err(AuthError::NotImplemented { what: "AWS4-ECDSA-P256-SHA256 (SigV4A)".to_owned() })
        }
        "AWS" if rest.contains(':') => Err(AuthError::SigV2Refused),
        _ => Err(AuthError::UnsupportedAuthorization { value: clip(value) }),
    }
}

fn anonymous(parts: &Parts, query: &str) -> Result<Presented, AuthError> {
    let is_form = || {
        parts.headers.get(CONTENT_TYPE).is_some_and(|value| {
            let form = b"multipart/form-data";
            value.as_bytes().get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form))
        })
    };
    if parts.method == Method::POST && is_form() {
        return Err(AuthError::NotImplemented { what: "browser-based upload by POST policy".to_owned() });
    }
    refuse_session_token(parts, query)?;
    let payload = payload_header(&parts.headers)?.unwrap_or(Payload::Unsigned);
    if payload.has_signed_chunks() {
        return Err(AuthError::StreamingUnsignedRequest);
    }
    Ok(Presented::Anonymous(payload))
}

/// The mode that `x-amz-content-sha256` names, if it is sent.
pub(crate) fn payload_header(headers: &HeaderMap) -> Result<Option<Payload>, AuthError> {
    let Some(value) = headers.get(X_AMZ_CONTENT_SHA256) else { return Ok(None) };
    let value = value.to_str().map_err(|_| AuthError::InvalidContentSha256 { value: String::new() })?;
    Payload::parse(value.trim()).map(Some)
}

fn refuse_repeated_headers(headers: &HeaderMap) -> Result<(), AuthError> {
    for name in SINGLE_HEADERS {
        if headers.get_all(HeaderName::from_static(name)).iter().nth(1).is_some() {
            return Err(AuthError::DuplicateHeader { name });
        }
    }
    Ok(())
}

/// An empty token is what some clients send for "none".
fn refuse_session_token(parts: &Parts, query: &str) -> Result<(), AuthError> {
    let in_header = SESSION_HEADERS.into_iter().any(|name| {
        parts.headers.get_all(HeaderName::from_static(name)).iter().any(|value| !value.is_empty())
    });
    let in_query = || {
        uri::pairs(query).any(|(name, value)| {
            !value.is_empty() && SESSION_HEADERS.iter().any(|token| uri::is_ignoring_case(name, token))
        })
    };
    if in_header || in_query() {
        return Err(AuthError::NotImplemented {
            what: "temporary credentials with a session token".to_owned(),
        });
    }
    Ok(())
}

/// The host that was asked for and the one a proxy says it was asked for, if they differ.
pub(crate) fn rewritten_host(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |value: &http::HeaderValue| clip(&String::from_utf8_lossy(value.as_bytes()));
    let host = text(headers.get(HOST)?);
    let forwarded = text(headers.get("x-forwarded-host")?);
    (host != forwarded).then_some((host, forwarded))
}
