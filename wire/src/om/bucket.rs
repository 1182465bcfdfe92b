//! Buckets as S3 sees them: all in volume `s3v`.
//!
//! Not here: volumes, and buckets of other volumes ([`crate::operator`]).

use serde::{Deserialize, Serialize};

use super::{UserId, UserInfo, WriteContext};
use crate::block::Replication;
use crate::clock::UnixMs;
use crate::ids::BucketId;
use crate::names::BucketName;

/// The bucket a call is about, and how fresh the caller's knowledge of it and of its user is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketRef {
    /// Its name, in volume `s3v`.
    pub name: BucketName,
    /// The id the caller knows: another means that it was deleted and created again.
    pub id: BucketId,
    /// The configuration the caller decided by.
    pub config_version: u64,
    /// The state of users and keys the caller decided by.
    pub access_version: u64,
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketInfo {
    /// Its id.
    pub id: BucketId,
    /// Its name.
    pub name: BucketName,
    /// Who owns it.
    pub owner: UserInfo,
    /// When it was created.
    pub created_ms: UnixMs,
    /// Its LocationConstraint; empty for us-east-1.
    pub location: String,
    /// Raised by every change of its configuration.
    pub config_version: u64,
    /// Replication of new keys of class STANDARD: the bucket's own, else the cluster's.
    #[serde(default = "one_replica")]
    pub replication: Replication,
}

fn one_replica() -> Replication {
    Replication::One
}

/// CreateBucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBucket {
    /// Who and which.
    pub context: WriteContext,
    /// Its name.
    pub name: BucketName,
    /// Its owner.
    pub owner: UserInfo,
    /// LocationConstraint; empty for us-east-1.
    pub location: String,
}

/// HeadBucket and every look-up of a bucket's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetBucket {
    /// Its name.
    pub name: BucketName,
}

/// DeleteBucket: only if it has no keys; unfinished uploads go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteBucket {
    /// Who and which.
    pub context: WriteContext,
    /// The bucket.
    pub bucket: BucketRef,
}

/// ListBuckets of one owner, in byte order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListBuckets {
    /// Whose.
    pub owner: UserId,
    /// Only names that begin so.
    pub prefix: String,
    /// Only names after this one.
    pub after: String,
    /// At most so many.
    pub max: u32,
}

/// A page of buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketPage {
    /// In byte order.
    pub buckets: Vec<BucketInfo>,
    /// More follow.
    pub is_truncated: bool,
}
