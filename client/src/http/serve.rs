//! The accept loop of an internal listener and of the operators' port, plain or within TLS.
//!
//! Invariants:
//! * At most `CONNECTIONS_MAX` connections; more wait in the kernel's backlog.
//! * A connection that sends no request in time is closed; shutdown waits for requests under way, but not for ever.
//!
//! Not here: the S3 listener (gateway), who may call (`auth`).

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use platform::task;
use platform::watch;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::tls::{Stream, Tls};

/// Connections of an internal listener at most.
const CONNECTIONS_MAX: usize = 1024;
/// A request's head comes within this; also how long an idle connection is kept.
const HEADER_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a request's head at most.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers of a request at most.
const HEADERS_MAX: usize = 32;
/// Requests under way at shutdown have this long to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// A pause after a failed accept: out of file descriptors, usually.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener`, within TLS if it is given, until `shutdown` resolves and requests under way have ended, or their deadline passed.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stop = watch::Sender::new(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let accept = async {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                task::spawn(serve_connection(stream, tls.clone(), router.clone(), stop.subscribe(), slot));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    // Each connection holds one slot: all slots back means that none is left.
    let all = u32::try_from(CONNECTIONS_MAX).expect("the limit is small");
    if timeout(SHUTDOWN_DEADLINE, slots.acquire_many(all)).await.is_err() {
        tracing::warn!("requests under way at shutdown did not end in time");
    }
    Ok(())
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
    slot: OwnedSemaphorePermit,
) {
    // Small answers must not wait for the peer's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake failed");
                return;
            }
        },
    };
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_header_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = sleep(SHUTDOWN_DEADLINE) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an internal connection broke");
    }
    drop(slot);
}
