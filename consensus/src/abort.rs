//! Ending the process when going on would be wrong.
//!
//! After a failed write or sync nobody knows which bytes are on the disk, and raft-rs panics where its invariants
//! broke. Replaying from what is durable is right in both cases, and a thread that died alone would leave a server
//! that answers nothing.

pub(crate) use platform::abort::AbortOnPanic;
use platform::disk::DiskIo;

/// Notes durably that this replica is wrong, so that it is not opened again, and aborts.
pub(crate) fn condemn(group: &str, disk: &dyn DiskIo, why: &str) -> ! {
    tracing::error!(
        group,
        "{why}: this replica ends and is not opened again; remove it from its group, delete its directory, and let the node \
         join under a new raft id"
    );
    if let Err(error) = crate::unsound::mark(disk, why) {
        tracing::error!(group, %error, "that it is not to be opened again cannot be noted: do not start it");
    }
    platform::abort::abort(&format!("{group}: {why}"))
}

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
