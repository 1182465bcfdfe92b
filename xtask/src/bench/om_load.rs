//! Clients of OM, as gateways are: over HTTP with the cluster's key, one session, each with a loan of block ids of its own.
//!
//! A client commits one key of one block after the other and waits for each answer; what it commits is what a PUT of
//! 4 KiB commits, with ids from real loans. No datanode is written to: the blocks exist for OM alone. One command in 257
//! takes a loan.
//!
//! Names are scattered over the bucket, as names of many writers are: in ascending order a tree grows at one edge, which
//! is cheaper than what it is to show.
//!
//! Not here: which processes run (`crate::rig`), what they spend (`cost`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use client::failover::OmClient;
use client::http::{OmStub, Transport};
use client::service::{OmService, call_om};
use client::session::Session;
use hdrhistogram::Histogram;
use serde::Deserialize;
use tokio::task::JoinSet;
use wire::block::{BlockEntry, Replication};
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use wire::chunk::BlockDigest;
use wire::cluster_key::ClusterKey;
use wire::host::HostPort;
use wire::ids::{BlockId, ClusterId, LocalId};
use wire::limits::LOAN_IDS_MAX;
use wire::names::{BucketName, KeyName};
use wire::om::{
    BucketRef, CommitKey, GetBucket, GetSigningKey, KeyAttributes, ListKeys, Loan, LookupKey, StorageClass,
    TakeLoan, UserId, WriteCondition, WriteContext,
};
use wire::operator::GetGroup;

use crate::rig::{Rig, Role};
use crate::stopwatch::Stopwatch;

/// What a PUT of 4 KiB commits.
const KEY_BYTES: u64 = 4096;
/// Spreads consecutive numbers over all names, each once: odd, and far from any pattern.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Three significant digits: a latency is off by at most a thousandth.
const DIGITS: u8 = 3;

const BUCKET: &str = "bench";

/// When clients stop.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So long after they began.
    Elapsed(Duration),
    /// Once so many keys have been committed, by earlier runs too.
    Keys(u64),
}

/// What a run came to.
pub(super) struct Outcome {
    pub(super) commits: u64,
    pub(super) elapsed: Duration,
    /// Of each commit, in nanoseconds.
    pub(super) latency: Histogram<u64>,
}

impl Outcome {
    pub(super) fn rate(&self) -> f64 {
        self.commits as f64 / self.elapsed.as_secs_f64()
    }

    /// A latency in milliseconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        self.latency.value_at_quantile(share) as f64 / 1e6
    }
}

/// What all clients share.
struct Namespace {
    session: Arc<Session>,
    bucket: BucketRef,
    owner: UserId,
    replication: Replication,
    /// The number of the next key.
    next: AtomicU64,
}

/// A client between two commits.
#[derive(Default)]
struct Client {
    loan: Option<Loan>,
    used: u16,
}

/// The clients of one cluster.
pub(super) struct OmLoad {
    namespace: Arc<Namespace>,
    clients: Vec<Client>,
    transport: Arc<Transport>,
}

/// `cluster.json`.
#[derive(Deserialize)]
struct Cluster {
    id: ClusterId,
    key: String,
}

impl OmLoad {
    /// Makes the bucket through a gateway and opens a session.
    pub(super) async fn open(rig: &Rig, clients: usize, replication: Replication) -> Result<Self> {
        let gateway = &rig.names(Role::Gateway)[0];
        let s3 = rig.client(gateway, 1)?;
        s3.create_bucket(BUCKET, None).await.context("create the bucket")?;
        let text = std::fs::read(rig.cluster_file(gateway)).context("read cluster.json")?;
        let Cluster { id, key } = serde_json::from_slice(&text).context("cluster.json")?;
        let mut secret = [0; 32];
        hex::decode_to_slice(key, &mut secret).context("the cluster's key")?;
        let transport = Transport::new(ClusterKey::new(id, secret));
        let mut metas: Vec<(HostPort, Arc<dyn OmService>)> = Vec::new();
        for node in rig.nodes().iter().filter(|node| node.role == Role::Meta) {
            let address: HostPort = node.internal.parse().context("a node's address")?;
            metas.push((address.clone(), Arc::new(OmStub::new(transport.clone(), address))));
        }
        let om = OmClient::new(metas);
        let session = Session::open(om).await.context("open a session")?;
        let name = BucketName::new(BUCKET).context("the bucket's name")?;
        let bucket = session.call(GetBucket { name: name.clone() }).await.context("look at the bucket")?;
        let (access_key, _) = rig.access_key()?;
        let scope = ["20260101", "us-east-1", "s3"].map(str::to_owned);
        let [day, region, service] = scope;
        let signing = session.call(GetSigningKey { access_key, day, region, service }).await;
        let signing = signing.context("ask for the root user")?;
        let namespace = Namespace {
            session,
            bucket: BucketRef {
                name,
                id: bucket.id,
                config_version: bucket.config_version,
                access_version: signing.access_version,
            },
            owner: signing.user.id,
            replication,
            next: AtomicU64::new(0),
        };
        let clients = std::iter::repeat_with(Client::default).take(clients).collect();
        Ok(Self { namespace: Arc::new(namespace), clients, transport })
    }

