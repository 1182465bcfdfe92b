//! Datanodes that failed this gateway a moment ago, so that it goes round them until they are believed again.
//!
//! A hint and no more: it chooses among replicas and loans that are all allowed. A success, or time, clears it.
//!
//! Not here: what a failure is (see `block_write`, `key_reader`), who is dead (SCM decides by heartbeats).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use wire::ids::DatanodeId;

/// See the module.
#[derive(Debug)]
pub(crate) struct FailedNodes {
    memory: Duration,
    /// Until when each is gone round. As many as there are datanodes at most.
    until: Mutex<BTreeMap<DatanodeId, Instant>>,
}

impl FailedNodes {
    /// Remembers a failure for so long.
    pub(crate) fn new(memory: Duration) -> Self {
        Self { memory, until: Mutex::default() }
    }

    /// It failed.
    pub(crate) fn note(&self, datanode: DatanodeId) {
        let until = Instant::now() + self.memory;
        if self.until.lock().insert(datanode, until).is_none() {
            tracing::info!(%datanode, "going round a datanode that failed");
        }
    }

    /// It succeeded.
    pub(crate) fn clear(&self, datanode: DatanodeId) {
        let mut until = self.until.lock();
        if !until.is_empty() && until.remove(&datanode).is_some() {
            tracing::info!(%datanode, "a datanode that had failed serves again");
        }
    }

    /// Whether it is to be gone round.
    pub(crate) fn has(&self, datanode: DatanodeId) -> bool {
        let until = self.until.lock();
        !until.is_empty() && until.get(&datanode).is_some_and(|until| *until > Instant::now())
    }

    /// The one that failed last.
    pub(crate) fn latest(&self) -> Option<DatanodeId> {
        let until = self.until.lock();
        until.iter().max_by_key(|(_, until)| **until).map(|(datanode, _)| *datanode)
    }

    /// All that are to be gone round now.
    pub(crate) fn all(&self) -> BTreeSet<DatanodeId> {
        let mut until = self.until.lock();
        if until.is_empty() {
            return BTreeSet::new();
        }
        let now = Instant::now();
        until.retain(|_, until| *until > now);
        until.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn forgotten_with_time_or_by_a_success() {
        let nodes = FailedNodes::new(Duration::from_secs(30));
        let (a, b) = (DatanodeId::random(), DatanodeId::random());
        nodes.note(a);
        nodes.note(b);
        assert!(nodes.has(a) && nodes.has(b));
        nodes.clear(b);
        assert_eq!(nodes.all(), BTreeSet::from([a]));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!nodes.has(a) && nodes.all().is_empty());
    }
}
