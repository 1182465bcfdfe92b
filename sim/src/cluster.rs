//! The nodes of a run: their disks, which outlive them, and their lives.
//!
//! ```text
//!   meta nodes  1 ..   OM and SCM     a disk each
//!   datanodes  11 ..   two disks
//!   gateways   21 ..   no disk
//!   0                  the operator and the clients, outside
//! ```
//!
//! A node that is started runs the program's own shells over simulated disks and network. Ending it drops nothing in
//! order: its tasks are never polled again, its disks lose what was not synced if the power went.
//!
//! Not here: when nodes end (`faults`), how they talk (`services`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use checker::History;
use client::failover::{OmClient, ScmClient};
use client::service::{DatanodeService, Datanodes, OmService, ScmService, call_om, call_scm};
use consensus::{PeerTransport, Place};
use datanode::extent::{ContainerHeader, PAGE_BYTES as PAGE};
use datanode::{Datanode, DatanodeConfig};
use meta::{Om, OmConfig};
use parking_lot::Mutex;
use platform::disk::DiskIo;
use platform::node::{self, NodeIndex};
use platform::simulated::{Faults, SimulatedDisk};
use platform::task;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use scm::{Scm, ScmConfig};
use uuid::Uuid;
use wire::block::{DatanodeAddress, Replication};
use wire::group::{GroupInfo, Member};
use wire::host::HostPort;
use wire::ids::{ClusterId, ContainerId, Generation};
use wire::operator::GetGroup;
use wire::status::{Failure, Status};

use crate::gateway::SimulatedGateway;
use crate::network::Network;
use crate::orders::Orders;
use crate::run::Run;
use crate::services::{Link, Registry, Services, SimulatedPeers};
use crate::trace::Trace;
use crate::world::SimulatedWorld;

/// The operator and the clients.
pub(crate) const OUTSIDE: NodeIndex = 0;
const META_FIRST: NodeIndex = 1;
const DATANODE_FIRST: NodeIndex = 11;
const GATEWAY_FIRST: NodeIndex = 21;

const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0x00c1_0575_e500_4000_8000_0000_0000_0001));
const CLUSTER_KEY: [u8; 32] = [7; 32];

/// Small, so that segments roll, snapshots are sent and containers fill within a run.
const CACHE_BYTES: usize = 4 << 20;
const META_DISK_BYTES: u64 = 256 << 20;
const DATA_DISK_BYTES: u64 = 512 << 20;
const GROWTH_STEP: u64 = 1 << 20;
/// So long blocks may keep a closing container from its seal.
const CLOSING_PATIENCE_MS: u64 = 20_000;
const RESERVE_BYTES: u64 = 4 << 20;
/// Longer than a gateway uses a loan; what a gateway failed to give back is reclaimed before the audit ends.
const OPEN_KEY_EXPIRE_MS: u64 = 26 * 60_000;
const OPEN_KEY_SCAN_MS: u64 = 30_000;
/// Between the raft ids of a meta node's lives.
const RAFT_ID_STEP: u64 = 100;
/// A wall clock is wrong by so much at most.
pub(crate) const SKEW_MS_MAX: i64 = 5000;
/// Of a container file, and of what survives a power cut.
const PAGE_BYTES: usize = PAGE as usize;
/// Bytes of a copy that rot together: some are of blocks that are still there in the end.
const COPY_ROTS: usize = 10;
/// A full disk still has this much: less than anything needs to grow.
const FULL_DISK_BYTES: u64 = 1 << 20;

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The process is killed: the page cache lives on.
    Killed,
    /// The machine loses power: what was not synced may be lost, page by page.
    PowerLost,
}

/// Settings of the nodes: short times and small sizes, so that repair, reclaim and ended sessions happen within a run,
/// another choice for every seed.
#[derive(Debug, Clone)]
pub(crate) struct Knobs {
    log_segment_bytes: u64,
    /// Few: a replica that was away needs a snapshot.
    log_keep_entries: u64,
    container_bytes_max: u64,
    /// A block's longest length: several fit a container.
    block_bytes_max: u64,
    repair_delay_ms: u64,
    /// A datanode that is silent for so long is dead.
    pub(crate) dead_silence_ms: u64,
    pub(crate) delete_grace_ms: u64,
    /// A gateway that is silent for so long has lost its session. Sessions are renewed every minute.
    pub(crate) session_silence_ms: u64,
}

