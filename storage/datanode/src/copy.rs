//! Copying a replica from another datanode: receiving, writing, reading back, coming into service.
//!
//! ```text
//! ordered -> waiting for a place -> receiving into <id>.copy -> synced -> read back -> sealed
//!                                                               -> <id>.container, in the index, CopyVerified
//! ```
//!
//! The copy is a container file of its own layout: extents in a row, in the order of their ids, chunk CRCs as the first
//! writer made them. Until it has its final name it is served to nobody, and a restart drops it. The name comes after the
//! seal, so a file of that name with a copy's header is a verified copy, also if the index did not hear of it in time: then
//! it is read as a whole at the next start. The seal holds the deletion number the copy inherits.
//!
//! Invariants:
//! * Nothing becomes a replica that was not read back from the medium and found to be what the source's digests say.
//! * An older replica of the container stays until its successor is verified.
//! * A copy that fails leaves nothing but a report.
//!
//! Not here: the sending end (`fetch`), when to copy what (SCM).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::service::{Datanodes, ReplicaStream};
use futures_util::StreamExt;
use parking_lot::Mutex;
use platform::disk::{BlockFile, OpenMode};
use platform::task;
use tokio::sync::Semaphore;
use wire::block::{BlockToken, DatanodeAddress, Replication};
use wire::chunk::BlockDigest;
use wire::datanode::{FetchReplica, ReplicaPiece};
use wire::ids::{BlockId, ContainerId, Generation, LocalId};
use wire::limits::BLOCK_BYTES_MAX;
use wire::scm::{ReplicaCondition, ReplicaReport};
use wire::status::{Failure, Status};

use crate::container::{Container, State, file_name};
use crate::disk::Disk;
use crate::error::BlockError;
use crate::extent::{
    ContainerHeader, ExtentHeader, ExtentTrailer, PAGE_BYTES, Salt, decode_seal, encode_crcs, encode_seal,
};
use crate::index::{Extent, IndexBatch};
use crate::layout::{ContainerLayout, LAYOUT_CURRENT, layout};
use crate::metrics;
use crate::node::Node;
use crate::recovery::read_whole;
use crate::write::check_run;

/// The end of the name of a copy that is not verified.
pub(crate) const COPY_SUFFIX: &str = ".copy";
/// Copies remembered at most: under way, waiting or failed. SCM repeats what was left out.
const COPIES_MAX: usize = 64;
/// A source that sends nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(30);
/// An order that comes again sooner after its failure is the repeat of one SCM had not heard the failure of.
const RETRY_NS: u64 = 10 * 1_000_000_000;
/// A copy that waits for its bandwidth looks so often whether it is still wanted.
const THROTTLE_SLICE: Duration = Duration::from_millis(500);
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// SCM hears of a read-back every so many bytes.
const TELL_BYTES: u64 = 8 << 20;
/// Rows of one commit that enters a copy into the index.
const ROWS_PER_COMMIT: usize = 4096;
/// Bytes an extent takes beyond its data, at most: header, trailer, and rounding. Its chunk list is counted apart.
const EXTENT_EXTRA_BYTES: u64 = 64 + 64 + 4 + PAGE_BYTES;

/// What SCM wants copied.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) container: ContainerId,
    /// Of the copy.
    pub(crate) generation: Generation,
    pub(crate) source: DatanodeAddress,
    pub(crate) source_generation: Generation,
    pub(crate) token: BlockToken,
    /// 0 for no limit.
    pub(crate) bytes_per_second: u64,
}

/// All copies that are under way or have failed.
pub(crate) struct Copies {
    copies: Mutex<BTreeMap<ContainerId, Copy>>,
    places: Arc<Semaphore>,
}

/// One of them, as SCM is told.
#[derive(Debug, Clone)]
struct Copy {
    report: ReplicaReport,
    is_cancelled: bool,
    /// Its share of the bandwidth now; 0 for no limit. SCM tells it again as other copies begin and end.
    bytes_per_second: u64,
    /// On the steady clock.
    failed_at_ns: Option<u64>,
}

/// What was decided about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is to be carried out.
    Begin,
    /// It is under way, has just failed, or there is no place for it: SCM hears so.
    Known,
}

impl Copies {
    pub(crate) fn new(places: usize) -> Self {
        Self { copies: Mutex::default(), places: Arc::new(Semaphore::new(places.max(1))) }
    }

