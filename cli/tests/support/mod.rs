//! Real servers on loopback for the tests of the command line: started on free ports, killed when dropped.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A debug build on a loaded machine elects, registers and serves within this.
const READY_DEADLINE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The program under test.
pub(crate) fn ferrozone() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ferrozone"));
    for name in ["FERROZONE_CONFIG", "FERROZONE_ROOT_USER", "FERROZONE_ROOT_PASSWORD", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

/// Waits for a condition.
#[expect(clippy::disallowed_methods, reason = "a test of real processes waits in real time")]
pub(crate) fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < READY_DEADLINE, "{what} did not come about");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// A process that ends with its owner.
pub(crate) struct Server {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Server {
    /// Starts `ferrozone server` with small containers and short deadlines.
    pub(crate) fn start(log: &Path, arguments: &[&str]) -> Self {
        let out = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let child = ferrozone()
            .arg("server")
            .args(arguments)
            .env("FERROZONE_SCM__CONTAINER_SIZE", "16MiB")
            .env("FERROZONE_OM__LOG_SEGMENT", "4MiB")
            .env("FERROZONE_DATANODE__RESERVE", "16MiB")
            .env("FERROZONE_DATANODE__GROWTH_STEP", "4MiB")
            .env("FERROZONE_SCM__STALE_AFTER", "2s")
            .env("FERROZONE_SCM__DEAD_AFTER", "4s")
            .env("FERROZONE_SCM__REPAIR_DELAY", "500ms")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Self { child, log: log.to_owned() }
    }

    /// Its exit code, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All roles in one process.
pub(crate) struct Sole {
    pub(crate) dir: TempDir,
    server: Server,
}

impl Sole {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").display().to_string();
        let arguments = [data.as_str(), "--s3-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];
        let mut server = Server::start(&dir.path().join("log"), &arguments);
        let file = dir.path().join("data/endpoints.json");
        wait_until("a server that is ready", || {
            assert_eq!(server.ended(), None, "{}", server.said());
            file.exists().then_some(())
        });
        Self { dir, server }
    }

    /// Runs a command against it.
    pub(crate) fn run(&self, line: &str) -> Said {
        let data = self.dir.path().join("data");
        let words: Vec<&str> = line.split(' ').collect();
        Said::of(ferrozone().current_dir(self.dir.path()).args(words).arg("--data-dir").arg(data))
    }
}

/// How a command ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    /// Standard output of a success.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// The same as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.good()).unwrap()
    }

    /// Standard error of a refusal.
    #[track_caller]
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
}

/// A cluster made by `cluster init`, each node on an address of its own, so that names read as hosts'.
pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) hosts: Vec<String>,
    servers: Vec<(String, Server)>,
}

impl Cluster {
    /// Makes the files of a cluster of so many nodes, with further arguments of `cluster init`.
    pub(crate) fn make(nodes: usize, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hosts = free_hosts(nodes);
        let mut init = ferrozone();
        init.current_dir(dir.path()).args([
            "cluster",
            "init",
            "--out",
            "cluster",
            "--hosts",
            &hosts.join(","),
        ]);
        Said::of(init.args(arguments)).good();
        Self { dir, hosts, servers: Vec::new() }
    }

    /// The path of a node's file.
    pub(crate) fn file(&self, node: &str, name: &str) -> PathBuf {
        self.dir.path().join("cluster").join(node).join(name)
    }

    /// Starts a node.
    pub(crate) fn start(&mut self, node: &str) -> &mut Server {
        // Of its last life, if it had one: whoever waits for this one would take that for an answer.
        let _ = std::fs::remove_file(self.file(node, "data/endpoints.json"));
        let config = self.file(node, "node.toml").display().to_string();
        let server = Server::start(&self.dir.path().join(format!("{node}.log")), &["--config", &config]);
        self.servers.push((node.to_owned(), server));
        &mut self.servers.last_mut().unwrap().1
    }

    /// Starts the nodes that `cluster init` made and waits until they serve.
    pub(crate) fn start_all(&mut self) {
        for host in self.hosts.clone() {
            self.start(&host);
        }
        for host in self.hosts.clone() {
            self.wait_ready(&host);
        }
    }

    /// Waits until a node serves.
    pub(crate) fn wait_ready(&mut self, node: &str) {
        let file = self.file(node, "data/endpoints.json");
        let server =
            self.servers.iter_mut().find(|(name, _)| name == node).map(|(_, server)| server).unwrap();
        wait_until(&format!("{node} ready"), || {
            assert_eq!(server.ended(), None, "{}", server.said());
            file.exists().then_some(())
        });
    }

    /// Kills a node.
    pub(crate) fn kill(&mut self, node: &str) {
        self.servers.retain(|(name, _)| name != node);
    }

    /// Runs a command that asks a node.
    pub(crate) fn run(&self, node: &str, line: &str) -> Said {
        let config = self.file(node, "node.toml");
        let words: Vec<&str> = line.split(' ').collect();
        Said::of(ferrozone().current_dir(self.dir.path()).args(words).arg("--config").arg(config))
    }
}

/// Loopback addresses of which this process holds ports 9000 to 9002 free: the whole of 127/8 is loopback.
pub(crate) fn free_hosts(count: usize) -> Vec<String> {
    let id = std::process::id();
    let mut hosts = Vec::new();
    for number in 1..=250_u32 {
        // Test programs run beside one another, and so do tests of one program.
        let unique = next_number();
        let host = format!("127.{}.{}.{}", 1 + id % 199, 1 + (id / 199) % 250, unique);
        let held: Vec<_> =
            (9000..9003).filter_map(|port| TcpListener::bind((host.as_str(), port)).ok()).collect();
        if held.len() == 3 {
            hosts.push(host);
        }
        if hosts.len() == count {
            return hosts;
        }
        assert!(number < 250, "no free loopback addresses");
    }
    hosts
}

fn next_number() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::SeqCst)
}
