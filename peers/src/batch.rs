//! Batches of messages in one body: each preceded by its length.
//!
//! Not here: what a batch holds (consensus).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes of one batch at most: several commands of 1 MiB with room for their entries' heads.
pub(crate) const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes of a body at most: one batch of the longest kind.
pub(crate) const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX + LENGTH_BYTES;
/// Bytes before a batch.
const LENGTH_BYTES: usize = 4;
/// A body that has as much takes no further batch: heartbeats must not wait behind it for long.
const BODY_BYTES_ENOUGH: usize = 1 << 20;

/// A body being put together.
#[derive(Default)]
pub(crate) struct Body {
    bytes: BytesMut,
    batches: usize,
}

impl Body {
    /// Adds a batch.
    pub(crate) fn add(&mut self, batch: &[u8]) {
        self.bytes.reserve(LENGTH_BYTES + batch.len());
        self.bytes.put_u32_le(u32::try_from(batch.len()).expect("a batch is under its limit"));
        self.bytes.put_slice(batch);
        self.batches += 1;
    }

    /// Whether another batch of this length may join.
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.bytes.len() + LENGTH_BYTES + length <= BODY_BYTES_ENOUGH
    }

    /// How many batches.
    pub(crate) fn batches(&self) -> usize {
        self.batches
    }

    /// The bytes that are sent.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// The batches of a body; None if lengths disagree.
pub(crate) fn split(mut body: Bytes) -> Option<Vec<Bytes>> {
    let mut batches = Vec::new();
    while body.has_remaining() {
        if body.len() < LENGTH_BYTES {
            return None;
        }
        let length = body.get_u32_le() as usize;
        if length > body.len() {
            return None;
        }
        batches.push(body.split_to(length));
    }
    Some(batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_out_as_they_went_in() {
        let mut body = Body::default();
        for batch in [&b"first"[..], b"", b"third"] {
            assert!(body.has_room(batch.len()));
            body.add(batch);
        }
        assert_eq!((body.batches(), body.has_room(BODY_BYTES_ENOUGH)), (3, false));
        let bytes = body.into_bytes();
        assert_eq!(&bytes[..9], b"\x05\0\0\0first");
        assert_eq!(split(bytes.clone()).unwrap(), [&b"first"[..], b"", b"third"]);
        for length in [1, 3, 8, bytes.len() - 1] {
            assert_eq!(split(bytes.slice(..length)), None, "cut at {length}");
        }
        assert_eq!(split(Bytes::new()).unwrap(), Vec::<Bytes>::new());
    }
}
