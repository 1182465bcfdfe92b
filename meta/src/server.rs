//! The shell: answers requests, in process, from views and by proposing commands.
//!
//! ```text
//!   write: validate -> (choose, draw) -> command -> Group::propose -> reply -> (token)
//!   read:  validate -> Group::read -> rows of the view -> (tokens, locations)
//! ```
//!
//! Every replica is opened; only the leader answers, all but [`GetGroup`]. Others name the leader and had no part in it.
//!
//! Reads run where they are called: they look up a handful of rows in memory-mapped pages or redb's cache. Listings and
//! other reads of many rows move to a blocking thread, so that they do not hold up the reactor.
//!
//! Not here: decisions (see `state`), background work (see `worker`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::service::{CallError, OmService, ScmService};
use consensus::{
    Group, GroupConfig, GroupStatus, Priority, ProposeError, ReadError, ReadView, StoreError, Table,
};
use parking_lot::RwLock;
use platform::task;
use tokio::sync::watch;
use wire::block::{BlockEntry, Replication};
use wire::clock;
use wire::group::MemberRole;
use wire::host::HostPort;
use wire::ids::{BucketId, ContainerId, DatanodeId, LeaseId, SessionId, WriteId};
use wire::om::{
    BucketRef, CommitKey, DegradeBlocks, GetLayout, GetSigningKey, KeyFound, KeyPage,
    LAYOUT_PAGE_ENTRIES_MAX, LayoutPage, Loan, LookupKey, OmReply, OmRequest, PutUser, Rejection,
    RenewSession, RetainAccessKeys, SignV2, SignedV2, SigningKey, TakeLoan, UserInfo,
};
use wire::scm::{DegradeContainer, Degraded};
use wire::status::{Failure, Status};
use zeroize::Zeroizing;

use crate::command::{self, Command};
use crate::config::OmConfig;
use crate::error::{self, OmError};
use crate::interim::{GroupExt, Leadership};
use crate::leader;
use crate::leases::LeaderMemory;
use crate::metrics::Metrics;
use crate::operators::{self, COUNTED_MAX};
use crate::prepare;
use crate::schema::{SESSION, SessionRow, WORK};
use crate::seal::{self, Sealer};
use crate::state::{
    Current, OmState, Reply, RowsExt, Stop, access, bucket, condition, deletion, key, layout, listing,
    multipart,
};
use crate::worker::{self, WorkerStatus, Workers};

/// A loan waits this long for a lease, then the caller is told to try again.
const LEASE_WAIT: Duration = Duration::from_secs(2);
/// A loan around failed datanodes waits this long for a lease without them, then any lease serves.
const AROUND_WAIT: Duration = Duration::from_secs(1);
/// A listing of more rows than this runs on a blocking thread: about 0.2 ms of work.
const INLINE_ROWS_MAX: u32 = 100;

/// The Ozone Manager of this process.
pub struct Om {
    config: OmConfig,
    group: Group<OmState>,
    leadership: watch::Receiver<Leadership>,
    scm: Arc<dyn ScmService>,
    /// Of the term this replica leads, or led last.
    memory: RwLock<Arc<LeaderMemory>>,
    sealer: Sealer,
    metrics: Metrics,
    workers: Workers,
    /// Ends what follows leadership.
    stop: watch::Sender<bool>,
    follower: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// What operators see of OM.
#[derive(Debug, Clone)]
pub struct OmStatus {
    /// Raft and state.
    pub group: GroupStatus,
    /// Buckets, counted up to 10,000.
    pub buckets: usize,
    /// Leases that still have ids.
    pub leases_open: usize,
    /// Ids left in them.
    pub lease_ids_left: u64,
    /// Freed blocks that wait, counted up to 10,000.
    pub deletion_backlog_blocks: usize,
    /// Since when the oldest of them waits.
    pub deletion_oldest_ms: Option<u64>,
    /// Rows of queued work, counted up to 10,000.
    pub queued_work: usize,
    /// What stands in the way of more leases.
    pub awaited: Option<String>,
    /// Background work.
    pub workers: Vec<WorkerStatus>,
}

impl Om {
    /// Opens or creates an OM and starts its background work.
    pub async fn open(config: OmConfig, scm: Arc<dyn ScmService>) -> Result<Arc<Self>, OmError> {
        let group_config = GroupConfig {
            log_segment_bytes: config.log_segment_bytes,
            cache_bytes: config.cache_bytes,
            ..GroupConfig::new("om", config.dir.clone(), config.cluster_id.0)
        };
        // Replay reads the disk for as long as it takes: not on the reactor.
        let opened = task::spawn_blocking(move || Group::open(group_config, OmState::default()));
        let group = opened.await.map_err(|_| OmError::Died)??;
        let om = Arc::new(Self {
            leadership: group.leadership(),
            memory: RwLock::new(Arc::new(new_memory(0, &scm, &config))),
            scm,
            sealer: Sealer::new(&config.cluster_key),
            metrics: Metrics::new(),
            workers: Workers::new(),
            stop: watch::Sender::new(false),
            follower: parking_lot::Mutex::default(),
            group,
            config,
        });
        let follower = leader::follow(Arc::downgrade(&om), om.leadership.clone(), om.stop.subscribe());
        *om.follower.lock() = Some(task::spawn(follower));
        Ok(om)
    }

