//! A request that is its sender's, and the way to its body.

use http::HeaderMap;

use crate::chunk::{ChunkDecoder, ChunkSigner};
use crate::error::AuthError;
use crate::payload::Payload;

/// How a request was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// SigV4 in the `Authorization` header.
    HeaderV4,
    /// SigV4 in the query: a presigned URL.
    QueryV4,
    /// SigV2 in the query: a presigned URL of an old client.
    QueryV2,
}

/// A request whose signature is right.
#[derive(Debug, Clone)]
pub struct Verified {
    access_key: String,
    scheme: Scheme,
    payload: Payload,
    /// Where chunk signatures start from; set if chunks are signed.
    signer: Option<ChunkSigner>,
}

impl Verified {
    pub(crate) fn new(
        access_key: &str,
        scheme: Scheme,
        payload: &Payload,
        signer: Option<ChunkSigner>,
    ) -> Self {
        Verified { access_key: access_key.to_owned(), scheme, payload: payload.clone(), signer }
    }

    /// The access key whose secret signed it.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// How it was signed.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether it is a presigned URL.
    pub fn is_presigned(&self) -> bool {
        match self.scheme {
            Scheme::HeaderV4 => false,
            Scheme::QueryV4 | Scheme::QueryV2 => true,
        }
    }

    /// What protects the body.
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    /// The decoder of an `aws-chunked` body; `None` if the body is plain. Refuses a head that does not say how long
    /// the decoded body is.
    pub fn chunk_decoder(&self, headers: &HeaderMap) -> Result<Option<ChunkDecoder>, AuthError> {
        ChunkDecoder::for_payload(&self.payload, self.signer.clone(), headers)
    }
}

/// As [`Verified::chunk_decoder`], for a request nobody signed.
pub fn anonymous_chunk_decoder(
    payload: &Payload,
    headers: &HeaderMap,
) -> Result<Option<ChunkDecoder>, AuthError> {
    ChunkDecoder::for_payload(payload, None, headers)
}
