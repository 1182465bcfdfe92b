//! Users and access keys: who a caller is, and what proves it.
//!
//! Secrets stay in OM: a gateway is given what verifies one scope's signatures.

use serde::{Deserialize, Serialize};

/// A canonical user id, as in `<Owner><ID>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Canonical id.
    pub id: UserId,
    /// As in `<Owner><DisplayName>`.
    pub display_name: String,
    /// For grants by e-mail.
    pub email: Option<String>,
}

/// A string that never shows in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Create or replace a user and its access key. From the configuration, at start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutUser {
    /// The user.
    pub user: UserInfo,
    /// Access key id.
    pub access_key: String,
    /// Its secret. OM keeps it sealed by the cluster key.
    pub secret: Secret,
}

/// Drop access keys of the configuration that it no longer names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainAccessKeys {
    /// Those that stay.
    pub access_keys: Vec<String>,
}

/// The SigV4 signing key of (access key, day, region, service). The secret stays in OM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSigningKey {
    /// Access key id.
    pub access_key: String,
    /// `YYYYMMDD`.
    pub day: String,
    /// Region of the credential scope.
    pub region: String,
    /// Service of the credential scope: `s3`.
    pub service: String,
}

/// Answer to [`GetSigningKey`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// Whose.
    pub user: UserInfo,
    /// HMAC chain's end.
    pub key: [u8; 32],
    /// For [`BucketRef::access_version`](super::BucketRef::access_version).
    pub access_version: u64,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({}, ***)", self.user.id.0)
    }
}

/// HMAC-SHA1 of a SigV2 string to sign, for presigned URLs of old clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignV2 {
    /// Access key id.
    pub access_key: String,
    /// What to sign.
    pub string_to_sign: String,
}

/// Answer to [`SignV2`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedV2 {
    /// Whose.
    pub user: UserInfo,
    /// The signature.
    pub signature: [u8; 20],
    /// For [`BucketRef::access_version`](super::BucketRef::access_version).
    pub access_version: u64,
}
