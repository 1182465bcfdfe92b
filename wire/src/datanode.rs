//! Messages between writers, readers and a datanode. Bodies travel beside them as runs of chunks.

use serde::{Deserialize, Serialize};

use crate::block::BlockToken;
use crate::chunk::BlockDigest;
use crate::ids::BlockId;

/// Write one block. Its bytes follow as [`crate::chunk::ChunkRun`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteBlock {
    /// The block.
    pub block: BlockId,
    /// Leave to write it; also names generation and replication, since the first write makes the container's replica.
    pub token: BlockToken,
    /// Bytes that will follow, or at most so many if `is_exact` is false.
    pub length: u64,
    /// Whether `length` is exact. If not, the unused end is punched.
    pub is_exact: bool,
}

/// The block is durable on this datanode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReceipt {
    /// Bytes stored.
    pub length: u64,
    /// The digest over ids, length and chunk CRCs.
    pub digest: BlockDigest,
}

/// Read a range of one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadBlock {
    /// The block.
    pub block: BlockId,
    /// Leave to read it.
    pub token: BlockToken,
    /// First byte wanted.
    pub offset: u64,
    /// Bytes wanted, at least 1.
    pub length: u64,
    /// What the whole block must be: the datanode and the reader both check its stored chunk list against it.
    pub block_length: u64,
    /// The digest in the version's block list.
    pub digest: BlockDigest,
}
