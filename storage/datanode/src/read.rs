//! Reading blocks: nothing leaves that was not checked.
//!
//! The chunk list is checked against the digest the reader asks for, and each chunk against the list. A small block is one
//! read of its extent, on the caller's task if the page cache holds it. A large one is read in runs on blocking threads,
//! one run ahead of its reader; a reader that stalls holds two runs and no thread.
//!
//! Invariant: a chunk that fails its check is never handed out; the replica is reported unhealthy.

use std::sync::Arc;

use bytes::Bytes;
use client::service::ChunkStream;
use tokio::task::JoinHandle;
use wire::chunk::{BlockDigest, ChunkRun, chunk_count, chunk_crc};
use wire::datanode::ReadBlock;
use wire::ids::BlockId;
use wire::limits::CHUNK_BYTES;
use wire::status::{Failure, Status};

use crate::container::{Container, Pinned};
use crate::error::BlockError;
use crate::extent::decode_crcs;
use crate::metrics;
use platform::task;

/// An extent at most this long is read at once.
pub(crate) const WHOLE_READ_BYTES_MAX: u64 = 128 << 10;

/// Answers one read.
pub(crate) async fn read(container: Arc<Container>, request: ReadBlock) -> Result<ChunkStream, BlockError> {
    let pinned = container.pin(request.block.local)?;
    let end = request.offset.checked_add(request.length);
    if request.length == 0 || end.is_none_or(|end| end > request.block_length) {
        return Err(BlockError::Invalid("the range is not inside the block"));
    }
    let extent = pinned.extent;
    if extent.length != request.block_length || extent.digest != request.digest {
        container.found_damage("a block is not the one its reader knows");
        return Err(BlockError::Corrupt(request.block, "it is not the block that was asked for"));
    }
    let reader = Arc::new(Reader { pinned, offset: request.offset, length: request.length });
    let stream = if extent.size <= WHOLE_READ_BYTES_MAX {
        reader.read_whole().await?
    } else {
        reader.read_runs().await?
    };
    Ok(stream)
}

/// Reads one block and checks what it reads against the digest of its extent.
pub(crate) struct Reader {
    pinned: Pinned,
    offset: u64,
    length: u64,
}

impl Reader {
    /// A reader of the whole block.
    pub(crate) fn whole(pinned: Pinned) -> Self {
        let length = pinned.extent.length;
        Self { pinned, offset: 0, length }
    }

