//! `cargo xtask test`: the Rust tests, some seeds of the simulator, then s3-tests/ against the server of this tree.
//!
//! ```text
//!   s3-tests/  in process    one server, its roles call one another directly: everything
//!              over http     one server, its roles call one another over HTTP: the tests marked so
//!              cluster       three meta nodes, three datanodes, two gateways: everything but what asks for one process
//! ```
//!
//! pytest gets the dev build: `cargo test` has compiled every dependency of it already, with optimisation, and its
//! debug assertions are worth more here than speed.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::counts::{self, Counts};
use crate::operations;
use crate::process;
use crate::venv::Venv;
use crate::workspace::Workspace;
use crate::{OperationsArguments, TestArguments};

/// Tests that the HTTP transport between the services must pass too: pytest's name for them.
const HTTP_SELECTION: &str = "transports";

/// Seeds that every change runs: about a minute in a build without optimisation. Longer runs are a person's.
const SIMULATOR_SEEDS: &str = "1..41";
/// Seeds of which each is run twice. Powers, networks and disks fail in them.
const SIMULATOR_REPEATS: &str = "201..205";

/// Runs what is asked for and sums up.
pub(crate) fn run(workspace: &Workspace, arguments: &TestArguments) -> Result<Counts> {
    let mut total = Counts::default();
    if !arguments.python_only && arguments.over.is_none() {
        total += rust(workspace)?;
        total += simulator(workspace)?;
    }
    if !arguments.rust_only {
        total += python(workspace, arguments)?;
    }
    if !arguments.rust_only && arguments.over.is_none() {
        // The manual counts as one test: a command of it rests on those before.
        let passed = operations::run(workspace, &OperationsArguments::default())?;
        total += Counts { passed: u64::from(passed), failed: u64::from(!passed) };
    }
    Ok(total)
}

fn rust(workspace: &Workspace) -> Result<Counts> {
    let mut total = Counts::default();
    let mut command = workspace.cargo();
    // The model of SCM and the simulator show what they find by bugs that are planted: compiled in, switched on by them.
    command.args(["test", "--workspace", "--no-fail-fast", "--features", "sim/planted"]);
    let succeeded = process::tee(&mut command, |line| {
        if let Some(counts) = Counts::of_cargo_line(line) {
            total += counts;
        }
    })?;
    if !succeeded && total.failed == 0 {
        total += Counts::BROKEN_STEP;
    }
    Ok(total)
}

/// Runs of the simulator, a cluster and its faults each; the same seeds every time, so that a failure is one of the change.
/// Some seeds run twice and must come to the same. Then every planted bug at the seed that is known to catch it: a simulator that finds nothing proves nothing.
fn simulator(workspace: &Workspace) -> Result<Counts> {
    let has_passed = |line: &str| line.starts_with("seed ").then(|| line.ends_with(", passed"));
    let runs = simulated(workspace, &["--seeds", SIMULATOR_SEEDS, "--minutes", "1"], has_passed)?;
    let repeats =
        simulated(workspace, &["--seeds", SIMULATOR_REPEATS, "--minutes", "2", "--twice"], has_passed)?;
    let bugs = simulated(workspace, &["--planted"], |line| {
        line.starts_with("bug ").then(|| line.contains(": caught at "))
    })?;
    let mut counts = runs;
    counts += repeats;
    counts += bugs;
    Ok(counts)
}

/// Runs the simulator; `judge` says of a line whether it tells of a success or of a failure.
fn simulated(
    workspace: &Workspace,
    arguments: &[&str],
    judge: impl Fn(&str) -> Option<bool>,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut command = workspace.cargo();
    command.args(["run", "-p", "sim", "--features", "planted", "--"]).args(arguments);
    let succeeded = process::tee(&mut command, |line| {
        if let Some(has_passed) = judge(line) {
            counts += Counts { passed: u64::from(has_passed), failed: u64::from(!has_passed) };
        }
    })?;
    if !succeeded && counts.failed == 0 {
        counts += Counts::BROKEN_STEP;
    }
    Ok(counts)
}

fn python(workspace: &Workspace, arguments: &TestArguments) -> Result<Counts> {
    let suite = workspace.path("s3-tests");
    let requirements = [suite.join("requirements.txt"), suite.join("requirements-clients.txt")];
    let binary = match workspace.build_server(arguments.release) {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Counts::BROKEN_STEP);
        }
    };
    let venv = Venv::ready(workspace, &requirements, &[])?;

    if let Some(over) = arguments.over {
        return pytest(workspace, &venv, &binary, over, &arguments.pytest);
    }
    let mut total = pytest(workspace, &venv, &binary, Over::Inprocess, &arguments.pytest)?;
    if arguments.pytest.is_empty() {
        let selection = ["-m".to_owned(), HTTP_SELECTION.to_owned()];
        total += pytest(workspace, &venv, &binary, Over::Http, &selection)?;
        total += pytest(workspace, &venv, &binary, Over::Cluster, &[])?;
    }
    Ok(total)
}

/// What s3-tests/ meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    /// One server, whose roles call one another directly.
    Inprocess,
    /// One server, whose roles call one another over HTTP.
    Http,
    /// A cluster of processes.
    Cluster,
}

impl Over {
    /// As the suite's harness reads it.
    const fn name(self) -> &'static str {
        match self {
            Self::Inprocess => "inprocess",
            Self::Http => "http",
            Self::Cluster => "cluster",
        }
    }
}

/// One run of pytest.
fn pytest(workspace: &Workspace, venv: &Venv, binary: &Path, over: Over, words: &[String]) -> Result<Counts> {
    let transport = over.name();
    let results = workspace.target(&format!("s3-tests/{transport}.xml"));
    if results.exists() {
        std::fs::remove_file(&results).context("remove the last run's results")?;
    }
    let mut command = venv.command();
    command
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal"])
        .arg(format!("--junitxml={}", results.display()))
        .args(words)
        .current_dir(workspace.path("s3-tests"))
        .env("FERROZONE_BIN", binary)
        .env("FERROZONE_TRANSPORT", transport);
    let succeeded = process::succeeds(&mut command)?;
    let mut counts =
        if results.exists() { counts::sum(&counts::read_junit(&results)?) } else { Counts::default() };
    if !succeeded && counts.failed == 0 {
        counts += Counts::BROKEN_STEP;
    }
    eprintln!("s3-tests over {transport}: {counts}");
    Ok(counts)
}
