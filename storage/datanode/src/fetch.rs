//! Sending a replica to another datanode, for a copy.
//!
//! The deletion number and the list of blocks are taken at one moment, under the lock that deletions commit under: the
//! number is that of a state which the list is. Nothing is punched while the replica is sent, so what was on the list can
//! be read to the end, also if it is deleted meanwhile; the copy then has a block too many and a number too low, and the
//! deletion comes to it again.
//!
//! Blocks are read in batches on blocking threads, one batch ahead of the receiver; a receiver that stalls holds two
//! batches and no thread.
//!
//! Invariants:
//! * Only a sealed replica is sent: to another one blocks are still being added.
//! * A replica of which an extent is not whole is not sent, unless the index or OM has settled whose it is: the copy
//!   would lack what may have been promised.
//! * Every chunk is checked before it is sent. Damage ends the stream.
//!
//! Not here: the receiving end (`copy`).

use std::sync::Arc;

use client::service::ReplicaStream;
use futures_util::StreamExt;
use platform::task;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use wire::chunk::chunk_count;
use wire::datanode::{FetchReplica, ReplicaPiece};
use wire::ids::LocalId;
use wire::status::Failure;

use crate::container::Container;
use crate::error::BlockError;
use crate::index::Extent;
use crate::node::Node;
use crate::read::{RUN_CHUNKS, Reader, WHOLE_READ_BYTES_MAX};

/// Replicas sent at once at most: each keeps the list of its blocks in memory, 50 MB for a container of small ones.
pub(crate) const FETCHES_MAX: usize = 4;
/// Bytes of a batch before it ends.
const BATCH_BYTES: usize = 1 << 20;
/// Pieces of a batch at most.
const BATCH_PIECES: usize = 512;

/// Answers one fetch. Its token was checked.
pub(crate) async fn fetch(node: &Arc<Node>, request: FetchReplica) -> Result<ReplicaStream, BlockError> {
    let permit = node.fetches.clone().try_acquire_owned().map_err(|_| BlockError::Overloaded)?;
    let container = node.container(request.container)?;
    if container.header.generation != request.generation {
        return Err(BlockError::NoContainer(request.container));
    }
    let begun = task::spawn_blocking(move || Sending::begin(container, permit));
    let (sending, head) = begun.await.map_err(|_| BlockError::Stopping)??;
    tracing::info!(container = %request.container, "sending a replica");
    let batches = futures_util::stream::unfold(Some(read_ahead(sending)), async |ahead| {
        let outcome = ahead?.await;
        let (sending, batch) = match outcome {
            Ok(step) => step,
            Err(_) => return Some((vec![Err(BlockError::Stopping.into())], None)),
        };
        match batch {
            Ok(pieces) => {
                let next = (!sending.is_done).then(|| read_ahead(sending));
                Some((pieces.into_iter().map(Ok).collect(), next))
            }
            Err(error) => {
                tracing::warn!(container = %sending.container.id(), %error, "a replica was not sent to its end");
                Some((vec![Err(Failure::from(error))], None))
            }
        }
    });
    let head = futures_util::stream::iter([Ok(head)]);
    Ok(Box::pin(head.chain(batches.flat_map(futures_util::stream::iter))))
}

type Batch = (Sending, Result<Vec<ReplicaPiece>, BlockError>);

fn read_ahead(mut sending: Sending) -> JoinHandle<Batch> {
    task::spawn_blocking(move || {
        let batch = sending.next_batch();
        (sending, batch)
    })
}

/// A replica on its way out.
struct Sending {
    container: Arc<Container>,
    blocks: std::vec::IntoIter<(LocalId, Extent)>,
    current: Option<Current>,
    is_done: bool,
    _permit: OwnedSemaphorePermit,
}

/// A large block, sent in part.
struct Current {
    reader: Reader,
    crcs: Vec<u32>,
    next: u64,
    end: u64,
}

impl Sending {
    fn begin(
        container: Arc<Container>,
        permit: OwnedSemaphorePermit,
    ) -> Result<(Self, ReplicaPiece), BlockError> {
        let (id, disk) = (container.id(), container.disk.clone());
        disk.check(id)?;
        let _writer = disk.index_writer.lock();
        let (deletion_done, suspects) = {
            let mut state = container.state.lock();
            if state.is_dropped {
                return Err(BlockError::NoContainer(id));
            }
            if !state.is_sealed && !wire::planted::is_on("copy_from_unsealed") {
                return Err(BlockError::Refused(id, "its replica here is not sealed"));
            }
            state.fetches += 1;
            (state.deletion_done, state.suspects.clone())
        };
        // From here on its drop lets go.
        let mut sending = Self {
            container,
            blocks: Vec::new().into_iter(),
            current: None,
            is_done: false,
            _permit: permit,
        };
        let (mut blocks, mut used_bytes) = (Vec::new(), 0);
        let corrupt = disk.index.visit_blocks(id, |local, extent| {
            used_bytes += extent.length;
            blocks.push((local, extent));
        });
        if corrupt.map_err(|error| BlockError::Index(error.to_string()))? > 0 {
            sending.container.found_damage("rows of the index are corrupt");
            return Err(BlockError::Damaged(id, "rows of its index are corrupt"));
        }
        // Rows come in the order of their ids.
        let is_known = |local: &LocalId| blocks.binary_search_by_key(local, |(local, _)| *local).is_ok();
        if suspects.iter().any(|(local, _)| !is_known(local)) {
            return Err(BlockError::Damaged(id, "it holds blocks that are not whole"));
        }
        let block_count = blocks.len() as u64;
        sending.blocks = blocks.into_iter();
        let replication = sending.container.header.replication;
        Ok((sending, ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes }))
    }

    fn next_batch(&mut self) -> Result<Vec<ReplicaPiece>, BlockError> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES && pieces.len() < BATCH_PIECES && !self.is_done {
            if let Some(current) = &mut self.current {
                let end = current.end.min(current.next + RUN_CHUNKS);
                let run = current.reader.read_run(&current.crcs, current.next, end)?;
                bytes += run.data.len();
                pieces.push(ReplicaPiece::Run(run));
                current.next = end;
                if end == current.end {
                    self.current = None;
                }
                continue;
            }
            let Some((local, extent)) = self.blocks.next() else {
                pieces.push(ReplicaPiece::End);
                self.is_done = true;
                break;
            };
            let reader = Reader::whole(self.container.pin_known(local, extent)?);
            pieces.push(ReplicaPiece::Block { local, length: extent.length, digest: extent.digest });
            if extent.size <= WHOLE_READ_BYTES_MAX {
                let run = reader.read_at_once()?;
                bytes += run.data.len();
                pieces.push(ReplicaPiece::Run(run));
            } else {
                let crcs = reader.read_list()?;
                self.current = Some(Current { reader, crcs, next: 0, end: chunk_count(extent.length) });
            }
        }
        Ok(pieces)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut state = self.container.state.lock();
        state.fetches = state.fetches.saturating_sub(1);
    }
}
