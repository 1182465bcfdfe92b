//! The raft thread: turns proposals into durable, committed entries, and speaks with peers.
//!
//! Everything that comes in meanwhile shares the next append and the next fdatasync, so batches form by themselves
//! and a lone proposal waits for nothing. Each Ready is performed in raft's order, which is law:
//!
//! ```text
//!  ready --> a leader's messages leave --> append entries, then hard state --> fdatasync
//!        --> messages that promise what is durable now --> advance_append --> committed --> apply thread
//! ```
//!
//! It is a step over inputs: it waits for nothing and reads no timer; ticks are inputs like any other. Elections are
//! timed by our own numbers, since raft draws from a generator that nobody could repeat.
//!
//! Apply may fall behind. Then batches wait here and no further proposal is taken until it has room again; this
//! thread itself never waits for it, for it owes its peers heartbeats.
//!
//! Invariants:
//! * Nothing is handed to apply that is not durable in the log.
//! * A command is proposed only at the leader, and only if its record fits into the log for sure.
//! * A proposer hears `NotLeader` only if its command has no effect, ever: it was never appended, or another entry is
//!   committed in its place. An entry that was merely overwritten here may yet be committed by others.
//!
//! Not here: what is on disk (see `log`), replies of applied commands (see `apply`).

mod clocks;
mod deaf;
mod greetings;
mod install;
mod membership;
mod room;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{RawNode, Ready, StateRole};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, WeakSender};
use uuid::Uuid;
use wire::group::Member;

use crate::abort::AbortOnPanic;
use crate::apply::{ApplyInput, Batch};
use crate::error::ProposeError;
use crate::group::Priority;
use crate::log::entry_record_size;
use crate::members::Membership;
use crate::packet::{Head, Mark, Packet, encode};
use crate::peer::PeerTransport;
use crate::reads::Reads;
use crate::shared::{Input, Proposal, Reply, Shared};
use crate::space::Admission;
use crate::storage::LogStore;

use clocks::Clocks;
use install::Installing;
use membership::{Changing, Transferring};
use snapshots::Sends;

pub(crate) use install::Install;
pub(crate) use room::Room;
pub(crate) use snapshots::SendEvent;

/// Commands in one append at most: bounds how long its first one waits.
const BATCH_ENTRIES_MAX: usize = 1024;

/// Batches that may wait in the apply thread's inbox: enough to keep it busy, few enough that a replay stays small.
pub(crate) const APPLY_INBOX: usize = 4;

/// With more batches waiting for apply, raft is asked for as little as it gives.
const OUTBOX_LONG: usize = 16;

/// A read that no quorum confirmed within so many ticks is told to try again.
const READ_TICKS: u64 = 30;

/// A proposer whose leader lost its place waits so many ticks for the outcome before it is called unknown.
const ORPHAN_TICKS: u64 = 20;

/// Peers whose address is known only because they wrote to us: replicas that were added by entries still to come.
const STRANGERS_MAX: usize = 16;

/// Indices whose state hashes of peers are kept.
const MARKED_MAX: usize = 4;

/// A proposal whose entry is in the log and not committed yet.
struct Pending<R> {
    index: u64,
    term: u64,
    reply: Reply<R>,
}

/// Where this replica stands among others.
pub(crate) struct Place {
    pub(crate) me: Member,
    pub(crate) cluster_id: Uuid,
    pub(crate) transport: Option<Arc<dyn PeerTransport>>,
    /// Where tasks run: this thread is none of the runtime's.
    pub(crate) runtime: Handle,
    /// An election after so many ticks at least, and less than twice as many.
    pub(crate) election_ticks: usize,
    /// Entries kept in the log for peers that are behind, beyond the durable checkpoint.
    pub(crate) log_keep_entries: u64,
}

