//! TLS, as the caller brings it: whom to trust is not this crate's to know, and a benchmark of plain HTTP needs none of it.

use std::fmt;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A handshake on its way.
pub type Handshake = Pin<Box<dyn Future<Output = io::Result<Box<dyn Duplex>>> + Send>>;

/// Makes connections to `https` endpoints secure.
pub trait Secure: fmt::Debug + Send + Sync {
    /// Shakes hands with the server at `host` and checks that it is the one.
    fn secure(&self, host: &str, stream: TcpStream) -> Handshake;
}
