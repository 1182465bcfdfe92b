//! The roles of this process: opens those the configuration names, joins them to one another and to other nodes.
//!
//! ```text
//!   internal listener bound -> SCM, OM opened -> served to other nodes -> datanode opened, registers -> clients
//! ```
//!
//! A role that runs here is called directly, one that runs elsewhere through a stub; both stand behind the same clients,
//! which find the leader. All-in-one is a cluster of one.
//!
//! Invariants:
//! * The internal port answers before anything waits: peers that start together need one another to elect a leader.
//! * Roles stop in reverse: callers before the called.
//!
//! Not here: what the roles do; the gateway and the operators' port (`server`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::Readiness;
use anyhow::Context;
use client::failover::{OmClient, ScmClient};
use client::http::tls::Tls;
use client::http::{
    self, DatanodeStub, OmStub, ScmStub, Transport as Stubs, TransportConfig, Verifier, datanode_router,
    om_router, scm_router,
};
use client::service::{DatanodeService, Datanodes, OmService, ScmService, call_om, call_scm};
use consensus::{Marker, PeerEndpoint, PeerTransport, Place};
use datanode::DatanodeConfig;
use futures_util::future::join_all;
use meta::OmConfig;
use peers::{HttpPeers, peer_router};
use platform::disk::Directory;
use scm::ScmConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use wire::block::DatanodeAddress;
use wire::cluster_key::ClusterKey;
use wire::group::GroupInfo;
use wire::host::HostPort;
use wire::limits::BLOCK_BYTES_MAX;
use wire::operator::GetGroup;

use crate::backup::LocalBackups;
use crate::config::{Config, Transport};
use crate::contacts;
use crate::identity::Cluster;
use crate::server::{Unusable, bind, tls_of};
use crate::topology::{Group, Role};

/// A segment of SCM's log.
const SCM_LOG_SEGMENT_BYTES: u64 = 16 << 20;
/// A twin on the same network answers a question within this.
const TWIN_PATIENCE: Duration = Duration::from_secs(1);
/// Containers this small (tests) still hold several blocks.
const BLOCKS_PER_CONTAINER_MIN: u64 = 4;

/// The roles that run here, and clients of all there are.
pub(crate) struct Roles {
    scm_role: Option<Arc<scm::Scm>>,
    om_role: Option<Arc<meta::Om>>,
    datanode: Option<Arc<datanode::Datanode>>,
    /// OM, wherever it leads.
    pub(crate) om: Arc<dyn OmService>,
    /// SCM, wherever it leads.
    pub(crate) scm: Arc<dyn ScmService>,
    /// Datanodes, wherever they are.
    pub(crate) datanodes: Arc<Datanodes>,
}

