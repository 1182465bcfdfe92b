//! `ferrozone cluster init` and `add-node`: ready directories of configuration, keys and certificates, one a node.
//!
//! ```text
//!   OUT/ca/      ca.key, ca.pem, cluster.json, credentials.json, nodes.json: for `add-node`; belongs to no server
//!   OUT/<node>/  node.toml, cluster.json, credentials.json, ca.pem, node.pem, node.key: copied to its host as a whole
//! ```
//!
//! A host is written `host[:port][@rack]`. The port is that of the internal listener (9002 if not given); S3 takes the
//! port two below, the operators' port the one below, so that several nodes of one host need one number each.
//!
//! Invariants:
//! * Raft ids are given out once: `nodes.json` remembers the next, whatever has been removed since.
//! * Nothing that exists is overwritten. Secrets are readable by their owner alone.
//! * A directory appears whole: what was broken off is made again by the same command. (A killed `init` may leave
//!   `.OUT.*` beside OUT, which nothing reads.)
//! * Files of the first voters name the first voters. Those made later name the nodes with OM and SCM as `nodes.json` knows
//!   them by then: a node that starts for the first time has nobody else to ask.
//!
//! Not here: what the keys mean (`config`, `topology`), how certificates are made (`certificates`).

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::host::HostPort;

use crate::certificates::{Authority, write_private};
use crate::config::{Config, Replicas};
use crate::fresh_file::FreshDirectory;
use crate::identity::{Cluster, Credentials, read_json, write_json};
use crate::topology::{MetaNode, Role};

/// Port of the internal listener where none is given; S3 is then on 9000 and the operators' port on 9001, as without a
/// cluster.
const INTERNAL_PORT: u16 = 9002;

/// Nodes with OM and SCM that a later node's file names: as many as two groups may have, and fewer than a node may know
/// (`client::failover`), lest those that are gone crowd out those that are.
const NAMED_MAX: usize = 9;

/// Arguments of `ferrozone cluster`.
#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Make the files of a new cluster's nodes.
    Init(InitArgs),
    /// Make the files of one more node of a cluster.
    AddNode(AddNodeArgs),
    /// Make the metadata of a lost cluster anew, from backups, on one node.
    Restore(crate::backup::RestoreArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Hosts with OM and SCM: one, three or five. They also take the roles below that have no hosts of their own.
    #[arg(long, value_delimiter = ',', required = true, value_name = "HOST[:PORT][@RACK]")]
    hosts: Vec<HostSpec>,
    /// Hosts with a datanode alone.
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT][@RACK]")]
    datanodes: Vec<HostSpec>,
    /// Hosts with a gateway alone.
    #[arg(long, value_delimiter = ',', value_name = "HOST[:PORT][@RACK]")]
    gateways: Vec<HostSpec>,
    /// Directory to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Data directory of every node; a relative one lies beside its node.toml.
    #[arg(long, default_value = "data", value_name = "DIR")]
    data_dir: PathBuf,
    /// TLS between the nodes [default: yes, unless all hosts are this one].
    #[arg(long, value_name = "BOOL")]
    tls: Option<bool>,
}

#[derive(Debug, Args)]
struct AddNodeArgs {
    /// Directory that `cluster init` made.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The new node's host.
    #[arg(long, value_name = "HOST[:PORT][@RACK]")]
    host: HostSpec,
    /// What it does.
    #[arg(long, value_delimiter = ',', required = true, value_enum)]
    roles: Vec<Role>,
    /// Its name [default: the host].
    #[arg(long)]
    name: Option<String>,
    /// Its number in the Raft groups, if it has OM or SCM [default: the next that was never used].
    #[arg(long)]
    raft_id: Option<u64>,
    /// Nodes with OM and SCM that are gone for good: files made from now on do not name them as somebody to ask.
    #[arg(long, value_delimiter = ',', value_name = "NODES")]
    gone: Vec<String>,
}

/// A host as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostSpec {
    address: HostPort,
    rack: String,
}

