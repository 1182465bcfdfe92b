//! Elapsed time and waiting, for tools.
//!
//! Nothing here waits for a length of time: `wait_until` waits for a condition and gives up at a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time since its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_methods, reason = "a build tool measures; nothing here is replayed")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Asks again and again until there is an answer; an error that names `what` after `deadline`.
pub(crate) fn wait_until<T>(
    what: &str,
    deadline: Duration,
    ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    /// Short beside what is measured, long beside the cost of asking.
    const PAUSE: Duration = Duration::from_millis(5);
    wait_until_every(PAUSE, what, deadline, ask)
}

/// The same for questions that cost more: `pause` lies between two of them.
pub(crate) fn wait_until_every<T>(
    pause: Duration,
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let watch = Stopwatch::start();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if watch.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::park_timeout(pause);
    }
}
