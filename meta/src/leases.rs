//! Leader memory beside the rows of leases: token keys, where containers are, which replication types are asked for.
//!
//! All of it can be lost: SCM gives it again. Ids are never handed out from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::service::{ScmService, call_scm};
use moka::sync::Cache;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use wire::block::{
    BlockClaim, BlockEntry, BlockOperation, BlockToken, ContainerLocation, ReplicaLocation, Replication,
    TokenKey,
};
use wire::clock::{self, UnixMs};
use wire::ids::{ContainerId, Generation, LeaseId, SessionId};
use wire::limits::BLOCK_TOKEN_LIFE_MS;
use wire::scm::LocateContainers;
use wire::status::{Failure, Status};

use crate::schema::LeaseRow;
use crate::state::Lent;

/// Locations remembered at most: about 10 MiB.
const LOCATIONS_MAX: u64 = 65_536;
/// Replicas move when nodes die: what SCM said is believed for so long. A reader that finds nobody asks again.
const LOCATION_LIFE: Duration = Duration::from_secs(10);
/// SCM answers within this or is taken for lost.
const SCM_DEADLINE: Duration = Duration::from_secs(10);
/// A container without readable replicas is asked for again so often ...
const LOCATE_TURNS: u32 = 10;
/// ... after this: a datanode registers within a second of its start.
const LOCATE_PAUSE: Duration = Duration::from_millis(100);
/// A read waits this long for token keys, then the caller is told to try again.
const TOKEN_KEYS_WAIT: Duration = Duration::from_secs(2);
/// Containers to avoid are forgotten after this: they have left OPEN by then.
const AVOID_MS: u64 = 60_000;
/// Keys are signed with only if they outlive two tokens.
const KEY_LIFE_LEFT_MS: u64 = 2 * BLOCK_TOKEN_LIFE_MS;

/// What the leader knows beside its rows.
pub(crate) struct LeaderMemory {
    scm: Arc<dyn ScmService>,
    /// What write tokens allow.
    block_bytes_max: u64,
    token_keys: RwLock<Vec<TokenKey>>,
    of_leases: RwLock<HashMap<ContainerId, ContainerLocation>>,
    located: Cache<ContainerId, ContainerLocation>,
    demand: Mutex<Demand>,
    /// Wakes the keeper.
    pub(crate) wanted: Notify,
    /// Counts changes of leases and token keys.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Demand {
    replications: BTreeSet<Replication>,
    avoid: BTreeMap<ContainerId, UnixMs>,
    /// What stands in the way of more leases.
    awaited: Option<String>,
}

impl LeaderMemory {
    pub(crate) fn new(scm: Arc<dyn ScmService>, replications: &[Replication], block_bytes_max: u64) -> Self {
        let demand = Demand { replications: replications.iter().copied().collect(), ..Demand::default() };
        Self {
            scm,
            block_bytes_max,
            token_keys: RwLock::default(),
            of_leases: RwLock::default(),
            located: Cache::builder().max_capacity(LOCATIONS_MAX).time_to_live(LOCATION_LIFE).build(),
            demand: Mutex::new(demand),
            wanted: Notify::new(),
            changed: watch::Sender::new(0),
        }
    }

