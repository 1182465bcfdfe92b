//! The books at the end of a run, when nothing is broken any more.
//!
//! ```text
//!   serves      every gateway writes and reads within the promised time, without a human
//!   reads       every key and the listing, as operations of the history: the checker judges them
//!   replicas    all members are there, equal state hashes at equal applied indexes (R1)
//!   redundancy  every container has its replicas, whole (G2)
//!   space       a key or upload owns every block of the table; datanodes hold these blocks and none more, and no file of a
//!               container that SCM does not count there (G1)
//!   whole       every block of the table is read back from every VALID replica; what had rotted is replaced (G2)
//! ```
//!
//! Some things must hold all the time and are watched during the load: orders for other lives of a replica are not obeyed,
//! terms and votes
//! never go back, and in a gentle run no replica is left out.
//!
//! Not here: what was answered before (the crate `checker`).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use checker::{Answer, Ask, Condition};
use client::service::{call_om, call_scm};
use platform::node::{self, NodeIndex};
use platform::task;
use wire::block::Replication;
use wire::group::{GroupInfo, MemberRole};
use wire::ids::{BlockId, ContainerId, DatanodeId, LocalId};
use wire::operator::{
    ContainerDetails, ContainerHealth, GetGroup, ListContainerKeys, ListContainers, PAGE_MAX,
};
use wire::scm::ContainerState;

use crate::gateway::Holds;
use crate::run::Run;

/// After faults stop, gateways serve again within this (A1; elections, sessions, registrations).
const SERVE_AGAIN: Duration = Duration::from_secs(30);
/// State machines are level within this.
const LEVEL_WITHIN: Duration = Duration::from_secs(60);
/// Redundancy is restored and space reclaimed within this: deaths, delays, copies, loans that expire, grace.
const WHOLE_WITHIN: Duration = Duration::from_secs(40 * 60);
/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How often terms and votes are looked at.
const TERM_INTERVAL: Duration = Duration::from_millis(300);

/// Audits a cluster in peace.
pub(crate) async fn audit(run: &Rc<Run>) {
    wrong_orders(run);
    serves(run).await;
    reads(run).await;
    within(run, "state machines differ", LEVEL_WITHIN, level).await;
    within(run, "redundancy is not restored", WHOLE_WITHIN, redundancy).await;
    within(run, "replicas are not whole", WHOLE_WITHIN, whole).await;
    within(run, "space is not reclaimed", WHOLE_WITHIN, space).await;
    reads(run).await;
    wrong_orders(run);
    run.trace.line("audited".to_owned());
}

