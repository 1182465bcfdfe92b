//! The one way to the time of day and to a steady clock.
//!
//! Cores never read a clock: their shells pass the time in. Shells read it here, so that tests and the simulator can
//! hand them another one.
//!
//! Not here: formatting of dates (the gateway does it) and timers (tokio does them).

use std::sync::OnceLock;
use std::time::Instant;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMs = u64;

/// A source of time for a shell.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time, in milliseconds since the Unix epoch. May jump.
    fn now_ms(&self) -> UnixMs;

    /// Steady time in nanoseconds since an arbitrary origin. Never goes back.
    fn steady_ns(&self) -> u64;
}

/// The machine's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> UnixMs {
        now_ms()
    }

    fn steady_ns(&self) -> u64 {
        steady_ns()
    }
}

/// The machine's wall clock, in milliseconds since the Unix epoch. For shells.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now_ms() -> UnixMs {
    if let Some(now_ms) = crate::world::ask(|world| world.now_ms()) {
        return now_ms;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map(|elapsed| elapsed.as_millis() as u64).unwrap_or(0)
}

/// The machine's steady clock, in nanoseconds since the first call in this process. For shells.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the steady clock")]
pub fn steady_ns() -> u64 {
    if let Some(steady_ns) = crate::world::ask(|world| world.steady_ns()) {
        return steady_ns;
    }
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(Instant::now);
    Instant::now().saturating_duration_since(origin).as_nanos() as u64
}