impl Knobs {
    fn draw(draws: &mut ChaCha8Rng) -> Self {
        let container_bytes_max = *[4 << 20, 8 << 20, 16 << 20].choose(draws).unwrap_or(&(8 << 20));
        Self {
            log_segment_bytes: *[64 << 10, 256 << 10].choose(draws).unwrap_or(&(256 << 10)),
            log_keep_entries: *[20, 100, 1000, 100_000].choose(draws).unwrap_or(&1000),
            container_bytes_max,
            block_bytes_max: container_bytes_max / 4,
            repair_delay_ms: draws.random_range(2000..30_000),
            dead_silence_ms: draws.random_range(8000..40_000),
            delete_grace_ms: draws.random_range(30_000..60_000),
            session_silence_ms: draws.random_range(75_000..150_000),
        }
    }

    /// For runs in which no node may be given up.
    pub(crate) fn never_dead(&mut self) {
        self.dead_silence_ms = 10 * 60_000;
    }

    /// When copies begin after a datanode was silent.
    pub(crate) fn copied_ms(&self) -> u64 {
        self.dead_silence_ms + self.repair_delay_ms
    }

    /// A reader that holds a block list for so long still finds every block, however the clocks are off.
    pub(crate) fn readable_ms(&self) -> u64 {
        self.delete_grace_ms - 2 * SKEW_MS_MAX as u64 - 2000
    }
}

/// How large a run's cluster is.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) metas: u32,
    pub(crate) datanodes: u32,
    pub(crate) gateways: u32,
    pub(crate) knobs: Knobs,
}

impl Shape {
    /// Draws a shape.
    pub(crate) fn draw(draws: &mut ChaCha8Rng) -> Self {
        let metas = *[1, 3, 3, 3, 3, 3, 3, 5].choose(draws).unwrap_or(&3);
        let datanodes = *[3, 3, 3, 4, 4, 5, 6].choose(draws).unwrap_or(&3);
        Self {
            metas,
            datanodes,
            gateways: *[1, 2, 2, 3].choose(draws).unwrap_or(&2),
            knobs: Knobs::draw(draws),
        }
    }
}

/// The cluster of a run.
pub(crate) struct Cluster {
    pub(crate) network: Network,
    registry: Registry,
    world: Rc<SimulatedWorld>,
    trace: Rc<Trace>,
    shape: Shape,
    history: Arc<Mutex<History>>,
    /// Who voted first.
    founders: Vec<Member>,
    /// Who the replicas on each meta node are now.
    members: RefCell<BTreeMap<NodeIndex, Member>>,
    /// Disks by node: `om`, `scm`, or data disks.
    disks: RefCell<BTreeMap<NodeIndex, Vec<SimulatedDisk>>>,
    gateways: RefCell<BTreeMap<NodeIndex, Arc<SimulatedGateway>>>,
    /// Nodes that are starting or running, by how often they were started.
    lives: RefCell<BTreeMap<NodeIndex, u64>>,
    /// Nodes that are up or on their way.
    wanted: RefCell<BTreeMap<NodeIndex, bool>>,
    orders: Arc<Orders>,
    /// Replicas whose bytes were damaged on purpose.
    rotten: RefCell<BTreeSet<(NodeIndex, ContainerId, Generation)>>,
}

