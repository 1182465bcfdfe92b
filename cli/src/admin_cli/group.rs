//! `ferrozone admin om | scm`: the two replicated services, at a glance and by their members.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use wire::block::Replication;
use wire::clock::{self, UnixMs};
use wire::group::{GroupInfo, Member, MemberInfo};
use wire::operator::{OmOverview, ScmOverview};

use super::membership::{self, NewPeer, Patience};
use super::{Screen, word};
use crate::reach::read;
use crate::show::{ago, count, fields, replicas, size, table};
use crate::topology::Group;

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Its state and its members.
    Show,
    /// Its Raft group alone: members, leader, indexes.
    Members,
    /// Add a node that `ferrozone cluster add-node` made: it catches up first, then it votes.
    AddPeer {
        #[command(flatten)]
        peer: NewPeer,
        #[command(flatten)]
        patience: Patience,
    },
    /// Remove a member. Its raft id is never used again; to return it must be made anew.
    RemovePeer {
        /// Its node's name or raft id.
        peer: String,
        /// Even if fewer failures are survived then, or the rest has no active majority. The last voter is never removed.
        #[arg(long)]
        force: bool,
    },
    /// Keep a backup of its metadata in a file; `ferrozone cluster restore` makes a cluster of it. Of both services SCM comes
    /// last.
    Backup {
        /// The file, which must not exist.
        file: PathBuf,
    },
    /// Hand leadership to a voter.
    TransferLeader {
        /// Its node's name or raft id [default: the one that is furthest on].
        #[arg(long)]
        to: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum OmCommand {
    #[command(flatten)]
    Group(GroupCommand),
    /// Set on how many datanodes new keys lie, for the cluster or one bucket.
    SetReplication {
        /// How many.
        #[arg(value_enum)]
        replication: ReplicationWord,
        /// A bucket alone; it keeps what is set here whatever the cluster's default becomes.
        #[arg(long)]
        bucket: Option<String>,
    },
}

/// How many datanodes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ReplicationWord {
    /// One datanode.
    One,
    /// Three datanodes.
    Three,
    /// For a bucket: as the cluster's default says.
    Default,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Om,
    Scm,
}

impl Service {
    /// As paths and people have it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Om => "om",
            Self::Scm => "scm",
        }
    }

    /// As the configuration has it.
    pub(super) const fn group(self) -> Group {
        match self {
            Self::Om => Group::Om,
            Self::Scm => Group::Scm,
        }
    }

    /// The path of its Raft group.
    pub(super) fn path(self) -> String {
        format!("/api/v1/groups/{}", self.name())
    }
}

pub(super) async fn run_om(screen: &Screen, command: OmCommand) -> anyhow::Result<()> {
    let (replication, bucket) = match command {
        OmCommand::Group(command) => return run(screen, Service::Om, command).await,
        OmCommand::SetReplication { replication, bucket } => (replication, bucket),
    };
    let wanted = match replication {
        ReplicationWord::One => Some(Replication::One),
        ReplicationWord::Three => Some(Replication::Three),
        ReplicationWord::Default => None,
    };
    if wanted.is_none() && bucket.is_none() {
        bail!("`default` is for a bucket: name it by --bucket");
    }
    let body = json!({ "replication": wanted, "bucket": bucket });
    let answer = screen.api.ask("PUT", "/api/v1/replication", Some(body)).await?;
    let of = bucket.map_or_else(String::new, |bucket| format!(" of bucket {bucket}"));
    let on = match wanted {
        Some(wanted) => format!("on {}", replicas(wanted)),
        None => "where the cluster's default says".to_owned(),
    };
    screen.done(&answer, &format!("New keys{of} lie {on}. Those that exist stay as they are."))
}

pub(super) async fn run(screen: &Screen, service: Service, command: GroupCommand) -> anyhow::Result<()> {
    match command {
        GroupCommand::Show => show(screen, service).await,
        GroupCommand::Members => screen.show(&service.path(), |group: GroupInfo| group_text(&group)).await,
        GroupCommand::AddPeer { peer, patience } => {
            let member = peer.member(screen, service)?;
            membership::add(screen, service, &member, &patience).await?;
            show_members(screen, service).await
        }
        GroupCommand::RemovePeer { peer, force } => {
            let group: GroupInfo = screen.api.get(&service.path()).await?;
            let raft_id = find(&group, &peer)?.member.raft_id;
            membership::remove(screen, service, raft_id, force).await?;
            show_members(screen, service).await
        }
        GroupCommand::Backup { file } => {
            let length = crate::backup::keep(&screen.api, service.name(), &file).await?;
            let answer = json!({ "file": file, "bytes": length });
            screen
                .done(&answer, &format!("{} of {} are in {}.", size(length), service.name(), file.display()))
        }
        GroupCommand::TransferLeader { to } => {
            let raft_id = match to {
                Some(to) => Some(find(&screen.api.get(&service.path()).await?, &to)?.member.raft_id),
                None => None,
            };
            membership::transfer(screen, service, raft_id).await?;
            show_members(screen, service).await
        }
    }
}

async fn show_members(screen: &Screen, service: Service) -> anyhow::Result<()> {
    screen.show(&service.path(), |group: GroupInfo| group_text(&group)).await
}

async fn show(screen: &Screen, service: Service) -> anyhow::Result<()> {
    let overview = screen.api.ask("GET", &format!("/api/v1/{}", service.name()), None).await?;
    let group = screen.api.ask("GET", &service.path(), None).await?;
    screen.print(json!({ "overview": overview, "group": group }), |answer| {
        let overview = answer["overview"].clone();
        let overview = match service {
            Service::Om => om_text(&read(overview)?, clock::now_ms()),
            Service::Scm => scm_text(&read(overview)?),
        };
        Ok(format!("{overview}\n{}", group_text(&read(answer["group"].clone())?)))
    })
}

