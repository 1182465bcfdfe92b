//! SCM's resources: datanodes, containers, pipelines, repair.

use serde::Deserialize;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, DatanodeId};
use wire::operator::{
    CloseContainer, DatanodeInfo, DatanodeWish, GetContainers, GetRepair, GetScmOverview, ListContainers,
    ListDatanodes, ListPipelines, PAGE_MAX, RaiseReplication, SetDatanode,
};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::view::Page;

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
    /// Fewer letters of an id are taken for a slip of the pen.
    const ID_LETTERS_MIN: usize = 4;
    let text: String = call.path("id")?;
    let all = operators.scm(ListDatanodes {}).await?;
    let of_name: Vec<&DatanodeInfo> = all.iter().filter(|datanode| datanode.node == text).collect();
    let by_id = |datanode: &&DatanodeInfo| {
        text.len() >= ID_LETTERS_MIN && datanode.datanode.id.to_string().starts_with(&text.to_lowercase())
    };
    let found = if of_name.is_empty() { all.iter().filter(by_id).collect() } else { of_name };
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(ApiError::NotFound(format!("datanode {text}"))),
        // A wiped machine registers again under its old name and another id.
        several => {
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
    let datanode = find(operators, call).await?.datanode.id;
    operators.scm(SetDatanode { datanode, wish: wish(&body), force: body.force }).await?;
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

pub(crate) async fn forget(operators: &Operators, call: &Call) -> Answer {
    set(operators, call, |_| DatanodeWish::Forget).await
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
