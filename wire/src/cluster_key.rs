//! The secret that all processes of a cluster share, and the proofs made with it.
//!
//! Invariants:
//! * Proofs of different purposes never agree: the purpose is part of what is signed, and every part is preceded by
//!   its length, so that no two lists of parts are the same bytes.
//! * The secret never shows in logs.
//!
//! Not here: headers of a call (`client::http::auth`), sealing of secrets at rest (meta).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::ids::ClusterId;

/// Bytes of the secret, of a proof and of a digest.
pub const SECRET_BYTES: usize = 32;

/// The cluster's identity and secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey {
    /// Which cluster.
    pub id: ClusterId,
    secret: [u8; SECRET_BYTES],
}

impl ClusterKey {
    /// A key from its parts.
    pub const fn new(id: ClusterId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { id, secret }
    }

    /// The secret, for those who derive other keys from it.
    pub const fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// HMAC-SHA256 over the cluster id, `purpose` and `parts`.
    pub fn mac(&self, purpose: &str, parts: &[&[u8]]) -> [u8; SECRET_BYTES] {
        self.keyed(purpose, parts).finalize().into_bytes().into()
    }

    /// Whether `mac` is [`Self::mac`] of the same. Takes the same time wherever they differ.
    pub fn verify(&self, purpose: &str, parts: &[&[u8]], mac: &[u8; SECRET_BYTES]) -> bool {
        self.keyed(purpose, parts).verify_slice(mac).is_ok()
    }

    fn keyed(&self, purpose: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(self.id.0.as_bytes());
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({}, ***)", self.id)
    }
}

/// SHA-256 of a message's bytes: what a proof covers in place of the bytes.
pub fn body_digest(body: &[u8]) -> [u8; SECRET_BYTES] {
    Sha256::digest(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_holds_for_its_purpose_parts_and_cluster_only() {
        let id = ClusterId(uuid::Uuid::from_u128(1));
        let key = ClusterKey::new(id, [7; 32]);
        let mac = key.mac("call", &[b"ab", b"c"]);
        assert!(key.verify("call", &[b"ab", b"c"], &mac));
        assert!(!key.verify("call", &[b"a", b"bc"], &mac));
        assert!(!key.verify("seal", &[b"ab", b"c"], &mac));
        assert!(!ClusterKey::new(id, [8; 32]).verify("call", &[b"ab", b"c"], &mac));
        let other = ClusterId(uuid::Uuid::from_u128(2));
        assert!(!ClusterKey::new(other, [7; 32]).verify("call", &[b"ab", b"c"], &mac));
    }

    #[test]
    fn secret_does_not_show() {
        let key = ClusterKey::new(ClusterId::default(), [0xab; 32]);
        assert!(!format!("{key:?}").contains("171"), "{key:?}");
        assert!(format!("{key:?}").ends_with("***)"));
    }
}
