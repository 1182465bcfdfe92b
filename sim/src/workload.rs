//! The clients of a run: each asks for one thing after another, of a random gateway, on few hot keys.
//!
//! A client is outside every node. What it asked of a gateway that dies meanwhile has no answer.
//!
//! Not here: what an operation is made of (`gateway`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use platform::node::{self, NodeIndex};
use platform::task;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use wire::block::Replication;

use crate::gateway::Holds;
use crate::run::Run;
use crate::seed;
use checker::{Answer, Ask, Condition, KeyIndex, OpId};

/// A client gives up waiting after this: longer than any deadline inside.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keys that are written once, at most.
const COLD_MAX: usize = 150;

/// Bodies that last: of several runs, the longest of several blocks, and of more than a writer keeps.
const LONG_BYTES: Range<u64> = 600_000..1_500_000;
const LONGEST_BYTES: Range<u64> = 5_500_000..7_000_000;
/// How long their writers stand in the midst of them.
const LONG_HOLD_MS: Range<u64> = 3000..16_000;

/// So many times less do clients pause while they are busy.
const BUSY: u32 = 12;

/// What the clients of a run do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    /// Pause between two operations of a client, at most.
    pause: Duration,
    bytes_max: u64,
    /// In a hundred: keys written to one datanode alone.
    single: u32,
    /// In a hundred: conditional writes, deletions, listings, uploads, copies.
    conditional: u32,
    deletes: u32,
    lists: u32,
    uploads: u32,
    copies: u32,
    /// In a hundred: they take their time between looking a key up and reading it, or between writing and committing.
    slow: u32,
    /// In a thousand: bodies of several blocks.
    large: u32,
    /// In a hundred: keys that are written once and stay. What hot keys hide, being written again, they keep.
    cold: u32,
}

impl Plan {
    /// Draws a plan: every seed stresses something else. In a gentle one blocks are long: disks are to be found full.
    pub(crate) fn draw(draws: &mut ChaCha8Rng, is_gentle: bool) -> Self {
        let few = |draws: &mut ChaCha8Rng, most: u32| match draws.random_range(0..3) {
            0 => 0,
            1 => draws.random_range(0..=most / 3),
            _ => draws.random_range(0..=most),
        };
        Self {
            clients: draws.random_range(2..=6),
            keys: draws.random_range(1..=20),
            pause: Duration::from_millis(draws.random_range(200..1200)),
            bytes_max: if is_gentle {
                60_000
            } else {
                *[2000, 8000, 8000, 60_000].choose(draws).unwrap_or(&8000)
            },
            single: if is_gentle { 0 } else { *[0, 0, 0, 20, 100].choose(draws).unwrap_or(&0) },
            conditional: few(draws, 50),
            deletes: few(draws, 30),
            lists: few(draws, 15),
            uploads: few(draws, 10),
            copies: few(draws, 35),
            slow: few(draws, 25),
            large: few(draws, 10),
            cold: draws.random_range(1..=8),
        }
    }

    /// The key that only the audit writes.
    pub(crate) fn audit_key(&self) -> KeyIndex {
        self.keys + COLD_MAX
    }

    /// The key that is written again and again to make logs grow.
    pub(crate) fn flood_key(&self) -> KeyIndex {
        self.audit_key() + 1
    }

    /// Where a write puts its blocks.
    fn replication(&self, draws: &mut ChaCha8Rng) -> Replication {
        if draws.random_range(0..100) < self.single { Replication::One } else { Replication::Three }
    }
}

/// Runs one client until the run ends its load.
pub(crate) async fn client(run: Rc<Run>, number: usize) {
    let mut draws = seed::stream(run.seed, &format!("client {number}"));
    // Apart: what long bodies draw shifts nothing else.
    let mut long_draws = seed::stream(run.seed, &format!("long bodies {number}"));
    // What this client last saw of some key: conditional writes name it.
    let mut seen: BTreeMap<KeyIndex, OpId> = BTreeMap::new();
    // Some ask whoever is there, others one gateway as long as it is up.
    let mut usual: Option<NodeIndex> = None;
    let is_loyal = draws.random_bool(0.5);
    while !run.is_load_over() {
        let pause = run.plan.pause.mul_f64(draws.random());
        tokio::time::sleep(if run.is_busy() { pause / BUSY } else { pause }).await;
        let (ask, midst) = lengthen(&run, draw_ask(&run, &mut draws, &seen), &mut long_draws);
        let up = run.cluster.gateways();
        let known = up.iter().find(|(index, _)| is_loyal && usual == Some(*index));
        let Some((index, gateway)) = known.or_else(|| up.choose(&mut draws)).cloned() else { continue };
        usual = Some(index);
        let id = run.history.lock().begin(ask.clone());
        run.trace.mark(&format!("op {id} {ask:?} at {index}"));
        let replication = run.plan.replication(&mut draws);
        let hold = run.draw_hold(&mut draws);
        let holds = Holds { midst, end: if midst.is_zero() { hold } else { Duration::ZERO } };
        let is_aborted = draws.random_ratio(1, 5);
        let work = ask.clone();
        let handle = node::enter(Some(index), || {
            task::spawn(async move {
                match work {
                    Ask::Put { key, condition, bytes, by_upload: false } => {
                        Ok(gateway.put(id, key, condition, bytes, replication, holds).await)
                    }
                    Ask::Put { key, condition, bytes, by_upload: true } => {
                        Ok(gateway.upload(id, key, condition, bytes, replication, is_aborted).await)
                    }
                    Ask::Delete { key } => Ok(gateway.delete(key).await),
                    Ask::Copy { from, to } => Ok(gateway.copy(from, to).await),
                    Ask::Get { key } => gateway.get(key, hold).await,
                    Ask::List => gateway.list().await,
                }
            })
        });
        let answer = match tokio::time::timeout(PATIENCE, handle).await {
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(wrong))) => {
                run.violation(format!("op {id} {ask:?}: {wrong}"));
                Answer::Unknown
            }
            // The gateway died, or we stopped waiting.
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        };
        run.trace.mark(&format!("op {id} {answer:?}"));
        run.count(&answer);
        match (&ask, &answer) {
            (Ask::Put { key, .. }, Answer::Written { content, .. })
            | (Ask::Get { key }, Answer::Found { content, .. }) => drop(seen.insert(*key, *content)),
            (Ask::Put { key, .. }, Answer::Refused { current: Some(current) }) => {
                seen.insert(*key, *current);
            }
            _ => {}
        }
        run.history.lock().end(id, answer);
    }
}

