//! Connections of a stub: names looked up, TCP made, TLS put over it.
//!
//! A name is looked up by one task at a time and remembered for a moment: the look-up of a dead host may take ten
//! seconds of a blocking thread, and every call would begin another.
//!
//! Not here: pooling (hyper-util), what is sent (`transport`).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use platform::task;
use tokio::time::Instant;
use tower::Service;

use super::CONNECT_DEADLINE;
use super::tls::{Stream, Tls};

/// Addresses of a name are used for so long without asking again. Containers change theirs when they are made anew.
const ADDRESSES_FRESH: Duration = Duration::from_secs(2);
/// Names remembered at most: the nodes of a cluster.
const NAMES_MAX: usize = 4096;
/// A silent connection is probed after this, so that one to a dead host does not wait for ever.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Then probed so often ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// ... before it counts as broken.
const KEEPALIVE_RETRIES: u32 = 3;
/// What was sent is acknowledged by the peer's kernel within this, or the connection is broken.
const UNACKNOWLEDGED_DEADLINE: Duration = Duration::from_secs(10);

/// A boxed future, as tower wants it.
type Boxed<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// Makes connections to peers.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector<Resolver>,
    tls: Option<Arc<Tls>>,
}

impl Connector {
    /// A connector; within TLS if it is given.
    pub(crate) fn new(tls: Option<Arc<Tls>>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver::default());
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_DEADLINE));
        Self { tcp, tls }
    }
}

impl Service<Uri> for Connector {
    type Response = PeerStream;
    type Error = io::Error;
    type Future = Boxed<PeerStream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Service::poll_ready(&mut self.tcp, context).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        let made = self.tcp.call(uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let stream = made.await.map_err(io::Error::other)?.into_inner();
            let Some(tls) = tls else { return Ok(PeerStream(TokioIo::new(Stream::Plain(stream)))) };
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
            Ok(PeerStream(TokioIo::new(tls.connect(host, stream).await?)))
        })
    }
}

/// A connection to a peer.
pub(crate) struct PeerStream(TokioIo<Stream>);

impl Connection for PeerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for PeerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for PeerStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        hyper::rt::Write::is_write_vectored(&self.0)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

/// Looks names up, one task a name.
#[derive(Clone, Default)]
pub(crate) struct Resolver {
    names: Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Found>>>>>,
}

/// What a name was found to be, and when.
#[derive(Default)]
struct Found {
    at: Option<Instant>,
    /// Without port. Kept when a later look-up fails: name servers die with their hosts.
    addresses: Vec<SocketAddr>,
    /// Why there are none.
    failure: String,
}

impl Found {
    fn answer(&self) -> io::Result<std::vec::IntoIter<SocketAddr>> {
        if self.addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, self.failure.clone()));
        }
        Ok(self.addresses.clone().into_iter())
    }
}

impl Resolver {
    fn entry(&self, name: &str) -> Arc<tokio::sync::Mutex<Found>> {
        let mut names = self.names.lock();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.entry(name.to_owned()).or_default().clone()
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let entry = self.entry(name.as_str());
        Box::pin(async move {
            let mut found = entry.lock_owned().await;
            if found.at.is_some_and(|at| at.elapsed() < ADDRESSES_FRESH) {
                return found.answer();
            }
            // A task of its own: a caller that gives up must not free the name for another look-up.
            let looked_up = task::spawn(async move {
                match tokio::net::lookup_host((name.as_str(), 0)).await {
                    Ok(addresses) => found.addresses = addresses.collect(),
                    // Remembered as well: those who wait must not each ask again, one after the other.
                    Err(error) => found.failure = format!("{name} is not known: {error}"),
                }
                found.at = Some(Instant::now());
                found.answer()
            });
            looked_up.await.map_err(io::Error::other)?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[tokio::test]
    async fn name_is_looked_up_once_for_all_who_ask() {
        let mut resolver = Resolver::default();
        let name = || Name::from_str("localhost").unwrap();
        let (first, second) = tokio::join!(resolver.clone().call(name()), resolver.call(name()));
        assert!(first.unwrap().next().unwrap().ip().is_loopback() && second.unwrap().next().is_some());
        let found = resolver.entry("localhost");
        let asked = found.lock().await.at;
        assert!(asked.is_some() && resolver.call(name()).await.is_ok());
        assert_eq!(found.lock().await.at, asked);
    }

    #[tokio::test]
    async fn unknown_name_is_remembered_and_named() {
        let mut resolver = Resolver::default();
        let failed =
            Found { at: Some(Instant::now()), failure: "om9 is not known".to_owned(), ..Found::default() };
        *resolver.entry("om9").lock().await = failed;
        let error = resolver.call(Name::from_str("om9").unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("om9"));
    }
}
