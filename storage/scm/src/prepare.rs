//! The leader's decisions before the log: which container a lease comes from, when a container is closed, sealed, and
//! when deletions are forgotten.
//!
//! All of it is a function of a view of the rows, the fleet's reports, settings, and time and randomness as arguments.
//! What it proposes, apply checks again. No report is ever a reason to delete anything.
//!
//! Not here: what becomes of replicas (`replication`), what datanodes are told (`orders`), proposing and answering
//! (`server`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::block::Replication;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, LeaseId, LocalId};
use wire::limits::LEASE_IDS;
use wire::scm::{ContainerState, GrantLease, LogDeletions};

use crate::command::{self, Command, DeletionPart};
use crate::config::ScmConfig;
use crate::fleet::{Fleet, Liveness, Node};
use crate::placement::{Candidate, place, replicas_wanted};
use crate::schema::{
    CONTAINER, ContainerRow, DATANODE, DatanodeRow, LEASE, LeaseRow, META, OperationalState, ReplicaRow,
    active_containers, container, corrupt, load, meta, parse_datanode, parse_number, scan,
};
use crate::state::replicas_min;

/// Blocks of one deletion transaction at most: what a datanode makes durable in one step.
const DELETION_BLOCKS_MAX: usize = 1024;
/// Transactions in one command at most: each writes two rows, and a command of this size stays far below 1 MiB.
const COMMAND_DELETIONS_MAX: usize = 64;
/// Leases returned in one command at most: each is two rows.
const RETURNS_MAX: usize = 128;
/// Commands that one look at the reports proposes at most; the rest follows at the next.
const ATTENTION_MAX: usize = 64;
/// A container with fewer members than it could have gives way to a wider one after this long: until then one more failure
/// among its members costs the long bodies that are on their way into it. Less than nodes usually take to fail one after
/// the other, more than a restart.
const NARROW_MS: u64 = 6_000;
/// After this long if many containers were opened lately: one writer that cannot reach a node that all others reach must
/// not have containers opened and closed all the time.
const NARROW_BUSY_MS: u64 = 60_000;
/// More than so many containers opened within `BUSY_MS` are many.
const BUSY_CONTAINERS: u64 = 16;
/// See `BUSY_CONTAINERS`.
const BUSY_MS: u64 = 10 * 60_000;

/// The leader's view of the world at one moment.
pub(crate) struct Scene<'a, R: Rows> {
    pub(crate) rows: &'a R,
    pub(crate) fleet: &'a Fleet,
    pub(crate) config: &'a ScmConfig,
    /// All datanodes.
    pub(crate) nodes: BTreeMap<DatanodeId, DatanodeRow>,
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

