//! Who is asking, is the request theirs, and may they: the first thing that happens to every S3 request.
//!
//! Verification has two phases, because secrets stay in the Ozone Manager:
//!
//! ```text
//!   request head --parse()--> Presented --(caller fetches the key)--> verify() --> Verified --chunk_decoder()--> body
//!                  |                                                    |
//!                  +-- refuses what is malformed, expired, skewed,      +-- recomputes the signature over the raw
//!                      ambiguous or not built, before any work              URI, compares in constant time
//! ```
//!
//! * [`parse`](fn@parse) decides exactly one of header SigV4, query SigV4, query SigV2, anonymous; there is no default arm.
//! * [`PresentedV4::verify`] and [`PresentedV2::verify`] recompute the signature. For SigV4 the caller brings the
//!   *signing key* of (access key, day, region, service); for SigV2 the HMAC of [`PresentedV2::strings_to_sign`].
//! * [`ChunkDecoder`] takes the `aws-chunked` framing off a body and checks the signature of every chunk and trailer.
//! * [`authorize`](fn@authorize) is the one authorizer, with default deny.
//!
//! Code map: `parse` the decision; `v4`, `v2` the two schemes; `canonical` the canonical request; `uri` percent-coding
//! of the raw URI; `chunk` body framing; `payload` what protects the body; `key` secrets; `identity` and `authorize`
//! who may do what; `date` the date forms; `error` every refusal with its S3 code.
//!
//! Invariants:
//! * Nothing here does I/O, reads a clock or panics on input.
//! * The URI is judged as received: never rewritten, never normalised.
//! * Secrets and signatures are compared in constant time and never printed.
//!
//! Not here: where keys come from and their cache (gateway and Ozone Manager), checksums of bodies (gateway), policies.

mod authorize;
mod canonical;
mod chunk;
mod date;
mod error;
mod identity;
mod key;
mod parse;
mod payload;
mod settings;
mod uri;
mod v2;
mod v4;
mod verified;

pub use authorize::{Action, Requester, Resource, Scope, authorize};
pub use chunk::{
    CHUNK_LINE_BYTES_MAX, ChunkDecoder, TRAILER_BYTES_MAX, TRAILER_LINE_BYTES_MAX, TRAILERS_MAX, Trailer,
};
pub use error::{AuthError, Mismatch, PRESIGN_RANGE_STATUS};
pub use identity::Identity;
pub use key::{SecretKey, SigningKey, sign_v2};
pub use parse::{Presented, parse};
pub use payload::{Payload, PayloadHash};
pub use settings::{MAX_SKEW_MS, PRESIGN_EXPIRES_S_MAX, Settings};
pub use v2::PresentedV2;
pub use v4::{ACCESS_KEY_BYTES_MAX, PresentedV4, REGION_BYTES_MAX};
pub use verified::{Scheme, Verified, anonymous_chunk_decoder};
