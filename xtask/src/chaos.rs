//! Breaks a cluster of real processes under S3 load and judges what the clients were answered.
//!
//! ```text
//!   load: clients of two gateways --> history --> checker (the same as the simulator's)
//!   faults, one a round: kill, stop, drop one way, fill a disk, fail an fsync, kill all at once
//! ```
//!
//! Clients never repeat a request. While one meta node of several or one datanode is away, or one meta node of several
//! meets a failing or full disk, a request that fails or takes over 3 s fails the round. A gateway that is away, a
//! datanode whose disk fails or fills, or everything at once, may fail what was asked meanwhile; nothing may be lost or
//! wrong. Each round says which of the two it was judged by. A fault that did not come about fails its round.
//!
//! Not here: the processes (`rig`), the rules (`checker`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use checker::{Answer, Ask, Condition, History, KeyIndex, OpId, Page, body_of};
use http::{HeaderMap, HeaderValue};
use md5::{Digest, Md5};
use s3_client::{Error, ListRequest, Payload, S3Client};
use wire::checksum::Etag;

use crate::ChaosArguments;
use crate::rig::{Rig, Role, Shape};
use crate::stopwatch::{Stopwatch, wait_until_every};
use crate::whole::wait_whole;
use crate::workspace::Workspace;

/// While one node is away a request takes at most this.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// An fdatasync that is to fail does so within this: the node is under load, once SCM has given it containers again. With
/// three datanodes, where many containers were opened lately, the one that was left out waits for that a minute.
const SYNC_FAILS_WITHIN: Duration = Duration::from_secs(150);
/// Between two looks at a tracer's file.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A disk with less room than this is full: datanodes and logs write more at a time.
const FULL_KIB: u64 = 1024;
/// A node that deletes meanwhile makes room again.
const FILL_ATTEMPTS: usize = 5;
/// A node that was ended is ready again within this.
const READY_AGAIN: Duration = Duration::from_secs(60);
/// Every node is back in its place within this.
const WHOLE_AGAIN: Duration = Duration::from_secs(60);
/// Clients, over all gateways.
const CLIENTS: usize = 8;
const KEYS: usize = 24;
const BUCKET: &str = "chaos";
/// Keys of one page: small, so that listings have several.
const PAGE_KEYS: u32 = 7;
/// Small bodies fit one block and one run; large ones stream.
const SMALL_BYTES_MAX: u64 = 40_000;
const LARGE_BYTES_MAX: u64 = 9 << 20;
/// What tells the Raft index: of a write, or as of which a read was answered.
const WITNESS: &str = "x-ferrozone-witness";
/// The Raft index at which the version that is read was written.
const VERSION: &str = "x-ferrozone-version";
/// Room of the one meta node whose disk is filled.
const SMALL_META_DISK: &str = "size=1500m";
/// Room of the one datanode whose disk is filled. What clients overwrite stays for the grace: a disk that is always nearly
/// full would be a second fault in each round.
const SMALL_DATANODE_DISK: &str = "size=6g";

