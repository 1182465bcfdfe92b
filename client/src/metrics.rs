//! Metrics of key writers and readers, each with its meaning. No label is chosen by a user.

use metrics::counter;
use wire::scm::Degraded;

/// Replicas that failed a writer: no progress for a second, or an error that is no refusal.
pub const WRITE_REPLICA_FAILURES: &str = "client_write_replica_failures_total";
/// Blocks written again elsewhere, by why: `refused`, `failed`.
pub const BLOCKS_REWRITTEN: &str = "client_blocks_rewritten_total";
/// Answers to `degrade`, by answer: `accepted`, `refused`.
pub const DEGRADES: &str = "client_degrades_total";
/// Replicas that failed a reader, before or after its first byte.
pub const READ_REPLICA_FAILURES: &str = "client_read_replica_failures_total";
/// Reads for which OM was asked where a container is now.
pub const LOCATIONS_REFRESHED: &str = "client_locations_refreshed_total";

/// Describes the metrics to whoever collects them.
pub fn describe() {
    metrics::describe_counter!(
        WRITE_REPLICA_FAILURES,
        "Replicas that failed a writer: no progress for a second, or an error that is no refusal."
    );
    metrics::describe_counter!(BLOCKS_REWRITTEN, "Blocks written again elsewhere, by why.");
    metrics::describe_counter!(DEGRADES, "Answers to degrade, by answer.");
    metrics::describe_counter!(
        READ_REPLICA_FAILURES,
        "Replicas that failed a reader, before or after its first byte."
    );
    metrics::describe_counter!(LOCATIONS_REFRESHED, "Reads for which OM was asked where a container is now.");
}

pub(crate) fn write_replica_failed() {
    counter!(WRITE_REPLICA_FAILURES).increment(1);
}

pub(crate) fn block_rewritten(why: &'static str) {
    counter!(BLOCKS_REWRITTEN, "why" => why).increment(1);
}

pub(crate) fn degraded(answer: Degraded) {
    let answer = match answer {
        Degraded::Accepted => "accepted",
        Degraded::Refused => "refused",
    };
    counter!(DEGRADES, "answer" => answer).increment(1);
}

pub(crate) fn read_replica_failed() {
    counter!(READ_REPLICA_FAILURES).increment(1);
}

pub(crate) fn locations_refreshed() {
    counter!(LOCATIONS_REFRESHED).increment(1);
}
