//! Writing blocks: from chunks on the wire to an extent that the group commit makes durable.
//!
//! A small block is one buffer and one pwrite on the caller's task. A streamed one is written run by run on blocking
//! threads, the next run arriving meanwhile; pwrites begin and end on pages (the rest of a page is carried over), since a
//! page written in part would have to be read first. The trailer goes last, and only if all chunks were right.
//!
//! Invariants:
//! * A chunk is checked against its writer's CRC before it is written.
//! * A write that ends in any error leaves nothing: its extent is punched when its [`Reservation`] is dropped.
//!
//! Not here: the sync (`group_commit`), leave to write (`service`).

use std::sync::Arc;

use bytes::Bytes;
use client::service::ChunkStream;
use futures_util::StreamExt;
use tokio::sync::oneshot;
use wire::chunk::{BlockDigest, ChunkRun, chunk_crc};
use wire::datanode::{BlockReceipt, WriteBlock};
use wire::limits::{BLOCK_BYTES_MAX, CHUNK_BYTES, CHUNK_RUN_BYTES_MAX};
use wire::status::{Failure, Status};

use crate::container::{Begin, Container, Reservation};
use crate::error::BlockError;
use crate::extent::{ExtentTrailer, PAGE_BYTES, encode_crcs};
use crate::group_commit::{Room, Waiting};
use crate::index::Extent;
use crate::metrics;
use platform::disk::BlockFile;
use platform::task;

/// A block at most this long is one buffer and one pwrite, on the caller's task: about a tenth of a millisecond.
const INLINE_WRITE_BYTES_MAX: u64 = 256 << 10;
/// Bytes after which their way to the disk begins, so that the sync at the end finds little left to do.
const WRITEBACK_BYTES: u64 = 4 << 20;

/// Writes a block whose bytes are all here.
pub(crate) async fn write_small(
    container: Arc<Container>,
    request: WriteBlock,
    run: ChunkRun,
) -> Result<BlockReceipt, BlockError> {
    let length = run.data.len() as u64;
    check_lengths(&request)?;
    if length == 0 || length > request.length || (request.is_exact && length != request.length) {
        return Err(BlockError::Invalid("the block's length is not the announced one"));
    }
    if length > INLINE_WRITE_BYTES_MAX {
        let body: ChunkStream = Box::pin(futures_util::stream::iter([Ok(run)]));
        return write_stream(container, request, body).await;
    }
    check_chunks(&run, 0)?;
    let digest = BlockDigest::new(request.block, length, &run.crcs);
    // All is known, so the extent is made for exactly these bytes.
    let reservation = match begin(&container, &request, length, true).await? {
        Begun::Reserved(reservation) => reservation,
        Begun::Exists(extent) => return repeat(&container, &request, extent, length, digest),
    };
    let bytes = encode_extent(&reservation, &run, digest);
    let file = container.file()?;
    file.write_at(reservation.offset, &[&bytes])
        .map_err(|error| container.disk.io_failed("write a block", error))?;
    commit(reservation, length, digest).await
}

/// Writes a block whose bytes arrive as runs of chunks.
pub(crate) async fn write_stream(
    container: Arc<Container>,
    request: WriteBlock,
    mut body: ChunkStream,
) -> Result<BlockReceipt, BlockError> {
    check_lengths(&request)?;
    let reservation = match begin(&container, &request, request.length, request.is_exact).await? {
        Begun::Reserved(reservation) => reservation,
        Begun::Exists(extent) => {
            let (length, digest) = digest_of(&request, body).await?;
            return repeat(&container, &request, extent, length, digest);
        }
    };
    let _big = container.disk.big_write();
    let file = container.file()?;
    let mut writer = StreamWriter::new(reservation, file);
    let mut cut_short = container.when_cut_short();
    let mut next = next_run(&container, &mut body, &mut cut_short).await;
    while let Some(run) = next? {
        let room = container.disk.commits.room_for(run.data.len() as u64).await?;
        let step = task::spawn_blocking(move || {
            writer.write(run)?;
            // At once: whoever waits for room waits for disks alone, never for this block's client.
            writer.free_after_sync(room);
            Ok::<_, BlockError>(writer)
        });
        // The next run arrives while this one is written.
        next = next_run(&container, &mut body, &mut cut_short).await;
        writer = step.await.map_err(|_| BlockError::Stopping)??;
    }
    let finish = task::spawn_blocking(move || writer.finish());
    let (reservation, length, digest) = finish.await.map_err(|_| BlockError::Stopping)??;
    commit(reservation, length, digest).await
}

/// The next run, unless the container has been closing for too long to wait for it.
async fn next_run(
    container: &Container,
    body: &mut ChunkStream,
    cut_short: &mut platform::watch::Receiver<bool>,
) -> Result<Option<ChunkRun>, BlockError> {
    tokio::select! {
        biased;
        run = body.next() => run.transpose().map_err(BlockError::Stream),
        // A refusal: the writer must not take this datanode for one that failed.
        _ = cut_short.wait_for(|is_cut_short| *is_cut_short) => {
            Err(BlockError::Refused(container.id(), "it is closing, and the block came too slowly"))
        }
    }
}

