//! The sending side: one lane a member and group.
//!
//! Not here: the receiving side (`router`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use client::http::{PEER_MESSAGES_PATH, PEER_SNAPSHOT_PATH, Target, Transport};
use client::service::ChunkStream;
use consensus::{PeerTransport, SnapshotStream};
use futures_util::{StreamExt, stream};
use http::Method;
use parking_lot::Mutex;
use platform::task;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use wire::chunk::ChunkRun;
use wire::group::Member;
use wire::host::HostPort;
use wire::limits::CHUNK_RUN_BYTES_MAX;
use wire::status::{Failure, Status};

use crate::batch::{BATCH_BYTES_MAX, Body};
use crate::metrics;

/// Batches in a lane's queue at most: a hundred seconds of heartbeats.
const QUEUE_BATCHES_MAX: usize = 1024;
/// Bytes in a lane's queue at most: what raft keeps on its way to one follower.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Lanes of one process at most. Five members of two groups need eight.
const LANES_MAX: usize = 64;
/// A body is taken within this: less than an election timeout, or a stuck connection would cost one.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(1);
/// After a failure the next attempt waits for this, then for twice as long ...
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// ... up to this: a member that comes back must hear of its leader before it stands for election.
const PAUSE_LONGEST: Duration = Duration::from_millis(300);
/// A snapshot is installed within this after its last byte.
const INSTALL_DEADLINE: Duration = Duration::from_secs(300);

/// The members of this process's groups, over HTTP.
pub struct HttpPeers {
    transport: Arc<Transport>,
    /// `send` is called by threads that are outside of the runtime.
    runtime: Handle,
    lanes: Mutex<BTreeMap<(String, u64), Lane>>,
}

struct Lane {
    address: HostPort,
    incarnation: Uuid,
    batches: mpsc::Sender<Bytes>,
    queued_bytes: Arc<AtomicUsize>,
}

impl HttpPeers {
    /// Lanes over a transport of their own, so that other calls never take their places. Needs a runtime.
    pub fn new(transport: Arc<Transport>) -> Arc<Self> {
        Arc::new(Self { transport, runtime: Handle::current(), lanes: Mutex::default() })
    }

    fn open_lane(&self, group: &str, to: &Member) -> Lane {
        let (sender, batches) = mpsc::channel(QUEUE_BATCHES_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let delivery = Delivery {
            transport: self.transport.clone(),
            group: group.to_owned(),
            path: path_of(PEER_MESSAGES_PATH, group),
            to: to.clone(),
            batches,
            queued_bytes: queued_bytes.clone(),
            is_away: false,
            pause: PAUSE_FIRST,
        };
        let _inside = self.runtime.enter();
        task::spawn(delivery.run());
        Lane { address: to.address.clone(), incarnation: to.incarnation, batches: sender, queued_bytes }
    }
}

#[async_trait]
impl PeerTransport for HttpPeers {
    fn send(&self, group: &str, to: &Member, batch: Bytes) {
        if batch.len() > BATCH_BYTES_MAX {
            tracing::error!(group, bytes = batch.len(), "a batch of messages is too long to be sent");
            return metrics::batches_dropped(group, "long", 1);
        }
        let mut lanes = self.lanes.lock();
        let place = (group.to_owned(), to.raft_id);
        let is_current = |lane: &Lane| {
            lane.address == to.address && lane.incarnation == to.incarnation && !lane.batches.is_closed()
        };
        if !lanes.get(&place).is_some_and(is_current) {
            if lanes.len() >= LANES_MAX {
                lanes.clear();
            }
            lanes.insert(place.clone(), self.open_lane(group, to));
        }
        let lane = &lanes[&place];
        let length = batch.len();
        let queued = lane.queued_bytes.fetch_add(length, Ordering::Relaxed);
        let is_taken = queued + length <= QUEUE_BYTES_MAX && lane.batches.try_send(batch).is_ok();
        if !is_taken {
            lane.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            metrics::batches_dropped(group, "full", 1);
        }
    }

    async fn send_snapshot(
        &self,
        group: &str,
        to: &Member,
        head: Bytes,
        body: SnapshotStream,
    ) -> Result<(), Failure> {
        let path = path_of(PEER_SNAPSHOT_PATH, group);
        let target = Target {
            peer: &to.address,
            method: &Method::POST,
            path: &path,
            receipt_deadline: INSTALL_DEADLINE,
        };
        self.transport.upload::<()>(target, head, runs_of(body)).await?;
        metrics::snapshot_sent(group);
        Ok(())
    }
}

/// A snapshot's bytes as runs: what travels has a checksum a chunk.
fn runs_of(body: SnapshotStream) -> ChunkStream {
    Box::pin(body.flat_map(|piece| {
        let runs = match piece {
            Ok(mut bytes) => {
                let mut runs = Vec::new();
                while !bytes.is_empty() {
                    let run = bytes.split_to(bytes.len().min(CHUNK_RUN_BYTES_MAX));
                    runs.push(Ok(ChunkRun::new(run)));
                }
                runs
            }
            Err(failure) => vec![Err(failure)],
        };
        stream::iter(runs)
    }))
}

fn path_of(pattern: &str, group: &str) -> String {
    pattern.replace("{group}", group)
}

/// A lane's task.
struct Delivery {
    transport: Arc<Transport>,
    group: String,
    path: String,
    to: Member,
    batches: mpsc::Receiver<Bytes>,
    queued_bytes: Arc<AtomicUsize>,
    is_away: bool,
    pause: Duration,
}

impl Delivery {
    async fn run(mut self) {
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(batch) => batch,
                None => match self.batches.recv().await {
                    Some(batch) => self.taken(batch),
                    None => return,
                },
            };
            let mut body = Body::default();
            body.add(&first);
            while let Ok(batch) = self.batches.try_recv() {
                let batch = self.taken(batch);
                if !body.has_room(batch.len()) {
                    next = Some(batch);
                    break;
                }
                body.add(&batch);
            }
            let count = body.batches();
            match self.deliver(body.into_bytes()).await {
                Ok(()) => self.note_delivered(count),
                Err(failure) => {
                    let dropped = count + usize::from(next.take().is_some());
                    self.note_away(&failure, dropped).await;
                }
            }
        }
    }

    fn taken(&self, batch: Bytes) -> Bytes {
        self.queued_bytes.fetch_sub(batch.len(), Ordering::Relaxed);
        batch
    }

    async fn deliver(&self, body: Bytes) -> Result<(), Failure> {
        let sent = self.transport.exchange(&self.to.address, &self.path, body);
        let late = |_| Failure::new(Status::Unknown, "no answer in time");
        timeout(DELIVERY_DEADLINE, sent).await.map_err(late)?
    }

    fn note_delivered(&mut self, count: usize) {
        metrics::batches_sent(&self.group, count);
        self.pause = PAUSE_FIRST;
        if std::mem::take(&mut self.is_away) {
            tracing::info!(group = self.group, member = %self.to.address, "a member takes messages again");
        }
    }

    /// What is queued is stale by the time the member is back: raft sends anew what still matters.
    async fn note_away(&mut self, failure: &Failure, mut dropped: usize) {
        if !std::mem::replace(&mut self.is_away, true) {
            tracing::warn!(group = self.group, member = %self.to.address, %failure, "a member takes no messages");
        }
        while let Ok(batch) = self.batches.try_recv() {
            self.taken(batch);
            dropped += 1;
        }
        metrics::batches_dropped(&self.group, "away", dropped);
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
    }
}
