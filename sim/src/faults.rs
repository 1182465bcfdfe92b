//! What goes wrong in a run: a swarm of faults drawn from the seed, one after another, each healed in time.
//!
//! Every seed picks which kinds it has at all and how often each comes, so that rare combinations come up undisturbed by
//! common ones and some runs are dense in one kind. Faults stay within what the program promises to survive: of data on
//! disks one replica at most is damaged, and then no node stays away until it is given up.
//!
//! A *gentle* run has only what must not cost any replica its place: full disks, closing containers, new leaders, wrong
//! clocks. There SCM may mark nothing INVALID, and `audit::watch_gently` looks on.
//!
//! Not here: what a node is made of (`cluster`), kinds made for one question of consensus (`consensus`), members that
//! come and go (`members`).

mod consensus;
mod members;

use std::rc::Rc;
use std::time::Duration;

use client::service::{call_om, call_scm};
use platform::node::{self, NodeIndex};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use wire::ids::ContainerId;
use wire::operator::{
    CloseContainer, DatanodeWish, ListContainers, ListDatanodes, SetDatanode, TransferLeadership,
};
use wire::scm::ContainerState;

use crate::cluster::{End, SKEW_MS_MAX};
use crate::network::Mood;
use crate::run::Run;
use crate::seed;

/// A call of the operator's gives up after this.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(10);

/// Tries to take a datanode back: SCM may have no leader for a while.
const RECOMMISSION_TRIES: usize = 60;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The process dies, the machine stays.
    Kill,
    /// The machine loses power: what was not synced may be gone.
    PowerLoss,
    /// All machines lose power at once.
    PowerLossOfAll,
    /// A datanode stays away until it is given up.
    LongDeath,
    /// A node ends at one of the program's durable steps.
    DieAtStep,
    /// A node ends at one certain step of these.
    DieAtNamedStep,
    /// A process stands still, and goes on as if nothing had been.
    Pause,
    /// A gateway stands still until its session is over.
    LongPause,
    /// A node stands still again and again for moments: a slow disk, a busy machine.
    Stutter,
    /// A node hears and says nothing.
    Isolate,
    /// A leader loses its peers, but not all of its clients.
    CutLeader,
    /// A datanode cannot be reached by gateways, though SCM hears it.
    CutFromGateways,
    /// A datanode is not heard by SCM, though gateways reach it.
    CutFromScm,
    /// One direction between two nodes carries nothing.
    OneWay,
    /// The nodes fall into two camps.
    Split,
    /// Messages are lost, late, twice.
    BadNetwork,
    /// A node is slow to reach.
    Slow,
    /// A wall clock is wrong by seconds.
    Skew,
    /// A node's disks have no room.
    DiskFull,
    /// A datanode's disks have no room.
    DataDiskFull,
    /// A sync fails once.
    SyncFails,
    /// Bits of a container rot on one datanode.
    Rot,
    /// Bits rot of what is being copied.
    RotOfCopies,
    /// Leadership is handed over.
    Transfer,
    /// Containers are closed while they are written to.
    Close,
    /// A datanode is emptied, and taken back.
    Decommission,
    /// Orders for a former life of a replica come very late.
    StaleOrders,
    /// A leader is lost with its last words unheard.
    LostWords,
    /// A replica that has just voted ends while it takes a snapshot over.
    DieAtSnapshot,
    /// A meta node loses its disks, and another member comes in its place.
    ReplaceMeta,
    /// OM does what it is asked, and many of its answers are lost.
    AnswersLost,
    /// Gateways lose a datanode for a moment while writers stand in the midst of long bodies.
    CutUnderWriters,
}

const KINDS: &[Kind] = &[
    Kind::Kill,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::LongDeath,
    Kind::DieAtStep,
    Kind::Pause,
    Kind::LongPause,
    Kind::Stutter,
    Kind::Isolate,
    Kind::CutLeader,
    Kind::CutFromGateways,
    Kind::CutFromScm,
    Kind::OneWay,
    Kind::Split,
    Kind::BadNetwork,
    Kind::Slow,
    Kind::Skew,
    Kind::DiskFull,
    Kind::DataDiskFull,
    Kind::SyncFails,
    Kind::Rot,
    Kind::RotOfCopies,
    Kind::Transfer,
    Kind::Close,
    Kind::Decommission,
    Kind::StaleOrders,
];

/// What costs no replica its place.
const GENTLE: &[Kind] = &[Kind::DataDiskFull, Kind::Close, Kind::Transfer, Kind::Skew];

/// Drawn apart from the others.
const OF_CONSENSUS: &[Kind] = &[Kind::LostWords, Kind::DieAtSnapshot, Kind::ReplaceMeta];

