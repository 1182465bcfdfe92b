//! Ending the process when going on would be wrong.
//!
//! After a failed write or sync nobody knows which bytes are on the disk, and raft-rs panics where its invariants
//! broke. Replaying from what is durable is right in both cases, and a thread that died alone would leave a server
//! that answers nothing.

pub(crate) use platform::abort::AbortOnPanic;

/// Logs why and aborts. No destructor runs: a clean close after an error would write from a state that is not known.
pub(crate) fn fatal(group: &str, what: &str, error: &dyn std::error::Error) -> ! {
    let mut causes = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        causes.push_str(": ");
        causes.push_str(&error.to_string());
        cause = error.source();
    }
    tracing::error!(group, "{what}{causes}; aborting, the next start replays");
    // Somebody must hear it, also where no subscriber was set.
    if !tracing::dispatcher::has_been_set() && platform::node::current().is_none() {
        eprintln!("ferrozone: {group}: {what}{causes}; aborting, the next start replays");
    }
    platform::abort::abort(&format!("{group}: {what}{causes}"))
}
