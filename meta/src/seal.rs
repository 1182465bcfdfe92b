//! Secrets of access keys: sealed at rest, used here, never handed out.
//!
//! Sealed by ChaCha20-Poly1305 under a key derived from the cluster key, bound to the access key's name, so that a
//! sealed secret moved to another row does not open. The nonce is drawn in prepare and stands in the command.
//!
//! Not here: verifying requests (gateway and `auth`).

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, Payload};
use hmac::{Hmac, KeyInit, Mac};
use serde_bytes::ByteBuf;
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::schema::AccessKeyRow;

/// Names the use of the derived key, so that no other use of the cluster key shares it.
const PURPOSE: &[u8] = b"ferrozone om seal of access keys 1";

/// Seals and opens secrets.
pub(crate) struct Sealer {
    cipher: ChaCha20Poly1305,
}

impl Sealer {
    pub(crate) fn new(cluster_key: &[u8; 32]) -> Self {
        let key = hmac_sha256(cluster_key, PURPOSE);
        Self { cipher: chacha20poly1305::KeyInit::new(&key.into()) }
    }

    pub(crate) fn seal(&self, access_key: &str, secret: &str, nonce: &[u8; 12]) -> ByteBuf {
        let payload = Payload { msg: secret.as_bytes(), aad: access_key.as_bytes() };
        let sealed =
            self.cipher.encrypt(nonce.into(), payload).expect("a secret is far below the cipher's limit");
        ByteBuf::from(sealed)
    }

    /// The secret. None if it was sealed under another cluster key.
    pub(crate) fn open(&self, access_key: &str, row: &AccessKeyRow) -> Option<Zeroizing<String>> {
        let payload = Payload { msg: &row.sealed, aad: access_key.as_bytes() };
        let secret = self.cipher.decrypt((&row.nonce).into(), payload).ok()?;
        String::from_utf8(secret).ok().map(Zeroizing::new)
    }
}

/// SigV4's signing key: the end of the chain over day, region and service.
pub(crate) fn signing_key(secret: &str, day: &str, region: &str, service: &str) -> [u8; 32] {
    let start = Zeroizing::new(format!("AWS4{secret}"));
    let first = hmac_sha256(start.as_bytes(), day.as_bytes());
    let second = hmac_sha256(&first, region.as_bytes());
    let third = hmac_sha256(&second, service.as_bytes());
    hmac_sha256(&third, b"aws4_request")
}

/// SigV2's signature.
pub(crate) fn sign_v2(secret: &str, string_to_sign: &str) -> [u8; 20] {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(string_to_sign.as_bytes());
    mac.finalize().into_bytes().into()
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use wire::om::UserId;

    use super::*;

    #[test]
    fn sealed_secret_opens_only_under_its_key_and_name() {
        let sealer = Sealer::new(&[1; 32]);
        let nonce = [7; 12];
        let sealed = sealer.seal("AK", "secret", &nonce);
        let row = AccessKeyRow { user: UserId("u".into()), nonce, sealed };
        assert_eq!(sealer.open("AK", &row).as_deref().map(String::as_str), Some("secret"));
        assert_eq!(sealer.open("OTHER", &row), None);
        assert_eq!(Sealer::new(&[2; 32]).open("AK", &row), None);
    }

    /// The example of Amazon's Signature Version 4 documentation ("Deriving the signing key").
    #[test]
    fn signing_key_is_amazons() {
        let key = signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830", "us-east-1", "iam");
        let expected = "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9";
        assert_eq!(key.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
    }
}
