//! Voters whose disks are full: nobody ends, the others commit, and whoever has room again goes on by itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use common::Registers;
use common::net::Net;
use consensus::{Group, GroupConfig, ProposeError};
use futures_util::future::join_all;
use platform::disk::DiskIo as _;
use platform::simulated::SimulatedDisk;

/// Room for segments, state and reserve many times over.
const ROOMY: u64 = 256 << 20;

/// Longer than any machine takes for what a test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

struct Voters {
    net: Net,
    disks: BTreeMap<u64, SimulatedDisk>,
}

impl Voters {
    fn new() -> Voters {
        let disks: BTreeMap<_, _> = (1..=3).map(|raft_id| (raft_id, SimulatedDisk::new(ROOMY))).collect();
        let adjust = |config: &mut GroupConfig| {
            config.disk_free_min_bytes = 1 << 20;
        };
        Voters { net: Net::on_disks(3, disks.clone(), adjust), disks }
    }

    /// Somebody else takes all of the disk that is free.
    fn fill(&self, raft_id: u64) {
        let disk = &self.disks[&raft_id];
        let room = disk.room().unwrap();
        disk.set_capacity(room.capacity - room.available);
    }

    fn empty(&self, raft_id: u64) {
        self.disks[&raft_id].set_capacity(ROOMY);
    }

    async fn set(&self, group: &Group<Registers>, count: usize) -> Result<String, ProposeError> {
        let text = format!("set r{count} {}", "x".repeat(4000));
        self.net.during(group.propose(Bytes::from(text))).await
    }

    /// Time passes until it is as wanted. The log tries for room now and then by the machine's clock.
    async fn until(&self, mut wanted: impl FnMut() -> bool) {
        within_patience(async {
            while !wanted() {
                self.net.tick().await;
            }
        })
        .await;
    }

    async fn agree(&self) {
        self.until(|| {
            let all: Vec<_> = self.net.groups().iter().map(Group::status).collect();
            all.iter().all(|status| status.applied_index == all[0].log_last_index)
        })
        .await;
        self.net.agree(&[1, 2, 3]).await;
    }
}

async fn within_patience<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens within patience")
}

fn id(group: &Group<Registers>) -> u64 {
    group.info().raft_id
}

#[tokio::test]
async fn a_follower_without_room_takes_no_entries_and_catches_up_later() {
    let voters = Voters::new();
    let leader = voters.net.leader().await;
    let full = (1..=3).find(|raft_id| *raft_id != id(&leader)).unwrap();
    voters.set(&leader, 0).await.unwrap();
    voters.agree().await;
    voters.fill(full);
    // More rows than the reserve has room for.
    let term = leader.status().term;
    for count in 0..600 {
        voters.set(&leader, count).await.unwrap();
    }
    let behind = voters.net.group(full).status();
    assert!(behind.log_last_index < leader.status().commit_index, "it cannot have room for all: {behind:?}");
    assert_eq!(leader.status().term, term, "it hears the leader and calls no election");
    voters.net.ticks(60).await;
    assert_eq!((leader.status().term, leader.status().is_leader), (term, true));
    voters.empty(full);
    voters.agree().await;
    voters.set(&leader, 0).await.unwrap();
}

#[tokio::test]
async fn a_leader_without_room_hands_over_to_one_that_has_some() {
    let voters = Voters::new();
    let full = id(&voters.net.leader().await);
    voters.net.ticks(20).await;
    voters.fill(full);
    let before = voters.net.group(full);
    within_patience(async {
        while before.status().is_leader {
            let outcome = voters.set(&before, 0).await;
            assert!(
                matches!(outcome, Ok(_) | Err(ProposeError::Yielding | ProposeError::NotLeader { .. })),
                "others have room: {outcome:?}"
            );
        }
    })
    .await;
    voters
        .until(|| voters.net.groups().iter().any(|group| group.status().is_leader && id(group) != full))
        .await;
    let leader = voters.net.leader().await;
    for count in 0..100 {
        voters.set(&leader, count).await.unwrap();
    }
    assert_ne!(id(&leader), full);
    voters.empty(full);
    voters.agree().await;
}

#[tokio::test]
async fn without_a_quorum_with_room_commands_are_refused_until_there_is_one() {
    let voters = Voters::new();
    let leader = voters.net.leader().await;
    for raft_id in (1..=3).filter(|raft_id| *raft_id != id(&leader)) {
        voters.fill(raft_id);
    }
    voters.net.ticks(5).await;
    let refused = voters.set(&leader, 0).await;
    assert!(matches!(refused, Err(ProposeError::Full)), "{refused:?}");
    let freeing = voters.net.during(leader.propose_freeing(Bytes::from_static(b"del r0"))).await;
    assert!(freeing.is_ok(), "{freeing:?}");
    let one = (1..=3).find(|raft_id| *raft_id != id(&leader)).unwrap();
    voters.empty(one);
    voters.net.ticks(5).await;
    voters.set(&leader, 0).await.unwrap();
}

