//! The cluster at a glance: what is wrong comes first, in words that an operator can act on.
//!
//! Every call is made at once and none is waited for longer than [`PATIENCE`]: a page about a broken cluster must come.
//!
//! Invariants: the same answers give the same problems in the same order.

use std::time::Duration;

use futures_util::future::join;
use futures_util::join;
use tokio::time::timeout;
use wire::block::Replication;
use wire::clock::{self, UnixMs};
use wire::group::{GroupInfo, MemberRole};
use wire::operator::{
    DatanodeInfo, GetOmOverview, GetRepair, GetScmOverview, ListDatanodes, LivenessInfo, OperationalInfo,
};

use crate::api::{Answer, Call, Operators, json};
use crate::error::ApiError;
use crate::group::{self, Group};
use crate::view::{ClusterStatus, Problem, Severity};

/// A part that has not answered by then is reported as silent. Elections take one to two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Freed blocks that wait so long beyond their grace are worth a word.
const DELETION_LATE_MS: u64 = 2 * 3600 * 1000;
/// The grace where nobody says what it is: `om.delete_grace` as it is unless an operator sets it.
const DELETE_GRACE_DEFAULT_MS: u64 = 3600 * 1000;
/// A disk fuller than this is worth a word: datanodes keep a reserve of their own.
const DISK_FULL_PERCENT: u64 = 90;

pub(crate) async fn get(operators: &Operators, _call: &Call) -> Answer {
    let om_group = patient(group::info(operators, Group::Om));
    let scm_group = patient(group::info(operators, Group::Scm));
    let om = patient(operators.om(GetOmOverview {}));
    let scm = patient(operators.scm(GetScmOverview {}));
    let datanodes = patient(operators.scm(ListDatanodes {}));
    let repair = patient(operators.scm(GetRepair {}));
    let ((om_group, scm_group), om, scm, datanodes, repair) =
        join!(join(om_group, scm_group), om, scm, datanodes, repair);
    let problems = silences(&[
        ("om", om_group.as_ref().err()),
        ("om", om.as_ref().err()),
        ("scm", scm_group.as_ref().err()),
        ("scm", scm.as_ref().err()),
        ("scm", datanodes.as_ref().err()),
        ("scm", repair.as_ref().err()),
    ]);
    let status = ClusterStatus {
        problems,
        om_group: om_group.ok(),
        scm_group: scm_group.ok(),
        om: om.ok(),
        scm: scm.ok(),
        datanodes: datanodes.unwrap_or_default(),
        repair: repair.ok(),
    };
    json(judged(status, clock::now_ms()))
}