/// True if every round passed and the history is right.
pub(crate) fn run(workspace: &Workspace, arguments: &ChaosArguments) -> Result<bool> {
    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let directory = arguments.dir.clone().unwrap_or_else(|| workspace.target("chaos"));
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove the last run")?;
    }
    let shape =
        Shape { metas: arguments.metas, datanodes: usize::try_from(arguments.datanodes)?, gateways: 2 };
    let settings = [
        ("FERROZONE_S3__WITNESS", "true"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        // Deletions happen under faults too, and hours of overwriting fit the disk. Longer than any request here.
        ("FERROZONE_OM__DELETE_GRACE", "2m"),
    ];
    let mut rig = Rig::create(&binary, &directory, shape, &settings)?;
    let mounts = SmallDisks::mount(&rig)?;
    rig.start_all()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let load = Load::begin(&runtime, &rig)?;
    let mut dice = Dice::new(arguments.seed);
    println!("{} meta nodes, {} datanodes, {} gateways", shape.metas, shape.datanodes, shape.gateways);
    let (mut passed, mut failed) = (0, 0);
    let mut strict = 0;
    let mut strict_since = 0;
    for round in 1..=arguments.faults {
        let fault = Fault::draw(&mut dice, &rig);
        let watch = Stopwatch::start();
        load.begin_round(round);
        let outcome = break_and_heal(&mut rig, &binary, &fault, &mut dice, &load);
        let is_survivable = fault.is_survivable(arguments.metas);
        if !is_survivable {
            strict_since = round + 1;
        }
        let troubles = load.end_round(strict_since);
        let judged = if is_survivable {
            strict += 1;
            "each request within 3 s"
        } else {
            "nothing lost or wrong"
        };
        let verdict = match (&outcome, troubles.as_slice()) {
            (Ok(()), []) => {
                passed += 1;
                "ok".to_owned()
            }
            (Err(error), _) => {
                failed += 1;
                format!("FAILED: {error:#}")
            }
            (_, [first, ..]) => {
                failed += 1;
                format!("FAILED: {} requests, first: {first}", troubles.len())
            }
        };
        println!("round {round}: {fault:?}, {:.1} s, {judged}: {verdict}", watch.elapsed().as_secs_f64());
        if outcome.is_err() {
            break;
        }
    }
    let (wrong, operations, unanswered) = load.finish(&runtime)?;
    for what in wrong.iter().take(20) {
        println!("violation: {what}");
    }
    let late = load.end_round(strict_since);
    for what in &late {
        println!("after the last round: {what}");
    }
    failed += (wrong.len() + late.len()) as u64;
    passed += u64::from(wrong.is_empty());
    println!("{strict} rounds were judged by each request's outcome and 3 s, all by the history");
    println!("{operations} operations, {unanswered} without an answer, {} violations", wrong.len());
    drop(rig);
    drop(mounts);
    if failed == 0 && arguments.dir.is_none() {
        std::fs::remove_dir_all(&directory).context("remove the run's directory")?;
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// What is done to the cluster in one round.
#[derive(Debug, Clone)]
enum Fault {
    Kill(String, Role),
    Stop(String, Role),
    /// Nothing reaches the node's internal port any more; what it says gets out.
    OneWay(String, Role),
    FullDisk(String, Role),
    /// The n-th fdatasync of each of its threads from its next start on fails.
    SyncFails(String, Role, u32),
    KillAll,
}

impl Fault {
    fn draw(dice: &mut Dice, rig: &Rig) -> Self {
        let nodes = rig.nodes();
        let node = &nodes[dice.below(nodes.len() as u64) as usize];
        let (name, role) = (node.name.clone(), node.role);
        match dice.below(20) {
            0..8 => Self::Kill(name, role),
            8..13 => Self::Stop(name, role),
            13..16 if role != Role::Gateway => Self::OneWay(name, role),
            16 => {
                let (name, role) = SmallDisks::nodes(rig)[dice.below(2) as usize].clone();
                Self::FullDisk(name, role)
            }
            // Few enough to come soon, also where a pool of threads shares the work.
            17 if role != Role::Gateway => Self::SyncFails(name, role, 20 + dice.below(200) as u32 / 4),
            18 => Self::KillAll,
            _ => Self::Kill(name, role),
        }
    }

    /// Whether every request must succeed meanwhile.
    fn is_survivable(&self, metas: usize) -> bool {
        match self {
            // A sole voter away is the group away.
            Self::Kill(_, Role::Meta) | Self::Stop(_, Role::Meta) | Self::OneWay(_, Role::Meta) => metas > 1,
            Self::Kill(_, role) | Self::Stop(_, role) | Self::OneWay(_, role) => *role != Role::Gateway,
            Self::SyncFails(_, Role::Meta, _) | Self::FullDisk(_, Role::Meta) => metas > 1,
            Self::SyncFails(..) | Self::FullDisk(..) | Self::KillAll => false,
        }
    }
}

fn break_and_heal(rig: &mut Rig, binary: &Path, fault: &Fault, dice: &mut Dice, load: &Load) -> Result<()> {
    let hold = Duration::from_millis(1500 + dice.below(6000));
    match fault {
        Fault::Kill(name, role) => {
            load.avoid(name, *role);
            rig.kill(name)?;
            std::thread::sleep(hold);
            rig.start(name)?;
            rig.wait_ready(name, READY_AGAIN)?;
        }
        Fault::Stop(name, role) => {
            load.avoid(name, *role);
            rig.signal(name, "STOP")?;
            std::thread::sleep(hold);
            rig.signal(name, "CONT")?;
            rig.wait_ready(name, READY_AGAIN)?;
        }
        Fault::OneWay(name, _) => {
            let wall = Wall::put(rig.internal_port(name)?)?;
            std::thread::sleep(hold);
            drop(wall);
        }
        Fault::FullDisk(name, _) => {
            let filler = rig.data(name).join("filler");
            fill(&filler, || room_kib(&rig.data(name)))
                .with_context(|| format!("fill the disk of {name}"))?;
            std::thread::sleep(hold);
            std::fs::remove_file(&filler).context("give the disk's room back")?;
            revive(rig, name)?;
        }
        Fault::SyncFails(name, _, count) => {
            rig.kill(name)?;
            let trace = rig.log(name).with_extension("strace");
            std::fs::write(&trace, "").context("make the trace's file")?;
            let to = trace.display().to_string();
            let inject = format!("inject=fdatasync:error=EIO:when={count}");
            // Other system calls go at their usual speed: a node that is slow in all is another fault.
            let wrapper =
                ["strace", "-f", "--seccomp-bpf", "-qq", "-o", &to, "-e", "trace=fdatasync", "-e", &inject];
            rig.start_under(name, &wrapper)?;
            let failed = || has_failed(&trace);
            let seen = wait_until_every(LOOK_INTERVAL, "an fdatasync that fails", SYNC_FAILS_WITHIN, failed);
            if seen.is_ok() {
                std::thread::sleep(hold);
            }
            // strace's own end would leave its child: end both.
            rig.kill_traced(name)?;
            seen?;
            rig.start(name)?;
            rig.wait_ready(name, READY_AGAIN)?;
        }
        Fault::KillAll => {
            let names: Vec<String> = rig.nodes().iter().map(|node| node.name.clone()).collect();
            for name in &names {
                rig.kill(name)?;
            }
            for name in &names {
                rig.start(name)?;
            }
            for name in &names {
                rig.wait_ready(name, READY_AGAIN)?;
            }
        }
    }
    load.avoid_nobody();
    // The next fault finds a cluster that is whole: two at once are another promise.
    wait_whole(rig, binary, WHOLE_AGAIN)
}

/// Starts a node again if it ended by itself, which a disk's failure allows.
fn revive(rig: &mut Rig, name: &str) -> Result<()> {
    if !rig.is_running(name)? {
        rig.start(name)?;
    }
    rig.wait_ready(name, READY_AGAIN)
}

/// Whether a tracer has made a call fail.
fn has_failed(trace: &Path) -> Result<Option<()>> {
    let text = std::fs::read(trace).context("read the trace")?;
    Ok(String::from_utf8_lossy(&text).contains("(INJECTED)").then_some(()))
}

/// Room on the disk of a directory.
fn room_kib(directory: &Path) -> Result<u64> {
    let mut command = Command::new("df");
    let outcome = command.args(["--output=avail", "-k"]).arg(directory).output().context("run df")?;
    let text = String::from_utf8_lossy(&outcome.stdout);
    let room = text.lines().nth(1).and_then(|line| line.trim().parse().ok());
    room.with_context(|| format!("df of {}: {text}", directory.display()))
}

/// Takes all room that `room` sees, and makes sure of it.
fn fill(file: &Path, room: impl Fn() -> Result<u64>) -> Result<()> {
    let mut left = 0;
    for _ in 0..FILL_ATTEMPTS {
        // Fails when the disk is full: that is what it is for.
        Command::new("dd")
            .arg("if=/dev/zero")
            .arg(format!("of={}", file.display()))
            .args(["bs=1M", "oflag=append", "conv=notrunc", "status=none"])
            .status()
            .context("run dd")?;
        left = room()?;
        if left < FULL_KIB {
            return Ok(());
        }
    }
    bail!("{left} KiB are left")
}

/// Packets to a port are dropped while it lives.
struct Wall(u16);

impl Wall {
    fn put(port: u16) -> Result<Self> {
        Self::rule("-A", port)?;
        Ok(Self(port))
    }

    fn rule(verb: &str, port: u16) -> Result<()> {
        let rule =
            ["INPUT", "-i", "lo", "-p", "tcp", "--dport", &port.to_string(), "-j", "DROP"].map(str::to_owned);
        let status = Command::new("iptables").arg(verb).args(rule).status().context("run iptables")?;
        ensure!(status.success(), "iptables {verb}: {status}");
        Ok(())
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        if let Err(error) = Self::rule("-D", self.0) {
            eprintln!("a firewall rule for port {} is left behind: {error:#}", self.0);
        }
    }
}

/// Small file systems in memory for the nodes whose disks are filled.
struct SmallDisks(Vec<PathBuf>);

impl SmallDisks {
    /// One meta node and one datanode.
    fn nodes(rig: &Rig) -> [(String, Role); 2] {
        [
            (rig.names(Role::Meta).pop().unwrap_or_default(), Role::Meta),
            (rig.names(Role::Datanode)[2].clone(), Role::Datanode),
        ]
    }

    fn mount(rig: &Rig) -> Result<Self> {
        let mut mounted = Self(Vec::new());
        for (name, role) in Self::nodes(rig) {
            let data = rig.data(&name);
            std::fs::create_dir_all(&data).context("make a mount point")?;
            let size = if role == Role::Datanode { SMALL_DATANODE_DISK } else { SMALL_META_DISK };
            let status =
                Command::new("mount").args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(&data).status()?;
            ensure!(status.success(), "mount {}: {status}", data.display());
            mounted.0.push(data);
        }
        Ok(mounted)
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for mount in &self.0 {
            if !Command::new("umount").arg("-l").arg(mount).status().is_ok_and(|status| status.success()) {
                eprintln!("{} is left mounted", mount.display());
            }
        }
    }
}

// The load.

/// Clients at work.
struct Load {
    shared: Arc<Shared>,
    clients: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

/// A request that failed or took too long.
struct Trouble {
    /// The round in which it was asked.
    asked_in: u64,
    what: String,
}

struct Shared {
    history: Mutex<History>,
    gateways: Vec<(String, S3Client)>,
    /// The gateway that is away by intention.
    avoided: Mutex<Option<String>>,
    /// What went wrong since the round began.
    troubles: Mutex<Vec<Trouble>>,
    /// Rounds begun.
    round: AtomicU64,
    wrong: Mutex<Vec<String>>,
    is_over: AtomicBool,
    unanswered: AtomicU64,
}

impl Load {
    fn begin(runtime: &tokio::runtime::Runtime, rig: &Rig) -> Result<Self> {
        let names = rig.names(Role::Gateway);
        let gateways: Result<Vec<(String, S3Client)>> =
            names.into_iter().map(|name| Ok((name.clone(), rig.client(&name, CLIENTS)?))).collect();
        let shared = Arc::new(Shared {
            history: Mutex::default(),
            gateways: gateways?,
            avoided: Mutex::default(),
            troubles: Mutex::default(),
            round: AtomicU64::new(0),
            wrong: Mutex::default(),
            is_over: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
        });
        runtime.block_on(shared.gateways[0].1.create_bucket(BUCKET, None)).context("create the bucket")?;
        let clients =
            (0..CLIENTS).map(|number| runtime.spawn(client(shared.clone(), number as u64))).collect();
        Ok(Self { shared, clients: Mutex::new(clients) })
    }

    fn avoid(&self, name: &str, role: Role) {
        if role == Role::Gateway {
            *lock(&self.shared.avoided) = Some(name.to_owned());
        }
    }

    fn avoid_nobody(&self) {
        *lock(&self.shared.avoided) = None;
    }

    fn begin_round(&self, round: u64) {
        self.shared.round.store(round, Ordering::Release);
    }

    /// Requests that must not have failed: asked since the last fault that may fail requests. The end of one of those may
    /// come a round later.
    fn end_round(&self, strict_since: u64) -> Vec<String> {
        let troubles = std::mem::take(&mut *lock(&self.shared.troubles));
        let counts = troubles.into_iter().filter(|trouble| trouble.asked_in >= strict_since);
        counts.map(|trouble| trouble.what).collect()
    }

    /// Ends the load, reads everything once more, and judges.
    fn finish(&self, runtime: &tokio::runtime::Runtime) -> Result<(Vec<String>, usize, u64)> {
        self.shared.is_over.store(true, Ordering::Release);
        runtime.block_on(async {
            let clients = std::mem::take(&mut *lock(&self.clients));
            for client in clients {
                client.await.context("a client's task")?;
            }
            // In peace, whatever the last fault was: none of these may fail.
            self.begin_round(u64::MAX);
            for key in 0..KEYS {
                perform(&self.shared, key % self.shared.gateways.len(), Ask::Get { key }).await;
            }
            perform(&self.shared, 0, Ask::List).await;
            anyhow::Ok(())
        })?;
        let history = lock(&self.shared.history);
        let mut wrong = std::mem::take(&mut *lock(&self.shared.wrong));
        wrong.extend(checker::check(&history));
        Ok((wrong, history.ops.len(), self.shared.unanswered.load(Ordering::Relaxed)))
    }
}

async fn client(shared: Arc<Shared>, number: u64) {
    let mut dice = Dice::new(number + 1);
    let mut seen: Vec<Option<OpId>> = vec![None; KEYS];
    while !shared.is_over.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(dice.below(40))).await;
        let count = shared.gateways.len() as u64;
        let at = (0..count)
            .map(|_| dice.below(count) as usize)
            .find(|at| lock(&shared.avoided).as_ref() != Some(&shared.gateways[*at].0));
        let Some(at) = at else { continue };
        let ask = draw_ask(&mut dice, &seen);
        let answer = perform(&shared, at, ask.clone()).await;
        match (&ask, &answer) {
            (Ask::Put { key, .. }, Answer::Written { content, .. })
            | (Ask::Get { key }, Answer::Found { content, .. }) => seen[*key] = Some(*content),
            _ => {}
        }
    }
}

fn draw_ask(dice: &mut Dice, seen: &[Option<OpId>]) -> Ask {
    let key = dice.below(KEYS as u64) as KeyIndex;
    match dice.below(100) {
        0..45 => Ask::Get { key },
        45..55 => Ask::Delete { key },
        55..60 => Ask::List,
        roll => {
            let condition = match (dice.below(10), seen[key]) {
                (0, _) => Condition::IfAbsent,
                (1, Some(op)) => Condition::IfMatch(op),
                _ => Condition::None,
            };
            let bytes =
                if roll == 99 { dice.below(LARGE_BYTES_MAX) } else { 1 + dice.below(SMALL_BYTES_MAX) };
            Ask::Put { key, condition, bytes, by_upload: false }
        }
    }
}

/// Asks a gateway, notes the answer, and whether it came in time.
async fn perform(shared: &Shared, at: usize, ask: Ask) -> Answer {
    let id = lock(&shared.history).begin(ask.clone());
    let asked_in = shared.round.load(Ordering::Acquire);
    let trouble = |what| lock(&shared.troubles).push(Trouble { asked_in, what });
    let watch = Stopwatch::start();
    let (name, gateway) = &shared.gateways[at];
    let outcome = match &ask {
        Ask::Put { key, condition, bytes, .. } => put(shared, gateway, id, *key, *condition, *bytes).await,
        Ask::Delete { key } => delete(gateway, *key).await,
        Ask::Get { key } => get(shared, gateway, *key).await,
        Ask::List | Ask::Copy { .. } => list(shared, gateway).await,
    };
    let took = watch.elapsed();
    let is_avoided = lock(&shared.avoided).as_ref() == Some(name);
    let answer = outcome.unwrap_or_else(|error| {
        if !is_avoided {
            trouble(format!("op {id} {ask:?} of {name} after {took:?}: {error}"));
        }
        Answer::Unknown
    });
    if took > REQUEST_LIMIT && !is_avoided {
        trouble(format!("op {id} {ask:?} of {name} took {took:?}"));
    }
    if answer == Answer::Unknown {
        shared.unanswered.fetch_add(1, Ordering::Relaxed);
    }
    lock(&shared.history).end(id, answer.clone());
    answer
}

fn key_name(key: KeyIndex) -> String {
    format!("key-{key:04}")
}

fn number(headers: &HeaderMap, name: &str) -> Result<u64, Error> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    value.ok_or_else(|| Error::Response(format!("no {name} in the answer")))
}

