//! What the datanode tells SCM, and what SCM tells it.
//!
//! Registration carries a full report, heartbeats carry what changed since the last one that was answered, and once an
//! hour everything again. Commands name container, generation and SCM's term; what does not fit is refused, so an old
//! leader or a late message can do no harm. A command that cannot be finished yet is finished by the housekeeping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use client::service::{Datanodes, ScmService, call_scm};
use wire::block::DatanodeAddress;
use wire::ids::ContainerId;
use wire::scm::{DatanodeAction, DatanodeCommand, Heartbeat, RegisterDatanode};
use wire::status::Failure;

use crate::container::Container;
use crate::deletion;
use crate::error::BlockError;
use crate::node::Node;

/// Until SCM has said how often it wants to hear of us.
const INTERVAL_FIRST_MS: u64 = 200;
/// SCM's wishes are kept inside this.
const INTERVAL_MS_RANGE: std::ops::RangeInclusive<u64> = 10..=60_000;
/// Everything is reported again after this (design: hourly).
const FULL_REPORT_MS: u64 = 60 * 60 * 1000;
/// How often closing containers and deferred punches are looked at.
const HOUSEKEEPING_MS: u64 = 1000;

/// Registers, then beats until the node stops.
pub(crate) async fn report_loop(node: Arc<Node>, scm: Arc<dyn ScmService>, _datanodes: Arc<Datanodes>) {
    let mut interval_ms = INTERVAL_FIRST_MS;
    let mut is_registered = false;
    let mut is_warned = false;
    let mut full_at_ns = 0;
    while !node.is_stopping() {
        let outcome = if is_registered {
            beat(&node, &*scm, &mut full_at_ns).await
        } else {
            register(&node, &*scm, &mut interval_ms, &mut full_at_ns).await
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

async fn register(
    node: &Arc<Node>,
    scm: &dyn ScmService,
    interval_ms: &mut u64,
    full_at_ns: &mut u64,
) -> Result<bool, Failure> {
    // All is told, so what had changed is told too; what changes from here on is news.
    let changed = node.changes.take();
    let request = RegisterDatanode {
        cluster: node.config.cluster,
        datanode: DatanodeAddress { id: node.id, address: node.config.address.clone() },
        incarnation: node.incarnation,
        disks: node.disk_reports(),
        replicas: node.replica_reports(),
        node: node.config.node.clone(),
        rack: node.config.rack.clone(),
    };
    let answer = call_scm(scm, request).await.inspect_err(|_| {
        for container in changed {
            node.changes.add(container);
        }
    })?;
    *interval_ms = answer.heartbeat_interval_ms.clamp(*INTERVAL_MS_RANGE.start(), *INTERVAL_MS_RANGE.end());
    *full_at_ns = wire::clock::steady_ns();
    *node.keys.write() = Arc::new(answer.token_keys);
    node.is_registered.send_replace(true);
    tracing::info!(datanode = %node.id, "registered with SCM");
    obey(node, answer.commands).await;
    Ok(true)
}

/// Whether the registration still stands.
async fn beat(node: &Arc<Node>, scm: &dyn ScmService, full_at_ns: &mut u64) -> Result<bool, Failure> {
    let now_ns = wire::clock::steady_ns();
    let is_full = now_ns.saturating_sub(*full_at_ns) > FULL_REPORT_MS * 1_000_000;
    let changed = node.changes.take();
    let replicas = if is_full {
        node.replica_reports()
    } else {
        let containers = node.containers.read();
        changed.iter().filter_map(|id| Some(containers.get(id)?.report())).collect()
    };
    let request = Heartbeat {
        datanode: node.id,
        incarnation: node.incarnation,
        disks: node.disk_reports(),
        is_urgent: !replicas.is_empty(),
        replicas,
    };
    let answer = call_scm(scm, request).await.inspect_err(|_| {
        for container in changed {
            node.changes.add(container);
        }
    })?;
    if is_full {
        *full_at_ns = now_ns;
    }
    if !answer.token_keys.is_empty() {
        *node.keys.write() = Arc::new(answer.token_keys);
    }
    obey(node, answer.commands).await;
    Ok(!answer.register_again)
}

async fn obey(node: &Arc<Node>, commands: Vec<DatanodeCommand>) {
    for command in commands {
        let node = node.clone();
        let ended = platform::task::spawn_blocking(move || obey_one(&node, command)).await;
        if ended.is_err() {
            tracing::error!("a command of SCM panicked");
        }
    }
}

/// Does one command, or refuses it.
pub(crate) fn obey_one(node: &Node, command: DatanodeCommand) {
    let highest = node.term.fetch_max(command.term, Ordering::SeqCst);
    if command.term < highest {
        tracing::warn!(term = command.term, highest, "command of an old SCM leader refused");
        return;
    }
    let container = node.containers.read().get(&command.container).cloned();
    let Some(container) = container else {
        // Done before, or never written here. SCM learns from the reports.
        tracing::debug!(container = %command.container, "command for a container that is not here");
        return;
    };
    if container.header.generation != command.generation {
        tracing::warn!(container = %command.container, "command for another generation refused");
        return;
    }
    let done = match &command.action {
        DatanodeAction::Close => deletion::close(&container),
        DatanodeAction::DeleteBlocks { transaction, blocks } => {
            deletion::delete_blocks(&container, *transaction, blocks)
        }
        DatanodeAction::DeleteReplica => node.drop_replica(&container),
        DatanodeAction::CopyReplica { .. } => {
            tracing::warn!(container = %command.container, "this datanode cannot copy replicas yet");
            return;
        }
    };
    if let Err(error) = done {
        tracing::warn!(container = %command.container, %error, "command of SCM not done: it will come again");
    }
    node.changes.add(command.container);
    node.changes.urgent.notify_one();
}

/// Seals what is closing and punches what its readers have left.
pub(crate) async fn housekeeping_loop(node: Arc<Node>) {
    while !node.is_stopping() {
        let house = node.clone();
        let kept = platform::task::spawn_blocking(move || keep_house(&house)).await;
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
pub(crate) fn keep_house(node: &Node) {
    for disk in &node.disks {
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
