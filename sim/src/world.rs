//! Time and randomness as the simulated nodes see them.
//!
//! All clocks stand on tokio's paused clock, which jumps to the next timer when nothing is left to do. A node's wall
//! clock may be skewed; its steady clock is not. Failpoints of the program are places where a node may be made to end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use platform::node::{self, NodeIndex};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use wire::clock::UnixMs;
use wire::world::World;

use crate::seed;

/// When every run begins: 2026-01-01T00:00:00Z.
const EPOCH_MS: UnixMs = 1_767_225_600_000;

/// Stands in for the machine of every node.
pub(crate) struct SimulatedWorld {
    seed: u64,
    started: Instant,
    skews_ms: RefCell<BTreeMap<NodeIndex, i64>>,
    streams: RefCell<BTreeMap<Option<NodeIndex>, ChaCha8Rng>>,
    /// One in so many failpoints ends its node; 0 for none.
    step_death: Cell<u32>,
    /// The failpoint whose next visitor ends, after so many others.
    named_death: Cell<Option<(&'static str, u32)>>,
    steps: RefCell<ChaCha8Rng>,
}

impl SimulatedWorld {
    /// Makes a world and installs it on this thread. Needs a paused runtime.
    pub(crate) fn install(seed: u64) -> Rc<Self> {
        let world = Rc::new(Self {
            seed,
            started: Instant::now(),
            skews_ms: RefCell::default(),
            streams: RefCell::default(),
            step_death: Cell::new(0),
            named_death: Cell::new(None),
            steps: RefCell::new(seed::stream(seed, "steps")),
        });
        wire::world::install(Some(world.clone()));
        world
    }

    /// Simulated time since the beginning, in milliseconds.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Sets how far a node's wall clock is off.
    pub(crate) fn skew(&self, node: NodeIndex, skew_ms: i64) {
        self.skews_ms.borrow_mut().insert(node, skew_ms);
    }

    /// Lets one in `one_in` failpoints end its node; 0 for none.
    pub(crate) fn die_at_steps(&self, one_in: u32) {
        self.step_death.set(one_in);
    }

    /// Lets the node end that comes to the failpoint `name` after `others` times; None lets nobody.
    pub(crate) fn die_at(&self, death: Option<(&'static str, u32)>) {
        self.named_death.set(death);
    }
}

impl World for SimulatedWorld {
    fn now_ms(&self) -> UnixMs {
        let skew_ms =
            node::current().and_then(|node| self.skews_ms.borrow().get(&node).copied()).unwrap_or(0);
        (EPOCH_MS + self.elapsed_ms()).saturating_add_signed(skew_ms)
    }

    fn steady_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn fill(&self, bytes: &mut [u8]) {
        let node = node::current();
        let mut streams = self.streams.borrow_mut();
        let stream =
            streams.entry(node).or_insert_with(|| seed::stream(self.seed, &format!("node {node:?}")));
        stream.fill_bytes(bytes);
    }

    fn step(&self, name: &'static str) {
        if let Some((_, others)) = self.named_death.get().filter(|(wanted, _)| *wanted == name)
            && node::current().is_some()
        {
            self.named_death.set((others > 0).then(|| (name, others.saturating_sub(1))));
            if others == 0 {
                platform::abort::abort(&format!("the simulator ended it at {name}"));
            }
        }
        let one_in = self.step_death.get();
        if one_in > 0 && node::current().is_some() && self.steps.borrow_mut().random_ratio(1, one_in) {
            platform::abort::abort(&format!("the simulator ended it at {name}"));
        }
    }
}
