//! TLS on loopback: who is let in, who is not, and certificates that change while the server runs.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use client::http::tls::{Tls, TlsFiles};
use client::http::{OmStub, Transport, TransportConfig, Verifier, om_router, serve};
use client::service::{CallError, OmService, call_om};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use wire::cluster_key::ClusterKey;
use wire::host::HostPort;
use wire::ids::{ClusterId, SessionId};
use wire::om::{OmReply, OmRequest, OpenSession};
use wire::status::{Failure, Status};

/// Certificates in a directory of their own.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let (dir, key) = (TempDir::new().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// Writes certificate and key of a node that is called `host`.
    fn sign(&self, into: &Path, host: &str, is_expired: bool) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if is_expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2001, 2, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // As operators and their tools do: a file is replaced, not rewritten.
        for (name, text) in [("node.key", key.serialize_pem()), ("node.crt", certificate.pem())] {
            std::fs::write(into.join("new"), text).unwrap();
            std::fs::rename(into.join("new"), into.join(name)).unwrap();
        }
    }

    /// What a node that is called `host` speaks TLS with.
    fn node(&self, host: &str) -> (TempDir, Arc<Tls>) {
        let dir = TempDir::new().unwrap();
        self.sign(dir.path(), host, false);
        let tls = Tls::open(files(dir.path(), Some(self.path()))).unwrap();
        (dir, tls)
    }
}

fn files(dir: &Path, authority: Option<PathBuf>) -> TlsFiles {
    TlsFiles { certificate: dir.join("node.crt"), key: dir.join("node.key"), authority }
}

#[derive(Default)]
struct Counting(AtomicUsize);

#[async_trait]
impl OmService for Counting {
    async fn handle(&self, _: OmRequest) -> Result<OmReply, CallError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(OmReply::OpenSession(SessionId(1)))
    }
}

fn key() -> ClusterKey {
    ClusterKey::new(ClusterId::default(), [1; 32])
}

/// A listening OM; the address names it as `localhost`.
async fn start(tls: Option<Arc<Tls>>) -> (HostPort, Arc<Counting>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let om = Arc::new(Counting::default());
    let router = om_router(om.clone(), Verifier::new(key()));
    tokio::spawn(serve(listener, tls, router, std::future::pending()));
    (HostPort::new(&format!("localhost:{port}")).unwrap(), om)
}

async fn call(peer: &HostPort, tls: Option<Arc<Tls>>) -> Result<SessionId, Failure> {
    let transport = Transport::of_node(TransportConfig { tls, ..TransportConfig::new(key(), "gw1") });
    let outcome = call_om(&OmStub::new(transport, peer.clone()), OpenSession { nonce: [0; 16] }).await;
    outcome.map_err(|error| match error {
        CallError::Failed(failure) => failure,
        CallError::Rejected(rejection) => panic!("{rejection}"),
    })
}

