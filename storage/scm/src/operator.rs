//! Operators' calls: what there is, what is wrong with it, and what is to become of it.
//!
//! Invariants:
//! * What would take redundancy away is refused and says what would be lost, unless forced.
//! * Forgetting a datanode never strikes a container's last VALID replica off, forced or not.
//! * A datanode that speaks is not forgotten, forced or not: it would register again at once, and be in service.
//! * What was granted because so many others are in service is not done once fewer are.
//!
//! Not here: carrying it out (`replication`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use consensus::{Priority, ReadView, Rows, StoreError};
use wire::block::{DatanodeAddress, Replication};
use wire::ids::{ContainerId, DatanodeId};
use wire::operator::{
    CloseContainer, ContainerDetails, CopyInfo, DatanodeInfo, DatanodeWish, GetContainers, ListContainers,
    LivenessInfo, OperationalInfo, PAGE_MAX, PipelineInfo, RaiseReplication, Raised, RepairInfo, ReplicaInfo,
    ScmOverview, SetDatanode,
};
use wire::scm::{ContainerState, ReplicaCondition};
use wire::status::{Failure, Status};

use crate::command::{self, Command};
use crate::error::store_failure;
use crate::fleet::Liveness;
use crate::leader::Leader;
use crate::placement::{awaited, replicas_wanted};
use crate::prepare::Scene;
use crate::replication::{Findings, Standing};
use crate::schema::{
    CONTAINER, ContainerRow, DELETION, LEASE, OperationalState, PIPELINE, PipelineRow, ReplicaState,
    active_containers, container, load, parse_number, scan, tended_containers,
};
use crate::server::Scm;
use crate::state::{Reply, replicas_min};
use crate::status::count;

/// Containers named in a refusal at most.
const NAMED_MAX: usize = 5;
/// Containers of one command at most: each is a few rows.
const COMMAND_CONTAINERS_MAX: usize = 100;
/// A wish is looked at again so often if others' wishes come in between.
const WISH_ATTEMPTS: usize = 8;
/// A datanode that is to be forgotten may have been switched off a moment ago: it is listened for this long. More than
/// `write_silence_ms` takes by default, less than callers wait for an answer.
const LISTEN_MS: u64 = 6000;
/// How often, meanwhile.
const LISTEN_STEP_MS: u64 = 200;
/// Looks again for other replicas before containers are called lost, and how long it waits for each.
const HEARING_LOOKS: u32 = 6;
const HEARING_PAUSE: Duration = Duration::from_secs(1);

impl Scm {
    pub(crate) async fn list_datanodes(&self, leader: &Leader) -> Result<Vec<DatanodeInfo>, Failure> {
        let view = self.read().await?;
        let findings = self.look_at_all(leader, &view).await?;
        self.decide(leader, &view, |scene| Ok(scene.datanode_infos(&findings)))
    }

    pub(crate) async fn set_datanode(&self, leader: &Leader, request: SetDatanode) -> Result<(), Failure> {
        let id = request.datanode;
        let now_ms = self.clock().now_ms();
        let (operational, maintenance_until_ms) = match request.wish {
            DatanodeWish::Decommission => (OperationalState::Decommissioning, None),
            DatanodeWish::Maintenance { until_ms: Some(until_ms) } if until_ms <= now_ms => {
                return Err(Failure::new(Status::Invalid, "the maintenance would end before it begins"));
            }
            DatanodeWish::Maintenance { until_ms } if request.force => {
                (OperationalState::Maintenance, until_ms)
            }
            DatanodeWish::Maintenance { until_ms } => (OperationalState::EnteringMaintenance, until_ms),
            DatanodeWish::Recommission => (OperationalState::InService, None),
            DatanodeWish::Forget => {
                self.check_wish(leader, &request).await?;
                self.listen_for(leader, id).await?;
                // It may have been the last to hold something since.
                self.check_wish(leader, &request).await?;
                return self.forget_datanode(leader, id).await;
            }
        };
        {
            let _no_step_meanwhile = leader.wishing.lock().await;
            let proposed = self.propose_wish(leader, &request, operational, maintenance_until_ms).await;
            // A pass that was under way has counted by the former wish. Also if it is not known whether this one was logged.
            leader.begin_pass_anew();
            proposed?;
        }
        tracing::info!(datanode = %id, ?operational, is_forced = request.force, "an operator's wish for a datanode");
        self.attend(leader, None).await
    }

