//! Internal authentication: each call and each answer carries a proof made with the cluster key.
//!
//! ```text
//!   call    x-ferrozone-cluster: cluster id             x-ferrozone-time:   Unix milliseconds
//!           x-ferrozone-from:    the caller's node      x-ferrozone-nonce:  16 random bytes, hex
//!           x-ferrozone-to:      host:port called       x-ferrozone-digest: SHA-256 of the body, hex
//!           x-ferrozone-mac:     HMAC-SHA256 over all of it, method and path; hex
//!   answer  x-ferrozone-time, x-ferrozone-digest, x-ferrozone-mac: over the call's nonce, status, digest and time
//! ```
//!
//! The digest is sent, so that the proof is checked before a byte of the body is read; then the body is checked against
//! the digest. Of a stream it covers the head frame only: chunk CRCs and the end frame guard the rest. An answer's proof
//! keeps a program that sits on a node's port, but has no key, from speaking for it.
//!
//! Invariants:
//! * A call is taken once: its nonce is remembered for as long as its time would be accepted. When the memory is full,
//!   calls are refused rather than nonces forgotten.
//! * A restart forgets nonces. A call replayed after it is harmless, since commands are idempotent and ids written once.
//! * A call captured on its way to one node is refused by every other: they are not its receiver.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use wire::clock::{Clock, SystemClock, UnixMs};
use wire::cluster_key::{ClusterKey, SECRET_BYTES};
use wire::host::HostPort;
use wire::limits::CLOCK_SKEW_MS;

use crate::metrics;

const CLUSTER: &str = "x-ferrozone-cluster";
const FROM: &str = "x-ferrozone-from";
const TO: &str = "x-ferrozone-to";
const TIME: &str = "x-ferrozone-time";
const NONCE: &str = "x-ferrozone-nonce";
const DIGEST: &str = "x-ferrozone-digest";
const MAC: &str = "x-ferrozone-mac";
const PROTOCOL_HEADER: &str = "x-ferrozone-protocol";

/// What nodes speak to one another. Raised by every change that an older node would misunderstand.
const PROTOCOL: u32 = 1;
/// The oldest that this version understands: that of the version before, so that nodes are replaced one by one.
const PROTOCOL_MIN: u32 = 1;

/// What a call's proof is for: a proof of another kind never passes for a call.
const CALL: &str = "ferrozone call 2";
/// The same of an answer.
const ANSWER: &str = "ferrozone answer 1";
/// The same of the message that ends the answer to a stream.
const RECEIPT: &str = "ferrozone receipt 1";

/// A call is accepted from CLOCK_SKEW_MS before to CLOCK_SKEW_MS after its time.
const WINDOW_MS: u64 = 2 * CLOCK_SKEW_MS;

/// Nonces remembered per window: 70,000 calls a second, about 80 MiB.
const NONCES_MAX: usize = 4 << 20;

/// Refusals that a person must look at are logged once in so many milliseconds.
const WARN_INTERVAL_MS: u64 = 60_000;

/// Bytes of a node's name in a proof at most.
const FROM_BYTES_MAX: usize = 255;

/// Drawn for each call.
pub(crate) type Nonce = [u8; 16];
/// SHA-256.
pub(crate) type BodyDigest = [u8; SECRET_BYTES];

/// Why a call is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// No proof, or not in the expected form.
    #[error("the call carries no valid proof of the cluster key")]
    Missing,
    /// It names another cluster.
    #[error("the call belongs to another cluster: does the configuration name nodes of two clusters?")]
    OtherCluster,
    /// It comes from a version that is too far away.
    #[error(
        "the caller speaks protocol {theirs}, this node {PROTOCOL_MIN} to {PROTOCOL}: their versions of ferrozone are too far \
         apart; bring all nodes to one version, one release after the other"
    )]
    OtherProtocol {
        /// What the caller speaks; 0 if it does not say.
        theirs: u32,
    },
    /// The proof is wrong.
    #[error("the call's proof is wrong: is the cluster key the same on all nodes?")]
    Forged,
    /// Meant for another node.
    #[error("the call is for {0}, which is not this node: do two nodes have one address?")]
    OtherReceiver(String),
    /// Too old or too new.
    #[error(
        "the caller's clock is {} s {} this node's, more than the {} s allowed: set the clocks of both by NTP",
        .off_ms.unsigned_abs() / 1000, ahead_or_behind(*.off_ms), CLOCK_SKEW_MS / 1000
    )]
    Skewed {
        /// By how much the caller is ahead.
        off_ms: i64,
    },
    /// Seen before.
    #[error("the call was made before")]
    Replayed,
    /// No room to remember its nonce.
    #[error("too many calls at once")]
    Overloaded,
    /// The body is not the one that was proven.
    #[error("the body is not the one the call's proof covers")]
    OtherBody,
}

