//! Takes the `aws-chunked` framing off a body, as its bytes arrive, and checks every signature in it.
//!
//! ```text
//!   10000;chunk-signature=<64 hex>\r\n        size in hex; no extension where chunks are not signed
//!   <65536 bytes>\r\n
//!   0;chunk-signature=<64 hex>\r\n            the final chunk
//!   x-amz-checksum-crc32c:wdBDMA==\r\n        trailers, where the mode has them
//!   x-amz-trailer-signature:<64 hex>\r\n      where they are signed
//!   \r\n
//! ```
//!
//! Each chunk's signature covers the digest of its data and the signature before it, the first one the signature of
//! the request; so chunks can be neither changed, reordered, dropped nor added. A signature can be checked only after
//! its chunk: data handed out is **provisional** until [`ChunkDecoder::finish`] returns `Ok`.
//!
//! minio-go ends a trailer line with a bare `\n` and puts an empty line before the trailer's signature, as the
//! examples in Amazon's guide do; both are accepted. Chunks smaller than 8 KiB are accepted too: small streams make
//! them, and nothing is lost.
//!
//! Invariants:
//! * The outcome does not depend on how the input is cut into pieces.
//! * Memory is bounded by the limits below; data is passed on as slices of the input, never copied.
//! * No more data than declared is ever handed out; after an error nothing more is.
//!
//! Not here: checksums named by trailers (the gateway computes them).

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use sha2::{Digest, Sha256};
use std::fmt;

use crate::error::{AuthError, clip};
use crate::key::{SigningKey, same_signature};
use crate::payload::Payload;

/// Bytes of a chunk's size line at most. The longest right one has 16 + 17 + 64.
pub const CHUNK_LINE_BYTES_MAX: usize = 128;
/// Bytes of a trailer line at most. A SHA-512 in Base64 has 88.
pub const TRAILER_LINE_BYTES_MAX: usize = 512;
/// Bytes of all trailer lines at most.
pub const TRAILER_BYTES_MAX: usize = 4096;
/// Trailers at most. S3 knows one checksum a request.
pub const TRAILERS_MAX: usize = 8;

/// Hex digits of a chunk size at most: more would not fit 64 bits.
const SIZE_DIGITS_MAX: usize = 16;
/// Empty lines that may stand between trailers and their signature.
const EMPTY_LINES_MAX: usize = 2;
/// Line ends that may follow the end, from clients that write one too many.
const TAIL_BYTES_MAX: usize = 4;
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A header that came after the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Its name, in lower case.
    pub name: String,
    /// Its value, trimmed.
    pub value: String,
}

/// Checks the chain of signatures that starts from a request's own.
#[derive(Clone)]
pub(crate) struct ChunkSigner {
    key: SigningKey,
    /// `timestamp\nscope\n`, which every string to sign repeats.
    context: String,
    /// The signature before, in hex.
    previous: [u8; 64],
}

impl ChunkSigner {
    /// `seed` is the request's signature, already verified and therefore 64 digits.
    pub(crate) fn new(key: SigningKey, timestamp: &str, scope: &str, seed: &str) -> Self {
        let previous = seed.as_bytes().try_into().unwrap_or([b'0'; 64]);
        ChunkSigner { key, context: format!("{timestamp}\n{scope}\n"), previous }
    }

    /// Whether `provided` signs `digest` as the next link. Advances if so.
    fn accepts_chunk(&mut self, digest: [u8; 32], provided: &[u8]) -> bool {
        self.accepts("AWS4-HMAC-SHA256-PAYLOAD\n", &[EMPTY_SHA256.as_bytes(), b"\n"], digest, provided)
    }

    fn accepts_trailer(&mut self, digest: [u8; 32], provided: &[u8]) -> bool {
        self.accepts("AWS4-HMAC-SHA256-TRAILER\n", &[], digest, provided)
    }

    fn accepts(&mut self, algorithm: &str, middle: &[&[u8]], digest: [u8; 32], provided: &[u8]) -> bool {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.key.as_bytes()).expect("HMAC takes keys of any size");
        mac.update(algorithm.as_bytes());
        mac.update(self.context.as_bytes());
        mac.update(&self.previous);
        mac.update(b"\n");
        for part in middle {
            mac.update(part);
        }
        mac.update(&hex_digits(&digest));
        let computed = hex_digits(&mac.finalize().into_bytes().into());
        let accepted = same_signature(&computed, provided);
        if accepted {
            self.previous = computed;
        }
        accepted
    }
}

impl fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkSigner(***)")
    }
}

