//! A group of one voter: proposing, reading, restarting, refusing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use common::{COUNTER, REGISTER, Registers, ask, config, copy_dir, open, read};
use consensus::{Group, OpenError, Priority, ProposeError, ReadError, Rows};
use redb::ReadableTable;

fn command(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Overwrites one register's stored bytes in the closed state file, as rot would.
fn rot(dir: &Path, table: &str, row_key: &[u8]) {
    let path = dir.join("state.redb");
    let db = redb::Database::open(&path).unwrap();
    let mut txn = db.begin_write().unwrap();
    txn.set_quick_repair(true);
    {
        let definition = redb::TableDefinition::<&[u8], &[u8]>::new(table);
        let mut opened = txn.open_table(definition).unwrap();
        let mut stored = opened.get(row_key).unwrap().unwrap().value().to_vec();
        *stored.last_mut().unwrap() ^= 1;
        opened.insert(row_key, stored.as_slice()).unwrap();
    }
    txn.commit().unwrap();
}

#[tokio::test]
async fn an_acknowledged_command_is_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    for round in 0..50 {
        ask(&group, &format!("set apple {round}")).await;
        assert_eq!(read(&group, "apple").await, Some(round.to_string()));
    }
    assert_eq!(ask(&group, "get apple").await, "49");
    assert_eq!(ask(&group, "del apple").await, "true");
    assert_eq!(read(&group, "apple").await, None);
    let status = group.status();
    assert!(status.is_leader && status.leader == 1 && status.term == 1, "{status:?}");
    assert_eq!((status.commit_index, status.applied_index, status.log_last_index), (53, 53, 53));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposers_share_the_log_and_everything_survives_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let group = open(dir.path()).await;
        assert_eq!(group.status().term, 2 * round + 1, "each start is a term");
        let tasks: Vec<_> = (0..32)
            .map(|task| {
                let group = group.clone();
                tokio::spawn(async move {
                    for count in 0..40 {
                        ask(&group, &format!("set r{task}-{count} {round} {}", "x".repeat(100))).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let state_hash = group.status().state_hash;
        group.shutdown().await;
        let reopened = open(dir.path()).await;
        assert_eq!(reopened.status().state_hash, state_hash);
        let view = reopened.read().await.unwrap();
        let mut count = 0;
        let mut visit = |_: &[u8], value: &[u8]| {
            assert!(value.starts_with(round.to_string().as_bytes()));
            count += 1;
            ControlFlow::Continue(())
        };
        view.scan(REGISTER, b"", None, &mut visit).unwrap();
        assert_eq!(count, 32 * 40);
        let counted = view.get(COUNTER, b"r").unwrap().unwrap();
        assert_eq!(u64::from_be_bytes(counted.try_into().unwrap()), (round + 1) * 32 * 40);
        drop(view);
        reopened.shutdown().await;
    }
}

#[tokio::test]
async fn a_directory_opens_once_and_for_its_own_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    assert!(matches!(Group::open(config(dir.path()), Registers::new()), Err(OpenError::Locked { .. })));
    group.shutdown().await;
    let mut other = config(dir.path());
    other.cluster_id = uuid::Uuid::from_u128(78);
    let Err(error) = Group::open(other, Registers::new()) else {
        panic!("opened another cluster's directory")
    };
    assert!(
        matches!(error, OpenError::Foreign { .. }) && error.to_string().contains("wrong or copied"),
        "{error}"
    );
    open(dir.path()).await.shutdown().await;
}

#[tokio::test]
async fn dropping_the_last_handle_stops_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    ask(&group, "set apple red").await;
    drop(group);
    let group = loop {
        match Group::open(config(dir.path()), Registers::new()) {
            Ok(group) => break group,
            Err(OpenError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    group.wait_leader().await.unwrap();
    assert_eq!(read(&group, "apple").await, Some("red".to_owned()));
    group.shutdown().await;
}

#[tokio::test]
async fn a_stopped_group_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    group.shutdown().await;
    assert!(matches!(group.propose(command("set a b")).await, Err(ProposeError::Unknown)));
    assert!(matches!(group.read().await, Err(ReadError::Stopped)));
    assert!(group.view().is_err());
    assert!(matches!(group.wait_leader().await, Err(ReadError::Stopped)));
    group.shutdown().await;
}

#[tokio::test]
async fn limits_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.proposals_max = 4;
    small.command_bytes_max = 100;
    let group = Group::open(small, Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    let long = format!("set a {}", "x".repeat(100));
    assert!(matches!(
        group.propose(command(&long)).await,
        Err(ProposeError::TooLarge { size: 106, size_max: 100 })
    ));
    // Twenty at once for four places: some pass, some are told to come back, none is lost.
    let asked: Vec<_> = (0..20)
        .map(|n| {
            tokio::spawn({
                let group = group.clone();
                async move { group.propose(command(&format!("set many{n} x"))).await }
            })
        })
        .collect();
    let mut passed = 0;
    for outcome in asked {
        match outcome.await.unwrap() {
            Ok(_) => passed += 1,
            Err(error) => assert!(matches!(error, ProposeError::Overloaded), "{error}"),
        }
    }
    assert!(passed >= 4);
    ask(&group, "set after works").await;
    group.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_refuses_all_but_what_frees_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = config(dir.path());
    full.disk_free_min_bytes = u64::MAX / 2;
    let group = Group::open(full, Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    assert!(matches!(group.propose(command("set a b")).await, Err(ProposeError::Full)));
    group.propose_freeing(command("set b c")).await.unwrap();
    group.propose_with(command("del b"), Priority::Freeing).await.unwrap();
    assert_eq!(read(&group, "a").await, None);
    group.shutdown().await;
    let group = open(dir.path()).await;
    ask(&group, "set a b").await;
    group.shutdown().await;
}

#[tokio::test]
async fn a_corrupt_row_fails_its_commands_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    for name in ["apple", "banana", "cherry"] {
        ask(&group, &format!("set {name} ripe")).await;
    }
    group.shutdown().await;
    rot(dir.path(), "register", b"banana");

    let group = open(dir.path()).await;
    for text in ["set banana green", "get banana", "del banana", "careless banana"] {
        let refused = group.propose(command(text)).await;
        assert!(
            matches!(refused, Err(ProposeError::Corrupt { table: "register", .. })),
            "{text}: {refused:?}"
        );
    }
    let view = group.read().await.unwrap();
    assert!(view.get(REGISTER, b"banana").is_err());
    assert_eq!(view.get(REGISTER, b"careless").unwrap(), None, "a failed command leaves nothing behind");
    assert_eq!(read(&group, "apple").await, Some("ripe".to_owned()));
    ask(&group, "set cherry eaten").await;
    group.shutdown().await;
    let group = open(dir.path()).await;
    assert_eq!(read(&group, "cherry").await, Some("eaten".to_owned()));
    group.shutdown().await;
}

#[tokio::test]
async fn a_corrupt_counter_fails_only_the_commands_that_count_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    ask(&group, "set apple ripe").await;
    ask(&group, "set banana ripe").await;
    group.shutdown().await;
    rot(dir.path(), "counter", b"b");
    let group = open(dir.path()).await;
    let before = group.status().applied_index;
    assert!(matches!(group.propose(command("set bean green")).await, Err(ProposeError::Corrupt { .. })));
    ask(&group, "set almond brown").await;
    assert_eq!(read(&group, "bean").await, None);
    assert_eq!(read(&group, "almond").await, Some("brown".to_owned()));
    assert_eq!(group.status().applied_index, before + 2);
    group.shutdown().await;
}

#[tokio::test]
async fn damage_is_refused_at_start_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    for count in 0..300 {
        ask(&group, &format!("set r{count} {}", "x".repeat(200))).await;
    }
    group.shutdown().await;
    let refused = |what: &str, damage: &dyn Fn(&Path)| {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        damage(copy.path());
        let Err(error) = Group::open(config(copy.path()), Registers::new()) else {
            panic!("opened despite {what}")
        };
        let text = error.to_string();
        assert!(text.contains("backup") && text.contains("rejoin"), "{what}: {text}");
    };
    refused("a missing state", &|root| std::fs::remove_file(root.join("state.redb")).unwrap());
    refused("a missing identity", &|root| std::fs::remove_file(root.join("identity")).unwrap());
    refused("a missing log", &|root| {
        segments(root).iter().for_each(|path| std::fs::remove_file(path).unwrap())
    });
    refused("a flipped bit in the log", &|root| {
        let segment = newest_segment(root);
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[4096 + 200] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
    });
    refused("a log that ends early", &|root| {
        let segment = newest_segment(root);
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[4096..].fill(0);
        std::fs::write(&segment, bytes).unwrap();
    });
    refused("garbage in place of the state", &|root| {
        let size = std::fs::metadata(root.join("state.redb")).unwrap().len();
        std::fs::write(root.join("state.redb"), vec![7; size as usize]).unwrap();
    });
}

fn segments(root: &Path) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(root).unwrap().map(|item| item.unwrap().path());
    let mut segments: Vec<_> =
        paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("log.")).collect();
    segments.sort();
    segments
}

