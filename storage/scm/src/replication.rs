//! The replication manager: keeps every container at its target of healthy replicas, and no more.
//!
//! ```text
//!  rows + this term's reports --standing of each replica--> tally --> below target: copy a sealed replica (BeginCopy)
//!                                                                 --> copy verified or given up (EndCopy, DeleteReplicas)
//!                                                                 --> at target: drop what is not needed (DeleteReplicas)
//! ```
//!
//! Decisions are functions of rows, the fleet's reports, settings, seed and time. What is proposed, apply checks again.
//!
//! Invariants:
//! * A replica is dropped only while the target number of *others* was reported healthy in this leader's term, by nodes
//!   that still speak.
//! * Only sealed replicas reported healthy in this term are copied.
//! * A dead node's sealed replicas stay VALID until others stand in: nodes come back.
//! * A node that has not spoken in this term counts as present until it is dead: a new leader does not start copying.
//!
//! Not here: telling datanodes (`orders`), effects (`state`).

use std::collections::{BTreeMap, BTreeSet};

use consensus::{Rows, StoreError};
use wire::ids::{ContainerId, DatanodeId, Generation};
use wire::operator::ContainerHealth;
use wire::scm::{ContainerState, ReplicaCondition};

use crate::command::{self, Command};
use crate::fleet::{Fleet, Liveness};
use crate::placement::{Candidate, SplitMix, choose, replicas_wanted};
use crate::prepare::Scene;
use crate::schema::{
    ContainerRow, DatanodeRow, OperationalState, ReplicaRow, ReplicaState, container, tended_containers,
};

/// What is known of a replica that is logged as VALID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Reported in this term, whole, by a node that speaks; sealed if its container is CLOSED.
    Healthy,
    /// Nothing bad is known.
    Present,
    /// Damage was reported.
    Damaged,
    /// It has missed deletions that all others have forgotten.
    Behind,
    /// Reported as lost, or missing from a full report, or its node was forgotten.
    Gone,
    /// Its node is dead, for so long.
    Dead {
        /// Since it was given up.
        for_ms: u64,
    },
}

/// The VALID replicas of a container, counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Healthy, on nodes in service.
    pub(crate) healthy: usize,
    /// Healthy or present, on nodes in service.
    pub(crate) counted: usize,
    /// On dead nodes in service that may yet return.
    waiting: usize,
    /// On nodes in or before maintenance, whether they speak or not.
    maintained: usize,
    /// That can probably be read.
    pub(crate) reachable: usize,
    /// Healthy, on any node.
    healthy_anywhere: usize,
    /// COPYING.
    copying: usize,
}

/// A replica to be copied, and where to.
type Copy = ((DatanodeId, Generation), DatanodeId);

/// A container with too few replicas. Ordered by what is repaired first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shortage {
    /// Replicas that can be read.
    pub(crate) reachable: usize,
    /// The container.
    pub(crate) container: ContainerId,
    /// Copies to be made.
    pub(crate) missing: usize,
}

