//! Metrics of Raft peers, each with its meaning. The groups are `om` and `scm`.

use metrics::counter;

/// Batches of messages delivered to another member, by group.
pub const BATCHES_SENT: &str = "peers_batches_sent_total";
/// Batches dropped, by group and why: `full` (its queue), `away` (the member), `long` (over the limit).
pub const BATCHES_DROPPED: &str = "peers_batches_dropped_total";
/// Snapshots delivered and installed, by group.
pub const SNAPSHOTS_SENT: &str = "peers_snapshots_sent_total";

/// Describes the metrics to whoever collects them.
pub fn describe() {
    metrics::describe_counter!(BATCHES_SENT, "Batches of messages delivered to another member, by group.");
    metrics::describe_counter!(BATCHES_DROPPED, "Batches of messages dropped, by group and why.");
    metrics::describe_counter!(SNAPSHOTS_SENT, "Snapshots delivered and installed, by group.");
}

pub(crate) fn batches_sent(group: &str, count: usize) {
    counter!(BATCHES_SENT, "group" => group.to_owned()).increment(count as u64);
}

pub(crate) fn batches_dropped(group: &str, why: &'static str, count: usize) {
    counter!(BATCHES_DROPPED, "group" => group.to_owned(), "reason" => why).increment(count as u64);
}

pub(crate) fn snapshot_sent(group: &str) {
    counter!(SNAPSHOTS_SENT, "group" => group.to_owned()).increment(1);
}
