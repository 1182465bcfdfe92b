//! A small OM and a signing client, for this crate's tests.
//!
//! The OM keeps buckets and keys in maps and records every call by name, so that tests can say what a request must not reach.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use client::service::{CallError, Datanodes, OmService};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wire::block::Replication;
use wire::checksum::Etag;
use wire::ids::{BucketId, SessionId, VersionId, WriteId};
use wire::names::BucketName;
use wire::om::*;
use wire::status::{Failure, Status};

use crate::config::GatewayConfig;
use crate::dispatch;
use crate::gateway::Gateway;
use crate::request_body::Source;

/// The first user's key id; its secret is `secret-of-` and the key id. So for the second, `ALT`.
pub(crate) const MAIN: &str = "MAIN";
/// The second user's key id.
pub(crate) const ALT: &str = "ALT";

/// An OM of maps.
#[derive(Default)]
pub(crate) struct FakeOm {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<&'static str>,
    buckets: BTreeMap<BucketName, BucketInfo>,
    keys: BTreeMap<(BucketId, String), KeyHead>,
    uploads: BTreeMap<WriteId, UploadInfo>,
    next_bucket: u64,
    access_version: u64,
    /// Grows with every write.
    index: u64,
    /// What was committed, in order.
    commits: Vec<CommitKey>,
    /// Answered to every call, if set.
    failure: Option<Status>,
    lends_nothing: bool,
    /// Every bucket is as full as it may be.
    is_quota_full: bool,
}

impl FakeOm {
    /// Names of the calls since the last look.
    pub(crate) fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// As if somebody else had changed the bucket's configuration.
    pub(crate) fn touch_bucket(&self, name: &str) {
        let name = BucketName::new(name).unwrap();
        self.state.lock().buckets.get_mut(&name).unwrap().config_version += 1;
    }

    /// As if somebody else had given the bucket to another user.
    pub(crate) fn give_bucket(&self, name: &str, to: &str) {
        let name = BucketName::new(name).unwrap();
        let mut state = self.state.lock();
        let bucket = state.buckets.get_mut(&name).unwrap();
        bucket.owner = user(to);
        bucket.config_version += 1;
    }

    /// As if an operator had changed the bucket's default replication.
    pub(crate) fn set_replication(&self, name: &str, replication: Replication) {
        let name = BucketName::new(name).unwrap();
        let mut state = self.state.lock();
        let bucket = state.buckets.get_mut(&name).unwrap();
        bucket.replication = replication;
        bucket.config_version += 1;
    }

    /// What was committed since the last look.
    pub(crate) fn take_commits(&self) -> Vec<CommitKey> {
        std::mem::take(&mut self.state.lock().commits)
    }

    /// Asked for loans, it says that none can be had now, as OM does without datanodes.
    pub(crate) fn lends_nothing(&self) {
        self.state.lock().lends_nothing = true;
    }

    /// Every bucket is as full as it may be.
    pub(crate) fn fill_quotas(&self) {
        self.state.lock().is_quota_full = true;
    }

    /// Every call fails so from now on.
    pub(crate) fn fail(&self, status: Option<Status>) {
        self.state.lock().failure = status;
    }

    /// As if users had changed.
    pub(crate) fn touch_access(&self) {
        self.state.lock().access_version += 1;
    }

    /// Puts a key without bytes.
    pub(crate) fn put_key(&self, bucket: &str, key: &str) {
        let mut state = self.state.lock();
        let bucket = state.buckets[&BucketName::new(bucket).unwrap()].clone();
        let head = KeyHead {
            size: 5,
            etag: Etag::whole([0xab; 16]),
            modified_ms: 1_767_322_645_678,
            owner: bucket.owner.id.clone(),
            storage_class: StorageClass::Standard,
            checksum: None,
        };
        state.keys.insert((bucket.id, key.to_owned()), head);
    }
}

fn user(access_key: &str) -> UserInfo {
    let name = access_key.to_lowercase();
    UserInfo { id: UserId(format!("{name}-id")), display_name: name, email: None }
}

fn secret(access_key: &str) -> String {
    format!("secret-of-{access_key}")
}