async fn put(
    shared: &Shared,
    gateway: &S3Client,
    id: OpId,
    key: KeyIndex,
    condition: Condition,
    bytes: u64,
) -> Result<Answer, Error> {
    let body = body_of(id, bytes);
    lock(&shared.history).name_content(Etag::whole(Md5::digest(&body).into()), id);
    let mut headers = HeaderMap::new();
    match condition {
        Condition::None => {}
        Condition::IfAbsent => {
            headers.insert("if-none-match", HeaderValue::from_static("*"));
        }
        Condition::IfMatch(op) => {
            let length = lock(&shared.history).bytes_of(op).unwrap_or(0);
            let etag = Etag::whole(Md5::digest(body_of(op, length)).into());
            let value = HeaderValue::from_str(&format!("\"{etag}\"")).expect("an ETag fits a header");
            headers.insert("if-match", value);
        }
    }
    match gateway.put_object_with(BUCKET, &key_name(key), Payload::from(body), headers).await {
        Ok(put) => Ok(Answer::Written { index: number(&put.headers, WITNESS)?, content: id }),
        Err(error) if matches!(error.s3().map(|error| error.status.as_u16()), Some(404 | 409 | 412)) => {
            Ok(Answer::Refused { current: None })
        }
        Err(error) => Err(error),
    }
}

