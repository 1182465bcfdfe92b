//! What the leader of one term knows and does: the fleet, the look at reports, the regular pass over all containers.
//!
//! With a term come a fresh `Leader` and its worker; at its end the worker is dropped where it stands. That is harmless
//! between two steps: every step is a logged command that apply checks. Every timer starts anew with a term, nodes are
//! unknown until they have registered, and reports of an earlier term count for nothing.
//!
//! Looks at reports read this replica's newest rows without asking a quorum: what follows from them is proposed, and
//! checked again by apply, or ordered, and holds for ever (see `orders`). So heartbeats cost no round trip.
//!
//! Not here: who leads, and when a term begins and ends (consensus); policy (`prepare`, `replication`, `orders`).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use consensus::{Priority, ReadView, Rows, StoreError, Terms};
use parking_lot::Mutex;
use wire::block::TokenKey;
use wire::ids::{ContainerId, DatanodeId};
use wire::scm::DatanodeCommand;
use wire::status::{Failure, Status};

use crate::command::{self, Command};
use crate::config::TOKEN_KEY_PUBLISH_MS;
use crate::error::store_failure;
use crate::fleet::Fleet;
use crate::metrics;
use crate::orders::{Voice, note_orders};
use crate::prepare::{Scene, datanodes};
use crate::replication::{Findings, next_operational, watch_copies};
use crate::schema::{
    CONTAINER, ContainerRow, META, active_containers, containers_with_deletions, load, meta, parse_number,
    scan, tended_containers,
};
use crate::server::Scm;
use crate::state::{Reply, live_keys};

/// The memory of one term.
pub(crate) struct Leader {
    pub(crate) term: u64,
    pub(crate) fleet: Mutex<Fleet>,
    /// One grant at a time: two at once would each open a container where one serves both.
    pub(crate) granting: tokio::sync::Mutex<()>,
    /// One look at the reports at a time: two at once would propose the same.
    attending: tokio::sync::Mutex<()>,
    /// One change of what is wanted of a datanode at a time: a step that follows from one wish must not undo the next.
    pub(crate) wishing: tokio::sync::Mutex<()>,
    /// One key at a time.
    rotating: tokio::sync::Mutex<()>,
    pass: Mutex<Pass>,
}

/// The regular pass over all containers.
#[derive(Default)]
struct Pass {
    /// Where it goes on.
    after: ContainerId,
    findings: Findings,
    /// Of the last whole pass.
    last: Option<Arc<Findings>>,
}

impl Leader {
    pub(crate) fn new(term: u64, now_ns: u64) -> Self {
        Self {
            term,
            fleet: Mutex::new(Fleet::new(now_ns)),
            granting: tokio::sync::Mutex::default(),
            attending: tokio::sync::Mutex::default(),
            wishing: tokio::sync::Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
            pass: Mutex::default(),
        }
    }

    /// What the last whole pass found.
    pub(crate) fn findings(&self) -> Option<Arc<Findings>> {
        self.pass.lock().last.clone()
    }

    /// What was found so far no longer holds: an operator has changed his mind about a node.
    pub(crate) fn begin_pass_anew(&self) {
        *self.pass.lock() = Pass::default();
    }
}

/// Runs the worker as leadership comes and goes, until told to stop or nobody needs this SCM any more.
pub(crate) async fn follow(scm: Weak<Scm>, mut terms: Terms) {
    while let Some(term) = terms.begun().await {
        let Some(leading) = scm.upgrade() else { return };
        let leader = leading.leader_of(term);
        drop(leading);
        tracing::info!(term, "scm leads");
        let goes_on = tokio::select! {
            biased;
            goes_on = terms.ended(term) => goes_on,
            () = work(&scm, &leader) => false,
        };
        if !goes_on {
            return;
        }
        tracing::info!(term, "scm leads no longer");
    }
}

/// The worker: at once, then once a heartbeat interval, until SCM is dropped.
async fn work(scm: &Weak<Scm>, leader: &Leader) {
    loop {
        let Some(strong) = scm.upgrade() else { return };
        let interval_ms = strong.config().heartbeat_interval_ms;
        match strong.tick(leader).await {
            Ok(()) => {}
            // Another leads by now; this worker is about to be dropped.
            Err(failure) if matches!(failure.status, Status::NotLeader | Status::Unknown) => {
                tracing::debug!(%failure, "the container manager's regular work was cut off");
            }
            Err(failure) => {
                tracing::warn!(%failure, "the container manager's regular work failed; it is tried again");
            }
        }
        drop(strong);
        tokio::time::sleep(Duration::from_millis(interval_ms)).await;
    }
}

impl Scm {
    /// One round of regular work.
    async fn tick(&self, leader: &Leader) -> Result<(), Failure> {
        self.rotate_token_keys(leader).await?;
        let view = self.view()?;
        let now_ns = self.clock().steady_ns();
        watch_copies(&mut leader.fleet.lock(), &view, now_ns).map_err(|error| store_failure(&error))?;
        self.attend(leader, None).await?;
        self.pass_on(leader).await?;
        let view = self.view()?;
        let active = active_containers(&view).map_err(|error| store_failure(&error))?;
        metrics::active_containers(active.len());
        let live = self.decide(leader, &view, |scene| Ok(scene.candidates().len()))?;
        metrics::live_datanodes(live);
        Ok(())
    }

