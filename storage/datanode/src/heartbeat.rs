//! What the datanode tells SCM, and what SCM tells it.
//!
//! Registration carries a full report, heartbeats carry what changed since the last one that was answered, and once an
//! hour everything again. Commands name container, generation and SCM's term; what does not fit is refused, so an old
//! leader or a late message can do no harm. A command that cannot be finished yet is finished by the housekeeping.
//!
//! A command for a replica that is not here is answered all the same, so that SCM need not ask for ever: *dropped* if it
//! is to go; an empty replica if it was never created, which only a datanode with all its disks can say, or of containers
//! opened since it registered; else *lost*.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::service::{Datanodes, ScmService, call_scm};
use tokio::sync::mpsc;
use wire::block::{DatanodeAddress, Replication};
use wire::ids::{ContainerId, Generation};
use wire::scm::{
    DatanodeAction, DatanodeCommand, Heartbeat, RegisterDatanode, ReplicaCondition, ReplicaReport,
};
use wire::status::Failure;

use crate::container::{Container, FIRST_GENERATION};
use crate::copy::{self, Order, Taken};
use crate::deletion;
use crate::error::BlockError;
use crate::node::Node;

/// Until SCM has said how often it wants to hear of us.
const INTERVAL_FIRST_MS: u64 = 200;
/// SCM's wishes are kept inside this.
const INTERVAL_MS_RANGE: std::ops::RangeInclusive<u64> = 10..=60_000;
/// Everything is reported again after this (design: hourly).
const FULL_REPORT_MS: u64 = 60 * 60 * 1000;
/// How often a disk is looked at, so that one that has vanished is noticed though nobody uses it.
const PROBE_MS: u64 = 10_000;
/// How often closing containers and deferred punches are looked at.
const HOUSEKEEPING_MS: u64 = 1000;

/// Commands that wait at most. SCM repeats what is left out.
const COMMANDS_MAX: usize = 1024;

/// What SCM commands, on its way to the one who does it: dropping a replica may take longer than SCM waits for a
/// heartbeat.
pub(crate) fn commands() -> (mpsc::Sender<DatanodeCommand>, mpsc::Receiver<DatanodeCommand>) {
    mpsc::channel(COMMANDS_MAX)
}

/// Registers, then beats until the node stops.
pub(crate) async fn report_loop(
    node: Arc<Node>,
    scm: Arc<dyn ScmService>,
    commands: mpsc::Sender<DatanodeCommand>,
) {
    let mut interval_ms = INTERVAL_FIRST_MS;
    let mut is_registered = false;
    let mut is_warned = false;
    let mut memory = Memory::default();
    while !node.is_stopping() {
        let outcome = if is_registered {
            beat(&node, &*scm, &commands, &mut memory).await
        } else {
            register(&node, &*scm, &commands, &mut interval_ms, &mut memory).await
        };
        match outcome {
            Ok(stays) => {
                is_registered = stays;
                is_warned = false;
                if !stays {
                    continue;
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut is_warned, true) {
                    tracing::warn!(%error, "cannot report to SCM: trying again");
                }
            }
        }
        tokio::select! {
            biased;
            () = node.stop.notified() => {}
            () = node.changes.urgent.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(interval_ms)) => {}
        }
    }
}

/// What SCM was told, over heartbeats.
#[derive(Default)]
struct Memory {
    /// When all was told, on the steady clock.
    full_at_ns: u64,
    /// Disks, by their place in the list, whose replicas were told to be lost.
    failed: BTreeSet<usize>,
    /// Reports of this life so far.
    sequence: u64,
}

