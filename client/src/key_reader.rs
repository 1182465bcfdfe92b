//! Reads a range of a version: block after block, from the nearest whole replica, in mid-stream from another if one fails.
//!
//! ```text
//!   replicas of a block: own process, the one that served this stream last, the others by turns; those that failed a
//!   moment ago last
//!     `- no first byte, or no next run, for a second | error --> the next one, from the exact chunk on
//!     `- none left --> OM is asked where the container is now, once a block --> each of those once more
//!     `- none left --> the stream ends with an error
//! ```
//!
//! An error item means that the rest cannot be had: the gateway breaks the connection, since a truncated body must never
//! end cleanly. It says what gives most hope: a datanode that is away may come back, a damaged block may not.
//!
//! Memory: a datanode in this process reads ahead, so a stream that is not being taken holds [`READ_AHEAD_BYTES`]; the
//! caller takes them out of its budget.
//!
//! A token that ends soon is renewed by OM before a block is opened, with those of the blocks that follow: a download may
//! take longer than a token lives. One that a datanode refuses all the same is renewed once.
//!
//! Invariant: the items join to exactly the asked range, or the last item is an error.
//!
//! Not here: which version and whether it may be read (gateway), checks of the bytes (datanode and its stub).

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use wire::block::{BlockEntry, BlockToken, ContainerLocation, ReplicaLocation};
use wire::clock;
use wire::datanode::ReadBlock;
use wire::ids::{ContainerId, DatanodeId, WriteId};
use wire::limits::{CHUNK_BYTES, CLOCK_SKEW_MS};
use wire::om::{BucketRef, GetLayout, LAYOUT_PAGE_ENTRIES_MAX, LayoutPage, RefreshLocations, RenewTokens};
use wire::status::{Failure, Status};

use crate::block_write::{LAST_PATIENCE, STANDSTILL};
use crate::error::failure_of;
use crate::failed_nodes::FailedNodes;
use crate::metrics;
use crate::service::{ChunkStream, Datanodes};
use crate::session::Session;

/// What a stream holds at most: a run being sent and the next one, of 512 KiB each (datanode).
pub const READ_AHEAD_BYTES: usize = 1 << 20;
/// A replica that gives nothing for this long is left for another one. The last one there is gets `LAST_PATIENCE`.
const REPLICA_PATIENCE: Duration = Duration::from_secs(1);
/// A datanode that failed a read is asked after the others for this long, or until it serves one: long enough that a
/// stopped node costs few readers their second, short enough that a restarted one is soon used.
const FAILED_MEMORY: Duration = Duration::from_secs(10);

/// A token that ends within this is renewed before it is shown: clocks differ, and a replica may take its time.
const TOKEN_LEFT_MS: u64 = 2 * CLOCK_SKEW_MS;

/// Bytes of a key, in order.
pub type KeyStream = Pin<Box<dyn Stream<Item = Result<Bytes, Failure>> + Send>>;

/// Reads keys for a gateway.
pub struct KeyReader {
    session: Arc<Session>,
    datanodes: Arc<Datanodes>,
    failed: FailedNodes,
}

impl KeyReader {
    /// A reader that asks OM through `session`.
    pub fn new(session: Arc<Session>, datanodes: Arc<Datanodes>) -> Arc<Self> {
        Arc::new(Self { session, datanodes, failed: FailedNodes::new(FAILED_MEMORY) })
    }

    /// Streams bytes `range` of a version whose block list begins with `first`. Further pages are fetched as needed.
    pub fn read(
        self: &Arc<Self>,
        bucket: BucketRef,
        write_id: WriteId,
        first: LayoutPage,
        range: Range<u64>,
    ) -> KeyStream {
        let mut reading = Reading {
            reader: self.clone(),
            bucket,
            write_id,
            position: range.start,
            end: range.end,
            page_end: first.start,
            slices: VecDeque::new(),
            open: None,
            last_good: None,
        };
        reading.take_page(first);
        Box::pin(stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reading))),
                Ok(None) => None,
                Err(failure) => Some((Err(failure), None)),
            }
        }))
    }
}

/// A range on its way.
struct Reading {
    reader: Arc<KeyReader>,
    bucket: BucketRef,
    write_id: WriteId,
    /// The next byte to give out.
    position: u64,
    end: u64,
    /// Where the pages read so far end.
    page_end: u64,
    slices: VecDeque<Slice>,
    open: Option<OpenSlice>,
    /// Who served the last run.
    last_good: Option<DatanodeId>,
}

