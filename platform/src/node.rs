//! Which simulated node is running, and its end.
//!
//! The simulator runs all nodes in one thread. Whatever a node spawns is counted to it, so that killing the node ends
//! all of it between two polls, as SIGKILL would: no destructor runs, what the tasks held is left behind in memory. In
//! production there is no node and nothing is counted.
//!
//! A node can also be paused, as SIGSTOP or a hanging machine would: nothing of it runs, its timers and what it is sent
//! wait, and all of it goes on at once when it is resumed.
//!
//! Invariants:
//! * After [`kill`] no task of the node is polled again, and nothing of it is dropped.
//!
//! Not here: what is lost on its disks (see `simulated`), its clock (`wire::clock`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::task::AbortHandle;

/// A simulated node's number.
pub type NodeIndex = u32;

thread_local! {
    static CURRENT: Cell<Option<NodeIndex>> = const { Cell::new(None) };
    /// How often each node was killed.
    static DEATHS: RefCell<BTreeMap<NodeIndex, u64>> = const { RefCell::new(BTreeMap::new()) };
    /// Paused nodes, with the tasks that would have run meanwhile.
    static PAUSED: RefCell<BTreeMap<NodeIndex, Vec<Waker>>> = const { RefCell::new(BTreeMap::new()) };
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
        if node.is_some_and(|node| waits(node, context)) {
            return Poll::Pending;
        }
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

/// Whether the node is paused; if so the task is woken when it is resumed.
fn waits(node: NodeIndex, context: &Context<'_>) -> bool {
    PAUSED.with_borrow_mut(|paused| {
        let waiting = paused.get_mut(&node);
        waiting.map(|waiting| waiting.push(context.waker().clone())).is_some()
    })
}

/// Lets nothing of the node run until it is resumed or killed.
pub fn pause(node: NodeIndex) {
    PAUSED.with_borrow_mut(|paused| {
        paused.entry(node).or_default();
    });
}

/// Lets a paused node go on.
pub fn resume(node: NodeIndex) {
    let waiting = PAUSED.with_borrow_mut(|paused| paused.remove(&node)).unwrap_or_default();
    for task in waiting {
        task.wake();
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

/// Ends every task of the node. A later life of it is not paused.
pub fn kill(node: NodeIndex) {
    PAUSED.with_borrow_mut(|paused| paused.remove(&node));
    DEATHS.with_borrow_mut(|deaths| *deaths.entry(node).or_default() += 1);
    let tasks = TASKS.with_borrow_mut(|tasks| tasks.remove(&node)).unwrap_or_default();
    for task in tasks {
        task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::task;

    #[tokio::test(start_paused = true)]
    async fn paused_node_goes_on_where_it_stood() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        enter(Some(7), || {
            task::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        tokio::time::sleep(Duration::from_millis(2500)).await;
        pause(7);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(count.load(Ordering::SeqCst), 2);
        resume(7);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(
            count.load(Ordering::SeqCst),
            4,
            "the timer that was due strikes at once, the next a second later"
        );
        pause(7);
        kill(7);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }
}