/// The raft thread's state.
pub(crate) struct Driver<R> {
    node: RawNode<LogStore>,
    /// For tasks that report back.
    inbox: WeakSender<Input<R>>,
    /// Gone once the apply thread was told to stop.
    apply: Option<Sender<ApplyInput<R>>>,
    shared: Arc<Shared>,
    room: Room,
    place: Place,
    membership: Membership,
    /// Peers as they last named themselves: their addresses may be newer than the membership's.
    routes: BTreeMap<u64, Member>,
    /// When each peer last wrote, in ticks.
    heard: BTreeMap<u64, u64>,
    /// The tick at which this replica last became leader.
    leads_since: u64,
    /// The term in which it asked another to lead since nobody answered.
    yielded_in: u64,
    /// Taken from the inbox, not proposed yet. Bounded by the tickets.
    waiting: VecDeque<Proposal<R>>,
    pending: VecDeque<Pending<R>>,
    /// Proposals of terms in which this replica led once, and when their outcome becomes unknown.
    orphans: BTreeMap<(u64, u64), (Reply<R>, u64)>,
    reads: Reads,
    changing: Option<Changing>,
    transferring: Option<Transferring>,
    sends: Sends,
    clocks: Clocks,
    installing: Option<Installing>,
    /// Committed batches that the apply thread has no room for.
    outbox: VecDeque<Batch<R>>,
    /// Ticks since the start.
    now: u64,
    /// Term, role and leader as last seen.
    seen: (u64, StateRole, u64),
    /// Ticks until this replica calls an election.
    election_ticks: usize,
    /// State hashes by index and replica, peers' and our own.
    marked: BTreeMap<u64, BTreeMap<u64, (u64, u64)>>,
    /// Where which peers were found to differ, so that it is told once.
    mismatched: BTreeSet<(u64, u64)>,
    /// The next packets carry state hashes.
    marks_due: bool,
    /// The tick at which stopping no longer waits for another leader.
    stop_by: Option<u64>,
    rolls_seen: u64,
    checkpoint_seen: u64,
}

