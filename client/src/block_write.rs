//! One block on its way to every datanode of its pipeline, and what became of each.
//!
//! ```text
//!   feed(run) --> [window of 2 runs] --> write_block on a      Writing --ack of the right digest--> Acknowledged
//!            `--> [window of 2 runs] --> write_block on b             |--refusal------------------> Refused
//!            `--> [window of 2 runs] --> write_block on c             `--error, or no progress----> Failed
//! ```
//!
//! All replicas are fed in step: the slowest one holds the writer back, and no replica gets ahead by more than its window. A
//! replica that has work and makes no progress for `REPLICA_PATIENCE` is asked whether it lives. If it does its disk is slow:
//! leaving it out at once would cost redundancy, so it gets `LIVING_PATIENCE`. After that, or without an answer, it has
//! failed, *if* enough others go on without it; else it is waited for much longer, since giving up would help nobody.
//! Progress is a run taken or, after the last, the acknowledgement.
//!
//! Invariants:
//! * `Acknowledged` means: durable there, with the length and digest that were computed here.
//! * A replica that was given up is never counted again, whatever it answers later.
//! * A write that is stopped half way ends in an error there, never as a shorter block.
//! * At most `RUNS_IN_FLIGHT_MAX` runs wait for each replica.
//! * A datanode that gave up waiting for the next run has not failed: the body came too slowly.
//!
//! Not here: what to do about replicas that refused or failed (see `key_writer`).

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt, stream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use wire::block::Replication;
use wire::chunk::{BlockDigest, ChunkRun};
use wire::datanode::{BlockReceipt, WriteBlock};
use wire::ids::DatanodeId;
use wire::status::{Failure, Status};

use crate::failed_nodes::FailedNodes;
use crate::http::BODY_IDLE_DEADLINE;
use crate::loans::LentBlock;
use crate::metrics;
use crate::service::{ChunkStream, DatanodeService, Datanodes};

/// Runs on their way to one datanode at most.
pub(crate) const RUNS_IN_FLIGHT_MAX: usize = 2;
/// A replica without progress for this long is asked whether it lives.
pub(crate) const REPLICA_PATIENCE: Duration = Duration::from_millis(700);
/// How long its answer may take: design, a replica without a sign for a second has failed for this gateway.
const PING_PATIENCE: Duration = Duration::from_millis(300);
/// One that lives and can be done without is waited for this long: a disk that is busy for a moment should not cost
/// redundancy, nor one that is ill every client three seconds.
const LIVING_PATIENCE: Duration = Duration::from_secs(2);
/// A replica that cannot be done without is waited for this long: a disk that stalls for seconds is not worth an error, a
/// client's own timeout (a minute, mostly) is.
pub(crate) const LAST_PATIENCE: Duration = Duration::from_secs(10);
/// A write that breaks off when its datanode has waited for the next run for this long broke off for that: a little less than
/// datanodes wait, since the last run took its time on the way.
const STARVED: Duration = BODY_IDLE_DEADLINE.saturating_sub(Duration::from_secs(10));
/// A timer that is late by this much says that this process stood still, and nothing about the datanodes.
pub(crate) const STANDSTILL: Duration = Duration::from_millis(250);
/// Replicas that THREE must not go below by leaving out others.
pub(crate) const THREE_MIN: usize = 2;

/// What an attempt to go on with a block came to.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Every replica that is left has the runs, or has acknowledged the block. Some may have failed.
    Reached,
    /// A datanode refused: the block cannot be had there. Or, by its status, the body came too slowly.
    Refused(Failure),
    /// These stand still, and too few others go on. Told once; then they are waited for.
    Stuck(BTreeSet<DatanodeId>),
    /// Too few replicas are left.
    Lost(Failure),
}

/// See the module.
pub(crate) struct BlockWrite {
    replicas: Vec<Replica>,
    /// How many must go on for a block to be worth it.
    needed: usize,
    /// Set when all runs were fed: what every receipt must say.
    expected: Option<BlockReceipt>,
    /// Runs fed to every replica that is left.
    fed: u64,
    is_stuck_told: bool,
    failed: Arc<FailedNodes>,
}

