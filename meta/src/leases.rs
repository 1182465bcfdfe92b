//! Leader memory beside the rows: token keys, where containers are, which leases are asked for, when sessions were heard of.
//!
//! It begins empty with every term: SCM and the gateways give it again. Ids are never handed out from here.
//!
//! Not here: when a term begins (see `leader`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::service::{ScmService, call_scm};
use parking_lot::{Mutex, RwLock};
use platform::watch;
use tokio::sync::Notify;
use wire::block::{
    BlockClaim, BlockEntry, BlockOperation, BlockToken, ContainerLocation, ReplicaLocation, Replication,
    TokenKey,
};
use wire::clock::{self, UnixMs};
use wire::ids::{BlockId, ContainerId, Generation, LeaseId, SessionId};
use wire::limits::BLOCK_TOKEN_LIFE_MS;
use wire::scm::LocateContainers;
use wire::status::{Failure, Status};

use crate::locations::LocationCache;
use crate::schema::LeaseRow;
use crate::state::Lent;

/// Replicas move when nodes die: what SCM said is believed for so long. A reader that finds nobody asks again.
const LOCATION_LIFE_MS: u64 = 10_000;
/// SCM answers within this or is taken for lost.
const SCM_DEADLINE: Duration = Duration::from_secs(10);
/// A container without readable replicas is asked for again so often ...
const LOCATE_TURNS: u32 = 10;
/// ... after this: a datanode registers within a second of its start.
const LOCATE_PAUSE: Duration = Duration::from_millis(100);
/// A read waits this long for token keys, then the caller is told to try again.
const TOKEN_KEYS_WAIT: Duration = Duration::from_secs(2);
/// Damaged rows that workers pass over in one term at most.
const DAMAGED_ROWS_MAX: usize = 10_000;
/// Containers to avoid are forgotten after this: they have left OPEN by then.
const AVOID_MS: u64 = 60_000;
/// SCM is not asked again for a lease around failed datanodes for so long after it had none: it has taken them for dead
/// by then, or they are back.
const AROUND_PAUSE_MS: u64 = 2000;
/// Keys are signed with only if they outlive two tokens.
const KEY_LIFE_LEFT_MS: u64 = 2 * BLOCK_TOKEN_LIFE_MS;

