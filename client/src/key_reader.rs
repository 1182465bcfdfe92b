//! Reads a range of a version: block after block, from any whole replica, in mid-stream from another if one fails.
//!
//! An error item means that the rest cannot be had: the gateway breaks the connection, since a truncated body must never
//! end cleanly.
//!
//! Invariant: the items join to exactly the asked range, or the last item is an error.
//!
//! Not here: which version and whether it may be read (gateway).

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use wire::block::{BlockEntry, BlockToken, ContainerLocation, ReplicaLocation};
use wire::datanode::ReadBlock;
use wire::ids::WriteId;
use wire::limits::CHUNK_BYTES;
use wire::om::{BucketRef, GetLayout, LayoutPage};
use wire::status::{Failure, Status};

use crate::error::failure_of;
use crate::service::{ChunkStream, Datanodes};
use crate::session::Session;

/// Attempts at one block, over all replicas, before the read fails.
const ATTEMPTS_MAX: usize = 4;

/// Bytes of a key, in order.
pub type KeyStream = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Streams bytes `range` of a version whose block list begins with `first`. Further pages are fetched as needed.
pub fn read_key(
    session: Arc<Session>,
    datanodes: Arc<Datanodes>,
    bucket: BucketRef,
    write_id: WriteId,
    first: LayoutPage,
    range: Range<u64>,
) -> KeyStream {
    let mut reader = KeyReader {
        session,
        datanodes,
        bucket,
        write_id,
        position: range.start,
        end: range.end,
        page_end: first.start,
        slices: VecDeque::new(),
        open: None,
    };
    reader.take_page(first);
    Box::pin(stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(failure) => Some((Err(failure), None)),
        }
    }))
}

struct KeyReader {
    session: Arc<Session>,
    datanodes: Arc<Datanodes>,
    bucket: BucketRef,
    write_id: WriteId,
    /// The next byte to give out.
    position: u64,
    end: u64,
    /// Where the pages read so far end.
    page_end: u64,
    slices: VecDeque<Slice>,
    open: Option<OpenSlice>,
}

/// A block entry with what is needed to read it.
struct Slice {
    /// Byte of the object at which it begins.
    start: u64,
    entry: BlockEntry,
    token: BlockToken,
    replicas: Vec<ReplicaLocation>,
}

struct OpenSlice {
    slice: Slice,
    attempts: usize,
    body: ChunkStream,
    /// Bytes to drop from the next run: a datanode begins at a chunk's start.
    skip: u64,
}

impl KeyReader {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.position < self.end {
            let Some(mut open) = self.open.take() else {
                let slice = self.next_slice().await?;
                self.open = Some(self.open_slice(slice, 0).await?);
                continue;
            };
            let outcome = open.body.next().await;
            let slice_end = (open.slice.start + open.slice.entry.length).min(self.end);
            match outcome {
                Some(Ok(run)) => {
                    let mut data = run.data;
                    let skipped = open.skip.min(data.len() as u64);
                    open.skip -= skipped;
                    drop(data.split_to(skipped as usize));
                    data.truncate((data.len() as u64).min(slice_end - self.position) as usize);
                    self.position += data.len() as u64;
                    if self.position < slice_end {
                        self.open = Some(open);
                    }
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(failure)) => self.open = Some(self.fall_over(open, failure).await?),
                None => {
                    let failure = Failure::new(Status::Retry, "a datanode ended a block early");
                    self.open = Some(self.fall_over(open, failure).await?);
                }
            }
        }
        Ok(None)
    }

    /// Opens the rest of a block on another replica after one failed.
    async fn fall_over(&mut self, open: OpenSlice, failure: Failure) -> Result<OpenSlice, Failure> {
        tracing::warn!(block = %open.slice.entry.block, %failure, "a replica failed in mid-read");
        if open.attempts + 1 >= ATTEMPTS_MAX || open.slice.replicas.len() < 2 {
            return Err(failure);
        }
        self.open_slice(open.slice, open.attempts + 1).await
    }

    async fn open_slice(&mut self, slice: Slice, first_attempt: usize) -> Result<OpenSlice, Failure> {
        let within = self.position - slice.start;
        let offset = slice.entry.offset + within;
        let length = (slice.entry.length - within).min(self.end - self.position);
        let mut last =
            Failure::new(Status::Retry, format!("no replica of block {} is known", slice.entry.block));
        for attempt in first_attempt..ATTEMPTS_MAX.min(first_attempt + slice.replicas.len()) {
            let replica = &slice.replicas[attempt % slice.replicas.len()];
            let request = ReadBlock {
                block: slice.entry.block,
                token: slice.token.clone(),
                offset,
                length,
                block_length: slice.entry.block_length,
                digest: slice.entry.digest,
            };
            let outcome = match self.datanodes.get(&replica.datanode) {
                Ok(datanode) => datanode.read_block(request).await,
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(body) => {
                    let skip = offset % CHUNK_BYTES as u64;
                    return Ok(OpenSlice { slice, attempts: attempt, body, skip });
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn next_slice(&mut self) -> Result<Slice, Failure> {
        loop {
            while let Some(slice) = self.slices.pop_front() {
                if slice.start + slice.entry.length > self.position {
                    return Ok(slice);
                }
            }
            let request =
                GetLayout { bucket: self.bucket.clone(), write_id: self.write_id, from: self.position };
            let page = self.session.call(request).await.map_err(failure_of)?;
            let before = self.page_end;
            self.take_page(page);
            if self.page_end <= before || self.page_end <= self.position {
                return Err(Failure::new(Status::Internal, "the block list ends before the key does"));
            }
        }
    }

    fn take_page(&mut self, page: LayoutPage) {
        let replicas_of = |entry: &BlockEntry, locations: &[ContainerLocation]| -> Vec<ReplicaLocation> {
            let location = locations.iter().find(|location| location.container == entry.block.container);
            location.map(|location| location.replicas.clone()).unwrap_or_default()
        };
        self.page_end = page.start;
        for (entry, token) in page.entries.into_iter().zip(page.tokens) {
            let replicas = replicas_of(&entry, &page.locations);
            self.slices.push_back(Slice { start: self.page_end, entry, token, replicas });
            self.page_end += entry.length;
        }
    }
}
