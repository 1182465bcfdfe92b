//! Build tooling: `cargo xtask test | ci | tidy | s3-tests | restart-million | chaos | failover | repair | replace |
//! compose-test | bench-om | bench-cluster | bench-keys`.
//!
//! Everything that a fresh machine needs beyond Rust and Python 3 is made here (a Python venv under `target/`), so
//! that the README's commands are the whole set-up. Each command that runs tests ends with a line
//! `N passed, N failed`, alone, and its exit code says the same.
//!
//! Not here: the comparison of `docs/benchmarks.md` (`bench/compare.py`, `ferrozone bench`) and the tests themselves.

mod bench;
mod ceph;
mod chaos;
mod checks;
mod compose;
mod containers;
mod corpus;
mod counts;
mod failover;
mod million;
mod operations;
mod process;
mod repair;
mod replace;
mod rig;
mod server;
mod stopwatch;
mod tests;
mod tidy;
mod venv;
mod whole;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and measures Ferrozone")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Rust tests, then s3-tests/ against a server built from this tree.
    Test(TestArguments),
    /// Format, clippy, documentation and tidy, then `test` and `compose-test`.
    Ci(CiArguments),
    /// Rules of CONTRIBUTING.md that no compiler checks.
    Tidy,
    /// A checkout of ceph/s3-tests against a fresh release server, or a cluster of them.
    S3Tests(CephArguments),
    /// Limits that need a release build and a quiet machine: restart, idle memory, memory under uploads.
    RestartMillion(MillionArguments),
    /// Breaks a cluster of real processes under load and judges what clients were answered. Needs root.
    Chaos(ChaosArguments),
    /// Kills the leader again and again: how long until writes go on.
    Failover(FailoverArguments),
    /// A datanode dies for good: how long until all it held is on three datanodes again, and how fast.
    Repair(RepairArguments),
    /// A datanode and a meta node lose their disks, and are replaced by two commands each.
    Replace(ReplaceArguments),
    /// The compose file under an engine: a tree synced while containers are killed. Needs root where no engine runs.
    ComposeTest(ComposeArguments),
    /// Commits of keys through three voters of OM, at full load.
    BenchOm(bench::om::Arguments),
    /// PUT and GET through gateways and three replicas, at full load.
    BenchCluster(bench::cluster::Arguments),
    /// OM with one voter and millions of keys: rate, memory, files, listings, restart after SIGKILL.
    BenchKeys(bench::keys::Arguments),
    /// Run every command of docs/operations.md against a cluster on loopback.
    Operations(OperationsArguments),
}

/// What `ci` leaves out.
#[derive(Debug, Args)]
pub(crate) struct CiArguments {
    /// The compose file is not run: for a machine without a docker engine and without root.
    #[arg(long)]
    without_compose: bool,
}

