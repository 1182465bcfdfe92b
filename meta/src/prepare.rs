//! The leader's side of a write, before the log: what is malformed is refused, what apply may not draw is drawn.
//!
//! Apply checks everything that depends on state again, since state may have moved by then. Here stand the checks that
//! do not depend on it (lengths, counts), so that no oversized command reaches the log, and the choices: the lease of a
//! loan, the nonce of a sealed secret.
//!
//! Not here: rejections that depend on rows (see `state`).

use std::collections::BTreeSet;

use consensus::{ReadView, StoreError};
use wire::block::Replication;
use wire::ids::{ContainerId, DatanodeId, LeaseId};
use wire::limits::{COMMIT_BLOCKS_MAX, LIST_ENTRIES_MAX, LOAN_IDS_MAX, PARTS_MAX};
use wire::om::{DELETE_KEYS_PER_COMMAND, LAYOUT_PAGE_ENTRIES_MAX, OmRequest, Rejection};

use crate::schema::{LEASE, LeaseRow};
use crate::state::RowsExt;

/// Names of users, access keys, regions and the like are shorter than this.
const NAME_BYTES_MAX: usize = 1024;
/// Containers and datanodes named by one request at most: a gateway remembers a few that failed it.
const AVOID_MAX: usize = 256;
/// Leases looked at when one is chosen. OM holds a few.
const LEASES_SEEN_MAX: usize = 4096;

/// Refuses what no state would accept; caps page sizes.
pub(crate) fn validate(request: &mut OmRequest) -> Result<(), Rejection> {
    match request {
        OmRequest::ListKeys(list) => list.max = list.max.min(LIST_ENTRIES_MAX),
        OmRequest::ListBuckets(list) => list.max = list.max.min(10 * LIST_ENTRIES_MAX),
        OmRequest::ListUploads(list) => list.max = list.max.min(LIST_ENTRIES_MAX),
        OmRequest::ListParts(list) => list.max = list.max.min(LIST_ENTRIES_MAX),
        OmRequest::TakeLoan(take) => {
            at_most(take.avoid.len(), AVOID_MAX, "containers to avoid")?;
            at_most(take.avoid_datanodes.len(), AVOID_MAX, "datanodes to avoid")?;
        }
        OmRequest::DegradeBlocks(degrade) => {
            at_most(degrade.acknowledged.len(), AVOID_MAX, "datanodes that acknowledged")?;
            at_most(degrade.failed.len(), AVOID_MAX, "datanodes that failed")?;
        }
        OmRequest::RefreshLocations(refresh) => {
            at_most(refresh.containers.len(), LAYOUT_PAGE_ENTRIES_MAX, "containers to locate")?;
        }
        OmRequest::RenewTokens(renew) => {
            at_most(renew.blocks.len(), LAYOUT_PAGE_ENTRIES_MAX, "tokens to renew")?;
        }
        OmRequest::ReleaseBlocks(release) => {
            at_most(release.blocks.len(), usize::from(LOAN_IDS_MAX), "blocks in one release")?;
        }
        OmRequest::CommitKey(commit) => {
            at_most(commit.blocks.len(), COMMIT_BLOCKS_MAX, "blocks in one commit")?;
        }
        OmRequest::CommitPart(commit) => {
            at_most(commit.blocks.len(), COMMIT_BLOCKS_MAX, "blocks in one commit")?;
        }
        OmRequest::DeleteKeys(delete) => {
            at_most(delete.keys.len(), DELETE_KEYS_PER_COMMAND, "keys in one command")?;
        }
        OmRequest::CompleteUpload(complete) => {
            at_most(complete.parts.len(), PARTS_MAX as usize, "parts")?;
        }
        OmRequest::PutUser(put) => {
            at_most(put.user.id.0.len(), NAME_BYTES_MAX, "bytes in a user id")?;
            at_most(put.access_key.len(), NAME_BYTES_MAX, "bytes in an access key")?;
            at_most(put.secret.0.len(), NAME_BYTES_MAX, "bytes in a secret")?;
        }
        OmRequest::CreateVolume(create) => {
            at_most(create.owner.0.len(), NAME_BYTES_MAX, "bytes in a user id")?
        }
        OmRequest::SetVolume(set) => {
            let bytes = set.owner.as_ref().map_or(0, |owner| owner.0.len());
            at_most(bytes, NAME_BYTES_MAX, "bytes in a user id")?;
        }
        OmRequest::CreateNamespaceBucket(create) => {
            at_most(create.owner.0.len(), NAME_BYTES_MAX, "bytes in a user id")?;
        }
        OmRequest::CreateBucket(create) => {
            at_most(create.owner.id.0.len(), NAME_BYTES_MAX, "bytes in a user id")?;
            at_most(create.location.len(), NAME_BYTES_MAX, "bytes in a location")?;
        }
        _ => {}
    }
    Ok(())
}

fn at_most(count: usize, max: usize, what: &str) -> Result<(), Rejection> {
    if count > max { Err(Rejection::Invalid(format!("{count} {what}, more than {max}"))) } else { Ok(()) }
}

/// What a lease is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) replication: Replication,
    /// Containers that do not serve.
    pub(crate) avoid: &'a BTreeSet<ContainerId>,
    /// Datanodes that do not serve.
    pub(crate) avoid_datanodes: &'a BTreeSet<DatanodeId>,
}

/// A lease to lend from. `choice` is a random number: gateways spread over the open containers.
pub(crate) fn choose_lease(
    leases: &[(LeaseId, LeaseRow)],
    wanted: &Wanted<'_>,
    choice: u64,
) -> Option<LeaseId> {
    let mut good: Vec<(usize, LeaseId)> = leases
        .iter()
        .filter(|(_, row)| {
            row.left() > 0
                && row.pipeline.replication == wanted.replication
                && !wanted.avoid.contains(&row.container)
                && row.pipeline.members.iter().all(|member| !wanted.avoid_datanodes.contains(&member.id))
        })
        .map(|(id, row)| (row.pipeline.members.len(), *id))
        .collect();
    // Those with most members: of a container born with fewer, one more failure is one too many.
    let most = good.iter().map(|(members, _)| *members).max()?;
    good.retain(|(members, _)| *members == most);
    Some(good[(choice % good.len() as u64) as usize].1)
}

/// All leases in state.
pub(crate) fn leases(view: &ReadView) -> Result<Vec<(LeaseId, LeaseRow)>, StoreError> {
    let rows = view.rows::<LeaseRow>(LEASE, &[], None, LEASES_SEEN_MAX)?;
    Ok(rows
        .into_iter()
        .map(|(row_key, row)| {
            (LeaseId(row_key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))), row)
        })
        .collect())
}
