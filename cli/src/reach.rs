//! How the command line reaches the admin API: which address, with which proof, by which authority.
//!
//! What is not given on the command line is found: from a node's configuration (`--config`), else in the data directory
//! of a server on this machine. One connection a call: people and scripts call here.
//!
//! Invariants:
//! * No key goes over a connection that was not checked: the proof is made of the key and shows nothing of it, and an
//!   `https` address is called only under an authority.
//! * A refusal keeps its code, so that scripts can tell it by the exit code ([`Refusal::exit_code`]).
//!
//! Not here: what the calls mean (the crate `admin`), how answers are shown (`show`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use admin::{CHALLENGE_PATH, prove};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use client::http::tls::{Stream, Trust};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use wire::cluster_key::ClusterKey;

use crate::config::Config;
use crate::env::Endpoints;
use crate::identity::{Cluster, read_json};

/// An answer's bytes at most: a page of a thousand containers is about a MiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The challenge is 32 digits; more than this is none.
const CHALLENGE_BYTES_MAX: usize = 1 << 10;
/// A change of membership waits for replicas to catch up with it.
const DEADLINE: Duration = Duration::from_secs(60);
/// A node that does not take a connection by then is away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Where Linux keeps the authorities that its users trust.
const SYSTEM_AUTHORITIES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Arguments of every command that asks the admin API.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReachArgs {
    /// A node's configuration: its operators' port, cluster key and authority are taken from there.
    #[arg(long, global = true, value_name = "NODE_TOML", env = "FERROZONE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Data directory of a server on this machine.
    #[arg(long, global = true, value_name = "DIR", default_value = "./ferrozone-data")]
    pub(crate) data_dir: PathBuf,
    /// URL of a node's operators' port [default: as the configuration or the data directory says].
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) admin: Option<String>,
    /// The cluster's file with its id and key [default: as the configuration says, else DATA_DIR/cluster.json].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cluster_file: Option<PathBuf>,
    /// Authority that signed the certificate of the operators' port, or of S3 [default: the cluster's own, else the machine's].
    #[arg(long, global = true, value_name = "PEM")]
    pub(crate) ca: Option<PathBuf>,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl ReachArgs {
    /// Where the cluster's id and key are.
    pub(crate) fn key_file(&self, config: Option<&Config>) -> PathBuf {
        match (&self.cluster_file, config) {
            (Some(file), _) => file.clone(),
            (None, Some(config)) => config.cluster_file(),
            (None, None) => self.data_dir.join("cluster.json"),
        }
    }
}

/// The admin API said no, or nothing that could be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// As the API has it, or `unreachable`.
    pub(crate) code: String,
    /// For people.
    pub(crate) message: String,
}

impl Refusal {
    /// For scripts. 1 is a failure of another kind.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.code.as_str() {
            "conflict" => 3,
            "not_found" | "no_route" => 4,
            "unauthenticated" | "forbidden" => 5,
            "unavailable" | "unreachable" => 6,
            "outcome_unknown" => 7,
            _ => 1,
        }
    }

    /// The state does not allow it.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self { code: "conflict".to_owned(), message: message.into() }
    }

    /// Whether the state does not allow it.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code == "conflict"
    }
}

/// What the exit codes mean, for the commands' help.
pub(crate) const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 refused, since the state does \
not allow it or data would be lost (the message says what, and whether --force overrides it); 4 no such thing; 5 not let \
in; 6 no answer, try again; 7 the outcome is not known, look before trying again; 78 a configuration that cannot be used.";

/// A node's admin API.
pub(crate) struct Api {
    /// scheme://host:port
    address: http::Uri,
    /// By which the certificate is checked, and under which name.
    tls: Option<(Trust, String)>,
    key: ClusterKey,
}

