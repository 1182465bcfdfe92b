//! Who belongs to a group: raft's configuration with the members' addresses and incarnations.
//!
//! A change carries in its log entry everybody who belonged before it, beside the one it is about. So a replica that
//! joins by reading the log from its beginning learns of the first voters, who never were in an entry, and all
//! replicas hold the same list at the same index.
//!
//! Invariants:
//! * A raft id that was a member once is never one again.
//!
//! Not here: when a change is allowed (see `driver::membership`).

use std::collections::BTreeMap;

use raft::RawNode;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wire::group::Member;

use crate::storage::LogStore;

/// Former members remembered at most; the oldest are long gone.
const FORMER_MAX: usize = 1024;

/// Who belongs to the group after some entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Membership {
    pub(crate) conf_state: ConfState,
    pub(crate) members: BTreeMap<u64, Member>,
    pub(crate) former: Vec<u64>,
}

/// What the entry of a change carries beside raft's part. Append fields with `#[serde(default)]`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct ChangeContext {
    voters: Vec<u64>,
    learners: Vec<u64>,
    members: Vec<Member>,
    former: Vec<u64>,
    added: Option<Member>,
}

impl Membership {
    pub(crate) fn new(conf_state: ConfState, members: &[Member], former: &[u64]) -> Self {
        let members = members.iter().map(|member| (member.raft_id, member.clone())).collect();
        Membership { conf_state, members, former: former.to_vec() }
    }

    /// Whether `raft_id` has a place, also one it is about to lose or get.
    pub(crate) fn contains(&self, raft_id: u64) -> bool {
        let conf_state = &self.conf_state;
        [&conf_state.voters, &conf_state.voters_outgoing, &conf_state.learners, &conf_state.learners_next]
            .iter()
            .any(|ids| ids.contains(&raft_id))
    }

    pub(crate) fn is_voter(&self, raft_id: u64) -> bool {
        self.conf_state.voters.contains(&raft_id) || self.conf_state.voters_outgoing.contains(&raft_id)
    }

    pub(crate) fn is_joint(&self) -> bool {
        !self.conf_state.voters_outgoing.is_empty()
    }

    /// Whether `raft_id` alone decides, and nobody else even listens.
    pub(crate) fn is_alone(&self, raft_id: u64) -> bool {
        let conf_state = &self.conf_state;
        conf_state.voters == [raft_id]
            && conf_state.voters_outgoing.is_empty()
            && conf_state.learners.is_empty()
    }

    /// Whether a message from this replica may be listened to. One whom nobody here has heard of may have been added by
    /// entries that are still on their way.
    pub(crate) fn admits(&self, raft_id: u64, incarnation: Uuid) -> Result<(), &'static str> {
        match self.members.get(&raft_id) {
            Some(member) if member.incarnation != incarnation => Err("its sender lives another life"),
            None if self.former.contains(&raft_id) => Err("its sender is no member any more"),
            _ => Ok(()),
        }
    }

    /// The bytes that go with a change of this membership.
    pub(crate) fn context(&self, added: Option<Member>) -> Vec<u8> {
        let context = ChangeContext {
            voters: self.conf_state.voters.clone(),
            learners: self.conf_state.learners.clone(),
            members: self.members.values().cloned().collect(),
            former: self.former.clone(),
            added,
        };
        rmp_serde::to_vec(&context).expect("members encode")
    }

    /// Performs a committed change, in raft as well.
    pub(crate) fn change(&mut self, node: &mut RawNode<LogStore>, change: &ConfChangeV2, context: &[u8]) {
        let context: Option<ChangeContext> = rmp_serde::from_slice(context).ok();
        if let Some(context) = context {
            if self.conf_state == ConfState::default() {
                adopt(node, &context);
            }
            self.former = context.former;
            self.members = context
                .members
                .into_iter()
                .chain(context.added)
                .map(|member| (member.raft_id, member))
                .collect();
        }
        match node.apply_conf_change(change) {
            Ok(conf_state) => self.conf_state = conf_state,
            // Every replica refuses it for the same reason.
            Err(error) => tracing::warn!(%error, "a change of membership has no effect"),
        }
        let gone: Vec<u64> = self.members.keys().copied().filter(|id| !self.contains(*id)).collect();
        for raft_id in gone {
            self.members.remove(&raft_id);
            self.former.push(raft_id);
        }
        let surplus = self.former.len().saturating_sub(FORMER_MAX);
        self.former.drain(..surplus);
    }
}

/// Takes over a configuration that no entry ever stated. One by one: raft makes nothing joint out of nothing.
fn adopt(node: &mut RawNode<LogStore>, context: &ChangeContext) {
    let voters = context.voters.iter().map(|id| (*id, ConfChangeType::AddNode));
    let learners = context.learners.iter().map(|id| (*id, ConfChangeType::AddLearnerNode));
    for (raft_id, kind) in voters.chain(learners) {
        if let Err(error) = node.apply_conf_change(&single(raft_id, kind)) {
            tracing::warn!(%error, raft_id, "a member cannot be taken over");
        }
    }
}

/// A change of one replica's place.
pub(crate) fn single(raft_id: u64, kind: ConfChangeType) -> ConfChangeV2 {
    let mut step = ConfChangeSingle { node_id: raft_id, ..ConfChangeSingle::default() };
    step.set_change_type(kind);
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![step].into());
    change
}
