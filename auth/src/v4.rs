//! SigV4, in the `Authorization` header and in the query.
//!
//! Reading takes the scheme's grammar apart, checks dates and scope, and demands that `host` and every `x-amz-*`
//! header be signed: AWS does, or whoever holds a presigned URL could add `x-amz-acl`. `content-type` and
//! `content-md5` may stay unsigned, as AWS lets them and several SDKs leave them.
//!
//! Invariants:
//! * The header value that decides how the body is read (`x-amz-content-sha256`) is always part of what was signed.
//! * Verification reads the same raw head that was parsed, and nothing else.
//!
//! Not here: the canonical request (see `canonical`), chunk signatures (see `chunk`).

use http::request::Parts;
use sha2::{Digest, Sha256};

use crate::canonical::{Form, canonical_request};
use crate::chunk::ChunkSigner;
use crate::date;
use crate::error::{AuthError, Mismatch, clip};
use crate::key::{SigningKey, same_signature};
use crate::parse::{self, X_AMZ_CONTENT_SHA256};
use crate::payload::Payload;
use crate::settings::{PRESIGN_EXPIRES_S_MAX, Settings};
use crate::uri;
use crate::verified::{Scheme, Verified};

/// Bytes of an access key id at most (IAM: 128; the rest is room for chosen names).
pub const ACCESS_KEY_BYTES_MAX: usize = 256;
/// Bytes of a region name at most.
pub const REGION_BYTES_MAX: usize = 64;

/// Names in a list of signed headers at most: as many as the server reads headers.
const SIGNED_HEADERS_MAX: usize = 128;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
const TERMINATOR: &str = "aws4_request";

/// Headers that proxies add on the way and that mean nothing to us, so that they need no signature.
const PROXY_HEADERS: [&str; 1] = ["x-amz-cf-id"];

/// The parameters of a presigned URL, in the order of AWS's documentation.
const QUERY_NAMES: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Content-Sha256",
];

/// A SigV4 signature as presented, checked in all that needs no key.
#[derive(Debug, Clone)]
pub struct PresentedV4 {
    scheme: Scheme,
    access_key: String,
    /// `YYYYMMDD/region/s3/aws4_request`.
    scope: String,
    /// Length of the region within `scope`.
    region_len: usize,
    /// ISO 8601 basic form, as signed.
    timestamp: String,
    signed_headers: String,
    signature: String,
    payload: Payload,
}

/// Where a fault was found decides which error names it.
#[derive(Clone, Copy)]
enum Place {
    Header,
    Query,
}

impl Place {
    fn malformed(self, reason: String, region: Option<String>) -> AuthError {
        match self {
            Place::Header => AuthError::HeaderMalformed { reason, region },
            Place::Query => AuthError::QueryMalformed { reason, region },
        }
    }

    fn credential(self, reason: String, region: Option<String>) -> AuthError {
        match self {
            Place::Header => self.malformed(reason, region),
            Place::Query => {
                self.malformed(format!("Error parsing the X-Amz-Credential parameter; {reason}"), region)
            }
        }
    }
}

impl PresentedV4 {
    /// Reads what follows `AWS4-HMAC-SHA256 ` in the header.
    pub(crate) fn from_header(
        parts: &Parts,
        components: &str,
        now_ms: i64,
        settings: &Settings,
    ) -> Result<Self, AuthError> {
        let [credential, signed_headers, signature] = header_components(components)?;
        let credential = Credential::parse(credential, Place::Header, settings)?;
        let payload = parse::payload_header(&parts.headers)?.ok_or(AuthError::MissingContentSha256)?;
        let (request_time, request_ms) = header_date(parts)?;
        if request_ms.abs_diff(now_ms) > settings.max_skew_ms {
            return Err(AuthError::RequestTimeTooSkewed {
                request_time,
                request_ms,
                now_ms,
                max_skew_ms: settings.max_skew_ms,
            });
        }
        let timestamp = date::iso_basic(request_ms);
        credential.check_day(&timestamp, Place::Header)?;
        check_names(signed_headers, Place::Header)?;
        refuse_unsigned_headers(parts, signed_headers)?;
        Ok(PresentedV4::new(Scheme::HeaderV4, &credential, timestamp, signed_headers, signature, payload))
    }

