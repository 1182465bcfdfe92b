//! Internal authentication: each call carries a proof made with the cluster key.
//!
//! ```text
//!   x-ferrozone-cluster: cluster id            x-ferrozone-time:  Unix milliseconds
//!   x-ferrozone-nonce:   16 random bytes, hex  x-ferrozone-digest: SHA-256 of the body, hex
//!   x-ferrozone-mac:     HMAC-SHA256 over cluster id, method, path, digest, time, nonce; hex
//! ```
//!
//! The digest is sent, so that the proof is checked before a byte of the body is read; then the body is checked against
//! the digest. For a block that is written it covers the header frame only: chunk CRCs and the end frame guard the rest.
//!
//! Invariants:
//! * A call is taken once: its nonce is remembered for as long as its time would be accepted. When the memory is full,
//!   calls are refused rather than nonces forgotten.
//! * A restart forgets nonces. A call replayed after it is harmless, since commands are idempotent and ids written once.

use std::collections::HashSet;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use wire::clock::{Clock, SystemClock, UnixMs};
use wire::cluster_key::{ClusterKey, SECRET_BYTES};
use wire::limits::CLOCK_SKEW_MS;

const CLUSTER: &str = "x-ferrozone-cluster";
const TIME: &str = "x-ferrozone-time";
const NONCE: &str = "x-ferrozone-nonce";
const DIGEST: &str = "x-ferrozone-digest";
const MAC: &str = "x-ferrozone-mac";

/// What the proof is for: a proof of another kind never passes for a call.
const PURPOSE: &str = "ferrozone call 1";

/// A call is accepted from CLOCK_SKEW_MS before to CLOCK_SKEW_MS after its time.
const WINDOW_MS: u64 = 2 * CLOCK_SKEW_MS;

/// Nonces remembered per window: 17,000 calls a second, about 20 MiB.
const NONCES_MAX: usize = 1 << 20;

type Nonce = [u8; 16];

/// Why a call is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// No proof, or not in the expected form.
    #[error("the call carries no valid proof of the cluster key")]
    Missing,
    /// It names another cluster.
    #[error("the call belongs to another cluster")]
    OtherCluster,
    /// The proof is wrong.
    #[error("the call's proof is wrong: is the cluster key the same on all nodes?")]
    Forged,
    /// Too old or too new.
    #[error("the call's time is too far from this node's: check the clocks")]
    Skewed,
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

/// Adds the proof to a call's headers.
pub(crate) fn sign(
    key: &ClusterKey,
    method: &str,
    path: &str,
    digest: &[u8; SECRET_BYTES],
    now_ms: UnixMs,
    nonce: Nonce,
) -> HeaderMap {
    let mac = key.mac(PURPOSE, &[method.as_bytes(), path.as_bytes(), digest, &now_ms.to_be_bytes(), &nonce]);
    let values = [
        (CLUSTER, key.id.to_string()),
        (TIME, now_ms.to_string()),
        (NONCE, hex::encode(nonce)),
        (DIGEST, hex::encode(digest)),
        (MAC, hex::encode(mac)),
    ];
    values
        .into_iter()
        .map(|(name, value)| {
            let value = HeaderValue::try_from(value).expect("digits and hyphens are legal");
            (HeaderName::from_static(name), value)
        })
        .collect()
}

/// Checks calls. One per process: it remembers nonces.
pub struct Verifier {
    key: ClusterKey,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

/// Nonces of this window and the last one.
#[derive(Default)]
struct Seen {
    since_ms: UnixMs,
    current: HashSet<Nonce>,
    previous: HashSet<Nonce>,
}

impl Verifier {
    /// A verifier of calls made with `key`.
    pub fn new(key: ClusterKey) -> Arc<Self> {
        Self::with_clock(key, Arc::new(SystemClock))
    }

    /// The same, with another clock.
    pub fn with_clock(key: ClusterKey, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { key, clock, seen: Mutex::new(Seen::default()) })
    }

