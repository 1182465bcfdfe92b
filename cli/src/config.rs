//! The configuration: one optional TOML file of documented keys, overridden by the environment, then by flags.
//!
//! Every key stands in [`KEYS`] with its meaning. A key that does not is an error that names the nearest one, so that a
//! slip of the pen never runs with a default in silence. `FERROZONE_OM__DELETE_GRACE=10s` sets `om.delete_grace`.
//!
//! Relative paths in a file are taken from the file's directory, so that a node's directory can be moved as a whole.
//!
//! Not here: credentials and identities that the first start makes (see `identity`); whether the keys of a node in a
//! cluster fit one another (see `topology`).

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::block::Replication;
use wire::host::HostPort;
use wire::ids::ClusterId;

use crate::topology::{MetaNode, Role};

/// Every key with its meaning, as `docs/configuration.md` lists them; a test holds it against [`Config`].
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("data_dir", "directory of everything that is not placed elsewhere by another key"),
    ("buckets", "buckets to create at start, owned by the root user"),
    ("log", "log filter as RUST_LOG has it: info, gateway=debug ..."),
    ("node.name", "this node's name, for people; [[meta]] entries are matched by it"),
    ("node.roles", "what runs in this process: om, scm, datanode, gateway, admin"),
    (
        "node.rack",
        "where the node stands: replicas of a container go to distinct racks where racks are named",
    ),
    (
        "cluster.id",
        "the cluster's id, held against the key file, so that a file of another cluster is noticed",
    ),
    ("cluster.key_file", "file with the cluster's id and key, readable by its owner alone"),
    (
        "cluster.marker_dir",
        "where it is noted that this node's replicas of the metadata have lived, so that a wiped one is noticed: not on \
         the data's disk [the key file's directory]",
    ),
    ("cluster.credentials_file", "file with the root user's credentials, readable by its owner alone"),
    ("s3.address", "where S3 is served; port 0 takes a free one"),
    ("s3.region", "region of this service in answers and scopes"),
    ("s3.strict_region", "refuse signatures for another region"),
    ("s3.sigv2_presign", "accept presigned URLs of Signature Version 2 (old aws cli and boto3 make them)"),
    ("s3.domains", "domains under which <bucket>.<domain> names a bucket (virtual-host style)"),
    ("s3.connections_max", "connections served at once"),
    ("s3.body_memory", "memory for bodies in flight, shared by all requests"),
    ("s3.shutdown_deadline", "requests still running are cut off so long after a signal"),
    ("s3.certificate", "PEM file with the certificate chain of the S3 port: then it speaks HTTPS"),
    ("s3.key", "PEM file with its private key"),
    ("s3.witness", "answers name the commit index a checker needs: for tests"),
    ("admin.address", "where health, metrics and the admin API are served; port 0 takes a free one"),
    ("admin.certificate", "PEM file with the certificate chain of the operators' port: then it speaks HTTPS"),
    ("admin.key", "PEM file with its private key"),
    (
        "internal.transport",
        "how roles of one process reach each other: in-process or http; a cluster always uses http",
    ),
    ("internal.address", "where OM, SCM and datanode answer one another when transport is http"),
    (
        "internal.advertise",
        "host:port under which other nodes reach internal.address, if not by that address itself",
    ),
    ("internal.tls", "TLS between the nodes of the cluster"),
    ("internal.certificate", "PEM file with this node's certificate chain"),
    ("internal.key", "PEM file with its private key"),
    ("internal.ca", "PEM file with the authority that signed all nodes' certificates"),
    ("meta.name", "[[meta]]: node.name of a node with OM and SCM when this file was made"),
    ("meta.raft_id", "[[meta]]: its number in the Raft groups of OM and SCM, never used again for another"),
    ("meta.address", "[[meta]]: host:port of its internal listener"),
    ("meta.incarnation", "[[meta]]: UUID of its first life; `ferrozone cluster init` draws it"),
    ("om.raft_id", "this node's number in OM's Raft group [default: that of its [[meta]] entry]"),
    ("om.join", "this node waits to be added to OM's running group"),
    ("om.incarnation", "with om.join: UUID of this replica's life; `ferrozone cluster add-node` draws it"),
    (
        "om.replication",
        "replicas of keys of class STANDARD, one or three, until an operator sets the cluster's default; the same on all nodes",
    ),
    ("om.dir", "directory of OM's log and state"),
    ("om.cache", "memory for OM's state"),
    ("om.delete_grace", "freed blocks are kept so long for readers that still hold their list"),
    (
        "om.open_key_expire_after",
        "loaned blocks of unfinished writes are reclaimed after this (Ozone's name)",
    ),
    ("om.open_key_scan_interval", "how often unfinished writes are looked through"),
    ("om.deletion_interval", "how often freed blocks are handed to SCM"),
    ("om.log_segment", "size of a segment of the Raft logs of OM and SCM"),
    ("scm.raft_id", "this node's number in SCM's Raft group [default: that of its [[meta]] entry]"),
    ("scm.join", "this node waits to be added to SCM's running group"),
    ("scm.incarnation", "with scm.join: UUID of this replica's life; `ferrozone cluster add-node` draws it"),
    ("scm.dir", "directory of SCM's log and state"),
    ("scm.container_size", "a container is closed at this size: 2GiB to 16GiB; smaller for tests"),
    ("scm.open_containers", "containers written at once per replication type"),
    ("scm.stale_after", "a datanode silent for so long is stale"),
    ("scm.dead_after", "a datanode silent for so long is dead: its replicas no longer count"),
    (
        "scm.repair_delay",
        "a dead datanode's containers are copied after this; at once if one replica is left",
    ),
    ("scm.repair_bandwidth", "bytes a second that all copies together may take; 0B sets no limit"),
    ("scm.copies_max", "copies of containers under way at once"),
    ("datanode.dirs", "one directory per disk"),
    ("datanode.reserve", "free space left on each disk"),
    ("datanode.growth_step", "container files grow by this"),
    ("datanode.heartbeat_interval", "how often the datanode reports to SCM"),
    ("users.id", "[[users]]: canonical id, as in <Owner><ID>"),
    ("users.display_name", "[[users]]: as in <Owner><DisplayName>"),
    ("users.email", "[[users]]: e-mail address, optional"),
    ("users.access_key", "[[users]]: access key id"),
    ("users.secret_key", "[[users]]: secret access key"),
];

