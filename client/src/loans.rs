//! Block ids on loan to this gateway, handed to writers one by one.
//!
//! A loan is fetched ahead of need, used in order, and left when it is old (its token ends), when a datanode refused its
//! container or the container was degraded, or when the session it belongs to has ended. Ids of a loan that is left go
//! back to OM. Loans whose pipeline has a datanode that failed a moment ago are passed over while others are to be had.
//!
//! Invariants:
//! * An id is handed out once.
//! * One call at a time asks for a loan of a kind; what it brings is everybody's.
//!
//! Not here: what happens to an id (see `key_writer`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use wire::block::{BlockToken, Pipeline, Replication};
use wire::clock;
use wire::ids::{BlockId, ContainerId, DatanodeId, LocalId, SessionId};
use wire::limits::{LOAN_IDS_MAX, LOAN_USE_MS};
use wire::om::{Loan, ReleaseBlocks, TakeLoan};
use wire::status::{Failure, Status};

use crate::error::failure_of;
use crate::failed_nodes::FailedNodes;
use crate::session::Session;

/// The next loan is fetched when fewer ids are left in the current one.
const LOW_WATER: u32 = 96;
/// Containers that refused a write, named to OM with the next loan. Older ones are forgotten: they are closed by then.
const AVOID_MAX: usize = 16;
/// A writer waits this long for a loan without certain datanodes: half of what is left of three seconds after a replica
/// was given up for standing still for one.
const AVOIDING_WAIT: Duration = Duration::from_millis(500);
/// After a loan without certain datanodes could not be had, it is asked for again after this.
const AVOIDING_PAUSE: Duration = Duration::from_secs(1);
/// Times a loan without certain datanodes is asked for by one writer: others may be quicker to use what comes.
const AVOIDING_TURNS: usize = 3;
/// Loans of one kind held at once at most. Two are usual: one in use, one fetched ahead.
const LOANS_MAX: usize = 16;

/// A block to write: its id, where, and leave to do so.
#[derive(Debug, Clone)]
pub(crate) struct LentBlock {
    pub(crate) block: BlockId,
    pub(crate) token: BlockToken,
    pub(crate) pipeline: Arc<Pipeline>,
    /// The session it was lent to: only there can it be committed.
    pub(crate) session: SessionId,
}

/// A loan on its way, for all who wait for it; answers whether it is without the datanodes it was to avoid.
type Fetch = Shared<BoxFuture<'static, Result<bool, Failure>>>;

/// All loans of a gateway.
pub(crate) struct Loans {
    session: Arc<Session>,
    failed: Arc<FailedNodes>,
    pools: Mutex<BTreeMap<Replication, Pool>>,
    avoid: Mutex<VecDeque<ContainerId>>,
}

#[derive(Default)]
struct Pool {
    loans: VecDeque<OpenLoan>,
    /// On its way; the first without datanodes that failed, the other wherever it may be.
    avoiding: Option<Fetch>,
    any: Option<Fetch>,
    /// Datanodes without which no loan could be had, and until when that is believed.
    fruitless: Option<(BTreeSet<DatanodeId>, Instant)>,
}

struct OpenLoan {
    loan: Loan,
    pipeline: Arc<Pipeline>,
    session: SessionId,
    used: u16,
    taken_ms: u64,
}

impl OpenLoan {
    fn is_good(&self, session: SessionId, now_ms: u64) -> bool {
        self.left() > 0 && self.session == session && now_ms.saturating_sub(self.taken_ms) < LOAN_USE_MS
    }

    fn left(&self) -> u16 {
        self.loan.count - self.used
    }

    fn avoids(&self, datanodes: &BTreeSet<DatanodeId>) -> bool {
        datanodes.is_empty() || !self.pipeline.members.iter().any(|member| datanodes.contains(&member.id))
    }
}

