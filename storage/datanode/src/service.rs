//! The datanode as its callers see it: tokens are checked, containers found or made, blocks written and read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::service::{ChunkStream, DatanodeService, ReplicaStream};
use wire::block::{BlockOperation, BlockToken, TokenError};
use wire::chunk::ChunkRun;
use wire::datanode::{BlockReceipt, FetchReplica, ReadBlock, WriteBlock};
use wire::ids::BlockId;
use wire::status::Failure;

use crate::container::Container;
use crate::error::BlockError;
use crate::node::{Datanode, Node};
use crate::{fetch, read, write};

/// A datanode that has just started waits this long for its token keys before it sends callers elsewhere: it registers
/// within a heartbeat, and writers give a datanode a second.
const KEYS_WAIT: Duration = Duration::from_millis(500);

#[async_trait]
impl DatanodeService for Datanode {
    async fn write_block(&self, request: WriteBlock, body: ChunkStream) -> Result<BlockReceipt, Failure> {
        let container = self.container_to_write(&request).await?;
        Ok(write::write_stream(container, request, body).await?)
    }

    async fn write_small_block(&self, request: WriteBlock, body: ChunkRun) -> Result<BlockReceipt, Failure> {
        let container = self.container_to_write(&request).await?;
        Ok(write::write_small(container, request, body).await?)
    }

    async fn read_block(&self, request: ReadBlock) -> Result<ChunkStream, Failure> {
        self.node.wait_keys().await;
        self.node.check_token(&request.token, BlockOperation::Read, request.block, request.block_length)?;
        let container = self.node.container(request.block.container)?;
        Ok(read::read(container, request).await?)
    }

    async fn ping(&self) -> Result<(), Failure> {
        if self.node.is_stopping() { Err(BlockError::Stopping.into()) } else { Ok(()) }
    }

    async fn fetch_replica(&self, request: FetchReplica) -> Result<ReplicaStream, Failure> {
        self.node.wait_keys().await;
        self.node.check_copy_token(&request)?;
        Ok(fetch::fetch(&self.node, request).await?)
    }
}

impl Datanode {
    async fn container_to_write(&self, request: &WriteBlock) -> Result<Arc<Container>, BlockError> {
        self.node.wait_keys().await;
        self.node.check_token(&request.token, BlockOperation::Write, request.block, request.length)?;
        let claim = &request.token.claim;
        if let Some(container) = self.node.container_for(claim)? {
            return Ok(container);
        }
        let (node, claim) = (self.node.clone(), claim.clone());
        let made = platform::task::spawn_blocking(move || node.container_or_create(&claim));
        made.await.map_err(|_| BlockError::Stopping)?
    }
}

impl Node {
    /// Waits a moment for the first token keys.
    async fn wait_keys(&self) {
        if self.keys.read().is_empty() {
            let mut is_registered = self.is_registered.subscribe();
            // Late or never: the check of the token says so.
            let _ = tokio::time::timeout(KEYS_WAIT, is_registered.wait_for(|done| *done)).await;
        }
    }

    fn check_token(
        &self,
        token: &BlockToken,
        operation: BlockOperation,
        block: BlockId,
        length: u64,
    ) -> Result<(), BlockError> {
        self.verify_token(token)?;
        token.covers(operation, block, length).map_err(BlockError::Denied)
    }

    /// Whole replicas go to whoever SCM has told to copy them.
    fn check_copy_token(&self, request: &FetchReplica) -> Result<(), BlockError> {
        self.verify_token(&request.token)?;
        let claim = &request.token.claim;
        let is_for_it =
            claim.operation == BlockOperation::CopyReplica && claim.container == request.container;
        if is_for_it { Ok(()) } else { Err(BlockError::Denied(TokenError::OutOfScope)) }
    }

    fn verify_token(&self, token: &BlockToken) -> Result<(), BlockError> {
        if self.is_stopping() {
            return Err(BlockError::Stopping);
        }
        let keys = self.keys.read().clone();
        let newest = keys.iter().map(|key| key.id).max().ok_or(BlockError::NoKeys)?;
        match token.verify(&keys, wire::clock::now_ms()) {
            // Signed with a key younger than any known here: the next heartbeat brings it.
            Err(TokenError::UnknownKey) if token.key_id > newest => Err(BlockError::NoKeys),
            checked => checked.map_err(BlockError::Denied),
        }
    }
}
