//! Named durable steps at which a test makes the process die.
//!
//! `FERROZONE_FAILPOINT=name` or `name:n` in the environment aborts the process at the first or n-th time it comes to
//! that step, as a power cut or `kill -9` would: no destructor runs, nothing is flushed. The crash tests walk [`NAMES`],
//! so a step that is not in the list is a bug: [`hit`] asserts it in debug builds.
//!
//! A run without the variable pays one relaxed load a step.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every step there is, in the order of the write path.
pub const NAMES: &[&str] = &[
    // Datanode: a block becomes durable.
    "datanode_container_created",
    "datanode_block_written",
    "datanode_block_synced",
    "datanode_index_checkpoint",
    "datanode_container_grown",
    "datanode_container_sealed",
    "datanode_delete_intent",
    "datanode_delete_punched",
    // Datanode: a copy of a replica comes into service.
    "datanode_copy_synced",
    "datanode_copy_sealed",
    "datanode_copy_named",
    // Gateway: between blocks and the key.
    "gateway_before_commit_key",
    "gateway_after_commit_key",
    // Consensus: an entry becomes durable, then state.
    "consensus_log_appended",
    "consensus_log_synced",
    "consensus_segment_rolled",
    "consensus_batch_applied",
    "consensus_checkpoint_begun",
    "consensus_checkpoint_done",
    "consensus_segment_recycled",
    // Consensus: a snapshot comes into service.
    "consensus_snapshot_received",
    "consensus_snapshot_renamed",
    "consensus_snapshot_log_reset",
    // OM: deletion leaves it.
    "meta_deletion_handed_over",
    "scm_deletion_logged",
];

/// The environment variable that names the step.
pub const VARIABLE: &str = "FERROZONE_FAILPOINT";

struct Armed {
    name: String,
    countdown: AtomicU64,
}

/// Dies here if the environment says so.
#[inline]
pub fn hit(name: &'static str) {
    debug_assert!(NAMES.contains(&name), "failpoint {name} is not listed");
    crate::world::step(name);
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| parse(&text)));
    if let Some(armed) = armed {
        die_if_due(armed, name);
    }
}

fn parse(text: &str) -> Armed {
    let (name, count) = text.split_once(':').unwrap_or((text, "1"));
    Armed { name: name.to_owned(), countdown: AtomicU64::new(count.parse().unwrap_or(1).max(1)) }
}

#[cold]
fn die_if_due(armed: &Armed, name: &str) {
    if armed.name == name && armed.countdown.fetch_sub(1, Ordering::SeqCst) == 1 {
        std::process::abort();
    }
}
