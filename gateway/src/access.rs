//! Who asks, and whether they may: the glue between requests, `auth` and OM.
//!
//! Signing keys and buckets are cached. Neither can make permission stale: every call about a bucket tells OM by which
//! configuration and which state of users it was permitted, OM refuses old ones with the new, and [`with_bucket`] decides
//! again. What cannot be decided again once the body is in (how many datanodes it lies on) is chosen by a bucket that OM
//! gave or confirmed a moment ago.
//!
//! [`with_bucket`]: RequestContext::with_bucket
//!
//! Invariants:
//! * An unknown access key takes the same way as a known one with a wrong signature.
//! * A permission is evaluated for exactly the (bucket, owner) that the call to OM names.
//!
//! Not here: signatures and rules (auth).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use auth::{
    Action, AuthError, Identity, Payload, Presented, Requester, Resource, Settings, SigningKey, Verified,
};
use client::service::CallError;
use http::request::Parts;
use moka::sync::Cache;
use tokio::time::Instant;
use wire::clock::UnixMs;
use wire::limits::BUCKET_CURRENT;
use wire::names::BucketName;
use wire::om::{BucketInfo, BucketRef, GetBucket, GetSigningKey, Rejection, SignV2, UserInfo};

use crate::config::GatewayConfig;
use crate::error::S3Error;
use crate::gateway::Gateway;
use crate::request::RequestContext;
use crate::target::Target;

/// Signing keys kept: one a day for each access key and region name in use.
const KEYS_MAX: u64 = 10_000;
/// Bucket configurations kept.
const BUCKETS_MAX: u64 = 100_000;
/// Times a request is decided again after OM called its knowledge old. Each time it is newer, so more means that
/// somebody changes the bucket faster than we can ask.
const DECISIONS_MAX: usize = 4;

/// Caches and settings behind every decision.
pub(crate) struct Access {
    settings: Settings,
    keys: Cache<KeyScope, Arc<KnownKey>>,
    buckets: Cache<BucketName, KnownBucket>,
    /// The newest state of users and keys that OM told of. Keys fetched before it are fetched again.
    access_version: AtomicU64,
}

/// What a signing key is for. The service is always `s3`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct KeyScope {
    access_key: String,
    day: String,
    region: String,
}

#[derive(Debug, Clone)]
struct KnownBucket {
    info: Arc<BucketInfo>,
    /// OM was asked at this time, and then it was so.
    asked: Instant,
}

struct KnownKey {
    key: SigningKey,
    identity: Arc<Identity>,
    access_version: u64,
}

impl Access {
    pub(crate) fn new(config: &GatewayConfig) -> Self {
        let settings = Settings {
            region: config.region.clone(),
            strict_region: config.strict_region,
            sigv2_presign: config.sigv2_presign,
            ..Settings::default()
        };
        Self {
            settings,
            keys: Cache::new(KEYS_MAX),
            buckets: Cache::new(BUCKETS_MAX),
            access_version: AtomicU64::new(0),
        }
    }

    fn learn_access_version(&self, version: u64) {
        self.access_version.fetch_max(version, Ordering::AcqRel);
    }

    /// Forgets a bucket: it was deleted, or may have been.
    pub(crate) fn forget_bucket(&self, name: &BucketName) {
        self.buckets.invalidate(name);
    }

    /// Remembers what OM said of a bucket when it was asked at that time.
    pub(crate) fn learn_bucket(&self, info: BucketInfo, asked: Instant) -> Arc<BucketInfo> {
        let info = Arc::new(info);
        self.buckets.insert(info.name.clone(), KnownBucket { info: info.clone(), asked });
        info
    }

    /// OM has done what was decided by this bucket's configuration, when it was asked at that time.
    pub(crate) fn confirm_bucket(&self, bucket: &Bucket, asked: Instant) {
        if let Some(known) = self.buckets.get(&bucket.info.name)
            && Arc::ptr_eq(&known.info, &bucket.info)
            && known.asked < asked
        {
            self.buckets.insert(bucket.info.name.clone(), KnownBucket { asked, ..known });
        }
    }
}

