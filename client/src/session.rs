//! A gateway's session with OM: numbered commands with one effect each, and renewal while it lives.
//!
//! Every command gets the next sequence number and keeps it through all its repeats, so that OM answers a repeat as it
//! answered the first. `acknowledged` tells OM which replies it may forget: everything below the oldest command still
//! in flight. A command whose caller went away counts as acknowledged, since nobody will repeat it.
//!
//! Nothing is repeated here: that is `failover`'s work, which a session is given as its OM. The one thing done twice is a
//! command that OM refused because the session had ended, under a new session. `failover` answers `Unknown` in its
//! place if an earlier try of it may have had its effect: a second run would then be a second effect.
//!
//! Invariants:
//! * A number is used by one command only, even over a reopened session (each session counts for itself).
//!
//! Not here: block ids on loan (see `loans`), who leads OM (see `failover`).

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use platform::task;
use tokio::time::{sleep, timeout};
use wire::ids::SessionId;
use wire::om::{EndSession, OmCall, OpenSession, Rejection, RenewSession, WriteContext};

use crate::service::{CallError, OmService, call_om};

/// OM hears of the session this often; it ends one that is silent for ten times as long.
const RENEW_INTERVAL: Duration = Duration::from_secs(60);
/// Ending a session is a courtesy: a gateway that stops waits no longer than an election for it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

/// A gateway's life with OM.
pub struct Session {
    om: Arc<dyn OmService>,
    numbers: Mutex<Numbers>,
    /// Held while a session that OM has ended is replaced, so that only one caller does it.
    reopening: tokio::sync::Mutex<()>,
}

struct Numbers {
    session: SessionId,
    next: u64,
    in_flight: BTreeSet<u64>,
}

impl Numbers {
    fn of(session: SessionId) -> Self {
        Self { session, next: 1, in_flight: BTreeSet::new() }
    }

    fn acknowledged(&self) -> u64 {
        self.in_flight.first().copied().unwrap_or(self.next)
    }
}

impl Session {
    /// Opens a session and keeps it renewed until it is dropped. `om` finds its leader and repeats calls itself: an
    /// [`OmClient`](crate::failover::OmClient).
    pub async fn open(om: Arc<dyn OmService>) -> Result<Arc<Self>, CallError> {
        let id = open_at(om.as_ref()).await?;
        let numbers = Mutex::new(Numbers::of(id));
        let session = Arc::new(Self { om, numbers, reopening: tokio::sync::Mutex::new(()) });
        task::spawn(renew(Arc::downgrade(&session)));
        Ok(session)
    }

    /// The OM it talks to.
    pub fn om(&self) -> &Arc<dyn OmService> {
        &self.om
    }

    /// Its id now. Another one after OM ended the former.
    pub fn id(&self) -> SessionId {
        self.numbers.lock().session
    }

    /// A call that belongs to no session.
    pub async fn call<C: OmCall>(&self, request: C) -> Result<C::Reply, CallError> {
        call_om(self.om.as_ref(), request).await
    }

    /// Runs one command: `make` builds it from its context.
    ///
    /// If OM has ended the session, a new one is opened and the command runs once more under it; a commit of blocks is
    /// then refused with `NotOnLoan`, since the blocks went with the old session.
    pub async fn command<C: OmCall>(&self, make: impl Fn(WriteContext) -> C) -> Result<C::Reply, CallError> {
        match self.command_once(&make).await {
            Err((CallError::Rejected(Rejection::SessionEnded), ended)) => {
                self.reopen(ended).await?;
                self.command_once(&make).await.map_err(|(error, _)| error)
            }
            outcome => outcome.map_err(|(error, _)| error),
        }
    }

    async fn command_once<C: OmCall>(
        &self,
        make: &impl Fn(WriteContext) -> C,
    ) -> Result<C::Reply, (CallError, SessionId)> {
        let number = Number::take(self);
        let context = number.context();
        call_om(self.om.as_ref(), make(context)).await.map_err(|error| (error, context.session))
    }

    async fn reopen(&self, ended: SessionId) -> Result<(), CallError> {
        let _one_at_a_time = self.reopening.lock().await;
        if self.id() != ended {
            return Ok(());
        }
        tracing::warn!(session = %ended, "om has ended this session; opening another");
        let id = open_at(self.om.as_ref()).await?;
        *self.numbers.lock() = Numbers::of(id);
        Ok(())
    }