async fn delete(gateway: &S3Client, key: KeyIndex) -> Result<Answer, Error> {
    let headers = gateway.delete_object(BUCKET, &key_name(key)).await?;
    Ok(Answer::Deleted { index: number(&headers, WITNESS)? })
}

async fn get(shared: &Shared, gateway: &S3Client, key: KeyIndex) -> Result<Answer, Error> {
    let object = match gateway.get_object(BUCKET, &key_name(key)).await {
        Ok(object) => object,
        Err(error) if error.is_not_found() => return Ok(Answer::Absent),
        Err(error) => return Err(error),
    };
    let (as_of, version) = (number(&object.head.headers, WITNESS)?, number(&object.head.headers, VERSION)?);
    let etag = object.head.etag().and_then(Etag::parse);
    let body: Bytes = object.bytes(LARGE_BYTES_MAX as usize + 1).await?;
    let history = lock(&shared.history);
    let content = etag.and_then(|etag| history.content_of(&etag));
    let Some(content) = content else {
        lock(&shared.wrong).push(format!("key {key} has an ETag that nobody wrote: {etag:?}"));
        return Ok(Answer::Unknown);
    };
    if body != body_of(content, history.bytes_of(content).unwrap_or(0)) {
        lock(&shared.wrong).push(format!("key {key}: wrong bytes under the ETag of op {content}"));
    }
    Ok(Answer::Found { content, version, as_of })
}

