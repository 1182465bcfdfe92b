//! Writes a key's bytes as blocks: to every datanode of a block at once, durable before it answers.
//!
//! ```text
//!   body --push--> [run of <= 256 KiB, CRC32C per 64 KiB] --> BlockWrite: write_block on each datanode of the block
//!                                                               |
//!   all acknowledged ------------------------------------------>|--> block entry for commit_key
//!   one refused ----------------> other block, written again -->|    (bytes still here; else 503)
//!   one failed, bytes here -----> block without that node ----->|    (if a loan without it can be had)
//!   one failed, otherwise ------> degrade: Accepted ----------->|    (two at least acknowledged)
//!                                          Refused -> other block, or 503
//! ```
//!
//! A body of known length becomes blocks of at most 256 MiB. One of unknown length is buffered to 4 MiB, then takes a
//! block of 16 MiB, then blocks of 64 MiB, whose unused end the datanode punches. A body that fits the stream buffer is
//! kept here until it is durable; of longer ones only the first runs of a block are. The caller takes the memory for
//! that out of its budget: see [`body_memory`].
//!
//! A pipeline of two bears no failure: the one replica that is left cannot be committed, and what is no longer here could
//! be written nowhere else. So a longer body goes to it in blocks that fit the memory it has: each is acknowledged before
//! the next begins, and whatever fails costs one block written again.
//!
//! Invariants:
//! * An entry is answered only if every datanode of the pipeline has acknowledged the block, or if OM has accepted
//!   `degrade` with datanodes that all have acknowledged it.
//! * A refusal never leads to `degrade`: the replica is well.
//! * A container that refused or was degraded gets no further block from here.
//! * Ids that are not committed are released, also when the writer is dropped half way.
//!
//! Not here: ETag and S3 checksums (gateway), who has failed and when (see `block_write`).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use wire::block::{BlockEntry, Replication};
use wire::chunk::{BlockDigest, ChunkRun};
use wire::ids::{BlockId, SessionId};
use wire::limits::{
    BLOCK_BYTES_MAX, CHUNK_BYTES, LOAN_IDS_MAX, STREAM_BLOCK_BYTES, STREAM_BUFFER_BYTES,
    STREAM_FIRST_BLOCK_BYTES,
};
use wire::om::ReleaseBlocks;
use wire::scm::Degraded;
use wire::status::{Failure, Status};

use crate::block_write::{BlockWrite, RUNS_IN_FLIGHT_MAX, THREE_MIN, Verdict};
use crate::degrade::Degrades;
use crate::failed_nodes::FailedNodes;
use crate::loans::{LentBlock, Loans};
use crate::metrics;
use crate::service::Datanodes;
use crate::session::Session;

/// Bytes of a run of a streamed body: four chunks. Larger runs save little and cost memory per connection.
const STREAM_RUN_BYTES: usize = 4 * CHUNK_BYTES;
/// A body that has brought no whole run for this long sends what chunks there are: a datanode gives up a body that stands
/// still (`BODY_IDLE_DEADLINE`), and at the slowest speed that the gateway bears, 1 KiB/s, a run would take longer.
const RUN_WAIT: Duration = Duration::from_secs(20);
/// Runs of a longer body held for a rewrite elsewhere. A datanode refuses before it takes the first run, also over HTTP, so
/// no more than this can have been fed by then.
const RUNS_HELD: usize = RUNS_IN_FLIGHT_MAX + 2;
/// A body has no more than so many blocks when it takes a short one for a pipeline of two: 5 GiB in blocks of 64 MiB must
/// still fit one commit. At 1 MiB each they cover the seconds until SCM opens containers on three again.
const SHORT_BLOCKS_MAX: usize = 40;
/// Blocks tried for the same bytes, after refusals and failures.
const BLOCKS_TRIED_MAX: u32 = 7;
/// A datanode that failed a write is gone round for this long, or until it acknowledges one: twice what SCM needs to see
/// that it is silent. Not much longer: while it is gone round there is one node less for the next failure.
const FAILED_MEMORY: Duration = Duration::from_secs(10);
/// After a pipeline was lost, or a second block refused, the next one is taken after this, then after twice as long: SCM
/// needs a moment to open one that is whole. Over all blocks tried two and a half seconds.
const LOST_PAUSE: Duration = Duration::from_millis(40);

/// The longest of these pauses.
const LAST_PAUSE: Duration =
    Duration::from_millis(LOST_PAUSE.as_millis() as u64 * (1 << (BLOCKS_TRIED_MAX - 2)));

/// Memory that a body of this length takes here while it is written.
pub const fn body_memory(length: Option<u64>) -> usize {
    match length {
        Some(length) if length <= STREAM_BUFFER_BYTES as u64 => length as usize,
        Some(_) => RUNS_HELD * STREAM_RUN_BYTES,
        None => STREAM_BUFFER_BYTES,
    }
}

