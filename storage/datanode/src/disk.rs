//! A disk in service: its files, its index, the writers that wait for its next sync, and whether it still works.
//!
//! ```text
//! DISK/ identity   whose disk it is       lock        held while the process lives
//!       index.redb the index              clean       stands only after an orderly end
//!       ballast   room for the index when the disk is full
//!       <id>.container                    one file a container
//! ```
//!
//! Three loops serve a disk: one commits (`group_commit`), one keeps the index, one zero-fills ahead. Each is a
//! `platform::actor`, a thread in production. An input or output error takes the disk out of service for the rest of the process's life: after one, nobody knows what is on it,
//! and re-validation means reading it all past the page cache, which the next start does.
//!
//! Invariant: once [`Disk::is_failed`] is true, no write of this disk is answered with success.
//!
//! Not here: opening and recovering a disk (`recovery`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, Generation};

use crate::config::DatanodeConfig;
use crate::container::Container;
use crate::deletion::Deletion;
use crate::error::BlockError;
use crate::file_cache::FileCache;
use crate::group_commit::CommitQueue;
use crate::identity::{IDENTITY_NAME, Identity};
use crate::index::{Index, IndexBatch};
use platform::actor::{self, Ended};
use platform::disk::{DiskIo, OpenMode, Room};
use platform::task;

/// The index file's name.
pub(crate) const INDEX_NAME: &str = "index.redb";
/// The name that stands only between an orderly end and the next start.
pub(crate) const CLEAN_NAME: &str = "clean";
/// A file that only takes up room: removed when the disk is full, so that the index can record deletions.
pub(crate) const BALLAST_NAME: &str = "ballast";
/// Its size, on a disk large enough: hundreds of deletion transactions.
const BALLAST_BYTES: u64 = 16 << 20;
/// With less room than this the index is not written: an error inside redb would take the disk out of service.
const INDEX_ROOM_BYTES: u64 = 1 << 20;
/// Zero-filled ahead of the next block at most: enough for seconds of small blocks, little enough to be written at once.
const PREPARE_AHEAD_BYTES: u64 = 16 << 20;
/// Wake-ups of the index's keeper that wait: one is as good as many.
const KEEPER_QUEUE: usize = 1;
/// Containers waiting to be zero-filled; more are left out, since their next writer asks again.
const PREPARE_QUEUE: usize = 64;
/// Reads that may fail in a life of the process before the disk is given up.
const READ_ERRORS_MAX: u64 = 64;
/// Blocks that wait for the index before the keeper is woken early.
const RECENT_WAKE: usize = 4096;

/// One disk.
pub(crate) struct Disk {
    pub(crate) io: Arc<dyn DiskIo>,
    pub(crate) index: Index,
    pub(crate) files: Arc<FileCache>,
    pub(crate) commits: CommitQueue,
    pub(crate) index_writer: Mutex<()>,
    config: DatanodeConfig,
    growth_step: u64,
    reserve: u64,
    failed: AtomicBool,
    /// See [`Disk::sync`].
    syncing: Mutex<()>,
    /// The identity file's bytes, as they were at the start.
    identity: Vec<u8>,
    read_errors: AtomicU64,
    big_writes: AtomicUsize,
    dirty: Mutex<BTreeMap<ContainerId, Arc<Container>>>,
    changes: Arc<Changes>,
    is_stopping: AtomicBool,
    recent_count: AtomicUsize,
    /// Since when the index holds commits that are not durable, on the steady clock; 0 if there are none.
    unsaved_since_ns: AtomicU64,
    keeper: mpsc::Sender<()>,
    preparer: mpsc::Sender<Option<Arc<Container>>>,
    /// Until the loops are started.
    inboxes: Mutex<Option<Inboxes>>,
}

struct Inboxes {
    keeper: mpsc::Receiver<()>,
    preparer: mpsc::Receiver<Option<Arc<Container>>>,
}

/// Containers of which SCM has not heard the newest, over all disks; and who is to be woken by urgent news.
#[derive(Default)]
pub(crate) struct Changes {
    changed: Mutex<BTreeSet<ContainerId>>,
    pub(crate) urgent: tokio::sync::Notify,
}

impl Changes {
    pub(crate) fn add(&self, container: ContainerId) {
        self.changed.lock().insert(container);
    }

    pub(crate) fn add_all(&self, containers: &BTreeSet<ContainerId>) {
        self.changed.lock().extend(containers);
    }

    pub(crate) fn take(&self) -> BTreeSet<ContainerId> {
        std::mem::take(&mut *self.changed.lock())
    }
}

