//! `ferrozone server`: starts the roles in their order, says where they listen, and stops them in reverse.
//!
//! ```text
//!   configuration -> identity (cluster, root credentials) -> listeners bound -> roles of this process (roles.rs)
//!     -> their part in the cluster -> users -> gateway -> buckets -> ready
//!   signal: gateway finishes requests -> OM -> datanode -> SCM   (each flushes; a second signal ends at once)
//! ```
//!
//! Invariants:
//! * The operators' port answers from the first moment; it says ready only when what this process does is done.
//! * Secrets are printed once, when they were drawn, and never logged.
//!
//! Not here: what the roles do.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use admin::Readiness;
use anyhow::{Context, bail};
use clap::Args;
use client::http;
use client::http::tls::{Tls, TlsFiles};
use client::service::CallError;
use client::session::Session;
use gateway::{Gateway, GatewayConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use wire::cluster_key::ClusterKey;
use wire::names::BucketName;
use wire::om::{CreateBucket, PutUser, Rejection, RetainAccessKeys, Secret, UserId, UserInfo};
use wire::status::Status;

use crate::config::Config;
use crate::env::Endpoints;
use crate::identity::{Cluster, Credentials, Origin, write_json};
use crate::roles::Roles;
use crate::topology::Role;

/// Blocking work at once: digests and disk runs. Each thread costs its stack.
const BLOCKING_THREADS_MAX: usize = 128;

/// Between two attempts to reach an OM that has no leader yet.
const OM_WAIT: Duration = Duration::from_secs(1);

/// Arguments of `ferrozone server`.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Data directory [default: ./ferrozone-data].
    data_dir: Option<PathBuf>,
    /// TOML file of documented keys (docs/configuration.md).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where S3 is served; port 0 takes a free one [default: 127.0.0.1:9000].
    #[arg(long, value_name = "HOST:PORT")]
    s3_addr: Option<SocketAddr>,
    /// Where health and metrics are served [default: 127.0.0.1:9001].
    #[arg(long, value_name = "HOST:PORT")]
    admin_addr: Option<SocketAddr>,
    /// Buckets to create, owned by the root user.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', env = "FERROZONE_BUCKETS")]
    buckets: Vec<String>,
}

/// A configuration or data directory that cannot be used: exit code 78.
#[derive(Debug, thiserror::Error)]
#[error("cannot start")]
pub(crate) struct Unusable;

/// Runs the server until it is told to stop.
pub(crate) fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    let config = configure(&args).context(Unusable)?;
    start_logging(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("ferrozone")
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(serve(config));
    // Background work that is left has nothing durable to do.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map(|()| ExitCode::SUCCESS)
}

