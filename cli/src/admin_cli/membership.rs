//! Members of the Raft groups that come and go, with progress until they have.
//!
//! ```text
//!   add:      refused without the file of a node that waits -> learner -> catches up -> voter
//!   replace:  add in both groups -> remove the lost one from both
//! ```
//!
//! Every step looks first whether it was done already, so that a command that was broken off is simply given again.
//!
//! Invariants:
//! * The lost member goes after its successor votes: the group is never smaller than it need be.
//! * Nothing here is decided by this program alone: the group's leader refuses what would cost it its majority.
//!
//! Not here: joint consensus, catching up (the crate `consensus`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use wire::group::{GroupInfo, Member, MemberInfo, MemberRole};

use super::Screen;
use super::group::{Service, group_text};
use crate::config::{Config, Span};
use crate::identity::Cluster;
use crate::reach::Refusal;

/// Between two looks at a replica that catches up.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);
/// A leader that took over is found by the others within this.
const LEADER_PATIENCE: Duration = Duration::from_secs(5);
/// A replica so few entries behind is caught up: entries go on coming.
const BEHIND_MAX: u64 = 100;

/// Which node to add.
#[derive(Debug, Args)]
pub(super) struct NewPeer {
    /// The new node's configuration, as `ferrozone cluster add-node` made it.
    #[arg(value_name = "NODE_TOML")]
    node: PathBuf,
}

/// How long to wait.
#[derive(Debug, Clone, Args)]
pub(super) struct Patience {
    /// How long a replica may take to catch up; given again, the command goes on where it was.
    #[arg(long, default_value = "10m", value_parser = span)]
    timeout: Duration,
}

fn span(text: &str) -> Result<Duration, String> {
    text.parse::<Span>().map(|span| span.0)
}

impl NewPeer {
    /// The replica that the node waits to be.
    pub(super) fn member(&self, screen: &Screen, service: Service) -> anyhow::Result<Member> {
        let name = service.name();
        waiting_member(screen, &self.node, service)?.with_context(|| {
            format!("{} has no role {name}: nothing to add to {name}'s group", self.node.display())
        })
    }
}

/// The replica that the node of a configuration waits to be; None if it is to have none of this service.
fn waiting_member(screen: &Screen, file: &Path, service: Service) -> anyhow::Result<Option<Member>> {
    let config = Config::load(Some(file), std::iter::empty())?;
    let cluster = Cluster::load(&config.cluster_file())?;
    if cluster.id != screen.api.cluster() {
        bail!(
            "{} is of cluster {}, the members are of cluster {}: make the node's files by `ferrozone cluster add-node` \
             from the directory of that cluster",
            file.display(),
            cluster.id,
            screen.api.cluster()
        );
    }
    let Some(place) = config.place(service.group())? else { return Ok(None) };
    if !place.is_joining {
        bail!(
            "{} is one of the first voters, which are members from the beginning; a node that is to be added is made by \
             `ferrozone cluster add-node`",
            config.node.name
        );
    }
    Ok(Some(place.member))
}

