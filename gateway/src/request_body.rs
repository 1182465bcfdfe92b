//! A request's body, without its framing.
//!
//! The `aws-chunked` framing and its signatures are taken off here (auth's decoder); a client that sends too slowly is
//! given up. The digest of a plain signed body is the reader's duty: whoever hashes the body compares with
//! [`signed_hash`] before anything becomes visible.
//!
//! Invariants:
//! * Exactly as many bytes come out as the head declared, or an error does.
//! * Bytes are provisional until [`RequestBody::next`] has answered None.
//! * Nothing is polled before the first `next`: hyper then sends `100 Continue`.
//!
//! Not here: digests and checksums (see `checksum` and the object handlers).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use auth::{ChunkDecoder, Payload, PayloadHash, Trailer};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::access::Caller;
use crate::checksum;
use crate::error::S3Error;
use crate::request::RequestContext;

/// Bytes read and thrown away after a refusal at most ...
const DRAIN_BYTES: u64 = 16 << 20;
/// ... and for so long: then the connection is closed, whatever the client thinks of it.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Where the bytes come from.
///
/// Dropped before its end, it lets a task read on for a while: a client that is still sending reads our answer only if we
/// take what it sends, and its connection stays usable.
#[derive(Debug)]
pub(crate) struct Source {
    bytes: Origin,
    /// Set if the client waits for `100 Continue`: whether it was sent.
    invited: Option<Arc<AtomicBool>>,
    /// Nothing is left to read.
    is_at_end: bool,
}

#[derive(Debug)]
enum Origin {
    Incoming(Incoming),
    Memory(Full<Bytes>),
}

impl Source {
    /// The body of a connection's request.
    pub(crate) fn incoming(body: Incoming, headers: &HeaderMap) -> Self {
        let waits =
            headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        // Also for an empty body, for which hyper never sends `100 Continue`: botocore, once answered without it, reads
        // the next answer on that connection wrongly and waits for ever, so the connection must not be used again.
        let invited = waits.then(Arc::default);
        Self { bytes: Origin::Incoming(body), invited, is_at_end: false }
    }

    /// A body that is all here.
    #[cfg(test)]
    pub(crate) fn memory(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: Origin::Memory(Full::new(bytes.into())), invited: None, is_at_end: false }
    }

    /// Whether the client was, or need not be, invited to send its body: answers later whether the connection is at a
    /// request's end or in doubt.
    pub(crate) fn invitation(&self) -> Option<Arc<AtomicBool>> {
        self.invited.clone()
    }

    async fn frame(&mut self) -> Option<Result<Bytes, S3Error>> {
        if let Some(invited) = &self.invited
            && self.exact_length() != Some(0)
        {
            invited.store(true, Ordering::Release);
        }
        loop {
            let frame = match &mut self.bytes {
                // The client went away or broke its own framing.
                Origin::Incoming(body) => {
                    body.frame().await.map(|frame| frame.map_err(|_| S3Error::incomplete_body()))
                }
                Origin::Memory(body) => body.frame().await.map(|frame| frame.map_err(|never| match never {})),
            };
            let Some(frame) = frame else {
                self.is_at_end = true;
                return None;
            };
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) if data.is_empty() => {}
                Ok(Ok(data)) => return Some(Ok(data)),
                // HTTP's own trailers carry nothing for S3.
                Ok(Err(_)) => {}
                Err(error) => {
                    self.is_at_end = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The Content-Length, if there is one.
    fn exact_length(&self) -> Option<u64> {
        match &self.bytes {
            Origin::Incoming(body) => body.size_hint().exact(),
            Origin::Memory(body) => body.size_hint().exact(),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let Origin::Incoming(body) = &mut self.bytes else { return };
        let is_uninvited = self.invited.as_ref().is_some_and(|invited| !invited.load(Ordering::Acquire));
        if self.is_at_end || body.is_end_stream() || is_uninvited {
            return;
        }
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        // Incoming has an empty state of its own, but no way to make one from outside: swap the enum instead.
        let taken = std::mem::replace(&mut self.bytes, Origin::Memory(Full::default()));
        if let Origin::Incoming(body) = taken {
            platform::task::spawn(tokio::time::timeout(DRAIN_TIME, drain(body)));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(less) = left.checked_sub(bytes) else { return };
        left = less;
    }
}

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct RequestBody {
    source: Source,
    decoder: Option<ChunkDecoder>,
    /// Data taken out of one frame.
    ready: VecDeque<Bytes>,
    trailers: Vec<Trailer>,
    length: Option<u64>,
    received: u64,
    is_done: bool,
    pace: Pace,
}

impl RequestBody {
    /// Judges the head's claims about the body; reads nothing yet.
    pub(crate) fn open(context: &RequestContext, source: Source) -> Result<Self, S3Error> {
        let decoder = match &context.caller {
            Caller::User(user) => user.verified.chunk_decoder(context.headers())?,
            Caller::Anonymous(payload) => auth::anonymous_chunk_decoder(payload, context.headers())?,
        };
        let length = match &decoder {
            Some(decoder) => Some(decoder.decoded_len()),
            None => source.exact_length(),
        };
        let config = &context.gateway.config;
        let pace = Pace::new(config.body_rate_min, config.body_rate_window);
        Ok(Self {
            source,
            decoder,
            ready: VecDeque::new(),
            trailers: Vec::new(),
            length,
            received: 0,
            is_done: false,
            pace,
        })
    }

    /// Bytes of data, if the head says: Content-Length, or `x-amz-decoded-content-length` of a chunked body.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next data; None at the end, when everything about the framing has been verified.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, S3Error> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                self.received += data.len() as u64;
                return Ok(Some(data));
            }
            if self.is_done {
                return Ok(None);
            }
            let frame = self.pace.wait(self.source.frame()).await?;
            match (frame, &mut self.decoder) {
                (Some(frame), None) => {
                    let data = frame?;
                    self.pace.count(data.len());
                    self.received += data.len() as u64;
                    return Ok(Some(data));
                }
                (Some(frame), Some(decoder)) => {
                    let data = frame?;
                    self.pace.count(data.len());
                    let mut out = Vec::with_capacity(2);
                    decoder.feed(data, &mut out)?;
                    self.ready.extend(out);
                }
                (None, _) => self.end()?,
            }
        }
    }

    fn end(&mut self) -> Result<(), S3Error> {
        self.is_done = true;
        if let Some(decoder) = self.decoder.take() {
            self.trailers = decoder.finish()?;
        }
        match self.length {
            Some(length) if length != self.received => Err(S3Error::incomplete_body()),
            _ => Ok(()),
        }
    }

    /// The trailers, once `next` has answered None.
    pub(crate) fn trailers(&self) -> &[Trailer] {
        debug_assert!(self.is_done);
        &self.trailers
    }

    /// A trailer's value.
    pub(crate) fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers().iter().find(|trailer| trailer.name == name).map(|trailer| trailer.value.as_str())
    }
}

