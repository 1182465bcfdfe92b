//! PUT and GET of small and large objects through two gateways, three datanodes and three meta nodes.
//!
//! The load is `ferrozone bench`, whose connections go round the gateways. Every byte of an object is written to three
//! datanodes, all of which share the machine's cores and disk here.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Deserialize;

use super::volume::Volume;
use super::{Common, mib, print_heading, row, shown};
use crate::rig::{Rig, Role, Shape};
use crate::server::resident_bytes;
use crate::workspace::Workspace;

/// Three replicas of the space below, of what waits for its deletion, logs and states.
const VOLUME_BYTES: u64 = 24 << 30;
/// Distinct objects of a cell may weigh this; keys are overwritten beyond it.
const SPACE: &str = "1GiB";

/// What `bench-cluster` measures.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Sizes, each with the numbers of connections it is measured with: `SIZE:CONNECTIONS[+CONNECTIONS]`.
    #[arg(long, value_delimiter = ',', default_value = "4KiB:1+64,64MiB:1+8")]
    cells: Vec<String>,
    /// Time a cell takes.
    #[arg(long, default_value = "10s")]
    duration: String,
    #[arg(long, default_value_t = 2)]
    gateways: usize,
    #[arg(long, default_value_t = 3)]
    datanodes: usize,
    #[arg(long, default_value_t = 3)]
    metas: usize,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What `ferrozone bench --json` says.
#[derive(Deserialize)]
struct Report {
    cells: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    operation: String,
    connections: usize,
    failures: u64,
    operations_per_s: f64,
    mib_per_s: f64,
    latency_ms: Latency,
    server_cpu_ms_per_operation: Option<f64>,
    server_cpu_ms_per_operation_by_name: BTreeMap<String, f64>,
    client_cpu_ms_per_operation: Option<f64>,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

/// True if no operation failed.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    let binary = workspace.release_server(arguments.common.binary.as_deref())?;
    let base = arguments.common.dir.clone().unwrap_or_else(|| workspace.target("bench-cluster"));
    let volume = Volume::create(&base, VOLUME_BYTES)?;
    let Arguments { metas, datanodes, gateways, .. } = *arguments;
    // Overwritten objects give their space back during the run.
    let settings = [
        ("FERROZONE_LOG", "warn"),
        ("FERROZONE_OM__DELETE_GRACE", "1s"),
        ("FERROZONE_OM__DELETION_INTERVAL", "1s"),
    ];
    let shape = Shape { metas, datanodes, gateways };
    let mut rig = Rig::create(&binary, &volume.path().join("rig"), shape, &settings)?;
    rig.start_all()?;

    print_heading(workspace, &binary, "A cluster on one machine", &volume)?;
    println!(
        "- {metas} meta nodes, {datanodes} datanodes, {gateways} gateways, a process each; three replicas, \
         fdatasynced on each before the answer; requests and payloads signed; {} a cell\n",
        arguments.duration
    );
    let head = [
        "operation",
        "size",
        "conns",
        "ops/s",
        "MiB/s",
        "p50 / p99 ms",
        "CPU ms/op",
        "gateways",
        "datanodes",
        "meta nodes",
        "client",
    ];
    let rule = ["---"].into_iter().chain(["---:"; 10]);
    println!("{}\n{}", row(head), row(rule));
    let mut is_well = true;
    for cells in &arguments.cells {
        let (size, connections) = cells.split_once(':').context("a cell is SIZE:CONNECTIONS")?;
        let report = bench(&binary, &rig, size, &connections.replace('+', ","), &arguments.duration)?;
        for cell in &report.cells {
            println!("{}", cell.row(size));
            is_well &= cell.failures == 0;
        }
    }
    print_memory(&rig)?;
    Ok(is_well)
}

fn bench(
    binary: &std::path::Path,
    rig: &Rig,
    size: &str,
    connections: &str,
    duration: &str,
) -> Result<Report> {
    let endpoints: Vec<String> =
        rig.names(Role::Gateway).iter().map(|name| rig.s3(name)).collect::<Result<_>>()?;
    let pids: Vec<String> = rig
        .nodes()
        .iter()
        .filter_map(|node| node.pid().map(|pid| format!("{}={pid}", name_of(node.role))))
        .collect();
    let (access_key, secret_key) = rig.access_key()?;
    let mut command = Command::new(binary);
    command
        .args(["bench", "put", "get", "--json", "--space", SPACE])
        .args(["--sizes", size, "--connections", connections, "--duration", duration])
        .args(["--endpoint", &endpoints.join(","), "--server-pid", &pids.join(",")])
        .env("AWS_ACCESS_KEY_ID", access_key)
        .env("AWS_SECRET_ACCESS_KEY", secret_key)
        .stderr(std::process::Stdio::inherit());
    let outcome = command.output().context("run ferrozone bench")?;
    // 1 is a run with failures, which its cells show.
    ensure!(matches!(outcome.status.code(), Some(0 | 1)), "ferrozone bench: {}", outcome.status);
    serde_json::from_slice(&outcome.stdout).context("read what ferrozone bench says")
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Meta => "meta",
        Role::Datanode => "datanode",
        Role::Gateway => "gateway",
    }
}

impl Cell {
    fn row(&self, size: &str) -> String {
        let cpu = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), shown);
        let of = |role| cpu(self.server_cpu_ms_per_operation_by_name.get(name_of(role)).copied());
        let failed = if self.failures > 0 { format!(" ({} FAILED)", self.failures) } else { String::new() };
        row([
            self.operation.to_uppercase() + &failed,
            size.to_owned(),
            self.connections.to_string(),
            shown(self.operations_per_s),
            shown(self.mib_per_s),
            format!("{:.2} / {:.2}", self.latency_ms.p50, self.latency_ms.p99),
            cpu(self.server_cpu_ms_per_operation),
            of(Role::Gateway),
            of(Role::Datanode),
            of(Role::Meta),
            cpu(self.client_cpu_ms_per_operation),
        ])
    }
}

fn print_memory(rig: &Rig) -> Result<()> {
    let mut most: BTreeMap<&str, u64> = BTreeMap::new();
    for node in rig.nodes() {
        let pid = node.pid().with_context(|| format!("{} is down", node.name))?;
        let highest = most.entry(name_of(node.role)).or_default();
        *highest = resident_bytes(pid)?.max(*highest);
    }
    let shown: Vec<String> =
        most.iter().map(|(name, bytes)| format!("{name} {:.0} MiB", mib(*bytes))).collect();
    println!("\nResident at the end, the largest process of each: {}.", shown.join(", "));
    Ok(())
}
