//! The services of simulated nodes, called through the simulated network.
//!
//! Each stub here stands where the HTTP stub stands in production: it has one peer, and a caller cannot tell.
//!
//! Not here: which peer leads (client::failover finds out), delays and losses (`network`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::{CallError, ChunkStream, DatanodeService, OmService, ReplicaStream, ScmService};
use consensus::{PeerEndpoint, PeerTransport, SnapshotStream};
use datanode::Datanode;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use platform::node::{self, NodeIndex};
use platform::task;
use tokio::sync::mpsc;
use wire::chunk::ChunkRun;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, ReplicaPiece, WriteBlock};
use wire::group::Member;
use wire::om::{OmReply, OmRequest};
use wire::scm::{ReplicaReport, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

use crate::network::Network;
use crate::orders::Orders;

/// A connection on which nothing is acknowledged breaks after this, as TCP's user timeout has it.
const UNACKNOWLEDGED_DEADLINE: Duration = Duration::from_secs(10);

/// Pieces of a stream under way at most.
const PIECES_MAX: usize = 4;

/// A stream that brings nothing for so long is given up at its receiving end, as over HTTP.
const STREAM_IDLE_DEADLINE: Duration = Duration::from_secs(30);

/// What runs where.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    services: Arc<Mutex<BTreeMap<NodeIndex, Services>>>,
}

/// The services of one node's life.
#[derive(Clone, Default)]
pub(crate) struct Services {
    pub(crate) om: Option<Arc<dyn OmService>>,
    pub(crate) scm: Option<Arc<dyn ScmService>>,
    pub(crate) datanode: Option<Arc<Datanode>>,
    pub(crate) peers: Vec<Arc<dyn PeerEndpoint>>,
}

impl Registry {
    pub(crate) fn set(&self, node: NodeIndex, services: Services) {
        self.services.lock().insert(node, services);
    }

    pub(crate) fn remove(&self, node: NodeIndex) -> Option<Services> {
        self.services.lock().remove(&node)
    }

    /// What runs on a node, if it is up.
    pub(crate) fn of(&self, node: NodeIndex) -> Option<Services> {
        self.services.lock().get(&node).cloned()
    }

    fn get<T>(&self, node: NodeIndex, pick: impl Fn(&Services) -> Option<T>) -> Result<T, Failure> {
        let found = self.services.lock().get(&node).and_then(pick);
        found.ok_or_else(|| Failure::new(Status::Retry, "the service is starting"))
    }
}

/// A way from one node to another.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) orders: Arc<Orders>,
    pub(crate) from: NodeIndex,
    pub(crate) to: NodeIndex,
}

#[async_trait]
impl OmService for Link {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        let (registry, to) = (self.registry.clone(), self.to);
        let serve = move || {
            let (registry, request) = (registry.clone(), request.clone());
            async move {
                let om = registry.get(to, |services| services.om.clone())?;
                Ok(om.handle(request).await)
            }
        };
        match self.network.call(self.from, self.to, serve).await {
            Ok(outcome) => match self.network.loses_answer() {
                None => outcome,
                Some(after) => {
                    tokio::time::sleep(after).await;
                    Err(Failure::new(Status::Unknown, "the connection broke under the answer").into())
                }
            },
            Err(failure) => Err(failure.into()),
        }
    }
}

#[async_trait]
impl ScmService for Link {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        let (registry, to) = (self.registry.clone(), self.to);
        let reports = reports_of(&request).to_vec();
        let serve = move || {
            let (registry, request) = (registry.clone(), request.clone());
            async move {
                let scm = registry.get(to, |services| services.scm.clone())?;
                scm.handle(request).await
            }
        };
        let mut reply = self.network.call(self.from, self.to, serve).await?;
        self.orders.pass(self.from, &reports, &mut reply);
        Ok(reply)
    }
}

fn reports_of(request: &ScmRequest) -> &[ReplicaReport] {
    match request {
        ScmRequest::Heartbeat(heartbeat) => &heartbeat.replicas,
        ScmRequest::RegisterDatanode(register) => &register.replicas,
        _ => &[],
    }
}

#[async_trait]
impl DatanodeService for Link {
    async fn write_block(&self, request: WriteBlock, body: ChunkStream) -> Result<BlockReceipt, Failure> {
        // The body is taken by the first delivery; a repeated request finds none, as a replayed one would over HTTP.
        let body = Arc::new(Mutex::new(Some(self.pump(self.from, self.to, body))));
        let (registry, to) = (self.registry.clone(), self.to);
        let serve = move || {
            let (registry, request, body) = (registry.clone(), request.clone(), body.lock().take());
            async move {
                let datanode = registry.get(to, |services| services.datanode.clone())?;
                let broken = || -> ChunkStream { Box::pin(stream::once(async { Err(broke_off()) })) };
                datanode.write_block(request, body.unwrap_or_else(broken)).await
            }
        };
        self.network.call(self.from, self.to, serve).await
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        let (registry, to) = (self.registry.clone(), self.to);
        let serve = move || {
            let (registry, request, body) = (registry.clone(), request.clone(), body.clone());
            async move {
                let datanode = registry.get(to, |services| services.datanode.clone())?;
                datanode.write_small_block(request, body).await
            }
        };
        self.network.call(self.from, self.to, serve).await
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        let link = self.clone();
        let serve = move || {
            let (link, request) = (link.clone(), request.clone());
            async move {
                let datanode = link.registry.get(link.to, |services| services.datanode.clone())?;
                let runs = datanode.read_block(request).await?;
                Ok(link.pump(link.to, link.from, runs))
            }
        };
        let runs = self.network.call(self.from, self.to, serve).await?;
        // As the HTTP stub: chunks are checked once more where they arrive.
        let checked = runs.map(|run| match run {
            Ok(run) if !run.is_intact() => {
                Err(Failure::new(Status::Corrupt, "a chunk was damaged on its way"))
            }
            run => run,
        });
        Ok(Box::pin(checked))
    }