/// All datanodes by id.
pub(crate) fn datanodes(rows: &impl Rows) -> Result<BTreeMap<DatanodeId, DatanodeRow>, StoreError> {
    let mut nodes = BTreeMap::new();
    scan(rows, DATANODE, &[], None, |row_key, row: DatanodeRow| {
        nodes.insert(parse_datanode(row_key)?, row);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(nodes)
}

impl<R: Rows> Scene<'_, R> {
    /// Chooses the container of a lease, or the datanodes of a new one.
    pub(crate) fn grant(&self, request: &GrantLease, seed: u64) -> Result<Grant, StoreError> {
        let open = self.open_containers(request.replication)?;
        let avoid: BTreeSet<_> = request.avoid.iter().collect();
        let takers = self.takers(request);
        let candidates = self.roomy(&takers, request.replication).unwrap_or(takers);
        let members: BTreeSet<_> = candidates.iter().map(|candidate| candidate.id).collect();
        let width = replicas_wanted(request.replication).min(candidates.len());
        let fitting: Vec<ContainerId> = open
            .iter()
            .filter(|(id, row)| {
                // A lease that the next comparison would end is none; a container opened now knows of the complaint.
                let is_of_use = self.takes_leases(*id, row, &members) && !self.is_let_down(row);
                !avoid.contains(id) && is_of_use && row.valid().count() >= width
            })
            .map(|(id, _)| *id)
            .collect();
        let (members, awaited) = match place(request.replication, candidates, seed) {
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

    /// Whose containers this writer may use. Nodes that failed it are left out if enough others are there: nearly full rather
    /// than gone, though not full; and rather those that another writer has failed at, and that still speak, than the one
    /// that has just failed this one.
    fn takers(&self, request: &GrantLease) -> Vec<Candidate> {
        let min = replicas_min(request.replication);
        let writable = self.candidates();
        let is_shunned = |candidate: &Candidate| request.avoid_datanodes.contains(&candidate.id);
        if writable.len() >= min && !writable.iter().any(is_shunned) {
            return writable;
        }
        let speaking = self.speaking();
        for mut others in [writable.clone(), speaking.clone()] {
            others.retain(|candidate| !is_shunned(candidate) && candidate.available_bytes > 0);
            if others.len() >= min {
                return others;
            }
        }
        if writable.len() >= min { writable } else { speaking }
    }

    /// What the reports of this term ask for in these containers.
    pub(crate) fn attention(
        &self,
        containers: impl IntoIterator<Item = ContainerId>,
    ) -> Result<Vec<Command>, StoreError> {
        let mut close = Vec::new();
        let mut commands = Vec::new();
        for id in containers {
            if commands.len() + close.len() >= ATTENTION_MAX {
                break;
            }
            let Some(row) = container(self.rows, id)? else { continue };
            if row.state == ContainerState::Open && self.must_close(id, &row) {
                close.push(id);
            }
            commands.extend(self.tend(id, &row));
            if row.state == ContainerState::Closing {
                commands.extend(self.sealed(id, &row));
            }
            commands.extend(self.passed(id, &row));
        }
        if !close.is_empty() {
            commands.push(self.close(close));
        }
        Ok(commands)
    }

    /// The command that closes containers.
    pub(crate) fn close(&self, containers: Vec<ContainerId>) -> Command {
        Command::CloseContainers(command::CloseContainers { containers, now_ms: self.now_ms })
    }

    /// Whether a member of an open container is silent or has failed a writer, while others could hold a new one. Its leases
    /// end, lest every gateway finds out for itself; it stays open, so that bodies on their way may yet be degraded, and
    /// is granted again when the member is back. A complaint from before the container was opened is no reason: it was known
    /// then, and there was nobody better (see [`Self::takers`]).
    fn is_let_down(&self, row: &ContainerRow) -> bool {
        let min = replicas_min(row.replication);
        let age_ms = self.now_ms.saturating_sub(row.created_ms);
        let is_silent = |replica: &ReplicaRow| {
            // One that a new leader has not heard yet will speak, or be given up.
            self.fleet.node(replica.datanode).is_some()
                && !self.fleet.is_speaking(self.config, replica.datanode, self.now_ns)
        };
        let has_failed = |replica: &ReplicaRow| {
            let complaint_ms = self.fleet.complaint_ms(self.config, replica.datanode, self.now_ns);
            complaint_ms.is_some_and(|complaint_ms| complaint_ms < age_ms)
        };
        (row.valid().any(is_silent) && self.speaking().len() >= min)
            || (row.valid().any(has_failed) && self.candidates().len() >= min)
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
            if row.is_none_or(|row| row.state != ContainerState::Open || self.is_let_down(&row)) {
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

    /// The datanodes that take writes, with their free bytes.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        self.in_service(|id| self.fleet.is_writable(self.config, id, self.now_ns))
    }

    /// The candidates, and datanodes that speak though a writer has just failed there.
    fn speaking(&self) -> Vec<Candidate> {
        self.in_service(|id| self.fleet.is_speaking(self.config, id, self.now_ns))
    }

    fn in_service(&self, is_wanted: impl Fn(DatanodeId) -> bool) -> Vec<Candidate> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|(id, row)| row.operational == OperationalState::InService && is_wanted(**id))
            .filter_map(|(id, row)| {
                let available_bytes = self.fleet.node(*id)?.available_bytes()?;
                Some(Candidate { id: *id, available_bytes, rack: row.rack.clone() })
            })
            .collect()
    }

    /// Those with room for a block or more, if they are enough for a container. Blocks of one with a full datanode would be
    /// refused one after the other.
    fn roomy(&self, candidates: &[Candidate], replication: Replication) -> Option<Vec<Candidate>> {
        let has_room = |candidate: &&Candidate| candidate.available_bytes >= self.config.room_min();
        let roomy: Vec<Candidate> = candidates.iter().filter(has_room).cloned().collect();
        (roomy.len() >= replicas_min(replication)).then_some(roomy)
    }

    /// Whether the want in which a container was opened may have passed.
    fn is_settled(&self, row: &ContainerRow) -> bool {
        let wait_ms = if self.is_busy() { NARROW_BUSY_MS } else { NARROW_MS };
        self.now_ms >= row.created_ms.saturating_add(wait_ms)
    }

    /// Whether a member is full while others could take the writes. It may have been opened with that member because the
    /// others had failed its writer: it gets its time.
    fn is_cramped(&self, row: &ContainerRow) -> bool {
        let is_full = |datanode| {
            let available = self.fleet.node(datanode).and_then(Node::available_bytes);
            available.is_some_and(|bytes| bytes < self.config.room_min())
        };
        row.valid().any(|replica| is_full(replica.datanode))
            && self.roomy(&self.candidates(), row.replication).is_some()
            && self.is_settled(row)
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

    /// Whether a lease of this OPEN container would be of use now: ids and room left, and no member but these datanodes.
    fn takes_leases(&self, id: ContainerId, row: &ContainerRow, takers: &BTreeSet<DatanodeId>) -> bool {
        row.can_grant(LEASE_IDS)
            && row.valid().all(|replica| takers.contains(&replica.datanode))
            && !self.must_close(id, row)
    }

    fn must_close(&self, id: ContainerId, row: &ContainerRow) -> bool {
        let full_at = self.config.container_bytes_max - self.config.room_min();
        let wanted = replicas_wanted(row.replication);
        let is_narrow = row.valid().count() < wanted;
        let gives_way = is_narrow
            && self.is_settled(row)
            && self.roomy(&self.candidates(), row.replication).is_some_and(|roomy| roomy.len() >= wanted);
        gives_way
            || self.is_cramped(row)
            || !row.can_grant(LEASE_IDS)
            || row.valid().any(|replica| {
                let is_dead =
                    self.fleet.liveness(self.config, replica.datanode, self.now_ns) == Liveness::Dead;
                let node = self.fleet.node(replica.datanode);
                let is_diskless = node.is_some_and(|node| node.available_bytes().is_none());
                let is_leaving = self.operational(replica.datanode) != OperationalState::InService;
                let report = self.fleet.report(replica.datanode, id, replica.generation);
                is_dead
                    || is_diskless
                    || is_leaving
                    || report.is_some_and(|report| {
                        report.is_sealed || report.is_unhealthy || report.written_bytes >= full_at
                    })
            })
    }

    /// Whether many containers were opened lately. What cannot be read says so elsewhere.
    fn is_busy(&self) -> bool {
        let last = load::<u64>(self.rows, META, meta::LAST_CONTAINER).ok().flatten().unwrap_or(0);
        let Some(earlier) = last.checked_sub(BUSY_CONTAINERS).filter(|earlier| *earlier > 0) else {
            return false;
        };
        let row = container(self.rows, ContainerId(earlier)).ok().flatten();
        row.is_some_and(|row| self.now_ms < row.created_ms.saturating_add(BUSY_MS))
    }

    fn fullest(&self, open: &[(ContainerId, ContainerRow)]) -> Option<ContainerId> {
        let written = |id: ContainerId, row: &ContainerRow| {
            let reports =
                row.valid().filter_map(|replica| self.fleet.report(replica.datanode, id, replica.generation));
            reports.map(|report| report.written_bytes).max().unwrap_or(0)
        };
        open.iter().max_by_key(|(id, row)| (written(*id, row), std::cmp::Reverse(*id))).map(|(id, _)| *id)
    }

    fn sealed(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let sealed: Vec<_> = row
            .valid()
            .filter(|replica| {
                let report = self.fleet.report(replica.datanode, id, replica.generation);
                report.is_some_and(|report| report.is_sealed)
            })
            .map(|replica| (replica.datanode, replica.generation))
            .collect();
        row.is_sealed_by(&sealed)
            .then_some(Command::SealContainer(command::SealContainer { container: id, sealed }))
    }

    fn passed(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        if row.purged_deletion == row.last_deletion {
            return None;
        }
        let done: Vec<_> = row
            .replicas
            .iter()
            .filter_map(|replica| {
                let report = self.fleet.report(replica.datanode, id, replica.generation)?;
                Some((replica.datanode, replica.generation, report.deletion_done))
            })
            .collect();
        (row.passed_by_all(&done) > row.purged_deletion)
            .then_some(Command::PassDeletions(command::PassDeletions { container: id, done }))
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