fn newest_segment(root: &Path) -> std::path::PathBuf {
    segments(root).pop().unwrap()
}

#[tokio::test]
async fn an_older_state_catches_up_from_the_log_to_the_same_hash() {
    let dir = tempfile::tempdir().unwrap();
    let mut rare = config(dir.path());
    rare.log_segment_bytes = 1 << 20;
    rare.checkpoint_rows = u64::MAX;
    rare.checkpoint_interval = std::time::Duration::from_secs(3600);
    let group = Group::open(rare.clone(), Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    ask(&group, "set before x").await;
    // What a power cut would find: a state without these rows, and the log.
    let early = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("state.redb"), early.path().join("state.redb")).unwrap();
    for count in 0..500 {
        ask(&group, &format!("set r{} {count}", count % 70)).await;
    }
    let expected = group.status();
    assert_eq!(expected.checkpoint_index, 0);
    group.shutdown().await;
    std::fs::copy(early.path().join("state.redb"), dir.path().join("state.redb")).unwrap();
    let group = Group::open(rare, Registers::new()).unwrap();
    assert!(group.status().checkpoint_index < 3);
    group.wait_leader().await.unwrap();
    assert_eq!(group.status().state_hash, expected.state_hash);
    assert_eq!(read(&group, "r9").await, Some("499".to_owned()));
    group.shutdown().await;
}