    /// A call of SCM, with a deadline.
    pub(crate) async fn call<C: wire::scm::ScmCall>(&self, request: C) -> Result<C::Reply, Failure> {
        match tokio::time::timeout(SCM_DEADLINE, call_scm(self.scm.as_ref(), request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Status::Retry, "scm does not answer")),
        }
    }

    /// Notes that leases of this type are needed, and which containers do not serve.
    pub(crate) fn want(&self, replication: Replication, avoid: &BTreeSet<ContainerId>) {
        let until = clock::now_ms() + AVOID_MS;
        let mut demand = self.demand.lock();
        demand.replications.insert(replication);
        demand.avoid.extend(avoid.iter().map(|container| (*container, until)));
        drop(demand);
        self.wanted.notify_one();
    }

    /// The replication types asked for, and the containers to avoid.
    pub(crate) fn demand(&self) -> (Vec<Replication>, BTreeSet<ContainerId>) {
        let now_ms = clock::now_ms();
        let mut demand = self.demand.lock();
        demand.avoid.retain(|_, until| *until > now_ms);
        (demand.replications.iter().copied().collect(), demand.avoid.keys().copied().collect())
    }

    /// Says what stands in the way of more leases, for those who wait.
    pub(crate) fn set_awaited(&self, awaited: Option<String>) {
        self.demand.lock().awaited = awaited;
    }

    /// See [`Self::set_awaited`].
    pub(crate) fn awaited(&self) -> Option<String> {
        self.demand.lock().awaited.clone()
    }

    /// Resolves after the next change of leases or keys.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over the leases that stand in state.
    pub(crate) fn set_leases(&self, leases: &[(LeaseId, LeaseRow)]) {
        let open = leases.iter().filter(|(_, row)| !row.is_ended);
        let locations = open.map(|(_, row)| (row.container, location_of(row))).collect();
        *self.of_leases.write() = locations;
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes over SCM's token keys.
    pub(crate) fn set_token_keys(&self, keys: Vec<TokenKey>) {
        if *self.token_keys.read() != keys {
            *self.token_keys.write() = keys;
            self.changed.send_modify(|count| *count += 1);
        }
    }

    fn signing_key(&self) -> Result<TokenKey, Failure> {
        let now_ms = clock::now_ms();
        let keys = self.token_keys.read();
        // The oldest key that lives long enough: datanodes have certainly heard of it.
        let lasting = keys.iter().filter(|key| key.expires_ms > now_ms + KEY_LIFE_LEFT_MS);
        let key = lasting.min_by_key(|key| key.id).or_else(|| keys.iter().max_by_key(|key| key.id));
        key.cloned().ok_or_else(|| Failure::new(Status::Retry, "block token keys of scm are awaited"))
    }

    /// Whether tokens can be signed.
    pub(crate) fn check_token_keys(&self) -> Result<(), Failure> {
        self.signing_key().map(|_| ())
    }

    /// Waits a moment for token keys: after a start SCM gives them within its first answer.
    pub(crate) async fn wait_token_keys(&self) -> Result<(), Failure> {
        let mut changed = self.subscribe();
        if self.check_token_keys().is_ok() {
            return Ok(());
        }
        self.wanted.notify_one();
        let arrived = changed.wait_for(|_| self.check_token_keys().is_ok());
        // Late or never: the answer says which.
        let _ = tokio::time::timeout(TOKEN_KEYS_WAIT, arrived).await;
        self.check_token_keys()
    }

    /// Leave to write the ids of a loan.
    pub(crate) fn write_token(&self, lent: &Lent, session: SessionId) -> Result<BlockToken, Failure> {
        let claim = BlockClaim {
            operation: BlockOperation::Write,
            container: lent.container,
            generation: lent.generation,
            replication: lent.pipeline.replication,
            first: lent.first,
            count: u64::from(lent.count),
            session,
            length_max: self.block_bytes_max,
            expires_ms: clock::now_ms() + BLOCK_TOKEN_LIFE_MS,
        };
        Ok(BlockToken::sign(claim, &self.signing_key()?))
    }

    /// Leave to read these blocks, one token each.
    pub(crate) fn read_tokens(&self, entries: &[BlockEntry]) -> Result<Vec<BlockToken>, Failure> {
        let key = self.signing_key()?;
        let expires_ms = clock::now_ms() + BLOCK_TOKEN_LIFE_MS;
        let token_of = |entry: &BlockEntry| {
            let claim = BlockClaim {
                operation: BlockOperation::Read,
                container: entry.block.container,
                // A read makes no replica and takes any generation that has the block.
                generation: Generation(0),
                replication: Replication::One,
                first: entry.block.local,
                count: 1,
                session: SessionId(0),
                length_max: entry.block_length,
                expires_ms,
            };
            BlockToken::sign(claim, &key)
        };
        Ok(entries.iter().map(token_of).collect())
    }

    /// Where the containers of these blocks are. Those that nobody has are left out.
    pub(crate) async fn locate(&self, entries: &[BlockEntry]) -> Result<Vec<ContainerLocation>, Failure> {
        let containers: BTreeSet<ContainerId> = entries.iter().map(|entry| entry.block.container).collect();
        let mut found = Vec::with_capacity(containers.len());
        let mut missing = Vec::new();
        {
            let of_leases = self.of_leases.read();
            for container in containers {
                match of_leases.get(&container).cloned().or_else(|| self.located.get(&container)) {
                    Some(location) => found.push(location),
                    None => missing.push(container),
                }
            }
        }
        for turn in 0..LOCATE_TURNS {
            if missing.is_empty() {
                break;
            }
            if turn > 0 {
                tokio::time::sleep(LOCATE_PAUSE).await;
            }
            for location in self.call(LocateContainers { containers: missing.clone() }).await? {
                // Nobody has it yet: after a start the datanodes are still registering. Not to be remembered.
                if location.replicas.is_empty() {
                    continue;
                }
                missing.retain(|container| *container != location.container);
                self.located.insert(location.container, location.clone());
                found.push(location);
            }
        }
        Ok(found)
    }
}

fn location_of(row: &LeaseRow) -> ContainerLocation {
    let replica = |datanode: &wire::block::DatanodeAddress| ReplicaLocation {
        datanode: datanode.clone(),
        generation: row.generation,
    };
    ContainerLocation {
        container: row.container,
        replicas: row.pipeline.members.iter().map(replica).collect(),
    }
}