/// A member's name for people. A server that is a cluster of its own has none in its group.
pub(super) fn member_name(member: &Member) -> String {
    if member.node.is_empty() { format!("replica {}", member.raft_id) } else { member.node.clone() }
}

/// A member by its node's name or raft id.
pub(super) fn find<'a>(group: &'a GroupInfo, peer: &str) -> anyhow::Result<&'a MemberInfo> {
    let named: Vec<&MemberInfo> = group.members.iter().filter(|member| member.member.node == peer).collect();
    if let [member] = named.as_slice() {
        return Ok(member);
    }
    let by_id = peer
        .parse()
        .ok()
        .and_then(|raft_id: u64| group.members.iter().find(|member| member.member.raft_id == raft_id));
    by_id.with_context(|| {
        let known: Vec<String> = group
            .members
            .iter()
            .map(|member| format!("{} ({})", member_name(&member.member), member.member.raft_id))
            .collect();
        format!("{} has no one member {peer:?}; it has {}", group.group, known.join(", "))
    })
}

fn om_text(om: &OmOverview, now_ms: UnixMs) -> String {
    let backlog = match om.deletion_oldest_ms {
        Some(oldest_ms) => {
            format!("{}, the oldest freed {}", count(om.deletion_backlog, "block"), ago(oldest_ms, now_ms))
        }
        None => count(om.deletion_backlog, "block"),
    };
    fields(&[
        ("volumes", om.volumes.to_string()),
        ("buckets", om.buckets.to_string()),
        ("keys", format!("{}, {}", om.keys, size(om.bytes))),
        ("replication", replicas(om.default_replication)),
        ("sessions", format!("{} of gateways, {}", om.sessions, count(om.loans, "loan"))),
        ("uploads", om.uploads.to_string()),
        ("deletion", backlog),
        ("work", count(om.work_backlog, "item")),
    ])
}

fn scm_text(scm: &ScmOverview) -> String {
    let mut lines = vec![
        (
            "containers",
            format!(
                "{} open, {} closing, {} closed, {} deleting",
                scm.open, scm.closing, scm.closed, scm.deleting
            ),
        ),
        ("leases", scm.leases.to_string()),
        ("deletions", format!("{} pending", scm.deletions_pending)),
    ];
    lines.extend(scm.awaiting.iter().map(|awaited| ("writes wait", awaited.clone())));
    fields(&lines)
}

/// Members with how far each is, then the group's own numbers.
pub(super) fn group_text(group: &GroupInfo) -> String {
    let behind = |index: u64| match group.log_last_index.saturating_sub(index) {
        0 => "-".to_owned(),
        entries => entries.to_string(),
    };
    let rows = group.members.iter().map(|member| {
        let health = match (member.is_leader, member.is_active) {
            (true, _) => "leads",
            (_, Some(true)) => "follows",
            (_, Some(false)) => "SILENT",
            (_, None) => "?",
        };
        vec![
            member.member.raft_id.to_string(),
            member_name(&member.member),
            member.member.address.to_string(),
            word(&member.role),
            health.to_owned(),
            member.match_index.map_or_else(|| "?".to_owned(), behind),
        ]
    });
    let members = table(&[">raft id", "node", "address", "role", "health", ">behind"], rows);
    format!(
        "{members}{} at term {}, {}; log {} to {}\n",
        group.group,
        group.term,
        format_args!("committed {}, applied {}", group.commit_index, group.applied_index),
        group.log_first_index,
        group.log_last_index
    )
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::group_info;
    use super::*;

    #[test]
    fn members_are_shown_with_how_far_each_is() {
        assert_eq!(
            group_text(&group_info("om")),
            "RAFT ID  NODE  ADDRESS  ROLE     HEALTH   BEHIND\n\
             \x20     1  m1    m1:9002  voter    follows       -\n\
             \x20     2  m2    m2:9002  voter    leads         -\n\
             \x20     3  m3    m3:9002  learner  SILENT        1\n\
             om at term 4, committed 98, applied 98; log 1 to 98\n"
        );
    }

    #[test]
    fn member_is_found_by_name_or_number() {
        let group = group_info("om");
        assert_eq!(find(&group, "m3").unwrap().member.raft_id, 3);
        assert_eq!(find(&group, "1").unwrap().member.node, "m1");
        let error = find(&group, "m9").unwrap_err().to_string();
        assert_eq!(error, "om has no one member \"m9\"; it has m1 (1), m2 (2), m3 (3)");
    }

    #[test]
    fn services_are_shown_at_a_glance() {
        let om = OmOverview {
            volumes: 1,
            buckets: 2,
            keys: 3,
            bytes: 5 << 30,
            sessions: 1,
            loans: 1,
            uploads: 0,
            deletion_backlog: 4,
            deletion_oldest_ms: Some(1000),
            work_backlog: 0,
            default_replication: Replication::Three,
            delete_grace_ms: Some(3_600_000),
        };
        assert_eq!(
            om_text(&om, 61_000),
            "volumes      1\nbuckets      2\nkeys         3, 5.0 GiB\nreplication  3 datanodes\n\
             sessions     1 of gateways, 1 loan\nuploads      0\ndeletion     4 blocks, the oldest freed 60 s ago\n\
             work         0 items\n"
        );
        let scm = ScmOverview {
            open: 1,
            closing: 0,
            closed: 2,
            deleting: 0,
            leases: 1,
            deletions_pending: 0,
            awaiting: vec!["three datanodes; one is live".to_owned()],
        };
        assert!(scm_text(&scm).ends_with("writes wait  three datanodes; one is live\n"));
    }
}
