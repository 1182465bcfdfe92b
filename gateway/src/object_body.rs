//! Takes an object's or part's body in: digests it as it passes, stores it as blocks, and checks every claim about it.
//!
//! ```text
//!   RequestBody --256 KiB--> KeySink (blocks on datanodes)
//!                    `-----> Digests (a blocking thread, one batch behind)
//!   end: Content-MD5, payload hash, checksum header or trailer, length -> only then durable blocks
//! ```
//!
//! A small body skips the pipeline: it is digested where it is and written in one step.
//!
//! Invariants:
//! * What is returned is durable, and everything the request claimed of it is true.
//! * On an error nothing stays: dropped blocks are released.
//! * A request holds at most its share of the body memory.
//!
//! Not here: naming the blocks (PutObject, UploadPart), chunk CRCs (client).

use std::time::Duration;

use auth::{Action, Payload};
use bytes::{Bytes, BytesMut};
use client::key_reader::{KeyStream, READ_AHEAD_BYTES};
use client::key_writer::{WrittenBlocks, body_memory};
use futures_util::StreamExt;
use platform::task::spawn_blocking;
use tokio::task::JoinHandle;
use wire::block::Replication;
use wire::checksum::{Checksum, ChecksumAlgorithm};
use wire::limits::PUT_BYTES_MAX;
use wire::names::KeyName;
use wire::om::CheckQuota;

use crate::access::Bucket;
use crate::checksum::{Claims, check_checksum};
use crate::digest::{DigestPlan, DigestValues, Digests};
use crate::error::S3Error;
use crate::request::RequestContext;
use crate::request_body::{RequestBody, Source, signed_hash};

/// A body at least this long is asked about before it is read. Of a shorter one the commit's refusal comes in the time the
/// question would take, and a question for each would be dear: every PUT of a small object waits for one more round trip.
const QUOTA_ASKED_BYTES: u64 = 1 << 20;
/// Bodies up to this size are digested and written in one step: MD5 of it takes 0.1 ms.
const SMALL_BODY_BYTES: u64 = 64 << 10;
/// Bytes digested at once on a blocking thread: enough that handing over costs little.
const DIGEST_BATCH_BYTES: usize = 256 << 10;
/// A batch is as long as it is after this: a slow client's bytes must reach the datanodes before these give the block up.
const BATCH_WAIT: Duration = Duration::from_secs(10);
/// Memory that a streamed body holds before the writer has it: a batch being digested and one being gathered.
const STREAMED_BODY_MEMORY: usize = 2 * DIGEST_BATCH_BYTES;

/// A body that was taken in.
pub(crate) struct StoredBody {
    /// Its blocks, durable; released if dropped.
    pub(crate) blocks: WrittenBlocks,
    /// Bytes.
    pub(crate) size: u64,
    /// MD5.
    pub(crate) md5: [u8; 16],
    /// CRC64NVME, and the algorithm the request claimed or the upload asks for.
    pub(crate) checksums: Vec<Checksum>,
    /// That algorithm.
    pub(crate) algorithm: Option<ChecksumAlgorithm>,
}