impl Roles {
    /// Opens the roles. They are reachable by other nodes when it returns; nobody need lead yet.
    pub(crate) async fn start(
        config: &Config,
        cluster: &Cluster,
        readiness: &Readiness,
        stopping: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let key = cluster.key()?;
        let cluster_key = ClusterKey::new(cluster.id, key);
        refuse_twins(config, &cluster_key).await?;
        let listener = match config.internal.transport {
            Transport::InProcess if !config.is_cluster() => None,
            _ => Some(bind("internal.address", config.internal.address).await?),
        };
        let bound = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let network = Network::new(config, cluster_key.clone(), bound)?;

        readiness.wait_for("the storage container manager");
        let scm_role = match config.has_role(Role::Scm) {
            true => {
                let place = network.place(config, Group::Scm)?;
                let opened = scm::Scm::open(ScmConfig { place, ..scm_config(config, cluster) }).await;
                Some(opened.context("start SCM").context(Unusable)?)
            }
            false => None,
        };
        let contacts_file = contacts::file(&config.data_dir);
        let contacts = if config.is_cluster() { contacts::read(&contacts_file) } else { Vec::new() };
        let scm = network.scm(config, scm_role.clone(), &contacts);
        readiness.wait_for("the ozone manager");
        let om_role = match config.has_role(Role::Om) {
            true => {
                let place = network.place(config, Group::Om)?;
                let opened =
                    meta::Om::open(OmConfig { place, ..om_config(config, cluster, key)? }, scm.clone()).await;
                Some(opened.context("start OM").context(Unusable)?)
            }
            false => None,
        };
        let om = network.om(config, om_role.clone(), &contacts);
        if config.is_cluster() {
            let configured = config.meta.iter().map(|meta| meta.address.clone()).collect();
            let keeping = contacts::keep(om.clone(), scm.clone(), configured, contacts_file);
            tokio::spawn(stopping.clone().run_until_cancelled_owned(keeping));
        }

        readiness.wait_for("the datanode");
        let datanode = match config.has_role(Role::Datanode) {
            true => Some(open_datanode(datanode_config(config, cluster, network.advertised.clone())).await?),
            false => None,
        };
        let datanodes = Arc::new(network.datanodes(datanode.clone()));
        if let Some(listener) = listener {
            let verifier = Verifier::of_node(cluster_key, network.advertised.iter().cloned().collect());
            let mut router = axum::Router::new();
            let mut endpoints: Vec<Arc<dyn PeerEndpoint>> = Vec::new();
            endpoints.extend(scm_role.as_ref().map(|scm_role| scm_role.peer_endpoint()));
            endpoints.extend(om_role.as_ref().map(|om_role| om_role.peer_endpoint()));
            if config.is_cluster() && !endpoints.is_empty() {
                peers::metrics::describe();
                router = router.merge(peer_router(endpoints, verifier.clone()));
            }
            if let Some(om_role) = &om_role {
                router = router.merge(om_router(om_role.clone(), verifier.clone()));
            }
            if let Some(scm_role) = &scm_role {
                router = router.merge(scm_router(scm_role.clone(), verifier.clone()));
            }
            if let Some(datanode) = &datanode {
                router = router.merge(datanode_router(datanode.clone(), verifier.clone()));
            }
            tokio::spawn(http::serve(
                listener,
                network.tls.clone(),
                router,
                stopping.clone().cancelled_owned(),
            ));
        }
        if let Some(datanode) = &datanode {
            datanode.start(scm.clone(), datanodes.clone());
        }
        Ok(Self { scm_role, om_role, datanode, om, scm, datanodes })
    }

    /// Waits until the roles that run here take part: the datanode is registered.
    pub(crate) async fn wait_ready(&self, readiness: &Readiness) {
        if let Some(datanode) = &self.datanode {
            readiness.wait_for("the datanode's registration with SCM");
            datanode.wait_registered().await;
        }
    }

    /// Callers before the called: nothing fails while it stops.
    pub(crate) async fn stop(&self) {
        if let Some(om_role) = &self.om_role {
            om_role.shutdown().await;
        }
        if let Some(datanode) = &self.datanode {
            datanode.shutdown().await;
        }
        if let Some(scm_role) = &self.scm_role {
            scm_role.shutdown().await;
        }
    }
}

