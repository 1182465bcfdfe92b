//! What is counted of one kind of operation: successes with their latencies, failures by kind.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::plan::Operation;

/// Three significant digits: a latency is off by at most a thousandth.
const DIGITS: u8 = 3;

/// Counts of one kind of operation in one cell.
pub(super) struct Stats {
    pub(super) operation: Operation,
    /// Nanoseconds, successes only.
    pub(super) latency: Histogram<u64>,
    pub(super) bytes: u64,
    /// Keys listed.
    pub(super) entries: u64,
    pub(super) failures: BTreeMap<String, u64>,
    /// In words, the first of them.
    pub(super) first_failure: Option<String>,
    /// From the start of the cell to the end of its last operation.
    pub(super) elapsed: Duration,
}

/// A failed operation.
pub(super) struct Failure {
    pub(super) kind: String,
    pub(super) message: String,
}

/// A successful one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) bytes: u64,
    pub(super) entries: u64,
}

impl Stats {
    pub(super) fn new(operation: Operation) -> Self {
        Self {
            operation,
            latency: Histogram::new(DIGITS).expect("three digits are allowed"),
            bytes: 0,
            entries: 0,
            failures: BTreeMap::new(),
            first_failure: None,
            elapsed: Duration::ZERO,
        }
    }

    pub(super) fn record(&mut self, latency: Duration, outcome: Result<Done, Failure>) {
        match outcome {
            Ok(done) => {
                // Not `saturating_record`: that one does not let the histogram grow.
                self.latency
                    .record(latency.as_nanos() as u64)
                    .expect("a histogram that grows takes every latency");
                self.bytes += done.bytes;
                self.entries += done.entries;
            }
            Err(failure) => {
                *self.failures.entry(failure.kind).or_default() += 1;
                self.first_failure.get_or_insert(failure.message);
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("a histogram that grows takes another");
        self.bytes += other.bytes;
        self.entries += other.entries;
        for (kind, count) in &other.failures {
            *self.failures.entry(kind.clone()).or_default() += count;
        }
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// Operations that succeeded.
    pub(super) fn operations(&self) -> u64 {
        self.latency.len()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_kept_out_of_latencies() {
        let mut stats = Stats::new(Operation::Get);
        stats.record(Duration::from_millis(2), Ok(Done { bytes: 10, entries: 0 }));
        stats.record(
            Duration::from_secs(9),
            Err(Failure { kind: "SlowDown".into(), message: "first".into() }),
        );
        let mut other = Stats::new(Operation::Get);
        other.record(
            Duration::from_secs(9),
            Err(Failure { kind: "SlowDown".into(), message: "second".into() }),
        );
        stats.merge(&other);
        assert_eq!((stats.operations(), stats.failures(), stats.bytes), (1, 2, 10));
        assert_eq!(stats.first_failure.as_deref(), Some("first"));
        assert!(stats.latency.max() < 3_000_000);
    }
}
