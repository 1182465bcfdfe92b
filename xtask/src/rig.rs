//! A cluster of real processes on loopback, made by `ferrozone cluster init`, for tools that break it or measure it.
//!
//! ```text
//!   meta nodes, datanodes, gateways: one process each, ports of their own, a directory each under DIR/data
//! ```
//!
//! Dropping the rig kills every process: no tool leaves one behind.
//!
//! Not here: what is done to it (`chaos`, `failover`).

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use s3_client::{Config, Credentials, Endpoint, PayloadMode, S3Client};
use serde_json::Value;

use crate::stopwatch::wait_until;

/// How long a node may take to come up before we call it failed.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// A client gives up on a request after this: a failed request must be seen as one.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Attempts at free ports: on a busy machine neighbours are often taken.
const ATTEMPTS_MAX: usize = 1000;
/// The first port tried.
const PORT_FIRST: u16 = 20_000;

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// OM and SCM.
    Meta,
    /// Blocks.
    Datanode,
    /// S3.
    Gateway,
}

/// How large a rig is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) metas: usize,
    pub(crate) datanodes: usize,
    pub(crate) gateways: usize,
}

/// One process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) role: Role,
    /// Its directory's name under the cluster's files.
    pub(crate) name: String,
    pub(crate) internal: String,
    pub(crate) s3: String,
    pub(crate) admin: String,
    child: Option<Child>,
}

impl Node {
    /// The process, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

/// A cluster of processes.
pub(crate) struct Rig {
    binary: PathBuf,
    directory: PathBuf,
    nodes: Vec<Node>,
    settings: BTreeMap<String, String>,
}

impl Rig {
    /// Makes the files of a cluster in a fresh directory. `settings` are environment variables of every process.
    pub(crate) fn create(
        binary: &Path,
        directory: &Path,
        shape: Shape,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        ensure!(!directory.join("cluster").exists(), "{} holds a cluster already", directory.display());
        std::fs::create_dir_all(directory.join("log")).context("make the rig's directory")?;
        let mut ports = Ports::default();
        let roles = std::iter::repeat_n(Role::Meta, shape.metas)
            .chain(std::iter::repeat_n(Role::Datanode, shape.datanodes))
            .chain(std::iter::repeat_n(Role::Gateway, shape.gateways));
        let mut hosts: BTreeMap<Role, Vec<String>> = BTreeMap::new();
        let mut nodes = Vec::new();
        for role in roles {
            let of_role = hosts.entry(role).or_default();
            // As `cluster init` has it: S3, operators and internal port follow one another, and the last names the node.
            let first = ports.three()?;
            let at = |offset: u16| format!("127.0.0.1:{}", first + offset);
            of_role.push(at(2));
            let name = format!("127.0.0.1-{}", first + 2);
            nodes.push(Node { role, name, internal: at(2), s3: at(0), admin: at(1), child: None });
        }
        let list = |role: Role| hosts.get(&role).map(|hosts| hosts.join(",")).unwrap_or_default();
        let mut init = Command::new(binary);
        init.args(["cluster", "init", "--hosts", &list(Role::Meta), "--datanodes", &list(Role::Datanode)]);
        init.args(["--gateways", &list(Role::Gateway), "--out"]).arg(directory.join("cluster"));
        let outcome = init.output().with_context(|| format!("run {}", binary.display()))?;
        ensure!(outcome.status.success(), "cluster init: {}", String::from_utf8_lossy(&outcome.stderr));
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ok(Self { binary: binary.to_owned(), directory: directory.to_owned(), nodes, settings })
    }

    /// Adds to the configuration of every node of a role, before it starts.
    pub(crate) fn configure(&self, role: Role, text: &str) -> Result<()> {
        for name in self.names(role) {
            let file = self.directory.join("cluster").join(name).join("node.toml");
            let kept = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            std::fs::write(&file, kept + text).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Names of the nodes of a role.
    pub(crate) fn names(&self, role: Role) -> Vec<String> {
        self.nodes.iter().filter(|node| node.role == role).map(|node| node.name.clone()).collect()
    }

    /// Where a node keeps its data.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.directory.join("data").join(name)
    }

    /// A node's log.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join("log").join(format!("{name}.log"))
    }

