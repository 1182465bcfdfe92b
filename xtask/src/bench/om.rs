//! How many keys a second a replicated OM commits, and what a commit costs each replica.
//!
//! Meta nodes, three datanodes and a gateway run; the gateway makes the bucket, datanodes let SCM open containers, and then
//! only the meta nodes work (see `om_load`). SCM runs in their processes and is counted with OM: it does next to nothing.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use wire::block::Replication;

use super::cost::{Spent, cpu_ms};
use super::om_load::{OmLoad, Outcome, Until};
use super::volume::Volume;
use super::{Common, print_heading, row, runtime, shown};
use crate::rig::{Rig, Role, Shape};
use crate::workspace::Workspace;

/// What is wanted of three voters on two cores.
const RATE_AIM: f64 = 8000.0;
/// Three logs and three states of a few million keys.
const VOLUME_BYTES: u64 = 16 << 30;
/// Connections, caches and trees are warm after this.
const WARM_UP: Duration = Duration::from_secs(5);

/// What `bench-om` measures.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Nodes with OM and SCM.
    #[arg(long, default_value_t = 3)]
    voters: usize,
    /// Clients, each with one commit at a time.
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// Time measured, after five seconds that are not.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Record a profile of the leader here (`perf report -i FILE`).
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// True if the aim is met, or none is set for what was asked.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    ensure!(arguments.clients > 0 && arguments.seconds > 0, "no clients or no time, no rate");
    let binary = workspace.release_server(arguments.common.binary.as_deref())?;
    let base = arguments.common.dir.clone().unwrap_or_else(|| workspace.target("bench-om"));
    let volume = Volume::create(&base, VOLUME_BYTES)?;
    let shape = Shape { metas: arguments.voters, datanodes: 3, gateways: 1 };
    let mut rig = Rig::create(&binary, &volume.path().join("rig"), shape, &[("FERROZONE_LOG", "warn")])?;
    rig.start_all()?;

    let runtime = runtime()?;
    let mut load = runtime.block_on(OmLoad::open(&rig, arguments.clients, Replication::Three))?;
    runtime.block_on(load.run(Until::Elapsed(WARM_UP)))?;
    let leader = runtime.block_on(load.leader(&rig))?;
    let before = Counters::read(&rig)?;
    let profiler = profile(&rig, &leader, arguments)?;
    let outcome = runtime.block_on(load.run(Until::Elapsed(Duration::from_secs(arguments.seconds))))?;
    let after = Counters::read(&rig)?;
    if let Some(mut profiler) = profiler {
        profiler.wait().context("wait for perf")?;
    }
    let led = runtime.block_on(load.leader(&rig))?;
    ensure!(
        led == leader,
        "{leader} led at the beginning and {led} at the end: a run with an election is none"
    );

    print_heading(workspace, &binary, "Commits of a replicated OM", &volume)?;
    println!("- keys of one block each, ids from real loans; no datanode is written to");
    print(arguments, &outcome, &after.since(&before), &leader);
    let aimed = arguments.voters == 3 && arguments.clients == 256;
    let met = outcome.rate() >= RATE_AIM;
    if aimed {
        let verdict = if met { "met" } else { "missed" };
        println!("\naim: at least {RATE_AIM:.0} commits/s: {verdict}");
    }
    Ok(met || !aimed)
}

/// What every meta node and the load itself have spent.
struct Counters {
    nodes: Vec<(String, Spent)>,
    client_cpu_ms: f64,
}

impl Counters {
    fn read(rig: &Rig) -> Result<Self> {
        let metas = rig.nodes().iter().filter(|node| node.role == Role::Meta);
        let nodes =
            metas.map(|node| Ok((node.name.clone(), Spent::by_meta(node)?))).collect::<Result<_>>()?;
        Ok(Self { nodes, client_cpu_ms: cpu_ms("self")? })
    }

    fn since(&self, earlier: &Self) -> Self {
        let pairs = self.nodes.iter().zip(&earlier.nodes);
        Self {
            nodes: pairs.map(|((name, now), (_, then))| (name.clone(), now.since(*then))).collect(),
            client_cpu_ms: self.client_cpu_ms - earlier.client_cpu_ms,
        }
    }
}

fn print(arguments: &Arguments, outcome: &Outcome, spent: &Counters, leader: &str) {
    let each = |value: f64| value / outcome.commits as f64;
    println!();
    println!(
        "{}",
        row(["voters", "clients", "commits/s", "p50 / p99 / max ms", "client CPU ms/commit"])
            + "\n"
            + &row(["---:"; 5])
    );
    println!(
        "{}",
        row([
            arguments.voters.to_string(),
            arguments.clients.to_string(),
            shown(outcome.rate()),
            format!(
                "{:.2} / {:.2} / {:.2}",
                outcome.quantile(0.5),
                outcome.quantile(0.99),
                outcome.quantile(1.0)
            ),
            shown(each(spent.client_cpu_ms)),
        ])
    );
    println!();
    let head = [
        "replica",
        "CPU ms/commit",
        "cores",
        "log B/commit",
        "written B/commit",
        "entries per fdatasync",
        "fdatasyncs/s",
    ];
    println!("{}\n{}", row(head), row(["---", "---:", "---:", "---:", "---:", "---:", "---:"]));
    let seconds = outcome.elapsed.as_secs_f64();
    for (name, spent) in &spent.nodes {
        let role = if name == leader { "leader" } else { "follower" };
        println!(
            "{}",
            row([
                role.to_owned(),
                shown(each(spent.cpu_ms)),
                format!("{:.2}", spent.cpu_ms / 1e3 / seconds),
                shown(each(spent.log_bytes)),
                shown(each(spent.written_bytes)),
                shown(spent.log_entries / spent.log_syncs),
                shown(spent.log_syncs / seconds),
            ])
        );
    }
}

/// `perf record` of the leader for as long as is measured.
fn profile(rig: &Rig, leader: &str, arguments: &Arguments) -> Result<Option<Child>> {
    let Some(file) = &arguments.profile else { return Ok(None) };
    let node = rig.nodes().iter().find(|node| node.name == leader).context("the leader is no node")?;
    let pid = node.pid().context("the leader is down")?.to_string();
    let mut command = Command::new("perf");
    command.args(["record", "-q", "-F", "499", "--call-graph", "dwarf,16384", "-o"]).arg(file);
    command.args(["-p", &pid, "--", "sleep", &arguments.seconds.min(10).to_string()]);
    Ok(Some(command.stdout(Stdio::null()).spawn().context("start perf")?))
}
