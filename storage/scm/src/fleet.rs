//! What the leader remembers of datanodes: when each last spoke and what it reported. Never logged.
//!
//! A new leader starts with an empty fleet: it knows nothing of a node until that node has registered with it, so it
//! never acts on a report of an earlier term. All times are of the steady clock and are arguments.
//!
//! Not here: who the datanodes are (`state`), what follows from reports (`prepare`).

use std::collections::BTreeMap;

use wire::ids::{ContainerId, DatanodeId};
use wire::scm::{DiskReport, ReplicaReport};

use crate::config::ScmConfig;

/// How long ago a datanode spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Recently: may be written to.
    Live,
    /// A moment ago: no new writes.
    Silent,
    /// Long ago.
    Stale,
    /// So long ago that it is given up.
    Dead,
    /// Not yet in this leader's term.
    Unknown,
}

/// One datanode's life as this leader knows it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) incarnation: u64,
    heard_ns: u64,
    pub(crate) disks: Vec<DiskReport>,
    replicas: BTreeMap<ContainerId, ReplicaReport>,
    /// When it was last told to seal a container.
    pub(crate) close_sent_ns: BTreeMap<ContainerId, u64>,
    /// The last deletion transaction it was told, and when.
    pub(crate) deletion_sent: BTreeMap<ContainerId, (u64, u64)>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// When this leader began to listen: silence counts from then.
    since_ns: u64,
    nodes: BTreeMap<DatanodeId, Node>,
}

impl Fleet {
    /// An empty fleet of a leader that begins now.
    pub(crate) fn new(now_ns: u64) -> Self {
        Self { since_ns: now_ns, nodes: BTreeMap::new() }
    }

    /// A datanode begins a life with a full report, or repeats it.
    pub(crate) fn register(
        &mut self,
        id: DatanodeId,
        incarnation: u64,
        disks: Vec<DiskReport>,
        replicas: Vec<ReplicaReport>,
        now_ns: u64,
    ) {
        let replicas = replicas.into_iter().map(|report| (report.container, report)).collect();
        let node = Node {
            incarnation,
            heard_ns: now_ns,
            disks,
            replicas,
            close_sent_ns: BTreeMap::new(),
            deletion_sent: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
    }

    /// A datanode reports changes. False if this life of it is not known here: it must register again.
    pub(crate) fn heartbeat(
        &mut self,
        id: DatanodeId,
        incarnation: u64,
        disks: Vec<DiskReport>,
        replicas: Vec<ReplicaReport>,
        now_ns: u64,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.incarnation == incarnation) else {
            return false;
        };
        node.heard_ns = now_ns;
        node.disks = disks;
        for report in replicas {
            node.replicas.insert(report.container, report);
        }
        true
    }

    /// The node, if it has registered in this term.
    pub(crate) fn node(&self, id: DatanodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The same, to note what it was told.
    pub(crate) fn node_mut(&mut self, id: DatanodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// What the datanode reported of its replica of a container in this term.
    pub(crate) fn report(&self, id: DatanodeId, container: ContainerId) -> Option<&ReplicaReport> {
        self.nodes.get(&id)?.replicas.get(&container)
    }

    /// How long the datanode has been silent.
    pub(crate) fn liveness(&self, config: &ScmConfig, id: DatanodeId, now_ns: u64) -> Liveness {
        let node = self.nodes.get(&id);
        let heard_ns = node.map_or(self.since_ns, |node| node.heard_ns);
        let silence_ms = now_ns.saturating_sub(heard_ns) / 1_000_000;
        if silence_ms >= config.dead_silence_ms {
            Liveness::Dead
        } else if node.is_none() {
            Liveness::Unknown
        } else if silence_ms >= config.stale_silence_ms {
            Liveness::Stale
        } else if silence_ms >= config.write_silence_ms {
            Liveness::Silent
        } else {
            Liveness::Live
        }
    }
}

impl Node {
    /// Free bytes on disks that work; None if none does.
    pub(crate) fn available_bytes(&self) -> Option<u64> {
        let working = self.disks.iter().filter(|disk| !disk.is_failed);
        working.map(|disk| disk.available_bytes).reduce(u64::saturating_add)
    }
}
