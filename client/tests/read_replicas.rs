//! Reads of blocks whose replicas hang, die in mid-stream, have moved or are gone.

mod cluster;

use std::time::Duration;

use client::key_reader::KeyReader;
use cluster::{Cluster, Mode, location_of, pattern, token_of};
use futures_util::StreamExt;
use proptest::prelude::*;
use wire::block::{BlockClaim, BlockEntry, BlockOperation, Replication};
use wire::ids::*;
use wire::limits::CHUNK_BYTES;
use wire::om::{BucketRef, LayoutPage};
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
        let claim = |entry: &BlockEntry| BlockClaim {
            operation: BlockOperation::Read,
            container: entry.block.container,
            generation: Generation(1),
            replication: Replication::Three,
            first: entry.block.local,
            count: 1,
            session: SessionId(1),
            length_max: entry.block_length,
            expires_ms: u64::MAX,
        };
        let known =
            known.unwrap_or_else(|| self.holders.iter().map(|at| self.cluster.nodes[*at].id).collect());
        let page = LayoutPage {
            start: 0,
            entries: self.entries.clone(),
            tokens: self.entries.iter().map(|entry| token_of(claim(entry))).collect(),
            locations: self
                .entries
                .iter()
                .map(|entry| location_of(entry.block.container, known.clone()))
                .collect(),
        };
        let bucket = BucketRef {
            name: wire::names::BucketName::new("bucket").expect("a legal name"),
            id: BucketId(1),
            config_version: 1,
            access_version: 1,
        };
        let started = tokio::time::Instant::now();
        let mut body = self.reader.read(bucket, WriteId::default(), page, from as u64..to as u64);
        let mut data = Vec::new();
        while let Some(item) = body.next().await {
            match item {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(failure) => return (Err(failure), started.elapsed()),
            }
        }
        (Ok(data), started.elapsed())
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
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
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
