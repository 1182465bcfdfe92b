//! A network in memory for groups of several replicas: messages wait until the test lets them through.
//!
//! Time passes only by [`Net::tick`], so a test decides what happens in which order, and no clock. Each replica runs as a
//! simulated node: its loops are tasks on the test's own thread, which have had their turn when a round is over.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use consensus::{Group, GroupConfig, PeerEndpoint, PeerTransport, SnapshotStream};
use futures_util::{StreamExt, stream};
use platform::simulated::SimulatedDisk;
use platform::watch;
use uuid::Uuid;
use wire::group::Member;
use wire::host::HostPort;
use wire::status::{Failure, Status};

use super::{Registers, config};

/// Ticks within which something has to happen that needs an election at most.
const PATIENCE_TICKS: usize = 400;

/// So often the loops of all replicas get the processor in a round.
const TURNS: usize = 16;

/// Snapshots go in pieces of this size, so that a small one has a middle.
const PIECE_BYTES: usize = 1024;

/// What becomes of the next snapshot on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotFault {
    /// It breaks off after so many pieces, and its receiver is told so.
    Broken(usize),
    /// It ends after so many pieces as if it were whole.
    Short(usize),
    /// A bit of this piece flips.
    Flipped(usize),
    /// A bit of what precedes the rows flips, at this byte.
    Head(usize),
}

#[derive(Default)]
struct Wires {
    endpoints: BTreeMap<u64, Group<Registers>>,
    /// Endpoints that have another number than their raft id, by their address.
    elsewhere: BTreeMap<HostPort, u64>,
    /// Ways that are cut, by sender and receiver.
    cut: BTreeSet<(u64, u64)>,
    /// Batches that wait, in the order in which they will arrive.
    queue: Vec<(u64, u64, Bytes)>,
    /// Everything that was ever sent, for those who send it again.
    past: Vec<(u64, u64, Bytes)>,
    twice: bool,
    backwards: bool,
    /// Those that are still to come, the next one first.
    snapshot_faults: Vec<SnapshotFault>,
    /// Snapshots that began, by sender and receiver, with what precedes their rows.
    snapshots: Vec<(u64, u64, Bytes)>,
    /// Whether pieces of snapshots wait.
    held: watch::Sender<bool>,
}

/// One replica's end of the network.
struct End {
    from: u64,
    wires: Arc<Mutex<Wires>>,
}

#[async_trait]
impl PeerTransport for End {
    fn send(&self, _group: &str, to: &Member, batch: Bytes) {
        let mut wires = self.wires.lock().unwrap();
        let to = wires.elsewhere.get(&to.address).copied().unwrap_or(to.raft_id);
        wires.queue.push((self.from, to, batch.clone()));
        wires.past.push((self.from, to, batch));
    }

    async fn send_snapshot(
        &self,
        _group: &str,
        to: &Member,
        head: Bytes,
        body: SnapshotStream,
    ) -> Result<(), Failure> {
        let (endpoint, fault, held) = {
            let mut wires = self.wires.lock().unwrap();
            let is_cut = wires.cut.contains(&(self.from, to.raft_id));
            let Some(endpoint) = wires.endpoints.get(&to.raft_id).filter(|_| !is_cut).cloned() else {
                return Err(Failure::new(Status::Retry, "the way is cut"));
            };
            wires.snapshots.push((self.from, to.raft_id, head.clone()));
            let fault = (!wires.snapshot_faults.is_empty()).then(|| wires.snapshot_faults.remove(0));
            (endpoint, fault, wires.held.subscribe())
        };
        let mut head = head.to_vec();
        if let Some(SnapshotFault::Head(at)) = fault {
            let at = at % head.len();
            head[at] ^= 1;
        }
        let node = Some(u32::try_from(to.raft_id).unwrap());
        let body = faulty(body, fault, held);
        platform::node::scope(node, endpoint.receive_snapshot(Bytes::from(head), body)).await
    }
}

