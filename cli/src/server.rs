//! `ferrozone server`: starts the roles in their order, says where they listen, and stops them in reverse.
//!
//! ```text
//!   configuration -> identity (cluster, root credentials) -> listeners bound
//!     -> SCM -> datanode -> OM -> users -> gateway -> buckets -> ready
//!   signal: gateway finishes requests -> OM -> datanode -> SCM   (each flushes; a second signal ends at once)
//! ```
//!
//! Invariants:
//! * The operators' port answers from the first moment; it says ready only when S3 serves.
//! * Secrets are printed once, when they were drawn, and never logged.
//!
//! Not here: what the roles do.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use admin::Readiness;
use anyhow::{Context, bail};
use clap::Args;
use client::failover::OmClient;
use client::http::{
    self, DatanodeStub, OmStub, ScmStub, Transport as Stubs, Verifier, datanode_router, om_router, scm_router,
};
use client::service::{CallError, DatanodeService, Datanodes, OmService, ScmService};
use client::session::Session;
use datanode::DatanodeConfig;
use gateway::{Gateway, GatewayConfig};
use meta::OmConfig;
use scm::ScmConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use wire::block::DatanodeAddress;
use wire::cluster_key::ClusterKey;
use wire::limits::BLOCK_BYTES_MAX;
use wire::names::BucketName;
use wire::om::{CreateBucket, PutUser, Rejection, RetainAccessKeys, Secret, UserId, UserInfo};

use crate::config::{Config, Transport};
use crate::env::Endpoints;
use crate::identity::{Cluster, Credentials, Origin, write_json};

/// Blocking work at once: digests and disk runs. Each thread costs its stack.
const BLOCKING_THREADS_MAX: usize = 128;
/// A segment of SCM's log.
const SCM_LOG_SEGMENT_BYTES: u64 = 16 << 20;
/// Containers this small (tests) still hold several blocks.
const BLOCKS_PER_CONTAINER_MIN: u64 = 4;

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
        .init();
    Ok(())
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    let cluster = Cluster::establish(&config).context(Unusable)?;
    let (root, origin) = Credentials::establish(&config.credentials_file(), |name| std::env::var(name).ok())
        .context(Unusable)?;
    let s3_listener = bind("s3.address", config.s3.address).await?;
    let admin_listener = bind("admin.address", config.admin.address).await?;
    let region = config.s3.region.clone();
    let endpoints = Endpoints {
        s3: format!("http://{}", s3_listener.local_addr()?),
        admin: format!("http://{}", admin_listener.local_addr()?),
        region,
    };

    let readiness = Readiness::waiting("the storage container manager");
    let metrics = admin::record_metrics()?;
    gateway::metrics::describe();
    let stopping = CancellationToken::new();
    let operators = tokio::spawn({
        let router = admin::router(readiness.clone(), metrics);
        http::serve(admin_listener, router, stopping.clone().cancelled_owned())
    });

    let roles = Roles::start(&config, &cluster, &readiness, &stopping).await?;
    readiness.wait_for("the users of the configuration");
    let session = Session::open(roles.om.clone()).await.context("reach the ozone manager")?;
    put_users(&config, &cluster, &root, &session).await?;
    create_buckets(&config, &cluster, &session).await?;
    session.close().await;
    // Kept alive it would be renewed, and OM has just ended it.
    drop(session);
    readiness.wait_for("the gateway");
    let gateway = Gateway::new(gateway_config(&config), roles.om.clone(), roles.datanodes.clone())
        .await
        .context("start the gateway")?;

    let no_more_requests = CancellationToken::new();
    let s3 = tokio::spawn(gateway.serve(s3_listener, no_more_requests.clone()));
    write_json(&Endpoints::file(&config.data_dir), &endpoints)?;
    readiness.set_ready();
    announce(&config, &endpoints, &root, origin);
    tracing::info!(s3 = %endpoints.s3, admin = %endpoints.admin, data_dir = %config.data_dir.display(), "serving");

    stop.wait().await;
    tracing::info!("stopping: finishing open requests; a second signal ends at once");
    readiness.wait_for("nothing: the server is stopping");
    no_more_requests.cancel();
    let orderly = async {
        s3.await.context("gateway task")?.context("serve S3")?;
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

/// The roles behind the gateway.
struct Roles {
    scm: Arc<scm::Scm>,
    datanode: Arc<datanode::Datanode>,
    om_role: Arc<meta::Om>,
    /// OM as the gateway calls it: in process or over HTTP.
    om: Arc<dyn OmService>,
    datanodes: Arc<Datanodes>,
}

impl Roles {
    async fn start(
        config: &Config,
        cluster: &Cluster,
        readiness: &Readiness,
        stopping: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let key = cluster.key()?;
        let internal = match config.internal.transport {
            Transport::InProcess => None,
            Transport::Http => Some(bind("internal.address", config.internal.address).await?),
        };
        let address = internal.as_ref().map(TcpListener::local_addr).transpose()?;

        let scm = scm::Scm::open(scm_config(config, cluster)).await.context("start SCM").context(Unusable)?;
        readiness.wait_for("the datanode");
        let datanode_config = datanode_config(config, cluster, address);
        // Recovery reads disks for as long as it takes: not on the reactor.
        let datanode = tokio::task::spawn_blocking(move || datanode::Datanode::open(datanode_config)).await;
        let datanode =
            datanode.context("start the datanode")?.context("start the datanode").context(Unusable)?;
        let datanode = Arc::new(datanode);

        let cluster_key = ClusterKey::new(cluster.id, key);
        let stubs = address.map(|address| (Stubs::new(cluster_key.clone()), address));
        let scm_for_others: Arc<dyn ScmService> = match &stubs {
            None => scm.clone(),
            Some((stubs, address)) => Arc::new(ScmStub::new(stubs.clone(), (*address).into())),
        };
        readiness.wait_for("the ozone manager");
        let om_role = meta::Om::open(om_config(config, cluster, key), scm_for_others.clone());
        let om_role = om_role.await.context("start OM").context(Unusable)?;
        let (om, datanodes): (Arc<dyn OmService>, Datanodes) = match stubs {
            None => {
                let datanodes = Datanodes::local_only();
                datanodes.insert(datanode.id(), datanode.clone());
                (OmClient::sole(om_role.clone()), datanodes)
            }
            Some((stubs, address)) => {
                let om = OmStub::new(stubs.clone(), address.into());
                let connect = move |datanode: &DatanodeAddress| {
                    let stub = DatanodeStub::connect(stubs.clone(), datanode)?;
                    Ok(Arc::new(stub) as Arc<dyn DatanodeService>)
                };
                (OmClient::sole(Arc::new(om)), Datanodes::new(Box::new(connect)))
            }
        };
        if let Some(listener) = internal {
            let verifier = Verifier::new(cluster_key);
            let router = om_router(om_role.clone(), verifier.clone())
                .merge(scm_router(scm.clone(), verifier.clone()))
                .merge(datanode_router(datanode.clone(), verifier));
            tokio::spawn(http::serve(listener, router, stopping.clone().cancelled_owned()));
        }
        let datanodes = Arc::new(datanodes);
        datanode.start(scm_for_others, datanodes.clone());
        readiness.wait_for("the datanode's registration with SCM");
        datanode.wait_registered().await;
        Ok(Self { scm, datanode, om_role, om, datanodes })
    }

    /// Callers before the called: nothing fails while it stops.
    async fn stop(&self) {
        self.om_role.shutdown().await;
        self.datanode.shutdown().await;
        self.scm.shutdown().await;
    }
}

async fn bind(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
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
        ..GatewayConfig::default()
    }
}