struct Replica {
    datanode: DatanodeId,
    service: Option<Arc<dyn DatanodeService>>,
    feed: Option<mpsc::Sender<ChunkRun>>,
    fed: u64,
    pace: Arc<Pace>,
    write: Option<Write>,
    state: State,
}

#[derive(Debug)]
enum State {
    Writing,
    Acknowledged,
    Refused(Failure),
    Failed(Failure),
}

/// A write under way; stopped when dropped.
type Write = Pin<Box<dyn Future<Output = Result<BlockReceipt, Failure>> + Send>>;

impl Replica {
    fn is_writing(&self) -> bool {
        matches!(self.state, State::Writing)
    }

    /// Whether it owes us something.
    fn is_busy(&self) -> bool {
        self.is_writing() && (self.feed.is_none() || self.pace.is_busy())
    }

    /// Whether it owes us something, and gave no sign of life for so long that it must be asked for one.
    fn is_silent(&self, now: Instant) -> bool {
        self.is_busy() && self.pace.last_sign() + REPLICA_PATIENCE <= now
    }

    fn end(&mut self, state: State) {
        // The write first: its source must not seem to end while it still runs.
        self.write = None;
        self.feed = None;
        self.state = state;
    }
}

impl BlockWrite {
    /// Begins a block whose runs will be fed.
    pub(crate) fn start(
        datanodes: &Datanodes,
        failed: Arc<FailedNodes>,
        lent: &LentBlock,
        capacity: u64,
        is_exact: bool,
    ) -> Self {
        let request = WriteBlock { block: lent.block, token: lent.token.clone(), length: capacity, is_exact };
        Self::begin(datanodes, failed, lent, |datanode, pace| {
            let (sender, receiver) = mpsc::channel(RUNS_IN_FLIGHT_MAX);
            let ended = pace.clone();
            let (request, body) = (request.clone(), body_of(receiver, pace));
            // A task of its own: hashing of the next run must not wait for this one's checks.
            let task = platform::task::spawn(async move {
                let outcome = datanode.write_block(request, body).await;
                // Now: it may be looked at only when the body goes on.
                ended.ended();
                outcome
            });
            (Some(sender), Box::pin(Stopping(task)))
        })
    }

    /// Begins a block whose bytes are all in `run`.
    pub(crate) fn start_small(
        datanodes: &Datanodes,
        failed: Arc<FailedNodes>,
        lent: &LentBlock,
        run: &ChunkRun,
    ) -> Self {
        let length = run.data.len() as u64;
        let request = WriteBlock { block: lent.block, token: lent.token.clone(), length, is_exact: true };
        Self::begin(datanodes, failed, lent, |datanode, _| {
            let (request, run) = (request.clone(), run.clone());
            (None, Box::pin(async move { datanode.write_small_block(request, run).await }))
        })
    }

    fn begin(
        datanodes: &Datanodes,
        failed: Arc<FailedNodes>,
        lent: &LentBlock,
        start: impl Fn(Arc<dyn DatanodeService>, Arc<Pace>) -> (Option<mpsc::Sender<ChunkRun>>, Write),
    ) -> Self {
        let replica = |member: &wire::block::DatanodeAddress| {
            let pace = Arc::new(Pace::new());
            let service = datanodes.get(member);
            let at = service.as_ref().ok().cloned();
            let (feed, write, state) = match service {
                Ok(datanode) => {
                    let (feed, write) = start(datanode, pace.clone());
                    (feed, Some(write), State::Writing)
                }
                Err(failure) => (None, None, State::Failed(failure)),
            };
            Replica { datanode: member.id, service: at, feed, fed: 0, pace, write, state }
        };
        let needed = match lent.pipeline.replication {
            Replication::One => 1,
            Replication::Three => THREE_MIN,
        };
        Self {
            replicas: lent.pipeline.members.iter().map(replica).collect(),
            needed,
            expected: None,
            fed: 0,
            is_stuck_told: false,
            failed,
        }
    }