impl State {
    fn check(&self, reference: &BucketRef) -> Result<BucketInfo, Rejection> {
        let info = self.buckets.get(&reference.name).ok_or(Rejection::NoSuchBucket)?;
        if info.id != reference.id || info.config_version != reference.config_version {
            return Err(Rejection::StaleBucket(Box::new(info.clone())));
        }
        if reference.access_version < self.access_version {
            return Err(Rejection::StaleAccess { access_version: self.access_version });
        }
        Ok(info.clone())
    }

    fn list(&self, bucket: BucketId, request: &ListKeys) -> KeyPage {
        let mut items: Vec<ListItem> = Vec::new();
        let mut is_truncated = false;
        for ((id, key), head) in &self.keys {
            if *id != bucket || !key.starts_with(&request.prefix) {
                continue;
            }
            let cut = match request.delimiter.as_str() {
                "" => None,
                delimiter => key[request.prefix.len()..]
                    .find(delimiter)
                    .map(|at| key[..request.prefix.len() + at + delimiter.len()].to_owned()),
            };
            let name = cut.clone().unwrap_or_else(|| key.clone());
            let is_known = matches!(items.last(), Some(ListItem::Prefix(last)) if Some(last) == cut.as_ref());
            if name <= request.after || is_known {
                continue;
            }
            if items.len() == request.max as usize {
                is_truncated = true;
                break;
            }
            items.push(match cut {
                Some(prefix) => ListItem::Prefix(prefix),
                None => ListItem::Key(wire::names::KeyName::new(key).unwrap(), head.clone()),
            });
        }
        KeyPage { items, is_truncated, read_index: self.index }
    }

