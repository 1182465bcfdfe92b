//! Who may call the admin API: whoever proves the cluster key (nodes, and the command line beside a node's files) or the
//! root credentials (`curl --aws-sigv4 "aws:amz:REGION:s3"`, other tools).
//!
//! ```text
//!   GET /api/v1/challenge -> 16 bytes that this process drew when it started, in hexadecimal
//!   authorization: Ferrozone cluster=<id>,time=<Unix ms>,nonce=<16 bytes>,digest=<SHA-256 of the body>,
//!                  challenge=<as answered>,mac=<HMAC-SHA256>
//! ```
//!
//! The HMAC covers cluster id, method, path with query, digest, time, nonce and challenge, all in hexadecimal where bytes.
//! It is checked before a byte of the body is read; then the body is checked against the digest. Root's signature covers
//! the query, where the challenge is sent: `?challenge=...`.
//!
//! A node does not know by which names it is reached, and so its challenge stands for it: a captured call opens no other
//! node, nor the same after a restart, when the nonces are forgotten. Whoever can change what passes between the caller
//! and the node can still have one call carried out by another node instead; HTTPS prevents that.
//!
//! Invariants:
//! * A proof is taken once: its nonce (for root: its signature) is remembered for as long as it would be accepted. When
//!   the memory is full, calls are refused rather than nonces forgotten.
//! * A proof for a call between nodes never passes here, nor one of here there: the purposes differ.
//!
//! Not here: other users (only root administers), secrets in OM (a cluster without a leader must still be administered).

use std::collections::{BTreeMap, HashSet};

use http::header::{AUTHORIZATION, HeaderValue};
use http::request::Parts;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wire::clock::UnixMs;
use wire::cluster_key::{ClusterKey, SECRET_BYTES, body_digest};
use wire::limits::CLOCK_SKEW_MS;

use crate::error::ApiError;

/// What the proof is for: a proof of another kind never passes for it.
const PURPOSE: &str = "ferrozone admin 2";
/// Root's signature covers the query: there it carries the challenge.
const CHALLENGE_PARAMETER: &str = "challenge";
/// The scheme's name in the header.
const SCHEME: &str = "Ferrozone ";
/// Proofs remembered per window: people and scripts call here, not clients.
const NONCES_MAX: usize = 1 << 16;
/// The longest time a proof of either kind could be taken: SigV4 allows 15 minutes each way.
const WINDOW_MS: u64 = 30 * 60 * 1000;

type Nonce = [u8; 16];

/// The root user's credentials.
#[derive(Clone)]
pub struct Root {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
    /// The region in its signatures.
    pub region: String,
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Root({}, ***)", self.access_key)
    }
}

/// The `Authorization` header of a call to the admin API. `challenge` is what the node answers at
/// [`CHALLENGE_PATH`](crate::CHALLENGE_PATH).
pub fn prove(
    key: &ClusterKey,
    challenge: &str,
    method: &str,
    path_and_query: &str,
    body: &[u8],
    now_ms: UnixMs,
) -> HeaderValue {
    let nonce: Nonce = wire::random::array();
    let digest = body_digest(body);
    // What came over the network must not tear the header.
    let challenge = if is_challenge(challenge) { challenge } else { "" };
    let time = now_ms.to_be_bytes();
    let mac = key.mac(PURPOSE, &parts(method, path_and_query, &digest, &time, &nonce, challenge));
    let text = format!(
        "{SCHEME}cluster={},time={now_ms},nonce={},digest={},challenge={challenge},mac={}",
        key.id,
        hex::encode(nonce),
        hex::encode(digest),
        hex::encode(mac)
    );
    HeaderValue::try_from(text).expect("digits, letters and commas are legal")
}

fn is_challenge(text: &str) -> bool {
    bytes_of::<16>(text).is_some()
}

fn parts<'a>(
    method: &'a str,
    path_and_query: &'a str,
    digest: &'a [u8],
    time: &'a [u8],
    nonce: &'a [u8],
    challenge: &'a str,
) -> [&'a [u8]; 6] {
    [method.as_bytes(), path_and_query.as_bytes(), digest, time, nonce, challenge.as_bytes()]
}

/// What the body must be for the proof to hold.
#[derive(Debug)]
pub(crate) enum BodyProof {
    Digest([u8; SECRET_BYTES]),
    Payload(auth::PayloadHash),
}

impl BodyProof {
    pub(crate) fn check(&self, body: &[u8]) -> Result<(), ApiError> {
        let digest = body_digest(body);
        let is_right = match self {
            Self::Digest(right) => *right == digest,
            Self::Payload(right) => right.matches(&digest),
        };
        if is_right {
            Ok(())
        } else {
            Err(ApiError::Unauthenticated("the body is not the one the call's proof covers"))
        }
    }
}

/// Checks proofs. One per process: it remembers nonces.
#[derive(Debug)]
pub(crate) struct Verifier {
    key: ClusterKey,
    root: Option<Root>,
    /// Stands for this process: drawn when it starts.
    challenge: String,
    seen: Mutex<Seen>,
}

/// Proofs of this window and the last one.
#[derive(Debug, Default)]
struct Seen {
    since_ms: UnixMs,
    current: HashSet<Nonce>,
    previous: HashSet<Nonce>,
}

impl Verifier {
    pub(crate) fn new(key: ClusterKey, root: Option<Root>) -> Self {
        let challenge = hex::encode(wire::random::array::<16>());
        Self { key, root, challenge, seen: Mutex::new(Seen::default()) }
    }

