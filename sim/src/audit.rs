//! The books at the end of a run, when nothing is broken any more.
//!
//! ```text
//!   serves      every gateway writes and reads within the promised time, without a human
//!   reads       every key and the listing, as operations of the history: the checker judges them
//!   replicas    equal state hashes at equal applied indexes (R1)
//!   redundancy  every container has its replicas, whole (G2)
//!   space       datanodes hold what the block table names, and nothing else beyond grace (G1)
//! ```
//!
//! Not here: what was answered before (the crate `checker`).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use checker::{Answer, Ask, Condition};
use client::service::{call_om, call_scm};
use platform::{node, task};
use wire::group::GroupInfo;
use wire::ids::{ContainerId, LocalId};
use wire::operator::{
    ContainerDetails, ContainerHealth, GetGroup, ListContainerKeys, ListContainers, PAGE_MAX,
};
use wire::scm::ContainerState;

use crate::run::Run;

/// After faults stop, gateways serve again within this (A1; elections, sessions, registrations).
const SERVE_AGAIN: Duration = Duration::from_secs(30);
/// State machines are level within this.
const LEVEL_WITHIN: Duration = Duration::from_secs(60);
/// Redundancy is restored and space reclaimed within this: deaths, delays, copies, loans that expire, grace.
const WHOLE_WITHIN: Duration = Duration::from_secs(40 * 60);
/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Audits a cluster in peace.
pub(crate) async fn audit(run: &Rc<Run>) {
    serves(run).await;
    reads(run).await;
    within(run, "state machines differ", LEVEL_WITHIN, level).await;
    within(run, "redundancy is not restored", WHOLE_WITHIN, redundancy).await;
    within(run, "space is not reclaimed", WHOLE_WITHIN, space).await;
    reads(run).await;
    run.trace.line("audited".to_owned());
}

/// Waits until `look` finds nothing wrong.
async fn within<F>(run: &Rc<Run>, what: &str, limit: Duration, look: impl Fn(Rc<Run>) -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let begun_ms = run.world.elapsed_ms();
    loop {
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
    let key = run.plan.keys;
    let begun_ms = run.world.elapsed_ms();
    for (index, gateway) in run.cluster.gateways() {
        loop {
            let ask = Ask::Put { key, condition: Condition::None, bytes: 100, by_upload: false };
            let id = run.history.lock().begin(ask);
            let (gateway, replication) = (gateway.clone(), run.plan.replication);
            let put = node::enter(Some(index), || {
                task::spawn(async move { gateway.put(id, key, Condition::None, 100, replication).await })
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
    let gateways = run.cluster.gateways();
    for (at, ask) in (0..=run.plan.keys).map(|key| Ask::Get { key }).chain([Ask::List]).enumerate() {
        let Some((index, gateway)) = gateways.get(at % gateways.len().max(1)).cloned() else { return };
        let id = run.history.lock().begin(ask.clone());
        let work = ask.clone();
        let read = node::enter(Some(index), || {
            task::spawn(async move {
                match work {
                    Ask::Get { key } => gateway.get(key).await,
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

/// Every replica holds as many blocks as the block table names, none more.
async fn space(run: Rc<Run>) -> Result<(), String> {
    let om = run.cluster.om();
    for container in containers(&run).await? {
        if container.state == ContainerState::Deleted {
            continue;
        }
        let mut owned: BTreeMap<LocalId, u64> = BTreeMap::new();
        let mut after = LocalId(0);
        loop {
            let request = ListContainerKeys { container: container.container, after, max: PAGE_MAX };
            let page = call_om(&*om, request).await.map_err(|error| error.to_string())?;
            for block in &page.blocks {
                after = block.local;
                if !block.is_freed {
                    owned.insert(block.local, block.length);
                }
            }
            if !page.is_truncated {
                break;
            }
        }
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
    Ok(())
}
