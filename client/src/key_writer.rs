//! Writes a key's bytes as blocks: to every datanode of a block at once, durable before it answers.
//!
//! ```text
//!   body --push--> [run of <= 256 KiB, CRC32C per 64 KiB] --channel--> write_block on each datanode of the block
//!                                                                        receipt: length, digest, durable
//!   finish: every datanode's receipt equals what was computed here -> block entries for commit_key
//! ```
//!
//! A body of known length becomes blocks of at most 256 MiB. One of unknown length is buffered to 4 MiB, then takes a
//! block of 16 MiB, then blocks of 64 MiB, whose unused end the datanode punches.
//!
//! A datanode's *refusal* (container full or closing) is no failure: the block is written again elsewhere, as long as
//! the runs already sent are still held; a datanode refuses before it takes the first run, so few are.
//!
//! Invariants:
//! * Entries are answered only after every datanode of the pipeline has acknowledged that digest.
//! * Ids that are not committed are released, also when the writer is dropped half way.
//! * At most `RUNS_IN_FLIGHT_MAX` + 2 runs of a body are held here.
//!
//! Not here: ETag and S3 checksums (gateway), leaving a failed datanode out (`degrade`; until then a failed replica fails
//! the write).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::block::{BlockEntry, Replication};
use wire::chunk::{BlockDigest, ChunkRun};
use wire::datanode::{BlockReceipt, WriteBlock};
use wire::ids::{BlockId, SessionId};
use wire::limits::{
    BLOCK_BYTES_MAX, CHUNK_BYTES, LOAN_IDS_MAX, STREAM_BLOCK_BYTES, STREAM_BUFFER_BYTES,
    STREAM_FIRST_BLOCK_BYTES,
};
use wire::om::ReleaseBlocks;
use wire::status::{Failure, Status};

use crate::loans::{LentBlock, Loans};
use crate::service::{ChunkStream, DatanodeService, Datanodes};
use crate::session::Session;

/// Bytes of a run of a streamed body: four chunks. Larger runs save little and cost memory per connection.
const STREAM_RUN_BYTES: usize = 4 * CHUNK_BYTES;
/// Runs on their way to one datanode at most.
const RUNS_IN_FLIGHT_MAX: usize = 2;
/// Runs held for a rewrite elsewhere after a refusal. In process a datanode refuses before it takes the first run, so no
/// more than this can have been sent; over HTTP a few more may lie in socket buffers, and the write then fails as `Retry`.
const RUNS_HELD: usize = RUNS_IN_FLIGHT_MAX + 2;
/// Other blocks tried after refusals.
const REFUSALS_MAX: u32 = 6;

/// Writes blocks for a gateway.
#[derive(Clone)]
pub struct KeyWriter {
    loans: Arc<Loans>,
    datanodes: Arc<Datanodes>,
}

impl KeyWriter {
    /// A writer that takes its ids from `session`.
    pub fn new(session: Arc<Session>, datanodes: Arc<Datanodes>) -> Self {
        Self { loans: Loans::new(session), datanodes }
    }

    /// Writes a body that is wholly here, at most a run (`CHUNK_RUN_BYTES_MAX`). An empty one has no block.
    pub async fn write_small(&self, replication: Replication, data: Bytes) -> Result<WrittenBlocks, Failure> {
        let mut written = WrittenBlocks::new(self.loans.session().clone());
        if data.is_empty() {
            return Ok(written);
        }
        let run = ChunkRun::new(data);
        let length = run.data.len() as u64;
        for _ in 0..=REFUSALS_MAX {
            let lent = self.loans.take(replication).await?;
            written.take_in(&lent);
            let digest = BlockDigest::new(lent.block, length, &run.crcs);
            match self.write_small_to_all(&lent, &run, length).await {
                Ok(receipts) => {
                    check_receipts(&receipts, length, digest)?;
                    written.add(&lent, length, digest);
                    return Ok(written);
                }
                Err(failure) if failure.status == Status::Refused => self.loans.leave(lent.block.container),
                Err(failure) => return Err(failure),
            }
        }
        Err(too_many_refusals())
    }

