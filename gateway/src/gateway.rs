//! What all requests share: the session with OM, the datanodes, caches and budgets.
//!
//! Not here: who may do what (see `access`), connections (see `server`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::http::tls::Tls;
use client::key_reader::KeyReader;
use client::key_writer::KeyWriter;
use client::service::{CallError, Datanodes, OmService};
use client::session::Session;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::config::GatewayConfig;
use crate::error::S3Error;
use crate::server;

/// How long a request waits for its share of the body memory before it is told to slow down.
const MEMORY_WAIT: Duration = Duration::from_secs(30);

/// The S3 gateway.
pub struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) session: Arc<Session>,
    pub(crate) writer: KeyWriter,
    pub(crate) reader: Arc<KeyReader>,
    pub(crate) access: Access,
    /// One permit a byte.
    body_memory: Arc<Semaphore>,
    next_request: AtomicU64,
}

impl Gateway {
    /// Opens a session with OM, waiting for one that is starting.
    pub async fn new(
        config: GatewayConfig,
        om: Arc<dyn OmService>,
        datanodes: Arc<Datanodes>,
    ) -> Result<Arc<Self>, CallError> {
        let session = Session::open(om).await?;
        let writer = KeyWriter::new(session.clone(), datanodes.clone());
        let reader = KeyReader::new(session.clone(), datanodes);
        let access = Access::new(&config);
        let body_memory = Arc::new(Semaphore::new(config.body_memory_bytes));
        // Request ids of two lives of a process should not meet: begin anywhere.
        let next_request = AtomicU64::new(wire::random::u64());
        Ok(Arc::new(Self { config, session, writer, reader, access, body_memory, next_request }))
    }

    /// Serves S3 on `listener`, within TLS if it is given, until `shutdown` is cancelled, then lets open requests finish within the deadline and
    /// ends the session.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let outcome = server::serve(self.clone(), listener, tls, shutdown).await;
        self.session.close().await;
        outcome
    }

    /// A share of the memory for bodies; given back when dropped. Waits its turn, but not for ever.
    pub(crate) async fn reserve_body_memory(&self, bytes: usize) -> Result<OwnedSemaphorePermit, S3Error> {
        // More than all there is could never be had.
        let bytes = bytes.min(self.config.body_memory_bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Ok(permit) = self.body_memory.clone().try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        match tokio::time::timeout(MEMORY_WAIT, self.body_memory.clone().acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(S3Error::slow_down("the memory for request bodies is used up")),
        }
    }

    /// A request id nobody else has.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId::of(self.next_request.fetch_add(1, Ordering::Relaxed))
    }
}

/// `x-amz-request-id`: 16 upper-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestId([u8; 16]);

impl RequestId {
    fn of(number: u64) -> Self {
        // An odd factor permutes the numbers: neighbours look unlike each other in logs.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut digits = [0; 16];
        for (position, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789ABCDEF"[(mixed >> (60 - 4 * position)) as usize & 15];
        }
        Self(digits)
    }

    /// Its digits.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_differ_and_have_16_digits() {
        assert_eq!(RequestId::of(0).as_str(), "0000000000000000");
        assert_eq!(RequestId::of(1).as_str(), "9E3779B97F4A7C15");
        assert_ne!(RequestId::of(1), RequestId::of(2));
    }
}
