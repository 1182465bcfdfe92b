//! Newtypes for every id, so that a container is never taken for a block.
//!
//! Ids are handed out by one authority each and never reused: containers, pipelines and leases by SCM, sessions, loans,
//! buckets and versions by OM (they are Raft log indexes or counters kept in state), datanodes and clusters by drawing
//! a UUID when they are formatted.
//!
//! Not here: names that people choose (see `names`).

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Big-endian bytes: row keys sort as the numbers do.
            pub const fn to_be_bytes(self) -> [u8; 8] {
                self.0.to_be_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// A container: a replicated group of blocks on datanodes (Ozone's container).
    ContainerId
);
number_id!(
    /// A block's number inside its container. Written once, never reused.
    LocalId
);
number_id!(
    /// The set of datanodes that write an open container.
    PipelineId
);
number_id!(
    /// A range of local ids in one OPEN container that SCM granted to OM.
    LeaseId
);
number_id!(
    /// Up to 256 ids that OM lent to a gateway session.
    LoanId
);
number_id!(
    /// A gateway's life as OM sees it. Increases with every session opened.
    SessionId
);
number_id!(
    /// A bucket. A bucket deleted and created again has another id.
    BucketId
);
number_id!(
    /// A replica's life on a datanode: a copy made anew has a higher generation.
    Generation
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh random (version 4) id. For shells that format a node.
            pub fn random() -> Self {
                Self(uuid::Builder::from_random_bytes(crate::random::array()).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// A storage machine. Drawn when its first disk is formatted; a wiped machine gets another.
    DatanodeId
);
uuid_id!(
    /// A whole cluster. Data directories and peers of another cluster are refused.
    ClusterId
);

/// A block: the unit that SCM allocates for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BlockId {
    /// The container it lies in.
    pub container: ContainerId,
    /// Its number there.
    pub local: LocalId,
}

impl BlockId {
    /// Container then local id, big-endian: the row key of the `block` table.
    pub fn to_row_key(self) -> [u8; 16] {
        let mut row_key = [0; 16];
        row_key[..8].copy_from_slice(&self.container.to_be_bytes());
        row_key[8..].copy_from_slice(&self.local.to_be_bytes());
        row_key
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.local)
    }
}

/// A command of a session: session and sequence. The id of the write that owns blocks and `layout` rows.
///
/// For a multipart upload it is the command that created the upload, so the upload id and the write id are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct WriteId {
    /// Who wrote.
    pub session: SessionId,
    /// Which of its commands.
    pub sequence: u64,
}

impl WriteId {
    /// Session then sequence, big-endian.
    pub fn to_row_key(self) -> [u8; 16] {
        let mut row_key = [0; 16];
        row_key[..8].copy_from_slice(&self.session.to_be_bytes());
        row_key[8..].copy_from_slice(&self.sequence.to_be_bytes());
        row_key
    }

    /// The inverse of [`Self::to_row_key`].
    pub fn from_row_key(row_key: [u8; 16]) -> Self {
        let number = u128::from_be_bytes(row_key);
        Self { session: SessionId((number >> 64) as u64), sequence: number as u64 }
    }
}

impl fmt::Display for WriteId {
    /// 32 hexadecimal digits: what S3 clients see as the upload id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.session.0, self.sequence)
    }
}

impl std::str::FromStr for WriteId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        // Exactly what Display prints: an upload id has one spelling.
        let plain = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !plain {
            return Err(NotAnId);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| NotAnId)?;
        Ok(Self::from_row_key(number.to_be_bytes()))
    }
}

/// The text is not an id of the asked kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid id")]
pub struct NotAnId;

/// When a version of a key came to be: Raft index of its commit, and its place in that command. Gives versions' order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct VersionId {
    /// The Raft index of the commit.
    pub index: u64,
    /// The ordinal inside that command.
    pub ordinal: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_id_has_one_spelling() {
        let id = WriteId { session: SessionId(7), sequence: 0xabc };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<WriteId>(), Err(NotAnId));
        assert_eq!("+".repeat(32).parse::<WriteId>(), Err(NotAnId));
        assert_eq!("12".parse::<WriteId>(), Err(NotAnId));
    }

    #[test]
    fn row_keys_sort_as_ids_do() {
        let low = BlockId { container: ContainerId(1), local: LocalId(300) };
        let high = BlockId { container: ContainerId(2), local: LocalId(1) };
        assert!(low.to_row_key() < high.to_row_key());
    }
}
