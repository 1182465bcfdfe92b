//! A gateway's life as OM sees it, and the block ids OM lends it.
//!
//! A session numbers its commands, so that a repeated one has one effect and one answer; ending it refuses its commits and
//! reclaims its loans.
//!
//! Not here: how OM comes by the ids it lends ([`crate::scm`]).

use serde::{Deserialize, Serialize};

use crate::block::{BlockToken, Pipeline, Replication};
use crate::ids::{BlockId, ContainerId, DatanodeId, Generation, LoanId, LocalId, SessionId, WriteId};

/// Who speaks and which of its commands this is. A repeat with the same numbers is answered as the first was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteContext {
    /// The session.
    pub session: SessionId,
    /// Increases by one with each command of the session.
    pub sequence: u64,
    /// Every command below this number has had its answer: OM forgets their replies.
    pub acknowledged: u64,
}

impl WriteContext {
    /// The id of the blocks written by this command.
    pub const fn write_id(&self) -> WriteId {
        WriteId { session: self.session, sequence: self.sequence }
    }
}

/// Begin a gateway's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// Drawn by the caller: a repeat with the same nonce answers with the same session.
    pub nonce: [u8; 16],
}

/// Still alive. Not logged; silence for `SESSION_SILENCE_MS` ends the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewSession {
    /// Which.
    pub session: SessionId,
    /// See [`WriteContext::acknowledged`].
    pub acknowledged: u64,
}

/// End a session in good order: its loans are reclaimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSession {
    /// Which.
    pub session: SessionId,
}

/// Lend block ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeLoan {
    /// Who and which.
    pub context: WriteContext,
    /// For keys of this type.
    pub replication: Replication,
    /// How many ids, at most `LOAN_IDS_MAX`.
    pub count: u16,
    /// Containers whose datanodes refused a write of this gateway (full, closing).
    pub avoid: Vec<ContainerId>,
    /// Datanodes that failed this gateway just now: a loan in a pipeline without them, if there can be one.
    #[serde(default)]
    pub avoid_datanodes: Vec<DatanodeId>,
}

/// Ids lent to a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// Its id.
    pub id: LoanId,
    /// The container.
    pub container: ContainerId,
    /// The generation of its replicas.
    pub generation: Generation,
    /// First id.
    pub first: LocalId,
    /// How many ids follow from there.
    pub count: u16,
    /// Who writes the container.
    pub pipeline: Pipeline,
    /// Leave to write these ids.
    pub token: BlockToken,
}

/// Give back ids of failed writes, or whole loans no longer used: they become `freed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseBlocks {
    /// Who and which.
    pub context: WriteContext,
    /// Single ids, at most `LOAN_IDS_MAX`.
    pub blocks: Vec<BlockId>,
    /// Loans to end with all ids still in them, at most 1 a command.
    pub loan: Option<LoanId>,
}

/// A gateway could not have all replicas acknowledge: OM has SCM leave out the others and ends the container's lease.
/// Only after [`Degraded::Accepted`](crate::scm::Degraded::Accepted) may the blocks be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradeBlocks {
    /// Who asks.
    pub session: SessionId,
    /// The container.
    pub container: ContainerId,
    /// The generation of its replicas in the loan.
    pub generation: Generation,
    /// Members that acknowledged.
    pub acknowledged: Vec<DatanodeId>,
    /// Members that did not.
    pub failed: Vec<DatanodeId>,
}

/// Where containers are now: a reader met "no such container" or dead replicas. OM asks SCM, past its own cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshLocations {
    /// Which, at most `LAYOUT_PAGE_ENTRIES_MAX`.
    pub containers: Vec<ContainerId>,
}

/// New read tokens for blocks whose old ones are running out: a download may take longer than a token lives. Refused
/// (`NotFound`) if one of them lives no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewTokens {
    /// Blocks and their whole lengths, at most `LAYOUT_PAGE_ENTRIES_MAX`.
    pub blocks: Vec<(BlockId, u64)>,
}