fn check_lengths(request: &WriteBlock) -> Result<(), BlockError> {
    if request.length == 0 || request.length > BLOCK_BYTES_MAX {
        return Err(BlockError::Invalid("a block has 1 byte to 256 MiB"));
    }
    Ok(())
}

enum Begun {
    Reserved(Reservation),
    Exists(Extent),
}

async fn begin(
    container: &Arc<Container>,
    request: &WriteBlock,
    reserved: u64,
    is_exact: bool,
) -> Result<Begun, BlockError> {
    let local = request.block.local;
    match container.begin_write(local, reserved, is_exact, false)? {
        Begin::Reserved(reservation) => return Ok(Begun::Reserved(reservation)),
        Begin::Exists(extent) => return Ok(Begun::Exists(extent)),
        Begin::MustWait => {}
    }
    let container = container.clone();
    let begun = task::spawn_blocking(move || container.begin_write(local, reserved, is_exact, true));
    match begun.await.map_err(|_| BlockError::Stopping)?? {
        Begin::Reserved(reservation) => Ok(Begun::Reserved(reservation)),
        Begin::Exists(extent) => Ok(Begun::Exists(extent)),
        Begin::MustWait => Err(BlockError::Busy(request.block)),
    }
}

/// A second write of an id: a repeat of the first is answered as the first was, anything else is refused.
fn repeat(
    container: &Container,
    request: &WriteBlock,
    extent: Extent,
    length: u64,
    digest: BlockDigest,
) -> Result<BlockReceipt, BlockError> {
    if extent.length == length && extent.digest == digest {
        Ok(BlockReceipt { length, digest })
    } else {
        tracing::warn!(block = %request.block, "a block was written twice with different bytes");
        Err(BlockError::Refused(container.id(), "the block is written already"))
    }
}

async fn digest_of(request: &WriteBlock, mut body: ChunkStream) -> Result<(u64, BlockDigest), BlockError> {
    let mut length = 0;
    let mut crcs = Vec::new();
    while let Some(run) = body.next().await {
        let run = run.map_err(BlockError::Stream)?;
        check_run(&run, length, request.length)?;
        length += run.data.len() as u64;
        crcs.extend_from_slice(&run.crcs);
    }
    Ok((length, BlockDigest::new(request.block, length, &crcs)))
}

/// Whether the run may follow `before` bytes of a block with room for `reserved`.
pub(crate) fn check_run(run: &ChunkRun, before: u64, reserved: u64) -> Result<(), BlockError> {
    if run.data.is_empty() || run.data.len() > CHUNK_RUN_BYTES_MAX {
        return Err(BlockError::Invalid("a run has 1 byte to 1 MiB"));
    }
    if !before.is_multiple_of(CHUNK_BYTES as u64) {
        return Err(BlockError::Invalid("only the last run of a block may end in a short chunk"));
    }
    if before + run.data.len() as u64 > reserved {
        return Err(BlockError::Invalid("more bytes came than were announced"));
    }
    check_chunks(run, before / CHUNK_BYTES as u64)
}

fn check_chunks(run: &ChunkRun, first: u64) -> Result<(), BlockError> {
    if run.crcs.len() != run.data.len().div_ceil(CHUNK_BYTES) {
        return Err(BlockError::Invalid("a run has one checksum per chunk"));
    }
    let damaged =
        run.data.chunks(CHUNK_BYTES).zip(&run.crcs).position(|(chunk, crc)| chunk_crc(chunk) != *crc);
    damaged.map_or(Ok(()), |number| Err(BlockError::ArrivedDamaged(first + number as u64)))
}

/// The whole extent of a small block.
fn encode_extent(reservation: &Reservation, run: &ChunkRun, digest: BlockDigest) -> Vec<u8> {
    let container = &reservation.container;
    let layout = container.layout;
    let mut bytes = Vec::with_capacity(reservation.size as usize);
    bytes.extend_from_slice(&layout.encode_header(
        &reservation.header,
        reservation.offset,
        &container.header.salt,
    ));
    bytes.extend_from_slice(&run.data);
    let tail = encode_tail(reservation, run.data.len() as u64, &run.crcs, digest);
    bytes.resize(reservation.size as usize - tail.len(), 0);
    bytes.extend_from_slice(&tail);
    bytes
}

/// Chunk list and trailer: the last bytes of an extent.
fn encode_tail(reservation: &Reservation, length: u64, crcs: &[u32], digest: BlockDigest) -> Vec<u8> {
    let container = &reservation.container;
    let header = &reservation.header;
    let trailer = ExtentTrailer {
        block: header.block,
        generation: header.generation,
        nonce: header.nonce,
        length,
        digest,
    };
    let mut tail = encode_crcs(crcs);
    tail.extend_from_slice(&container.layout.encode_trailer(
        &trailer,
        reservation.offset,
        &container.header.salt,
    ));
    tail
}

