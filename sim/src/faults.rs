//! What goes wrong in a run: a swarm of faults drawn from the seed, one after another, each healed in time.
//!
//! Every seed picks which kinds it has at all, so that rare combinations come up undisturbed by common ones. Faults stay
//! within what the program promises to survive: of data on disks one replica at most is damaged, nothing else.
//!
//! Not here: what a node is made of (`cluster`).

use std::rc::Rc;
use std::time::Duration;

use platform::node::NodeIndex;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::cluster::End;
use crate::network::Mood;
use crate::run::Run;
use crate::seed;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The process dies, the machine stays.
    Kill,
    /// The machine loses power: what was not synced may be gone.
    PowerLoss,
    /// All machines lose power at once.
    PowerLossOfAll,
    /// A node ends at one of the program's durable steps.
    DieAtStep,
    /// A node hears and says nothing.
    Isolate,
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
    /// A disk has no room.
    DiskFull,
    /// A sync fails once.
    SyncFails,
    /// Bits of a container rot on one datanode.
    Rot,
}

const KINDS: &[Kind] = &[
    Kind::Kill,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::DieAtStep,
    Kind::Isolate,
    Kind::OneWay,
    Kind::Split,
    Kind::BadNetwork,
    Kind::Slow,
    Kind::Skew,
    Kind::DiskFull,
    Kind::SyncFails,
    Kind::Rot,
];

/// The faults of a run.
#[derive(Debug)]
pub(crate) struct Swarm {
    kinds: Vec<Kind>,
    /// Between two faults, at most.
    pause: Duration,
}

impl Swarm {
    /// Draws which kinds there are.
    pub(crate) fn draw(draws: &mut ChaCha8Rng) -> Self {
        let kinds: Vec<Kind> = KINDS.iter().copied().filter(|_| draws.random_bool(0.45)).collect();
        let kinds = if kinds.is_empty() { vec![Kind::Kill] } else { kinds };
        Self { kinds, pause: Duration::from_secs(draws.random_range(5..40)) }
    }
}

/// Breaks things until the load ends.
pub(crate) async fn break_things(run: Rc<Run>) {
    let mut draws = seed::stream(run.seed, "faults");
    if run.swarm.kinds.contains(&Kind::BadNetwork) {
        run.cluster.network.set_mood(bad_mood(&mut draws));
    }
    while !run.is_load_over() {
        tokio::time::sleep(run.swarm.pause.mul_f64(draws.random_range(0.05..1.0))).await;
        if run.is_load_over() {
            break;
        }
        let Some(kind) = run.swarm.kinds.choose(&mut draws).copied() else { break };
        break_one(&run, kind, &mut draws).await;
    }
}

async fn break_one(run: &Rc<Run>, kind: Kind, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    let nodes = cluster.nodes();
    let Some(node) = nodes.choose(draws).copied() else { return };
    let pause = Duration::from_millis(draws.random_range(200..25_000));
    run.note_fault(&format!("{kind:?} of {node} for {pause:?}"));
    match kind {
        Kind::Kill => restart(run, &[node], End::Killed, pause, draws),
        Kind::PowerLoss => restart(run, &[node], End::PowerLost, pause, draws),
        Kind::PowerLossOfAll => restart(run, &nodes, End::PowerLost, pause, draws),
        Kind::DieAtStep => {
            run.world.die_at_steps(draws.random_range(20..400));
            tokio::time::sleep(pause).await;
            run.world.die_at_steps(0);
        }
        Kind::Isolate => {
            for other in &nodes {
                cluster.network.wall(node, *other);
                cluster.network.wall(*other, node);
            }
            heal_after(run, pause).await;
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
            let camps: Vec<(NodeIndex, bool)> =
                nodes.iter().map(|node| (*node, draws.random_bool(0.5))).collect();
            for (left, camp) in &camps {
                for (right, other) in &camps {
                    if camp != other {
                        cluster.network.wall(*left, *right);
                    }
                }
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
        Kind::Skew => run.world.skew(node, draws.random_range(-20_000..20_000)),
        Kind::DiskFull => {
            cluster.fill_disk(node, true);
            tokio::time::sleep(pause).await;
            cluster.fill_disk(node, false);
        }
        Kind::SyncFails => cluster.fail_sync(node),
        Kind::Rot => cluster.rot(draws),
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
