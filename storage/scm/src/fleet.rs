//! What the leader of one term remembers of datanodes: when each last spoke and what it reported. Never logged.
//!
//! A new leader starts with an empty fleet: it knows nothing of a node until that node has registered with it, so it
//! never acts on a report of an earlier term. All times are of the steady clock and are arguments.
//!
//! A registration reports everything, so what a registered node does not report is not there.
//!
//! Not here: who the datanodes are (`state`), what follows from reports (`prepare`, `replication`).

use std::collections::{BTreeMap, BTreeSet};

use wire::block::DatanodeAddress;
use wire::ids::{ContainerId, DatanodeId, Generation};
use wire::scm::{DiskReport, ReplicaCondition, ReplicaReport};

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

/// Reports in a row that must tell a wrong clock: one may have been long on its way.
const CLOCK_OFF_MIN: u32 = 3;

/// A replica's life: which container, which generation.
pub(crate) type Life = (ContainerId, Generation);

/// One datanode's life as this leader knows it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) incarnation: u64,
    pub(crate) address: DatanodeAddress,
    heard_ns: u64,
    /// Of its reports: the newest heard.
    sequence: u64,
    /// When a writer last complained of it.
    failed_ns: Option<u64>,
    /// So many of its reports, one after the other, told a wall clock far from ours.
    clock_off: u32,
    pub(crate) disks: Vec<DiskReport>,
    replicas: BTreeMap<Life, ReplicaReport>,
    /// Reported replicas of which it is not yet known whether they are their container's.
    suspects: BTreeSet<Life>,
    /// When it was last ordered something about a replica, by the order's kind.
    ordered_ns: BTreeMap<(Life, OrderKind), u64>,
    /// The last deletion transaction it was told, and when.
    pub(crate) deletion_sent: BTreeMap<ContainerId, (u64, u64)>,
}

/// Orders that are repeated until they show effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OrderKind {
    Close,
    Copy,
    Drop,
}

/// A copy under way, as this leader has watched it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyProgress {
    received_bytes: u64,
    /// When bytes last came.
    moved_ns: u64,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// When this leader began to listen: silence counts from then.
    since_ns: u64,
    nodes: BTreeMap<DatanodeId, Node>,
    copies: BTreeMap<(DatanodeId, Life), CopyProgress>,
}

/// What a datanode says of itself, with registrations and heartbeats alike.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) incarnation: u64,
    pub(crate) disks: Vec<DiskReport>,
    pub(crate) replicas: Vec<ReplicaReport>,
    /// It told a wall clock far from ours.
    pub(crate) is_clock_off: bool,
    /// Its place among the reports of that life, 0 if not told.
    pub(crate) sequence: u64,
}

impl Node {
    /// Whether something newer was heard already: a network may bring a report late, or twice.
    fn is_past(&self, news: &News) -> bool {
        news.sequence > 0 && news.sequence <= self.sequence
    }
}

impl Fleet {
    /// An empty fleet of a leader that begins now.
    pub(crate) fn new(now_ns: u64) -> Self {
        Self { since_ns: now_ns, nodes: BTreeMap::new(), copies: BTreeMap::new() }
    }

    /// A datanode begins a life with a full report, or repeats it.
    pub(crate) fn register(&mut self, address: DatanodeAddress, news: News, now_ns: u64) {
        let id = address.id;
        // What a life that has ended failed at says nothing about the new one.
        let same_life = self.nodes.get(&id).filter(|node| node.incarnation == news.incarnation);
        if same_life.is_some_and(|node| node.is_past(&news)) {
            return;
        }
        let failed_ns = same_life.and_then(|node| node.failed_ns);
        let mut node = Node {
            incarnation: news.incarnation,
            address,
            heard_ns: now_ns,
            sequence: news.sequence,
            failed_ns,
            clock_off: u32::from(news.is_clock_off),
            disks: news.disks,
            replicas: BTreeMap::new(),
            suspects: BTreeSet::new(),
            ordered_ns: BTreeMap::new(),
            deletion_sent: BTreeMap::new(),
        };
        for report in news.replicas {
            node.take(report);
        }
        self.nodes.insert(id, node);
    }

    /// A datanode reports changes. False if this life of it is not known here: it must register again.
    pub(crate) fn heartbeat(&mut self, id: DatanodeId, news: News, now_ns: u64) -> bool {
        let found = self.nodes.get_mut(&id).filter(|node| node.incarnation == news.incarnation);
        let Some(node) = found else { return false };
        if node.is_past(&news) {
            return true;
        }
        node.heard_ns = now_ns;
        node.sequence = news.sequence;
        node.disks = news.disks;
        node.clock_off = if news.is_clock_off { node.clock_off.saturating_add(1) } else { 0 };
        for report in news.replicas {
            node.take(report);
        }
        true
    }

