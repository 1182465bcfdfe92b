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

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use self::volume::Volume;
use crate::process;
use crate::workspace::Workspace;

/// What an answer of OM means.
const DURABILITY: &str = "durability: a voter has the entry in its Raft log, with fdatasync, before it acknowledges it; \
                          state is checkpointed behind";

/// What all of them take.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Directory for the volume's image, made anew and removed; one under target/ when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Do not build the load for release: sooner begun, but it takes more of the machine.
    #[arg(long)]
    unoptimised: bool,
}

/// Runs `measure` in a release build of this tool: the load of a debug build would cost more than what it measures.
pub(crate) fn optimised(
    workspace: &Workspace,
    common: &Common,
    measure: impl FnOnce() -> Result<bool>,
) -> Result<bool> {
    if !cfg!(debug_assertions) || common.unoptimised {
        return measure();
    }
    let tool = workspace.build_program("xtask", true)?;
    process::succeeds(Command::new(tool).args(std::env::args_os().skip(1)))
}

/// The beginning of a section of `docs/benchmarks.md`: what was run, on what, and what was durable.
fn print_heading(workspace: &Workspace, binary: &Path, title: &str, volume: &Volume) -> Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let commit =
        said_by(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(workspace.root()));
    let server = said_by(Command::new(binary).arg("--version"));
    let cpus = std::fs::read_to_string("/proc/cpuinfo").context("read the processors")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    println!("## {title}\n");
    println!("By `cargo xtask {}`, commit {commit}, {server}.\n", asked.join(" "));
    println!(
        "- {} cores of {}, Linux {}; all nodes and the load share them, and one {} volume",
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        model.trim_start_matches([' ', '\t', ':']),
        said_by(Command::new("uname").arg("-r")),
        volume.kind(),
    );
    println!("- {DURABILITY}");
    Ok(())
}

/// The line a program says; "unknown" if it cannot.
fn said_by(command: &mut Command) -> String {
    let outcome = command.output().ok().filter(|outcome| outcome.status.success());
    let said = outcome.map(|outcome| String::from_utf8_lossy(&outcome.stdout).trim().to_owned());
    said.unwrap_or_else(|| "unknown".to_owned())
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