/// Writes blocks for a gateway.
#[derive(Clone)]
pub struct KeyWriter {
    loans: Arc<Loans>,
    datanodes: Arc<Datanodes>,
    degrades: Arc<Degrades>,
    failed: Arc<FailedNodes>,
}

impl KeyWriter {
    /// A writer that takes its ids from `session`.
    pub fn new(session: Arc<Session>, datanodes: Arc<Datanodes>) -> Self {
        let failed = Arc::new(FailedNodes::new(FAILED_MEMORY));
        let loans = Loans::new(session.clone(), failed.clone());
        Self { loans, datanodes, degrades: Arc::new(Degrades::new(session)), failed }
    }

    /// Writes a body that is wholly here, at most a run (`CHUNK_RUN_BYTES_MAX`). An empty one has no block.
    pub async fn write_small(&self, replication: Replication, data: Bytes) -> Result<WrittenBlocks, Failure> {
        let mut written = WrittenBlocks::new(self.loans.session().clone());
        if data.is_empty() {
            return Ok(written);
        }
        let lent = self.loans.take(replication).await?;
        let open = self.open_small(lent, ChunkRun::new(data), &mut written);
        self.close(open, &mut written).await?;
        Ok(written)
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
            cut_at: Instant::now(),
            waiting: Vec::new(),
            open: None,
            written: WrittenBlocks::new(self.loans.session().clone()),
        }
    }

    fn open_small(&self, lent: LentBlock, run: ChunkRun, written: &mut WrittenBlocks) -> OpenBlock {
        written.take_in(&lent);
        let write = BlockWrite::start_small(&self.datanodes, self.failed.clone(), &lent, &run);
        let length = run.data.len() as u64;
        OpenBlock {
            lent,
            capacity: length,
            shape: Shape::Small,
            length,
            crcs: run.crcs.clone(),
            fed: 1,
            runs: vec![run],
            held_max: 1,
            first_held: 0,
            write,
            has_tried_without: false,
        }
    }

    /// A streamed block of at most `wanted` bytes, of which `begun` are there already.
    fn open(
        &self,
        lent: LentBlock,
        wanted: u64,
        begun: u64,
        kind: Streamed,
        written: &mut WrittenBlocks,
    ) -> OpenBlock {
        let Streamed { is_exact, memory } = kind;
        let pipeline = &lent.pipeline;
        let is_frail = pipeline.replication == Replication::Three && pipeline.members.len() <= THREE_MIN;
        let is_short = is_frail && written.entries.len() < SHORT_BLOCKS_MAX;
        let kept = begun.max(memory);
        let wanted = if is_short { wanted.min(kept) } else { wanted };
        // Runs are as short as a chunk where blocks end.
        let held_max =
            if wanted <= kept { wanted.div_ceil(CHUNK_BYTES as u64) as usize + 1 } else { RUNS_HELD };
        written.take_in(&lent);
        // Whole chunks, so that a block's last chunk is the only short one.
        let longest =
            lent.token.claim.length_max.min(BLOCK_BYTES_MAX) / CHUNK_BYTES as u64 * CHUNK_BYTES as u64;
        let capacity = wanted.min(longest);
        let write = BlockWrite::start(&self.datanodes, self.failed.clone(), &lent, capacity, is_exact);
        OpenBlock {
            lent,
            capacity,
            shape: Shape::Streamed(kind),
            length: 0,
            crcs: Vec::new(),
            fed: 0,
            runs: Vec::new(),
            held_max,
            first_held: 0,
            write,
            has_tried_without: false,
        }
    }

    /// The same bytes in another block.
    fn again(
        &self,
        old: OpenBlock,
        lent: LentBlock,
        why: &'static str,
        written: &mut WrittenBlocks,
    ) -> Result<OpenBlock, Failure> {
        metrics::block_rewritten(why);
        tracing::info!(from = %old.lent.block, to = %lent.block, why, "writing a block again elsewhere");
        let OpenBlock { capacity, shape, length, crcs, runs, write, .. } = old;
        // Stopped first: two writes of the same bytes at once would cost twice the memory of the window.
        drop(write);
        let mut new = match shape {
            Shape::Small => {
                let run = runs.into_iter().next().expect("a small block has its one run");
                return Ok(self.open_small(lent, run, written));
            }
            Shape::Streamed(kind) => self.open(lent, capacity, length, kind, written),
        };
        if new.capacity < length {
            return Err(Failure::new(Status::Retry, "no container has room for the block; try again"));
        }
        (new.length, new.crcs, new.runs) = (length, crcs, runs);
        Ok(new)
    }

    /// Feeds what is not fed yet, and closes the block if `closes`; on another block if this one cannot be had.
    async fn advance(
        &self,
        mut open: OpenBlock,
        closes: bool,
        written: &mut WrittenBlocks,
    ) -> Result<OpenBlock, Failure> {
        let replication = open.lent.pipeline.replication;
        let mut pause = LOST_PAUSE;
        for turn in 0..BLOCKS_TRIED_MAX {
            let (lent, why) = match open.advance(closes).await {
                Verdict::Reached => {
                    let failed = open.write.failed();
                    match self.without(&mut open, &failed).await {
                        Some(lent) => (lent, "failed"),
                        None => return Ok(open),
                    }
                }
                Verdict::Stuck(failed) => match self.without(&mut open, &failed).await {
                    Some(lent) => (lent, "failed"),
                    None => continue,
                },
                Verdict::Refused(failure) => {
                    // One that has only just started, or has waited long enough, takes the container's next block.
                    if !matches!(failure.status, Status::NotReady | Status::TooSlow) {
                        self.loans.leave(open.lent.block.container);
                    }
                    open.check_held(&failure)?;
                    if turn > 0 {
                        // One closing container is usual. Several say that OM and SCM need a moment.
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    (self.loans.take(replication).await?, "refused")
                }
                Verdict::Lost(failure) => {
                    open.check_held(&failure)?;
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    match self.elsewhere(&open.lent, written).await {
                        Some(lent) => (lent, "failed"),
                        // SCM may yet open one.
                        None if turn + 1 < BLOCKS_TRIED_MAX => continue,
                        None => return Err(gave_up(&failure)),
                    }
                }
            };
            open = self.again(open, lent, why, written)?;
        }
        Err(took_none())
    }

    /// A block without the datanodes that failed this one, if all bytes are here and there can be one. Tried once.
    async fn without(
        &self,
        open: &mut OpenBlock,
        failed: &std::collections::BTreeSet<wire::ids::DatanodeId>,
    ) -> Option<LentBlock> {
        if failed.is_empty() || open.has_tried_without || !open.is_held() {
            return None;
        }
        // The bug leaves the replica out at once.
        if wire::planted::is_on("degrade_by_refusal") {
            return None;
        }
        open.has_tried_without = true;
        self.loans.take_avoiding(open.lent.pipeline.replication, failed).await
    }

    /// Any block in another container than this one's.
    async fn elsewhere(&self, old: &LentBlock, written: &mut WrittenBlocks) -> Option<LentBlock> {
        self.loans.leave(old.block.container);
        let lent = self.loans.take(old.pipeline.replication).await.ok()?;
        if lent.block.container == old.block.container {
            written.take_in(&lent);
            return None;
        }
        Some(lent)
    }

    /// Ends a block: adds it to `written` once it may be committed.
    async fn close(&self, mut open: OpenBlock, written: &mut WrittenBlocks) -> Result<(), Failure> {
        let mut pause = LOST_PAUSE;
        for _ in 0..BLOCKS_TRIED_MAX {
            open = self.advance(open, true, written).await?;
            let failed = open.write.failed();
            if failed.is_empty() || wire::planted::is_on("commit_without_degrade") {
                written.add(&open);
                return Ok(());
            }
            let acknowledged = open.write.acknowledged();
            let container = open.lent.block.container;
            let generation = open.lent.token.claim.generation;
            let answer = self.degrades.degrade(container, generation, &acknowledged, &failed).await;
            // Accepted or not, SCM closes it.
            self.loans.leave(container);
            let failure = match answer {
                Ok(Degraded::Accepted) => {
                    written.add(&open);
                    return Ok(());
                }
                Ok(Degraded::Refused) => {
                    Failure::new(Status::Retry, "replicas of the block were left out by others")
                }
                Err(failure) => failure,
            };
            open.check_held(&failure)?;
            let mut lent = self.elsewhere(&open.lent, written).await;
            while lent.is_none() && pause <= LAST_PAUSE {
                // The container is closing: SCM opens another in a moment.
                tokio::time::sleep(pause).await;
                pause *= 2;
                lent = self.elsewhere(&open.lent, written).await;
            }
            open = self.again(open, lent.ok_or_else(|| gave_up(&failure))?, "failed", written)?;
        }
        Err(took_none())
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
    /// When the last run was cut off.
    cut_at: Instant,
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
                self.cut_at = Instant::now();
                continue;
            }
            if self.buffer.capacity() == 0 {
                self.buffer.reserve(STREAM_RUN_BYTES);
            }
            let piece = data.split_to(room.min(data.len()));
            self.buffer.extend_from_slice(&piece);
            let whole = self.buffer.len() / CHUNK_BYTES * CHUNK_BYTES;
            let is_late = whole > 0 && !self.is_buffering() && self.cut_at.elapsed() >= RUN_WAIT;
            if self.buffer.len() == STREAM_RUN_BYTES {
                let run = std::mem::take(&mut self.buffer).freeze();
                self.push_run(run).await?;
                self.cut_at = Instant::now();
            } else if is_late {
                let run = self.buffer.split_to(whole).freeze();
                self.push_run(run).await?;
                self.cut_at = Instant::now();
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
            self.total = Some(self.received);
            for run in runs {
                self.send(run).await?;
            }
        }
        if !last.is_empty() {
            self.send(last).await?;
        }
        if let Some(open) = self.open.take() {
            self.writer.close(open, &mut self.written).await?;
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
                None => self.next_block().await?,
            };
            let room = open.capacity - open.length;
            let piece = run.split_to((run.len() as u64).min(room) as usize);
            self.streamed += piece.len() as u64;
            open.add(ChunkRun::new(piece));
            if !open.is_full() {
                open = self.writer.advance(open, false, &mut self.written).await?;
            }
            // A block that was begun again on a pipeline of two may be full sooner.
            if open.is_full() {
                self.writer.close(open, &mut self.written).await?;
            } else {
                self.open = Some(open);
            }
        }
        Ok(())
    }

    async fn next_block(&mut self) -> Result<OpenBlock, Failure> {
        let (wanted, is_exact) = match (self.total, self.streamed) {
            (Some(total), streamed) => (total - streamed, true),
            (None, 0) => (STREAM_FIRST_BLOCK_BYTES, false),
            (None, _) => (STREAM_BLOCK_BYTES, false),
        };
        let kind = Streamed { is_exact, memory: body_memory(self.total) as u64 };
        let lent = self.writer.loans.take(self.replication).await?;
        Ok(self.writer.open(lent, wanted, 0, kind, &mut self.written))
    }
}