/// Refuses to start a replica whose place another process holds: two replicas under one raft id, one of them from a copied
/// directory, would vote twice. Nobody may answer at this node's own address before it listens there, and no other node may
/// answer under its raft id: those of the configuration and those remembered are asked, and whoever they say has that id.
///
/// Who does not answer in time is left to the peers, which listen to one of two (`consensus`).
async fn refuse_twins(config: &Config, key: &ClusterKey) -> anyhow::Result<()> {
    let has_replica = config.has_role(Role::Om) || config.has_role(Role::Scm);
    let Some(own) = config.advertised()?.filter(|_| config.is_cluster() && has_replica) else {
        return Ok(());
    };
    let internal = &config.internal;
    let tls = match internal.tls {
        true => tls_of(&internal.certificate, &internal.key, internal.ca.clone())?,
        false => None,
    };
    let stubs =
        Stubs::of_node(TransportConfig { tls, ..TransportConfig::new(key.clone(), &config.node.name) });
    let raft_id = |group: Group| anyhow::Ok(config.place(group)?.map(|place| place.member.raft_id));
    let (om_id, scm_id) = (raft_id(Group::Om)?, raft_id(Group::Scm)?);
    let contacts = contacts::read(&contacts::file(&config.data_dir));
    let configured = config.meta.iter().map(|meta| meta.address.clone());
    let mut known: BTreeSet<HostPort> = configured.chain(contacts).chain([own.clone()]).collect();
    let mut round: Vec<HostPort> = known.iter().cloned().collect();
    // The second round is of those whom the first one named.
    for _ in 0..2 {
        let mut named = Vec::new();
        let answers = round.iter().map(|address| groups_at(&stubs, address));
        for (address, groups) in round.iter().zip(join_all(answers).await) {
            for (group, mine) in groups.iter().zip([om_id, scm_id]) {
                let Some((group, mine)) = group.as_ref().zip(mine) else { continue };
                if *address == own || group.raft_id == mine {
                    return Err(twin_refusal(config, group, address, &own).context(Unusable));
                }
                let of_mine = group.members.iter().filter(|info| info.member.raft_id == mine);
                named.extend(of_mine.map(|info| info.member.address.clone()));
            }
        }
        round = named.into_iter().filter(|address| known.insert(address.clone())).collect();
    }
    Ok(())
}

/// OM and SCM at an address, as far as they answer soon.
async fn groups_at(stubs: &Arc<Stubs>, address: &HostPort) -> [Option<GroupInfo>; 2] {
    let om = OmStub::new(stubs.clone(), address.clone());
    let scm = ScmStub::new(stubs.clone(), address.clone());
    let (om, scm) = tokio::join!(
        tokio::time::timeout(TWIN_PATIENCE, call_om(&om, GetGroup {})),
        tokio::time::timeout(TWIN_PATIENCE, call_scm(&scm, GetGroup {})),
    );
    [om.ok().and_then(Result::ok), scm.ok().and_then(Result::ok)]
}

fn twin_refusal(config: &Config, twin: &GroupInfo, address: &HostPort, own: &HostPort) -> anyhow::Error {
    let GroupInfo { group, raft_id, .. } = twin;
    if address == own {
        return anyhow::anyhow!(
            "a replica with raft id {raft_id} answers at {own}, this node's own address, before this node has started: is \
             another server running from this directory or a copy of it? Stop one of the two; a node of its own is made by \
             `ferrozone cluster add-node`"
        );
    }
    let listed = twin.members.iter().find(|info| info.member.raft_id == *raft_id);
    let node = listed.map_or("a node", |info| info.member.node.as_str());
    anyhow::anyhow!(
        "{group} replica {raft_id} already runs: {node} answers under that raft id at {address}, and {} has a copy of its data. \
         Two of them would vote twice. If the copy is to take its place, stop the one at {address} first and for good; else \
         wipe this directory: a node of its own is made by `ferrozone cluster add-node`",
        config.data_dir.display()
    )
}

/// How this node reaches others and is reached by them.
struct Network {
    /// Certificates, where nodes speak TLS to one another.
    tls: Option<Arc<Tls>>,
    stubs: Option<Arc<Stubs>>,
    /// Raft's way to peers: connections of its own, so that heartbeats never wait for calls.
    peers: Option<Arc<HttpPeers>>,
    /// What others connect to. None while everything is in this process.
    advertised: Option<HostPort>,
}

impl Network {
    fn new(config: &Config, key: ClusterKey, bound: Option<SocketAddr>) -> anyhow::Result<Self> {
        let advertised = config.advertised()?.or_else(|| bound.map(HostPort::from));
        let internal = &config.internal;
        let tls = match internal.tls {
            true => tls_of(&internal.certificate, &internal.key, internal.ca.clone())?,
            false => None,
        };
        let transport = TransportConfig { tls: tls.clone(), ..TransportConfig::new(key, &config.node.name) };
        let stubs = bound.map(|_| Stubs::of_node(transport.clone()));
        let peers = config.is_cluster().then(|| HttpPeers::new(Stubs::of_node(transport)));
        Ok(Self { tls, stubs, peers, advertised })
    }

