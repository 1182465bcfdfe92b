//! Writes to three datanodes of which some hang, refuse, die in mid-block or answer late.
//!
//! The law that every case keeps: a committed block is whole on every replica that SCM counts VALID. And with one datanode
//! gone nothing fails or takes three seconds.

mod cluster;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, Mode, on_paused_clock, pattern};
use futures_util::future::join_all;
use proptest::prelude::*;
use wire::block::Replication::{One, Three};
use wire::status::Status;

const SMALL: usize = 10_000;
const BUFFERED: usize = 1 << 20;
const LONG: usize = 5 << 20;
const SECONDS: fn(u64) -> Duration = Duration::from_secs;

/// Sizes, and whether the length is told beforehand.
fn bodies() -> [(usize, bool); 5] {
    [(SMALL, true), (SMALL, false), (BUFFERED, true), (LONG, true), (LONG, false)]
}

#[tokio::test(start_paused = true)]
async fn one_of_three_gone_fails_nothing() {
    one_of_three_gone(false).await;
    one_of_three_gone(true).await;
}

/// `opens_pairs`: SCM gives the gateway containers on the two others at once, so that nothing need be degraded.
async fn one_of_three_gone(opens_pairs: bool) {
    for mode in [
        Mode::Hangs,
        Mode::HangsAfter(1),
        Mode::HangsAfter(3),
        Mode::Dead,
        Mode::DiesAfter(0),
        Mode::DiesAfter(2),
        Mode::DiesAfter(9),
        Mode::AcksAfter(SECONDS(60)),
        Mode::Lies,
        Mode::Refuses(Status::Internal),
    ] {
        for (length, is_known) in bodies() {
            let cluster = Cluster::of(3).await;
            *cluster.om.opens_pairs.lock() = opens_pairs;
            cluster.nodes[1].set(mode);
            let data = pattern(length);
            let (outcome, took) = cluster.put(Three, &data, is_known).await;
            outcome.unwrap_or_else(|failure| panic!("{mode:?} {length}: {failure}"));
            assert!(took < SECONDS(3), "{mode:?} {length}: {took:?}");
            // From now on the node is gone round: no write waits for it again.
            let (outcome, took) = cluster.put(Three, &data, is_known).await;
            outcome.unwrap_or_else(|failure| panic!("{mode:?} {length}: {failure}"));
            assert!(took < Duration::from_millis(100), "{mode:?} {length} again: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_disk_costs_no_redundancy() {
    for (length, is_known) in bodies() {
        let cluster = Cluster::of(3).await;
        cluster.nodes[1].set(Mode::AcksAfter(Duration::from_millis(1700)));
        let data = pattern(length);
        let entries = cluster.put(Three, &data, is_known).await.0.unwrap();
        cluster.check(&entries);
        assert_eq!(cluster.degrades(), 0, "{length}: it lives, and answers in time");
        assert!(entries.iter().all(|entry| cluster.nodes[1].has(entry)));
    }
}

#[tokio::test(start_paused = true)]
async fn node_that_stops_between_blocks_and_in_mid_block() {
    for stop_after in [100, 300, 2500, 3500, 4900].map(|kib| kib << 10) {
        let cluster = Cluster::of(3).await;
        let data = pattern(LONG);
        let mut sink = cluster.writer.begin(Three, Some(LONG as u64));
        let mut rest = data.clone();
        sink.push(rest.split_to(stop_after)).await.unwrap();
        cluster.nodes[2].set(Mode::Hangs);
        sink.push(rest).await.unwrap();
        let written = sink.finish().await.unwrap();
        cluster.check(written.entries());
        let bytes: u64 = written.entries().iter().map(|entry| entry.length).sum();
        assert_eq!(bytes, LONG as u64);
        assert!(cluster.degrades() >= 1);
    }
}

#[tokio::test(start_paused = true)]
async fn long_body_in_a_pipeline_of_two_outlives_one_of_them() {
    for mode in [Mode::Hangs, Mode::Dead] {
        for is_known in [true, false] {
            for stop_after in [300, 2500, 4900].map(|kib| kib << 10) {
                let cluster = Cluster::of(3).await;
                *cluster.om.opens_pairs.lock() = true;
                cluster.om.state.lock().out.insert(cluster.nodes[0].id);
                let data = pattern(2 * LONG);
                let mut sink = cluster.writer.begin(Three, is_known.then_some(data.len() as u64));
                let mut rest = data.clone();
                sink.push(rest.split_to(stop_after)).await.unwrap();
                // The one that was away is back, and one of the pair goes.
                cluster.om.state.lock().out = [cluster.nodes[2].id].into();
                cluster.nodes[2].set(mode);
                let pushed = sink.push(rest).await;
                pushed.unwrap_or_else(|failure| panic!("{mode:?} {is_known} {stop_after}: {failure}"));
                let written = sink.finish().await.unwrap();
                cluster.check(written.entries());
                let bytes: u64 = written.entries().iter().map(|entry| entry.length).sum();
                assert_eq!(bytes, data.len() as u64);
                assert_eq!(cluster.degrades(), 0, "a pair has nobody to leave out");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn long_body_begun_again_on_two_outlives_one_of_them() {
    for mode in [Mode::Hangs, Mode::Dead] {
        for is_known in [true, false] {
            for dies_after in [0, 1, 2] {
                let cluster = Cluster::of(3).await;
                *cluster.om.opens_pairs.lock() = true;
                cluster.nodes[2].set(Mode::DiesAfter(dies_after));
                let data = pattern(LONG);
                let mut sink = cluster.writer.begin(Three, is_known.then_some(data.len() as u64));
                let mut rest = data.clone();
                // In mid-block, if the first block is as long as it was begun.
                sink.push(rest.split_to(LONG / 2)).await.unwrap();
                // It is back, and one of the others goes.
                cluster.nodes[2].set(Mode::Well);
                cluster.om.state.lock().out = [cluster.nodes[1].id].into();
                cluster.nodes[1].set(mode);
                let pushed = sink.push(rest).await;
                pushed.unwrap_or_else(|failure| panic!("{mode:?} {is_known} {dies_after}: {failure}"));
                let written = sink.finish().await;
                let written =
                    written.unwrap_or_else(|failure| panic!("{mode:?} {is_known} {dies_after}: {failure}"));
                cluster.check(written.entries());
                let bytes: u64 = written.entries().iter().map(|entry| entry.length).sum();
                assert_eq!(bytes, data.len() as u64);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_is_here_goes_round_the_failed_node() {
    for (length, is_known) in [(SMALL, true), (BUFFERED, true), (BUFFERED, false)] {
        for mode in [Mode::Hangs, Mode::Dead, Mode::DiesAfter(1)] {
            let cluster = Cluster::of(4).await;
            // The first container's members.
            let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
            let container = first.unwrap()[0].block.container;
            let member = cluster.om.state.lock().containers[&container].members[0];
            let node = cluster.nodes.iter().find(|node| node.id == member).unwrap();
            node.set(mode);
            let (outcome, took) = cluster.put(Three, &pattern(length), is_known).await;
            let entries = outcome.unwrap();
            assert!(took < SECONDS(3));
            assert_eq!(cluster.degrades(), 0, "three whole replicas elsewhere are better than two here");
            let holders = cluster.nodes.iter().filter(|node| node.has(&entries[0])).count();
            assert_eq!(holders, 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_is_no_failure() {
    for status in [Status::Refused, Status::Denied, Status::DiskFull, Status::NotReady] {
        for (length, is_known) in bodies() {
            let cluster = Cluster::of(3).await;
            let data = pattern(length);
            // One container is closing on one node.
            let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
            let closing = first.unwrap()[0].block.container;
            cluster.nodes[0].closed.lock().insert(closing);
            let (outcome, took) = cluster.put(Three, &data, is_known).await;
            assert!(outcome.unwrap().iter().all(|entry| entry.block.container != closing));
            assert!(took < SECONDS(1));
            // All are, on one node: nobody is left out for that.
            cluster.nodes[0].set(Mode::Refuses(status));
            let (outcome, _) = cluster.put(Three, &data, is_known).await;
            let failure = outcome.unwrap_err();
            assert!(matches!(failure.status, Status::Retry | Status::DiskFull), "{failure}");
            assert_eq!(cluster.degrades(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn slowest_body_that_the_gateway_bears_is_stored() {
    for is_known in [true, false] {
        let cluster = Cluster::of(3).await;
        cluster.nodes.iter().for_each(|node| node.set(Mode::Impatient));
        let data = pattern(BUFFERED + 5 * 65_536 + 7);
        // Of unknown length it must have outgrown the buffer before its block begins.
        let head = if is_known { 0 } else { LONG };
        let declared = is_known.then_some(data.len() as u64);
        let mut sink = cluster.writer.begin(Three, declared);
        sink.push(pattern(head)).await.unwrap();
        let mut rest = data;
        while !rest.is_empty() {
            sink.push(rest.split_to(rest.len().min(30 << 10))).await.unwrap();
            tokio::time::sleep(SECONDS(30)).await;
        }
        let written = sink.finish().await.unwrap();
        cluster.check(written.entries());
        assert_eq!(cluster.degrades(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_stands_still_blames_nobody() {
    for length in [BUFFERED, LONG] {
        let cluster = Cluster::of(4).await;
        cluster.nodes.iter().for_each(|node| node.set(Mode::Impatient));
        let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
        let container = first.unwrap()[0].block.container;
        let mut sink = cluster.writer.begin(Three, Some(length as u64));
        let mut rest = pattern(length);
        sink.push(rest.split_to(length / 2)).await.unwrap();
        tokio::time::sleep(SECONDS(300)).await;
        let outcome = match sink.push(rest).await {
            Ok(()) => sink.finish().await.map(|written| cluster.check(written.entries())),
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(()) => assert_eq!(length, BUFFERED, "its bytes were here still"),
            Err(failure) => assert_eq!((length, failure.status), (LONG, Status::TooSlow), "{failure}"),
        }
        let entries = cluster.put(Three, &pattern(SMALL), true).await.0.unwrap();
        assert_eq!(entries[0].block.container, container, "its members are as good as before");
        assert_eq!(cluster.degrades(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn block_that_its_container_did_not_wait_for_blames_nobody() {
    for (length, is_known) in bodies() {
        let cluster = Cluster::of(3).await;
        cluster.nodes[0].set(Mode::RefusesAfter(1));
        let mut sink = cluster.writer.begin(Three, is_known.then_some(length as u64));
        let mut rest = pattern(length);
        let begun = sink.push(rest.split_to(length / 2)).await;
        tokio::time::sleep(SECONDS(60)).await;
        cluster.nodes[0].set(Mode::Well);
        let outcome = match begun.and(sink.push(rest).await) {
            Ok(()) => sink.finish().await.map(drop),
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(()) => assert!(length <= BUFFERED || !is_known, "its bytes were here still"),
            Err(failure) => assert_eq!((length, failure.status), (LONG, Status::Retry), "{failure}"),
        }
        assert_eq!(cluster.degrades(), 0);
        // Neither that node nor the two whose writes were stopped with it are gone round.
        let entries = cluster.put(Three, &pattern(SMALL), true).await.0.unwrap();
        assert!(cluster.nodes.iter().all(|node| node.has(&entries[0])), "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn datanode_that_has_just_started_is_waited_for_and_never_left_out() {
    for (length, is_known) in bodies() {
        let cluster = Cluster::of(3).await;
        let data = pattern(length);
        let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
        let container = first.unwrap()[0].block.container;
        let node = cluster.nodes[1].clone();
        node.set(Mode::Refuses(Status::NotReady));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(600)).await;
            node.set(Mode::Well);
        });
        let (outcome, took) = cluster.put(Three, &data, is_known).await;
        let entries = outcome.unwrap_or_else(|failure| panic!("{length}: {failure}"));
        assert!(took < SECONDS(3), "{length}: {took:?}");
        assert!(entries.iter().all(|entry| entry.block.container == container), "it need not be left");
        assert_eq!(cluster.degrades(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn pipeline_of_two_that_loses_one_is_left_even_if_another_takes_a_while() {
    for mode in [Mode::Dead, Mode::Hangs, Mode::DiesAfter(0)] {
        for (length, is_known) in [(SMALL, true), (SMALL, false), (BUFFERED, true), (BUFFERED, false)] {
            let cluster = Cluster::of(4).await;
            // Two nodes are away when the container is opened: it has two members.
            let away = [cluster.nodes[2].id, cluster.nodes[3].id];
            cluster.om.state.lock().out.extend(away);
            let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
            let container = first.unwrap()[0].block.container;
            assert_eq!(cluster.om.state.lock().containers[&container].members.len(), 2);
            // One of them fails; OM hears of the others only a second later.
            cluster.nodes[0].set(mode);
            let om = cluster.om.clone();
            tokio::spawn(async move {
                tokio::time::sleep(SECONDS(1)).await;
                om.state.lock().out.clear();
            });
            let (outcome, took) = cluster.put(Three, &pattern(length), is_known).await;
            outcome.unwrap_or_else(|failure| panic!("{mode:?} {length}: {failure}"));
            assert!(took < SECONDS(3), "{mode:?} {length}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn full_datanode_is_gone_round() {
    for (length, is_known) in bodies() {
        let cluster = Cluster::of(4).await;
        let data = pattern(length);
        // OM knows nothing of it: whatever it lends without being told has the full node sooner or later.
        cluster.nodes[0].set(Mode::Refuses(Status::DiskFull));
        for _ in 0..4 {
            let (outcome, took) = cluster.put(Three, &data, is_known).await;
            outcome.unwrap_or_else(|failure| panic!("{length}: {failure}"));
            assert!(took < SECONDS(1), "{length}: {took:?}");
        }
        assert_eq!(cluster.degrades(), 0, "a full datanode keeps what it has");
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_beside_a_failure_still_degrades_nothing() {
    let cluster = Cluster::of(3).await;
    let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
    let closing = first.unwrap()[0].block.container;
    cluster.nodes[0].closed.lock().insert(closing);
    cluster.nodes[1].set(Mode::Dead);
    let (outcome, took) = cluster.put(Three, &pattern(SMALL), true).await;
    let entries = outcome.unwrap();
    assert!(took < SECONDS(3));
    assert_ne!(entries[0].block.container, closing);
    let state = cluster.om.state.lock();
    assert!(state.degrades.iter().all(|(container, ..)| *container != closing));
}

#[tokio::test(start_paused = true)]
async fn slow_but_alive_is_waited_for() {
    for mode in [
        Mode::AcksAfter(Duration::from_millis(900)),
        Mode::Slow(Duration::from_millis(900)),
        Mode::Slow(Duration::from_millis(50)),
    ] {
        for length in [BUFFERED, LONG] {
            let cluster = Cluster::of(3).await;
            cluster.nodes[0].set(mode);
            let (outcome, _) = cluster.put(Three, &pattern(length), true).await;
            let entries = outcome.unwrap();
            assert_eq!(cluster.degrades(), 0);
            for entry in &entries {
                assert!(cluster.nodes.iter().all(|node| node.has(entry)));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_replica_holds_the_body_back() {
    let cluster = Cluster::of(3).await;
    cluster.nodes[0].set(Mode::Slow(Duration::from_millis(500)));
    let mut sink = cluster.writer.begin(Three, Some(LONG as u64));
    let started = tokio::time::Instant::now();
    let mut rest = pattern(LONG);
    // Twenty runs at half a second each, all but the window's worth of which must have been waited for.
    sink.push(rest.split_to(20 * 256 * 1024)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(500 * 16), "{:?}", started.elapsed());
    assert_eq!(cluster.degrades(), 0);
}

#[tokio::test(start_paused = true)]
async fn refused_degrade_means_elsewhere_or_try_again() {
    for (length, may_pass) in [(SMALL, true), (BUFFERED, true), (LONG, false)] {
        let cluster = Cluster::of(3).await;
        cluster.om.state.lock().refuses_degrade = true;
        cluster.nodes[0].set(Mode::Dead);
        let data = pattern(length);
        let (outcome, _) = cluster.put(Three, &data, true).await;
        match outcome {
            // SCM knows meanwhile that the node is out, and opened a container on the other two.
            Ok(_) => assert!(may_pass),
            Err(failure) => {
                assert!(!may_pass, "{failure}");
                assert_eq!(failure.status, Status::Retry);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_of_three_gone_is_an_error_and_commits_nothing() {
    for mode in [Mode::Hangs, Mode::Dead] {
        for (length, is_known) in bodies() {
            let cluster = Cluster::of(3).await;
            cluster.nodes[0].set(mode);
            cluster.nodes[1].set(mode);
            let (outcome, took) = cluster.put(Three, &pattern(length), is_known).await;
            assert_eq!(outcome.unwrap_err().status, Status::Retry);
            assert!(took < SECONDS(90), "{took:?}");
            assert_eq!(cluster.degrades(), 0, "never on one replica");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disk_that_stalls_is_waited_for_where_nothing_else_can_be_done() {
    let cluster = Cluster::of(1).await;
    cluster.nodes[0].set(Mode::AcksAfter(SECONDS(5)));
    for (length, is_known) in bodies() {
        let (outcome, _) = cluster.put(One, &pattern(length), is_known).await;
        outcome.unwrap();
    }
    let cluster = Cluster::of(3).await;
    cluster.nodes.iter().for_each(|node| node.set(Mode::AcksAfter(SECONDS(5))));
    let (outcome, _) = cluster.put(Three, &pattern(SMALL), true).await;
    assert_eq!(outcome.unwrap().len(), 1);
    assert_eq!(cluster.degrades(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_replica_goes_to_another_node() {
    for mode in [Mode::Hangs, Mode::Dead] {
        for length in [SMALL, BUFFERED, LONG] {
            let cluster = Cluster::of(2).await;
            let (first, _) = cluster.put(One, &pattern(SMALL), true).await;
            let node = cluster.nodes.iter().find(|node| node.has(&first.as_ref().unwrap()[0])).unwrap();
            node.set(mode);
            let (outcome, took) = cluster.put(One, &pattern(length), true).await;
            outcome.unwrap_or_else(|failure| panic!("{mode:?} {length}: {failure}"));
            assert!(took < SECONDS(3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn degrade_is_asked_once_for_all_writers() {
    let cluster = Cluster::of(3).await;
    let (first, _) = cluster.put(Three, &pattern(SMALL), true).await;
    first.unwrap();
    cluster.nodes[2].set(Mode::Hangs);
    let data = pattern(SMALL);
    let outcomes = join_all((0..40).map(|_| cluster.put(Three, &data, true))).await;
    for (outcome, took) in outcomes {
        outcome.unwrap();
        assert!(took < SECONDS(3), "{took:?}");
    }
    let state = cluster.om.state.lock();
    let containers: std::collections::BTreeSet<_> = state.degrades.iter().map(|(id, ..)| id).collect();
    assert_eq!(containers.len(), state.degrades.len(), "{:?}", state.degrades);
}

#[tokio::test(start_paused = true)]
async fn degraded_container_takes_no_more() {
    let cluster = Cluster::of(3).await;
    cluster.nodes[2].set(Mode::Dead);
    let (outcome, _) = cluster.put(Three, &pattern(SMALL), true).await;
    let degraded = outcome.unwrap()[0].block;
    cluster.nodes[2].set(Mode::Well);
    for _ in 0..5 {
        let (outcome, _) = cluster.put(Three, &pattern(SMALL), true).await;
        assert_ne!(outcome.unwrap()[0].block.container, degraded.container);
    }
    tokio::time::sleep(SECONDS(1)).await;
    let state = cluster.om.state.lock();
    let returned = state.released.iter().filter(|block| block.container == degraded.container).count();
    assert!(!state.released.contains(&degraded));
    let loan = usize::from(cluster::LOAN_IDS);
    assert_eq!(returned % loan, loan - 1, "all ids of the loans there but the one committed");
}

#[tokio::test(start_paused = true)]
async fn process_that_stood_still_blames_nobody() {
    let cluster = Cluster::of(3).await;
    cluster.nodes.iter().for_each(|node| node.set(Mode::AcksAfter(Duration::from_millis(1050))));
    let data = pattern(SMALL);
    let put = cluster.put(Three, &data, true);
    tokio::pin!(put);
    assert!(futures_util::poll!(&mut put).is_pending());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(futures_util::poll!(&mut put).is_pending());
    // SIGSTOP of ourselves.
    tokio::time::advance(SECONDS(20)).await;
    let (outcome, _) = put.await;
    outcome.unwrap();
    assert_eq!(cluster.degrades(), 0);
}

#[tokio::test(start_paused = true)]
async fn blocks_that_were_not_committed_go_back() {
    let cluster = Cluster::of(3).await;
    cluster.nodes[0].set(Mode::Refuses(Status::Refused));
    let (outcome, _) = cluster.put(Three, &pattern(SMALL), true).await;
    outcome.unwrap_err();
    tokio::time::sleep(SECONDS(1)).await;
    let state = cluster.om.state.lock();
    for container in state.containers.keys() {
        let first = wire::ids::BlockId { container: *container, local: wire::ids::LocalId(0) };
        assert!(state.released.contains(&first), "{first}");
    }
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Well),
        Just(Mode::Hangs),
        (0..6usize).prop_map(Mode::HangsAfter),
        Just(Mode::Dead),
        (0..6usize).prop_map(Mode::DiesAfter),
        (0..2500u64).prop_map(|ms| Mode::AcksAfter(Duration::from_millis(ms))),
        (0..1500u64).prop_map(|ms| Mode::Slow(Duration::from_millis(ms))),
        Just(Mode::Refuses(Status::Refused)),
        Just(Mode::Refuses(Status::Internal)),
        Just(Mode::Lies),
    ]
}

#[derive(Debug, Clone)]
struct Turn {
    at_ms: u64,
    node: usize,
    mode: Mode,
}

#[derive(Debug, Clone)]
struct Put {
    at_ms: u64,
    length: usize,
    is_known: bool,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (0..8000u64, 0..5usize, mode()).prop_map(|(at_ms, node, mode)| Turn { at_ms, node, mode });
    proptest::collection::vec(turn, 0..8)
}

fn puts() -> impl Strategy<Value = Vec<Put>> {
    let length = prop_oneof![Just(100usize), Just(70_000), Just(700_000), Just(4_400_000)];
    let put = (0..8000u64, length, any::<bool>()).prop_map(|(at_ms, length, is_known)| Put {
        at_ms,
        length,
        is_known,
    });
    proptest::collection::vec(put, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever the nodes do: what was committed is whole on every replica that counts, also at the end.
    #[test]
    fn committed_blocks_are_on_every_valid_replica(count in 3..6usize, turns in turns(), puts in puts()) {
        on_paused_clock(async {
            let cluster = Cluster::of(count).await;
            let faults = async {
                let mut turns = turns.clone();
                turns.sort_by_key(|turn| turn.at_ms);
                let started = tokio::time::Instant::now();
                for turn in turns {
                    tokio::time::sleep_until(started + Duration::from_millis(turn.at_ms)).await;
                    cluster.nodes[turn.node % count].set(turn.mode);
                }
            };
            let writes = puts.iter().map(|put| async {
                tokio::time::sleep(Duration::from_millis(put.at_ms)).await;
                let data: Bytes = pattern(put.length);
                cluster.put(Three, &data, put.is_known).await.0
            });
            let ((), outcomes) = tokio::join!(faults, join_all(writes));
            for outcome in outcomes {
                match outcome {
                    Ok(entries) => cluster.check(&entries),
                    Err(failure) => assert!(
                        matches!(failure.status, Status::Retry | Status::DiskFull),
                        "a passing state is told as one: {failure:?}"
                    ),
                }
            }
        });
    }

    /// One bad node of three, whatever it does short of refusing: everything succeeds within three seconds. One that is
    /// merely slow is waited for, up to two seconds a block.
    #[test]
    fn one_bad_node_of_three_fails_nothing(
        node in 0..3usize,
        at_ms in 0..3000u64,
        bad in mode().prop_filter("a failure", |mode| !matches!(mode, Mode::Refuses(Status::Refused) | Mode::Slow(_) | Mode::AcksAfter(_))),
        puts in puts(),
    ) {
        on_paused_clock(async {
            let cluster = Cluster::of(3).await;
            let fault = async {
                tokio::time::sleep(Duration::from_millis(at_ms)).await;
                cluster.nodes[node].set(bad);
            };
            let writes = puts.iter().map(|put| async {
                tokio::time::sleep(Duration::from_millis(put.at_ms)).await;
                let data: Bytes = pattern(put.length);
                cluster.put(Three, &data, put.is_known).await
            });
            let ((), outcomes) = tokio::join!(fault, join_all(writes));
            for (outcome, took) in outcomes {
                let entries = outcome.unwrap_or_else(|failure| panic!("{bad:?}: {failure}"));
                assert!(took < SECONDS(3), "{bad:?}: {took:?}");
                cluster.check(&entries);
            }
        });
    }
}
