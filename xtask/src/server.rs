//! One server process on free ports, for the tools that measure it or run suites against it.
//!
//! Dropping it kills the process: no tool leaves one behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::stopwatch::wait_until;

/// How long a start may take before we call it failed; far above the 3 s that are promised, to tell slow from never.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    s3: String,
    admin: String,
}

impl Server {
    /// Starts `binary` on `data` and waits until it has written its addresses.
    pub(crate) fn start(binary: &Path, data: &Path, config: Option<&Path>, log: &Path) -> Result<Self> {
        let endpoints = data.join("endpoints.json");
        if endpoints.exists() {
            std::fs::remove_file(&endpoints).context("remove the last run's endpoints.json")?;
        }
        let out = File::options().create(true).append(true).open(log).context("open the server's log")?;
        let mut command = Command::new(binary);
        command
            .arg("server")
            .arg(data)
            .args(["--s3-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("share the log")?)
            .stderr(out);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        let child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        let mut server = Self { child, s3: String::new(), admin: String::new() };
        let [s3, admin] = wait_until("the server's endpoints.json", START_DEADLINE, || {
            if let Some(status) = server.child.try_wait().context("watch the server")? {
                bail!("the server ended at its start with {status}; its log is {}", log.display());
            }
            Ok(read_endpoints(&endpoints))
        })?;
        server.s3 = s3;
        server.admin = admin;
        Ok(server)
    }

    /// Waits until `/healthz/ready` says 200.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        let address = self.admin.trim_start_matches("http://");
        wait_until("/healthz/ready", START_DEADLINE, || Ok(is_ready(address).then_some(())))
    }

    /// `http://host:port` of S3.
    pub(crate) fn s3(&self) -> &str {
        &self.s3
    }

    /// The process id, for `/proc`.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, as a power cut would.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the server")?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the server's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("parse VmRSS")?;
    Ok(kib * 1024)
}

/// The root credentials of a data directory, as `ferrozone env` gives them.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// Access key id.
    pub(crate) access_key: String,
    /// Secret key.
    pub(crate) secret_key: String,
    /// Region to sign for.
    pub(crate) region: String,
}

/// Asks the binary for the credentials it made.
pub(crate) fn credentials(binary: &Path, data: &Path) -> Result<Credentials> {
    let output = Command::new(binary)
        .args(["env", "--format", "json", "--data-dir"])
        .arg(data)
        .output()
        .context("run ferrozone env")?;
    if !output.status.success() {
        bail!("ferrozone env failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("read ferrozone env")?;
    let field = |name: &str| {
        answer[name].as_str().map(str::to_owned).with_context(|| format!("ferrozone env has no {name}"))
    };
    Ok(Credentials {
        access_key: field("access_key")?,
        secret_key: field("secret_key")?,
        region: field("region")?,
    })
}

fn read_endpoints(path: &PathBuf) -> Option<[String; 2]> {
    // Absent or half written until the server listens.
    let text = std::fs::read(path).ok()?;
    let value: Value = serde_json::from_slice(&text).ok()?;
    Some([value["s3"].as_str()?.to_owned(), value["admin"].as_str()?.to_owned()])
}

pub(crate) fn is_ready(address: &str) -> bool {
    get(address, "/healthz/ready").is_ok()
}

/// What `http://address` answers for a path, head and body; an error unless it is a 200.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_read_timeout(Some(START_DEADLINE)).context("limit the wait")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").context("ask")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}
