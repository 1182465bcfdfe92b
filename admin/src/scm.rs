//! SCM's resources: datanodes, containers, pipelines, repair.

use std::collections::BTreeSet;

use serde::Deserialize;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId, LocalId};
use wire::operator::{
    CloseContainer, ContainerDetails, DatanodeInfo, DatanodeWish, GetContainers, GetRepair, GetScmOverview,
    ListContainerKeys, ListContainers, ListDatanodes, ListPipelines, LivenessInfo, OperationalInfo, PAGE_MAX,
    RaiseReplication, ReplicaInfo, SetDatanode,
};
use wire::scm::ContainerState;

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::view::{Loss, Page};

/// Containers that are named as lost at most.
const LOSS_CONTAINERS_MAX: usize = 20;
/// Keys that are named as lost at most.
const LOSS_KEYS_MAX: usize = 20;

pub(crate) async fn overview(operators: &Operators, _call: &Call) -> Answer {
    json(operators.scm(GetScmOverview {}).await?)
}

pub(crate) async fn list_datanodes(operators: &Operators, _call: &Call) -> Answer {
    json(operators.scm(ListDatanodes {}).await?)
}

pub(crate) async fn get_datanode(operators: &Operators, call: &Call) -> Answer {
    json(find(operators, call).await?)
}

/// A datanode by its id, the beginning of its id, or its node's name.
async fn find(operators: &Operators, call: &Call) -> Result<DatanodeInfo, ApiError> {
    find_among(operators, call, |_| true).await
}