/// What the leader knows beside its rows.
pub(crate) struct LeaderMemory {
    /// The term it belongs to. 0: this replica has not led yet.
    term: u64,
    scm: Arc<dyn ScmService>,
    /// What write tokens allow.
    block_bytes_max: u64,
    token_keys: RwLock<Vec<TokenKey>>,
    of_leases: RwLock<BTreeMap<ContainerId, ContainerLocation>>,
    located: Mutex<LocationCache>,
    demand: Mutex<Demand>,
    /// When each session was last heard of, in steady milliseconds.
    heard: Mutex<BTreeMap<SessionId, u64>>,
    /// Held by whoever compares leases with SCM, or has one granted and logged: a lease that is granted and not yet logged
    /// would be taken for one that OM does not know, and returned.
    pub(crate) leasing: tokio::sync::Mutex<()>,
    /// Up to where containers were looked at for being empty.
    retire_after: Mutex<ContainerId>,
    /// Rows that a worker gave up for this term, since they are damaged.
    damaged: Mutex<BTreeSet<(&'static str, Vec<u8>)>>,
    /// Wakes the keeper.
    pub(crate) wanted: Notify,
    /// Counts changes of leases and token keys.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Demand {
    replications: BTreeSet<Replication>,
    /// What most keys are to be, as last named.
    expected: Option<Replication>,
    /// Held ready whatever is expected.
    configured: BTreeSet<Replication>,
    avoid: BTreeMap<ContainerId, UnixMs>,
    /// Until when SCM is not asked for a lease around failed datanodes, in steady milliseconds.
    around_paused: BTreeMap<Replication, u64>,
    /// Numbers of grants that SCM has not answered: a repeat carries the same.
    grants: BTreeMap<Replication, u64>,
    /// What stands in the way of more leases, and of token keys.
    awaited: BTreeMap<Option<Replication>, String>,
}

impl Demand {
    fn expect(&mut self, replication: Replication) {
        let before = self.expected.replace(replication).filter(|before| *before != replication);
        // A container of one replica that stands ready for nobody is missed all the same when its node is lost.
        if let Some(before) = before
            && !self.configured.contains(&before)
        {
            self.replications.remove(&before);
        }
        self.replications.insert(replication);
    }
}

impl LeaderMemory {
    pub(crate) fn new(
        term: u64,
        scm: Arc<dyn ScmService>,
        replications: &[Replication],
        block_bytes_max: u64,
    ) -> Self {
        let configured: BTreeSet<_> = replications.iter().copied().collect();
        let demand = Demand { replications: configured.clone(), configured, ..Demand::default() };
        Self {
            term,
            scm,
            block_bytes_max,
            token_keys: RwLock::default(),
            of_leases: RwLock::default(),
            located: Mutex::new(LocationCache::new(LOCATION_LIFE_MS)),
            demand: Mutex::new(demand),
            heard: Mutex::default(),
            leasing: tokio::sync::Mutex::default(),
            retire_after: Mutex::default(),
            damaged: Mutex::default(),
            wanted: Notify::new(),
            changed: watch::Sender::new(0),
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }

    /// A session was heard of.
    pub(crate) fn touch(&self, session: SessionId) {
        self.heard.lock().insert(session, steady_ms());
    }

    /// Of the sessions in state, those that were silent for too long. One that this leader never heard of starts now.
    pub(crate) fn silent_sessions(&self, sessions: &[SessionId], silence_ms: u64) -> Vec<SessionId> {
        let now_ms = steady_ms();
        let mut heard = self.heard.lock();
        let in_state: BTreeSet<SessionId> = sessions.iter().copied().collect();
        heard.retain(|session, _| in_state.contains(session));
        // One may have been heard since the clock was read: not silent, rather than silent for an age.
        let is_silent = |session: &SessionId| {
            now_ms.saturating_sub(*heard.entry(*session).or_insert(now_ms)) > silence_ms
        };
        sessions.iter().copied().filter(is_silent).collect()
    }

    /// OM's number of the grant it is asking for.
    pub(crate) fn grant_request(&self, replication: Replication) -> u64 {
        *self.demand.lock().grants.entry(replication).or_insert_with(wire::random::u64)
    }

    /// The grant is logged: the next one has another number.
    pub(crate) fn grant_done(&self, replication: Replication) {
        self.demand.lock().grants.remove(&replication);
    }

    /// Whether SCM may be asked for a lease around failed datanodes.
    pub(crate) fn may_ask_around(&self, replication: Replication) -> bool {
        self.demand.lock().around_paused.get(&replication).is_none_or(|until| *until <= steady_ms())
    }

    /// SCM had no lease around failed datanodes: it is not asked again for a while.
    pub(crate) fn pause_around(&self, replication: Replication) {
        self.demand.lock().around_paused.insert(replication, steady_ms() + AROUND_PAUSE_MS);
    }

    /// Up to where containers were looked at for being empty, in this round.
    pub(crate) fn retire_after(&self) -> ContainerId {
        *self.retire_after.lock()
    }

    /// See [`Self::retire_after`].
    pub(crate) fn set_retire_after(&self, container: ContainerId) {
        *self.retire_after.lock() = container;
    }

    /// A worker gives a damaged row up for this term. False once there are too many: something else is wrong then.
    pub(crate) fn give_up(&self, table: &'static str, row_key: &[u8]) -> bool {
        let mut damaged = self.damaged.lock();
        damaged.len() < DAMAGED_ROWS_MAX && damaged.insert((table, row_key.to_vec()))
    }

    /// Whether a worker gave this row up.
    pub(crate) fn is_given_up(&self, table: &'static str, row_key: &[u8]) -> bool {
        let damaged = self.damaged.lock();
        !damaged.is_empty() && damaged.contains(&(table, row_key.to_vec()))
    }

    /// How many rows were given up.
    pub(crate) fn given_up(&self) -> usize {
        self.damaged.lock().len()
    }

    /// A call of SCM, with a deadline.
    pub(crate) async fn call<C: wire::scm::ScmCall>(&self, request: C) -> Result<C::Reply, Failure> {
        match tokio::time::timeout(SCM_DEADLINE, call_scm(self.scm.as_ref(), request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::new(Status::Retry, "scm does not answer")),
        }
    }

    /// Leases of this type will be needed, and of the type that was expected before only if they are wanted again.
    pub(crate) fn expect(&self, replication: Replication) {
        self.demand.lock().expect(replication);
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

    /// Says what stands in the way of more leases of a type, or (None) of comparing leases at all, for those who wait.
    pub(crate) fn set_awaited(&self, of: Option<Replication>, awaited: Option<String>) {
        let mut demand = self.demand.lock();
        match awaited {
            Some(awaited) => demand.awaited.insert(of, awaited),
            None => demand.awaited.remove(&of),
        };
    }

    /// What stands in the way of leases of a type.
    pub(crate) fn awaited_of(&self, replication: Replication) -> Option<String> {
        let awaited = &self.demand.lock().awaited;
        awaited.get(&Some(replication)).or_else(|| awaited.get(&None)).cloned()
    }

    /// All that stands in the way of leases: for operators.
    pub(crate) fn awaited(&self) -> Option<String> {
        self.demand.lock().awaited.values().next().cloned()
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

    /// Leave to read these blocks, given with their lengths, one token each.
    pub(crate) fn read_tokens(
        &self,
        blocks: impl IntoIterator<Item = (BlockId, u64)>,
    ) -> Result<Vec<BlockToken>, Failure> {
        let key = self.signing_key()?;
        let expires_ms = clock::now_ms() + BLOCK_TOKEN_LIFE_MS;
        let token_of = |(block, length): (BlockId, u64)| {
            let claim = BlockClaim {
                operation: BlockOperation::Read,
                container: block.container,
                // A read makes no replica and takes any generation that has the block.
                generation: Generation(0),
                replication: Replication::One,
                first: block.local,
                count: 1,
                session: SessionId(0),
                length_max: length,
                expires_ms,
            };
            BlockToken::sign(claim, &key)
        };
        Ok(blocks.into_iter().map(token_of).collect())
    }

    /// Where the containers of these blocks are. Those that nobody has are left out.
    pub(crate) async fn locate(&self, entries: &[BlockEntry]) -> Result<Vec<ContainerLocation>, Failure> {
        let containers: BTreeSet<ContainerId> = entries.iter().map(|entry| entry.block.container).collect();
        let mut found = Vec::with_capacity(containers.len());
        let mut missing = Vec::new();
        for container in containers {
            match self.known(container) {
                Some(location) => found.push(location),
                None => missing.push(container),
            }
        }
        for turn in 0..LOCATE_TURNS {
            if missing.is_empty() {
                break;
            }
            if turn > 0 {
                tokio::time::sleep(LOCATE_PAUSE).await;
            }
            // Nobody has it yet: after a start the datanodes are still registering.
            for location in self.ask_locations(&missing).await? {
                if !location.replicas.is_empty() {
                    missing.retain(|container| *container != location.container);
                    found.push(location);
                }
            }
        }
        Ok(found)
    }

    /// What SCM said last comes before the members of a lease's pipeline, one of which may have failed since.
    fn known(&self, container: ContainerId) -> Option<ContainerLocation> {
        let located = self.located.lock().get(container, steady_ms());
        located.or_else(|| self.of_leases.read().get(&container).cloned())
    }

    /// Where containers are by what SCM says now. Replaces what was known of them.
    pub(crate) async fn ask_locations(
        &self,
        containers: &[ContainerId],
    ) -> Result<Vec<ContainerLocation>, Failure> {
        let locations = self.call(LocateContainers { containers: containers.to_vec() }).await?;
        let now_ms = steady_ms();
        let mut located = self.located.lock();
        for container in containers {
            located.remove(*container);
        }
        for location in &locations {
            // That nobody has it is not worth remembering: somebody may in a moment.
            if !location.replicas.is_empty() {
                located.insert(location.clone(), now_ms);
            }
        }
        Ok(locations)
    }

    /// Replicas of a container were left out: what was known of it no longer holds.
    pub(crate) fn forget_location(&self, container: ContainerId) {
        self.located.lock().remove(container);
        self.of_leases.write().remove(&container);
    }
}

fn steady_ms() -> u64 {
    clock::steady_ns() / 1_000_000
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_longer_expected_is_held_ready_no_longer() {
        let mut demand = Demand::default();
        demand.expect(Replication::One);
        demand.expect(Replication::One);
        assert_eq!(demand.replications, [Replication::One].into());
        demand.expect(Replication::Three);
        assert_eq!(demand.replications, [Replication::Three].into());
        // Wanted by somebody: it stays, as long as it was not what most keys were to be.
        demand.replications.insert(Replication::One);
        demand.expect(Replication::Three);
        assert_eq!(demand.replications, [Replication::One, Replication::Three].into());
        let mut configured = Demand { configured: [Replication::One].into(), ..Demand::default() };
        configured.expect(Replication::One);
        configured.expect(Replication::Three);
        assert_eq!(configured.replications, [Replication::One, Replication::Three].into());
    }
}