fn configure(args: &ServerArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(args.config.as_deref(), std::env::vars())?;
    if let Some(data_dir) = &args.data_dir {
        config.data_dir = data_dir.clone();
    }
    if let Some(address) = args.s3_addr {
        config.s3.address = address;
    }
    if let Some(address) = args.admin_addr {
        config.admin.address = address;
    }
    config.buckets.extend(args.buckets.iter().filter(|name| !name.is_empty()).cloned());
    for name in &config.buckets {
        BucketName::new(name)?;
    }
    config.check_files()?;
    std::fs::create_dir_all(&config.data_dir).with_context(|| {
        format!(
            "create data directory {}; the server runs as uid {}, which must be allowed to write there",
            config.data_dir.display(),
            rustix::process::getuid().as_raw()
        )
    })?;
    Ok(config)
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let given = std::env::var("RUST_LOG").or_else(|_| std::env::var("FERROZONE_LOG"));
    let filter = given.unwrap_or_else(|_| config.log.clone());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .with_context(|| format!("log filter {filter:?}"))
        .context(Unusable)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would report a log that cannot be written to where it cannot be written, and panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    let cluster = Cluster::establish(&config).context(Unusable)?;
    let (root, origin) = Credentials::establish(&config.credentials_file(), |name| std::env::var(name).ok())
        .context(Unusable)?;
    let s3_tls = tls_of(&config.s3.certificate, &config.s3.key, None)?;
    let admin_tls = tls_of(&config.admin.certificate, &config.admin.key, None)?;
    let s3_listener = match config.has_role(Role::Gateway) {
        true => Some(bind("s3.address", config.s3.address).await?),
        false => None,
    };
    let admin_listener = bind("admin.address", config.admin.address).await?;
    let s3_address = s3_listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let endpoints = Endpoints {
        s3: s3_address.map(|address| format!("{}://{address}", scheme(&s3_tls))).unwrap_or_default(),
        admin: format!("{}://{}", scheme(&admin_tls), admin_listener.local_addr()?),
        region: config.s3.region.clone(),
        credentials_file: Some(std::path::absolute(config.credentials_file())?),
    };

    let readiness = Readiness::waiting("the roles of this process");
    let metrics = admin::record_metrics()?;
    gateway::metrics::describe();
    client::metrics::describe();
    let stopping = CancellationToken::new();
    // The API needs clients that the roles make; health is asked for before that.
    let api: Arc<OnceLock<axum::Router>> = Arc::default();
    let operators = tokio::spawn({
        let router = admin::router(readiness.clone(), metrics).fallback_service(late(api.clone()));
        http::serve_operators(admin_listener, admin_tls, router, stopping.clone().cancelled_owned())
    });

    let roles = Roles::start(&config, &cluster, &readiness, &stopping).await?;
    if config.has_role(Role::Admin) {
        let root = admin::Root {
            access_key: root.access_key.clone(),
            secret_key: root.secret_key.clone(),
            region: config.s3.region.clone(),
        };
        let key = ClusterKey::new(cluster.id, cluster.key()?);
        let owner = root_user(&cluster).id;
        let operators = admin::Operators::new(roles.om.clone(), roles.scm.clone(), key, Some(root), owner);
        operators.set_backups(Arc::new(roles.backups()));
        // Nobody else sets it.
        let _ = api.set(admin::api_router(operators));
    }
    let no_more_requests = CancellationToken::new();
    // Other nodes may be long in coming: a signal ends the wait.
    let started = tokio::select! {
        gateway = begin_serving(&config, &cluster, &root, &roles, &readiness) => Some(gateway?),
        () = stop.wait() => None,
    };
    let mut s3 = None;
    if let Some(gateway) = started {
        if let (Some(gateway), Some(listener)) = (gateway, s3_listener) {
            s3 = Some(tokio::spawn(gateway.serve(listener, s3_tls, no_more_requests.clone())));
        }
        write_json(&Endpoints::file(&config.data_dir), &endpoints)?;
        readiness.set_ready();
        announce(&config, &endpoints, &root, origin);
        tracing::info!(s3 = %endpoints.s3, admin = %endpoints.admin, data_dir = %config.data_dir.display(), "serving");
        stop.wait().await;
    }
    tracing::info!("stopping: finishing open requests; a second signal ends at once");
    readiness.wait_for("nothing: the server is stopping");
    no_more_requests.cancel();
    let orderly = async {
        if let Some(s3) = s3 {
            s3.await.context("gateway task")?.context("serve S3")?;
        }
        roles.stop().await;
        stopping.cancel();
        operators.await.context("operators' task")?.context("serve the operators' port")?;
        anyhow::Ok(())
    };
    tokio::select! {
        outcome = orderly => outcome?,
        () = stop.wait() => bail!("a second signal: stopped without finishing"),
    }
    tracing::info!("stopped");
    Ok(())
}

/// The certificates of a listener, if it has any; looked at again while the server runs.
pub(crate) fn tls_of(
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
    authority: Option<PathBuf>,
) -> anyhow::Result<Option<Arc<Tls>>> {
    let (Some(certificate), Some(key)) = (certificate.clone(), key.clone()) else { return Ok(None) };
    let tls = Tls::open(TlsFiles { certificate, key, authority }).context(Unusable)?;
    tls.watch();
    Ok(Some(tls))
}

fn scheme(tls: &Option<Arc<Tls>>) -> &'static str {
    if tls.is_some() { "https" } else { "http" }
}

/// A service that answers 404 until there is an API to answer.
fn late(
    api: Arc<OnceLock<axum::Router>>,
) -> impl tower::Service<
    axum::extract::Request,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static {
    tower::service_fn(move |request| {
        let api = api.get().cloned();
        async move {
            match api {
                Some(api) => tower::ServiceExt::oneshot(api, request).await,
                None => Ok(axum::response::IntoResponse::into_response(axum::http::StatusCode::NOT_FOUND)),
            }
        }
    })
}

/// Waits until the roles take part in the cluster, and opens the gateway if this process has one.
async fn begin_serving(
    config: &Config,
    cluster: &Cluster,
    root: &Credentials,
    roles: &Roles,
    readiness: &Readiness,
) -> anyhow::Result<Option<Arc<Gateway>>> {
    roles.wait_ready(readiness).await;
    if !config.has_role(Role::Gateway) {
        return Ok(None);
    }
    readiness.wait_for("a leader of the ozone manager");
    let session = open_session(roles).await?;
    readiness.wait_for("the users of the configuration");
    put_users(config, cluster, root, &session).await?;
    create_buckets(config, cluster, &session).await?;
    session.close().await;
    // Kept alive it would be renewed, and OM has just ended it.
    drop(session);
    readiness.wait_for("the gateway");
    let gateway = Gateway::new(gateway_config(config), roles.om.clone(), roles.datanodes.clone());
    Ok(Some(gateway.await.context("start the gateway")?))
}