impl<R: Rows> Scene<'_, R> {
    /// What the reports ask for of a container that no longer takes leases, but for new copies.
    pub(crate) fn tend(&self, id: ContainerId, row: &ContainerRow) -> Vec<Command> {
        let mut commands = Vec::new();
        match row.state {
            ContainerState::Open | ContainerState::Closing => commands.extend(self.leave_out_dead(id, row)),
            ContainerState::Closed => {
                commands.extend(self.end_copies(id, row));
                match self.leave_out_broken(id, row) {
                    // What follows from it is decided at the next look.
                    Some(command) => commands.push(command),
                    None => commands.extend(self.drop_excess(id, row)),
                }
            }
            ContainerState::Deleting | ContainerState::Deleted => {}
        }
        commands.extend(self.forget_dropped(id, row));
        commands
    }

    /// How much of it is missing, if a copy can be begun.
    pub(crate) fn shortage(&self, id: ContainerId, row: &ContainerRow) -> Option<Shortage> {
        let is_copyable = row.state == ContainerState::Closed
            || (row.state == ContainerState::Closing && wire::planted::is_on("copy_from_unsealed"));
        if !is_copyable {
            return None;
        }
        let tally = self.tally(id, row);
        // A single readable replica waits for nobody.
        let waiting = if tally.reachable <= 1 { 0 } else { tally.waiting };
        let mut missing = self.required(row, &tally).saturating_sub(tally.counted + tally.copying + waiting);
        if missing == 0 && tally.copying == 0 && self.must_spread(id, row) {
            missing = 1;
        }
        (missing > 0 && tally.reachable > 0).then_some(Shortage {
            reachable: tally.reachable,
            container: id,
            missing,
        })
    }

    /// Begins copies for the containers that are worst off, as far as there is room for more.
    pub(crate) fn begin_copies(
        &self,
        shortages: &BTreeSet<Shortage>,
        seed: u64,
    ) -> Result<Vec<Command>, StoreError> {
        let mut under_way = 0;
        // Copies that a datanode takes part in, so that they spread.
        let mut busy: BTreeMap<DatanodeId, usize> = BTreeMap::new();
        for id in tended_containers(self.rows)? {
            let Some(row) = container(self.rows, id)? else { continue };
            for replica in row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying) {
                under_way += 1;
                *busy.entry(replica.datanode).or_default() += 1;
                if let Some((source, _)) = replica.source {
                    *busy.entry(source).or_default() += 1;
                }
            }
        }
        let mut random = SplitMix(seed);
        let mut commands = Vec::new();
        for shortage in shortages {
            if under_way >= self.config.repair_copies_max {
                break;
            }
            let id = shortage.container;
            let Some(row) = container(self.rows, id)? else { continue };
            // One copy of a container at a time in one round: the next round sees this one.
            let Some((source, target)) = self.choose_copy(id, &row, &busy, random.next())? else { continue };
            for node in [source.0, target] {
                *busy.entry(node).or_default() += 1;
            }
            under_way += 1;
            commands.push(Command::BeginCopy(command::BeginCopy { container: id, source, target }));
        }
        Ok(commands)
    }

    /// What is known of a VALID replica.
    pub(crate) fn standing(&self, id: ContainerId, row: &ContainerRow, replica: &ReplicaRow) -> Standing {
        let node = replica.datanode;
        if self.is_forgotten(node) {
            return Standing::Gone;
        }
        let liveness = self.fleet.liveness(self.config, node, self.now_ns);
        if liveness == Liveness::Dead {
            let silence_ms = self.fleet.silence_ms(node, self.now_ns);
            return Standing::Dead { for_ms: silence_ms.saturating_sub(self.config.dead_silence_ms) };
        }
        if liveness == Liveness::Unknown {
            return Standing::Present;
        }
        let is_closed = row.state == ContainerState::Closed;
        let Some(report) = self.fleet.report(node, id, replica.generation) else {
            // A replica comes into being with the first block written to it.
            return if is_closed { Standing::Gone } else { Standing::Present };
        };
        match report.condition {
            ReplicaCondition::Lost | ReplicaCondition::Dropped | ReplicaCondition::CopyFailed => {
                Standing::Gone
            }
            ReplicaCondition::Copying { .. } => Standing::Present,
            ReplicaCondition::Whole | ReplicaCondition::CopyVerified => {
                let speaks = matches!(liveness, Liveness::Live | Liveness::Silent);
                if report.is_unhealthy {
                    Standing::Damaged
                } else if report.deletion_done < row.purged_deletion {
                    Standing::Behind
                } else if speaks && (report.is_sealed || !is_closed) {
                    Standing::Healthy
                } else {
                    Standing::Present
                }
            }
        }
    }

    /// Whether an operator has struck the node off. A replica outlives that on the books if it was its container's last
    /// VALID one.
    pub(crate) fn is_forgotten(&self, node: DatanodeId) -> bool {
        !self.nodes.contains_key(&node)
    }

    /// Counts the replicas of a container.
    pub(crate) fn tally(&self, id: ContainerId, row: &ContainerRow) -> Tally {
        let copying = row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying).count();
        let mut tally = Tally { copying, ..Tally::default() };
        for replica in row.valid() {
            let standing = self.standing(id, row, replica);
            let operational = self.operational(replica.datanode);
            let is_here = matches!(standing, Standing::Healthy | Standing::Present);
            tally.reachable +=
                usize::from(is_here || matches!(standing, Standing::Damaged | Standing::Behind));
            tally.healthy_anywhere += usize::from(standing == Standing::Healthy);
            match operational {
                OperationalState::InService => {
                    tally.healthy += usize::from(standing == Standing::Healthy);
                    tally.counted += usize::from(is_here);
                    if let Standing::Dead { for_ms } = standing {
                        tally.waiting += usize::from(for_ms < self.config.repair_delay_ms);
                    }
                }
                OperationalState::EnteringMaintenance | OperationalState::Maintenance => {
                    let counts = is_here || matches!(standing, Standing::Dead { .. });
                    tally.maintained += usize::from(counts);
                }
                OperationalState::Decommissioning | OperationalState::Decommissioned => {}
            }
        }
        tally
    }

    /// Replicas wanted on nodes in service: those of nodes in maintenance are waited for, down to a minimum.
    fn required(&self, row: &ContainerRow, tally: &Tally) -> usize {
        let target = replicas_wanted(row.replication);
        target.saturating_sub(tally.maintained).max(self.config.maintenance_replicas.min(target))
    }

    /// Healthy replicas of a container that must stand elsewhere before `datanode` may go.
    pub(crate) fn needs(&self, id: ContainerId, row: &ContainerRow, datanode: DatanodeId) -> bool {
        let Some(here) = row.valid().find(|replica| replica.datanode == datanode) else { return false };
        match row.state {
            ContainerState::Open | ContainerState::Closing => return true,
            ContainerState::Deleting | ContainerState::Deleted => return false,
            ContainerState::Closed => {}
        }
        let target = replicas_wanted(row.replication);
        let operational = self.operational(datanode);
        let wanted = match operational {
            OperationalState::EnteringMaintenance | OperationalState::Maintenance => {
                self.config.maintenance_replicas.min(target)
            }
            _ => target,
        };
        let itself =
            operational == OperationalState::InService && self.standing(id, row, here) == Standing::Healthy;
        self.tally(id, row).healthy - usize::from(itself) < wanted
    }

    /// What is wrong with a container, the worst first.
    pub(crate) fn health(&self, id: ContainerId, row: &ContainerRow) -> Vec<ContainerHealth> {
        if matches!(row.state, ContainerState::Deleting | ContainerState::Deleted) {
            return vec![ContainerHealth::Healthy];
        }
        let tally = self.tally(id, row);
        let target = replicas_wanted(row.replication);
        let mut health = Vec::new();
        if tally.reachable == 0 {
            health.push(ContainerHealth::Missing);
        }
        if tally.counted < self.required(row, &tally) {
            health.push(ContainerHealth::UnderReplicated);
        }
        if tally.counted > target {
            health.push(ContainerHealth::OverReplicated);
        }
        if row.valid().any(|replica| self.standing(id, row, replica) == Standing::Damaged) {
            health.push(ContainerHealth::Unhealthy);
        }
        let all_racks: BTreeSet<&str> =
            self.nodes.values().map(|node| node.rack.as_str()).filter(|rack| !rack.is_empty()).collect();
        if self.sole_rack(row.valid()).is_some() && all_racks.len() > 1 {
            health.push(ContainerHealth::MisPlaced);
        }
        health.sort();
        if health.is_empty() {
            health.push(ContainerHealth::Healthy);
        }
        health
    }

    /// What operators want of a datanode.
    pub(crate) fn operational(&self, id: DatanodeId) -> OperationalState {
        self.nodes.get(&id).map_or(OperationalState::InService, |node| node.operational)
    }

    fn rack(&self, id: DatanodeId) -> Option<&str> {
        self.nodes.get(&id).map(|node| node.rack.as_str()).filter(|rack| !rack.is_empty())
    }

    /// The rack that all of these stand in, if they are several: it would take all of them along.
    fn sole_rack<'b>(&self, replicas: impl Iterator<Item = &'b ReplicaRow>) -> Option<&str> {
        let racks: Vec<Option<&str>> = replicas.map(|replica| self.rack(replica.datanode)).collect();
        let first = racks.first().copied().flatten()?;
        (racks.len() > 1 && racks.iter().all(|rack| *rack == Some(first))).then_some(first)
    }

    /// Whether all healthy replicas of a container that has enough stand in one rack, and another one could take a copy:
    /// then it is made, and one of the first rack is dropped as excess.
    fn must_spread(&self, id: ContainerId, row: &ContainerRow) -> bool {
        let healthy = self.healthy_in_service(id, row);
        if healthy.len() < replicas_wanted(row.replication) {
            return false;
        }
        let Some(sole) = self.sole_rack(healthy.into_iter()) else { return false };
        self.targets(row, 0).iter().any(|target| !target.rack.is_empty() && target.rack != sole)
    }

    fn healthy_in_service<'b>(&self, id: ContainerId, row: &'b ContainerRow) -> Vec<&'b ReplicaRow> {
        let is_healthy = |replica: &&ReplicaRow| {
            self.operational(replica.datanode) == OperationalState::InService
                && self.standing(id, row, replica) == Standing::Healthy
        };
        row.valid().filter(is_healthy).collect()
    }

    /// A container that is written to or being sealed goes on without members that are dead or have lost it, as long as
    /// one is left that speaks.
    fn leave_out_dead(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let is_out = |replica: &&ReplicaRow| {
            matches!(self.standing(id, row, replica), Standing::Dead { .. } | Standing::Gone)
        };
        let speaks = |replica: &ReplicaRow| {
            let liveness = self.fleet.liveness(self.config, replica.datanode, self.now_ns);
            matches!(liveness, Liveness::Live | Liveness::Silent | Liveness::Stale)
        };
        let out: Vec<_> = row.valid().filter(is_out).map(ReplicaRow::life).collect();
        let is_one_left = row.valid().any(|replica| !out.contains(&replica.life()) && speaks(replica))
            || wire::planted::is_on("last_valid_marked_invalid");
        (!out.is_empty() && is_one_left).then(|| self.invalidate(id, out))
    }

    /// A sealed container does without replicas that cannot serve, so that their nodes may take new ones. What is
    /// damaged may still be read in part: it is left out only if its node is the one place for a new replica.
    fn leave_out_broken(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let tally = self.tally(id, row);
        let target = replicas_wanted(row.replication);
        if tally.healthy_anywhere == 0 {
            return None;
        }
        let has_place = !self.targets(row, 0).is_empty();
        let enough_for_damaged = tally.healthy_anywhere >= target.saturating_sub(1).max(1);
        let out: Vec<_> = row
            .valid()
            .filter(|replica| match self.standing(id, row, replica) {
                Standing::Gone | Standing::Behind => true,
                Standing::Damaged => enough_for_damaged && !has_place,
                _ => false,
            })
            .map(ReplicaRow::life)
            .collect();
        (!out.is_empty()).then(|| self.invalidate(id, out))
    }

    fn invalidate(&self, container: ContainerId, replicas: Vec<(DatanodeId, Generation)>) -> Command {
        let now_ms = self.now_ms;
        Command::InvalidateReplicas(command::InvalidateReplicas { container, replicas, now_ms })
    }

    /// Copies that are verified become VALID; copies that failed, hang or have lost their source are given up.
    fn end_copies(&self, id: ContainerId, row: &ContainerRow) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut given_up = Vec::new();
        for replica in row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying) {
            let (node, generation) = replica.life();
            let report = self.fleet.report(node, id, generation);
            let is_verified = report.is_some_and(|report| {
                let is_done = report.condition == ReplicaCondition::CopyVerified
                    || (matches!(report.condition, ReplicaCondition::Copying { .. })
                        && wire::planted::is_on("copy_without_verify"));
                is_done && !report.is_unhealthy
            });
            let has_failed = report.is_some_and(|report| {
                report.is_unhealthy
                    || matches!(
                        report.condition,
                        ReplicaCondition::CopyFailed | ReplicaCondition::Lost | ReplicaCondition::Dropped
                    )
            });
            let is_dead = self.fleet.liveness(self.config, node, self.now_ns) == Liveness::Dead;
            let stalled_ms = self.fleet.copy_stalled_ms(node, (id, generation), self.now_ns);
            let has_source = replica.source.is_some_and(|source| row.is_valid(source));
            if is_verified && has_source {
                commands.push(Command::EndCopy(command::EndCopy {
                    container: id,
                    datanode: node,
                    generation,
                    deletion_done: report.map_or(0, |report| report.deletion_done),
                }));
            } else if has_failed || is_dead || !has_source || stalled_ms >= self.config.copy_silence_ms {
                given_up.push((node, generation));
            }
        }
        if !given_up.is_empty() {
            commands.push(delete(id, given_up));
        }
        commands
    }

    /// Drops what is not needed while the target number of others is healthy.
    fn drop_excess(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let target = replicas_wanted(row.replication);
        let healthy = self.healthy_in_service(id, row);
        if healthy.len() < target {
            return None;
        }
        let sole_rack = self.sole_rack(healthy.iter().copied());
        let is_waited_for = |node| {
            let operational = self.operational(node);
            matches!(operational, OperationalState::Maintenance | OperationalState::EnteringMaintenance)
        };
        // None of these is among the healthy ones.
        let mut dropped: Vec<_> = row
            .replicas
            .iter()
            .filter(|replica| match replica.state {
                ReplicaState::Invalid => true,
                ReplicaState::Valid => match self.standing(id, row, replica) {
                    Standing::Dead { .. } => !is_waited_for(replica.datanode),
                    Standing::Damaged => true,
                    _ => false,
                },
                ReplicaState::Copying | ReplicaState::Deleting => false,
            })
            .map(ReplicaRow::life)
            .collect();
        // Copies under way are not needed any more once the target is met without them, but for one into a second rack.
        let copying = row.replicas.iter().filter(|replica| {
            let spreads = sole_rack.is_some()
                && self.rack(replica.datanode).is_some_and(|rack| Some(rack) != sole_rack);
            replica.state == ReplicaState::Copying && !spreads
        });
        let is_maintained = row.valid().any(|replica| is_waited_for(replica.datanode));
        if !is_maintained {
            dropped.extend(copying.map(ReplicaRow::life));
        }
        dropped.extend(self.excess(healthy, target));
        (!dropped.is_empty()).then(|| delete(id, dropped))
    }

    /// Of more healthy replicas than wanted, those whose racks have others, then those on the fullest nodes.
    fn excess(&self, mut healthy: Vec<&ReplicaRow>, target: usize) -> Vec<(DatanodeId, Generation)> {
        let mut dropped = Vec::new();
        while healthy.len() > target {
            let shares_rack = |at: usize| {
                let rack = self.rack(healthy[at].datanode);
                rack.is_some()
                    && (0..healthy.len())
                        .any(|other| other != at && self.rack(healthy[other].datanode) == rack)
            };
            let free = |at: usize| {
                let node = self.fleet.node(healthy[at].datanode);
                node.and_then(|node| node.available_bytes()).unwrap_or(0)
            };
            let victim = (0..healthy.len())
                .min_by_key(|at| (!shares_rack(*at), free(*at), healthy[*at].datanode))
                .expect("more than the target");
            dropped.push(healthy.remove(victim).life());
        }
        dropped
    }

    /// DELETING replicas of which their nodes have nothing, by their reports; and those of forgotten nodes, which will not
    /// say. Should such a node return, what it reports is none of the container's and goes. A copy that never began counts
    /// as there while the node has what the copy was to replace: nobody else asks for that.
    fn forget_dropped(&self, id: ContainerId, row: &ContainerRow) -> Option<Command> {
        let is_gone = |replica: &&ReplicaRow| {
            replica.state == ReplicaState::Deleting
                && (self.is_forgotten(replica.datanode)
                    || self.fleet.node(replica.datanode).is_some()
                        && !self.fleet.has_up_to(replica.datanode, id, replica.generation))
        };
        let replicas: Vec<_> = row.replicas.iter().filter(is_gone).map(ReplicaRow::life).collect();
        (!replicas.is_empty())
            .then_some(Command::ForgetReplicas(command::ForgetReplicas { container: id, replicas }))
    }

    /// Source and target of one more copy; None if there is no sealed healthy replica or no place.
    fn choose_copy(
        &self,
        id: ContainerId,
        row: &ContainerRow,
        busy: &BTreeMap<DatanodeId, usize>,
        seed: u64,
    ) -> Result<Option<Copy>, StoreError> {
        let planted = wire::planted::is_on("copy_from_unsealed");
        let is_source = |replica: &&ReplicaRow| {
            let report = self.fleet.report(replica.datanode, id, replica.generation);
            self.standing(id, row, replica) == Standing::Healthy
                && report.is_some_and(|report| report.is_sealed || planted)
        };
        let load = |node: DatanodeId| busy.get(&node).copied().unwrap_or(0);
        let source =
            row.valid().filter(is_source).min_by_key(|replica| (load(replica.datanode), replica.datanode));
        let Some(source) = source else { return Ok(None) };
        let report = self.fleet.report(source.datanode, id, source.generation);
        let bytes = report.map_or(0, |report| report.written_bytes);
        let racks: BTreeSet<String> =
            row.valid().filter_map(|replica| self.rack(replica.datanode)).map(str::to_owned).collect();
        let mut targets = self.targets(row, bytes);
        // A further rack first, then an idle node.
        let is_new_rack = |target: &Candidate| !target.rack.is_empty() && !racks.contains(&target.rack);
        if targets.iter().any(is_new_rack) {
            targets.retain(is_new_rack);
        } else if self.healthy_in_service(id, row).len() >= replicas_wanted(row.replication) {
            // It has enough: a further copy was to be for the sake of another rack.
            return Ok(None);
        }
        let least = targets.iter().map(|target| load(target.id)).min().unwrap_or(0);
        let targets: Vec<Candidate> = targets.into_iter().filter(|target| load(target.id) == least).collect();
        let chosen = choose(1, targets, racks, seed);
        Ok(chosen.first().map(|target| (source.life(), *target)))
    }

    /// Nodes that can take a copy of so many bytes: without a replica of the container; or else with an INVALID one,
    /// which the copy replaces.
    fn targets(&self, row: &ContainerRow, bytes: u64) -> Vec<Candidate> {
        let has_room = |candidate: &Candidate| candidate.available_bytes > bytes;
        let with = |is_wanted: &dyn Fn(Option<&ReplicaRow>) -> bool| -> Vec<Candidate> {
            let candidates = self.candidates().into_iter().filter(|candidate| {
                let there = row.replicas.iter().find(|replica| replica.datanode == candidate.id);
                has_room(candidate) && is_wanted(there)
            });
            candidates.collect()
        };
        let fresh = with(&|there| there.is_none());
        if fresh.is_empty() {
            return with(&|there| there.is_some_and(|replica| replica.state == ReplicaState::Invalid));
        }
        fresh
    }
}

