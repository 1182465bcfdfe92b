//! S3's object checksums and the ETag, as stored and as they travel.
//!
//! Invariant: the length of a checksum's value is the one its algorithm gives.
//!
//! Not here: chunk CRCs of blocks (see `chunk`), computing digests of a body (the gateway does).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The checksum algorithms of S3's `x-amz-checksum-*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    /// CRC-32 (ISO-HDLC), 4 bytes.
    Crc32,
    /// CRC-32C (iSCSI), 4 bytes.
    Crc32c,
    /// CRC-64/NVME, 8 bytes. Always computed and stored.
    Crc64Nvme,
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl ChecksumAlgorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// The name in `x-amz-checksum-algorithm` and XML: `CRC32`, `CRC32C`, `CRC64NVME`, `SHA1`, `SHA256`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// The header that carries a value: `x-amz-checksum-crc32` ...
    pub const fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Bytes of a value.
    pub const fn value_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// From its S3 name, in any case (SDKs differ).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }
}

/// How a multipart object's checksum came to be (`x-amz-checksum-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChecksumKind {
    /// Over all bytes of the object.
    FullObject,
    /// Over the parts' checksums, with `-N` behind it.
    Composite,
}

impl ChecksumKind {
    /// `FULL_OBJECT` or `COMPOSITE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FullObject => "FULL_OBJECT",
            Self::Composite => "COMPOSITE",
        }
    }
}

/// One checksum of a key or part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// Which algorithm.
    pub algorithm: ChecksumAlgorithm,
    /// Over what.
    pub kind: ChecksumKind,
    /// The value, big-endian as S3 prints it in base64.
    pub value: ByteBuf,
}

impl Checksum {
    /// A checksum over all bytes.
    pub fn full(algorithm: ChecksumAlgorithm, value: impl Into<Vec<u8>>) -> Self {
        Self { algorithm, kind: ChecksumKind::FullObject, value: ByteBuf::from(value) }
    }
}

/// An object's ETag: an MD5, and for a multipart object the number of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Etag {
    /// MD5 of the bytes, or of the parts' MD5s.
    #[serde(with = "serde_bytes")]
    pub md5: [u8; 16],
    /// Number of parts; 0 for an object put whole.
    pub parts: u32,
}

impl Etag {
    /// The ETag of an object put whole.
    pub const fn whole(md5: [u8; 16]) -> Self {
        Self { md5, parts: 0 }
    }

    /// Parses what a client sent, with or without quotes: 32 hex digits and perhaps `-N`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(text);
        let (digits, parts) = match text.split_once('-') {
            Some((digits, count)) => (digits, count.parse().ok().filter(|count| *count > 0)?),
            None => (text, 0),
        };
        let mut md5 = [0; 16];
        hex::decode_to_slice(digits, &mut md5).ok()?;
        Some(Self { md5, parts })
    }
}

impl fmt::Display for Etag {
    /// Without quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.md5, &mut digits).expect("32 digits hold 16 bytes");
        f.write_str(std::str::from_utf8(&digits).expect("hex digits are ASCII"))?;
        if self.parts > 0 { write!(f, "-{}", self.parts) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etag_round_trips_quoted_and_bare() {
        let etag = Etag { md5: [0xab; 16], parts: 12 };
        assert_eq!(Etag::parse(&etag.to_string()), Some(etag));
        assert_eq!(Etag::parse(&format!("\"{etag}\"")), Some(etag));
        assert_eq!(Etag::parse("*"), None);
        assert_eq!(Etag::parse("abc"), None);
        assert_eq!(Etag::parse(&format!("{}-0", "a".repeat(32))), None);
    }
}
