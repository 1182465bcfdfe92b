//! The network between simulated nodes: delays, losses, repeats, and walls in one direction.
//!
//! ```text
//!   caller --request, delayed--> handler as a task of the called node --answer, delayed--> caller
//! ```
//!
//! A call whose request is lost, or whose answer is, ends as it would over HTTP: the caller's own deadline strikes, or the
//! connection breaks and the outcome is unknown. A request may arrive twice, the second time long after. What is
//! called runs as the called node, so that killing that node ends it.
//!
//! Invariants:
//! * A call that was never delivered answers `Retry`, which promises no effect, only if it truly never is.
//!
//! Not here: who calls whom (`services`), when the network misbehaves (`faults`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use platform::node::{self, NodeIndex};
use platform::task;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use wire::status::{Failure, Status};
use xxhash_rust::xxh3::Xxh3Default;

use crate::seed;

/// A caller that hears nothing gives up after this, as the HTTP transport does.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A connection that is not answered gives up after this.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// A handler that takes longer is no longer waited for, as over HTTP: its node may stand still.
const HANDLER_DEADLINE: Duration = Duration::from_secs(30);

/// An answer that is lost breaks its connection after this at most.
const ANSWER_LOST_MAX_MS: u64 = 3000;

/// How links behave now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mood {
    /// The least time one way.
    pub(crate) delay_min: Duration,
    /// Up to this much is added.
    pub(crate) jitter: Duration,
    /// Messages lost, in a thousand.
    pub(crate) lost_per_mille: u32,
    /// Messages that arrive twice, in a thousand.
    pub(crate) doubled_per_mille: u32,
    /// Messages that arrive very late, in a thousand.
    pub(crate) late_per_mille: u32,
}

impl Mood {
    /// A healthy network.
    pub(crate) const CALM: Self = Self {
        delay_min: Duration::from_micros(200),
        jitter: Duration::from_micros(800),
        lost_per_mille: 0,
        doubled_per_mille: 0,
        late_per_mille: 0,
    };
}

/// All links.
#[derive(Clone)]
pub(crate) struct Network {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    draws: ChaCha8Rng,
    mood: Mood,
    /// Answers that are lost although the call was carried out, in a thousand, of calls that say so.
    answers_lost_per_mille: u32,
    /// Directions that carry nothing.
    walls: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Added to every message from or to the node.
    slow: BTreeMap<NodeIndex, Duration>,
    /// Added to every message of a direction.
    far: BTreeMap<(NodeIndex, NodeIndex), Duration>,
    /// Directions in which what is under way is lost too.
    severed: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Nodes whose process is there.
    up: BTreeSet<NodeIndex>,
    messages: u64,
    /// Of every message: when, between whom, and what became of it.
    hash: Xxh3Default,
    started: Instant,
    prints: bool,
}

/// What becomes of a message.
#[derive(Debug)]
enum Fate {
    Arrives(Duration),
    ArrivesTwice(Duration, Duration),
    Lost,
}