    /// Ends the session in good order: OM takes its loans back at once.
    pub async fn close(&self) {
        let session = self.id();
        match timeout(CLOSE_DEADLINE, call_om(self.om.as_ref(), EndSession { session })).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%session, %error, "session could not be ended; om will end it after its silence");
            }
            Err(_) => {
                tracing::warn!(%session, "om was not there to end the session; it will after its silence")
            }
        }
    }
}

/// A command's number; acknowledged when dropped, answered or not.
struct Number<'s> {
    session: &'s Session,
    id: SessionId,
    sequence: u64,
}

impl<'s> Number<'s> {
    fn take(session: &'s Session) -> Self {
        let mut numbers = session.numbers.lock();
        let sequence = numbers.next;
        numbers.next += 1;
        numbers.in_flight.insert(sequence);
        Self { session, id: numbers.session, sequence }
    }

    fn context(&self) -> WriteContext {
        let numbers = self.session.numbers.lock();
        let acknowledged = if numbers.session == self.id { numbers.acknowledged() } else { self.sequence };
        WriteContext { session: self.id, sequence: self.sequence, acknowledged }
    }
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        let mut numbers = self.session.numbers.lock();
        if numbers.session == self.id {
            numbers.in_flight.remove(&self.sequence);
        }
    }
}

async fn open_at(om: &dyn OmService) -> Result<SessionId, CallError> {
    // The nonce stands for this opening: a repeat after a lost answer does not leave a second session behind.
    call_om(om, OpenSession { nonce: wire::random::array() }).await
}

async fn renew(session: Weak<Session>) {
    loop {
        sleep(RENEW_INTERVAL).await;
        let Some(session) = session.upgrade() else { return };
        let (id, acknowledged) = {
            let numbers = session.numbers.lock();
            (numbers.session, numbers.acknowledged())
        };
        match call_om(session.om.as_ref(), RenewSession { session: id, acknowledged }).await {
            Err(CallError::Rejected(Rejection::SessionEnded)) => {
                if let Err(error) = session.reopen(id).await {
                    tracing::warn!(%error, "session could not be opened again");
                }
            }
            Err(error) => tracing::debug!(%error, "session could not be renewed"),
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use wire::om::{OmReply, OmRequest, ReleaseBlocks};
    use wire::status::{Failure, Status};

    use super::*;
    use crate::failover::OmClient;

    /// Answers `Unknown` a few times before each command succeeds, and ends the first session when told to.
    struct Moody {
        unknowns: AtomicU32,
        sessions: AtomicU32,
        ended: Mutex<Option<SessionId>>,
        seen: Mutex<Vec<WriteContext>>,
    }

    #[async_trait]
    impl OmService for Moody {
        async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
            match request {
                OmRequest::OpenSession(_) => {
                    let id = self.sessions.fetch_add(1, Ordering::SeqCst) + 1;
                    Ok(OmReply::OpenSession(SessionId(u64::from(id))))
                }
                OmRequest::ReleaseBlocks(request) => {
                    self.seen.lock().push(request.context);
                    if *self.ended.lock() == Some(request.context.session) {
                        return Err(Rejection::SessionEnded.into());
                    }
                    if self
                        .unknowns
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        return Err(Failure::new(Status::Unknown, "lost").into());
                    }
                    Ok(OmReply::ReleaseBlocks(()))
                }
                other => panic!("unexpected {}", other.name()),
            }
        }
    }

    fn moody(unknowns: u32) -> Arc<Moody> {
        Arc::new(Moody {
            unknowns: AtomicU32::new(unknowns),
            sessions: AtomicU32::new(0),
            ended: Mutex::new(None),
            seen: Mutex::new(Vec::new()),
        })
    }

    fn release(context: WriteContext) -> ReleaseBlocks {
        ReleaseBlocks { context, blocks: Vec::new(), loan: None }
    }

    #[tokio::test]
    async fn repeats_keep_their_number_and_answers_are_acknowledged() {
        let om = moody(2);
        let session = Session::open(OmClient::sole(om.clone())).await.unwrap();
        session.command(release).await.unwrap();
        session.command(release).await.unwrap();
        let seen: Vec<(u64, u64)> = om.seen.lock().iter().map(|c| (c.sequence, c.acknowledged)).collect();
        assert_eq!(seen, [(1, 1), (1, 1), (1, 1), (2, 2)]);
    }

    #[tokio::test]
    async fn ended_session_is_replaced_once() {
        let om = moody(0);
        let session = Session::open(OmClient::sole(om.clone())).await.unwrap();
        *om.ended.lock() = Some(SessionId(1));
        let (first, second) = tokio::join!(session.command(release), session.command(release));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(session.id(), SessionId(2));
        assert_eq!(om.sessions.load(Ordering::SeqCst), 2);
    }
}
