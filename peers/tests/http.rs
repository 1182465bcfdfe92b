//! Batches and snapshots over loopback: order, loss by design, members that go and come back.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[allow(dead_code, reason = "this test needs a part of it")]
mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::http::{Transport, Verifier};
use consensus::PeerTransport;
use futures_util::stream;
use peers::{HttpPeers, peer_router};
use support::{FakeGroup, key, listen, member, serve_group};
use tokio::net::{TcpListener, TcpStream};
use wire::host::HostPort;
use wire::status::{Failure, Status};

fn peers() -> Arc<HttpPeers> {
    HttpPeers::new(Transport::new(key()))
}

fn numbered(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

#[tokio::test]
async fn batches_arrive_in_order_from_any_thread() {
    let group = FakeGroup::open();
    let (address, _task) = serve_group(&group).await;
    let peers = peers();
    // The driver's thread is outside of the runtime.
    let driver = std::thread::spawn(move || {
        for number in 0..500 {
            peers.send("om", &member(&address), numbered(number));
        }
        peers
    });
    let arrived = group.arrived(500).await;
    assert_eq!(arrived, (0..500).map(numbered).collect::<Vec<_>>());
    drop(driver.join().unwrap());
}

#[tokio::test]
async fn refused_batch_does_not_stand_in_the_way_of_the_next() {
    let group = FakeGroup::open();
    let (address, _task) = serve_group(&group).await;
    let peers = peers();
    peers.send("om", &member(&address), Bytes::from_static(b"malformed"));
    group.arrived(1).await;
    // It was answered with a failure: the lane pauses and goes on.
    let mut sent = 0;
    while group.batches.borrow().len() < 2 {
        sent += 1;
        peers.send("om", &member(&address), numbered(sent));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn member_that_takes_nothing_costs_a_queue_and_no_more() {
    let group = FakeGroup::gated(0);
    let (address, _task) = serve_group(&group).await;
    let peers = peers();
    let large = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..200 {
        peers.send("om", &member(&address), large.clone());
    }
    group.gate.add_permits(1000);
    // What was queued at most is 32 MiB, and one body under way.
    let arrived = group.arrived(1).await;
    assert!(arrived.len() <= 33 && arrived[0] == large);
    peers.send("om", &member(&address), Bytes::from(vec![1; 17 << 20]));
    peers.send("unknown", &member(&address), numbered(1));
}

#[tokio::test]
async fn member_that_comes_back_is_sent_to_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = HostPort::from(listener.local_addr().unwrap());
    let group = FakeGroup::open();
    let peers = peers();
    peers.send("om", &member(&address), numbered(1));
    // The first connection is taken and never served, as by a process that is stopped.
    let (stopped, _) = listener.accept().await.unwrap();
    let router = peer_router(vec![group.clone()], Verifier::new(key()));
    let _task = listen(listener, router);
    let mut number = 2;
    while group.batches.borrow().is_empty() {
        peers.send("om", &member(&address), numbered(number));
        number += 1;
        let mut batches = group.batches.subscribe();
        let _ = tokio::time::timeout(Duration::from_millis(20), batches.changed()).await;
    }
    drop::<TcpStream>(stopped);
}

#[tokio::test]
async fn snapshot_streams_to_its_end_or_not_at_all() {
    let group = FakeGroup::open();
    let (address, _task) = serve_group(&group).await;
    let (peers, to) = (peers(), member(&address));
    let piece = |fill: u8, bytes: usize| Ok(Bytes::from(vec![fill; bytes]));
    // Longer and shorter than a run, and empty.
    let body = stream::iter([piece(1, (5 << 20) + 3), piece(2, 0), piece(3, 70_000)]);
    peers.send_snapshot("om", &to, Bytes::from_static(b"head"), Box::pin(body)).await.unwrap();
    let (head, bytes) = group.snapshot.lock().take().unwrap();
    let expected = [vec![1; (5 << 20) + 3], vec![3; 70_000]].concat();
    assert!(&head[..] == b"head" && bytes.unwrap() == expected);

    let failure = Failure::new(Status::Internal, "the file cannot be read");
    let body = stream::iter([piece(1, 1 << 20), Err(failure.clone())]);
    let outcome = peers.send_snapshot("om", &to, Bytes::from_static(b"head"), Box::pin(body)).await;
    assert_eq!(outcome, Err(failure));

    let body = stream::once(async { panic!("a refused snapshot is not read") });
    let outcome = peers.send_snapshot("om", &to, Bytes::from_static(b"unwanted"), Box::pin(body)).await;
    assert_eq!(outcome.unwrap_err().status, Status::Refused);
    let body = stream::once(async { panic!("neither is one for another group") });
    let outcome = peers.send_snapshot("scm", &to, Bytes::from_static(b"head"), Box::pin(body)).await;
    assert_eq!(outcome.unwrap_err().status, Status::Retry);
}
