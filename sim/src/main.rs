//! The deterministic simulator: whole clusters in one thread, broken by a seed, checked against a model.
//!
//! ```text
//!   sim --seed N            one run, loud with --trace; the last line says the result and the trace's hash
//!   sim --seeds A..B        many runs, each in a process of its own, --jobs at once; --twice compares two of each
//!   sim --seed N --bug X    with a planted bug (built with the feature `planted`); --list-bugs names them
//!   sim --planted           every planted bug at the seed on record; --find BUG searches one
//! ```
//!
//! The real OM, SCM, datanode and client code runs here, with the real raft-rs and the real redb, on simulated disks, a
//! simulated network and a clock that jumps. What differs from production is in `platform`, `wire::clock`,
//! `wire::random` and the crate `client::http`, which this replaces. One seed gives one run: equal seeds print equal hashes.
//!
//! | file | what |
//! | --- | --- |
//! | `run` | the course of a run |
//! | `cluster` | nodes, their lives and disks |
//! | `network`, `services` | calls between them |
//! | `gateway`, `workload` | clients and what they ask |
//! | `faults`, `orders` | what goes wrong |
//! | `audit` | what is left at the end; what was answered is judged by the crate `checker` |
//! | `planted` | at which seeds planted bugs are found |
//! | `world`, `seed`, `trace` | time, randomness, the record |
//!
//! Not here: HTTP, signatures, XML (tested over sockets), real machines (the chaos tests).

mod audit;
mod cluster;
mod faults;
mod gateway;
mod network;
mod orders;
mod planted;
mod run;
mod seed;
mod services;
mod trace;
mod workload;
mod world;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;