/// Bytes, written as `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "String")]
pub(crate) struct Size(pub u64);

/// A span of time, written as `10s`, `1h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "String")]
pub(crate) struct Span(pub Duration);

/// What TOML or the environment holds for a size or span.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(u64),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = bytesize::ByteSize::from_str(text);
        size.map(|size| Self(size.as_u64())).map_err(|_| format!("{text:?} is no size; write 64MiB or 5GiB"))
    }
}

impl TryFrom<TextOrNumber> for Size {
    type Error = String;

    fn try_from(value: TextOrNumber) -> Result<Self, String> {
        match value {
            TextOrNumber::Number(bytes) => Ok(Self(bytes)),
            TextOrNumber::Text(text) => text.parse(),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        bytesize::ByteSize(size.0).display().iec().to_string()
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no span of time; write 500ms, 10s, 5m, 1h or 7d");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.trim().parse().map_err(|_| refuse())?;
        let unit_ms = match text[digits.len()..].trim() {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refuse()),
        };
        Ok(Self(Duration::from_millis(number.checked_mul(unit_ms).ok_or_else(refuse)?)))
    }
}

impl TryFrom<TextOrNumber> for Span {
    type Error = String;

    fn try_from(value: TextOrNumber) -> Result<Self, String> {
        match value {
            TextOrNumber::Number(number) => Err(format!("{number} has no unit; write {number}s")),
            TextOrNumber::Text(text) => text.parse(),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        format!("{}ms", span.0.as_millis())
    }
}

impl Span {
    /// Whole milliseconds.
    pub(crate) fn as_ms(self) -> u64 {
        self.0.as_millis() as u64
    }
}

/// The whole configuration, with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub buckets: Vec<String>,
    pub log: String,
    pub node: Node,
    pub cluster: ClusterFiles,
    pub s3: S3,
    pub admin: Admin,
    pub internal: Internal,
    pub om: Om,
    pub scm: Scm,
    pub datanode: Datanode,
    pub meta: Vec<MetaNode>,
    pub users: Vec<User>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./ferrozone-data"),
            buckets: Vec::new(),
            log: "info".to_owned(),
            node: Node::default(),
            cluster: ClusterFiles::default(),
            s3: S3::default(),
            admin: Admin::default(),
            internal: Internal::default(),
            om: Om::default(),
            scm: Scm::default(),
            datanode: Datanode::default(),
            meta: Vec::new(),
            users: Vec::new(),
        }
    }
}

