//! One run: a cluster, its clients, its faults, for ten simulated minutes; then peace, and the books are checked.
//!
//! ```text
//!   start -> load and faults ------> faults stop -> all nodes up -> quiet -> audit -> verdict
//!            0 .. 10 min             within the time the program promises
//! ```
//!
//! Not here: the parts (`cluster`, `workload`, `faults`, `checker`, `audit`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use platform::abort;
use rand::Rng;
use tokio::task::LocalSet;

use crate::cluster::{Cluster, Shape};
use crate::faults::{self, Swarm};
use crate::network::Mood;
use crate::trace::Trace;
use crate::workload::{self, Plan};
use crate::world::SimulatedWorld;
use crate::{audit, seed};
use checker::{Answer, History, KeyIndex};

/// How often nodes that ended themselves are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// A node that ended itself is started again after this at most.
const REVIVAL_MAX_MS: u64 = 10_000;
/// In peace a meta node that lost its disks is a member again within this.
const REPLACED_WITHIN_MS: u64 = 120_000;
/// Violations reported of one run.
const VIOLATIONS_MAX: usize = 20;

/// What a run is to be.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) minutes: u64,
    /// Every line as it happens.
    pub(crate) is_loud: bool,
    /// Every message between nodes.
    pub(crate) prints_messages: bool,
}

/// Everything in a run.
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) world: Rc<SimulatedWorld>,
    pub(crate) trace: Rc<Trace>,
    pub(crate) cluster: Cluster,
    pub(crate) plan: Plan,
    pub(crate) swarm: Swarm,
    pub(crate) history: Arc<Mutex<History>>,
    load_over: Cell<bool>,
    is_busy: Cell<bool>,
    is_asking: Cell<bool>,
    is_replacing: Cell<bool>,
    has_long_bodies: Cell<bool>,
    cold: Cell<usize>,
    violations: RefCell<Vec<String>>,
    pub(crate) counts: RefCell<Counts>,
}

/// What a run amounted to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    pub(crate) unanswered: u64,
    pub(crate) faults: u64,
    pub(crate) ends: u64,
}

/// A run's verdict.
pub(crate) struct Verdict {
    pub(crate) violations: Vec<String>,
    pub(crate) digest: u64,
    pub(crate) events: u64,
    pub(crate) messages: u64,
    pub(crate) operations: usize,
    pub(crate) counts: Counts,
    pub(crate) tail: Vec<String>,
}

impl Run {
    pub(crate) fn is_load_over(&self) -> bool {
        self.load_over.get()
    }

    /// Lets clients ask without pausing, while something is wrong that lasts but a moment.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.is_busy.set(is_busy);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy.get()
    }

    /// Lets clients look rather than write: for moments in which somebody may answer what is no longer so.
    pub(crate) fn set_asking(&self, is_asking: bool) {
        self.is_asking.set(is_asking);
    }

    pub(crate) fn is_asking(&self) -> bool {
        self.is_asking.get()
    }

    /// A meta node is being replaced. One at a time: a group survives the loss of one.
    pub(crate) fn set_replacing(&self, is_replacing: bool) {
        self.is_replacing.set(is_replacing);
    }

    pub(crate) fn is_replacing(&self) -> bool {
        self.is_replacing.get()
    }

    /// Lets clients send long bodies and take their time in the midst of them.
    pub(crate) fn set_long_bodies(&self, has_long_bodies: bool) {
        self.has_long_bodies.set(has_long_bodies);
    }

    pub(crate) fn has_long_bodies(&self) -> bool {
        self.has_long_bodies.get()
    }

    /// How many keys were begun that are written once.
    pub(crate) fn cold(&self) -> usize {
        self.cold.get()
    }

    /// A key that nobody has written yet, unless there are `max`.
    pub(crate) fn take_cold(&self, max: usize) -> Option<KeyIndex> {
        let cold = self.cold.get();
        (cold < max).then(|| {
            self.cold.set(cold + 1);
            self.plan.keys + cold
        })
    }

    /// Whether something was wrong already.
    pub(crate) fn has_failed(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// Notes that the program did what it must not.
    pub(crate) fn violation(&self, what: String) {
        self.trace.line(format!("VIOLATION {what}"));
        let mut violations = self.violations.borrow_mut();
        if violations.len() < VIOLATIONS_MAX {
            violations.push(what);
        }
    }

    pub(crate) fn note_fault(&self, what: &str) {
        self.counts.borrow_mut().faults += 1;
        self.trace.line(format!("fault: {what}"));
    }

    pub(crate) fn count(&self, answer: &Answer) {
        let mut counts = self.counts.borrow_mut();
        match answer {
            Answer::Unknown => counts.unanswered += 1,
            _ => counts.answered += 1,
        }
    }
}

/// Runs one seed.
pub(crate) fn run(seed: u64, options: &Options) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing of the machine");
    let verdict = LocalSet::new().block_on(&runtime, play(seed, options.clone()));
    wire::world::install(None);
    // Nodes that live on would run their destructors on disks that nobody looks at any more.
    std::mem::forget(runtime);
    verdict
}