/// A snapshot in short pieces that wait while they are held.
fn faulty(body: SnapshotStream, fault: Option<SnapshotFault>, held: watch::Receiver<bool>) -> SnapshotStream {
    let pieces = body.flat_map(|piece| {
        let piece = piece.unwrap();
        let short: Vec<_> = piece.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
        stream::iter(short)
    });
    let limit = match fault {
        Some(SnapshotFault::Broken(count) | SnapshotFault::Short(count)) => count,
        _ => usize::MAX,
    };
    let end = match fault {
        Some(SnapshotFault::Broken(_)) => Some(Err(Failure::new(Status::Unknown, "the connection broke"))),
        _ => None,
    };
    let pieces = pieces.take(limit).enumerate().then(move |(number, piece)| {
        let mut held = held.clone();
        async move {
            held.wait_for(|held| !held).await.unwrap();
            let mut piece = piece.to_vec();
            if fault == Some(SnapshotFault::Flipped(number)) {
                piece[0] ^= 1;
            }
            Ok(Bytes::from(piece))
        }
    });
    Box::pin(pieces.chain(stream::iter(end)))
}

/// Replicas in directories of their own.
pub(crate) struct Net {
    wires: Arc<Mutex<Wires>>,
    dirs: BTreeMap<u64, tempfile::TempDir>,
    /// Disks in memory, of those replicas that have one.
    disks: BTreeMap<u64, SimulatedDisk>,
    pub(crate) voters: Vec<Member>,
    pub(crate) adjust: fn(&mut GroupConfig),
}

pub(crate) fn member(raft_id: u64) -> Member {
    Member {
        raft_id,
        incarnation: Uuid::from_u128(100 + u128::from(raft_id)),
        node: format!("meta{raft_id}"),
        address: HostPort::new(&format!("meta{raft_id}:9002")).unwrap(),
    }
}

impl Net {
    /// A group of `count` voters, all running.
    pub(crate) fn new(count: u64) -> Net {
        Net::with(count, |_| ())
    }

    pub(crate) fn with(count: u64, adjust: fn(&mut GroupConfig)) -> Net {
        Net::on_disks(count, BTreeMap::new(), adjust)
    }

    /// A group whose replicas have these disks, as far as they go.
    pub(crate) fn on_disks(
        count: u64,
        disks: BTreeMap<u64, SimulatedDisk>,
        adjust: fn(&mut GroupConfig),
    ) -> Net {
        let voters: Vec<_> = (1..=count).map(member).collect();
        let mut net = Net { wires: Arc::default(), dirs: BTreeMap::new(), disks, voters, adjust };
        for raft_id in 1..=count {
            net.start(raft_id);
        }
        net
    }

    /// Opens a replica, as it was left if it was ever there.
    pub(crate) fn start(&mut self, raft_id: u64) -> Group<Registers> {
        let config = self.config(raft_id);
        let node = Some(u32::try_from(raft_id).unwrap());
        let group = platform::node::enter(node, || Group::open(config, Registers::new()).unwrap());
        self.wires.lock().unwrap().endpoints.insert(raft_id, group.clone());
        group
    }

    /// Opens a replica whose machine applies commands otherwise than the others'.
    pub(crate) fn start_wrong(&mut self, raft_id: u64) -> Group<Registers> {
        let config = self.config(raft_id);
        let node = Some(u32::try_from(raft_id).unwrap());
        let group = platform::node::enter(node, || Group::open(config, Registers::wrong()).unwrap());
        self.wires.lock().unwrap().endpoints.insert(raft_id, group.clone());
        group
    }

    /// What opening a copy of a replica's directory says, as the next start of its process does.
    pub(crate) fn open_again(&mut self, raft_id: u64) -> Result<(), consensus::OpenError> {
        let copy = self.copy(raft_id);
        let mut config = self.config(raft_id);
        config.disk = consensus::directory(copy.path()).unwrap();
        config.transport = None;
        platform::node::enter(Some(999), || Group::open(config, Registers::new()).map(drop))
    }