fn delete(container: ContainerId, replicas: Vec<(DatanodeId, Generation)>) -> Command {
    Command::DeleteReplicas(command::DeleteReplicas { container, replicas })
}

/// Notes how copies under way move.
pub(crate) fn watch_copies(fleet: &mut Fleet, rows: &impl Rows, now_ns: u64) -> Result<(), StoreError> {
    let mut copies = BTreeSet::new();
    for id in tended_containers(rows)? {
        let Some(row) = container(rows, id)? else { continue };
        for replica in row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying) {
            copies.insert((replica.datanode, (id, replica.generation)));
        }
    }
    for (node, life) in &copies {
        fleet.watch_copy(*node, *life, now_ns);
    }
    fleet.keep_copies(|node, life| copies.contains(&(node, life)));
    Ok(())
}

/// What a pass over all containers has found, for operators and for nodes that want to go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    pub(crate) missing: u64,
    pub(crate) under_replicated: u64,
    pub(crate) over_replicated: u64,
    pub(crate) unhealthy: u64,
    pub(crate) mis_placed: u64,
    pub(crate) deleting: u64,
    /// By node: containers with a replica there, and how many of them need it.
    pub(crate) by_node: BTreeMap<DatanodeId, (u64, u64)>,
    pub(crate) shortages: BTreeSet<Shortage>,
}

