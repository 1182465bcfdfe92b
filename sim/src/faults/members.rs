//! Meta nodes that lose their disks and are replaced, while clients work and other things go wrong.
//!
//! ```text
//!   in order     removed from both groups -> disks wiped -> waits under a new raft id -> learner -> voter
//!   after loss   disks wiped -> removed -> waits -> learner -> voter
//!   successor    disks wiped -> waits -> learner -> voter -> the lost one is removed    (as `admin replace-node` does)
//! ```
//!
//! The operator repeats what got no answer, and looks first whether it was done. The node keeps its address: what is
//! still on its way to its former life reaches another member.
//!
//! Invariants:
//! * One at a time, and only of three or more: the others are a majority.
//!
//! Not here: that all are members in the end (`audit`).

use std::rc::Rc;
use std::time::Duration;

use client::service::{call_om, call_scm};
use platform::node::NodeIndex;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use wire::group::{GroupInfo, MemberRole, MembershipChange};

use super::OPERATOR_PATIENCE;
use crate::run::Run;

/// The fewest meta nodes of which one is replaced.
const METAS_MIN: usize = 3;
/// Between two tries of the operator's.
const TRY_INTERVAL: Duration = Duration::from_millis(700);
/// SCM first, as the commands do.
const GROUPS: [&str; 2] = ["scm", "om"];

/// The order of the steps.
#[derive(Debug, Clone, Copy)]
enum Course {
    InOrder,
    AfterLoss,
    SuccessorFirst,
}

/// Begins to replace a meta node, unless one is being replaced; goes on beside other faults until it is done.
pub(super) fn replace(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let metas = run.cluster.metas();
    let Some(index) = metas.choose(draws).copied() else { return };
    let courses = [Course::InOrder, Course::AfterLoss, Course::SuccessorFirst];
    let course = courses.choose(draws).copied().unwrap_or(Course::InOrder);
    let (toss, away) = (draws.random(), Duration::from_millis(draws.random_range(0..8000)));
    if metas.len() < METAS_MIN || run.is_replacing() {
        return;
    }
    run.trace.line(format!("node {index} is replaced, {course:?}"));
    run.set_replacing(true);
    let run = run.clone();
    tokio::task::spawn_local(async move {
        go(&run, index, course, toss, away).await;
        run.trace.line(format!("node {index} is replaced"));
        run.set_replacing(false);
    });
}

async fn go(run: &Rc<Run>, index: NodeIndex, course: Course, toss: u64, away: Duration) {
    let Some(lost) = run.cluster.member(index).map(|member| member.raft_id) else { return };
    if matches!(course, Course::InOrder) {
        remove(run, lost).await;
    }
    run.cluster.wipe_meta(run, index, toss);
    tokio::time::sleep(away).await;
    if matches!(course, Course::AfterLoss) {
        remove(run, lost).await;
    }
    run.cluster.start(run, index).await;
    let Some(member) = run.cluster.member(index) else { return };
    let raft_id = member.raft_id;
    for group in GROUPS {
        until(run, group, MembershipChange::AddLearner(member.clone()), |info| {
            stands(info, raft_id).is_some()
        })
        .await;
        let votes = |info: &GroupInfo| stands(info, raft_id) == Some(MemberRole::Voter);
        until(run, group, MembershipChange::Promote { raft_id }, votes).await;
    }
    if matches!(course, Course::SuccessorFirst) {
        remove(run, lost).await;
    }
}

async fn remove(run: &Rc<Run>, raft_id: u64) {
    for group in GROUPS {
        let change = MembershipChange::Remove { raft_id, force: false };
        until(run, group, change, |info| stands(info, raft_id).is_none()).await;
    }
}

fn stands(info: &GroupInfo, raft_id: u64) -> Option<MemberRole> {
    info.members.iter().find(|known| known.member.raft_id == raft_id).map(|known| known.role)
}

/// Asks for a change until the group's leader says that it is so.
async fn until(run: &Rc<Run>, group: &str, change: MembershipChange, is_done: impl Fn(&GroupInfo) -> bool) {
    let (om, scm) = (run.cluster.om(), run.cluster.scm());
    let mut told = String::new();
    while !run.has_failed() {
        // Of the leader itself: who follows may not have heard of the last change.
        let info = match run.cluster.leader(group).await {
            Some(leader) => run.cluster.group_of(group, leader).await,
            None => None,
        };
        if let Some(info) = info {
            if is_done(&info) {
                run.trace.line(format!("{group}: done: {change:?}"));
                return;
            }
            let asked = async {
                match group {
                    "om" => call_om(&*om, change.clone()).await.map_err(|error| error.to_string()),
                    _ => call_scm(&*scm, change.clone()).await.map_err(|error| error.to_string()),
                }
            };
            if let Ok(Err(why)) = tokio::time::timeout(OPERATOR_PATIENCE, asked).await
                && why != told
            {
                run.trace.line(format!("{group}: not yet {change:?}: {why}"));
                told = why;
            }
        }
        tokio::time::sleep(TRY_INTERVAL).await;
    }
}
