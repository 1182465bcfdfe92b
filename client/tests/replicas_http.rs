//! The same over HTTP and under the real clock: what a stopped or refusing datanode does to real connections.

mod cluster;

use std::time::Duration;

use cluster::{Cluster, Mode, pattern};
use futures_util::future::join_all;
use wire::block::Replication::Three;

const LONG: usize = 5 << 20;

#[tokio::test]
async fn stopped_datanode_costs_a_second() {
    let cases = [10_000, 1 << 20, LONG].map(|length| async move {
        let cluster = Cluster::over_http(3).await;
        cluster.nodes[1].set(Mode::Hangs);
        let data = pattern(length);
        let (outcome, took) = cluster.put(Three, &data, true).await;
        outcome.unwrap_or_else(|failure| panic!("{length}: {failure}"));
        assert!(took < Duration::from_secs(3), "{length}: {took:?}");
        assert_eq!(cluster.degrades(), 1);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn datanode_that_dies_in_mid_block_is_left_out() {
    let cluster = Cluster::over_http(3).await;
    cluster.nodes[2].set(Mode::DiesAfter(7));
    let (outcome, took) = cluster.put(Three, &pattern(LONG), true).await;
    outcome.unwrap();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(cluster.degrades() >= 1);
}

/// A refusal comes back while the body is already on its way: all bytes sent by then must still be here.
#[tokio::test]
async fn refusal_reaches_the_writer_of_a_long_body_in_time() {
    for round in 0..8 {
        let cluster = Cluster::over_http(3).await;
        let (first, _) = cluster.put(Three, &pattern(1000), true).await;
        let closing = first.unwrap()[0].block.container;
        cluster.nodes[round % 3].closed.lock().insert(closing);
        let (outcome, _) = cluster.put(Three, &pattern(LONG), true).await;
        let entries = outcome.unwrap_or_else(|failure| panic!("round {round}: {failure}"));
        assert!(entries.iter().all(|entry| entry.block.container != closing));
        assert_eq!(cluster.degrades(), 0);
    }
}
