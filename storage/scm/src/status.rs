//! What operators see of SCM.

use std::ops::ControlFlow;

use consensus::{GroupStatus, Rows, StoreError};
use wire::block::{DatanodeAddress, Replication};
use wire::ids::{ContainerId, DatanodeId};
use wire::operator::PAGE_MAX;
use wire::scm::{ContainerInfo, ContainerState, DiskReport};

use crate::config::ScmConfig;
use crate::fleet::{Fleet, Liveness};
use crate::placement::awaited;
use crate::prepare::Scene;
use crate::schema::{
    CONTAINER, ContainerRow, DATANODE, DELETION, DatanodeRow, LEASE, OperationalState, parse_datanode,
    parse_number, scan,
};

/// A container that uses less than this share of its size is worth OM's look.
const RETIRABLE_SHARE: u64 = 64;

/// SCM at a glance. Counts are by a scan of the rows: for operators, not for hot paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScmStatus {
    /// The replicated group.
    pub group: GroupStatus,
    /// Containers that take blocks.
    pub open: u64,
    /// Containers being sealed.
    pub closing: u64,
    /// Sealed containers.
    pub closed: u64,
    /// Leases that stand.
    pub leases: u64,
    /// Deletion transactions that some replica has not passed.
    pub deletions: u64,
    /// The datanodes.
    pub datanodes: Vec<DatanodeStatus>,
    /// What writes wait for; empty if keys of replication ONE can be written.
    pub awaiting: Vec<String>,
}

/// One datanode as SCM sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatanodeStatus {
    /// Who and where.
    pub datanode: DatanodeAddress,
    /// How long ago it spoke.
    pub liveness: Liveness,
    /// What operators want of it.
    pub operational: OperationalState,
    /// Its disks, as last reported.
    pub disks: Vec<DiskReport>,
}

pub(crate) fn collect(
    rows: &impl Rows,
    fleet: &Fleet,
    config: &ScmConfig,
    group: GroupStatus,
    now_ns: u64,
) -> Result<ScmStatus, StoreError> {
    let datanodes = datanodes(rows, fleet, config, now_ns)?;
    let live = datanodes.iter().filter(|node| node.liveness == Liveness::Live).count();
    let awaiting = if live == 0 { vec![awaited(Replication::One, 0)] } else { Vec::new() };
    let mut status = ScmStatus {
        group,
        open: 0,
        closing: 0,
        closed: 0,
        leases: count(rows, LEASE)?,
        deletions: count(rows, DELETION)?,
        datanodes,
        awaiting,
    };
    scan(rows, CONTAINER, &[], None, |_, row: ContainerRow| {
        match row.state {
            ContainerState::Open => status.open += 1,
            ContainerState::Closing => status.closing += 1,
            ContainerState::Closed => status.closed += 1,
            ContainerState::Deleting | ContainerState::Deleted => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(status)
}

/// Up to `limit` containers after `after`, ascending.
pub(crate) fn containers(
    rows: &impl Rows,
    after: ContainerId,
    limit: usize,
) -> Result<Vec<ContainerInfo>, StoreError> {
    let mut infos = Vec::new();
    let from = ContainerId(after.0.saturating_add(1)).to_be_bytes();
    scan(rows, CONTAINER, &from, None, |row_key, row: ContainerRow| {
        if infos.len() == limit {
            return Ok(ControlFlow::Break(()));
        }
        infos.push(ContainerInfo {
            container: ContainerId(parse_number(CONTAINER, row_key)?),
            state: row.state,
            created_ms: row.created_ms,
            replication: row.replication,
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(infos)
}

pub(crate) fn datanodes(
    rows: &impl Rows,
    fleet: &Fleet,
    config: &ScmConfig,
    now_ns: u64,
) -> Result<Vec<DatanodeStatus>, StoreError> {
    let mut datanodes = Vec::new();
    scan(rows, DATANODE, &[], None, |row_key, row: DatanodeRow| {
        let id: DatanodeId = parse_datanode(row_key)?;
        datanodes.push(DatanodeStatus {
            datanode: DatanodeAddress { id, address: row.address },
            liveness: fleet.liveness(config, id, now_ns),
            operational: row.operational,
            disks: fleet.node(id).map(|node| node.disks.clone()).unwrap_or_default(),
        });
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(datanodes)
}

/// Containers after `after` that OM may find empty: CLOSED ones that hold few live bytes by their reports, and those that
/// lie on forgotten datanodes alone, of which no report will ever come.
pub(crate) fn retirable<R: Rows>(
    scene: &Scene<'_, R>,
    after: ContainerId,
    max: u32,
) -> Result<Vec<ContainerId>, StoreError> {
    let mut found = Vec::new();
    let max = max.min(PAGE_MAX) as usize;
    let few = scene.config.container_bytes_max / RETIRABLE_SHARE;
    let from = ContainerId(after.0.saturating_add(1)).to_be_bytes();
    scan(scene.rows, CONTAINER, &from, None, |row_key, row: ContainerRow| {
        if found.len() >= max {
            return Ok(ControlFlow::Break(()));
        }
        let id = ContainerId(parse_number(CONTAINER, row_key)?);
        let used = row
            .valid()
            .filter_map(|replica| scene.fleet.report(replica.datanode, id, replica.generation))
            .map(|report| report.used_bytes)
            .max();
        let is_given_up = || row.valid().all(|replica| scene.is_forgotten(replica.datanode));
        let is_candidate = match row.state {
            ContainerState::Closed => used.is_some_and(|used| used <= few) || is_given_up(),
            // It will never be sealed.
            ContainerState::Closing => is_given_up(),
            ContainerState::Open | ContainerState::Deleting | ContainerState::Deleted => false,
        };
        if is_candidate {
            found.push(id);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

pub(crate) fn count(rows: &impl Rows, table: consensus::Table) -> Result<u64, StoreError> {
    let mut count = 0;
    rows.scan(table, &[], None, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}