/// What makes SCM give a replica up.
const GIVEN_UP: &[Kind] = &[Kind::LongDeath, Kind::CutFromScm, Kind::SyncFails, Kind::RotOfCopies];

/// The faults of a run.
#[derive(Debug)]
pub(crate) struct Swarm {
    /// Each with its weight.
    kinds: Vec<(Kind, u32)>,
    /// Between two faults, at most.
    pause: Duration,
    /// No fault here costs a replica its place.
    pub(crate) is_gentle: bool,
}

impl Swarm {
    /// Draws which kinds there are, and how often each comes.
    pub(crate) fn draw(draws: &mut ChaCha8Rng) -> Self {
        let pause = Duration::from_secs(draws.random_range(2..20));
        if draws.random_ratio(1, 10) {
            let kinds = GENTLE.iter().map(|kind| (*kind, draws.random_range(1..=4))).collect();
            return Self { kinds, pause, is_gentle: true };
        }
        // A few or many: a run of one kind goes deep, a run of all finds what only comes together.
        let share = *[0.06, 0.12, 0.25, 0.5].choose(draws).unwrap_or(&0.3);
        let mut kinds: Vec<(Kind, u32)> = Vec::new();
        while kinds.is_empty() {
            for kind in KINDS {
                if draws.random_bool(share) {
                    kinds.push((*kind, *[1, 2, 8].choose(draws).unwrap_or(&1)));
                }
            }
        }
        // Damage beside a replica that is given up is more than is promised.
        if kinds.iter().any(|(kind, _)| *kind == Kind::Rot) {
            kinds.retain(|(kind, _)| !GIVEN_UP.contains(kind));
        }
        Self { kinds, pause, is_gentle: false }
    }

    /// Kinds that came later draw from a stream of their own: the seeds on record keep what they had.
    pub(crate) fn draw_more(&mut self, draws: &mut ChaCha8Rng) {
        if !self.is_gentle && draws.random_bool(0.2) {
            self.kinds.push((Kind::DieAtNamedStep, *[1, 2, 8].choose(draws).unwrap_or(&1)));
        }
    }

    /// Kinds made for one question of consensus each. A seed that has one has it about as often as all else.
    pub(crate) fn draw_of_consensus(&mut self, draws: &mut ChaCha8Rng) {
        let sum: u32 = self.kinds.iter().map(|(_, weight)| weight).sum();
        for kind in OF_CONSENSUS {
            if draws.random_ratio(1, 5) && !self.is_gentle {
                self.kinds.push((*kind, sum));
            }
        }
    }

    /// Kinds that ask what repeated commands and halves of bodies come to: of another stream, and as often as all others
    /// together where they are.
    pub(crate) fn draw_of_data(&mut self, draws: &mut ChaCha8Rng) {
        let (answers, writers) = (draws.random_bool(0.2), draws.random_bool(0.25));
        // A long pause needs most of a run: beside kinds that come as often as all others it would hardly be seen.
        if self.has(Kind::LongPause) {
            return;
        }
        let weight = self.kinds.iter().map(|(_, weight)| weight).sum();
        if answers && !self.is_gentle {
            self.kinds.push((Kind::AnswersLost, weight));
        }
        // Whom writers leave out is one replica less, beside which none may rot.
        if writers && !self.is_gentle && !self.has(Kind::Rot) {
            self.kinds.push((Kind::CutUnderWriters, weight));
        }
    }

    fn choose(&self, draws: &mut ChaCha8Rng) -> Kind {
        let sum: u32 = self.kinds.iter().map(|(_, weight)| weight).sum();
        let mut roll = draws.random_range(0..sum);
        for (kind, weight) in &self.kinds {
            match roll.checked_sub(*weight) {
                None => return *kind,
                Some(rest) => roll = rest,
            }
        }
        Kind::Kill
    }

    fn has(&self, kind: Kind) -> bool {
        self.kinds.iter().any(|(known, _)| *known == kind)
    }

    /// Whether nobody may be taken for dead in this run.
    pub(crate) fn spares_replicas(&self) -> bool {
        self.has(Kind::Rot)
    }
}

/// Breaks things until the load ends.
pub(crate) async fn break_things(run: Rc<Run>) {
    let mut draws = seed::stream(run.seed, "faults");
    if run.swarm.has(Kind::BadNetwork) {
        run.cluster.network.set_mood(bad_mood(&mut draws));
    }
    while !run.is_load_over() {
        tokio::time::sleep(run.swarm.pause.mul_f64(draws.random_range(0.05..1.0))).await;
        if run.is_load_over() {
            break;
        }
        let kind = run.swarm.choose(&mut draws);
        break_one(&run, kind, &mut draws).await;
    }
}

