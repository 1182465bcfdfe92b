//! A node's place in its cluster: which roles it has, who the meta nodes are, and whether the configuration is in accord
//! with itself.
//!
//! A mistake here can cost a cluster its data (two replicas under one raft id vote twice), so that every contradiction is
//! refused at start, with what to do.
//!
//! Invariants:
//! * The first voters of both groups hold the same `[[meta]]` entries: themselves. What changes later lives in Raft. To any
//!   other node the entries are whom it asks at its first start.
//! * A node that joins later is in no entry of its own file, and has raft ids that no entry has.
//!
//! Not here: reading the file (see `config`), making it (see `cluster_init`).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::group::Member;
use wire::host::HostPort;

use crate::config::Config;
use crate::identity::check_private;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The Ozone Manager.
    Om,
    /// The Storage Container Manager.
    Scm,
    /// Keeps blocks.
    Datanode,
    /// Serves S3.
    Gateway,
    /// Serves the admin API.
    Admin,
}

impl Role {
    /// All of them: the default.
    pub(crate) const ALL: [Self; 5] = [Self::Om, Self::Scm, Self::Datanode, Self::Gateway, Self::Admin];

    /// As it is written in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Om => "om",
            Self::Scm => "scm",
            Self::Datanode => "datanode",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }
}

/// A node with OM and SCM when the file was made; in a first voter's file, one of the first voters of both groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetaNode {
    pub name: String,
    pub raft_id: u64,
    pub address: HostPort,
    pub incarnation: Uuid,
}

impl MetaNode {
    /// As a member of either group.
    pub(crate) fn member(&self) -> Member {
        Member {
            raft_id: self.raft_id,
            incarnation: self.incarnation,
            node: self.name.clone(),
            address: self.address.clone(),
        }
    }
}

/// A replicated group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// The Ozone Manager's.
    Om,
    /// The Storage Container Manager's.
    Scm,
}

/// This node's place in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupPlace {
    /// This node's replica.
    pub member: Member,
    /// The first voters, if the replica is one of them and its directory is fresh; empty for a replica that joins.
    pub voters: Vec<Member>,
    /// A fresh replica waits to be added.
    pub is_joining: bool,
}

impl Config {
    /// Whether other nodes are named: without, the process is a cluster of its own.
    pub(crate) fn is_cluster(&self) -> bool {
        !self.meta.is_empty()
    }

    /// Whether this process has the role.
    pub(crate) fn has_role(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }

    /// Where other nodes reach this one's internal listener. None outside a cluster, where the bound address tells.
    pub(crate) fn advertised(&self) -> anyhow::Result<Option<HostPort>> {
        if let Some(address) = &self.internal.advertise {
            return Ok(Some(address.clone()));
        }
        if !self.is_cluster() {
            return Ok(None);
        }
        if let Some(entry) = self.meta.iter().find(|entry| entry.name == self.node.name) {
            return Ok(Some(entry.address.clone()));
        }
        let address = self.internal.address;
        if address.ip().is_unspecified() || address.port() == 0 {
            bail!("set internal.advertise: other nodes cannot connect to {address}");
        }
        Ok(Some(address.into()))
    }

    /// This node's place in a group; None if it has no replica of it, or is a cluster of its own.
    pub(crate) fn place(&self, group: Group) -> anyhow::Result<Option<GroupPlace>> {
        let (name, role, raft_id, join, incarnation) = match group {
            Group::Om => ("om", Role::Om, self.om.raft_id, self.om.join, self.om.incarnation),
            Group::Scm => ("scm", Role::Scm, self.scm.raft_id, self.scm.join, self.scm.incarnation),
        };
        let node = &self.node.name;
        if !self.is_cluster() {
            if join {
                bail!("{name}.join is set, but no [[meta]] entry says whom to join");
            }
            return Ok(None);
        }
        let own = self.meta.iter().find(|entry| entry.name == *node);
        if !self.has_role(role) {
            if own.is_some() {
                bail!("{node} is one of the [[meta]] nodes, but node.roles leaves out {name}");
            }
            return Ok(None);
        }
        if join {
            let address = self.advertised()?.context("a node of a cluster has an address")?;
            return self.joining_place(name, raft_id, incarnation, address).map(Some);
        }
        let Some(own) = own else {
            let known: Vec<&str> = self.meta.iter().map(|entry| entry.name.as_str()).collect();
            bail!(
                "node.roles has {name}, but {node} is not among the [[meta]] nodes ({}); correct node.name, or set \
                 {name}.join for a node that is to be added to a running cluster",
                known.join(", ")
            );
        };
        if raft_id.is_some_and(|raft_id| raft_id != own.raft_id) {
            bail!("{name}.raft_id is not {}, which the [[meta]] entry of {node} says", own.raft_id);
        }
        if let Some(address) = self.internal.advertise.as_ref().filter(|address| **address != own.address) {
            bail!("internal.advertise is {address}, but the [[meta]] entry of {node} says {}", own.address);
        }
        let voters = self.meta.iter().map(MetaNode::member).collect();
        Ok(Some(GroupPlace { member: own.member(), voters, is_joining: false }))
    }

