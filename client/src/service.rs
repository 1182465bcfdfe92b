//! The three services as their callers see them: OM, SCM, datanode.
//!
//! One trait a service, implemented in process by the daemon itself and over HTTP by the stubs in `http`. Callers hold
//! an `Arc<dyn ..>` and cannot tell which: all-in-one is a cluster of one that calls in process where it would have
//! called over HTTP.
//!
//! Not here: what the calls mean (see `wire::om`, `wire::scm`, `wire::datanode`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::Stream;
use parking_lot::RwLock;
use wire::block::DatanodeAddress;
use wire::chunk::ChunkRun;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, ReplicaPiece, WriteBlock};
use wire::host::HostPort;
use wire::ids::DatanodeId;
use wire::om::{OmCall, OmReply, OmRequest, Rejection};
use wire::scm::{ScmCall, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

/// How a call to OM ended without a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// OM answered no: the request does not fit the state.
    #[error("{0}")]
    Rejected(Rejection),
    /// There was no answer.
    #[error("{0}")]
    Failed(Failure),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Rejection> for CallError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// The Ozone Manager.
#[async_trait]
pub trait OmService: Send + Sync + 'static {
    /// Answers one request. Dropping the future does not undo a command that was proposed.
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError>;
}

/// The Storage Container Manager.
#[async_trait]
pub trait ScmService: Send + Sync + 'static {
    /// Answers one request.
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure>;
}

/// Runs of chunks on their way. Runs of one stream join into one sequence of 64 KiB chunks.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<ChunkRun, Failure>> + Send>>;

/// Pieces of a replica on their way, in order.
pub type ReplicaStream = Pin<Box<dyn Stream<Item = Result<ReplicaPiece, Failure>> + Send>>;

/// A datanode.
#[async_trait]
pub trait DatanodeService: Send + Sync + 'static {
    /// Writes one block and answers once it is durable. An error of `body` ends the write: nothing of it stays.
    async fn write_block(&self, request: WriteBlock, body: ChunkStream) -> Result<BlockReceipt, Failure>;

    /// Writes one block whose bytes are all here: the short path of small objects.
    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure>;

    /// Reads the whole chunks that hold the asked range (the first run begins at the chunk that holds
    /// `request.offset`; the caller cuts). The chunk list has been checked against the digest and each chunk
    /// against the list before it is handed out; over HTTP the stub checks the chunks again.
    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure>;

    /// Answers at once, whatever its disks are doing: a datanode that is slow is told from one that is gone.
    async fn ping(&self) -> Result<(), Failure> {
        Err(Failure::new(Status::Internal, "this datanode cannot be asked"))
    }

    /// Sends a whole sealed replica, for a copy on another datanode: a head, blocks, an end. Chunks are checked before
    /// they are sent; a damaged one ends the stream with `Corrupt`.
    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        let message = format!("container {} cannot be copied from here yet", request.container);
        Err(Failure::new(Status::Internal, message))
    }
}

/// Typed calls of OM: `om.call(GetBucket { .. })` gives a `BucketInfo`.
pub async fn call_om<C: OmCall>(om: &dyn OmService, request: C) -> Result<C::Reply, CallError> {
    let reply = om.handle(request.into()).await?;
    C::unwrap_reply(reply)
        .ok_or_else(|| Failure::new(Status::Internal, "om answered another question than was asked").into())
}

/// Typed calls of SCM.
pub async fn call_scm<C: ScmCall>(scm: &dyn ScmService, request: C) -> Result<C::Reply, Failure> {
    let reply = scm.handle(request.into()).await?;
    C::unwrap_reply(reply)
        .ok_or_else(|| Failure::new(Status::Internal, "scm answered another question than was asked"))
}

/// Makes a stub for a datanode that runs in another process.
pub type DatanodeConnector =
    dyn Fn(&DatanodeAddress) -> Result<Arc<dyn DatanodeService>, Failure> + Send + Sync;

