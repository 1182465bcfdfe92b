//! The Raft groups of OM and SCM and their members.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;
use wire::group::{GroupInfo, Member, MemberInfo, MemberRole, MembershipChange};
use wire::operator::{GetGroup, GetOmOverview, GetScmOverview, TransferLeadership};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;

/// A leader that is there answers within this.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);

/// Which of the two.
#[derive(Clone, Copy)]
pub(crate) enum Group {
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

/// The group as its leader sees it; if nobody leads, as any replica does. A replica that waits to be added, or has just been
/// removed, answers too and knows little.
pub(crate) async fn info(operators: &Operators, group: Group) -> Result<GroupInfo, ApiError> {
    let ask = || async {
        match group {
            Group::Om => operators.om(GetGroup {}).await,
            Group::Scm => operators.scm(GetGroup {}).await,
        }
    };
    let found = ask().await?;
    if found.leader == Some(found.raft_id) {
        return Ok(found);
    }
    // Only a leader answers this: afterwards it is the one that is asked first.
    let lead = async {
        match group {
            Group::Om => operators.om(GetOmOverview {}).await.map(drop),
            Group::Scm => operators.scm(GetScmOverview {}).await.map(drop),
        }
    };
    match timeout(LEADER_PATIENCE, lead).await {
        Ok(Ok(())) => ask().await,
        _ => Ok(found),
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
    let raft_id = call.path("raft_id")?;
    if let Some(refusal) = fewer_failures(&info(operators, group(call)?).await?, raft_id).filter(|_| !force) {
        return Err(ApiError::Conflict(refusal));
    }
    change(operators, call, MembershipChange::Remove { raft_id, force }).await
}

/// Why a member had better stay: the group would survive fewer failures than now. To remove one that does not answer
/// takes nothing away, nor does going from two voters to one.
fn fewer_failures(group: &GroupInfo, raft_id: u64) -> Option<String> {
    let voters = || group.members.iter().filter(|member| member.role == MemberRole::Voter);
    let active = |member: &&MemberInfo| member.is_active != Some(false);
    let survived = |active: usize, voters: usize| active.saturating_sub(voters / 2 + 1);
    let rest = || voters().filter(|member| member.member.raft_id != raft_id);
    let now = survived(voters().filter(active).count(), voters().count());
    let then = survived(rest().filter(active).count(), rest().count());
    (then < now).then(|| {
        format!(
            "without replica {raft_id} {} would be left with {} voters and survive {then} failures, not {now}: add another \
             one first, or force it",
            group.group,
            rest().count()
        )
    })
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// A group of voters, of which those named do not answer.
    fn voters(count: u64, silent: &[u64]) -> GroupInfo {
        let members = (1..=count).map(|raft_id| MemberInfo {
            member: Member {
                raft_id,
                incarnation: Uuid::from_u128(raft_id.into()),
                node: format!("m{raft_id}"),
                address: "m:1".parse().expect("an address"),
            },
            role: MemberRole::Voter,
            is_leader: raft_id == 1,
            match_index: None,
            is_active: Some(!silent.contains(&raft_id)),
        });
        GroupInfo {
            group: "om".to_owned(),
            raft_id: 1,
            term: 1,
            leader: Some(1),
            commit_index: 1,
            applied_index: 1,
            log_first_index: 1,
            log_last_index: 1,
            state_hash: String::new(),
            members: members.collect(),
            vote: 1,
        }
    }

    #[test]
    fn member_that_is_needed_stays_and_a_lost_one_may_go() {
        let refusal = fewer_failures(&voters(3, &[]), 2).expect("a refusal");
        assert!(refusal.contains("2 voters and survive 0 failures, not 1"), "{refusal}");
        assert!(fewer_failures(&voters(5, &[]), 2).is_some());
        for (count, silent, removed) in
            [(3, vec![2], 2), (4, vec![2], 2), (4, vec![], 2), (2, vec![], 2), (1, vec![], 1)]
        {
            assert_eq!(
                fewer_failures(&voters(count, &silent), removed),
                None,
                "{count} {silent:?} {removed}"
            );
        }
    }
}
