//! Every metric of a group, with its meaning. All carry the label `group`: `om` or `scm`.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Handles to a group's metrics, registered once.
pub(crate) struct Metrics {
    /// Entries appended to the log.
    pub(crate) log_entries: Counter,
    /// Bytes of commands appended to the log.
    pub(crate) log_bytes: Counter,
    /// Time of each append and fdatasync, in seconds: what every proposal waits for.
    pub(crate) log_sync_seconds: Histogram,
    /// Entries that shared one fdatasync.
    pub(crate) log_batch_entries: Histogram,
    /// Entries that shared one state transaction.
    pub(crate) apply_batch_entries: Histogram,
    /// Time to apply and commit one batch, in seconds.
    pub(crate) apply_batch_seconds: Histogram,
    /// Time of each durable checkpoint, in seconds: applying stands still meanwhile.
    pub(crate) checkpoint_seconds: Histogram,
    /// The last applied entry.
    pub(crate) applied_index: Gauge,
    /// The last entry that is applied durably.
    pub(crate) checkpoint_index: Gauge,
    /// Commands that were not taken because too many were under way.
    pub(crate) proposals_overloaded: Counter,
    /// Commands that were not taken because the disk is full.
    pub(crate) proposals_full: Counter,
    /// Commands that failed because they had to read a corrupt row.
    pub(crate) corrupt_rows: Counter,
    /// Batches from peers that were refused: malformed, or not from a member to this life of this replica.
    pub(crate) packets_refused: Counter,
    /// Messages that could not be sent because their receiver's address is unknown.
    pub(crate) messages_unroutable: Counter,
    /// Replicas found to hold other rows than this one at the same applied index.
    pub(crate) state_mismatches: Counter,
    /// Rounds that asked a quorum for leadership, for reads.
    pub(crate) read_rounds: Counter,
    /// Snapshots that a peer has installed.
    pub(crate) snapshots_sent: Counter,
    /// Snapshots for a peer that did not arrive.
    pub(crate) snapshots_failed: Counter,
    /// Snapshots that took the place of this replica's rows.
    pub(crate) snapshots_installed: Counter,
    /// Times this replica began to lead.
    pub(crate) elections_won: Counter,
}

impl Metrics {
    pub(crate) fn new(group: &str) -> Self {
        let group = group.to_owned();
        Metrics {
            log_entries: counter!("consensus_log_entries_total", "group" => group.clone()),
            log_bytes: counter!("consensus_log_bytes_total", "group" => group.clone()),
            log_sync_seconds: histogram!("consensus_log_sync_seconds", "group" => group.clone()),
            log_batch_entries: histogram!("consensus_log_batch_entries", "group" => group.clone()),
            apply_batch_entries: histogram!("consensus_apply_batch_entries", "group" => group.clone()),
            apply_batch_seconds: histogram!("consensus_apply_batch_seconds", "group" => group.clone()),
            checkpoint_seconds: histogram!("consensus_checkpoint_seconds", "group" => group.clone()),
            applied_index: gauge!("consensus_applied_index", "group" => group.clone()),
            checkpoint_index: gauge!("consensus_checkpoint_index", "group" => group.clone()),
            proposals_overloaded: counter!("consensus_proposals_overloaded_total", "group" => group.clone()),
            proposals_full: counter!("consensus_proposals_full_total", "group" => group.clone()),
            corrupt_rows: counter!("consensus_corrupt_rows_total", "group" => group.clone()),
            packets_refused: counter!("consensus_packets_refused_total", "group" => group.clone()),
            messages_unroutable: counter!("consensus_messages_unroutable_total", "group" => group.clone()),
            state_mismatches: counter!("consensus_state_mismatches_total", "group" => group.clone()),
            read_rounds: counter!("consensus_read_rounds_total", "group" => group.clone()),
            snapshots_sent: counter!("consensus_snapshots_sent_total", "group" => group.clone()),
            snapshots_failed: counter!("consensus_snapshots_failed_total", "group" => group.clone()),
            snapshots_installed: counter!("consensus_snapshots_installed_total", "group" => group.clone()),
            elections_won: counter!("consensus_elections_won_total", "group" => group),
        }
    }
}