#[tokio::test]
async fn a_replay_longer_than_every_queue_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut rare = config(dir.path());
    rare.log_segment_bytes = 32 << 20;
    rare.checkpoint_rows = u64::MAX;
    rare.checkpoint_interval = std::time::Duration::from_secs(3600);
    let empty = tempfile::tempdir().unwrap();
    let group = Group::open(rare.clone(), Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    std::fs::copy(dir.path().join("state.redb"), empty.path().join("state.redb")).unwrap();
    // More bytes than raft hands out at once and than all of apply's inbox holds.
    let long = "x".repeat(900 << 10);
    for count in 0..30 {
        ask(&group, &format!("set r{} {count} {long}", count % 3)).await;
    }
    let expected = group.status();
    group.shutdown().await;
    std::fs::copy(empty.path().join("state.redb"), dir.path().join("state.redb")).unwrap();
    let group = Group::open(rare, Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    assert_eq!(group.status().state_hash, expected.state_hash);
    group.shutdown().await;
}

#[tokio::test]
async fn checkpoints_let_segments_be_recycled() {
    let dir = tempfile::tempdir().unwrap();
    let group = open(dir.path()).await;
    for count in 0..2000 {
        ask(&group, &format!("set r{} {}", count % 10, "x".repeat(150))).await;
    }
    let files = segments(dir.path()).len();
    assert!(files <= 4, "{files} files for 500 KiB of log");
    let status = group.status();
    assert!(status.log_first_index > 1000, "{status:?}");
    assert!(status.checkpoint_index + 1 >= status.log_first_index);
    group.shutdown().await;
    assert_eq!(open(dir.path()).await.status().state_hash, status.state_hash);
}