impl Run {
    /// How long a client waits in the middle of what it does.
    fn draw_hold(&self, draws: &mut ChaCha8Rng) -> Duration {
        let longest_ms = self.cluster.knobs().readable_ms() / 2;
        let hold = Duration::from_millis(draws.random_range(0..longest_ms));
        if draws.random_range(0..100) < self.plan.slow { hold } else { Duration::ZERO }
    }
}

/// While bodies are long, makes some of these: the ask, and how long its writer stands in the midst of the body.
fn lengthen(run: &Run, ask: Ask, draws: &mut ChaCha8Rng) -> (Ask, Duration) {
    if !run.has_long_bodies() || draws.random_bool(0.4) {
        return (ask, Duration::ZERO);
    }
    let (key, condition) = match ask {
        Ask::Put { key, condition, by_upload: false, .. } => (key, condition),
        Ask::Get { key } => (key, Condition::None),
        ask => return (ask, Duration::ZERO),
    };
    // What nobody writes over tells in the end whether it is where it must be.
    let cold = if draws.random_bool(0.6) { run.take_cold(COLD_MAX) } else { None };
    let (key, condition) = cold.map_or((key, condition), |key| (key, Condition::None));
    let lengths = if draws.random_ratio(1, 4) { LONGEST_BYTES } else { LONG_BYTES };
    let bytes = draws.random_range(lengths);
    let midst = Duration::from_millis(draws.random_range(LONG_HOLD_MS));
    (Ask::Put { key, condition, bytes, by_upload: false }, midst)
}

fn draw_ask(run: &Run, draws: &mut ChaCha8Rng, seen: &BTreeMap<KeyIndex, OpId>) -> Ask {
    let plan = &run.plan;
    let key = draws.random_range(0..plan.keys);
    if run.is_asking() && draws.random_ratio(3, 4) {
        return if draws.random() { Ask::List } else { Ask::Get { key } };
    }
    let mut roll = draws.random_range(0..100_u32);
    let mut hits = |share: u32| match roll.checked_sub(share) {
        Some(rest) => {
            roll = rest;
            false
        }
        None => {
            roll = u32::MAX;
            true
        }
    };
    if hits(plan.deletes) {
        return Ask::Delete { key };
    }
    if hits(plan.lists) {
        return Ask::List;
    }
    if hits(plan.copies) {
        return Ask::Copy { from: draws.random_range(0..plan.keys), to: key };
    }
    let by_upload = hits(plan.uploads);
    if hits(plan.cold)
        && let Some(key) = run.take_cold(COLD_MAX)
    {
        let bytes = draws.random_range(1..=plan.bytes_max);
        return Ask::Put { key, condition: Condition::None, bytes, by_upload };
    }
    let is_large = draws.random_range(0..1000) < plan.large;
    if !by_upload && !is_large && draws.random_bool(0.45) {
        let is_cold = run.cold() > 0 && draws.random_ratio(1, 8);
        let cold = |draws: &mut ChaCha8Rng| plan.keys + draws.random_range(0..run.cold());
        return Ask::Get { key: if is_cold { cold(draws) } else { key } };
    }
    let condition = match draws.random_range(0..100) {
        roll if roll >= plan.conditional => Condition::None,
        roll if roll % 2 == 0 => Condition::IfAbsent,
        _ => seen.get(&key).copied().map_or(Condition::IfAbsent, Condition::IfMatch),
    };
    let bytes = if is_large {
        draws.random_range(1 << 20..6 << 20)
    } else if draws.random_ratio(1, 20) {
        0
    } else {
        draws.random_range(1..=plan.bytes_max)
    };
    Ask::Put { key, condition, bytes, by_upload }
}