    /// A copy of a replica's directory, which nobody may have open.
    pub(crate) fn copy(&self, raft_id: u64) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        super::copy_dir(self.dirs[&raft_id].path(), copy.path());
        copy
    }

    /// Opens a replica in another directory and at another address, as the endpoint of this number.
    pub(crate) fn start_elsewhere(
        &mut self,
        number: u64,
        raft_id: u64,
        dir: tempfile::TempDir,
    ) -> Group<Registers> {
        let address = HostPort::new(&format!("elsewhere{number}:9002")).unwrap();
        let mut config = self.config(raft_id);
        config.disk = consensus::directory(dir.path()).unwrap();
        config.member = Some(Member { address: address.clone(), ..member(raft_id) });
        config.transport = Some(Arc::new(End { from: number, wires: Arc::clone(&self.wires) }));
        self.dirs.insert(number, dir);
        let node = Some(u32::try_from(number).unwrap());
        let group = platform::node::enter(node, || Group::open(config, Registers::new()).unwrap());
        let mut wires = self.wires.lock().unwrap();
        wires.elsewhere.insert(address, number);
        wires.endpoints.insert(number, group.clone());
        group
    }

    /// Stops a replica, as a process that is told to.
    pub(crate) async fn stop(&self, raft_id: u64) {
        let group = self.wires.lock().unwrap().endpoints.remove(&raft_id).unwrap();
        let stopping = group.shutdown();
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                biased;
                () = &mut stopping => break,
                () = self.round() => { group.tick(); }
            }
        }
    }

    pub(crate) fn group(&self, raft_id: u64) -> Group<Registers> {
        self.wires.lock().unwrap().endpoints[&raft_id].clone()
    }

    pub(crate) fn groups(&self) -> Vec<Group<Registers>> {
        self.wires.lock().unwrap().endpoints.values().cloned().collect()
    }

    // Faults.

    /// Nothing goes from `from` to `to` any more.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.wires.lock().unwrap().cut.insert((from, to));
    }

    /// Nothing goes to or from `raft_id` any more.
    pub(crate) fn isolate(&self, raft_id: u64) {
        for other in self.dirs.keys().filter(|other| **other != raft_id) {
            self.cut(raft_id, *other);
            self.cut(*other, raft_id);
        }
    }

    pub(crate) fn heal(&self) {
        self.wires.lock().unwrap().cut.clear();
    }

    /// From now on every batch arrives twice, and later ones before earlier ones.
    pub(crate) fn garble(&self) {
        let mut wires = self.wires.lock().unwrap();
        (wires.twice, wires.backwards) = (true, true);
    }

    /// Sends everything again that was ever sent.
    pub(crate) fn repeat_the_past(&self) {
        let mut wires = self.wires.lock().unwrap();
        let past = wires.past.clone();
        wires.queue.extend(past);
    }

    /// The next snapshots meet these.
    pub(crate) fn fail_snapshots(&self, faults: &[SnapshotFault]) {
        self.wires.lock().unwrap().snapshot_faults = faults.to_vec();
    }

    /// Snapshots on their way stand still, or go on.
    pub(crate) fn hold_snapshots(&self, held: bool) {
        self.wires.lock().unwrap().held.send_replace(held);
    }

    /// The snapshots that began: sender, receiver and what precedes the rows.
    pub(crate) fn snapshots(&self) -> Vec<(u64, u64, Bytes)> {
        self.wires.lock().unwrap().snapshots.clone()
    }

    /// The settings of a replica that [`Net::start`] would use.
    pub(crate) fn config(&mut self, raft_id: u64) -> GroupConfig {
        let is_first = self.voters.iter().any(|voter| voter.raft_id == raft_id);
        let dir = self.dirs.entry(raft_id).or_insert_with(|| tempfile::tempdir().unwrap());
        let mut config = GroupConfig {
            raft_id,
            incarnation: member(raft_id).incarnation,
            member: Some(member(raft_id)),
            voters: if is_first { self.voters.clone() } else { Vec::new() },
            join: !is_first,
            transport: Some(Arc::new(End { from: raft_id, wires: Arc::clone(&self.wires) })),
            tick: Duration::ZERO,
            ..config(dir.path())
        };
        if let Some(disk) = self.disks.get(&raft_id) {
            config.disk = Arc::new(disk.clone());
        }
        (self.adjust)(&mut config);
        config
    }

    pub(crate) fn dir(&self, raft_id: u64) -> &std::path::Path {
        self.dirs[&raft_id].path()
    }

    /// Ends a replica without a word, as `kill -9` does, and starts it again. What it had open lives on in this process,
    /// so that it comes back in a copy of its directory.
    pub(crate) fn kill(&mut self, raft_id: u64) -> Group<Registers> {
        platform::node::kill(u32::try_from(raft_id).unwrap());
        self.wires.lock().unwrap().endpoints.remove(&raft_id);
        let copy = tempfile::tempdir().unwrap();
        super::copy_dir(self.dirs[&raft_id].path(), copy.path());
        self.dirs.insert(raft_id, copy);
        self.start(raft_id)
    }

    pub(crate) fn past(&self) -> Vec<(u64, u64, Bytes)> {
        self.wires.lock().unwrap().past.clone()
    }

    // Progress.

    /// Delivers what waits; true if there was anything.
    async fn deliver(&self) -> bool {
        let (mut batches, endpoints, cut, twice) = {
            let mut wires = self.wires.lock().unwrap();
            let batches = std::mem::take(&mut wires.queue);
            let batches = if wires.backwards { batches.into_iter().rev().collect() } else { batches };
            (batches, wires.endpoints.clone(), wires.cut.clone(), wires.twice)
        };
        let any = !batches.is_empty();
        if twice {
            batches.extend(batches.clone());
        }
        for (from, to, batch) in batches {
            if !cut.contains(&(from, to))
                && let Some(endpoint) = endpoints.get(&to)
            {
                let _ = endpoint.receive(batch).await;
            }
        }
        any
    }

    /// Delivers what waits, and lets the replicas' loops have their turn.
    pub(crate) async fn round(&self) {
        self.deliver().await;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
    }

    /// A tick for everybody, and all messages that follow from it.
    pub(crate) async fn tick(&self) {
        for group in self.groups() {
            group.tick();
        }
        for _ in 0..8 {
            self.round().await;
        }
    }

    pub(crate) async fn ticks(&self, count: usize) {
        for _ in 0..count {
            self.tick().await;
        }
    }

    /// Lets time pass until `wanted` gives something.
    pub(crate) async fn until<T>(&self, what: &str, mut wanted: impl FnMut() -> Option<T>) -> T {
        for _ in 0..PATIENCE_TICKS {
            if let Some(found) = wanted() {
                return found;
            }
            self.tick().await;
        }
        let all: Vec<_> = self.groups().iter().map(Group::info).collect();
        panic!("in vain: {what}; {all:#?}")
    }

    /// Lets time pass until a future is done.
    pub(crate) async fn during<T>(&self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        for _ in 0..PATIENCE_TICKS {
            tokio::select! {
                biased;
                done = &mut future => return done,
                () = self.tick() => {}
            }
        }
        panic!("it takes for ever")
    }

    /// The replica that leads among those running and not isolated, once there is one with the newest term.
    pub(crate) async fn leader(&self) -> Group<Registers> {
        self.leader_among(&self.dirs.keys().copied().collect::<Vec<_>>()).await
    }

    pub(crate) async fn leader_among(&self, ids: &[u64]) -> Group<Registers> {
        self.until("a leader", || {
            let endpoints = self.wires.lock().unwrap().endpoints.clone();
            let among: Vec<_> = ids.iter().filter_map(|id| endpoints.get(id).cloned()).collect();
            let newest = among.iter().map(|group| group.status().term).max()?;
            among.into_iter().find(|group| group.status().is_leader && group.status().term == newest)
        })
        .await
    }

    /// Lets time pass until all of `ids` have applied the same, and compares their state.
    pub(crate) async fn agree(&self, ids: &[u64]) {
        self.until("agreement", || {
            let all: Vec<_> = ids.iter().map(|id| self.group(*id).status()).collect();
            let newest = all.iter().map(|status| status.log_last_index).max()?;
            let same = all.iter().all(|status| status.applied_index == newest);
            same.then(|| assert!(all.iter().all(|status| status.state_hash == all[0].state_hash), "{all:?}"))
        })
        .await;
    }
}
