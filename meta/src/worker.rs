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
//!
//! Every step is bounded and idempotent; a step that fails is tried again at the next turn.
//!
//! Not here: what the commands do (see `state`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use consensus::Rows;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use wire::block::Replication;
use wire::clock::{self, UnixMs};
use wire::ids::{ContainerId, LeaseId};
use wire::limits::LEASE_IDS;
use wire::scm::{GrantLease, LogDeletions, SyncLeases};
use wire::status::{Failure, Status};

use crate::command::{
    AddLease, BeginHandover, DropLeases, EndLeases, EndSession, ExpireLoans, ExpireUploads, FinishHandover,
    WorkOff,
};
use crate::config::OmConfig;
use crate::error::{failure_of, of_read, of_store};
use crate::prepare;
use crate::schema::{LOAN, LoanRow, SESSION, UPLOAD_DONE, UploadDoneRow, WORK};
use crate::server::Om;
use crate::state::deletion::{HANDOVER_BLOCKS_MAX, handover_blocks};
use crate::state::loan::{LOANS_ENDED_MAX, first_of};
use crate::state::{Reply, RowsExt, deletion, session, work};

/// More ids are asked for when fewer than this are left: a gateway takes 256 at a time.
const IDS_LOW: u64 = LEASE_IDS / 8;
/// A turn that failed is tried again after this, if not sooner.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Steps that a worker does in a row before it looks up.
const STEPS_MAX: usize = 64;
/// Leases named to SCM, or dropped, at once.
const LEASES_AT_ONCE_MAX: usize = 256;
/// Loans read at once while looking for old ones.
const LOANS_SEEN_MAX: usize = 1000;
/// Completed uploads forgotten at once.
const UPLOADS_AT_ONCE_MAX: u32 = 100;
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
}

impl Job {
    const ALL: [Self; 6] = [
        Self::LeaseKeeper,
        Self::SessionSilence,
        Self::LoanExpiry,
        Self::WorkQueue,
        Self::DeletionHandover,
        Self::UploadExpiry,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::LeaseKeeper => "lease keeper",
            Self::SessionSilence => "session silence",
            Self::LoanExpiry => "loan expiry",
            Self::WorkQueue => "work queue",
            Self::DeletionHandover => "deletion handover",
            Self::UploadExpiry => "upload expiry",
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
        };
        Duration::from_millis(interval_ms.max(1))
    }

    /// Whether it empties a queue in bounded turns.
    const fn has_queue(self) -> bool {
        matches!(self, Self::WorkQueue | Self::DeletionHandover)
    }

    async fn turn(self, om: &Om) -> Result<u64, Failure> {
        match self {
            Self::LeaseKeeper => keep_leases(om).await,
            Self::SessionSilence => end_silent_sessions(om).await,
            Self::LoanExpiry => expire_loans(om).await,
            Self::WorkQueue => work_off(om).await,
            Self::DeletionHandover => hand_over(om).await,
            Self::UploadExpiry => expire_uploads(om).await,
        }
    }
}

struct Worker {
    job: Job,
    is_paused: AtomicBool,
    status: Mutex<(u64, UnixMs, Option<String>)>,
}

/// All workers of an OM.
pub(crate) struct Workers {
    workers: Vec<Arc<Worker>>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    pub(crate) fn new() -> Self {
        let worker =
            |job| Arc::new(Worker { job, is_paused: AtomicBool::new(false), status: Mutex::default() });
        Self {
            workers: Job::ALL.map(worker).into(),
            stop: watch::Sender::new(false),
            tasks: Mutex::default(),
        }
    }