async fn break_one(run: &Rc<Run>, kind: Kind, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    let nodes = cluster.nodes();
    let datanodes = cluster.datanodes();
    let (Some(node), Some(datanode)) = (nodes.choose(draws).copied(), datanodes.choose(draws).copied())
    else {
        return;
    };
    let pause = Duration::from_millis(draws.random_range(200..25_000));
    run.note_fault(&format!("{kind:?} of {node} or {datanode} for {pause:?}"));
    match kind {
        Kind::Kill => restart(run, &[node], End::Killed, pause, draws),
        Kind::PowerLoss => restart(run, &[node], End::PowerLost, pause, draws),
        Kind::PowerLossOfAll => restart(run, &nodes, End::PowerLost, pause, draws),
        Kind::LongDeath => {
            cluster.end(datanode, End::PowerLost, draws.random());
            let dead_ms = cluster.knobs().dead_silence_ms as f64 * draws.random_range(1.0..2.5);
            tokio::time::sleep(Duration::from_millis(dead_ms as u64)).await;
            cluster.start(run, datanode).await;
        }
        Kind::DieAtStep => {
            run.world.die_at_steps(draws.random_range(20..400));
            tokio::time::sleep(pause).await;
            run.world.die_at_steps(0);
        }
        Kind::DieAtNamedStep => {
            // What is rare is chosen as often as what happens all the time.
            let name = wire::failpoint::NAMES.choose(draws).copied();
            run.world.die_at(name.map(|name| (name, draws.random_range(0..3))));
            tokio::time::sleep(pause).await;
            run.world.die_at(None);
        }
        Kind::Pause => stand_still(node, pause).await,
        Kind::LongPause => {
            let Some(gateway) = cluster.gateway_nodes().choose(draws).copied() else { return };
            let silence_ms = cluster.knobs().session_silence_ms as f64 * draws.random_range(0.9..1.6);
            stand_still(gateway, Duration::from_millis(silence_ms as u64)).await;
        }
        Kind::Stutter => {
            stutter(run, node, pause, 20..900, draws).await;
        }
        Kind::Isolate => {
            for other in &nodes {
                cluster.network.wall(node, *other);
                cluster.network.wall(*other, node);
            }
            heal_after(run, pause).await;
        }
        Kind::CutLeader => cut_leader(run, draws).await,
        Kind::CutFromGateways => {
            cut(run, &[datanode], &cluster.gateway_nodes(), draws);
            heal_after(run, pause).await;
        }
        Kind::CutFromScm => {
            cut(run, &[datanode], &cluster.metas(), draws);
            let dead_ms = cluster.knobs().dead_silence_ms as f64 * draws.random_range(0.3..1.8);
            heal_after(run, Duration::from_millis(dead_ms as u64)).await;
        }
        Kind::OneWay => {
            for _ in 0..draws.random_range(1..=3) {
                if let Some(other) = nodes.choose(draws) {
                    cluster.network.wall(node, *other);
                }
            }
            heal_after(run, pause).await;
        }
        Kind::Split => {
            let (left, right): (Vec<_>, Vec<_>) = nodes.iter().partition(|_| draws.random_bool(0.5));
            for (left, right) in left.iter().flat_map(|left| right.iter().map(move |right| (*left, *right))) {
                cluster.network.wall(left, right);
                cluster.network.wall(right, left);
            }
            heal_after(run, pause).await;
        }
        Kind::BadNetwork => {
            cluster.network.set_mood(bad_mood(draws));
            tokio::time::sleep(pause).await;
        }
        Kind::Slow => {
            cluster.network.slow(node, Duration::from_millis(draws.random_range(50..1500)));
            heal_after(run, pause).await;
        }
        Kind::Skew => run.world.skew(node, draws.random_range(-SKEW_MS_MAX..=SKEW_MS_MAX)),
        Kind::DiskFull => fill(run, node, pause).await,
        Kind::DataDiskFull => fill(run, datanode, pause).await,
        Kind::SyncFails => cluster.fail_sync(node),
        Kind::Rot => cluster.rot(draws),
        Kind::RotOfCopies => rot_copies(run, datanode, draws).await,
        Kind::Transfer => transfer(run, draws).await,
        Kind::Close => close_one(run, draws).await,
        Kind::Decommission => decommission(run, pause, draws).await,
        Kind::StaleOrders => {
            cluster.set_stale_orders(true);
            tokio::time::sleep(pause).await;
            cluster.set_stale_orders(false);
        }
        Kind::LostWords => consensus::lose_words(run, draws).await,
        Kind::DieAtSnapshot => consensus::die_at_snapshot(run, draws).await,
        Kind::ReplaceMeta => members::replace(run, draws),
        Kind::AnswersLost => {
            cluster.network.lose_answers(draws.random_range(100..500));
            tokio::time::sleep(pause).await;
            cluster.network.lose_answers(0);
        }
        Kind::CutUnderWriters => cut_under_writers(run, datanode, draws).await,
    }
}