/// A block entry with what is needed to read it.
struct Slice {
    /// Byte of the object at which it begins.
    start: u64,
    entry: BlockEntry,
    token: BlockToken,
    /// Still to be tried, the best first.
    replicas: VecDeque<ReplicaLocation>,
    /// OM was asked where the container is now.
    is_refreshed: bool,
    /// A datanode refused the token, and OM was asked for another.
    is_renewed: bool,
    /// What most gives hope of the failures so far.
    failure: Option<Failure>,
}

struct OpenSlice {
    slice: Slice,
    datanode: DatanodeId,
    body: ChunkStream,
    /// Bytes to drop from the next run: a datanode begins at a chunk's start.
    skip: u64,
}

impl Slice {
    fn patience(&self) -> Duration {
        let is_last = self.replicas.is_empty() && self.is_refreshed;
        if is_last { LAST_PATIENCE } else { REPLICA_PATIENCE }
    }

    fn note(&mut self, failure: Failure) {
        let hope = |failure: &Failure| match failure.status {
            Status::NotFound => 0,
            Status::Corrupt => 1,
            Status::Internal | Status::Denied | Status::Invalid => 2,
            _ => 3,
        };
        if self.failure.as_ref().is_none_or(|known| hope(known) <= hope(&failure)) {
            self.failure = Some(failure);
        }
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.position < self.end {
            let Some(mut open) = self.open.take() else {
                let mut slice = self.next_slice().await?;
                self.sort(&mut slice);
                self.open = Some(self.open_slice(slice).await?);
                continue;
            };
            let outcome = patient(open.body.next(), open.slice.patience()).await;
            let slice_end = (open.slice.start + open.slice.entry.length).min(self.end);
            let failure = match outcome {
                Some(Some(Ok(run))) => {
                    self.reader.failed.clear(open.datanode);
                    self.last_good = Some(open.datanode);
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
                    continue;
                }
                Some(Some(Err(failure))) => failure,
                Some(None) => Failure::new(Status::Retry, "a datanode ended a block early"),
                None => silent(open.datanode),
            };
            let OpenSlice { mut slice, datanode, body, .. } = open;
            drop(body);
            self.failed(&mut slice, datanode, failure);
            self.open = Some(self.open_slice(slice).await?);
        }
        Ok(None)
    }

    fn failed(&self, slice: &mut Slice, datanode: DatanodeId, failure: Failure) {
        tracing::warn!(block = %slice.entry.block, %datanode, %failure, "a replica failed a read");
        metrics::read_replica_failed();
        // A replica that is gone says nothing about its node.
        if failure.status != Status::NotFound {
            self.reader.failed.note(datanode);
        }
        slice.note(failure);
    }

    /// The best replica first. Blocks begin at different ones, so that readers do not all go to the same node.
    fn sort(&self, slice: &mut Slice) {
        let replicas = slice.replicas.make_contiguous();
        if replicas.len() < 2 {
            return;
        }
        replicas.rotate_left((slice.entry.block.local.0 % replicas.len() as u64) as usize);
        replicas.sort_by_key(|replica| {
            let id = replica.datanode.id;
            let is_near = self.reader.datanodes.is_local(id);
            (self.reader.failed.has(id), !is_near, self.last_good != Some(id))
        });
    }

    /// Opens what is left of a block at the next replica that answers.
    async fn open_slice(&mut self, mut slice: Slice) -> Result<OpenSlice, Failure> {
        loop {
            while let Some(replica) = slice.replicas.pop_front() {
                let datanode = replica.datanode.id;
                if ends_soon(&slice.token) {
                    self.renew_tokens(&mut slice).await;
                }
                let patience = slice.patience();
                match patient(self.open_at(&slice, replica.clone()), patience).await {
                    Some(Ok(body)) => {
                        let offset = slice.entry.offset + (self.position - slice.start);
                        return Ok(OpenSlice { slice, datanode, body, skip: offset % CHUNK_BYTES as u64 });
                    }
                    Some(Err(failure)) if failure.status == Status::Denied && !slice.is_renewed => {
                        slice.is_renewed = true;
                        self.renew_tokens(&mut slice).await;
                        slice.replicas.push_front(replica);
                    }
                    Some(Err(failure)) => self.failed(&mut slice, datanode, failure),
                    None => self.failed(&mut slice, datanode, silent(datanode)),
                }
            }
            if slice.is_refreshed {
                let block = slice.entry.block;
                let nobody = || Failure::new(Status::Retry, format!("no replica of block {block} is known"));
                return Err(slice.failure.unwrap_or_else(nobody));
            }
            self.refresh(&mut slice).await;
        }
    }

