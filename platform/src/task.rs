//! Tasks and blocking work: tokio's, or the simulator's.
//!
//! Not here: loops that own state (see `actor`).

use tokio::task::JoinHandle;

use crate::node;

/// As `tokio::spawn`; counted to the running node when simulated.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match node::current() {
        None => tokio::spawn(future),
        Some(index) => {
            let task = tokio::spawn(node::scope(Some(index), future));
            node::note(index, task.abort_handle());
            task
        }
    }
}

/// As `tokio::task::spawn_blocking`; when simulated it runs in its turn on the one thread, so that runs repeat.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match node::current() {
        None => tokio::task::spawn_blocking(work),
        Some(_) => spawn(async move { work() }),
    }
}
