//! Sessions and loans as gateways ask for them: renewal, ids, what to do about datanodes that failed.
//!
//! Not here: which ids (apply), grants of SCM (see `worker`).

use std::collections::BTreeSet;
use std::time::Duration;

use client::service::CallError;
use wire::block::Replication;
use wire::ids::{ContainerId, DatanodeId, LeaseId, SessionId};
use wire::om::{DegradeBlocks, Loan, Rejection, RenewSession, TakeLoan};
use wire::scm::{DegradeContainer, Degraded};
use wire::status::{Failure, Status};

use crate::command;
use crate::leases::LeaderMemory;
use crate::prepare;
use crate::schema::{SESSION, SessionRow};
use crate::server::{Om, unexpected};
use crate::state::{Reply, RowsExt};
use crate::worker;

/// A loan waits this long for a lease, then the caller is told to try again.
const LEASE_WAIT: Duration = Duration::from_secs(2);
/// A loan around failed datanodes waits this long for a lease without them, then any lease serves.
const AROUND_WAIT: Duration = Duration::from_secs(1);

impl Om {
    async fn check_session(&self, session: SessionId) -> Result<(), CallError> {
        let view = self.view().await?;
        let row: Option<SessionRow> =
            view.row(SESSION, &session.to_be_bytes()).map_err(|error| self.store_error(&error))?;
        if row.is_none_or(|row| row.is_ended) { Err(Rejection::SessionEnded.into()) } else { Ok(()) }
    }

    pub(crate) async fn renew(&self, memory: &LeaderMemory, request: RenewSession) -> Result<(), CallError> {
        self.check_session(request.session).await?;
        memory.touch(request.session);
        Ok(())
    }

    pub(crate) async fn take_loan(
        &self,
        memory: &LeaderMemory,
        request: TakeLoan,
    ) -> Result<Loan, CallError> {
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
            changed.mark_seen();
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
    pub(crate) async fn degrade_blocks(
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
}

fn no_lease(memory: &LeaderMemory, replication: Replication) -> Failure {
    let why = match (memory.awaited_of(replication), memory.check_token_keys()) {
        (Some(awaited), _) => awaited,
        (None, Err(failure)) => failure.message,
        (None, Ok(())) => "scm has granted none yet".to_owned(),
    };
    Failure::new(Status::Retry, format!("a lease of block ids for {replication:?} is awaited: {why}"))
}
