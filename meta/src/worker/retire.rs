//! Container retirement: declares sealed containers empty that no block, loan or lease names, and tells SCM.
//!
//! SCM names candidates; OM alone decides, in apply, by its own tables. The mark that apply leaves is what makes it safe to
//! tell SCM, at once or after any crash: SCM goes on naming the container until it has logged the answer.
//!
//! Not here: the decision (see `state::lease`).

use consensus::StoreError;
use wire::ids::ContainerId;
use wire::scm::{self, ListRetirable};
use wire::status::Failure;

use crate::command::RetireContainer;
use crate::leases::LeaderMemory;
use crate::server::Om;
use crate::state::{Reply, lease};

/// Candidates asked for at once.
const CANDIDATES_MAX: u32 = 100;
/// Pages of candidates looked at in one turn.
const PAGES_MAX: usize = 16;

pub(super) async fn retire(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let mut done = 0;
    let mut after = ContainerId(0);
    for _ in 0..PAGES_MAX {
        let candidates = memory.call(ListRetirable { after, max: CANDIDATES_MAX }).await?;
        for container in &candidates {
            if !is_empty(om, *container)? {
                continue;
            }
            let retired = super::reclaim::propose(om, RetireContainer { container: *container }).await?;
            if matches!(retired, Some(Reply::Worked(1))) {
                memory.call(scm::RetireContainer { container: *container }).await?;
                tracing::info!(%container, "container is empty and goes");
                done += 1;
            }
        }
        match candidates.last() {
            Some(last) if candidates.len() >= CANDIDATES_MAX as usize && *last > after => after = *last,
            _ => break,
        }
    }
    Ok(done)
}

/// A look before a command is logged for nothing. A container with a damaged row is not empty.
fn is_empty(om: &Om, container: ContainerId) -> Result<bool, Failure> {
    let view = om.applied_view()?;
    let looked = lease::is_retired(&view, container)
        .and_then(|is_retired| Ok(is_retired || lease::is_retirable(&view, container)?));
    match looked {
        Err(error @ StoreError::Corrupt { .. }) => {
            om.stop_if_damaged(&error);
            Ok(false)
        }
        outcome => outcome.map_err(|error| om.fault(&error)),
    }
}
