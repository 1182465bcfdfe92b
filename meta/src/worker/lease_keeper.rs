//! Leases: compared with SCM, and granted ahead of need.
//!
//! The first turn of a term compares both lists, as every later one does: what ended at SCM meanwhile ends here, what SCM
//! granted to an earlier leader that never logged it is given back.
//!
//! Not here: which lease a loan comes from (see `prepare`).

use std::collections::BTreeSet;

use consensus::Rows;
use wire::block::Replication;
use wire::ids::{ContainerId, DatanodeId, LeaseId};
use wire::limits::LEASE_IDS;
use wire::scm::{GrantLease, SyncLeases};
use wire::status::Failure;

use crate::command::{AddLease, DropLeases, EndLeases, InitDefaults};
use crate::error::failure_of;
use crate::leases::LeaderMemory;
use crate::prepare;
use crate::schema::{LeaseRow, META, META_DEFAULTS};
use crate::server::Om;
use crate::state::RowsExt;

/// More ids are asked for when fewer than this are left: a gateway takes 256 at a time.
const IDS_LOW: u64 = LEASE_IDS / 8;
/// Leases named to SCM, or dropped, at once.
const LEASES_AT_ONCE_MAX: usize = 256;

/// Compares leases with SCM, then asks for what is missing.
pub(super) async fn keep(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let _leasing = memory.leasing.lock().await;
    learn_defaults(om, memory).await?;
    let synced = sync(om, memory).await;
    memory.set_awaited(None, synced.as_ref().err().map(Failure::to_string));
    let topped_up = top_up_all(om, memory).await;
    let leases = publish(om, memory)?;
    om.metrics().leases.set(leases.iter().filter(|(_, row)| row.left() > 0).count() as f64);
    Ok(synced? + topped_up?)
}

/// Leases are held ahead of need for what most keys will be; the first leader ever says what that is.
async fn learn_defaults(om: &Om, memory: &LeaderMemory) -> Result<(), Failure> {
    let view = om.applied_view()?;
    let is_named = view.contains(META, META_DEFAULTS).map_err(|error| om.fault(&error))?;
    let current = view.current().map_err(|error| om.fault(&error))?;
    drop(view);
    let mut replication = current.defaults.replication;
    if !is_named {
        replication = om.config().default_replication;
        om.propose(InitDefaults { replication }).await.map_err(failure_of)?;
    }
    memory.expect(replication);
    Ok(())
}

fn publish(om: &Om, memory: &LeaderMemory) -> Result<Vec<(LeaseId, LeaseRow)>, Failure> {
    let leases = leases(om)?;
    memory.set_leases(&leases);
    Ok(leases)
}

fn leases(om: &Om) -> Result<Vec<(LeaseId, LeaseRow)>, Failure> {
    prepare::leases(&om.applied_view()?).map_err(|error| om.fault(&error))
}

async fn sync(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let leases = leases(om)?;
    let of_state = |is_ended: bool| {
        let ids = leases.iter().filter(move |(_, row)| row.is_ended == is_ended).map(|(id, _)| *id);
        ids.collect::<Vec<LeaseId>>()
    };
    let held = of_state(false);
    let mut returned = of_state(true);
    returned.truncate(LEASES_AT_ONCE_MAX);
    let synced = memory.call(SyncLeases { held, ended: returned.clone() }).await?;
    memory.set_token_keys(synced.token_keys);
    let mut done = 0;
    if !returned.is_empty() {
        done += returned.len() as u64;
        om.propose_freeing(DropLeases { leases: returned }).await.map_err(failure_of)?;
    }
    let mut end = synced.end;
    end.truncate(LEASES_AT_ONCE_MAX);
    if !end.is_empty() {
        done += end.len() as u64;
        tracing::info!(leases = ?end, "leases end: their containers have left OPEN");
        om.propose_freeing(EndLeases { leases: end }).await.map_err(failure_of)?;
    }
    if !synced.unknown_to_om.is_empty() {
        // Granted, but the answer was lost before it was logged: give them back. Not in state, so nothing is logged.
        let request = SyncLeases { held: of_state(false), ended: synced.unknown_to_om };
        memory.call(request).await?;
    }
    Ok(done)
}

async fn top_up_all(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let (replications, avoid) = memory.demand();
    let mut done = 0;
    let mut failed = None;
    for replication in replications {
        let topped_up = top_up(om, memory, replication, &avoid).await;
        memory.set_awaited(Some(replication), topped_up.as_ref().err().map(Failure::to_string));
        match topped_up {
            Ok(count) => done += count,
            Err(failure) => failed = Some(failure),
        }
    }
    failed.map_or(Ok(done), Err)
}

async fn top_up(
    om: &Om,
    memory: &LeaderMemory,
    replication: Replication,
    avoid: &BTreeSet<ContainerId>,
) -> Result<u64, Failure> {
    let left: u64 = leases(om)?
        .iter()
        .filter(|(_, row)| row.pipeline.replication == replication && !avoid.contains(&row.container))
        .map(|(_, row)| row.left())
        .sum();
    if left >= IDS_LOW {
        return Ok(0);
    }
    grant(om, memory, replication, avoid, &BTreeSet::new()).await?;
    Ok(1)
}

/// Has SCM grant a lease and logs it. Whoever calls holds `leasing`.
async fn grant(
    om: &Om,
    memory: &LeaderMemory,
    replication: Replication,
    avoid: &BTreeSet<ContainerId>,
    avoid_datanodes: &BTreeSet<DatanodeId>,
) -> Result<LeaseId, Failure> {
    let grant = GrantLease {
        replication,
        request: memory.grant_request(replication),
        avoid: avoid.iter().copied().collect(),
        avoid_datanodes: avoid_datanodes.iter().copied().collect(),
    };
    let lease = memory.call(grant).await?;
    let id = lease.id;
    tracing::info!(lease = %id, container = %lease.container, count = lease.count, "lease granted");
    om.propose(AddLease { lease }).await.map_err(failure_of)?;
    memory.grant_done(replication);
    Ok(id)
}

/// A lease around datanodes that failed a gateway just now: one that stands by now, or one that SCM grants. None if SCM has
/// none either.
pub(crate) async fn lease_around(
    om: &Om,
    memory: &LeaderMemory,
    replication: Replication,
    avoid: &BTreeSet<ContainerId>,
    avoid_datanodes: &BTreeSet<DatanodeId>,
) -> Result<Option<LeaseId>, Failure> {
    let _leasing = memory.leasing.lock().await;
    let choose = |leases: &[(LeaseId, LeaseRow)]| {
        let wanted = prepare::Wanted { replication, avoid, avoid_datanodes };
        prepare::choose_lease(leases, &wanted, wire::random::u64())
    };
    // Another gateway may have met the same failure a moment ago.
    if let Some(lease) = choose(&leases(om)?) {
        return Ok(Some(lease));
    }
    if !memory.may_ask_around(replication) {
        return Ok(None);
    }
    let granted = grant(om, memory, replication, avoid, avoid_datanodes).await;
    let chosen = choose(&publish(om, memory)?);
    if chosen.is_none() {
        memory.pause_around(replication);
    }
    granted.map(|_| chosen)
}