/// What `chaos` does.
#[derive(Debug, Args)]
pub(crate) struct ChaosArguments {
    /// How many faults, one after another.
    #[arg(long, default_value_t = 200)]
    faults: u64,
    /// Which faults: the same seed gives the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes with OM and SCM.
    #[arg(long, default_value_t = 3)]
    metas: usize,
    /// Nodes with a datanode, three or more. With three, every key lies on all of them.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(3..=16))]
    datanodes: u64,
    /// Directory of the cluster, made anew; kept afterwards.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What `failover` measures.
#[derive(Debug, Args)]
pub(crate) struct FailoverArguments {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What `repair` measures.
#[derive(Debug, Args)]
pub(crate) struct RepairArguments {
    /// What the datanode holds, at least. Takes a little over three times as much room on the disk.
    #[arg(long, default_value = "256MiB", value_parser = corpus::parse_size)]
    bytes: u64,
    /// scm.repair_bandwidth [default: the server's; 0B is no limit].
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<String>,
    /// Directory of the cluster, made anew.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What `replace` runs.
#[derive(Debug, Args)]
pub(crate) struct ReplaceArguments {
    /// Bytes of data.
    #[arg(long, default_value = "192MiB", value_parser = corpus::parse_size)]
    bytes: u64,
    /// One of the two alone.
    #[arg(long, value_enum)]
    only: Option<replace::Part>,
    /// Directory of the cluster, made anew.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What `compose-test` runs.
#[derive(Debug, Args)]
pub(crate) struct ComposeArguments {
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Pack a debug build: slower, sooner built.
    #[arg(long, conflicts_with = "binary")]
    debug: bool,
    /// Files of the tree.
    #[arg(long, default_value_t = 1500)]
    files: u64,
    /// At least so much of it.
    #[arg(long, default_value_t = 150)]
    megabytes: u64,
    /// Seconds after which it has failed.
    #[arg(long, default_value_t = 900)]
    deadline: u64,
}

/// What `operations` runs.
#[derive(Debug, Args, Default)]
pub(crate) struct OperationsArguments {
    /// Use this server binary instead of building a debug one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Print what every command says.
    #[arg(long)]
    verbose: bool,
}

/// What `test` runs.
#[derive(Debug, Args, Default)]
pub(crate) struct TestArguments {
    /// Only the Rust tests.
    #[arg(long, conflicts_with = "python_only")]
    rust_only: bool,
    /// Only s3-tests/.
    #[arg(long)]
    python_only: bool,
    /// Run s3-tests/ against a release build.
    #[arg(long)]
    release: bool,
    /// Run s3-tests/, and nothing else, over this alone.
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["rust_only"])]
    over: Option<tests::Over>,
    /// Further words for pytest, e.g. `-- -k listing`.
    #[arg(last = true)]
    pytest: Vec<String>,
}

/// What `s3-tests` runs.
#[derive(Debug, Args)]
pub(crate) struct CephArguments {
    /// The checkout, unpatched.
    path: PathBuf,
    /// Groups of s3-tests/ceph/groups.json; every core group (`C-`) when none is named.
    groups: Vec<String>,
    /// List what did not pass, with its group and the first line of its message.
    #[arg(long)]
    failed: bool,
    /// Keep the server's log here.
    #[arg(long, value_name = "FILE")]
    keep_log: Option<PathBuf>,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Only tests whose name contains this.
    #[arg(short, long, value_name = "WORD")]
    keyword: Option<String>,
    /// Against three meta nodes, three datanodes and two gateways, through one of these.
    #[arg(long)]
    cluster: bool,
}

/// What `restart-million` measures.
#[derive(Debug, Args)]
pub(crate) struct MillionArguments {
    /// How many keys to load before the kill.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Data directory, fresh; a temporary one when absent.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Measure only the idle memory of a fresh server.
    #[arg(long, conflicts_with = "uploads")]
    idle: bool,
    /// Measure only the memory while 64 clients each upload 256 MiB.
    #[arg(long)]
    uploads: bool,
    /// Use this server binary instead of building one.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if all that ran passed.
fn run(command: Command) -> Result<bool> {
    let workspace = Workspace::find()?;
    match command {
        Command::Test(arguments) => {
            let counts = tests::run(&workspace, &arguments)?;
            println!("{counts}");
            Ok(counts.all_passed())
        }
        Command::Ci(arguments) => {
            let mut counts = checks::run(&workspace)?;
            counts += tests::run(&workspace, &TestArguments::default())?;
            if !arguments.without_compose {
                counts += compose::run_small(&workspace)?;
            }
            println!("{counts}");
            Ok(counts.all_passed())
        }
        Command::Tidy => {
            let findings = tidy::check(&workspace)?;
            tidy::report(&findings);
            Ok(findings.is_empty())
        }
        Command::S3Tests(arguments) => ceph::run(&workspace, &arguments),
        Command::Chaos(arguments) => chaos::run(&workspace, &arguments),
        Command::Failover(arguments) => failover::run(&workspace, &arguments),
        Command::Repair(arguments) => repair::run(&workspace, &arguments),
        Command::Replace(arguments) => replace::run(&workspace, &arguments),
        Command::ComposeTest(arguments) => compose::run(&workspace, &arguments),
        Command::Operations(arguments) => operations::run(&workspace, &arguments),
        Command::RestartMillion(arguments) => million::run(&workspace, &arguments),
        Command::BenchOm(arguments) => {
            bench::optimised(&workspace, &arguments.common, || bench::om::run(&workspace, &arguments))
        }
        Command::BenchCluster(arguments) => {
            bench::optimised(&workspace, &arguments.common, || bench::cluster::run(&workspace, &arguments))
        }
        Command::BenchKeys(arguments) => {
            bench::optimised(&workspace, &arguments.common, || bench::keys::run(&workspace, &arguments))
        }
    }
}
