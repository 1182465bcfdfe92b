//! A replicated group: opens it, proposes to it, reads from it.
//!
//! At start the state says how far it durably is and the log what came after. They must fit: the log begins at or
//! before the entry after the applied one and holds the applied one with its term. Then everything up to the applied
//! entry was committed, whatever the log knew of it, and raft hands out the rest again: that is the replay. If they
//! do not fit, one of them lost acknowledged entries, and opening is refused.
//!
//! Invariants:
//! * raft's `applied` starts at the durable applied index, never at the commit index: entries in between would never
//!   be applied.
//!
//! Not here: threads' work (see `driver`, `apply`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use platform::disk::{Directory, DiskIo};
use platform::watch;
use platform::{actor, task};
use raft::RawNode;
use raft::eraftpb::HardState;
use tokio::runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;
use wire::group::{GroupInfo, Member, MemberRole, MembershipChange};
use wire::host::HostPort;
use wire::status::{Failure, Status};

use crate::apply::{Applier, ApplyInput, Pace};
use crate::backup::Backup;
use crate::driver::{APPLY_INBOX, Driver, Install, Place, Room};
use crate::error::{ChangeError, OpenError, ProposeError, ReadError, SnapshotError, StoreError};
use crate::incoming::{Incoming, IncomingConfig};
use crate::lives::Heard;
use crate::log::{Identity, Log, LogConfig, SegmentedLog};
use crate::logger::raft_logger;
use crate::machine::StateMachine;
use crate::marker::{Marker, note_name};
use crate::members::Membership;
use crate::packet::{Head, decode};
use crate::peer::{PeerEndpoint, PeerTransport, SnapshotStream};
use crate::replica::{Replica, io_error};
use crate::shared::{ChangeReply, Input, Phase, Proposal, Reply, Shared, Ticket};
use crate::space::{RESERVE, Reserve};
use crate::state::snapshot::SnapshotSource;
use crate::state::{Progress, StateConfig, StateFile};
use crate::storage::LogStore;
use crate::store::{ReadView, check_tables};
use crate::unsound;

/// The longest command: raft panics on a Ready that is much longer than this.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes of commands that share one append at most: bounds how long the first one waits.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// Entries in a message to a peer, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Committed entries in one Ready, in bytes: what a replay holds in memory at once.
pub(crate) const READY_BYTES_MAX: u64 = 4 << 20;

/// Proposed and not committed, in bytes; raft drops proposals beyond it.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Ticks of 100 ms: an election after 1 to 2 s, a heartbeat every tick.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;

/// Messages to one peer on their way at most.
const INFLIGHT_MAX: usize = 256;

/// How often the apply thread looks whether a checkpoint is due, at most and at least.
const APPLY_TICKS: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);

/// A segment holds its header and some commands, and its offsets are 32-bit.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=1 << 30;

/// Entries kept for peers that are behind: what a busy group logs while one of its replicas restarts, a minute or two at
/// 1,000 commands a second, some 50 MiB of them. Whoever was away for longer gets a snapshot.
const LOG_KEEP_ENTRIES: u64 = 100_000;

/// Inputs to the raft thread besides proposals: wake-ups and a stop.
const INBOX_EXTRA: usize = 1024;

/// Why a packet of a process that nobody knows yet is dropped.
const DOUBTED: &str = "its sender's life is new here, and its address is still being asked";

/// Why a packet of a second process under one raft id is refused.
const TWIN: &str = "another process runs under its sender's raft id, at the address where that replica is known: stop one \
                    of the two, and wipe the directory of the one that was copied";