/// The datanodes a gateway can reach: those of its own process, and others by their address.
pub struct Datanodes {
    /// Those of this process, whatever their address is said to be.
    local: RwLock<HashMap<DatanodeId, Arc<dyn DatanodeService>>>,
    /// One stub per datanode, for the address it was last asked for at: a datanode may move, and whoever runs on must
    /// find it again.
    remote: RwLock<HashMap<DatanodeId, Remote>>,
    connect: Box<DatanodeConnector>,
}

struct Remote {
    address: Option<HostPort>,
    stub: Arc<dyn DatanodeService>,
}

impl Datanodes {
    /// An empty set; `connect` makes stubs for those that are not added.
    pub fn new(connect: Box<DatanodeConnector>) -> Self {
        Self { local: RwLock::default(), remote: RwLock::default(), connect }
    }

    /// A set without remote datanodes.
    pub fn local_only() -> Self {
        Self::new(Box::new(|datanode| {
            Err(Failure::new(Status::Retry, format!("datanode {} cannot be reached from here", datanode.id)))
        }))
    }

    /// Adds a datanode of this process.
    pub fn insert(&self, id: DatanodeId, datanode: Arc<dyn DatanodeService>) {
        self.local.write().insert(id, datanode);
    }

    /// Whether it lives in this process: the nearest there can be.
    pub fn is_local(&self, id: DatanodeId) -> bool {
        self.local.read().contains_key(&id)
    }

    /// The datanode at `address`.
    pub fn get(&self, address: &DatanodeAddress) -> Result<Arc<dyn DatanodeService>, Failure> {
        if let Some(datanode) = self.local.read().get(&address.id) {
            return Ok(datanode.clone());
        }
        if let Some(remote) = self.remote.read().get(&address.id)
            && remote.address == address.address
        {
            return Ok(remote.stub.clone());
        }
        let stub = (self.connect)(address)?;
        let remote = Remote { address: address.address.clone(), stub: stub.clone() };
        // The stub of a former address goes: as many are kept as there are datanodes.
        self.remote.write().insert(address.id, remote);
        Ok(stub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    #[async_trait]
    impl DatanodeService for Nobody {
        async fn write_block(&self, _: WriteBlock, _: ChunkStream) -> Result<BlockReceipt, Failure> {
            Err(Failure::new(Status::Retry, "nobody"))
        }

        async fn write_small_block(&self, _: WriteBlock, _: ChunkRun) -> Result<BlockReceipt, Failure> {
            Err(Failure::new(Status::Retry, "nobody"))
        }

        async fn read_block(&self, _: ReadBlock) -> Result<ChunkStream, Failure> {
            Err(Failure::new(Status::Retry, "nobody"))
        }
    }

    fn at(id: DatanodeId, port: u16) -> DatanodeAddress {
        let address = format!("127.0.0.1:{port}").parse().expect("an address");
        DatanodeAddress { id, address: Some(address) }
    }

    #[test]
    fn a_datanode_that_moves_is_asked_at_its_new_address() {
        let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let seen = asked.clone();
        let datanodes = Datanodes::new(Box::new(move |address: &DatanodeAddress| {
            seen.lock().push(address.clone());
            Ok(Arc::new(Nobody) as Arc<dyn DatanodeService>)
        }));
        let id = DatanodeId::random();
        for port in [1, 1, 2, 2] {
            datanodes.get(&at(id, port)).expect("a stub");
        }
        assert_eq!(*asked.lock(), vec![at(id, 1), at(id, 2)]);
        assert_eq!(datanodes.remote.read().len(), 1);
    }

    #[test]
    fn a_datanode_of_this_process_is_never_asked_over_the_network() {
        let datanodes = Datanodes::local_only();
        let id = DatanodeId::random();
        datanodes.insert(id, Arc::new(Nobody));
        assert!(datanodes.is_local(id) && datanodes.get(&at(id, 1)).is_ok());
    }
}