/// A datanode takes the first half of some bodies, and is lost to their writers, who leave it out. It is back at once, to
/// be read from and copied to, while others still stand in the midst of what they write to that container.
async fn cut_under_writers(run: &Rc<Run>, datanode: NodeIndex, draws: &mut ChaCha8Rng) {
    run.set_long_bodies(true);
    run.set_busy(true);
    tokio::time::sleep(Duration::from_millis(draws.random_range(2000..6000))).await;
    cut_both(run, &[datanode], &run.cluster.gateway_nodes());
    if draws.random_bool(0.6) {
        // There is no way round it in time: SCM takes too long to open a container on others.
        let by = Duration::from_millis(draws.random_range(150..350));
        for meta in run.cluster.metas() {
            run.cluster.network.slow(meta, by);
        }
    }
    heal_after(run, Duration::from_millis(draws.random_range(2000..7000))).await;
    run.set_busy(false);
    tokio::time::sleep(Duration::from_millis(draws.random_range(0..15_000))).await;
    run.set_long_bodies(false);
}

async fn stand_still(index: NodeIndex, pause: Duration) {
    node::pause(index);
    tokio::time::sleep(pause).await;
    node::resume(index);
}

/// Stands still for `stills` milliseconds again and again, until `pause` is over.
async fn stutter(
    run: &Rc<Run>,
    index: NodeIndex,
    pause: Duration,
    stills: std::ops::Range<u64>,
    draws: &mut ChaCha8Rng,
) {
    let until_ms = run.world.elapsed_ms() + pause.as_millis() as u64;
    while run.world.elapsed_ms() < until_ms {
        stand_still(index, Duration::from_millis(draws.random_range(stills.clone()))).await;
        tokio::time::sleep(Duration::from_millis(draws.random_range(5..60))).await;
    }
}

async fn fill(run: &Rc<Run>, index: NodeIndex, pause: Duration) {
    run.cluster.fill_disks(index, true);
    tokio::time::sleep(pause).await;
    run.cluster.fill_disks(index, false);
}

/// Stops what one side says to the other, or the other to it, or both.
fn cut(run: &Rc<Run>, left: &[NodeIndex], right: &[NodeIndex], draws: &mut ChaCha8Rng) {
    let direction = draws.random_range(0..4);
    for (left, right) in left.iter().flat_map(|left| right.iter().map(move |right| (*left, *right))) {
        if direction != 1 {
            run.cluster.network.wall(left, right);
        }
        if direction != 2 {
            run.cluster.network.wall(right, left);
        }
    }
}

/// The leader is cut off from its peers, or stands still for a while; clients of some gateways still reach it. What it
/// says meanwhile, and what it says first when it is back, must not be what it remembers. Clients ask much.
async fn cut_leader(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    let group = if draws.random_ratio(4, 5) { "om" } else { "scm" };
    let Some(leader) = cluster.leader(group).await else { return };
    let peers: Vec<NodeIndex> = cluster.metas().into_iter().filter(|peer| *peer != leader).collect();
    let away = Duration::from_millis(draws.random_range(2000..7000));
    run.trace.line(format!("the leader of {group} is {leader}"));
    run.set_busy(true);
    if draws.random_bool(0.3) {
        // A new leader takes long to hear that what it holds was agreed on.
        for meta in cluster.metas() {
            cluster.network.slow(meta, Duration::from_millis(draws.random_range(1..120)));
        }
    }
    if draws.random_ratio(1, 4) {
        stand_still(leader, away).await;
    } else {
        match draws.random_bool(0.8) {
            true => cut_both(run, &[leader], &peers),
            false => cut(run, &[leader], &peers, draws),
        }
        // Some gateways go on asking it, some cannot.
        let mut gateways = cluster.gateway_nodes();
        gateways.shuffle(draws);
        let lost = draws.random_range(0..=gateways.len()).min(gateways.len().saturating_sub(1).max(1));
        cut_both(run, &gateways[..lost], &[leader]);
        if draws.random_bool(0.7) {
            // Its clock runs slow, and it thinks long that it leads.
            stutter(run, leader, away, 60..400, draws).await;
        } else {
            tokio::time::sleep(away).await;
        }
    }
    heal_after(run, Duration::from_millis(500)).await;
    run.set_busy(false);
}

