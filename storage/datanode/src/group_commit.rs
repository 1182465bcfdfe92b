//! Group commit: all writers of a disk that wait share one sync a file.
//!
//! A writer puts its bytes in place and queues up; one loop a disk takes all that wait, syncs each file among them
//! once, and settles and answers. While a sync runs the next batch gathers, so the batch size follows the load and no
//! timer is needed.
//!
//! Long blocks are written faster than disks are, into the kernel's memory: a sync at their end would take as long as all
//! that gathered there, seconds on a busy disk, and everybody would wait for it. So their runs need *room*, of which a disk
//! has `UNSYNCED_BYTES_MAX`, and a sync that nobody else waits for gives it back: writers hear early how fast the disk is.
//!
//! If a sync fails, nobody knows which bytes are on the disk, and a second sync would lie: the kernel has dropped the
//! error with the dirty pages. So the disk leaves service *first*, then this batch and all that wait are refused, and no
//! further sync is tried.
//!
//! Invariant: nothing is answered or indexed before the sync that covers it has succeeded.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use platform::disk::BlockFile;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wire::ids::ContainerId;

use crate::container::Reservation;
use crate::disk::Disk;
use crate::error::BlockError;
use crate::extent::PAGE_BYTES;
use crate::index::Extent;
use crate::metrics;

/// A write whose bytes are in place and not yet durable.
pub(crate) struct Waiting {
    pub(crate) reservation: Reservation,
    pub(crate) extent: Extent,
    pub(crate) done: oneshot::Sender<Result<(), BlockError>>,
}

/// Writers in the queue; more wait for a place. One batch takes them all.
const WAITING_MAX: usize = 4096;

/// Bytes of long blocks in the kernel's hands and not synced, on a disk: about what a slow one writes in half a second.
const UNSYNCED_BYTES_MAX: u64 = 64 << 20;
/// So many of them ask for a sync; the other half is room to go on meanwhile.
const UNSYNCED_BYTES_DUE: u64 = UNSYNCED_BYTES_MAX / 2;

/// Leave to write some bytes that the next sync shall cover.
pub(crate) type Room = OwnedSemaphorePermit;

/// Bytes written and not synced. Of a file that nobody has open any more nothing need be waited for: a container that
/// was dropped must not be opened again, nor live on in here.
struct Written {
    container: ContainerId,
    file: Weak<dyn BlockFile>,
    room: Room,
}

/// All of a disk that are.
#[derive(Default)]
struct Unsynced {
    runs: Vec<Written>,
    /// What they take of the room.
    pages: usize,
}

/// The writers that wait for the next sync.
pub(crate) struct CommitQueue {
    /// In pages.
    room: Arc<Semaphore>,
    unsynced: Mutex<Unsynced>,
    /// The next step syncs whatever is unsynced.
    is_sync_due: AtomicBool,
    sender: mpsc::Sender<Option<Waiting>>,
    inbox: Mutex<Option<mpsc::Receiver<Option<Waiting>>>>,
    is_closed: AtomicBool,
}

impl Default for CommitQueue {
    fn default() -> Self {
        let (sender, inbox) = mpsc::channel(WAITING_MAX);
        Self {
            room: Arc::new(Semaphore::new(pages(UNSYNCED_BYTES_MAX) as usize)),
            unsynced: Mutex::default(),
            is_sync_due: AtomicBool::new(false),
            sender,
            inbox: Mutex::new(Some(inbox)),
            is_closed: AtomicBool::new(false),
        }
    }
}

impl CommitQueue {
    /// Queues a write. One that finds the queue closed is taken back.
    pub(crate) async fn push(&self, waiting: Waiting) {
        if self.is_closed.load(Ordering::Acquire) {
            let _ = waiting.done.send(Err(BlockError::Stopping));
            return;
        }
        // Without a wait in the common case: a writer that goes away now leaves a durable block, not a hole.
        if let Err(mpsc::error::TrySendError::Full(waiting)) = self.sender.try_send(Some(waiting)) {
            let _ = self.sender.send(waiting).await;
        }
    }

    /// Waits until the disk has room for a run of a long block.
    pub(crate) async fn room_for(&self, bytes: u64) -> Result<Room, BlockError> {
        let room = Arc::clone(&self.room).acquire_many_owned(pages(bytes.min(UNSYNCED_BYTES_DUE)));
        room.await.map_err(|_| BlockError::Stopping)
    }

