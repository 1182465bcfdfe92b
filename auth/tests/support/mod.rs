//! What the tests of this crate share: Amazon's published credentials, request heads, and a signer for chunked
//! bodies that has nothing in common with the decoder under test.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]
#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

use auth::{AuthError, Presented, SecretKey, Settings, SigningKey, Verified, parse};
use hmac::{Hmac, KeyInit, Mac};
use http::Request;
use http::request::Parts;
use sha2::{Digest, Sha256};

/// The credentials of every example in Amazon's S3 guide.
pub const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 2013-05-24T00:00:00Z, when they were made.
pub const NOW_MS: u64 = 1_369_353_600_000;
pub const TIMESTAMP: &str = "20130524T000000Z";
pub const SCOPE: &str = "20130524/us-east-1/s3/aws4_request";
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub fn secret() -> SecretKey {
    SecretKey::new(SECRET.to_owned())
}

pub fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// Both phases, at `now_ms`, with the key of whatever scope is presented.
pub fn authenticate_at(parts: &Parts, now_ms: u64, settings: &Settings) -> Result<Verified, AuthError> {
    match parse(parts, now_ms, settings)? {
        Presented::V4(presented) => {
            let key = SigningKey::derive(&secret(), presented.day(), presented.region(), presented.service())
                .unwrap();
            presented.verify(parts, &key)
        }
        Presented::V2(presented) => presented.verify(parts, &secret(), None),
        Presented::Anonymous(_) => Err(AuthError::AccessDenied),
    }
}

/// Both phases at the examples' time.
pub fn authenticate(parts: &Parts) -> Result<Verified, AuthError> {
    authenticate_at(parts, NOW_MS, &Settings::default())
}

pub fn authorization(signed_headers: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},SignedHeaders={signed_headers},Signature={signature}"
    )
}

pub fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The examples' signing key, by the formula in the guide.
pub fn signing_key() -> Vec<u8> {
    ["20130524", "us-east-1", "s3", "aws4_request"]
        .iter()
        .fold(format!("AWS4{SECRET}").into_bytes(), |key, part| hmac(&key, part.as_bytes()))
}

/// Signs a canonical request written out by the test.
pub fn sign_canonical(canonical_request: &str) -> String {
    let string_to_sign =
        format!("AWS4-HMAC-SHA256\n{TIMESTAMP}\n{SCOPE}\n{}", sha256_hex(canonical_request.as_bytes()));
    hex::encode(hmac(&signing_key(), string_to_sign.as_bytes()))
}

/// A head signed in the header, over `canonical_path` and `canonical_query` as the test has them.
pub fn signed_head(method: &str, uri: &str, canonical_path: &str, canonical_query: &str) -> Parts {
    let canonical = format!(
        "{method}\n{canonical_path}\n{canonical_query}\nhost:h\nx-amz-content-sha256:UNSIGNED-PAYLOAD\n\
         x-amz-date:{TIMESTAMP}\n\nhost;x-amz-content-sha256;x-amz-date\nUNSIGNED-PAYLOAD"
    );
    let authorization = authorization("host;x-amz-content-sha256;x-amz-date", &sign_canonical(&canonical));
    let headers = [
        ("host", "h"),
        ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ("x-amz-date", TIMESTAMP),
        ("authorization", authorization.as_str()),
    ];
    parts(method, uri, &headers)
}

/// A head whose body is chunked in `mode`, and the signature its chunks start from.
pub fn chunked_head(mode: &str, decoded_len: u64, trailers: &[&str]) -> (Parts, String) {
    let len = decoded_len.to_string();
    let declared = trailers.join(",");
    let mut headers = vec![
        ("host", "h"),
        ("x-amz-content-sha256", mode),
        ("x-amz-date", TIMESTAMP),
        ("x-amz-decoded-content-length", len.as_str()),
    ];
    if !trailers.is_empty() {
        headers.push(("x-amz-trailer", declared.as_str()));
    }
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names = names.join(";");
    let signature = sign_canonical(&format!("PUT\n/b/k\n\n{lines}\n{names}\n{mode}"));
    let authorization = authorization(&names, &signature);
    headers.push(("authorization", authorization.as_str()));
    (parts("PUT", "/b/k", &headers), signature)
}

/// Frames chunks as `aws-chunked`, signed from `seed` on, or unsigned.
pub struct Framer {
    previous: Option<String>,
    pub wire: Vec<u8>,
}

impl Framer {
    pub fn signed(seed: &str) -> Self {
        Framer { previous: Some(seed.to_owned()), wire: Vec::new() }
    }

    pub fn unsigned() -> Self {
        Framer { previous: None, wire: Vec::new() }
    }

    fn next_signature(&mut self, algorithm: &str, tail: &str) -> Option<String> {
        let previous = self.previous.as_ref()?;
        let string = format!("{algorithm}\n{TIMESTAMP}\n{SCOPE}\n{previous}\n{tail}");
        self.previous = Some(hex::encode(hmac(&signing_key(), string.as_bytes())));
        self.previous.clone()
    }

    /// One chunk; an empty one is the final chunk, whose line end the trailer's end supplies.
    pub fn chunk(&mut self, data: &[u8]) {
        let tail = format!("{EMPTY_SHA256}\n{}", sha256_hex(data));
        self.wire.extend_from_slice(format!("{:x}", data.len()).as_bytes());
        if let Some(signature) = self.next_signature("AWS4-HMAC-SHA256-PAYLOAD", &tail) {
            self.wire.extend_from_slice(format!(";chunk-signature={signature}").as_bytes());
        }
        self.wire.extend_from_slice(b"\r\n");
        self.wire.extend_from_slice(data);
        if !data.is_empty() {
            self.wire.extend_from_slice(b"\r\n");
        }
    }

    /// All trailers and, where chunks are signed, their signature.
    pub fn trailers(&mut self, trailers: &[(&str, &str)]) {
        let mut canonical = String::new();
        for (name, value) in trailers {
            self.wire.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
            canonical += &format!("{name}:{value}\n");
        }
        if let Some(signature) =
            self.next_signature("AWS4-HMAC-SHA256-TRAILER", &sha256_hex(canonical.as_bytes()))
        {
            self.wire.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
    }

    pub fn end(mut self) -> Vec<u8> {
        self.wire.extend_from_slice(b"\r\n");
        self.wire
    }
}