impl FromStr for HostSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, rack) = text.split_once('@').unwrap_or((text, ""));
        let with_port = match HostPort::new(host) {
            Ok(address) => address,
            // An IPv6 address alone reads better without brackets.
            Err(_) if host.parse::<Ipv6Addr>().is_ok() => {
                HostPort::new(&format!("[{host}]:{INTERNAL_PORT}")).map_err(|error| error.to_string())?
            }
            Err(_) => HostPort::new(&format!("{host}:{INTERNAL_PORT}"))
                .map_err(|_| format!("{text:?} is no host; write HOST, HOST:PORT or HOST:PORT@RACK"))?,
        };
        // Two ports below are taken too, and ports under 1024 need privileges.
        if with_port.port() < 1026 {
            return Err(format!("{text:?}: the port must be 1026 or more"));
        }
        Ok(Self { address: with_port, rack: rack.to_owned() })
    }
}

impl HostSpec {
    /// The loopback address it names, if it does: such a node is reached from its own machine alone.
    fn loopback(&self) -> Option<IpAddr> {
        match self.address.host() {
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => host.parse().ok().filter(IpAddr::is_loopback),
        }
    }

    /// Where the node listens, `below` ports under the internal one.
    fn listen(&self, below: u16) -> SocketAddr {
        let any = || match self.address.host().parse::<Ipv6Addr>() {
            Ok(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Err(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        SocketAddr::new(self.loopback().unwrap_or_else(any), self.address.port() - below)
    }
}

/// A node that was planned.
#[derive(Debug, Clone)]
struct Plan {
    name: String,
    host: HostSpec,
    roles: Vec<Role>,
    /// With OM or SCM, beyond the first voters.
    joining: Option<(u64, Uuid)>,
}

/// What `add-node` needs to know of the cluster.
#[derive(Debug, Serialize, Deserialize)]
struct Nodes {
    /// Never given out before.
    next_raft_id: u64,
    data_dir: PathBuf,
    tls: bool,
    /// Replicas of a key, unless an operator says otherwise.
    replication: Replicas,
    /// Those with OM and SCM that a new node's file names: the first voters, and those added since that are not gone.
    meta: Vec<MetaNode>,
    /// All nodes made so far: name and internal address.
    nodes: Vec<(String, HostPort)>,
}

/// Makes the files and says what to do with them.
pub(crate) fn run(args: &ClusterArgs) -> anyhow::Result<()> {
    let told = match &args.command {
        ClusterCommand::Init(args) => init(args)?,
        ClusterCommand::AddNode(args) => add_node(args)?,
        ClusterCommand::Restore(args) => crate::backup::restore(args)?,
    };
    print!("{told}");
    Ok(())
}

fn init(args: &InitArgs) -> anyhow::Result<String> {
    let out = &args.out;
    if out.exists() {
        bail!("{} exists; a cluster is made once: name a fresh directory", out.display());
    }
    let plans = plan(args)?;
    let meta: Vec<MetaNode> = plans
        .iter()
        .filter(|plan| plan.roles.contains(&Role::Om))
        .zip(1..)
        .map(|(plan, raft_id)| MetaNode {
            name: plan.name.clone(),
            raft_id,
            address: plan.host.address.clone(),
            incarnation: random_uuid(),
        })
        .collect();
    let all = args.hosts.iter().chain(&args.datanodes).chain(&args.gateways);
    let is_one_machine = all.clone().all(|host| host.loopback().is_some());
    if !is_one_machine && all.clone().any(|host| host.loopback().is_some()) {
        bail!(
            "some hosts are loopback addresses and some are not: nodes of other machines cannot reach the former"
        );
    }
    let nodes = Nodes {
        next_raft_id: meta.len() as u64 + 1,
        data_dir: args.data_dir.clone(),
        tls: args.tls.unwrap_or(!is_one_machine),
        // Three where three can be had.
        replication: match plans.iter().filter(|plan| plan.roles.contains(&Role::Datanode)).count() {
            0..3 => Replicas::One,
            _ => Replicas::Three,
        },
        meta,
        nodes: plans.iter().map(|plan| (plan.name.clone(), plan.host.address.clone())).collect(),
    };
    let cluster = Cluster::random();
    let credentials = Credentials::random();
    let authority = Authority::random(&cluster.id.to_string())?;

    let fresh = FreshDirectory::begin(out)?;
    let ca = fresh.path().join("ca");
    make_dir(&ca)?;
    authority.write(&ca)?;
    write_json(&ca.join("cluster.json"), &cluster)?;
    write_json(&ca.join("credentials.json"), &credentials)?;
    write_json(&ca.join("nodes.json"), &nodes)?;
    fs::write(ca.join("README"), CA_README).context("write README")?;
    for plan in &plans {
        let dir = fresh.path().join(&plan.name);
        make_dir(&dir)?;
        write_node(&dir, plan, &nodes, &cluster, &credentials, &authority)?;
    }
    fresh.keep()?;
    Ok(tell_init(out, &plans, &nodes, &credentials))
}

/// Which nodes there are, and what each does.
fn plan(args: &InitArgs) -> anyhow::Result<Vec<Plan>> {
    let mut meta_roles = vec![Role::Om, Role::Scm];
    if args.datanodes.is_empty() {
        meta_roles.push(Role::Datanode);
    }
    if args.gateways.is_empty() {
        meta_roles.push(Role::Gateway);
    }
    meta_roles.push(Role::Admin);
    let groups = [
        (&args.hosts, meta_roles),
        (&args.datanodes, vec![Role::Datanode, Role::Admin]),
        (&args.gateways, vec![Role::Gateway, Role::Admin]),
    ];
    let hosts: Vec<(HostSpec, Vec<Role>)> = groups
        .into_iter()
        .flat_map(|(hosts, roles)| hosts.iter().map(move |host| (host.clone(), roles.clone())))
        .collect();
    let plans: Vec<Plan> = hosts
        .iter()
        .map(|(host, roles)| {
            let of_host = hosts.iter().filter(|(other, _)| other.address.host() == host.address.host());
            let name = default_name(&host.address, of_host.count() > 1);
            Plan { name, host: host.clone(), roles: roles.clone(), joining: None }
        })
        .collect();
    let mut taken: Vec<(String, HostPort)> = Vec::new();
    for plan in &plans {
        check_free(&taken, &plan.name, &plan.host.address)?;
        taken.push((plan.name.clone(), plan.host.address.clone()));
    }
    Ok(plans)
}

/// The host, and its port where the host has several nodes.
fn default_name(address: &HostPort, with_port: bool) -> String {
    let host = address.host().replace(':', "-");
    if with_port { format!("{host}-{}", address.port()) } else { host }
}

/// Refuses a name that is taken or names no directory, and ports that another node of the host listens on.
fn check_free(taken: &[(String, HostPort)], name: &str, address: &HostPort) -> anyhow::Result<()> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.starts_with('.') || name == "ca" || !name.bytes().all(is_legal) {
        bail!("{name:?} is no name for a node: letters, digits, hyphens and dots; not \"ca\"");
    }
    for (other_name, other) in taken {
        if other_name == name || other == address {
            bail!(
                "node {name} at {address} is named twice; give each node of a host a port: {}:9102",
                address.host()
            );
        }
        if other.host() == address.host() && other.port().abs_diff(address.port()) < 3 {
            bail!(
                "nodes at {other} and {address} would share ports: each takes three, two below its own; leave a gap"
            );
        }
    }
    Ok(())
}

fn add_node(args: &AddNodeArgs) -> anyhow::Result<String> {
    let ca = args.from.join("ca");
    let file = ca.join("nodes.json");
    let mut nodes: Nodes = read_json(&file)?
        .with_context(|| format!("{} does not exist: is it what `cluster init` made?", file.display()))?;
    let cluster = Cluster::load(&ca.join("cluster.json"))?;
    let credentials: Credentials =
        read_json(&ca.join("credentials.json"))?.context("ca/credentials.json does not exist")?;
    let authority = Authority::load(&ca, &cluster.id.to_string())?;
    let name = args.name.clone().unwrap_or_else(|| {
        let address = &args.host.address;
        let shares_host = |other: &HostPort| other != address && other.host() == address.host();
        default_name(address, nodes.nodes.iter().any(|(_, other)| shares_host(other)))
    });
    // A machine that was wiped returns at its old address under a new name.
    let replaced = nodes.nodes.iter().position(|(_, address)| *address == args.host.address);
    let mut others = nodes.nodes.clone();
    replaced.map(|index| others.remove(index));
    let is_known = nodes.nodes.iter().any(|(known, _)| *known == name);
    if is_known || args.from.join(&name).exists() {
        bail!("there is a node {name} already; give the new one another name by --name");
    }
    check_free(&others, &name, &args.host.address)?;
    let has_meta = args.roles.iter().any(|role| matches!(role, Role::Om | Role::Scm));
    let joining = has_meta.then(|| (args.raft_id.unwrap_or(nodes.next_raft_id), random_uuid()));
    if let Some((raft_id, _)) = joining {
        if raft_id < nodes.next_raft_id {
            bail!(
                "raft id {raft_id} was given out before; an id is never used again (next: {})",
                nodes.next_raft_id
            );
        }
        nodes.next_raft_id = raft_id + 1;
    }
    let plan = Plan { name: name.clone(), host: args.host.clone(), roles: args.roles.clone(), joining };
    nodes.nodes = others;
    nodes.nodes.push((name, plan.host.address.clone()));
    forget_gone(&mut nodes.meta, &args.gone)?;
    let dir = args.from.join(&plan.name);
    let fresh = FreshDirectory::begin(&dir)?;
    // It names others, and not itself.
    write_node(fresh.path(), &plan, &nodes, &cluster, &credentials, &authority)?;
    name_meta_node(&mut nodes.meta, &plan);
    // Before the node's files have their place: an id that is written down twice could be used twice.
    write_json(&file, &nodes)?;
    fresh.keep()?;
    Ok(tell_added(&args.from, &plan))
}

/// Strikes out those that an operator calls gone.
fn forget_gone(meta: &mut Vec<MetaNode>, gone: &[String]) -> anyhow::Result<()> {
    for name in gone {
        let Some(index) = meta.iter().position(|entry| entry.name == *name) else {
            let known: Vec<&str> = meta.iter().map(|entry| entry.name.as_str()).collect();
            bail!("--gone {name}: no file names such a node with OM and SCM; there are {}", known.join(", "));
        };
        if meta.len() == 1 {
            bail!("--gone {name}: a new node would have nobody to ask; there is no other with OM and SCM");
        }
        meta.remove(index);
    }
    Ok(())
}

/// Remembers a node with OM and SCM for the files to come. Whoever had its address is gone.
fn name_meta_node(meta: &mut Vec<MetaNode>, plan: &Plan) {
    let Some((raft_id, incarnation)) = plan.joining else { return };
    let address = plan.host.address.clone();
    meta.retain(|entry| entry.address != address);
    meta.push(MetaNode { name: plan.name.clone(), raft_id, address, incarnation });
    let surplus = meta.len().saturating_sub(NAMED_MAX);
    meta.drain(..surplus);
}

/// Makes a node's files in `dir`.
fn write_node(
    dir: &Path,
    plan: &Plan,
    nodes: &Nodes,
    cluster: &Cluster,
    credentials: &Credentials,
    authority: &Authority,
) -> anyhow::Result<()> {
    let mut names = BTreeSet::from([plan.host.address.host().to_owned(), plan.name.clone()]);
    if plan.host.loopback().is_some() {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    }
    let (certificate, key) = authority.sign(&plan.name, names.into_iter().collect())?;
    fs::write(dir.join("ca.pem"), authority.certificate()).context("write ca.pem")?;
    fs::write(dir.join("node.pem"), certificate).context("write node.pem")?;
    write_private(&dir.join("node.key"), &key)?;
    write_json(&dir.join("cluster.json"), cluster)?;
    write_json(&dir.join("credentials.json"), credentials)?;
    let file = dir.join("node.toml");
    fs::write(&file, node_toml(plan, nodes, cluster)).context("write node.toml")?;
    // What this program writes, this program must accept.
    let config = Config::load(Some(&file), std::iter::empty())?;
    config.check_files()
}

/// The node's configuration, for people to read and change.
fn node_toml(plan: &Plan, nodes: &Nodes, cluster: &Cluster) -> String {
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let roles: Vec<String> = plan.roles.iter().map(|role| quote(role.name())).collect();
    let host = &plan.host;
    let mut text = format!(
        "# Node {name} of cluster {cluster}. All keys: docs/configuration.md. Relative paths lie beside this file.\n\
         data_dir = {data_dir}\n\n\
         [node]\nname = {quoted}\nroles = [{roles}]\nrack = {rack}\n\n\
         [cluster]\nid = \"{cluster}\"\nkey_file = \"cluster.json\"\ncredentials_file = \"credentials.json\"\n\n\
         [internal]\ntransport = \"http\"\naddress = \"{internal}\"\nadvertise = \"{advertise}\"\ntls = {tls}\n\
         certificate = \"node.pem\"\nkey = \"node.key\"\nca = \"ca.pem\"\n\n\
         # Health, metrics and the admin API. Reached from this machine alone unless you open it.\n\
         [admin]\naddress = \"{admin}\"\n",
        name = plan.name,
        quoted = quote(&plan.name),
        cluster = cluster.id,
        data_dir = quote(&nodes.data_dir.to_string_lossy()),
        roles = roles.join(", "),
        rack = quote(&host.rack),
        internal = host.listen(0),
        advertise = host.address,
        tls = nodes.tls,
        admin = SocketAddr::new(
            host.loopback().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host.address.port() - 1
        ),
    );
    if plan.roles.contains(&Role::Gateway) {
        text.push_str(&format!("\n[s3]\naddress = \"{}\"\n", host.listen(2)));
    }
    if plan.roles.contains(&Role::Om) && plan.joining.is_none() {
        let replication = match nodes.replication {
            Replicas::One => "one",
            Replicas::Three => "three",
        };
        text.push_str(&format!(
            "\n# Replicas of a key, until `ferrozone admin om set-replication` says otherwise.\n\
             [om]\nreplication = \"{replication}\"\n"
        ));
    }
    if let Some((raft_id, incarnation)) = plan.joining {
        text.push_str("\n# This replica waits to be added: `ferrozone admin add-node` or `replace-node`.\n");
        for role in [Role::Om, Role::Scm].into_iter().filter(|role| plan.roles.contains(role)) {
            text.push_str(&format!(
                "[{}]\njoin = true\nraft_id = {raft_id}\nincarnation = \"{incarnation}\"\n",
                role.name()
            ));
        }
    }
    let is_first = nodes.meta.iter().any(|entry| entry.name == plan.name);
    text.push_str(if is_first {
        "\n# The first voters of OM's and SCM's groups. Later ones are known to Raft.\n"
    } else {
        "\n# Nodes with OM and SCM when this file was made: whom this node asks at its first start. Then it knows all members.\n"
    });
    for entry in &nodes.meta {
        text.push_str(&format!(
            "[[meta]]\nname = {}\nraft_id = {}\naddress = \"{}\"\nincarnation = \"{}\"\n",
            quote(&entry.name),
            entry.raft_id,
            entry.address,
            entry.incarnation
        ));
    }
    text
}

const CA_README: &str = "\
This directory belongs to no server. Keep it apart from them, and in a backup.

ca.key            signs certificates of this cluster's nodes; whoever has it can pass for a node
ca.pem            the authority's certificate; every node has a copy
cluster.json      the cluster's id and key; every node has a copy
credentials.json  the root user's access key and secret; every node has a copy
nodes.json        nodes made so far, whom a new one asks, and the next raft id

`ferrozone cluster add-node --from` the directory above reads it to make the files of one more node.
";

fn tell_init(out: &Path, plans: &[Plan], nodes: &Nodes, credentials: &Credentials) -> String {
    let mut text = String::new();
    if nodes.meta.len().is_multiple_of(2) {
        text.push_str(&format!(
            "WARNING: {} nodes with OM and SCM survive no more failures than {} would; use an odd number.\n",
            nodes.meta.len(),
            nodes.meta.len() - 1
        ));
    }
    text.push_str(&format!("Made {}:\n", out.display()));
    for plan in plans {
        let roles: Vec<&str> = plan.roles.iter().map(|role| role.name()).collect();
        text.push_str(&format!(
            "  {:<24} {:<24} {}\n",
            plan.name,
            plan.host.address.as_str(),
            roles.join(", ")
        ));
    }
    let dir = out.display();
    text.push_str(&format!(
        "Root access key {}   Secret {}\n  (shown once; kept in {dir}/ca/credentials.json and with every node)\n\
         Copy {dir}/<node> to each host and there run: ferrozone server --config <node>/node.toml\n\
         Keep {dir}/ca apart: it is needed to add nodes, and by no server.\n",
        credentials.access_key, credentials.secret_key
    ));
    text
}

fn tell_added(out: &Path, plan: &Plan) -> String {
    let dir = out.join(&plan.name);
    let dir = dir.display();
    let mut text = format!(
        "Made {dir}. Copy it to {} and there run: ferrozone server --config {}/node.toml\n",
        plan.host.address.host(),
        plan.name
    );
    if let Some((raft_id, _)) = plan.joining {
        text.push_str(&format!(
            "It has raft id {raft_id} and waits to be added: ferrozone admin add-node {dir}/node.toml\n\
             or, in the place of a lost one: ferrozone admin replace-node LOST {dir}/node.toml\n"
        ));
    }
    text
}

fn random_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(wire::random::array()).into_uuid()
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create directory {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;
    use crate::topology::Group;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: ClusterArgs,
    }

    fn cluster(out: &Path, line: &str) -> anyhow::Result<String> {
        let dir = out.display().to_string();
        let words = line.split_whitespace().map(|word| if word == "OUT" { dir.as_str() } else { word });
        let args = Program::try_parse_from(std::iter::once("cluster").chain(words))?.args;
        match &args.command {
            ClusterCommand::Init(args) => init(args),
            ClusterCommand::AddNode(args) => add_node(args),
            ClusterCommand::Restore(args) => crate::backup::restore(args),
        }
    }

    fn load(out: &Path, node: &str) -> Config {
        Config::load(Some(&out.join(node).join("node.toml")), std::iter::empty()).unwrap()
    }

    #[test]
    fn nodes_agree_on_who_votes() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cluster");
        let line = "init --hosts m1@r1,m2,10.0.0.3 --datanodes d1@r2 --gateways g1 --out OUT";
        let told = cluster(&out, line).unwrap();
        assert!(told.contains("Root access key") && !told.contains("WARNING"), "{told}");
        let [m1, m3, d1, g1] = ["m1", "10.0.0.3", "d1", "g1"].map(|node| load(&out, node));
        assert!(m1.meta == m3.meta && m1.meta == d1.meta && m1.meta == g1.meta && m1.meta.len() == 3);
        let place = m3.place(Group::Scm).unwrap().unwrap();
        assert_eq!((place.member.raft_id, place.member.address.as_str()), (3, "10.0.0.3:9002"));
        assert_eq!(d1.place(Group::Om).unwrap(), None);
        assert_eq!((m1.node.rack.as_str(), d1.node.rack.as_str()), ("r1", "r2"));
        assert_eq!(m1.node.roles, [Role::Om, Role::Scm, Role::Admin]);
        assert_eq!(g1.node.roles, [Role::Gateway, Role::Admin]);
        assert_eq!(g1.s3.address.to_string(), "0.0.0.0:9000");
        assert_eq!(g1.admin.address.to_string(), "127.0.0.1:9001");
        assert!(m1.internal.tls);
        assert_eq!(d1.advertised().unwrap().unwrap().as_str(), "d1:9002");
        let ids = [&m1, &d1].map(|config| Cluster::establish(config).unwrap().id);
        assert_eq!(ids[0], ids[1]);
        for secret in
            ["ca/ca.key", "ca/cluster.json", "m1/node.key", "m1/cluster.json", "d1/credentials.json"]
        {
            let mode = fs::metadata(out.join(secret)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{secret}");
        }
    }

    #[test]
    fn nodes_of_one_machine_take_ports_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cluster");
        let hosts = "127.0.0.1:9102,127.0.0.1:9202";
        let told = cluster(&out, &format!("init --hosts {hosts} --out OUT")).unwrap();
        assert!(told.contains("WARNING: 2 nodes"), "{told}");
        let node = load(&out, "127.0.0.1-9202");
        let addresses = [node.s3.address, node.admin.address, node.internal.address];
        assert_eq!(addresses.map(|address| address.port()), [9200, 9201, 9202]);
        assert!(addresses.iter().all(|address| address.ip().is_loopback()) && !node.internal.tls);
        assert_eq!(node.node.roles, Role::ALL);
        assert_eq!(node.data_dir, out.join("127.0.0.1-9202/data"));
    }