    /// Starts every node and waits until the gateways serve.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            self.start(name)?;
        }
        for name in self.names(Role::Gateway) {
            self.wait_ready(&name, START_DEADLINE)?;
        }
        Ok(())
    }

    /// Starts a node; under `wrapper` (a program and its arguments) if there is one.
    pub(crate) fn start_under(&mut self, name: &str, wrapper: &[&str]) -> Result<()> {
        let (data, log) = (self.data(name), self.log(name));
        std::fs::create_dir_all(&data).context("make a node's directory")?;
        let out = File::options().create(true).append(true).open(&log).context("open a node's log")?;
        let config = self.directory.join("cluster").join(name).join("node.toml");
        let binary = self.binary.clone();
        let settings = self.settings.clone();
        let node = self.node(name)?;
        ensure!(node.child.is_none(), "{name} is running");
        let mut command = match wrapper {
            [] => Command::new(&binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&binary);
                command
            }
        };
        command
            .arg("server")
            .arg(&data)
            .arg("--config")
            .arg(config)
            .envs(&settings)
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("share the log")?)
            .stderr(out);
        node.child = Some(command.spawn().with_context(|| format!("start {}", binary.display()))?);
        Ok(())
    }

    /// Starts a node.
    pub(crate) fn start(&mut self, name: &str) -> Result<()> {
        self.start_under(name, &[])
    }

    fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// Kills a node as `kill -9` does. No-op if it is down.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        if let Some(mut child) = self.node(name)?.child.take() {
            child.kill().context("kill a node")?;
            child.wait().context("wait for a killed node")?;
        }
        Ok(())
    }

    /// Sends a node a signal: `STOP`, `CONT`, `TERM`.
    pub(crate) fn signal(&mut self, name: &str, signal: &str) -> Result<()> {
        let Some(child) = &self.node(name)?.child else { bail!("{name} is down") };
        let outcome = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status()?;
        ensure!(outcome.success(), "kill -{signal} {name}: {outcome}");
        Ok(())
    }

    /// Whether a node's process runs; notes one that has ended by itself.
    pub(crate) fn is_running(&mut self, name: &str) -> Result<bool> {
        let node = self.node(name)?;
        let Some(child) = &mut node.child else { return Ok(false) };
        if child.try_wait().context("watch a node")?.is_some() {
            node.child = None;
            return Ok(false);
        }
        Ok(true)
    }

    /// Takes everything from a node that is down but the files that `cluster init` made: its disks are new.
    pub(crate) fn wipe(&mut self, name: &str) -> Result<()> {
        ensure!(!self.is_running(name)?, "{name} runs");
        std::fs::remove_dir_all(self.data(name)).context("wipe a node")
    }

    /// Makes the files of a node that stands at the address of another under a new name, in whose place it goes here.
    /// Answers its node.toml.
    pub(crate) fn add_in_place_of(&mut self, old: &str, name: &str, roles: &str) -> Result<PathBuf> {
        let (binary, cluster) = (self.binary.clone(), self.directory.join("cluster"));
        let node = self.node(old)?;
        ensure!(node.child.is_none(), "{old} runs");
        let mut command = Command::new(binary);
        command.args(["cluster", "add-node", "--from"]).arg(&cluster);
        command.args(["--host", &node.internal, "--roles", roles, "--name", name]);
        let outcome = command.output().context("run ferrozone cluster add-node")?;
        ensure!(outcome.status.success(), "cluster add-node: {}", String::from_utf8_lossy(&outcome.stderr));
        node.name = name.to_owned();
        Ok(cluster.join(name).join("node.toml"))
    }

    /// Kills a node that runs under a tracer: the tracer's child first, which is the node.
    pub(crate) fn kill_traced(&mut self, name: &str) -> Result<()> {
        if let Some(child) = &self.node(name)?.child {
            // Nobody is left to kill if the node has ended by itself.
            let _ = Command::new("pkill").args(["-KILL", "-P"]).arg(child.id().to_string()).status();
        }
        self.kill(name)
    }

    /// `http://host:port` of a gateway.
    pub(crate) fn s3(&self, name: &str) -> Result<String> {
        let node = self.nodes.iter().find(|node| node.name == name).context("there is no such gateway")?;
        Ok(format!("http://{}", node.s3))
    }

    /// Where a node answers other nodes.
    pub(crate) fn internal_port(&self, name: &str) -> Result<u16> {
        let node = self.nodes.iter().find(|node| node.name == name).context("there is no such node")?;
        node.internal.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).context("a port")
    }

    /// Waits until a node says that it is ready.
    pub(crate) fn wait_ready(&mut self, name: &str, deadline: Duration) -> Result<()> {
        let (admin, log) = (self.node(name)?.admin.clone(), self.log(name));
        wait_until(&format!("{name} ready (its log: {})", log.display()), deadline, || {
            if !self.is_running(name)? {
                bail!("{name} ended; its log is {}", log.display());
            }
            Ok(crate::server::is_ready(&admin).then_some(()))
        })
    }

    /// Completes a `ferrozone admin` command that asks a node's operators' port.
    pub(crate) fn admin(&self, command: &mut Command, name: &str, words: &[&str]) {
        let admin = self.nodes.iter().find(|node| node.name == name).map_or("", |node| node.admin.as_str());
        command
            .arg("admin")
            .args(["--admin", &format!("http://{admin}"), "--cluster-file"])
            .arg(self.cluster_file(name))
            .args(words);
    }

    /// A node's `cluster.json`: the cluster's id and key.
    pub(crate) fn cluster_file(&self, name: &str) -> PathBuf {
        self.directory.join("cluster").join(name).join("cluster.json")
    }

    /// The root credentials.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        let (access_key, secret_key) = self.access_key()?;
        Ok(Credentials::new(access_key, secret_key))
    }

    /// The root user's access key and its secret.
    pub(crate) fn access_key(&self) -> Result<(String, String)> {
        let name = &self.names(Role::Gateway)[0];
        let file = self.directory.join("cluster").join(name).join("credentials.json");
        let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let value: Value = serde_json::from_slice(&text).context("credentials.json")?;
        let field =
            |field: &str| value[field].as_str().map(str::to_owned).context("credentials.json lacks a field");
        Ok((field("access_key")?, field("secret_key")?))
    }

    /// A client of a gateway that never repeats a request: what fails is seen.
    pub(crate) fn client(&self, name: &str, connections: usize) -> Result<S3Client> {
        let endpoint: Endpoint = self.s3(name)?.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(S3Client::new(Config {
            credentials: Some(self.credentials()?),
            connections,
            payload: PayloadMode::Unsigned,
            attempts: 1,
            response_timeout: REQUEST_DEADLINE,
            ..Config::new(endpoint)
        }))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                // Already gone is as good.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Free ports, each given out once: listeners are held until all are known.
#[derive(Default)]
struct Ports {
    held: Vec<TcpListener>,
}

impl Ports {
    /// Three that follow one another; answers the first. Below the range from which outgoing connections take theirs: a
    /// node that is down must find its port free when it returns.
    fn three(&mut self) -> Result<u16> {
        // Runs beside one another begin in different places.
        let mut port = PORT_FIRST + (std::process::id() % 1000) as u16 * 8;
        for _ in 0..ATTEMPTS_MAX {
            let listeners: Vec<TcpListener> =
                (port..port + 3).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).collect();
            if listeners.len() == 3 {
                self.held.extend(listeners);
                return Ok(port);
            }
            port += 4;
        }
        bail!("no three free ports in a row")
    }
}