async fn play(seed: u64, options: Options) -> Verdict {
    let world = SimulatedWorld::install(seed);
    let trace = Trace::new(world.clone(), options.is_loud);
    let mut draws = seed::stream(seed, "plan");
    let mut shape = Shape::draw(&mut draws);
    let mut swarm = Swarm::draw(&mut draws);
    let plan = Plan::draw(&mut draws, swarm.is_gentle);
    swarm.draw_more(&mut seed::stream(seed, "more kinds"));
    swarm.draw_of_consensus(&mut seed::stream(seed, "kinds of consensus"));
    swarm.draw_of_data(&mut seed::stream(seed, "kinds of data"));
    if swarm.spares_replicas() {
        shape.knobs.never_dead();
    }
    trace.line(format!("seed {seed}: {shape:?} {plan:?} {swarm:?}"));
    let history = Arc::new(Mutex::new(History::default()));
    let cluster =
        Cluster::new(seed, shape, options.prints_messages, history.clone(), world.clone(), trace.clone());
    let run = Rc::new(Run {
        seed,
        world,
        trace,
        cluster,
        plan,
        swarm,
        history,
        load_over: Cell::new(false),
        is_busy: Cell::new(false),
        is_asking: Cell::new(false),
        is_replacing: Cell::new(false),
        has_long_bodies: Cell::new(false),
        cold: Cell::new(0),
        violations: RefCell::default(),
        counts: RefCell::default(),
    });
    tokio::task::spawn_local(watch(run.clone()));
    for node in run.cluster.nodes() {
        run.cluster.start(&run, node).await;
    }
    match run.cluster.wait_serving(Duration::from_secs(120)).await {
        Ok(()) => load(&run, &options).await,
        Err(what) => run.violation(format!("the cluster never began to serve: {what}")),
    }
    conclude(&run)
}

/// Clients and faults for the run's time, then peace and the audit.
async fn load(run: &Rc<Run>, options: &Options) {
    run.trace.line("serving".to_owned());
    let mut clients = Vec::new();
    for number in 0..run.plan.clients {
        clients.push(tokio::task::spawn_local(workload::client(run.clone(), number)));
    }
    tokio::task::spawn_local(audit::watch_terms(run.clone()));
    let faults = tokio::task::spawn_local(faults::break_things(run.clone()));
    if run.swarm.is_gentle {
        tokio::task::spawn_local(audit::watch_gently(run.clone()));
    }
    for _ in 0..options.minutes * 60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // What comes after a violation proves nothing.
        if run.has_failed() {
            return;
        }
    }
    run.load_over.set(true);
    run.trace.line("the load ends".to_owned());
    // A fault under way heals itself; clients finish what they asked for.
    let _ = faults.await;
    run.cluster.network.heal();
    run.cluster.network.set_mood(Mood::CALM);
    run.cluster.network.lose_answers(0);
    run.world.die_at_steps(0);
    for client in clients {
        let _ = client.await;
    }
    run.cluster.heal_disks();
    run.cluster.end_broken(run);
    for node in run.cluster.nodes() {
        run.cluster.start(run, node).await;
    }
    run.trace.line("peace".to_owned());
    let begun_ms = run.world.elapsed_ms();
    while run.is_replacing() {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if run.world.elapsed_ms() - begun_ms > REPLACED_WITHIN_MS {
            run.violation("in peace a meta node is not taken into its groups".to_owned());
            return;
        }
    }
    if !checker::check(&run.history.lock()).is_empty() {
        return;
    }
    audit::audit(run).await;
}

/// Revives nodes that ended themselves, and tells panics from ends.
async fn watch(run: Rc<Run>) {
    let mut draws = seed::stream(run.seed, "revival");
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        for panic in crate::take_panics() {
            run.violation(format!("a panic: {panic}"));
        }
        for (node, why) in abort::take_aborted() {
            run.counts.borrow_mut().ends += 1;
            run.trace.line(format!("node {node} ended itself: {why}"));
            run.cluster.note_aborted(&run, node, &why, draws.random());
            let pause = Duration::from_millis(draws.random_range(100..REVIVAL_MAX_MS));
            let run = run.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(pause).await;
                run.cluster.start(&run, node).await;
            });
        }
    }
}

fn conclude(run: &Rc<Run>) -> Verdict {
    for panic in crate::take_panics() {
        run.violation(format!("a panic: {panic}"));
    }
    let history = run.history.lock();
    for wrong in checker::check(&history) {
        run.violation(wrong);
    }
    Verdict {
        violations: run.violations.borrow().clone(),
        digest: run.trace.digest() ^ run.cluster.network.digest(),
        events: run.trace.events(),
        messages: run.cluster.network.messages(),
        operations: history.ops.len(),
        counts: run.counts.borrow().clone(),
        tail: run.trace.tail(60),
    }
}