impl<R: Send + 'static> Driver<R> {
    pub(crate) fn new(
        node: RawNode<LogStore>,
        inbox: WeakSender<Input<R>>,
        apply: Sender<ApplyInput<R>>,
        shared: Arc<Shared>,
        room: Room,
        place: Place,
    ) -> Self {
        let membership = Membership::clone(&shared.membership.lock());
        let seen = (node.raft.term, node.raft.state, node.raft.leader_id);
        let election_ticks = place.election_ticks;
        let mut driver = Driver {
            node,
            inbox,
            apply: Some(apply),
            shared,
            room,
            place,
            membership,
            routes: BTreeMap::new(),
            heard: BTreeMap::new(),
            leads_since: 0,
            yielded_in: 0,
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            orphans: BTreeMap::new(),
            reads: Reads::default(),
            changing: None,
            transferring: None,
            sends: Sends::default(),
            clocks: Clocks::default(),
            installing: None,
            outbox: VecDeque::new(),
            now: 0,
            seen,
            election_ticks,
            marked: BTreeMap::new(),
            mismatched: BTreeSet::new(),
            marks_due: false,
            stop_by: None,
            rolls_seen: 0,
            checkpoint_seen: 0,
        };
        driver.draw_timeout();
        driver.publish_members();
        driver
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The first step: a sole voter leads at once.
    pub(crate) fn begin(&mut self) {
        let _guard = AbortOnPanic;
        let conf_state = &self.membership.conf_state;
        let alone = conf_state.voters == [self.node.raft.id] && conf_state.voters_outgoing.is_empty();
        self.look_at_room();
        if alone && self.has_room_for_terms() {
            // It need not wait for an election timeout: there is nobody it could disturb. Raft refuses while a change
            // of membership waits to be applied; the timeout then tries again.
            if let Err(error) = self.node.campaign() {
                tracing::warn!(group = %self.shared.name, %error, "cannot campaign");
            }
        }
        self.after_raft();
        self.turn();
    }

    /// Takes all that waits; breaks when everything is applied and durable after a stop.
    pub(crate) fn step(&mut self, inputs: &mut Vec<Input<R>>) -> ControlFlow<()> {
        let _guard = AbortOnPanic;
        for input in inputs.drain(..) {
            self.take_in(input);
        }
        if self.shared.stop_wanted.load(Ordering::Acquire) && self.stop_by.is_none() {
            self.begin_stop();
        }
        self.turn();
        self.try_close()
    }

    fn take_in(&mut self, input: Input<R>) {
        // Nothing may change any more once apply has its last batch.
        let is_closing = self.apply.is_none();
        match input {
            Input::Propose(proposal) if self.stop_by.is_some() => {
                proposal.reply.send(Err(ProposeError::NotLeader { hint: None }));
            }
            Input::Propose(proposal) => self.waiting.push_back(proposal),
            Input::Read(reply) => self.reads.add(reply, self.now + READ_TICKS),
            // Raft must hear nothing between a Ready and its end; what is lost is sent again.
            Input::Packet(_) if self.installing.is_some() => {}
            Input::Packet(packet) if !is_closing => self.receive(*packet),
            Input::Install(install) => self.install(*install),
            Input::Send(to, number, event) => self.note_send(to, number, event),
            Input::Change(change, reply) => self.change(change, reply),
            Input::Transfer(to, reply) => self.transfer(to, reply),
            Input::Ask(question) => self.ask(question),
            Input::Asked(member, number) => self.send_empty(&member, 0, number),
            Input::Tick if !is_closing => self.tick(),
            Input::Packet(_) | Input::Tick | Input::Wake => {}
            Input::Stop => self.shared.stop_wanted.store(true, Ordering::Release),
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        self.ask_who_lives();
        if self.installing.is_some() {
            return;
        }
        self.marks_due = true;
        self.look_at_room();
        // A term is logged: without room for it an election would end the process.
        let raft = &self.node.raft;
        let is_candidate_next = !self.is_leader() && raft.election_elapsed + 1 >= self.election_ticks;
        if !is_candidate_next || self.has_room_for_terms() {
            self.node.tick();
        }
        if self.node.raft.state != StateRole::Leader && self.node.raft.election_elapsed == 0 {
            self.draw_timeout();
        }
        self.after_raft();
        self.reads.expire(self.now);
        self.orphans.retain(|_, (_, expires)| self.now < *expires);
        self.tick_membership();
        self.yield_if_deaf();
        self.yield_if_full();
        self.tick_sends();
        self.compare_clocks();
        self.publish_members();
    }

    /// Does everything that can be done now. What apply has no room for waits, in raft or in the inbox.
    fn turn(&mut self) {
        if self.is_installing() {
            self.refuse_all();
            return;
        }
        self.hand_over();
        self.keep_house();
        self.compare_marks();
        loop {
            // A batch is admitted only when the log holds all before it, so nothing may wait in raft then.
            if self.outbox.is_empty() && !self.waiting.is_empty() && !self.node.has_ready() {
                self.propose_waiting();
            }
            self.begin_reads();
            self.leave_joint();
            if !self.node.has_ready() {
                break;
            }
            self.perform_all();
        }
        self.make_snapshots();
        self.publish();
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn leader_hint(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|leader| *leader != 0)
    }

    // Elections.

    /// Draws how long this replica waits before it calls an election.
    fn draw_timeout(&mut self) {
        let base = self.place.election_ticks;
        let drawn = (wire::random::u64() % base as u64) as usize;
        // Whoever has no room takes no commands, and hands leadership over where others could: let them try first. Two of
        // them must not try in step either.
        let late = if self.room.is_used_up() { (base + drawn) / 2 } else { drawn };
        self.election_ticks = base + late;
    }

    /// To be called whenever raft may have changed its mind about who leads.
    fn after_raft(&mut self) {
        let raft = &self.node.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if now != self.seen {
            let before = std::mem::replace(&mut self.seen, now);
            if (before.0, before.1) != (now.0, now.1) {
                self.draw_timeout();
            }
            self.note_change(before, now);
        }
        // Raft drew a number of its own.
        self.node.raft.set_randomized_election_timeout(self.election_ticks);
    }

    fn note_change(&mut self, before: (u64, StateRole, u64), now: (u64, StateRole, u64)) {
        let (term, role, leader) = now;
        let led = before.1 == StateRole::Leader;
        let leads = role == StateRole::Leader;
        self.shared.status.lock().leader = leader;
        self.shared.note_leader(term, leader, if leads { term } else { 0 });
        if led && (!leads || before.0 != term) {
            // What the log kept for those it led may go now.
            self.checkpoint_seen = 0;
            tracing::info!(group = %self.shared.name, term, leader, "not leading any more");
            let expires = self.now + ORPHAN_TICKS;
            let orphans = self.pending.drain(..);
            self.orphans.extend(orphans.map(|lost| ((lost.index, lost.term), (lost.reply, expires))));
            self.fail_change();
            self.stop_sends();
        }
        if leads && (!led || before.0 != term) {
            self.shared.metrics.elections_won.increment(1);
            self.leads_since = self.now;
            tracing::info!(group = %self.shared.name, term, "leading");
        } else if !leads {
            self.reads.refuse(self.leader_hint());
        }
        self.note_transferred(leader);
    }

    // Peers.

    fn receive(&mut self, packet: Packet) {
        let Packet { head, messages } = packet;
        let from = head.from.raft_id;
        if self.membership.admits(from, head.from.incarnation).is_err() {
            self.shared.metrics.packets_refused.increment(1);
            return;
        }
        self.heard.insert(from, self.now);
        self.clocks.note(from, head.sent_ms, wire::clock::now_ms(), self.now);
        if self.routes.contains_key(&from) || self.routes.len() < STRANGERS_MAX {
            self.routes.insert(from, head.from);
        }
        self.room.note_peer(from, Admission::from_wire(head.room));
        for mark in head.marks {
            self.note_mark(mark);
        }
        for message in messages {
            self.receive_in_room(message);
        }
    }

    fn step_raft(&mut self, message: Message) {
        let from = message.from;
        if let Err(error) = self.node.step(message) {
            tracing::debug!(group = %self.shared.name, from, %error, "raft does not take a message");
        }
        self.after_raft();
    }

    fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let Some(transport) = self.place.transport.clone() else { return };
        let mut by_peer = BTreeMap::<u64, Vec<Message>>::new();
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.stream_snapshot(message);
                continue;
            }
            by_peer.entry(message.to).or_default().push(message);
        }
        for (to, messages) in by_peer {
            let Some(member) = self.routes.get(&to).or_else(|| self.membership.members.get(&to)) else {
                self.shared.metrics.messages_unroutable.increment(messages.len() as u64);
                continue;
            };
            let head = self.head_to(member);
            for packet in encode(&head, &messages) {
                transport.send(&self.shared.name, member, packet);
            }
        }
        self.marks_due = false;
    }

    fn head_to(&self, member: &Member) -> Head {
        Head {
            group: self.shared.name.clone(),
            cluster_id: self.place.cluster_id,
            from: self.place.me.clone(),
            to_raft_id: member.raft_id,
            to_incarnation: member.incarnation,
            marks: self.marks_to_send(),
            sent_ms: wire::clock::now_ms(),
            room: self.room.own().to_wire(),
            life: self.shared.life,
            question: 0,
            answer: 0,
        }
    }

    // State hashes.

    fn marks_to_send(&self) -> Vec<Mark> {
        if !self.marks_due {
            return Vec::new();
        }
        let mine = self.node.raft.id;
        let newest = self.marked.iter().rev().find(|(_, hashes)| hashes.contains_key(&mine));
        let Some((index, hashes)) = newest else { return Vec::new() };
        hashes.iter().map(|(raft_id, hash)| Mark { raft_id: *raft_id, index: *index, hash: *hash }).collect()
    }

    fn note_mark(&mut self, mark: Mark) {
        if self.membership.contains(mark.raft_id) && mark.raft_id != self.node.raft.id {
            self.marked.entry(mark.index).or_default().insert(mark.raft_id, mark.hash);
        }
        while self.marked.len() > MARKED_MAX {
            self.marked.pop_first();
        }
    }

    /// Tells of every peer that holds other rows at the same index, and ends this replica for good if most voters do.
    fn compare_marks(&mut self) {
        self.note_own_marks();
        let mine = self.node.raft.id;
        let voters = &self.membership.conf_state.voters;
        let Some(oldest) = self.marked.keys().next().copied() else { return };
        self.mismatched.retain(|(index, _)| *index >= oldest);
        for (index, hashes) in &self.marked {
            let Some(own) = hashes.get(&mine) else { continue };
            let mut others = BTreeMap::<_, usize>::new();
            for (raft_id, hash) in hashes.iter().filter(|(_, hash)| *hash != own) {
                if self.mismatched.insert((*index, *raft_id)) {
                    note_mismatch(&self.shared, *index, *raft_id);
                }
                *others.entry(hash).or_default() += usize::from(voters.contains(raft_id));
            }
            if others.values().any(|count| *count > voters.len() / 2) {
                let why = format!("its rows after entry {index} differ from those of most voters");
                self.shared.condemn(&why);
            }
        }
    }

    fn note_own_marks(&mut self) {
        let mine = self.node.raft.id;
        for mark in self.shared.marks() {
            let oldest = self.marked.keys().next().copied();
            let is_kept = self.marked.len() < MARKED_MAX || oldest.is_some_and(|oldest| mark.index >= oldest);
            if is_kept {
                self.marked.entry(mark.index).or_default().insert(mine, mark.hash);
            }
        }
        while self.marked.len() > MARKED_MAX {
            self.marked.pop_first();
        }
    }

    // Reads.

    /// Asks for a quorum on behalf of all reads that have arrived.
    fn begin_reads(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        if !self.is_leader() || self.stop_by.is_some() {
            self.reads.refuse(self.leader_hint());
            return;
        }
        // Until then raft would drop the request without a word, and our rows may lack what was acknowledged.
        let is_caught_up =
            self.shared.leading.load(Ordering::Acquire) && self.node.raft.commit_to_current_term();
        // The bug: whoever was just elected takes it for the quorum's consent, and reads what it has applied.
        let early = !is_caught_up && wire::planted::is_on("read_before_term_start");
        if (is_caught_up || early) && self.reads.wants_round() {
            self.shared.metrics.read_rounds.increment(1);
            let context = self.reads.begin();
            if early || wire::planted::is_on("lease_read") {
                self.reads.confirm(&context);
                return;
            }
            self.node.read_index(context);
        }
    }

    // Proposals.

    /// Proposes waiting commands as one message: they share an append.
    fn propose_waiting(&mut self) {
        if !self.is_leader() {
            let hint = self.leader_hint();
            for proposal in self.waiting.drain(..) {
                proposal.reply.send(Err(ProposeError::NotLeader { hint }));
            }
            return;
        }
        let (entries, replies) = self.admit_waiting();
        if entries.is_empty() {
            return;
        }
        let mut message = Message { from: self.node.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(entries.into());
        if let Err(error) = self.node.step(message) {
            // Raft took none of them: too much is uncommitted, or leadership is being transferred.
            tracing::debug!(group = %self.shared.name, %error, "raft dropped proposals");
            let is_yielding = self.transferring.is_some();
            for reply in replies {
                let refusal = if is_yielding { ProposeError::Yielding } else { ProposeError::Overloaded };
                reply.send(Err(refusal));
            }
            return;
        }
        let term = self.node.raft.term;
        let first = self.node.raft.raft_log.last_index() + 1 - replies.len() as u64;
        let pending = (first..).zip(replies).map(|(index, reply)| Pending { index, term, reply });
        self.pending.extend(pending);
    }

    /// Takes as many waiting commands as make a batch, answering those the disk has no room for.
    fn admit_waiting(&mut self) -> (Vec<Entry>, Vec<Reply<R>>) {
        let admission = self.room.own().max(self.quorum_room());
        // What this disk alone has no room for, another leader will take in a moment.
        let is_for_another = self.transferring.is_some() || self.roomier_voter().is_some();
        let count = self.waiting.len().min(BATCH_ENTRIES_MAX);
        let (mut entries, mut replies) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let (mut bytes, mut log_bytes) = (0, 0);
        while entries.len() < BATCH_ENTRIES_MAX {
            let full = |proposal: &Proposal<R>| {
                !entries.is_empty() && bytes + proposal.command.len() > self.room.batch_bytes_max
            };
            if self.waiting.front().is_none_or(full) {
                break;
            }
            let proposal = self.waiting.pop_front().expect("looked at above");
            let record_size = entry_record_size(proposal.command.len());
            let (passes, keep) = match proposal.priority {
                Priority::Ordinary => (admission == Admission::All, self.room.log_keep),
                Priority::Freeing => (admission != Admission::Nothing, self.room.terms_keep),
            };
            if !passes || !self.node.mut_store().log_mut().admit(log_bytes + record_size, keep) {
                self.shared.metrics.proposals_full.increment(1);
                let refusal = if is_for_another { ProposeError::Yielding } else { ProposeError::Full };
                proposal.reply.send(Err(refusal));
                continue;
            }
            bytes += proposal.command.len();
            log_bytes += record_size;
            entries.push(Entry { data: proposal.command, ..Entry::default() });
            replies.push(proposal.reply);
        }
        (entries, replies)
    }

    // Ready.

    fn perform_all(&mut self) {
        while self.node.has_ready() {
            let ready = self.node.ready();
            self.perform(ready);
        }
        self.room.note_persisted();
    }

    fn perform(&mut self, mut ready: Ready) {
        assert!(ready.snapshot().is_empty(), "raft hears of a snapshot when it is taken over, and only then");
        self.send(ready.take_messages());
        for state in ready.take_read_states() {
            self.reads.confirm(&state.request_ctx);
        }
        self.commit(ready.take_committed_entries());
        self.persist(&mut ready);
        self.advance(ready);
    }

    /// The end of a Ready that is durable.
    fn advance(&mut self, mut ready: Ready) {
        self.send(ready.take_persisted_messages());
        let mut light = self.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().set_commit(commit);
        }
        self.send(light.take_messages());
        self.commit(light.take_committed_entries());
        self.after_raft();
    }

    fn persist(&mut self, ready: &mut Ready) {
        let entries = ready.take_entries();
        if entries.is_empty() && ready.hs().is_none() {
            return;
        }
        let started = wire::clock::steady_ns();
        let count = entries.len();
        let bytes: u64 = entries.iter().map(|entry| entry.data.len() as u64).sum();
        let store = self.node.mut_store();
        store.persist(entries, ready.hs(), ready.must_sync());
        let rolls = store.log().rolls();
        if rolls != self.rolls_seen {
            self.rolls_seen = rolls;
            self.shared.checkpoint_wanted.store(true, Ordering::Release);
        }
        let took = Duration::from_nanos(wire::clock::steady_ns() - started);
        self.shared.metrics.log_sync_seconds.record(took.as_secs_f64());
        self.shared.metrics.log_batch_entries.record(count as f64);
        self.shared.metrics.log_entries.increment(count as u64);
        self.shared.metrics.log_bytes.increment(bytes);
    }

    /// Passes committed entries on, with the replies that wait for them.
    fn commit(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let first = entries[0].index;
        let term_at = |index: u64| Some(entries[index.checked_sub(first)? as usize].term);
        let mut replies = VecDeque::new();
        let mut settle = |index: u64, term: u64, reply: Reply<R>| match term_at(index) {
            Some(found) if found == term => replies.push_back((index, reply)),
            // Another leader's entry has its place in the log: the command is not applied, ever.
            Some(_) => reply.send(Err(ProposeError::NotLeader { hint: None })),
            // A snapshot has swallowed the place.
            None => reply.send(Err(ProposeError::Unknown)),
        };
        while self.orphans.first_key_value().is_some_and(|((index, _), _)| *index <= last) {
            let ((index, term), (reply, _)) = self.orphans.pop_first().expect("looked at above");
            settle(index, term, reply);
        }
        while self.pending.front().is_some_and(|pending| pending.index <= last) {
            let Pending { index, term, reply } = self.pending.pop_front().expect("looked at above");
            settle(index, term, reply);
        }
        let mut changes = Vec::new();
        for entry in &entries {
            if entry.get_entry_type() == EntryType::EntryConfChangeV2 {
                // Raft reads it in the same way, so it was parsed before it was logged.
                let change = ConfChangeV2::parse_from_bytes(&entry.data).expect("the leader encoded it");
                self.membership.change(&mut self.node, &change, &entry.context);
                changes.push((entry.index, self.membership.clone()));
            }
            self.note_changed(entry);
        }
        if !changes.is_empty() {
            self.adopt_membership();
            self.leave_office();
        }
        self.node.mut_store().handed(last);
        self.outbox.push_back(Batch { entries, replies, changes });
        // Before apply can announce them: whoever waits for leadership then finds the term in the status.
        self.after_raft();
        self.publish();
        self.hand_over();
    }

    /// Gives the apply thread what it has room for.
    fn hand_over(&mut self) {
        while let Some(batch) = self.outbox.pop_front() {
            if let Some(batch) = self.try_hand_over(batch) {
                // Ask to be woken, then try again: room made in between would wake nobody.
                self.shared.backlogged.store(true, Ordering::Release);
                if let Some(batch) = self.try_hand_over(batch) {
                    self.outbox.push_front(batch);
                    break;
                }
            }
        }
        let is_long = self.outbox.len() > OUTBOX_LONG;
        self.node.raft.set_max_committed_size_per_ready(if is_long {
            0
        } else {
            crate::group::open::READY_BYTES_MAX
        });
    }

    fn try_hand_over(&self, batch: Batch<R>) -> Option<Batch<R>> {
        let apply = self.apply.as_ref().expect("nothing is committed after the end");
        match apply.try_send(ApplyInput::Batch(batch)) {
            Ok(()) => None,
            Err(TrySendError::Full(ApplyInput::Batch(batch))) => Some(batch),
            Err(_) => unreachable!("the apply thread ends after this one, or aborts the process"),
        }
    }

    // The rest.

    /// Tells raft what is applied and recycles what is checkpointed.
    fn keep_house(&mut self) {
        // First: the log never begins behind what raft knows to be applied.
        let checkpoint = self.shared.checkpoint_index.load(Ordering::Acquire);
        let applied = self.shared.applied_index.load(Ordering::Acquire);
        if applied > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(applied);
        }
        self.settle_change();
        if checkpoint != self.checkpoint_seen {
            self.checkpoint_seen = checkpoint;
            let index = self.recyclable(checkpoint);
            self.node.mut_store().compact(index);
        }
        self.node.mut_store().log_mut().maintain();
    }

    /// Up to where the log may be forgotten: peers that are behind need some of it.
    fn recyclable(&self, checkpoint: u64) -> u64 {
        if self.membership.is_alone(self.node.raft.id) {
            return checkpoint;
        }
        let kept_for_sends = || if self.is_leader() { self.held_for_sends(checkpoint) } else { checkpoint };
        let is_log_short = self.node.store().log().is_short_of(self.room.log_keep);
        if is_log_short || (!self.is_leader() && self.room.is_used_up()) {
            // What it gives back may be the room it lacks: peers that are behind get a snapshot.
            return checkpoint.min(kept_for_sends());
        }
        let keep_from = checkpoint.saturating_sub(self.place.log_keep_entries);
        if !self.is_leader() {
            return keep_from;
        }
        let slowest = self.node.raft.prs().iter().map(|(_, progress)| progress.matched).min();
        checkpoint.min(slowest.unwrap_or(0).max(keep_from)).min(kept_for_sends())
    }

    fn publish(&self) {
        let log = self.node.store().log();
        let mut status = self.shared.status.lock();
        status.term = self.node.raft.term;
        status.vote = self.node.raft.vote;
        status.commit_index = self.node.raft.raft_log.committed;
        status.log_first_index = log.first_index();
        status.log_last_index = log.last_index();
    }

    /// Finishes what was taken in, waits for apply's last checkpoint, and leaves a log that says all of it.
    fn try_close(&mut self) -> ControlFlow<()> {
        let Some(stop_by) = self.stop_by else { return ControlFlow::Continue(()) };
        let is_handing_over = self.transferring.is_some() && self.is_leader() && self.now < stop_by;
        if is_handing_over || self.installing.is_some() || !self.outbox.is_empty() || !self.waiting.is_empty()
        {
            return ControlFlow::Continue(());
        }
        if let Some(apply) = &self.apply {
            // Its inbox is full at worst; it then wakes us.
            self.shared.backlogged.store(true, Ordering::Release);
            if apply.try_send(ApplyInput::Stop).is_err() {
                return ControlFlow::Continue(());
            }
            self.apply = None;
        }
        if !self.shared.applier_ended.load(Ordering::Acquire) {
            return ControlFlow::Continue(());
        }
        self.keep_house();
        self.node.mut_store().close();
        tracing::info!(group = %self.shared.name, "stopped");
        ControlFlow::Break(())
    }
}

/// Two replicas applied the same entries and hold other rows. Which one is wrong only a majority can say.
fn note_mismatch(shared: &Shared, index: u64, peer: u64) {
    shared.metrics.state_mismatches.increment(1);
    shared.status.lock().state_mismatches += 1;
    tracing::error!(
        group = %shared.name,
        index,
        raft_id = shared.raft_id,
        peer,
        "two replicas hold different rows after the same entry: one of them is wrong. Where most voters agree, the other one \
         ends itself; where too few are there to tell, bring the missing ones back before anything is removed"
    );
}