    /// Proposes what the reports ask for: in these containers, or wherever something is under way.
    pub(crate) async fn attend(
        &self,
        leader: &Leader,
        containers: Option<BTreeSet<ContainerId>>,
    ) -> Result<(), Failure> {
        let _one_at_a_time = leader.attending.lock().await;
        let view = self.view()?;
        let commands = self.decide(leader, &view, |scene| {
            let containers = match containers {
                Some(containers) => containers,
                None => busy_containers(&view)?,
            };
            scene.attention(containers)
        })?;
        drop(view);
        self.propose_all(commands).await
    }

    /// The next step of the pass over all containers; after the last one, what follows from the whole.
    async fn pass_on(&self, leader: &Leader) -> Result<(), Failure> {
        let no_wish_meanwhile = leader.wishing.lock().await;
        let view = self.view()?;
        let after = leader.pass.lock().after;
        let (commands, is_whole) = self.decide(leader, &view, |scene| {
            let (rows, is_whole) = next_rows(&view, after, self.config().look_step)?;
            let mut commands = Vec::new();
            let mut pass = leader.pass.lock();
            for (id, row) in &rows {
                pass.findings.add(scene, *id, row);
                commands.extend(scene.tend(*id, row));
            }
            pass.after = rows.last().map_or(ContainerId(0), |(id, _)| *id);
            if is_whole {
                *pass = Pass { last: Some(Arc::new(std::mem::take(&mut pass.findings))), ..Pass::default() };
            }
            Ok((commands, is_whole))
        })?;
        drop(view);
        drop(no_wish_meanwhile);
        self.propose_all(commands).await?;
        if is_whole {
            self.conclude_pass(leader).await?;
        }
        Ok(())
    }

    async fn conclude_pass(&self, leader: &Leader) -> Result<(), Failure> {
        // Before the findings: those of a former wish are gone by then.
        let _no_wish_meanwhile = leader.wishing.lock().await;
        let Some(findings) = leader.findings() else { return Ok(()) };
        metrics::repair(&findings);
        let view = self.view()?;
        let seed = wire::random::u64();
        let commands = self.decide(leader, &view, |scene| {
            let mut commands = scene.begin_copies(&findings.shortages, seed)?;
            for (id, row) in &scene.nodes {
                let needing = findings.by_node.get(id).map_or(0, |counts| counts.1);
                if let Some((operational, maintenance_until_ms)) =
                    next_operational(row, needing, scene.now_ms)
                {
                    let command = command::SetDatanode {
                        datanode: *id,
                        operational,
                        maintenance_until_ms,
                        others_in_service: None,
                    };
                    commands.push(Command::SetDatanode(command));
                }
            }
            Ok(commands)
        })?;
        drop(view);
        self.propose_all(commands).await
    }

    async fn propose_all(&self, commands: Vec<Command>) -> Result<(), Failure> {
        for command in commands {
            log_state_change(&command);
            if let Reply::Refused(why) = self.propose(command, Priority::Freeing).await? {
                tracing::debug!(why, "a decision came too late");
            }
        }
        Ok(())
    }

    /// What a datanode is told now.
    pub(crate) fn orders(
        &self,
        leader: &Leader,
        datanode: DatanodeId,
    ) -> Result<Vec<DatanodeCommand>, Failure> {
        let view = self.view()?;
        let keys = self.signing_keys(&view)?;
        let voice = Voice { term: leader.term, key: keys.last() };
        let orders = self.decide(leader, &view, |scene| scene.orders(datanode, &voice))?;
        for (container, generation) in &orders.unheard_of {
            let (container, generation) = (container.0, generation.0);
            tracing::error!(%datanode, container, generation, "a replica of a container that was never opened: left alone");
        }
        note_orders(&mut leader.fleet.lock(), datanode, &orders, self.clock().steady_ns());
        Ok(orders.commands)
    }

