//! Block ids on loan to this gateway, handed to writers one by one.
//!
//! A loan is fetched ahead of need, used in order, and left when it is old (its token ends), when a datanode refused its
//! container, or when the session it belongs to has ended. Ids of a loan that is left go back to OM.
//!
//! Invariant: an id is handed out once.
//!
//! Not here: what happens to an id (see `key_writer`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use wire::block::{BlockToken, Pipeline, Replication};
use wire::clock;
use wire::ids::{BlockId, ContainerId, LocalId, SessionId};
use wire::limits::{LOAN_IDS_MAX, LOAN_USE_MS};
use wire::om::{Loan, ReleaseBlocks, TakeLoan};
use wire::status::Failure;

use crate::error::failure_of;
use crate::session::Session;

/// The next loan is fetched when fewer ids are left in the current one.
const LOW_WATER: u16 = 96;
/// Containers that refused a write, named to OM with the next loan. Older ones are forgotten: they are closed by then.
const AVOID_MAX: usize = 16;

/// A block to write: its id, where, and leave to do so.
#[derive(Debug, Clone)]
pub(crate) struct LentBlock {
    pub(crate) block: BlockId,
    pub(crate) token: BlockToken,
    pub(crate) pipeline: Arc<Pipeline>,
    /// The session it was lent to: only there can it be committed.
    pub(crate) session: SessionId,
}

/// All loans of a gateway.
pub(crate) struct Loans {
    session: Arc<Session>,
    pools: Mutex<BTreeMap<Replication, Pool>>,
    avoid: Mutex<VecDeque<ContainerId>>,
    /// Held while a loan is fetched: writers that find nothing wait for the one answer.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Pool {
    loans: VecDeque<OpenLoan>,
    is_refilling: bool,
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
        self.session == session && now_ms.saturating_sub(self.taken_ms) < LOAN_USE_MS
    }

    fn left(&self) -> u16 {
        self.loan.count - self.used
    }
}

impl Loans {
    pub(crate) fn new(session: Arc<Session>) -> Arc<Self> {
        Arc::new(Self {
            session,
            pools: Mutex::new(BTreeMap::new()),
            avoid: Mutex::new(VecDeque::new()),
            fetching: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// One id, from a loan at hand or a new one.
    pub(crate) async fn take(self: &Arc<Self>, replication: Replication) -> Result<LentBlock, Failure> {
        loop {
            if let Some(block) = self.take_at_hand(replication) {
                return Ok(block);
            }
            let _one_at_a_time = self.fetching.lock().await;
            if let Some(block) = self.take_at_hand(replication) {
                return Ok(block);
            }
            self.fetch(replication).await?;
        }
    }

    /// A datanode refused this container: leave its loans and ask OM for others.
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
            let (leave, keep) = pool.loans.drain(..).partition(|open| open.loan.container == container);
            pool.loans = keep;
            let leave: VecDeque<OpenLoan> = leave;
            left.extend(leave);
        }
        self.return_loans(left);
    }

    fn take_at_hand(self: &Arc<Self>, replication: Replication) -> Option<LentBlock> {
        let session = self.session.id();
        let now_ms = clock::now_ms();
        let mut left = Vec::new();
        let mut pools = self.pools.lock();
        let pool = pools.entry(replication).or_default();
        let mut taken = None;
        while let Some(open) = pool.loans.front_mut() {
            if !open.is_good(session, now_ms) || open.left() == 0 {
                left.extend(pool.loans.pop_front());
                continue;
            }
            let local = LocalId(open.loan.first.0 + u64::from(open.used));
            open.used += 1;
            taken = Some(LentBlock {
                block: BlockId { container: open.loan.container, local },
                token: open.loan.token.clone(),
                pipeline: open.pipeline.clone(),
                session,
            });
            break;
        }
        let is_low = pool.loans.iter().map(OpenLoan::left).sum::<u16>() < LOW_WATER;
        let refill = taken.is_some() && is_low && !pool.is_refilling;
        pool.is_refilling |= refill;
        drop(pools);
        if refill {
            self.clone().refill(replication);
        }
        left.retain(|open| open.left() > 0 && open.session == session);
        self.return_loans(left);
        taken
    }

    fn refill(self: Arc<Self>, replication: Replication) {
        tokio::spawn(async move {
            let _one_at_a_time = self.fetching.lock().await;
            if let Err(failure) = self.fetch(replication).await {
                tracing::debug!(%failure, "a loan could not be fetched ahead");
            }
            if let Some(pool) = self.pools.lock().get_mut(&replication) {
                pool.is_refilling = false;
            }
        });
    }

    async fn fetch(&self, replication: Replication) -> Result<(), Failure> {
        let avoid: Vec<ContainerId> = self.avoid.lock().iter().copied().collect();
        // The session the context names is the one the loan belongs to.
        let session = Mutex::new(self.session.id());
        let make = |context: wire::om::WriteContext| {
            *session.lock() = context.session;
            TakeLoan {
                context,
                replication,
                count: LOAN_IDS_MAX,
                avoid: avoid.clone(),
                avoid_datanodes: Vec::new(),
            }
        };
        let taken_ms = clock::now_ms();
        let loan = self.session.command(make).await.map_err(failure_of)?;
        let pipeline = Arc::new(loan.pipeline.clone());
        let session = *session.lock();
        let open = OpenLoan { loan, pipeline, session, used: 0, taken_ms };
        self.pools.lock().entry(replication).or_default().loans.push_back(open);
        Ok(())
    }

    fn return_loans(self: &Arc<Self>, loans: Vec<OpenLoan>) {
        if loans.is_empty() {
            return;
        }
        let session = self.session.clone();
        tokio::spawn(async move {
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
