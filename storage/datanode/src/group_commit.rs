//! Group commit: all writers of a disk that wait share one sync a file.
//!
//! A writer puts its bytes in place and queues up; one thread a disk takes all that wait, syncs each file among them
//! once, and settles and answers. While a sync runs the next batch gathers, so the batch size follows the load and no
//! timer is needed.
//!
//! If a sync fails, nobody knows which bytes are on the disk, and a second sync would lie: the kernel has dropped the
//! error with the dirty pages. So the disk leaves service *first*, then this batch and all that wait are refused, and no
//! further sync is tried.
//!
//! Invariant: nothing is answered or indexed before the sync that covers it has succeeded.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

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

/// The writers that wait for the next sync. Bounded by the writers there are.
#[derive(Default)]
pub(crate) struct CommitQueue {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    is_closed: bool,
}

impl CommitQueue {
    /// Queues a write.
    pub(crate) fn push(&self, waiting: Waiting) {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            drop(queue);
            let _ = waiting.done.send(Err(BlockError::Stopping));
            return;
        }
        let was_empty = queue.waiting.is_empty();
        queue.waiting.push(waiting);
        drop(queue);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// All that wait; None once the queue is closed and empty.
    pub(crate) fn take(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() {
            if queue.is_closed {
                return None;
            }
            self.wake.wait(&mut queue);
        }
        Some(std::mem::take(&mut queue.waiting))
    }

    /// Takes no more.
    pub(crate) fn close(&self) {
        self.queue.lock().is_closed = true;
        self.wake.notify_all();
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
        if let Err(error) = file.sync_data() {
            disk.fail("sync a container", &error);
            return Err(());
        }
        metrics::sync_done(wire::clock::steady_ns() - begun_ns);
    }
    Ok(())
}
