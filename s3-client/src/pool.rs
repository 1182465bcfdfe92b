//! Connections: kept alive, used again, never more than the caller allowed.
//!
//! A permit stands for the right to one connection; an exchange holds it from before it takes a connection until its
//! response is read or dropped. So N workers that share a client of N connections have one each, and a benchmark of
//! 64 connections has 64. The last connection returned is the first taken, as it is the least likely to have been
//! closed by the server.
//!
//! A kept connection may be closed by the server at any time. If that happens before the request was written, hyper
//! hands the request back and it goes out again on another connection. If it was written, the caller decides.
//!
//! Invariants:
//! * A connection goes back only after its response was read to the end; a response that is dropped closes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http::response::Parts;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::body::RequestBody;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::secure::{Duplex, Secure};

type Connection = SendRequest<RequestBody>;

pub(crate) struct Pool {
    endpoint: Endpoint,
    secure: Option<Arc<dyn Secure>>,
    connect_timeout: Duration,
    response_timeout: Duration,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(crate) fn new(
        endpoint: Endpoint,
        secure: Option<Arc<dyn Secure>>,
        connections: usize,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)));
        let idle = Mutex::new(Vec::new());
        Arc::new(Self { endpoint, secure, connect_timeout, response_timeout, permits, idle })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `request` and waits for the head of the response.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
    ) -> Result<Response, Error> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            let (mut connection, fresh) = match self.take_idle().await {
                Some(connection) => (connection, false),
                None => (self.connect().await?, true),
            };
            let sent = timeout(self.response_timeout, connection.try_send_request(request)).await;
            match sent.map_err(|_| Error::Timeout(self.response_timeout))? {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let lease = Some((connection, permit));
                    let mut response = Response { head, body, lease, pool: Arc::clone(self) };
                    if response.body.is_end_stream() {
                        response.release();
                    }
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(Error::Transport(error.into_error())),
                },
            }
        }
    }

    /// Opens connections ahead of use, so that the first requests of a benchmark do not pay for them.
    pub(crate) async fn open(&self, count: usize) -> Result<(), Error> {
        for _ in 0..count.min(self.permits.available_permits()) {
            let connection = self.connect().await?;
            self.idle.lock().push(connection);
        }
        Ok(())
    }

    async fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().pop()?;
            if !connection.is_closed() && connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let failed = |source| Error::Connect { address: self.endpoint.to_string(), source };
        let stream =
            timeout(self.connect_timeout, TcpStream::connect((self.endpoint.host(), self.endpoint.port())))
                .await
                .map_err(|_| Error::Timeout(self.connect_timeout))?
                .map_err(failed)?;
        // A request's head and the last piece of its body must not wait for an acknowledgement.
        stream.set_nodelay(true).map_err(failed)?;
        if !self.endpoint.is_https() {
            return speak(stream).await;
        }
        let Some(secure) = &self.secure else {
            let reason = "needs TLS, and nobody is named whose certificates are trusted";
            return Err(Error::Endpoint { endpoint: self.endpoint.to_string(), reason });
        };
        let shaken = timeout(self.connect_timeout, secure.secure(self.endpoint.host(), stream)).await;
        speak(shaken.map_err(|_| Error::Timeout(self.connect_timeout))?.map_err(failed)?).await
    }
}

/// Begins HTTP on a connection.
async fn speak(stream: impl Duplex + 'static) -> Result<Connection, Error> {
    let (connection, driver) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(Error::Transport)?;
    tokio::spawn(async move {
        // Whoever waits for an answer on this connection receives the error; there is nobody else to tell.
        let _ = driver.await;
    });
    Ok(connection)
}

/// A response whose body has not been read yet.
pub(crate) struct Response {
    pub(crate) head: Parts,
    body: Incoming,
    lease: Option<(Connection, OwnedSemaphorePermit)>,
    pool: Arc<Pool>,
}

impl Response {
    /// The next piece of the body; `None` at its proper end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let limit = self.pool.response_timeout;
            match timeout(limit, next).await.map_err(|_| Error::Timeout(limit))? {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => {
                    self.lease = None;
                    return Err(Error::Transport(error));
                }
                None => {
                    self.release();
                    return Ok(None);
                }
            }
        }
    }

    /// The whole body, if it fits.
    pub(crate) async fn collect(mut self, limit: usize) -> Result<Bytes, Error> {
        let Some(first) = self.chunk().await? else { return Ok(Bytes::new()) };
        let mut whole: Option<BytesMut> = None;
        let mut length = first.len();
        while length <= limit {
            let Some(next) = self.chunk().await? else {
                return Ok(whole.map_or(first, BytesMut::freeze));
            };
            length += next.len();
            whole.get_or_insert_with(|| BytesMut::from(first.as_ref())).extend_from_slice(&next);
        }
        Err(Error::TooLarge { limit })
    }

    /// Reads the body to its end, or closes the connection if that is cheaper than reading on.
    pub(crate) async fn discard(self, limit: usize) -> Result<(), Error> {
        match self.collect(limit).await {
            Ok(_) | Err(Error::TooLarge { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Says that the connection must not be used again.
    pub(crate) fn forget_connection(&mut self) {
        if let Some((connection, permit)) = self.lease.take() {
            drop((connection, permit));
        }
    }

    fn release(&mut self) {
        if let Some((connection, permit)) = self.lease.take() {
            self.pool.idle.lock().push(connection);
            drop(permit);
        }
    }
}
