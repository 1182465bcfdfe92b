//! Leaves datanodes out of a container that did not acknowledge its blocks: asked of OM once, for all writers here.
//!
//! ```text
//!   writers with blocks in container 7, acknowledged by {a, b}, not by c
//!      `--- one DegradeBlocks(7, {a, b}) --> OM --> SCM: c's replica INVALID, 7 goes to CLOSING
//!      `--- Accepted: VALID is now among {a, b}; whoever has a block on a and b may commit it
//! ```
//!
//! Once a set was accepted, VALID stays within it: copies are made of sealed replicas only, and hold all that those hold.
//! So a later writer whose block is on a larger set needs not ask.
//!
//! Invariant: `Accepted` is answered only if SCM accepted the same set or a part of it.
//!
//! Not here: who failed (see `block_write`), what SCM does about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use wire::ids::{ContainerId, DatanodeId, Generation};
use wire::om::DegradeBlocks;
use wire::scm::Degraded;
use wire::status::{Failure, Status};

use crate::error::failure_of;
use crate::metrics;
use crate::session::Session;

/// Containers remembered at most. They take no more blocks, so the oldest have no writers left.
const CONTAINERS_MAX: usize = 256;
/// OM and SCM answer within this, elections included, or the block is given up.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// All `degrade`s of a gateway.
pub(crate) struct Degrades {
    session: Arc<Session>,
    known: Mutex<BTreeMap<(ContainerId, Generation), Entry>>,
}

/// Held while it is asked about.
type Entry = Arc<tokio::sync::Mutex<Known>>;

/// What SCM said of a container.
#[derive(Default)]
struct Known {
    accepted: Vec<BTreeSet<DatanodeId>>,
    refused: Vec<BTreeSet<DatanodeId>>,
}

impl Degrades {
    /// Asks through `session`.
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session, known: Mutex::default() }
    }

    /// Whether blocks of the container that are on `acknowledged`, and not on `failed`, may be committed.
    pub(crate) async fn degrade(
        &self,
        container: ContainerId,
        generation: Generation,
        acknowledged: &BTreeSet<DatanodeId>,
        failed: &BTreeSet<DatanodeId>,
    ) -> Result<Degraded, Failure> {
        let entry = self.entry(container, generation);
        // Held while asking: others with blocks there wait for the one answer.
        let mut known = entry.lock().await;
        if known.accepted.iter().any(|accepted| accepted.is_subset(acknowledged)) {
            return Ok(Degraded::Accepted);
        }
        if known.refused.contains(acknowledged) {
            return Ok(Degraded::Refused);
        }
        tracing::warn!(%container, ?acknowledged, ?failed, "asking to leave out datanodes that did not acknowledge");
        let request = DegradeBlocks {
            session: self.session.id(),
            container,
            generation,
            acknowledged: acknowledged.iter().copied().collect(),
            failed: failed.iter().copied().collect(),
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, self.session.call(request)).await;
        let answer = answer
            .map_err(|_| Failure::new(Status::Retry, "no answer to degrade in time"))?
            .map_err(failure_of)?;
        metrics::degraded(answer);
        match answer {
            Degraded::Accepted => known.accepted.push(acknowledged.clone()),
            Degraded::Refused => known.refused.push(acknowledged.clone()),
        }
        Ok(answer)
    }

    fn entry(&self, container: ContainerId, generation: Generation) -> Entry {
        let mut known = self.known.lock();
        let entry = known.entry((container, generation)).or_default().clone();
        while known.len() > CONTAINERS_MAX {
            let oldest = known.keys().copied().find(|key| *key != (container, generation));
            known.remove(&oldest.expect("more than one container is remembered"));
        }
        entry
    }
}