/// How a block's bytes go to its datanodes.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// All in one message.
    Small,
    /// Run by run.
    Streamed(Streamed),
}

#[derive(Debug, Clone, Copy)]
struct Streamed {
    /// Whether the capacity is the length.
    is_exact: bool,
    /// Bytes that may be kept here.
    memory: u64,
}

/// A block being written.
struct OpenBlock {
    lent: LentBlock,
    capacity: u64,
    shape: Shape,
    length: u64,
    crcs: Vec<u32>,
    /// Runs fed so far.
    fed: usize,
    /// Runs that are still here: from number `first_held` on.
    runs: Vec<ChunkRun>,
    first_held: usize,
    /// While no more came than this, all are kept, so that they can be written elsewhere.
    held_max: usize,
    write: BlockWrite,
    has_tried_without: bool,
}

impl OpenBlock {
    fn add(&mut self, run: ChunkRun) {
        self.length += run.data.len() as u64;
        self.crcs.extend_from_slice(&run.crcs);
        self.runs.push(run);
    }

    fn is_full(&self) -> bool {
        self.length == self.capacity
    }

    /// Whether all bytes so far are here.
    fn is_held(&self) -> bool {
        self.first_held == 0
    }

    fn check_held(&self, failure: &Failure) -> Result<(), Failure> {
        if self.is_held() { Ok(()) } else { Err(gave_up(failure)) }
    }