impl Disk {
    pub(crate) fn new(
        io: Arc<dyn DiskIo>,
        index: Index,
        files: Arc<FileCache>,
        changes: Arc<Changes>,
        config: &DatanodeConfig,
        room: Room,
        identity: &Identity,
    ) -> Arc<Self> {
        let (keeper, keeper_inbox) = mpsc::channel(KEEPER_QUEUE);
        let (preparer, preparer_inbox) = mpsc::channel(PREPARE_QUEUE);
        let inboxes = Inboxes { keeper: keeper_inbox, preparer: preparer_inbox };
        let page = crate::extent::PAGE_BYTES;
        let step = config.growth_step.min(room.capacity / 256).max(page).next_multiple_of(page);
        Arc::new(Self {
            io,
            index,
            files,
            commits: CommitQueue::default(),
            index_writer: Mutex::new(()),
            config: config.clone(),
            growth_step: step,
            reserve: config.reserve_bytes.min(room.capacity / 16),
            syncing: Mutex::new(()),
            failed: AtomicBool::new(false),
            identity: identity.encode(),
            read_errors: AtomicU64::new(0),
            big_writes: AtomicUsize::new(0),
            dirty: Mutex::new(BTreeMap::new()),
            changes,
            is_stopping: AtomicBool::new(false),
            recent_count: AtomicUsize::new(0),
            unsaved_since_ns: AtomicU64::new(0),
            keeper,
            preparer,
            inboxes: Mutex::new(Some(inboxes)),
        })
    }