    /// Datanodes that hold the block.
    pub(crate) fn acknowledged(&self) -> BTreeSet<DatanodeId> {
        self.datanodes(|state| matches!(state, State::Acknowledged))
    }

    /// Datanodes that failed. A refusal is none.
    pub(crate) fn failed(&self) -> BTreeSet<DatanodeId> {
        self.datanodes(|state| matches!(state, State::Failed(_)))
    }

    fn datanodes(&self, is_wanted: impl Fn(&State) -> bool) -> BTreeSet<DatanodeId> {
        let wanted = self.replicas.iter().filter(|replica| is_wanted(&replica.state));
        wanted.map(|replica| replica.datanode).collect()
    }

    /// Gives a run to every replica that is left. To be called again with the same run after `Stuck`.
    pub(crate) async fn feed(&mut self, run: &ChunkRun) -> Verdict {
        let wanted = self.fed + 1;
        loop {
            poll_fn(|context| Poll::Ready(self.poll_writes(context))).await;
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            let behind =
                self.replicas.iter_mut().find(|replica| replica.is_writing() && replica.fed < wanted);
            let Some(replica) = behind else { break };
            let Some(feed) = &replica.feed else {
                // It takes no more: its outcome is on its way.
                if let Some(verdict) = self.wait().await {
                    return verdict;
                }
                continue;
            };
            // Counted before it can be taken.
            replica.pace.given();
            match feed.try_send(run.clone()) {
                Ok(()) => replica.fed = wanted,
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    replica.feed = None;
                    replica.pace.renew();
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    replica.pace.not_given();
                    let feed = feed.clone();
                    if let Some(verdict) = self.wait_or(feed.reserve().map(drop)).await {
                        return verdict;
                    }
                }
            }
        }
        self.fed = wanted;
        Verdict::Reached
    }

    /// Ends the block after its last run and waits for the acknowledgements. To be called again after `Stuck`.
    pub(crate) async fn close(&mut self, length: u64, digest: BlockDigest) -> Verdict {
        if self.expected.is_none() {
            self.expected = Some(BlockReceipt { length, digest });
            for replica in &mut self.replicas {
                replica.pace.close(replica.feed.is_some());
                replica.feed = None;
            }
        }
        loop {
            poll_fn(|context| Poll::Ready(self.poll_writes(context))).await;
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            if !self.replicas.iter().any(Replica::is_writing) {
                return Verdict::Reached;
            }
            if let Some(verdict) = self.wait().await {
                return verdict;
            }
        }
    }

    /// Whether the block is lost, by what is known now.
    fn verdict(&self) -> Option<Verdict> {
        let refusal = self.replicas.iter().find_map(|replica| match &replica.state {
            State::Refused(failure) => Some(failure.clone()),
            _ => None,
        });
        if let Some(failure) = refusal {
            return Some(Verdict::Refused(failure));
        }
        let left = self.replicas.iter().filter(|replica| !matches!(replica.state, State::Failed(_))).count();
        if left >= self.needed {
            return None;
        }
        let failure = self.replicas.iter().find_map(|replica| match &replica.state {
            State::Failed(failure) => Some(failure.clone()),
            _ => None,
        });
        let nobody = || Failure::new(Status::Retry, "the pipeline has too few members");
        Some(Verdict::Lost(failure.unwrap_or_else(nobody)))
    }

    /// Waits until a write has ended or somebody's patience has.
    async fn wait(&mut self) -> Option<Verdict> {
        self.wait_or(std::future::pending()).await
    }

    /// As [`Self::wait`], or until `room` is there.
    async fn wait_or(&mut self, room: impl Future<Output = ()>) -> Option<Verdict> {
        let look = self.next_look();
        tokio::select! {
            biased;
            () = poll_fn(|context| if self.poll_writes(context) { Poll::Ready(()) } else { Poll::Pending }) => {}
            () = room => {}
            () = sleep_until(look) => return self.look(look).await,
        }
        None
    }

    /// When the first replica's patience ends.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let patience = |replica: &Replica| {
            let pace = &replica.pace;
            let soon = (pace.last_sign() + REPLICA_PATIENCE).min(pace.last() + LIVING_PATIENCE);
            // One that was told to be stuck is looked at again and again: others may have gone on meanwhile.
            if soon > now { soon } else { now + REPLICA_PATIENCE / 4 }
        };
        let busy = self.replicas.iter().filter(|replica| replica.is_busy());
        busy.map(patience).min().unwrap_or(now + REPLICA_PATIENCE)
    }

    /// Somebody's patience has ended at `due`: decides who has failed.
    async fn look(&mut self, due: Instant) -> Option<Verdict> {
        if Instant::now().duration_since(due) > STANDSTILL {
            for replica in &self.replicas {
                replica.pace.renew();
            }
            return None;
        }
        self.ask_who_lives().await;
        // What the others answered in the same instant counts.
        tokio::task::yield_now().await;
        poll_fn(|context| Poll::Ready(self.poll_writes(context))).await;
        let now = Instant::now();
        let is_over =
            |replica: &Replica, patience| replica.is_busy() && replica.pace.last() + patience <= now;
        let stands_still = |replica: &Replica| replica.is_silent(now) || is_over(replica, LIVING_PATIENCE);
        let still: BTreeSet<DatanodeId> = self
            .replicas
            .iter()
            .filter(|replica| stands_still(replica))
            .map(|replica| replica.datanode)
            .collect();
        let refused = self.replicas.iter().any(|replica| matches!(replica.state, State::Refused(_)));
        if still.is_empty() || refused {
            return None;
        }
        let others = self.replicas.iter().filter(|replica| {
            !matches!(replica.state, State::Failed(_)) && !still.contains(&replica.datanode)
        });
        let can_do_without = others.count() >= self.needed;
        for replica in &mut self.replicas {
            if is_over(replica, LAST_PATIENCE) || (can_do_without && still.contains(&replica.datanode)) {
                let failure =
                    Failure::new(Status::Retry, format!("datanode {} makes no progress", replica.datanode));
                fail(replica, &self.failed, failure);
            }
        }
        if can_do_without || self.is_stuck_told {
            return None;
        }
        self.is_stuck_told = true;
        for datanode in &still {
            self.failed.note(*datanode);
        }
        Some(Verdict::Stuck(still))
    }

    /// Asks those whose patience has ended whether they live.
    fn ask_who_lives(&self) -> impl Future<Output = ()> + Send + use<> {
        let now = Instant::now();
        let asked: Vec<_> = self
            .replicas
            .iter()
            .filter(|replica| replica.is_silent(now))
            .filter_map(|replica| Some((replica.service.clone()?, replica.pace.clone())))
            .collect();
        let ask = |(service, pace): (Arc<dyn DatanodeService>, Arc<Pace>)| async move {
            if let Ok(Ok(())) = timeout(PING_PATIENCE, service.ping()).await {
                pace.answered();
            }
        };
        join_all(asked.into_iter().map(ask)).map(drop)
    }

    /// Takes in the writes that have ended. Whether there were any.
    fn poll_writes(&mut self, context: &mut Context<'_>) -> bool {
        let mut has_ended = false;
        for replica in &mut self.replicas {
            let Some(write) = &mut replica.write else { continue };
            let Poll::Ready(outcome) = write.as_mut().poll(context) else { continue };
            has_ended = true;
            match outcome {
                Ok(receipt) if Some(receipt) == self.expected => {
                    replica.end(State::Acknowledged);
                    self.failed.clear(replica.datanode);
                }
                Ok(_) => {
                    let failure =
                        Failure::new(Status::Corrupt, "a datanode stored other bytes than were sent");
                    fail(replica, &self.failed, failure);
                }
                Err(failure) if is_refusal(&failure) => {
                    if matches!(failure.status, Status::DiskFull | Status::NotReady) {
                        // Well, but of no use to the next block either.
                        self.failed.note(replica.datanode);
                    }
                    replica.end(State::Refused(failure));
                }
                Err(failure) if replica.pace.was_starved() => {
                    tracing::debug!(datanode = %replica.datanode, %failure, "a body came too slowly");
                    replica.end(State::Refused(Failure::new(Status::TooSlow, "the body came too slowly")));
                }
                Err(failure) => fail(replica, &self.failed, failure),
            }
        }
        has_ended
    }
}

