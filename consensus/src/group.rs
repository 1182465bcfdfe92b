//! A handle to a replicated group: proposes to it, reads from it, tells where it stands, admits what peers send.
//!
//! Not here: its settings (see `config`), opening (see `open`), the threads' work (see `driver`, `apply`).

pub(crate) mod open;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use platform::{task, watch};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;
use wire::group::{GroupInfo, Member, MemberRole, MembershipChange};
use wire::status::{Failure, Status};

use crate::backup::Backup;
use crate::config::GroupConfig;
use crate::driver::Install;
use crate::error::{ChangeError, OpenError, ProposeError, ReadError, SnapshotError, StoreError};
use crate::incoming::{Incoming, IncomingConfig};
use crate::lives::Heard;
use crate::machine::StateMachine;
use crate::packet::{Head, decode};
use crate::peer::{PeerEndpoint, SnapshotStream};
use crate::shared::{ChangeReply, Input, Phase, Proposal, Reply, Shared, Ticket};
use crate::state::snapshot::SnapshotSource;
use crate::store::{ReadView, check_tables};

/// Why a packet of a process that nobody knows yet is dropped.
const DOUBTED: &str = "its sender's life is new here, and its address is still being asked";

/// Why a packet of a second process under one raft id is refused.
const TWIN: &str = "another process runs under its sender's raft id, at the address where that replica is known: stop one \
                    of the two, and wipe the directory of the one that was copied";

/// Whether a command needs room or makes room: what a full disk lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Refused with [`ProposeError::Full`] as soon as the disk has less than the reserve left.
    Ordinary,
    /// Frees space, or is needed so that others can: may use up the reserve.
    Freeing,
}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// The current term.
    pub term: u64,
    /// Whom this replica voted for in it, 0 for nobody.
    pub vote: u64,
    /// Whether this replica leads and has applied an entry of its term.
    pub is_leader: bool,
    /// The leader's raft id, 0 if unknown.
    pub leader: u64,
    /// Entries up to here are committed.
    pub commit_index: u64,
    /// Entries up to here are applied.
    pub applied_index: u64,
    /// Entries up to here are applied durably: replay starts after it.
    pub checkpoint_index: u64,
    /// The first entry in the log.
    pub log_first_index: u64,
    /// The last entry in the log.
    pub log_last_index: u64,
    /// The hash over all rows at `applied_index`.
    pub state_hash: u128,
    /// How often another replica was found to hold other rows after the same entry, since this one was opened.
    pub state_mismatches: u64,
}

/// Who leads, as this replica knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// This replica leads and has applied an entry of its term.
    pub is_leading: bool,
    /// The leader's raft id, if known.
    pub leader: Option<u64>,
}

/// A handle to a replicated group. Clones share it; the group stops when the last is gone.
pub struct Group<M: StateMachine> {
    handle: Arc<Handle<M::Reply>>,
}

struct Handle<R> {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<Input<R>>,
    proposals_max: usize,
    command_bytes_max: usize,
    raft_id: u64,
    incarnation: Uuid,
    cluster_id: Uuid,
    incoming: IncomingConfig,
}

impl<R> Handle<R> {
    /// Whether what stands behind this head may be looked at.
    fn admit(&self, head: &Head) -> Result<(), &'static str> {
        if head.group != self.shared.name {
            return Err("it is for another group");
        }
        if head.cluster_id != self.cluster_id {
            return Err("it is from another cluster");
        }
        if head.to_raft_id != self.raft_id || head.to_incarnation != self.incarnation {
            return Err("it is for another replica, or another life of this one");
        }
        if head.from.raft_id == self.raft_id {
            return Err("its sender says that it is this replica: two processes run under one raft id");
        }
        let membership = Arc::clone(&self.shared.membership.lock());
        membership.admits(head.from.raft_id, head.from.incarnation)?;
        if head.question != 0 {
            // Whoever asks hears the truth, also one who is doubted here: two that doubt one another would wait for ever.
            let _ = self.inbox.try_send(Input::Asked(Box::new(head.from.clone()), head.question));
        }
        let recorded = membership.members.get(&head.from.raft_id).map(|member| &member.address);
        let heard = self.shared.lives.lock().hear(&head.from, head.life, head.answer, recorded);
        match heard {
            Heard::Current => Ok(()),
            Heard::Doubted(question) => {
                if let Some(question) = question {
                    let _ = self.inbox.try_send(Input::Ask(question));
                }
                Err(DOUBTED)
            }
            Heard::Twin(known) => {
                if let Some(known) = known {
                    tracing::error!(
                        group = %self.shared.name,
                        raft_id = head.from.raft_id,
                        node = %head.from.node,
                        refused = %head.from.address,
                        answers = %known,
                        "two processes run under one raft id, one of them from a copied directory: stop the one that is \
                         refused and wipe its directory; a node of its own is made by `ferrozone cluster add-node`"
                    );
                }
                Err(TWIN)
            }
        }
    }
}