/// How a person says on which side a clock is.
pub(crate) fn ahead_or_behind(off_ms: i64) -> &'static str {
    if off_ms >= 0 { "ahead of" } else { "behind" }
}

/// What a call says of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallHead<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// The caller's node.
    pub(crate) from: &'a str,
    /// The receiver, as the caller addresses it.
    pub(crate) to: &'a str,
    pub(crate) digest: &'a BodyDigest,
    pub(crate) now_ms: UnixMs,
    pub(crate) nonce: &'a Nonce,
}

impl CallHead<'_> {
    fn with_parts<T>(&self, act: impl FnOnce(&[&[u8]]) -> T) -> T {
        act(&[
            self.method.as_bytes(),
            self.path.as_bytes(),
            self.from.as_bytes(),
            self.to.as_bytes(),
            self.digest,
            &self.now_ms.to_be_bytes(),
            self.nonce,
        ])
    }
}

/// A node's name as a header can carry it.
pub(crate) fn name_in_header(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    name.chars().map(legal).take(FROM_BYTES_MAX).collect()
}

/// The headers that prove a call.
pub(crate) fn sign(key: &ClusterKey, call: CallHead<'_>) -> HeaderMap {
    let mac = call.with_parts(|parts| key.mac(CALL, parts));
    headers([
        (CLUSTER, key.id.to_string()),
        (FROM, call.from.to_owned()),
        (TO, call.to.to_owned()),
        (TIME, call.now_ms.to_string()),
        (NONCE, hex::encode(call.nonce)),
        (DIGEST, hex::encode(call.digest)),
        (MAC, hex::encode(mac)),
        (PROTOCOL_HEADER, PROTOCOL.to_string()),
    ])
}