    /// Feeds what is not fed yet, then closes if `closes`.
    async fn advance(&mut self, closes: bool) -> Verdict {
        while self.fed < self.first_held + self.runs.len() {
            match self.write.feed(&self.runs[self.fed - self.first_held]).await {
                Verdict::Reached => self.fed += 1,
                verdict => return verdict,
            }
        }
        if self.runs.len() > self.held_max || self.first_held > 0 {
            self.first_held += self.runs.len();
            self.runs.clear();
        }
        if !closes {
            return Verdict::Reached;
        }
        let digest = BlockDigest::new(self.lent.block, self.length, &self.crcs);
        self.write.close(self.length, digest).await
    }
}

fn took_none() -> Failure {
    Failure::new(Status::Retry, "datanodes took none of the blocks that were tried; try again")
}

/// What a client is told when the bytes are no longer here to be written elsewhere, or there is no elsewhere.
fn gave_up(failure: &Failure) -> Failure {
    match failure.status {
        Status::DiskFull | Status::Invalid | Status::TooSlow => failure.clone(),
        _ => Failure::new(Status::Retry, format!("the block could not be kept: {failure}")),
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

    fn add(&mut self, open: &OpenBlock) {
        let (block, length) = (open.lent.block, open.length);
        let digest = BlockDigest::new(block, length, &open.crcs);
        self.entries.push(BlockEntry { block, offset: 0, length, block_length: length, digest });
    }
}

impl Drop for WrittenBlocks {
    fn drop(&mut self) {
        let current = self.session.id();
        let blocks: Vec<BlockId> =
            self.taken.drain(..).filter(|(session, _)| *session == current).map(|(_, block)| block).collect();
        if blocks.is_empty() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let session = self.session.clone();
        platform::task::spawn(async move {
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
