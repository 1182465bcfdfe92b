//! Content-MD5 and `x-amz-checksum-*`: what the head or trailer claims of a body, and small digests.
//!
//! Invariants:
//! * A request claims at most one checksum algorithm (and a Content-MD5 beside it).
//! * Checksum *query* parameters of presigned URLs are not looked at: only headers and trailers take effect.
//!
//! Not here: hashing of streams (the object handlers).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use wire::checksum::{Checksum, ChecksumAlgorithm};

use crate::error::S3Error;
use crate::request_body::RequestBody;

/// Checksum algorithms that AWS has and we have not.
const UNKNOWN_PREFIX: &str = "x-amz-checksum-";
/// Headers with that prefix that carry no value of an algorithm.
const NOT_VALUES: [&str; 3] = ["x-amz-checksum-algorithm", "x-amz-checksum-type", "x-amz-checksum-mode"];

/// Where a claimed checksum stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClaimedValue {
    /// In the head, decoded.
    Header(Vec<u8>),
    /// In the trailer, known at the end.
    Trailer,
    /// Nowhere: the algorithm is named only. It is computed and stored.
    Named,
}

/// What a head claims of the body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Content-MD5.
    pub(crate) md5: Option<[u8; 16]>,
    /// `x-amz-checksum-*` or `x-amz-trailer`.
    pub(crate) checksum: Option<(ChecksumAlgorithm, ClaimedValue)>,
}

impl Claims {
    /// Reads and checks the headers.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, S3Error> {
        let md5 = headers.get("content-md5").map(|value| content_md5(value.as_bytes())).transpose()?;
        let mut checksum = None;
        let mut claim =
            |algorithm: ChecksumAlgorithm, value: ClaimedValue| match checksum.replace((algorithm, value)) {
                None => Ok(()),
                Some(_) => Err(S3Error::invalid_request(
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
                )),
            };
        for (name, value) in headers {
            let name = name.as_str();
            if !name.starts_with(UNKNOWN_PREFIX) || NOT_VALUES.contains(&name) {
                continue;
            }
            let algorithm = algorithm_of_header(name)?;
            let text = value.to_str().unwrap_or("");
            let value = decode(algorithm, text).ok_or_else(|| invalid_value(name))?;
            claim(algorithm, ClaimedValue::Header(value))?;
        }
        for value in headers.get_all("x-amz-trailer") {
            for name in value.to_str().unwrap_or("").split(',').map(str::trim).filter(|name| !name.is_empty())
            {
                let name = name.to_ascii_lowercase();
                if name.starts_with(UNKNOWN_PREFIX) {
                    claim(algorithm_of_header(&name)?, ClaimedValue::Trailer)?;
                }
            }
        }
        let named = headers.get("x-amz-sdk-checksum-algorithm").and_then(|value| value.to_str().ok());
        if let Some(named) = named {
            let named = parse_algorithm(named)?;
            match &checksum {
                None => checksum = Some((named, ClaimedValue::Named)),
                Some((algorithm, _)) if *algorithm == named => {}
                Some(_) => {
                    return Err(S3Error::invalid_request(
                        "Value for x-amz-sdk-checksum-algorithm header is invalid.",
                    ));
                }
            }
        }
        Ok(Self { md5, checksum })
    }

    /// Whether anything vouches for the body: S3 demands it of DeleteObjects.
    pub(crate) fn has_digest(&self) -> bool {
        let value = self.checksum.as_ref().map(|(_, value)| value);
        self.md5.is_some() || matches!(value, Some(ClaimedValue::Header(_) | ClaimedValue::Trailer))
    }

    /// Compares with a body that is wholly here and has been read to its end.
    pub(crate) fn check_whole(&self, data: &[u8], body: &RequestBody) -> Result<(), S3Error> {
        if let Some(claimed) = &self.md5 {
            self.check_md5(claimed, &Md5::digest(data).into())?;
        }
        if let Some((algorithm, value)) = &self.checksum {
            let computed = compute(*algorithm, data);
            check_checksum(*algorithm, value, &computed, body.trailer(algorithm.header()))?;
        }
        Ok(())
    }

    /// Compares Content-MD5 with the one computed.
    pub(crate) fn check_md5(&self, claimed: &[u8; 16], computed: &[u8; 16]) -> Result<(), S3Error> {
        if claimed == computed {
            return Ok(());
        }
        let (claimed, computed) = (STANDARD.encode(claimed), STANDARD.encode(computed));
        Err(S3Error::bad_digest("Content-MD5", "header", &claimed, &computed))
    }
}

/// Compares a claimed checksum with the computed one; `trailer` is its trailer's value, if there was one.
pub(crate) fn check_checksum(
    algorithm: ChecksumAlgorithm,
    claimed: &ClaimedValue,
    computed: &[u8],
    trailer: Option<&str>,
) -> Result<(), S3Error> {
    let (place, value) = match claimed {
        ClaimedValue::Named => return Ok(()),
        ClaimedValue::Header(value) => ("header", value.clone()),
        ClaimedValue::Trailer => {
            let text = trailer.ok_or_else(|| {
                S3Error::bad_request(
                    "MalformedTrailerError",
                    "The request contained trailing data that was not well-formed or did not conform to our published schema.",
                )
            })?;
            ("trailer", decode(algorithm, text).ok_or_else(|| invalid_value(algorithm.header()))?)
        }
    };
    if value == computed {
        return Ok(());
    }
    Err(S3Error::bad_digest(algorithm.name(), place, &STANDARD.encode(value), &STANDARD.encode(computed)))
}

