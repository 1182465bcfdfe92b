//! The server under test: one bucket, one prefix, the operations that are measured, the cleaning afterwards.
//!
//! WebDAV mode is the same client without signatures: the path is `/bucket/key` all the same. Buckets do not exist
//! there; the server makes directories as needed, or the operator has.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use s3_client::{Config, Credentials, Endpoint, Error, ListRequest, PayloadMode, S3Client};

use super::content::{Check, Content};
use super::stats::{Done, Failure};
use super::{BenchArgs, PayloadArg};
use crate::reach::authority;
use crate::s3_trust::S3Trust;

/// Keys a page of a listing.
const LIST_KEYS: u32 = 1000;

/// What is the same for every connection of a run.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// With the first endpoint.
    pub(super) config: Config,
    /// All of them; connections go round.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) bucket: String,
    /// Every key begins with this; it is new for each run.
    pub(super) prefix: String,
    pub(super) webdav: bool,
    pub(super) verify: bool,
    pub(super) seed: u64,
}

/// A client with the settings it was made from.
#[derive(Clone)]
pub(super) struct Target {
    settings: Arc<Settings>,
    client: S3Client,
}

/// The settings that the arguments ask for.
pub(super) fn settings(args: &BenchArgs) -> anyhow::Result<Settings> {
    let endpoints: Vec<Endpoint> =
        args.endpoint.iter().map(|endpoint| endpoint.parse()).collect::<Result<_, _>>()?;
    let mut config = Config::new(endpoints.first().context("--endpoint is empty")?.clone());
    if endpoints.iter().any(Endpoint::is_https) {
        config.secure = Some(Arc::new(S3Trust::open(&authority(args.ca.clone(), None, None)?, None)?));
    }
    // A retry would hide a failure and lengthen a latency.
    config.attempts = 1;
    config.response_timeout = Duration::try_from(args.timeout)?;
    config.payload = match args.payload {
        PayloadArg::Signed => PayloadMode::Signed,
        PayloadArg::Unsigned => PayloadMode::Unsigned,
    };
    if !args.webdav {
        let (Some(access_key), Some(secret_key)) = (&args.access_key, &args.secret_key) else {
            bail!(
                "needs --access-key and --secret-key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY \
                 (--webdav measures a server without signatures)"
            );
        };
        let credentials = Credentials::new(access_key, secret_key);
        config.credentials = Some(match &args.session_token {
            Some(token) => credentials.with_session_token(token),
            None => credentials,
        });
        if let Some(region) = args.region.clone().or_else(|| std::env::var("AWS_DEFAULT_REGION").ok()) {
            config.region = region;
        }
    }
    Ok(Settings {
        config,
        endpoints,
        bucket: args.bucket.clone(),
        prefix: format!("bench-{:016x}/", wire::random::u64()),
        webdav: args.webdav,
        verify: args.verify,
        seed: args.seed,
    })
}

impl Target {
    /// A target at the first endpoint, with a pool of its own of `connections`.
    pub(super) fn connect(settings: Settings, connections: usize) -> Self {
        let client = S3Client::new(Config { connections, ..settings.config.clone() });
        Self { settings: Arc::new(settings), client }
    }

