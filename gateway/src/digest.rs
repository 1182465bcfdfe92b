//! Digests of a body as it passes: MD5 for the ETag, CRC64NVME always, and whatever the request asks for.
//!
//! A small body is digested where it is; a long one on blocking threads, run by run, while the next run arrives
//! (MD5, at some 600 MiB/s a core, is the ceiling of an upload).
//!
//! Not here: which digests a request asks for (see `integrity`), chunk CRCs (client).

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;
use wire::checksum::{Checksum, ChecksumAlgorithm};

/// Which digests to compute beside MD5 and CRC64NVME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DigestPlan {
    /// SHA-256 of the payload, because the request is signed with it or asks for it.
    pub(crate) sha256: bool,
    /// The checksum a client gave, declared as a trailer, or asked for.
    pub(crate) algorithm: Option<ChecksumAlgorithm>,
}

/// Digests in progress.
pub(crate) struct Digests {
    md5: Md5,
    crc64: Crc,
    crc32: Option<Crc>,
    crc32c: Option<Crc>,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    length: u64,
}

/// Digests of a whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DigestValues {
    /// Bytes digested.
    pub(crate) length: u64,
    /// MD5.
    pub(crate) md5: [u8; 16],
    /// SHA-256, if planned.
    pub(crate) sha256: Option<[u8; 32]>,
    /// CRC64NVME, and the planned algorithm if it is another: as stored with the key.
    pub(crate) checksums: Vec<Checksum>,
}

impl DigestValues {
    /// The value of `algorithm`, if it was computed.
    pub(crate) fn checksum(&self, algorithm: ChecksumAlgorithm) -> Option<&Checksum> {
        self.checksums.iter().find(|checksum| checksum.algorithm == algorithm)
    }
}

impl Digests {
    pub(crate) fn new(plan: DigestPlan) -> Self {
        let wants = |algorithm| plan.algorithm == Some(algorithm);
        Self {
            md5: Md5::new(),
            crc64: Crc::new(CrcAlgorithm::Crc64Nvme),
            crc32: wants(ChecksumAlgorithm::Crc32).then(|| Crc::new(CrcAlgorithm::Crc32IsoHdlc)),
            crc32c: wants(ChecksumAlgorithm::Crc32c).then(|| Crc::new(CrcAlgorithm::Crc32Iscsi)),
            sha1: wants(ChecksumAlgorithm::Sha1).then(Sha1::new),
            sha256: (plan.sha256 || wants(ChecksumAlgorithm::Sha256)).then(Sha256::new),
            length: 0,
        }
    }

    pub(crate) fn update(&mut self, data: &[u8]) {
        self.length += data.len() as u64;
        self.md5.update(data);
        self.crc64.update(data);
        for crc in [&mut self.crc32, &mut self.crc32c].into_iter().flatten() {
            crc.update(data);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(data);
        }
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
    }

    pub(crate) fn update_all(&mut self, pieces: &[Bytes]) {
        for piece in pieces {
            self.update(piece);
        }
    }

    /// The values; a checksum of SHA-256 is stored only if `plan` names it.
    pub(crate) fn finish(self, plan: DigestPlan) -> DigestValues {
        let sha256: Option<[u8; 32]> = self.sha256.map(|sha256| sha256.finalize().into());
        let mut checksums =
            vec![Checksum::full(ChecksumAlgorithm::Crc64Nvme, self.crc64.finalize().to_be_bytes())];
        let short = |crc: Crc| (crc.finalize() as u32).to_be_bytes();
        match plan.algorithm {
            Some(ChecksumAlgorithm::Sha256) => {
                let value = sha256.expect("a planned digest is computed");
                checksums.push(Checksum::full(ChecksumAlgorithm::Sha256, value));
            }
            Some(ChecksumAlgorithm::Sha1) => {
                let value = self.sha1.expect("a planned digest is computed").finalize();
                checksums.push(Checksum::full(ChecksumAlgorithm::Sha1, value.to_vec()));
            }
            Some(ChecksumAlgorithm::Crc32) => {
                let value = short(self.crc32.expect("a planned digest is computed"));
                checksums.push(Checksum::full(ChecksumAlgorithm::Crc32, value));
            }
            Some(ChecksumAlgorithm::Crc32c) => {
                let value = short(self.crc32c.expect("a planned digest is computed"));
                checksums.push(Checksum::full(ChecksumAlgorithm::Crc32c, value));
            }
            Some(ChecksumAlgorithm::Crc64Nvme) | None => {}
        }
        DigestValues { length: self.length, md5: self.md5.finalize().into(), sha256, checksums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        for (algorithm, expected) in [
            (ChecksumAlgorithm::Crc32, "cbf43926"),
            (ChecksumAlgorithm::Crc32c, "e3069283"),
            (ChecksumAlgorithm::Crc64Nvme, "ae8b14860a799888"),
            (ChecksumAlgorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (ChecksumAlgorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let plan = DigestPlan { sha256: false, algorithm: Some(algorithm) };
            let mut digests = Digests::new(plan);
            digests.update(b"1234");
            digests.update(b"56789");
            let values = digests.finish(plan);
            assert_eq!(hex::encode(&values.checksum(algorithm).unwrap().value), expected, "{algorithm:?}");
            assert_eq!(hex::encode(values.md5), "25f9e794323b453885f5181f1b624d0b");
        }
    }
}