    /// A writer complains of a datanode: it gets no new writes for a while, unless too few others are left.
    pub(crate) fn complain(&mut self, id: DatanodeId, now_ns: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.failed_ns = Some(now_ns);
        }
    }

    /// The node, if it has registered in this term.
    pub(crate) fn node(&self, id: DatanodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The same, to note what it was told.
    pub(crate) fn node_mut(&mut self, id: DatanodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// What the datanode reported of a replica in this term.
    pub(crate) fn report(
        &self,
        id: DatanodeId,
        container: ContainerId,
        generation: Generation,
    ) -> Option<&ReplicaReport> {
        self.nodes.get(&id)?.replicas.get(&(container, generation))
    }

    /// Whether the datanode, by its reports in this term, still has something of the container up to this generation: a
    /// replica, a copy under way or failed, or what is left of a lost one.
    pub(crate) fn has_up_to(&self, id: DatanodeId, container: ContainerId, generation: Generation) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        let mut lives = node.replicas.range((container, Generation(0))..=(container, generation));
        lives.any(|(_, report)| report.condition != ReplicaCondition::Dropped)
    }

    /// The datanode is forgotten.
    pub(crate) fn remove(&mut self, id: DatanodeId) {
        self.nodes.remove(&id);
    }

    /// How long the datanode has been silent; since this leader began if it has not spoken in this term.
    pub(crate) fn silence_ms(&self, id: DatanodeId, now_ns: u64) -> u64 {
        let heard_ns = self.nodes.get(&id).map_or(self.since_ns, |node| node.heard_ns);
        now_ns.saturating_sub(heard_ns) / 1_000_000
    }

    /// How long the datanode has been silent, in words.
    pub(crate) fn liveness(&self, config: &ScmConfig, id: DatanodeId, now_ns: u64) -> Liveness {
        let silence_ms = self.silence_ms(id, now_ns);
        if silence_ms >= config.dead_silence_ms {
            Liveness::Dead
        } else if !self.nodes.contains_key(&id) {
            Liveness::Unknown
        } else if silence_ms >= config.stale_silence_ms {
            Liveness::Stale
        } else if silence_ms >= config.write_silence_ms {
            Liveness::Silent
        } else {
            Liveness::Live
        }
    }

    /// Whether new writes may go there: it spoke a moment ago, with the right time, and no writer has just failed there.
    pub(crate) fn is_writable(&self, config: &ScmConfig, id: DatanodeId, now_ns: u64) -> bool {
        self.is_speaking(config, id, now_ns) && self.complaint_ms(config, id, now_ns).is_none()
    }

    /// How long ago a writer complained of it, in milliseconds; None if never, or so long ago that it counts no more.
    pub(crate) fn complaint_ms(&self, config: &ScmConfig, id: DatanodeId, now_ns: u64) -> Option<u64> {
        let failed_ns = self.nodes.get(&id)?.failed_ns?;
        Some(now_ns.saturating_sub(failed_ns) / 1_000_000).filter(|ago_ms| *ago_ms < config.failed_writer_ms)
    }

    /// As `is_writable`, but a writer may just have failed there.
    pub(crate) fn is_speaking(&self, config: &ScmConfig, id: DatanodeId, now_ns: u64) -> bool {
        let Some(node) = self.nodes.get(&id) else { return false };
        self.liveness(config, id, now_ns) == Liveness::Live && node.clock_off < CLOCK_OFF_MIN
    }

    /// Watches a copy; answers how long it has not moved.
    pub(crate) fn watch_copy(&mut self, id: DatanodeId, life: Life, now_ns: u64) {
        let received_bytes = match self.report(id, life.0, life.1).map(|report| report.condition) {
            Some(ReplicaCondition::Copying { received_bytes }) => received_bytes,
            _ => 0,
        };
        let progress =
            self.copies.entry((id, life)).or_insert(CopyProgress { received_bytes, moved_ns: now_ns });
        if received_bytes != progress.received_bytes {
            *progress = CopyProgress { received_bytes, moved_ns: now_ns };
        }
    }

    /// How long a watched copy has not moved, in milliseconds.
    pub(crate) fn copy_stalled_ms(&self, id: DatanodeId, life: Life, now_ns: u64) -> u64 {
        let moved_ns = self.copies.get(&(id, life)).map_or(now_ns, |progress| progress.moved_ns);
        now_ns.saturating_sub(moved_ns) / 1_000_000
    }

    /// Forgets copies that are none any more.
    pub(crate) fn keep_copies(&mut self, is_copy: impl Fn(DatanodeId, Life) -> bool) {
        self.copies.retain(|(id, life), _| is_copy(*id, *life));
    }
}