    /// This node's place in a group.
    fn place(&self, config: &Config, group: Group) -> anyhow::Result<Place> {
        let Some(place) = config.place(group)? else { return Ok(Place::default()) };
        let transport = self.peers.clone().map(|peers| peers as Arc<dyn PeerTransport>);
        let dir = config.marker_dir();
        let marker = Marker::new(consensus::directory(&dir).context(Unusable)?);
        Ok(Place {
            member: Some(place.member),
            voters: place.voters,
            join: place.is_joining,
            transport,
            marker: Some(marker),
            ..Place::default()
        })
    }

    /// Where replicas of a group may be: those the cluster was made with, this one, and those remembered.
    fn addresses(&self, config: &Config, has_replica: bool, contacts: &[HostPort]) -> Vec<HostPort> {
        let own = self.advertised.iter().filter(|_| has_replica);
        let mut addresses: Vec<HostPort> = Vec::new();
        for address in config.meta.iter().map(|meta| &meta.address).chain(own).chain(contacts) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// OM: the peers of the configuration, this process among them if it is one, and whoever they name as leader.
    fn om(&self, config: &Config, local: Option<Arc<meta::Om>>, contacts: &[HostPort]) -> Arc<OmClient> {
        let own = self.advertised.clone();
        let connect = {
            let (stubs, local) = (self.stubs.clone(), local.clone());
            move |peer: &HostPort| -> Arc<dyn OmService> {
                match (&local, &stubs) {
                    (Some(local), _) if own.as_ref() == Some(peer) => local.clone(),
                    (_, Some(stubs)) => Arc::new(OmStub::new(stubs.clone(), peer.clone())),
                    (Some(local), None) => local.clone(),
                    (None, None) => unreachable!("a process without OM has other nodes, and stubs for them"),
                }
            }
        };
        match (config.is_cluster(), local.clone()) {
            (false, Some(local)) => match (&self.stubs, &self.advertised) {
                (Some(stubs), Some(own)) => OmClient::sole(Arc::new(OmStub::new(stubs.clone(), own.clone()))),
                _ => OmClient::sole(local),
            },
            _ => {
                let addresses = self.addresses(config, local.is_some(), contacts);
                let peers = addresses.into_iter().map(|address| {
                    let service = connect(&address);
                    (address, service)
                });
                OmClient::with_connector(peers.collect(), Box::new(connect))
            }
        }
    }

    /// SCM, likewise.
    fn scm(&self, config: &Config, local: Option<Arc<scm::Scm>>, contacts: &[HostPort]) -> Arc<ScmClient> {
        let own = self.advertised.clone();
        let connect = {
            let (stubs, local) = (self.stubs.clone(), local.clone());
            move |peer: &HostPort| -> Arc<dyn ScmService> {
                match (&local, &stubs) {
                    (Some(local), _) if own.as_ref() == Some(peer) => local.clone(),
                    (_, Some(stubs)) => Arc::new(ScmStub::new(stubs.clone(), peer.clone())),
                    (Some(local), None) => local.clone(),
                    (None, None) => unreachable!("a process without SCM has other nodes, and stubs for them"),
                }
            }
        };
        match (config.is_cluster(), local.clone()) {
            (false, Some(local)) => match (&self.stubs, &self.advertised) {
                (Some(stubs), Some(own)) => {
                    ScmClient::sole(Arc::new(ScmStub::new(stubs.clone(), own.clone())))
                }
                _ => ScmClient::sole(local),
            },
            _ => {
                let addresses = self.addresses(config, local.is_some(), contacts);
                let peers = addresses.into_iter().map(|address| {
                    let service = connect(&address);
                    (address, service)
                });
                ScmClient::with_connector(peers.collect(), Box::new(connect))
            }
        }
    }

    /// Datanodes: the one of this process directly (unless everything is to go over HTTP), others by their address.
    fn datanodes(&self, local: Option<Arc<datanode::Datanode>>) -> Datanodes {
        let datanodes = match self.stubs.clone() {
            None => Datanodes::local_only(),
            Some(stubs) => Datanodes::new(Box::new(move |datanode: &DatanodeAddress| {
                let stub = DatanodeStub::connect(stubs.clone(), datanode)?;
                Ok(Arc::new(stub) as Arc<dyn DatanodeService>)
            })),
        };
        if let (Some(local), None) = (local, &self.stubs) {
            datanodes.insert(local.id(), local);
        }
        datanodes
    }
}

/// The place of a replica that is made from a backup: it votes alone and speaks to nobody while it is made.
pub(crate) fn restored_place(config: &Config, group: Group) -> anyhow::Result<Place> {
    let Some(place) = config.place(group)? else { return Ok(Place::default()) };
    Ok(Place { member: Some(place.member), voters: place.voters, join: place.is_joining, ..Place::default() })
}

impl Roles {
    /// The backups of the replicas in this process.
    pub(crate) fn backups(&self) -> LocalBackups {
        LocalBackups { om: self.om_role.clone(), scm: self.scm_role.clone() }
    }
}

/// Recovery reads disks for as long as it takes: not on the reactor.
async fn open_datanode(config: DatanodeConfig) -> anyhow::Result<Arc<datanode::Datanode>> {
    let opened = platform::task::spawn_blocking(move || datanode::Datanode::open(config)).await;
    Ok(Arc::new(opened.context("start the datanode")?.context("start the datanode").context(Unusable)?))
}

pub(crate) fn scm_config(config: &Config, cluster: &Cluster) -> ScmConfig {
    ScmConfig {
        container_bytes_max: config.scm.container_size.0,
        open_containers: config.scm.open_containers,
        heartbeat_interval_ms: config.datanode.heartbeat_interval.as_ms(),
        // SCM logs little; small logs keep small disks usable.
        log_segment_bytes: config.om.log_segment.0.min(SCM_LOG_SEGMENT_BYTES),
        stale_silence_ms: config.scm.stale_after.as_ms(),
        dead_silence_ms: config.scm.dead_after.as_ms(),
        repair_delay_ms: config.scm.repair_delay.as_ms(),
        repair_bandwidth: config.scm.repair_bandwidth.0,
        repair_copies_max: config.scm.copies_max,
        ..ScmConfig::new(config.scm_dir(), cluster.id)
    }
}

fn datanode_config(config: &Config, cluster: &Cluster, address: Option<HostPort>) -> DatanodeConfig {
    DatanodeConfig {
        address,
        node: config.node.name.clone(),
        rack: config.node.rack.clone(),
        container_bytes_max: config.scm.container_size.0,
        growth_step: config.datanode.growth_step.0,
        reserve_bytes: config.datanode.reserve.0,
        ..DatanodeConfig::new(config.disk_dirs(), cluster.id)
    }
}

pub(crate) fn om_config(config: &Config, cluster: &Cluster, key: [u8; 32]) -> anyhow::Result<OmConfig> {
    let dir = config.om_dir();
    let disk = Directory::open(&dir).with_context(|| format!("open {}", dir.display())).context(Unusable)?;
    Ok(OmConfig {
        cache_bytes: config.om.cache.0 as usize,
        log_segment_bytes: config.om.log_segment.0,
        delete_grace_ms: config.om.delete_grace.as_ms(),
        open_key_expire_after_ms: config.om.open_key_expire_after.as_ms(),
        open_key_scan_interval_ms: config.om.open_key_scan_interval.as_ms(),
        deletion_interval_ms: config.om.deletion_interval.as_ms(),
        block_bytes_max: block_bytes_max(config),
        default_replication: config.om.replication.into(),
        ..OmConfig::new(Arc::new(disk), cluster.id, key)
    })
}

/// A block's longest length: several must fit a container.
fn block_bytes_max(config: &Config) -> u64 {
    BLOCK_BYTES_MAX.min(config.scm.container_size.0 / BLOCKS_PER_CONTAINER_MIN)
}
