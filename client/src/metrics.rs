//! Metrics of key writers and readers, and of calls between nodes, each with its meaning. No label is chosen by a user.

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
/// Calls from other nodes that were not let in, by why.
pub const CALLS_REFUSED: &str = "client_calls_refused_total";
/// By how many seconds another node's clock is ahead of this one's, as far as its last answer tells.
pub const PEER_CLOCK_OFF: &str = "client_peer_clock_off_seconds";

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
    metrics::describe_counter!(CALLS_REFUSED, "Calls from other nodes that were not let in, by why.");
    metrics::describe_gauge!(
        PEER_CLOCK_OFF,
        metrics::Unit::Seconds,
        "By how many seconds another node's clock is ahead of this one's."
    );
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

pub(crate) fn call_refused(reason: &'static str) {
    counter!(CALLS_REFUSED, "reason" => reason).increment(1);
}

pub(crate) fn peer_clock_off(peer: &wire::host::HostPort) -> metrics::Gauge {
    metrics::gauge!(PEER_CLOCK_OFF, "peer" => peer.to_string())
}