impl Api {
    /// Finds the address, the key and the authority.
    pub(crate) fn find(args: &ReachArgs) -> anyhow::Result<Self> {
        let config = match &args.config {
            Some(file) => Some(Config::load(Some(file), std::env::vars())?),
            None => None,
        };
        let address = match (&args.admin, &config) {
            (Some(address), _) => address.trim_end_matches('/').to_owned(),
            (None, Some(config)) => of_config(config)?,
            (None, None) => of_data_dir(&args.data_dir)?,
        };
        let address: http::Uri = address.parse().with_context(|| format!("{address} is no URL"))?;
        let key_file = args.key_file(config.as_ref());
        let cluster = Cluster::load(&key_file)?;
        let tls = match address.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let authority = authority(args.ca.clone(), config.as_ref(), Some(&key_file))?;
                let trust = Trust::open(&authority)
                    .with_context(|| format!("use the authority {}", authority.display()))?;
                Some((trust, certified_name(&address, config.as_ref())?))
            }
            _ => bail!(
                "{address} is no URL of an operators' port: write http://HOST:PORT or https://HOST:PORT"
            ),
        };
        Ok(Self { address, tls, key: ClusterKey::new(cluster.id, cluster.key()?) })
    }

    /// The cluster whose key is used.
    pub(crate) fn cluster(&self) -> wire::ids::ClusterId {
        self.key.id
    }

    /// Asks, and reads the answer as `T`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(self.ask("GET", path, None).await?)
    }

    /// Calls the API. A refusal is a [`Refusal`].
    pub(crate) async fn ask(
        &self,
        method: &'static str,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let exchange = self.exchange(method, path, body.map(|body| body.to_string()).unwrap_or_default());
        let outcome = tokio::time::timeout(DEADLINE, exchange).await;
        let (status, bytes) = outcome.map_err(|_| Refusal {
            code: "outcome_unknown".to_owned(),
            message: format!("{} did not answer within {} s", self.address, DEADLINE.as_secs()),
        })??;
        self.judge(status, &bytes)
    }

    fn request(
        &self,
        method: &'static str,
        path: &str,
        body: String,
        challenge: Option<&str>,
    ) -> anyhow::Result<http::Request<Full<Bytes>>> {
        let authority = self.address.authority().context("the address of the operators' port has no host")?;
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, authority.as_str())
            .header(http::header::CONTENT_TYPE, "application/json");
        if let Some(challenge) = challenge {
            let now_ms = wire::clock::now_ms();
            let proof = prove(&self.key, challenge, method, path, body.as_bytes(), now_ms);
            request = request.header(http::header::AUTHORIZATION, proof);
        }
        request.body(Full::new(Bytes::from(body))).with_context(|| format!("{path} is no path"))
    }

    fn no_operators_port(&self, status: http::StatusCode) -> Refusal {
        Refusal {
            code: "unreachable".to_owned(),
            message: format!(
                "{} answered {status}, not as the admin API does: is it the operators' port of a node whose node.roles has \
                 admin, and has it started?",
                self.address
            ),
        }
    }

    /// An answer, or the refusal that it is.
    fn judge(&self, status: http::StatusCode, bytes: &[u8]) -> anyhow::Result<Value> {
        let answer: Value = serde_json::from_slice(bytes).map_err(|_| self.no_operators_port(status))?;
        if status.is_success() {
            return Ok(answer);
        }
        let text = |field: &str, default: &str| answer[field].as_str().unwrap_or(default).to_owned();
        Err(Refusal { code: text("code", ""), message: text("message", "refused without a reason") }.into())
    }

    /// Reads an answer that is no JSON, piece by piece. A refusal is a [`Refusal`].
    pub(crate) async fn download(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let late = || Refusal {
            code: "unavailable".to_owned(),
            message: format!("{} sent nothing for {} s", self.address, DEADLINE.as_secs()),
        };
        let (response, driven) = tokio::time::timeout(DEADLINE, self.send("GET", path, String::new()))
            .await
            .map_err(|_| late())??;
        let status = response.status();
        let mut body = response.into_body();
        let mut refusal = Vec::new();
        while let Some(frame) = tokio::time::timeout(DEADLINE, body.frame()).await.map_err(|_| late())? {
            let frame = frame.with_context(|| format!("the answer of {} broke off", self.address))?;
            let Ok(piece) = frame.into_data() else { continue };
            if status.is_success() {
                take(&piece)?;
            } else if refusal.len() + piece.len() <= ANSWER_BYTES_MAX {
                refusal.extend_from_slice(&piece);
            }
        }
        driven.abort();
        if status.is_success() {
            return Ok(());
        }
        self.judge(status, &refusal).map(drop)
    }

    async fn exchange(
        &self,
        method: &'static str,
        path: &str,
        body: String,
    ) -> anyhow::Result<(http::StatusCode, Bytes)> {
        let (response, driven) = self.send(method, path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        driven.abort();
        let body =
            body.map_err(|error| anyhow::anyhow!("the answer of {} broke off: {error}", self.address))?;
        Ok((status, body.to_bytes()))
    }

    /// Asks for the node's challenge and then, over the same connection, what is to be asked. The head of the answer, and
    /// the task that reads the rest.
    async fn send(
        &self,
        method: &'static str,
        path: &str,
        body: String,
    ) -> anyhow::Result<(http::Response<hyper::body::Incoming>, tokio::task::JoinHandle<hyper::Result<()>>)>
    {
        let unreachable = |error: &dyn std::fmt::Display| Refusal {
            code: "unreachable".to_owned(),
            message: format!(
                "no answer from {}: {error}; is the node up, and is this its operators' port (admin.address)?",
                self.address
            ),
        };
        let stream = self.connect().await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        let driven = tokio::spawn(connection);
        let request = self.request("GET", CHALLENGE_PATH, String::new(), None)?;
        let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        let challenge = Limited::new(response.into_body(), CHALLENGE_BYTES_MAX).collect().await;
        let challenge = challenge.map_err(|error| unreachable(&error))?.to_bytes();
        let Some(challenge) = std::str::from_utf8(&challenge).ok().filter(|_| status.is_success()) else {
            return Err(self.no_operators_port(status).into());
        };
        let request = self.request(method, path, body, Some(challenge))?;
        // The connection may take a moment to see that the first answer was read.
        sender.ready().await.map_err(|error| unreachable(&error))?;
        let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        Ok((response, driven))
    }

    async fn connect(&self) -> std::io::Result<Stream> {
        let host = host_of(&self.address);
        let port = self.address.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((host.as_str(), port)));
        let stream = connected.await.map_err(|_| late())??;
        match &self.tls {
            Some((trust, name)) => trust.connect(name, stream).await,
            None => Ok(Stream::Plain(stream)),
        }
    }
}