/// How a group is opened.
#[derive(Clone)]
pub struct GroupConfig {
    /// `om` or `scm`: names threads, metrics and log lines.
    pub name: String,
    /// The group's directory.
    pub disk: Arc<dyn DiskIo>,
    /// The cluster; a directory of another one is refused.
    pub cluster_id: Uuid,
    /// This replica's raft id, 1 for the sole voter. Never 0.
    pub raft_id: u64,
    /// Size of new log segments, 16 KiB to 1 GiB. Two exist at least, zero-filled when made. Default 64 MiB.
    pub log_segment_bytes: u64,
    /// What redb may keep in memory for reads and unwritten pages. Default 32 MiB.
    pub cache_bytes: usize,
    /// Commands under way at most; more are answered [`ProposeError::Overloaded`]. Default 4,096.
    pub proposals_max: usize,
    /// The longest command, at most [`COMMAND_BYTES_MAX`], which is the default, and a quarter of a segment.
    pub command_bytes_max: usize,
    /// The state becomes durable at least this often while commands come. Default 5 s: bounds the replay.
    pub checkpoint_interval: Duration,
    /// Rows written between two checkpoints at first; adapted so that a checkpoint takes about 20 ms. Default 16,384.
    pub checkpoint_rows: u64,
    /// With less free space than this, only commands that free space pass. Default 64 MiB.
    pub disk_free_min_bytes: u64,
    /// Space kept in a file for commands that free space, once nothing else is left. At least as much as
    /// `cache_bytes` is wise, as that much may be unwritten. Default 32 MiB.
    pub reserve_bytes: u64,
    /// This replica's life: drawn when its directory is made, the same at every start.
    pub incarnation: Uuid,
    /// This replica as others see it. If absent, that of `voters` with its raft id; else nobody can reach it.
    pub member: Option<Member>,
    /// The first voters of a group whose directories are fresh, this replica among them. None: it is the only one.
    pub voters: Vec<Member>,
    /// A fresh directory waits to be added to a group that exists.
    pub join: bool,
    /// The way to peers. None: there are none.
    pub transport: Option<Arc<dyn PeerTransport>>,
    /// How often time is told: a heartbeat every tick, an election after ten to twenty. Zero: by [`Group::tick`] alone.
    /// Default 100 ms.
    pub tick: Duration,
    /// Every so many entries replicas compare their state. The same everywhere. Default 10,000.
    pub state_hash_entries: u64,
    /// Where it is noted that this replica has lived, so that it never begins anew. None: nowhere.
    pub marker: Option<Marker>,
    /// Entries that stay in the log for peers that are behind. Default 100,000.
    pub log_keep_entries: u64,
}

impl std::fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConfig")
            .field("name", &self.name)
            .field("disk", &self.disk)
            .field("cluster_id", &self.cluster_id)
            .field("raft_id", &self.raft_id)
            .field("voters", &self.voters)
            .field("join", &self.join)
            .finish_non_exhaustive()
    }
}

impl GroupConfig {
    /// The defaults for a sole voter on `disk`.
    pub fn new(name: &str, disk: Arc<dyn DiskIo>, cluster_id: Uuid) -> Self {
        GroupConfig {
            name: name.to_owned(),
            disk,
            cluster_id,
            raft_id: 1,
            log_segment_bytes: 64 << 20,
            cache_bytes: 32 << 20,
            proposals_max: 4096,
            command_bytes_max: COMMAND_BYTES_MAX,
            checkpoint_interval: Duration::from_secs(5),
            checkpoint_rows: 16_384,
            disk_free_min_bytes: 64 << 20,
            reserve_bytes: 32 << 20,
            incarnation: Uuid::nil(),
            member: None,
            voters: Vec::new(),
            join: false,
            transport: None,
            tick: Duration::from_millis(100),
            state_hash_entries: 10_000,
            marker: None,
            log_keep_entries: LOG_KEEP_ENTRIES,
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let refuse = |text: &str| Err(OpenError::Config(text.to_owned()));
        if self.raft_id == 0 {
            return refuse("a raft id is never 0");
        }
        if !SEGMENT_BYTES.contains(&self.log_segment_bytes) || !self.log_segment_bytes.is_multiple_of(4096) {
            return refuse("a log segment has 16 KiB to 1 GiB, in whole pages of 4 KiB");
        }
        if self.proposals_max == 0 || self.command_bytes_max == 0 {
            return refuse("no command could ever be proposed");
        }
        if self.state_hash_entries == 0 {
            return refuse("state hashes are compared every entry or less often");
        }
        let mut ids: Vec<u64> = self.voters.iter().map(|voter| voter.raft_id).collect();
        ids.sort_unstable();
        if ids.contains(&0) || ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return refuse("each of the first voters needs a raft id of its own, never 0");
        }
        if self.join && !ids.is_empty() {
            return refuse("a replica that joins a group is none of its first voters");
        }
        if !self.join && !ids.is_empty() && !ids.contains(&self.raft_id) {
            return refuse("this replica is not among the first voters: let it join");
        }
        if let Some(mine) = self.voters.iter().find(|voter| voter.raft_id == self.raft_id)
            && mine.incarnation != self.incarnation
        {
            return refuse("the first voters name another incarnation for this replica");
        }
        Ok(())
    }

