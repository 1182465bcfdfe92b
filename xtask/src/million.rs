//! Limits that need a release build and a quiet machine: a restart with a million keys, idle memory, memory under
//! large uploads.
//!
//! Each prints its figure and its limit on a line and fails the run if it is over. Loads go through `s3-client` with
//! as many connections as a busy client has; bodies are unsigned, since what is measured is the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use s3_client::{Config, Credentials, Endpoint, ListRequest, Payload, PayloadMode, S3Client};

use crate::MillionArguments;
use crate::server::{self, Server, resident_bytes};
use crate::stopwatch::{Stopwatch, wait_until};
use crate::workspace::Workspace;

/// First light's promises.
const RESTART_LIMIT: Duration = Duration::from_secs(3);
const IDLE_LIMIT_MIB: f64 = 60.0;
const UPLOADS_LIMIT_MIB: f64 = 256.0;

/// Clients at once.
const CLIENTS: usize = 64;
/// What each uploads.
const UPLOAD_BYTES: usize = 256 << 20;
/// Uploads repeat one chunk of this size.
const CHUNK_BYTES: usize = 1 << 20;
/// How often memory is looked at during uploads: a peak shorter than this is one of the allocator's, not ours.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

const BUCKET: &str = "million";

/// True if every figure is within its limit.
pub(crate) fn run(workspace: &Workspace, arguments: &MillionArguments) -> Result<bool> {
    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let directory = match &arguments.dir {
        Some(directory) => directory.clone(),
        None => workspace.target("restart-million"),
    };
    if arguments.dir.is_none() && directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove the last run")?;
    }
    std::fs::create_dir_all(&directory).context("make the run's directory")?;
    let rig = Rig { binary, data: directory.join("data"), log: directory.join("server.log") };
    ensure!(!rig.data.exists(), "{} exists: a fresh directory is needed", rig.data.display());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start tokio")?;

    let all = !arguments.idle && !arguments.uploads;
    let mut within = true;
    if all || arguments.idle {
        within &= rig.idle(&runtime)?;
    }
    if all || arguments.uploads {
        within &= rig.uploads(&runtime)?;
    }
    if all {
        within &= rig.restart(&runtime, arguments.keys)?;
    }
    if arguments.dir.is_none() {
        std::fs::remove_dir_all(&directory).context("remove the run's directory")?;
    }
    Ok(within)
}

/// A server to start and kill at will.
struct Rig {
    binary: PathBuf,
    data: PathBuf,
    log: PathBuf,
}

impl Rig {
    fn start(&self) -> Result<(Server, S3Client)> {
        let server = Server::start(&self.binary, &self.data, None, &self.log)?;
        let client = client(&self.binary, &self.data, server.s3())?;
        Ok((server, client))
    }

    /// Memory of a fresh server that has answered one request.
    fn idle(&self, runtime: &tokio::runtime::Runtime) -> Result<bool> {
        let (server, client) = self.start()?;
        server.wait_ready()?;
        runtime.block_on(client.list_buckets()).context("list buckets")?;
        let resident = mib(resident_bytes(server.pid())?);
        println!("idle resident memory: {resident:.1} MiB (limit {IDLE_LIMIT_MIB} MiB)");
        server.kill()?;
        Ok(resident <= IDLE_LIMIT_MIB)
    }

    /// Highest memory while all clients upload at once.
    fn uploads(&self, runtime: &tokio::runtime::Runtime) -> Result<bool> {
        let (server, client) = self.start()?;
        server.wait_ready()?;
        let watch = Stopwatch::start();
        let highest = runtime.block_on(async {
            client.create_bucket("uploads", None).await.context("create a bucket")?;
            let work = tokio::spawn(upload_all(client.clone()));
            sample_until_done(server.pid(), work).await
        })?;
        let (highest, seconds) = (mib(highest), watch.elapsed().as_secs_f64());
        let total = mib((CLIENTS * UPLOAD_BYTES) as u64);
        println!(
            "highest resident memory under {CLIENTS} uploads of {} MiB: {highest:.1} MiB \
             (limit {UPLOADS_LIMIT_MIB} MiB), {:.0} MiB/s",
            UPLOAD_BYTES >> 20,
            total / seconds
        );
        server.kill()?;
        Ok(highest <= UPLOADS_LIMIT_MIB)
    }