    async fn write_small_to_all(
        &self,
        lent: &LentBlock,
        run: &ChunkRun,
        length: u64,
    ) -> Result<Vec<BlockReceipt>, Failure> {
        let request = |lent: &LentBlock| WriteBlock {
            block: lent.block,
            token: lent.token.clone(),
            length,
            is_exact: true,
        };
        if let [only] = lent.pipeline.members.as_slice() {
            let receipt = self.datanodes.get(only)?.write_small_block(request(lent), run.clone()).await?;
            return Ok(vec![receipt]);
        }
        let writes = lent.pipeline.members.iter().map(|member| async {
            self.datanodes.get(member)?.write_small_block(request(lent), run.clone()).await
        });
        first_failure(join_all(writes).await)
    }

    /// Begins a body that streams. `length` is exact if known.
    pub fn begin(&self, replication: Replication, length: Option<u64>) -> KeySink {
        KeySink {
            writer: self.clone(),
            replication,
            total: length,
            received: 0,
            streamed: 0,
            buffer: BytesMut::new(),
            waiting: Vec::new(),
            open: None,
            written: WrittenBlocks::new(self.loans.session().clone()),
        }
    }
}

/// A body on its way into blocks.
pub struct KeySink {
    writer: KeyWriter,
    replication: Replication,
    /// Bytes of the whole body, if known.
    total: Option<u64>,
    /// Bytes pushed so far.
    received: u64,
    /// Bytes given to blocks so far.
    streamed: u64,
    /// Less than a run.
    buffer: BytesMut,
    /// Whole runs of a body of unknown length, up to `STREAM_BUFFER_BYTES`.
    waiting: Vec<Bytes>,
    open: Option<OpenBlock>,
    written: WrittenBlocks,
}

impl KeySink {
    /// Takes the next bytes of the body, waiting while the datanodes are behind.
    pub async fn push(&mut self, mut data: Bytes) -> Result<(), Failure> {
        self.received += data.len() as u64;
        if self.total.is_some_and(|total| self.received > total) {
            return Err(Failure::new(Status::Invalid, "the body is longer than was declared"));
        }
        while !data.is_empty() {
            let room = STREAM_RUN_BYTES - self.buffer.len();
            if self.buffer.is_empty() && data.len() >= STREAM_RUN_BYTES {
                let run = data.split_to(STREAM_RUN_BYTES);
                self.push_run(run).await?;
                continue;
            }
            if self.buffer.capacity() == 0 {
                self.buffer.reserve(STREAM_RUN_BYTES);
            }
            let piece = data.split_to(room.min(data.len()));
            self.buffer.extend_from_slice(&piece);
            if self.buffer.len() == STREAM_RUN_BYTES {
                let run = std::mem::take(&mut self.buffer).freeze();
                self.push_run(run).await?;
            }
        }
        Ok(())
    }

    /// Ends the body and waits until all of it is durable.
    pub async fn finish(mut self) -> Result<WrittenBlocks, Failure> {
        if self.total.is_some_and(|total| self.received < total) {
            return Err(Failure::new(Status::Invalid, "the body is shorter than was declared"));
        }
        let last = std::mem::take(&mut self.buffer).freeze();
        if self.is_buffering() {
            // It fits the stream buffer: now its length is known.
            let runs = std::mem::take(&mut self.waiting);
            let total = runs.iter().map(|run| run.len() as u64).sum::<u64>() + last.len() as u64;
            if total > 0 {
                self.open_block(total, true).await?;
            }
            for run in runs {
                self.send(run).await?;
            }
        }
        if !last.is_empty() {
            self.send(last).await?;
        }
        if let Some(open) = self.open.take() {
            self.close_block(open).await?;
        }
        Ok(self.written)
    }

    /// A body of unknown length that may yet fit the stream buffer.
    fn is_buffering(&self) -> bool {
        self.total.is_none() && self.open.is_none() && self.streamed == 0
    }

    /// Takes one whole run.
    async fn push_run(&mut self, run: Bytes) -> Result<(), Failure> {
        if !self.is_buffering() {
            return self.send(run).await;
        }
        self.waiting.push(run);
        if self.waiting.len() * STREAM_RUN_BYTES >= STREAM_BUFFER_BYTES {
            let runs = std::mem::take(&mut self.waiting);
            for run in runs {
                self.send(run).await?;
            }
        }
        Ok(())
    }

