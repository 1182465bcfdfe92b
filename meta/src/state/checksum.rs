//! Checksums of a multipart object from those of its parts.
//!
//! Full object: CRCs combine by the parts' lengths; SHA does not. Composite: the algorithm over the parts' values, one
//! after the other.
//!
//! Not here: checksums of bytes (the gateway computes them).

use crc_fast::CrcAlgorithm;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};

/// What a part adds: its size and its full checksums.
pub(crate) struct PartSums<'a> {
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) checksums: &'a [Checksum],
}

/// ETag of the object: MD5 over the parts' MD5s, and how many.
pub(crate) fn etag_of(parts: &[PartSums<'_>]) -> Etag {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(part.etag.md5);
    }
    Etag { md5: digest.finalize().into(), parts: parts.len() as u32 }
}

/// The object's checksum. None if a part lacks its own, or the algorithm does not combine.
pub(crate) fn combine(
    algorithm: ChecksumAlgorithm,
    kind: ChecksumKind,
    parts: &[PartSums<'_>],
) -> Option<Checksum> {
    let values: Vec<&[u8]> =
        parts.iter().map(|part| value_of(part.checksums, algorithm)).collect::<Option<_>>()?;
    let value = match kind {
        ChecksumKind::Composite => digest_of(algorithm, &values),
        ChecksumKind::FullObject => combine_full(algorithm, parts, &values)?,
    };
    Some(Checksum { algorithm, kind, value: value.into() })
}

/// A part's full checksum of an algorithm.
pub(crate) fn value_of(checksums: &[Checksum], algorithm: ChecksumAlgorithm) -> Option<&[u8]> {
    let found = checksums.iter().find(|checksum| {
        checksum.algorithm == algorithm
            && checksum.kind == ChecksumKind::FullObject
            && checksum.value.len() == algorithm.value_bytes()
    });
    found.map(|checksum| checksum.value.as_slice())
}

fn crc_of(algorithm: ChecksumAlgorithm) -> Option<CrcAlgorithm> {
    match algorithm {
        ChecksumAlgorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
        ChecksumAlgorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
        ChecksumAlgorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
        ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Sha256 => None,
    }
}

fn combine_full(algorithm: ChecksumAlgorithm, parts: &[PartSums<'_>], values: &[&[u8]]) -> Option<Vec<u8>> {
    let crc = crc_of(algorithm)?;
    let mut whole = None;
    for (part, value) in parts.iter().zip(values) {
        let value = number_of(value);
        whole = Some(match whole {
            None => value,
            Some(before) => crc_fast::checksum_combine(crc, before, value, part.size),
        });
    }
    Some(bytes_of(whole?, algorithm))
}

fn digest_of(algorithm: ChecksumAlgorithm, values: &[&[u8]]) -> Vec<u8> {
    match (algorithm, crc_of(algorithm)) {
        (_, Some(crc)) => {
            let mut digest = crc_fast::Digest::new(crc);
            values.iter().for_each(|value| digest.update(value));
            bytes_of(digest.finalize(), algorithm)
        }
        (ChecksumAlgorithm::Sha1, _) => sha_of::<Sha1>(values),
        _ => sha_of::<Sha256>(values),
    }
}

fn sha_of<D: Digest>(values: &[&[u8]]) -> Vec<u8> {
    let mut digest = D::new();
    values.iter().for_each(|value| digest.update(value));
    digest.finalize().to_vec()
}

fn number_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn bytes_of(number: u64, algorithm: ChecksumAlgorithm) -> Vec<u8> {
    number.to_be_bytes()[8 - algorithm.value_bytes()..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(algorithm: ChecksumAlgorithm, data: &[u8]) -> Checksum {
        let value = match crc_of(algorithm) {
            Some(crc) => bytes_of(crc_fast::checksum(crc, data), algorithm),
            None => digest_of(algorithm, &[data]),
        };
        Checksum::full(algorithm, value)
    }

    #[test]
    fn crcs_combine_to_that_of_all_bytes() {
        let pieces: [&[u8]; 3] = [b"first part", b"second", b"and the third one"];
        let whole = pieces.concat();
        for algorithm in [ChecksumAlgorithm::Crc32, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Crc64Nvme] {
            let sums: Vec<Vec<Checksum>> = pieces.iter().map(|piece| vec![full(algorithm, piece)]).collect();
            let parts: Vec<PartSums<'_>> = pieces
                .iter()
                .zip(&sums)
                .map(|(piece, checksums)| PartSums {
                    size: piece.len() as u64,
                    etag: Etag::default(),
                    checksums,
                })
                .collect();
            assert_eq!(combine(algorithm, ChecksumKind::FullObject, &parts), Some(full(algorithm, &whole)));
        }
    }

    #[test]
    fn composite_is_a_checksum_of_checksums() {
        let pieces: [&[u8]; 2] = [b"one", b"two"];
        for algorithm in ChecksumAlgorithm::ALL {
            let sums: Vec<Checksum> = pieces.iter().map(|piece| full(algorithm, piece)).collect();
            let joined: Vec<u8> = sums.iter().flat_map(|sum| sum.value.to_vec()).collect();
            let parts: Vec<PartSums<'_>> = sums
                .iter()
                .map(|sum| PartSums { size: 3, etag: Etag::default(), checksums: std::slice::from_ref(sum) })
                .collect();
            let composite = combine(algorithm, ChecksumKind::Composite, &parts).unwrap();
            assert_eq!(composite.value, full(algorithm, &joined).value);
        }
    }

    #[test]
    fn sha_has_no_full_object_and_a_missing_part_none_at_all() {
        let sum = [full(ChecksumAlgorithm::Sha256, b"x")];
        let with = PartSums { size: 1, etag: Etag::default(), checksums: &sum };
        let without = PartSums { size: 1, etag: Etag::default(), checksums: &[] };
        assert_eq!(
            combine(ChecksumAlgorithm::Sha256, ChecksumKind::FullObject, std::slice::from_ref(&with)),
            None
        );
        assert_eq!(combine(ChecksumAlgorithm::Sha256, ChecksumKind::Composite, &[with, without]), None);
    }
}