fn scm_config(config: &Config, cluster: &Cluster) -> ScmConfig {
    ScmConfig {
        container_bytes_max: config.scm.container_size.0,
        open_containers: config.scm.open_containers,
        heartbeat_interval_ms: config.datanode.heartbeat_interval.as_ms(),
        // SCM logs little; small logs keep small disks usable.
        log_segment_bytes: config.om.log_segment.0.min(SCM_LOG_SEGMENT_BYTES),
        ..ScmConfig::new(config.scm_dir(), cluster.id)
    }
}

fn datanode_config(config: &Config, cluster: &Cluster, address: Option<SocketAddr>) -> DatanodeConfig {
    DatanodeConfig {
        address: address.map(Into::into),
        container_bytes_max: config.scm.container_size.0,
        growth_step: config.datanode.growth_step.0,
        reserve_bytes: config.datanode.reserve.0,
        ..DatanodeConfig::new(config.disk_dirs(), cluster.id)
    }
}

fn om_config(config: &Config, cluster: &Cluster, key: [u8; 32]) -> OmConfig {
    OmConfig {
        cache_bytes: config.om.cache.0 as usize,
        log_segment_bytes: config.om.log_segment.0,
        delete_grace_ms: config.om.delete_grace.as_ms(),
        open_key_expire_after_ms: config.om.open_key_expire_after.as_ms(),
        open_key_scan_interval_ms: config.om.open_key_scan_interval.as_ms(),
        deletion_interval_ms: config.om.deletion_interval.as_ms(),
        block_bytes_max: block_bytes_max(config),
        ..OmConfig::new(config.om_dir(), cluster.id, key)
    }
}

/// A block's longest length: several must fit a container.
fn block_bytes_max(config: &Config) -> u64 {
    BLOCK_BYTES_MAX.min(config.scm.container_size.0 / BLOCKS_PER_CONTAINER_MIN)
}

/// What a person reads first: where, with which keys, and what to try.
fn announce(config: &Config, endpoints: &Endpoints, root: &Credentials, origin: Origin) {
    let data_dir = config.data_dir.display();
    let keys = match origin {
        Origin::Generated => format!(
            "Access key {}   Secret {}\n  (generated; shown once; kept readable by you alone in {data_dir}/credentials.json)",
            root.access_key, root.secret_key
        ),
        Origin::Kept => format!("Access key {}   Secret: in {data_dir}/credentials.json", root.access_key),
        Origin::Given => format!("Access key {}   Secret: as given by the environment", root.access_key),
    };
    let text = format!(
        "ferrozone {}  all roles in one process, data {data_dir}\n  \
         S3       {}   region {} (any accepted: {})\n  \
         Health   {}/healthz/ready   Metrics {}/metrics\n  \
         {keys}\n  \
         Try: eval \"$(ferrozone env {data_dir})\"; aws s3 mb s3://demo; aws s3 cp README.md s3://demo/\n",
        env!("CARGO_PKG_VERSION"),
        endpoints.s3,
        endpoints.region,
        if config.s3.strict_region { "no" } else { "yes" },
        endpoints.admin,
        endpoints.admin,
    );
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
