//! Faults made for one question of consensus each: moments that chance alone seldom brings together.
//!
//! ```text
//!   lose_words       the leader acknowledges, and is cut off before its peers hear that it was agreed on
//!                      -> does who is elected answer before it knows? does a follower answer at all?
//!   die_at_snapshot  a replica falls behind what logs hold, votes, is sent a snapshot, and ends as it takes it over
//!                      -> does it still know its vote?
//! ```
//!
//! Not here: when they come (`faults`).

use std::rc::Rc;
use std::time::Duration;

use platform::node::{self, NodeIndex};
use platform::task;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use wire::block::Replication;

use super::{cut_both, heal_after};
use crate::cluster::End;
use crate::gateway::Holds;
use crate::run::Run;
use checker::{Ask, Condition};

/// The fewest meta nodes of which one may be missing.
const METAS_MIN: usize = 3;
/// Clients that write nothing but log entries.
const FLOODERS: usize = 6;
/// Entries that one of them writes at most.
const FLOOD_MAX: usize = 400;
/// What logs have not forgotten by then, they keep.
const FORGET_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether they have.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The leader is cut off while what it told its peers last is on its way. They hold what it acknowledged and do not know
/// that it was agreed on, so that whoever answers from what it has applied, answers what is no longer so. Clients look
/// more than they write.
pub(super) async fn lose_words(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    let Some((leader, peers)) = leader_and_peers(run).await else { return };
    set_apart(run, 20..150, draws);
    run.set_busy(true);
    tokio::time::sleep(Duration::from_millis(draws.random_range(500..2500))).await;
    run.set_asking(true);
    for peer in &peers {
        cluster.network.sever(leader, *peer);
        cluster.network.sever(*peer, leader);
    }
    let mut ended = None;
    match draws.random_range(0..3) {
        0 => {
            cluster.end(leader, End::Killed, draws.random());
            ended = Some(leader);
        }
        1 => cut_both(run, &cluster.gateway_nodes(), &[leader]),
        // Clients go on asking who was deposed and does not know.
        _ => {}
    }
    tokio::time::sleep(Duration::from_millis(draws.random_range(2500..6000))).await;
    heal_after(run, Duration::ZERO).await;
    if let Some(ended) = ended {
        cluster.start(run, ended).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    run.set_asking(false);
    run.set_busy(false);
}

/// A follower hears nothing until the others' logs have forgotten what it lacks. Then it is there again in the moment in
/// which the leader is lost, so that its vote counts; the one it voted for sends it a snapshot, in which it ends.
pub(super) async fn die_at_snapshot(run: &Rc<Run>, draws: &mut ChaCha8Rng) {
    let cluster = &run.cluster;
    let Some((leader, peers)) = leader_and_peers(run).await else { return };
    let Some(behind) = peers.choose(draws).copied() else { return };
    let others: Vec<NodeIndex> = cluster.metas().into_iter().filter(|other| *other != behind).collect();
    cut_both(run, &[behind], &others);
    let has_forgotten = flood_until_forgotten(run, behind, &others).await;
    cluster.network.heal();
    if !has_forgotten {
        run.trace.line(format!("the logs still hold what {behind} lacks"));
        return;
    }
    set_apart(run, 40..100, draws);
    for other in cluster.nodes() {
        cluster.network.sever(leader, other);
        cluster.network.sever(other, leader);
    }
    let steps =
        ["consensus_snapshot_log_reset", "consensus_snapshot_log_reset", "consensus_snapshot_renamed"];
    run.world.die_at(steps.choose(draws).map(|step| (*step, 0)));
    tokio::time::sleep(Duration::from_millis(draws.random_range(4000..9000))).await;
    run.world.die_at(None);
    heal_after(run, Duration::ZERO).await;
}

async fn leader_and_peers(run: &Run) -> Option<(NodeIndex, Vec<NodeIndex>)> {
    let metas = run.cluster.metas();
    if metas.len() < METAS_MIN {
        return None;
    }
    let leader = run.cluster.leader("om").await?;
    run.trace.line(format!("the leader of om is {leader}"));
    Some((leader, metas.into_iter().filter(|peer| *peer != leader).collect()))
}

/// Puts the meta nodes far from one another, though near to everybody else.
fn set_apart(run: &Run, millis: std::ops::Range<u64>, draws: &mut ChaCha8Rng) {
    let metas = run.cluster.metas();
    let far = Duration::from_millis(draws.random_range(millis));
    for (from, to) in metas.iter().flat_map(|from| metas.iter().map(move |to| (*from, *to))) {
        if from != to {
            run.cluster.network.set_far(from, to, far.mul_f64(draws.random_range(0.5..1.0)));
        }
    }
}

/// Writes until nobody's log holds what `behind` lacks; whether it came to that.
async fn flood_until_forgotten(run: &Rc<Run>, behind: NodeIndex, others: &[NodeIndex]) -> bool {
    let flooders: Vec<_> =
        (0..FLOODERS).map(|number| tokio::task::spawn_local(flood(run.clone(), number))).collect();
    let until_ms = run.world.elapsed_ms() + FORGET_LIMIT.as_millis() as u64;
    let mut has_forgotten = false;
    while !has_forgotten && run.world.elapsed_ms() < until_ms && !run.is_load_over() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(lagging) = run.cluster.group_of("om", behind).await else { continue };
        has_forgotten = true;
        for other in others {
            let info = run.cluster.group_of("om", *other).await;
            has_forgotten &= info.is_some_and(|info| info.log_first_index > lagging.log_last_index + 1);
        }
    }
    for flooder in flooders {
        flooder.abort();
    }
    has_forgotten
}

/// Empty objects: nothing but entries of the log.
async fn flood(run: Rc<Run>, number: usize) {
    let key = run.plan.flood_key();
    for _ in 0..FLOOD_MAX {
        let up = run.cluster.gateways();
        let Some((index, gateway)) = up.get(number % up.len().max(1)).cloned() else { return };
        let id = run.history.lock().begin(Ask::Put {
            key,
            condition: Condition::None,
            bytes: 0,
            by_upload: false,
        });
        let put = node::enter(Some(index), || {
            task::spawn(async move {
                gateway.put(id, key, Condition::None, 0, Replication::Three, Holds::default()).await
            })
        });
        // Whoever is gone by now, or is stopped here, leaves it unanswered.
        let Ok(answer) = put.await else { return };
        run.history.lock().end(id, answer);
    }
}
