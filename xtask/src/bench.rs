//! Measurements of a cluster of real processes for `docs/benchmarks.md`: `bench-om`, `bench-cluster`, `bench-keys`.
//!
//! Each makes a volume, brings a cluster up on it, drives it, and prints Markdown rows. The load shares the machine's
//! cores with what is measured, as `bench/compare.py`'s does; its own processor time is a column, so that a reader sees
//! what a machine of its own would have left.
//!
//! Code map: `om` (commits a second through three voters), `cluster` (S3 through gateways and datanodes), `keys` (one
//! voter with millions of keys); `om_load` (clients of OM), `volume` (where data lies), `cost` (what processes spend).
//!
//! Not here: a single server beside others (`bench/compare.py`), limits that a release must keep (`million`).

pub(crate) mod cluster;
mod cost;
pub(crate) mod keys;
pub(crate) mod om;
mod om_load;
mod volume;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::process;
use crate::workspace::Workspace;

/// The data and the log of every node lie on one volume: what one syncs, the others wait for.
const DURABILITY: &str = "durability: every voter has fdatasynced the entry in its Raft log before it acknowledges it; \
                          state is checkpointed behind. All nodes, and the load, share the machine and one volume.";

/// What all of them take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Directory for the volume's image, made anew and removed; one under target/ when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs `measure` in a release build of this tool: the load of a debug build would cost more than what it measures.
pub(crate) fn optimised(workspace: &Workspace, measure: impl FnOnce() -> Result<bool>) -> Result<bool> {
    if !cfg!(debug_assertions) {
        return measure();
    }
    let tool = workspace.build_program("xtask", true)?;
    process::succeeds(std::process::Command::new(tool).args(std::env::args_os().skip(1)))
}

/// A runtime of one thread: clients that wake one another across cores would take them from the servers.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A figure with as many decimals as its size deserves.
fn shown(value: f64) -> String {
    match value {
        value if value >= 1000.0 => {
            let digits = format!("{value:.0}");
            let (head, tail) = digits.split_at(digits.len() - 3);
            format!("{head},{tail}")
        }
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

/// One row of a Markdown table.
fn row<T: AsRef<str>>(cells: impl IntoIterator<Item = T>) -> String {
    cells.into_iter().fold(String::from("|"), |row, cell| row + " " + cell.as_ref() + " |")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_what_they_are_good_for() {
        assert_eq!(
            [0.12345, 12.34, 123.4, 9876.5, 123_456.0].map(shown),
            ["0.123", "12.3", "123", "9,876", "123,456"]
        );
        assert_eq!(row(["a", "b"]), "| a | b |");
    }
}
