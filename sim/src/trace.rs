//! What happened in a run, as lines and as one hash: equal seeds must give equal traces.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::world::SimulatedWorld;

/// Lines kept for a failed run's report.
const LINES_KEPT: usize = 4000;

/// The record of a run.
pub(crate) struct Trace {
    world: Rc<SimulatedWorld>,
    hash: RefCell<Xxh3Default>,
    events: Cell<u64>,
    lines: RefCell<std::collections::VecDeque<String>>,
    is_loud: bool,
}

impl Trace {
    pub(crate) fn new(world: Rc<SimulatedWorld>, is_loud: bool) -> Rc<Self> {
        Rc::new(Self {
            world,
            hash: RefCell::new(Xxh3Default::new()),
            events: Cell::new(0),
            lines: RefCell::default(),
            is_loud,
        })
    }

    /// Notes what is worth a person's reading.
    pub(crate) fn line(&self, text: String) {
        let line = format!("{:>10.3} {text}", self.world.elapsed_ms() as f64 / 1000.0);
        self.mark(&line);
        if self.is_loud {
            println!("{line}");
        }
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES_KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Notes what only the hash need hold.
    pub(crate) fn mark(&self, text: &str) {
        self.events.set(self.events.get() + 1);
        let mut hash = self.hash.borrow_mut();
        hash.update(&self.world.elapsed_ms().to_le_bytes());
        hash.update(text.as_bytes());
    }

    /// The hash of all so far.
    pub(crate) fn digest(&self) -> u64 {
        self.hash.borrow().digest()
    }

    /// How many events it covers.
    pub(crate) fn events(&self) -> u64 {
        self.events.get()
    }

    /// The newest lines.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.lines.borrow();
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }
}
