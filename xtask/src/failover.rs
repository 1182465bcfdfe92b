//! How long writes stop when a leader is killed.
//!
//! A client writes one small object after another through a gateway, each with a deadline of its own. In every round the
//! node that leads OM is killed with SIGKILL; the time from the kill to the next acknowledged write is the round's figure.
//!
//! Not here: what else may happen to a cluster (`chaos`).

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use s3_client::{Payload, S3Client};
use serde_json::Value;

use crate::FailoverArguments;

use crate::rig::{Rig, Role, Shape};
use crate::stopwatch::{Stopwatch, wait_until};
use crate::workspace::Workspace;

/// Writes go on within this, in the median.
const MEDIAN_LIMIT: Duration = Duration::from_secs(3);
/// A killed node is ready again within this.
const READY_AGAIN: Duration = Duration::from_secs(60);
const BUCKET: &str = "failover";

/// True if the median is within the limit.
pub(crate) fn run(workspace: &Workspace, arguments: &FailoverArguments) -> Result<bool> {
    ensure!(arguments.rounds > 0, "no rounds, no median");
    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let directory = workspace.target("failover");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove the last run")?;
    }
    let shape = Shape { metas: 3, datanodes: 3, gateways: 1 };
    let mut rig = Rig::create(&binary, &directory, shape, &[("RUST_LOG", "info")])?;
    rig.start_all()?;
    let runtime = tokio::runtime::Runtime::new().context("start tokio")?;
    let gateway = rig.names(Role::Gateway)[0].clone();
    let client = rig.client(&gateway, 1)?;
    runtime.block_on(client.create_bucket(BUCKET, None)).context("create the bucket")?;
    runtime.block_on(write(&client)).context("the first write")?;
    let mut figures = Vec::new();
    for round in 1..=arguments.rounds {
        let leader = leader(&binary, &rig, &gateway)?;
        rig.kill(&leader)?;
        let watch = Stopwatch::start();
        let mut attempts = 0;
        wait_until("a write after the leader's end", Duration::from_secs(60), || {
            attempts += 1;
            Ok(runtime.block_on(write(&client)).ok())
        })?;
        let took = watch.elapsed();
        println!(
            "round {round}: {leader} killed, writes again after {:.2} s, {attempts} requests",
            took.as_secs_f64()
        );
        figures.push(took);
        rig.start(&leader)?;
        rig.wait_ready(&leader, READY_AGAIN)?;
    }
    figures.sort();
    let median = figures[figures.len() / 2];
    let worst = figures[figures.len() - 1];
    println!(
        "median {:.2} s (limit {} s), worst {:.2} s of {} rounds",
        median.as_secs_f64(),
        MEDIAN_LIMIT.as_secs(),
        worst.as_secs_f64(),
        figures.len()
    );
    drop(rig);
    std::fs::remove_dir_all(&directory).context("remove the run's directory")?;
    Ok(median <= MEDIAN_LIMIT)
}

async fn write(client: &S3Client) -> Result<(), s3_client::Error> {
    let payload = Payload::from(Bytes::from_static(b"failover"));
    client.put_object(BUCKET, "key", payload).await.map(drop)
}

/// The node that leads OM, as the admin command says.
fn leader(binary: &std::path::Path, rig: &Rig, gateway: &str) -> Result<String> {
    wait_until("a leader of OM", Duration::from_secs(30), || {
        let mut command = std::process::Command::new(binary);
        rig.admin(&mut command, gateway, &["--json", "om", "members"]);
        let outcome = command.output().context("run ferrozone admin")?;
        if !outcome.status.success() {
            return Ok(None);
        }
        let shown: Value = serde_json::from_slice(&outcome.stdout).context("read ferrozone admin")?;
        let Some(members) = shown.get("members").and_then(Value::as_array) else {
            bail!("ferrozone admin om members has none: {shown}");
        };
        let leads = members.iter().find(|member| member["is_leader"] == true);
        Ok(leads.and_then(|member| member.pointer("/member/node")?.as_str().map(str::to_owned)))
    })
}
