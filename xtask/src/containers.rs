//! Containers and datanodes of a cluster under test, as `ferrozone admin` tells of them.
//!
//! Not here: waiting for the nodes themselves (`whole`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::rig::{Rig, Role};
use crate::stopwatch::wait_until_every;

/// Between two looks: asking takes a process of its own.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A container, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Container {
    pub(crate) container: u64,
    pub(crate) state: String,
    pub(crate) health: Vec<String>,
    pub(crate) replicas: Vec<Replica>,
}

/// A replica of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Replica {
    pub(crate) datanode: String,
    pub(crate) state: String,
    pub(crate) liveness: String,
    pub(crate) is_reported: bool,
    pub(crate) is_sealed: bool,
    pub(crate) is_unhealthy: bool,
    pub(crate) used_bytes: u64,
}

impl Replica {
    /// Valid, sealed and whole by its datanode's own report.
    pub(crate) fn is_sealed_healthy(&self) -> bool {
        self.state == "valid"
            && self.liveness == "live"
            && self.is_reported
            && self.is_sealed
            && !self.is_unhealthy
    }
}

impl Container {
    /// Nothing is wrong with it: so many replicas, and if it is closed their datanodes say so themselves. A replica of an
    /// open one comes into being with the first block written to it.
    pub(crate) fn is_whole(&self, replicas: usize) -> bool {
        let stands = |replica: &&Replica| match self.state.as_str() {
            "Open" => replica.state == "valid" && replica.liveness == "live",
            _ => replica.is_sealed_healthy(),
        };
        self.health == ["healthy"] && self.replicas.iter().filter(stands).count() >= replicas
    }

    /// The replica on a datanode, if it is a valid one.
    pub(crate) fn on(&self, datanode: &str) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.datanode == datanode && replica.state == "valid")
    }
}

/// A datanode.
#[derive(Debug, Clone)]
pub(crate) struct Datanode {
    pub(crate) id: String,
    pub(crate) node: String,
    pub(crate) liveness: String,
}

/// Asks a cluster by its command line.
pub(crate) struct Asker<'a> {
    pub(crate) binary: &'a Path,
}

impl Asker<'_> {
    /// Runs `ferrozone admin`; what it prints.
    pub(crate) fn admin(&self, rig: &Rig, words: &[&str]) -> Result<String> {
        let mut command = std::process::Command::new(self.binary);
        let gateway = rig.names(Role::Gateway).first().cloned().context("a rig has a gateway")?;
        rig.admin(&mut command, &gateway, words);
        let outcome = command.output().context("run ferrozone admin")?;
        ensure!(
            outcome.status.success(),
            "ferrozone admin {}: {}{}",
            words.join(" "),
            outcome.status,
            String::from_utf8_lossy(&outcome.stderr)
        );
        Ok(String::from_utf8_lossy(&outcome.stdout).into_owned())
    }

    /// Its answer as JSON.
    pub(crate) fn json(&self, rig: &Rig, words: &[&str]) -> Result<Value> {
        let text = self.admin(rig, &[&["--json"], words].concat())?;
        serde_json::from_str(&text).context("read ferrozone admin")
    }

    /// All containers that hold anything, or may.
    pub(crate) fn containers(&self, rig: &Rig) -> Result<Vec<Container>> {
        let mut all: Vec<Container> = Vec::new();
        let mut path = "/api/v1/containers?max=1000".to_owned();
        loop {
            let page = self.json(rig, &["get", &path])?;
            let items = page.get("items").cloned().context("a page has items")?;
            all.extend(serde_json::from_value::<Vec<Container>>(items).context("read containers")?);
            match page["next"].as_str() {
                Some(next) => path = format!("/api/v1/containers?max=1000&after={next}"),
                None => break,
            }
        }
        all.retain(|container| container.state != "Deleting" && container.state != "Deleted");
        Ok(all)
    }

    /// All datanodes.
    pub(crate) fn datanodes(&self, rig: &Rig) -> Result<Vec<Datanode>> {
        let all = self.json(rig, &["datanode", "list"])?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a datanode lacks a field");
        all.as_array()
            .context("a list of datanodes")?
            .iter()
            .map(|one| {
                let id = text(&one["datanode"]["id"])?;
                Ok(Datanode { id, node: text(&one["node"])?, liveness: text(&one["liveness"])? })
            })
            .collect()
    }

    /// Waits until every container has so many healthy replicas and the cluster says that all is well. A leader that is
    /// just found answers nothing: asked again.
    pub(crate) fn wait_whole(
        &self,
        rig: &Rig,
        replicas: usize,
        deadline: Duration,
    ) -> Result<Vec<Container>> {
        let mut lacks = String::new();
        let waited = wait_until_every(LOOK_INTERVAL, "every container whole", deadline, || {
            let containers = match self.containers(rig) {
                Ok(containers) => containers,
                Err(error) => {
                    lacks = format!("{error:#}");
                    return Ok(None);
                }
            };
            if let Some(poor) = containers.iter().find(|container| !container.is_whole(replicas)) {
                lacks = format!("{poor:?}");
                return Ok(None);
            }
            let status = self.json(rig, &["status"])?;
            if status["problems"].as_array().is_some_and(|problems| !problems.is_empty()) {
                lacks = status["problems"].to_string();
                return Ok(None);
            }
            Ok(Some(containers))
        });
        waited.with_context(|| format!("last seen: {lacks}"))
    }
}

/// Bytes of live blocks on each datanode, by its id, in valid replicas.
pub(crate) fn bytes_by_datanode(containers: &[Container]) -> BTreeMap<String, u64> {
    let mut bytes = BTreeMap::new();
    for replica in containers.iter().flat_map(|container| &container.replicas) {
        if replica.state == "valid" {
            *bytes.entry(replica.datanode.clone()).or_default() += replica.used_bytes;
        }
    }
    bytes
}

/// The name of the node that a datanode runs on.
pub(crate) fn node_of(datanodes: &[Datanode], id: &str) -> Result<String> {
    match datanodes.iter().find(|datanode| datanode.id == id) {
        Some(datanode) => Ok(datanode.node.clone()),
        None => bail!("there is no datanode {id}"),
    }
}
