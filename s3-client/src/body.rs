//! What is sent: payloads in memory or streamed, always of known length.
//!
//! Chunks in memory are shared, not copied, and can be sent again; a stream is sent once. A stream that yields fewer
//! or more bytes than promised breaks the exchange, so that no server stores a short object as whole.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Body, Frame, SizeHint};
use sha2::{Digest, Sha256};

type ByteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The body of a PUT.
pub struct Payload {
    length: u64,
    sha256: Option<String>,
    source: Source,
}

enum Source {
    Empty,
    One(Bytes),
    Chunks(Vec<Bytes>),
    Stream(ByteStream),
}

impl Payload {
    /// No body.
    pub fn empty() -> Self {
        Self { length: 0, sha256: None, source: Source::Empty }
    }

    /// Several chunks, sent one after the other without being joined.
    pub fn chunks(chunks: Vec<Bytes>) -> Self {
        let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Self { length, sha256: None, source: Source::Chunks(chunks) }
    }

    /// A stream that must yield exactly `length` bytes. It is sent with an unsigned payload unless
    /// [`with_sha256`](Self::with_sha256) says what its digest is, and it cannot be retried.
    pub fn stream(length: u64, stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self { length, sha256: None, source: Source::Stream(Box::pin(stream)) }
    }

    /// The payload's SHA-256, for a caller who knows it already: it is not computed again.
    pub fn with_sha256(mut self, digest: [u8; 32]) -> Self {
        self.sha256 = Some(hex::encode(digest));
        self
    }

    /// Bytes in it.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest in hexadecimal, computed if need be; `None` for a stream whose digest nobody gave.
    pub(crate) fn sha256(&self) -> Option<String> {
        if self.sha256.is_some() {
            return self.sha256.clone();
        }
        let mut hasher = Sha256::new();
        match &self.source {
            Source::Empty => {}
            Source::One(bytes) => hasher.update(bytes),
            Source::Chunks(chunks) => chunks.iter().for_each(|chunk| hasher.update(chunk)),
            Source::Stream(_) => return None,
        }
        Some(hex::encode(hasher.finalize()))
    }

    /// The same payload once more, if it can be sent twice.
    pub(crate) fn again(&self) -> Option<Self> {
        let source = match &self.source {
            Source::Empty => Source::Empty,
            Source::One(bytes) => Source::One(bytes.clone()),
            Source::Chunks(chunks) => Source::Chunks(chunks.clone()),
            Source::Stream(_) => return None,
        };
        Some(Self { length: self.length, sha256: self.sha256.clone(), source })
    }

    pub(crate) fn into_body(self) -> RequestBody {
        let parts = match self.source {
            Source::Empty => Parts::Chunks(Vec::new().into_iter()),
            Source::One(bytes) => Parts::One(Some(bytes)),
            Source::Chunks(chunks) => Parts::Chunks(chunks.into_iter()),
            Source::Stream(stream) => Parts::Stream(stream),
        };
        RequestBody { left: self.length, parts }
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { length: bytes.len() as u64, sha256: None, source: Source::One(bytes) }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl From<&'static [u8]> for Payload {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from(Bytes::from_static(bytes))
    }
}

/// A payload on its way out.
pub(crate) struct RequestBody {
    left: u64,
    parts: Parts,
}

enum Parts {
    One(Option<Bytes>),
    Chunks(std::vec::IntoIter<Bytes>),
    Stream(ByteStream),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = match &mut self.parts {
            Parts::One(bytes) => bytes.take().map(Ok),
            Parts::Chunks(chunks) => chunks.next().map(Ok),
            Parts::Stream(stream) => match stream.as_mut().poll_next(context) {
                Poll::Ready(next) => next,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(match next {
            Some(Ok(bytes)) if bytes.len() as u64 > self.left => {
                Some(Err(io::Error::other("body is longer than announced")))
            }
            Some(Ok(bytes)) => {
                self.left -= bytes.len() as u64;
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.left > 0 => {
                Some(Err(io::Error::other(format!("body ended {} bytes early", self.left))))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        // A stream is polled to its end, so that one that is too long is noticed.
        self.left == 0 && !matches!(self.parts, Parts::Stream(_))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::BodyExt;

    use super::*;
    use crate::sign::EMPTY_SHA256;

    async fn collect(payload: Payload) -> Result<Bytes, io::Error> {
        payload.into_body().collect().await.map(|collected| collected.to_bytes())
    }

    #[tokio::test]
    async fn chunks_are_sent_in_order_and_can_be_sent_again() {
        let payload =
            Payload::chunks(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]);
        assert_eq!(payload.length(), 3);
        assert_eq!(payload.sha256(), Payload::from(b"abc".as_slice()).sha256());
        assert_eq!(collect(payload.again().unwrap()).await.unwrap(), "abc");
        assert_eq!(collect(payload).await.unwrap(), "abc");
        assert_eq!(Payload::empty().sha256().unwrap(), EMPTY_SHA256);
    }

    #[tokio::test]
    async fn stream_of_wrong_length_fails() {
        let chunk = || stream::iter([Ok(Bytes::from_static(b"abc"))]);
        assert_eq!(collect(Payload::stream(3, chunk())).await.unwrap(), "abc");
        assert!(collect(Payload::stream(4, chunk())).await.unwrap_err().to_string().contains("early"));
        assert!(collect(Payload::stream(2, chunk())).await.unwrap_err().to_string().contains("longer"));
        assert!(Payload::stream(3, chunk()).again().is_none());
        assert!(Payload::stream(3, chunk()).sha256().is_none());
    }
}
