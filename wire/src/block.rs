//! Where a key's bytes lie: block entries, pipelines, and the tokens that open datanodes.

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::chunk::BlockDigest;
use crate::clock::UnixMs;
use crate::host::HostPort;
use crate::ids::{BlockId, ContainerId, DatanodeId, Generation, LocalId, PipelineId, SessionId};
use crate::limits::CLOCK_SKEW_MS;

/// One block of a version's block list: a slice of a stored block, in object order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockEntry {
    /// The block.
    pub block: BlockId,
    /// Where in the block this slice begins, in bytes. 0 except in copies of ranges.
    pub offset: u64,
    /// Bytes of this slice.
    pub length: u64,
    /// Bytes of the whole block, as its digest covers it.
    pub block_length: u64,
    /// The digest all replicas answered with.
    pub digest: BlockDigest,
}

/// How a key's bytes are kept safe (Ozone's replication type).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Replication {
    /// One replica.
    One,
    /// Three replicas.
    Three,
}

/// A datanode as a writer or reader reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanodeAddress {
    /// Which datanode.
    pub id: DatanodeId,
    /// Its internal listener. None while it serves only inside its own process.
    pub address: Option<HostPort>,
}

/// The datanodes that write an open container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Its id.
    pub id: PipelineId,
    /// How many replicas it should have.
    pub replication: Replication,
    /// Its members.
    pub members: Vec<DatanodeAddress>,
}

/// Where a container's replicas are, as SCM knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLocation {
    /// The container.
    pub container: ContainerId,
    /// Replicas that may be read.
    pub replicas: Vec<ReplicaLocation>,
}

/// One readable replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLocation {
    /// Where.
    pub datanode: DatanodeAddress,
    /// Which life of the replica there.
    pub generation: Generation,
}

/// What a token permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BlockOperation {
    /// Write blocks of the range, each once.
    Write,
    /// Read blocks of the range.
    Read,
    /// Copy a whole sealed replica: datanodes only, made by SCM. The range is not looked at.
    CopyReplica,
}

/// Leave to read or write a range of blocks, signed with a key that SCM shares with OM and datanodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockToken {
    /// What is permitted, and to whom.
    pub claim: BlockClaim,
    /// Which key signed.
    pub key_id: u32,
    /// HMAC-SHA256 over the encoded claim and the key id.
    pub mac: [u8; 32],
}

/// The signed content of a [`BlockToken`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockClaim {
    /// What may be done.
    pub operation: BlockOperation,
    /// In which container.
    pub container: ContainerId,
    /// The replica generation a writer may create or write.
    pub generation: Generation,
    /// The container's replication type, for the replica's header when a write creates it.
    pub replication: Replication,
    /// First local id.
    pub first: LocalId,
    /// How many ids.
    pub count: u64,
    /// The session it was made for.
    pub session: SessionId,
    /// Bytes of one block at most.
    pub length_max: u64,
    /// No longer valid from then on.
    pub expires_ms: UnixMs,
}

/// A secret with which block tokens are signed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// Its number; tokens name it.
    pub id: u32,
    /// 32 random bytes.
    pub secret: [u8; 32],
    /// Tokens signed by it are refused from then on.
    pub expires_ms: UnixMs,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenKey({}, ***)", self.id)
    }
}

/// Why a token does not open a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not signed by a key known here.
    #[error("block token is signed by an unknown key")]
    UnknownKey,
    /// The signature is wrong.
    #[error("block token has a wrong signature")]
    Forged,
    /// Too late.
    #[error("block token has expired")]
    Expired,
    /// For another block, operation or length.
    #[error("block token does not cover this request")]
    OutOfScope,
}

impl BlockToken {
    /// Signs `claim`.
    pub fn sign(claim: BlockClaim, key: &TokenKey) -> Self {
        let mac = mac_of(&claim, key).finalize().into_bytes().into();
        Self { claim, key_id: key.id, mac }
    }

    /// Checks signature and expiry against the keys of this node. Constant time in the signature.
    pub fn verify(&self, keys: &[TokenKey], now_ms: UnixMs) -> Result<(), TokenError> {
        let key = keys.iter().find(|key| key.id == self.key_id).ok_or(TokenError::UnknownKey)?;
        mac_of(&self.claim, key).verify_slice(&self.mac).map_err(|_| TokenError::Forged)?;
        let too_late =
            now_ms >= self.claim.expires_ms.saturating_add(CLOCK_SKEW_MS) || now_ms >= key.expires_ms;
        if too_late { Err(TokenError::Expired) } else { Ok(()) }
    }

    /// Whether it permits `operation` on `block` up to `length` bytes. To be asked beside [`Self::verify`].
    pub fn covers(&self, operation: BlockOperation, block: BlockId, length: u64) -> Result<(), TokenError> {
        let claim = &self.claim;
        let in_range =
            block.local.0.checked_sub(claim.first.0).is_some_and(|distance| distance < claim.count);
        let fits = claim.operation == operation
            && claim.container == block.container
            && in_range
            && length <= claim.length_max;
        if fits { Ok(()) } else { Err(TokenError::OutOfScope) }
    }
}

fn mac_of(claim: &BlockClaim, key: &TokenKey) -> Hmac<Sha256> {
    // Fixed-width fields in a fixed order: no two claims share an encoding.
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).expect("HMAC takes keys of any length");
    mac.update(b"ferrozone block token 1");
    let numbers = [
        match claim.operation {
            BlockOperation::Write => 1,
            BlockOperation::Read => 2,
            BlockOperation::CopyReplica => 3,
        },
        claim.container.0,
        claim.generation.0,
        match claim.replication {
            Replication::One => 1,
            Replication::Three => 3,
        },
        claim.first.0,
        claim.count,
        claim.session.0,
        claim.length_max,
        claim.expires_ms,
        u64::from(key.id),
    ];
    for number in numbers {
        mac.update(&number.to_be_bytes());
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        TokenKey { id: 3, secret: [9; 32], expires_ms: 10_000_000 }
    }

    fn claim() -> BlockClaim {
        BlockClaim {
            operation: BlockOperation::Write,
            container: ContainerId(5),
            generation: Generation(1),
            replication: Replication::One,
            first: LocalId(100),
            count: 10,
            session: SessionId(1),
            length_max: 4096,
            expires_ms: 1_000_000,
        }
    }

    #[test]
    fn token_opens_only_what_it_names() {
        let token = BlockToken::sign(claim(), &key());
        assert_eq!(token.verify(&[key()], 999_999), Ok(()));
        let block = |container, local| BlockId { container: ContainerId(container), local: LocalId(local) };
        assert_eq!(token.covers(BlockOperation::Write, block(5, 109), 4096), Ok(()));
        for (operation, block, length) in [
            (BlockOperation::Read, block(5, 100), 1),
            (BlockOperation::Write, block(6, 100), 1),
            (BlockOperation::Write, block(5, 99), 1),
            (BlockOperation::Write, block(5, 110), 1),
            (BlockOperation::Write, block(5, 100), 4097),
        ] {
            assert_eq!(token.covers(operation, block, length), Err(TokenError::OutOfScope));
        }
    }

    #[test]
    fn forged_expired_and_unknown_are_refused() {
        let mut token = BlockToken::sign(claim(), &key());
        assert_eq!(token.verify(&[], 0), Err(TokenError::UnknownKey));
        assert_eq!(token.verify(&[key()], 1_000_000 + CLOCK_SKEW_MS), Err(TokenError::Expired));
        token.claim.length_max += 1;
        assert_eq!(token.verify(&[key()], 0), Err(TokenError::Forged));
    }
}