/// A session with OM, whenever the nodes that make its quorum are there.
async fn open_session(roles: &Roles) -> anyhow::Result<Arc<Session>> {
    loop {
        match Session::open(roles.om.clone()).await {
            Ok(session) => return Ok(session),
            Err(CallError::Failed(failure))
                if matches!(failure.status, Status::Retry | Status::NotLeader | Status::Unknown) =>
            {
                tracing::warn!(%failure, "waiting for the ozone manager");
                tokio::time::sleep(OM_WAIT).await;
            }
            Err(error) => return Err(error).context("reach the ozone manager"),
        }
    }
}

pub(crate) async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} ({key}); is another server running there?"))
        .context(Unusable)
}

/// The root user, as `<Owner>` shows it.
fn root_user(cluster: &Cluster) -> UserInfo {
    // As long as AWS's canonical ids; the same over restarts, another in every cluster.
    let id = format!("{0}{0}", cluster.id.0.simple());
    UserInfo { id: UserId(id), display_name: "root".to_owned(), email: None }
}

/// Makes OM know the users of the configuration, and forget those it no longer names.
async fn put_users(
    config: &Config,
    cluster: &Cluster,
    root: &Credentials,
    session: &Session,
) -> anyhow::Result<()> {
    let root = PutUser {
        user: root_user(cluster),
        access_key: root.access_key.clone(),
        secret: Secret(root.secret_key.clone()),
    };
    let others = config.users.iter().map(|user| PutUser {
        user: UserInfo {
            id: UserId(user.id.clone()),
            display_name: user.display_name.clone(),
            email: user.email.clone(),
        },
        access_key: user.access_key.clone(),
        secret: Secret(user.secret_key.clone()),
    });
    let users: Vec<PutUser> = std::iter::once(root).chain(others).collect();
    let access_keys = users.iter().map(|user| user.access_key.clone()).collect();
    for user in users {
        session.call(user).await.context("put a user")?;
    }
    session.call(RetainAccessKeys { access_keys }).await.context("drop access keys no longer configured")?;
    Ok(())
}

async fn create_buckets(config: &Config, cluster: &Cluster, session: &Session) -> anyhow::Result<()> {
    let owner = root_user(cluster);
    for name in &config.buckets {
        let name = BucketName::new(name)?;
        let make = |context| CreateBucket {
            context,
            name: name.clone(),
            owner: owner.clone(),
            location: String::new(),
        };
        match session.command(make).await {
            Ok(_) => tracing::info!(bucket = %name, "created"),
            Err(CallError::Rejected(Rejection::BucketExists { owner: of })) if of == owner.id => {}
            Err(CallError::Rejected(Rejection::BucketExists { .. })) => {
                bail!("bucket {name} of the configuration belongs to another user");
            }
            Err(error) => return Err(error).with_context(|| format!("create bucket {name}")),
        }
    }
    Ok(())
}

fn gateway_config(config: &Config) -> GatewayConfig {
    let s3 = &config.s3;
    GatewayConfig {
        region: s3.region.clone(),
        strict_region: s3.strict_region,
        sigv2_presign: s3.sigv2_presign,
        domains: s3.domains.clone(),
        connections_max: s3.connections_max,
        connections_per_ip_max: s3.connections_max,
        body_memory_bytes: s3.body_memory.0 as usize,
        shutdown_deadline: s3.shutdown_deadline.0,
        witness: s3.witness,
        ..GatewayConfig::default()
    }
}

/// What a person reads first: where, with which keys, and what to try.
fn announce(config: &Config, endpoints: &Endpoints, root: &Credentials, origin: Origin) {
    let data_dir = config.data_dir.display();
    let file = config.credentials_file();
    let file = file.display();
    let keys = match origin {
        Origin::Generated => format!(
            "Access key {}   Secret {}\n  (generated; shown once; kept readable by you alone in {file})",
            root.access_key, root.secret_key
        ),
        Origin::Kept => format!("Access key {}   Secret: in {file}", root.access_key),
        Origin::Given => format!("Access key {}   Secret: as given by the environment", root.access_key),
    };
    let admin = &endpoints.admin;
    let roles: Vec<&str> = config.node.roles.iter().map(|role| role.name()).collect();
    let roles = if config.is_cluster() {
        format!("{} of cluster node {}", roles.join(", "), config.node.name)
    } else {
        "all roles in one process".to_owned()
    };
    let mut text = format!("ferrozone {}  {roles}, data {data_dir}\n", env!("CARGO_PKG_VERSION"));
    let any = if config.s3.strict_region { "no" } else { "yes" };
    if config.has_role(Role::Gateway) {
        text += &format!("  S3       {}   region {} (any accepted: {any})\n", endpoints.s3, endpoints.region);
    }
    text += &format!("  Health   {admin}/healthz/ready   Metrics {admin}/metrics\n");
    if config.has_role(Role::Gateway) {
        text += &format!(
            "  {keys}\n  Try: eval \"$(ferrozone env {data_dir})\"; aws s3 mb s3://demo; aws s3 cp README.md s3://demo/\n"
        );
    }
    // A closed standard output is no reason to stop serving.
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        tracing::debug!("nobody reads standard output");
    }
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
