//! Framing of block streams: what travels is cut into frames, and the last frame says that it is the last.
//!
//! ```text
//!   frame:  | kind, 1 byte | 0 0 0 | payload length, u32 LE | payload |
//!   1 head    MessagePack: WriteBlock, ReadBlock, FetchReplica, or what a snapshot begins with
//!   2 run     | data length, u32 LE | one CRC32C per 64 KiB chunk, u32 LE each | data |
//!   3 end     | bytes of data in all runs, u64 LE |
//!   4 error   MessagePack: Failure. Ends the stream.
//!   5 go      nothing: the receiver takes the runs now
//!   6 receipt | proof, 32 bytes | MessagePack: answer |. Ends the stream.
//!   7 replica MessagePack: replication, deletion done, blocks, bytes
//!   8 block   MessagePack: local id, length, digest
//! ```
//!
//! Invariants:
//! * Lengths are checked before anything is allocated; at most one frame is buffered.
//! * A run whose chunks do not have their CRCs is refused by the receiver.
//! * A stream that ends without `end`, or whose `end` counts other bytes, is broken.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::chunk::{ChunkRun, chunk_count};
use wire::limits::CHUNK_RUN_BYTES_MAX;
use wire::status::{Failure, Status};

/// Bytes before a payload.
const FRAME_HEAD_BYTES: usize = 8;
/// Bytes of a message in a frame at most: a token and some ids take 300, what a snapshot begins with some thousands.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Bytes of a run frame's payload at most.
const RUN_PAYLOAD_MAX: usize = 4 + 4 * chunk_count(CHUNK_RUN_BYTES_MAX as u64) as usize + CHUNK_RUN_BYTES_MAX;

const HEAD: u8 = 1;
const RUN: u8 = 2;
const END: u8 = 3;
const ERROR: u8 = 4;
const GO: u8 = 5;
const RECEIPT: u8 = 6;
const REPLICA: u8 = 7;
const BLOCK: u8 = 8;

/// Bytes of a receipt's proof.
const MAC_BYTES: usize = 32;

/// One frame as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The message a stream begins with, still encoded: its digest is checked first.
    Head(Bytes),
    /// A run of chunks with the CRCs they claim.
    Run(ChunkRun),
    /// The stream is complete.
    End,
    /// The sender failed.
    Error(Failure),
    /// The receiver of a stream takes its runs from now on.
    Go,
    /// How a stream was taken, with the proof of who says so.
    Receipt([u8; MAC_BYTES], Bytes),
    /// What a replica begins with, still encoded.
    Replica(Bytes),
    /// What a block of a replica begins with, still encoded.
    Block(Bytes),
}

/// The message that a stream begins with.
pub(crate) fn encode_message(message: &impl Serialize) -> Result<Bytes, Failure> {
    let payload = rmp_serde::to_vec(message)
        .map_err(|error| Failure::new(Status::Internal, format!("cannot encode a request: {error}")))?;
    Ok(payload.into())
}

/// The head frame of a request.
pub(crate) fn encode_head(message: &[u8]) -> Bytes {
    encode_frame(HEAD, message)
}

/// The frame that lets a stream's runs come.
pub(crate) fn encode_go() -> Bytes {
    encode_frame(GO, &[])
}

/// The frame that says how a stream was taken.
pub(crate) fn encode_receipt(mac: &[u8; MAC_BYTES], message: &[u8]) -> Bytes {
    encode_frame(RECEIPT, &[mac, message].concat())
}

/// The frame that a replica begins with.
pub(crate) fn encode_replica(message: &[u8]) -> Bytes {
    encode_frame(REPLICA, message)
}

/// The frame that a block of a replica begins with.
pub(crate) fn encode_block(message: &[u8]) -> Bytes {
    encode_frame(BLOCK, message)
}

/// A run: what comes before its data. The data follows as it is, without a copy.
pub(crate) fn encode_run_head(run: &ChunkRun) -> Bytes {
    let payload = 4 + 4 * run.crcs.len() + run.data.len();
    let mut head = BytesMut::with_capacity(FRAME_HEAD_BYTES + 4 + 4 * run.crcs.len());
    put_frame_head(&mut head, RUN, payload);
    head.put_u32_le(run.data.len() as u32);
    for crc in &run.crcs {
        head.put_u32_le(*crc);
    }
    head.freeze()
}