    fn answer(&mut self, request: OmRequest) -> Result<OmReply, CallError> {
        self.calls.push(request.name());
        if let Some(status) = self.failure {
            return Err(Failure::new(status, "open /var/lib/x: permission denied").into());
        }
        match request {
            OmRequest::TakeLoan(_) if self.lends_nothing => {
                Err(Failure::new(Status::Retry, "a lease of block ids is awaited").into())
            }
            OmRequest::CheckQuota(request) => {
                self.check(&request.bucket)?;
                let (of, unit, limit) = ("bucket bucket".to_owned(), QuotaUnit::Bytes, 10);
                if self.is_quota_full {
                    return Err(Rejection::QuotaExceeded { of, unit, limit, wanted: request.bytes }.into());
                }
                Ok(OmReply::CheckQuota(()))
            }
            OmRequest::CommitKey(request) => {
                let bucket = self.check(&request.bucket)?;
                self.index += 1;
                let version = VersionId { index: self.index, ordinal: 0 };
                let head = KeyHead {
                    size: request.size,
                    etag: request.etag,
                    modified_ms: 1_767_322_645_678,
                    owner: request.owner.clone(),
                    storage_class: request.storage_class,
                    checksum: request.checksum,
                };
                self.keys.insert((bucket.id, request.key.as_str().to_owned()), head);
                self.commits.push(request);
                Ok(OmReply::CommitKey(KeyCommitted { version, modified_ms: 1_767_322_645_678 }))
            }
            OmRequest::OpenSession(_) => Ok(OmReply::OpenSession(SessionId(1))),
            OmRequest::RenewSession(_) => Ok(OmReply::RenewSession(())),
            OmRequest::EndSession(_) => Ok(OmReply::EndSession(())),
            OmRequest::GetSigningKey(request) => {
                if ![MAIN, ALT].contains(&request.access_key.as_str()) {
                    return Err(Rejection::NoSuchAccessKey.into());
                }
                Ok(OmReply::GetSigningKey(SigningKey {
                    user: user(&request.access_key),
                    key: signing_key(&request.access_key, &request.day, &request.region),
                    access_version: self.access_version,
                }))
            }
            OmRequest::SignV2(request) => {
                if ![MAIN, ALT].contains(&request.access_key.as_str()) {
                    return Err(Rejection::NoSuchAccessKey.into());
                }
                let secret = auth::SecretKey::new(secret(&request.access_key));
                Ok(OmReply::SignV2(SignedV2 {
                    user: user(&request.access_key),
                    signature: auth::sign_v2(&secret, &request.string_to_sign),
                    access_version: self.access_version,
                }))
            }
            OmRequest::CreateBucket(request) => {
                if let Some(known) = self.buckets.get(&request.name) {
                    return Err(Rejection::BucketExists { owner: known.owner.id.clone() }.into());
                }
                self.next_bucket += 1;
                let info = BucketInfo {
                    id: BucketId(self.next_bucket),
                    name: request.name.clone(),
                    owner: request.owner,
                    created_ms: 0,
                    location: request.location,
                    config_version: 1,
                    replication: Replication::One,
                };
                self.buckets.insert(request.name, info.clone());
                Ok(OmReply::CreateBucket(info))
            }
            OmRequest::GetBucket(request) => {
                let info = self.buckets.get(&request.name).cloned().ok_or(Rejection::NoSuchBucket)?;
                Ok(OmReply::GetBucket(info))
            }
            OmRequest::DeleteBucket(request) => {
                let info = self.check(&request.bucket)?;
                if self.keys.keys().any(|(id, _)| *id == info.id) {
                    return Err(Rejection::BucketNotEmpty.into());
                }
                self.buckets.remove(&info.name);
                Ok(OmReply::DeleteBucket(()))
            }
            OmRequest::ListBuckets(request) => {
                let mut buckets: Vec<_> = self
                    .buckets
                    .values()
                    .filter(|info| {
                        info.owner.id == request.owner && info.name.as_str() > request.after.as_str()
                    })
                    .filter(|info| info.name.as_str().starts_with(&request.prefix))
                    .cloned()
                    .collect();
                let is_truncated = buckets.len() > request.max as usize;
                buckets.truncate(request.max as usize);
                Ok(OmReply::ListBuckets(BucketPage { buckets, is_truncated }))
            }
            OmRequest::ListKeys(request) => {
                let info = self.check(&request.bucket)?;
                Ok(OmReply::ListKeys(self.list(info.id, &request)))
            }
            OmRequest::LookupKey(request) => {
                let info = self.check(&request.bucket)?;
                let head = self.keys.get(&(info.id, request.key.as_str().to_owned()));
                let head = head.cloned().ok_or(Rejection::NoSuchKey)?;
                let info = KeyInfo {
                    version: VersionId::default(),
                    head,
                    attributes: KeyAttributes::default(),
                    checksums: Vec::new(),
                    parts: Vec::new(),
                    replication: Replication::One,
                    write_id: WriteId::default(),
                    part_checksums: Default::default(),
                };
                Ok(OmReply::LookupKey(KeyFound { info, layout: None, read_index: self.index }))
            }
            OmRequest::DeleteKeys(request) => {
                let info = self.check(&request.bucket)?;
                assert!(request.keys.len() <= DELETE_KEYS_PER_COMMAND);
                let mut outcomes = Vec::new();
                for (key, condition) in request.keys {
                    let row = (info.id, key.as_str().to_owned());
                    let current = self.keys.get(&row).map(|head| head.etag);
                    outcomes.push(match condition {
                        WriteCondition::IfMatch(etag) if current.is_some_and(|current| current != etag) => {
                            Err(Rejection::PreconditionFailed { current })
                        }
                        WriteCondition::IfMatch(_) | WriteCondition::IfPresent if current.is_none() => {
                            Err(Rejection::NoSuchKey)
                        }
                        _ => {
                            self.keys.remove(&row);
                            Ok(())
                        }
                    });
                }
                self.index += 1;
                Ok(OmReply::DeleteKeys(KeysDeleted { outcomes, index: self.index }))
            }
            OmRequest::CreateUpload(request) => {
                self.check(&request.bucket)?;
                let upload = request.context.write_id();
                let info = UploadInfo {
                    upload,
                    key: request.key,
                    initiated_ms: 0,
                    owner: request.owner,
                    storage_class: request.storage_class,
                    replication: request.replication,
                    checksum: request.checksum,
                };
                self.uploads.insert(upload, info);
                Ok(OmReply::CreateUpload(upload))
            }
            OmRequest::ListUploads(request) => {
                self.check(&request.bucket)?;
                let items = self.uploads.values().cloned().map(UploadItem::Upload).collect();
                Ok(OmReply::ListUploads(UploadPage { items, is_truncated: false }))
            }
            OmRequest::ListParts(request) => {
                self.check(&request.bucket)?;
                let upload = self.uploads.get(&request.upload).cloned().ok_or(Rejection::NoSuchUpload)?;
                Ok(OmReply::ListParts(PartPage { upload, parts: Vec::new(), is_truncated: false }))
            }
            OmRequest::AbortUpload(request) => {
                self.check(&request.bucket)?;
                self.uploads.remove(&request.upload).ok_or(Rejection::NoSuchUpload)?;
                Ok(OmReply::AbortUpload(()))
            }
            OmRequest::CompleteUpload(request) => {
                self.check(&request.bucket)?;
                self.uploads.get(&request.upload).ok_or(Rejection::NoSuchUpload)?;
                let etag = Etag { md5: [1; 16], parts: request.parts.len() as u32 };
                let version = VersionId::default();
                Ok(OmReply::CompleteUpload(UploadCompleted {
                    version,
                    etag,
                    checksum: request.expected,
                    size: 1,
                }))
            }
            other => {
                let text = format!("the tests' om does not answer {}", other.name());
                Err(Failure::new(Status::Internal, text).into())
            }
        }
    }
}