    /// Sends a run to the open block, opening and closing blocks at their ends.
    async fn send(&mut self, mut run: Bytes) -> Result<(), Failure> {
        while !run.is_empty() {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => {
                    match (self.total, self.streamed) {
                        (Some(total), streamed) => self.open_block(total - streamed, true).await?,
                        (None, 0) => self.open_block(STREAM_FIRST_BLOCK_BYTES, false).await?,
                        (None, _) => self.open_block(STREAM_BLOCK_BYTES, false).await?,
                    }
                    self.open.take().expect("open_block opens a block")
                }
            };
            let room = open.capacity - open.length;
            let piece = run.split_to((run.len() as u64).min(room) as usize);
            self.streamed += piece.len() as u64;
            let is_accepted = open.send(ChunkRun::new(piece)).await;
            if !is_accepted {
                open = self.write_elsewhere(open).await?;
            }
            if open.length == open.capacity {
                self.close_block(open).await?;
            } else {
                self.open = Some(open);
            }
        }
        Ok(())
    }

    async fn open_block(&mut self, wanted: u64, is_exact: bool) -> Result<(), Failure> {
        let lent = self.writer.loans.take(self.replication).await?;
        self.written.take_in(&lent);
        // Whole chunks, so that a block's last chunk is the only short one.
        let longest =
            lent.token.claim.length_max.min(BLOCK_BYTES_MAX) / CHUNK_BYTES as u64 * CHUNK_BYTES as u64;
        let capacity = wanted.min(longest);
        self.open = Some(OpenBlock::start(&self.writer.datanodes, lent, capacity, is_exact)?);
        Ok(())
    }

    /// The block's datanodes stopped taking runs: writes it again elsewhere if they refused it.
    async fn write_elsewhere(&mut self, mut open: OpenBlock) -> Result<OpenBlock, Failure> {
        for _ in 0..REFUSALS_MAX {
            let failure = open.failure().await;
            if failure.status != Status::Refused {
                return Err(failure);
            }
            let Some(held) = open.held.take() else {
                return Err(Failure::new(
                    Status::Retry,
                    format!("{failure}; too much was sent to write it elsewhere"),
                ));
            };
            self.writer.loans.leave(open.lent.block.container);
            let (length, is_exact) = (open.capacity, open.is_exact);
            self.open_block(length, is_exact).await?;
            open = self.open.take().expect("open_block opens a block");
            if open.capacity < length {
                return Err(Failure::new(Status::Retry, "no container has room for the block; try again"));
            }
            let mut is_accepted = true;
            for run in held {
                is_accepted = is_accepted && open.send(run).await;
            }
            if is_accepted {
                return Ok(open);
            }
        }
        Err(too_many_refusals())
    }

    async fn close_block(&mut self, mut open: OpenBlock) -> Result<(), Failure> {
        for _ in 0..=REFUSALS_MAX {
            open.runs.clear();
            let receipts = open.receipts().await;
            match receipts {
                Ok(receipts) => {
                    let digest = BlockDigest::new(open.lent.block, open.length, &open.crcs);
                    check_receipts(&receipts, open.length, digest)?;
                    self.written.add(&open.lent, open.length, digest);
                    return Ok(());
                }
                Err(failure) if failure.status == Status::Refused && open.held.is_some() => {
                    open.failed = Some(failure);
                    open = self.write_elsewhere(open).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(too_many_refusals())
    }
}

/// A block being written.
struct OpenBlock {
    lent: LentBlock,
    capacity: u64,
    is_exact: bool,
    length: u64,
    crcs: Vec<u32>,
    /// One channel per datanode.
    runs: Vec<mpsc::Sender<ChunkRun>>,
    writes: Vec<JoinHandle<Result<BlockReceipt, Failure>>>,
    /// All runs so far, while few enough to be written again elsewhere.
    held: Option<Vec<ChunkRun>>,
    failed: Option<Failure>,
}

impl OpenBlock {
    fn start(datanodes: &Datanodes, lent: LentBlock, capacity: u64, is_exact: bool) -> Result<Self, Failure> {
        let members: Vec<Arc<dyn DatanodeService>> =
            lent.pipeline.members.iter().map(|member| datanodes.get(member)).collect::<Result<_, _>>()?;
        let request = WriteBlock { block: lent.block, token: lent.token.clone(), length: capacity, is_exact };
        let (runs, writes) = members
            .into_iter()
            .map(|datanode| {
                let (sender, receiver) = mpsc::channel(RUNS_IN_FLIGHT_MAX);
                let body: ChunkStream = Box::pin(stream::unfold(receiver, |mut receiver| async {
                    receiver.recv().await.map(|run| (Ok(run), receiver))
                }));
                let request = request.clone();
                let write = tokio::spawn(async move { datanode.write_block(request, body).await });
                (sender, write)
            })
            .unzip();
        let crcs = Vec::new();
        let held = Some(Vec::new());
        Ok(Self { lent, capacity, is_exact, length: 0, crcs, runs, writes, held, failed: None })
    }

    /// Sends a run to every datanode. False if one has stopped taking them.
    async fn send(&mut self, run: ChunkRun) -> bool {
        self.length += run.data.len() as u64;
        self.crcs.extend_from_slice(&run.crcs);
        match &mut self.held {
            Some(held) if held.len() < RUNS_HELD => held.push(run.clone()),
            held => *held = None,
        }
        for sender in &self.runs {
            if sender.send(run.clone()).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn receipts(&mut self) -> Result<Vec<BlockReceipt>, Failure> {
        let outcomes = join_all(self.writes.drain(..)).await;
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| {
                outcome.unwrap_or_else(|error| {
                    Err(Failure::new(Status::Internal, format!("block write: {error}")))
                })
            })
            .collect();
        first_failure(outcomes)
    }

    /// Why the datanodes stopped.
    async fn failure(&mut self) -> Failure {
        self.runs.clear();
        if let Some(failure) = self.failed.take() {
            return failure;
        }
        match self.receipts().await {
            Err(failure) => failure,
            Ok(_) => Failure::new(Status::Internal, "a datanode ended a block early"),
        }
    }
}

impl Drop for OpenBlock {
    fn drop(&mut self) {
        // A body that broke off must not pass for a whole one: an inexact block would accept its end. So the writes
        // are stopped before their channels close.
        for write in &self.writes {
            write.abort();
        }
    }
}

/// Durable blocks that no key names yet. Dropped without [`Self::committed`], they are released.
pub struct WrittenBlocks {
    session: Arc<Session>,
    entries: Vec<BlockEntry>,
    /// Every id taken, also of blocks refused.
    taken: Vec<(SessionId, BlockId)>,
}

impl WrittenBlocks {
    fn new(session: Arc<Session>) -> Self {
        Self { session, entries: Vec::new(), taken: Vec::new() }
    }

    /// The block list, in object order.
    pub fn entries(&self) -> &[BlockEntry] {
        &self.entries
    }

    /// A key or part names them now (or may: then OM's own clean-up decides).
    pub fn committed(mut self) {
        // Ids of refused blocks go back all the same.
        let entries = std::mem::take(&mut self.entries);
        self.taken.retain(|(_, block)| !entries.iter().any(|entry| entry.block == *block));
    }

    fn take_in(&mut self, lent: &LentBlock) {
        self.taken.push((lent.session, lent.block));
    }

    fn add(&mut self, lent: &LentBlock, length: u64, digest: BlockDigest) {
        self.entries.push(BlockEntry { block: lent.block, offset: 0, length, block_length: length, digest });
    }
}

impl Drop for WrittenBlocks {
    fn drop(&mut self) {
        let current = self.session.id();
        let blocks: Vec<BlockId> =
            self.taken.drain(..).filter(|(session, _)| *session == current).map(|(_, block)| block).collect();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if blocks.is_empty() {
            return;
        }
        let session = self.session.clone();
        runtime.spawn(async move {
            for blocks in blocks.chunks(usize::from(LOAN_IDS_MAX)) {
                let make = |context| ReleaseBlocks { context, blocks: blocks.to_vec(), loan: None };
                if let Err(error) = session.command(make).await {
                    // OM takes them back when their loan expires.
                    tracing::debug!(%error, "blocks could not be released");
                }
            }
        });
    }
}

fn check_receipts(receipts: &[BlockReceipt], length: u64, digest: BlockDigest) -> Result<(), Failure> {
    let agree = receipts.iter().all(|receipt| receipt.length == length && receipt.digest == digest);
    if agree {
        Ok(())
    } else {
        Err(Failure::new(Status::Corrupt, "a datanode stored other bytes than were sent"))
    }
}

fn first_failure<T>(outcomes: Vec<Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    // A refusal explains more than the failures it causes elsewhere.
    let mut failures = Vec::new();
    let mut values = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        match outcome {
            Ok(value) => values.push(value),
            Err(failure) => failures.push(failure),
        }
    }
    let refusal = failures.iter().position(|failure| failure.status == Status::Refused).unwrap_or(0);
    if failures.is_empty() { Ok(values) } else { Err(failures.swap_remove(refusal)) }
}

fn too_many_refusals() -> Failure {
    Failure::new(Status::Retry, "datanodes refused every block that was tried; try again")
}