impl Cluster {
    pub(crate) fn new(
        seed: u64,
        shape: Shape,
        prints_messages: bool,
        history: Arc<Mutex<History>>,
        world: Rc<SimulatedWorld>,
        trace: Rc<Trace>,
    ) -> Self {
        let mut disks = BTreeMap::new();
        for index in META_FIRST..META_FIRST + shape.metas {
            disks.insert(
                index,
                vec![SimulatedDisk::new(META_DISK_BYTES), SimulatedDisk::new(META_DISK_BYTES)],
            );
        }
        for index in DATANODE_FIRST..DATANODE_FIRST + shape.datanodes {
            disks.insert(
                index,
                vec![SimulatedDisk::new(DATA_DISK_BYTES), SimulatedDisk::new(DATA_DISK_BYTES)],
            );
        }
        let members: BTreeMap<NodeIndex, Member> = (META_FIRST..META_FIRST + shape.metas)
            .map(|index| (index, member_of(index, u64::from(index), seed)))
            .collect();
        Self {
            network: Network::new(seed, prints_messages),
            registry: Registry::default(),
            world,
            trace,
            shape,
            history,
            founders: members.values().cloned().collect(),
            members: RefCell::new(members),
            disks: RefCell::new(disks),
            gateways: RefCell::default(),
            lives: RefCell::default(),
            wanted: RefCell::default(),
            rotten: RefCell::default(),
            orders: Arc::default(),
        }
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Vec<NodeIndex> {
        let metas = META_FIRST..META_FIRST + self.shape.metas;
        let datanodes = DATANODE_FIRST..DATANODE_FIRST + self.shape.datanodes;
        let gateways = GATEWAY_FIRST..GATEWAY_FIRST + self.shape.gateways;
        metas.chain(datanodes).chain(gateways).collect()
    }

    /// The meta nodes.
    pub(crate) fn metas(&self) -> Vec<NodeIndex> {
        (META_FIRST..META_FIRST + self.shape.metas).collect()
    }

    /// The datanodes.
    pub(crate) fn datanodes(&self) -> Vec<NodeIndex> {
        (DATANODE_FIRST..DATANODE_FIRST + self.shape.datanodes).collect()
    }

    /// The gateways' nodes, up or not.
    pub(crate) fn gateway_nodes(&self) -> Vec<NodeIndex> {
        (GATEWAY_FIRST..GATEWAY_FIRST + self.shape.gateways).collect()
    }

    /// The settings of the nodes.
    pub(crate) fn knobs(&self) -> &Knobs {
        &self.shape.knobs
    }

    /// The datanode of a node that is up.
    pub(crate) fn datanode(&self, index: NodeIndex) -> Option<Arc<Datanode>> {
        self.registry.of(index)?.datanode
    }

    /// Who leads a group, by the highest term that any replica says it leads in; past the network, as nobody could.
    pub(crate) async fn leader(&self, group: &str) -> Option<NodeIndex> {
        let mut highest = None;
        for index in self.metas() {
            let Some(info) = self.group_of(group, index).await else { continue };
            if info.leader == Some(info.raft_id) && highest.is_none_or(|(term, _)| term < info.term) {
                highest = Some((info.term, index));
            }
        }
        highest.map(|(_, index)| index)
    }

    /// A group as the replica on a node sees it; past the network. None if the node is down or stands still.
    pub(crate) async fn group_of(&self, group: &str, index: NodeIndex) -> Option<GroupInfo> {
        let services = self.registry.of(index)?;
        let is_om = group == "om";
        let asked = node::enter(Some(index), || {
            task::spawn(async move {
                match (is_om, services.om, services.scm) {
                    (true, Some(om), _) => call_om(&*om, GetGroup {}).await.ok(),
                    (false, _, Some(scm)) => call_scm(&*scm, GetGroup {}).await.ok(),
                    _ => None,
                }
            })
        });
        tokio::time::timeout(Duration::from_millis(1), asked).await.ok()?.ok()?
    }

    fn link(&self, from: NodeIndex, to: NodeIndex) -> Link {
        let orders = self.orders.clone();
        Link { network: self.network.clone(), registry: self.registry.clone(), orders, from, to }
    }

    /// A way from outside to each meta node.
    pub(crate) fn meta_links(&self) -> Vec<Link> {
        self.metas().into_iter().map(|index| self.link(OUTSIDE, index)).collect()
    }

    /// OM as somebody outside calls it.
    pub(crate) fn om(&self) -> Arc<dyn OmService> {
        self.om_from(OUTSIDE)
    }

    /// SCM as somebody outside calls it.
    pub(crate) fn scm(&self) -> Arc<dyn ScmService> {
        self.scm_from(OUTSIDE)
    }

    fn om_from(&self, from: NodeIndex) -> Arc<dyn OmService> {
        let peers = self.metas().into_iter().map(|index| {
            let link: Arc<dyn OmService> = Arc::new(self.link(from, index));
            (address_of(index), link)
        });
        OmClient::new(peers.collect())
    }

    fn scm_from(&self, from: NodeIndex) -> Arc<dyn ScmService> {
        let peers = self.metas().into_iter().map(|index| {
            let link: Arc<dyn ScmService> = Arc::new(self.link(from, index));
            (address_of(index), link)
        });
        ScmClient::new(peers.collect())
    }

    fn datanodes_from(&self, from: NodeIndex) -> Arc<Datanodes> {
        let (network, registry, orders) = (self.network.clone(), self.registry.clone(), self.orders.clone());
        Arc::new(Datanodes::new(Box::new(move |address: &DatanodeAddress| {
            let to = address.address.as_ref().map_or(NodeIndex::MAX, index_of);
            let (network, registry, orders) = (network.clone(), registry.clone(), orders.clone());
            let link = Link { network, registry, orders, from, to };
            Ok(Arc::new(link) as Arc<dyn DatanodeService>)
        })))
    }

    /// The gateways that are up.
    pub(crate) fn gateways(&self) -> Vec<(NodeIndex, Arc<SimulatedGateway>)> {
        self.gateways.borrow().iter().map(|(index, gateway)| (*index, gateway.clone())).collect()
    }

    /// Ends a node.
    pub(crate) fn end(&self, index: NodeIndex, end: End, toss: u64) {
        if self.wanted.borrow_mut().insert(index, false) != Some(true) {
            return;
        }
        self.trace.line(format!("node {index} {end:?}"));
        // Disks first: nothing the node lets go of in its end may reach them.
        for (at, disk) in self.disks.borrow().get(&index).into_iter().flatten().enumerate() {
            match end {
                End::Killed => disk.kill(),
                End::PowerLost => disk.crash(toss.wrapping_add(at as u64)),
            }
        }
        node::kill(index);
        self.bury(index);
    }

    /// A node has ended itself; a failed disk makes the rest as uncertain as a power cut.
    pub(crate) fn note_aborted(&self, _run: &Rc<Run>, index: NodeIndex, _why: &str, toss: u64) {
        self.wanted.borrow_mut().insert(index, false);
        node::kill(index);
        self.bury(index);
        for (at, disk) in self.disks.borrow().get(&index).into_iter().flatten().enumerate() {
            if toss & 1 == 0 { disk.kill() } else { disk.crash(toss.wrapping_add(at as u64)) }
        }
    }

    /// Who the replicas on a meta node are.
    pub(crate) fn member(&self, index: NodeIndex) -> Option<Member> {
        self.members.borrow().get(&index).cloned()
    }

    /// A meta node loses its disks. What starts there next waits to be added to its groups, as a member whom nobody knows.
    pub(crate) fn wipe_meta(&self, run: &Rc<Run>, index: NodeIndex, toss: u64) {
        let Some(raft_id) = self.member(index).map(|member| member.raft_id + RAFT_ID_STEP) else { return };
        self.end(index, End::Killed, toss);
        self.trace.line(format!("node {index} has lost its disks, and comes back as {raft_id}"));
        let disks = vec![SimulatedDisk::new(META_DISK_BYTES), SimulatedDisk::new(META_DISK_BYTES)];
        self.disks.borrow_mut().insert(index, disks);
        self.members.borrow_mut().insert(index, member_of(index, raft_id, run.seed));
    }

    /// Ends datanodes that have taken a disk out of service: the operator has replaced the cable.
    pub(crate) fn end_broken(&self, run: &Rc<Run>) {
        for index in self.datanodes() {
            let disks = self.datanode(index).map(|datanode| datanode.report().0).unwrap_or_default();
            if disks.iter().any(|disk| disk.is_failed) {
                self.end(index, End::Killed, run.seed);
            }
        }
    }

    /// Whether orders for former lives of replicas reach datanodes.
    pub(crate) fn set_stale_orders(&self, is_on: bool) {
        self.orders.set_on(is_on);
    }

    fn bury(&self, index: NodeIndex) {
        self.network.set_up(index, false);
        // What a dead process held is not dropped in order either.
        if let Some(services) = self.registry.remove(index) {
            std::mem::forget(services);
        }
        if let Some(gateway) = self.gateways.borrow_mut().remove(&index) {
            std::mem::forget(gateway);
        }
    }

    /// Starts a node that is down. A start that fails is tried again after a while.
    pub(crate) async fn start(&self, run: &Rc<Run>, index: NodeIndex) {
        if self.wanted.borrow_mut().insert(index, true) == Some(true) {
            return;
        }
        let life = {
            let mut lives = self.lives.borrow_mut();
            let life = lives.entry(index).or_default();
            *life += 1;
            *life
        };
        let run = run.clone();
        tokio::task::spawn_local(async move {
            let cluster = &run.cluster;
            let is_current = || {
                cluster.lives.borrow().get(&index) == Some(&life)
                    && cluster.wanted.borrow().get(&index) == Some(&true)
            };
            while is_current() {
                let starting = node::enter(Some(index), || task::spawn(cluster.open(index)));
                match starting.await {
                    Ok(Ok(started)) if is_current() => {
                        run.trace.line(format!("node {index} is up, life {life}"));
                        cluster.registry.set(index, started.services);
                        if let Some(gateway) = started.gateway {
                            cluster.gateways.borrow_mut().insert(index, gateway);
                        }
                        cluster.network.set_up(index, true);
                        return;
                    }
                    Ok(Ok(started)) => {
                        std::mem::forget(started);
                        return;
                    }
                    Ok(Err(why)) => {
                        run.trace.line(format!("node {index} does not start: {why}"));
                        if why.status != Status::Retry {
                            run.violation(format!("node {index} does not start: {why}"));
                            return;
                        }
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                    // It was killed while it started.
                    Err(_) => return,
                }
            }
        });
        // Let it begin; who needs it up waits for that.
        tokio::task::yield_now().await;
    }

    /// What a node does when it starts.
    fn open(&self, index: NodeIndex) -> impl Future<Output = Result<Started, Failure>> + Send + 'static {
        let disks = self.disks.borrow().get(&index).cloned().unwrap_or_default();
        let (om, scm) = (self.om_from(index), self.scm_from(index));
        let datanodes = self.datanodes_from(index);
        let history = self.history.clone();
        let (member, founders) = (self.member(index), self.founders.clone());
        let knobs = self.shape.knobs.clone();
        let peers = Arc::new(SimulatedPeers {
            network: self.network.clone(),
            registry: self.registry.clone(),
            from: index,
            orders: self.orders.clone(),
        });
        async move {
            match index {
                META_FIRST..DATANODE_FIRST => open_meta(disks, &knobs, member, founders, peers, scm).await,
                DATANODE_FIRST..GATEWAY_FIRST => open_datanode(index, disks, &knobs, datanodes, scm).await,
                _ => open_gateway(om, datanodes, history, knobs.readable_ms()).await,
            }
        }
    }

    /// Waits until a gateway is up and the bucket exists.
    pub(crate) async fn wait_serving(&self, limit: Duration) -> Result<(), String> {
        let begun_ms = self.world.elapsed_ms();
        let mut why = "no gateway is up".to_owned();
        while self.world.elapsed_ms() - begun_ms < limit.as_millis() as u64 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for (index, gateway) in self.gateways() {
                let made =
                    node::enter(Some(index), || task::spawn(async move { gateway.create_bucket().await }));
                match made.await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) => why = error.to_string(),
                    Err(_) => why = "the gateway died".to_owned(),
                }
            }
        }
        Err(why)
    }

    // Disks.

    /// Fills a node's disks, or gives their room back.
    pub(crate) fn fill_disks(&self, index: NodeIndex, is_full: bool) {
        let size = if index < DATANODE_FIRST { META_DISK_BYTES } else { DATA_DISK_BYTES };
        for disk in self.disks.borrow().get(&index).into_iter().flatten() {
            disk.set_capacity(if is_full { FULL_DISK_BYTES } else { size });
        }
    }

    /// Lets a node's next sync fail.
    pub(crate) fn fail_sync(&self, index: NodeIndex) {
        if let Some(disk) = self.disks.borrow().get(&index).and_then(|disks| disks.first()) {
            disk.set_faults(Faults { next_sync_fails: true, ..Faults::default() });
        }
    }

    /// What orders the datanodes took that were none of theirs.
    pub(crate) fn orders_obeyed_wrongly(&self) -> Vec<String> {
        self.orders.take_wrong()
    }

    /// Takes away every fault of a disk.
    pub(crate) fn heal_disks(&self) {
        for (index, disks) in &*self.disks.borrow() {
            for disk in disks {
                disk.set_faults(Faults::default());
                disk.set_capacity(if *index < DATANODE_FIRST { META_DISK_BYTES } else { DATA_DISK_BYTES });
            }
        }
    }

    /// Flips bits in a container file. Only ever on the first datanode: of no container two replicas rot. A container that
    /// has one replica alone is left in peace.
    pub(crate) fn rot(&self, draws: &mut ChaCha8Rng) {
        let disks = self.disks.borrow();
        let Some(disk) = disks.get(&DATANODE_FIRST).and_then(|disks| disks.choose(draws)) else {
            return;
        };
        let Some(name) = files_of(disk, ".container").choose(draws).cloned() else { return };
        let contents = disk.contents(&name).unwrap_or_default();
        let header = contents.get(..PAGE_BYTES).and_then(ContainerHeader::decode);
        let Some(header) = header.filter(|header| header.replication == Replication::Three) else { return };
        if contents.len() > 2 * PAGE_BYTES {
            let offset = draws.random_range(2 * PAGE_BYTES..contents.len());
            let bytes = [contents[offset] ^ 0x41];
            match draws.random() {
                true => disk.rot(&name, offset as u64, &bytes),
                false => disk.damage(&name, offset as u64, &bytes),
            }
            self.rotten.borrow_mut().insert((DATANODE_FIRST, header.container, header.generation));
            self.trace.line(format!("rot at byte {offset} of {name}"));
        }
    }

    /// The containers of which files are on a datanode's disks.
    pub(crate) fn container_files(&self, index: NodeIndex) -> Vec<ContainerId> {
        let disks = self.disks.borrow();
        let names = disks.get(&index).into_iter().flatten().flat_map(|disk| files_of(disk, ".container"));
        names
            .filter_map(|name| u64::from_str_radix(name.strip_suffix(".container")?, 16).ok())
            .map(ContainerId)
            .collect()
    }

    /// Whether [`Self::rot`] may have damaged this replica.
    pub(crate) fn is_rotten(&self, index: NodeIndex, container: ContainerId, generation: Generation) -> bool {
        self.rotten.borrow().contains(&(index, container, generation))
    }

    /// Flips bits of what is being copied to a datanode, on its way to the medium. Whether there was anything.
    pub(crate) fn rot_copies(&self, index: NodeIndex, draws: &mut ChaCha8Rng) -> bool {
        let mut has_rotted = false;
        for disk in self.disks.borrow().get(&index).into_iter().flatten() {
            for name in files_of(disk, ".copy") {
                let contents = disk.contents(&name).unwrap_or_default();
                if contents.len() > 2 * PAGE_BYTES {
                    for _ in 0..COPY_ROTS {
                        let offset = draws.random_range(2 * PAGE_BYTES..contents.len());
                        disk.damage(&name, offset as u64, &[contents[offset] ^ 0x41]);
                    }
                    self.trace.line(format!("rot in {name} on {index}"));
                    has_rotted = true;
                }
            }
        }
        has_rotted
    }
}

