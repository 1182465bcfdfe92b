//! The Raft groups of OM and SCM and their members.

use serde::Deserialize;
use wire::group::{GroupInfo, Member, MembershipChange};
use wire::operator::{GetGroup, TransferLeadership};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;

#[derive(Clone, Copy)]
enum Group {
    Om,
    Scm,
}

fn group(call: &Call) -> Result<Group, ApiError> {
    let name: String = call.path("group")?;
    match name.as_str() {
        "om" => Ok(Group::Om),
        "scm" => Ok(Group::Scm),
        _ => Err(ApiError::NotFound(format!("group {name}; there are om and scm"))),
    }
}

async fn info(operators: &Operators, group: Group) -> Result<GroupInfo, ApiError> {
    match group {
        Group::Om => operators.om(GetGroup {}).await,
        Group::Scm => operators.scm(GetGroup {}).await,
    }
}

async fn change(operators: &Operators, call: &Call, change: MembershipChange) -> Answer {
    match group(call)? {
        Group::Om => operators.om(change).await?,
        Group::Scm => operators.scm(change).await?,
    }
    get(operators, call).await
}

pub(crate) async fn get(operators: &Operators, call: &Call) -> Answer {
    json(info(operators, group(call)?).await?)
}

pub(crate) async fn add(operators: &Operators, call: &Call) -> Answer {
    change(operators, call, MembershipChange::AddLearner(call.body::<Member>()?)).await
}

pub(crate) async fn promote(operators: &Operators, call: &Call) -> Answer {
    change(operators, call, MembershipChange::Promote { raft_id: call.path("raft_id")? }).await
}

pub(crate) async fn remove(operators: &Operators, call: &Call) -> Answer {
    let force = call.text("force") == Some("true");
    change(operators, call, MembershipChange::Remove { raft_id: call.path("raft_id")?, force }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    #[serde(default)]
    raft_id: Option<u64>,
}

pub(crate) async fn transfer(operators: &Operators, call: &Call) -> Answer {
    let body: Transfer = call.body()?;
    let request = TransferLeadership { raft_id: body.raft_id };
    match group(call)? {
        Group::Om => operators.om(request).await?,
        Group::Scm => operators.scm(request).await?,
    }
    get(operators, call).await
}