    /// All clients commit at once; any failure ends the run, since a rate with failures means nothing.
    pub(super) async fn run(&mut self, until: Until) -> Result<Outcome> {
        let watch = Stopwatch::start();
        let mut runs: JoinSet<Result<(Client, Histogram<u64>)>> = JoinSet::new();
        for client in std::mem::take(&mut self.clients) {
            runs.spawn(client.run(self.namespace.clone(), until, watch));
        }
        let mut latency = Histogram::new(DIGITS).context("make a histogram")?;
        while let Some(run) = runs.join_next().await {
            let (client, measured) = run.context("a client died")??;
            self.clients.push(client);
            latency.add(measured).context("add latencies")?;
        }
        Ok(Outcome { commits: latency.len(), elapsed: watch.elapsed(), latency })
    }

    /// The node whose replica of OM leads.
    pub(super) async fn leader(&self, rig: &Rig) -> Result<String> {
        for node in rig.nodes().iter().filter(|node| node.role == Role::Meta) {
            let group =
                call_om(&self.stub(&node.internal)?, GetGroup {}).await.context("ask for the group")?;
            if group.leader == Some(group.raft_id) {
                return Ok(node.name.clone());
            }
        }
        anyhow::bail!("no node leads om")
    }

    /// Looks the last committed key up at one node, once: whether it answered, and so has all that was committed.
    pub(super) async fn finds_last_key(&self, internal: &str) -> Result<bool> {
        let committed = self.namespace.next.load(Ordering::Relaxed);
        ensure!(committed > 0, "nothing was committed");
        let (bucket, key) = (self.namespace.bucket.clone(), key(committed - 1)?);
        let request = LookupKey { bucket, key, layout_from: None };
        match call_om(&self.stub(internal)?, request).await {
            Ok(_) => Ok(true),
            Err(client::service::CallError::Failed(_)) => Ok(false),
            Err(refused) => Err(refused).context("a committed key is gone"),
        }
    }

    /// Times of listing 1,000 keys from each of `pages` places, in milliseconds, ascending.
    pub(super) async fn pages(&self, pages: u64) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for place in 0..pages {
            let request = ListKeys {
                bucket: self.namespace.bucket.clone(),
                prefix: String::new(),
                delimiter: String::new(),
                after: format!("{:016x}", u64::MAX / (pages + 1) * place),
                max: 1000,
            };
            let watch = Stopwatch::start();
            let page = self.namespace.session.call(request).await.context("list")?;
            times.push(watch.elapsed().as_secs_f64() * 1e3);
            ensure!(!page.items.is_empty(), "a page of a full bucket is empty");
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    fn stub(&self, internal: &str) -> Result<OmStub> {
        Ok(OmStub::new(self.transport.clone(), internal.parse().context("a node's address")?))
    }
}

impl Client {
    async fn run(
        mut self,
        namespace: Arc<Namespace>,
        until: Until,
        watch: Stopwatch,
    ) -> Result<(Self, Histogram<u64>)> {
        let mut latency = Histogram::new(DIGITS).context("make a histogram")?;
        while let Some(number) = namespace.next(until, watch) {
            let block = self.block(&namespace).await?;
            let name = key(number)?;
            let began = watch.elapsed();
            let make = |context| namespace.commit(context, &name, number, block);
            namespace.session.command(make).await.context("commit a key")?;
            let took = watch.elapsed() - began;
            latency.record(took.as_nanos() as u64).context("record a latency")?;
        }
        Ok((self, latency))
    }

    async fn block(&mut self, namespace: &Namespace) -> Result<BlockId> {
        if self.loan.as_ref().is_none_or(|loan| self.used == loan.count) {
            let make = |context| TakeLoan {
                context,
                replication: namespace.replication,
                count: LOAN_IDS_MAX,
                avoid: Vec::new(),
                avoid_datanodes: Vec::new(),
            };
            self.loan = Some(namespace.session.command(make).await.context("take a loan")?);
            self.used = 0;
        }
        let loan = self.loan.as_ref().context("a loan was taken")?;
        let local = LocalId(loan.first.0 + u64::from(self.used));
        self.used += 1;
        Ok(BlockId { container: loan.container, local })
    }
}

impl Namespace {
    /// The number of the next key to commit, if there is one.
    fn next(&self, until: Until, watch: Stopwatch) -> Option<u64> {
        match until {
            Until::Elapsed(time) => {
                (watch.elapsed() < time).then(|| self.next.fetch_add(1, Ordering::Relaxed))
            }
            Until::Keys(keys) => {
                let more = |number| (number < keys).then_some(number + 1);
                self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()
            }
        }
    }

    fn commit(&self, context: WriteContext, key: &KeyName, number: u64, block: BlockId) -> CommitKey {
        let digest = BlockDigest(number);
        CommitKey {
            context,
            bucket: self.bucket.clone(),
            key: key.clone(),
            condition: WriteCondition::None,
            owner: self.owner.clone(),
            size: KEY_BYTES,
            etag: Etag::whole((u128::from(number) + 1).to_be_bytes()),
            storage_class: StorageClass::Standard,
            replication: self.replication,
            attributes: KeyAttributes {
                content_type: Some("application/octet-stream".to_owned()),
                ..KeyAttributes::default()
            },
            checksum: Some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject)),
            checksums: vec![Checksum::full(ChecksumAlgorithm::Crc64Nvme, number.to_be_bytes())],
            blocks: vec![BlockEntry { block, offset: 0, length: KEY_BYTES, block_length: KEY_BYTES, digest }],
        }
    }
}

fn key(number: u64) -> Result<KeyName> {
    KeyName::new(&format!("{:016x}", number.wrapping_mul(SCATTER))).context("a key's name")
}