    /// Stops background work, hands leadership over, finishes what is under way, and closes log and state.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        let follower = self.follower.lock().take();
        if let Some(follower) = follower {
            // If it panicked, it has said so; log and state are closed in order all the same.
            let _ = follower.await;
        }
        self.group.shutdown().await;
    }

    /// Resolves when this OM leads and has applied an entry of its term: a sole voter after its replay, a replica of
    /// several perhaps never.
    pub async fn wait_ready(&self) -> Result<(), Failure> {
        let mut leadership = self.leadership.clone();
        match leadership.wait_for(|now| now.is_leading).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(Status::Retry, "om has stopped")),
        }
    }

    /// Where it stands.
    pub fn status(&self) -> Result<OmStatus, Failure> {
        let fault = |error| self.fault(&error);
        let memory = self.memory.read().clone();
        let view = self.group.view().map_err(fault)?;
        let leases = prepare::leases(&view).map_err(fault)?;
        let (deletion_backlog_blocks, deletion_oldest_ms) =
            deletion::backlog(&view, COUNTED_MAX).map_err(fault)?;
        Ok(OmStatus {
            group: self.group.status(),
            buckets: bucket::count(&view, COUNTED_MAX).map_err(fault)?,
            leases_open: leases.iter().filter(|(_, row)| row.left() > 0).count(),
            lease_ids_left: leases.iter().map(|(_, row)| row.left()).sum(),
            deletion_backlog_blocks,
            deletion_oldest_ms,
            queued_work: operators::count(&view, WORK).map_err(fault)? as usize,
            awaited: memory.awaited(),
            workers: self.workers.status(),
        })
    }

    /// Pauses or resumes a background worker by its name. False if there is none of that name.
    pub fn set_worker_paused(&self, name: &str, is_paused: bool) -> bool {
        self.workers.set_paused(name, is_paused)
    }

    pub(crate) fn config(&self) -> &OmConfig {
        &self.config
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What the leader of `term` knows; nothing if the term is new.
    pub(crate) fn memory_of(&self, term: u64) -> Arc<LeaderMemory> {
        let known = self.memory.read().clone();
        if known.term() == term {
            return known;
        }
        let mut memory = self.memory.write();
        // A late look at an earlier term must not wipe what the later one has learnt.
        if memory.term() < term {
            *memory = Arc::new(new_memory(term, &self.scm, &self.config));
        }
        memory.clone()
    }

    /// The leader's memory, if this replica leads.
    pub(crate) fn leading(&self) -> Result<Arc<LeaderMemory>, Failure> {
        let Leadership { term, is_leading, leader } = *self.leadership.borrow();
        if is_leading { Ok(self.memory_of(term)) } else { Err(self.not_leader(leader)) }
    }

    fn not_leader(&self, leader: Option<u64>) -> Failure {
        Failure::not_leader(leader.and_then(|leader| self.address_of(leader)))
    }

    fn address_of(&self, raft_id: u64) -> Option<HostPort> {
        self.group.member(raft_id).map(|member| member.address)
    }

    /// Only what was freed or queued before this is out of readers' sight.
    pub(crate) fn grace_begins_ms(&self) -> u64 {
        if wire::planted::is_on("gc_without_grace") {
            return u64::MAX;
        }
        clock::now_ms().saturating_sub(self.config.delete_grace_ms)
    }

    /// Rows that could not be read, for a worker.
    pub(crate) fn fault(&self, error: &StoreError) -> Failure {
        error::failure_of(self.store_error(error))
    }

    /// Damaged rows that a worker met and passes over. A replica with peers does not come back from it.
    pub(crate) fn count_damaged(&self, memory: &LeaderMemory, table: Table, row_keys: &[Vec<u8>]) {
        for row_key in row_keys {
            let error = StoreError::Corrupt { table: table.name(), row_key: row_key.clone() };
            self.stop_if_damaged(&error);
            if memory.give_up(table.name(), row_key) {
                tracing::error!(%error, "a worker passes over a damaged row");
                self.metrics.damaged_rows.set(memory.given_up() as f64);
            }
        }
    }

    /// A replica with peers that has a damaged row stops and is rebuilt: answers from the others are right.
    pub(crate) fn stop_if_damaged(&self, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. }) && self.has_peers() {
            tracing::error!(%error, "a row of this replica is damaged: it stops; let it rejoin under a new raft id");
            platform::abort::abort("a row of om's state is damaged");
        }
    }

    fn has_peers(&self) -> bool {
        self.group.info().members.iter().filter(|member| member.role == MemberRole::Voter).count() > 1
    }

    fn store_error(&self, error: &StoreError) -> CallError {
        self.stop_if_damaged(error);
        error::of_store(error)
    }

    fn stop_error(&self, stop: Stop) -> CallError {
        match stop {
            Stop::Reject(rejection) => rejection.into(),
            Stop::Fault(error) => self.store_error(&error),
        }
    }

    fn read_error(&self, error: ReadError) -> CallError {
        match error {
            ReadError::NotLeader { hint } => self.not_leader(hint).into(),
            ReadError::Store(error) => self.store_error(&error),
            error => Failure::new(Status::Retry, error.to_string()).into(),
        }
    }

    fn propose_error(&self, error: ProposeError) -> CallError {
        match error {
            ProposeError::NotLeader { hint } => self.not_leader(hint).into(),
            error => error::of_propose(&error),
        }
    }

    pub(crate) async fn propose(&self, command: impl Into<Command>) -> Result<Reply, CallError> {
        self.propose_with(command.into(), Priority::Ordinary).await
    }

    pub(crate) async fn propose_freeing(&self, command: impl Into<Command>) -> Result<Reply, CallError> {
        self.propose_with(command.into(), Priority::Freeing).await
    }

    async fn propose_with(&self, command: Command, priority: Priority) -> Result<Reply, CallError> {
        let started_ns = clock::steady_ns();
        let bytes = command.encode(clock::now_ms());
        drop(command);
        let reply = self.group.propose_with(bytes, priority).await;
        let reply = reply.map_err(|error| self.propose_error(error))?;
        self.metrics.command_seconds.record((clock::steady_ns() - started_ns) as f64 / 1e9);
        match reply {
            Reply::Rejected(rejection) => Err(rejection.into()),
            reply => Ok(reply),
        }
    }

    /// A linearizable view.
    pub(crate) async fn view(&self) -> Result<Arc<ReadView>, CallError> {
        self.group.read().await.map_err(|error| self.read_error(error))
    }

    /// What this replica has applied: for workers, whose commands are judged again in apply.
    pub(crate) fn applied_view(&self) -> Result<ReadView, Failure> {
        self.group.view().map_err(|error| self.fault(&error))
    }

    /// A read of many rows, away from the reactor.
    pub(crate) async fn read_many<T: Send + 'static>(
        &self,
        is_short: bool,
        read: impl FnOnce(&ReadView) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, CallError> {
        let view = match wire::planted::is_on("list_from_follower") {
            true => Arc::new(self.applied_view()?),
            false => self.view().await?,
        };
        if is_short {
            return read(&view).map_err(|stop| self.stop_error(stop));
        }
        let outcome = task::spawn_blocking(move || read(&view)).await;
        outcome
            .map_err(|_| Failure::new(Status::Internal, "a read has died"))?
            .map_err(|stop| self.stop_error(stop))
    }

    async fn check_session(&self, session: SessionId) -> Result<(), CallError> {
        let view = self.view().await?;
        let row: Option<SessionRow> =
            view.row(SESSION, &session.to_be_bytes()).map_err(|error| self.store_error(&error))?;
        if row.is_none_or(|row| row.is_ended) { Err(Rejection::SessionEnded.into()) } else { Ok(()) }
    }

    async fn renew(&self, memory: &LeaderMemory, request: RenewSession) -> Result<(), CallError> {
        self.check_session(request.session).await?;
        memory.touch(request.session);
        Ok(())
    }

    async fn take_loan(&self, memory: &LeaderMemory, request: TakeLoan) -> Result<Loan, CallError> {
        let avoid: BTreeSet<_> = request.avoid.iter().copied().collect();
        let avoid_datanodes: BTreeSet<_> = request.avoid_datanodes.iter().copied().collect();
        if !avoid_datanodes.is_empty()
            && let Some(lease) =
                self.lease_around(memory, request.replication, &avoid, &avoid_datanodes).await?
            && let Some(loan) = self.lend(memory, &request, lease).await?
        {
            return Ok(loan);
        }
        let mut changed = memory.subscribe();
        let patience = tokio::time::sleep(LEASE_WAIT);
        tokio::pin!(patience);
        loop {
            changed.borrow_and_update();
            if let Some(lease) = self.choose_lease(request.replication, &avoid, &BTreeSet::new()).await?
                && memory.check_token_keys().is_ok()
            {
                match self.lend(memory, &request, lease).await? {
                    Some(loan) => return Ok(loan),
                    // Another gateway took the last ids: choose again.
                    None => continue,
                }
            }
            memory.want(request.replication, &avoid);
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                () = &mut patience => return Err(no_lease(memory, request.replication).into()),
            }
        }
    }

    async fn choose_lease(
        &self,
        replication: Replication,
        avoid: &BTreeSet<ContainerId>,
        avoid_datanodes: &BTreeSet<DatanodeId>,
    ) -> Result<Option<LeaseId>, CallError> {
        let view = self.view().await?;
        let leases = prepare::leases(&view).map_err(|error| self.store_error(&error))?;
        let wanted = prepare::Wanted { replication, avoid, avoid_datanodes };
        Ok(prepare::choose_lease(&leases, &wanted, wire::random::u64()))
    }

    /// A lease in a pipeline without these datanodes, if there is or can soon be one.
    async fn lease_around(
        &self,
        memory: &LeaderMemory,
        replication: Replication,
        avoid: &BTreeSet<ContainerId>,
        avoid_datanodes: &BTreeSet<DatanodeId>,
    ) -> Result<Option<LeaseId>, CallError> {
        if let Some(lease) = self.choose_lease(replication, avoid, avoid_datanodes).await? {
            return Ok(Some(lease));
        }
        if !memory.may_ask_around(replication) {
            return Ok(None);
        }
        let asked = worker::lease_around(self, memory, replication, avoid, avoid_datanodes);
        match tokio::time::timeout(AROUND_WAIT, asked).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(failure)) => {
                tracing::debug!(%failure, "no lease around failed datanodes");
                Ok(None)
            }
            // Granted perhaps, and not logged: the keeper gives it back.
            Err(_) => Ok(None),
        }
    }

    /// Lends from a lease. None if it has no ids left.
    async fn lend(
        &self,
        memory: &LeaderMemory,
        request: &TakeLoan,
        lease: LeaseId,
    ) -> Result<Option<Loan>, CallError> {
        let command = command::TakeLoan { context: request.context, lease, count: request.count };
        match self.propose(command).await? {
            Reply::Lent(lent) => {
                let token = memory.write_token(&lent, request.context.session)?;
                Ok(Some(Loan {
                    id: lent.id,
                    container: lent.container,
                    generation: lent.generation,
                    first: lent.first,
                    count: lent.count,
                    pipeline: lent.pipeline,
                    token,
                }))
            }
            Reply::LeaseExhausted => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// OM itself keeps nothing about replicas: SCM decides and logs. Loans that are out there keep their ids, since blocks
    /// that the remaining members acknowledged may be committed; no new loan comes from that container.
    async fn degrade_blocks(
        &self,
        memory: &LeaderMemory,
        request: DegradeBlocks,
    ) -> Result<Degraded, CallError> {
        self.check_session(request.session).await?;
        let DegradeBlocks { container, generation, acknowledged, failed, .. } = request;
        let degraded = memory.call(DegradeContainer { container, generation, acknowledged, failed }).await?;
        memory.forget_location(container);
        if degraded == Degraded::Accepted {
            let leases = prepare::leases(&self.applied_view()?).map_err(|error| self.store_error(&error))?;
            let open = leases.iter().filter(|(_, row)| row.container == container && !row.is_ended);
            let leases: Vec<LeaseId> = open.map(|(id, _)| *id).collect();
            if !leases.is_empty() {
                tracing::info!(%container, ?leases, "leases end: replicas of their container were left out");
                // What SCM has accepted stands even if this is not logged: the next comparison ends the leases.
                if let Err(error) = self.propose_freeing(command::EndLeases { leases }).await {
                    tracing::info!(%container, %error, "the leases of a degraded container are not ended yet");
                }
            }
            memory.wanted.notify_one();
        }
        Ok(degraded)
    }

    async fn put_user(&self, request: PutUser) -> Result<(), CallError> {
        let view = self.view().await?;
        match access::get(view.as_ref(), &request.access_key) {
            Ok((row, user)) => {
                let secret = self.sealer.open(&request.access_key, &row);
                // At every start the same users come again: no change, no new version.
                if user == request.user && secret.as_deref() == Some(&request.secret.0) {
                    return Ok(());
                }
            }
            Err(Stop::Reject(_)) => {}
            Err(stop) => return Err(self.stop_error(stop)),
        }
        drop(view);
        let nonce = wire::random::array();
        let sealed = self.sealer.seal(&request.access_key, &request.secret.0, &nonce);
        let command = command::PutUser { user: request.user, access_key: request.access_key, nonce, sealed };
        self.propose(command).await.map(|_| ())
    }

    async fn retain_access_keys(&self, request: RetainAccessKeys) -> Result<(), CallError> {
        loop {
            let view = self.view().await?;
            let others = access::others(view.as_ref(), &request.access_keys);
            if others.map_err(|error| self.store_error(&error))?.is_empty() {
                return Ok(());
            }
            drop(view);
            let access_keys = request.access_keys.clone();
            self.propose(command::RetainAccessKeys { access_keys }).await?;
        }
    }

    /// The secret of an access key, its user, and the access version it was read at.
    async fn secret(&self, access_key: &str) -> Result<(Zeroizing<String>, UserInfo, u64), CallError> {
        let view = self.view().await?;
        let (row, user) = access::get(view.as_ref(), access_key).map_err(|stop| self.stop_error(stop))?;
        let Current { access_version, .. } = view.current().map_err(|error| self.store_error(&error))?;
        let secret = self.sealer.open(access_key, &row).ok_or_else(|| {
            Failure::new(Status::Internal, "the access key is sealed under another cluster key")
        })?;
        Ok((secret, user, access_version))
    }

    async fn signing_key(&self, request: GetSigningKey) -> Result<SigningKey, CallError> {
        let (secret, user, access_version) = self.secret(&request.access_key).await?;
        let key = seal::signing_key(&secret, &request.day, &request.region, &request.service);
        Ok(SigningKey { user, key, access_version })
    }

    async fn sign_v2(&self, request: SignV2) -> Result<SignedV2, CallError> {
        let (secret, user, access_version) = self.secret(&request.access_key).await?;
        Ok(SignedV2 { user, signature: seal::sign_v2(&secret, &request.string_to_sign), access_version })
    }

    async fn commit_key(&self, request: CommitKey) -> Result<Reply, CallError> {
        if wire::planted::is_on("condition_checked_early") {
            let view = self.view().await?;
            let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
            let old =
                key::get(view.as_ref(), bucket, &request.key).map_err(|error| self.store_error(&error))?;
            condition::decide(request.condition, old.map(|old| old.head.etag))?;
        }
        self.propose(request).await
    }

    async fn lookup_key(&self, memory: &LeaderMemory, request: LookupKey) -> Result<KeyFound, CallError> {
        let view = self.view().await?;
        let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
        let row = key::get(view.as_ref(), bucket, &request.key).map_err(|error| self.store_error(&error))?;
        let (info, data) = row.ok_or(Rejection::NoSuchKey)?.into_info();
        let page = match request.layout_from {
            None => None,
            Some(from) => layout::page(view.as_ref(), info.write_id, &data, from, LAYOUT_PAGE_ENTRIES_MAX)
                .map_err(|error| self.store_error(&error))?,
        };
        let read_index = view.applied_index().map_err(|error| error::of_store(&error))?;
        drop(view);
        let layout = match page {
            None => None,
            Some((start, entries)) => Some(layout_page(memory, start, entries).await?),
        };
        Ok(KeyFound { info, layout, read_index })
    }

    async fn get_layout(&self, memory: &LeaderMemory, request: GetLayout) -> Result<LayoutPage, CallError> {
        let view = self.view().await?;
        check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
        let page =
            layout::layout_page(view.as_ref(), request.write_id, request.from, LAYOUT_PAGE_ENTRIES_MAX);
        drop(view);
        let (start, entries) = page.map_err(|error| self.store_error(&error))?.ok_or(Rejection::NoSuchKey)?;
        layout_page(memory, start, entries).await
    }

    async fn answer(&self, memory: &LeaderMemory, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::OpenSession(request) => {
                match self.propose(command::OpenSession { nonce: request.nonce }).await? {
                    Reply::Session(session) => {
                        memory.touch(session);
                        Ok(OmReply::OpenSession(session))
                    }
                    _ => Err(unexpected()),
                }
            }
            Q::RenewSession(request) => self.renew(memory, request).await.map(OmReply::RenewSession),
            Q::EndSession(request) => {
                self.propose_freeing(command::EndSession { session: request.session }).await?;
                Ok(OmReply::EndSession(()))
            }
            Q::TakeLoan(request) => self.take_loan(memory, request).await.map(OmReply::TakeLoan),
            Q::ReleaseBlocks(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::ReleaseBlocks(()))
            }
            Q::DegradeBlocks(request) => {
                self.degrade_blocks(memory, request).await.map(OmReply::DegradeBlocks)
            }
            Q::RefreshLocations(request) => {
                // A view, so that a leader that was deposed does not answer from what it once knew.
                drop(self.view().await?);
                Ok(OmReply::RefreshLocations(memory.ask_locations(&request.containers).await?))
            }
            Q::PutUser(request) => self.put_user(request).await.map(OmReply::PutUser),
            Q::RetainAccessKeys(request) => {
                self.retain_access_keys(request).await.map(OmReply::RetainAccessKeys)
            }
            Q::GetSigningKey(request) => self.signing_key(request).await.map(OmReply::GetSigningKey),
            Q::SignV2(request) => self.sign_v2(request).await.map(OmReply::SignV2),
            request => self.answer_namespace(memory, request).await,
        }
    }

    async fn answer_namespace(
        &self,
        memory: &LeaderMemory,
        request: OmRequest,
    ) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::CreateBucket(request) => match self.propose(request).await? {
                Reply::Bucket(bucket) => Ok(OmReply::CreateBucket(bucket)),
                _ => Err(unexpected()),
            },
            Q::GetBucket(request) => {
                let view = self.view().await?;
                let current = view.current().map_err(|error| self.store_error(&error))?;
                let bucket = bucket::get(view.as_ref(), current.defaults, &request.name);
                Ok(OmReply::GetBucket(bucket.map_err(|stop| self.stop_error(stop))?))
            }
            Q::DeleteBucket(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::DeleteBucket(()))
            }
            Q::ListBuckets(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| Ok(bucket::list(view, view.current()?.defaults, &request)?);
                self.read_many(is_short, read).await.map(OmReply::ListBuckets)
            }
            Q::CommitKey(request) => match self.commit_key(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CommitKey(committed)),
                _ => Err(unexpected()),
            },
            Q::LookupKey(request) => self.lookup_key(memory, request).await.map(OmReply::LookupKey),
            Q::GetLayout(request) => self.get_layout(memory, request).await.map(OmReply::GetLayout),
            Q::DeleteKeys(request) => match self.propose_freeing(request).await? {
                Reply::Deleted(deleted) => Ok(OmReply::DeleteKeys(deleted)),
                _ => Err(unexpected()),
            },
            Q::CopyKey(request) => match self.propose(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CopyKey(committed)),
                _ => Err(unexpected()),
            },
            Q::ListKeys(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    let page = listing::list_keys(view, bucket, &request)?;
                    Ok(KeyPage { read_index: view.applied_index()?, ..page })
                };
                self.read_many(is_short, read).await.map(OmReply::ListKeys)
            }
            request => self.answer_multipart(request).await,
        }
    }

    async fn answer_multipart(&self, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::CreateUpload(request) => match self.propose(request).await? {
                Reply::Upload(upload) => Ok(OmReply::CreateUpload(upload)),
                _ => Err(unexpected()),
            },
            Q::GetUpload(request) => {
                let view = self.view().await?;
                let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
                let row = multipart::get(view.as_ref(), bucket, &request.key, request.upload);
                Ok(OmReply::GetUpload(row.map_err(|stop| self.stop_error(stop))?.info(request.upload)))
            }
            Q::CommitPart(request) => match self.propose(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CommitPart(committed)),
                _ => Err(unexpected()),
            },
            Q::CompleteUpload(request) => match self.propose(request).await? {
                Reply::Completed(completed) => Ok(OmReply::CompleteUpload(completed)),
                _ => Err(unexpected()),
            },
            Q::AbortUpload(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::AbortUpload(()))
            }
            Q::ListParts(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    multipart::list_parts(view, bucket, &request)
                };
                self.read_many(is_short, read).await.map(OmReply::ListParts)
            }
            Q::ListUploads(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    Ok(listing::list_uploads(view, bucket, &request)?)
                };
                self.read_many(is_short, read).await.map(OmReply::ListUploads)
            }
            Q::MembershipChange(_) | Q::TransferLeadership(_) => {
                let message = "this group has one replica: it has no members to change";
                Err(Failure::new(Status::Invalid, message).into())
            }
            request => self.answer_operator(request).await,
        }
    }
}