    fn joining_place(
        &self,
        name: &str,
        raft_id: Option<u64>,
        incarnation: Option<Uuid>,
        address: HostPort,
    ) -> anyhow::Result<GroupPlace> {
        let (Some(raft_id), Some(incarnation)) = (raft_id, incarnation) else {
            bail!(
                "{name}.join needs {name}.raft_id and {name}.incarnation; `ferrozone cluster add-node` draws them"
            );
        };
        if raft_id == 0 {
            bail!("{name}.raft_id must be at least 1");
        }
        let taken =
            self.meta.iter().find(|entry| entry.raft_id == raft_id || entry.incarnation == incarnation);
        if let Some(entry) = taken {
            bail!(
                "{name}.raft_id {raft_id} or its incarnation is that of {} in [[meta]]; a node that joins needs new ones",
                entry.name
            );
        }
        let member = Member { raft_id, incarnation, node: self.node.name.clone(), address };
        Ok(GroupPlace { member, voters: Vec::new(), is_joining: true })
    }

    /// Refuses a place in the cluster that contradicts itself.
    pub(crate) fn check_cluster(&self) -> anyhow::Result<()> {
        let roles = &self.node.roles;
        if roles.iter().collect::<BTreeSet<_>>().len() != roles.len() || roles.is_empty() {
            bail!("node.roles must name each role once, and at least one");
        }
        if self.node.name.is_empty() {
            bail!("node.name must not be empty");
        }
        if !self.is_cluster() {
            for role in [Role::Om, Role::Scm] {
                if !self.has_role(role) {
                    let name = role.name();
                    bail!("node.roles leaves out {name}, but no [[meta]] entry says where {name} runs");
                }
            }
        }
        self.check_meta_nodes()?;
        for group in [Group::Om, Group::Scm] {
            self.place(group)?;
        }
        if self.is_cluster() {
            if self.internal.address.port() == 0 {
                bail!("internal.address needs a port that other nodes know, not 0");
            }
            self.advertised()?;
        }
        for (section, certificate, key) in [
            ("s3", &self.s3.certificate, &self.s3.key),
            ("admin", &self.admin.certificate, &self.admin.key),
            ("internal", &self.internal.certificate, &self.internal.key),
        ] {
            if certificate.is_some() != key.is_some() {
                bail!("set both {section}.certificate and {section}.key, or neither");
            }
        }
        if self.internal.tls && (self.internal.certificate.is_none() || self.internal.ca.is_none()) {
            bail!("internal.tls needs internal.certificate, internal.key and internal.ca");
        }
        Ok(())
    }

    fn check_meta_nodes(&self) -> anyhow::Result<()> {
        let mut seen: Vec<&MetaNode> = Vec::new();
        for entry in &self.meta {
            if entry.raft_id == 0 {
                bail!("[[meta]] {}: raft_id must be at least 1", entry.name);
            }
            for other in &seen {
                let twice = [
                    ("name", entry.name == other.name),
                    ("raft_id", entry.raft_id == other.raft_id),
                    ("address", entry.address == other.address),
                    ("incarnation", entry.incarnation == other.incarnation),
                ];
                if let Some((what, _)) = twice.into_iter().find(|(_, is_same)| *is_same) {
                    let (a, b) = (&other.name, &entry.name);
                    bail!("two [[meta]] entries ({a} and {b}) have one {what}; each node needs its own");
                }
            }
            seen.push(entry);
        }
        Ok(())
    }

    /// Refuses files that are missing, and secrets that others can read. Before the server starts.
    pub(crate) fn check_files(&self) -> anyhow::Result<()> {
        let public = [
            ("s3.certificate", &self.s3.certificate),
            ("admin.certificate", &self.admin.certificate),
            ("internal.certificate", &self.internal.certificate),
            ("internal.ca", &self.internal.ca),
        ];
        let private = [
            ("s3.key", &self.s3.key),
            ("admin.key", &self.admin.key),
            ("internal.key", &self.internal.key),
            ("cluster.key_file", &self.cluster.key_file),
            ("cluster.credentials_file", &self.cluster.credentials_file),
        ];
        let given = |(key, file): (&'static str, &'_ Option<std::path::PathBuf>)| {
            file.clone().map(|file| (key, file))
        };
        for (key, file) in public.into_iter().filter_map(given) {
            exists(key, &file)?;
        }
        for (key, file) in private.into_iter().filter_map(given) {
            exists(key, &file)?;
            check_private(&file).with_context(|| key)?;
        }
        Ok(())
    }
}

