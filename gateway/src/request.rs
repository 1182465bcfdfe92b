//! One request, as its handler sees it.
//!
//! Not here: how it came to be (see `dispatch`), its body (see `request_body`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::request::Parts;
use wire::clock::UnixMs;
use wire::names::{BucketName, KeyName};
use wire::om::{UserId, UserInfo};

use crate::access::{Caller, User};
use crate::error::S3Error;
use crate::gateway::Gateway;
use crate::operation::Operation;
use crate::query::Query;
use crate::target::Target;

/// An authenticated request. Shared by reference count: work that outlives the connection keeps a clone.
pub(crate) struct RequestContext {
    /// What all requests share.
    pub(crate) gateway: Arc<Gateway>,
    /// When its head arrived.
    pub(crate) received_ms: UnixMs,
    /// What it asks for.
    pub(crate) operation: Operation,
    /// Its head, untouched.
    pub(crate) parts: Parts,
    /// Its decoded query.
    pub(crate) query: Query,
    /// Bucket and key.
    pub(crate) target: Target,
    /// Its name if it is a legal one.
    pub(crate) bucket_name: Option<BucketName>,
    /// Whose it is.
    pub(crate) caller: Caller,
    /// See [`Self::witness`]; 0 while it is not known.
    pub(crate) witness: AtomicU64,
    /// The index at which the version that is read was written; 0 while it is not known. In witness mode only.
    pub(crate) version_witness: AtomicU64,
}

impl RequestContext {
    /// Its headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// A header as text. One that is not text counts as absent; `headers` reads those that may hold any bytes.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Notes the OM index at which the request took its place among all others. Of several, the last counts.
    pub(crate) fn witness(&self, index: u64) {
        self.witness.store(index, Ordering::Release);
    }

    /// The bucket's name; refuses an illegal one.
    pub(crate) fn bucket_name(&self) -> Result<&BucketName, S3Error> {
        match &self.bucket_name {
            Some(name) => Ok(name),
            None => Err(S3Error::invalid_bucket_name(self.target.bucket.as_deref().unwrap_or(""))),
        }
    }

    /// The key.
    pub(crate) fn key(&self) -> Result<&KeyName, S3Error> {
        self.target
            .key
            .as_ref()
            .ok_or_else(|| S3Error::invalid_argument("The request names no key.", "key", ""))
    }

    /// Who signed it; anonymous requests are denied.
    pub(crate) fn user(&self) -> Result<&User, S3Error> {
        match &self.caller {
            Caller::User(user) => Ok(user),
            Caller::Anonymous(_) => Err(S3Error::access_denied()),
        }
    }

    /// The caller as the owner of what it makes.
    pub(crate) fn owner(&self) -> Result<UserInfo, S3Error> {
        let identity = &self.user()?.identity;
        Ok(UserInfo {
            id: UserId(identity.user_id.clone()),
            display_name: identity.display_name.clone(),
            email: identity.email.clone(),
        })
    }

    /// Refuses a `versionId` other than the one version that a key of an unversioned bucket has.
    pub(crate) fn check_version(&self) -> Result<(), S3Error> {
        match self.query.get("versionId") {
            Some("") => {
                Err(S3Error::invalid_argument("Version id cannot be the empty string", "versionId", ""))
            }
            version => check_version_id(version, self.target.key.as_ref().map_or("", |key| key.as_str())),
        }
    }
}

/// As [`RequestContext::check_version`], for any key.
pub(crate) fn check_version_id(version: Option<&str>, key: &str) -> Result<(), S3Error> {
    match version {
        None | Some("null") => Ok(()),
        Some(other) => Err(S3Error::no_such_version(key, other)),
    }
}