    /// Enters an order.
    pub(crate) fn take(&self, order: &Order, now_ns: u64) -> Taken {
        let mut copies = self.copies.lock();
        if let Some(copy) = copies.get_mut(&order.container) {
            let is_running = copy.failed_at_ns.is_none();
            if is_running && copy.report.generation < order.generation {
                // The former must end first; SCM repeats the order.
                copy.is_cancelled = true;
            }
            if is_running && copy.report.generation == order.generation {
                copy.bytes_per_second = order.bytes_per_second;
            }
            let is_fresh = copy.failed_at_ns.is_some_and(|at| now_ns.saturating_sub(at) < RETRY_NS);
            if is_running || (is_fresh && copy.report.generation == order.generation) {
                return Taken::Known;
            }
        } else if copies.len() >= COPIES_MAX {
            let failed = copies.iter().find(|(_, copy)| copy.failed_at_ns.is_some()).map(|(id, _)| *id);
            let Some(failed) = failed else { return Taken::Known };
            copies.remove(&failed);
        }
        let report = ReplicaReport {
            container: order.container,
            generation: order.generation,
            replication: order.token.claim.replication,
            is_sealed: false,
            written_bytes: 0,
            used_bytes: 0,
            block_count: 0,
            deletion_done: 0,
            is_unhealthy: false,
            condition: ReplicaCondition::Copying { received_bytes: 0 },
            disk: String::new(),
        };
        let bytes_per_second = order.bytes_per_second;
        let copy = Copy { report, is_cancelled: false, bytes_per_second, failed_at_ns: None };
        copies.insert(order.container, copy);
        Taken::Begin
    }

    /// Gives up a copy of at most `generation`. Whether none is under way any more.
    pub(crate) fn give_up(&self, container: ContainerId, generation: Generation) -> bool {
        let mut copies = self.copies.lock();
        match copies.get_mut(&container) {
            Some(copy) if copy.report.generation > generation => true,
            Some(copy) if copy.failed_at_ns.is_none() => {
                copy.is_cancelled = true;
                false
            }
            Some(_) => {
                copies.remove(&container);
                true
            }
            None => true,
        }
    }

    /// Whether a copy of the container is under way.
    pub(crate) fn is_running(&self, container: ContainerId) -> bool {
        self.copies.lock().get(&container).is_some_and(|copy| copy.failed_at_ns.is_none())
    }

    /// What SCM is told of one.
    pub(crate) fn report(&self, container: ContainerId) -> Option<ReplicaReport> {
        self.copies.lock().get(&container).map(|copy| copy.report.clone())
    }

    /// What SCM is told of all.
    pub(crate) fn reports(&self) -> Vec<ReplicaReport> {
        self.copies.lock().values().map(|copy| copy.report.clone()).collect()
    }

    /// The bytes a second that a copy may take now; 0 for no limit.
    fn share(&self, container: ContainerId) -> u64 {
        self.copies.lock().get(&container).map_or(0, |copy| copy.bytes_per_second)
    }

    fn check(&self, container: ContainerId) -> Result<(), BlockError> {
        let is_wanted = self.copies.lock().get(&container).is_some_and(|copy| !copy.is_cancelled);
        if is_wanted { Ok(()) } else { Err(BlockError::Refused(container, "its copy is no longer wanted")) }
    }

    fn change(&self, container: ContainerId, change: impl FnOnce(&mut Copy)) {
        if let Some(copy) = self.copies.lock().get_mut(&container) {
            change(copy);
        }
    }

    /// SCM is to hear that it moves: a copy that does not is given up.
    fn tell(&self, node: &Node, container: ContainerId, received_bytes: u64) {
        self.change(container, |copy| copy.report.condition = ReplicaCondition::Copying { received_bytes });
        node.changes.add(container);
    }

    fn remove(&self, container: ContainerId) {
        self.copies.lock().remove(&container);
    }
}

