//! Reads of blocks whose replicas hang, die in mid-stream, have moved or are gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;

use std::time::Duration;

use client::key_reader::KeyReader;
use cluster::{Cluster, Mode, bucket, on_paused_clock, page_of, pattern};
use futures_util::StreamExt;
use proptest::prelude::*;
use wire::block::{BlockEntry, Replication};
use wire::ids::*;
use wire::limits::CHUNK_BYTES;
use wire::status::{Failure, Status};

const LENGTH: usize = (2 << 20) + 1234;

/// Three nodes with one object, and a fourth without.
struct Rig {
    cluster: Cluster,
    entries: Vec<BlockEntry>,
    holders: Vec<usize>,
    reader: std::sync::Arc<KeyReader>,
}

async fn rig() -> Rig {
    let cluster = Cluster::of(4).await;
    let (outcome, _) = cluster.put(Replication::Three, &pattern(LENGTH), true).await;
    let entries = outcome.expect("all nodes are well");
    let holders = (0..4).filter(|at| cluster.nodes[*at].has(&entries[0])).collect();
    let reader = KeyReader::new(cluster.session.clone(), cluster.datanodes.clone());
    Rig { cluster, entries, holders, reader }
}

impl Rig {
    fn holder(&self, at: usize) -> &cluster::Node {
        &self.cluster.nodes[self.holders[at]]
    }

    /// Where OM's page says that the replicas are: the holders, unless told otherwise.
    async fn read(
        &self,
        from: usize,
        to: usize,
        known: Option<Vec<DatanodeId>>,
    ) -> (Result<Vec<u8>, Failure>, Duration) {
        let known =
            known.unwrap_or_else(|| self.holders.iter().map(|at| self.cluster.nodes[*at].id).collect());
        let started = tokio::time::Instant::now();
        let page = page_of(&self.entries, &known, u64::MAX);
        let outcome = self.cluster.read(&self.reader, page, from..to).await;
        (outcome, started.elapsed())
    }

    async fn reads_all(&self) -> Duration {
        let (data, took) = self.read(0, LENGTH, None).await;
        assert!(data.expect("a replica is well") == pattern(LENGTH));
        took
    }
}