#[async_trait]
impl OmService for FakeOm {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        self.state.lock().answer(request)
    }
}

/// A gateway over a fresh [`FakeOm`].
pub(crate) async fn gateway_with(config: GatewayConfig) -> (Arc<Gateway>, Arc<FakeOm>) {
    let om = Arc::new(FakeOm::default());
    let gateway = Gateway::new(config, om.clone(), Arc::new(Datanodes::local_only())).await.unwrap();
    (gateway, om)
}

/// As [`gateway_with`], with the defaults.
pub(crate) async fn gateway() -> (Arc<Gateway>, Arc<FakeOm>) {
    gateway_with(GatewayConfig::default()).await
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    /// The text of the first element of that name.
    pub(crate) fn element(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    }

    /// `404 NoSuchKey`, or the bare status.
    pub(crate) fn verdict(&self) -> String {
        match self.element("Code") {
            Some(code) => format!("{} {code}", self.status.as_u16()),
            None => self.status.as_u16().to_string(),
        }
    }

    /// The texts of all elements of that name.
    pub(crate) fn elements(&self, name: &str) -> Vec<&str> {
        let open = format!("<{name}>");
        let pieces = self.body.split(open.as_str()).skip(1);
        pieces.filter_map(|rest| rest.split_once(&format!("</{name}>"))).map(|(text, _)| text).collect()
    }
}

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signing {
    Header,
    Presigned,
    PresignedV2,
    None,
}