async fn list(shared: &Shared, gateway: &S3Client) -> Result<Answer, Error> {
    let mut pages = Vec::new();
    let mut after: Option<KeyIndex> = None;
    loop {
        let begun = lock(&shared.history).tick();
        let request = ListRequest {
            prefix: "key-".to_owned(),
            start_after: after.map(key_name),
            max_keys: Some(PAGE_KEYS),
            ..ListRequest::default()
        };
        let page = gateway.list_objects_v2(BUCKET, &request).await?;
        let as_of = number(&page.headers, WITNESS)?;
        let mut history = lock(&shared.history);
        let ended = history.tick();
        let mut keys = Vec::new();
        for entry in &page.objects {
            let key = entry.key.strip_prefix("key-").and_then(|number| number.parse().ok());
            let content = Etag::parse(&entry.etag).and_then(|etag| history.content_of(&etag));
            match (key, content) {
                (Some(key), Some(content)) => keys.push((key, content)),
                _ => lock(&shared.wrong).push(format!("a listing shows {entry:?}, which nobody wrote")),
            }
        }
        let until = page.next_continuation_token.as_ref().and(keys.last().map(|(key, _)| *key));
        pages.push(Page { after, until, keys, as_of, begun, ended });
        match until {
            Some(key) => after = Some(key),
            None => return Ok(Answer::Listed { pages }),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no client panics while it holds this")
}

/// SplitMix64: the same faults for the same seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_meta_node_of_several_is_missed_by_nobody() {
        let name = || "n".to_owned();
        for (fault, of_three, of_one) in [
            (Fault::Kill(name(), Role::Meta), true, false),
            (Fault::SyncFails(name(), Role::Meta, 20), true, false),
            (Fault::FullDisk(name(), Role::Meta), true, false),
            (Fault::SyncFails(name(), Role::Datanode, 20), false, false),
            (Fault::FullDisk(name(), Role::Datanode), false, false),
            (Fault::Stop(name(), Role::Datanode), true, true),
            (Fault::Kill(name(), Role::Gateway), false, false),
            (Fault::KillAll, false, false),
        ] {
            assert_eq!((fault.is_survivable(3), fault.is_survivable(1)), (of_three, of_one), "{fault:?}");
        }
    }

    #[test]
    fn fault_that_did_not_come_about_is_seen() {
        let dir = std::env::temp_dir().join(format!("ferrozone-chaos-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let trace = dir.join("trace");
        let line = "7 fdatasync(5) = -1 EIO (Input/output error)";
        std::fs::write(&trace, format!("{line}\n")).unwrap();
        assert_eq!(has_failed(&trace).unwrap(), None);
        std::fs::write(&trace, format!("{line} (INJECTED)\n")).unwrap();
        assert_eq!(has_failed(&trace).unwrap(), Some(()));
        assert!(room_kib(&dir).unwrap() > 0);
        let nowhere = dir.join("none/filler");
        assert!(fill(&nowhere, || Ok(FULL_KIB)).unwrap_err().to_string().contains("1024 KiB are left"));
        fill(&nowhere, || Ok(0)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