    /// The bytes that `room` was for are written: it is free again after the next sync of the container.
    pub(crate) fn written(&self, container: ContainerId, file: &Arc<dyn BlockFile>, room: Room) {
        let is_due = {
            let mut unsynced = self.unsynced.lock();
            unsynced.pages += room.num_permits();
            unsynced.runs.push(Written { container, file: Arc::downgrade(file), room });
            // Whoever finds no room waits for writes that come by here: nobody waits for a sync that nobody asks for.
            unsynced.pages >= pages(UNSYNCED_BYTES_DUE) as usize
        };
        if is_due && !self.is_sync_due.swap(true, Ordering::AcqRel) {
            // None only wakes; a full queue wakes the loop too.
            let _ = self.sender.try_send(None);
        }
    }

    /// What a sync of the batch's containers covers, or of all if that is due. To be asked before the sync begins.
    fn take_unsynced(&self, batch: &[Waiting]) -> Vec<Written> {
        let mut unsynced = self.unsynced.lock();
        if self.is_sync_due.swap(false, Ordering::AcqRel) {
            return std::mem::take(&mut *unsynced).runs;
        }
        let is_covered = |written: &mut Written| {
            batch.iter().any(|waiting| waiting.reservation.container.id() == written.container)
        };
        let covered: Vec<Written> = unsynced.runs.extract_if(.., is_covered).collect();
        unsynced.pages -= covered.iter().map(|written| written.room.num_permits()).sum::<usize>();
        covered
    }

    /// For the loop; once.
    pub(crate) fn take_inbox(&self) -> Option<mpsc::Receiver<Option<Waiting>>> {
        self.inbox.lock().take()
    }

    /// One step of the loop: makes all that wait durable.
    pub(crate) fn step(&self, disk: &Disk, inputs: &mut Vec<Option<Waiting>>) -> ControlFlow<()> {
        let batch: Vec<Waiting> = inputs.drain(..).flatten().collect();
        let unsynced = self.take_unsynced(&batch);
        if !batch.is_empty() || !unsynced.is_empty() {
            commit_batch(disk, batch, unsynced);
        }
        if self.is_closed.load(Ordering::Acquire) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Takes no more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.room.close();
        // None only wakes; a full queue wakes the loop too.
        let _ = self.sender.try_send(None);
    }
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX)
}

/// Makes a batch durable and answers it, and gives back the room of what else is synced.
fn commit_batch(disk: &Disk, batch: Vec<Waiting>, unsynced: Vec<Written>) {
    metrics::commit_batch(batch.len());
    wire::failpoint::hit("datanode_block_written");
    let outcome = sync_files(disk, &batch, &unsynced);
    drop(unsynced);
    if outcome.is_ok() {
        wire::failpoint::hit("datanode_block_synced");
    }
    for waiting in batch {
        let container = waiting.reservation.container.id();
        let answer = match outcome {
            Ok(()) => waiting.reservation.settle(waiting.extent),
            Err(()) => {
                drop(waiting.reservation);
                Err(BlockError::DiskFailed(container))
            }
        };
        // A writer that went away needs no answer; its block is durable all the same.
        let _ = waiting.done.send(answer);
    }
    disk.settled();
}