    /// Refuses a wish that would take redundancy away, unless forced. Answers how many other datanodes are in service.
    async fn check_wish(&self, leader: &Leader, request: &SetDatanode) -> Result<u64, Failure> {
        let id = request.datanode;
        let view = self.read().await?;
        let (is_known, others) = self.decide(leader, &view, |scene| {
            Ok((scene.nodes.contains_key(&id), scene.others_in_service(id)))
        })?;
        if !is_known {
            return Err(Failure::new(Status::NotFound, format!("datanode {id} is not known")));
        }
        let refusal =
            if request.force { None } else { self.refusal(leader, &view, id, request.wish).await? };
        match refusal {
            Some(refusal) => Err(Failure::new(Status::Invalid, refusal)),
            None => Ok(others),
        }
    }

    /// Proposes a wish as it was checked: looked at again if other datanodes were taken out of service in between.
    async fn propose_wish(
        &self,
        leader: &Leader,
        request: &SetDatanode,
        operational: OperationalState,
        maintenance_until_ms: Option<u64>,
    ) -> Result<(), Failure> {
        let takes_out = operational != OperationalState::InService && !request.force;
        for _ in 0..WISH_ATTEMPTS {
            let others = self.check_wish(leader, request).await?;
            let command = command::SetDatanode {
                datanode: request.datanode,
                operational,
                maintenance_until_ms,
                others_in_service: takes_out.then_some(others),
            };
            let reply = self.propose(Command::SetDatanode(command), Priority::Freeing).await?;
            if !matches!(reply, Reply::Refused(_)) {
                return Ok(());
            }
        }
        Err(Failure::new(
            Status::Retry,
            "other datanodes are taken out of service at the same time: try again",
        ))
    }

    /// Waits until a datanode has been silent for as long as one that was switched off.
    async fn listen_for(&self, leader: &Leader, id: DatanodeId) -> Result<(), Failure> {
        let mut silence_before_ms = 0;
        for _ in 0..LISTEN_MS / LISTEN_STEP_MS {
            let silence_ms = leader.fleet.lock().silence_ms(id, self.clock().steady_ns());
            if silence_ms >= self.config().write_silence_ms {
                return Ok(());
            }
            if silence_ms < silence_before_ms {
                // It has just spoken.
                break;
            }
            silence_before_ms = silence_ms;
            tokio::time::sleep(Duration::from_millis(LISTEN_STEP_MS)).await;
        }
        let message = format!(
            "datanode {id} still speaks and would register again at once: switch it off first, then forget it"
        );
        Err(Failure::new(Status::Invalid, message))
    }

