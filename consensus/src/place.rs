//! A replica's place in its group: who it is, who the first voters are, how it reaches them.
//!
//! Services take it as it comes from the configuration and hand it on.

use std::sync::Arc;

use wire::group::Member;

use crate::config::GroupConfig;
use crate::marker::Marker;
use crate::peer::PeerTransport;

/// A replica's place in its group. The default is that of a sole voter whom nobody else can reach.
#[derive(Clone, Default)]
pub struct Place {
    /// This replica; None for a sole voter.
    pub member: Option<Member>,
    /// The first voters of a group whose directories are fresh, this replica among them.
    pub voters: Vec<Member>,
    /// A fresh directory waits to be added to a group that exists.
    pub join: bool,
    /// The way to peers.
    pub transport: Option<Arc<dyn PeerTransport>>,
    /// Where it is noted that the replica has lived. None of a cluster of one process.
    pub marker: Option<Marker>,
    /// As [`GroupConfig::log_keep_entries`], if not the default.
    pub log_keep_entries: Option<u64>,
    /// As [`GroupConfig::state_hash_entries`], if not the default.
    pub state_hash_entries: Option<u64>,
}

impl Place {
    /// Puts the place into a group's configuration.
    pub fn configure(&self, config: &mut GroupConfig) {
        if let Some(member) = &self.member {
            config.raft_id = member.raft_id;
            config.incarnation = member.incarnation;
            config.member = Some(member.clone());
        }
        config.voters.clone_from(&self.voters);
        config.join = self.join;
        config.transport.clone_from(&self.transport);
        config.marker.clone_from(&self.marker);
        config.log_keep_entries = self.log_keep_entries.unwrap_or(config.log_keep_entries);
        config.state_hash_entries = self.state_hash_entries.unwrap_or(config.state_hash_entries);
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("member", &self.member)
            .field("join", &self.join)
            .finish_non_exhaustive()
    }
}