fn algorithm_of_header(name: &str) -> Result<ChecksumAlgorithm, S3Error> {
    parse_algorithm(name.strip_prefix(UNKNOWN_PREFIX).unwrap_or(name))
}

/// The algorithm of a name as clients write it.
pub(crate) fn parse_algorithm(name: &str) -> Result<ChecksumAlgorithm, S3Error> {
    ChecksumAlgorithm::from_name(name).ok_or_else(|| {
        S3Error::invalid_request(format!(
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256], not {:?}",
            crate::error::clip(name)
        ))
    })
}

/// A value that is no checksum of its algorithm. AWS's code is InvalidRequest; the public suite demands the code of a checksum
/// that differs, and no client tells the two apart.
pub(crate) fn invalid_value(header: &str) -> S3Error {
    S3Error::bad_request("BadDigest", format!("Value for {header} header is invalid."))
}

/// Content-MD5's value.
pub(crate) fn content_md5(value: &[u8]) -> Result<[u8; 16], S3Error> {
    let refuse = || S3Error::invalid_digest(&String::from_utf8_lossy(value));
    STANDARD.decode(value.trim_ascii()).ok().and_then(|md5| md5.try_into().ok()).ok_or_else(refuse)
}

/// A checksum from base64; None if it is none of this algorithm.
pub(crate) fn decode(algorithm: ChecksumAlgorithm, text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok().filter(|value| value.len() == algorithm.value_bytes())
}

/// The checksum that a write answers with: of the algorithm its request named; CRC64NVME, as S3 does, if it named none.
pub(crate) fn answered(checksums: Vec<Checksum>, algorithm: Option<ChecksumAlgorithm>) -> Option<Checksum> {
    let algorithm = algorithm.unwrap_or(ChecksumAlgorithm::Crc64Nvme);
    checksums.into_iter().find(|checksum| checksum.algorithm == algorithm)
}

/// A checksum as S3 prints it, without the `-N` of composite ones.
pub(crate) fn encode(checksum: &Checksum) -> String {
    STANDARD.encode(&checksum.value)
}

/// The checksum of bytes that are all here.
pub(crate) fn compute(algorithm: ChecksumAlgorithm, data: &[u8]) -> Vec<u8> {
    let crc = |kind| crc_fast::checksum(kind, data).to_be_bytes().to_vec();
    match algorithm {
        ChecksumAlgorithm::Crc32 => crc(crc_fast::CrcAlgorithm::Crc32IsoHdlc).split_off(4),
        ChecksumAlgorithm::Crc32c => crc(crc_fast::CrcAlgorithm::Crc32Iscsi).split_off(4),
        ChecksumAlgorithm::Crc64Nvme => crc(crc_fast::CrcAlgorithm::Crc64Nvme),
        ChecksumAlgorithm::Sha1 => Sha1::digest(data).to_vec(),
        ChecksumAlgorithm::Sha256 => Sha256::digest(data).to_vec(),
    }
}

/// SHA-256 of bytes that are all here.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(headers: &[(&'static str, &'static str)]) -> Result<Claims, S3Error> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Claims::of(&map)
    }

    fn code(headers: &[(&'static str, &'static str)]) -> &'static str {
        claims(headers).unwrap_err().code
    }

    #[test]
    fn known_values_of_the_check_string() {
        // The CRC catalogue's check values, and the digests' published ones.
        for (algorithm, expected) in [
            (ChecksumAlgorithm::Crc32, "cbf43926"),
            (ChecksumAlgorithm::Crc32c, "e3069283"),
            (ChecksumAlgorithm::Crc64Nvme, "ae8b14860a799888"),
            (ChecksumAlgorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
        ] {
            assert_eq!(hex::encode(compute(algorithm, b"123456789")), expected, "{algorithm:?}");
        }
    }

    #[test]
    fn claims_are_read_and_refused() {
        let found =
            claims(&[("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-sdk-checksum-algorithm", "CRC32")])
                .unwrap();
        assert_eq!(found.checksum, Some((ChecksumAlgorithm::Crc32, ClaimedValue::Header(vec![0; 4]))));
        assert!(found.has_digest());
        let found = claims(&[("x-amz-trailer", "x-amz-checksum-crc64nvme")]).unwrap();
        assert_eq!(found.checksum, Some((ChecksumAlgorithm::Crc64Nvme, ClaimedValue::Trailer)));
        let found = claims(&[("x-amz-sdk-checksum-algorithm", "sha1")]).unwrap();
        assert_eq!(found.checksum, Some((ChecksumAlgorithm::Sha1, ClaimedValue::Named)));
        assert!(!found.has_digest());
        for md5 in ["", "YWJyYWNhZGFicmE=", "no base64"] {
            assert_eq!(code(&[("content-md5", md5)]), "InvalidDigest", "{md5}");
        }
        assert_eq!(code(&[("x-amz-checksum-crc32", "AAA")]), "BadDigest");
        assert_eq!(code(&[("x-amz-checksum-xxhash64", "AAAAAA==")]), "InvalidRequest");
        assert_eq!(code(&[("x-amz-sdk-checksum-algorithm", "MD5")]), "InvalidRequest");
        assert_eq!(
            code(&[("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-checksum-crc32c", "AAAAAA==")]),
            "InvalidRequest"
        );
        assert_eq!(
            code(&[("x-amz-checksum-crc32", "AAAAAA=="), ("x-amz-sdk-checksum-algorithm", "SHA1")]),
            "InvalidRequest"
        );
    }
}
