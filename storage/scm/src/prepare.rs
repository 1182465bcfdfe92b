//! The leader's decisions before the log: which container a lease comes from, when a container is closed, what
//! datanodes are told.
//!
//! All of it is a function of a view of the rows, the fleet's reports, settings, and time and randomness as arguments.
//! What it proposes, apply checks again. No report is ever a reason to delete anything.
//!
//! Not here: proposing and answering (`server`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::block::Replication;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, LeaseId, LocalId};
use wire::limits::LEASE_IDS;
use wire::scm::{ContainerState, DatanodeAction, DatanodeCommand, GrantLease, LogDeletions};

use crate::command::{self, Command, DeletionPart};
use crate::config::ScmConfig;
use crate::fleet::{Fleet, Liveness};
use crate::placement::{Candidate, place};
use crate::schema::{
    CONTAINER, ContainerRow, DATANODE, DELETION, DatanodeRow, DeletionRow, LEASE, LeaseRow, OperationalState,
    active_containers, container, corrupt, deletion_key, load, parse_datanode, parse_deletion_key,
    parse_number, scan,
};

/// Blocks of one deletion transaction at most: what a datanode makes durable in one step.
const DELETION_BLOCKS_MAX: usize = 1024;
/// Transactions in one command at most: each writes two rows, and a command of this size stays far below 1 MiB.
const COMMAND_DELETIONS_MAX: usize = 64;
/// Leases returned in one command at most: each is two rows.
const RETURNS_MAX: usize = 128;
/// Transactions told to a datanode in one heartbeat at most.
const HEARTBEAT_DELETIONS_MAX: usize = 16;
/// Containers a datanode is told to seal in one heartbeat at most.
const HEARTBEAT_CLOSES_MAX: usize = 64;
/// Commands that one look at the reports proposes at most; the rest follows at the next.
const ATTENTION_MAX: usize = 32;
/// An order that has not shown effect is repeated after this long.
const REPEAT_NS: u64 = 5_000_000_000;

/// The leader's view of the world at one moment.
pub(crate) struct Scene<'a, R: Rows> {
    pub(crate) rows: &'a R,
    pub(crate) fleet: &'a Fleet,
    pub(crate) config: &'a ScmConfig,
    pub(crate) now_ms: UnixMs,
    pub(crate) now_ns: u64,
}

/// What a grant needs: containers to be closed first, and the grant.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) close: Vec<ContainerId>,
    pub(crate) command: command::GrantLease,
    /// What is awaited if there is neither a container nor enough datanodes for one.
    pub(crate) awaited: String,
}

