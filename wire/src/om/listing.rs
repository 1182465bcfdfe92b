//! Listings of keys.

use serde::{Deserialize, Serialize};

use super::{BucketRef, KeyHead};
use crate::names::KeyName;

/// ListObjects, both versions; also ListObjectVersions of an unversioned bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListKeys {
    /// The bucket.
    pub bucket: BucketRef,
    /// Only names that begin so.
    pub prefix: String,
    /// Names are cut at its first occurrence behind the prefix. Empty: not.
    pub delimiter: String,
    /// Only names, and common prefixes, after this one; a common prefix equal to it is passed over with all it holds.
    pub after: String,
    /// At most so many entries and prefixes together.
    pub max: u32,
}

/// A listing's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListItem {
    /// A key.
    Key(KeyName, KeyHead),
    /// Names cut at the delimiter, the delimiter included.
    Prefix(String),
}

/// A page of a listing, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// Keys and prefixes.
    pub items: Vec<ListItem>,
    /// More follow after the last item.
    pub is_truncated: bool,
    /// As [`KeyFound::read_index`](super::KeyFound::read_index).
    #[serde(default)]
    pub read_index: u64,
}
