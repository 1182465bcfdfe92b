//! A small S3 client: for `ferrozone bench`, the command line's S3 verbs and migration.
//!
//! It speaks path-style S3 over HTTP/1.1, plain or within the caller's TLS, through a keep-alive pool whose size the caller chooses, and it is
//! frugal, since under a benchmark it shares the machine with the server it measures: the signing key is derived once
//! a day, a request costs one signature, bodies are never copied, and answers are streamed.
//!
//! Code map:
//! * `client`: [`S3Client`], its configuration, one exchange with retries; `bucket`, `object`, `list`, `multipart` hold
//!   the operations by family;
//! * `endpoint`, `encode`, `sign`: from names to a signed request;
//! * `pool`, `secure`, `body`: connections, TLS, payloads, responses;
//! * `xml`, `error`: what comes back.
//!
//! Invariants:
//! * A connection returns to the pool only after its response was read to the end.
//! * Never more connections at once than configured.
//! * A body of known length is sent whole or the exchange fails: no silent truncation in either direction.
//!
//! Not here: certificates and whom to trust ([`Secure`] is the caller's), virtual-host addressing, chunked signatures.

mod body;
mod bucket;
mod client;
mod encode;
mod endpoint;
mod error;
mod list;
mod multipart;
mod object;
mod pool;
mod secure;
mod sign;
mod xml;

pub use body::Payload;
pub use bucket::BucketEntry;
pub use client::{Config, PayloadMode, S3Client};
pub use endpoint::Endpoint;
pub use error::{Error, S3Error};
pub use list::{ListPage, ListPages, ListRequest, ObjectEntry};
pub use multipart::UploadedPart;
pub use object::{DeleteFailure, GetObject, ObjectHead, PutOutcome};
pub use secure::{Duplex, Handshake, Secure};
pub use sign::Credentials;