impl Findings {
    /// Adds a container.
    pub(crate) fn add<R: Rows>(&mut self, scene: &Scene<'_, R>, id: ContainerId, row: &ContainerRow) {
        for health in scene.health(id, row) {
            match health {
                ContainerHealth::Missing => self.missing += 1,
                ContainerHealth::UnderReplicated => self.under_replicated += 1,
                ContainerHealth::OverReplicated => self.over_replicated += 1,
                ContainerHealth::Unhealthy => self.unhealthy += 1,
                ContainerHealth::MisPlaced => self.mis_placed += 1,
                ContainerHealth::Healthy => {}
            }
        }
        for replica in &row.replicas {
            self.deleting += u64::from(replica.state == ReplicaState::Deleting);
            let counts = self.by_node.entry(replica.datanode).or_default();
            counts.0 += 1;
            counts.1 += u64::from(scene.needs(id, row, replica.datanode));
        }
        self.shortages.extend(scene.shortage(id, row));
    }
}

/// What follows for a node from a whole pass: it may go, or its maintenance is over.
pub(crate) fn next_operational(
    row: &DatanodeRow,
    needing: u64,
    now_ms: u64,
) -> Option<(OperationalState, Option<u64>)> {
    let is_over = row.maintenance_until_ms.is_some_and(|until_ms| now_ms >= until_ms);
    match row.operational {
        OperationalState::Decommissioning if needing == 0 => Some((OperationalState::Decommissioned, None)),
        OperationalState::Maintenance | OperationalState::EnteringMaintenance if is_over => {
            Some((OperationalState::InService, None))
        }
        OperationalState::EnteringMaintenance if needing == 0 => {
            Some((OperationalState::Maintenance, row.maintenance_until_ms))
        }
        _ => None,
    }
}