impl<M: StateMachine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group { handle: Arc::clone(&self.handle) }
    }
}

impl<R> Drop for Handle<R> {
    fn drop(&mut self) {
        // The threads finish by themselves. A full inbox is looked at soon, and the wish with it.
        self.shared.stop_wanted.store(true, Ordering::Release);
        let _ = self.inbox.try_send(Input::Stop);
    }
}

impl<M: StateMachine> Group<M> {
    /// Opens or creates the group, recovers it and starts its threads. The replay goes on when it returns: see
    /// [`Group::wait_leader`]. Blocking: call it off the reactor.
    ///
    /// # Errors
    /// Says what the operator can do.
    pub fn open(config: GroupConfig, machine: M) -> Result<Group<M>, OpenError> {
        config.check()?;
        check_tables(M::TABLES);
        let opened = open::recover::<M>(&config)?;
        open::start(config, machine, opened)
    }

    /// Proposes a command and waits until it is applied here. Dropping the future does not cancel the command.
    ///
    /// # Errors
    /// Why the command was not applied, or that its outcome is unknown.
    ///
    /// # Panics
    /// If the command is empty: raft keeps empty entries for itself.
    pub async fn propose(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Ordinary).await
    }

    /// Proposes a command that frees space: a full disk lets it pass as long as the reserve lasts.
    ///
    /// # Errors
    /// As [`Group::propose`].
    ///
    /// # Panics
    /// As [`Group::propose`].
    pub async fn propose_freeing(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        self.propose_with(command, Priority::Freeing).await
    }

    /// Proposes a command.
    ///
    /// # Errors
    /// As [`Group::propose`].
    ///
    /// # Panics
    /// As [`Group::propose`].
    pub async fn propose_with(&self, command: Bytes, priority: Priority) -> Result<M::Reply, ProposeError> {
        assert!(!command.is_empty(), "a command has bytes");
        let handle = &self.handle;
        let (size, size_max) = (command.len(), handle.command_bytes_max);
        if size > size_max {
            return Err(ProposeError::TooLarge { size, size_max });
        }
        let Some(ticket) = Ticket::take(&handle.shared, handle.proposals_max) else {
            handle.shared.metrics.proposals_overloaded.increment(1);
            return Err(ProposeError::Overloaded);
        };
        let (reply, outcome) = Reply::new(ticket);
        match handle.inbox.try_send(Input::Propose(Proposal { command, priority, reply })) {
            Ok(()) => outcome.await.unwrap_or(Err(ProposeError::Unknown)),
            Err(TrySendError::Full(_)) => Err(ProposeError::Overloaded),
            Err(TrySendError::Closed(_)) => Err(ProposeError::Unknown),
        }
    }

    /// A linearizable view: it holds every command acknowledged before the call. With peers a quorum confirms that this
    /// replica still leads.
    ///
    /// # Errors
    /// If this replica does not lead or has stopped, or if no quorum answers in time.
    pub async fn read(&self) -> Result<Arc<ReadView>, ReadError> {
        let shared = &self.handle.shared;
        if *shared.phase.borrow() == Phase::Stopped {
            return Err(ReadError::Stopped);
        }
        // Nobody else could have taken leadership from a sole voter; what was acknowledged is applied here.
        if shared.alone.load(Ordering::Acquire) && shared.leading.load(Ordering::Acquire) {
            return shared.newest_view();
        }
        let (reply, outcome) = oneshot::channel();
        self.handle.inbox.send(Input::Read(reply)).await.map_err(|_| ReadError::Stopped)?;
        outcome.await.unwrap_or(Err(ReadError::Stopped))?;
        shared.newest_view()
    }

    /// The newest applied rows, not linearizable with peers: for workers and metrics.
    ///
    /// # Errors
    /// If the state file fails or is closed.
    pub fn view(&self) -> Result<ReadView, StoreError> {
        Ok(self.handle.shared.fresh_view()?)
    }

    /// Begins a backup of what this replica has applied; any replica will do. Blocking.
    ///
    /// # Errors
    /// If the state cannot be read or is closed.
    pub fn backup(&self) -> Result<Backup, SnapshotError> {
        let shared = &self.handle.shared;
        let db = shared.db.read().clone().ok_or(StoreError::from(ReadError::Stopped))?;
        let source = SnapshotSource::new(&db, M::TABLES, self.handle.cluster_id)?;
        Ok(Backup::begin(&shared.name, source))
    }

    /// [`Group::backup`] as the bytes of its file, begun when the first piece is asked for.
    pub fn backup_stream(&self) -> SnapshotStream {
        let group = self.clone();
        let begin = async move {
            let begun = task::spawn_blocking(move || group.backup().map_err(|error| error.to_string())).await;
            match begun.map_err(|error| error.to_string()).and_then(|begun| begun) {
                Ok(backup) => backup.into_stream(),
                Err(why) => {
                    let failure = Failure::new(Status::Retry, format!("no backup can be made: {why}"));
                    Box::pin(stream::iter([Err(failure)]))
                }
            }
        };
        Box::pin(stream::once(begin).flatten())
    }

    /// Whether this node's clock agrees with its peers' median to half a minute. A leader for whom it does not must do
    /// nothing because of the time.
    pub fn is_clock_trusted(&self) -> bool {
        self.handle.shared.clock_is_trusted.load(Ordering::Acquire)
    }

    /// Where the group stands.
    pub fn status(&self) -> GroupStatus {
        let shared = &self.handle.shared;
        let status = *shared.status.lock();
        GroupStatus { is_leader: shared.leading.load(Ordering::Acquire), ..status }
    }

    /// Resolves when this replica leads and has applied an entry of its term; the log is replayed then.
    ///
    /// # Errors
    /// If the group stops before.
    pub async fn wait_leader(&self) -> Result<(), ReadError> {
        let mut phase = self.handle.shared.phase.subscribe();
        match phase.wait_for(|phase| *phase != Phase::Following).await {
            Ok(Phase::Leading) => Ok(()),
            _ => Err(ReadError::Stopped),
        }
    }

    /// Follows who leads. It ends, with an error, when the group stops.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.handle.shared.follow_leadership()
    }

    /// A member, for turning a hint into an address.
    pub fn member(&self, raft_id: u64) -> Option<Member> {
        self.handle.shared.membership.lock().members.get(&raft_id).cloned()
    }

    /// The group as this replica sees it.
    pub fn info(&self) -> GroupInfo {
        let status = self.status();
        GroupInfo {
            group: self.handle.shared.name.clone(),
            raft_id: self.handle.raft_id,
            term: status.term,
            leader: Some(status.leader).filter(|leader| *leader != 0),
            commit_index: status.commit_index,
            applied_index: status.applied_index,
            log_first_index: status.log_first_index,
            log_last_index: status.log_last_index,
            state_hash: format!("{:032x}", status.state_hash),
            members: self.handle.shared.member_infos.lock().clone(),
            vote: status.vote,
        }
    }

    /// Whether this replica was a member once and is none any more. Its directory is of no further use.
    pub fn is_removed(&self) -> bool {
        self.handle.shared.membership.lock().former.contains(&self.handle.raft_id)
    }

    /// Ends the process since this replica's rows are wrong, as others show or checksums say. It is not opened again.
    pub fn condemn(&self, why: &str) -> ! {
        self.handle.shared.condemn(why)
    }

    /// Changes the membership; returns when the change is committed and no other quorum counts.
    ///
    /// # Errors
    /// Why nothing changed, or that the outcome is unknown.
    pub async fn change_membership(&self, change: MembershipChange) -> Result<(), ChangeError> {
        self.ask_for(|reply| Input::Change(change, reply)).await
    }

    /// Hands leadership to a voter; returns when it leads.
    ///
    /// # Errors
    /// Why not.
    pub async fn transfer_leadership(&self, raft_id: u64) -> Result<(), ChangeError> {
        self.ask_for(|reply| Input::Transfer(raft_id, reply)).await
    }

    /// Hands leadership to `raft_id`, or to the voter that is furthest on.
    ///
    /// # Errors
    /// As [`Group::transfer_leadership`].
    pub async fn hand_over(&self, raft_id: Option<u64>) -> Result<(), ChangeError> {
        let furthest = || {
            let members = self.info().members;
            let others = members.iter().filter(|info| info.role == MemberRole::Voter && !info.is_leader);
            others.max_by_key(|info| info.match_index).map(|info| info.member.raft_id)
        };
        match raft_id.or_else(furthest) {
            Some(raft_id) => self.transfer_leadership(raft_id).await,
            None => Err(ChangeError::Refused("there is no other voter to lead".to_owned())),
        }
    }

    async fn ask_for(&self, input: impl FnOnce(ChangeReply) -> Input<M::Reply>) -> Result<(), ChangeError> {
        let (reply, outcome) = oneshot::channel();
        let refused = || ChangeError::Refused("the group has stopped".to_owned());
        self.handle.inbox.send(input(reply)).await.map_err(|_| refused())?;
        outcome.await.unwrap_or(Err(ChangeError::Unknown))
    }

    /// Lets a tick pass, where [`GroupConfig::tick`] is zero. True if the replica noticed.
    pub fn tick(&self) -> bool {
        self.handle.inbox.try_send(Input::Tick).is_ok()
    }

    /// Hands leadership over if somebody takes it, finishes what is under way, makes a durable checkpoint and closes; the
    /// directory can be opened again when it returns. Proposals after it answer [`ProposeError::Unknown`].
    pub async fn shutdown(&self) {
        let mut phase = self.handle.shared.phase.subscribe();
        // An error says that the threads are gone.
        let _ = self.handle.inbox.send(Input::Stop).await;
        let _ = phase.wait_for(|phase| *phase == Phase::Stopped).await;
    }
}

