//! A file system that is really full: it refuses what needs room, reads and deletes, and recovers by itself.
//!
//! The test runs itself in a mount namespace of its own with a small tmpfs, which goes away with it. Where the machine
//! allows no such namespace, it says so and tries nothing; admission itself is tested beside `space`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use common::{Registers, config, read};
use consensus::{Group, GroupConfig, ProposeError};

/// Tells the process inside the namespace where its disk is.
const DISK_VARIABLE: &str = "FERROZONE_SMALL_DISK";

fn command(text: String) -> Bytes {
    Bytes::from(text)
}

#[test]
fn a_full_disk_refuses_reads_deletes_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let mut namespace = Command::new("unshare");
    namespace.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
    let probed = namespace.arg("mount -t tmpfs -o size=1m tmpfs \"$0\"").arg(dir.path()).output();
    if !probed.is_ok_and(|output| output.status.success()) {
        eprintln!("no mount namespace on this machine: not tried on a full disk");
        return;
    }
    let script =
        "mount -t tmpfs -o size=24m tmpfs \"$1\" && exec \"$0\" --exact on_the_small_disk --nocapture";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(dir.path())
        .env(DISK_VARIABLE, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// Proposes until the outcome is as wanted: the disk is looked at every 100 ms.
async fn until_full(group: &Group<Registers>, full: bool) {
    let mut count = 0;
    while matches!(group.propose(command(format!("set more{count} x"))).await, Err(ProposeError::Full))
        != full
    {
        count = (count + 1) % 10;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn on_the_small_disk() {
    // Run by the test above, in its namespace.
    let Ok(disk) = std::env::var(DISK_VARIABLE) else { return };
    let disk = Path::new(&disk);
    let config = GroupConfig {
        log_segment_bytes: 256 << 10,
        reserve_bytes: 8 << 20,
        disk_free_min_bytes: 2 << 20,
        ..config(&disk.join("group"))
    };
    let group = Group::open(config.clone(), Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    let long = "x".repeat(1000);
    for count in 0..1000 {
        group.propose(command(format!("set r{count} {long}"))).await.unwrap();
    }
    // Somebody else takes all that is left.
    let mut ballast = std::fs::File::create(disk.join("ballast")).unwrap();
    while ballast.write(&[1; 65536]).is_ok() {}
    until_full(&group, true).await;
    let refused = group.propose(command(format!("set refused {long}"))).await;
    assert!(matches!(refused, Err(ProposeError::Full)), "{refused:?}");
    for count in 0..900 {
        group.propose_freeing(command(format!("del r{count}"))).await.unwrap();
    }
    // Commands that pass although they write: until the reserve is used, then a clear refusal and no crash.
    let mut written = 0;
    loop {
        match group.propose_freeing(command(format!("set w{written} {long}"))).await {
            Ok(_) => written += 1,
            Err(ProposeError::Full) => break,
            Err(error) => panic!("after {written}: {error}"),
        }
        assert!(written < 20_000, "a full disk has no room for this");
    }
    assert!(read(&group, "r950").await.is_some() && read(&group, "refused").await.is_none());
    group.shutdown().await;
    let group = Group::open(config, Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    assert!(read(&group, "r950").await.is_some() && read(&group, "r1").await.is_none());
    drop(ballast);
    std::fs::remove_file(disk.join("ballast")).unwrap();
    until_full(&group, false).await;
    group.propose(command(format!("set more {long}"))).await.unwrap();
    group.shutdown().await;
}
