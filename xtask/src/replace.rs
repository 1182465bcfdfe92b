//! A node loses its disks and is replaced by two commands, while the cluster serves on.
//!
//! ```text
//!   datanode   ferrozone server --config node.toml          (on empty disks)
//!              ferrozone admin datanode forget NODE
//!   meta node  ferrozone cluster add-node --host ...        (and its server is started)
//!              ferrozone admin replace-node LOST node.toml
//! ```
//!
//! Afterwards nothing of the lost node is left in the cluster's own account of itself, every container has three healthy
//! replicas, every byte is as it was written, and what came new carries its part: the bytes are read from the new datanode
//! alone, and the new voter makes the majority when another one is down.
//!
//! Not here: how fast copies are made (`repair`).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use s3_client::{Payload, S3Client};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::ReplaceArguments;
use crate::containers::{Asker, node_of};
use crate::corpus::Corpus;
use crate::counts::Counts;
use crate::rig::{Rig, Role, Shape};
use crate::stopwatch::{Stopwatch, wait_until, wait_until_every};
use crate::workspace::Workspace;

const BUCKET: &str = "replace";
const OBJECT_BYTES: u64 = 3 << 20;
const REPLICAS: usize = 3;
/// A node that starts is ready within this.
const READY: Duration = Duration::from_secs(60);
/// Far above what the copies of a test take.
const WHOLE: Duration = Duration::from_secs(180);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Small keys written at most until OM has dropped the beginning of its log.
const KEYS_MAX: u32 = 20_000;

/// What is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// A datanode.
    Datanode,
    /// The node that leads OM.
    Meta,
}

/// True if both were replaced.
pub(crate) fn run(workspace: &Workspace, arguments: &ReplaceArguments) -> Result<bool> {
    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let directory = arguments.dir.clone().unwrap_or_else(|| workspace.target("replace"));
    let mut counts = Counts::default();
    for part in [Part::Datanode, Part::Meta] {
        if arguments.only.is_some_and(|only| only != part) {
            continue;
        }
        if directory.exists() {
            std::fs::remove_dir_all(&directory).context("remove the last run")?;
        }
        let settings = [
            ("FERROZONE_SCM__STALE_AFTER", "3s"),
            ("FERROZONE_SCM__DEAD_AFTER", "6s"),
            ("FERROZONE_SCM__REPAIR_DELAY", "0s"),
            ("FERROZONE_SCM__CONTAINER_SIZE", "64MiB"),
            // Small, so that a log begins to forget and a snapshot must do.
            ("FERROZONE_OM__LOG_SEGMENT", "256KiB"),
            ("RUST_LOG", "info"),
        ];
        let shape = Shape { metas: 3, datanodes: REPLICAS, gateways: 2 };
        let mut rig = Rig::create(&binary, &directory, shape, &settings)?;
        rig.start_all()?;
        for name in rig.names(Role::Datanode) {
            rig.wait_ready(&name, READY)?;
        }
        let mut stage = Stage::set(&rig, Asker { binary: &binary })?;
        let outcome = match part {
            Part::Datanode => stage.replace_datanode(&mut rig, arguments.bytes),
            Part::Meta => stage.replace_meta(&mut rig, arguments.bytes / 4),
        };
        drop(rig);
        match outcome {
            Ok(()) => {
                counts.passed += 1;
                std::fs::remove_dir_all(&directory).context("remove the run's directory")?;
            }
            Err(error) => {
                counts.failed += 1;
                println!("FAILED: {error:#}");
                // Its logs are what tells why.
                break;
            }
        }
    }
    println!("{counts}");
    Ok(counts.all_passed())
}

/// Clients of a cluster, and what they wrote.
struct Stage<'a> {
    asker: Asker<'a>,
    runtime: Runtime,
    clients: Vec<S3Client>,
    written: Vec<Corpus>,
}

impl<'a> Stage<'a> {
    fn set(rig: &Rig, asker: Asker<'a>) -> Result<Self> {
        let runtime = Runtime::new().context("start tokio")?;
        let clients: Result<Vec<S3Client>> =
            rig.names(Role::Gateway).iter().map(|name| rig.client(name, 8)).collect();
        let clients = clients?;
        runtime.block_on(clients[0].create_bucket(BUCKET, None)).context("create the bucket")?;
        Ok(Self { asker, runtime, clients, written: Vec::new() })
    }

    /// Writes through one gateway. No request may fail.
    fn write(&mut self, prefix: &str, bytes: u64) -> Result<()> {
        let corpus = Corpus::new(prefix, bytes, OBJECT_BYTES);
        let client = &self.clients[self.written.len() % self.clients.len()];
        self.runtime.block_on(corpus.write(client, BUCKET))?;
        self.written.push(corpus);
        Ok(())
    }

    /// Reads everything through each gateway. No request may fail, no byte differ.
    fn compare(&self) -> Result<()> {
        for client in &self.clients {
            for corpus in &self.written {
                self.runtime.block_on(corpus.compare(client, BUCKET))?;
            }
        }
        Ok(())
    }

