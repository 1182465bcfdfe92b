//! Messages between writers, readers and a datanode. Bodies travel beside them as runs of chunks.

use serde::{Deserialize, Serialize};

use crate::block::{BlockToken, Replication};
use crate::chunk::{BlockDigest, ChunkRun};
use crate::ids::{BlockId, ContainerId, Generation, LocalId};

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

/// Fetch a whole sealed replica, for a copy on another datanode. Answered by a stream of [`ReplicaPiece`]s in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReplica {
    /// The container.
    pub container: ContainerId,
    /// The generation of the replica here; another is `NotFound`, one that is not sealed is `Refused`.
    pub generation: Generation,
    /// Leave to fetch it: operation `CopyReplica`, made by SCM.
    pub token: BlockToken,
}

/// A piece of a replica on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaPiece {
    /// First: what it is.
    Head {
        /// Its replication type.
        replication: Replication,
        /// The last deletion transaction the replica has made durable: the copy inherits it.
        deletion_done: u64,
        /// Blocks that follow.
        block_count: u64,
        /// Bytes of blocks that follow, for room and progress.
        used_bytes: u64,
    },
    /// A block begins.
    Block {
        /// Its id.
        local: LocalId,
        /// Its bytes.
        length: u64,
        /// Its digest: the receiver checks chunk CRCs against it.
        digest: BlockDigest,
    },
    /// Its next chunks, as in a write: CRCs and bytes.
    Run(ChunkRun),
    /// Last: everything above was sent; blocks as in `Head`. A stream without it is incomplete.
    End,
}
