//! Tasks and blocking work: tokio's, or the simulator's.
//!
//! Not here: loops that own state (see `actor`).

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::abort::NodeAborted;
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

/// As [`spawn`], for a loop without which the process lives on and is of no use: a panic in it ends the process, so that
/// whoever keeps the process running begins it anew, and its peers take over meanwhile.
pub fn spawn_vital(future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    spawn(async move {
        if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
            if node::current().is_none() {
                // The panic hook has said what it was.
                std::process::abort();
            }
            // The simulator judges panics itself.
            std::panic::resume_unwind(panic);
        }
    })
}

/// What a step of a loop that must go on comes to, though the step may be wrong in itself. `None`: it panicked, which the
/// panic hook has told.
pub async fn outlive<T>(step: impl Future<Output = T>) -> Option<T> {
    match AssertUnwindSafe(step).catch_unwind().await {
        Ok(outcome) => Some(outcome),
        // A simulated node that ends itself unwinds, and must not go on.
        Err(panic) if panic.is::<NodeAborted>() => std::panic::resume_unwind(panic),
        Err(_) => None,
    }
}

/// As `tokio::task::spawn_blocking`; when simulated it runs in its turn on the one thread, so that runs repeat.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match node::current() {
        None => tokio::task::spawn_blocking(work),
        Some(_) => spawn(async move { work() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set in the process that is to die.
    const VICTIM: &str = "FERROZONE_TEST_VITAL_TASK";

    #[test]
    fn a_panic_in_a_vital_task_ends_the_process() {
        if std::env::var_os(VICTIM).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime starts");
            // Awaiting it would do no harm to the test: what is awaited is the end of the process.
            let _ = runtime.block_on(async { spawn_vital(async { panic!("as it should") }).await });
            std::process::exit(0);
        }
        let name = "task::tests::a_panic_in_a_vital_task_ends_the_process";
        let this = std::env::current_exe().expect("the test has a file");
        let victim = std::process::Command::new(this).args(["--exact", name]).env(VICTIM, "1").output();
        let status = victim.expect("the victim runs").status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "{status}");
    }

    #[tokio::test]
    async fn a_step_that_panics_is_outlived() {
        assert_eq!(outlive(async { 1 }).await, Some(1));
        assert_eq!(outlive(async { panic!("as it should") }).await, None::<()>);
    }

    #[tokio::test]
    async fn a_vital_task_that_ends_or_is_aborted_ends_nothing_else() {
        spawn_vital(async {}).await.expect("it ends");
        let waiting = spawn_vital(std::future::pending());
        waiting.abort();
        assert!(waiting.await.expect_err("it was aborted").is_cancelled());
    }
}