    #[test]
    fn added_node_gets_an_id_never_used() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cluster");
        cluster(&out, "init --hosts m1,m2,m3 --out OUT").unwrap();
        let told = cluster(&out, "add-node --from OUT --host m4 --roles om,scm,admin").unwrap();
        assert!(told.contains("raft id 4"), "{told}");
        cluster(&out, "add-node --from OUT --host m2 --name m2b --roles om,scm").unwrap();
        let place = |node: &str| load(&out, node).place(Group::Om).unwrap().unwrap();
        let (m4, m2b) = (place("m4"), place("m2b"));
        assert_eq!((m4.member.raft_id, m2b.member.raft_id), (4, 5));
        assert!(m4.is_joining && m4.voters.is_empty() && m4.member.incarnation != m2b.member.incarnation);
        assert_eq!(fs::read(out.join("m1/ca.pem")).unwrap(), fs::read(out.join("m4/ca.pem")).unwrap());
        cluster(&out, "add-node --from OUT --host d9 --roles datanode").unwrap();
        assert_eq!(load(&out, "d9").place(Group::Om).unwrap(), None);
        for (line, part) in [
            ("add-node --from OUT --host m1 --roles datanode", "node m1 already"),
            ("add-node --from OUT --host m1 --name m4 --roles datanode", "node m4 already"),
            ("add-node --from OUT --host m6 --raft-id 2 --roles om,scm", "given out before"),
            ("add-node --from OUT/none --host m6 --roles om,scm", "cluster init"),
        ] {
            let error = format!("{:#}", cluster(&out, line).unwrap_err());
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
    }

