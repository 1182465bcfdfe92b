//! The accept loop of an internal listener and of the operators' port, plain or within TLS.
//!
//! Invariants:
//! * At most `CONNECTIONS_MAX` connections that have proven themselves, and those in the lobby; more wait in the kernel's
//!   backlog.
//! * A connection between nodes without a proven call is closed after `UNPROVEN_DEADLINE`; one that sends no request in time
//!   is closed; shutdown waits for requests under way, but not for ever.
//!
//! Not here: the S3 listener (gateway), who may call (`auth`).

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use platform::task;
use platform::watch;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::lobby::{Lobby, Standing, UNPROVEN_MAX};
use super::tls::{Stream, Tls};

/// Connections of a listener at most, besides those of an internal one that have not proven themselves.
const CONNECTIONS_MAX: usize = 1024;
/// The first call with a valid proof comes within this, the TLS handshake included.
const UNPROVEN_DEADLINE: Duration = Duration::from_secs(10);
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

/// Serves calls of other nodes on `listener`, within TLS if it is given, until `shutdown` resolves and requests under way have
/// ended, or their deadline passed. Who has no proven call waits in the lobby.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_in(listener, tls, router, shutdown, Some(Arc::default())).await
}

/// The same for callers that have other credentials than the cluster key: the operators' port.
pub async fn serve_operators(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_in(listener, tls, router, shutdown, None).await
}

async fn serve_in(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
    lobby: Option<Arc<Lobby>>,
) -> io::Result<()> {
    let slots_max = CONNECTIONS_MAX + lobby.as_ref().map_or(0, |_| UNPROVEN_MAX);
    let slots = Arc::new(Semaphore::new(slots_max));
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
            Ok((stream, address)) => {
                let standing = lobby.as_ref().map(|lobby| lobby.enter(address.ip()));
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.subscribe());
                task::spawn(async move {
                    let serving = serve_connection(stream, tls, router, stop, standing.clone());
                    tokio::select! {
                        biased;
                        () = serving => {}
                        () = unwelcome(standing) => {}
                    }
                    drop(slot);
                });
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
    let all = u32::try_from(slots_max).expect("the limit is small");
    if timeout(SHUTDOWN_DEADLINE, slots.acquire_many(all)).await.is_err() {
        tracing::warn!("requests under way at shutdown did not end in time");
    }
    Ok(())
}

/// Resolves when a connection has to go since nothing is proven on it.
async fn unwelcome(standing: Option<Standing>) {
    let Some(standing) = standing else { return std::future::pending().await };
    tokio::select! {
        biased;
        () = standing.sent_away() => {}
        () = sleep(UNPROVEN_DEADLINE) => {}
    }
    if standing.is_proven() {
        // The last moment counts as well.
        std::future::pending::<()>().await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    router: Router,
    mut stop: watch::Receiver<bool>,
    standing: Option<Standing>,
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
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        if let Some(standing) = &standing {
            request.extensions_mut().insert(standing.clone());
        }
        router.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
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
}
