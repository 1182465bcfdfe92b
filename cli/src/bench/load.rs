//! Threads and connections of one cell.
//!
//! Every thread runs a single-threaded runtime with its share of the connections, so that a request never wakes
//! another core of the generator: on a small machine those wake-ups would be taken from the server. All threads start
//! together once their connections are open.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context, anyhow};
use platform::watch;
use tokio::task::JoinSet;
use wire::clock::steady_ns;

use super::content::{Content, Random};
use super::plan::{Cell, Operation};
use super::stats::{Done, Failure, Stats};
use super::target::Target;

/// A connection that fails this often in a row ends its part of the cell: a dead server is not hammered.
const FAILURES_IN_A_ROW_MAX: u32 = 20;

/// Shares of `mixed`, in percent; the rest is delete.
const MIXED_GET: u64 = 45;
const MIXED_HEAD: u64 = 30;
const MIXED_PUT: u64 = 15;

/// What the progress bar shows.
pub(super) struct Progress {
    operations: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    /// Zero until the threads start.
    started_ns: AtomicU64,
    /// Whether the cell ends by time.
    pub(super) by_time: bool,
}

/// One cell about to run.
pub(super) struct CellRun {
    pub(super) cell: Cell,
    pub(super) progress: Arc<Progress>,
    target: Target,
    content: Arc<Content>,
    threads: usize,
    stopped: watch::Receiver<bool>,
}

/// What the workers of a cell share.
struct Shared {
    cell: Cell,
    content: Arc<Content>,
    progress: Arc<Progress>,
    /// Numbers of the operations begun.
    tickets: AtomicU64,
}

/// One connection.
struct Worker {
    shared: Arc<Shared>,
    target: Target,
    random: Random,
    /// This worker's number in the cell.
    number: usize,
    list_token: Option<String>,
    /// Objects of this worker's own that exist and that do not; for `mixed` alone.
    live: Vec<u64>,
    gone: Vec<u64>,
    stats: Vec<Stats>,
}

impl Progress {
    /// Operations, bytes, failures, time since the start.
    pub(super) fn read(&self) -> (u64, u64, u64, Duration) {
        let started = self.started_ns.load(Ordering::Relaxed);
        let elapsed = if started == 0 { 0 } else { steady_ns().saturating_sub(started) };
        (
            self.operations.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
            self.failures.load(Ordering::Relaxed),
            Duration::from_nanos(elapsed),
        )
    }
}

impl CellRun {
    pub(super) fn new(
        cell: Cell,
        target: &Target,
        content: &Arc<Content>,
        threads: usize,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let progress = Arc::new(Progress {
            operations: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            started_ns: AtomicU64::new(0),
            by_time: cell.duration.is_some(),
        });
        let threads = threads.min(cell.connections);
        Self { cell, progress, target: target.clone(), content: Arc::clone(content), threads, stopped }
    }

