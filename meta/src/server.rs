//! The shell: answers requests, in process, from views and by proposing commands.
//!
//! ```text
//!   write: validate -> (choose, draw) -> command -> Group::propose -> reply -> (token)
//!   read:  validate -> Group::read -> rows of the view -> (tokens, locations)
//! ```
//!
//! Reads run where they are called: they look up a handful of rows in memory-mapped pages or redb's cache. Listings and
//! other reads of many rows move to a blocking thread, so that they do not hold up the reactor.
//!
//! Not here: decisions (see `state`), background work (see `worker`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use client::service::{CallError, OmService, ScmService};
use consensus::{Group, GroupConfig, GroupStatus, Priority, ReadView};
use parking_lot::Mutex;
use wire::block::{BlockEntry, Replication};
use wire::clock;
use wire::ids::{SessionId, WriteId};
use wire::om::{
    BucketRef, GetLayout, GetSigningKey, KeyFound, LAYOUT_PAGE_ENTRIES_MAX, LayoutPage, Loan, LookupKey,
    OmReply, OmRequest, PutUser, Rejection, RenewSession, RetainAccessKeys, SignV2, SignedV2, SigningKey,
    TakeLoan, UserInfo,
};
use wire::status::{Failure, Status};
use zeroize::Zeroizing;

use crate::command::{self, Command};
use crate::config::OmConfig;
use crate::error::{self, OmError};
use crate::leases::LeaderMemory;
use crate::metrics::Metrics;
use crate::prepare;
use crate::schema::{SESSION, SessionRow};
use crate::seal::{self, Sealer};
use crate::state::{
    OmState, Reply, RowsExt, Stop, access, bucket, deletion, key, layout, listing, multipart,
};
use crate::worker::{self, WorkerStatus, Workers};

/// A loan waits this long for a lease, then the caller is told to try again.
const LEASE_WAIT: Duration = Duration::from_secs(2);
/// A listing of more rows than this runs on a blocking thread: about 0.2 ms of work.
const INLINE_ROWS_MAX: u32 = 100;
/// Queues are counted for operators up to this number.
const COUNTED_MAX: usize = 10_000;