/// Which node this is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Node {
    pub name: String,
    pub roles: Vec<Role>,
    pub rack: String,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: "node1".to_owned(), roles: Role::ALL.to_vec(), rack: String::new() }
    }
}

/// The cluster this node belongs to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClusterFiles {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<ClusterId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
}

/// The gateway's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct S3 {
    pub address: SocketAddr,
    pub region: String,
    pub strict_region: bool,
    pub sigv2_presign: bool,
    pub domains: Vec<String>,
    pub connections_max: usize,
    pub body_memory: Size,
    pub shutdown_deadline: Span,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    pub witness: bool,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            // Loopback: nobody is served over a network by accident.
            address: SocketAddr::from(([127, 0, 0, 1], 9000)),
            region: "us-east-1".to_owned(),
            strict_region: false,
            sigv2_presign: true,
            domains: vec!["localhost".to_owned()],
            // Well under the usual limit of open files, at one descriptor a connection.
            connections_max: 4096,
            // With the server's other memory under 256 MiB at 64 large uploads.
            body_memory: Size(96 << 20),
            shutdown_deadline: Span(Duration::from_secs(25)),
            certificate: None,
            key: None,
            witness: false,
        }
    }
}

/// The operators' port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Admin {
    pub address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 9001)), certificate: None, key: None }
    }
}

/// How the roles of one process reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// By direct calls.
    #[serde(alias = "inprocess")]
    InProcess,
    /// Over HTTP on loopback, as between processes.
    Http,
}

/// The internal listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Internal {
    pub transport: Transport,
    pub address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<HostPort>,
    pub tls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Default for Internal {
    fn default() -> Self {
        Self {
            transport: Transport::InProcess,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            tls: false,
            certificate: None,
            key: None,
            ca: None,
        }
    }
}

/// How many replicas a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Replicas {
    /// On one datanode.
    One,
    /// On three.
    Three,
}

impl From<Replicas> for Replication {
    fn from(replicas: Replicas) -> Self {
        match replicas {
            Replicas::One => Self::One,
            Replicas::Three => Self::Three,
        }
    }
}

/// OM's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Om {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    pub join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uuid>,
    pub replication: Replicas,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    pub cache: Size,
    pub delete_grace: Span,
    pub open_key_expire_after: Span,
    pub open_key_scan_interval: Span,
    pub deletion_interval: Span,
    pub log_segment: Size,
}

impl Default for Om {
    fn default() -> Self {
        Self {
            raft_id: None,
            join: false,
            incarnation: None,
            replication: Replicas::One,
            dir: None,
            // Filled only as it is used; the page cache stands behind it.
            cache: Size(64 << 20),
            // More than a token's life of 30 minutes plus skew.
            delete_grace: Span(Duration::from_secs(3600)),
            open_key_expire_after: Span(Duration::from_secs(7 * 86_400)),
            open_key_scan_interval: Span(Duration::from_secs(300)),
            deletion_interval: Span(Duration::from_secs(10)),
            log_segment: Size(64 << 20),
        }
    }
}

/// SCM's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Scm {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    pub join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    pub container_size: Size,
    pub open_containers: usize,
    pub stale_after: Span,
    pub dead_after: Span,
    pub repair_delay: Span,
    pub repair_bandwidth: Size,
    pub copies_max: usize,
}