    fn open_at(
        &self,
        slice: &Slice,
        replica: ReplicaLocation,
    ) -> impl Future<Output = Result<ChunkStream, Failure>> + Send + use<> {
        let within = self.position - slice.start;
        let request = ReadBlock {
            block: slice.entry.block,
            token: slice.token.clone(),
            offset: slice.entry.offset + within,
            length: (slice.entry.length - within).min(self.end - self.position),
            block_length: slice.entry.block_length,
            digest: slice.entry.digest,
        };
        let datanode = self.reader.datanodes.get(&replica.datanode);
        async move { datanode?.read_block(request).await }
    }

    /// Has OM renew the token of a block, and those of the blocks after it that end soon. If it cannot, the old one may still
    /// do: the datanode decides.
    async fn renew_tokens(&mut self, slice: &mut Slice) {
        let is_due = |next: &&mut Slice| ends_soon(&next.token);
        let mut due: Vec<&mut Slice> =
            self.slices.iter_mut().filter(is_due).take(LAYOUT_PAGE_ENTRIES_MAX - 1).collect();
        due.insert(0, slice);
        let blocks = due.iter().map(|slice| (slice.entry.block, slice.entry.block_length)).collect();
        match self.reader.session.call(RenewTokens { blocks }).await {
            Ok(tokens) => due.into_iter().zip(tokens).for_each(|(slice, token)| slice.token = token),
            Err(error) => {
                let failure = failure_of(error);
                tracing::info!(block = %due[0].entry.block, %failure, "read tokens could not be renewed");
                due[0].note(failure);
            }
        }
    }

    /// Asks where the container is now.
    async fn refresh(&mut self, slice: &mut Slice) {
        slice.is_refreshed = true;
        metrics::locations_refreshed();
        let container = slice.entry.block.container;
        let request = RefreshLocations { containers: vec![container] };
        match self.reader.session.call(request).await {
            Ok(locations) => {
                slice.replicas = replicas_of(container, &locations).into();
                self.sort(slice);
            }
            // The replicas' own failure says more.
            Err(error) => slice.note(failure_of(error)),
        }
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
            let page = self.reader.session.call(request).await.map_err(failure_of)?;
            let before = self.page_end;
            self.take_page(page);
            if self.page_end <= before || self.page_end <= self.position {
                return Err(Failure::new(Status::Internal, "the block list ends before the key does"));
            }
        }
    }

    fn take_page(&mut self, page: LayoutPage) {
        self.page_end = page.start;
        for (entry, token) in page.entries.into_iter().zip(page.tokens) {
            let replicas = replicas_of(entry.block.container, &page.locations).into();
            let start = self.page_end;
            self.page_end += entry.length;
            self.slices.push_back(Slice {
                start,
                entry,
                token,
                replicas,
                is_refreshed: false,
                is_renewed: false,
                failure: None,
            });
        }
    }
}

fn replicas_of(container: ContainerId, locations: &[ContainerLocation]) -> Vec<ReplicaLocation> {
    let location = locations.iter().find(|location| location.container == container);
    location.map(|location| location.replicas.clone()).unwrap_or_default()
}

fn ends_soon(token: &BlockToken) -> bool {
    clock::now_ms().saturating_add(TOKEN_LEFT_MS) > token.claim.expires_ms
}

fn silent(datanode: DatanodeId) -> Failure {
    Failure::new(Status::Retry, format!("datanode {datanode} gives nothing"))
}

/// Waits for `work`, but no longer than `patience`. A timer that comes late says that this process stood still, and nothing
/// about the work: then the wait begins again.
async fn patient<T>(work: impl Future<Output = T>, patience: Duration) -> Option<T> {
    let mut work = pin!(work);
    loop {
        let due = Instant::now() + patience;
        tokio::select! {
            biased;
            done = &mut work => return Some(done),
            () = sleep_until(due) => {
                if Instant::now().duration_since(due) <= STANDSTILL {
                    return None;
                }
            }
        }
    }
}