/// Whose request it is.
#[derive(Debug)]
pub(crate) enum Caller {
    /// Nobody signed it.
    Anonymous(Payload),
    /// A user did.
    User(User),
}

/// A user whose signature was verified.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) identity: Arc<Identity>,
    pub(crate) verified: Verified,
    access_version: AtomicU64,
}

impl Caller {
    /// What protects the body.
    pub(crate) fn payload(&self) -> &Payload {
        match self {
            Self::Anonymous(payload) => payload,
            Self::User(user) => user.verified.payload(),
        }
    }

    fn requester(&self) -> Requester<'_> {
        match self {
            Self::Anonymous(_) => Requester::Anonymous,
            Self::User(user) => Requester::User(&user.identity),
        }
    }

    fn access_version(&self) -> u64 {
        match self {
            Self::Anonymous(_) => 0,
            Self::User(user) => user.access_version.load(Ordering::Acquire),
        }
    }
}

/// The one authentication function: every request passes it before its operation is looked at.
pub(crate) async fn authenticate(
    gateway: &Gateway,
    parts: &Parts,
    target: &Target,
    now_ms: UnixMs,
) -> Result<Caller, S3Error> {
    match auth::parse(parts, now_ms, &gateway.access.settings)? {
        Presented::Anonymous(payload) => Ok(Caller::Anonymous(payload)),
        Presented::V4(presented) => {
            let scope = KeyScope {
                access_key: presented.access_key().to_owned(),
                day: presented.day().to_owned(),
                region: presented.region().to_owned(),
            };
            let Some(known) = signing_key(gateway, scope).await? else {
                return Err(unknown_key(presented.access_key(), || {
                    presented.verify(parts, &SigningKey::decoy()).map(drop)
                }));
            };
            let verified = presented.verify(parts, &known.key)?;
            Ok(Caller::User(User {
                identity: known.identity.clone(),
                verified,
                access_version: AtomicU64::new(known.access_version),
            }))
        }
        Presented::V2(presented) => {
            let host_bucket = target.bucket.as_deref().filter(|_| target.is_virtual_host);
            let mut refusal = AuthError::AccessDenied;
            for (position, string) in presented.strings_to_sign(parts, host_bucket).into_iter().enumerate() {
                let request =
                    SignV2 { access_key: presented.access_key().to_owned(), string_to_sign: string.clone() };
                let signed = match gateway.session.call(request).await {
                    Ok(signed) => signed,
                    Err(CallError::Rejected(Rejection::NoSuchAccessKey)) => {
                        return Err(unknown_key(presented.access_key(), || {
                            presented.check(&string, &[0; 20]).map(drop)
                        }));
                    }
                    Err(error) => return Err(error.into()),
                };
                match presented.check(&string, &signed.signature) {
                    Ok(verified) => {
                        let identity = Arc::new(identity_of(presented.access_key(), signed.user));
                        let access_version = AtomicU64::new(signed.access_version);
                        return Ok(Caller::User(User { identity, verified, access_version }));
                    }
                    // The first is the form S3 documents: show that one.
                    Err(error) if position == 0 => refusal = error,
                    Err(_) => {}
                }
            }
            Err(refusal.into())
        }
    }
}

/// The refusal for a key nobody has, after as much work as for one that somebody has.
fn unknown_key(access_key: &str, verify: impl FnOnce() -> Result<(), AuthError>) -> S3Error {
    drop(verify());
    AuthError::InvalidAccessKeyId { access_key: access_key.to_owned() }.into()
}

fn identity_of(access_key: &str, user: UserInfo) -> Identity {
    Identity {
        access_key: access_key.to_owned(),
        user_id: user.id.0,
        display_name: user.display_name,
        email: user.email,
    }
}