    /// Runs the cell to its end; blocks. The statistics of each kind of operation that occurred.
    pub(super) fn execute(self) -> anyhow::Result<Vec<Stats>> {
        let barrier = Barrier::new(self.threads + 1);
        let shared = Arc::new(Shared {
            cell: self.cell.clone(),
            content: Arc::clone(&self.content),
            progress: Arc::clone(&self.progress),
            tickets: AtomicU64::new(0),
        });
        let mut merged: Vec<Stats> = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|thread| {
                    let (run, shared, barrier) = (&self, &shared, &barrier);
                    scope.spawn(move || run.thread(thread, shared, barrier))
                })
                .collect();
            barrier.wait();
            for thread in threads {
                for stats in thread.join().map_err(|_| anyhow!("a load thread panicked"))?? {
                    match merged.iter_mut().find(|known| known.operation == stats.operation) {
                        Some(known) => known.merge(&stats),
                        None => merged.push(stats),
                    }
                }
            }
            Ok(merged)
        })
    }

    fn thread(&self, thread: usize, shared: &Arc<Shared>, barrier: &Barrier) -> anyhow::Result<Vec<Stats>> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime");
        // Connections go round the threads, so every thread has one.
        let numbers: Vec<usize> = (thread..self.cell.connections).step_by(self.threads).collect();
        let opened = match &runtime {
            Ok(runtime) => runtime.block_on(self.target.open_each(&numbers)),
            Err(_) => Ok(Vec::new()),
        };
        // Whatever went wrong, the others wait here for us.
        barrier.wait();
        let runtime = runtime?;
        let targets = match opened {
            Ok(targets) => targets,
            Err(error) => {
                let mut stats = Stats::new(self.cell.operation);
                let failure = Failure { kind: "connect".into(), message: format!("{error:#}") };
                stats.record(Duration::ZERO, Err(failure));
                self.progress.failures.fetch_add(1, Ordering::Relaxed);
                return Ok(vec![stats]);
            }
        };
        let start = steady_ns().max(1);
        self.progress.started_ns.store(start, Ordering::Relaxed);
        runtime.block_on(async {
            let mut workers = JoinSet::new();
            for (number, target) in numbers.into_iter().zip(targets) {
                let worker = Worker::new(Arc::clone(shared), target, number);
                workers.spawn(worker.run(start, self.stopped.clone()));
            }
            let mut all = Vec::new();
            while let Some(stats) = workers.join_next().await {
                all.extend(stats.context("run a connection")?);
            }
            Ok(all)
        })
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, target: Target, number: usize) -> Self {
        let mut live = Vec::new();
        if shared.cell.operation == Operation::Mixed {
            live = (number as u64..shared.cell.objects).step_by(shared.cell.connections).collect();
        }
        let random = Random::new(Random::new(target.seed() ^ number as u64).next());
        Self { shared, target, random, number, list_token: None, live, gone: Vec::new(), stats: Vec::new() }
    }

    async fn run(mut self, start: u64, mut stopped: watch::Receiver<bool>) -> Vec<Stats> {
        let deadline = self.shared.cell.duration.map(|duration| start + duration.as_nanos() as u64);
        let mut failures_in_a_row = 0;
        let mut now = start;
        while deadline.is_none_or(|deadline| now < deadline) && failures_in_a_row < FAILURES_IN_A_ROW_MAX {
            let ticket = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
            let Some((operation, object)) = self.choose(ticket) else { break };
            let begun = steady_ns();
            let outcome = tokio::select! {
                biased;
                outcome = self.perform(operation, object, ticket) => outcome,
                // An operation cut off by the user is no failure of the server; it is not counted.
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            now = steady_ns();
            self.count(operation, object, Duration::from_nanos(now - begun), outcome, &mut failures_in_a_row);
            if let Some(stats) = self.stats.iter_mut().find(|stats| stats.operation == operation) {
                stats.elapsed = Duration::from_nanos(now - start);
            }
        }
        self.stats
    }

    /// The next operation and its object; `None` when the cell is used up.
    fn choose(&mut self, ticket: u64) -> Option<(Operation, u64)> {
        let cell = &self.shared.cell;
        if cell.requests.is_some_and(|requests| ticket >= requests) {
            return None;
        }
        let objects = cell.objects;
        match cell.operation {
            Operation::Put => Some((Operation::Put, ticket % objects)),
            Operation::Delete => (ticket < objects).then_some((Operation::Delete, ticket)),
            Operation::List => Some((Operation::List, 0)),
            operation @ (Operation::Get | Operation::Head) => Some((operation, self.random.below(objects))),
            Operation::Mixed => Some(self.choose_mixed()),
        }
    }

    /// Only objects of this worker's own, so that no other has just deleted what this one reads.
    fn choose_mixed(&mut self) -> (Operation, u64) {
        let percent = self.random.below(100);
        if self.live.is_empty() {
            return (Operation::Put, self.gone[self.random.below(self.gone.len() as u64) as usize]);
        }
        let live = self.live[self.random.below(self.live.len() as u64) as usize];
        if percent < MIXED_GET {
            (Operation::Get, live)
        } else if percent < MIXED_GET + MIXED_HEAD {
            (Operation::Head, live)
        } else if percent < MIXED_GET + MIXED_HEAD + MIXED_PUT {
            // What was deleted comes back first, so that the set does not run dry.
            (Operation::Put, self.gone.last().copied().unwrap_or(live))
        } else {
            (Operation::Delete, live)
        }
    }

    async fn perform(&mut self, operation: Operation, object: u64, write: u64) -> Result<Done, Failure> {
        let content = &self.shared.content;
        match operation {
            Operation::Put => self.target.put(content, object, write).await,
            Operation::Get => self.target.get(content, object).await,
            Operation::Head => self.target.head(content, object).await,
            Operation::Delete => self.target.delete(content, object).await,
            Operation::List => self.target.list(content.size(), &mut self.list_token).await,
            Operation::Mixed => unreachable!("mixed is a choice among the others"),
        }
    }

    fn count(
        &mut self,
        operation: Operation,
        object: u64,
        latency: Duration,
        outcome: Result<Done, Failure>,
        failures_in_a_row: &mut u32,
    ) {
        let progress = &self.shared.progress;
        match &outcome {
            Ok(done) => {
                *failures_in_a_row = 0;
                progress.operations.fetch_add(1, Ordering::Relaxed);
                progress.bytes.fetch_add(done.bytes, Ordering::Relaxed);
                self.moved(operation, object);
            }
            Err(_) => {
                *failures_in_a_row += 1;
                progress.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !self.stats.iter().any(|stats| stats.operation == operation) {
            self.stats.push(Stats::new(operation));
        }
        if let Some(stats) = self.stats.iter_mut().find(|stats| stats.operation == operation) {
            stats.record(latency, outcome);
        }
    }

    /// Keeps the books of `mixed`.
    fn moved(&mut self, operation: Operation, object: u64) {
        if self.shared.cell.operation != Operation::Mixed {
            return;
        }
        let (from, to) = match operation {
            Operation::Put => (&mut self.gone, &mut self.live),
            Operation::Delete => (&mut self.live, &mut self.gone),
            _ => return,
        };
        if let Some(at) = from.iter().rposition(|known| *known == object) {
            from.swap_remove(at);
            to.push(object);
        }
        debug_assert!(!self.live.is_empty() || !self.gone.is_empty(), "worker {} has no object", self.number);
    }
}