    async fn ping(&self) -> Result<(), Failure> {
        let (registry, to) = (self.registry.clone(), self.to);
        let serve = move || {
            let registry = registry.clone();
            async move { registry.get(to, |services| services.datanode.clone())?.ping().await }
        };
        self.network.call(self.from, self.to, serve).await
    }

    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        let link = self.clone();
        let serve = move || {
            let (link, request) = (link.clone(), request.clone());
            async move {
                let datanode = link.registry.get(link.to, |services| services.datanode.clone())?;
                let pieces = datanode.fetch_replica(request).await?;
                Ok(link.pump::<ReplicaPiece>(link.to, link.from, pieces))
            }
        };
        self.network.call(self.from, self.to, serve).await
    }
}

type Pieces<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;

impl Link {
    /// Moves a stream from one node to another. Whoever dies or is walled off, the other end sees an error, never an end.
    fn pump<T: Send + 'static>(&self, from: NodeIndex, to: NodeIndex, mut pieces: Pieces<T>) -> Pieces<T> {
        let (sender, receiver) = mpsc::channel::<Option<Result<T, Failure>>>(PIECES_MAX);
        let network = self.network.clone();
        node::enter(Some(from), || {
            task::spawn(async move {
                loop {
                    let piece = pieces.next().await;
                    let Some(delay) = network.delay(from, to) else {
                        // Nothing more arrives, and nobody says so. The sender's connection breaks in time, and with it ends
                        // what it was sending.
                        tokio::time::sleep(UNACKNOWLEDGED_DEADLINE).await;
                        drop(pieces);
                        std::future::pending::<()>().await;
                        return;
                    };
                    tokio::time::sleep(delay).await;
                    let is_last = !matches!(piece, Some(Ok(_)));
                    if sender.send(piece).await.is_err() || is_last {
                        return;
                    }
                }
            })
        });
        Box::pin(stream::unfold(Some(receiver), |receiver| async {
            let mut receiver = receiver?;
            let Ok(received) = tokio::time::timeout(STREAM_IDLE_DEADLINE, receiver.recv()).await else {
                return Some((Err(broke_off()), None));
            };
            match received {
                Some(Some(Ok(piece))) => Some((Ok(piece), Some(receiver))),
                Some(Some(Err(failure))) => Some((Err(failure), None)),
                Some(None) => None,
                None => Some((Err(broke_off()), None)),
            }
        }))
    }
}

fn broke_off() -> Failure {
    Failure::new(Status::Unknown, "the stream broke off")
}

/// Raft's messages between meta nodes.
pub(crate) struct SimulatedPeers {
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) from: NodeIndex,
    pub(crate) orders: Arc<Orders>,
}

impl SimulatedPeers {
    /// Members' addresses are `node-N:port`.
    fn index_of(member: &Member) -> NodeIndex {
        member
            .address
            .host()
            .strip_prefix("node-")
            .and_then(|number| number.parse().ok())
            .unwrap_or(NodeIndex::MAX)
    }
}

#[async_trait]
impl PeerTransport for SimulatedPeers {
    fn send(&self, group: &str, to: &Member, batch: Bytes) {
        let (registry, to, group) = (self.registry.clone(), Self::index_of(to), group.to_owned());
        self.network.post(self.from, to, move || {
            let (registry, group, batch) = (registry.clone(), group.clone(), batch.clone());
            async move {
                let endpoint = registry.get(to, |services| endpoint(services, &group));
                if let Ok(endpoint) = endpoint {
                    // A refusal is the sender's to find out by silence.
                    let _ = endpoint.receive(batch).await;
                }
            }
        });
    }

    async fn send_snapshot(
        &self,
        group: &str,
        to: &Member,
        head: Bytes,
        body: SnapshotStream,
    ) -> Result<(), Failure> {
        let to = Self::index_of(to);
        let (network, registry, orders) = (self.network.clone(), self.registry.clone(), self.orders.clone());
        let link = Link { network, registry, orders, from: self.from, to };
        let body = Arc::new(Mutex::new(Some(link.pump(self.from, to, body))));
        let (registry, group) = (self.registry.clone(), group.to_owned());
        let serve = move || {
            let (registry, group) = (registry.clone(), group.clone());
            let (head, body) = (head.clone(), body.lock().take());
            async move {
                let endpoint = registry.get(to, |services| endpoint(services, &group))?;
                let broken = || -> SnapshotStream { Box::pin(stream::once(async { Err(broke_off()) })) };
                endpoint.receive_snapshot(head, body.unwrap_or_else(broken)).await
            }
        };
        self.network.call(self.from, to, serve).await
    }
}

fn endpoint(services: &Services, group: &str) -> Option<Arc<dyn PeerEndpoint>> {
    services.peers.iter().find(|endpoint| endpoint.group() == group).cloned()
}