    /// Where the files are, for messages.
    fn dir(&self) -> PathBuf {
        PathBuf::from(self.disk.name())
    }

    /// This replica as others see it.
    pub(crate) fn me(&self) -> Member {
        let listed = || self.voters.iter().find(|voter| voter.raft_id == self.raft_id).cloned();
        self.member.clone().or_else(listed).unwrap_or_else(|| Member {
            raft_id: self.raft_id,
            incarnation: self.incarnation,
            node: String::new(),
            address: HostPort::new("localhost:0").expect("this is host:port"),
        })
    }

    /// Who votes when the directory is made.
    fn first_voters(&self) -> Vec<Member> {
        match (self.join, self.voters.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![self.me()],
            (false, false) => self.voters.clone(),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { cluster_id: self.cluster_id, raft_id: self.raft_id }
    }

    fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX.min(self.log_segment_bytes / 4) as usize
    }

    /// A command must fit into a segment beside what is kept there.
    fn command_bytes_max(&self) -> usize {
        self.command_bytes_max.min(COMMAND_BYTES_MAX).min(self.batch_bytes_max())
    }
}

/// A directory of the operating system as a group's disk, made if absent.
///
/// # Errors
/// If it cannot be made or opened.
pub fn directory(path: &Path) -> Result<Arc<dyn DiskIo>, OpenError> {
    let opened = Directory::open(path);
    let failed = |source| OpenError::Io { action: "make", path: path.to_owned(), source };
    Ok(Arc::new(opened.map_err(failed)?))
}

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
        let opened = recover::<M>(&config)?;
        start(config, machine, opened)
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

/// What opening found.
struct Opened {
    replica: Replica,
    reserve: Arc<Reserve>,
    state: StateFile,
    progress: Progress,
    log: SegmentedLog,
}

/// Opens what is in the directory, or makes it, and brings it together.
fn recover<M: StateMachine>(config: &GroupConfig) -> Result<Opened, OpenError> {
    let replica = Replica::lock(&config.disk)?;
    unsound::refuse(&*config.disk, config.raft_id)?;
    let note = note_name(&config.name, config.raft_id, config.incarnation);
    if !replica.exists()? {
        if let Some(marker) = &config.marker
            && marker.is_set(&note)?
        {
            return Err(marker.wiped(&note, config.dir(), config.raft_id));
        }
        replica.create(config.identity(), || create_files::<M>(config))?;
    }
    replica.check(config.identity())?;
    let reserve = open_reserve(config)?;
    let (state, mut progress) = StateFile::open(&state_config::<M>(config, &reserve))?;
    let mut log = SegmentedLog::open(log_config(config))?;
    take_over(&config.dir(), &state, &mut log, &mut progress)?;
    check_fit(&replica, &log, &progress)?;
    if let Some(marker) = &config.marker {
        marker.set(&note)?;
    }
    Ok(Opened { replica, reserve, state, progress, log })
}

fn create_files<M: StateMachine>(config: &GroupConfig) -> Result<(), OpenError> {
    let reserve = open_reserve(config)?;
    StateFile::create(&state_config::<M>(config, &reserve))?;
    create_log(config)
}

pub(crate) fn create_log(config: &GroupConfig) -> Result<(), OpenError> {
    SegmentedLog::create(log_config(config))?;
    Ok(())
}

pub(crate) fn open_reserve(config: &GroupConfig) -> Result<Arc<Reserve>, OpenError> {
    let opened = Reserve::open(&config.disk, config.reserve_bytes);
    Ok(Arc::new(opened.map_err(io_error("open", &*config.disk, RESERVE))?))
}

pub(crate) fn state_config<M: StateMachine>(config: &GroupConfig, reserve: &Arc<Reserve>) -> StateConfig {
    StateConfig {
        group: config.name.clone(),
        disk: Arc::clone(&config.disk),
        identity: config.identity(),
        cache_bytes: config.cache_bytes,
        tables: M::TABLES,
        reserve: Arc::clone(reserve),
        voters: config.first_voters(),
    }
}

fn log_config(config: &GroupConfig) -> LogConfig {
    LogConfig {
        disk: Arc::clone(&config.disk),
        identity: config.identity(),
        segment_bytes: config.log_segment_bytes,
        name: config.name.clone(),
    }
}