/// Hands a write whose bytes are in place to the group commit and waits for the sync.
async fn commit(
    reservation: Reservation,
    length: u64,
    digest: BlockDigest,
) -> Result<BlockReceipt, BlockError> {
    let extent = Extent { offset: reservation.offset, size: reservation.size, length, digest };
    let disk = reservation.container.disk.clone();
    let (done, answer) = oneshot::channel();
    disk.commits.push(Waiting { reservation, extent, done }).await;
    answer.await.map_err(|_| BlockError::Stopping)??;
    metrics::block_written(length);
    Ok(BlockReceipt { length, digest })
}

/// A streamed block on its way to its extent.
struct StreamWriter {
    reservation: Reservation,
    file: Arc<dyn BlockFile>,
    length: u64,
    crcs: Vec<u32>,
    /// Where the next pwrite goes: a multiple of the page size.
    position: u64,
    /// Less than a page that comes before the next bytes.
    carry: Vec<u8>,
    flushed: u64,
}

impl StreamWriter {
    fn new(reservation: Reservation, file: Arc<dyn BlockFile>) -> Self {
        let container = &reservation.container;
        let carry =
            container.layout.encode_header(&reservation.header, reservation.offset, &container.header.salt);
        let position = reservation.offset;
        Self { reservation, file, length: 0, crcs: Vec::new(), position, carry, flushed: position }
    }

    fn write(&mut self, run: ChunkRun) -> Result<(), BlockError> {
        check_run(&run, self.length, self.reservation.header.reserved)?;
        self.length += run.data.len() as u64;
        self.crcs.extend_from_slice(&run.crcs);
        self.put(&run.data)
    }

    fn free_after_sync(&self, room: Room) {
        let container = &self.reservation.container;
        container.disk.commits.written(container.id(), &self.file, room);
    }

    /// Writes whole pages; keeps the rest for the next call.
    fn put(&mut self, data: &Bytes) -> Result<(), BlockError> {
        let total = self.carry.len() + data.len();
        let whole = total - total % PAGE_BYTES as usize;
        if whole == 0 {
            self.carry.extend_from_slice(data);
            return Ok(());
        }
        let from_data = whole - self.carry.len();
        self.write_at(self.position, &[&self.carry, &data[..from_data]])?;
        self.position += whole as u64;
        self.carry.clear();
        self.carry.extend_from_slice(&data[from_data..]);
        if self.position - self.flushed >= WRITEBACK_BYTES {
            self.file.start_writeback(self.flushed, self.position - self.flushed);
            self.flushed = self.position;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> Result<(), BlockError> {
        let disk = &self.reservation.container.disk;
        disk.check(self.reservation.container.id())?;
        self.file.write_at(offset, parts).map_err(|error| disk.io_failed("write a block", error))
    }

    fn finish(mut self) -> Result<(Reservation, u64, BlockDigest), BlockError> {
        let header = self.reservation.header;
        if self.length == 0 || (header.is_exact && self.length != header.reserved) {
            return Err(BlockError::Stream(Failure::new(
                Status::Invalid,
                format!("the body ended after {} of {} bytes", self.length, header.reserved),
            )));
        }
        let digest = BlockDigest::new(header.block, self.length, &self.crcs);
        let tail = encode_tail(&self.reservation, self.length, &self.crcs, digest);
        let end = self.reservation.offset + self.reservation.size;
        let tail_at = end - tail.len() as u64;
        let tail_page = tail_at - tail_at % PAGE_BYTES;
        // Data ends in `carry`; what lies between it and the tail is zeros already (the file was never written there),
        // except inside the pages written here.
        let data_end = self.position + self.carry.len() as u64;
        if data_end > tail_page {
            let mut last = std::mem::take(&mut self.carry);
            last.resize((tail_at - self.position) as usize, 0);
            self.write_at(self.position, &[&last, &tail])?;
        } else {
            if !self.carry.is_empty() {
                let mut last = std::mem::take(&mut self.carry);
                last.resize(PAGE_BYTES as usize, 0);
                self.write_at(self.position, &[&last])?;
                self.position += PAGE_BYTES;
            }
            let padding = vec![0; (tail_at - tail_page) as usize];
            self.write_at(tail_page, &[&padding, &tail])?;
            self.punch_unused(tail_page)?;
        }
        Ok((self.reservation, self.length, digest))
    }

    /// Gives back whole pages between data and chunk list.
    fn punch_unused(&self, to: u64) -> Result<(), BlockError> {
        if to <= self.position {
            return Ok(());
        }
        let disk = &self.reservation.container.disk;
        let punched = self.file.punch(self.position, to - self.position);
        punched.map_err(|error| disk.io_failed("punch the unused end of a block", error))
    }
}