impl Network {
    /// `prints` every message as it is sent.
    pub(crate) fn new(seed: u64, prints: bool) -> Self {
        let shared = Shared {
            draws: seed::stream(seed, "network"),
            mood: Mood::CALM,
            answers_lost_per_mille: 0,
            walls: BTreeSet::new(),
            slow: BTreeMap::new(),
            far: BTreeMap::new(),
            severed: BTreeSet::new(),
            up: BTreeSet::new(),
            messages: 0,
            hash: Xxh3Default::new(),
            started: Instant::now(),
            prints,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Sets how links behave from now on.
    pub(crate) fn set_mood(&self, mood: Mood) {
        self.shared.lock().mood = mood;
    }

    /// Loses so many answers in a thousand of what was carried out.
    pub(crate) fn lose_answers(&self, per_mille: u32) {
        self.shared.lock().answers_lost_per_mille = per_mille;
    }

    /// Whether an answer breaks off now, and after how long the caller sees it.
    pub(crate) fn loses_answer(&self) -> Option<Duration> {
        let shared = &mut *self.shared.lock();
        let lost = shared.answers_lost_per_mille;
        let is_lost = lost > 0 && shared.draws.random_range(0..1000) < lost;
        is_lost.then(|| Duration::from_millis(shared.draws.random_range(0..ANSWER_LOST_MAX_MS)))
    }

    /// Stops everything from one node to another.
    pub(crate) fn wall(&self, from: NodeIndex, to: NodeIndex) {
        self.shared.lock().walls.insert((from, to));
    }

    /// Delays everything from and to a node.
    pub(crate) fn slow(&self, node: NodeIndex, by: Duration) {
        self.shared.lock().slow.insert(node, by);
    }

    /// Delays everything from one node to another.
    pub(crate) fn set_far(&self, from: NodeIndex, to: NodeIndex, by: Duration) {
        self.shared.lock().far.insert((from, to), by);
    }

    /// Stops everything from one node to another, also posts that are on their way: their line is cut.
    pub(crate) fn sever(&self, from: NodeIndex, to: NodeIndex) {
        let mut shared = self.shared.lock();
        shared.walls.insert((from, to));
        shared.severed.insert((from, to));
    }

    fn is_severed(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.shared.lock().severed.contains(&(from, to))
    }

    /// Takes away walls and slowness.
    pub(crate) fn heal(&self) {
        let mut shared = self.shared.lock();
        shared.walls.clear();
        shared.slow.clear();
        shared.far.clear();
        shared.severed.clear();
    }

    /// Says whether a node's process is there to take connections.
    pub(crate) fn set_up(&self, node: NodeIndex, is_up: bool) {
        let mut shared = self.shared.lock();
        if is_up {
            shared.up.insert(node);
        } else {
            shared.up.remove(&node);
        }
    }

    /// Whether a node's process is there. One that has ended itself takes nothing any more, also before the watch buries
    /// it.
    pub(crate) fn is_up(&self, node: NodeIndex) -> bool {
        self.shared.lock().up.contains(&node) && !platform::abort::has_aborted(node)
    }

    /// Messages sent so far.
    pub(crate) fn messages(&self) -> u64 {
        self.shared.lock().messages
    }

    /// The hash of all messages so far.
    pub(crate) fn digest(&self) -> u64 {
        self.shared.lock().hash.digest()
    }

    /// The time one way, None if it never arrives.
    pub(crate) fn delay(&self, from: NodeIndex, to: NodeIndex) -> Option<Duration> {
        match self.shared.lock().fate(from, to) {
            Fate::Arrives(delay) | Fate::ArrivesTwice(delay, _) => Some(delay),
            Fate::Lost => None,
        }
    }

    /// Calls: runs `serve` as node `to` and brings its answer back. `serve` may run a second time, its answer unheard.
    pub(crate) async fn call<R, F, S>(&self, from: NodeIndex, to: NodeIndex, serve: S) -> Result<R, Failure>
    where
        R: Send + 'static,
        F: Future<Output = Result<R, Failure>> + Send + 'static,
        S: Fn() -> F + Send + Sync + 'static,
    {
        let fate = self.shared.lock().fate(from, to);
        let serve = Arc::new(serve);
        match fate {
            Fate::Lost if !self.shared.lock().draws.random_bool(0.5) => {
                tokio::time::sleep(CONNECT_DEADLINE).await;
                return Err(Failure::new(Status::Retry, "the connection was not answered"));
            }
            Fate::Lost => {
                tokio::time::sleep(CALL_DEADLINE).await;
                return Err(Failure::new(Status::Unknown, "no answer in time"));
            }
            Fate::Arrives(delay) => tokio::time::sleep(delay).await,
            Fate::ArrivesTwice(delay, later) => {
                tokio::time::sleep(delay).await;
                let (network, again) = (self.clone(), Arc::clone(&serve));
                // Outside every node: the network keeps it whoever dies.
                node::enter(None, || {
                    task::spawn(async move {
                        tokio::time::sleep(later).await;
                        if network.is_up(to) {
                            node::enter(Some(to), || task::spawn(again()));
                        }
                    })
                });
            }
        }
        if !self.is_up(to) {
            return Err(Failure::new(Status::Retry, "connection refused"));
        }
        let handler = node::enter(Some(to), || task::spawn(serve()));
        let Ok(outcome) = tokio::time::timeout(HANDLER_DEADLINE, handler).await else {
            return Err(Failure::new(Status::Unknown, "no answer in time"));
        };
        let Some(back) = self.delay(to, from) else {
            tokio::time::sleep(CALL_DEADLINE).await;
            return Err(Failure::new(Status::Unknown, "no answer in time"));
        };
        tokio::time::sleep(back).await;
        outcome.unwrap_or_else(|_| Err(Failure::new(Status::Unknown, "the connection broke")))
    }

    /// Sends a message that nobody answers.
    pub(crate) fn post<F, S>(&self, from: NodeIndex, to: NodeIndex, serve: S)
    where
        F: Future<Output = ()> + Send + 'static,
        S: Fn() -> F + Send + Sync + 'static,
    {
        let delays = match self.shared.lock().fate(from, to) {
            Fate::Lost => return,
            Fate::Arrives(delay) => vec![delay],
            Fate::ArrivesTwice(delay, later) => vec![delay, later],
        };
        let serve = Arc::new(serve);
        for delay in delays {
            let (network, serve) = (self.clone(), Arc::clone(&serve));
            node::enter(None, || {
                task::spawn(async move {
                    tokio::time::sleep(delay).await;
                    if network.is_up(to) && !network.is_severed(from, to) {
                        node::enter(Some(to), || task::spawn(serve()));
                    }
                })
            });
        }
    }
}

impl Shared {
    fn fate(&mut self, from: NodeIndex, to: NodeIndex) -> Fate {
        self.messages += 1;
        let fate = self.draw_fate(from, to);
        let nanoseconds = self.started.elapsed().as_nanos() as u64;
        let (kind, delay) = match &fate {
            Fate::Lost => (0, Duration::ZERO),
            Fate::Arrives(delay) => (1, *delay),
            Fate::ArrivesTwice(delay, later) => (2, *delay + *later),
        };
        for number in [nanoseconds, u64::from(from), u64::from(to), kind, delay.as_nanos() as u64] {
            self.hash.update(&number.to_le_bytes());
        }
        if self.prints {
            println!("{:>14.6} message {from} -> {to}: {fate:?}", nanoseconds as f64 / 1e9);
        }
        fate
    }

    fn draw_fate(&mut self, from: NodeIndex, to: NodeIndex) -> Fate {
        if self.walls.contains(&(from, to)) {
            return Fate::Lost;
        }
        if from == to {
            return Fate::Arrives(Duration::from_micros(10));
        }
        let mood = self.mood;
        if self.draws.random_range(0..1000) < mood.lost_per_mille {
            return Fate::Lost;
        }
        let mut delay = mood.delay_min + mood.jitter.mul_f64(self.draws.random());
        delay += self.far.get(&(from, to)).copied().unwrap_or_default();
        for node in [from, to] {
            delay += self.slow.get(&node).copied().unwrap_or_default();
        }
        if self.draws.random_range(0..1000) < mood.late_per_mille {
            delay += Duration::from_millis(self.draws.random_range(100..5000));
        }
        if self.draws.random_range(0..1000) < mood.doubled_per_mille {
            let later = Duration::from_millis(self.draws.random_range(1..120_000));
            return Fate::ArrivesTwice(delay, later);
        }
        Fate::Arrives(delay)
    }
}
