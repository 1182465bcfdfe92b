//! Bodies of all sizes to blocks and back, and what becomes of blocks that nobody commits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;

use bytes::Bytes;
use client::key_reader::KeyReader;
use cluster::{BLOCK_MAX, Cluster, page_of, pattern};
use wire::block::{BlockEntry, Replication::One};
use wire::limits::CHUNK_BYTES;
use wire::status::Status;

async fn read(cluster: &Cluster, entries: &[BlockEntry], from: usize, to: usize) -> Vec<u8> {
    let reader = KeyReader::new(cluster.session.clone(), cluster.datanodes.clone());
    let page = page_of(entries, &cluster.ids(), u64::MAX);
    cluster.read(&reader, page, from..to).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn bodies_of_all_sizes_come_back() {
    let cluster = Cluster::of(1).await;
    let block = BLOCK_MAX as usize;
    for length in
        [1, CHUNK_BYTES - 1, CHUNK_BYTES, 4 * CHUNK_BYTES, block - 1, block, block + 1, 2 * block + 70_000]
    {
        let data = pattern(length);
        for known in [Some(length as u64), None] {
            for piece in [8192, 100_000, 1 << 20] {
                let written = cluster.stream(One, &data, known, piece).await.unwrap();
                let entries = written.entries().to_vec();
                written.committed();
                if known.is_some() {
                    assert_eq!(entries.len(), length.div_ceil(block), "no needless blocks");
                }
                assert!(read(&cluster, &entries, 0, length).await == data);
                let (from, to) = (length / 3, length - length / 4);
                assert!(read(&cluster, &entries, from, to).await == data[from..to]);
            }
        }
    }
    assert!(cluster.om.state.lock().released.is_empty(), "committed blocks are not released");
}

#[tokio::test(start_paused = true)]
async fn refused_container_is_left_for_another() {
    let cluster = Cluster::of(1).await;
    let small = cluster.writer.write_small(One, Bytes::from_static(b"small")).await.unwrap();
    let open = small.entries()[0].block.container;
    cluster.nodes[0].closed.lock().insert(open);
    // OM's model closes nothing by itself.
    cluster.om.state.lock().containers.get_mut(&open).unwrap().is_open = false;
    for length in [100, 2 << 20] {
        let data = pattern(length);
        let (entries, _) = cluster.put(One, &data, true).await;
        let entries = entries.unwrap();
        assert!(entries.iter().all(|entry| entry.block.container != open));
        assert!(read(&cluster, &entries, 0, length).await == data);
    }
    assert!(cluster.om.state.lock().avoided.contains(&open));
}

#[tokio::test(start_paused = true)]
async fn abandoned_blocks_are_released() {
    let cluster = Cluster::of(1).await;
    let mut sink = cluster.writer.begin(One, Some(1 << 30));
    sink.push(pattern(BLOCK_MAX as usize + 5)).await.unwrap();
    drop(sink);
    let written = cluster.writer.write_small(One, Bytes::from_static(b"x")).await.unwrap();
    let kept = written.entries()[0].block;
    drop(written);
    while cluster.om.state.lock().released.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(cluster.om.state.lock().released.contains(&kept));
}

#[tokio::test(start_paused = true)]
async fn wrong_length_fails() {
    let cluster = Cluster::of(1).await;
    for (length, declared) in [(10, 11), (12, 11)] {
        let written = cluster.stream(One, &pattern(length), Some(declared), 4).await;
        assert_eq!(written.err().map(|failure| failure.status), Some(Status::Invalid));
    }
}
