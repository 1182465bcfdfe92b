//! TLS of all listeners and of calls between hosts, from files that may be replaced while the server runs.
//!
//! ```text
//!   between hosts   certificate + key + the cluster's authority: both sides show a certificate, both are checked
//!                   against that authority alone; the caller also checks the name it dialled; TLS 1.3
//!   S3, operators   certificate + key: whatever the operator's clients trust; TLS 1.2 and 1.3
//! ```
//!
//! Files are looked at every few seconds. New ones count from the next connection on; connections that stand keep what
//! they began with. Files that make no sense are reported once and the old ones stay.
//!
//! Invariants:
//! * A handshake ends within its deadline.
//! * No certificate is taken without a check.
//!
//! Not here: making certificates (cli), the cluster key's proofs inside (`auth`).

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use platform::task;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, crypto};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A handshake ends within this: two round trips and some arithmetic, or a client that is up to no good.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Files are looked at this often.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);
/// The only protocol spoken: a client that offers HTTP/2 besides takes it.
const ALPN: &[u8] = b"http/1.1";

/// Where certificates are kept, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This node's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates peers must be signed by. None: clients show no certificate, and no calls are made.
    pub authority: Option<PathBuf>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file holds no such thing.
    #[error("cannot read {}", .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A file holds no certificate.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// They do not fit each other, or are of a kind that is not known.
    #[error("the certificate in {} cannot be used", .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The authority is none.
    #[error("the authority in {} cannot be used: {reason}", .path.display())]
    NoAuthority {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The certificates of a listener, and of calls between hosts.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Configs>,
    stamps: Mutex<Stamps>,
}

#[derive(Clone)]
struct Configs {
    server: Arc<ServerConfig>,
    client: Option<Arc<ClientConfig>>,
}

/// Number, time and size of each file, as far as it is there: a new file may be as long and as old as the former.
type Stamps = Vec<Option<(u64, SystemTime, u64)>>;

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        // Before the reading: a change in between is seen by the next look.
        let stamps = Mutex::new(stamps(&files));
        let current = RwLock::new(load(&files)?);
        Ok(Arc::new(Self { files, current, stamps }))
    }

    /// Looks at the files again: whether they had changed and are in use now.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let found = stamps(&self.files);
        if std::mem::replace(&mut *self.stamps.lock(), found.clone()) == found {
            return Ok(false);
        }
        *self.current.write() = load(&self.files)?;
        Ok(true)
    }

    /// Looks at the files every few seconds for as long as anybody holds this.
    pub fn watch(self: &Arc<Self>) {
        task::spawn(watch(Arc::downgrade(self)));
    }

    /// Serves a client's handshake.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let acceptor = TlsAcceptor::from(self.current.read().server.clone());
        let stream = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await.map_err(|_| late())??;
        Ok(Stream::Secure(Box::new(TlsStream::Server(stream))))
    }

    /// Shakes hands with the node named `host`.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let config = self.current.read().client.clone();
        let config =
            config.ok_or_else(|| io::Error::other("no authority is configured to check peers by"))?;
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let shaken = TlsConnector::from(config).connect(name, stream);
        let stream = timeout(HANDSHAKE_DEADLINE, shaken).await.map_err(|_| late())??;
        Ok(Stream::Secure(Box::new(TlsStream::Client(stream))))
    }
}

/// Authorities by which a caller that shows no certificate of its own checks a server: operators' and users' tools.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trusts what the authorities in a PEM file signed, and nothing else.
    pub fn open(authorities: &PathBuf) -> Result<Self, TlsError> {
        let no_authority = |reason: String| TlsError::NoAuthority { path: authorities.clone(), reason };
        let mut roots = RootCertStore::empty();
        let (added, refused) = roots.add_parsable_certificates(certificates(authorities)?);
        if added == 0 {
            return Err(no_authority(format!("none of its {refused} certificates can be used")));
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| no_authority(error.to_string()))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands with the server named `host`.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let shaken = TlsConnector::from(self.0.clone()).connect(name, stream);
        let stream = timeout(HANDSHAKE_DEADLINE, shaken).await.map_err(|_| late())??;
        Ok(Stream::Secure(Box::new(TlsStream::Client(stream))))
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({:?})", self.files)
    }
}

async fn watch(tls: Weak<Tls>) {
    loop {
        sleep(RELOAD_INTERVAL).await;
        let Some(tls) = tls.upgrade() else { return };
        let certificate = tls.files.certificate.clone();
        let certificate = certificate.display();
        match task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(false)) | Err(_) => {}
            Ok(Ok(true)) => tracing::info!(%certificate, "certificates were replaced"),
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(%error, cause, "new certificates are of no use; the former stay");
            }
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long")
}

fn stamps(files: &TlsFiles) -> Stamps {
    let paths = [Some(&files.certificate), Some(&files.key), files.authority.as_ref()];
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.modified().ok()?, metadata.len()))
    };
    paths.into_iter().flatten().map(stamp).collect()
}

fn load(files: &TlsFiles) -> Result<Configs, TlsError> {
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Unreadable { path: files.key.clone(), source })?;
    let unusable = |source| TlsError::Unusable { path: files.certificate.clone(), source };
    let provider = Arc::new(crypto::ring::default_provider());
    let Some(authority) = &files.authority else {
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(unusable)?.with_no_client_auth();
        let mut server = builder.with_single_cert(certificates, key).map_err(unusable)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        return Ok(Configs { server: Arc::new(server), client: None });
    };
    let no_authority = |reason: String| TlsError::NoAuthority { path: authority.clone(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in self::certificates(authority)? {
        roots.add(certificate).map_err(|error| no_authority(error.to_string()))?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    let verifier = verifier.map_err(|error| no_authority(error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(unusable)?.with_client_cert_verifier(verifier);
    let server = builder.with_single_cert(certificates.clone(), key.clone_key()).map_err(unusable)?;
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(unusable)?.with_root_certificates(roots);
    let client = builder.with_client_auth_cert(certificates, key).map_err(unusable)?;
    Ok(Configs { server: Arc::new(server), client: Some(Arc::new(client)) })
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.clone(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(unreadable)?;
    if found.is_empty() {
        return Err(TlsError::Empty(path.clone()));
    }
    Ok(found)
}

/// A connection, plain or within TLS.
#[derive(Debug)]
pub enum Stream {
    /// As it is: loopback, a single host.
    Plain(TcpStream),
    /// Within TLS.
    Secure(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, data),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_write(context, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