impl Default for Scm {
    fn default() -> Self {
        Self {
            raft_id: None,
            join: false,
            incarnation: None,
            dir: None,
            container_size: Size(5 << 30),
            open_containers: 1,
            stale_after: Span(Duration::from_secs(15)),
            dead_after: Span(Duration::from_secs(60)),
            // A node that is restarted or has its disk changed is back before this.
            repair_delay: Span(Duration::from_secs(300)),
            // A tenth of a 10 Gbit/s network; users' traffic goes on beside it.
            repair_bandwidth: Size(128 << 20),
            copies_max: 4,
        }
    }
}

/// The datanode's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Datanode {
    pub dirs: Vec<PathBuf>,
    pub reserve: Size,
    pub growth_step: Size,
    pub heartbeat_interval: Span,
}

impl Default for Datanode {
    fn default() -> Self {
        Self {
            dirs: Vec::new(),
            reserve: Size(256 << 20),
            growth_step: Size(64 << 20),
            heartbeat_interval: Span(Duration::from_secs(1)),
        }
    }
}

/// A user beside the root user.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    pub id: String,
    pub display_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    pub access_key: String,
    pub secret_key: String,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({}, {}, ***)", self.id, self.access_key)
    }
}

/// Prefix of environment variables that set a key.
const ENVIRONMENT_PREFIX: &str = "FERROZONE_";

impl Config {
    /// Reads the file, if any, and the environment over it.
    pub(crate) fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> anyhow::Result<Self> {
        let mut table = match file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("read configuration {}", file.display()))?;
                let table: toml::Table = toml::from_str(&text)
                    .with_context(|| format!("parse configuration {}", file.display()))?;
                check_keys("", &table).with_context(|| format!("configuration {}", file.display()))?;
                table
            }
            None => toml::Table::new(),
        };
        let data_dir_is_given = table.contains_key("data_dir");
        for (name, value) in environment {
            let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX).filter(|path| path.contains("__")) else {
                continue;
            };
            set(&mut table, &path.to_lowercase(), &value)
                .with_context(|| format!("environment variable {name}"))?;
        }
        let mut config: Self = toml::Value::Table(table).try_into().context("configuration")?;
        if let Some(dir) = file.and_then(Path::parent) {
            config.resolve_paths(dir, data_dir_is_given);
        }
        config.check()?;
        Ok(config)
    }

    /// Takes relative paths from the file's directory. The default data directory stays where the program runs.
    fn resolve_paths(&mut self, dir: &Path, data_dir_is_given: bool) {
        if data_dir_is_given {
            self.data_dir = dir.join(&self.data_dir);
        }
        let single = [
            &mut self.cluster.key_file,
            &mut self.cluster.marker_dir,
            &mut self.cluster.credentials_file,
            &mut self.s3.certificate,
            &mut self.s3.key,
            &mut self.admin.certificate,
            &mut self.admin.key,
            &mut self.internal.certificate,
            &mut self.internal.key,
            &mut self.internal.ca,
            &mut self.om.dir,
            &mut self.scm.dir,
        ];
        for path in single.into_iter().flatten().chain(&mut self.datanode.dirs) {
            *path = dir.join(&*path);
        }
    }

    /// Refuses settings that would not work, saying why.
    fn check(&self) -> anyhow::Result<()> {
        self.check_cluster()?;
        if self.scm.dead_after.0 <= self.scm.stale_after.0 {
            bail!("scm.dead_after must be longer than scm.stale_after");
        }
        if self.scm.copies_max == 0 {
            bail!("scm.copies_max must be at least 1, or nothing is ever repaired");
        }
        const CONTAINER_MIN: u64 = 4 << 20;
        if !(CONTAINER_MIN..=16 << 30).contains(&self.scm.container_size.0) {
            bail!(
                "scm.container_size is {}; it must be 4MiB to 16GiB",
                String::from(self.scm.container_size)
            );
        }
        if self.scm.container_size.0 < 2 << 30 {
            tracing::warn!("scm.container_size is below 2GiB: meant for tests");
        }
        if self.scm.open_containers == 0 || self.s3.connections_max == 0 {
            bail!("scm.open_containers and s3.connections_max must be at least 1");
        }
        if self.s3.body_memory.0 < 8 << 20 {
            bail!("s3.body_memory must be at least 8MiB");
        }
        let mut access_keys = std::collections::BTreeSet::new();
        for user in &self.users {
            if user.access_key.len() < 3 || user.secret_key.len() < 8 {
                bail!("user {}: the access key needs 3 characters and the secret key 8", user.id);
            }
            if !access_keys.insert(&user.access_key) {
                bail!("access key {} is given to two users", user.access_key);
            }
        }
        Ok(())
    }

    /// The file with the cluster's id and key.
    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.cluster.key_file.clone().unwrap_or_else(|| self.data_dir.join("cluster.json"))
    }

    /// Where notes of replicas that have lived are kept.
    pub(crate) fn marker_dir(&self) -> PathBuf {
        let given = self.cluster.marker_dir.clone();
        let beside = || self.cluster_file().parent().map(Path::to_owned);
        given.or_else(beside).unwrap_or_else(|| self.data_dir.clone())
    }

    /// The file with the root user's credentials.
    pub(crate) fn credentials_file(&self) -> PathBuf {
        let given = self.cluster.credentials_file.clone();
        given.unwrap_or_else(|| crate::identity::credentials_file(&self.data_dir))
    }

    /// Where OM keeps its state.
    pub(crate) fn om_dir(&self) -> PathBuf {
        self.om.dir.clone().unwrap_or_else(|| self.data_dir.join("om"))
    }

    /// Where SCM keeps its state.
    pub(crate) fn scm_dir(&self) -> PathBuf {
        self.scm.dir.clone().unwrap_or_else(|| self.data_dir.join("scm"))
    }

    /// The datanode's disks.
    pub(crate) fn disk_dirs(&self) -> Vec<PathBuf> {
        match self.datanode.dirs.as_slice() {
            [] => vec![self.data_dir.join("disk1")],
            dirs => dirs.to_vec(),
        }
    }
}

