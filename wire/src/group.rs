//! Replicated groups as operators and peers see them: OM's and SCM's Raft groups and their members.
//!
//! Not here: what peers send one another (consensus).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::host::HostPort;

/// A replica of a group. A wiped node returns only as another member: with another raft id and incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its raft id, unique in the group for ever. Never 0.
    pub raft_id: u64,
    /// Drawn when the replica's directory is made: messages to or from another life are refused.
    pub incarnation: Uuid,
    /// The node's name in the configuration, for people.
    pub node: String,
    /// Its internal listener.
    pub address: HostPort,
}

/// A member's place in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Counts for the quorum.
    Voter,
    /// Catches up; does not count.
    Learner,
}

/// A member with its standing, as the leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Who.
    pub member: Member,
    /// Its place.
    pub role: MemberRole,
    /// Whether it leads.
    pub is_leader: bool,
    /// The last entry it is known to hold. None from a replica that does not lead.
    pub match_index: Option<u64>,
    /// Whether it answered lately. None from a replica that does not lead.
    pub is_active: Option<bool>,
}

/// A group as one of its replicas sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// `om` or `scm`.
    pub group: String,
    /// Who says this.
    pub raft_id: u64,
    /// Its term.
    pub term: u64,
    /// The leader's raft id, if known.
    pub leader: Option<u64>,
    /// Entries up to here are committed.
    pub commit_index: u64,
    /// Entries up to here are applied.
    pub applied_index: u64,
    /// The first entry in its log.
    pub log_first_index: u64,
    /// The last entry in its log.
    pub log_last_index: u64,
    /// The hash over all rows at `applied_index`, in hexadecimal.
    pub state_hash: String,
    /// All members, by raft id.
    pub members: Vec<MemberInfo>,
    /// Whom it voted for in its term, 0 for nobody. Within a term it never changes from one to another.
    #[serde(default)]
    pub vote: u64,
}

impl GroupInfo {
    /// Whether who says this is a member. A replica that waits to be added knows no members, one that was removed those
    /// of another time.
    pub fn is_of_a_member(&self) -> bool {
        self.members.iter().any(|info| info.member.raft_id == self.raft_id)
    }
}

/// A change of membership, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipChange {
    /// A new replica that catches up first.
    AddLearner(Member),
    /// A learner begins to count. Refused while it is far behind.
    Promote {
        /// Which.
        raft_id: u64,
    },
    /// A replica leaves. Refused if it is the last voter, or (unless forced) if the rest has no active quorum.
    Remove {
        /// Which.
        raft_id: u64,
        /// Even if the rest has no active quorum.
        force: bool,
    },
}