fn sync_files(disk: &Disk, batch: &[Waiting], unsynced: &[Written]) -> Result<(), ()> {
    if disk.is_failed() {
        return Err(());
    }
    let mut files: Vec<(ContainerId, Arc<dyn BlockFile>)> = Vec::with_capacity(4);
    let mut add = |container: ContainerId, file: Arc<dyn BlockFile>| {
        if !files.iter().any(|(_, other)| Arc::ptr_eq(other, &file)) {
            files.push((container, file));
        }
    };
    for waiting in batch {
        let container = &waiting.reservation.container;
        add(container.id(), container.file().map_err(|_| ())?);
    }
    for written in unsynced {
        if let Some(file) = written.file.upgrade() {
            add(written.container, file);
        }
    }
    for (container, file) in files {
        let begun_ns = wire::clock::steady_ns();
        if wire::planted::is_on("ack_before_fdatasync") {
            continue;
        }
        disk.sync("sync a container", container, || file.sync_data()).map_err(|_| ())?;
        metrics::sync_done(wire::clock::steady_ns() - begun_ns);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use wire::block::Replication;
    use wire::chunk::BlockDigest;
    use wire::ids::{ClusterId, Generation, LocalId};

    use super::*;
    use crate::config::DatanodeConfig;
    use crate::container::{Begin, Container};
    use crate::disk::Changes;
    use crate::extent::{ContainerHeader, Salt};
    use crate::layout::LAYOUT_CURRENT;
    use crate::open::{LeftOut, create_container, open_disks};
    use platform::disk::{DiskIo, OpenMode};
    use platform::simulated::{Faults, SimulatedDisk};

    /// A disk without threads: the test commits.
    fn disk_and_container(simulated: &SimulatedDisk) -> (Arc<Disk>, Arc<Container>) {
        let mut config = DatanodeConfig::new(Vec::new(), ClusterId::default());
        config.reserve_bytes = 0;
        config.closing_patience_ms = 0;
        let opened = open_disks(
            &config,
            vec![Arc::new(simulated.clone())],
            LeftOut::default(),
            &Arc::new(Changes::default()),
            0,
        )
        .unwrap();
        let header = ContainerHeader {
            layout: LAYOUT_CURRENT,
            container: ContainerId(1),
            generation: Generation(1),
            replication: Replication::One,
            replica_index: 0,
            is_copy: false,
            cluster: ClusterId::default(),
            salt: Salt([1; 16]),
        };
        let container = create_container(&opened.disks[0], header).unwrap();
        (opened.disks[0].clone(), container)
    }

    type Answer = oneshot::Receiver<Result<(), BlockError>>;

    fn push(disk: &Disk, container: &Arc<Container>, local: u64) -> Answer {
        let begun = container.begin_write(LocalId(local), 100, true, true).unwrap();
        let Begin::Reserved(reservation) = begun else { panic!("the id is new") };
        container.file().unwrap().write_at(reservation.offset, &[&[1; 4096]]).unwrap();
        let extent = Extent {
            offset: reservation.offset,
            size: reservation.size,
            length: 100,
            digest: BlockDigest(1),
        };
        let (done, answer) = oneshot::channel();
        disk.commits.sender.try_send(Some(Waiting { reservation, extent, done })).unwrap();
        answer
    }

    /// All that wait.
    fn take(disk: &Disk) -> Option<Vec<Waiting>> {
        let mut inbox = disk.commits.inbox.lock();
        let inbox = inbox.as_mut()?;
        Some(std::iter::from_fn(|| inbox.try_recv().ok()).flatten().collect())
    }

    #[test]
    fn all_that_wait_share_one_sync_and_none_is_seen_before() {
        let simulated = SimulatedDisk::new(1 << 30);
        let (disk, container) = disk_and_container(&simulated);
        let mut answers: Vec<Answer> = (0..10).map(|local| push(&disk, &container, local)).collect();
        assert!(matches!(container.pin(LocalId(3)), Err(BlockError::NoBlock(_))));
        assert!(answers[3].try_recv().is_err());
        let before = simulated.sync_count();
        commit_batch(&disk, take(&disk).unwrap(), Vec::new());
        assert_eq!(simulated.sync_count(), before + 1);
        for answer in &mut answers {
            assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        }
        assert!(container.pin(LocalId(3)).is_ok());
    }

    #[test]
    fn runs_of_long_blocks_get_their_room_back_by_a_sync() {
        let simulated = SimulatedDisk::new(1 << 30);
        let (disk, container) = disk_and_container(&simulated);
        let queue = &disk.commits;
        let file = container.file().unwrap();
        let take_room = |bytes| queue.room_for(bytes).now_or_never().map(Result::unwrap);
        let step = || {
            let before = simulated.sync_count();
            let mut inputs = vec![None];
            assert!(queue.step(&disk, &mut inputs).is_continue());
            simulated.sync_count() - before
        };
        let runs = UNSYNCED_BYTES_MAX >> 20;
        for _ in 1..runs / 2 {
            queue.written(container.id(), &file, take_room(1 << 20).unwrap());
        }
        assert_eq!(step(), 0, "half of it is room to go on");
        queue.written(container.id(), &file, take_room(1 << 20).unwrap());
        let under_way: Vec<Room> = (runs / 2..runs).map(|_| take_room(1 << 20).unwrap()).collect();
        assert!(take_room(1).is_none());
        assert_eq!(step(), 1);
        assert!(take_room(1 << 20).is_some());
        // What was written meanwhile waits for the next sync, which a short block may bring.
        for room in under_way.into_iter().take(3) {
            queue.written(container.id(), &file, room);
        }
        let mut answer = push(&disk, &container, 1);
        let mut inputs: Vec<_> = take(&disk).unwrap().into_iter().map(Some).collect();
        let _ = queue.step(&disk, &mut inputs);
        assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        assert_eq!(queue.room.available_permits() as u32, pages(UNSYNCED_BYTES_MAX));
        // The rest was given up and its file closed: nothing is opened or synced for it.
        let gone: Arc<dyn BlockFile> = simulated.open("elsewhere", OpenMode::Fresh).unwrap();
        for _ in 0..runs / 2 {
            queue.written(ContainerId(9), &gone, take_room(1 << 20).unwrap());
        }
        drop(gone);
        assert_eq!(step(), 0);
        assert_eq!(queue.room.available_permits() as u32, pages(UNSYNCED_BYTES_MAX));
        assert!(!disk.is_failed());
        queue.close();
        assert!(matches!(queue.room_for(1).now_or_never(), Some(Err(BlockError::Stopping))));
    }

    #[test]
    fn a_failed_sync_fails_its_batch_and_all_that_wait_and_is_not_repeated() {
        let simulated = SimulatedDisk::new(1 << 30);
        let (disk, container) = disk_and_container(&simulated);
        let mut first: Vec<Answer> = (0..3).map(|local| push(&disk, &container, local)).collect();
        let batch = take(&disk).unwrap();
        let mut waiting: Vec<Answer> = (3..6).map(|local| push(&disk, &container, local)).collect();
        simulated.set_faults(Faults { next_sync_fails: true, ..Faults::default() });
        let before = simulated.sync_count();
        commit_batch(&disk, batch, Vec::new());
        assert!(disk.is_failed());
        commit_batch(&disk, take(&disk).unwrap(), Vec::new());
        assert_eq!(simulated.sync_count(), before, "a second sync would succeed and lie");
        for answer in first.iter_mut().chain(&mut waiting) {
            assert!(matches!(answer.try_recv(), Ok(Err(BlockError::DiskFailed(_)))));
        }
        assert!(matches!(container.begin_write(LocalId(9), 1, true, true), Err(BlockError::DiskFailed(_))));
        assert!(disk.flush_index(true).is_err(), "nothing of that disk is recorded any more");
    }

    #[test]
    fn a_write_that_waits_for_its_sync_ends_however_long_its_container_has_been_closing() {
        let simulated = SimulatedDisk::new(1 << 30);
        let (disk, container) = disk_and_container(&simulated);
        let mut answer = push(&disk, &container, 1);
        for _ in 0..2 {
            crate::deletion::close(&container).unwrap();
        }
        assert!(!container.state.lock().is_sealed && *container.when_cut_short().borrow());
        commit_batch(&disk, take(&disk).unwrap(), Vec::new());
        assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        crate::deletion::close(&container).unwrap();
        assert!(container.state.lock().is_sealed && container.pin(LocalId(1)).is_ok());
    }

    #[test]
    fn a_write_that_is_given_up_leaves_no_bytes_and_its_id_free() {
        let simulated = SimulatedDisk::new(1 << 30);
        let (disk, container) = disk_and_container(&simulated);
        let answer = push(&disk, &container, 1);
        let offset = container.state.lock().in_flight.first_key_value().map(|(offset, _)| *offset).unwrap();
        drop(take(&disk));
        drop(answer);
        let file = container.file().unwrap();
        assert!(file.read_at(offset, 4096).unwrap().iter().all(|byte| *byte == 0));
        assert!(matches!(container.begin_write(LocalId(1), 1, true, true), Ok(Begin::Reserved(_))));
        assert!(container.state.lock().in_flight.is_empty());
    }
}