/// A request to be made.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a str,
    pub(crate) uri: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) body: &'a [u8],
    pub(crate) access_key: &'a str,
    pub(crate) secret: String,
    pub(crate) signing: Signing,
    /// `x-amz-content-sha256`; None: the body's.
    pub(crate) payload: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// A request of the first user, signed in its header.
    pub(crate) fn new(method: &'a str, uri: &'a str) -> Self {
        Self {
            method,
            uri,
            headers: Vec::new(),
            body: b"",
            access_key: MAIN,
            secret: secret(MAIN),
            signing: Signing::Header,
            payload: None,
        }
    }

    /// By the second user.
    pub(crate) fn by(mut self, access_key: &'a str) -> Self {
        (self.access_key, self.secret) = (access_key, secret(access_key));
        self
    }

    pub(crate) fn signing(mut self, signing: Signing) -> Self {
        self.signing = signing;
        self
    }

    pub(crate) fn header(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn body(mut self, body: &'a [u8]) -> Self {
        self.body = body;
        self
    }

    /// Makes it and reads the answer.
    pub(crate) async fn send(&self, gateway: &Arc<Gateway>) -> Answer {
        let (parts, ()) = self.request().into_parts();
        let body = Source::memory(Bytes::copy_from_slice(self.body));
        let response = dispatch::answer(gateway.clone(), parts, body).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// The request as bytes for a socket.
    pub(crate) fn wire(&self) -> Vec<u8> {
        let request = self.request();
        let mut out = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            out += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        out += &format!("content-length: {}\r\n\r\n", self.body.len());
        [out.as_bytes(), self.body].concat()
    }

    fn request(&self) -> Request<()> {
        let date = stamp(wire::clock::now_ms());
        let host = "127.0.0.1:9000";
        let hash = match (self.payload, self.signing) {
            (Some(mode), _) => mode.to_owned(),
            (None, Signing::Presigned) => "UNSIGNED-PAYLOAD".to_owned(),
            (None, _) => hex::encode(Sha256::digest(self.body)),
        };
        let mut headers: Vec<(String, String)> =
            self.headers.iter().map(|(name, value)| (name.to_lowercase(), (*value).to_owned())).collect();
        headers.push(("host".to_owned(), host.to_owned()));
        let scope = format!("{}/us-east-1/s3/aws4_request", &date[..8]);
        let mut uri = self.uri.to_owned();
        match self.signing {
            Signing::Header => {
                headers.push(("x-amz-date".to_owned(), date.clone()));
                headers.push(("x-amz-content-sha256".to_owned(), hash.clone()));
                let (names, signature) = self.sign(&uri, &headers, &hash, &date, &scope);
                let value = format!(
                    "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
                    self.access_key
                );
                headers.push(("authorization".to_owned(), value));
            }
            Signing::Presigned => {
                if self.payload.is_some() {
                    headers.push(("x-amz-content-sha256".to_owned(), hash.clone()));
                }
                let mut names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                let glue = if uri.contains('?') { '&' } else { '?' };
                uri += &format!(
                    "{glue}X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F{}&X-Amz-Date={date}&X-Amz-Expires=60&X-Amz-SignedHeaders={}",
                    self.access_key,
                    scope.replace('/', "%2F"),
                    names.join("%3B"),
                );
                let (_, signature) = self.sign(&uri, &headers, &hash, &date, &scope);
                uri += &format!("&X-Amz-Signature={signature}");
            }
            Signing::PresignedV2 => {
                if let Some(mode) = self.payload {
                    headers.push(("x-amz-content-sha256".to_owned(), mode.to_owned()));
                }
                let glue = if uri.contains('?') { '&' } else { '?' };
                let expires = wire::clock::now_ms() / 1000 + 60;
                uri += &format!("{glue}AWSAccessKeyId={}&Expires={expires}&Signature=", self.access_key);
                let unsigned = build(self.method, &format!("{uri}x"), &headers).into_parts().0;
                let presented = auth::parse(&unsigned, wire::clock::now_ms(), &auth::Settings::default());
                // What cannot be presented so is sent with a wrong signature.
                let signature = match presented {
                    Ok(auth::Presented::V2(presented)) => {
                        let string = &presented.strings_to_sign(&unsigned, None)[0];
                        let signature = auth::sign_v2(&auth::SecretKey::new(self.secret.clone()), string);
                        use base64::Engine;
                        base64::engine::general_purpose::STANDARD.encode(signature)
                    }
                    _ => "x".to_owned(),
                };
                uri += &signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            }
            Signing::None => {
                if let Some(mode) = self.payload {
                    headers.push(("x-amz-content-sha256".to_owned(), mode.to_owned()));
                }
            }
        }
        build(self.method, &uri, &headers)
    }

    /// Names of the signed headers, and the SigV4 signature.
    fn sign(
        &self,
        uri: &str,
        headers: &[(String, String)],
        hash: &str,
        date: &str,
        scope: &str,
    ) -> (String, String) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let mut pairs: Vec<String> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
            .collect();
        pairs.sort();
        let mut sorted = headers.to_vec();
        sorted.sort();
        let lines: String = sorted.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names = sorted.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let canonical = format!("{}\n{path}\n{}\n{lines}\n{names}\n{hash}", self.method, pairs.join("&"));
        let string = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
        let mut parts = scope.split('/');
        let (day, region) = (parts.next().unwrap(), parts.next().unwrap());
        let key = chain(&self.secret, day, region);
        (names, hex::encode(hmac(&key, string.as_bytes())))
    }
}

fn build(method: &str, uri: &str, headers: &[(String, String)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.body(()).unwrap()
}

fn stamp(now_ms: u64) -> String {
    let time = jiff::Timestamp::from_millisecond(now_ms as i64).unwrap();
    time.strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn chain(secret: &str, day: &str, region: &str) -> [u8; 32] {
    let mut key = hmac(format!("AWS4{secret}").as_bytes(), day.as_bytes());
    for piece in [region, "s3", "aws4_request"] {
        key = hmac(&key, piece.as_bytes());
    }
    key
}

fn signing_key(access_key: &str, day: &str, region: &str) -> [u8; 32] {
    chain(&secret(access_key), day, region)
}
