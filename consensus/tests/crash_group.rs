//! Kills a process at every named step of the log and the state, again and again in one directory.
//!
//! After each death: every acknowledged command is there, at most the one under way of each proposer came on top,
//! nothing was applied twice, and the state hash is that of the rows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{COUNTER, REGISTER, Registers, ask, open, read};
use consensus::{MemoryStore, Rows, StateMachine};

/// Tells the child where to work; without it the child test does nothing.
const DIR_VARIABLE: &str = "FERROZONE_CRASH_TEST_DIR";

const SIGABRT: i32 = 6;
const PROPOSERS: usize = 8;
const ROUNDS: u64 = 400;

const STEPS: &[&str] = &[
    "consensus_log_appended",
    "consensus_log_synced",
    "consensus_segment_rolled",
    "consensus_batch_applied",
    "consensus_checkpoint_begun",
    "consensus_checkpoint_done",
    "consensus_segment_recycled",
];

/// The process that dies: proposers that count up, each in its register, and note what was acknowledged.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    let dir = Path::new(&dir).to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async move {
        let group = open(&dir.join("group")).await;
        let acked = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("acked")).unwrap();
        let acked = Arc::new(Mutex::new(acked));
        let mut tasks = Vec::new();
        for proposer in 0..PROPOSERS {
            let (group, acked) = (group.clone(), Arc::clone(&acked));
            tasks.push(tokio::spawn(async move {
                let from = value(read(&group, &format!("r{proposer}")).await);
                for value in from + 1..from + ROUNDS {
                    ask(&group, &format!("set r{proposer} {value} {}", "x".repeat(120))).await;
                    acked.lock().unwrap().write_all(format!("{proposer} {value}\n").as_bytes()).unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn value(register: Option<String>) -> u64 {
    register.map_or(0, |text| text.split(' ').next().unwrap().parse().unwrap())
}

/// The newest acknowledged value of each proposer.
fn acknowledged(dir: &Path) -> BTreeMap<usize, u64> {
    let text = std::fs::read_to_string(dir.join("acked")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(proposer, value)| (proposer.parse().unwrap(), value.parse().unwrap())).collect()
}

async fn check(dir: &Path, step: &str) {
    let group = open(&dir.join("group")).await;
    let acknowledged = acknowledged(dir);
    let mut acked_file =
        std::fs::OpenOptions::new().create(true).append(true).open(dir.join("acked")).unwrap();
    let mut sum = 0;
    for proposer in 0..PROPOSERS {
        let found = value(read(&group, &format!("r{proposer}")).await);
        let acked = acknowledged.get(&proposer).copied().unwrap_or(0);
        assert!(
            found == acked || found == acked + 1,
            "{step}: r{proposer} is {found}, acknowledged was {acked}"
        );
        // What was read is promised from now on.
        acked_file.write_all(format!("{proposer} {found}\n").as_bytes()).unwrap();
        sum += found;
    }
    let view = group.read().await.unwrap();
    let counted =
        view.get(COUNTER, b"r").unwrap().map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    assert_eq!(counted, sum, "{step}: each command is applied once");

    let mut again = MemoryStore::new(Registers::TABLES);
    for table in [REGISTER, COUNTER] {
        let mut visit = |row_key: &[u8], value: &[u8]| {
            again.write(|batch| batch.put(table, row_key, value)).unwrap();
            ControlFlow::Continue(())
        };
        view.scan(table, b"", None, &mut visit).unwrap();
    }
    assert_eq!(group.status().state_hash, again.state_hash(), "{step}");
    drop(view);
    group.shutdown().await;
}

#[test]
fn nothing_acknowledged_is_lost_at_any_step() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for count in [1, 2, 5] {
        for step in STEPS {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child"])
                .env(DIR_VARIABLE, dir.path())
                .env(wire::failpoint::VARIABLE, format!("{step}:{count}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(child.signal(), Some(SIGABRT), "{step}:{count} was not met: {child}");
            runtime.block_on(check(dir.path(), step));
        }
    }
    let acknowledged = acknowledged(dir.path());
    assert_eq!(acknowledged.len(), PROPOSERS);
}

/// The process that panics while it applies.
#[test]
fn panicking_child() {
    let Ok(dir) = std::env::var(DIR_VARIABLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    runtime.block_on(async move {
        let group = open(&Path::new(&dir).join("group")).await;
        ask(&group, "panic now").await;
    });
}

#[test]
fn a_panic_in_apply_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "panicking_child"])
        .env(DIR_VARIABLE, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(child.signal(), Some(SIGABRT));
}

/// Every step of this crate has its place in the walk above. A snapshot comes from a peer: its installation crashes at
/// every operation on the disk, in `group`'s own tests.
#[test]
fn no_step_is_left_out() {
    let named = wire::failpoint::NAMES.iter().filter(|name| name.starts_with("consensus_"));
    assert!(named.filter(|name| !name.starts_with("consensus_snapshot_")).eq(STEPS));
}