    /// Reads the parameters of a presigned URL.
    pub(crate) fn from_query(
        parts: &Parts,
        query: &str,
        now_ms: i64,
        settings: &Settings,
    ) -> Result<Self, AuthError> {
        let [algorithm, credential, day_time, expires, signed_headers, signature, content_sha256] =
            query_parameters(query)?;
        let (
            Some(algorithm),
            Some(credential),
            Some(timestamp),
            Some(expires),
            Some(signed_headers),
            Some(signature),
        ) = (algorithm, credential, day_time, expires, signed_headers, signature)
        else {
            let reason = "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, \
                          X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.";
            return Err(Place::Query.malformed(reason.to_owned(), None));
        };
        check_algorithm(&algorithm)?;
        let credential = Credential::parse(&credential, Place::Query, settings)?;
        let lifetime_s = parse_expires(&expires)?;
        let request_ms = date::parse_iso_basic(&timestamp).ok_or_else(|| {
            Place::Query.malformed(
                "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"".to_owned(),
                None,
            )
        })?;
        credential.check_day(&timestamp, Place::Query)?;
        check_lifetime(request_ms, lifetime_s, now_ms, settings)?;
        let payload = query_payload(parts, &signed_headers, content_sha256.as_deref())?;
        check_names(&signed_headers, Place::Query)?;
        refuse_unsigned_headers(parts, &signed_headers)?;
        Ok(PresentedV4::new(Scheme::QueryV4, &credential, timestamp, &signed_headers, &signature, payload))
    }

    fn new(
        scheme: Scheme,
        credential: &Credential<'_>,
        timestamp: String,
        signed_headers: &str,
        signature: &str,
        payload: Payload,
    ) -> Self {
        PresentedV4 {
            scheme,
            access_key: credential.access_key.to_owned(),
            scope: format!("{}/{}/{SERVICE}/{TERMINATOR}", credential.day, credential.region),
            region_len: credential.region.len(),
            timestamp,
            signed_headers: signed_headers.to_owned(),
            signature: signature.to_owned(),
            payload,
        }
    }

    /// Whose signature it claims to be.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The day of the credential scope, `YYYYMMDD`.
    pub fn day(&self) -> &str {
        &self.scope[..8]
    }

    /// The region of the credential scope.
    pub fn region(&self) -> &str {
        &self.scope[9..9 + self.region_len]
    }

    /// The service of the credential scope: always `s3`.
    pub fn service(&self) -> &'static str {
        SERVICE
    }

    /// What protects the body.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Whether the signature stands in the query.
    pub fn is_presigned(&self) -> bool {
        self.scheme == Scheme::QueryV4
    }

    /// Recomputes the signature over `parts`, which must be those given to `parse`, and compares it.
    pub fn verify(&self, parts: &Parts, key: &SigningKey) -> Result<Verified, AuthError> {
        let recoded = canonical_request(parts, &self.signed_headers, self.payload.text(), Form::Recoded);
        if !self.is_signed(&recoded, key) {
            // See `canonical`: clients that sign their own bytes rather than AWS's form of them.
            let is_ambiguous = parts.uri.query().is_some_and(|query| query.contains('+'));
            let raw = canonical_request(parts, &self.signed_headers, self.payload.text(), Form::Raw);
            if is_ambiguous || raw == recoded || !self.is_signed(&raw, key) {
                return Err(self.mismatch(parts, recoded));
            }
        }
        let signer = self
            .payload
            .has_signed_chunks()
            .then(|| ChunkSigner::new(key.clone(), &self.timestamp, &self.scope, &self.signature));
        Ok(Verified::new(&self.access_key, self.scheme, &self.payload, signer))
    }

    fn is_signed(&self, canonical_request: &[u8], key: &SigningKey) -> bool {
        let computed = key.sign(self.string_to_sign(canonical_request).as_bytes());
        same_signature(&computed, self.signature.as_bytes())
    }

    fn string_to_sign(&self, canonical_request: &[u8]) -> String {
        let mut digest = [0; 64];
        hex::encode_to_slice(Sha256::digest(canonical_request), &mut digest)
            .expect("64 digits hold 32 bytes");
        let digest = std::str::from_utf8(&digest).expect("hex digits are ASCII");
        [ALGORITHM, &self.timestamp, &self.scope, digest].join("\n")
    }

    fn mismatch(&self, parts: &Parts, canonical_request: Vec<u8>) -> AuthError {
        let hint = match parse::rewritten_host(&parts.headers) {
            Some((host, forwarded)) => format!(
                "The signed header host differs from the forwarded one: '{host}' arrived, '{forwarded}' was asked for. \
                 Let the proxy pass Host on; 'ferrozone doctor' finds such damage."
            ),
            None => {
                "Check your secret access key and signing method, and that no proxy rewrites Host, path or \
                     signed headers ('ferrozone doctor' finds such damage)."
                    .to_owned()
            }
        };
        AuthError::SignatureDoesNotMatch(Box::new(Mismatch {
            access_key: self.access_key.clone(),
            string_to_sign: self.string_to_sign(&canonical_request),
            canonical_request: Some(String::from_utf8_lossy(&canonical_request).into_owned()),
            signature_provided: clip(&self.signature),
            hint,
        }))
    }
}