impl Loans {
    pub(crate) fn new(session: Arc<Session>, failed: Arc<FailedNodes>) -> Arc<Self> {
        Arc::new(Self { session, failed, pools: Mutex::default(), avoid: Mutex::default() })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// One id, from a loan at hand or a new one; without datanodes that failed a moment ago if that is possible.
    pub(crate) async fn take(self: &Arc<Self>, replication: Replication) -> Result<LentBlock, Failure> {
        let failed = self.failed.all();
        if !failed.is_empty()
            && let Some(block) = self.take_avoiding(replication, &failed).await
        {
            return Ok(block);
        }
        // With many failed there may be no way round all of them: round the last one, then.
        if failed.len() > 1
            && let Some(latest) = self.failed.latest()
            && let Some(block) = self.take_avoiding(replication, &BTreeSet::from([latest])).await
        {
            return Ok(block);
        }
        loop {
            if let Some(block) = self.take_at_hand(replication, &BTreeSet::new()) {
                return Ok(block);
            }
            self.fetch(replication, BTreeSet::new()).await?;
        }
    }

    /// One id whose pipeline has none of `datanodes`, if there can be one soon.
    pub(crate) async fn take_avoiding(
        self: &Arc<Self>,
        replication: Replication,
        datanodes: &BTreeSet<DatanodeId>,
    ) -> Option<LentBlock> {
        for _ in 0..AVOIDING_TURNS {
            if let Some(block) = self.take_at_hand(replication, datanodes) {
                return Some(block);
            }
            if self.is_fruitless(replication, datanodes) {
                return None;
            }
            let fetched = timeout(AVOIDING_WAIT, self.fetch(replication, datanodes.clone())).await;
            if !matches!(fetched, Ok(Ok(true))) {
                break;
            }
        }
        let block = self.take_at_hand(replication, datanodes);
        if block.is_none() {
            let until = Instant::now() + AVOIDING_PAUSE;
            self.pools.lock().entry(replication).or_default().fruitless = Some((datanodes.clone(), until));
        }
        block
    }

    fn is_fruitless(&self, replication: Replication, datanodes: &BTreeSet<DatanodeId>) -> bool {
        let pools = self.pools.lock();
        let fruitless = pools.get(&replication).and_then(|pool| pool.fruitless.as_ref());
        fruitless.is_some_and(|(fewer, until)| fewer.is_subset(datanodes) && *until > Instant::now())
    }

    /// A datanode refused this container, or it was degraded: leave its loans and ask OM for others.
    pub(crate) fn leave(self: &Arc<Self>, container: ContainerId) {
        {
            let mut avoid = self.avoid.lock();
            if !avoid.contains(&container) {
                if avoid.len() == AVOID_MAX {
                    avoid.pop_front();
                }
                avoid.push_back(container);
            }
        }
        let mut left = Vec::new();
        for pool in self.pools.lock().values_mut() {
            let (leave, keep): (VecDeque<_>, _) =
                pool.loans.drain(..).partition(|open| open.loan.container == container);
            pool.loans = keep;
            left.extend(leave);
        }
        self.return_loans(left);
    }

    fn take_at_hand(
        self: &Arc<Self>,
        replication: Replication,
        datanodes: &BTreeSet<DatanodeId>,
    ) -> Option<LentBlock> {
        let session = self.session.id();
        let now_ms = clock::now_ms();
        let mut left = Vec::new();
        let mut pools = self.pools.lock();
        let pool = pools.entry(replication).or_default();
        if !pool.loans.iter().all(|open| open.is_good(session, now_ms)) {
            let (keep, leave): (VecDeque<_>, VecDeque<_>) =
                pool.loans.drain(..).partition(|open| open.is_good(session, now_ms));
            pool.loans = keep;
            left.extend(leave);
        }
        let taken = pool.loans.iter_mut().find(|open| open.avoids(datanodes)).map(|open| {
            let local = LocalId(open.loan.first.0 + u64::from(open.used));
            open.used += 1;
            LentBlock {
                block: BlockId { container: open.loan.container, local },
                token: open.loan.token.clone(),
                pipeline: open.pipeline.clone(),
                session,
            }
        });
        let good = pool.loans.iter().filter(|open| open.avoids(datanodes));
        let is_low = good.map(|open| u32::from(open.left())).sum::<u32>() < LOW_WATER;
        let has_room = pool.loans.len() < LOANS_MAX / 2;
        drop(pools);
        if taken.is_some() && is_low && has_room {
            // Goes on by itself.
            drop(self.fetch(replication, datanodes.clone()));
        }
        left.retain(|open| open.left() > 0 && open.session == session);
        self.return_loans(left);
        taken
    }

    /// Fetches a loan, or joins those who wait for one already.
    fn fetch(self: &Arc<Self>, replication: Replication, datanodes: BTreeSet<DatanodeId>) -> Fetch {
        let mut pools = self.pools.lock();
        let pool = pools.entry(replication).or_default();
        let avoids = !datanodes.is_empty();
        let slot = if avoids { &mut pool.avoiding } else { &mut pool.any };
        if let Some(fetch) = slot {
            return fetch.clone();
        }
        let loans = self.clone();
        // A task of its own: whoever stops waiting for a loan must not lose it.
        let task = platform::task::spawn(async move {
            let outcome = loans.fetch_one(replication, datanodes).await;
            if let Err(failure) = &outcome {
                tracing::debug!(%failure, "a loan could not be had");
            }
            let mut pools = loans.pools.lock();
            let pool = pools.entry(replication).or_default();
            *(if avoids { &mut pool.avoiding } else { &mut pool.any }) = None;
            outcome
        });
        let ended = || Failure::new(Status::Retry, "the gateway is shutting down");
        let fetch = task.map(move |outcome| outcome.unwrap_or_else(|_| Err(ended()))).boxed().shared();
        *slot = Some(fetch.clone());
        fetch
    }

    async fn fetch_one(
        self: &Arc<Self>,
        replication: Replication,
        datanodes: BTreeSet<DatanodeId>,
    ) -> Result<bool, Failure> {
        let avoid: Vec<ContainerId> = self.avoid.lock().iter().copied().collect();
        let avoid_datanodes: Vec<DatanodeId> = datanodes.iter().copied().collect();
        // The session the context names is the one the loan belongs to.
        let session = Mutex::new(self.session.id());
        let make = |context: wire::om::WriteContext| {
            *session.lock() = context.session;
            TakeLoan {
                context,
                replication,
                count: LOAN_IDS_MAX,
                avoid: avoid.clone(),
                avoid_datanodes: avoid_datanodes.clone(),
            }
        };
        let taken_ms = clock::now_ms();
        let loan = self.session.command(make).await.map_err(failure_of)?;
        let pipeline = Arc::new(loan.pipeline.clone());
        let session = *session.lock();
        let open = OpenLoan { loan, pipeline, session, used: 0, taken_ms };
        // The container may have been left while OM answered. One that OM gives although it was told is all there is.
        let container = open.loan.container;
        if !avoid.contains(&container) && self.avoid.lock().contains(&container) {
            self.return_loans(vec![open]);
            return Ok(true);
        }
        let avoids = open.avoids(&datanodes);
        let mut left = Vec::new();
        {
            let mut pools = self.pools.lock();
            let loans = &mut pools.entry(replication).or_default().loans;
            loans.push_back(open);
            if loans.len() > LOANS_MAX {
                left.extend(loans.pop_front());
            }
        }
        self.return_loans(left);
        Ok(avoids)
    }

    fn return_loans(self: &Arc<Self>, loans: Vec<OpenLoan>) {
        if loans.is_empty() {
            return;
        }
        let session = self.session.clone();
        platform::task::spawn(async move {
            for open in loans {
                // Only ids never handed out: a writer may still commit the others. What is not returned now goes
                // back when OM finds the loan expired or the session ended.
                let unused =
                    open.loan.first.0 + u64::from(open.used)..open.loan.first.0 + u64::from(open.loan.count);
                let blocks: Vec<BlockId> = unused
                    .map(|local| BlockId { container: open.loan.container, local: LocalId(local) })
                    .collect();
                let make = |context| ReleaseBlocks { context, blocks: blocks.clone(), loan: None };
                if let Err(error) = session.command(make).await {
                    tracing::debug!(loan = %open.loan.id, %error, "a loan could not be returned");
                }
            }
        });
    }
}
