//! Chunks and their checksums: the integrity of object bytes from the gateway's ingress to the disk and back.
//!
//! A block's data is cut into chunks of 64 KiB, the last one shorter. The gateway computes a CRC32C of each; datanodes
//! check and store *those*, and answer with the block digest: one number over the block's identity, its length and the
//! list of chunk CRCs, equal on every replica. OM keeps the digest in the version's block list. A reader checks the list
//! against the digest and each chunk against the list, so a lying disk, a wrong block and a swapped chunk are all found.
//!
//! Not here: S3's object checksums (see `checksum`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::BlockId;
use crate::limits::CHUNK_BYTES;

/// CRC32C of one chunk.
pub fn chunk_crc(data: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// How many chunks `length` bytes make.
pub const fn chunk_count(length: u64) -> u64 {
    length.div_ceil(CHUNK_BYTES as u64)
}

/// A run of whole chunks that moves in one step. Only the last run of a block may end in a short chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRun {
    /// The bytes, at most `CHUNK_RUN_BYTES_MAX`.
    pub data: Bytes,
    /// One CRC32C per chunk of `data`.
    pub crcs: Vec<u32>,
}

impl ChunkRun {
    /// Computes the CRCs of `data`.
    pub fn new(data: Bytes) -> Self {
        let crcs = data.chunks(CHUNK_BYTES).map(chunk_crc).collect();
        Self { data, crcs }
    }

    /// Whether every chunk has the CRC it claims.
    pub fn is_intact(&self) -> bool {
        self.crcs.len() as u64 == chunk_count(self.data.len() as u64)
            && self.data.chunks(CHUNK_BYTES).zip(&self.crcs).all(|(chunk, crc)| chunk_crc(chunk) == *crc)
    }
}

/// CRC-64/NVME over the block's ids, its length and the list of its chunk CRCs (all little-endian). The same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockDigest(pub u64);

impl BlockDigest {
    /// The digest of a block.
    pub fn new(block: BlockId, length: u64, chunk_crcs: &[u32]) -> Self {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        digest.update(&block.container.0.to_le_bytes());
        digest.update(&block.local.0.to_le_bytes());
        digest.update(&length.to_le_bytes());
        let mut buffer = [0u8; 256];
        for crcs in chunk_crcs.chunks(64) {
            for (slot, crc) in buffer.chunks_exact_mut(4).zip(crcs) {
                slot.copy_from_slice(&crc.to_le_bytes());
            }
            digest.update(&buffer[..crcs.len() * 4]);
        }
        Self(digest.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ContainerId, LocalId};

    #[test]
    fn damaged_run_is_found() {
        let mut run = ChunkRun::new(Bytes::from(vec![7u8; CHUNK_BYTES + 10]));
        assert_eq!(run.crcs.len(), 2);
        assert!(run.is_intact());
        let mut data = run.data.to_vec();
        data[CHUNK_BYTES + 3] ^= 1;
        run.data = Bytes::from(data);
        assert!(!run.is_intact());
    }

    #[test]
    fn digest_tells_blocks_lengths_and_lists_apart() {
        let block = BlockId { container: ContainerId(1), local: LocalId(2) };
        let other = BlockId { container: ContainerId(2), local: LocalId(1) };
        let crcs: Vec<u32> = (0..100).collect();
        let digest = BlockDigest::new(block, 100 * 65536, &crcs);
        assert_ne!(digest, BlockDigest::new(other, 100 * 65536, &crcs));
        assert_ne!(digest, BlockDigest::new(block, 100 * 65536 - 1, &crcs));
        assert_ne!(digest, BlockDigest::new(block, 100 * 65536, &crcs[..99]));
    }
}