    async fn forget_datanode(&self, leader: &Leader, id: DatanodeId) -> Result<(), Failure> {
        leader.fleet.lock().remove(id);
        let view = self.read().await?;
        let mut containers = Vec::new();
        each_container(&*view, ContainerId(0), |container, row| {
            if row.replicas.iter().any(|replica| replica.datanode == id) {
                containers.push(container);
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| store_failure(&error))?;
        drop(view);
        for part in containers.chunks(COMMAND_CONTAINERS_MAX) {
            let command = command::ForgetDatanode { datanode: id, containers: part.to_vec(), is_last: false };
            self.propose_checked(Command::ForgetDatanode(command)).await?;
        }
        let command = command::ForgetDatanode { datanode: id, containers: Vec::new(), is_last: true };
        self.propose_checked(Command::ForgetDatanode(command)).await?;
        // It may have spoken in between.
        leader.fleet.lock().remove(id);
        leader.begin_pass_anew();
        tracing::info!(datanode = %id, containers = containers.len(), "datanode forgotten");
        Ok(())
    }

    pub(crate) async fn list_containers(
        &self,
        leader: &Leader,
        request: ListContainers,
    ) -> Result<Vec<ContainerDetails>, Failure> {
        let view = self.read().await?;
        let max = request.max.clamp(1, PAGE_MAX) as usize;
        let mut found = Vec::new();
        self.look_at_each(leader, &view, request.after, |scene, id, row| {
            let is_there = |datanode| row.replicas.iter().any(|replica| replica.datanode == datanode);
            let fits = request.state.is_none_or(|state| row.state == state)
                && request.datanode.is_none_or(is_there)
                && request.health.is_none_or(|health| scene.health(id, row).contains(&health));
            if fits {
                found.push(scene.details(id, row));
            }
            if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .await?;
        Ok(found)
    }

    pub(crate) async fn get_containers(
        &self,
        leader: &Leader,
        request: GetContainers,
    ) -> Result<Vec<ContainerDetails>, Failure> {
        if request.containers.len() > PAGE_MAX as usize {
            return Err(Failure::new(Status::Invalid, format!("at most {PAGE_MAX} containers at once")));
        }
        let view = self.read().await?;
        self.decide(leader, &view, |scene| {
            let mut found = Vec::new();
            for id in request.containers {
                found.extend(container(&*view, id)?.map(|row| scene.details(id, &row)));
            }
            Ok(found)
        })
    }

    pub(crate) async fn close_container(
        &self,
        leader: &Leader,
        request: CloseContainer,
    ) -> Result<(), Failure> {
        let id = request.container;
        let view = self.read().await?;
        if container(&*view, id).map_err(|error| store_failure(&error))?.is_none() {
            return Err(Failure::new(Status::NotFound, format!("container {id} was never opened")));
        }
        let close = self.decide(leader, &view, |scene| Ok(scene.close(vec![id])))?;
        drop(view);
        self.propose_checked(close).await
    }

    pub(crate) async fn raise_replication(&self, request: RaiseReplication) -> Result<Raised, Failure> {
        let view = self.read().await?;
        let max = request.max.clamp(1, PAGE_MAX) as usize;
        let mut containers = Vec::new();
        let mut next = None;
        each_container(&*view, request.after, |id, row| {
            let is_gone = matches!(row.state, ContainerState::Deleting | ContainerState::Deleted);
            if row.replication != Replication::One || is_gone {
                return ControlFlow::Continue(());
            }
            if containers.len() == max {
                next = containers.last().copied();
                return ControlFlow::Break(());
            }
            containers.push(id);
            ControlFlow::Continue(())
        })
        .map_err(|error| store_failure(&error))?;
        drop(view);
        for part in containers.chunks(COMMAND_CONTAINERS_MAX) {
            let command =
                command::RaiseContainers { containers: part.to_vec(), now_ms: self.clock().now_ms() };
            self.propose_checked(Command::RaiseContainers(command)).await?;
        }
        Ok(Raised { containers: containers.len() as u64, next })
    }

    pub(crate) async fn list_pipelines(&self) -> Result<Vec<PipelineInfo>, Failure> {
        let view = self.read().await?;
        pipelines(&*view).map_err(|error| store_failure(&error))
    }

    pub(crate) async fn get_repair(&self, leader: &Leader) -> Result<RepairInfo, Failure> {
        let view = self.read().await?;
        let findings = self.look_at_all(leader, &view).await?;
        let copies = self.decide(leader, &view, |scene| scene.copies())?;
        Ok(RepairInfo {
            missing: findings.missing,
            under_replicated: findings.under_replicated,
            over_replicated: findings.over_replicated,
            unhealthy: findings.unhealthy,
            deleting: findings.deleting,
            copies,
            bytes_per_second: self.config().repair_bandwidth,
            mis_placed: findings.mis_placed,
        })
    }

    pub(crate) async fn get_overview(&self, leader: &Leader) -> Result<ScmOverview, Failure> {
        let view = self.read().await?;
        let live = self.decide(leader, &view, |scene| Ok(scene.candidates().len()))?;
        let counted = |table| count(&*view, table).map_err(|error| store_failure(&error));
        let mut overview = ScmOverview {
            open: 0,
            closing: 0,
            closed: 0,
            deleting: 0,
            leases: counted(LEASE)?,
            deletions_pending: counted(DELETION)?,
            awaiting: Vec::new(),
        };
        for replication in [Replication::One, Replication::Three] {
            if live < replicas_min(replication) {
                overview.awaiting.push(awaited(replication, live));
            }
        }
        self.look_at_each(leader, &view, ContainerId(0), |_, _, row| {
            match row.state {
                ContainerState::Open => overview.open += 1,
                ContainerState::Closing => overview.closing += 1,
                ContainerState::Closed => overview.closed += 1,
                ContainerState::Deleting => overview.deleting += 1,
                ContainerState::Deleted => {}
            }
            ControlFlow::Continue(())
        })
        .await?;
        Ok(overview)
    }

    /// A whole pass now: operators want the present, not the last minute.
    async fn look_at_all(&self, leader: &Leader, view: &ReadView) -> Result<Findings, Failure> {
        let mut findings = Findings::default();
        self.look_at_each(leader, view, ContainerId(0), |scene, id, row| {
            findings.add(scene, id, row);
            ControlFlow::Continue(())
        })
        .await?;
        Ok(findings)
    }

    /// Why a wish should not be granted: what would be lost.
    async fn refusal(
        &self,
        leader: &Leader,
        view: &ReadView,
        id: DatanodeId,
        wish: DatanodeWish,
    ) -> Result<Option<String>, Failure> {
        let at_most = match wish {
            DatanodeWish::Recommission => return Ok(None),
            DatanodeWish::Forget => return self.refuse_to_forget(leader, view, id).await,
            DatanodeWish::Decommission => usize::MAX,
            DatanodeWish::Maintenance { .. } => self.config().maintenance_replicas,
        };
        // Enough nodes must be left to hold what is here.
        let others = self.decide(leader, view, |scene| Ok(scene.alive_besides(id)))?;
        let mut short = Vec::new();
        self.look_at_each(leader, view, ContainerId(0), |_, container, row| {
            let wanted = replicas_wanted(row.replication).min(at_most);
            if !is_going(row) && others < wanted && row.valid().any(|replica| replica.datanode == id) {
                short.push(container);
            }
            ControlFlow::Continue(())
        })
        .await?;
        Ok((!short.is_empty()).then(|| {
            format!(
                "{} would stay below their redundancy: {others} other datanodes are in service. Add datanodes, or force it",
                named(&short)
            )
        }))
    }

    async fn refuse_to_forget(
        &self,
        leader: &Leader,
        view: &ReadView,
        id: DatanodeId,
    ) -> Result<Option<String>, Failure> {
        let is_gone = self.decide(leader, view, |scene| {
            Ok(scene.fleet.liveness(scene.config, id, scene.now_ns) == Liveness::Dead
                || scene.operational(id) == OperationalState::Decommissioned)
        })?;
        if !is_gone {
            return Ok(Some(format!(
                "datanode {id} is neither dead nor decommissioned: decommission it first, or stop it and wait"
            )));
        }
        // A leader that has just come to office has not heard of every replica yet.
        let mut lost = self.only_on(leader, view, id).await?;
        for _ in 0..HEARING_LOOKS {
            if lost.is_empty() {
                break;
            }
            tokio::time::sleep(HEARING_PAUSE).await;
            lost = self.only_on(leader, view, id).await?;
        }
        Ok((!lost.is_empty()).then(|| {
            format!(
                "{} have no other replica that can be read: their keys would be lost. Force it if so be it",
                named(&lost)
            )
        }))
    }

    /// Containers of which no other datanode has a replica that can be read.
    async fn only_on(
        &self,
        leader: &Leader,
        view: &ReadView,
        id: DatanodeId,
    ) -> Result<Vec<ContainerId>, Failure> {
        let mut lost = Vec::new();
        self.look_at_each(leader, view, ContainerId(0), |scene, container, row| {
            let is_here = row.valid().any(|replica| replica.datanode == id);
            let has_other = row.valid().any(|replica| {
                replica.datanode != id
                    && matches!(
                        scene.standing(container, row, replica),
                        Standing::Healthy | Standing::Present
                    )
            });
            if is_here && !has_other && !is_going(row) {
                lost.push(container);
            }
            ControlFlow::Continue(())
        })
        .await?;
        Ok(lost)
    }

    async fn propose_checked(&self, command: Command) -> Result<(), Failure> {
        match self.propose(command, Priority::Freeing).await? {
            Reply::Refused(why) => Err(Failure::new(Status::Invalid, why)),
            _ => Ok(()),
        }
    }
}

impl<R: Rows> Scene<'_, R> {
    fn datanode_infos(&self, findings: &Findings) -> Vec<DatanodeInfo> {
        let infos = self.nodes.iter().map(|(id, row)| {
            let (containers, containers_needing_it) = findings.by_node.get(id).copied().unwrap_or_default();
            let node = self.fleet.node(*id);
            DatanodeInfo {
                datanode: DatanodeAddress { id: *id, address: row.address.clone() },
                node: row.node.clone(),
                rack: row.rack.clone(),
                liveness: self.liveness_info(*id),
                silent_ms: node.map(|_| self.fleet.silence_ms(*id, self.now_ns)),
                operational: operational_info(row.operational),
                maintenance_until_ms: row.maintenance_until_ms,
                disks: node.map(|node| node.disks.clone()).unwrap_or_default(),
                containers,
                containers_needing_it,
            }
        });
        infos.collect()
    }

    fn liveness_info(&self, id: DatanodeId) -> LivenessInfo {
        match self.fleet.liveness(self.config, id, self.now_ns) {
            Liveness::Live => LivenessInfo::Live,
            Liveness::Silent => LivenessInfo::Silent,
            Liveness::Stale => LivenessInfo::Stale,
            Liveness::Dead => LivenessInfo::Dead,
            Liveness::Unknown => LivenessInfo::Unknown,
        }
    }

    fn details(&self, id: ContainerId, row: &ContainerRow) -> ContainerDetails {
        let replicas = row.replicas.iter().map(|replica| {
            let report = self.fleet.report(replica.datanode, id, replica.generation);
            let is_damaged = report.is_some_and(|report| report.is_unhealthy);
            let is_gone =
                replica.state == ReplicaState::Valid && self.standing(id, row, replica) == Standing::Gone;
            ReplicaInfo {
                datanode: replica.datanode,
                node: self.nodes.get(&replica.datanode).map(|node| node.node.clone()).unwrap_or_default(),
                disk: report.map(|report| report.disk.clone()).unwrap_or_default(),
                generation: replica.generation,
                state: match replica.state {
                    ReplicaState::Valid => "valid",
                    ReplicaState::Copying => "copying",
                    ReplicaState::Invalid => "invalid",
                    ReplicaState::Deleting => "deleting",
                }
                .to_owned(),
                liveness: self.liveness_info(replica.datanode),
                is_reported: report.is_some(),
                is_sealed: report.is_some_and(|report| report.is_sealed),
                is_unhealthy: is_damaged || is_gone,
                used_bytes: report.map_or(0, |report| report.used_bytes),
                block_count: report.map_or(0, |report| report.block_count),
                deletion_done: report.map_or(0, |report| report.deletion_done),
            }
        });
        ContainerDetails {
            container: id,
            state: row.state,
            replication: row.replication,
            pipeline: row.pipeline,
            created_ms: row.created_ms,
            health: self.health(id, row),
            replicas: replicas.collect(),
        }
    }

    fn copies(&self) -> Result<Vec<CopyInfo>, StoreError> {
        let mut copies = Vec::new();
        for id in tended_containers(self.rows)? {
            let Some(row) = container(self.rows, id)? else { continue };
            for replica in row.replicas.iter().filter(|replica| replica.state == ReplicaState::Copying) {
                let Some((source, generation)) = replica.source else { continue };
                let total_bytes =
                    self.fleet.report(source, id, generation).map_or(0, |report| report.written_bytes);
                let report = self.fleet.report(replica.datanode, id, replica.generation);
                let received_bytes = match report.map(|report| report.condition) {
                    Some(ReplicaCondition::Copying { received_bytes }) => received_bytes,
                    Some(ReplicaCondition::CopyVerified) => total_bytes,
                    _ => 0,
                };
                let target = replica.datanode;
                copies.push(CopyInfo { container: id, source, target, received_bytes, total_bytes });
            }
        }
        Ok(copies)
    }

    fn in_service_besides(&self, id: DatanodeId) -> impl Iterator<Item = DatanodeId> {
        let in_service = self.nodes.iter().filter(|(_, row)| row.operational == OperationalState::InService);
        in_service.map(|(other, _)| *other).filter(move |other| *other != id)
    }

    /// As apply counts them: dead or not.
    fn others_in_service(&self, id: DatanodeId) -> u64 {
        self.in_service_besides(id).count() as u64
    }

    /// As far as is known.
    fn alive_besides(&self, id: DatanodeId) -> usize {
        let is_alive =
            |other: &DatanodeId| self.fleet.liveness(self.config, *other, self.now_ns) != Liveness::Dead;
        self.in_service_besides(id).filter(is_alive).count()
    }
}

/// Whether nobody needs it any more.
fn is_going(row: &ContainerRow) -> bool {
    matches!(row.state, ContainerState::Deleting | ContainerState::Deleted)
}

/// `3 containers (1, 2, 7)`.
fn named(containers: &[ContainerId]) -> String {
    let mut ids: Vec<String> = containers.iter().take(NAMED_MAX).map(ContainerId::to_string).collect();
    if containers.len() > NAMED_MAX {
        ids.push("...".to_owned());
    }
    let noun = if containers.len() == 1 { "container" } else { "containers" };
    format!("{} {noun} ({})", containers.len(), ids.join(", "))
}

fn operational_info(operational: OperationalState) -> OperationalInfo {
    match operational {
        OperationalState::InService => OperationalInfo::InService,
        OperationalState::Decommissioning => OperationalInfo::Decommissioning,
        OperationalState::Decommissioned => OperationalInfo::Decommissioned,
        OperationalState::EnteringMaintenance => OperationalInfo::EnteringMaintenance,
        OperationalState::Maintenance => OperationalInfo::Maintenance,
    }
}

fn pipelines(rows: &impl Rows) -> Result<Vec<PipelineInfo>, StoreError> {
    let mut containers: BTreeMap<_, Vec<ContainerId>> = BTreeMap::new();
    for id in active_containers(rows)? {
        if let Some(row) = container(rows, id)?.filter(|row| row.state == ContainerState::Open) {
            containers.entry(row.pipeline).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    for (id, containers) in containers {
        if let Some(row) = load::<PipelineRow>(rows, PIPELINE, &id.to_be_bytes())? {
            found.push(PipelineInfo { id, replication: row.replication, members: row.members, containers });
        }
    }
    Ok(found)
}

/// Shows all containers after `after`, ascending, until `visit` breaks.
fn each_container(
    rows: &impl Rows,
    after: ContainerId,
    mut visit: impl FnMut(ContainerId, &ContainerRow) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let from = ContainerId(after.0.saturating_add(1)).to_be_bytes();
    scan(rows, CONTAINER, &from, None, |row_key, row: ContainerRow| {
        Ok(visit(ContainerId(parse_number(CONTAINER, row_key)?), &row))
    })
}