impl Memory {
    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

async fn register(
    node: &Arc<Node>,
    scm: &dyn ScmService,
    commands: &mpsc::Sender<DatanodeCommand>,
    interval_ms: &mut u64,
    memory: &mut Memory,
) -> Result<bool, Failure> {
    // All is told, so what had changed is told too; what changes from here on is news.
    let changed = node.changes.take();
    let answers = node.answers.lock().clone();
    let mut replicas = node.replica_reports();
    replicas.extend(answers.values().cloned());
    let request = RegisterDatanode {
        cluster: node.config.cluster,
        datanode: DatanodeAddress { id: node.id, address: node.config.address.clone() },
        incarnation: node.incarnation,
        disks: node.disk_reports(),
        replicas,
        node: node.config.node.clone(),
        rack: node.config.rack.clone(),
        now_ms: wire::clock::now_ms(),
        sequence: memory.next_sequence(),
    };
    let answer = call_scm(scm, request).await.inspect_err(|_| node.changes.add_all(&changed))?;
    node.told(&answers);
    *interval_ms = answer.heartbeat_interval_ms.clamp(*INTERVAL_MS_RANGE.start(), *INTERVAL_MS_RANGE.end());
    memory.full_at_ns = wire::clock::steady_ns();
    // Before the keys, with which writes begin.
    node.learn_newest(answer.newest_container);
    *node.keys.write() = Arc::new(answer.token_keys);
    node.is_registered.send_replace(true);
    tracing::info!(datanode = %node.id, "registered with SCM");
    pass_on(node, commands, answer.commands);
    Ok(true)
}

/// Whether the registration still stands.
async fn beat(
    node: &Arc<Node>,
    scm: &dyn ScmService,
    commands: &mpsc::Sender<DatanodeCommand>,
    memory: &mut Memory,
) -> Result<bool, Failure> {
    let now_ns = wire::clock::steady_ns();
    let is_full = now_ns.saturating_sub(memory.full_at_ns) > FULL_REPORT_MS * 1_000_000;
    // Looked at first: a disk that is found to have failed has its replicas in this report.
    let disks = node.disk_reports();
    let failed: BTreeSet<usize> =
        (0..node.disks.len()).filter(|number| node.disks[*number].is_failed()).collect();
    for number in failed.difference(&memory.failed) {
        let containers = node.containers.read();
        let lost = containers.values().filter(|container| Arc::ptr_eq(&container.disk, &node.disks[*number]));
        lost.for_each(|container| node.changes.add(container.id()));
    }
    let changed = node.changes.take();
    let answers = node.answers.lock().clone();
    let mut replicas = if is_full {
        node.replica_reports()
    } else {
        changed.iter().flat_map(|id| node.reports_of(*id)).collect()
    };
    replicas.extend(answers.values().cloned());
    let request = Heartbeat {
        datanode: node.id,
        incarnation: node.incarnation,
        disks,
        is_urgent: !replicas.is_empty(),
        replicas,
        now_ms: wire::clock::now_ms(),
        sequence: memory.next_sequence(),
    };
    let answer = call_scm(scm, request).await.inspect_err(|_| node.changes.add_all(&changed))?;
    node.told(&answers);
    memory.failed = failed;
    if is_full {
        memory.full_at_ns = now_ns;
    }
    if !answer.token_keys.is_empty() {
        *node.keys.write() = Arc::new(answer.token_keys);
    }
    pass_on(node, commands, answer.commands);
    Ok(!answer.register_again)
}

impl Node {
    /// SCM has heard these answers. One that was given again meanwhile is told again.
    fn told(&self, answers: &BTreeMap<ContainerId, ReplicaReport>) {
        self.answers.lock().retain(|id, report| answers.get(id) != Some(report));
    }
}

fn pass_on(node: &Node, queue: &mpsc::Sender<DatanodeCommand>, commands: Vec<DatanodeCommand>) {
    for command in commands.into_iter().filter(|command| node.accepts_term(command)) {
        // A full queue is no loss: SCM says it again.
        let _ = queue.try_send(command);
    }
}

/// Does what SCM commands, one after the other.
pub(crate) async fn command_loop(
    node: Arc<Node>,
    datanodes: Arc<Datanodes>,
    mut queue: mpsc::Receiver<DatanodeCommand>,
) {
    while let Some(command) = queue.recv().await {
        // Again, since it has waited.
        if !node.accepts_term(&command) {
            continue;
        }
        let order = copy_order(&command);
        let house = node.clone();
        let ended = platform::task::spawn_blocking(move || obey_one(&house, command)).await;
        let is_to_copy = ended.unwrap_or_else(|_| {
            tracing::error!("a command of SCM panicked");
            false
        });
        if let Some(order) = order.filter(|_| is_to_copy) {
            let copying = platform::task::spawn(copy::run(node.clone(), datanodes.clone(), order));
            let mut tasks = node.tasks.lock();
            tasks.retain(|task| !task.is_finished());
            tasks.push(copying);
        }
    }
}

fn copy_order(command: &DatanodeCommand) -> Option<Order> {
    let DatanodeAction::CopyReplica { source, source_generation, token, bytes_per_second } = &command.action
    else {
        return None;
    };
    Some(Order {
        container: command.container,
        generation: command.generation,
        source: source.clone(),
        source_generation: *source_generation,
        token: token.clone(),
        bytes_per_second: *bytes_per_second,
    })
}

impl Node {
    /// Whether nobody of a later term has spoken to this life of the datanode.
    fn accepts_term(&self, command: &DatanodeCommand) -> bool {
        let highest = self.term.fetch_max(command.term, Ordering::SeqCst);
        if command.term < highest {
            tracing::warn!(term = command.term, highest, "command of an old SCM leader refused");
        }
        command.term >= highest
    }
}

/// Does one command, or refuses it. Whether a copy is to begin.
fn obey_one(node: &Node, command: DatanodeCommand) -> bool {
    let (id, generation) = (command.container, command.generation);
    let mut is_to_copy = false;
    let done = match &command.action {
        DatanodeAction::Close => standing(node, id, generation)
            .and_then(|found| found.map_or(Ok(()), |found| deletion::close(&found))),
        DatanodeAction::DeleteBlocks { transaction, blocks } => {
            standing(node, id, generation).and_then(|found| {
                found.map_or(Ok(()), |found| deletion::delete_blocks(&found, *transaction, blocks))
            })
        }
        DatanodeAction::DeleteReplica => drop_replica(node, id, generation),
        DatanodeAction::CopyReplica { .. } => {
            is_to_copy = copy_order(&command).is_some_and(|order| take_order(node, &order));
            Ok(())
        }
    };
    if let Err(error) = done {
        tracing::warn!(container = %id, %error, "command of SCM not done: it will come again");
    }
    node.changes.add(id);
    node.changes.urgent.notify_one();
    is_to_copy
}

/// The replica a command is for. None if the command is answered without it.
fn standing(
    node: &Node,
    id: ContainerId,
    generation: Generation,
) -> Result<Option<Arc<Container>>, BlockError> {
    let _creating = node.creating.lock();
    let found = node.containers.read().get(&id).cloned();
    if let Some(found) = found {
        let is_same =
            found.header.generation == generation || wire::planted::is_on("deletion_to_other_generation");
        if !is_same {
            return Err(BlockError::Refused(id, "its replica here is of another generation"));
        }
        return Ok(Some(found));
    }
    if node.is_buried(id, generation) {
        node.answer(id, generation, ReplicaCondition::Dropped);
    } else if node.lost.lock().contains_key(&id) || node.copies.report(id).is_some() {
        // Its report says so.
    } else if generation == FIRST_GENERATION && node.never_had(id) {
        // SCM has logged it as a member, and no writer has ever come here: as a replica it is empty, and no block is
        // acknowledged that it lacks. A copy (a later generation) must have been here before it counted.
        let replication = Replication::Three;
        return node.create(id, generation, replication).map(Some);
    } else {
        node.answer(id, generation, ReplicaCondition::Lost);
    }
    Ok(None)
}

/// Drops what is here up to `generation`, and says so when nothing is left of it.
fn drop_replica(node: &Node, id: ContainerId, generation: Generation) -> Result<(), BlockError> {
    let _creating = node.creating.lock();
    let found = node.containers.read().get(&id).cloned();
    if let Some(found) = found {
        if found.header.generation > generation {
            return Err(BlockError::Refused(id, "its replica here is of a later generation"));
        }
        node.drop_replica(&found)?;
    }
    if !node.copies.give_up(id, generation) {
        // It ends in its own time; SCM asks again.
        return Ok(());
    }
    let is_lost = node.lost.lock().get(&id).is_some_and(|lost| lost.generation <= generation);
    if is_lost {
        node.drop_lost(id, generation)?;
    }
    node.bury(id, generation);
    node.answer(id, generation, ReplicaCondition::Dropped);
    Ok(())
}

/// Whether a copy is to begin. If it is done or cannot be, SCM hears so.
fn take_order(node: &Node, order: &Order) -> bool {
    let _creating = node.creating.lock();
    let (id, generation) = (order.container, order.generation);
    let here = node.containers.read().get(&id).map(|found| (found.header.generation, found.header.is_copy));
    match here {
        // Done: its report says so.
        Some((found, true)) if found == generation => false,
        Some((found, _)) if found >= generation => {
            tracing::warn!(container = %id, "a copy is ordered of a replica that is here");
            false
        }
        _ if node.is_buried(id, generation) => {
            node.answer(id, generation, ReplicaCondition::Dropped);
            false
        }
        // This very copy, perhaps, named and not entered: its report says so, and it must not be there twice.
        _ if node.lost.lock().get(&id).is_some_and(|lost| lost.generation >= generation) => false,
        _ => node.copies.take(order, wire::clock::steady_ns()) == Taken::Begin,
    }
}

/// Seals what is closing and punches what its readers have left.
pub(crate) async fn housekeeping_loop(node: Arc<Node>) {
    let mut probed_at_ns = wire::clock::steady_ns();
    while !node.is_stopping() {
        let house = node.clone();
        let now_ns = wire::clock::steady_ns();
        let is_probe_due = now_ns.saturating_sub(probed_at_ns) >= PROBE_MS * 1_000_000;
        if is_probe_due {
            probed_at_ns = now_ns;
        }
        let kept = platform::task::spawn_blocking(move || keep_house(&house, is_probe_due)).await;
        if kept.is_err() {
            tracing::error!("the housekeeping of the datanode panicked");
        }
        tokio::select! {
            biased;
            () = node.stop.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(HOUSEKEEPING_MS)) => {}
        }
    }
}

/// One round of the housekeeping.
fn keep_house(node: &Node, is_probe_due: bool) {
    for disk in &node.disks {
        if is_probe_due {
            disk.probe();
        }
        disk.restore_ballast();
    }
    let containers: Vec<Arc<Container>> = node.containers.read().values().cloned().collect();
    for container in containers {
        let (is_closing, has_punches) = {
            let state = container.state.lock();
            (state.is_closing && !state.is_sealed && !state.is_dropped, !state.to_punch.is_empty())
        };
        if container.disk.is_failed() {
            continue;
        }
        if is_closing {
            log(container.id(), deletion::close(&container));
        }
        if has_punches {
            log(container.id(), deletion::punch_deleted(&container));
        }
    }
}

fn log(container: ContainerId, done: Result<(), BlockError>) {
    if let Err(error) = done {
        tracing::warn!(%container, %error, "housekeeping of a container not done: trying again");
    }
}