/// Refuses keys that are not in [`KEYS`], naming the nearest.
fn check_keys(prefix: &str, table: &toml::Table) -> anyhow::Result<()> {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let inside = format!("{path}.");
        let is_section = KEYS.iter().any(|(key, _)| key.starts_with(&inside));
        match value {
            toml::Value::Table(table) if is_section => check_keys(&path, table)?,
            toml::Value::Array(items) if is_section => {
                for item in items.iter().filter_map(toml::Value::as_table) {
                    check_keys(&path, item)?;
                }
            }
            _ if KEYS.iter().any(|(key, _)| *key == path) => {}
            _ => bail!("unknown key `{path}`; did you mean `{}`?", nearest(&path)),
        }
    }
    Ok(())
}

fn nearest(path: &str) -> &'static str {
    let distance = |key: &str| (strsim::damerau_levenshtein(key, path) * 100) / key.len().max(path.len());
    KEYS.iter().map(|(key, _)| *key).min_by_key(|key| distance(key)).expect("there are keys")
}

fn set(table: &mut toml::Table, path: &str, value: &str) -> anyhow::Result<()> {
    let dotted = path.replace("__", ".");
    if !KEYS.iter().any(|(key, _)| *key == dotted)
        || ["users.", "meta."].iter().any(|list| dotted.starts_with(list))
    {
        bail!("unknown key `{dotted}`; did you mean `{}`?", nearest(&dotted));
    }
    let (section, name) = dotted.split_once('.').expect("the prefix test asked for a section");
    let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let section = section.as_table_mut().context("is not a section")?;
    // A number, boolean or list reads as TOML; anything else is text.
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let parsed = parsed.and_then(|mut table| table.remove("value"));
    section.insert(name.to_owned(), parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&file), environment)
    }

    #[test]
    fn every_key_is_documented_and_every_documented_key_exists() {
        let mut config = Config::default();
        config.om.dir = Some("om".into());
        config.scm.dir = Some("scm".into());
        let path = Some(PathBuf::from("p"));
        for option in [
            &mut config.cluster.key_file,
            &mut config.cluster.marker_dir,
            &mut config.cluster.credentials_file,
            &mut config.s3.certificate,
            &mut config.s3.key,
            &mut config.admin.certificate,
            &mut config.admin.key,
            &mut config.internal.certificate,
            &mut config.internal.key,
            &mut config.internal.ca,
        ] {
            option.clone_from(&path);
        }
        config.cluster.id = Some(ClusterId::default());
        config.internal.advertise = Some(HostPort::new("a:1").unwrap());
        (config.om.raft_id, config.scm.raft_id) = (Some(1), Some(1));
        (config.om.incarnation, config.scm.incarnation) = (Some(Uuid::nil()), Some(Uuid::nil()));
        config.meta.push(MetaNode {
            name: "a".into(),
            raft_id: 1,
            address: HostPort::new("a:1").unwrap(),
            incarnation: Uuid::nil(),
        });
        let user = User {
            id: "u".into(),
            display_name: "u".into(),
            email: Some("e".into()),
            access_key: "a".into(),
            secret_key: "s".into(),
        };
        config.users.push(user);
        let table = toml::Table::try_from(&config).unwrap();
        let mut seen = Vec::new();
        for (name, value) in &table {
            match value {
                toml::Value::Table(section) => seen.extend(section.keys().map(|key| format!("{name}.{key}"))),
                toml::Value::Array(items) if items.first().is_some_and(toml::Value::is_table) => {
                    seen.extend(items[0].as_table().unwrap().keys().map(|key| format!("{name}.{key}")));
                }
                _ => seen.push(name.clone()),
            }
        }
        let mut documented: Vec<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        documented.sort();
        seen.sort();
        assert_eq!(seen, documented);
    }

    #[test]
    fn every_key_stands_in_the_manual() {
        let manual = include_str!("../../docs/configuration.md");
        for (key, meaning) in KEYS {
            assert!(manual.contains(&format!("| `{key}` |")), "{key}");
            assert!(manual.contains(meaning), "{key}: {meaning}");
        }
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = format!("{:#}", load("[om]\ndelete_grase = \"1h\"", &[]).unwrap_err());
        assert!(error.contains("unknown key `om.delete_grase`; did you mean `om.delete_grace`?"), "{error}");
        let error = format!("{:#}", load("bucket = []", &[]).unwrap_err());
        assert!(error.contains("did you mean `buckets`?"), "{error}");
        let error = format!("{:#}", load("", &[("FERROZONE_S3__REGIN", "x")]).unwrap_err());
        assert!(error.contains("did you mean `s3.region`?"), "{error}");
    }

    #[test]
    fn environment_overrides_file() {
        let text = "[om]\ndelete_grace = \"2h\"\n[s3]\nregion = \"file\"";
        let environment = [
            ("FERROZONE_S3__REGION", "env"),
            ("FERROZONE_S3__STRICT_REGION", "true"),
            ("FERROZONE_SCM__CONTAINER_SIZE", "16MiB"),
            ("FERROZONE_ROOT_USER", "not a key"),
        ];
        let config = load(text, &environment).unwrap();
        assert_eq!(config.om.delete_grace.0, Duration::from_secs(7200));
        assert_eq!((config.s3.region.as_str(), config.s3.strict_region), ("env", true));
        assert_eq!(config.scm.container_size, Size(16 << 20));
    }

    #[test]
    fn nonsense_is_refused_with_the_way_to_write_it() {
        for (text, part) in [
            ("[om]\ndelete_grace = \"soon\"", "write 500ms"),
            ("[om]\ndelete_grace = 10", "10 has no unit"),
            ("[om]\ncache = \"much\"", "is no size"),
            ("[scm]\ncontainer_size = \"1KiB\"", "must be 4MiB to 16GiB"),
            (
                "[[users]]\nid = \"u\"\ndisplay_name = \"u\"\naccess_key = \"k\"\nsecret_key = \"s\"",
                "needs 3 characters",
            ),
        ] {
            let error = format!("{:#}", load(text, &[]).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
