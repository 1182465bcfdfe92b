//! Groups of several voters: elections, replication, failover, what proposers and readers are told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use bytes::Bytes;
use common::net::{Net, member};
use common::{REGISTER, Registers};
use consensus::{ChangeError, Group, GroupConfig, OpenError, PeerEndpoint, ProposeError, ReadError, Rows};
use wire::group::{MemberRole, MembershipChange};

async fn set(net: &Net, group: &Group<Registers>, name: &str, value: &str) -> Result<String, ProposeError> {
    net.during(group.propose(Bytes::from(format!("set {name} {value}")))).await
}

async fn get(net: &Net, group: &Group<Registers>, name: &str) -> Result<Option<String>, ReadError> {
    let view = net.during(group.read()).await?;
    Ok(view.get(REGISTER, name.as_bytes()).unwrap().map(|bytes| String::from_utf8(bytes).unwrap()))
}

fn id(group: &Group<Registers>) -> u64 {
    group.info().raft_id
}

fn others(all: &[u64], one: u64) -> Vec<u64> {
    all.iter().copied().filter(|other| *other != one).collect()
}

#[tokio::test]
async fn three_voters_elect_replicate_and_fail_over() {
    let mut net = Net::new(3);
    let leader = net.leader().await;
    for count in 0..20 {
        set(&net, &leader, &format!("r{count}"), "first").await.unwrap();
    }
    assert_eq!(get(&net, &leader, "r7").await.unwrap().as_deref(), Some("first"));
    net.agree(&[1, 2, 3]).await;

    let lost = id(&leader);
    drop(leader);
    net.isolate(lost);
    let rest = others(&[1, 2, 3], lost);
    let leader = net.leader_among(&rest).await;
    set(&net, &leader, "after", "failover").await.unwrap();
    assert_eq!(get(&net, &leader, "r19").await.unwrap().as_deref(), Some("first"));
    net.heal();
    net.agree(&[1, 2, 3]).await;

    drop(leader);
    for raft_id in [1, 2, 3] {
        net.stop(raft_id).await;
        net.start(raft_id);
        let leader = net.leader().await;
        set(&net, &leader, "restarted", &raft_id.to_string()).await.unwrap();
    }
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn followers_take_no_commands_and_say_who_leads() {
    let net = Net::new(3);
    let leader = id(&net.leader().await);
    net.ticks(2).await;
    for follower in others(&[1, 2, 3], leader) {
        let group = net.group(follower);
        let refused = set(&net, &group, "a", "b").await;
        assert!(
            matches!(refused, Err(ProposeError::NotLeader { hint: Some(hint) }) if hint == leader),
            "{refused:?}"
        );
        let refused = get(&net, &group, "a").await;
        assert!(
            matches!(refused, Err(ReadError::NotLeader { hint: Some(hint) }) if hint == leader),
            "{refused:?}"
        );
        assert_eq!(group.member(leader), Some(member(leader)));
        assert_eq!(
            *group.leadership().borrow(),
            consensus::Leadership { term: group.status().term, is_leading: false, leader: Some(leader) }
        );
    }
}

#[tokio::test]
async fn an_isolated_leader_serves_no_read_and_acknowledges_nothing() {
    let net = Net::new(3);
    let old = net.leader().await;
    set(&net, &old, "a", "old").await.unwrap();
    let rest = others(&[1, 2, 3], id(&old));
    net.isolate(id(&old));
    // Before it knows: nobody answers its question.
    assert!(old.status().is_leader);
    let (read, written) = tokio::join!(get(&net, &old, "a"), set(&net, &old, "a", "lost"));
    assert!(matches!(read, Err(ReadError::NotLeader { .. } | ReadError::TimedOut)), "{read:?}");
    assert!(matches!(written, Err(ProposeError::Unknown)), "{written:?}");
    let new = net.leader_among(&rest).await;
    set(&net, &new, "a", "new").await.unwrap();
    assert!(get(&net, &old, "a").await.is_err());
    net.heal();
    net.agree(&[1, 2, 3]).await;
    assert_eq!(get(&net, &net.leader().await, "a").await.unwrap().as_deref(), Some("new"));
}

#[tokio::test]
async fn an_overwritten_command_is_refused_for_certain() {
    let net = Net::new(3);
    let old = net.leader().await;
    let rest = others(&[1, 2, 3], id(&old));
    for other in &rest {
        net.cut(id(&old), *other);
    }
    let lost = old.propose(Bytes::from_static(b"set a lost"));
    tokio::pin!(lost);
    // It is in the old leader's log and nowhere else.
    let last = old.status().log_last_index;
    tokio::select! {
        biased;
        outcome = &mut lost => panic!("{outcome:?}"),
        () = net.until("the append", || (old.status().log_last_index > last).then_some(())) => {}
    }
    let new = net.leader_among(&rest).await;
    net.heal();
    let outcome = net.during(lost).await;
    assert!(matches!(outcome, Err(ProposeError::NotLeader { .. } | ProposeError::Unknown)), "{outcome:?}");
    net.agree(&[1, 2, 3]).await;
    assert_eq!(get(&net, &new, "a").await.unwrap(), None);
}

#[tokio::test]
async fn repeated_reordered_and_stale_messages_do_no_harm() {
    let net = Net::new(3);
    net.garble();
    let leader = net.leader().await;
    for count in 0..30 {
        set(&net, &leader, &format!("r{count}"), "x").await.unwrap();
    }
    let term = leader.status().term;
    net.repeat_the_past();
    net.ticks(5).await;
    assert_eq!(leader.status().term, term);
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_returning_replica_does_not_disturb() {
    let net = Net::new(3);
    let leader = net.leader().await;
    let away = others(&[1, 2, 3], id(&leader))[0];
    let term = leader.status().term;
    net.isolate(away);
    net.ticks(60).await;
    assert_eq!(net.group(away).status().term, term, "it asks before it calls an election");
    net.heal();
    net.ticks(30).await;
    assert!(leader.status().is_leader && leader.status().term == term);
}

#[tokio::test]
async fn one_way_cuts_leave_one_leader_that_works() {
    let net = Net::new(3);
    let deaf = net.leader().await;
    let rest = others(&[1, 2, 3], id(&deaf));
    for other in &rest {
        net.cut(*other, id(&deaf));
    }
    // It is heard and hears nobody: others lead before its own check of the quorum (ten ticks at least) is over.
    net.ticks(10).await;
    let leads = |raft_id: &&u64| net.group(**raft_id).status().is_leader;
    let leader = net.group(*rest.iter().find(leads).expect("one of the others leads by now"));
    set(&net, &leader, "a", "b").await.unwrap();
    // And it must give up, or it would promise what it cannot keep.
    net.until("it to give up", || (!deaf.status().is_leader).then_some(())).await;
    net.heal();
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn packets_for_others_are_refused() {
    let net = Net::new(3);
    net.leader().await;
    let (_, to, packet) = net.past().pop().unwrap();
    let wrong = if to == 1 { 2 } else { 1 };
    assert!(net.group(to).receive(packet.clone()).await.is_ok());
    assert!(net.group(wrong).receive(packet.clone()).await.is_err());
    assert!(net.group(to).receive(Bytes::from_static(b"junk")).await.is_err());
    assert!(net.group(to).receive(packet.slice(..packet.len() - 1)).await.is_err());
}

#[tokio::test]
async fn members_join_are_promoted_and_leave() {
    let mut net = Net::new(1);
    let leader = net.leader().await;
    set(&net, &leader, "a", "alone").await.unwrap();
    for raft_id in [2, 3] {
        net.start(raft_id);
        net.during(leader.change_membership(MembershipChange::AddLearner(member(raft_id)))).await.unwrap();
        net.agree(&[1, raft_id]).await;
        net.during(leader.change_membership(MembershipChange::Promote { raft_id })).await.unwrap();
        net.agree(&[1, raft_id]).await;
    }
    let info = net.group(3).info();
    assert_eq!(info.members.len(), 3);
    assert!(info.members.iter().all(|info| info.role == MemberRole::Voter));
    assert_eq!(get(&net, &leader, "a").await.unwrap().as_deref(), Some("alone"));

    let again = net.during(leader.change_membership(MembershipChange::AddLearner(member(3)))).await;
    assert!(matches!(again, Err(ChangeError::Refused(_))), "{again:?}");
    // The leader goes: the others lead on, and it says that it is gone.
    let gone = MembershipChange::Remove { raft_id: 1, force: false };
    net.during(leader.change_membership(gone)).await.unwrap();
    let next = net.leader_among(&[2, 3]).await;
    set(&net, &next, "a", "without 1").await.unwrap();
    net.until("it to notice", || net.group(1).is_removed().then_some(())).await;
    let term = next.status().term;
    net.ticks(60).await;
    assert_eq!(next.status().term, term, "a removed replica disturbs nobody");
    let back = net.during(next.change_membership(MembershipChange::AddLearner(member(1)))).await;
    assert!(matches!(back, Err(ChangeError::Refused(_))), "{back:?}");

    // Two are left; without the other one the rest could not write.
    net.isolate(5 - id(&next));
    net.ticks(7).await;
    let last = net
        .during(next.change_membership(MembershipChange::Remove { raft_id: id(&next), force: false }))
        .await;
    assert!(matches!(last, Err(ChangeError::Refused(_))), "{last:?}");
    net.heal();
    let next = net.leader_among(&[2, 3]).await;
    let other = 5 - id(&next);
    net.during(next.change_membership(MembershipChange::Remove { raft_id: other, force: false }))
        .await
        .unwrap();
    let last = net
        .during(next.change_membership(MembershipChange::Remove { raft_id: id(&next), force: true }))
        .await;
    assert!(matches!(last, Err(ChangeError::Refused(_))), "{last:?}");
    set(&net, &next, "a", "alone again").await.unwrap();
}

#[tokio::test]
async fn a_leader_that_is_removed_under_load_goes_at_once() {
    let net = Net::new(3);
    let leader = net.leader().await;
    let gone = id(&leader);
    // Entries behind the change are committed after the leader is no member any more.
    let change = MembershipChange::Remove { raft_id: gone, force: false };
    let writes = (0..64).map(|number| leader.propose(Bytes::from(format!("set busy {number}"))));
    let both =
        async { tokio::join!(leader.change_membership(change), futures_util::future::join_all(writes)) };
    let (removed, _) = net.during(both).await;
    removed.unwrap();
    let next = net.leader_among(&others(&[1, 2, 3], gone)).await;
    set(&net, &next, "busy", "without it").await.unwrap();
    net.until("it to notice", || net.group(gone).is_removed().then_some(())).await;
    assert!(!net.group(gone).status().is_leader);
}

#[tokio::test]
async fn leadership_is_handed_over_on_request_and_at_shutdown() {
    let net = Net::new(3);
    let leader = net.leader().await;
    let to = others(&[1, 2, 3], id(&leader))[1];
    net.during(leader.transfer_leadership(to)).await.unwrap();
    let next = net.leader().await;
    assert_eq!(id(&next), to);
    let term = next.status().term;
    drop((leader, next));
    net.stop(to).await;
    let rest = others(&[1, 2, 3], to);
    let last = net.leader_among(&rest).await;
    assert_eq!(last.status().term, term + 1, "nobody waited for a timeout");
    assert!(net.during(last.transfer_leadership(9)).await.is_err());
}

#[tokio::test]
async fn five_voters_bear_two_losses() {
    let net = Net::new(5);
    let leader = net.leader().await;
    set(&net, &leader, "a", "b").await.unwrap();
    let lost = [id(&leader), others(&[1, 2, 3, 4, 5], id(&leader))[0]];
    lost.iter().for_each(|lost| net.isolate(*lost));
    let rest: Vec<u64> = (1..=5).filter(|id| !lost.contains(id)).collect();
    let leader = net.leader_among(&rest).await;
    assert_eq!(get(&net, &leader, "a").await.unwrap().as_deref(), Some("b"));
    set(&net, &leader, "a", "c").await.unwrap();
    net.heal();
    net.agree(&[1, 2, 3, 4, 5]).await;
}

fn address_of(observer: &Group<Registers>, raft_id: u64) -> String {
    let info = observer.info();
    let listed = info.members.iter().find(|info| info.member.raft_id == raft_id).unwrap();
    listed.member.address.as_str().to_owned()
}

#[tokio::test]
async fn a_copied_replica_never_counts_beside_the_one_it_was_copied_from() {
    const COPY: u64 = 101;
    let mut net = Net::new(3);
    let leader = net.leader().await;
    set(&net, &leader, "a", "before the copy").await.unwrap();
    net.agree(&[1, 2, 3]).await;
    let copied = others(&[1, 2, 3], id(&leader))[0];
    let third = 6 - id(&leader) - copied;
    net.stop(copied).await;
    let dir = net.copy(copied);
    net.start(copied);
    set(&net, &leader, "a", "after the copy").await.unwrap();
    net.agree(&[1, 2, 3]).await;

    let copy = net.start_elsewhere(COPY, copied, dir);
    let (term, applied) = (leader.status().term, copy.status().applied_index);
    net.ticks(100).await;
    assert!(leader.status().is_leader && leader.status().term == term, "its wish to lead disturbs nobody");
    assert_eq!(copy.status().applied_index, applied, "nobody sends it anything");
    let home = member(copied).address;
    for observer in [id(&leader), third] {
        assert_eq!(address_of(&net.group(observer), copied), home.as_str());
        let (_, _, packet) =
            net.past().into_iter().rev().find(|(from, to, _)| (*from, *to) == (COPY, observer)).unwrap();
        let refused = net.group(observer).receive(packet).await.unwrap_err();
        assert!(refused.message.contains("stop one of the two"), "{refused}");
    }

    // Two of the three that are left elect, and they are not the copy and another one.
    let lost = id(&leader);
    drop(leader);
    net.isolate(lost);
    let next = net.leader_among(&[copied, third]).await;
    set(&net, &next, "a", "without the leader").await.unwrap();
    net.ticks(50).await;
    assert!(!copy.status().is_leader && copy.status().applied_index == applied);
    net.heal();
    net.agree(&[1, 2, 3]).await;
}

#[tokio::test]
async fn a_replica_and_its_copy_that_start_at_once_have_one_vote() {
    const COPY: u64 = 101;
    let mut net = Net::new(3);
    let leader = net.leader().await;
    set(&net, &leader, "a", "b").await.unwrap();
    net.agree(&[1, 2, 3]).await;
    drop(leader);
    for raft_id in [1, 2, 3] {
        net.stop(raft_id).await;
    }
    let dir = net.copy(1);
    let copy = net.start_elsewhere(COPY, 1, dir);
    for raft_id in [1, 2, 3] {
        net.start(raft_id);
    }
    // Each of them hears the others; those who count the first one do not count its copy.
    let leader = net.leader_among(&[1, 2, 3]).await;
    net.ticks(100).await;
    assert!(!copy.status().is_leader);
    set(&net, &leader, "a", "c").await.unwrap();
    net.agree(&[1, 2, 3]).await;
    for observer in [2, 3] {
        assert_eq!(address_of(&net.group(observer), 1), member(1).address.as_str());
    }
}

#[tokio::test]
async fn a_replica_that_restarts_is_heard_at_once_and_one_that_moves_after_a_second() {
    let mut net = Net::new(3);
    let leader = net.leader().await;
    let moved = others(&[1, 2, 3], id(&leader))[0];
    net.stop(moved).await;
    set(&net, &leader, "a", "meanwhile").await.unwrap();
    let again = net.start(moved);
    net.ticks(4).await;
    assert_eq!(again.status().applied_index, leader.status().applied_index);
    drop(again);
    let again = net.kill(moved);
    set(&net, &leader, "a", "after a crash").await.unwrap();
    net.ticks(4).await;
    assert_eq!(again.status().applied_index, leader.status().applied_index);

    drop(again);
    net.stop(moved).await;
    set(&net, &leader, "a", "meanwhile").await.unwrap();
    let dir = net.copy(moved);
    let elsewhere = net.start_elsewhere(102, moved, dir);
    net.ticks(16).await;
    assert_eq!(elsewhere.status().applied_index, leader.status().applied_index);
    assert_eq!(address_of(&leader, moved), "elsewhere102:9002");
}

#[tokio::test]
async fn the_vote_of_a_replica_that_has_restarted_under_a_leader_counts_at_once() {
    let mut net = Net::new(3);
    let leader = net.leader().await;
    let followers = others(&[1, 2, 3], id(&leader));
    let (third, again) = (followers[0], followers[1]);
    // The leader speaks to it at once, and followers have nothing to say to one another.
    net.kill(again);
    net.ticks(4).await;
    let term = leader.status().term;
    for follower in followers {
        net.cut(follower, id(&leader));
    }
    // A leader that hears nobody asks the last one to lead: before anybody calls an election by himself.
    net.ticks(10).await;
    let elected = net.group(again).status();
    assert_eq!((elected.is_leader, elected.term), (true, term + 1), "{third} has voted");
}

#[tokio::test]
async fn a_learner_that_is_away_does_not_become_a_voter() {
    let mut net = Net::new(1);
    let leader = net.leader().await;
    net.start(2);
    net.during(leader.change_membership(MembershipChange::AddLearner(member(2)))).await.unwrap();
    net.agree(&[1, 2]).await;
    net.isolate(2);
    net.ticks(10).await;
    let promoted = net.during(leader.change_membership(MembershipChange::Promote { raft_id: 2 })).await;
    assert!(
        matches!(&promoted, Err(ChangeError::Refused(why)) if why.contains("does not answer")),
        "{promoted:?}"
    );
    // The group works and changes on.
    set(&net, &leader, "a", "b").await.unwrap();
    net.during(leader.change_membership(MembershipChange::Remove { raft_id: 2, force: false }))
        .await
        .unwrap();
}

fn often(config: &mut GroupConfig) {
    config.state_hash_entries = 20;
}

async fn set_many(net: &Net, ids: &[u64]) {
    for number in 0..60 {
        let leader = net.leader_among(ids).await;
        // Leadership may move when one of them ends.
        let _ = set(net, &leader, &format!("r{number}"), "x").await;
    }
}

#[tokio::test]
async fn a_replica_that_differs_from_most_ends_for_good() {
    const WRONG: u64 = 3;
    let mut net = Net::with(3, often);
    let leader = net.leader().await;
    set(&net, &leader, "a", "b").await.unwrap();
    drop(leader);
    net.stop(WRONG).await;
    net.start_wrong(WRONG);
    platform::abort::take_aborted();
    set_many(&net, &[1, 2]).await;
    net.until("its end", || platform::abort::has_aborted(WRONG as u32).then_some(())).await;
    let ended = platform::abort::take_aborted();
    assert!(ended.iter().all(|(node, _)| u64::from(*node) == WRONG), "{ended:?}");
    assert!(ended[0].1.contains("differ from those of most voters"), "{ended:?}");

    // The next start would serve the same wrong rows.
    let Err(refused) = net.open_again(WRONG) else { panic!("it came back") };
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::Unsound { raft_id: WRONG, .. }), "{text}");
    assert!(text.contains("remove-peer") && text.contains("differ from those of most"), "{text}");

    let leader = net.leader_among(&[1, 2]).await;
    set(&net, &leader, "a", "without it").await.unwrap();
    assert_eq!(get(&net, &leader, "r7").await.unwrap().as_deref(), Some("x"));
    net.agree(&[1, 2]).await;
    assert!(net.open_again(1).is_ok());
}

#[tokio::test]
async fn a_difference_that_no_majority_settles_is_told_by_both() {
    let mut net = Net::with(3, often);
    net.leader().await;
    net.stop(2).await;
    net.start_wrong(2);
    net.leader().await;
    // One of three is away: nobody can say which of the two is right.
    net.isolate(3);
    platform::abort::take_aborted();
    set_many(&net, &[1, 2]).await;
    // At entries 20, 40 and 60.
    let counts = || [1, 2].map(|raft_id| net.group(raft_id).status().state_mismatches);
    net.until("the word of both", || counts().iter().all(|count| *count >= 3).then_some(())).await;
    net.ticks(30).await;
    assert_eq!(counts(), [3, 3], "each once");
    assert_eq!(platform::abort::take_aborted(), []);
}