#[tokio::test(start_paused = true)]
async fn failed_replicas_are_left_and_remembered() {
    for mode in [
        Mode::Hangs,
        Mode::HangsAfter(0),
        Mode::HangsAfter(3),
        Mode::Dead,
        Mode::DiesAfter(0),
        Mode::DiesAfter(5),
        Mode::Refuses(Status::NotFound),
        Mode::Refuses(Status::Corrupt),
    ] {
        let rig = rig().await;
        rig.holder(0).set(mode);
        rig.holder(1).set(mode);
        assert!(rig.reads_all().await < Duration::from_secs(3), "{mode:?}");
        // Both are known now.
        assert!(rig.reads_all().await < Duration::from_millis(10), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn replica_that_came_back_serves_again() {
    let rig = rig().await;
    rig.holder(0).set(Mode::Dead);
    rig.holder(1).set(Mode::Dead);
    rig.reads_all().await;
    rig.holder(0).set(Mode::Well);
    rig.holder(2).set(Mode::Dead);
    rig.reads_all().await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    rig.holder(1).set(Mode::Well);
    rig.reads_all().await;
}

#[tokio::test(start_paused = true)]
async fn moved_container_is_found_by_asking_once() {
    let rig = rig().await;
    let container = rig.entries[0].block.container;
    let other = (0..4).find(|at| !rig.holders.contains(at)).unwrap();
    let stranger = rig.cluster.nodes[other].id;
    let holders: Vec<_> = rig.holders.iter().map(|at| rig.cluster.nodes[*at].id).collect();
    rig.cluster.om.state.lock().located.insert(container, holders);
    for known in [vec![stranger], vec![]] {
        let (data, _) = rig.read(100, LENGTH, Some(known)).await;
        assert!(data.unwrap() == pattern(LENGTH)[100..]);
    }
    assert_eq!(rig.cluster.om.state.lock().refreshes, 2);
}

#[tokio::test(start_paused = true)]
async fn all_gone_says_what_gives_most_hope() {
    let refuses = Mode::Refuses;
    for (modes, expected) in [
        ([Mode::Dead, refuses(Status::NotFound), refuses(Status::Corrupt)], Status::Retry),
        ([refuses(Status::Corrupt), refuses(Status::NotFound), refuses(Status::NotFound)], Status::Corrupt),
        ([refuses(Status::NotFound); 3], Status::NotFound),
        ([Mode::Hangs; 3], Status::Retry),
    ] {
        let rig = rig().await;
        modes.iter().enumerate().for_each(|(at, mode)| rig.holder(at).set(*mode));
        let (outcome, took) = rig.read(0, LENGTH, None).await;
        assert_eq!(outcome.unwrap_err().status, expected);
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(rig.cluster.om.state.lock().refreshes, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn last_replica_is_waited_for() {
    let rig = rig().await;
    let container = rig.entries[0].block.container;
    let slow = rig.holder(0).id;
    rig.cluster.om.state.lock().located.insert(container, vec![slow]);
    rig.holder(0).set(Mode::Slow(Duration::from_secs(4)));
    let (data, _) = rig.read(0, 3 * CHUNK_BYTES, Some(vec![slow])).await;
    assert!(data.unwrap() == pattern(LENGTH)[..3 * CHUNK_BYTES]);
}

#[tokio::test(start_paused = true)]
async fn stream_stays_with_the_replica_that_serves_it() {
    let rig = rig().await;
    rig.reads_all().await;
    let reads: Vec<u32> = (0..3).map(|at| *rig.holder(at).reads.lock()).collect();
    assert_eq!(reads.iter().filter(|count| **count > 0).count(), 1, "{reads:?}");
}

/// The wall clock goes with tokio's, which jumps.
struct FakeWorld {
    started: tokio::time::Instant,
    drawn: std::cell::Cell<u8>,
}

impl wire::world::World for FakeWorld {
    fn now_ms(&self) -> u64 {
        STARTED_MS + self.started.elapsed().as_millis() as u64
    }

    fn steady_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn fill(&self, bytes: &mut [u8]) {
        self.drawn.set(self.drawn.get().wrapping_add(1));
        bytes.fill(self.drawn.get());
    }

    fn step(&self, _name: &'static str) {}
}

const STARTED_MS: u64 = 1_767_322_645_678;
const TOKEN_LIFE: Duration = Duration::from_millis(wire::limits::BLOCK_TOKEN_LIFE_MS);

/// A body of three blocks, read with tokens that live as long as OM's: the first bytes at once, the rest after a while.
async fn read_after(pause: Duration, lives_no_more: bool) -> (Result<(), Failure>, Vec<usize>) {
    let started = tokio::time::Instant::now();
    wire::world::install(Some(std::rc::Rc::new(FakeWorld { started, drawn: std::cell::Cell::new(0) })));
    let cluster = Cluster::of(3).await;
    cluster.om.state.lock().lives_no_more = lives_no_more;
    let data = pattern(3 * cluster::BLOCK_MAX as usize - 5);
    let entries = cluster.put(Replication::Three, &data, true).await.0.unwrap();
    assert_eq!(entries.len(), 3);
    let reader = KeyReader::new(cluster.session.clone(), cluster.datanodes.clone());
    let expires_ms = STARTED_MS + TOKEN_LIFE.as_millis() as u64;
    let page = page_of(&entries, &cluster.ids(), expires_ms);
    let mut body = reader.read(bucket(), WriteId::default(), page, 0..data.len() as u64);
    let mut read = body.next().await.unwrap().unwrap().to_vec();
    tokio::time::sleep(pause).await;
    let mut outcome = Ok(());
    while let Some(item) = body.next().await {
        match item {
            Ok(bytes) => read.extend_from_slice(&bytes),
            Err(failure) => outcome = Err(failure),
        }
    }
    assert!(read == data[..read.len()] && (read.len() == data.len()) == outcome.is_ok());
    let renewals = cluster.om.state.lock().renewals.clone();
    wire::world::install(None);
    (outcome, renewals)
}

#[tokio::test(start_paused = true)]
async fn download_that_outlives_its_tokens_gets_new_ones() {
    assert_eq!(read_after(Duration::from_secs(1), false).await, (Ok(()), Vec::new()));
    // Both blocks that follow, in one call; a moment before they end as well.
    for pause in [TOKEN_LIFE * 2, TOKEN_LIFE - Duration::from_secs(10)] {
        assert_eq!(read_after(pause, false).await, (Ok(()), vec![2]));
    }
}

#[tokio::test(start_paused = true)]
async fn blocks_that_live_no_more_end_the_download() {
    let (outcome, renewals) = read_after(TOKEN_LIFE * 2, true).await;
    assert_eq!(outcome.unwrap_err().status, Status::Denied);
    assert!(!renewals.is_empty());
}

#[tokio::test(start_paused = true)]
async fn datanode_that_takes_no_token_is_left_after_one_new_one() {
    let rig = rig().await;
    rig.holder(0).set(Mode::Refuses(Status::Denied));
    rig.holder(1).set(Mode::Refuses(Status::Denied));
    rig.reads_all().await;
    assert_eq!(rig.cluster.om.state.lock().renewals, [1]);
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Well),
        Just(Mode::Hangs),
        (0..20usize).prop_map(Mode::HangsAfter),
        Just(Mode::Dead),
        (0..20usize).prop_map(Mode::DiesAfter),
        (0..1500u64).prop_map(|ms| Mode::Slow(Duration::from_millis(ms))),
        Just(Mode::Refuses(Status::NotFound)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Exactly the asked bytes, or an error; and the bytes if one replica is well.
    #[test]
    fn exactly_the_range_or_an_error(
        modes in proptest::collection::vec(mode(), 3),
        from in 0..LENGTH,
        length in 1..LENGTH,
    ) {
        on_paused_clock(async {
            let rig = rig().await;
            modes.iter().enumerate().for_each(|(at, mode)| rig.holder(at).set(*mode));
            let to = (from + length).min(LENGTH);
            let (outcome, _) = rig.read(from, to, None).await;
            match outcome {
                Ok(data) => assert!(data == pattern(LENGTH)[from..to]),
                Err(failure) => assert!(!modes.contains(&Mode::Well), "{modes:?}: {failure}"),
            }
        });
    }
}
