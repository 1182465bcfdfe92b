//! The client and its configuration; one request with its retries.
//!
//! Retries are for people: the command line asks for several attempts, a benchmark for exactly one, since a hidden
//! failure would be a lie. Only what can be sent again is retried: payloads in memory, and after a broken exchange
//! only methods whose repetition does no harm.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Request};

use crate::body::Payload;
use crate::encode;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::pool::{Pool, Response};
use crate::secure::Secure;
use crate::sign::{Credentials, EMPTY_SHA256, Signer, UNSIGNED_PAYLOAD};
use crate::xml;

/// Amazon's default, and what servers without regions expect.
const REGION_DEFAULT: &str = "us-east-1";

/// Enough for a command; a benchmark sets its own.
const CONNECTIONS_DEFAULT: usize = 16;

/// As many as Amazon's SDKs make.
const ATTEMPTS_DEFAULT: u32 = 3;

/// The wait before the first retry; it doubles.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A server on the network answers a SYN within this or is taken for absent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Covers a large upload over a slow line and a Complete that joins many parts.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);

/// Error documents are a kilobyte; more than this is not one.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// A payload longer than this may be still on its way when an early error arrives; its connection is not kept.
const EARLY_ERROR_BYTES: u64 = 64 << 10;

/// Whether bodies in memory are covered by the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadMode {
    /// SHA-256 of the body in the signature.
    Signed,
    /// `UNSIGNED-PAYLOAD`: less work on both sides, no protection of the body.
    Unsigned,
}

/// How to reach a server, as whom, and with what patience.
#[derive(Debug, Clone)]
pub struct Config {
    /// The server.
    pub endpoint: Endpoint,
    /// `None` sends requests without a signature and without any `x-amz-` header: plain HTTP.
    pub credentials: Option<Credentials>,
    /// Region named in the signature.
    pub region: String,
    /// TLS for an `https` endpoint, which is refused without.
    pub secure: Option<Arc<dyn Secure>>,
    /// Connections at most.
    pub connections: usize,
    /// Whether bodies are signed.
    pub payload: PayloadMode,
    /// Attempts in total; 1 never retries.
    pub attempts: u32,
    /// Time for a TCP connection.
    pub connect_timeout: Duration,
    /// Time for the head of a response, body sent included, and then for each further piece of it.
    pub response_timeout: Duration,
}

impl Config {
    /// Anonymous access with everything else at its default.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            credentials: None,
            region: REGION_DEFAULT.into(),
            secure: None,
            connections: CONNECTIONS_DEFAULT,
            payload: PayloadMode::Signed,
            attempts: ATTEMPTS_DEFAULT,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        }
    }
}

/// A client of one server. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct S3Client {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<Pool>,
    signer: Option<Signer>,
    payload: PayloadMode,
    attempts: u32,
}

/// One request before it is signed.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
    pub(crate) query: &'a [(&'a str, &'a str)],
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
}

impl<'a> Call<'a> {
    pub(crate) fn bucket(method: Method, bucket: &'a str) -> Result<Self, Error> {
        if bucket.is_empty() {
            return Err(Error::Request("bucket name is empty".into()));
        }
        Ok(Self { method, bucket, key: "", query: &[], headers: HeaderMap::new(), payload: Payload::empty() })
    }

    pub(crate) fn object(method: Method, bucket: &'a str, key: &'a str) -> Result<Self, Error> {
        if key.is_empty() {
            // The request would be about the bucket.
            return Err(Error::Request("key is empty".into()));
        }
        Ok(Self { key, ..Self::bucket(method, bucket)? })
    }

    pub(crate) fn query(self, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { query, ..self }
    }

    pub(crate) fn payload(self, payload: Payload) -> Self {
        Self { payload, ..self }
    }
}

impl S3Client {
    /// A client that has not connected yet.
    pub fn new(config: Config) -> Self {
        let Config { endpoint, credentials, region, secure, connections, payload, attempts, .. } = config;
        let pool = Pool::new(endpoint, secure, connections, config.connect_timeout, config.response_timeout);
        let signer = credentials.map(|credentials| Signer::new(credentials, region));
        Self { inner: Arc::new(Inner { pool, signer, payload, attempts: attempts.max(1) }) }
    }

    /// Opens `count` connections now, at most as many as configured.
    pub async fn connect(&self, count: usize) -> Result<(), Error> {
        self.inner.pool.open(count).await
    }

    /// Sends a call; the response is a success.
    pub(crate) async fn send(&self, call: Call<'_>) -> Result<Response, Error> {
        let path = encode::path(call.bucket, call.key);
        let query = if call.query.is_empty() { String::new() } else { encode::query(call.query) };
        let target = if query.is_empty() { path.clone() } else { format!("{path}?{query}") };
        let digest = self.digest(&call.payload);
        let idempotent = call.method != Method::POST;

        let mut payload = call.payload;
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(RETRY_DELAY)
            .with_jitter()
            .with_max_times(self.inner.attempts as usize - 1)
            .build();
        loop {
            let spare = if self.inner.attempts > 1 { payload.again() } else { None };
            let mut headers = call.headers.clone();
            headers.insert(HOST, self.inner.pool.endpoint().authority().clone());
            if let Some(signer) = &self.inner.signer {
                signer.sign(
                    wire::clock::now_ms(),
                    call.method.as_str(),
                    &path,
                    &query,
                    &digest,
                    &mut headers,
                )?;
            }
            let attempt = self.attempt(&call.method, &target, headers, payload).await;
            match attempt {
                Err(error) if error.is_retryable(idempotent) => match (spare, delays.next()) {
                    (Some(again), Some(delay)) => {
                        tokio::time::sleep(delay).await;
                        payload = again;
                    }
                    _ => return Err(error),
                },
                other => return other,
            }
        }
    }

    /// Sends a call, reads the whole answer.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<bytes::Bytes, Error> {
        self.send(call).await?.collect(xml::DOCUMENT_BYTES_MAX).await
    }

    async fn attempt(
        &self,
        method: &Method,
        target: &str,
        mut headers: HeaderMap,
        payload: Payload,
    ) -> Result<Response, Error> {
        let length = payload.length();
        if length > 0 || matches!(*method, Method::PUT | Method::POST) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let mut request = Request::new(payload.into_body());
        *request.method_mut() = method.clone();
        *request.uri_mut() =
            target.parse().map_err(|_| Error::Request(format!("{target:?} is too long for a URI")))?;
        *request.headers_mut() = headers;

        let mut response = self.inner.pool.exchange(request).await?;
        if response.head.status.is_success() {
            return Ok(response);
        }
        if length > EARLY_ERROR_BYTES {
            response.forget_connection();
        }
        let (status, headers) = (response.head.status, response.head.headers.clone());
        // The status alone is an answer; a body that breaks off must not hide it.
        let body = response.collect(ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(xml::error(status, &headers, &body))
    }

    /// What stands for the payload in the signature.
    fn digest(&self, payload: &Payload) -> String {
        if self.inner.signer.is_none() || payload.length() == 0 {
            return EMPTY_SHA256.into();
        }
        match self.inner.payload {
            PayloadMode::Unsigned => UNSIGNED_PAYLOAD.into(),
            PayloadMode::Signed => payload.sha256().unwrap_or_else(|| UNSIGNED_PAYLOAD.into()),
        }
    }
}