use crate::run::{Options, Verdict};

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Breaks simulated clusters and checks what they answered.
#[derive(Parser)]
struct Args {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// A range of seeds, the end not included: 0..2000.
    #[arg(long)]
    seeds: Option<String>,
    /// Runs at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Simulated minutes of load.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// A planted bug to switch on.
    #[arg(long)]
    bug: Option<String>,
    /// Tries every planted bug at its recorded seed.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "bug"])]
    planted: bool,
    /// Searches a planted bug, or `all`, in the seeds from 1.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "bug", "planted"])]
    find: Option<String>,
    /// With --find: writes the seed into planted.txt of this source tree.
    #[arg(long)]
    record: bool,
    /// Names the planted bugs.
    #[arg(long)]
    list_bugs: bool,
    /// Prints every line of the trace.
    #[arg(long)]
    trace: bool,
    /// Prints every message between nodes too.
    #[arg(long, requires = "trace")]
    messages: bool,
    /// Runs each seed of a range twice: both must come to the same.
    #[arg(long, requires = "seeds")]
    twice: bool,
    /// Stops a range at the first seed that fails.
    #[arg(long)]
    until_failure: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if args.list_bugs {
        for (name, what) in wire::planted::BUGS {
            println!("{name:32} {what}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if (args.planted || args.find.is_some()) && cfg!(not(feature = "planted")) {
        bail!("this build has no planted bugs: build with --features planted");
    }
    if args.planted {
        return Ok(code(planted::check(args.jobs)?));
    }
    if let Some(bug) = &args.find {
        return Ok(code(planted::find(bug, args.minutes, args.record)?));
    }
    if let Some(bug) = &args.bug {
        plant(bug)?;
    }
    match (&args.seed, &args.seeds) {
        (Some(seed), None) => Ok(run_one(*seed, &args)),
        (None, Some(seeds)) => run_many(seeds, &args),
        _ => bail!("give --seed N or --seeds A..B"),
    }
}

fn code(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(feature = "planted")]
fn plant(bug: &str) -> anyhow::Result<()> {
    let found = wire::planted::BUGS.iter().find(|(name, _)| *name == bug);
    let (name, _) =
        found.with_context(|| format!("no planted bug is called {bug}; --list-bugs names them"))?;
    wire::planted::switch(Some(name));
    Ok(())
}

#[cfg(not(feature = "planted"))]
fn plant(_bug: &str) -> anyhow::Result<()> {
    bail!("this build has no planted bugs: build with --features planted")
}

fn run_one(seed: u64, args: &Args) -> ExitCode {
    start_logging(args.trace);
    note_panics();
    let verdict = run::run(
        seed,
        &Options { minutes: args.minutes, is_loud: args.trace, prints_messages: args.messages },
    );
    report(seed, &verdict);
    // No destructor of a simulated node should run now.
    let code = if verdict.violations.is_empty() { 0 } else { 1 };
    std::process::exit(code)
}

fn report(seed: u64, verdict: &Verdict) {
    if !verdict.violations.is_empty() {
        for line in &verdict.tail {
            println!("  {line}");
        }
        for violation in &verdict.violations {
            println!("violation: {violation}");
        }
    }
    let counts = &verdict.counts;
    println!(
        "seed {seed}: {} operations, {} unanswered, {} faults, {} messages, {} events, trace {:016x}, {}",
        verdict.operations,
        counts.unanswered,
        counts.faults,
        verdict.messages,
        verdict.events,
        verdict.digest,
        match verdict.violations.len() {
            0 => "passed".to_owned(),
            count => format!("FAILED with {count} violations"),
        }
    );
}

/// Runs each seed in a process of its own: what a killed node leaves behind in memory goes with it.
fn run_many(seeds: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let (first, end) = seeds.split_once("..").context("seeds are a range: 0..2000")?;
    let (first, end): (u64, u64) = (first.parse()?, end.parse()?);
    let program = std::env::current_exe()?;
    let times = if args.twice { 2 } else { 1 };
    let mut running: VecDeque<(u64, Vec<Child>)> = VecDeque::new();
    let (mut next, mut passed, mut failed) = (first, 0_u64, Vec::new());
    while next < end || !running.is_empty() {
        while next < end && running.len() * times < args.jobs.max(1) {
            let mut command = Command::new(&program);
            command.args(["--seed", &next.to_string(), "--minutes", &args.minutes.to_string()]);
            if let Some(bug) = &args.bug {
                command.args(["--bug", bug]);
            }
            command.stdout(Stdio::piped());
            let runs = (0..times).map(|_| command.spawn()).collect::<Result<_, _>>()?;
            running.push_back((next, runs));
            next += 1;
        }
        let Some((seed, runs)) = running.pop_front() else { break };
        if is_passed(seed, runs)? {
            passed += 1;
        } else {
            failed.push(seed);
            if args.until_failure {
                next = end;
            }
        }
    }
    if !failed.is_empty() {
        println!("failed seeds: {failed:?}");
    }
    println!("{passed} passed, {} failed", failed.len());
    Ok(code(failed.is_empty()))
}

/// Whether all runs of a seed end well and alike; says what they said.
fn is_passed(seed: u64, runs: Vec<Child>) -> anyhow::Result<bool> {
    let mut known: Option<String> = None;
    for run in runs {
        let output = run.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            print!("{text}");
            if !text.contains("FAILED") {
                println!("seed {seed}: FAILED, the simulator ended with {}", output.status);
            }
            return Ok(false);
        }
        let last = text.lines().last().unwrap_or_default();
        match &known {
            None => {
                println!("{last}");
                known = Some(last.to_owned());
            }
            Some(known) if known == last => {}
            Some(_) => {
                println!("{last}\nseed {seed}: FAILED, two runs differ");
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn start_logging(is_loud: bool) {
    if !is_loud {
        return;
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stdout).without_time().init();
}

/// Keeps panics for the verdict. The end of a simulated node is none.
fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        if info.payload().is::<platform::abort::NodeAborted>() {
            return;
        }
        let text = format!("node {:?}: {info}", platform::node::current());
        PANICS.with_borrow_mut(|panics| panics.push(text));
    }));
}

/// Panics since the last call.
fn take_panics() -> Vec<String> {
    PANICS.with_borrow_mut(std::mem::take)
}