/// Reads an answer as what the command expects.
pub(crate) fn read<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer).context("the node answers in another form: are both of one version?")
}

/// Where the node of a configuration serves operators, as seen from its own machine.
fn of_config(config: &Config) -> anyhow::Result<String> {
    let mut address = config.admin.address;
    if address.port() == 0 {
        return of_data_dir(&config.data_dir);
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let scheme = if config.admin.certificate.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}

fn of_data_dir(data_dir: &Path) -> anyhow::Result<String> {
    let file = Endpoints::file(data_dir);
    let endpoints: Option<Endpoints> = read_json(&file)?;
    Ok(endpoints
        .with_context(|| {
            format!(
                "{} does not exist: name a node by --config node.toml, a server's directory by --data-dir DIR, or an \
                 address by --admin URL",
                file.display()
            )
        })?
        .admin)
}

/// The authority to check a node's certificate by.
pub(crate) fn authority(
    given: Option<PathBuf>,
    config: Option<&Config>,
    key_file: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    let of_config = config.and_then(|config| config.internal.ca.clone());
    let beside = key_file.and_then(Path::parent).map(|dir| dir.join("ca.pem")).filter(|file| file.is_file());
    let system = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|file| file.is_file());
    given.or(of_config).or(beside).or_else(system).context("name the authority of the certificate: --ca PEM")
}

/// The name that the certificate is for: the cluster's are for the name under which other nodes know the node.
pub(crate) fn certified_name(address: &http::Uri, config: Option<&Config>) -> anyhow::Result<String> {
    let host = host_of(address);
    // A port that is open to all addresses is called by none of them.
    let is_own = |ip: std::net::IpAddr| ip.is_loopback() || ip.is_unspecified();
    let is_loopback = host == "localhost" || host.parse().is_ok_and(is_own);
    match config.map(Config::advertised).transpose()?.flatten() {
        Some(advertised) if is_loopback => Ok(advertised.host().to_owned()),
        _ => Ok(host),
    }
}

/// Without the brackets of IPv6.
fn host_of(address: &http::Uri) -> String {
    address.host().unwrap_or_default().trim_matches(['[', ']']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, text: &str) -> Config {
        let file = dir.join("node.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), std::iter::empty()).unwrap()
    }

    #[test]
    fn address_is_found_in_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| of_config(&config(dir.path(), text)).unwrap();
        assert_eq!(of(""), "http://127.0.0.1:9001");
        assert_eq!(of("[admin]\naddress = \"0.0.0.0:9101\""), "http://127.0.0.1:9101");
        let with_certificate = "[admin]\naddress = \"[::]:9101\"\ncertificate = \"c\"\nkey = \"k\"";
        assert_eq!(of(with_certificate), "https://[::1]:9101");
    }

    #[test]
    fn address_of_a_free_port_stands_in_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "data_dir = \"data\"\n[admin]\naddress = \"127.0.0.1:0\"");
        let error = of_config(&config).unwrap_err().to_string();
        assert!(error.contains("name a node by --config"), "{error}");
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let endpoints = r#"{"s3":"http://127.0.0.1:1","admin":"http://127.0.0.1:2","region":"r"}"#;
        std::fs::write(dir.path().join("data/endpoints.json"), endpoints).unwrap();
        assert_eq!(of_config(&config).unwrap(), "http://127.0.0.1:2");
    }

    #[test]
    fn certificate_is_checked_by_the_name_the_cluster_knows() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(
            dir.path(),
            "[node]\nname = \"g\"\nroles = [\"gateway\"]\n[internal]\naddress = \"0.0.0.0:9\"\nadvertise = \"g1:9\"\n\
             [[meta]]\nname = \"m\"\nraft_id = 1\naddress = \"m:1\"\n\
             incarnation = \"00000000-0000-0000-0000-000000000001\"",
        );
        let name = |address: &str, config| certified_name(&address.parse().unwrap(), config).unwrap();
        assert_eq!(name("https://127.0.0.1:9001", Some(&config)), "g1");
        assert_eq!(name("https://other:9001", Some(&config)), "other");
        assert_eq!(name("https://0.0.0.0:9000", Some(&config)), "g1");
        assert_eq!(name("https://[::1]:9001", None), "::1");
    }

    #[test]
    fn refusals_have_exit_codes_of_their_own() {
        let code = |code: &str| Refusal { code: code.to_owned(), message: String::new() }.exit_code();
        let codes =
            ["conflict", "not_found", "unauthenticated", "unavailable", "outcome_unknown", "internal"];
        assert_eq!(codes.map(code), [3, 4, 5, 6, 7, 1]);
    }
}