fn new_memory(term: u64, scm: &Arc<dyn ScmService>, config: &OmConfig) -> LeaderMemory {
    LeaderMemory::new(term, scm.clone(), &config.replications, config.block_bytes_max)
}

async fn layout_page(
    memory: &LeaderMemory,
    start: u64,
    entries: Vec<BlockEntry>,
) -> Result<LayoutPage, CallError> {
    memory.wait_token_keys().await?;
    let tokens = memory.read_tokens(&entries)?;
    let locations = memory.locate(&entries).await?;
    Ok(LayoutPage { start, entries, tokens, locations })
}

fn no_lease(memory: &LeaderMemory, replication: Replication) -> Failure {
    let why = match (memory.awaited_of(replication), memory.check_token_keys()) {
        (Some(awaited), _) => awaited,
        (None, Err(failure)) => failure.message,
        (None, Ok(())) => "scm has granted none yet".to_owned(),
    };
    Failure::new(Status::Retry, format!("a lease of block ids for {replication:?} is awaited: {why}"))
}

fn check(view: &ReadView, bucket: &BucketRef) -> Result<BucketId, Stop> {
    Ok(bucket::check(view, view.current()?, bucket)?.id)
}

fn unexpected() -> CallError {
    Failure::new(Status::Internal, "apply answered another question than was asked").into()
}

