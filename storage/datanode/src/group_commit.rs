//! Group commit: all writers of a disk that wait share one sync a file.
//!
//! A writer puts its bytes in place and queues up; one loop a disk takes all that wait, syncs each file among them
//! once, and settles and answers. While a sync runs the next batch gathers, so the batch size follows the load and no
//! timer is needed.
//!
//! If a sync fails, nobody knows which bytes are on the disk, and a second sync would lie: the kernel has dropped the
//! error with the dirty pages. So the disk leaves service *first*, then this batch and all that wait are refused, and no
//! further sync is tried.
//!
//! Invariant: nothing is answered or indexed before the sync that covers it has succeeded.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::container::{Container, Reservation};
use crate::disk::Disk;
use crate::error::BlockError;
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

/// The writers that wait for the next sync.
pub(crate) struct CommitQueue {
    sender: mpsc::Sender<Option<Waiting>>,
    inbox: Mutex<Option<mpsc::Receiver<Option<Waiting>>>>,
    is_closed: AtomicBool,
}

impl Default for CommitQueue {
    fn default() -> Self {
        let (sender, inbox) = mpsc::channel(WAITING_MAX);
        Self { sender, inbox: Mutex::new(Some(inbox)), is_closed: AtomicBool::new(false) }
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

    /// For the loop; once.
    pub(crate) fn take_inbox(&self) -> Option<mpsc::Receiver<Option<Waiting>>> {
        self.inbox.lock().take()
    }

    /// One step of the loop: makes all that wait durable.
    pub(crate) fn step(&self, disk: &Disk, inputs: &mut Vec<Option<Waiting>>) -> ControlFlow<()> {
        let batch: Vec<Waiting> = inputs.drain(..).flatten().collect();
        if !batch.is_empty() {
            commit_batch(disk, batch);
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
        // None only wakes; a full queue wakes the loop too.
        let _ = self.sender.try_send(None);
    }
}

/// Makes a batch durable and answers it.
pub(crate) fn commit_batch(disk: &Disk, batch: Vec<Waiting>) {
    metrics::commit_batch(batch.len());
    wire::failpoint::hit("datanode_block_written");
    let outcome = sync_files(disk, &batch);
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

fn sync_files(disk: &Disk, batch: &[Waiting]) -> Result<(), ()> {
    if disk.is_failed() {
        return Err(());
    }
    let mut files: Vec<&Arc<Container>> = Vec::with_capacity(4);
    for waiting in batch {
        let container = &waiting.reservation.container;
        if !files.iter().any(|other| Arc::ptr_eq(other, container)) {
            files.push(container);
        }
    }
    for container in files {
        let file = container.file().map_err(|_| ())?;
        let begun_ns = wire::clock::steady_ns();
        if wire::planted::is_on("ack_before_fdatasync") {
            continue;
        }
        disk.sync("sync a container", container.id(), || file.sync_data()).map_err(|_| ())?;
        metrics::sync_done(wire::clock::steady_ns() - begun_ns);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wire::block::Replication;
    use wire::chunk::BlockDigest;
    use wire::ids::{ClusterId, ContainerId, Generation, LocalId};

    use super::*;
    use crate::config::DatanodeConfig;
    use crate::container::Begin;
    use crate::disk::Changes;
    use crate::extent::{ContainerHeader, Salt};
    use crate::layout::LAYOUT_CURRENT;
    use crate::open::{LeftOut, create_container, open_disks};
    use platform::simulated::{Faults, SimulatedDisk};

    /// A disk without threads: the test commits.
    fn disk_and_container(simulated: &SimulatedDisk) -> (Arc<Disk>, Arc<Container>) {
        let mut config = DatanodeConfig::new(Vec::new(), ClusterId::default());
        config.reserve_bytes = 0;
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
        commit_batch(&disk, take(&disk).unwrap());
        assert_eq!(simulated.sync_count(), before + 1);
        for answer in &mut answers {
            assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        }
        assert!(container.pin(LocalId(3)).is_ok());
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
        commit_batch(&disk, batch);
        assert!(disk.is_failed());
        commit_batch(&disk, take(&disk).unwrap());
        assert_eq!(simulated.sync_count(), before, "a second sync would succeed and lie");
        for answer in first.iter_mut().chain(&mut waiting) {
            assert!(matches!(answer.try_recv(), Ok(Err(BlockError::DiskFailed(_)))));
        }
        assert!(matches!(container.begin_write(LocalId(9), 1, true, true), Err(BlockError::DiskFailed(_))));
        assert!(disk.flush_index(true).is_err(), "nothing of that disk is recorded any more");
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
