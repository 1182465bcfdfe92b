//! The clients of a run: each asks for one thing after another, of a random gateway, on few hot keys.
//!
//! A client is outside every node. What it asked of a gateway that dies meanwhile has no answer.
//!
//! Not here: what an operation is made of (`gateway`).

use std::rc::Rc;
use std::time::Duration;

use platform::node;
use platform::task;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use wire::block::Replication;

use crate::run::Run;
use crate::seed;
use checker::{Answer, Ask, Condition, OpId};

/// A client gives up waiting after this: longer than any deadline inside.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the clients of a run do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    pub(crate) keys: usize,
    /// Pause between two operations of a client, at most.
    pub(crate) pause: Duration,
    pub(crate) bytes_max: u64,
    pub(crate) replication: Replication,
    /// In a hundred: conditional writes, deletions, listings, uploads, copies, large bodies.
    pub(crate) conditional: u32,
    pub(crate) deletes: u32,
    pub(crate) lists: u32,
    pub(crate) uploads: u32,
    pub(crate) copies: u32,
    pub(crate) large: u32,
}

impl Plan {
    /// Draws a plan: every seed stresses something else.
    pub(crate) fn draw(draws: &mut ChaCha8Rng, replication: Replication) -> Self {
        Self {
            clients: draws.random_range(2..=6),
            keys: draws.random_range(1..=20),
            pause: Duration::from_millis(draws.random_range(200..1500)),
            bytes_max: if draws.random_bool(0.3) { 200_000 } else { 8000 },
            replication,
            conditional: draws.random_range(0..40),
            deletes: draws.random_range(2..25),
            lists: draws.random_range(0..10),
            uploads: draws.random_range(0..10),
            copies: draws.random_range(0..10),
            large: if draws.random_bool(0.3) { 2 } else { 0 },
        }
    }
}

/// Runs one client until the run ends its load.
pub(crate) async fn client(run: Rc<Run>, number: usize) {
    let mut draws = seed::stream(run.seed, &format!("client {number}"));
    // What this client last saw of some key: conditional writes name it.
    let mut seen: Vec<Option<OpId>> = vec![None; run.plan.keys];
    while !run.is_load_over() {
        let pause = run.plan.pause.mul_f64(draws.random());
        tokio::time::sleep(pause).await;
        let ask = draw_ask(&run, &mut draws, &seen);
        let Some((index, gateway)) = run.cluster.gateway(&mut draws) else { continue };
        let id = run.history.lock().begin(ask.clone());
        run.trace.mark(&format!("op {id} {ask:?} at {index}"));
        let replication = run.plan.replication;
        let is_aborted = draws.random_ratio(1, 5);
        let work = ask.clone();
        let handle = node::enter(Some(index), || {
            task::spawn(async move {
                match work {
                    Ask::Put { key, condition, bytes, by_upload: false } => {
                        Ok(gateway.put(id, key, condition, bytes, replication).await)
                    }
                    Ask::Put { key, condition, bytes, by_upload: true } => {
                        Ok(gateway.upload(id, key, condition, bytes, replication, is_aborted).await)
                    }
                    Ask::Delete { key } => Ok(gateway.delete(key).await),
                    Ask::Copy { from, to } => Ok(gateway.copy(from, to).await),
                    Ask::Get { key } => gateway.get(key).await,
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
            | (Ask::Get { key }, Answer::Found { content, .. }) => seen[*key] = Some(*content),
            (Ask::Put { key, .. }, Answer::Refused { current }) => seen[*key] = *current,
            _ => {}
        }
        run.history.lock().end(id, answer);
    }
}

fn draw_ask(run: &Run, draws: &mut ChaCha8Rng, seen: &[Option<OpId>]) -> Ask {
    let plan = &run.plan;
    let key = draws.random_range(0..plan.keys);
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
    let is_large = hits(plan.large);
    if !by_upload && !is_large && draws.random_bool(0.45) {
        return Ask::Get { key };
    }
    let condition = match draws.random_range(0..100) {
        roll if roll >= plan.conditional => Condition::None,
        roll if roll % 2 == 0 => Condition::IfAbsent,
        _ => seen[key].map_or(Condition::IfAbsent, Condition::IfMatch),
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