/// The same. Of several that bear one name (a wiped machine registers again under its old name and another id), the only one
/// that is `meant`.
async fn find_among(
    operators: &Operators,
    call: &Call,
    meant: impl Fn(&DatanodeInfo) -> bool,
) -> Result<DatanodeInfo, ApiError> {
    /// Fewer letters of an id are taken for a slip of the pen.
    const ID_LETTERS_MIN: usize = 4;
    let text: String = call.path("id")?;
    let all = operators.scm(ListDatanodes {}).await?;
    let of_name: Vec<&DatanodeInfo> = all.iter().filter(|datanode| datanode.node == text).collect();
    let by_id = |datanode: &&DatanodeInfo| {
        text.len() >= ID_LETTERS_MIN && datanode.datanode.id.to_string().starts_with(&text.to_lowercase())
    };
    let found = if of_name.is_empty() { all.iter().filter(by_id).collect() } else { of_name };
    let those_meant: Vec<&&DatanodeInfo> = found.iter().filter(|datanode| meant(datanode)).collect();
    match (found.as_slice(), those_meant.as_slice()) {
        ([one], _) => Ok((*one).clone()),
        (_, [one]) => Ok((**one).clone()),
        ([], _) => Err(ApiError::NotFound(format!("datanode {text}"))),
        (several, _) => {
            let ids: Vec<String> = several.iter().map(|one| one.datanode.id.to_string()).collect();
            Err(ApiError::Conflict(format!(
                "{text} is the name of several datanodes: name one of {}",
                ids.join(", ")
            )))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    until_ms: Option<UnixMs>,
    #[serde(default)]
    force: bool,
}

async fn set(operators: &Operators, call: &Call, wish: impl FnOnce(&Wish) -> DatanodeWish) -> Answer {
    let body: Wish = call.body()?;
    let datanode = find_among(operators, call, |datanode| !may_go(datanode)).await?.datanode.id;
    wish_for(operators, datanode, wish(&body), body.force).await
}

async fn wish_for(operators: &Operators, datanode: DatanodeId, wish: DatanodeWish, force: bool) -> Answer {
    operators.scm(SetDatanode { datanode, wish, force }).await?;
    json(serde_json::json!({ "datanode": datanode }))
}

pub(crate) async fn decommission(operators: &Operators, call: &Call) -> Answer {
    set(operators, call, |_| DatanodeWish::Decommission).await
}

pub(crate) async fn maintenance(operators: &Operators, call: &Call) -> Answer {
    set(operators, call, |body| DatanodeWish::Maintenance { until_ms: body.until_ms }).await
}

pub(crate) async fn recommission(operators: &Operators, call: &Call) -> Answer {
    set(operators, call, |_| DatanodeWish::Recommission).await
}

/// Whether a datanode is one that could be forgotten.
fn may_go(datanode: &DatanodeInfo) -> bool {
    datanode.liveness == LivenessInfo::Dead || datanode.operational == OperationalInfo::Decommissioned
}

pub(crate) async fn forget(operators: &Operators, call: &Call) -> Answer {
    let body: Wish = call.body()?;
    let datanode = find_among(operators, call, may_go).await?.datanode.id;
    wish_for(operators, datanode, DatanodeWish::Forget, body.force).await
}

/// What would be lost with a datanode: containers no other readable replica of which is known, and some of their keys.
pub(crate) async fn loss(operators: &Operators, call: &Call) -> Answer {
    let datanode = find_among(operators, call, may_go).await?.datanode.id;
    let mut loss = Loss { containers: 0, named: Vec::new(), keys: Vec::new(), more_keys: false };
    let mut after = ContainerId(0);
    loop {
        let request =
            ListContainers { after, max: PAGE_MAX, state: None, datanode: Some(datanode), health: None };
        let page = operators.scm(request).await?;
        for container in page.iter().filter(|container| lies_only_there(container, datanode)) {
            loss.containers += 1;
            if loss.named.len() < LOSS_CONTAINERS_MAX {
                loss.named.push(container.container);
                add_keys(operators, container.container, &mut loss).await?;
            } else {
                loss.more_keys = true;
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE_MAX as usize => after = last.container,
            _ => return json(loss),
        }
    }
}

fn lies_only_there(container: &ContainerDetails, datanode: DatanodeId) -> bool {
    let is_gone = matches!(container.state, ContainerState::Deleting | ContainerState::Deleted);
    let is_valid = |replica: &&ReplicaInfo| replica.state == "valid";
    let is_readable = |replica: &ReplicaInfo| {
        !replica.is_unhealthy
            && matches!(replica.liveness, LivenessInfo::Live | LivenessInfo::Silent | LivenessInfo::Stale)
    };
    let mut valid = container.replicas.iter().filter(is_valid);
    let is_there = container.replicas.iter().filter(is_valid).any(|replica| replica.datanode == datanode);
    !is_gone && is_there && !valid.any(|replica| replica.datanode != datanode && is_readable(replica))
}

async fn add_keys(operators: &Operators, container: ContainerId, loss: &mut Loss) -> Result<(), ApiError> {
    let room = LOSS_KEYS_MAX.saturating_sub(loss.keys.len());
    if room == 0 {
        loss.more_keys = true;
        return Ok(());
    }
    let request = ListContainerKeys { container, after: LocalId(0), max: PAGE_MAX };
    let keys = operators.om(request).await?;
    let named: BTreeSet<String> = keys
        .blocks
        .into_iter()
        .filter(|block| !block.is_freed)
        .filter_map(|block| Some(format!("{}/{}", block.bucket?, block.key?)))
        .collect();
    loss.more_keys |= keys.is_truncated || named.len() > room;
    loss.keys.extend(named.into_iter().take(room));
    Ok(())
}

pub(crate) async fn list_containers(operators: &Operators, call: &Call) -> Answer {
    let max = call.max()?;
    let request = ListContainers {
        after: call.query_as("after")?.unwrap_or(ContainerId(0)),
        max,
        state: call.query_as("state")?,
        datanode: call.query_as::<DatanodeId>("datanode")?,
        health: call.query_as("health")?,
    };
    let items = operators.scm(request).await?;
    let is_full = items.len() >= max as usize;
    let next = items.last().map(|last| last.container.0.to_string()).filter(|_| is_full);
    json(Page { items, next })
}

pub(crate) async fn get_container(operators: &Operators, call: &Call) -> Answer {
    let id = ContainerId(call.path("id")?);
    let found = operators.scm(GetContainers { containers: vec![id] }).await?;
    json(found.into_iter().next().ok_or_else(|| ApiError::NotFound(format!("container {id}")))?)
}

pub(crate) async fn close_container(operators: &Operators, call: &Call) -> Answer {
    let container = ContainerId(call.path("id")?);
    json(operators.scm(CloseContainer { container }).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raise {
    #[serde(default)]
    after: ContainerId,
    #[serde(default)]
    max: Option<u32>,
}

pub(crate) async fn raise(operators: &Operators, call: &Call) -> Answer {
    let body: Raise = call.body()?;
    let max = body.max.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    json(operators.scm(RaiseReplication { after: body.after, max }).await?)
}

pub(crate) async fn list_pipelines(operators: &Operators, _call: &Call) -> Answer {
    json(operators.scm(ListPipelines {}).await?)
}

pub(crate) async fn repair(operators: &Operators, _call: &Call) -> Answer {
    json(operators.scm(GetRepair {}).await?)
}
