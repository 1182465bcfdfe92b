//! Which simulated node is running, and its end.
//!
//! The simulator runs all nodes in one thread. Whatever a node spawns is counted to it, so that killing the node ends
//! all of it between two polls, as SIGKILL would. In production there is no node and nothing is counted.
//!
//! Invariants:
//! * After [`kill`] no task of the node is polled again.
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
    static TASKS: RefCell<BTreeMap<NodeIndex, Vec<AbortHandle>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The node whose code is running on this thread; None in production, and in the simulator's own code.
pub fn current() -> Option<NodeIndex> {
    CURRENT.get()
}

/// Runs `act` as the node.
pub fn enter<T>(node: Option<NodeIndex>, act: impl FnOnce() -> T) -> T {
    let before = CURRENT.replace(node);
    let outcome = act();
    CURRENT.set(before);
    outcome
}

/// Polls a future as the node.
pub fn scope<F: Future>(node: Option<NodeIndex>, future: F) -> Scoped<F> {
    Scoped { node, future: Box::pin(future) }
}

/// See [`scope`].
pub struct Scoped<F> {
    node: Option<NodeIndex>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let node = self.node;
        enter(node, || self.future.as_mut().poll(context))
    }
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

/// Ends every task of the node. They are dropped by the runtime before it polls anything of theirs again.
pub fn kill(node: NodeIndex) {
    let tasks = TASKS.with_borrow_mut(|tasks| tasks.remove(&node)).unwrap_or_default();
    for task in tasks {
        task.abort();
    }
}