impl<R: Rows> Scene<'_, R> {
    /// Chooses the container of a lease, or the datanodes of a new one.
    pub(crate) fn grant(&self, request: &GrantLease, seed: u64) -> Result<Grant, StoreError> {
        let open = self.open_containers(request.replication)?;
        let avoid: BTreeSet<_> = request.avoid.iter().collect();
        let fitting: Vec<ContainerId> = open
            .iter()
            .filter(|(id, row)| !avoid.contains(id) && self.takes_leases(*id, row))
            .map(|(id, _)| *id)
            .collect();
        let (members, awaited) = match place(request.replication, self.candidates()?, seed) {
            Ok(members) => (members, String::new()),
            Err(awaited) => (Vec::new(), awaited),
        };
        // Below the wanted number a new container is preferred, if there is anyone to hold it.
        let is_short = open.len() < self.config.open_containers && !members.is_empty();
        let choice =
            (!fitting.is_empty() && !is_short).then(|| fitting[(seed % fitting.len() as u64) as usize]);
        let close = match choice {
            None if open.len() >= self.config.open_containers_max => {
                self.fullest(&open).into_iter().collect()
            }
            _ => Vec::new(),
        };
        let command = command::GrantLease {
            request: request.request,
            replication: request.replication,
            container: choice,
            members,
            count: LEASE_IDS,
            now_ms: self.now_ms,
        };
        Ok(Grant { close, command, awaited })
    }

    /// What the reports of this term ask for: closing, sealing, forgetting deletions that all have passed.
    pub(crate) fn attention(&self) -> Result<Vec<Command>, StoreError> {
        let mut close = Vec::new();
        let mut commands = Vec::new();
        for id in active_containers(self.rows)? {
            let Some(row) = container(self.rows, id)? else { continue };
            match row.state {
                ContainerState::Open if self.must_close(id, &row) => close.push(id),
                ContainerState::Closing => commands.extend(self.sealed(id, &row)),
                _ => {}
            }
        }
        for id in self.containers_with_deletions()? {
            let Some(row) = container(self.rows, id)? else { continue };
            commands.extend(self.passed(id, &row));
        }
        close.truncate(ATTENTION_MAX);
        commands.truncate(ATTENTION_MAX);
        if !close.is_empty() {
            commands.push(self.close(close));
        }
        Ok(commands)
    }

    /// The command that closes containers.
    pub(crate) fn close(&self, containers: Vec<ContainerId>) -> Command {
        Command::CloseContainers(command::CloseContainers { containers, now_ms: self.now_ms })
    }

    /// What a datanode is told now. The caller notes it with [`note_orders`].
    pub(crate) fn orders(&self, datanode: DatanodeId, term: u64) -> Result<Vec<DatanodeCommand>, StoreError> {
        let mut orders = self.close_orders(datanode, term)?;
        let mut budget = HEARTBEAT_DELETIONS_MAX;
        for id in self.containers_with_deletions()? {
            if budget == 0 {
                break;
            }
            let told = self.deletion_orders(datanode, id, term, budget)?;
            budget -= told.len();
            orders.extend(told);
        }
        Ok(orders)
    }

    /// Of `held`, the leases to end; and the leases that OM names neither as held nor as ended.
    pub(crate) fn compare_leases(
        &self,
        held: &[LeaseId],
        ended: &[LeaseId],
    ) -> Result<(Vec<LeaseId>, Vec<LeaseId>), StoreError> {
        let mut end = Vec::new();
        for id in held {
            let lease: Option<LeaseRow> = load(self.rows, LEASE, &id.to_be_bytes())?;
            let row = match &lease {
                Some(lease) => container(self.rows, lease.container)?,
                None => None,
            };
            if row.is_none_or(|row| row.state != ContainerState::Open) {
                end.push(*id);
            }
        }
        let named: BTreeSet<_> = held.iter().chain(ended).copied().collect();
        let mut unknown = Vec::new();
        scan(self.rows, LEASE, &[], None, |row_key, _: LeaseRow| {
            let id = LeaseId(parse_number(LEASE, row_key)?);
            if !named.contains(&id) {
                unknown.push(id);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((end, unknown))
    }

    /// The live datanodes that take writes, with their free bytes.
    fn candidates(&self) -> Result<Vec<Candidate>, StoreError> {
        let mut candidates = Vec::new();
        scan(self.rows, DATANODE, &[], None, |row_key, row: DatanodeRow| {
            let id = parse_datanode(row_key)?;
            let is_live = self.fleet.liveness(self.config, id, self.now_ns) == Liveness::Live;
            let available = self.fleet.node(id).and_then(|node| node.available_bytes());
            if let (true, OperationalState::InService, Some(available_bytes)) =
                (is_live, row.operational, available)
            {
                candidates.push(Candidate { id, available_bytes });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(candidates)
    }

    fn open_containers(
        &self,
        replication: Replication,
    ) -> Result<Vec<(ContainerId, ContainerRow)>, StoreError> {
        let mut open = Vec::new();
        for id in active_containers(self.rows)? {
            let row = container(self.rows, id)?.ok_or_else(|| corrupt(CONTAINER, &id.to_be_bytes()))?;
            if row.state == ContainerState::Open && row.replication == replication {
                open.push((id, row));
            }
        }
        Ok(open)
    }

    /// Whether a lease of this OPEN container would be of use now: ids and room left, every writer alive.
    fn takes_leases(&self, id: ContainerId, row: &ContainerRow) -> bool {
        let is_live = |datanode| self.fleet.liveness(self.config, datanode, self.now_ns) == Liveness::Live;
        row.can_grant(LEASE_IDS)
            && row.valid().all(|replica| is_live(replica.datanode))
            && !self.must_close(id, row)
    }

    fn must_close(&self, id: ContainerId, row: &ContainerRow) -> bool {
        let full_at = self.config.container_bytes_max - self.config.room_min();
        !row.can_grant(LEASE_IDS)
            || row.valid().any(|replica| {
                let is_dead =
                    self.fleet.liveness(self.config, replica.datanode, self.now_ns) == Liveness::Dead;
                let node = self.fleet.node(replica.datanode);
                let is_diskless = node.is_some_and(|node| node.available_bytes().is_none());
                let report = self.fleet.report(replica.datanode, id);
                let report = report.filter(|report| report.generation == replica.generation);
                is_dead
                    || is_diskless
                    || report.is_some_and(|report| {
                        report.is_sealed || report.is_unhealthy || report.written_bytes >= full_at
                    })
            })
    }

    fn fullest(&self, open: &[(ContainerId, ContainerRow)]) -> Option<ContainerId> {
        let written = |id: ContainerId, row: &ContainerRow| {
            let reports = row.valid().filter_map(|replica| self.fleet.report(replica.datanode, id));
            reports.map(|report| report.written_bytes).max().unwrap_or(0)
        };
        open.iter().max_by_key(|(id, row)| (written(*id, row), std::cmp::Reverse(*id))).map(|(id, _)| *id)
    }

    fn sealed(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let sealed: Vec<_> = row
            .valid()
            .filter(|replica| {
                let report = self.fleet.report(replica.datanode, id);
                report.is_some_and(|report| report.generation == replica.generation && report.is_sealed)
            })
            .map(|replica| (replica.datanode, replica.generation))
            .collect();
        row.is_sealed_by(&sealed)
            .then_some(Command::SealContainer(command::SealContainer { container: id, sealed }))
    }

    fn passed(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let done: Vec<_> = row
            .replicas
            .iter()
            .filter_map(|replica| {
                let report = self.fleet.report(replica.datanode, id)?;
                let is_same = report.generation == replica.generation;
                is_same.then_some((replica.datanode, replica.generation, report.deletion_done))
            })
            .collect();
        (row.passed_by_all(&done) > row.purged_deletion)
            .then_some(Command::PassDeletions(command::PassDeletions { container: id, done }))
    }

    /// Containers that have deletion transactions, ascending: one seek each.
    fn containers_with_deletions(&self) -> Result<Vec<ContainerId>, StoreError> {
        let mut ids = Vec::new();
        let mut from = deletion_key(ContainerId(0), 0);
        while let Some((row_key, _)) = self.rows.seek(DELETION, &from, None)? {
            let (id, _) = parse_deletion_key(&row_key)?;
            ids.push(id);
            from = deletion_key(ContainerId(id.0 + 1), 0);
        }
        Ok(ids)
    }

    fn close_orders(&self, datanode: DatanodeId, term: u64) -> Result<Vec<DatanodeCommand>, StoreError> {
        let mut orders = Vec::new();
        let Some(node) = self.fleet.node(datanode) else { return Ok(orders) };
        for id in active_containers(self.rows)? {
            let Some(row) = container(self.rows, id)?.filter(|row| row.state == ContainerState::Closing)
            else {
                continue;
            };
            let Some(replica) = row.replicas.iter().find(|replica| replica.datanode == datanode) else {
                continue;
            };
            let is_sealed = self.fleet.report(datanode, id).is_some_and(|report| report.is_sealed);
            let was_told = node.close_sent_ns.get(&id).is_some_and(|sent| !self.is_overdue(*sent));
            if !is_sealed && !was_told && orders.len() < HEARTBEAT_CLOSES_MAX {
                let generation = replica.generation;
                orders.push(DatanodeCommand {
                    container: id,
                    generation,
                    term,
                    action: DatanodeAction::Close,
                });
            }
        }
        Ok(orders)
    }

    /// Transactions of one container that the datanode has neither done nor just been told.
    fn deletion_orders(
        &self,
        datanode: DatanodeId,
        id: ContainerId,
        term: u64,
        budget: usize,
    ) -> Result<Vec<DatanodeCommand>, StoreError> {
        let mut orders = Vec::new();
        let Some(row) = container(self.rows, id)? else { return Ok(orders) };
        let Some(report) = self.fleet.report(datanode, id) else { return Ok(orders) };
        // A replica of another life is not this container's: deleting there would act on the wrong one.
        if row.replica(datanode, report.generation).is_none() {
            return Ok(orders);
        }
        // In order and without gaps: the datanode records only the last one. So nothing further is told before what
        // was told is done, or its answer counts as lost.
        let sent = self.fleet.node(datanode).and_then(|node| node.deletion_sent.get(&id));
        if sent.is_some_and(|(through, at)| *through > report.deletion_done && !self.is_overdue(*at)) {
            return Ok(orders);
        }
        let from = deletion_key(id, report.deletion_done + 1);
        let to = deletion_key(ContainerId(id.0 + 1), 0);
        scan(self.rows, DELETION, &from, Some(&to), |row_key, deletion: DeletionRow| {
            let (_, transaction) = parse_deletion_key(row_key)?;
            orders.push(DatanodeCommand {
                container: id,
                generation: report.generation,
                term,
                action: DatanodeAction::DeleteBlocks { transaction, blocks: deletion.blocks },
            });
            Ok(if orders.len() < budget { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(orders)
    }

    fn is_overdue(&self, sent_ns: u64) -> bool {
        self.now_ns.saturating_sub(sent_ns) >= REPEAT_NS
    }
}

/// Remembers what a datanode was told, so that it is not told again at once.
pub(crate) fn note_orders(fleet: &mut Fleet, datanode: DatanodeId, orders: &[DatanodeCommand], now_ns: u64) {
    let Some(node) = fleet.node_mut(datanode) else { return };
    // What is long overdue is either done or will be told again: the notes stay small.
    node.close_sent_ns.retain(|_, sent| now_ns.saturating_sub(*sent) < REPEAT_NS);
    node.deletion_sent.retain(|_, (_, sent)| now_ns.saturating_sub(*sent) < REPEAT_NS);
    for order in orders {
        match &order.action {
            DatanodeAction::Close => {
                node.close_sent_ns.insert(order.container, now_ns);
            }
            DatanodeAction::DeleteBlocks { transaction, .. } => {
                node.deletion_sent.insert(order.container, (*transaction, now_ns));
            }
            DatanodeAction::DeleteReplica | DatanodeAction::CopyReplica { .. } => {}
        }
    }
}

/// Cuts OM's batch into commands of bounded size. The same batch is always cut alike.
pub(crate) fn cut_deletions(request: &LogDeletions) -> Vec<Command> {
    let mut by_container: BTreeMap<ContainerId, BTreeSet<LocalId>> = BTreeMap::new();
    for block in &request.blocks {
        by_container.entry(block.container).or_default().insert(block.local);
    }
    let fingerprint = fingerprint(&by_container);
    let mut parts = Vec::new();
    for (container, blocks) in by_container {
        let blocks: Vec<LocalId> = blocks.into_iter().collect();
        parts.extend(
            blocks
                .chunks(DELETION_BLOCKS_MAX)
                .map(|blocks| DeletionPart { container, blocks: blocks.to_vec() }),
        );
    }
    let commands = parts.chunks(COMMAND_DELETIONS_MAX).zip(0..);
    commands
        .map(|(deletions, part)| {
            let (batch, deletions) = (request.batch, deletions.to_vec());
            Command::LogDeletions(command::LogDeletions { batch, fingerprint, part, deletions })
        })
        .collect()
}

/// Cuts the return of leases into commands of bounded size.
pub(crate) fn cut_returns(ended: &[LeaseId]) -> Vec<Command> {
    let cut = ended.chunks(RETURNS_MAX);
    cut.map(|leases| Command::ReturnLeases(command::ReturnLeases { leases: leases.to_vec() })).collect()
}

/// FNV-1a over the sorted blocks: tells batches apart, guards against nothing.
fn fingerprint(by_container: &BTreeMap<ContainerId, BTreeSet<LocalId>>) -> u64 {
    let numbers = by_container.iter().flat_map(|(container, blocks)| {
        std::iter::once(container.0).chain(blocks.iter().map(|block| block.0))
    });
    let bytes = numbers.flat_map(u64::to_be_bytes);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