/// The frame that completes a stream of `total` data bytes.
pub(crate) fn encode_end(total: u64) -> Bytes {
    encode_frame(END, &total.to_le_bytes())
}

/// The frame that breaks a stream off with a reason.
pub(crate) fn encode_error(failure: &Failure) -> Bytes {
    let mut failure = failure.clone();
    let mut length = failure.message.len().min(MESSAGE_BYTES_MAX / 2);
    while !failure.message.is_char_boundary(length) {
        length -= 1;
    }
    failure.message.truncate(length);
    let payload = rmp_serde::to_vec(&failure).expect("a status and a text can be encoded");
    encode_frame(ERROR, &payload)
}

/// A message from a payload.
pub(crate) fn decode_message<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Failure> {
    rmp_serde::from_slice(payload)
        .map_err(|error| Failure::new(Status::Invalid, format!("cannot decode a message: {error}")))
}

fn encode_frame(kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + payload.len());
    put_frame_head(&mut frame, kind, payload.len());
    frame.put_slice(payload);
    frame.freeze()
}

fn put_frame_head(buffer: &mut BytesMut, kind: u8, payload: usize) {
    buffer.put_slice(&[kind, 0, 0, 0]);
    buffer.put_u32_le(payload as u32);
}

/// Takes frames out of a body.
pub(crate) struct FrameReader<S> {
    body: S,
    buffer: BytesMut,
    /// Data bytes of the runs so far.
    total: u64,
    is_done: bool,
}

impl<S, E> FrameReader<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::fmt::Display,
{
    /// A reader of `body`.
    pub(crate) fn new(body: S) -> Self {
        Self { body, buffer: BytesMut::new(), total: 0, is_done: false }
    }

    /// The next frame. After `End` or an error there is none to ask for.
    pub(crate) async fn next(&mut self) -> Result<Frame, Failure> {
        let outcome = self.read_frame().await;
        self.is_done = matches!(outcome, Ok(Frame::End | Frame::Error(_) | Frame::Receipt(..)) | Err(_));
        outcome
    }