fn cut_both(run: &Rc<Run>, left: &[NodeIndex], right: &[NodeIndex]) {
    for (left, right) in left.iter().flat_map(|left| right.iter().map(move |right| (*left, *right))) {
        run.cluster.network.wall(left, right);
        run.cluster.network.wall(right, left);
    }
}

/// Takes a datanode away until its replicas are copied elsewhere, and damages a copy that comes of it.
async fn rot_copies(run: &Rc<Run>, away: NodeIndex, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    cluster.end(away, End::Killed, draws.random());
    let begun_ms = run.world.elapsed_ms();
    let limit_ms = cluster.knobs().copied_ms() + 30_000;
    while run.world.elapsed_ms() - begun_ms < limit_ms {
        tokio::time::sleep(Duration::from_millis(25)).await;
        if cluster.datanodes().into_iter().any(|index| cluster.rot_copies(index, draws)) {
            break;
        }
    }
    cluster.start(run, away).await;
}

async fn transfer(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let heir = run.cluster.metas().choose(draws).and_then(|node| run.cluster.member(*node));
    let request = TransferLeadership { raft_id: heir.map(|member| member.raft_id) };
    let is_om = draws.random_bool(0.7);
    run.set_busy(true);
    let (om, scm) = (run.cluster.om(), run.cluster.scm());
    let handed = async {
        match is_om {
            true => drop(call_om(&*om, request).await),
            false => drop(call_scm(&*scm, request).await),
        }
    };
    // Whether it did so is its own affair.
    let _ = tokio::time::timeout(OPERATOR_PATIENCE, handed).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    run.set_busy(false);
}

async fn close_one(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let scm = run.cluster.scm();
    let request = ListContainers {
        after: ContainerId(0),
        max: 100,
        state: Some(ContainerState::Open),
        datanode: None,
        health: None,
    };
    let closed = async {
        let open = call_scm(&*scm, request).await?;
        match open.choose(draws) {
            Some(container) => {
                call_scm(&*scm, CloseContainer { container: container.container }).await.map(drop)
            }
            None => Ok(()),
        }
    };
    let _ = tokio::time::timeout(OPERATOR_PATIENCE, closed).await;
}

async fn decommission(run: &Rc<Run>, pause: Duration, draws: &mut ChaCha8Rng) {
    let scm = run.cluster.scm();
    let chosen = async {
        let all = call_scm(&*scm, ListDatanodes {}).await.ok()?;
        all.choose(draws).map(|info| info.datanode.id)
    };
    let Ok(Some(datanode)) = tokio::time::timeout(OPERATOR_PATIENCE, chosen).await else { return };
    let begin = call_scm(&*scm, SetDatanode { datanode, wish: DatanodeWish::Decommission, force: false });
    let _ = tokio::time::timeout(OPERATOR_PATIENCE, begin).await;
    tokio::time::sleep(pause * 2).await;
    // Peace needs all datanodes.
    for _ in 0..RECOMMISSION_TRIES {
        let end = call_scm(&*scm, SetDatanode { datanode, wish: DatanodeWish::Recommission, force: false });
        if let Ok(Ok(_)) = tokio::time::timeout(OPERATOR_PATIENCE, end).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn heal_after(run: &Rc<Run>, pause: Duration) {
    tokio::time::sleep(pause).await;
    run.cluster.network.heal();
    run.trace.line("the network heals".to_owned());
}

/// Ends nodes and starts each again after a while.
fn restart(run: &Rc<Run>, nodes: &[NodeIndex], end: End, pause: Duration, draws: &mut ChaCha8Rng) {
    for node in nodes {
        run.cluster.end(*node, end, draws.random());
    }
    for node in nodes {
        let (run, node) = (run.clone(), *node);
        let pause = pause.mul_f64(draws.random_range(0.1..1.0));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            run.cluster.start(&run, node).await;
        });
    }
}

fn bad_mood(draws: &mut ChaCha8Rng) -> Mood {
    Mood {
        delay_min: Duration::from_micros(draws.random_range(100..3000)),
        jitter: Duration::from_millis(draws.random_range(1..60)),
        lost_per_mille: *[0, 1, 10, 50].choose(draws).unwrap_or(&0),
        doubled_per_mille: *[0, 1, 20].choose(draws).unwrap_or(&0),
        late_per_mille: *[0, 1, 20].choose(draws).unwrap_or(&0),
    }
}