fn files_of(disk: &SimulatedDisk, end: &str) -> Vec<String> {
    disk.list().unwrap_or_default().into_iter().filter(|name| name.ends_with(end)).collect()
}

/// What a start gives.
struct Started {
    services: Services,
    gateway: Option<Arc<SimulatedGateway>>,
}

fn address_of(index: NodeIndex) -> HostPort {
    HostPort::new(&format!("node-{index}:9002")).expect("a legal name")
}

/// The replicas of a meta node, in one of its lives.
fn member_of(index: NodeIndex, raft_id: u64, seed: u64) -> Member {
    Member {
        raft_id,
        incarnation: Uuid::from_u128(u128::from(raft_id) << 64 | u128::from(seed)),
        node: format!("meta-{index}"),
        address: address_of(index),
    }
}

fn index_of(address: &HostPort) -> NodeIndex {
    address.host().strip_prefix("node-").and_then(|number| number.parse().ok()).unwrap_or(NodeIndex::MAX)
}

async fn open_gateway(
    om: Arc<dyn OmService>,
    datanodes: Arc<Datanodes>,
    history: Arc<Mutex<History>>,
    readable_ms: u64,
) -> Result<Started, Failure> {
    let gateway = SimulatedGateway::open(om, datanodes, history, readable_ms).await;
    // An OM that cannot be reached is waited for.
    let gateway = gateway.map_err(|error| Failure::new(Status::Retry, error.to_string()))?;
    Ok(Started { services: Services::default(), gateway: Some(gateway) })
}