    pub(crate) fn start(&self, om: &Arc<Om>) {
        let mut tasks = self.tasks.lock();
        for worker in &self.workers {
            let interval = worker.job.interval(om.config());
            tasks.push(tokio::spawn(run(
                Arc::downgrade(om),
                worker.clone(),
                interval,
                self.stop.subscribe(),
            )));
        }
    }

    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A worker that panicked has said so; the others still end in order.
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

async fn run(om: Weak<Om>, worker: Arc<Worker>, interval: Duration, mut stop: watch::Receiver<bool>) {
    // Until this replica leads there is nothing to do; then the first turn comes at once.
    let Some((group, memory)) = om.upgrade().map(|om| (om.group().clone(), om.memory().clone())) else {
        return;
    };
    tokio::select! {
        _ = group.wait_leader() => {}
        _ = stop.changed() => return,
    }
    drop(group);
    while !*stop.borrow_and_update() {
        let Some(om) = om.upgrade() else { return };
        let mut pause = interval;
        if !worker.is_paused.load(Ordering::Relaxed) && om.is_leader() {
            pause = match turn(&om, &worker).await {
                // The turn ended at its limit: more is waiting.
                Ok(done) if done >= STEPS_MAX as u64 && worker.job.has_queue() => Duration::ZERO,
                Ok(_) => interval,
                Err(()) => interval.min(RETRY_INTERVAL),
            };
        }
        // A worker that sleeps keeps nobody alive.
        drop(om);
        let wanted = async {
            match worker.job {
                Job::LeaseKeeper => memory.wanted.notified().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wanted => {}
            _ = stop.changed() => return,
        }
    }
}

async fn turn(om: &Om, worker: &Worker) -> Result<u64, ()> {
    let outcome = worker.job.turn(om).await;
    let mut status = worker.status.lock();
    status.1 = clock::now_ms();
    match outcome {
        Ok(done) => {
            status.0 += done;
            status.2 = None;
            Ok(done)
        }
        Err(failure) => {
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
            Err(())
        }
    }
}

/// Compares leases with SCM, then asks for what is missing. One task does both in turn, so a grant is logged before the
/// next comparison and never taken for unknown.
async fn keep_leases(om: &Om) -> Result<u64, Failure> {
    let synced = sync_leases(om).await;
    let topped_up = top_up_leases(om).await;
    let leases = prepare::leases(&view(om)?).map_err(|error| failure_of(of_store(&error)))?;
    om.metrics().leases.set(leases.iter().filter(|(_, row)| row.left() > 0).count() as f64);
    om.memory().set_leases(&leases);
    let failure = synced.as_ref().err().or(topped_up.as_ref().err());
    om.memory().set_awaited(failure.map(Failure::to_string));
    Ok(synced? + topped_up?)
}

fn view(om: &Om) -> Result<consensus::ReadView, Failure> {
    om.group().view().map_err(|error| failure_of(of_store(&error)))
}

async fn sync_leases(om: &Om) -> Result<u64, Failure> {
    let leases = prepare::leases(&view(om)?).map_err(|error| failure_of(of_store(&error)))?;
    let of_state = |is_ended: bool| {
        let ids = leases.iter().filter(move |(_, row)| row.is_ended == is_ended).map(|(id, _)| *id);
        ids.collect::<Vec<LeaseId>>()
    };
    let held = of_state(false);
    let mut returned = of_state(true);
    returned.truncate(LEASES_AT_ONCE_MAX);
    let synced = om.memory().call(SyncLeases { held, ended: returned.clone() }).await?;
    om.memory().set_token_keys(synced.token_keys);
    let mut done = 0;
    if !returned.is_empty() {
        done += returned.len() as u64;
        om.propose_freeing(DropLeases { leases: returned }).await.map_err(failure_of)?;
    }
    let mut end = synced.end;
    end.truncate(LEASES_AT_ONCE_MAX);
    if !end.is_empty() {
        done += end.len() as u64;
        tracing::info!(leases = ?end, "leases end: their containers have left OPEN");
        om.propose_freeing(EndLeases { leases: end }).await.map_err(failure_of)?;
    }
    if !synced.unknown_to_om.is_empty() {
        // Granted, but the answer was lost before it was logged: give them back. Not in state, so nothing is logged.
        let request = SyncLeases { held: of_state(false), ended: synced.unknown_to_om };
        om.memory().call(request).await?;
    }
    Ok(done)
}

async fn top_up_leases(om: &Om) -> Result<u64, Failure> {
    let (replications, avoid) = om.memory().demand();
    let mut done = 0;
    let mut failed = None;
    for replication in replications {
        match top_up(om, replication, &avoid).await {
            Ok(count) => done += count,
            Err(failure) => failed = Some(failure),
        }
    }
    failed.map_or(Ok(done), Err)
}

async fn top_up(om: &Om, replication: Replication, avoid: &BTreeSet<ContainerId>) -> Result<u64, Failure> {
    let leases = prepare::leases(&view(om)?).map_err(|error| failure_of(of_store(&error)))?;
    let left: u64 = leases
        .iter()
        .filter(|(_, row)| row.pipeline.replication == replication && !avoid.contains(&row.container))
        .map(|(_, row)| row.left())
        .sum();
    if left >= IDS_LOW {
        return Ok(0);
    }
    let request = om.grant_request(replication);
    let grant = GrantLease {
        replication,
        request,
        avoid: avoid.iter().copied().collect(),
        avoid_datanodes: Vec::new(),
    };
    let lease = om.memory().call(grant).await?;
    tracing::info!(lease = %lease.id, container = %lease.container, count = lease.count, "lease granted");
    om.propose(AddLease { lease }).await.map_err(failure_of)?;
    om.grant_done(replication);
    Ok(1)
}

async fn end_silent_sessions(om: &Om) -> Result<u64, Failure> {
    let view = view(om)?;
    let mut sessions = Vec::new();
    view.scan(SESSION, &[], None, &mut |row_key, _| {
        sessions.extend(session::id_of(row_key));
        std::ops::ControlFlow::Continue(())
    })
    .map_err(|error| failure_of(of_store(&error)))?;
    drop(view);
    let silent = om.silent_sessions(&sessions);
    for session in &silent {
        tracing::info!(%session, "session was silent for too long and ends");
        om.propose_freeing(EndSession { session: *session }).await.map_err(failure_of)?;
    }
    Ok(silent.len() as u64)
}

async fn expire_loans(om: &Om) -> Result<u64, Failure> {
    let taken_before_ms = clock::now_ms().saturating_sub(om.config().open_key_expire_after_ms);
    let mut from: Vec<u8> = Vec::new();
    let mut done = 0;
    loop {
        let rows = view(om)?.rows::<LoanRow>(LOAN, &from, None, LOANS_SEEN_MAX);
        let rows = rows.map_err(|error| failure_of(of_store(&error)))?;
        let Some((last, _)) = rows.last() else { return Ok(done) };
        from = [last.as_slice(), &[0]].concat();
        let old: Vec<_> = rows
            .iter()
            .filter(|(_, row)| row.taken_ms < taken_before_ms)
            .map(|(row_key, _)| first_of(row_key))
            .collect();
        for loans in old.chunks(LOANS_ENDED_MAX) {
            let command = ExpireLoans { loans: loans.to_vec(), taken_before_ms };
            done += worked(om.propose_freeing(command).await.map_err(failure_of)?);
        }
    }
}

async fn work_off(om: &Om) -> Result<u64, Failure> {
    let mut done = 0;
    for _ in 0..STEPS_MAX {
        let queued_before_ms = clock::now_ms().saturating_sub(om.config().delete_grace_ms);
        let next = work::next_due(&view(om)?, queued_before_ms);
        let Some(row_key) = next.map_err(|error| failure_of(of_store(&error)))? else { break };
        let command = WorkOff { row_key: row_key.into() };
        done += worked(om.propose_freeing(command).await.map_err(failure_of)?);
    }
    Ok(done)
}

async fn hand_over(om: &Om) -> Result<u64, Failure> {
    let mut done = 0;
    for _ in 0..STEPS_MAX {
        let freed_before_ms = clock::now_ms().saturating_sub(om.config().delete_grace_ms);
        let view = om.group().read().await.map_err(|error| failure_of(of_read(error)))?;
        if !deletion::is_due(view.as_ref(), freed_before_ms).map_err(|error| failure_of(of_store(&error)))? {
            break;
        }
        let command = BeginHandover { freed_before_ms, count_max: HANDOVER_BLOCKS_MAX };
        let reply = om.propose_freeing(command).await.map_err(failure_of)?;
        let Reply::Handover(Some(handover)) = reply else { break };
        let view = om.group().read().await.map_err(|error| failure_of(of_read(error)))?;
        let blocks =
            handover_blocks(view.as_ref(), &handover).map_err(|error| failure_of(of_store(&error)))?;
        om.memory().call(LogDeletions { batch: handover.batch, blocks }).await?;
        wire::failpoint::hit("meta_deletion_handed_over");
        let finish = FinishHandover { batch: handover.batch };
        let count = worked(om.propose_freeing(finish).await.map_err(failure_of)?);
        om.metrics().blocks_handed_over.increment(count);
        done += count;
    }
    let backlog = deletion::backlog(&view(om)?, BACKLOG_COUNTED_MAX);
    let (count, _) = backlog.map_err(|error| failure_of(of_store(&error)))?;
    om.metrics().deletion_backlog.set(count as f64);
    Ok(done)
}

async fn expire_uploads(om: &Om) -> Result<u64, Failure> {
    let completed_before_ms = clock::now_ms().saturating_sub(om.config().completed_upload_keep_ms);
    let mut done = 0;
    loop {
        let oldest = view(om)?.rows::<UploadDoneRow>(UPLOAD_DONE, &[], None, 1);
        let oldest = oldest.map_err(|error| failure_of(of_store(&error)))?.pop();
        if oldest.is_none_or(|(_, row)| row.completed_ms >= completed_before_ms) {
            return Ok(done);
        }
        let command = ExpireUploads { count_max: UPLOADS_AT_ONCE_MAX, completed_before_ms };
        done += worked(om.propose_freeing(command).await.map_err(failure_of)?);
    }
}

fn worked(reply: Reply) -> u64 {
    match reply {
        Reply::Worked(count) => u64::from(count),
        _ => 0,
    }
}

/// How many rows of queued work there are, up to a limit: for operators.
pub(crate) fn queued_work(rows: &impl Rows) -> Result<usize, consensus::StoreError> {
    let mut count = 0;
    rows.scan(WORK, &[], None, &mut |_, _| {
        count += 1;
        if count == BACKLOG_COUNTED_MAX {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        }
    })?;
    Ok(count)
}