/// Finishes what a crash interrupted after a snapshot had taken the state's place: the log is reset if it does not hold
/// what the rows stand for, then the mark goes.
fn take_over(
    dir: &Path,
    state: &StateFile,
    log: &mut SegmentedLog,
    progress: &mut Progress,
) -> Result<(), OpenError> {
    if !progress.installed {
        return Ok(());
    }
    let (index, term) = (progress.applied_index, progress.applied_term);
    if log.term(index) != Some(term) || log.first_index() > index + 1 {
        log.reset(index, term)?;
    }
    let cleared = state.clear_installed(progress);
    cleared.map_err(|source| OpenError::of_recovery(dir.to_owned(), source))
}

/// Checks that the log continues the state.
fn check_fit(replica: &Replica, log: &dyn Log, progress: &Progress) -> Result<(), OpenError> {
    let Progress { applied_index, applied_term, .. } = *progress;
    if log.first_index() > applied_index + 1 {
        let what =
            format!("the state ends at entry {applied_index}, the log begins at {}", log.first_index());
        return Err(replica.damaged("log", what));
    }
    if log.term(applied_index) != Some(applied_term) {
        let what = format!(
            "the state holds entry {applied_index} of term {applied_term}, the log ends at {} and has term {:?} there",
            log.last_index(),
            log.term(applied_index)
        );
        return Err(replica.damaged("log", what));
    }
    Ok(())
}

fn start<M: StateMachine>(
    config: GroupConfig,
    mut machine: M,
    opened: Opened,
) -> Result<Group<M>, OpenError> {
    let Opened { replica, reserve, state, progress, log } = opened;
    let recover = |source| OpenError::of_recovery(config.dir(), source);
    let view = state.view().map_err(recover)?;
    machine.recovered(&view).map_err(recover)?;
    drop(view);

    let status = status_at_start(&log, &progress);
    let me = config.me();
    let mut membership = Membership::new(progress.conf_state.clone(), &progress.members, &progress.former);
    if membership.members.is_empty() && membership.is_alone(config.raft_id) {
        // A state from before members were kept.
        membership.members.insert(config.raft_id, me.clone());
    }
    let alone = membership.is_alone(config.raft_id);
    let database = Arc::clone(state.database());
    let disk = Arc::clone(&config.disk);
    let shared =
        Arc::new(Shared::new(&config.name, config.raft_id, disk, M::TABLES, database, status, membership));
    shared.alone.store(alone, Ordering::Release);
    let node = make_node(&config, log, &progress)?;
    let (raft_sender, raft_inbox) = mpsc::channel(config.proposals_max + INBOX_EXTRA);
    let (apply_sender, apply_inbox) = mpsc::channel(APPLY_INBOX);
    let applier = Applier {
        machine,
        state,
        progress,
        raft: raft_sender.downgrade(),
        shared: Arc::clone(&shared),
        pace: Pace::new(config.checkpoint_interval, config.checkpoint_rows),
        mark_entries: config.state_hash_entries,
        changes: std::collections::VecDeque::new(),
    };
    let apply_tick = (config.checkpoint_interval / 4).clamp(*APPLY_TICKS.start(), *APPLY_TICKS.end());
    actor::ticks(apply_sender.downgrade(), apply_tick, || ApplyInput::Tick);
    start_applier(&config, applier, apply_inbox, raft_sender.downgrade())?;

    let incoming = IncomingConfig::new(
        state_config::<M>(&config, &reserve),
        // A follower's log must find room while rows come in, whatever else it needs.
        config.disk_free_min_bytes + config.log_segment_bytes,
    );
    let room =
        Room::new(reserve, config.disk_free_min_bytes, config.log_segment_bytes, config.batch_bytes_max());
    let place = Place {
        me,
        cluster_id: config.cluster_id,
        transport: config.transport.clone(),
        runtime: runtime::Handle::current(),
        election_ticks: ELECTION_TICKS,
        log_keep_entries: config.log_keep_entries,
    };
    let driver = Driver::new(node, raft_sender.downgrade(), apply_sender, Arc::clone(&shared), room, place);
    if !config.tick.is_zero() {
        actor::ticks(raft_sender.downgrade(), config.tick, || Input::Tick);
    }
    start_driver(&config, driver, raft_inbox, raft_sender.clone(), replica)?;
    // It begins when it is called, and it is called when there is something in its inbox.
    let _ = raft_sender.try_send(Input::Wake);
    tracing::info!(
        group = %config.name,
        checkpoint_index = status.checkpoint_index,
        log_last_index = status.log_last_index,
        "opened"
    );
    let handle = Handle {
        shared,
        inbox: raft_sender,
        proposals_max: config.proposals_max,
        command_bytes_max: config.command_bytes_max(),
        raft_id: config.raft_id,
        incarnation: config.me().incarnation,
        cluster_id: config.cluster_id,
        incoming,
    };
    Ok(Group { handle: Arc::new(handle) })
}

