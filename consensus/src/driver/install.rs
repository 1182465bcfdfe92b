//! The driver's part in taking a snapshot over that lies beside the state, whole and durable.
//!
//! ```text
//!  raft steps its message --> a Ready with the snapshot --> apply renames the file and goes on from it
//!      --> the log is reset, term and vote stay --> durable --> raft's answers leave --> the mark goes
//! ```
//!
//! Raft decides whether the snapshot is of use; one that is not is dropped with its file. From its Ready to the end raft
//! is told nothing else: messages are lost meanwhile and ticks do not count, which lasts as long as apply needs for what
//! is in its inbox.
//!
//! Invariants:
//! * The state file is renamed, with its mark, before the log is reset; the mark goes after that. So whatever step a
//!   crash falls on, a start finds a state and what the log has to become (see `group::open`).
//! * Committed entries that were not applied are dropped: the snapshot holds them. Their proposers hear `Unknown`.
//!
//! Not here: receiving (see `incoming`), the file (see `state::snapshot`).

use std::sync::atomic::Ordering;

use raft::Ready;
use raft::eraftpb::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use wire::status::{Failure, Status};

use super::Driver;
use crate::apply::ApplyInput;
use crate::members::Membership;
use crate::state::snapshot::ReceivedSnapshot;

/// A snapshot to take over, with raft's message about it.
pub(crate) struct Install {
    pub(crate) message: Message,
    pub(crate) received: ReceivedSnapshot,
    pub(crate) reply: oneshot::Sender<Result<(), Failure>>,
}

/// One that raft has accepted.
pub(super) struct Installing {
    ready: Ready,
    index: u64,
    term: u64,
    membership: Membership,
    /// Until apply has it.
    received: Option<Box<ReceivedSnapshot>>,
    reply: oneshot::Sender<Result<(), Failure>>,
}

impl<R: Send + 'static> Driver<R> {
    pub(super) fn install(&mut self, install: Install) {
        let Install { message, received, reply } = install;
        let refuse = |why: &str| Failure::new(Status::Retry, format!("a snapshot is refused: {why}"));
        if self.installing.is_some() || self.stop_by.is_some() {
            let _ = reply.send(Err(refuse("this replica is stopping, or busy with another one")));
            return;
        }
        // What raft has ready goes first, so that its next Ready is about the snapshot alone.
        self.perform_all();
        let progress = received.progress();
        let (index, term) = (progress.applied_index, progress.applied_term);
        let membership = Membership::new(progress.conf_state.clone(), &progress.members, &progress.former);
        self.heard.insert(message.from, self.now);
        if let Err(error) = self.node.step(message) {
            tracing::debug!(group = %self.shared.name, %error, "raft does not take a snapshot");
        }
        self.after_raft();
        if self.node.snap().is_none_or(|snapshot| snapshot.get_metadata().index != index) {
            tracing::info!(group = %self.shared.name, index, "a snapshot is of no use any more");
            let _ = reply.send(Err(refuse("it is stale")));
            return;
        }
        let ready = self.node.ready();
        self.outbox.clear();
        self.orphans.retain(|(lost, _), _| *lost > index);
        let received = Some(Box::new(received));
        self.installing = Some(Installing { ready, index, term, membership, received, reply });
    }

    /// Goes on with the snapshot that is being taken over; true if it is not over yet.
    pub(super) fn is_installing(&mut self) -> bool {
        let Some(installing) = &mut self.installing else { return false };
        if let Some(received) = installing.received.take() {
            // Ask to be woken, then try: room made in between would wake nobody.
            self.shared.backlogged.store(true, Ordering::Release);
            let apply = self.apply.as_ref().expect("a snapshot is refused once the end has begun");
            match apply.try_send(ApplyInput::Install(received)) {
                Ok(()) => {}
                Err(TrySendError::Full(ApplyInput::Install(received))) => {
                    installing.received = Some(received)
                }
                Err(_) => unreachable!("the apply thread ends after this one, or aborts the process"),
            }
            return true;
        }
        if self.shared.installed_index.load(Ordering::Acquire) != installing.index {
            return true;
        }
        self.finish_install();
        false
    }

    fn finish_install(&mut self) {
        let Some(installing) = self.installing.take() else { return };
        let Installing { mut ready, index, term, membership, reply, .. } = installing;
        assert!(ready.take_entries().is_empty(), "entries after a snapshot come after its Ready");
        let hard_state = ready.hs().cloned().expect("a snapshot raises the commit index");
        self.node.mut_store().restart_at(index, term, &hard_state);
        wire::failpoint::hit("consensus_snapshot_log_reset");
        self.shared.log_reset.store(true, Ordering::Release);
        self.membership = membership;
        self.adopt_membership();
        self.marked.clear();
        self.advance(ready);
        self.shared.metrics.snapshots_installed.increment(1);
        tracing::info!(group = %self.shared.name, index, term, "a snapshot is installed");
        let _ = reply.send(Ok(()));
    }

    /// A replica that takes a snapshot over answers nobody but by saying so.
    pub(super) fn refuse_all(&mut self) {
        let hint = self.leader_hint();
        for proposal in self.waiting.drain(..) {
            proposal.reply.send(Err(crate::error::ProposeError::NotLeader { hint }));
        }
        self.reads.refuse(hint);
    }
}