/// The Ozone Manager of this process.
pub struct Om {
    config: OmConfig,
    group: Group<OmState>,
    memory: Arc<LeaderMemory>,
    sealer: Sealer,
    metrics: Metrics,
    /// When each session was last heard of, in steady milliseconds. A new leader starts every timer anew.
    heard: Mutex<HashMap<SessionId, u64>>,
    /// Numbers of grants that SCM has not answered: a repeat carries the same.
    grants: Mutex<BTreeMap<Replication, u64>>,
    workers: Workers,
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
        let opened = tokio::task::spawn_blocking(move || Group::open(group_config, OmState::default()));
        let group = opened.await.map_err(|_| OmError::Died)??;
        let om = Arc::new(Self {
            memory: Arc::new(LeaderMemory::new(scm, &config.replications, config.block_bytes_max)),
            sealer: Sealer::new(&config.cluster_key),
            metrics: Metrics::new(),
            heard: Mutex::default(),
            grants: Mutex::default(),
            workers: Workers::new(),
            group,
            config,
        });
        om.workers.start(&om);
        Ok(om)
    }

    /// Stops background work, finishes what is under way, and closes log and state.
    pub async fn shutdown(&self) {
        self.workers.stop().await;
        self.group.shutdown().await;
    }

    /// Resolves when this OM can answer: it leads and has applied an entry of its term.
    pub async fn wait_ready(&self) -> Result<(), Failure> {
        self.group.wait_leader().await.map_err(|error| error::failure_of(error::of_read(error)))
    }

    /// Where it stands.
    pub fn status(&self) -> Result<OmStatus, Failure> {
        let fault = |error| error::failure_of(error::of_store(&error));
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
            queued_work: worker::queued_work(&view).map_err(fault)?,
            awaited: self.memory.awaited(),
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

    pub(crate) fn group(&self) -> &Group<OmState> {
        &self.group
    }

    pub(crate) fn memory(&self) -> &Arc<LeaderMemory> {
        &self.memory
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.group.status().is_leader
    }

    /// OM's number of the grant it is asking for.
    pub(crate) fn grant_request(&self, replication: Replication) -> u64 {
        *self.grants.lock().entry(replication).or_insert_with(wire::random::u64)
    }

    /// The grant is logged: the next one has another number.
    pub(crate) fn grant_done(&self, replication: Replication) {
        self.grants.lock().remove(&replication);
    }

    fn touch(&self, session: SessionId) {
        self.heard.lock().insert(session, clock::steady_ns() / 1_000_000);
    }

    /// Of the sessions in state, those that were silent for too long. One that this leader never heard of starts now.
    pub(crate) fn silent_sessions(&self, sessions: &[SessionId]) -> Vec<SessionId> {
        let now_ms = clock::steady_ns() / 1_000_000;
        let mut heard = self.heard.lock();
        let in_state: BTreeSet<SessionId> = sessions.iter().copied().collect();
        heard.retain(|session, _| in_state.contains(session));
        let is_silent = |session: &SessionId| {
            now_ms - *heard.entry(*session).or_insert(now_ms) > self.config.session_silence_ms
        };
        sessions.iter().copied().filter(is_silent).collect()
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
        let reply = self.group.propose_with(bytes, priority).await.map_err(error::of_propose)?;
        self.metrics.command_seconds.record((clock::steady_ns() - started_ns) as f64 / 1e9);
        match reply {
            Reply::Rejected(rejection) => Err(rejection.into()),
            reply => Ok(reply),
        }
    }

    async fn view(&self) -> Result<Arc<ReadView>, CallError> {
        self.group.read().await.map_err(error::of_read)
    }

    /// A read of many rows, away from the reactor.
    async fn read_many<T: Send + 'static>(
        &self,
        is_short: bool,
        read: impl FnOnce(&ReadView) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, CallError> {
        let view = self.view().await?;
        if is_short {
            return read(&view).map_err(error::of_stop);
        }
        let outcome = tokio::task::spawn_blocking(move || read(&view)).await;
        outcome.map_err(|_| Failure::new(Status::Internal, "a read has died"))?.map_err(error::of_stop)
    }

    async fn renew(&self, request: RenewSession) -> Result<(), CallError> {
        let view = self.view().await?;
        let row: Option<SessionRow> =
            view.row(SESSION, &request.session.to_be_bytes()).map_err(|error| error::of_store(&error))?;
        if row.is_none_or(|row| row.is_ended) {
            return Err(Rejection::SessionEnded.into());
        }
        self.touch(request.session);
        Ok(())
    }

    async fn take_loan(&self, request: TakeLoan) -> Result<Loan, CallError> {
        let avoid: BTreeSet<_> = request.avoid.iter().copied().collect();
        let mut changed = self.memory.subscribe();
        let patience = tokio::time::sleep(LEASE_WAIT);
        tokio::pin!(patience);
        loop {
            changed.borrow_and_update();
            let view = self.view().await?;
            let lease = prepare::choose_lease(&view, request.replication, &avoid, wire::random::u64());
            drop(view);
            if let Some(lease) = lease.map_err(|error| error::of_store(&error))?
                && self.memory.check_token_keys().is_ok()
            {
                let command = command::TakeLoan { context: request.context, lease, count: request.count };
                match self.propose(command).await? {
                    Reply::Lent(lent) => {
                        let token = self.memory.write_token(&lent, request.context.session)?;
                        return Ok(Loan {
                            id: lent.id,
                            container: lent.container,
                            generation: lent.generation,
                            first: lent.first,
                            count: lent.count,
                            pipeline: lent.pipeline,
                            token,
                        });
                    }
                    // Another gateway took the last ids: choose again.
                    Reply::LeaseExhausted => continue,
                    _ => return Err(unexpected()),
                }
            }
            self.memory.want(request.replication, &avoid);
            tokio::select! {
                _ = changed.changed() => {}
                () = &mut patience => return Err(self.no_lease(request.replication).into()),
            }
        }
    }

    fn no_lease(&self, replication: Replication) -> Failure {
        let why = match (self.memory.awaited(), self.memory.check_token_keys()) {
            (Some(awaited), _) => awaited,
            (None, Err(failure)) => failure.message,
            (None, Ok(())) => "scm has granted none yet".to_owned(),
        };
        Failure::new(Status::Retry, format!("a lease of block ids for {replication:?} is awaited: {why}"))
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
            Err(stop) => return Err(error::of_stop(stop)),
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
            if others.map_err(|error| error::of_store(&error))?.is_empty() {
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
        let (row, user) = access::get(view.as_ref(), access_key).map_err(error::of_stop)?;
        let access_version = view.access_version().map_err(|error| error::of_store(&error))?;
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

    async fn lookup_key(&self, request: LookupKey) -> Result<KeyFound, CallError> {
        let view = self.view().await?;
        let bucket = check(&view, &request.bucket).map_err(error::of_stop)?;
        let row = key::get(view.as_ref(), bucket, &request.key).map_err(|error| error::of_store(&error))?;
        let (info, data) = row.ok_or(Rejection::NoSuchKey)?.into_info();
        let page = match request.layout_from {
            None => None,
            Some(from) => layout::page(view.as_ref(), info.write_id, &data, from, LAYOUT_PAGE_ENTRIES_MAX)
                .map_err(|error| error::of_store(&error))?,
        };
        drop(view);
        let layout = match page {
            None => None,
            Some((start, entries)) => Some(self.layout_page(start, entries).await?),
        };
        Ok(KeyFound { info, layout, read_index: 0 })
    }

    async fn get_layout(&self, request: GetLayout) -> Result<LayoutPage, CallError> {
        let view = self.view().await?;
        check(&view, &request.bucket).map_err(error::of_stop)?;
        let page =
            layout::layout_page(view.as_ref(), request.write_id, request.from, LAYOUT_PAGE_ENTRIES_MAX);
        drop(view);
        let (start, entries) = page.map_err(|error| error::of_store(&error))?.ok_or(Rejection::NoSuchKey)?;
        self.layout_page(start, entries).await
    }

    async fn layout_page(&self, start: u64, entries: Vec<BlockEntry>) -> Result<LayoutPage, CallError> {
        self.memory.wait_token_keys().await?;
        let tokens = self.memory.read_tokens(&entries)?;
        let locations = self.memory.locate(&entries).await?;
        Ok(LayoutPage { start, entries, tokens, locations })
    }

    async fn answer(&self, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::OpenSession(request) => {
                match self.propose(command::OpenSession { nonce: request.nonce }).await? {
                    Reply::Session(session) => {
                        self.touch(session);
                        Ok(OmReply::OpenSession(session))
                    }
                    _ => Err(unexpected()),
                }
            }
            Q::RenewSession(request) => self.renew(request).await.map(OmReply::RenewSession),
            Q::EndSession(request) => {
                self.propose_freeing(command::EndSession { session: request.session }).await?;
                Ok(OmReply::EndSession(()))
            }
            Q::TakeLoan(request) => self.take_loan(request).await.map(OmReply::TakeLoan),
            Q::ReleaseBlocks(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::ReleaseBlocks(()))
            }
            Q::PutUser(request) => self.put_user(request).await.map(OmReply::PutUser),
            Q::RetainAccessKeys(request) => {
                self.retain_access_keys(request).await.map(OmReply::RetainAccessKeys)
            }
            Q::GetSigningKey(request) => self.signing_key(request).await.map(OmReply::GetSigningKey),
            Q::SignV2(request) => self.sign_v2(request).await.map(OmReply::SignV2),
            request => self.answer_namespace(request).await,
        }
    }

    async fn answer_namespace(&self, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::CreateBucket(request) => match self.propose(request).await? {
                Reply::Bucket(bucket) => Ok(OmReply::CreateBucket(bucket)),
                _ => Err(unexpected()),
            },
            Q::GetBucket(request) => {
                let view = self.view().await?;
                let bucket = bucket::get(view.as_ref(), &request.name).map_err(error::of_stop)?;
                Ok(OmReply::GetBucket(bucket))
            }
            Q::DeleteBucket(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::DeleteBucket(()))
            }
            Q::ListBuckets(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| Ok(bucket::list(view, &request)?);
                self.read_many(is_short, read).await.map(OmReply::ListBuckets)
            }
            Q::CommitKey(request) => match self.propose(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CommitKey(committed)),
                _ => Err(unexpected()),
            },
            Q::LookupKey(request) => self.lookup_key(request).await.map(OmReply::LookupKey),
            Q::GetLayout(request) => self.get_layout(request).await.map(OmReply::GetLayout),
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
                    Ok(listing::list_keys(view, bucket, &request)?)
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
                let bucket = check(&view, &request.bucket).map_err(error::of_stop)?;
                let row = multipart::get(view.as_ref(), bucket, &request.key, request.upload);
                Ok(OmReply::GetUpload(row.map_err(error::of_stop)?.info(request.upload)))
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
            other => {
                let message = format!("{} is not answered here", other.name());
                Err(Failure::new(Status::Internal, message).into())
            }
        }
    }
}

fn check(view: &ReadView, bucket: &BucketRef) -> Result<wire::ids::BucketId, Stop> {
    bucket::check(view, view.access_version()?, bucket)
}

fn unexpected() -> CallError {
    Failure::new(Status::Internal, "apply answered another question than was asked").into()
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
        if let Some(write_id) = session_of(&request) {
            self.touch(write_id.session);
        }
        let outcome = self.answer(request).await;
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
