//! Bugs on purpose, to prove that the simulator finds them. Absent unless built with the feature `planted`.
//!
//! Each is one line where a real program could have gone wrong, switched on by name for a whole simulated run. A bug that
//! the simulator does not catch within its seeds makes the simulator the bug.

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("a server never has planted bugs: build them with the profile `dev` or `sim`");

/// Every planted bug: its name, and what a program with it does wrong.
pub const BUGS: &[(&str, &str)] = &[
    ("ack_before_fdatasync", "a datanode acknowledges a block before its group commit"),
    ("log_not_synced", "raft's log acknowledges entries before fdatasync"),
    ("applied_index_apart", "applied index and rows are committed in two transactions"),
    ("lease_read", "a leader answers reads without asking a quorum"),
    ("read_before_term_start", "a new leader answers reads before it has applied an entry of its term"),
    ("gc_without_grace", "freed blocks are handed to deletion at once, under readers"),
    ("gc_ignores_references", "removing one of two sharers of a block frees it"),
    ("degrade_by_refusal", "a datanode's refusal is taken for a failure, and the replica left out"),
    ("commit_without_degrade", "a key is committed with the acknowledgement of some replicas, nobody told"),
    ("degraded_stays_valid", "degrade closes the container and leaves the failed replica VALID"),
    ("snapshot_forgets_vote", "installing a snapshot resets term and vote"),
    ("dedup_off", "a repeated command is applied again"),
    ("copy_from_unsealed", "the replication manager copies a replica that still takes blocks"),
    ("copy_without_verify", "a copy becomes VALID without being read back"),
    ("last_valid_marked_invalid", "a dead node's last VALID replica is marked INVALID"),
    ("deletion_to_other_generation", "a datanode obeys orders for another generation"),
    ("loan_outlives_session", "a commit is taken though its session has ended and its ids were freed"),
    ("condition_checked_early", "If-None-Match is decided before the log orders the command"),
    ("list_from_follower", "a listing is answered from whatever this replica has applied"),
    ("names_not_synced", "a new container file's name is not synced"),
];

/// Whether the named bug is switched on for this run.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is_on(_name: &str) -> bool {
    false
}

#[cfg(feature = "planted")]
mod switches {
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Whether the named bug is switched on for this run.
    pub fn is_on(name: &str) -> bool {
        debug_assert!(super::BUGS.iter().any(|(known, _)| *known == name), "bug {name} is not listed");
        ON.get() == Some(name)
    }

    /// Switches one bug on, or all off.
    pub fn switch(name: Option<&'static str>) {
        ON.set(name);
    }
}

#[cfg(feature = "planted")]
pub use switches::{is_on, switch};