/// From the cache or from OM. None: no such access key.
async fn signing_key(gateway: &Gateway, scope: KeyScope) -> Result<Option<Arc<KnownKey>>, S3Error> {
    let access = &gateway.access;
    if let Some(known) = access.keys.get(&scope)
        && known.access_version >= access.access_version.load(Ordering::Acquire)
    {
        return Ok(Some(known));
    }
    let request = GetSigningKey {
        access_key: scope.access_key.clone(),
        day: scope.day.clone(),
        region: scope.region.clone(),
        service: "s3".to_owned(),
    };
    match gateway.session.call(request).await {
        Ok(answer) => {
            access.learn_access_version(answer.access_version);
            let known = Arc::new(KnownKey {
                key: SigningKey::from_bytes(answer.key),
                identity: Arc::new(identity_of(&scope.access_key, answer.user)),
                access_version: answer.access_version,
            });
            access.keys.insert(scope, known.clone());
            Ok(Some(known))
        }
        Err(CallError::Rejected(Rejection::NoSuchAccessKey)) => {
            access.keys.invalidate(&scope);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A bucket that the caller may use for what it asked.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    /// Its configuration.
    pub(crate) info: Arc<BucketInfo>,
    /// For calls to OM: what was decided by.
    pub(crate) reference: BucketRef,
}

/// How work inside [`RequestContext::with_bucket`] ended early: by OM, which may ask to decide again, or by ourselves.
#[derive(Debug)]
pub(crate) enum Interrupted {
    /// OM did not do it.
    Call(CallError),
    /// We refuse.
    Refused(S3Error),
}

impl From<CallError> for Interrupted {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<S3Error> for Interrupted {
    fn from(error: S3Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Interrupted> for S3Error {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Call(error) => error.into(),
            Interrupted::Refused(error) => error,
        }
    }
}

impl RequestContext {
    /// Permission for something that is about no bucket.
    pub(crate) fn authorize_service(&self, action: Action) -> Result<(), S3Error> {
        Ok(auth::authorize(self.caller.requester(), action, Resource::Service)?)
    }

    /// The request's bucket, if the caller may do `action` on it. For checks before a body is read: calls to OM go through
    /// [`Self::with_bucket`].
    pub(crate) async fn bucket(&self, action: Action) -> Result<Bucket, S3Error> {
        self.bucket_named(self.bucket_name()?, action).await
    }

    /// As [`Self::bucket`], for another bucket than the request's: the source of a copy.
    pub(crate) async fn bucket_named(&self, name: &BucketName, action: Action) -> Result<Bucket, S3Error> {
        let access = &self.gateway.access;
        let info = match access.buckets.get(name) {
            Some(known) => known.info,
            None => self.fetch_bucket(name).await?,
        };
        self.permit(info, action)
    }

    /// As [`Self::bucket`], as it was within [`BUCKET_CURRENT`]: for what is chosen before the body and holds after it.
    pub(crate) async fn current_bucket(&self, action: Action) -> Result<Bucket, S3Error> {
        let name = self.bucket_name()?;
        let info = match self.gateway.access.buckets.get(name) {
            Some(known) if known.asked.elapsed() < BUCKET_CURRENT => known.info,
            Some(_) | None => self.fetch_bucket(name).await?,
        };
        self.permit(info, action)
    }

    /// As [`Self::bucket`], asking OM anew: for answers that consist of the configuration itself.
    pub(crate) async fn fresh_bucket(&self, action: Action) -> Result<Bucket, S3Error> {
        let info = self.fetch_bucket(self.bucket_name()?).await?;
        self.permit(info, action)
    }

    async fn fetch_bucket(&self, name: &BucketName) -> Result<Arc<BucketInfo>, S3Error> {
        let asked = Instant::now();
        match self.gateway.session.call(GetBucket { name: name.clone() }).await {
            Ok(info) => Ok(self.gateway.access.learn_bucket(info, asked)),
            Err(CallError::Rejected(Rejection::NoSuchBucket)) => {
                self.gateway.access.forget_bucket(name);
                Err(S3Error::no_such_bucket(name.as_str()))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn permit(&self, info: Arc<BucketInfo>, action: Action) -> Result<Bucket, S3Error> {
        let owner = info.owner.id.0.as_str();
        let resource = match action.scope() {
            auth::Scope::Object => Resource::Object { owner },
            auth::Scope::Bucket | auth::Scope::Service => Resource::Bucket { owner },
        };
        auth::authorize(self.caller.requester(), action, resource)?;
        if let Some(expected) = self.header("x-amz-expected-bucket-owner")
            && expected != owner
        {
            return Err(S3Error::access_denied());
        }
        let reference = BucketRef {
            name: info.name.clone(),
            id: info.id,
            config_version: info.config_version,
            access_version: self.caller.access_version(),
        };
        Ok(Bucket { info, reference })
    }

    /// Runs `work` with the request's bucket if the caller may do `action` on it; decides and runs again if OM says that
    /// the bucket or the users have changed since.
    pub(crate) async fn with_bucket<T, E, Fut>(
        &self,
        action: Action,
        work: impl Fn(Bucket) -> Fut,
    ) -> Result<T, S3Error>
    where
        E: Into<Interrupted>,
        Fut: Future<Output = Result<T, E>>,
    {
        Ok(self.with_bucket_named(self.bucket_name()?, action, work).await?)
    }

    /// As [`Self::with_bucket`], for any bucket. Nest two for a copy: each works off what concerns its own bucket and
    /// hands the rest up.
    pub(crate) async fn with_bucket_named<T, E, Fut>(
        &self,
        name: &BucketName,
        action: Action,
        work: impl Fn(Bucket) -> Fut,
    ) -> Result<T, Interrupted>
    where
        E: Into<Interrupted>,
        Fut: Future<Output = Result<T, E>>,
    {
        for _ in 1..DECISIONS_MAX {
            let bucket = self.bucket_named(name, action).await?;
            let asked = Instant::now();
            let interrupted = match work(bucket).await {
                Ok(done) => return Ok(done),
                Err(error) => error.into(),
            };
            if !self.may_decide_again(name, &interrupted, asked).await? {
                return Err(interrupted);
            }
        }
        let bucket = self.bucket_named(name, action).await?;
        work(bucket).await.map_err(Into::into)
    }

    /// Takes in what OM said is newer. False: nothing is.
    async fn may_decide_again(
        &self,
        name: &BucketName,
        interrupted: &Interrupted,
        asked: Instant,
    ) -> Result<bool, S3Error> {
        let access = &self.gateway.access;
        let Interrupted::Call(CallError::Rejected(rejection)) = interrupted else { return Ok(false) };
        match rejection {
            Rejection::StaleBucket(info) => {
                access.learn_bucket(info.as_ref().clone(), asked);
                Ok(info.name == *name)
            }
            Rejection::StaleAccess { access_version } => {
                access.learn_access_version(*access_version);
                self.authenticate_again().await?;
                Ok(true)
            }
            Rejection::NoSuchBucket => {
                access.forget_bucket(name);
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Users have changed: is this request still its sender's, and is that still the same user?
    async fn authenticate_again(&self) -> Result<(), S3Error> {
        let Caller::User(user) = &self.caller else { return Ok(()) };
        match authenticate(&self.gateway, &self.parts, &self.target, self.received_ms).await? {
            Caller::User(now) if now.identity.user_id == user.identity.user_id => {
                user.access_version.store(now.access_version.into_inner(), Ordering::Release);
                Ok(())
            }
            Caller::User(_) | Caller::Anonymous(_) => Err(S3Error::access_denied()),
        }
    }
}
