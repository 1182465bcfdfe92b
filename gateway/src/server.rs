//! Listens, accepts, and serves HTTP/1.1 within limits: connections, heads, idleness, clients that stop reading, shutdown.
//!
//! hyper has one timer, for the head, and it also runs while a connection is idle. We want a short one for heads (slow-loris)
//! and a long one for idleness, so the timers sit in the stream itself ([`Timed`]): it knows what the connection is doing.
//! They cost a live connection nothing but a comparison.
//!
//! Within TLS the timers sit on top of it, so that its own records count for nothing; its handshake has a deadline.
//!
//! Invariants:
//! * Nothing a client does or leaves undone holds a connection for ever.
//! * `serve` returns within the shutdown deadline.
//!
//! Not here: what a request means (see `dispatch`), the speed of bodies (see `request_body`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use client::http::tls::{Stream, Tls};
use http_body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::status::Failure;

use crate::config::GatewayConfig;
use crate::dispatch;
use crate::gateway::Gateway;
use crate::metrics;
use crate::request_body::Source;
use crate::response::ResponseBody;

/// Headers of a request at most: hyper's 100 and room for user metadata.
const HEADERS_MAX: usize = 128;
/// Pause after accept failed: it does so while file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection too many is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 118\r\n\r\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate: too many connections are open.</Message></Error>";

/// Accepts until `shutdown`, then lets open requests finish up to the deadline.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let all = Arc::new(Semaphore::new(gateway.config.connections_max));
    let addresses = Arc::new(Addresses::default());
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let seat = addresses.enter(address.ip(), gateway.config.connections_per_ip_max);
        let (Some(seat), Ok(permit)) = (seat, all.clone().try_acquire_owned()) else {
            metrics::connection_refused();
            // Whether it arrives or not: nobody waits for this client.
            drop(stream.try_write(TOO_MANY));
            continue;
        };
        let connection = serve_connection(gateway.clone(), stream, tls.clone(), shutdown.clone());
        let abort = abort.clone();
        tasks.spawn(async move {
            let _held = (seat, permit);
            metrics::connections_changed(1.0);
            tokio::select! {
                () = connection => {}
                () = abort.cancelled() => {}
            }
            metrics::connections_changed(-1.0);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(gateway.config.shutdown_deadline, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections were still open at the shutdown deadline");
        abort.cancel();
        tasks.wait().await;
    }
    Ok(())
}

async fn serve_connection(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    shutdown: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it began");
        return;
    }
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                metrics::handshake_failed();
                tracing::debug!(%error, "a TLS handshake failed");
                return;
            }
        },
    };
    let phase = Arc::new(AtomicU8::new(IDLE));
    let io = TokioIo::new(Timed::new(stream, phase.clone(), &gateway.config));
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_buf_size(gateway.config.connection_buffer_bytes);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        phase.store(REQUEST, Ordering::Release);
        let (gateway, phase) = (gateway.clone(), phase.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = Source::incoming(body, &parts.headers);
            let response = dispatch::answer(gateway, parts, body).await;
            Ok::<_, Infallible>(response.map(|body| Answered { body, phase }))
        }
    });
    let mut connection = pin!(builder.serve_connection(io, service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Connections of each address.
#[derive(Default)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    /// None: that address has enough.
    fn enter(self: &Arc<Self>, address: IpAddr, maximum: usize) -> Option<Seat> {
        let mut open = self.open.lock();
        let count = open.entry(address).or_default();
        if *count >= maximum {
            return None;
        }
        *count += 1;
        Some(Seat { addresses: self.clone(), address })
    }
}

struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Waiting for a request.
const IDLE: u8 = 0;
/// A head has begun.
const HEAD: u8 = 1;
/// A request is being answered: bodies have a pace of their own.
const REQUEST: u8 = 2;

/// A body that tells the connection when its answer is over.
struct Answered {
    body: ResponseBody,
    phase: Arc<AtomicU8>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.phase.store(IDLE, Ordering::Release);
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that ends with a timeout when its client is idle too long, sends a head too slowly, or stops reading.
struct Timed {
    stream: Stream,
    phase: Arc<AtomicU8>,
    /// The phase that `since` is about.
    seen: u8,
    since: Option<Instant>,
    reading: Timer,
    writing: Timer,
    idle_timeout: Duration,
    header_timeout: Duration,
    write_timeout: Duration,
    /// When writing last got stuck.
    stuck_since: Option<Instant>,
}

impl Timed {
    fn new(stream: Stream, phase: Arc<AtomicU8>, config: &GatewayConfig) -> Self {
        Self {
            stream,
            phase,
            seen: IDLE,
            since: None,
            reading: Timer::default(),
            writing: Timer::default(),
            idle_timeout: config.idle_timeout,
            header_timeout: config.header_timeout,
            write_timeout: config.body_rate_window,
            stuck_since: None,
        }
    }

    /// Nothing to read: is it time to give up?
    fn read_is_late(&mut self, context: &mut Context<'_>) -> bool {
        let phase = self.phase.load(Ordering::Acquire);
        if phase != self.seen {
            (self.seen, self.since) = (phase, None);
        }
        let timeout = match phase {
            IDLE => self.idle_timeout,
            HEAD => self.header_timeout,
            _ => return false,
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        self.reading.is_past(since + timeout, context)
    }

    fn note_read(&mut self) {
        if self.phase.compare_exchange(IDLE, HEAD, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            (self.seen, self.since) = (HEAD, None);
        }
    }

    fn watch_write<T>(
        &mut self,
        outcome: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stuck_since = None;
            return outcome;
        }
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        if self.writing.is_past(since + self.write_timeout, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

/// A timer that is set again only when it fires too early.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Whether `deadline` has passed; wakes the task when it does.
    fn is_past(&mut self, deadline: Instant, context: &mut Context<'_>) -> bool {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if sleep.deadline() >= deadline {
                return true;
            }
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending if this.read_is_late(context) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
            ready => {
                this.note_read();
                ready
            }
        }
    }
}

impl AsyncWrite for Timed {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, data);
        this.watch_write(outcome, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.watch_write(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_says_its_length() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }

    #[test]
    fn addresses_are_counted_and_forgotten() {
        let addresses = Arc::new(Addresses::default());
        let address = IpAddr::from([127, 0, 0, 1]);
        let first = addresses.enter(address, 1);
        assert!(first.is_some() && addresses.enter(address, 1).is_none());
        drop(first);
        assert!(addresses.open.lock().is_empty());
    }
}