async fn patient<T>(call: impl Future<Output = Result<T, ApiError>>) -> Result<T, String> {
    match timeout(PATIENCE, call).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// A problem for each service of which any call had no answer: one word for a service, not one for each of its calls.
fn silences(calls: &[(&str, Option<&String>)]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = Vec::new();
    let mut named: Vec<&str> = Vec::new();
    for (service, error) in calls {
        if let Some(error) = error
            && !named.contains(service)
        {
            named.push(service);
            problems.push(silent(service, error));
        }
    }
    problems
}

fn silent(service: &str, error: &str) -> Problem {
    let what = format!("{service} does not answer: {error}");
    let action =
        "start the meta nodes and look at their logs: a majority of them must run and reach one another";
    critical(what, action)
}

fn critical(what: impl Into<String>, action: impl Into<String>) -> Problem {
    Problem { severity: Severity::Critical, what: what.into(), action: action.into() }
}

fn warning(what: impl Into<String>, action: impl Into<String>) -> Problem {
    Problem { severity: Severity::Warning, what: what.into(), action: action.into() }
}

/// Adds what the answers show to be wrong.
fn judged(mut status: ClusterStatus, now_ms: UnixMs) -> ClusterStatus {
    let mut found = Vec::new();
    for group in status.om_group.iter().chain(&status.scm_group) {
        judge_group(group, &mut found);
    }
    for datanode in &status.datanodes {
        judge_datanode(datanode, &mut found);
    }
    if let Some(scm) = &status.scm {
        // What new keys do not ask for keeps nobody waiting: a cluster of one datanode is a whole one.
        let is_asked_for = |what: &&String| {
            let only_one = status.om.as_ref().is_some_and(|om| om.default_replication == Replication::One);
            !(only_one && what.starts_with("replication THREE"))
        };
        found.extend(
            scm.awaiting
                .iter()
                .filter(is_asked_for)
                .map(|what| critical(format!("writes wait: {what}"), "ferrozone admin datanode list")),
        );
    }
    if let Some(repair) = &status.repair {
        let count = |number: u64, what: &str| format!("{number} {} {what}", plural(number, "container"));
        if repair.missing > 0 {
            found.push(critical(
                count(repair.missing, "cannot be read: no whole replica is reachable"),
                "bring the datanodes back that hold them: ferrozone admin container list --health missing. If they \
                 will not return, delete the keys they hurt: ferrozone admin container keys ID",
            ));
        }
        if repair.unhealthy > 0 {
            found.push(warning(
                count(repair.unhealthy, "with a damaged replica"),
                "replaced by itself while a whole one is left: ferrozone admin container list --health unhealthy",
            ));
        }
        if repair.under_replicated > 0 {
            found.push(warning(
                count(repair.under_replicated, "with too few replicas"),
                "copied by itself if enough datanodes live: ferrozone admin repair",
            ));
        }
    }
    if let Some(om) = &status.om
        && let Some(oldest_ms) = om.deletion_oldest_ms
    {
        let age_ms = now_ms.saturating_sub(oldest_ms);
        let grace_ms = om.delete_grace_ms.unwrap_or(DELETE_GRACE_DEFAULT_MS);
        if age_ms > grace_ms.saturating_add(DELETION_LATE_MS) {
            found.push(warning(
                format!("freed blocks have waited {} h for their deletion", age_ms / 3_600_000),
                "space comes back once SCM and the datanodes that hold them answer",
            ));
        }
    }
    status.problems.extend(found);
    // Stable: within a severity the order above stays.
    status.problems.sort_by_key(|problem| problem.severity);
    status
}

fn judge_group(group: &GroupInfo, found: &mut Vec<Problem>) {
    let name = &group.group;
    if group.leader.is_none() {
        found.push(critical(
            format!("{name} has no leader"),
            "a majority of its voters must run and reach one another; an election takes two seconds",
        ));
    }
    let voters = group.members.iter().filter(|member| member.role == MemberRole::Voter).count();
    let silent: Vec<&str> = group
        .members
        .iter()
        .filter(|member| member.is_active == Some(false))
        .map(|member| member.member.node.as_str())
        .collect();
    if !silent.is_empty() {
        found.push(warning(
            format!(
                "{name}: {} of {voters} voters does not answer its leader: {}",
                silent.len(),
                silent.join(", ")
            ),
            "start that node; if its disk is lost: ferrozone cluster add-node, then ferrozone admin replace-node",
        ));
    }
    if voters == 2 {
        found.push(warning(
            format!("{name} has two voters: it stops when either of them does"),
            "add a third: ferrozone cluster add-node, then ferrozone admin add-node",
        ));
    }
}

fn judge_datanode(datanode: &DatanodeInfo, found: &mut Vec<Problem>) {
    let name =
        if datanode.node.is_empty() { datanode.datanode.id.to_string() } else { datanode.node.clone() };
    let is_expected_away =
        matches!(datanode.operational, OperationalInfo::Maintenance | OperationalInfo::Decommissioned);
    let since = datanode.silent_ms.map_or_else(String::new, |ms| format!(" for {} s", ms / 1000));
    match datanode.liveness {
        LivenessInfo::Live => {}
        _ if is_expected_away => {}
        LivenessInfo::Silent => {
            found.push(warning(
                format!("datanode {name} is silent{since}: no new writes go there"),
                "look at its log",
            ));
        }
        LivenessInfo::Stale | LivenessInfo::Dead => {
            let word = if datanode.liveness == LivenessInfo::Dead { "dead" } else { "stale" };
            found.push(warning(
                format!("datanode {name} is {word}: silent{since}, {} containers", datanode.containers),
                "start it; if it will not return: ferrozone admin datanode forget",
            ));
        }
        LivenessInfo::Unknown => {
            found.push(warning(
                format!("datanode {name} has not spoken to the present leader of scm"),
                "start it, or look at its log",
            ));
        }
    }
    for disk in &datanode.disks {
        let used = disk.capacity_bytes.saturating_sub(disk.available_bytes);
        if disk.is_failed {
            found.push(warning(
                format!("disk {} of datanode {name} has failed", disk.path),
                "replace it and restart the datanode; its containers are copied from elsewhere meanwhile",
            ));
        } else if disk.capacity_bytes > 0 && used / (disk.capacity_bytes / 100).max(1) >= DISK_FULL_PERCENT {
            found.push(warning(
                format!("disk {} of datanode {name} is more than {DISK_FULL_PERCENT}% full", disk.path),
                "add disks or datanodes, or delete keys",
            ));
        }
    }
}

fn plural(number: u64, word: &str) -> String {
    if number == 1 { word.to_owned() } else { format!("{word}s") }
}

#[cfg(test)]
mod tests {
    use wire::operator::OmOverview;

    use super::*;

    #[test]
    fn any_call_without_an_answer_is_a_problem_of_its_service() {
        let late = "no answer within 5 s".to_owned();
        let whats = |calls: &[(&str, Option<&String>)]| -> Vec<String> {
            silences(calls).into_iter().map(|problem| problem.what).collect()
        };
        assert_eq!(whats(&[("om", None), ("scm", None), ("scm", None)]), [""; 0]);
        assert_eq!(
            whats(&[("om", None), ("scm", None), ("scm", Some(&late))]),
            ["scm does not answer: no answer within 5 s"]
        );
        let all = [("om", Some(&late)), ("scm", Some(&late)), ("scm", Some(&late))];
        assert_eq!(whats(&all).len(), 2, "one word for each service");
    }

    #[test]
    fn deletion_is_late_only_beyond_its_grace() {
        const HOUR_MS: u64 = 3_600_000;
        let is_late = |age_ms: u64, delete_grace_ms| {
            let om = OmOverview {
                volumes: 1,
                buckets: 1,
                keys: 1,
                bytes: 1,
                sessions: 1,
                loans: 1,
                uploads: 0,
                deletion_backlog: 1,
                deletion_oldest_ms: Some(0),
                work_backlog: 0,
                default_replication: Replication::Three,
                delete_grace_ms,
            };
            let status = ClusterStatus {
                problems: Vec::new(),
                om_group: None,
                scm_group: None,
                om: Some(om),
                scm: None,
                datanodes: Vec::new(),
                repair: None,
            };
            !judged(status, age_ms).problems.is_empty()
        };
        assert!(!is_late(20 * HOUR_MS, Some(24 * HOUR_MS)), "a day's grace");
        assert!(is_late(27 * HOUR_MS, Some(24 * HOUR_MS)));
        assert!(is_late(2 * HOUR_MS + 60_001, Some(60_000)));
        assert!(!is_late(3 * HOUR_MS, None) && is_late(3 * HOUR_MS + 1, None));
    }
}