/// Refuses a head without a length, or with one over the limit, before anything is read.
pub(crate) fn check_length(context: &RequestContext) -> Result<(), S3Error> {
    let headers = context.headers();
    let is_chunked = headers.contains_key("transfer-encoding");
    let length = context.header("content-length").map(|text| text.trim().parse::<u64>());
    match length {
        None if !is_chunked => Err(S3Error::missing_content_length()),
        Some(Ok(length)) if length > body_limit(context) => {
            Err(S3Error::entity_too_large(length, PUT_BYTES_MAX))
        }
        Some(Err(_)) => Err(S3Error::bad_request("InvalidRequest", "The Content-Length is not a number.")),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// The longest body on the wire: chunk framing adds little, so a sixteenth is room enough.
fn body_limit(context: &RequestContext) -> u64 {
    if context.caller.payload().is_chunked() { PUT_BYTES_MAX + PUT_BYTES_MAX / 16 } else { PUT_BYTES_MAX }
}

/// Refuses a body that would pass a quota now, before any of it is read: a client that waits for `100 Continue` need not
/// send it. The commit decides again.
async fn check_quota(
    context: &RequestContext,
    replaced: Option<&KeyName>,
    bytes: u64,
) -> Result<(), S3Error> {
    let session = &context.gateway.session;
    let ask = |bucket: Bucket| async move {
        session.call(CheckQuota { bucket: bucket.reference, key: replaced.cloned(), bytes }).await
    };
    context.with_bucket(Action::PutObject, ask).await
}

/// Takes the body in. `wanted` is an algorithm that an upload asks for although the request claims none. `replaced` is the
/// key it is to be; None for a part.
pub(crate) async fn store(
    context: &RequestContext,
    source: Source,
    claims: &Claims,
    wanted: Option<ChecksumAlgorithm>,
    replication: Replication,
    replaced: Option<&KeyName>,
) -> Result<StoredBody, S3Error> {
    let mut body = RequestBody::open(context, source)?;
    if let Some(length) = body.length().filter(|length| *length > PUT_BYTES_MAX) {
        return Err(S3Error::entity_too_large(length, PUT_BYTES_MAX));
    }
    if let Some(length) = body.length().filter(|length| *length >= QUOTA_ASKED_BYTES) {
        check_quota(context, replaced, length).await?;
    }
    let payload = context.caller.payload();
    let plan = DigestPlan {
        sha256: signed_hash(payload).is_some(),
        algorithm: claims.checksum.as_ref().map(|(algorithm, _)| *algorithm).or(wanted),
    };
    let (blocks, values) = match body.length() {
        Some(length) if length <= SMALL_BODY_BYTES => {
            store_small(context, &mut body, length as usize, claims, plan, replication).await?
        }
        length => stream(context, &mut body, length, claims, plan, replication).await?,
    };
    let DigestValues { length: size, md5, checksums, .. } = values;
    Ok(StoredBody { blocks, size, md5, checksums, algorithm: plan.algorithm })
}

async fn store_small(
    context: &RequestContext,
    body: &mut RequestBody,
    length: usize,
    claims: &Claims,
    plan: DigestPlan,
    replication: Replication,
) -> Result<(WrittenBlocks, DigestValues), S3Error> {
    let _memory = context.gateway.reserve_body_memory(length).await?;
    let data = gather(body, length).await?;
    let mut digests = Digests::new(plan);
    digests.update(&data);
    let values = digests.finish(plan);
    check_claims(context.caller.payload(), claims, &values, body)?;
    let blocks = context.gateway.writer.write_small(replication, data).await?;
    Ok((blocks, values))
}

/// All of a body whose length is known and small. One that came in one piece is not copied.
async fn gather(body: &mut RequestBody, length: usize) -> Result<Bytes, S3Error> {
    let Some(first) = body.next().await? else { return Ok(Bytes::new()) };
    let Some(second) = body.next().await? else { return Ok(first) };
    let mut whole = BytesMut::with_capacity(length);
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(data) = body.next().await? {
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn stream(
    context: &RequestContext,
    body: &mut RequestBody,
    length: Option<u64>,
    claims: &Claims,
    plan: DigestPlan,
    replication: Replication,
) -> Result<(WrittenBlocks, DigestValues), S3Error> {
    let memory = STREAMED_BODY_MEMORY + body_memory(length);
    let _memory = context.gateway.reserve_body_memory(memory).await?;
    let mut sink = context.gateway.writer.begin(replication, length);
    let mut digesting = Digesting::Idle(Box::new(Digests::new(plan)));
    let mut received = 0;
    let mut is_done = false;
    while !is_done {
        let batch = next_batch(body, BATCH_WAIT).await?;
        is_done = batch.is_last;
        let batch = batch.pieces;
        received += batch.iter().map(|data| data.len() as u64).sum::<u64>();
        if received > PUT_BYTES_MAX {
            return Err(S3Error::entity_too_large(received, PUT_BYTES_MAX));
        }
        digesting = digesting.add(batch.clone()).await?;
        for data in batch {
            sink.push(data).await?;
        }
    }
    let values = digesting.wait().await?.finish(plan);
    check_claims(context.caller.payload(), claims, &values, body)?;
    Ok((sink.finish().await?, values))
}

/// Pieces of a body, digested and stored together.
struct Batch {
    pieces: Vec<Bytes>,
    is_last: bool,
}

/// A body that comes in pieces.
trait Pieces {
    /// The next piece; None at the end. A wait that is given up loses nothing.
    fn next_piece(&mut self) -> impl Future<Output = Result<Option<Bytes>, S3Error>> + Send;
}

impl Pieces for RequestBody {
    fn next_piece(&mut self) -> impl Future<Output = Result<Option<Bytes>, S3Error>> + Send {
        self.next()
    }
}

/// The next pieces: as many as are worth a batch, or what came within `wait` of the first. Datanodes do not wait for ever.
async fn next_batch(body: &mut impl Pieces, wait: Duration) -> Result<Batch, S3Error> {
    let mut batch = Batch { pieces: Vec::new(), is_last: false };
    let mut bytes = 0;
    let mut until = None;
    while bytes < DIGEST_BATCH_BYTES {
        let piece = match until {
            None => body.next_piece().await?,
            Some(until) => match tokio::time::timeout_at(until, body.next_piece()).await {
                Ok(piece) => piece?,
                Err(_) => break,
            },
        };
        let Some(piece) = piece else {
            batch.is_last = true;
            break;
        };
        bytes += piece.len();
        batch.pieces.push(piece);
        until = until.or_else(|| Some(tokio::time::Instant::now() + wait));
    }
    Ok(batch)
}

/// Stores bytes that come from another key: digested anew, since the copy has its own ETag and checksums.
pub(crate) async fn store_copy(
    context: &RequestContext,
    mut bytes: KeyStream,
    length: u64,
    algorithm: Option<ChecksumAlgorithm>,
    replication: Replication,
) -> Result<StoredBody, S3Error> {
    // At once for both sides: two reservations of one request could wait for each other's.
    let memory = STREAMED_BODY_MEMORY + body_memory(Some(length)) + READ_AHEAD_BYTES;
    let _memory = context.gateway.reserve_body_memory(memory).await?;
    let plan = DigestPlan { sha256: false, algorithm };
    let mut sink = context.gateway.writer.begin(replication, Some(length));
    let mut digesting = Digesting::Idle(Box::new(Digests::new(plan)));
    while let Some(data) = bytes.next().await {
        let data = data?;
        digesting = digesting.add(vec![data.clone()]).await?;
        sink.push(data).await?;
    }
    let DigestValues { length: size, md5, checksums, .. } = digesting.wait().await?.finish(plan);
    Ok(StoredBody { blocks: sink.finish().await?, size, md5, checksums, algorithm })
}

/// Digests that are at hand, or at work on a blocking thread.
enum Digesting {
    Idle(Box<Digests>),
    Busy(JoinHandle<Box<Digests>>),
}

impl Digesting {
    async fn add(self, batch: Vec<Bytes>) -> Result<Self, S3Error> {
        let mut digests = self.wait().await?;
        Ok(Self::Busy(spawn_blocking(move || {
            digests.update_all(&batch);
            digests
        })))
    }

    async fn wait(self) -> Result<Box<Digests>, S3Error> {
        match self {
            Self::Idle(digests) => Ok(digests),
            // Fails only when the runtime is shutting down.
            Self::Busy(work) => work.await.map_err(|_| S3Error::unavailable("The server is shutting down.")),
        }
    }
}

/// Compares everything the request claimed of its body with what came. The body has been read to its end.
fn check_claims(
    payload: &Payload,
    claims: &Claims,
    values: &DigestValues,
    body: &RequestBody,
) -> Result<(), S3Error> {
    if let Some(claimed) = &claims.md5 {
        claims.check_md5(claimed, &values.md5)?;
    }
    if let (Some(hash), Some(sha256)) = (signed_hash(payload), &values.sha256) {
        hash.check(sha256)?;
    }
    if let Some((algorithm, claimed)) = &claims.checksum {
        let computed =
            values.checksum(*algorithm).map(|checksum| checksum.value.as_slice()).unwrap_or_default();
        check_checksum(*algorithm, claimed, computed, body.trailer(algorithm.header()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    impl Pieces for mpsc::Receiver<Bytes> {
        async fn next_piece(&mut self) -> Result<Option<Bytes>, S3Error> {
            Ok(self.recv().await)
        }
    }

    #[tokio::test]
    async fn slow_bodies_are_passed_on_before_a_batch_is_full() {
        let (sender, mut body) = mpsc::channel(2);
        let wait = Duration::from_millis(1);
        sender.try_send(Bytes::from_static(b"here")).unwrap();
        let batch = next_batch(&mut body, wait).await.unwrap();
        assert_eq!((batch.pieces, batch.is_last), (vec![Bytes::from_static(b"here")], false));
        // A wait that was given up loses nothing.
        sender.try_send(Bytes::from_static(b"late")).unwrap();
        drop(sender);
        let batch = next_batch(&mut body, wait).await.unwrap();
        assert_eq!((batch.pieces, batch.is_last), (vec![Bytes::from_static(b"late")], true));
    }
}
