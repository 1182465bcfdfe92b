//! Which simulated node is running, and its end.
//!
//! The simulator runs all nodes in one thread. Whatever a node spawns is counted to it, so that killing the node ends
//! all of it between two polls, as SIGKILL would: no destructor runs, what the tasks held is left behind in memory. In
//! production there is no node and nothing is counted.
//!
//! Invariants:
//! * After [`kill`] no task of the node is polled again, and nothing of it is dropped.
//!
//! Not here: what is lost on its disks (see `simulated`), its clock (`wire::clock`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::AbortHandle;

/// A simulated node's number.
pub type NodeIndex = u32;

thread_local! {
    static CURRENT: Cell<Option<NodeIndex>> = const { Cell::new(None) };
    /// How often each node was killed.
    static DEATHS: RefCell<BTreeMap<NodeIndex, u64>> = const { RefCell::new(BTreeMap::new()) };
    static TASKS: RefCell<BTreeMap<NodeIndex, Vec<AbortHandle>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The node whose code is running on this thread; None in production, and in the simulator's own code.
pub fn current() -> Option<NodeIndex> {
    CURRENT.get()
}

/// Runs `act` as the node.
pub fn enter<T>(node: Option<NodeIndex>, act: impl FnOnce() -> T) -> T {
    struct Back(Option<NodeIndex>);
    impl Drop for Back {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    // Also when `act` unwinds.
    let _back = Back(CURRENT.replace(node));
    act()
}

/// Polls a future as the node, until the node dies.
pub fn scope<F: Future>(node: Option<NodeIndex>, future: F) -> Scoped<F> {
    Scoped { node, deaths: node.map_or(0, deaths), future: Some(Box::pin(future)) }
}

/// See [`scope`].
pub struct Scoped<F: Future> {
    node: Option<NodeIndex>,
    /// How often the node had died when this was made.
    deaths: u64,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Scoped<F> {
    fn is_dead(&self) -> bool {
        self.node.is_some_and(|node| deaths(node) != self.deaths)
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.is_dead() {
            return Poll::Pending;
        }
        let node = self.node;
        match &mut self.future {
            Some(future) => enter(node, || future.as_mut().poll(context)),
            None => Poll::Pending,
        }
    }
}

impl<F: Future> Drop for Scoped<F> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        if self.is_dead() {
            std::mem::forget(future);
        } else {
            enter(self.node, || drop(future));
        }
    }
}

fn deaths(node: NodeIndex) -> u64 {
    DEATHS.with_borrow(|deaths| deaths.get(&node).copied().unwrap_or(0))
}

/// Counts a task to the node.
pub(crate) fn note(node: NodeIndex, task: AbortHandle) {
    TASKS.with_borrow_mut(|tasks| {
        let tasks = tasks.entry(node).or_default();
        if tasks.len() >= 64 && tasks.len().is_power_of_two() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    });
}

/// Ends every task of the node.
pub fn kill(node: NodeIndex) {
    DEATHS.with_borrow_mut(|deaths| *deaths.entry(node).or_default() += 1);
    let tasks = TASKS.with_borrow_mut(|tasks| tasks.remove(&node)).unwrap_or_default();
    for task in tasks {
        task.abort();
    }
}