#[tokio::test]
async fn without_a_quorum_that_could_commit_leadership_stays_and_callers_hear_why() {
    let voters = Voters::new();
    let leader = voters.net.leader().await;
    let follower = (1..=3).find(|raft_id| *raft_id != id(&leader)).unwrap();
    voters.fill(follower);
    // More rows than its reserve has room for.
    for count in 0..600 {
        voters.set(&leader, count).await.unwrap();
    }
    voters.fill(id(&leader));
    voters.net.ticks(20).await;
    // Commands that pass although they write, until the leader's reserve is used up too and the log has given back what it
    // can.
    let full = id(&leader);
    let write = async |leader: &Group<Registers>, count: usize| {
        let text = format!("set r{count} {}", "x".repeat(4000));
        voters.net.during(leader.propose_freeing(Bytes::from(text))).await
    };
    let (mut count, mut refused_in_a_row) = (0, 0);
    while refused_in_a_row < 2 {
        match write(&leader, count).await {
            Ok(_) => (count, refused_in_a_row) = (count + 1, 0),
            Err(ProposeError::Full) => {
                refused_in_a_row += 1;
                voters.net.ticks(100).await;
            }
            Err(error) => panic!("after {count}: {error}"),
        }
        assert!(count < 20_000, "a full disk has no room for this");
    }
    // The third could take entries, and nobody else could: as a leader it would commit no more.
    assert!(leader.status().is_leader);
    let refused = voters.net.during(leader.propose_freeing(Bytes::from_static(b"del r0"))).await;
    assert!(matches!(refused, Err(ProposeError::Full)), "{refused:?}");

    // Reads go on, also if it is made to lead: a term begins on disks that take no command.
    let roomy = (1..=3).find(|raft_id| ![full, follower].contains(raft_id)).unwrap();
    voters.net.during(leader.transfer_leadership(roomy)).await.unwrap();
    let leader = voters.net.leader().await;
    assert_eq!(id(&leader), roomy);
    let view = voters.net.during(leader.read()).await;
    assert!(view.is_ok(), "{:?}", view.err());
    let refused = voters.set(&leader, 0).await;
    assert!(matches!(refused, Err(ProposeError::Full)), "{refused:?}");

    for full in [follower, full] {
        voters.empty(full);
    }
    voters.agree().await;
    // Whichever has room first may be asked to lead.
    within_patience(async {
        while let Err(error) = voters.set(&voters.net.leader().await, 0).await {
            assert!(matches!(error, ProposeError::Yielding | ProposeError::NotLeader { .. }), "{error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn commands_under_way_when_a_reserve_ends_are_taken() {
    let mut voters = Voters::new();
    let leader = voters.net.leader().await;
    let mut followers = (1..=3).filter(|raft_id| *raft_id != id(&leader));
    let (full, down) = (followers.next().unwrap(), followers.next().unwrap());
    voters.net.stop(down).await;
    voters.fill(full);
    // Eight at a time until somebody hears that the disk is full; nobody waits for ever.
    let mut count = 0;
    loop {
        let writes = (0..8).map(|number| {
            let text = format!("set r{} {}", count + number, "x".repeat(1500));
            leader.propose_freeing(Bytes::from(text))
        });
        let outcomes = voters.net.during(join_all(writes)).await;
        assert!(
            outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(ProposeError::Full))),
            "{outcomes:?}"
        );
        if outcomes.iter().any(Result::is_err) {
            break;
        }
        count += 8;
        assert!(count < 40_000, "a full disk has no room for this");
    }
    let view = voters.net.during(leader.read()).await;
    assert!(view.is_ok(), "{:?}", view.err());
    voters.empty(full);
    voters.net.start(down);
    voters.agree().await;
}

#[tokio::test]
async fn full_voters_elect_and_start_again() {
    let mut voters = Voters::new();
    let leader = voters.net.leader().await;
    voters.set(&leader, 0).await.unwrap();
    drop(leader);
    for raft_id in 1..=3 {
        voters.fill(raft_id);
    }
    // Every change of leader and every start writes to the log.
    for round in 0..12 {
        let raft_id = round % 3 + 1;
        voters.net.stop(raft_id).await;
        voters.net.start(raft_id);
        voters.net.leader().await;
    }
    for raft_id in 1..=3 {
        voters.empty(raft_id);
    }
    voters.agree().await;
    let leader = voters.net.leader().await;
    voters.set(&leader, 1).await.unwrap();
}