fn exists(key: &str, file: &Path) -> anyhow::Result<()> {
    if !file.is_file() {
        bail!("{key} names {}, which does not exist; copy the node's whole directory", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = r#"
[node]
name = "m1"
[internal]
address = "0.0.0.0:9002"
[[meta]]
name = "m1"
raft_id = 1
address = "m1:9002"
incarnation = "00000000-0000-0000-0000-000000000001"
[[meta]]
name = "m2"
raft_id = 2
address = "m2:9002"
incarnation = "00000000-0000-0000-0000-000000000002"
"#;

    fn load(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), std::iter::empty())
    }

    #[test]
    fn first_voter_takes_its_place_from_its_entry() {
        let config = load(CLUSTER).unwrap();
        let place = config.place(Group::Om).unwrap().unwrap();
        assert_eq!((place.member.raft_id, place.voters.len(), place.is_joining), (1, 2, false));
        assert_eq!(place.member.address.as_str(), "m1:9002");
        assert_eq!(load("").unwrap().place(Group::Om).unwrap(), None);
    }

    #[test]
    fn joining_node_brings_its_own_place() {
        let text = CLUSTER.replace("name = \"m1\"\n[internal]\naddress = \"0.0.0.0:9002\"", JOINING);
        let place = load(&text).unwrap().place(Group::Scm).unwrap().unwrap();
        assert_eq!((place.member.raft_id, place.voters.len(), place.is_joining), (4, 0, true));
    }

    const JOINING: &str = r#"name = "m4"
[internal]
address = "10.0.0.4:9002"
[om]
join = true
raft_id = 4
incarnation = "00000000-0000-0000-0000-000000000004"
[scm]
join = true
raft_id = 4
incarnation = "00000000-0000-0000-0000-000000000004""#;

    #[test]
    fn contradictions_are_refused_with_what_to_do() {
        let without_entry = CLUSTER.replacen("\"m1\"", "\"m7\"", 1);
        let joining = CLUSTER.replace("name = \"m1\"\n[internal]\naddress = \"0.0.0.0:9002\"", JOINING);
        for (text, part) in [
            (CLUSTER.replace("raft_id = 2", "raft_id = 1"), "(m1 and m2) have one raft_id"),
            (CLUSTER.replace("\"m2\"", "\"m1\""), "have one name"),
            (CLUSTER.replace("m2:9002", "m1:9002"), "have one address"),
            (CLUSTER.replace("000002\"", "000001\""), "have one incarnation"),
            (CLUSTER.replace("raft_id = 2", "raft_id = 0"), "must be at least 1"),
            (CLUSTER.replace("m2:9002", "m2"), "is no host:port"),
            (without_entry, "m7 is not among the [[meta]] nodes (m1, m2)"),
            (
                CLUSTER.replace("name = \"m1\"\n[int", "name = \"m1\"\nroles = [\"gateway\"]\n[int"),
                "node.roles leaves out om",
            ),
            (CLUSTER.replace("[internal]", "[om]\nraft_id = 9\n[internal]"), "om.raft_id is not 1"),
            (CLUSTER.replace("[internal]", "[internal]\nadvertise = \"x:1\""), "advertise is x:1, but"),
            (CLUSTER.replace("0.0.0.0:9002", "0.0.0.0:0"), "not 0"),
            (CLUSTER.replace("[internal]", "[internal]\ntls = true"), "internal.tls needs"),
            (joining.replace("raft_id = 4", "raft_id = 2"), "needs new ones"),
            (joining.replace("raft_id = 4\n", ""), "cluster add-node"),
            (joining.replace("10.0.0.4", "0.0.0.0"), "set internal.advertise"),
            ("[node]\nroles = [\"gateway\"]".to_owned(), "no [[meta]] entry says where om runs"),
            ("[node]\nroles = [\"gateway\", \"gateway\"]".to_owned(), "name each role once"),
            ("[node]\nroles = [\"recon\"]".to_owned(), "unknown variant `recon`"),
            ("[om]\njoin = true".to_owned(), "no [[meta]] entry says whom to join"),
            ("[s3]\ncertificate = \"c\"".to_owned(), "both s3.certificate and s3.key"),
            ("[scm]\ndead_after = \"1s\"".to_owned(), "longer than scm.stale_after"),
            ("[node]\nname = \"\"".to_owned(), "must not be empty"),
        ] {
            let error = format!("{:#}", load(&text).map(|_| ()).unwrap_err());
            assert!(error.contains(part), "{part:?} not in {error:?}");
        }
    }

    #[test]
    fn missing_and_readable_files_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "[s3]\ncertificate = \"c.pem\"\nkey = \"k.pem\"").unwrap();
        let config = Config::load(Some(&file), std::iter::empty()).unwrap();
        assert_eq!(config.s3.certificate.as_deref(), Some(&*dir.path().join("c.pem")));
        let refused = |part: &str| {
            let error = format!("{:#}", config.check_files().unwrap_err());
            assert!(error.contains(part), "{error}");
        };
        refused("c.pem, which does not exist");
        std::fs::write(dir.path().join("c.pem"), "").unwrap();
        let key = dir.path().join("k.pem");
        std::fs::write(&key, "").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        refused("chmod 600");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        config.check_files().unwrap();
    }
}