    /// One for each of the numbered connections, at the endpoint that is its turn, over pools of their own.
    pub(super) async fn open_each(&self, numbers: &[usize]) -> anyhow::Result<Vec<Self>> {
        let endpoints = &self.settings.endpoints;
        let mut pools = Vec::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let connections = numbers.iter().filter(|number| *number % endpoints.len() == at).count();
            let endpoint = endpoint.clone();
            let client = S3Client::new(Config { endpoint, connections, ..self.settings.config.clone() });
            let pool = Self { settings: Arc::clone(&self.settings), client };
            pool.open(connections).await?;
            pools.push(pool);
        }
        Ok(numbers.iter().map(|number| pools[number % endpoints.len()].clone()).collect())
    }

    async fn open(&self, connections: usize) -> anyhow::Result<()> {
        self.client.connect(connections).await.context("open connections")
    }

    pub(super) fn content(&self, size: u64) -> Arc<Content> {
        let signed = !self.settings.webdav && self.settings.config.payload == PayloadMode::Signed;
        Arc::new(Content::new(size, self.settings.seed, signed))
    }

    pub(super) fn seed(&self) -> u64 {
        self.settings.seed
    }

    /// Makes the bucket if it is absent; true if it did.
    pub(super) async fn prepare(&self) -> anyhow::Result<bool> {
        let bucket = &self.settings.bucket;
        if self.settings.webdav {
            self.open(1).await?;
            return Ok(false);
        }
        match self.client.head_bucket(bucket).await {
            Ok(()) => Ok(false),
            Err(error) if error.is_not_found() => {
                let region = Some(self.settings.config.region.as_str());
                self.client
                    .create_bucket(bucket, region)
                    .await
                    .with_context(|| format!("create bucket {bucket}"))?;
                Ok(true)
            }
            Err(error) => Err(error).with_context(|| format!("look at bucket {bucket}")),
        }
    }

    /// Removes what this run stored, and the bucket if this run `created` it.
    pub(super) async fn clean(&self, created: bool) -> anyhow::Result<()> {
        let Settings { bucket, prefix, .. } = &*self.settings;
        if self.settings.webdav {
            // One request for the whole directory.
            return match self.client.delete_object(bucket, prefix).await {
                Err(error) if error.is_not_found() => Ok(()),
                other => other.map(drop).with_context(|| format!("remove {bucket}/{prefix}")),
            };
        }
        // What the first page names is removed before the next first page is asked for, so no token goes stale.
        let request = ListRequest { prefix: prefix.clone(), ..ListRequest::default() };
        loop {
            let page =
                self.client.list_objects_v2(bucket, &request).await.context("list what is to be removed")?;
            let keys: Vec<&str> = page.objects.iter().map(|object| object.key.as_str()).collect();
            if keys.is_empty() {
                break;
            }
            let failures = self.client.delete_objects(bucket, &keys).await.context("remove objects")?;
            if let Some(first) = failures.first() {
                bail!("{} objects could not be removed, first {}: {}", failures.len(), first.key, first.code);
            }
        }
        if created {
            self.client.delete_bucket(bucket).await.with_context(|| format!("remove bucket {bucket}"))?;
        }
        Ok(())
    }

    fn key(&self, size: u64, object: u64) -> String {
        format!("{}{size}/{object:09}", self.settings.prefix)
    }

    pub(super) async fn put(&self, content: &Content, object: u64, write: u64) -> Result<Done, Failure> {
        let key = self.key(content.size(), object);
        let payload = content.payload(object, write);
        self.client.put_object(&self.settings.bucket, &key, payload).await.map_err(failure)?;
        Ok(Done { bytes: content.size(), ..Done::default() })
    }

    pub(super) async fn get(&self, content: &Arc<Content>, object: u64) -> Result<Done, Failure> {
        let key = self.key(content.size(), object);
        let mut response = self.client.get_object(&self.settings.bucket, &key).await.map_err(failure)?;
        let bytes = if self.settings.verify {
            let mut check = Check::new(Arc::clone(content), object);
            let mut bytes = 0;
            while let Some(chunk) = response.chunk().await.map_err(failure)? {
                check.update(&chunk);
                bytes += chunk.len() as u64;
            }
            if !check.passes() {
                return Err(Failure {
                    kind: "wrong bytes".into(),
                    message: format!("{key}: not the bytes written"),
                });
            }
            bytes
        } else {
            response.drain().await.map_err(failure)?
        };
        if bytes != content.size() {
            let message = format!("{key}: {bytes} bytes came, {} were written", content.size());
            return Err(Failure { kind: "wrong length".into(), message });
        }
        Ok(Done { bytes, ..Done::default() })
    }

    pub(super) async fn head(&self, content: &Content, object: u64) -> Result<Done, Failure> {
        let key = self.key(content.size(), object);
        let head = self.client.head_object(&self.settings.bucket, &key).await.map_err(failure)?;
        match head.length() {
            Some(length) if length == content.size() => Ok(Done::default()),
            other => {
                Err(Failure { kind: "wrong length".into(), message: format!("{key}: length {other:?}") })
            }
        }
    }

    pub(super) async fn delete(&self, content: &Content, object: u64) -> Result<Done, Failure> {
        let key = self.key(content.size(), object);
        self.client.delete_object(&self.settings.bucket, &key).await.map_err(failure)?;
        Ok(Done::default())
    }

    /// One page; `token` moves on, and back to the beginning at the end.
    pub(super) async fn list(&self, size: u64, token: &mut Option<String>) -> Result<Done, Failure> {
        let request = ListRequest {
            prefix: format!("{}{size}/", self.settings.prefix),
            max_keys: Some(LIST_KEYS),
            continuation_token: token.take(),
            ..ListRequest::default()
        };
        let page = self.client.list_objects_v2(&self.settings.bucket, &request).await.map_err(failure)?;
        if page.objects.is_empty() {
            return Err(Failure {
                kind: "empty page".into(),
                message: "a listing of objects that exist is empty".into(),
            });
        }
        *token = page.next_continuation_token;
        Ok(Done { bytes: 0, entries: page.objects.len() as u64 })
    }
}

fn failure(error: Error) -> Failure {
    let kind = error.kind();
    let message = format!("{:#}", anyhow::Error::from(error));
    Failure { kind, message }
}