/// A bug planted for the simulator.
fn is_listed_by_followers(request: &OmRequest) -> bool {
    matches!(request, OmRequest::ListKeys(_)) && wire::planted::is_on("list_from_follower")
}

/// The session of a write, if it has one.
fn session_of(request: &OmRequest) -> Option<WriteId> {
    use OmRequest as Q;
    let context = match request {
        Q::TakeLoan(request) => request.context,
        Q::ReleaseBlocks(request) => request.context,
        Q::CreateBucket(request) => request.context,
        Q::DeleteBucket(request) => request.context,
        Q::CommitKey(request) => request.context,
        Q::DeleteKeys(request) => request.context,
        Q::CopyKey(request) => request.context,
        Q::CreateUpload(request) => request.context,
        Q::CommitPart(request) => request.context,
        Q::CompleteUpload(request) => request.context,
        Q::AbortUpload(request) => request.context,
        _ => return None,
    };
    Some(context.write_id())
}

#[async_trait]
impl OmService for Om {
    async fn handle(&self, mut request: OmRequest) -> Result<OmReply, CallError> {
        self.metrics.count_request(request.name());
        prepare::validate(&mut request)?;
        if let OmRequest::GetGroup(_) = request {
            return Ok(OmReply::GetGroup(self.group.info()));
        }
        let memory = match self.leading() {
            Err(_) if is_listed_by_followers(&request) => self.memory.read().clone(),
            leading => leading?,
        };
        if let Some(write_id) = session_of(&request) {
            memory.touch(write_id.session);
        }
        let outcome = self.answer(&memory, request).await;
        match &outcome {
            Ok(_) => {}
            Err(CallError::Rejected(_)) => self.metrics.rejections.increment(1),
            Err(CallError::Failed(failure)) => {
                self.metrics.failures.increment(1);
                tracing::debug!(%failure, "a request got no answer");
            }
        }
        outcome
    }
}
