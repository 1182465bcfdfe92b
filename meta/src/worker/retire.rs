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

/// Goes on where the last turn stopped: containers that stay must not hide those behind them.
pub(super) async fn retire(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let mut done = 0;
    let mut failed = None;
    for _ in 0..PAGES_MAX {
        let after = memory.retire_after();
        let candidates = memory.call(ListRetirable { after, max: CANDIDATES_MAX }).await?;
        for container in &candidates {
            match retire_one(om, memory, *container).await {
                Ok(is_retired) => done += u64::from(is_retired),
                // SCM may have its reasons for one; the others go.
                Err(failure) => failed = Some(failure),
            }
        }
        match candidates.last() {
            Some(last) if candidates.len() >= CANDIDATES_MAX as usize && *last > after => {
                memory.set_retire_after(*last);
            }
            _ => {
                memory.set_retire_after(ContainerId(0));
                break;
            }
        }
    }
    failed.map_or(Ok(done), Err)
}

async fn retire_one(om: &Om, memory: &LeaderMemory, container: ContainerId) -> Result<bool, Failure> {
    if !is_empty(om, container)? {
        return Ok(false);
    }
    let retired = super::reclaim::propose(om, RetireContainer { container }).await?;
    if !matches!(retired, Some(Reply::Worked(1))) {
        return Ok(false);
    }
    memory.call(scm::RetireContainer { container }).await?;
    tracing::info!(%container, "container is empty and goes");
    Ok(true)
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
