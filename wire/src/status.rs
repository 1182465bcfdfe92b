//! How a call failed, said by what the caller should do about it.
//!
//! A *rejection* is an answer (`om::Rejection`): the request does not fit the state, and trying again changes nothing.
//! A [`Failure`] is the absence of an answer. The status says whether to retry, go elsewhere or give up; the message is
//! for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::HostPort;

/// What to do about a call that got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Try again after a moment: overload, start-up, a lost peer. The call had no effect.
    Retry,
    /// Another peer leads. The call had no effect.
    NotLeader,
    /// It may or may not have happened. Retry only with the same session and sequence.
    Unknown,
    /// The disk is full: writes are refused, reads and deletes go on.
    DiskFull,
    /// The request itself is malformed, too large or not allowed. Never retry.
    Invalid,
    /// The caller's proof (cluster key, block token) is missing, wrong or expired.
    Denied,
    /// What was asked for is not here (a container or block on this datanode). Ask elsewhere or refresh locations.
    NotFound,
    /// The container does not take this write (closing, full, other generation). Take a new block elsewhere.
    Refused,
    /// Stored bytes are damaged. Another replica may be whole.
    Corrupt,
    /// The peer failed in a way it does not expect: a bug or a broken disk.
    Internal,
    /// The peer is well and cannot serve yet: it has just started. Go elsewhere; what it holds counts all the same.
    NotReady,
    /// What the caller itself was to send came too slowly. Nothing else is wrong, and nothing had an effect.
    TooSlow,
}

/// A call that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What to do.
    pub status: Status,
    /// What happened, for people.
    pub message: String,
    /// With [`Status::NotLeader`]: who leads, if known.
    #[serde(default)]
    pub leader: Option<HostPort>,
}

impl Failure {
    /// A failure with its message.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), leader: None }
    }

    /// Another peer leads: `leader`, if known.
    pub fn not_leader(leader: Option<HostPort>) -> Self {
        let message = match &leader {
            Some(leader) => format!("another peer leads: {leader}"),
            None => "no peer is known to lead".to_owned(),
        };
        Self { status: Status::NotLeader, message, leader }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