fn start_driver<R: Send + 'static>(
    config: &GroupConfig,
    driver: Driver<R>,
    inbox: mpsc::Receiver<Input<R>>,
    own: mpsc::Sender<Input<R>>,
    replica: Replica,
) -> Result<(), OpenError> {
    let shared = driver.shared();
    // Its own sender keeps the loop alive when the last handle is gone: the directory stays locked until the apply thread has
    // closed the state.
    let mut running = Some((driver, replica, own));
    let mut begun = false;
    let step = move |inputs: &mut Vec<Input<R>>| {
        let Some((driver, ..)) = &mut running else { return ControlFlow::Break(()) };
        if !std::mem::replace(&mut begun, true) {
            driver.begin();
        }
        let flow = driver.step(inputs);
        if flow.is_break() {
            // Only then may another process have the directory, and only then does a shutdown return.
            running = None;
            shared.note_stopped();
        }
        flow
    };
    actor::start(&format!("{}-raft", config.name), inbox, step).map_err(no_thread(config))?;
    Ok(())
}

fn start_applier<M: StateMachine>(
    config: &GroupConfig,
    applier: Applier<M>,
    inbox: mpsc::Receiver<ApplyInput<M::Reply>>,
    raft: mpsc::WeakSender<Input<M::Reply>>,
) -> Result<(), OpenError> {
    let shared = Arc::clone(&applier.shared);
    let mut running = Some(applier);
    let step = move |inputs: &mut Vec<ApplyInput<M::Reply>>| {
        let Some(applier) = &mut running else { return ControlFlow::Break(()) };
        let flow = applier.step(inputs);
        if flow.is_break() {
            // The state file is closed before the raft thread hears of it. A full inbox wakes it as well.
            running = None;
            shared.applier_ended.store(true, Ordering::Release);
            if let Some(raft) = raft.upgrade() {
                let _ = raft.try_send(Input::Wake);
            }
        }
        flow
    };
    actor::start(&format!("{}-apply", config.name), inbox, step).map_err(no_thread(config))?;
    Ok(())
}

fn no_thread(config: &GroupConfig) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = config.dir();
    move |source| OpenError::Io { action: "start a thread for", path, source }
}

fn status_at_start(log: &dyn Log, progress: &Progress) -> GroupStatus {
    GroupStatus {
        term: log.hard_state().term,
        vote: log.hard_state().vote,
        is_leader: false,
        leader: 0,
        commit_index: log.hard_state().commit.max(progress.applied_index),
        applied_index: progress.applied_index,
        checkpoint_index: progress.applied_index,
        log_first_index: log.first_index(),
        log_last_index: log.last_index(),
        state_hash: progress.state_hash,
        state_mismatches: 0,
    }
}

fn make_node(
    config: &GroupConfig,
    log: SegmentedLog,
    progress: &Progress,
) -> Result<RawNode<LogStore>, OpenError> {
    let raft_config = raft::Config {
        id: config.raft_id,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: HEARTBEAT_TICKS,
        applied: progress.applied_index,
        check_quorum: true,
        pre_vote: true,
        max_size_per_msg: MESSAGE_BYTES_MAX,
        max_inflight_msgs: INFLIGHT_MAX,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: READY_BYTES_MAX,
        ..raft::Config::default()
    };
    let found = log.hard_state();
    // The commit index is not synced for its own sake; what was applied was committed.
    let commit = found.commit.max(progress.applied_index);
    let hard_state = HardState { commit, ..found.clone() };
    let store = LogStore::new(&config.name, Box::new(log), hard_state, progress.conf_state.clone());
    RawNode::new(&raft_config, store, &raft_logger()).map_err(|error| OpenError::Config(error.to_string()))
}

#[cfg(test)]
mod tests;