    pub(crate) fn challenge(&self) -> &str {
        &self.challenge
    }

    fn check_challenge(&self, given: Option<&str>) -> Result<(), ApiError> {
        match given {
            Some(given) if given == self.challenge => Ok(()),
            Some(_) => Err(ApiError::Unauthenticated(
                "the call was made for another node, or for this one before it was started anew: ask \
                 /api/v1/challenge again",
            )),
            None => Err(ApiError::Unauthenticated(
                "the call is made for no node in particular: send ?challenge= with what /api/v1/challenge answers",
            )),
        }
    }

    /// Checks a call's head.
    pub(crate) fn verify(&self, head: &Parts, now_ms: UnixMs) -> Result<BodyProof, ApiError> {
        let mut given = head.headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else {
            return Err(ApiError::Unauthenticated(
                "the call carries no proof: use `ferrozone admin` beside a node's files, or sign as root by SigV4",
            ));
        };
        let text = value.to_str().map_err(|_| ApiError::Unauthenticated("the proof is malformed"))?;
        let (nonce, body) = match text.strip_prefix(SCHEME) {
            Some(fields) => self.verify_key(head, fields, now_ms)?,
            None => self.verify_root(head, text, now_ms)?,
        };
        self.seen.lock().insert(nonce, now_ms)?;
        Ok(body)
    }

    fn verify_key(&self, head: &Parts, fields: &str, now_ms: UnixMs) -> Result<(Nonce, BodyProof), ApiError> {
        let malformed = ApiError::Unauthenticated("the proof is malformed");
        let fields: BTreeMap<&str, &str> =
            fields.split(',').filter_map(|field| field.trim().split_once('=')).collect();
        let field = |name: &str| fields.get(name).copied().ok_or_else(|| malformed.clone());
        if field("cluster")? != self.key.id.to_string() {
            return Err(ApiError::Unauthenticated(
                "the proof is of another cluster: is this its cluster file?",
            ));
        }
        let time_ms: UnixMs = field("time")?.parse().map_err(|_| malformed.clone())?;
        let nonce: Nonce = bytes_of(field("nonce")?).ok_or_else(|| malformed.clone())?;
        let digest: [u8; SECRET_BYTES] = bytes_of(field("digest")?).ok_or_else(|| malformed.clone())?;
        let challenge = field(CHALLENGE_PARAMETER)?;
        let mac: [u8; SECRET_BYTES] = bytes_of(field("mac")?).ok_or(malformed)?;
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let time = time_ms.to_be_bytes();
        let proven = parts(head.method.as_str(), path, &digest, &time, &nonce, challenge);
        if !self.key.verify(PURPOSE, &proven, &mac) {
            return Err(ApiError::Unauthenticated("the proof is wrong: is the cluster key the same?"));
        }
        if now_ms.abs_diff(time_ms) > CLOCK_SKEW_MS {
            return Err(ApiError::Unauthenticated("the proof is too old or too new: check the clocks"));
        }
        self.check_challenge(Some(challenge))?;
        Ok((nonce, BodyProof::Digest(digest)))
    }

    fn verify_root(&self, head: &Parts, text: &str, now_ms: UnixMs) -> Result<(Nonce, BodyProof), ApiError> {
        let Some(root) = &self.root else {
            return Err(ApiError::Unauthenticated("the proof is malformed"));
        };
        let settings = auth::Settings { region: root.region.clone(), ..auth::Settings::default() };
        let wrong = || ApiError::Unauthenticated("the signature is malformed, wrong, expired or not root's");
        let auth::Presented::V4(presented) = auth::parse(head, now_ms, &settings).map_err(|_| wrong())?
        else {
            return Err(wrong());
        };
        let key = auth::SigningKey::derive(
            &auth::SecretKey::new(root.secret_key.clone()),
            presented.day(),
            presented.region(),
            presented.service(),
        );
        presented.verify(head, &key.ok_or_else(wrong)?).map_err(|_| wrong())?;
        if presented.access_key() != root.access_key {
            return Err(ApiError::Forbidden("only the root user administers"));
        }
        let auth::Payload::Signed(hash) = presented.payload() else {
            return Err(ApiError::Unauthenticated("the body must be signed: send x-amz-content-sha256"));
        };
        let query = head.uri.query().unwrap_or_default().split('&');
        self.check_challenge(
            query
                .filter_map(|part| part.split_once('='))
                .find_map(|(name, value)| (name == CHALLENGE_PARAMETER).then_some(value)),
        )?;
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&Sha256::digest(text)[..16]);
        Ok((nonce, BodyProof::Payload(hash.clone())))
    }
}

impl Seen {
    fn insert(&mut self, nonce: Nonce, now_ms: UnixMs) -> Result<(), ApiError> {
        if now_ms.saturating_sub(self.since_ms) >= WINDOW_MS {
            let is_next = now_ms.saturating_sub(self.since_ms) < 2 * WINDOW_MS;
            self.previous = if is_next { std::mem::take(&mut self.current) } else { HashSet::new() };
            self.current.clear();
            self.since_ms = now_ms;
        }
        if self.current.len() >= NONCES_MAX {
            return Err(ApiError::Forbidden("too many calls at once"));
        }
        if self.previous.contains(&nonce) || !self.current.insert(nonce) {
            return Err(ApiError::Unauthenticated("the call was made before"));
        }
        Ok(())
    }
}

fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}