    /// From SIGKILL with many keys to the first answers of a new process.
    fn restart(&self, runtime: &tokio::runtime::Runtime, keys: u64) -> Result<bool> {
        let (server, client) = self.start()?;
        server.wait_ready()?;
        let watch = Stopwatch::start();
        runtime.block_on(load(&client, keys))?;
        let seconds = watch.elapsed().as_secs_f64();
        println!("loaded {keys} keys in {seconds:.0} s, {:.0} a second", keys as f64 / seconds);
        println!("resident memory with them: {:.1} MiB", mib(resident_bytes(server.pid())?));
        server.kill()?;

        let watch = Stopwatch::start();
        let (server, client) = self.start()?;
        let last = key(keys - 1);
        wait_until("a signed GET after the restart", Duration::from_secs(120), || {
            Ok(runtime.block_on(client.head_object(BUCKET, &last)).is_ok().then_some(()))
        })?;
        let body =
            runtime.block_on(async { client.get_object(BUCKET, &last).await?.bytes(CHUNK_BYTES).await })?;
        let served = watch.elapsed();
        ensure!(body == last.as_bytes(), "the last key has other bytes after the restart");
        println!(
            "serving {:.2} s after SIGKILL and start (limit {:.0} s)",
            served.as_secs_f64(),
            RESTART_LIMIT.as_secs_f64()
        );
        let watch = Stopwatch::start();
        let listed = runtime.block_on(count_keys(&client))?;
        println!("listed {listed} keys in {:.1} s", watch.elapsed().as_secs_f64());
        ensure!(listed == keys, "{keys} keys were acknowledged, {listed} are listed");
        server.kill()?;
        Ok(served <= RESTART_LIMIT)
    }
}

fn client(binary: &Path, data: &Path, endpoint: &str) -> Result<S3Client> {
    let credentials = server::credentials(binary, data)?;
    let mut config = Config::new(endpoint.parse::<Endpoint>().context("read the endpoint")?);
    config.credentials = Some(Credentials::new(credentials.access_key, credentials.secret_key));
    config.region = credentials.region;
    config.connections = CLIENTS;
    config.payload = PayloadMode::Unsigned;
    config.attempts = 1;
    Ok(S3Client::new(config))
}

fn key(number: u64) -> String {
    format!("key-{number:012}")
}

async fn load(client: &S3Client, keys: u64) -> Result<()> {
    client.create_bucket(BUCKET, None).await.context("create a bucket")?;
    let next = Arc::new(AtomicU64::new(0));
    let mut workers: tokio::task::JoinSet<Result<()>> = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (client, next) = (client.clone(), next.clone());
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys {
                    return Ok(());
                }
                let name = key(number);
                let body = Payload::from(name.clone().into_bytes());
                client.put_object(BUCKET, &name, body).await.with_context(|| format!("put {name}"))?;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.context("a loader died")??;
    }
    Ok(())
}

async fn count_keys(client: &S3Client) -> Result<u64> {
    let mut pages = client.list_pages(BUCKET, ListRequest::default());
    let mut count = 0;
    while let Some(page) = pages.next().await.context("list")? {
        count += page.objects.len() as u64;
    }
    Ok(count)
}

async fn upload_all(client: S3Client) -> Result<()> {
    let chunk = Bytes::from((0..CHUNK_BYTES).map(|at| ((at * 31) >> 3) as u8).collect::<Vec<_>>());
    let mut uploads = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (client, chunk) = (client.clone(), chunk.clone());
        uploads.spawn(async move {
            let body = Payload::chunks(vec![chunk; UPLOAD_BYTES / CHUNK_BYTES]);
            client.put_object("uploads", &format!("big-{number}"), body).await.map(drop)
        });
    }
    while let Some(done) = uploads.join_next().await {
        done.context("an upload died")?.context("an upload failed")?;
    }
    Ok(())
}

async fn sample_until_done(pid: u32, mut work: tokio::task::JoinHandle<Result<()>>) -> Result<u64> {
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    let mut highest = 0;
    loop {
        tokio::select! {
            done = &mut work => {
                done.context("the uploads died")??;
                return Ok(highest);
            }
            _ = ticks.tick() => highest = highest.max(resident_bytes(pid)?),
        }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