/// `<access key>/<day>/<region>/<service>/aws4_request`.
struct Credential<'a> {
    access_key: &'a str,
    day: &'a str,
    region: &'a str,
}

impl<'a> Credential<'a> {
    fn parse(text: &'a str, place: Place, settings: &Settings) -> Result<Self, AuthError> {
        // From the right: an access key chosen by an operator may hold a slash.
        let mut fields = text.rsplitn(5, '/');
        let (Some(terminator), Some(service), Some(region), Some(day), Some(access_key)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(mal_formed_credential(place));
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if access_key.is_empty()
            || access_key.len() > ACCESS_KEY_BYTES_MAX
            || region.len() > REGION_BYTES_MAX
            || !region.bytes().all(is_plain)
        {
            return Err(mal_formed_credential(place));
        }
        if day.len() != 8 || !day.bytes().all(|byte| byte.is_ascii_digit()) {
            let reason = format!(
                "incorrect date format \"{}\". This date in the credential must be in the format \"yyyyMMdd\".",
                clip(day)
            );
            return Err(place.credential(reason, None));
        }
        if terminator != TERMINATOR {
            let reason =
                format!("incorrect terminal \"{}\". This endpoint uses \"{TERMINATOR}\".", clip(terminator));
            return Err(place.credential(reason, None));
        }
        if service != SERVICE {
            let reason =
                format!("incorrect service \"{}\". This endpoint belongs to \"{SERVICE}\".", clip(service));
            return Err(place.credential(reason, None));
        }
        if settings.strict_region && region != settings.region {
            let reason = format!(
                "the region '{region}' is wrong; expecting '{}' (auth.strict_region is on)",
                settings.region
            );
            return Err(place.credential(reason, Some(settings.region.clone())));
        }
        Ok(Credential { access_key, day, region })
    }

    fn check_day(&self, timestamp: &str, place: Place) -> Result<(), AuthError> {
        if timestamp.starts_with(self.day) {
            return Ok(());
        }
        let reason = format!(
            "Invalid credential date \"{}\". This date is not the same as X-Amz-Date: \"{}\".",
            self.day,
            timestamp.get(..8).unwrap_or(timestamp)
        );
        Err(place.credential(reason, None))
    }
}

fn mal_formed_credential(place: Place) -> AuthError {
    let reason =
        "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".";
    place.credential(reason.to_owned(), None)
}

/// Credential, SignedHeaders and Signature: each exactly once, in any order, with or without blanks between.
fn header_components(text: &str) -> Result<[&str; 3], AuthError> {
    let mut found = [None; 3];
    for component in text.split(',') {
        let (name, value) = component.trim().split_once('=').unwrap_or((component, ""));
        let slot = match name {
            "Credential" => 0,
            "SignedHeaders" => 1,
            "Signature" => 2,
            _ => return Err(three_components()),
        };
        if value.is_empty() || found[slot].replace(value.trim()).is_some() {
            return Err(three_components());
        }
    }
    match found {
        [Some(credential), Some(signed_headers), Some(signature)] => {
            Ok([credential, signed_headers, signature])
        }
        _ => Err(three_components()),
    }
}

fn three_components() -> AuthError {
    let reason =
        "the authorization header requires three components: Credential, SignedHeaders, and Signature.";
    Place::Header.malformed(reason.to_owned(), None)
}

/// The date of a request signed in the header, as sent and in milliseconds. `x-amz-date` goes before `date`.
fn header_date(parts: &Parts) -> Result<(String, i64), AuthError> {
    let value = parts
        .headers
        .get("x-amz-date")
        .or_else(|| parts.headers.get("date"))
        .ok_or(AuthError::MissingDate)?;
    let text = value.to_str().map_err(|_| AuthError::MissingDate)?.trim();
    let ms = date::parse_header(text).ok_or(AuthError::MissingDate)?;
    Ok((text.to_owned(), ms))
}

/// Collects the parameters named in [`QUERY_NAMES`], decoded. One given twice leaves open which counts.
fn query_parameters(query: &str) -> Result<[Option<String>; 7], AuthError> {
    let mut found: [Option<String>; 7] = Default::default();
    for (name, value) in uri::pairs(query) {
        let Some(slot) = QUERY_NAMES.iter().position(|wanted| uri::is(name, wanted)) else { continue };
        if found[slot].replace(uri::decode(value)).is_some() {
            return Err(
                Place::Query.malformed(format!("{} may be given only once.", QUERY_NAMES[slot]), None)
            );
        }
    }
    Ok(found)
}

fn check_algorithm(algorithm: &str) -> Result<(), AuthError> {
    match algorithm {
        ALGORITHM => Ok(()),
        "AWS4-ECDSA-P256-SHA256" => {
            Err(AuthError::NotImplemented { what: "AWS4-ECDSA-P256-SHA256 (SigV4A)".to_owned() })
        }
        _ => Err(Place::Query.malformed(format!("X-Amz-Algorithm only supports \"{ALGORITHM}\""), None)),
    }
}

fn parse_expires(text: &str) -> Result<u64, AuthError> {
    const TOO_LONG: &str = "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires \
                            must be less than 604800 seconds";
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Place::Query.malformed("X-Amz-Expires should be a number".to_owned(), None));
    }
    if digits.len() < text.len() {
        return Err(AuthError::ExpiresOutOfRange { reason: "X-Amz-Expires must be non-negative" });
    }
    match digits.parse() {
        Ok(seconds) if seconds <= PRESIGN_EXPIRES_S_MAX => Ok(seconds),
        // Too many digits for a number is too long a time.
        Ok(_) | Err(_) => Err(AuthError::ExpiresOutOfRange { reason: TOO_LONG }),
    }
}

