//! How many commands a second one voter takes, and what one costs in CPU.
//!
//! `cargo run --release -p consensus --example propose [DIR] [IN_FLIGHT] [SECONDS]`: 64 proposers by default, each
//! waiting for its reply before it proposes again; a command of 200 bytes puts three rows. Prints one line a run.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use consensus::{Entry, Group, GroupConfig, StateMachine, StoreError, Table, WriteBatch};

const KEY: Table = Table::new(0, "key");
const BLOCK: Table = Table::new(1, "block");
const USAGE: Table = Table::new(2, "usage");

/// As many rows as a small key costs the namespace, and nothing else.
struct ThreeRows;

impl StateMachine for ThreeRows {
    type Reply = u64;

    const TABLES: &'static [Table] = &[KEY, BLOCK, USAGE];

    fn apply(&mut self, batch: &mut WriteBatch<'_>, entry: Entry<'_>) -> Result<u64, StoreError> {
        batch.put(KEY, &entry.command[..32], &entry.command[32..])?;
        batch.put(BLOCK, &entry.index.to_be_bytes(), &entry.command[..48])?;
        batch.put(USAGE, b"usage", &entry.index.to_be_bytes())?;
        Ok(entry.index)
    }
}

/// Ticks of user and system time of this process, 10 ms each.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux tells a process its times");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("times are numbers")).sum()
}

async fn propose_until(
    group: Group<ThreeRows>,
    proposer: u64,
    end_ns: u64,
    done: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
) {
    let mut round = 0;
    loop {
        let started = wire::clock::steady_ns();
        if started >= end_ns {
            return;
        }
        let mut command = vec![b'x'; 200];
        // Names spread over the table, as object names do.
        let spread = (round * 64 + proposer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        command[..8].copy_from_slice(&spread.to_be_bytes());
        command[8..16].copy_from_slice(&round.to_be_bytes());
        group.propose(Bytes::from(command)).await.expect("the group takes the command");
        slowest.fetch_max(wire::clock::steady_ns() - started, Ordering::Relaxed);
        done.fetch_add(1, Ordering::Relaxed);
        round += 1;
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().map_or_else(|| std::env::temp_dir().join("ferrozone-propose"), PathBuf::from);
    let in_flight: u64 = arguments.next().map_or(64, |text| text.parse().expect("IN_FLIGHT is a number"));
    let seconds: u64 = arguments.next().map_or(10, |text| text.parse().expect("SECONDS is a number"));
    let disk = consensus::directory(&dir).expect("the directory opens");
    let config = GroupConfig::new("bench", disk, uuid::Uuid::from_u128(1));
    let group = Group::open(config, ThreeRows).expect("the directory opens");
    group.wait_leader().await.expect("a sole voter leads");

    let (done, slowest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (started, ticks) = (wire::clock::steady_ns(), cpu_ticks());
    let end = started + seconds * 1_000_000_000;
    let tasks: Vec<_> = (0..in_flight)
        .map(|proposer| {
            tokio::spawn(propose_until(group.clone(), proposer, end, Arc::clone(&done), Arc::clone(&slowest)))
        })
        .collect();
    for task in tasks {
        task.await.expect("a proposer does not panic");
    }
    let elapsed = (wire::clock::steady_ns() - started) as f64 / 1e9;
    let cpu_us = (cpu_ticks() - ticks) as f64 * 10_000.0;
    let count = done.load(Ordering::Relaxed) as f64;
    println!(
        "{in_flight} in flight: {:.0} proposals/s, {:.1} us CPU each, slowest {:.1} ms, applied {}",
        count / elapsed,
        cpu_us / count,
        slowest.load(Ordering::Relaxed) as f64 / 1e6,
        group.status().applied_index,
    );
    group.shutdown().await;
}