fn headers<const N: usize>(values: [(&'static str, String); N]) -> HeaderMap {
    let legal = |(name, value): (&'static str, String)| {
        let value = HeaderValue::try_from(value).expect("digits, names and hyphens are legal");
        (HeaderName::from_static(name), value)
    };
    values.into_iter().map(legal).collect()
}

/// What an answer's head proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    /// When it was given, by the answering node's clock.
    pub(crate) time_ms: UnixMs,
    /// Of its body; None for a stream.
    pub(crate) digest: Option<BodyDigest>,
}

/// Checks the proof of an answer to the call of `nonce`. None: it is not from a node with the key.
pub(crate) fn check_answer(
    key: &ClusterKey,
    nonce: &Nonce,
    status: u16,
    headers: &HeaderMap,
) -> Option<AnswerHead> {
    let time_ms: UnixMs = text(headers, TIME)?.parse().ok()?;
    let digest = match text(headers, DIGEST) {
        Some(digest) => Some(bytes_of(Some(digest))?),
        None => None,
    };
    let mac = bytes_of(text(headers, MAC))?;
    let is_proven =
        answer_parts(nonce, status, digest.as_ref(), time_ms, |parts| key.verify(ANSWER, parts, &mac));
    is_proven.then_some(AnswerHead { time_ms, digest })
}

fn answer_parts<T>(
    nonce: &Nonce,
    status: u16,
    digest: Option<&BodyDigest>,
    time_ms: UnixMs,
    act: impl FnOnce(&[&[u8]]) -> T,
) -> T {
    let digest: &[u8] = digest.map_or(&[], |digest| digest);
    act(&[nonce, &status.to_be_bytes(), digest, &time_ms.to_be_bytes()])
}

/// The proof of the message that ends an answer whose head was sent before it was known.
pub(crate) fn receipt_mac(key: &ClusterKey, nonce: &Nonce, message: &[u8]) -> [u8; SECRET_BYTES] {
    key.mac(RECEIPT, &[nonce, message])
}

/// Whether `mac` is [`receipt_mac`].
pub(crate) fn check_receipt(
    key: &ClusterKey,
    nonce: &Nonce,
    message: &[u8],
    mac: &[u8; SECRET_BYTES],
) -> bool {
    key.verify(RECEIPT, &[nonce, message], mac)
}

/// Checks calls and proves answers. One per process: it remembers nonces.
pub struct Verifier {
    key: ClusterKey,
    clock: Arc<dyn Clock>,
    /// What this node is called by; empty: not known, and not checked.
    receivers: Vec<HostPort>,
    seen: Mutex<Seen>,
    warned_ms: AtomicU64,
}

/// Nonces of this window and the last one. A half of each is kept: chance alone repeats it once in 10^12 calls.
#[derive(Default)]
struct Seen {
    since_ms: UnixMs,
    current: HashSet<u64>,
    previous: HashSet<u64>,
}

impl Verifier {
    /// A verifier of calls made with `key`, to whatever name.
    pub fn new(key: ClusterKey) -> Arc<Self> {
        Self::with_clock(key, Vec::new(), Arc::new(SystemClock))
    }

    /// The same of calls to this node alone, by the names that others know it by.
    pub fn of_node(key: ClusterKey, receivers: Vec<HostPort>) -> Arc<Self> {
        Self::with_clock(key, receivers, Arc::new(SystemClock))
    }

    /// The same, with another clock.
    pub fn with_clock(key: ClusterKey, receivers: Vec<HostPort>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (seen, warned_ms) = (Mutex::default(), AtomicU64::new(0));
        Arc::new(Self { key, clock, receivers, seen, warned_ms })
    }

    /// The nonce of a call, proven or not: answers to strangers are proven too, so that a node whose clock is off learns it.
    pub(crate) fn nonce(headers: &HeaderMap) -> Option<Nonce> {
        bytes_of(text(headers, NONCE))
    }

    /// Checks a call's head and answers the digest its body must have.
    pub(crate) fn verify(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<BodyDigest, AuthError> {
        let outcome = self.check(method, path, headers);
        if let Err(error) = &outcome {
            self.note_refusal(error, path);
        }
        outcome
    }

    fn check(&self, method: &str, path: &str, headers: &HeaderMap) -> Result<BodyDigest, AuthError> {
        let text = |name: &str| text(headers, name).ok_or(AuthError::Missing);
        if text(CLUSTER)? != self.key.id.to_string() {
            return Err(AuthError::OtherCluster);
        }
        // Before the proof, whose form may be another there. It is no secret, and changing it opens nothing.
        let theirs =
            headers.get(PROTOCOL_HEADER).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        if !(PROTOCOL_MIN..=PROTOCOL).contains(&theirs) {
            return Err(AuthError::OtherProtocol { theirs });
        }
        let (from, to) = (text(FROM)?, text(TO)?);
        let time_ms: UnixMs = text(TIME)?.parse().map_err(|_| AuthError::Missing)?;
        let nonce: Nonce = bytes_of(Some(text(NONCE)?)).ok_or(AuthError::Missing)?;
        let digest: BodyDigest = bytes_of(Some(text(DIGEST)?)).ok_or(AuthError::Missing)?;
        let mac = bytes_of(Some(text(MAC)?)).ok_or(AuthError::Missing)?;
        let head = CallHead { method, path, from, to, digest: &digest, now_ms: time_ms, nonce: &nonce };
        if !head.with_parts(|parts| self.key.verify(CALL, parts, &mac)) {
            return Err(AuthError::Forged);
        }
        if !self.receivers.is_empty() && !self.receivers.iter().any(|name| name.as_str() == to) {
            return Err(AuthError::OtherReceiver(to.to_owned()));
        }
        let now_ms = self.clock.now_ms();
        if now_ms.abs_diff(time_ms) > CLOCK_SKEW_MS {
            return Err(AuthError::Skewed { off_ms: time_ms.wrapping_sub(now_ms) as i64 });
        }
        self.seen.lock().insert(&nonce, now_ms)?;
        Ok(digest)
    }

    /// The headers that prove an answer; `digest` is None for a stream.
    pub(crate) fn prove(&self, nonce: &Nonce, status: u16, digest: Option<&BodyDigest>) -> HeaderMap {
        let time_ms = self.clock.now_ms();
        let mac = answer_parts(nonce, status, digest, time_ms, |parts| self.key.mac(ANSWER, parts));
        let mut proof = headers([(TIME, time_ms.to_string()), (MAC, hex::encode(mac))]);
        if let Some(digest) = digest {
            proof.extend(headers([(DIGEST, hex::encode(digest))]));
        }
        proof
    }

    /// See [`receipt_mac`].
    pub(crate) fn receipt_mac(&self, nonce: &Nonce, message: &[u8]) -> [u8; SECRET_BYTES] {
        receipt_mac(&self.key, nonce, message)
    }

    fn note_refusal(&self, error: &AuthError, path: &str) {
        let reason = match error {
            AuthError::Missing => "missing",
            AuthError::OtherCluster => "other_cluster",
            AuthError::OtherProtocol { .. } => "other_protocol",
            AuthError::Forged => "forged",
            AuthError::OtherReceiver(_) => "other_receiver",
            AuthError::Skewed { .. } => "clock_off",
            AuthError::Replayed => "replayed",
            AuthError::Overloaded => "overloaded",
            AuthError::OtherBody => "other_body",
        };
        metrics::call_refused(reason);
        let now_ms = self.clock.now_ms();
        let warned_ms = self.warned_ms.load(Ordering::Relaxed);
        let is_due = now_ms.abs_diff(warned_ms) >= WARN_INTERVAL_MS
            && self
                .warned_ms
                .compare_exchange(warned_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_due {
            tracing::warn!(%error, path, "a call was refused");
        }
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({:?})", self.key)
    }
}

impl Seen {
    fn insert(&mut self, nonce: &Nonce, now_ms: UnixMs) -> Result<(), AuthError> {
        let nonce = u64::from_le_bytes(nonce[..8].try_into().expect("eight bytes"));
        let age_ms = now_ms.saturating_sub(self.since_ms);
        if age_ms > WINDOW_MS {
            // A nonce of the last window was accepted within it and expires within one more.
            self.previous = std::mem::take(&mut self.current);
            if age_ms > 2 * WINDOW_MS {
                self.previous.clear();
            }
            self.since_ms = now_ms;
        }
        if self.previous.contains(&nonce) || self.current.contains(&nonce) {
            return Err(AuthError::Replayed);
        }
        if self.current.len() >= NONCES_MAX {
            return Err(AuthError::Overloaded);
        }
        self.current.insert(nonce);
        Ok(())
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn bytes_of<const N: usize>(text: Option<&str>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text?, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use wire::ids::ClusterId;

    use super::*;

    struct HandClock(AtomicU64);

    impl Clock for HandClock {
        fn now_ms(&self) -> UnixMs {
            self.0.load(Ordering::SeqCst)
        }

        fn steady_ns(&self) -> u64 {
            0
        }
    }

    const NOW_MS: UnixMs = 1_000_000_000;

    fn key(secret: u8) -> ClusterKey {
        ClusterKey::new(ClusterId::default(), [secret; 32])
    }

    fn verifier() -> (Arc<HandClock>, Arc<Verifier>) {
        let clock = Arc::new(HandClock(AtomicU64::new(NOW_MS)));
        let receivers = vec![HostPort::new("om1:9002").unwrap()];
        (clock.clone(), Verifier::with_clock(key(1), receivers, clock))
    }

    fn signed(key: &ClusterKey, to: &str, now_ms: UnixMs, nonce: u8) -> HeaderMap {
        let (digest, nonce) = ([3; 32], [nonce; 16]);
        let call = CallHead {
            method: "POST",
            path: "/om/v1",
            from: "gw1",
            to,
            digest: &digest,
            now_ms,
            nonce: &nonce,
        };
        sign(key, call)
    }

    #[test]
    fn call_is_taken_once() {
        let (clock, verifier) = verifier();
        let headers = signed(&key(1), "om1:9002", NOW_MS, 4);
        assert_eq!(verifier.verify("POST", "/om/v1", &headers), Ok([3; 32]));
        for later_ms in [0, CLOCK_SKEW_MS / 2, CLOCK_SKEW_MS] {
            clock.0.store(NOW_MS + later_ms, Ordering::SeqCst);
            assert_eq!(verifier.verify("POST", "/om/v1", &headers), Err(AuthError::Replayed));
        }
        // Once the nonce may be forgotten the time is no longer accepted.
        for later_ms in [CLOCK_SKEW_MS + 1, 3 * CLOCK_SKEW_MS, 10 * CLOCK_SKEW_MS] {
            clock.0.store(NOW_MS + later_ms, Ordering::SeqCst);
            assert_eq!(
                verifier.verify("POST", "/om/v1", &headers),
                Err(AuthError::Skewed { off_ms: -(later_ms as i64) })
            );
        }
    }

    #[test]
    fn nonce_outlives_the_turn_of_a_window() {
        let (clock, verifier) = verifier();
        let first = signed(&key(1), "om1:9002", NOW_MS, 1);
        assert!(verifier.verify("POST", "/om/v1", &first).is_ok());
        // Signed by a clock that is ahead, taken at the window's very end.
        clock.0.store(NOW_MS + WINDOW_MS, Ordering::SeqCst);
        let ahead = signed(&key(1), "om1:9002", NOW_MS + WINDOW_MS + CLOCK_SKEW_MS, 2);
        assert!(verifier.verify("POST", "/om/v1", &ahead).is_ok());
        clock.0.store(NOW_MS + 2 * WINDOW_MS, Ordering::SeqCst);
        assert_eq!(verifier.verify("POST", "/om/v1", &ahead), Err(AuthError::Replayed));
    }

    #[test]
    fn forged_foreign_and_bare_calls_are_refused() {
        let (_, verifier) = verifier();
        let refuse = |headers: &HeaderMap, method: &str, path: &str| {
            verifier.verify(method, path, headers).unwrap_err()
        };
        assert_eq!(refuse(&HeaderMap::new(), "POST", "/om/v1"), AuthError::Missing);
        let wrong_key = signed(&key(2), "om1:9002", NOW_MS, 4);
        assert_eq!(refuse(&wrong_key, "POST", "/om/v1"), AuthError::Forged);
        let good = signed(&key(1), "om1:9002", NOW_MS, 4);
        assert_eq!(refuse(&good, "PUT", "/om/v1"), AuthError::Forged);
        assert_eq!(refuse(&good, "POST", "/scm/v1"), AuthError::Forged);
        for (name, value) in [
            (TIME, "1000000001".to_owned()),
            (FROM, "gw2".to_owned()),
            (TO, "om9:1".to_owned()),
            (NONCE, "05".repeat(16)),
            (DIGEST, "06".repeat(32)),
        ] {
            let mut changed = good.clone();
            changed.insert(name, value.parse().unwrap());
            assert_eq!(refuse(&changed, "POST", "/om/v1"), AuthError::Forged);
        }
        let mut other = good.clone();
        other.insert(CLUSTER, HeaderValue::from_static("11111111-1111-1111-1111-111111111111"));
        assert_eq!(refuse(&other, "POST", "/om/v1"), AuthError::OtherCluster);
        for (value, theirs) in [("7", 7), ("x", 0)] {
            let mut newer = good.clone();
            newer.insert(PROTOCOL_HEADER, HeaderValue::from_static(value));
            let refusal = refuse(&newer, "POST", "/om/v1");
            assert_eq!(refusal, AuthError::OtherProtocol { theirs });
            assert!(
                refusal.to_string().contains("too far apart; bring all nodes to one version"),
                "{refusal}"
            );
        }
        let early = signed(&key(1), "om1:9002", NOW_MS + CLOCK_SKEW_MS + 1, 4);
        let off_ms = CLOCK_SKEW_MS as i64 + 1;
        assert_eq!(refuse(&early, "POST", "/om/v1"), AuthError::Skewed { off_ms });
        let text = AuthError::Skewed { off_ms: -45_000 }.to_string();
        assert!(text.contains("45 s behind") && text.contains("NTP"), "{text}");
        let misled = signed(&key(1), "om2:9002", NOW_MS, 4);
        assert_eq!(refuse(&misled, "POST", "/om/v1"), AuthError::OtherReceiver("om2:9002".to_owned()));
    }

    #[test]
    fn answer_is_proven_for_its_call_status_and_body_only() {
        let (_, verifier) = verifier();
        let (nonce, digest) = ([7; 16], [8; 32]);
        let proof = verifier.prove(&nonce, 200, Some(&digest));
        let expected = AnswerHead { time_ms: NOW_MS, digest: Some(digest) };
        assert_eq!(check_answer(&key(1), &nonce, 200, &proof), Some(expected));
        assert_eq!(check_answer(&key(2), &nonce, 200, &proof), None);
        assert_eq!(check_answer(&key(1), &[6; 16], 200, &proof), None);
        assert_eq!(check_answer(&key(1), &nonce, 401, &proof), None);
        assert_eq!(check_answer(&key(1), &nonce, 200, &HeaderMap::new()), None);
        let mut bare = proof.clone();
        bare.remove(DIGEST);
        assert_eq!(check_answer(&key(1), &nonce, 200, &bare), None);
        let streamed = verifier.prove(&nonce, 200, None);
        assert_eq!(check_answer(&key(1), &nonce, 200, &streamed).map(|head| head.digest), Some(None));
    }
}
