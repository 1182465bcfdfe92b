//! The simulator's hand on time and randomness.
//!
//! In production nothing is installed and `clock` and `random` ask the machine. The simulator runs all nodes in one
//! thread and installs itself there, so that one seed gives one run.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::clock::UnixMs;

/// What stands in for the machine.
pub trait World {
    /// The running node's wall clock.
    fn now_ms(&self) -> UnixMs;

    /// The running node's steady clock, in nanoseconds.
    fn steady_ns(&self) -> u64;

    /// Fills `bytes` from the run's seed.
    fn fill(&self, bytes: &mut [u8]);

    /// The running node comes to a durable step (see `failpoint`); it may end there.
    fn step(&self, name: &'static str);
}

thread_local! {
    static IS_INSTALLED: Cell<bool> = const { Cell::new(false) };
    static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// Installs a world on this thread, or takes it away.
pub fn install(world: Option<Rc<dyn World>>) {
    IS_INSTALLED.set(world.is_some());
    WORLD.set(world);
}

/// Asks this thread's world, if there is one.
pub(crate) fn ask<T>(question: impl FnOnce(&dyn World) -> T) -> Option<T> {
    if !IS_INSTALLED.get() {
        return None;
    }
    // A clone, since a world may draw or look at the clock itself.
    let world = WORLD.with_borrow(Clone::clone)?;
    Some(question(&*world))
}

/// Tells this thread's world of a durable step.
pub(crate) fn step(name: &'static str) {
    ask(|world| world.step(name));
}