    /// Whether the stream has come to an end, good or bad.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Reads and forgets up to `bytes_max` bytes, or to the body's end.
    pub(crate) async fn drain(&mut self, bytes_max: usize) {
        let mut left = bytes_max;
        self.buffer.clear();
        while let Some(Ok(data)) = self.body.next().await {
            match left.checked_sub(data.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }

    async fn read_frame(&mut self) -> Result<Frame, Failure> {
        self.fill(FRAME_HEAD_BYTES).await?;
        let kind = self.buffer[0];
        let length = u32::from_le_bytes(self.buffer[4..8].try_into().expect("four bytes")) as usize;
        let length_max = match kind {
            HEAD | ERROR | RECEIPT | REPLICA | BLOCK => MESSAGE_BYTES_MAX,
            RUN => RUN_PAYLOAD_MAX,
            END => 8,
            GO => 0,
            _ => return Err(malformed("a frame of unknown kind")),
        };
        if length > length_max || self.buffer[1..4] != [0, 0, 0] {
            return Err(malformed("a frame that is too long"));
        }
        self.fill(FRAME_HEAD_BYTES + length).await?;
        self.buffer.advance(FRAME_HEAD_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        match kind {
            HEAD => Ok(Frame::Head(payload)),
            RUN => {
                let run = decode_run(payload)?;
                self.total += run.data.len() as u64;
                Ok(Frame::Run(run))
            }
            END if payload[..] == self.total.to_le_bytes() => Ok(Frame::End),
            END => Err(malformed("an end that counts other bytes")),
            GO => Ok(Frame::Go),
            RECEIPT => match payload.split_first_chunk() {
                Some((mac, _)) => Ok(Frame::Receipt(*mac, payload.slice(MAC_BYTES..))),
                None => Err(malformed("a receipt without a proof")),
            },
            REPLICA => Ok(Frame::Replica(payload)),
            BLOCK => Ok(Frame::Block(payload)),
            _ => Ok(Frame::Error(decode_message(&payload)?)),
        }
    }

    /// Reads until the buffer holds `size` bytes.
    async fn fill(&mut self, size: usize) -> Result<(), Failure> {
        while self.buffer.len() < size {
            self.buffer.reserve(size - self.buffer.len());
            match self.body.next().await {
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
                Some(Err(error)) => {
                    return Err(Failure::new(Status::Retry, format!("a block stream broke off: {error}")));
                }
                None => return Err(Failure::new(Status::Retry, "a block stream broke off before its end")),
            }
        }
        Ok(())
    }
}

fn decode_run(mut payload: Bytes) -> Result<ChunkRun, Failure> {
    if payload.len() < 4 {
        return Err(malformed("a run without a length"));
    }
    let data_bytes = payload.get_u32_le() as usize;
    let chunks = chunk_count(data_bytes as u64) as usize;
    let fits = (1..=CHUNK_RUN_BYTES_MAX).contains(&data_bytes) && payload.len() == 4 * chunks + data_bytes;
    if !fits {
        return Err(malformed("a run whose lengths disagree"));
    }
    let crcs = (0..chunks).map(|_| payload.get_u32_le()).collect();
    Ok(ChunkRun { data: payload, crcs })
}

fn malformed(what: &str) -> Failure {
    Failure::new(Status::Invalid, format!("a block stream holds {what}"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use wire::limits::CHUNK_BYTES;

    use super::*;

    /// A reader of `bytes` in pieces of `step`.
    fn reader(
        bytes: &[u8],
        step: usize,
    ) -> FrameReader<impl Stream<Item = Result<Bytes, Infallible>> + Unpin> {
        let pieces: Vec<_> = bytes.chunks(step).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        FrameReader::new(stream::iter(pieces))
    }

    fn sample() -> (ChunkRun, Vec<u8>) {
        let run = ChunkRun::new(Bytes::from(vec![9; CHUNK_BYTES + 5]));
        let mut bytes = encode_run_head(&run).to_vec();
        bytes.extend_from_slice(&run.data);
        bytes.extend_from_slice(&encode_end(run.data.len() as u64));
        (run, bytes)
    }

    #[tokio::test]
    async fn frames_survive_any_cut() {
        let (run, bytes) = sample();
        for step in [1, 3, 7, 8, 4096, bytes.len()] {
            let mut reader = reader(&bytes, step);
            assert_eq!(reader.next().await, Ok(Frame::Run(run.clone())));
            assert_eq!(reader.next().await, Ok(Frame::End));
            assert!(reader.is_done());
        }
    }

    #[tokio::test]
    async fn every_truncation_is_found() {
        let (_, bytes) = sample();
        for length in [0, 1, 7, 8, 11, 20, 4096, bytes.len() - 16, bytes.len() - 1] {
            let mut reader = reader(&bytes[..length], 8192);
            let mut last = reader.next().await;
            while matches!(last, Ok(Frame::Run(_))) {
                last = reader.next().await;
            }
            assert_eq!(last.unwrap_err().status, Status::Retry, "cut at {length}");
        }
    }

    #[tokio::test]
    async fn lies_about_lengths_are_refused() {
        let (_, bytes) = sample();
        // Unknown kind; reserved byte set; payload too long; data length changed; wrong end.
        for (at, value) in [(0, 9), (1, 1), (7, 0x7f), (8, 4), (bytes.len() - 8, 6)] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let mut reader = reader(&changed, 4096);
            let mut last = reader.next().await;
            while matches!(last, Ok(Frame::Run(_))) {
                last = reader.next().await;
            }
            assert_eq!(last.unwrap_err().status, Status::Invalid, "byte {at}");
        }
    }

    #[tokio::test]
    async fn long_messages_are_cut_at_a_character() {
        let failure = Failure::new(Status::Corrupt, "ü".repeat(MESSAGE_BYTES_MAX));
        let bytes = encode_error(&failure);
        let Ok(Frame::Error(received)) = reader(&bytes, 100).next().await else { panic!("an error frame") };
        assert_eq!(received.status, Status::Corrupt);
        assert!(failure.message.starts_with(&received.message));
    }
}
