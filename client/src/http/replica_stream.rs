//! Whole sealed replicas over HTTP, from datanode to datanode.
//!
//! ```text
//!   POST /block/v1/replica  head(FetchReplica) -->   <-- replica, block run .. block run .. end | error
//! ```
//!
//! Invariants:
//! * The receiver gets pieces in their order only: a head, each block with the bytes it announced, an end after as many
//!   blocks as the head announced. Anything else ends the stream with a failure.
//! * Every chunk is checked against its CRC, and every block's list of CRCs against its digest, before what follows it is
//!   handed out.
//! * A copy without its end is not a copy.
//!
//! Not here: keeping the copy, reading it back (datanode).

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use wire::block::Replication;
use wire::chunk::BlockDigest;
use wire::datanode::ReplicaPiece;
use wire::ids::{BlockId, ContainerId, LocalId};
use wire::limits::BLOCK_BYTES_MAX;
use wire::status::{Failure, Status};

use super::READ_IDLE_DEADLINE;
use super::frame::{
    Frame, FrameReader, decode_message, encode_block, encode_end, encode_error, encode_message,
    encode_replica, encode_run_head,
};
use crate::service::ReplicaStream;

/// What a replica begins with, as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct ReplicaHead {
    replication: Replication,
    deletion_done: u64,
    block_count: u64,
    used_bytes: u64,
}

/// What a block of a replica begins with, as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct BlockHead {
    local: LocalId,
    length: u64,
    digest: BlockDigest,
}

/// A replica's pieces as frames.
pub(crate) fn pieces_of(replica: ReplicaStream) -> impl Stream<Item = Bytes> + Send {
    let frames = stream::unfold(Some((replica, 0)), |state| async move {
        let (mut replica, mut total) = state?;
        let frames = match replica.next().await {
            Some(Ok(piece)) => frames_of(piece, &mut total),
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::new(Status::Internal, "a replica's stream ended before its end")),
        };
        Some(match frames {
            Ok((frames, true)) => (frames, None),
            Ok((frames, false)) => (frames, Some((replica, total))),
            Err(failure) => ([encode_error(&failure), Bytes::new()], None),
        })
    });
    frames.flat_map(stream::iter)
}

/// The frames of a piece, and whether it is the last.
fn frames_of(piece: ReplicaPiece, total: &mut u64) -> Result<([Bytes; 2], bool), Failure> {
    let single = |frame| ([frame, Bytes::new()], false);
    Ok(match piece {
        ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes } => {
            let head = ReplicaHead { replication, deletion_done, block_count, used_bytes };
            single(encode_replica(&encode_message(&head)?))
        }
        ReplicaPiece::Block { local, length, digest } => {
            single(encode_block(&encode_message(&BlockHead { local, length, digest })?))
        }
        ReplicaPiece::Run(run) => {
            *total += run.data.len() as u64;
            ([encode_run_head(&run), run.data], false)
        }
        ReplicaPiece::End => ([encode_end(*total), Bytes::new()], true),
    })
}

/// The pieces of a replica of `container` as they arrive, checked. A source that refuses does so here.
pub(crate) async fn replica_of<S, E>(
    container: ContainerId,
    frames: FrameReader<S>,
) -> Result<ReplicaStream, Failure>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    let mut arriving = Arriving { container, frames, blocks_left: None, block: None };
    let head = arriving.next().await?;
    let first = stream::iter(head.map(Ok));
    let rest = stream::try_unfold(arriving, |mut arriving| async move {
        let piece = arriving.next().await?;
        Ok(piece.map(|piece| (piece, arriving)))
    });
    Ok(Box::pin(first.chain(rest)))
}

struct Arriving<S> {
    container: ContainerId,
    frames: FrameReader<S>,
    /// None before the head.
    blocks_left: Option<u64>,
    block: Option<ArrivingBlock>,
}

struct ArrivingBlock {
    head: BlockHead,
    left: u64,
    crcs: Vec<u32>,
}

impl<S, E> Arriving<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    /// The next piece; None after the end.
    async fn next(&mut self) -> Result<Option<ReplicaPiece>, Failure> {
        if self.frames.is_done() {
            return Ok(None);
        }
        let frame = timeout(READ_IDLE_DEADLINE, self.frames.next()).await;
        let frame = frame.map_err(|_| Failure::new(Status::Retry, "a replica's stream stands still"))??;
        match (frame, self.blocks_left, &mut self.block) {
            (Frame::Error(failure), ..) => Err(failure),
            (Frame::Replica(message), None, _) => {
                let head: ReplicaHead = decode_message(&message)?;
                self.blocks_left = Some(head.block_count);
                let ReplicaHead { replication, deletion_done, block_count, used_bytes } = head;
                Ok(Some(ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes }))
            }
            (Frame::Block(message), Some(left), _) if left > 0 => {
                self.check_block()?;
                let head: BlockHead = decode_message(&message)?;
                if head.length > BLOCK_BYTES_MAX {
                    return Err(malformed("a block that is too long"));
                }
                self.blocks_left = Some(left - 1);
                let piece =
                    ReplicaPiece::Block { local: head.local, length: head.length, digest: head.digest };
                self.block = Some(ArrivingBlock { left: head.length, head, crcs: Vec::new() });
                Ok(Some(piece))
            }
            (Frame::Run(run), Some(_), Some(block)) if run.data.len() as u64 <= block.left => {
                if !run.is_intact() {
                    return Err(Failure::new(
                        Status::Corrupt,
                        "a chunk arrived with another checksum than it was sent with",
                    ));
                }
                block.left -= run.data.len() as u64;
                block.crcs.extend_from_slice(&run.crcs);
                Ok(Some(ReplicaPiece::Run(run)))
            }
            (Frame::End, Some(0), _) => {
                self.check_block()?;
                Ok(Some(ReplicaPiece::End))
            }
            _ => Err(malformed("a frame out of turn")),
        }
    }

    /// The block before the next one is whole and what it said it was.
    fn check_block(&mut self) -> Result<(), Failure> {
        let Some(block) = self.block.take() else { return Ok(()) };
        if block.left > 0 {
            return Err(malformed("a block that is shorter than announced"));
        }
        let id = BlockId { container: self.container, local: block.head.local };
        if BlockDigest::new(id, block.head.length, &block.crcs) != block.head.digest {
            return Err(Failure::new(Status::Corrupt, format!("block {id} of a replica has another digest")));
        }
        Ok(())
    }
}

fn malformed(what: &str) -> Failure {
    Failure::new(Status::Invalid, format!("a replica's stream holds {what}"))
}