#[tokio::test]
async fn nodes_of_one_authority_speak() {
    let authority = Authority::new();
    let (_server, server) = authority.node("localhost");
    let (_caller, caller) = authority.node("gw1");
    let (peer, om) = start(Some(server)).await;
    assert_eq!(call(&peer, Some(caller)).await, Ok(SessionId(1)));
    assert_eq!(om.0.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn strangers_are_turned_away_on_both_sides() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (_server, server) = authority.node("localhost");
    let (_caller, caller) = authority.node("gw1");
    let (_stranger, stranger) = other.node("localhost");
    let (_half, half) = (other.dir.path(), other.node("gw1").1);
    let expired = TempDir::new().unwrap();
    authority.sign(expired.path(), "localhost", true);
    let expired = Tls::open(files(expired.path(), Some(authority.path()))).unwrap();

    let (peer, om) = start(Some(server)).await;
    // A caller that trusts the server and is not trusted by it.
    let mixed = TempDir::new().unwrap();
    other.sign(mixed.path(), "gw1", false);
    let mixed = Tls::open(files(mixed.path(), Some(authority.path()))).unwrap();
    for (what, caller) in
        [("another authority", half), ("an untrusted certificate", mixed), ("expired", expired.clone())]
    {
        let failure = call(&peer, Some(caller)).await.unwrap_err();
        assert_eq!(failure.status, Status::Denied, "{what}: {failure}");
        assert!(failure.message.contains("authority"), "{failure}");
    }
    // Without TLS there is no answer to be had, and nothing was done.
    assert!(matches!(call(&peer, None).await.unwrap_err().status, Status::Unknown | Status::Retry));
    assert_eq!(om.0.load(Ordering::SeqCst), 0);

    let (_misnamed, misnamed) = authority.node("om2");
    for (what, server) in [("another name", misnamed), ("another authority", stranger), ("expired", expired)]
    {
        let (peer, om) = start(Some(server)).await;
        let failure = call(&peer, Some(caller.clone())).await.unwrap_err();
        assert_eq!(failure.status, Status::Denied, "{what}: {failure}");
        assert_eq!(om.0.load(Ordering::SeqCst), 0);
    }
    // A server that speaks no TLS is not spoken to.
    let (peer, om) = start(None).await;
    assert!(call(&peer, Some(caller)).await.is_err());
    assert_eq!(om.0.load(Ordering::SeqCst), 0);
}

/// Connects as a browser or an S3 client does: it knows the authority and has no certificate.
async fn connect(
    authority: &Authority,
    peer: &HostPort,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.path()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let connector = TlsConnector::from(Arc::new(builder.with_no_client_auth()));
    let stream = TcpStream::connect(peer.as_str()).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

async fn ask(authority: &Authority, peer: &HostPort) -> std::io::Result<String> {
    let mut stream = connect(authority, peer).await?;
    stream
        .write_all(b"POST /om/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn clients_need_a_certificate_between_hosts_only() {
    let authority = Authority::new();
    let (dir, mutual) = authority.node("localhost");
    let (peer, _) = start(Some(mutual)).await;
    assert!(ask(&authority, &peer).await.is_err());
    let public = Tls::open(files(dir.path(), None)).unwrap();
    let (peer, _) = start(Some(public.clone())).await;
    // TLS lets it in; the service asks for the cluster key.
    assert_eq!(ask(&authority, &peer).await.unwrap(), "HTTP/1.1 401");
    assert!(call(&peer, Some(public)).await.is_err(), "without an authority nobody can be checked");
}

#[tokio::test]
async fn replaced_files_count_and_broken_ones_do_not() {
    let (first, second) = (Authority::new(), Authority::new());
    let dir = TempDir::new().unwrap();
    first.sign(dir.path(), "localhost", false);
    let tls = Tls::open(files(dir.path(), None)).unwrap();
    let (peer, _) = start(Some(tls.clone())).await;
    assert!(ask(&first, &peer).await.is_ok() && ask(&second, &peer).await.is_err());
    assert!(!tls.reload().unwrap(), "nothing has changed");

    std::fs::write(dir.path().join("node.crt"), "not a certificate").unwrap();
    assert!(tls.reload().is_err());
    assert!(ask(&first, &peer).await.is_ok(), "the former stay");
    assert!(!tls.reload().unwrap(), "and are not complained of again");
    // The key of one and the certificate of another.
    let other = TempDir::new().unwrap();
    first.sign(other.path(), "localhost", false);
    std::fs::copy(other.path().join("node.crt"), dir.path().join("node.crt")).unwrap();
    assert!(tls.reload().is_err());
    std::fs::remove_file(dir.path().join("node.key")).unwrap();
    assert!(tls.reload().is_err());
    assert!(ask(&first, &peer).await.is_ok());

    second.sign(dir.path(), "localhost", false);
    assert!(tls.reload().unwrap());
    assert!(ask(&second, &peer).await.is_ok() && ask(&first, &peer).await.is_err());
}

#[tokio::test]
async fn files_that_make_no_sense_are_refused_by_name() {
    let authority = Authority::new();
    let (dir, _) = authority.node("localhost");
    let absent = files(&dir.path().join("absent"), None);
    assert!(Tls::open(absent).unwrap_err().to_string().contains("node.crt"));
    let swapped = TlsFiles { certificate: dir.path().join("node.key"), ..files(dir.path(), None) };
    assert!(Tls::open(swapped).unwrap_err().to_string().contains("no certificate"));
    let no_authority = files(dir.path(), Some(dir.path().join("node.key")));
    assert!(Tls::open(no_authority).is_err());
}

#[tokio::test(start_paused = true)]
async fn handshake_that_does_not_come_is_given_up() {
    let authority = Authority::new();
    let (_dir, tls) = authority.node("localhost");
    let (peer, _) = start(Some(tls)).await;
    let mut silent = TcpStream::connect(peer.as_str()).await.unwrap();
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0);
}