    /// Shows all containers after `after`, ascending, until `visit` breaks. In steps: between them the fleet is let go, so
    /// that heartbeats are heard, and others get their turn.
    pub(crate) async fn look_at_each(
        &self,
        leader: &Leader,
        view: &ReadView,
        mut after: ContainerId,
        mut visit: impl FnMut(&Scene<'_, ReadView>, ContainerId, &ContainerRow) -> ControlFlow<()> + Send,
    ) -> Result<(), Failure> {
        loop {
            let (rows, is_whole) =
                next_rows(view, after, self.config().look_step).map_err(|error| store_failure(&error))?;
            let flow = self.decide(leader, view, |scene| {
                Ok(rows.iter().try_for_each(|(id, row)| visit(scene, *id, row)))
            })?;
            match rows.last() {
                Some((last, _)) if !is_whole && flow.is_continue() => after = *last,
                _ => return Ok(()),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Runs a decision over a view and the fleet as it is now.
    pub(crate) fn decide<T>(
        &self,
        leader: &Leader,
        view: &ReadView,
        decide: impl FnOnce(&Scene<'_, ReadView>) -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        let nodes = datanodes(view).map_err(|error| store_failure(&error))?;
        let fleet = leader.fleet.lock();
        let scene = Scene {
            rows: view,
            fleet: &fleet,
            config: self.config(),
            nodes,
            now_ms: self.clock().now_ms(),
            now_ns: self.clock().steady_ns(),
        };
        decide(&scene).map_err(|error| store_failure(&error))
    }

    /// All live keys: what datanodes check with. Made now if there is none yet.
    pub(crate) async fn checking_keys(&self, leader: &Leader) -> Result<Vec<TokenKey>, Failure> {
        for _ in 0..2 {
            let view = self.view()?;
            let keys = live_keys(&view, self.clock().now_ms()).map_err(|error| store_failure(&error))?;
            if !keys.is_empty() {
                return Ok(keys.into_iter().map(|(key, _)| key).collect());
            }
            drop(view);
            self.rotate_token_keys(leader).await?;
        }
        Ok(Vec::new())
    }

    /// The keys OM may sign with, the one to use last: a new key only once every datanode has had time to learn it.
    pub(crate) fn signing_keys(&self, view: &ReadView) -> Result<Vec<TokenKey>, Failure> {
        let now_ms = self.clock().now_ms();
        let mut keys = live_keys(view, now_ms).map_err(|error| store_failure(&error))?;
        let published = |made_ms: u64| made_ms.saturating_add(TOKEN_KEY_PUBLISH_MS) <= now_ms;
        if keys.iter().any(|(_, made_ms)| published(*made_ms)) {
            keys.retain(|(_, made_ms)| published(*made_ms));
        }
        Ok(keys.into_iter().map(|(key, _)| key).collect())
    }

    /// Makes a key if there is none or the newest is a rotation old.
    async fn rotate_token_keys(&self, leader: &Leader) -> Result<(), Failure> {
        let _one_at_a_time = leader.rotating.lock().await;
        let view = self.view()?;
        let now_ms = self.clock().now_ms();
        let keys = live_keys(&view, now_ms).map_err(|error| store_failure(&error))?;
        let due_ms =
            keys.last().map(|(_, made_ms)| made_ms.saturating_add(self.config().token_key_rotation_ms));
        if due_ms.is_some_and(|due_ms| now_ms < due_ms) {
            return Ok(());
        }
        let last: Option<u64> =
            load(&view, META, meta::LAST_TOKEN_KEY).map_err(|error| store_failure(&error))?;
        let command = command::AddTokenKey {
            secret: wire::random::array(),
            expires_ms: now_ms.saturating_add(self.config().token_key_life_ms()),
            after: last.unwrap_or(0) as u32,
            now_ms,
        };
        drop(view);
        self.propose(Command::AddTokenKey(command), Priority::Freeing).await?;
        tracing::info!("made a block token key");
        Ok(())
    }
}

/// Containers where something is under way.
fn busy_containers(rows: &impl Rows) -> Result<BTreeSet<ContainerId>, StoreError> {
    let mut ids: BTreeSet<ContainerId> = active_containers(rows)?.into_iter().collect();
    ids.extend(tended_containers(rows)?);
    ids.extend(containers_with_deletions(rows)?);
    Ok(ids)
}

type Step = (Vec<(ContainerId, ContainerRow)>, bool);

/// The next rows of a pass, `max` at most, and whether they are the last.
fn next_rows(rows: &impl Rows, after: ContainerId, max: usize) -> Result<Step, StoreError> {
    let mut found = Vec::new();
    let from = ContainerId(after.0.saturating_add(1)).to_be_bytes();
    scan(rows, CONTAINER, &from, None, |row_key, row: ContainerRow| {
        found.push((ContainerId(parse_number(CONTAINER, row_key)?), row));
        Ok(if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let is_whole = found.len() < max;
    Ok((found, is_whole))
}

fn log_state_change(command: &Command) {
    match command {
        Command::CloseContainers(close) => {
            tracing::info!(containers = ?close.containers, "closing containers");
        }
        Command::SealContainer(seal) => tracing::info!(container = seal.container.0, "container closed"),
        Command::InvalidateReplicas(out) => {
            tracing::info!(container = out.container.0, replicas = ?out.replicas, "leaving out replicas");
        }
        Command::BeginCopy(copy) => {
            let (source, target) = (copy.source.0, copy.target);
            tracing::info!(container = copy.container.0, %source, %target, "copying a replica");
        }
        Command::EndCopy(copy) => {
            tracing::info!(container = copy.container.0, datanode = %copy.datanode, "a copy is verified");
        }
        Command::DeleteReplicas(drop) => {
            tracing::info!(container = drop.container.0, replicas = ?drop.replicas, "dropping replicas");
        }
        Command::SetDatanode(set) => {
            tracing::info!(datanode = %set.datanode, operational = ?set.operational, "datanode");
        }
        _ => {}
    }
}