async fn open_meta(
    disks: Vec<SimulatedDisk>,
    knobs: &Knobs,
    member: Option<Member>,
    founders: Vec<Member>,
    peers: Arc<SimulatedPeers>,
    scm: Arc<dyn ScmService>,
) -> Result<Started, Failure> {
    let disk = |at: usize| -> Arc<dyn DiskIo> { Arc::new(disks[at].clone()) };
    // One member alone has no peers to reach.
    let transport = (founders.len() > 1).then_some(peers as Arc<dyn PeerTransport>);
    let log_keep_entries = Some(knobs.log_keep_entries);
    let join = member.as_ref().is_some_and(|member| !founders.contains(member));
    let voters = if join { Vec::new() } else { founders };
    let place = Place { member, voters, join, transport, log_keep_entries, ..Place::default() };
    let scm_config = ScmConfig {
        disk: Some(disk(1)),
        place: place.clone(),
        container_bytes_max: knobs.container_bytes_max,
        repair_delay_ms: knobs.repair_delay_ms,
        stale_silence_ms: knobs.dead_silence_ms / 2,
        dead_silence_ms: knobs.dead_silence_ms,
        log_segment_bytes: knobs.log_segment_bytes,
        cache_bytes: CACHE_BYTES,
        ..ScmConfig::new(PathBuf::new(), CLUSTER)
    };
    let scm_role = Scm::open(scm_config).await.map_err(|error| start_failure(&error))?;
    let om_config = OmConfig {
        place,
        cache_bytes: CACHE_BYTES,
        log_segment_bytes: knobs.log_segment_bytes,
        delete_grace_ms: knobs.delete_grace_ms,
        session_silence_ms: knobs.session_silence_ms,
        open_key_expire_after_ms: OPEN_KEY_EXPIRE_MS,
        open_key_scan_interval_ms: OPEN_KEY_SCAN_MS,
        block_bytes_max: knobs.block_bytes_max,
        ..OmConfig::new(disk(0), CLUSTER, CLUSTER_KEY)
    };
    let om_role = Om::open(om_config, scm).await.map_err(|error| start_failure(&error))?;
    let services = Services {
        peers: vec![om_role.peer_endpoint(), scm_role.peer_endpoint()],
        om: Some(om_role),
        scm: Some(scm_role),
        datanode: None,
    };
    Ok(Started { services, gateway: None })
}

