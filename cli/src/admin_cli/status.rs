//! `ferrozone admin status`: what is wrong first, then the cluster in a few lines.

use std::process::ExitCode;

use admin::view::{ClusterStatus, Severity};
use wire::group::{GroupInfo, MemberRole};
use wire::operator::LivenessInfo;

use super::Screen;
use crate::reach::read;
use crate::show::{count, fields, replicas, size};

/// Exit code of `--check` where something is worth a look.
const EXIT_WARNING: u8 = 10;
/// Exit code of `--check` where data cannot be read or written.
const EXIT_CRITICAL: u8 = 11;

pub(super) async fn run(screen: &Screen, check: bool) -> anyhow::Result<ExitCode> {
    let answer = screen.api.ask("GET", "/api/v1/status", None).await?;
    let status: ClusterStatus = read(answer.clone())?;
    let code = match status.problems.first().map(|problem| problem.severity) {
        Some(Severity::Critical) if check => ExitCode::from(EXIT_CRITICAL),
        Some(Severity::Warning) if check => ExitCode::from(EXIT_WARNING),
        _ => ExitCode::SUCCESS,
    };
    screen.print(answer, |_| Ok(text(&status)))?;
    Ok(code)
}

fn text(status: &ClusterStatus) -> String {
    let mut text = String::new();
    for problem in &status.problems {
        let word = match problem.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "WARNING",
        };
        text.push_str(&format!("{word}: {}\n  -> {}\n", problem.what, problem.action));
    }
    if status.problems.is_empty() {
        text.push_str("All is well.\n");
    }
    text.push('\n');
    text.push_str(&fields(&overview(status)));
    text
}

fn overview(status: &ClusterStatus) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let silent = || "no answer".to_owned();
    lines.push(("om", status.om_group.as_ref().map_or_else(silent, group)));
    lines.push(("scm", status.scm_group.as_ref().map_or_else(silent, group)));
    let live = status.datanodes.iter().filter(|datanode| datanode.liveness == LivenessInfo::Live).count();
    let disks = || status.datanodes.iter().flat_map(|datanode| &datanode.disks);
    let capacity: u64 = disks().map(|disk| disk.capacity_bytes).sum();
    let available: u64 = disks().map(|disk| disk.available_bytes).sum();
    lines.push((
        "datanodes",
        format!("{live} of {} live; {} of {} free", status.datanodes.len(), size(available), size(capacity)),
    ));
    if let Some(om) = &status.om {
        lines.push((
            "keys",
            format!(
                "{} in {}, {}; new ones on {}",
                count(om.keys, "key"),
                count(om.buckets, "bucket"),
                size(om.bytes),
                replicas(om.default_replication)
            ),
        ));
    }
    if let Some(scm) = &status.scm {
        let parts = [
            (scm.open, "open"),
            (scm.closing, "closing"),
            (scm.closed, "closed"),
            (scm.deleting, "deleting"),
        ];
        lines.push(("containers", joined(&parts)));
    }
    if let Some(repair) = &status.repair {
        let parts = [
            (repair.missing, "missing"),
            (repair.under_replicated, "under-replicated"),
            (repair.over_replicated, "over-replicated"),
            (repair.unhealthy, "unhealthy"),
            (repair.copies.len() as u64, "being copied"),
        ];
        lines.push(("repair", joined(&parts)));
    }
    if let Some(om) = &status.om {
        lines.push(("deletion", format!("{} waiting", count(om.deletion_backlog, "freed block"))));
    }
    lines
}

/// `3 voters, m1 leads, term 4`.
fn group(group: &GroupInfo) -> String {
    let of_role = |role: MemberRole| group.members.iter().filter(|member| member.role == role).count() as u64;
    let leader = group.members.iter().find(|member| Some(member.member.raft_id) == group.leader);
    let leader = match leader {
        Some(leader) => format!("{} leads", super::group::member_name(&leader.member)),
        None if group.leader.is_some() => "a removed member leads".to_owned(),
        None => "nobody leads".to_owned(),
    };
    let learners = match of_role(MemberRole::Learner) {
        0 => String::new(),
        number => format!(", {}", count(number, "learner")),
    };
    format!("{}{learners}, {leader}, term {}", count(of_role(MemberRole::Voter), "voter"), group.term)
}

/// Those that are not zero; `none` if all are.
fn joined(parts: &[(u64, &str)]) -> String {
    let named: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, word)| format!("{number} {word}"))
        .collect();
    if named.is_empty() { "none".to_owned() } else { named.join(", ") }
}

#[cfg(test)]
pub(super) mod tests {
    use admin::view::Problem;
    use uuid::Uuid;
    use wire::group::{Member, MemberInfo};

    use super::*;

    pub(in crate::admin_cli) fn group_info(name: &str) -> GroupInfo {
        let member = |raft_id: u64, role| MemberInfo {
            member: Member {
                raft_id,
                incarnation: Uuid::from_u128(raft_id.into()),
                node: format!("m{raft_id}"),
                address: format!("m{raft_id}:9002").parse().unwrap(),
            },
            role,
            is_leader: raft_id == 2,
            match_index: Some(100 - raft_id),
            is_active: Some(raft_id != 3),
        };
        GroupInfo {
            group: name.to_owned(),
            raft_id: 2,
            term: 4,
            leader: Some(2),
            commit_index: 98,
            applied_index: 98,
            log_first_index: 1,
            log_last_index: 98,
            state_hash: "ab".into(),
            members: vec![
                member(1, MemberRole::Voter),
                member(2, MemberRole::Voter),
                member(3, MemberRole::Learner),
            ],
            vote: 2,
        }
    }

    #[test]
    fn problems_come_first_with_what_to_do() {
        let problem = Problem {
            severity: Severity::Critical,
            what: "scm does not answer: nobody leads".to_owned(),
            action: "start the meta nodes".to_owned(),
        };
        let mut status = ClusterStatus {
            problems: vec![problem],
            om_group: Some(group_info("om")),
            scm_group: None,
            om: None,
            scm: None,
            datanodes: Vec::new(),
            repair: None,
        };
        assert_eq!(
            text(&status),
            "CRITICAL: scm does not answer: nobody leads\n  -> start the meta nodes\n\n\
             om         2 voters, 1 learner, m2 leads, term 4\nscm        no answer\n\
             datanodes  0 of 0 live; 0 B of 0 B free\n"
        );
        status.problems.clear();
        assert!(text(&status).starts_with("All is well.\n\nom "));
    }
}
