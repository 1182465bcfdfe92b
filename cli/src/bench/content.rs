//! Bodies: cheap to make, to sign and to check, and no two alike.
//!
//! All bodies of one size share a pseudo-random beginning and differ in their last 32 bytes, which name the object
//! and the write. So a server cannot answer from having seen the body, the SHA-256 of a signed body costs one block
//! (the digest of the beginning is kept), and a reader can tell whose bytes it got. A server that deduplicates inside
//! of objects would still find the beginnings alike.

use std::sync::Arc;

use bytes::Bytes;
use s3_client::Payload;
use sha2::{Digest, Sha256};

/// Object, write, and 16 bytes that depend on both and the seed.
const TAIL_BYTES: usize = 32;

/// The bodies of one size.
#[derive(Clone)]
pub(super) struct Content {
    size: u64,
    seed: u64,
    shared: Bytes,
    /// SHA-256 of `shared`, unfinished; absent if bodies are not signed.
    digest: Option<Sha256>,
}

/// Compares an incoming body with what was written.
pub(super) struct Check {
    content: Arc<Content>,
    object: u64,
    position: u64,
    tail: Vec<u8>,
    differs: bool,
}

impl Content {
    pub(super) fn new(size: u64, seed: u64, signed: bool) -> Self {
        let shared = pattern(seed, (size as usize).saturating_sub(TAIL_BYTES));
        let digest = signed.then(|| Sha256::new().chain_update(&shared));
        Self { size, seed, shared, digest }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The body of write number `write` to `object`.
    pub(super) fn payload(&self, object: u64, write: u64) -> Payload {
        let tail = self.tail(object, write);
        let digest = self.digest.as_ref().map(|digest| digest.clone().chain_update(&tail).finalize().into());
        let payload = match self.shared.is_empty() {
            true => Payload::from(tail),
            false => Payload::chunks(vec![self.shared.clone(), tail]),
        };
        match digest {
            Some(digest) => payload.with_sha256(digest),
            None => payload,
        }
    }

    fn tail(&self, object: u64, write: u64) -> Bytes {
        let mut mix = Random::new(self.seed ^ object.rotate_left(32) ^ write);
        let words = [object, write, mix.next(), mix.next()];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Bytes::from(bytes).slice(..TAIL_BYTES.min(self.size as usize))
    }
}

impl Check {
    pub(super) fn new(content: Arc<Content>, object: u64) -> Self {
        Self { content, object, position: 0, tail: Vec::new(), differs: false }
    }

    pub(super) fn update(&mut self, chunk: &[u8]) {
        let shared = &self.content.shared;
        let from = (self.position as usize).min(shared.len());
        let to = (from + chunk.len()).min(shared.len());
        let (head, rest) = chunk.split_at(to - from);
        self.differs |= head != &shared[from..to];
        if self.tail.len() + rest.len() <= TAIL_BYTES {
            self.tail.extend_from_slice(rest);
        } else {
            self.differs = true;
        }
        self.position += chunk.len() as u64;
    }

    /// Whether the body was one that was written to this object, whole.
    pub(super) fn passes(&self) -> bool {
        if self.differs || self.position != self.content.size {
            return false;
        }
        if self.tail.len() < TAIL_BYTES {
            // Too short to name its write: the object's number has to do.
            let object = self.object.to_le_bytes();
            let named = self.tail.len().min(object.len());
            return self.tail[..named] == object[..named];
        }
        let write = u64::from_le_bytes(self.tail[8..16].try_into().expect("eight bytes"));
        self.tail == self.content.tail(self.object, write)
    }
}

/// SplitMix64: small, fast, the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn pattern(seed: u64, length: usize) -> Bytes {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(content: &Content, object: u64, write: u64) -> Vec<u8> {
        [content.shared.as_ref(), content.tail(object, write).as_ref()].concat()
    }

    fn passes(content: &Content, object: u64, body: &[u8], step: usize) -> bool {
        let mut check = Check::new(Arc::new(content.clone()), object);
        body.chunks(step).for_each(|chunk| check.update(chunk));
        check.passes()
    }

    #[test]
    fn written_bodies_pass_however_they_are_cut() {
        for size in [0, 1, 7, 8, 31, 32, 33, 4096, 5000] {
            let content = Content::new(size, 1, true);
            let body = body(&content, 5, 9);
            assert_eq!((body.len() as u64, content.payload(5, 9).length()), (size, size));
            for step in [1, 31, 1000, 10_000] {
                assert!(passes(&content, 5, &body, step), "{size} by {step}");
            }
        }
    }

    #[test]
    fn foreign_short_long_and_damaged_bodies_fail() {
        let content = Content::new(4096, 1, true);
        let whole = body(&content, 5, 9);
        assert!(!passes(&content, 6, &whole, 100));
        assert!(!passes(&content, 5, &whole[..4095], 100));
        assert!(!passes(&content, 5, &[whole.as_slice(), b"x"].concat(), 100));
        for at in [0, 4063, 4064, 4080, 4095] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(!passes(&content, 5, &damaged, 100), "byte {at}");
        }
    }

    #[test]
    fn bodies_depend_on_seed_object_and_write() {
        let content = Content::new(64, 1, false);
        let other = Content::new(64, 2, false);
        assert_ne!(body(&content, 1, 1), body(&content, 1, 2));
        assert_ne!(body(&content, 1, 1), body(&content, 2, 1));
        assert_ne!(body(&content, 1, 1), body(&other, 1, 1));
        assert_eq!(body(&content, 1, 1), body(&Content::new(64, 1, true), 1, 1));
    }
}
