//! Every metric of OM, with its meaning.

use std::collections::BTreeMap;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::RwLock;

/// Handles to OM's metrics.
pub(crate) struct Metrics {
    /// Requests by call.
    requests: RwLock<BTreeMap<&'static str, Counter>>,
    /// Requests that were rejected: an answer, not a failure.
    pub(crate) rejections: Counter,
    /// Requests that got no answer.
    pub(crate) failures: Counter,
    /// Time from command to reply, in seconds: log, sync and apply.
    pub(crate) command_seconds: Histogram,
    /// Blocks handed to SCM for deletion.
    pub(crate) blocks_handed_over: Counter,
    /// Freed blocks that wait, counted up to a limit.
    pub(crate) deletion_backlog: Gauge,
    /// Damaged rows that workers pass over.
    pub(crate) damaged_rows: Gauge,
    /// Leases with ids left.
    pub(crate) leases: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: RwLock::default(),
            rejections: counter!("meta_rejections_total"),
            failures: counter!("meta_failures_total"),
            command_seconds: histogram!("meta_command_seconds"),
            blocks_handed_over: counter!("meta_deletion_blocks_total"),
            deletion_backlog: gauge!("meta_deletion_backlog_blocks"),
            damaged_rows: gauge!("meta_damaged_rows"),
            leases: gauge!("meta_leases"),
        }
    }

    /// Counts a request. Call names are few: the map stops growing after the first of each.
    pub(crate) fn count_request(&self, call: &'static str) {
        if let Some(counter) = self.requests.read().get(call) {
            return counter.increment(1);
        }
        let counter = counter!("meta_requests_total", "call" => call);
        counter.increment(1);
        self.requests.write().insert(call, counter);
    }
}
