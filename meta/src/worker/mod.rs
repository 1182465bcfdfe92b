//! Background work of the leader: each a named worker with a status that operators can see, and that they can pause.
//!
//! | worker | does |
//! | --- | --- |
//! | lease keeper | compares leases with SCM each second, keeps ids granted ahead of need, learns token keys |
//! | session silence | ends sessions that were not heard of for too long |
//! | loan expiry | ends loans older than `open_key_expire_after` |
//! | work queue | works off what was too large for one command |
//! | deletion handover | hands freed blocks to SCM after the delete grace, then drops their rows |
//! | upload expiry | forgets completed uploads |
//! | container retirement | declares containers empty that nothing names, and tells SCM |
//!
//! Every step is bounded and idempotent; a step that fails is tried again at the next turn. Workers run on the leader alone
//! and are dropped where they stand when it leads no longer. Two leaders at once harm nothing, as only one of them can log
//! a command: what the other has SCM do is either settled by a number that stands in the log (batches of deletions), or
//! found at the next comparison (leases that SCM granted or took back).
//!
//! A turn that panics is a bug, and a wrong row may have brought it about: the worker says so in its status and tries
//! again.
//!
//! A row that is damaged stops no worker under a sole voter: it is counted, passed over for this term, and the next one is
//! done. A replica with peers stops instead and is rebuilt.
//!
//! Not here: what the commands do (see `state`).

mod lease_keeper;
mod reclaim;
mod retire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use platform::task;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use wire::clock::{self, UnixMs};
use wire::status::{Failure, Status};

use crate::config::OmConfig;
use crate::leases::LeaderMemory;
use crate::server::Om;

pub(crate) use lease_keeper::lease_around;

/// A turn that failed is tried again after this, if not sooner.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A turn that panicked is tried again after this: it may well panic again, and each time fills a page of the log.
const PANIC_PAUSE: Duration = Duration::from_secs(10);
/// Steps that a worker does in a row before it looks up.
const STEPS_MAX: usize = 64;
/// Freed blocks are counted for operators up to this number.
const BACKLOG_COUNTED_MAX: usize = 10_000;

/// What an operator sees of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its name.
    pub name: &'static str,
    /// An operator has paused it.
    pub is_paused: bool,
    /// Items done since start: leases, sessions, loans, rows, blocks, uploads.
    pub done: u64,
    /// When it last finished a turn. 0: never.
    pub last_turn_ms: UnixMs,
    /// Why its last turn failed.
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    LeaseKeeper,
    SessionSilence,
    LoanExpiry,
    WorkQueue,
    DeletionHandover,
    UploadExpiry,
    ContainerRetirement,
}

impl Job {
    const ALL: [Self; 7] = [
        Self::LeaseKeeper,
        Self::SessionSilence,
        Self::LoanExpiry,
        Self::WorkQueue,
        Self::DeletionHandover,
        Self::UploadExpiry,
        Self::ContainerRetirement,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::LeaseKeeper => "lease keeper",
            Self::SessionSilence => "session silence",
            Self::LoanExpiry => "loan expiry",
            Self::WorkQueue => "work queue",
            Self::DeletionHandover => "deletion handover",
            Self::UploadExpiry => "upload expiry",
            Self::ContainerRetirement => "container retirement",
        }
    }

    fn interval(self, config: &OmConfig) -> Duration {
        let interval_ms = match self {
            Self::LeaseKeeper => config.lease_interval_ms,
            // A tenth of the silence: a session ends at most a tenth late.
            Self::SessionSilence => config.session_silence_ms / 10,
            Self::LoanExpiry | Self::UploadExpiry => config.open_key_scan_interval_ms,
            Self::WorkQueue => config.work_interval_ms,
            Self::DeletionHandover => config.deletion_interval_ms,
            Self::ContainerRetirement => config.retire_interval_ms,
        };
        Duration::from_millis(interval_ms.max(1))
    }

    /// Whether it empties a queue in bounded turns.
    const fn has_queue(self) -> bool {
        matches!(self, Self::WorkQueue | Self::DeletionHandover)
    }

    /// Whether it does what it does because a row is old by the clock.
    const fn is_by_clock(self) -> bool {
        matches!(self, Self::LoanExpiry | Self::DeletionHandover | Self::UploadExpiry)
    }

    async fn turn(self, om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
        if self.is_by_clock() && !om.group().is_clock_trusted() {
            return Err(Failure::new(
                Status::Retry,
                "this node's clock is off its peers' by more than 30 s: set it",
            ));
        }
        match self {
            Self::LeaseKeeper => lease_keeper::keep(om, memory).await,
            Self::SessionSilence => reclaim::end_silent_sessions(om, memory).await,
            Self::LoanExpiry => reclaim::expire_loans(om, memory).await,
            Self::WorkQueue => reclaim::work_off(om, memory).await,
            Self::DeletionHandover => reclaim::hand_over(om, memory).await,
            Self::UploadExpiry => reclaim::expire_uploads(om, memory).await,
            Self::ContainerRetirement => retire::retire(om, memory).await,
        }
    }
}

struct Worker {
    job: Job,
    is_paused: AtomicBool,
    status: Mutex<(u64, UnixMs, Option<String>)>,
}

