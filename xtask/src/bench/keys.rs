//! One voter of OM with millions of keys: how its rate, its memory, its files, a listing and a restart grow with them.
//!
//! Keys are committed as `bench-om` does, by one client process through the real server. After each step a row is printed;
//! at some of them the node is killed with SIGKILL under its last commit and started again: the time to the first answer
//! counts from the start of the process. SCM runs in the same process and is counted with OM.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use wire::block::Replication;

use super::cost::{Spent, file_bytes, resident};
use super::om_load::{OmLoad, Outcome, Until};
use super::volume::Volume;
use super::{Common, mib, print_heading, row, runtime, shown};
use crate::rig::{Node, Rig, Role, Shape};
use crate::stopwatch::{Stopwatch, wait_until};
use crate::workspace::Workspace;

/// A restart serves within this, whatever there is.
const RESTART_LIMIT: Duration = Duration::from_secs(5);
/// A restart that takes longer than this has failed.
const RESTART_DEADLINE: Duration = Duration::from_secs(600);
/// Pages listed after each step, from places spread over the bucket.
const PAGES: u64 = 100;

/// What `bench-keys` measures.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How many keys in the end.
    #[arg(long, default_value_t = 20_000_000)]
    keys: u64,
    /// A row after so many.
    #[arg(long, default_value_t = 1_000_000)]
    step: u64,
    /// Kill and restart with so many keys; at the end in any case.
    #[arg(long, value_delimiter = ',', default_value = "1000000,5000000,10000000")]
    restart_at: Vec<u64>,
    /// Clients, each with one commit at a time.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Size of the volume, sparse: a key takes about 1 KiB while trees are rewritten.
    #[arg(long, default_value_t = 28)]
    volume_gib: u64,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// True if every restart was within its limit.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.clients > 0 && arguments.step > 0, "no clients or no step");
    let binary = workspace.release_server(arguments.common.binary.as_deref())?;
    let base = arguments.common.dir.clone().unwrap_or_else(|| workspace.target("bench-keys"));
    let volume = Volume::create(&base, arguments.volume_gib << 30)?;
    let shape = Shape { metas: 1, datanodes: 1, gateways: 1 };
    let mut rig = Rig::create(&binary, &volume.path().join("rig"), shape, &[("FERROZONE_LOG", "warn")])?;
    rig.start_all()?;
    let meta = rig.names(Role::Meta)[0].clone();
    let runtime = runtime()?;
    let mut load = runtime.block_on(OmLoad::open(&rig, arguments.clients, Replication::One))?;

    print_heading(workspace, &binary, "One voter of OM and millions of keys", &volume)?;
    println!(
        "- {} clients, keys of one block each in scattered order; no datanode is written to\n",
        arguments.clients
    );
    let head = [
        "keys",
        "commits/s",
        "p50 / p99 / max ms",
        "CPU ms/commit",
        "written B/commit",
        "resident MiB",
        "state MiB",
        "log MiB",
        "1,000 listed, p50 / max ms",
        "serving after SIGKILL, s",
    ];
    println!("{}\n{}", row(head), row(["---:"; 10]));
    let mut is_within = true;
    let mut keys = 0;
    while keys < arguments.keys {
        keys = (keys + arguments.step).min(arguments.keys);
        let before = Spent::by_meta(node(&rig, &meta)?)?;
        let outcome = runtime.block_on(load.run(Until::Keys(keys)))?;
        let spent = Spent::by_meta(node(&rig, &meta)?)?.since(before);
        let figures = Figures::read(&rig, &meta)?;
        let pages = runtime.block_on(load.pages(PAGES))?;
        let restart = if keys == arguments.keys || arguments.restart_at.contains(&keys) {
            let took = restart(&mut rig, &meta, &runtime, &mut load)?;
            is_within &= took <= RESTART_LIMIT;
            format!("{:.2}", took.as_secs_f64())
        } else {
            String::new()
        };
        println!("{}", figures.row(keys, &outcome, &spent, &pages, restart));
    }
    println!("\naim: a restart serves within {} s: {}", RESTART_LIMIT.as_secs(), verdict(is_within));
    Ok(is_within)
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

fn node<'r>(rig: &'r Rig, name: &str) -> Result<&'r Node> {
    rig.nodes().iter().find(|node| node.name == name).context("there is no such node")
}

/// How large a replica is.
struct Figures {
    resident_bytes: u64,
    state_bytes: u64,
    log_bytes: u64,
}

impl Figures {
    fn read(rig: &Rig, meta: &str) -> Result<Self> {
        let directory = rig.data(meta).join("om");
        Ok(Self {
            resident_bytes: resident(node(rig, meta)?)?,
            state_bytes: file_bytes(&directory, &["state."])?,
            log_bytes: file_bytes(&directory, &["log.", "spare."])?,
        })
    }

    fn row(&self, keys: u64, outcome: &Outcome, spent: &Spent, pages: &[f64], restart: String) -> String {
        let commits = outcome.commits as f64;
        let (median, slowest) = (pages[pages.len() / 2], pages[pages.len() - 1]);
        row([
            keys.to_string(),
            shown(outcome.rate()),
            format!(
                "{:.2} / {:.2} / {:.0}",
                outcome.quantile(0.5),
                outcome.quantile(0.99),
                outcome.quantile(1.0)
            ),
            shown(spent.cpu_ms / commits),
            shown(spent.written_bytes / commits),
            shown(mib(self.resident_bytes)),
            shown(mib(self.state_bytes)),
            shown(mib(self.log_bytes)),
            format!("{median:.2} / {slowest:.2}"),
            restart,
        ])
    }
}

/// SIGKILL while clients commit, then the time from a new start until a look-up of the last key is answered.
fn restart(
    rig: &mut Rig,
    meta: &str,
    runtime: &tokio::runtime::Runtime,
    load: &mut OmLoad,
) -> Result<Duration> {
    rig.kill(meta)?;
    let watch = Stopwatch::start();
    rig.start(meta)?;
    let internal = node(rig, meta)?.internal.clone();
    wait_until("the last key after the restart", RESTART_DEADLINE, || {
        ensure!(rig.is_running(meta)?, "{meta} ended; its log is {}", rig.log(meta).display());
        Ok(runtime.block_on(load.finds_last_key(&internal))?.then_some(()))
    })?;
    Ok(watch.elapsed())
}