fn check_lifetime(
    request_ms: i64,
    lifetime_s: u64,
    now_ms: i64,
    settings: &Settings,
) -> Result<(), AuthError> {
    let skew_ms = i64::try_from(settings.max_skew_ms).unwrap_or(i64::MAX);
    if request_ms > now_ms.saturating_add(skew_ms) {
        return Err(AuthError::NotYetValid { request_ms, now_ms });
    }
    let lifetime_ms = i64::try_from(lifetime_s.saturating_mul(1000)).unwrap_or(i64::MAX);
    let expires_ms = request_ms.saturating_add(lifetime_ms);
    if now_ms >= expires_ms {
        return Err(AuthError::Expired { lifetime_s: Some(lifetime_s), expires_ms, now_ms });
    }
    Ok(())
}

/// What protects the body of a presigned request: a signed header, else the parameter, else nothing. An unsigned
/// header may only repeat it: it must not change how the body is read.
fn query_payload(parts: &Parts, signed_headers: &str, parameter: Option<&str>) -> Result<Payload, AuthError> {
    let header = parse::payload_header(&parts.headers)?;
    if signed_headers.split(';').any(|name| name == X_AMZ_CONTENT_SHA256) {
        return Ok(header.unwrap_or(Payload::Unsigned));
    }
    let payload = parameter.map(Payload::parse).transpose()?.unwrap_or(Payload::Unsigned);
    match header {
        Some(other) if other != payload => {
            Err(AuthError::HeadersNotSigned { names: vec![X_AMZ_CONTENT_SHA256.to_owned()] })
        }
        _ => Ok(payload),
    }
}

/// Refuses a list of signed headers that no client makes. A repeated name would let a small head make a canonical
/// request of hundreds of megabytes.
fn check_names(signed_headers: &str, place: Place) -> Result<(), AuthError> {
    let malformed = || place.malformed("the list of signed headers is mal-formed.".to_owned(), None);
    let mut seen: Vec<&str> = Vec::with_capacity(16);
    for name in signed_headers.split(';') {
        let is_name = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !is_name
            || seen.len() == SIGNED_HEADERS_MAX
            || seen.iter().any(|other| other.eq_ignore_ascii_case(name))
        {
            return Err(malformed());
        }
        seen.push(name);
    }
    Ok(())
}

/// Refuses a request whose `host` or any `x-amz-*` header is not in the list. The payload mode needs no place in it:
/// what we read as the mode is the last line of the canonical request.
fn refuse_unsigned_headers(parts: &Parts, signed_headers: &str) -> Result<(), AuthError> {
    let is_listed = |name: &str| signed_headers.split(';').any(|listed| listed.eq_ignore_ascii_case(name));
    let is_exempt = |name: &str| PROXY_HEADERS.contains(&name) || name == X_AMZ_CONTENT_SHA256;
    let mut names: Vec<String> = Vec::new();
    if !is_listed("host") {
        names.push("host".to_owned());
    }
    for name in parts.headers.keys().map(|name| name.as_str()) {
        if name.starts_with("x-amz-") && !is_exempt(name) && !is_listed(name) {
            names.push(name.to_owned());
        }
    }
    if names.is_empty() { Ok(()) } else { Err(AuthError::HeadersNotSigned { names }) }
}
