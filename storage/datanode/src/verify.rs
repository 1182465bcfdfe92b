//! Reading a block back from its disk, every byte, past the page cache: what nobody asked for may rot unseen.
//!
//! Invariant: a block that is not what was acknowledged marks its replica unhealthy, so that SCM has it replaced.
//!
//! Not here: reads for clients (`read`), which blocks there should be (OM).

use wire::chunk::chunk_count;
use wire::ids::{BlockId, Generation};
use wire::status::Failure;

use crate::error::BlockError;
use crate::node::Datanode;
use crate::read::{RUN_CHUNKS, Reader};

impl Datanode {
    /// Reads a block of one replica back and checks it; answers its length. Blocking.
    ///
    /// # Errors
    /// If the block or that generation of the replica is not here, or its bytes are not what they were.
    pub fn read_back(&self, block: BlockId, generation: Generation) -> Result<u64, Failure> {
        let container = self.node.container(block.container)?;
        if container.header.generation != generation {
            return Err(BlockError::NoContainer(block.container).into());
        }
        container.file()?.drop_cached(u64::MAX).map_err(|error| container.read_failed(error))?;
        let reader = Reader::whole(container.pin(block.local)?);
        let length = reader.length();
        let crcs = reader.read_list()?;
        let (mut next, end) = (0, chunk_count(length));
        while next < end {
            let until = end.min(next + RUN_CHUNKS);
            reader.read_run(&crcs, next, until)?;
            next = until;
        }
        Ok(length)
    }
}