/// What the next byte belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// A chunk's size line.
    Size,
    /// Data of a chunk, with so much left.
    Data { left: u64 },
    /// The line end after a chunk's data.
    DataEnd,
    /// The empty line after the final chunk, in modes without trailers.
    FinalEnd,
    /// A trailer, or what ends them.
    Trailer,
    /// Nothing but surplus line ends.
    Done { tail: usize },
    /// An error was reported; it stays.
    Failed(AuthError),
}

/// Takes the framing off one body. See the module's documentation.
#[derive(Debug)]
pub struct ChunkDecoder {
    mode: &'static str,
    signer: Option<ChunkSigner>,
    has_trailers: bool,
    /// Names from `x-amz-trailer`, in lower case.
    declared_trailers: Vec<String>,
    decoded_len: u64,
    received: u64,
    state: State,
    /// A line whose end has not come yet.
    line: Vec<u8>,
    hasher: Sha256,
    /// The signature that the current chunk must have.
    chunk_signature: [u8; 64],
    chunk_index: u64,
    trailers: Vec<Trailer>,
    trailer_bytes: usize,
    trailer_signed: bool,
    empty_lines: usize,
}

impl ChunkDecoder {
    /// The decoder that `payload` asks for; `None` if the body is plain.
    pub(crate) fn for_payload(
        payload: &Payload,
        signer: Option<ChunkSigner>,
        headers: &HeaderMap,
    ) -> Result<Option<Self>, AuthError> {
        let (signed, has_trailers, mode) = match payload {
            Payload::Signed(_) | Payload::Unsigned => return Ok(None),
            Payload::StreamingSigned => (true, false, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            Payload::StreamingSignedTrailer => (true, true, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"),
            Payload::StreamingUnsignedTrailer => (false, true, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        };
        if signed && signer.is_none() {
            return Err(AuthError::StreamingUnsignedRequest);
        }
        let declared_trailers = declared_trailers(headers)?;
        if !has_trailers && !declared_trailers.is_empty() {
            return Err(malformed_trailer(format!("{mode} has no trailer, yet x-amz-trailer declares one")));
        }
        Ok(Some(ChunkDecoder {
            mode,
            signer: signer.filter(|_| signed),
            has_trailers,
            declared_trailers,
            decoded_len: decoded_len(headers, mode)?,
            received: 0,
            state: State::Size,
            line: Vec::new(),
            hasher: Sha256::new(),
            chunk_signature: [0; 64],
            chunk_index: 0,
            trailers: Vec::new(),
            trailer_bytes: 0,
            trailer_signed: false,
            empty_lines: 0,
        }))
    }

    /// The length of the data, as declared. A body of another length is refused.
    pub fn decoded_len(&self) -> u64 {
        self.decoded_len
    }

    /// The names that `x-amz-trailer` declares, in lower case.
    pub fn declared_trailers(&self) -> &[String] {
        &self.declared_trailers
    }

    /// Takes the next piece of the body and appends the data in it to `data`, in order, none of it empty.
    pub fn feed(&mut self, mut input: Bytes, data: &mut Vec<Bytes>) -> Result<(), AuthError> {
        while !input.is_empty() {
            if let Err(error) = self.step(&mut input, data) {
                self.state = State::Failed(error.clone());
                self.line = Vec::new();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the body. Only now is the data that was handed out known to be right and whole.
    pub fn finish(self) -> Result<Vec<Trailer>, AuthError> {
        match self.state {
            State::Done { .. } => Ok(self.trailers),
            State::Failed(error) => Err(error),
            State::Size | State::Data { .. } | State::DataEnd | State::FinalEnd | State::Trailer => {
                Err(self.incomplete(self.received))
            }
        }
    }

    /// Consumes at least one byte of a non-empty input.
    fn step(&mut self, input: &mut Bytes, data: &mut Vec<Bytes>) -> Result<(), AuthError> {
        match &mut self.state {
            State::Size => {
                if self.take_line(input, CHUNK_LINE_BYTES_MAX)? {
                    self.on_size_line()?;
                }
            }
            State::Data { left } => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                let piece = input.split_to(take);
                *left -= take as u64;
                let ends = *left == 0;
                self.received += take as u64;
                if self.signer.is_some() {
                    self.hasher.update(&piece);
                }
                data.push(piece);
                if ends {
                    self.check_chunk()?;
                    self.state = State::DataEnd;
                }
            }
            State::DataEnd => {
                if self.take_line(input, b"\r\n".len())? {
                    self.expect_empty_line("a chunk's data is not followed by a line end")?;
                    self.state = State::Size;
                }
            }
            State::FinalEnd => {
                if self.take_line(input, b"\r\n".len())? {
                    self.expect_empty_line("the final chunk is not followed by an empty line")?;
                    self.state = State::Done { tail: 0 };
                }
            }
            State::Trailer => {
                if self.take_line(input, TRAILER_LINE_BYTES_MAX)? {
                    self.on_trailer_line()?;
                }
            }
            State::Done { tail } => {
                let piece = input.split_to(input.len());
                *tail += piece.len();
                if *tail > TAIL_BYTES_MAX || piece.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
                    return Err(AuthError::MalformedChunk { reason: "bytes follow the end of the body" });
                }
            }
            State::Failed(error) => return Err(error.clone()),
        }
        Ok(())
    }

    /// Moves input into the line, up to and with its `\n`. True once the line is whole.
    fn take_line(&mut self, input: &mut Bytes, bytes_max: usize) -> Result<bool, AuthError> {
        let end = input.iter().take(bytes_max).position(|byte| *byte == b'\n');
        let piece = input.split_to(end.map_or(input.len().min(bytes_max), |at| at + 1));
        self.line.extend_from_slice(&piece);
        if self.line.len() > bytes_max || (self.line.len() == bytes_max && end.is_none()) {
            return Err(AuthError::MalformedChunk { reason: "a line of the framing is too long" });
        }
        Ok(end.is_some())
    }

    fn expect_empty_line(&mut self, reason: &'static str) -> Result<(), AuthError> {
        if self.line != b"\r\n" {
            return Err(AuthError::MalformedChunk { reason });
        }
        self.line.clear();
        Ok(())
    }

    fn on_size_line(&mut self) -> Result<(), AuthError> {
        let line = std::mem::take(&mut self.line);
        let line = line
            .strip_suffix(b"\r\n")
            .ok_or(AuthError::MalformedChunk { reason: "a chunk's size line does not end in CR LF" })?;
        let digits_len = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
        let (digits, extension) = line.split_at(digits_len);
        let size = chunk_size(digits)?;
        match (&self.signer, extension) {
            (None, b"") => {}
            (None, _) => {
                return Err(AuthError::MalformedChunk { reason: "an unsigned chunk carries an extension" });
            }
            (Some(_), extension) => {
                self.chunk_signature = extension
                    .strip_prefix(b";chunk-signature=")
                    .and_then(|signature| signature.try_into().ok())
                    .ok_or(AuthError::MalformedChunk {
                        reason: "a chunk carries no signature of 64 digits",
                    })?;
            }
        }
        let total = self.received.checked_add(size).filter(|total| *total <= self.decoded_len);
        let Some(total) = total else {
            return Err(self.incomplete(self.received.saturating_add(size)));
        };
        if size > 0 {
            self.state = State::Data { left: size };
            return Ok(());
        }
        self.check_chunk()?;
        if total != self.decoded_len {
            return Err(self.incomplete(total));
        }
        self.state = if self.has_trailers { State::Trailer } else { State::FinalEnd };
        Ok(())
    }

    /// Checks the signature of the chunk whose data has just ended.
    fn check_chunk(&mut self) -> Result<(), AuthError> {
        let index = self.chunk_index;
        self.chunk_index += 1;
        let Some(signer) = &mut self.signer else { return Ok(()) };
        let digest = self.hasher.finalize_reset().into();
        if signer.accepts_chunk(digest, &self.chunk_signature) {
            return Ok(());
        }
        Err(AuthError::ChunkSignatureDoesNotMatch { what: format!("chunk {index} of the body") })
    }

    fn on_trailer_line(&mut self) -> Result<(), AuthError> {
        let line = std::mem::take(&mut self.line);
        self.trailer_bytes += line.len();
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(malformed_trailer("it is too long"));
        }
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let awaits_signature = self.signer.is_some() && !self.trailer_signed;
        if line.is_empty() {
            if !awaits_signature {
                return self.end_trailers();
            }
            self.empty_lines += 1;
            if self.empty_lines > EMPTY_LINES_MAX {
                return Err(malformed_trailer("x-amz-trailer-signature is missing"));
            }
            return Ok(());
        }
        if self.trailer_signed {
            return Err(malformed_trailer("a trailer follows its signature"));
        }
        let trailer = parse_trailer(line)?;
        if trailer.name == TRAILER_SIGNATURE {
            return self.check_trailers(&trailer.value);
        }
        if self.empty_lines > 0 {
            return Err(malformed_trailer("a trailer follows an empty line"));
        }
        if !self.declared_trailers.contains(&trailer.name) {
            return Err(malformed_trailer(format!("{} was not declared in x-amz-trailer", trailer.name)));
        }
        if self.trailers.len() == TRAILERS_MAX || self.trailers.iter().any(|other| other.name == trailer.name)
        {
            return Err(malformed_trailer(format!("{} comes twice", trailer.name)));
        }
        self.trailers.push(trailer);
        Ok(())
    }

    /// Checks the signature over all trailers, as `name:value` lines in the order they came.
    fn check_trailers(&mut self, signature: &str) -> Result<(), AuthError> {
        let Some(signer) = &mut self.signer else {
            return Err(malformed_trailer("a signature in a mode without signatures"));
        };
        let mut hasher = Sha256::new();
        for trailer in &self.trailers {
            for part in [trailer.name.as_str(), ":", &trailer.value, "\n"] {
                hasher.update(part.as_bytes());
            }
        }
        if !signer.accepts_trailer(hasher.finalize().into(), signature.as_bytes()) {
            return Err(AuthError::ChunkSignatureDoesNotMatch { what: "the body's trailer".to_owned() });
        }
        self.trailer_signed = true;
        Ok(())
    }

    fn end_trailers(&mut self) -> Result<(), AuthError> {
        let missing = self
            .declared_trailers
            .iter()
            .find(|declared| !self.trailers.iter().any(|trailer| trailer.name == **declared));
        if let Some(name) = missing {
            return Err(malformed_trailer(format!("{name} was declared in x-amz-trailer and did not come")));
        }
        self.state = State::Done { tail: 0 };
        Ok(())
    }

    fn incomplete(&self, received: u64) -> AuthError {
        AuthError::IncompleteBody { declared: self.decoded_len, received, mode: self.mode }
    }
}

fn decoded_len(headers: &HeaderMap, mode: &'static str) -> Result<u64, AuthError> {
    let value =
        headers.get("x-amz-decoded-content-length").ok_or(AuthError::MissingDecodedLength { mode })?;
    let invalid =
        || AuthError::InvalidDecodedLength { value: clip(&String::from_utf8_lossy(value.as_bytes())) };
    let text = value.to_str().map_err(|_| invalid())?.trim();
    // `parse` alone would take a leading plus.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    text.parse().map_err(|_| invalid())
}

fn declared_trailers(headers: &HeaderMap) -> Result<Vec<String>, AuthError> {
    let mut names: Vec<String> = Vec::new();
    for value in headers.get_all("x-amz-trailer") {
        let value = value.to_str().map_err(|_| malformed_trailer("x-amz-trailer is not ASCII"))?;
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = name.to_ascii_lowercase();
            if names.contains(&name) {
                continue;
            }
            if names.len() == TRAILERS_MAX || name.len() > TRAILER_LINE_BYTES_MAX {
                return Err(malformed_trailer("x-amz-trailer declares too much"));
            }
            names.push(name);
        }
    }
    Ok(names)
}

/// Hex digits and nothing else: no `0x`, no sign, no blanks.
fn chunk_size(digits: &[u8]) -> Result<u64, AuthError> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(AuthError::InvalidChunkSize { reason: "it is not a hexadecimal number" });
    }
    if digits.len() > SIZE_DIGITS_MAX {
        return Err(AuthError::InvalidChunkSize { reason: "it has too many digits" });
    }
    let nibble = |digit: u8| u64::from(char::from(digit).to_digit(16).unwrap_or(0));
    Ok(digits.iter().fold(0, |size, digit| size << 4 | nibble(*digit)))
}

fn parse_trailer(line: &[u8]) -> Result<Trailer, AuthError> {
    let text = std::str::from_utf8(line).map_err(|_| malformed_trailer("it is not ASCII"))?;
    let (name, value) = text.split_once(':').ok_or_else(|| malformed_trailer("a line without a colon"))?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_text = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let value = value.trim();
    if name.is_empty() || !name.bytes().all(is_token) || !value.bytes().all(is_text) {
        return Err(malformed_trailer("a line is not of the form name:value"));
    }
    Ok(Trailer { name: name.to_ascii_lowercase(), value: value.to_owned() })
}

fn malformed_trailer(reason: impl Into<String>) -> AuthError {
    AuthError::MalformedTrailer { reason: reason.into() }
}

fn hex_digits(digest: &[u8; 32]) -> [u8; 64] {
    let mut digits = [0; 64];
    hex::encode_to_slice(digest, &mut digits).expect("64 digits hold 32 bytes");
    digits
}