async fn open_datanode(
    index: NodeIndex,
    disks: Vec<SimulatedDisk>,
    knobs: &Knobs,
    datanodes: Arc<Datanodes>,
    scm: Arc<dyn ScmService>,
) -> Result<Started, Failure> {
    let config = DatanodeConfig {
        address: Some(address_of(index)),
        container_bytes_max: knobs.container_bytes_max,
        growth_step: GROWTH_STEP,
        reserve_bytes: RESERVE_BYTES,
        index_cache_bytes: CACHE_BYTES,
        closing_patience_ms: CLOSING_PATIENCE_MS,
        node: format!("datanode-{index}"),
        ..DatanodeConfig::new(Vec::new(), CLUSTER)
    };
    let ios = disks.into_iter().map(|disk| Arc::new(disk) as Arc<dyn DiskIo>).collect();
    let datanode = Datanode::open_on(config, ios).map_err(|error| start_failure(&error))?;
    let datanode = Arc::new(datanode);
    datanode.start(scm, datanodes);
    Ok(Started { services: Services { datanode: Some(datanode), ..Services::default() }, gateway: None })
}

/// A disk without room may have some later; everything else that keeps a node from starting is wrong.
fn start_failure(error: &dyn std::error::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let may_pass = ["full", "no room", "no space", "input or output"].iter().any(|word| text.contains(word));
    Failure::new(if may_pass { Status::Retry } else { Status::Internal }, text)
}