fn fail(replica: &mut Replica, failed: &FailedNodes, failure: Failure) {
    tracing::warn!(datanode = %replica.datanode, %failure, "a replica failed a write");
    metrics::write_replica_failed();
    failed.note(replica.datanode);
    replica.end(State::Failed(failure));
}

/// Whether a datanode that answered so is well, and only does not take this block: closing, full, another generation, a
/// token that is over, just started. Such a replica must never be left out by `degrade`: it may hold every block of the container.
fn is_refusal(failure: &Failure) -> bool {
    if wire::planted::is_on("degrade_by_refusal") {
        return false;
    }
    matches!(failure.status, Status::Refused | Status::Denied | Status::DiskFull | Status::NotReady)
}

/// When a replica last made progress, and whether it has something to do.
#[derive(Debug)]
struct Pace(Mutex<PaceState>);

#[derive(Debug)]
struct PaceState {
    last: Instant,
    /// When it last said that it lives.
    answered: Option<Instant>,
    /// When the write was over.
    ended: Option<Instant>,
    /// Runs given and not taken.
    waiting: u32,
    is_closed: bool,
}

impl Pace {
    fn new() -> Self {
        let (last, answered, ended) = (Instant::now(), None, None);
        Self(Mutex::new(PaceState { last, answered, ended, waiting: 0, is_closed: false }))
    }