/// Carries out an order that was taken.
pub(crate) async fn run(node: Arc<Node>, datanodes: Arc<Datanodes>, order: Order) {
    let container = order.container;
    let places = node.copies.places.clone();
    // Never closed.
    let Ok(_place) = places.acquire_owned().await else { return };
    let begun_ns = wire::clock::steady_ns();
    let outcome = receive(&node, &datanodes, &order, begun_ns).await;
    match outcome {
        Ok(bytes) => {
            let elapsed_ms = (wire::clock::steady_ns() - begun_ns) / 1_000_000;
            metrics::copy_done(bytes);
            tracing::info!(%container, source = %order.source.id, bytes, elapsed_ms, "replica copied and verified");
        }
        Err(_) if node.copies.check(container).is_err() => {
            tracing::info!(%container, "a copy that is no longer wanted was given up");
            node.copies.remove(container);
        }
        Err(error) => {
            metrics::copy_failed();
            tracing::warn!(%container, source = %order.source.id, %error, "replica not copied");
            node.copies.change(container, |copy| {
                copy.report.condition = ReplicaCondition::CopyFailed;
                copy.failed_at_ns = Some(wire::clock::steady_ns());
            });
        }
    }
    node.changes.add(container);
    node.changes.urgent.notify_one();
}

async fn receive(
    node: &Arc<Node>,
    datanodes: &Datanodes,
    order: &Order,
    begun_ns: u64,
) -> Result<u64, BlockError> {
    node.copies.check(order.container)?;
    let source = datanodes.get(&order.source).map_err(BlockError::Stream)?;
    let request = FetchReplica {
        container: order.container,
        generation: order.source_generation,
        token: order.token.clone(),
    };
    let fetched = tokio::time::timeout(SILENCE, source.fetch_replica(request)).await;
    let mut pieces = fetched.map_err(|_| silent())?.map_err(BlockError::Stream)?;
    let ReplicaPiece::Head { replication, deletion_done, block_count, used_bytes } =
        next(&mut pieces).await?
    else {
        return Err(BlockError::Invalid("a replica begins with its head"));
    };
    let head = Head { replication, deletion_done, block_count, used_bytes };
    let (house, wanted) = (node.clone(), order.clone());
    let created = task::spawn_blocking(move || CopyFile::create(house, &wanted, head));
    let mut copy = created.await.map_err(|_| BlockError::Stopping)??;
    let mut pace = Pace { bytes_per_second: order.bytes_per_second, since_ns: begun_ns, bytes: 0 };
    while copy.take(next(&mut pieces).await?)? {
        if copy.buffer.len() < WRITE_BYTES {
            continue;
        }
        node.copies.check(order.container)?;
        let written = task::spawn_blocking(move || copy.write_pages().map(|()| copy));
        copy = written.await.map_err(|_| BlockError::Stopping)??;
        node.copies.tell(node, order.container, copy.received);
        pace.keep(&node.copies, order.container, copy.received).await?;
    }
    drop(pieces);
    let bytes = copy.received;
    let finished = task::spawn_blocking(move || copy.finish());
    finished.await.map_err(|_| BlockError::Stopping)??;
    Ok(bytes)
}

fn silent() -> BlockError {
    BlockError::Stream(Failure::new(Status::Retry, "the source of a copy is silent"))
}

async fn next(pieces: &mut ReplicaStream) -> Result<ReplicaPiece, BlockError> {
    let piece = tokio::time::timeout(SILENCE, pieces.next()).await.map_err(|_| silent())?;
    let early = || Err(Failure::new(Status::Retry, "the source of a copy ended early"));
    piece.unwrap_or_else(early).map_err(BlockError::Stream)
}

/// How fast a copy has come since its share was last changed.
struct Pace {
    bytes_per_second: u64,
    since_ns: u64,
    /// Bytes that had come by then.
    bytes: u64,
}