/// The SHA-256 that the signature promises of the whole plain body; whoever reads the body must check it.
pub(crate) fn signed_hash(payload: &Payload) -> Option<&PayloadHash> {
    match payload {
        Payload::Signed(hash) => Some(hash),
        Payload::Unsigned
        | Payload::StreamingSigned
        | Payload::StreamingSignedTrailer
        | Payload::StreamingUnsignedTrailer => None,
    }
}

/// Reads a body that is wholly needed, such as XML: at most `limit` bytes, digests checked.
pub(crate) async fn read_whole(
    context: &RequestContext,
    source: Source,
    limit: usize,
) -> Result<Bytes, S3Error> {
    read_claimed(context, source, limit, checksum::Claims::of(context.headers())?).await
}

/// As [`read_whole`], where `x-amz-checksum-*` speak of something else than the body: of the object that Complete makes.
pub(crate) async fn read_unclaimed(
    context: &RequestContext,
    source: Source,
    limit: usize,
) -> Result<Bytes, S3Error> {
    let md5 = context
        .headers()
        .get("content-md5")
        .map(|value| checksum::content_md5(value.as_bytes()))
        .transpose()?;
    read_claimed(context, source, limit, checksum::Claims { md5, checksum: None }).await
}

async fn read_claimed(
    context: &RequestContext,
    source: Source,
    limit: usize,
    claims: checksum::Claims,
) -> Result<Bytes, S3Error> {
    let mut body = RequestBody::open(context, source)?;
    let too_long = || {
        S3Error::bad_request("MaxMessageLengthExceeded", "Your request was too big.")
            .with("MaxMessageLengthBytes", limit.to_string())
    };
    if body.length().is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let mut whole = BytesMut::new();
    while let Some(data) = body.next().await? {
        if whole.len() + data.len() > limit {
            return Err(too_long());
        }
        whole.extend_from_slice(&data);
    }
    if let Some(hash) = signed_hash(context.caller.payload()) {
        hash.check(&checksum::sha256(&whole))?;
    }
    claims.check_whole(&whole, &body)?;
    Ok(whole.freeze())
}

/// The least speed of a body: so many bytes in every window.
#[derive(Debug)]
struct Pace {
    bytes_per_window: u64,
    window_ns: u64,
    /// Of the current window.
    started_ns: Option<u64>,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64, window: Duration) -> Self {
        Self {
            bytes_per_window: bytes_per_second.saturating_mul(window.as_millis() as u64) / 1000,
            window_ns: window.as_nanos() as u64,
            started_ns: None,
            bytes: 0,
        }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Waits for `frame`, but no longer than the window allows.
    async fn wait<T>(&mut self, frame: impl Future<Output = T>) -> Result<T, S3Error> {
        let mut frame = std::pin::pin!(frame);
        // What is there already costs no timer.
        if let Some(ready) = futures_util::FutureExt::now_or_never(frame.as_mut()) {
            return Ok(ready);
        }
        let now = wire::clock::steady_ns();
        let started = *self.started_ns.get_or_insert(now);
        let mut left = self.window_ns.saturating_sub(now - started);
        if left == 0 {
            if self.bytes < self.bytes_per_window {
                return Err(S3Error::request_timeout());
            }
            (self.started_ns, self.bytes, left) = (Some(now), 0, self.window_ns);
        }
        match tokio::time::timeout(Duration::from_nanos(left), frame.as_mut()).await {
            Ok(frame) => Ok(frame),
            Err(_) if self.bytes < self.bytes_per_window => Err(S3Error::request_timeout()),
            Err(_) => {
                (self.started_ns, self.bytes) = (Some(wire::clock::steady_ns()), 0);
                let window = Duration::from_nanos(self.window_ns);
                tokio::time::timeout(window, frame).await.map_err(|_| S3Error::request_timeout())
            }
        }
    }
}