/// All workers of an OM. What operators see of them, and a pause, outlive a term.
pub(crate) struct Workers {
    workers: Vec<Arc<Worker>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    pub(crate) fn new() -> Self {
        let worker =
            |job| Arc::new(Worker { job, is_paused: AtomicBool::new(false), status: Mutex::default() });
        Self { workers: Job::ALL.map(worker).into(), tasks: Mutex::default() }
    }

    /// Starts them for a term.
    pub(crate) fn start(&self, om: &Arc<Om>, memory: &Arc<LeaderMemory>) {
        let mut tasks = self.tasks.lock();
        for worker in &self.workers {
            let interval = worker.job.interval(om.config());
            tasks.push(task::spawn(run(Arc::downgrade(om), memory.clone(), worker.clone(), interval)));
        }
    }

    /// Ends them where they stand, and returns when all have ended.
    pub(crate) async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            // The error is that it was aborted.
            let _ = task.await;
        }
    }

    pub(crate) fn status(&self) -> Vec<WorkerStatus> {
        let status_of = |worker: &Arc<Worker>| {
            let (done, last_turn_ms, last_error) = worker.status.lock().clone();
            let is_paused = worker.is_paused.load(Ordering::Relaxed);
            WorkerStatus { name: worker.job.name(), is_paused, done, last_turn_ms, last_error }
        };
        self.workers.iter().map(status_of).collect()
    }

    /// Pauses or resumes a worker. False if there is none of that name.
    pub(crate) fn set_paused(&self, name: &str, is_paused: bool) -> bool {
        let found = self.workers.iter().find(|worker| worker.job.name() == name);
        found.map(|worker| worker.is_paused.store(is_paused, Ordering::Relaxed)).is_some()
    }
}

async fn run(om: Weak<Om>, memory: Arc<LeaderMemory>, worker: Arc<Worker>, interval: Duration) {
    loop {
        let Some(leading) = om.upgrade() else { return };
        let mut next = Next::After(interval);
        if !worker.is_paused.load(Ordering::Relaxed) {
            next = turn(worker.job.turn(&leading, &memory), &worker, interval).await;
        }
        // A worker that sleeps keeps nobody alive.
        drop(leading);
        rest(next, worker.job, &memory.wanted).await;
    }
}

/// When a worker takes its next turn.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// After this time, or when it is wanted.
    After(Duration),
    /// Not before this time has passed.
    NotBefore(Duration),
}

async fn rest(next: Next, job: Job, keeper_wanted: &Notify) {
    let (pause, is_wakeable) = match next {
        Next::After(pause) => (pause, job == Job::LeaseKeeper),
        Next::NotBefore(pause) => (pause, false),
    };
    let wanted = async {
        match is_wakeable {
            true => keeper_wanted.notified().await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = wanted => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// Takes a turn and notes for operators what came of it.
async fn turn(turn: impl Future<Output = Result<u64, Failure>>, worker: &Worker, interval: Duration) -> Next {
    let outcome = task::outlive(turn).await;
    let mut status = worker.status.lock();
    status.1 = clock::now_ms();
    match outcome {
        Some(Ok(done)) => {
            status.0 += done;
            status.2 = None;
            // The turn ended at its limit: more is waiting.
            let has_more = done >= STEPS_MAX as u64 && worker.job.has_queue();
            Next::After(if has_more { Duration::ZERO } else { interval })
        }
        Some(Err(failure)) => {
            let error = failure.to_string();
            // Said once, not at every turn.
            if status.2.as_ref() != Some(&error) {
                let worker = worker.job.name();
                match failure.status {
                    // Somebody is starting or busy: what was to be expected.
                    Status::Retry | Status::NotLeader => tracing::info!(worker, error, "a worker waits"),
                    _ => tracing::warn!(worker, error, "a worker's turn failed; it tries again"),
                }
            }
            status.2 = Some(error);
            Next::After(interval.min(RETRY_INTERVAL))
        }
        // The panic hook has told it.
        None => {
            let retry_s = PANIC_PAUSE.as_secs();
            status.2 = Some(format!(
                "its turn ended in a bug, which the log tells; it tries again every {retry_s} s"
            ));
            Next::NotBefore(PANIC_PAUSE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_turn_that_panics_is_told_and_tried_again() {
        let workers = Workers::new();
        let worker = &workers.workers[0];
        let panicked = turn(async { panic!("as it should") }, worker, INTERVAL).await;
        assert_eq!(panicked, Next::NotBefore(PANIC_PAUSE));
        let error = workers.status()[0].last_error.clone().expect("operators hear of it");
        assert!(error.contains("bug"), "{error}");
        let busy = Failure::new(Status::Retry, "busy");
        assert_eq!(turn(async { Err(busy) }, worker, INTERVAL).await, Next::After(RETRY_INTERVAL));
        assert_eq!(turn(async { Ok(3) }, worker, INTERVAL).await, Next::After(INTERVAL));
        assert_eq!((workers.status()[0].done, &workers.status()[0].last_error), (3, &None));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_wants_a_lease_wakes_the_keeper_but_not_from_a_panic() {
        let wanted = Notify::new();
        for (next, rests) in
            [(Next::After(INTERVAL), Duration::ZERO), (Next::NotBefore(PANIC_PAUSE), PANIC_PAUSE)]
        {
            wanted.notify_one();
            let begun = tokio::time::Instant::now();
            rest(next, Job::LeaseKeeper, &wanted).await;
            assert_eq!(begun.elapsed(), rests);
        }
    }
}
