//! What can go wrong in an exchange, sorted by who must act.
//!
//! [`Error::S3`] is the server's own refusal with its code; everything else is this side or the network.

use std::io;
use std::time::Duration;

use http::StatusCode;
use thiserror::Error as ThisError;

/// Codes by which a server asks for the same request again, later.
const RETRY_CODES: [&str; 4] = ["SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout"];

/// A failed operation.
#[derive(Debug, ThisError)]
pub enum Error {
    /// The endpoint address cannot be used; the reason says why.
    #[error("endpoint {endpoint:?} {reason}")]
    Endpoint {
        /// What the caller gave.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A request that cannot be put on the wire: a header value, a name, a body without a digest.
    #[error("request cannot be sent: {0}")]
    Request(String),
    /// No TCP connection.
    #[error("no connection to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the peer does not speak HTTP.
    #[error("http exchange failed")]
    Transport(#[source] hyper::Error),
    /// No response, or no further byte of it, within the configured time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server answered with an error.
    #[error(transparent)]
    S3(Box<S3Error>),
    /// The server's answer is not what S3 promises.
    #[error("unexpected response: {0}")]
    Response(String),
    /// A body that should fit in memory does not.
    #[error("response body is longer than {limit} bytes")]
    TooLarge {
        /// The limit that was exceeded.
        limit: usize,
    },
}

/// An error response of an S3 server.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[error("{}", self.describe())]
pub struct S3Error {
    /// HTTP status.
    pub status: StatusCode,
    /// S3 code such as `NoSuchKey`; empty if the server sent none, as it cannot for HEAD.
    pub code: String,
    /// The server's explanation; may be empty.
    pub message: String,
    /// The server's name for the request, to be quoted to its operator; may be empty.
    pub request_id: String,
}

impl S3Error {
    fn describe(&self) -> String {
        let mut text = if self.code.is_empty() {
            self.status.to_string()
        } else {
            format!("{} ({})", self.code, self.status.as_u16())
        };
        if !self.message.is_empty() {
            text.push_str(": ");
            text.push_str(&self.message);
        }
        if !self.request_id.is_empty() {
            text.push_str(&format!(" [request {}]", self.request_id));
        }
        text
    }
}

impl Error {
    /// The server's own error, if it is one.
    pub fn s3(&self) -> Option<&S3Error> {
        match self {
            Self::S3(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the server said that the bucket, key or upload does not exist.
    pub fn is_not_found(&self) -> bool {
        self.s3().is_some_and(|error| error.status == StatusCode::NOT_FOUND)
    }

    /// A word for counters: the S3 code where there is one, else the kind of failure.
    pub fn kind(&self) -> String {
        match self {
            Self::S3(error) if error.code.is_empty() => format!("http {}", error.status.as_u16()),
            Self::S3(error) => error.code.clone(),
            Self::Endpoint { .. } => "endpoint".into(),
            Self::Request(_) => "request".into(),
            Self::Connect { .. } => "connect".into(),
            Self::Transport(_) => "transport".into(),
            Self::Timeout(_) => "timeout".into(),
            Self::Response(_) => "response".into(),
            Self::TooLarge { .. } => "too large".into(),
        }
    }

    /// Whether the same request may do better later. `idempotent`: repeating one that took effect does no harm.
    pub(crate) fn is_retryable(&self, idempotent: bool) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Transport(error) => idempotent && !error.is_user(),
            Self::S3(error) => {
                matches!(error.status.as_u16(), 500 | 502 | 503 | 504)
                    || RETRY_CODES.contains(&error.code.as_str())
            }
            _ => false,
        }
    }
}
