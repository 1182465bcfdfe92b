//! What protects a request's body: the value of `x-amz-content-sha256`.
//!
//! Not here: taking the framing off (see `chunk`), hashing the body (the gateway does, as it streams).

use std::fmt;
use subtle::ConstantTimeEq;

use crate::error::AuthError;

const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const STREAMING_SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const STREAMING_SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";
const STREAMING_UNSIGNED_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// How the body travels and what vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A plain body whose SHA-256 is signed with the head.
    Signed(PayloadHash),
    /// A plain body that nothing signs.
    Unsigned,
    /// `aws-chunked`, each chunk signed.
    StreamingSigned,
    /// `aws-chunked`, each chunk and the trailer signed.
    StreamingSignedTrailer,
    /// `aws-chunked` with a trailer, nothing signed.
    StreamingUnsignedTrailer,
}

impl Payload {
    /// Reads the header's value. A streaming mode we cannot decode is refused by name: its framing must never be
    /// stored as data.
    pub(crate) fn parse(value: &str) -> Result<Payload, AuthError> {
        match value {
            UNSIGNED => Ok(Payload::Unsigned),
            STREAMING_SIGNED => Ok(Payload::StreamingSigned),
            STREAMING_SIGNED_TRAILER => Ok(Payload::StreamingSignedTrailer),
            STREAMING_UNSIGNED_TRAILER => Ok(Payload::StreamingUnsignedTrailer),
            other => match PayloadHash::parse(other) {
                Some(hash) => Ok(Payload::Signed(hash)),
                None if other.starts_with("STREAMING-") => Err(AuthError::NotImplemented {
                    what: format!("payload mode {}", crate::error::clip(other)),
                }),
                None => Err(AuthError::InvalidContentSha256 { value: crate::error::clip(other) }),
            },
        }
    }

    /// The value as it stands in the canonical request.
    pub(crate) fn text(&self) -> &str {
        match self {
            Payload::Signed(hash) => hash.text(),
            Payload::Unsigned => UNSIGNED,
            Payload::StreamingSigned => STREAMING_SIGNED,
            Payload::StreamingSignedTrailer => STREAMING_SIGNED_TRAILER,
            Payload::StreamingUnsignedTrailer => STREAMING_UNSIGNED_TRAILER,
        }
    }

    /// Whether the body is framed as `aws-chunked`.
    pub fn is_chunked(&self) -> bool {
        match self {
            Payload::Signed(_) | Payload::Unsigned => false,
            Payload::StreamingSigned
            | Payload::StreamingSignedTrailer
            | Payload::StreamingUnsignedTrailer => true,
        }
    }

    /// Whether every chunk carries a signature, for which the request must be signed with SigV4 itself.
    pub(crate) fn has_signed_chunks(&self) -> bool {
        matches!(self, Payload::StreamingSigned | Payload::StreamingSignedTrailer)
    }
}

/// The SHA-256 a client declared for its body, in digits and in bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct PayloadHash {
    digits: [u8; 64],
    digest: [u8; 32],
}

impl PayloadHash {
    fn parse(value: &str) -> Option<PayloadHash> {
        let digits: [u8; 64] = value.as_bytes().try_into().ok()?;
        let mut digest = [0; 32];
        hex::decode_to_slice(digits, &mut digest).ok()?;
        Some(PayloadHash { digits, digest })
    }

    /// The digits as the client sent them.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.digits).expect("hex digits are ASCII")
    }

    /// Whether `computed` is the declared digest.
    pub fn matches(&self, computed: &[u8; 32]) -> bool {
        bool::from(self.digest.ct_eq(computed))
    }

    /// Refuses a body whose digest is another.
    pub fn check(&self, computed: &[u8; 32]) -> Result<(), AuthError> {
        if self.matches(computed) {
            return Ok(());
        }
        Err(AuthError::ContentSha256Mismatch {
            declared: self.text().to_owned(),
            computed: hex::encode(computed),
        })
    }
}

impl fmt::Debug for PayloadHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_reads_back_as_written() {
        let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in [hash, UNSIGNED, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER, STREAMING_UNSIGNED_TRAILER] {
            assert_eq!(Payload::parse(text).unwrap().text(), text);
        }
    }

    #[test]
    fn unknown_modes_are_named_and_garbage_is_refused() {
        let error = Payload::parse("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD").unwrap_err();
        assert_eq!(error.s3_code(), "NotImplemented");
        assert!(error.to_string().contains("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"));
        for text in ["", "deadbeef", "unsigned-payload", &"g".repeat(64)] {
            assert_eq!(Payload::parse(text).unwrap_err().s3_code(), "InvalidArgument", "{text}");
        }
    }

    #[test]
    fn a_body_of_another_digest_is_refused() {
        let hash = PayloadHash::parse(&"00".repeat(32)).unwrap();
        assert_eq!(hash.check(&[0; 32]), Ok(()));
        assert_eq!(hash.check(&[1; 32]).unwrap_err().s3_code(), "XAmzContentSHA256Mismatch");
    }
}
