//! Secrets, and the keys and signatures made of them.
//!
//! Invariants:
//! * A secret or key is wiped when dropped and prints as `***`.
//! * Comparison of anything derived from a secret takes constant time.
//!
//! Not here: where secrets are kept (the Ozone Manager, sealed by the cluster key).

use aws_sigv4::sign::v4::generate_signing_key;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::date;

/// A secret access key.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<String>);

impl SecretKey {
    /// Takes a secret into custody.
    pub fn new(secret: String) -> Self {
        SecretKey(Zeroizing::new(secret))
    }

    /// The secret itself, for those who must compute with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(***)")
    }
}

/// The SigV4 key of (access key, day, region, service). It signs for that scope only and cannot be turned back.
#[derive(Clone)]
pub struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// Derives the key as Amazon's own signer does. `None` if `day` is no `YYYYMMDD`.
    pub fn derive(secret: &SecretKey, day: &str, region: &str, service: &str) -> Option<Self> {
        let midnight = date::parse_iso_basic(&format!("{day}T000000Z"))?;
        let time = UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(midnight).ok()?))?;
        let key = generate_signing_key(secret.expose(), time, region, service);
        Some(SigningKey(Zeroizing::new(key.as_ref().try_into().ok()?)))
    }

    /// A key derived elsewhere.
    pub fn from_bytes(key: [u8; 32]) -> Self {
        SigningKey(Zeroizing::new(key))
    }

    /// Stands in for the key of an unknown access key, so that refusing it takes as long as refusing a bad signature.
    /// Whatever it verifies must be refused all the same.
    pub fn decoy() -> Self {
        SigningKey::from_bytes([0x5a; 32])
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA256 of `message` under this key, in lower-case hex.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0[..]).expect("HMAC takes keys of any size");
        mac.update(message);
        let mut text = [0; 64];
        hex::encode_to_slice(mac.finalize().into_bytes(), &mut text).expect("64 digits hold 32 bytes");
        text
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// HMAC-SHA1 of a SigV2 string to sign.
pub fn sign_v2(secret: &SecretKey, string_to_sign: &str) -> [u8; 20] {
    let mut mac =
        Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any size");
    mac.update(string_to_sign.as_bytes());
    mac.finalize().into_bytes().into()
}

/// Whether two signatures are equal, in time that depends on their lengths alone.
pub(crate) fn same_signature(computed: &[u8], provided: &[u8]) -> bool {
    bool::from(computed.ct_eq(provided))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_key_is_amazons_documented_one() {
        // AWS General Reference, "Deriving the signing key" example.
        let secret = SecretKey::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned());
        let key = SigningKey::derive(&secret, "20120215", "us-east-1", "iam").unwrap();
        assert_eq!(
            hex::encode(key.as_bytes()),
            "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"
        );
        assert!(SigningKey::derive(&secret, "2012021", "us-east-1", "iam").is_none());
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = SecretKey::new("hunter2".to_owned());
        let key = SigningKey::from_bytes([7; 32]);
        assert_eq!(format!("{secret:?} {key:?}"), "SecretKey(***) SigningKey(***)");
    }
}