impl Pace {
    /// Waits until so many bytes may have come; not longer than the copy is wanted.
    async fn keep(&mut self, copies: &Copies, container: ContainerId, bytes: u64) -> Result<(), BlockError> {
        loop {
            let now_ns = wire::clock::steady_ns();
            let share = copies.share(container);
            if share != self.bytes_per_second {
                *self = Self { bytes_per_second: share, since_ns: now_ns, bytes };
            }
            if share == 0 {
                return Ok(());
            }
            let due_ns = u128::from(bytes - self.bytes) * 1_000_000_000 / u128::from(share);
            let elapsed_ns = u128::from(now_ns.saturating_sub(self.since_ns));
            let Some(wait_ns) = due_ns.checked_sub(elapsed_ns).filter(|wait| *wait > 0) else {
                return Ok(());
            };
            let wait = u64::try_from(wait_ns).map_or(THROTTLE_SLICE, Duration::from_nanos);
            tokio::time::sleep(wait.min(THROTTLE_SLICE)).await;
            copies.check(container)?;
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Head {
    replication: Replication,
    deletion_done: u64,
    block_count: u64,
    used_bytes: u64,
}

/// The file of a copy that is not verified. Dropped before it has its final name, it goes.
struct CopyFile {
    node: Arc<Node>,
    disk: Arc<Disk>,
    file: Arc<dyn BlockFile>,
    header: ContainerHeader,
    layout: &'static dyn ContainerLayout,
    head: Head,
    /// What was written so far, and what comes next.
    position: u64,
    buffer: Vec<u8>,
    received: u64,
    current: Option<Incoming>,
    extents: Vec<(LocalId, Extent)>,
    is_named: bool,
}

/// A block that is arriving.
struct Incoming {
    header: ExtentHeader,
    offset: u64,
    length: u64,
    digest: BlockDigest,
    crcs: Vec<u32>,
}

fn copy_name(container: ContainerId) -> String {
    format!("{:016x}{COPY_SUFFIX}", container.0)
}

impl CopyFile {
    /// Makes the file with room for all that will come.
    fn create(node: Arc<Node>, order: &Order, head: Head) -> Result<Self, BlockError> {
        let header = ContainerHeader {
            layout: LAYOUT_CURRENT,
            container: order.container,
            generation: order.generation,
            replication: head.replication,
            replica_index: 0,
            is_copy: true,
            cluster: node.config.cluster,
            salt: Salt(wire::random::array()),
        };
        let layout = layout(header.layout).expect("new containers have the current layout");
        let room = head
            .block_count
            .checked_mul(EXTENT_EXTRA_BYTES)
            .and_then(|extra| extra.checked_add(head.used_bytes + head.used_bytes / (16 << 10)))
            .and_then(|bytes| bytes.checked_add(layout.first_extent()))
            .ok_or(BlockError::Invalid("a replica is not as large as that"))?;
        let disk = node.emptiest_disk()?;
        if !disk.has_room(room)? {
            return Err(BlockError::DiskFull);
        }
        node.copies.change(order.container, |copy| {
            copy.report.disk = disk.io.name();
            copy.report.replication = head.replication;
        });
        let failed = |error| disk.io_failed("make a copy", error);
        let file = disk.io.open(&copy_name(order.container), OpenMode::Fresh).map_err(failed)?;
        let copy = Self {
            file: file.clone(),
            header,
            layout,
            head,
            position: layout.first_extent(),
            buffer: Vec::with_capacity(WRITE_BYTES * 2),
            received: 0,
            current: None,
            extents: Vec::new(),
            is_named: false,
            disk: disk.clone(),
            node,
        };
        // From here on the file goes when it is not wanted. Without room there is an error before the bytes come.
        file.allocate(0, room.next_multiple_of(PAGE_BYTES)).map_err(failed)?;
        file.write_at(0, &[&header.encode()]).map_err(failed)?;
        Ok(copy)
    }

    fn id(&self) -> ContainerId {
        self.header.container
    }

    /// Takes the next piece; false after the last.
    fn take(&mut self, piece: ReplicaPiece) -> Result<bool, BlockError> {
        match piece {
            ReplicaPiece::Head { .. } => Err(BlockError::Invalid("a replica has one head")),
            ReplicaPiece::Block { local, length, digest } => {
                self.begin_block(local, length, digest)?;
                Ok(true)
            }
            ReplicaPiece::Run(run) => {
                let Some(current) = &mut self.current else {
                    return Err(BlockError::Invalid("bytes without a block"));
                };
                let at = self.position + self.buffer.len() as u64;
                let before = at - current.offset - self.layout.data_offset();
                check_run(&run, before, current.length)?;
                self.buffer.extend_from_slice(&run.data);
                current.crcs.extend_from_slice(&run.crcs);
                self.received += run.data.len() as u64;
                if before + run.data.len() as u64 == current.length {
                    self.end_block()?;
                }
                Ok(true)
            }
            ReplicaPiece::End => {
                let is_all = self.current.is_none()
                    && self.extents.len() as u64 == self.head.block_count
                    && self.received == self.head.used_bytes;
                if is_all { Ok(false) } else { Err(BlockError::Invalid("the replica is not whole")) }
            }
        }
    }

    fn begin_block(&mut self, local: LocalId, length: u64, digest: BlockDigest) -> Result<(), BlockError> {
        let is_next = self.current.is_none()
            && self.extents.last().is_none_or(|(last, _)| *last < local)
            && (self.extents.len() as u64) < self.head.block_count
            && (1..=BLOCK_BYTES_MAX).contains(&length)
            && self.received + length <= self.head.used_bytes;
        if !is_next {
            return Err(BlockError::Invalid("a block of the replica does not follow"));
        }
        let header = ExtentHeader {
            block: BlockId { container: self.id(), local },
            generation: self.header.generation,
            nonce: wire::random::u64(),
            reserved: length,
            is_exact: true,
        };
        let offset = self.position + self.buffer.len() as u64;
        self.buffer.extend_from_slice(&self.layout.encode_header(&header, offset, &self.header.salt));
        self.current = Some(Incoming { header, offset, length, digest, crcs: Vec::new() });
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), BlockError> {
        let Some(Incoming { header, offset, length, digest, crcs }) = self.current.take() else {
            return Ok(());
        };
        if BlockDigest::new(header.block, length, &crcs) != digest {
            return Err(BlockError::Corrupt(
                header.block,
                "it arrived with other checksums than its digest's",
            ));
        }
        let size = self.layout.extent_bytes(length);
        let trailer = ExtentTrailer {
            block: header.block,
            generation: header.generation,
            nonce: header.nonce,
            length,
            digest,
        };
        let mut tail = encode_crcs(&crcs);
        tail.extend_from_slice(&self.layout.encode_trailer(&trailer, offset, &self.header.salt));
        let end = (offset + size - self.position) as usize;
        self.buffer.resize(end - tail.len(), 0);
        self.buffer.extend_from_slice(&tail);
        self.extents.push((header.block.local, Extent { offset, size, length, digest }));
        Ok(())
    }

    /// Writes the whole pages that have gathered.
    fn write_pages(&mut self) -> Result<(), BlockError> {
        self.disk.check(self.id())?;
        let whole = self.buffer.len() - self.buffer.len() % PAGE_BYTES as usize;
        let written = self.file.write_at(self.position, &[&self.buffer[..whole]]);
        written.map_err(|error| self.disk.io_failed("write a copy", error))?;
        self.file.start_writeback(self.position, whole as u64);
        self.position += whole as u64;
        self.buffer.drain(..whole);
        Ok(())
    }

    /// All has come: makes it durable, reads it back, seals it and takes it into service.
    fn finish(mut self) -> Result<(), BlockError> {
        self.write_pages()?;
        let (id, end) = (self.id(), self.position);
        let failed = |error| self.disk.io_failed("finish a copy", error);
        self.file.set_length(end).map_err(failed)?;
        self.sync()?;
        wire::failpoint::hit("datanode_copy_synced");
        if !wire::planted::is_on("copy_without_verify") {
            self.verify()?;
        }
        let seal = encode_seal(&self.header, end, self.head.deletion_done);
        self.file.write_at(PAGE_BYTES, &[&seal]).map_err(failed)?;
        self.sync()?;
        self.file.drop_cached(u64::MAX).map_err(failed)?;
        let page = self.read_back(PAGE_BYTES, PAGE_BYTES as usize)?;
        if decode_seal(&page, &self.header).is_none() {
            return Err(BlockError::Damaged(id, "the seal of the copy is not what was written"));
        }
        wire::failpoint::hit("datanode_copy_sealed");
        self.install(end)
    }

    /// Beside the syncs of other files: this one takes longer, and nothing else is acknowledged by it.
    fn sync(&self) -> Result<(), BlockError> {
        self.disk.check(self.id())?;
        self.file.sync_all().map_err(|error| {
            self.disk.fail("sync a copy", &error);
            BlockError::DiskFailed(self.id())
        })
    }

    fn read_back(&self, offset: u64, length: usize) -> Result<Vec<u8>, BlockError> {
        let read = self.file.read_at(offset, length);
        read.map_err(|error| self.disk.read_failed("read a copy back", error))
    }

    /// Reads every byte from the medium and compares it with what the source promised.
    fn verify(&self) -> Result<(), BlockError> {
        let id = self.id();
        self.file.drop_cached(u64::MAX).map_err(|error| self.disk.io_failed("read a copy back", error))?;
        let page = self.read_back(0, PAGE_BYTES as usize)?;
        if page != self.header.encode() {
            return Err(BlockError::Damaged(id, "the header of the copy is not what was written"));
        }
        let (mut read_back, mut told) = (0, 0);
        for (number, (local, extent)) in self.extents.iter().enumerate() {
            if number % 256 == 0 {
                self.node.copies.check(id)?;
            }
            let block = BlockId { container: id, local: *local };
            let bytes = self.read_back(extent.offset, self.layout.header_bytes())?;
            let header = self.layout.decode_header(&bytes, extent.offset, &self.header.salt);
            let header = header.filter(|header| {
                header.block == block && self.layout.extent_bytes(header.reserved) == extent.size
            });
            let Some(header) = header else {
                return Err(BlockError::Corrupt(block, "its copy was not read back as it was written"));
            };
            let whole = read_whole(&*self.file, &self.header, self.layout, &header, extent.offset)
                .map_err(|error| self.disk.read_failed("read a copy back", error))?;
            if whole != Some(*extent) {
                return Err(BlockError::Corrupt(block, "its copy was not read back as it was written"));
            }
            read_back += extent.length;
            if read_back - told >= TELL_BYTES {
                told = read_back;
                self.node.copies.tell(&self.node, id, self.received + read_back);
            }
        }
        Ok(())
    }

    /// Gives the file its name, its rows, and its place among the replicas.
    fn install(mut self, end: u64) -> Result<(), BlockError> {
        let (id, node, disk) = (self.id(), self.node.clone(), self.disk.clone());
        let failed = |error| disk.io_failed("name a copy", error);
        let named = {
            let _creating = node.creating.lock();
            node.copies.check(id)?;
            if let Some(older) = node.older_than(id, self.header.generation)? {
                node.drop_replica(&older)?;
            }
            let lost = node.lost.lock().get(&id).map(|lost| lost.generation);
            if let Some(older) = lost.filter(|lost| *lost < self.header.generation) {
                // Its file may lie on another disk, where nobody would look for it before the next start. A disk that is
                // full or ill must not cost this copy.
                if let Err(error) = node.drop_lost(id, older) {
                    tracing::warn!(container = %id, %error, "what is left of a lost replica stays until the next start");
                }
            }
            disk.io.rename(&copy_name(id), &file_name(id)).map_err(failed)?;
            self.is_named = true;
            disk.io.sync_names().map_err(failed)
        };
        wire::failpoint::hit("datanode_copy_named");
        // Rows may take seconds, and other containers need not wait: nobody makes or drops one of this id while its copy
        // counts as under way.
        let state = State {
            next_offset: end,
            zeroed_end: end,
            allocated_end: end,
            is_sealed: true,
            used_bytes: self.received,
            block_count: self.extents.len() as u64,
            deletion_done: self.head.deletion_done,
            ..State::default()
        };
        let extents = std::mem::take(&mut self.extents);
        let container =
            Arc::new(Container::new(self.header, self.layout, disk.clone(), self.file.clone(), state));
        if let Err(error) = named.and_then(|()| enter(&container, &extents)) {
            // The file is whole and named, and the next start reads it. Until then nobody may write one beside it. SCM hears
            // that it is lost, and has it dropped.
            let mut report = container.report();
            (report.condition, report.is_unhealthy) = (ReplicaCondition::Lost, true);
            node.lost.lock().insert(id, report);
            return Err(error);
        }
        node.lost.lock().remove(&id);
        node.containers.write().insert(id, container.clone());
        disk.files.opened(&container);
        // Last: whoever looks finds one or the other.
        node.copies.remove(id);
        Ok(())
    }
}

/// Writes a copy's rows into the index.
fn enter(container: &Arc<Container>, extents: &[(LocalId, Extent)]) -> Result<(), BlockError> {
    let (id, disk) = (container.id(), &container.disk);
    let commit = |batch, is_durable| {
        let _writer = disk.index_writer.lock();
        disk.flush_index_with(batch, is_durable, None)
    };
    commit(IndexBatch { purge: vec![id], ..IndexBatch::default() }, false)?;
    for rows in extents.chunks(ROWS_PER_COMMIT) {
        let put_blocks = rows.iter().map(|(local, extent)| (id, *local, *extent)).collect();
        commit(IndexBatch { put_blocks, ..IndexBatch::default() }, false)?;
    }
    let row = container.row(&container.state.lock(), None);
    commit(IndexBatch { put_containers: vec![(id, row)], ..IndexBatch::default() }, true)
}

impl Drop for CopyFile {
    fn drop(&mut self) {
        if self.is_named || self.disk.is_failed() {
            return;
        }
        // Best effort: the next start removes it too.
        let removed = self.disk.io.remove(&copy_name(self.id())).and_then(|()| self.disk.io.sync_names());
        if let Err(error) = removed {
            tracing::warn!(container = %self.id(), %error, "the file of a failed copy stays until the next start");
        }
    }
}