#[async_trait]
impl<M: StateMachine> PeerEndpoint for Group<M> {
    fn group(&self) -> &str {
        &self.handle.shared.name
    }

    async fn receive(&self, batch: Bytes) -> Result<(), Failure> {
        let handle = &self.handle;
        let packet = match decode(&batch, |head| handle.admit(head)) {
            Ok(packet) => packet,
            // It is lost like any other, and nobody need hear of it: who has restarted is doubted for a moment.
            Err(DOUBTED) => return Ok(()),
            Err(why) => {
                handle.shared.metrics.packets_refused.increment(1);
                let text = format!("a batch of messages is refused: {why}");
                return Err(Failure::new(Status::Invalid, text));
            }
        };
        match handle.inbox.try_send(Input::Packet(Box::new(packet))) {
            Ok(()) => Ok(()),
            // Raft sends anew what still matters.
            Err(_) => Err(Failure::new(Status::Retry, "this replica is busy or stopping")),
        }
    }

    async fn receive_snapshot(&self, call: Bytes, body: SnapshotStream) -> Result<(), Failure> {
        let handle = &self.handle;
        let incoming = Incoming::begin(&handle.incoming, &handle.shared, &call, |head| handle.admit(head));
        let refused = |why: String| {
            handle.shared.metrics.packets_refused.increment(1);
            Failure::new(Status::Invalid, format!("a snapshot is refused: {why}"))
        };
        let (message, received) = incoming.map_err(refused)?.receive(body).await?;
        let (reply, outcome) = oneshot::channel();
        let install = Input::Install(Box::new(Install { message, received, reply }));
        let stopped = || Failure::new(Status::Retry, "this replica has stopped");
        handle.inbox.send(install).await.map_err(|_| stopped())?;
        outcome.await.unwrap_or_else(|_| Err(stopped()))
    }
}