/// Adds a replica and waits until it votes.
pub(super) async fn add(
    screen: &Screen,
    service: Service,
    member: &Member,
    patience: &Patience,
) -> anyhow::Result<()> {
    let group: GroupInfo = screen.api.get(&service.path()).await?;
    if standing(&group, member)?.is_none() {
        let body = serde_json::to_value(member).context("write the member")?;
        screen.api.ask("POST", &format!("{}/members", service.path()), Some(body)).await?;
        say(service, member, "added as a learner");
    }
    let began = tokio::time::Instant::now();
    let mut told = String::new();
    loop {
        let group: GroupInfo = screen.api.get(&service.path()).await?;
        let standing = standing(&group, member)?;
        let progress = match standing {
            Some(MemberInfo { role: MemberRole::Voter, .. }) => {
                say(service, member, "votes");
                return Ok(());
            }
            Some(info) => progress(&group, info),
            None => Progress::Away("not a member yet".to_owned()),
        };
        match progress {
            Progress::Ready => match promote(screen, service, member.raft_id).await {
                Ok(()) => continue,
                // A moment too early, or another change is under way.
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error),
            },
            Progress::Away(word) | Progress::Behind(word) if word != told => {
                say(service, member, &word);
                told = word;
            }
            Progress::Away(_) | Progress::Behind(_) => {}
        }
        if began.elapsed() >= patience.timeout {
            let message = format!(
                "{}: {} (raft id {}) did not catch up within {} s and stays a learner ({told}). Is its server running? Look at \
                 its log, then give the command again",
                service.name(),
                member.node,
                member.raft_id,
                patience.timeout.as_secs()
            );
            return Err(Refusal { code: "unavailable".to_owned(), message }.into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The member as it stands in the group. Another life under its raft id is an error.
fn standing<'a>(group: &'a GroupInfo, member: &Member) -> anyhow::Result<Option<&'a MemberInfo>> {
    let found = group.members.iter().find(|info| info.member.raft_id == member.raft_id);
    if found.is_some_and(|info| info.member.incarnation != member.incarnation) {
        return Err(Refusal::conflict(format!(
            "{} has another member with raft id {}: make the node's files anew by `ferrozone cluster add-node`",
            group.group, member.raft_id
        ))
        .into());
    }
    Ok(found)
}

enum Progress {
    Away(String),
    Behind(String),
    Ready,
}

fn progress(group: &GroupInfo, info: &MemberInfo) -> Progress {
    match (info.is_active, info.match_index) {
        (Some(true), Some(held)) if held + BEHIND_MAX >= group.log_last_index => Progress::Ready,
        (Some(true), Some(held)) => {
            Progress::Behind(format!("catches up: entry {held} of {}", group.log_last_index))
        }
        (Some(false), _) => Progress::Away("is waited for: its server must run".to_owned()),
        _ => Progress::Away("nobody leads at the moment".to_owned()),
    }
}

async fn promote(screen: &Screen, service: Service, raft_id: u64) -> anyhow::Result<()> {
    screen.api.ask("POST", &format!("{}/members/{raft_id}/promote", service.path()), None).await.map(drop)
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(Refusal::is_conflict)
}

/// On standard error: standard output is for the answer.
fn say(service: Service, member: &Member, what: &str) {
    eprintln!("{}: {} (raft id {}): {what}", service.name(), member.node, member.raft_id);
}

/// Removes a member.
pub(super) async fn remove(
    screen: &Screen,
    service: Service,
    raft_id: u64,
    force: bool,
) -> anyhow::Result<()> {
    let path = format!("{}/members/{raft_id}?force={force}", service.path());
    screen.api.ask("DELETE", &path, None).await.map(drop)
}

/// Hands leadership on, and waits until the new leader speaks.
pub(super) async fn transfer(screen: &Screen, service: Service, raft_id: Option<u64>) -> anyhow::Result<()> {
    let body = json!({ "raft_id": raft_id });
    screen.api.ask("POST", &format!("{}/transfer", service.path()), Some(body)).await?;
    let began = tokio::time::Instant::now();
    while began.elapsed() < LEADER_PATIENCE {
        let group: GroupInfo = screen.api.get(&service.path()).await?;
        // A follower does not know how far the others are, and a new leader does not at once.
        let speaks_itself = group.leader == Some(group.raft_id)
            && group.members.iter().any(|info| info.is_leader && info.member.raft_id == group.raft_id);
        if speaks_itself && raft_id.is_none_or(|raft_id| group.raft_id == raft_id) {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// A node on its way into the groups.
struct Joining {
    service: Service,
    member: Member,
    /// Raft ids of the one whose place it takes.
    lost: Vec<u64>,
}

/// Adds a node to the groups of the roles it has; with `old`, removes that one from them afterwards.
pub(super) async fn add_node(
    screen: &Screen,
    new: &Path,
    old: Option<&str>,
    patience: &Patience,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for service in [Service::Scm, Service::Om] {
        let Some(member) = waiting_member(screen, new, service)? else { continue };
        let group: GroupInfo = screen.api.get(&service.path()).await?;
        let is_old = |info: &&MemberInfo| old == Some(info.member.node.as_str());
        let lost: Vec<u64> = group.members.iter().filter(is_old).map(|info| info.member.raft_id).collect();
        // Given again after it was done, the command finds the new one in the old one's place.
        if let Some(old) = old.filter(|_| lost.is_empty())
            && standing(&group, &member)?.is_none()
        {
            super::group::find(&group, old)?;
        }
        all.push(Joining { service, member, lost });
    }
    if all.is_empty() {
        bail!(
            "{} has neither om nor scm: start its server, nothing is to be added; a lost datanode is struck off by `ferrozone \
             admin datanode forget`",
            new.display()
        );
    }
    for Joining { service, member, .. } in &all {
        add(screen, *service, member, patience).await?;
    }
    for Joining { service, member, lost } in &all {
        for raft_id in lost.iter().filter(|raft_id| **raft_id != member.raft_id) {
            remove(screen, *service, *raft_id, false).await?;
            eprintln!("{}: {} (raft id {raft_id}): removed", service.name(), old.unwrap_or_default());
        }
    }
    show_both(screen).await
}

/// Removes a node from both groups.
pub(super) async fn remove_node(screen: &Screen, node: &str, force: bool) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for service in [Service::Scm, Service::Om] {
        let group: GroupInfo = screen.api.get(&service.path()).await?;
        if let Ok(member) = super::group::find(&group, node) {
            found.push((service, member.member.raft_id));
        }
    }
    if found.is_empty() {
        let message =
            format!("neither om nor scm has one member {node:?}: `ferrozone admin om members` lists them");
        return Err(Refusal { code: "not_found".to_owned(), message }.into());
    }
    for (service, raft_id) in found {
        remove(screen, service, raft_id, force).await?;
    }
    show_both(screen).await
}

async fn show_both(screen: &Screen) -> anyhow::Result<()> {
    let mut answers = serde_json::Map::new();
    let mut text = String::new();
    for service in [Service::Om, Service::Scm] {
        let answer = screen.api.ask("GET", &service.path(), None).await?;
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&group_text(&crate::reach::read(answer.clone())?));
        answers.insert(service.name().to_owned(), answer);
    }
    screen.print(answers.into(), |_| Ok(text))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::status::tests::group_info;
    use super::*;

    #[test]
    fn replica_is_ready_when_it_is_near_and_answers() {
        let mut group = group_info("om");
        group.log_last_index = 5000;
        let mut info = group.members[0].clone();
        assert!(
            matches!(progress(&group, &info), Progress::Behind(word) if word == "catches up: entry 99 of 5000")
        );
        info.match_index = Some(4950);
        assert!(matches!(progress(&group, &info), Progress::Ready));
        info.is_active = Some(false);
        assert!(matches!(progress(&group, &info), Progress::Away(word) if word.contains("must run")));
        (info.is_active, info.match_index) = (None, None);
        assert!(matches!(progress(&group, &info), Progress::Away(_)));
    }

    #[test]
    fn another_life_under_a_raft_id_is_refused() {
        let group = group_info("om");
        let mut member = group.members[0].member.clone();
        assert!(standing(&group, &member).unwrap().is_some());
        member.incarnation = Uuid::from_u128(99);
        let error = standing(&group, &member).unwrap_err();
        assert!(is_conflict(&error) && error.to_string().contains("raft id 1"), "{error}");
        member.raft_id = 9;
        assert!(standing(&group, &member).unwrap().is_none());
    }
}