    /// Checks a call's head and answers the digest its body must have.
    pub(crate) fn verify(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<[u8; SECRET_BYTES], AuthError> {
        let text = |name: &str| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let cluster = text(CLUSTER).ok_or(AuthError::Missing)?;
        if cluster != self.key.id.to_string() {
            return Err(AuthError::OtherCluster);
        }
        let time_ms: UnixMs = text(TIME).and_then(|time| time.parse().ok()).ok_or(AuthError::Missing)?;
        let nonce: Nonce = bytes_of(text(NONCE)).ok_or(AuthError::Missing)?;
        let digest: [u8; SECRET_BYTES] = bytes_of(text(DIGEST)).ok_or(AuthError::Missing)?;
        let mac: [u8; SECRET_BYTES] = bytes_of(text(MAC)).ok_or(AuthError::Missing)?;
        let parts: [&[u8]; 5] = [method.as_bytes(), path.as_bytes(), &digest, &time_ms.to_be_bytes(), &nonce];
        if !self.key.verify(PURPOSE, &parts, &mac) {
            return Err(AuthError::Forged);
        }
        let now_ms = self.clock.now_ms();
        if now_ms.abs_diff(time_ms) > CLOCK_SKEW_MS {
            return Err(AuthError::Skewed);
        }
        self.seen.lock().insert(nonce, now_ms)?;
        Ok(digest)
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({:?})", self.key)
    }
}

impl Seen {
    fn insert(&mut self, nonce: Nonce, now_ms: UnixMs) -> Result<(), AuthError> {
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
        (clock.clone(), Verifier::with_clock(key(1), clock))
    }

    #[test]
    fn call_is_taken_once() {
        let (clock, verifier) = verifier();
        let headers = sign(&key(1), "POST", "/om/v1", &[3; 32], NOW_MS, [4; 16]);
        assert_eq!(verifier.verify("POST", "/om/v1", &headers), Ok([3; 32]));
        for later_ms in [0, CLOCK_SKEW_MS / 2, CLOCK_SKEW_MS] {
            clock.0.store(NOW_MS + later_ms, Ordering::SeqCst);
            assert_eq!(verifier.verify("POST", "/om/v1", &headers), Err(AuthError::Replayed));
        }
        // Once the nonce may be forgotten the time is no longer accepted.
        for later_ms in [CLOCK_SKEW_MS + 1, 3 * CLOCK_SKEW_MS, 10 * CLOCK_SKEW_MS] {
            clock.0.store(NOW_MS + later_ms, Ordering::SeqCst);
            assert_eq!(verifier.verify("POST", "/om/v1", &headers), Err(AuthError::Skewed));
        }
    }

    #[test]
    fn nonce_outlives_the_turn_of_a_window() {
        let (clock, verifier) = verifier();
        let first = sign(&key(1), "POST", "/om/v1", &[3; 32], NOW_MS, [1; 16]);
        assert!(verifier.verify("POST", "/om/v1", &first).is_ok());
        // Signed by a clock that is ahead, taken at the window's very end.
        clock.0.store(NOW_MS + WINDOW_MS, Ordering::SeqCst);
        let ahead = sign(&key(1), "POST", "/om/v1", &[3; 32], NOW_MS + WINDOW_MS + CLOCK_SKEW_MS, [2; 16]);
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
        let wrong_key = sign(&key(2), "POST", "/om/v1", &[3; 32], NOW_MS, [4; 16]);
        assert_eq!(refuse(&wrong_key, "POST", "/om/v1"), AuthError::Forged);
        let good = sign(&key(1), "POST", "/om/v1", &[3; 32], NOW_MS, [4; 16]);
        assert_eq!(refuse(&good, "PUT", "/om/v1"), AuthError::Forged);
        assert_eq!(refuse(&good, "POST", "/scm/v1"), AuthError::Forged);
        for (name, value) in
            [(TIME, "1000000001".to_owned()), (NONCE, "05".repeat(16)), (DIGEST, "06".repeat(32))]
        {
            let mut changed = good.clone();
            changed.insert(name, value.parse().unwrap());
            assert_eq!(refuse(&changed, "POST", "/om/v1"), AuthError::Forged);
        }
        let mut other = good.clone();
        other.insert(CLUSTER, HeaderValue::from_static("11111111-1111-1111-1111-111111111111"));
        assert_eq!(refuse(&other, "POST", "/om/v1"), AuthError::OtherCluster);
        let early = sign(&key(1), "POST", "/om/v1", &[3; 32], NOW_MS + CLOCK_SKEW_MS + 1, [4; 16]);
        assert_eq!(refuse(&early, "POST", "/om/v1"), AuthError::Skewed);
    }
}