/// Waits until `look` finds nothing wrong.
async fn within<F>(run: &Rc<Run>, what: &str, limit: Duration, look: impl Fn(Rc<Run>) -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let begun_ms = run.world.elapsed_ms();
    // One violation is enough, and the rest of a broken cluster may never come.
    while !run.has_failed() {
        match look(run.clone()).await {
            Ok(()) => {
                let took_s = (run.world.elapsed_ms() - begun_ms) / 1000;
                run.trace.line(format!("no longer: {what} ({took_s} s)"));
                return;
            }
            Err(why) if run.world.elapsed_ms() - begun_ms > limit.as_millis() as u64 => {
                run.violation(format!("{what} after {} s of peace: {why}", limit.as_secs()));
                return;
            }
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Every gateway takes a write.
async fn serves(run: &Rc<Run>) {
    let key = run.plan.audit_key();
    let begun_ms = run.world.elapsed_ms();
    for (index, gateway) in run.cluster.gateways() {
        loop {
            let ask = Ask::Put { key, condition: Condition::None, bytes: 100, by_upload: false };
            let id = run.history.lock().begin(ask);
            let (gateway, replication) = (gateway.clone(), Replication::Three);
            let put = node::enter(Some(index), || {
                task::spawn(async move {
                    gateway.put(id, key, Condition::None, 100, replication, Holds::default()).await
                })
            });
            let answer = put.await.unwrap_or(Answer::Unknown);
            let is_done = matches!(answer, Answer::Written { .. });
            run.history.lock().end(id, answer.clone());
            if is_done {
                break;
            }
            if run.world.elapsed_ms() - begun_ms > SERVE_AGAIN.as_millis() as u64 {
                run.violation(format!(
                    "gateway {index} takes no write {SERVE_AGAIN:?} after the last fault: {answer:?}"
                ));
                break;
            }
        }
    }
}

/// Reads every key and the listing through some gateway; the checker looks at the answers.
async fn reads(run: &Rc<Run>) {
    if run.has_failed() {
        return;
    }
    let gateways = run.cluster.gateways();
    let keys = (0..run.plan.keys + run.cold()).chain([run.plan.audit_key()]);
    for (at, ask) in keys.map(|key| Ask::Get { key }).chain([Ask::List]).enumerate() {
        let Some((index, gateway)) = gateways.get(at % gateways.len().max(1)).cloned() else { return };
        let id = run.history.lock().begin(ask.clone());
        let work = ask.clone();
        let read = node::enter(Some(index), || {
            task::spawn(async move {
                match work {
                    Ask::Get { key } => gateway.get(key, Duration::ZERO).await,
                    _ => gateway.list().await,
                }
            })
        });
        let answer = match read.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(wrong)) => {
                run.violation(format!("{ask:?} in peace: {wrong}"));
                Answer::Unknown
            }
            Err(_) => Answer::Unknown,
        };
        if matches!(answer, Answer::Unknown | Answer::Failed) {
            run.violation(format!("{ask:?} in peace has no answer"));
        }
        run.history.lock().end(id, answer);
    }
}

/// All replicas of a group at one index, with one hash.
async fn level(run: Rc<Run>) -> Result<(), String> {
    for group in ["om", "scm"] {
        let mut infos: Vec<GroupInfo> = Vec::new();
        for link in run.cluster.meta_links() {
            let info = match group {
                "om" => call_om(&link, GetGroup {}).await.map_err(|error| error.to_string()),
                _ => call_scm(&link, GetGroup {}).await.map_err(|error| error.to_string()),
            };
            infos.push(info?);
        }
        let metas = run.cluster.metas();
        let wanted: Vec<Option<u64>> =
            metas.into_iter().map(|index| run.cluster.member(index).map(|member| member.raft_id)).collect();
        for info in &infos {
            let is_voter = |raft_id: &Option<u64>| {
                info.members
                    .iter()
                    .any(|known| known.role == MemberRole::Voter && Some(known.member.raft_id) == *raft_id)
            };
            if info.members.len() != wanted.len() || !wanted.iter().all(is_voter) {
                return Err(format!("{group} has other members than {wanted:?}: {:?}", info.members));
            }
        }
        let Some(first) = infos.first() else { continue };
        for info in &infos {
            if info.applied_index != first.applied_index {
                let (ours, theirs) = (first.applied_index, info.applied_index);
                return Err(format!("{group}: applied {ours} and {theirs}"));
            }
            if info.state_hash != first.state_hash {
                // Not a matter of time.
                run.violation(format!("{group}: two state hashes at index {}", info.applied_index));
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn containers(run: &Run) -> Result<Vec<ContainerDetails>, String> {
    let scm = run.cluster.scm();
    let mut all: Vec<ContainerDetails> = Vec::new();
    loop {
        let after = all.last().map_or(ContainerId(0), |last| last.container);
        let request = ListContainers { after, max: PAGE_MAX, state: None, datanode: None, health: None };
        let page = call_scm(&*scm, request).await.map_err(|error| error.to_string())?;
        let is_last = page.len() < PAGE_MAX as usize;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// No container lacks anything.
async fn redundancy(run: Rc<Run>) -> Result<(), String> {
    for container in containers(&run).await? {
        let is_fine = match container.state {
            ContainerState::Open | ContainerState::Closed => {
                container.health.iter().all(|health| *health == ContainerHealth::Healthy)
            }
            ContainerState::Deleted => true,
            ContainerState::Closing | ContainerState::Deleting => false,
        };
        if !is_fine {
            return Err(format!("{container:?}"));
        }
    }
    Ok(())
}

/// The blocks that the block table names in a container, and one that neither a key nor an upload names, if there is.
async fn owned(run: &Run, container: ContainerId) -> Result<Owned, String> {
    let om = run.cluster.om();
    let mut owned = Owned::default();
    let mut after = LocalId(0);
    loop {
        let request = ListContainerKeys { container, after, max: PAGE_MAX };
        let page = call_om(&*om, request).await.map_err(|error| error.to_string())?;
        for block in &page.blocks {
            after = block.local;
            if !block.is_freed {
                owned.blocks.insert(block.local, block.length);
                if block.key.is_none() {
                    owned.orphan = Some(block.local);
                }
            }
        }
        if !page.is_truncated {
            return Ok(owned);
        }
    }
}

/// See [`owned`].
#[derive(Default)]
struct Owned {
    blocks: BTreeMap<LocalId, u64>,
    orphan: Option<LocalId>,
}

/// Every replica holds as many blocks as the block table names, none more; every block belongs to somebody; and there are
/// no files beside these replicas.
async fn space(run: Rc<Run>) -> Result<(), String> {
    let mut counted: BTreeSet<(DatanodeId, ContainerId)> = BTreeSet::new();
    for container in containers(&run).await? {
        if container.state == ContainerState::Deleted {
            continue;
        }
        let Owned { blocks: owned, orphan } = owned(&run, container.container).await?;
        if let Some(local) = orphan {
            return Err(format!("block {local} of container {} is nobody's", container.container));
        }
        counted.extend(container.replicas.iter().map(|replica| (replica.datanode, container.container)));
        for replica in &container.replicas {
            if replica.state == "valid" && replica.block_count != owned.len() as u64 {
                return Err(format!(
                    "container {} holds {} blocks on {}, the block table names {}",
                    container.container,
                    replica.block_count,
                    replica.datanode,
                    owned.len()
                ));
            }
        }
    }
    for index in run.cluster.datanodes() {
        let Some(datanode) = run.cluster.datanode(index).map(|datanode| datanode.id()) else { continue };
        for container in run.cluster.container_files(index) {
            if !counted.contains(&(datanode, container)) {
                return Err(format!(
                    "node {index} has a file of container {container}, which is not counted there"
                ));
            }
        }
    }
    Ok(())
}

/// Every VALID replica gives every block back as it was. One that was damaged on purpose is reported by being read, and
/// must be replaced in time; any other damage is a violation at once.
async fn whole(run: Rc<Run>) -> Result<(), String> {
    let nodes: BTreeMap<DatanodeId, NodeIndex> = run
        .cluster
        .datanodes()
        .into_iter()
        .filter_map(|index| Some((run.cluster.datanode(index)?.id(), index)))
        .collect();
    let mut waiting = Ok(());
    for container in containers(&run).await? {
        if !matches!(container.state, ContainerState::Open | ContainerState::Closed) {
            continue;
        }
        let Owned { blocks: owned, .. } = owned(&run, container.container).await?;
        for replica in container.replicas.iter().filter(|replica| replica.state == "valid") {
            let Some(index) = nodes.get(&replica.datanode).copied() else { continue };
            let Some(datanode) = run.cluster.datanode(index) else { continue };
            for (local, length) in &owned {
                let block = BlockId { container: container.container, local: *local };
                let read = node::enter(Some(index), || datanode.read_back(block, replica.generation));
                let wrong = match read {
                    Ok(read) if read == *length => continue,
                    Ok(read) => format!("it has {read} bytes, not {length}"),
                    Err(failure) => failure.to_string(),
                };
                let what = format!("block {block} on node {index}, life {:?}: {wrong}", replica.generation);
                if run.cluster.is_rotten(index, container.container, replica.generation) {
                    waiting = Err(what);
                    break;
                }
                run.violation(format!("a VALID replica lacks what it promised: {what}"));
                return Ok(());
            }
        }
    }
    match waiting {
        Ok(()) => redundancy(run).await,
        waiting => waiting,
    }
}

fn wrong_orders(run: &Run) {
    for wrong in run.cluster.orders_obeyed_wrongly() {
        run.violation(wrong);
    }
}

/// What a replica of a group last said of itself.
#[derive(Clone, Copy)]
struct Said {
    term: u64,
    vote: u64,
}

/// Looks all the time whether a term goes back, a vote changes within its term, or a term has two leaders (R2, R3).
pub(crate) async fn watch_terms(run: Rc<Run>) {
    // By raft ids: whoever comes back on empty disks is somebody else.
    let mut said: BTreeMap<(&str, u64), Said> = BTreeMap::new();
    let mut leaders: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    while !run.has_failed() {
        tokio::time::sleep(TERM_INTERVAL).await;
        for group in ["om", "scm"] {
            for index in run.cluster.metas() {
                let Some(info) = run.cluster.group_of(group, index).await else { continue };
                let now = Said { term: info.term, vote: info.vote };
                if let Some(before) = said.insert((group, info.raft_id), now) {
                    let is_changed = now.term == before.term && before.vote != 0 && now.vote != before.vote;
                    if now.term < before.term || is_changed {
                        run.violation(format!(
                            "{group} of node {index} was in term {} and had voted for {}, and is in term {} and has voted for {}",
                            before.term, before.vote, now.term, now.vote
                        ));
                    }
                }
                if info.leader != Some(info.raft_id) {
                    continue;
                }
                let leader = *leaders.entry((group, info.term)).or_insert(info.raft_id);
                if leader != info.raft_id {
                    run.violation(format!(
                        "{group} has two leaders in term {}: {leader} and {index}",
                        info.term
                    ));
                }
            }
        }
    }
}

/// Looks all the time whether a replica was left out though none has failed. For gentle runs.
pub(crate) async fn watch_gently(run: Rc<Run>) {
    while !run.is_load_over() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // Without an answer there is nothing to see.
        let Ok(all) = containers(&run).await else { continue };
        for container in all {
            if let Some(replica) = container.replicas.iter().find(|replica| replica.state == "invalid") {
                run.violation(format!(
                    "a replica was left out though no node failed: {replica:?} of {container:?}"
                ));
                return;
            }
        }
    }
}