    fn last(&self) -> Instant {
        self.0.lock().last
    }

    /// Progress, or an answer.
    fn last_sign(&self) -> Instant {
        let state = self.0.lock();
        state.answered.map_or(state.last, |answered| answered.max(state.last))
    }

    fn answered(&self) {
        self.0.lock().answered = Some(Instant::now());
    }

    fn is_busy(&self) -> bool {
        self.0.lock().waiting > 0
    }

    fn given(&self) {
        let mut state = self.0.lock();
        if state.waiting == 0 {
            state.last = Instant::now();
        }
        state.waiting += 1;
    }

    fn not_given(&self) {
        self.0.lock().waiting -= 1;
    }

    fn taken(&self) {
        let mut state = self.0.lock();
        state.waiting = state.waiting.saturating_sub(1);
        state.last = Instant::now();
    }

    /// All is given. `is_fed`: bit by bit, so that its last second begins now if it has taken all of it.
    fn close(&self, is_fed: bool) {
        let mut state = self.0.lock();
        if state.waiting == 0 && is_fed {
            state.last = Instant::now();
        }
        state.is_closed = true;
    }

    fn ended(&self) {
        self.0.lock().ended = Some(Instant::now());
    }

    /// Whether it ended after it had taken all there was, and had waited for more for long.
    fn was_starved(&self) -> bool {
        let state = self.0.lock();
        let waited = state.ended.map(|ended| ended.saturating_duration_since(state.last));
        state.waiting == 0 && !state.is_closed && waited.is_some_and(|waited| waited >= STARVED)
    }

    fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    fn renew(&self) {
        self.0.lock().last = Instant::now();
    }
}

/// What a datanode reads: the runs fed, then an end if the block was closed, an error if it was given up.
fn body_of(receiver: mpsc::Receiver<ChunkRun>, pace: Arc<Pace>) -> ChunkStream {
    Box::pin(stream::try_unfold((receiver, pace), |(mut receiver, pace)| async move {
        match receiver.recv().await {
            Some(run) => {
                pace.taken();
                Ok(Some((run, (receiver, pace))))
            }
            None if pace.is_closed() => Ok(None),
            None => Err(Failure::new(Status::Retry, "the writer has given the block up")),
        }
    }))
}

/// A task that is stopped when nobody waits for it any more.
struct Stopping(JoinHandle<Result<BlockReceipt, Failure>>);

impl Future for Stopping {
    type Output = Result<BlockReceipt, Failure>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = |error| Err(Failure::new(Status::Internal, format!("block write: {error}")));
        self.0.poll_unpin(context).map(|outcome| outcome.unwrap_or_else(lost))
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.abort();
    }
}