impl Node {
    /// Free bytes on disks that work; None if none does.
    pub(crate) fn available_bytes(&self) -> Option<u64> {
        let working = self.disks.iter().filter(|disk| !disk.is_failed);
        working.map(|disk| disk.available_bytes).reduce(u64::saturating_add)
    }

    /// Reported replicas of which it is not yet known whether they are their container's.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = Life> {
        self.suspects.iter().copied()
    }

    /// It is known now.
    pub(crate) fn clear_suspect(&mut self, life: Life) {
        self.suspects.remove(&life);
    }

    /// Forgets what it reported of a replica.
    pub(crate) fn forget(&mut self, life: Life) {
        self.replicas.remove(&life);
    }

    /// When it was last ordered this.
    pub(crate) fn ordered_ns(&self, life: Life, kind: OrderKind) -> Option<u64> {
        self.ordered_ns.get(&(life, kind)).copied()
    }

    /// Notes an order, and forgets those that will be repeated anyway.
    pub(crate) fn note_order(&mut self, life: Life, kind: OrderKind, now_ns: u64) {
        self.ordered_ns.insert((life, kind), now_ns);
    }

    /// Keeps the notes of orders younger than `age_ns`.
    pub(crate) fn trim_orders(&mut self, now_ns: u64, age_ns: u64) {
        self.ordered_ns.retain(|_, sent| now_ns.saturating_sub(*sent) < age_ns);
        self.deletion_sent.retain(|_, (_, sent)| now_ns.saturating_sub(*sent) < age_ns);
    }

    fn take(&mut self, report: ReplicaReport) {
        let (container, generation) = (report.container, report.generation);
        let is_alone = matches!(
            report.condition,
            ReplicaCondition::Whole | ReplicaCondition::CopyVerified | ReplicaCondition::Dropped
        );
        if is_alone {
            // A verified copy takes the place of what was there before, and a drop takes all up to its generation.
            let older = self.replicas.range((container, Generation(0))..(container, generation));
            let older: Vec<Life> = older.map(|(life, _)| *life).collect();
            for life in older {
                self.replicas.remove(&life);
            }
        } else {
            // What it is to replace may have lost its successor.
            let older = self.replicas.range((container, Generation(0))..(container, generation));
            let older: Vec<Life> = older.map(|(life, _)| *life).collect();
            self.suspects.extend(older);
        }
        self.suspects.insert((container, generation));
        self.replicas.insert((container, generation), report);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wire::block::Replication;
    use wire::scm::ReplicaCondition;

    use super::*;

    fn news(sequence: u64, block_count: u64) -> News {
        let report = ReplicaReport {
            container: ContainerId(1),
            generation: Generation(1),
            replication: Replication::Three,
            is_sealed: false,
            written_bytes: 0,
            used_bytes: 0,
            block_count,
            deletion_done: 0,
            is_unhealthy: false,
            condition: ReplicaCondition::Whole,
            disk: String::new(),
        };
        News { incarnation: 7, disks: Vec::new(), replicas: vec![report], is_clock_off: false, sequence }
    }

    #[test]
    fn report_that_comes_late_changes_nothing() {
        let id = DatanodeId(Uuid::from_u128(1));
        let address = DatanodeAddress { id, address: None };
        let mut fleet = Fleet::new(0);
        fleet.register(address.clone(), news(1, 0), 1);
        assert!(fleet.heartbeat(id, news(3, 1), 2));
        assert!(fleet.heartbeat(id, news(2, 0), 3), "it is answered as ever");
        fleet.register(address, news(1, 0), 4);
        let report = fleet.report(id, ContainerId(1), Generation(1)).unwrap();
        assert_eq!(report.block_count, 1);
        assert!(fleet.heartbeat(id, news(4, 2), 5));
        assert_eq!(fleet.report(id, ContainerId(1), Generation(1)).unwrap().block_count, 2);
    }

    #[test]
    fn one_report_that_was_long_on_its_way_tells_no_wrong_clock() {
        let id = DatanodeId(Uuid::from_u128(1));
        let config = ScmConfig::new("unused".into(), wire::ids::ClusterId(Uuid::from_u128(9)));
        let mut fleet = Fleet::new(0);
        fleet.register(DatanodeAddress { id, address: None }, news(1, 0), 1);
        let mut is_writable_after = |sequence, is_clock_off| {
            fleet.heartbeat(id, News { is_clock_off, ..news(sequence, 0) }, sequence);
            fleet.is_writable(&config, id, sequence)
        };
        assert!(is_writable_after(2, true));
        assert!(is_writable_after(3, false));
        assert!(is_writable_after(4, true) && is_writable_after(5, true));
        assert!(!is_writable_after(6, true), "three tell it");
        assert!(is_writable_after(7, false), "it was set");
    }
}