    #[test]
    fn added_node_finds_the_group_when_the_first_ones_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cluster");
        cluster(&out, "init --hosts m1,m2,m3 --out OUT").unwrap();
        let asked = |node: &str| -> Vec<String> {
            let config = load(&out, node);
            config.check_cluster().unwrap();
            config.meta.iter().map(|entry| entry.address.as_str().to_owned()).collect()
        };
        for host in ["m4", "m5"] {
            cluster(&out, &format!("add-node --from OUT --host {host} --roles om,scm,admin")).unwrap();
        }
        // A node with OM joins, and so is not among those whom it asks.
        assert_eq!(asked("m5"), ["m1:9002", "m2:9002", "m3:9002", "m4:9002"]);
        // A wiped machine returns under another name: its old one is gone.
        cluster(&out, "add-node --from OUT --host m2 --name m2b --roles om,scm").unwrap();
        assert!(load(&out, "m2b").place(Group::Om).unwrap().unwrap().is_joining);
        cluster(&out, "add-node --from OUT --host d1 --roles datanode").unwrap();
        assert_eq!(asked("d1"), ["m1:9002", "m3:9002", "m4:9002", "m5:9002", "m2:9002"]);
        let told = "add-node --from OUT --host g1 --roles gateway --gone m1,m3";
        cluster(&out, told).unwrap();
        assert_eq!(asked("g1"), ["m4:9002", "m5:9002", "m2:9002"]);
        cluster(&out, "add-node --from OUT --host d2 --roles datanode").unwrap();
        assert_eq!(asked("d2"), asked("g1"), "what is gone stays gone");
        for (gone, part) in [("m1", "there are m4, m5, m2b"), ("m4,m5,m2b", "nobody to ask")] {
            let line = format!("add-node --from OUT --host d3 --roles datanode --gone {gone}");
            let error = cluster(&out, &line).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(!out.join("d3").exists());
        }
        assert_eq!(asked("m1"), ["m1:9002", "m2:9002", "m3:9002"], "the first voters stay what they are");
        for number in 10..30 {
            cluster(&out, &format!("add-node --from OUT --host n{number} --roles om,scm")).unwrap();
        }
        cluster(&out, "add-node --from OUT --host d4 --roles datanode").unwrap();
        assert_eq!((asked("d4").len(), asked("d4").last().unwrap().as_str()), (NAMED_MAX, "n29:9002"));
    }

    #[test]
    fn init_that_fails_leaves_nothing_and_is_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("cluster");
        let nothing = |out: &Path| !out.exists() && fs::read_dir(dir.path()).unwrap().count() == 0;
        // The second node's name is longer than a directory's may be: the first one's files were made by then.
        let long = "h".repeat(253);
        let line = format!("init --hosts m1,{long},{long}:9102 --out OUT");
        let error = format!("{:#}", cluster(&out, &line).unwrap_err());
        assert!(error.contains("create directory") && nothing(&out), "{error}");
        cluster(&out, "init --hosts m1,m2,m3 --out OUT").unwrap();
        let node = "add-node --from OUT --host";
        let error =
            cluster(&out, &format!("{node} {long}:9102 --roles datanode --name {long}xyz")).unwrap_err();
        assert!(format!("{error:#}").contains("create a directory"), "{error:#}");
        cluster(&out, &format!("{node} m4 --roles om,scm")).unwrap();
        assert_eq!(load(&out, "m4").place(Group::Om).unwrap().unwrap().member.raft_id, 4);
    }

    #[test]
    fn impossible_clusters_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("there")).unwrap();
        for (line, part) in [
            ("init --hosts a,a --out OUT", "named twice"),
            ("init --hosts a,b --datanodes b --out OUT", "named twice"),
            ("init --hosts 127.0.0.1:9102,127.0.0.1:9103 --out OUT", "would share ports"),
            ("init --hosts 127.0.0.1:9102,b --out OUT", "cannot reach the former"),
            ("init --hosts a:80 --out OUT", "1026 or more"),
            ("init --hosts a/b --out OUT", "is no host"),
            ("init --hosts ca --out OUT", "no name for a node"),
            ("init --out OUT", "--hosts"),
        ] {
            let out = dir.path().join("fresh");
            let error = format!("{:#}", cluster(&out, line).unwrap_err());
            assert!(error.contains(part), "{part:?} not in {error:?}");
            assert!(!out.exists(), "{line}");
        }
        let error = cluster(&dir.path().join("there"), "init --hosts a --out OUT").unwrap_err();
        assert!(error.to_string().contains("name a fresh directory"), "{error}");
    }
}