    /// Bytes asked for.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    fn block(&self) -> BlockId {
        self.container().block(self.pinned.local)
    }

    fn container(&self) -> &Arc<Container> {
        &self.pinned.container
    }

    fn damaged(&self, what: &'static str) -> BlockError {
        metrics::damage_found();
        tracing::error!(block = %self.block(), what, "stored block is damaged");
        self.container().found_damage(what);
        BlockError::Corrupt(self.block(), what)
    }

    /// First chunk wanted and the one after the last.
    fn chunks(&self) -> (u64, u64) {
        let first = self.offset / CHUNK_BYTES as u64;
        (first, chunk_count(self.offset + self.length))
    }

    /// Bytes of the chunks from `first` to before `end`.
    fn bytes_of(&self, first: u64, end: u64) -> (u64, usize) {
        let from = first * CHUNK_BYTES as u64;
        let to = (end * CHUNK_BYTES as u64).min(self.pinned.extent.length);
        (from, (to - from) as usize)
    }

    fn read_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, BlockError> {
        let container = self.container();
        container.disk.check(container.id())?;
        let bytes =
            container.file()?.read_at(offset, length).map_err(|error| container.read_failed(error))?;
        if bytes.len() < length { Err(self.damaged("its file ends early")) } else { Ok(bytes) }
    }

    async fn read_whole(self: Arc<Self>) -> Result<ChunkStream, BlockError> {
        let extent = self.pinned.extent;
        let file = self.container().file()?;
        let bytes = match file.read_cached(extent.offset, extent.size as usize) {
            Ok(Some(bytes)) => bytes,
            // An error is met again, and handled, on the blocking thread.
            Ok(None) | Err(_) => {
                let reader = self.clone();
                let read = move || reader.read_at(extent.offset, extent.size as usize);
                task::spawn_blocking(read).await.map_err(|_| BlockError::Stopping)??
            }
        };
        Ok(Box::pin(futures_util::stream::iter([Ok(self.run_of(bytes)?)])))
    }

    /// The whole block in one run, from one read. For small ones.
    pub(crate) fn read_at_once(&self) -> Result<ChunkRun, BlockError> {
        let extent = self.pinned.extent;
        self.run_of(self.read_at(extent.offset, extent.size as usize)?)
    }

    /// The asked chunks of an extent's bytes.
    fn run_of(&self, bytes: Vec<u8>) -> Result<ChunkRun, BlockError> {
        let extent = self.pinned.extent;
        let layout = self.container().layout;
        let list_end = bytes.len() - layout.trailer_bytes();
        let list_bytes = 4 * chunk_count(extent.length) as usize;
        let crcs = self.check_list(&bytes[list_end - list_bytes..list_end])?;
        let (first, end) = self.chunks();
        let (from, length) = self.bytes_of(first, end);
        let at = (layout.data_offset() + from) as usize;
        let data = Bytes::from(bytes).slice(at..at + length);
        self.check_run(data, &crcs[first as usize..end as usize])
    }

    pub(crate) fn read_list(&self) -> Result<Vec<u32>, BlockError> {
        let extent = self.pinned.extent;
        let list_bytes = 4 * chunk_count(extent.length);
        let list_end = extent.offset + extent.size - self.container().layout.trailer_bytes() as u64;
        self.check_list(&self.read_at(list_end - list_bytes, list_bytes as usize)?)
    }

    fn check_list(&self, bytes: &[u8]) -> Result<Vec<u32>, BlockError> {
        let crcs = decode_crcs(bytes);
        let digest = BlockDigest::new(self.block(), self.pinned.extent.length, &crcs);
        if digest == self.pinned.extent.digest {
            Ok(crcs)
        } else {
            Err(self.damaged("its chunk list fails its check"))
        }
    }

    fn check_run(&self, data: Bytes, crcs: &[u32]) -> Result<ChunkRun, BlockError> {
        let is_right = data.chunks(CHUNK_BYTES).zip(crcs).all(|(chunk, crc)| chunk_crc(chunk) == *crc);
        if !is_right {
            return Err(self.damaged("a chunk fails its check"));
        }
        metrics::block_read(data.len() as u64);
        Ok(ChunkRun { data, crcs: crcs.to_vec() })
    }

    pub(crate) fn read_run(&self, crcs: &[u32], first: u64, end: u64) -> Result<ChunkRun, BlockError> {
        let (from, length) = self.bytes_of(first, end);
        let at = self.pinned.extent.offset + self.container().layout.data_offset() + from;
        let data = Bytes::from(self.read_at(at, length)?);
        self.check_run(data, &crcs[first as usize..end as usize])
    }

    async fn read_runs(self: Arc<Self>) -> Result<ChunkStream, BlockError> {
        let (first, end) = self.chunks();
        let reader = self.clone();
        let begun = task::spawn_blocking(move || {
            let crcs = Arc::new(reader.read_list()?);
            let until = end.min(first + RUN_CHUNKS);
            // The first run is read before the answer begins: its damage is an answer, not a broken stream.
            reader.read_run(&crcs, first, until).map(|run| (crcs, run, until))
        });
        let (crcs, run, next) = begun.await.map_err(|_| BlockError::Stopping)??;
        let mut runs = Runs { reader: self, crcs, next, end, ahead: None };
        runs.look_ahead();
        let rest = futures_util::stream::unfold(runs, |mut runs| async move {
            let item = runs.take().await?;
            Some((item, runs))
        });
        let first = futures_util::stream::iter([Ok(run)]);
        Ok(Box::pin(futures_util::StreamExt::chain(first, rest)))
    }
}

/// Chunks of a run: 512 KiB. A reader holds two runs, so a thousand slow ones hold a gigabyte and not two; larger runs
/// gain nothing against the cost of a hop to a blocking thread.
pub(crate) const RUN_CHUNKS: u64 = 8;

/// The runs of a large read, one ahead.
struct Runs {
    reader: Arc<Reader>,
    crcs: Arc<Vec<u32>>,
    next: u64,
    end: u64,
    ahead: Option<JoinHandle<Result<ChunkRun, BlockError>>>,
}

impl Runs {
    fn look_ahead(&mut self) {
        if self.next >= self.end {
            return;
        }
        let (reader, crcs, first) = (self.reader.clone(), self.crcs.clone(), self.next);
        let end = self.end.min(first + RUN_CHUNKS);
        self.next = end;
        self.ahead = Some(task::spawn_blocking(move || reader.read_run(&crcs, first, end)));
    }

    async fn take(&mut self) -> Option<Result<ChunkRun, Failure>> {
        let run = match self.ahead.take()?.await {
            Ok(Ok(run)) => run,
            Ok(Err(error)) => return Some(Err(error.into())),
            Err(_) => return Some(Err(Failure::new(Status::Retry, "the datanode is shutting down"))),
        };
        self.look_ahead();
        Some(Ok(run))
    }
}