    fn replace_datanode(&mut self, rig: &mut Rig, bytes: u64) -> Result<()> {
        self.write("before", bytes)?;
        let lost = self.asker.datanodes(rig)?.into_iter().next().context("there are datanodes")?;
        let node = lost.node.clone();
        rig.kill(&node)?;
        rig.wipe(&node)?;
        println!("datanode {node} is killed and its disks are wiped");
        self.write("meanwhile", bytes / 4)?;

        let watch = Stopwatch::start();
        println!("+ ferrozone server --config {node}/node.toml");
        rig.start(&node)?;
        rig.wait_ready(&node, READY)?;
        let what = "the lost datanode given up";
        wait_until_every(LOOK_INTERVAL, what, READY, || {
            let all = self.asker.datanodes(rig)?;
            Ok(all.iter().any(|one| one.id == lost.id && one.liveness == "dead").then_some(()))
        })?;
        println!("+ ferrozone admin datanode forget {node}");
        let told = self.asker.admin(rig, &["datanode", "forget", &node])?;
        print!("{told}");

        let containers = self.asker.wait_whole(rig, REPLICAS, WHOLE)?;
        let datanodes = self.asker.datanodes(rig)?;
        ensure!(datanodes.len() == REPLICAS, "there are {} datanodes: {datanodes:?}", datanodes.len());
        ensure!(datanodes.iter().all(|one| one.id != lost.id), "the lost datanode is still known");
        let fresh = datanodes.iter().find(|one| one.node == node).context("the new datanode is unknown")?;
        println!(
            "whole after {:.1} s: {} containers with {REPLICAS} healthy replicas each",
            watch.elapsed().as_secs_f64(),
            containers.len()
        );
        self.compare()?;
        let fresh = node_of(&datanodes, &fresh.id)?;
        let others: Vec<String> =
            rig.names(Role::Datanode).into_iter().filter(|name| *name != fresh).collect();
        for name in &others {
            rig.kill(name)?;
        }
        self.compare()?;
        println!("every byte is right through both gateways, read from the new datanode alone");
        for name in &others {
            rig.start(name)?;
        }
        for name in &others {
            rig.wait_ready(name, READY)?;
        }
        self.write("after", bytes / 4)?;
        self.compare()
    }

    fn replace_meta(&mut self, rig: &mut Rig, bytes: u64) -> Result<()> {
        self.write("before", bytes)?;
        let first = self.fill_log(rig)?;
        println!("OM's log begins at entry {first}: a snapshot must do");
        let lost = self.leader(rig, "om")?;
        rig.kill(&lost)?;
        rig.wipe(&lost)?;
        println!("meta node {lost}, which leads OM, is killed and its disks are wiped");
        self.write("meanwhile", bytes / 4)?;

        let watch = Stopwatch::start();
        let fresh = format!("{lost}-new");
        println!(
            "+ ferrozone cluster add-node --from cluster --host ... --roles om,scm,admin --name {fresh}"
        );
        let config = rig.add_in_place_of(&lost, &fresh, "om,scm,admin")?;
        rig.start(&fresh)?;
        println!("+ ferrozone admin replace-node {lost} {fresh}/node.toml");
        let told = self.asker.admin(rig, &["replace-node", &lost, &config.to_string_lossy()])?;
        print!("{told}");
        for group in ["om", "scm"] {
            self.check_group(rig, group, &lost, &fresh)?;
        }
        println!("both groups whole after {:.1} s", watch.elapsed().as_secs_f64());
        self.compare()?;

        // With one of the old ones down, nothing is decided without the new one.
        let other =
            rig.names(Role::Meta).into_iter().find(|name| *name != fresh).context("another meta node")?;
        rig.kill(&other)?;
        self.write("with the new voter", bytes / 4)?;
        self.compare()?;
        rig.start(&other)?;
        rig.wait_ready(&other, READY)?;
        println!("every byte is right; with {other} down too, writes went on: the new voter votes");
        Ok(())
    }

    fn group(&self, rig: &Rig, group: &str) -> Result<Value> {
        self.asker.json(rig, &[group, "members"])
    }

    /// Writes small keys until OM's log has lost its beginning; answers where it begins.
    fn fill_log(&self, rig: &Rig) -> Result<u64> {
        let client = &self.clients[0];
        for number in 0..KEYS_MAX {
            let payload = Payload::from(Bytes::from_static(b"small"));
            let key = format!("small/{number:06}");
            self.runtime
                .block_on(client.put_object(BUCKET, &key, payload))
                .with_context(|| format!("put {key}"))?;
            if number % 500 == 499 {
                let first = self.group(rig, "om")?["log_first_index"].as_u64().context("log_first_index")?;
                if first > 1 {
                    return Ok(first);
                }
            }
        }
        anyhow::bail!("OM's log keeps its first entry after {KEYS_MAX} keys")
    }

    fn leader(&self, rig: &Rig, group: &str) -> Result<String> {
        wait_until("a leader", READY, || {
            let shown = self.group(rig, group)?;
            let members = shown["members"].as_array().context("a group has members")?;
            let leads = members.iter().find(|member| member["is_leader"] == true);
            Ok(leads.and_then(|member| member.pointer("/member/node")?.as_str().map(str::to_owned)))
        })
    }

    /// Three voters that the leader hears of and that are level with it; the new one among them and not the old.
    fn check_group(&self, rig: &Rig, group: &str, lost: &str, fresh: &str) -> Result<()> {
        let mut seen = Value::Null;
        let waited = wait_until_every(LOOK_INTERVAL, &format!("{group} whole"), READY, || {
            seen = self.group(rig, group)?;
            let members = seen["members"].as_array().context("a group has members")?;
            let names: Vec<&str> =
                members.iter().filter_map(|member| member.pointer("/member/node")?.as_str()).collect();
            ensure!(!names.contains(&lost), "{group} still has {lost}");
            ensure!(names.contains(&fresh), "{group} has no {fresh}");
            let last = seen["log_last_index"].as_u64().context("log_last_index")?;
            let is_level = |member: &&Value| {
                let is_heard = member["is_leader"] == true || member["is_active"] == true;
                is_heard && member["role"] == "voter" && member["match_index"].as_u64() >= Some(last)
            };
            Ok((members.len() == 3 && members.iter().filter(is_level).count() == 3).then_some(()))
        });
        waited.with_context(|| format!("last seen: {seen}"))
    }
}