    /// Starts the disk's loops. Once; inside a runtime.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<Vec<Ended>> {
        let inboxes = self.inboxes.lock().take().zip(self.commits.take_inbox());
        let (inboxes, commits) = inboxes.ok_or_else(|| io::Error::other("a disk is started once"))?;
        let (commit, keep, prepare) = (self.clone(), self.clone(), self.clone());
        let ended = vec![
            actor::start("dn-commit", commits, move |inputs| commit.commits.step(&commit, inputs))?,
            actor::start("dn-index", inboxes.keeper, move |inputs| {
                inputs.clear();
                keep.keep_index()
            })?,
            actor::start("dn-prepare", inboxes.preparer, move |inputs| prepare.prepare_files(inputs))?,
        ];
        task::spawn(look_at_index(Arc::downgrade(self)));
        Ok(ended)
    }

    pub(crate) fn growth_step(&self) -> u64 {
        self.growth_step
    }

    pub(crate) fn container_bytes_max(&self) -> u64 {
        self.config.container_bytes_max
    }

    pub(crate) fn closing_patience_ns(&self) -> u64 {
        self.config.closing_patience_ms.saturating_mul(1_000_000)
    }

    pub(crate) fn prepare_ahead(&self) -> u64 {
        self.growth_step.min(PREPARE_AHEAD_BYTES)
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Refuses if the disk is out of service.
    pub(crate) fn check(&self, container: ContainerId) -> Result<(), BlockError> {
        if self.is_failed() { Err(BlockError::DiskFailed(container)) } else { Ok(()) }
    }

    /// Takes the disk out of service.
    pub(crate) fn fail(&self, doing: &str, error: &dyn std::fmt::Display) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(disk = %self.io.name(), doing, %error, "disk taken out of service");
            self.changes.urgent.notify_one();
        }
    }

    /// What an error means: a full disk stays in service, everything else does not.
    pub(crate) fn io_failed(&self, doing: &str, error: io::Error) -> BlockError {
        let error = BlockError::from_io(error);
        if let BlockError::Io(source) = &error {
            self.fail(doing, source);
        }
        error
    }

    /// A read failed. One bad sector is the loss of what lies there; a disk that does not answer at all, or has many of
    /// them, leaves service.
    pub(crate) fn read_failed(&self, doing: &str, error: io::Error) -> BlockError {
        let count = self.read_errors.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(disk = %self.io.name(), doing, %error, count, "a disk does not read");
        if count > READ_ERRORS_MAX {
            self.fail("read: too many errors", &error);
        }
        self.probe();
        self.changes.urgent.notify_one();
        BlockError::Unreadable
    }

    /// Looks whether the disk is still there and still ours: its identity is read from the medium through a file opened
    /// for writing, so that a disk that was pulled out, unmounted, replaced or remounted read-only is noticed.
    pub(crate) fn probe(&self) {
        if self.is_failed() {
            return;
        }
        let found = self.io.open(IDENTITY_NAME, OpenMode::Existing).and_then(|file| {
            file.drop_cached(u64::MAX)?;
            file.read_at(0, self.identity.len() + 1)
        });
        match found {
            Ok(bytes) if bytes == self.identity => {}
            Ok(_) => self.fail("look at the disk", &"its identity is not what it was"),
            Err(error) => self.fail("look at the disk", &error),
        }
    }

    /// Runs one sync of a container's file. Any error, a full disk's too, takes this disk out of service.
    ///
    /// One at a time, with the failure marked before the next begins: the kernel reports a failed write-back once per
    /// open file, so a second sync of the same file would succeed although the bytes are gone, and what it covers would
    /// be acknowledged.
    pub(crate) fn sync(
        &self,
        doing: &str,
        container: ContainerId,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), BlockError> {
        let _one_at_a_time = self.syncing.lock();
        self.check(container)?;
        sync().map_err(|error| {
            self.fail(doing, &error);
            BlockError::DiskFailed(container)
        })
    }

    /// Size and free space; a disk that cannot say is out of service.
    pub(crate) fn room(&self) -> Result<Room, BlockError> {
        self.io.room().map_err(|error| self.io_failed("ask for free space", error))
    }

    /// Whether `bytes` more leave the reserve alone.
    pub(crate) fn has_room(&self, bytes: u64) -> Result<bool, BlockError> {
        Ok(self.room()?.available >= bytes + self.reserve)
    }

    /// Refuses if the index might find no room. Gives the ballast away before it does.
    pub(crate) fn check_index_room(&self) -> Result<(), BlockError> {
        if self.room()?.available >= INDEX_ROOM_BYTES {
            return Ok(());
        }
        if self.io.remove(BALLAST_NAME).is_ok() {
            tracing::warn!(disk = %self.io.name(), "disk is full: its ballast was given to the index");
        }
        if self.room()?.available >= INDEX_ROOM_BYTES { Ok(()) } else { Err(BlockError::DiskFull) }
    }

    /// Takes up room for the index again, when there is plenty.
    pub(crate) fn restore_ballast(&self) {
        let Ok(room) = self.room() else { return };
        let bytes = BALLAST_BYTES.min(room.capacity / 64);
        let is_scarce = room.available < self.reserve + 2 * bytes;
        if self.is_failed() || is_scarce || self.io.open(BALLAST_NAME, OpenMode::Existing).is_ok() {
            return;
        }
        let made = self.io.open(BALLAST_NAME, OpenMode::Fresh).and_then(|file| file.allocate(0, bytes));
        if let Err(error) = made {
            tracing::warn!(disk = %self.io.name(), %error, "cannot keep room for the index");
        }
    }

    /// Free space that blocks may still take: what SCM places by.
    pub(crate) fn available_for_blocks(&self) -> u64 {
        let room = if self.is_failed() { None } else { self.room().ok() };
        room.map_or(0, |room| room.available.saturating_sub(self.reserve))
    }

    /// A write of many bytes begins: zero-filling ahead waits, for those bytes need none and the disk is busy.
    pub(crate) fn big_write(self: &Arc<Self>) -> BigWrite {
        self.big_writes.fetch_add(1, Ordering::Relaxed);
        BigWrite(self.clone())
    }

    pub(crate) fn has_big_writes(&self) -> bool {
        self.big_writes.load(Ordering::Relaxed) > 0
    }

    /// Asks for zero-filling ahead.
    pub(crate) fn prepare_soon(&self, container: &Arc<Container>) {
        if !self.has_big_writes() {
            // A full queue is no loss: the next writer asks again.
            let _ = self.preparer.try_send(Some(container.clone()));
        }
    }

    /// The container's row or blocks have changed: index and SCM are to hear of it.
    pub(crate) fn mark_dirty(&self, container: &Arc<Container>) {
        self.dirty.lock().entry(container.id()).or_insert_with(|| container.clone());
        self.changes.add(container.id());
        self.recent_count.fetch_add(1, Ordering::Relaxed);
    }

    /// SCM is to hear of it soon.
    pub(crate) fn changed(&self, container: ContainerId) {
        self.changes.add(container);
        self.changes.urgent.notify_one();
    }

    /// A batch is settled: hurries the keeper if much has gathered.
    pub(crate) fn settled(&self) {
        if self.recent_count.load(Ordering::Relaxed) > RECENT_WAKE {
            // A full queue wakes the keeper too.
            let _ = self.keeper.try_send(());
        }
    }

    /// Brings the index up to date; durably if asked. A checkpoint covers only data synced before.
    pub(crate) fn flush_index(&self, is_durable: bool) -> Result<(), BlockError> {
        let _writer = self.index_writer.lock();
        self.flush_index_with(IndexBatch::default(), is_durable, None)
    }

    /// The same with further changes in the same transaction, and a deletion whose effects on its container's numbers
    /// show once they are durable. Under the index writer. If it fails, nothing has changed in memory.
    pub(crate) fn flush_index_with(
        &self,
        mut batch: IndexBatch,
        is_durable: bool,
        deletion: Option<&Deletion<'_>>,
    ) -> Result<(), BlockError> {
        if self.is_failed() {
            return Err(BlockError::Index("the disk is out of service".to_owned()));
        }
        // Before anything is taken from the containers: what waits for the index goes on waiting.
        self.check_index_room()?;
        let mut dirty = std::mem::take(&mut *self.dirty.lock());
        if let Some(deletion) = deletion {
            dirty.insert(deletion.container.id(), deletion.container.clone());
        }
        self.recent_count.store(0, Ordering::Relaxed);
        let deletion_of = |id: ContainerId| deletion.filter(|deletion| deletion.container.id() == id);
        let collected: Vec<_> =
            dirty.iter().map(|(id, container)| container.collect(&mut batch, deletion_of(*id))).collect();
        if is_durable {
            wire::failpoint::hit("datanode_index_checkpoint");
        }
        if let Err(error) = self.index.commit(&batch, is_durable) {
            // redb takes no further writes after an error, so blocks could no longer be recorded here.
            self.fail("write the index", &error);
            return Err(BlockError::Index(error.to_string()));
        }
        for ((id, container), locals) in dirty.iter().zip(&collected) {
            container.collected(locals, deletion_of(*id));
        }
        let (saved, unsaved) = if is_durable { (true, 0) } else { (false, wire::clock::steady_ns().max(1)) };
        if saved || self.unsaved_since_ns.load(Ordering::Relaxed) == 0 {
            self.unsaved_since_ns.store(unsaved, Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_checkpoint_due(&self) -> bool {
        let since_ns = self.unsaved_since_ns.load(Ordering::Relaxed);
        let age_ns = wire::clock::steady_ns().saturating_sub(since_ns);
        since_ns != 0 && age_ns >= self.config.index_checkpoint_ms * 1_000_000
    }

    fn has_index_work(&self) -> bool {
        !self.dirty.lock().is_empty() || self.is_checkpoint_due()
    }

    fn keep_index(&self) -> ControlFlow<()> {
        if self.is_stopping() || self.is_failed() {
            return ControlFlow::Break(());
        }
        if self.has_index_work() {
            // Errors have taken the disk out of service or mean that it is full: tried again at the next look.
            let _ = self.flush_index(self.is_checkpoint_due());
        }
        ControlFlow::Continue(())
    }

    fn prepare_files(&self, containers: &mut Vec<Option<Arc<Container>>>) -> ControlFlow<()> {
        // None only wakes.
        for container in containers.drain(..).flatten() {
            if self.is_stopping() || self.is_failed() {
                return ControlFlow::Break(());
            }
            // Errors have taken the disk out of service or mean that it is full; both are known elsewhere.
            let _ = container.prepare();
        }
        if self.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Ends the loops; writers that come later are sent away.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.commits.close();
        // Full queues wake their loops too.
        let _ = self.keeper.try_send(());
        let _ = self.preparer.try_send(None);
    }

    /// After the loops have ended: makes all durable and marks the orderly end.
    pub(crate) fn finish(&self) -> Result<(), BlockError> {
        self.flush_index(true)?;
        let failed = |error| self.io_failed("mark the orderly end", error);
        let file = self.io.open(CLEAN_NAME, OpenMode::Fresh).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        self.io.sync_names().map_err(failed)
    }

    /// Drops a replica for good: after this its tombstone refuses it, whatever else is left.
    pub(crate) fn drop_replica(
        &self,
        container: ContainerId,
        generation: Generation,
        now_ms: UnixMs,
    ) -> Result<(), BlockError> {
        let _writer = self.index_writer.lock();
        let batch =
            IndexBatch { drop_container: Some((container, generation, now_ms)), ..IndexBatch::default() };
        self.flush_index_with(batch, true, None)
    }
}

/// Wakes the keeper of the index when there is something to do: an idle disk's thread sleeps.
async fn look_at_index(disk: std::sync::Weak<Disk>) {
    loop {
        let Some(flush_ms) = disk.upgrade().map(|disk| disk.config.index_flush_ms) else { return };
        tokio::time::sleep(Duration::from_millis(flush_ms.max(1))).await;
        let Some(disk) = disk.upgrade() else { return };
        if disk.is_stopping() || disk.is_failed() {
            return;
        }
        if disk.has_index_work() {
            let _ = disk.keeper.try_send(());
        }
    }
}

/// While it lives, zero-filling ahead waits.
pub(crate) struct BigWrite(Arc<Disk>);

impl Drop for BigWrite {
    fn drop(&mut self) {
        self.0.big_writes.fetch_sub(1, Ordering::Relaxed);
    }
}
