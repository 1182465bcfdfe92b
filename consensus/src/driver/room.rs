//! The driver's part in a disk that fills up: who refuses what, and who leads then.
//!
//! ```text
//!  leader    takes a command only if its own disk and those of a quorum let it pass; where a quorum could do without
//!            its disk, it hands leadership over to a voter of that quorum, and has its callers ask again until that
//!            one leads
//!  follower  takes entries as far as they fit for sure, and answers for what it has; the rest comes again with the
//!            leader's next heartbeat, until there is room. With its reserve used up it takes what was under way, no
//!            commands after that, and still what begins a term or changes the membership
//!  both      keep some of the log for terms and votes: without these there is no leader, so nobody who could free space
//! ```
//!
//! A leader learns of its peers' room from the head of each packet. It goes on committing with the voters that have room;
//! one that was full for long gets a snapshot, as any other that was away.
//!
//! Invariants:
//! * Nothing is appended that might not fit: an append that fails ends the process, and the next start would meet the
//!   same disk.
//! * A message is shortened only at its end, which is a message that the leader might have sent.
//!
//! Not here: what is free (see `space`), which records fit (see `log`).

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{EntryType, Message, MessageType};

use super::Driver;
use crate::config::COMMAND_BYTES_MAX;
use crate::log::entry_record_size;
use crate::space::{Admission, Reserve};

/// A leader whose disk is full leads so many ticks before it looks for another: it has to hear of its peers' room first.
const LEADS_TICKS_MIN: u64 = 10;

/// Between two attempts to hand leadership over there are so many ticks, lest disks that are equally full pass it around.
const YIELD_PAUSE_TICKS: u64 = 50;
/// A replica that lacks more entries is not asked to lead, nor counted on: as many as may be under way.
const YIELD_BEHIND_MAX: u64 = 4096;

/// With less log than this, beyond what is kept for terms, a replica says that it has no room: the longest command, so that
/// whoever says that it has some can take any.
const APPEND_ROOM: u64 = COMMAND_BYTES_MAX as u64;

/// What an entry may have beside the data that is counted: a change of membership without its members.
const SHORT_ENTRY_BYTES: usize = 256;

/// What limits proposals and appends besides their number.
pub(crate) struct Room {
    reserve: Arc<Reserve>,
    free_min: u64,
    /// Bytes of log that only commands which free space may use.
    pub(super) log_keep: u64,
    /// Bytes of log that only terms, votes and changes of membership may use.
    pub(super) terms_keep: u64,
    pub(super) batch_bytes_max: usize,
    append_room: u64,
    /// What the file system lets pass, as last looked at.
    disk: Admission,
    is_unknown: bool,
    /// The same with the log's room.
    own: Admission,
    /// What peers said of theirs.
    peers: BTreeMap<u64, Admission>,
    /// Records of entries that raft took in and that are not in the log yet.
    taken_bytes: u64,
    /// Records of commands that are taken yet though the reserve is used up: they were under way when nobody knew. Their
    /// rows are what the lower half of the reserve is for.
    late_bytes_left: u64,
    /// The tick before which leadership is not handed over again.
    yields_from: u64,
}

impl Room {
    pub(crate) fn new(
        reserve: Arc<Reserve>,
        free_min: u64,
        segment_bytes: u64,
        batch_bytes_max: usize,
    ) -> Self {
        Room {
            reserve,
            free_min,
            log_keep: segment_bytes / 4,
            // Thousands of elections in a segment of the usual size.
            terms_keep: segment_bytes / 16,
            batch_bytes_max,
            append_room: APPEND_ROOM.min(segment_bytes / 16),
            disk: Admission::All,
            is_unknown: false,
            own: Admission::All,
            peers: BTreeMap::new(),
            taken_bytes: 0,
            late_bytes_left: 0,
            yields_from: 0,
        }
    }

    /// What this replica lets pass.
    pub(super) fn own(&self) -> Admission {
        self.own
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.own == Admission::Nothing
    }

    pub(super) fn note_peer(&mut self, peer: u64, room: Admission) {
        self.peers.insert(peer, room);
    }

    /// All that raft took in is in the log.
    pub(super) fn note_persisted(&mut self) {
        self.taken_bytes = 0;
    }

    fn of_peer(&self, peer: u64) -> Admission {
        self.peers.get(&peer).copied().unwrap_or(Admission::All)
    }

    fn look_at_disk(&mut self, group: &str) {
        match self.reserve.admission(self.free_min) {
            Ok(found) => (self.disk, self.is_unknown) = (found, false),
            Err(error) if !self.is_unknown => {
                tracing::warn!(group, %error, "cannot look at the disk's free space");
                self.is_unknown = true;
            }
            Err(_) => {}
        }
    }
}

impl<R: Send + 'static> Driver<R> {
    /// Looks at disk and log, once a tick, and says so when something has changed.
    pub(super) fn look_at_room(&mut self) {
        let group = &self.shared.name;
        self.room.look_at_disk(group);
        let log = self.node.store().log();
        let of_log = if log.is_short_of(self.room.terms_keep + self.room.append_room) {
            Admission::Nothing
        } else if log.is_short_of(self.room.log_keep) {
            Admission::FreeingOnly
        } else {
            Admission::All
        };
        let found = self.room.disk.max(of_log);
        if found != Admission::Nothing {
            self.room.late_bytes_left = self.room.batch_bytes_max as u64;
        }
        if of_log != Admission::All || found == Admission::Nothing {
            // The log may have kept entries for others that it can give back now.
            self.checkpoint_seen = 0;
        }
        let before = std::mem::replace(&mut self.room.own, found);
        let membership = &self.membership;
        self.room.peers.retain(|peer, _| membership.contains(*peer));
        if found == before {
            return;
        }
        match found {
            Admission::All => tracing::info!(group, "the disk has room again: all commands pass"),
            Admission::FreeingOnly => {
                tracing::warn!(group, "the disk is full: only commands that free space pass");
            }
            Admission::Nothing => {
                tracing::error!(group, "the disk is full and the reserve used: no command passes");
            }
        }
    }

    /// The most that a quorum of those who answer lets pass, whichever of them leads. Too few who answer are no matter of
    /// room.
    pub(super) fn quorum_room(&self) -> Admission {
        let own = self.room.own;
        if own == Admission::All && self.room.peers.values().all(|room| *room == Admission::All) {
            return Admission::All;
        }
        let me = self.node.raft.id;
        let levels = [Admission::All, Admission::FreeingOnly, Admission::Nothing];
        let of_quorum = levels.into_iter().find(|most| {
            self.is_quorum(|peer| match peer {
                _ if peer == me => own <= *most,
                _ => self.is_active(peer) && self.room.of_peer(peer) <= *most,
            })
        });
        of_quorum.unwrap_or(own)
    }

    fn is_quorum(&self, takes_part: impl Fn(u64) -> bool) -> bool {
        let prs = self.node.raft.prs();
        prs.has_quorum(&prs.iter().map(|(peer, _)| *peer).filter(|peer| takes_part(*peer)).collect())
    }

    /// A leader with less room than a quorum without it asks one of them to lead.
    pub(super) fn yield_if_full(&mut self) {
        let is_settled = self.now >= self.leads_since + LEADS_TICKS_MIN && self.now >= self.room.yields_from;
        if !self.is_leader() || !is_settled || self.transferring.is_some() {
            return;
        }
        let Some(to) = self.roomier_voter() else { return };
        tracing::info!(group = %self.shared.name, to, "the disk is full: a replica with more room is asked to lead");
        self.room.yields_from = self.now + YIELD_PAUSE_TICKS;
        self.begin_transfer(to, None);
    }

    /// The voter that is furthest on of a quorum that could commit without this replica, and now, what this one refuses.
    pub(super) fn roomier_voter(&self) -> Option<u64> {
        let most = self.quorum_room();
        if most >= self.room.own {
            return None;
        }
        let prs = self.node.raft.prs();
        let last = self.node.raft.raft_log.last_index();
        // One that is behind could be used for nothing new until it has caught up.
        let could_commit = |peer: u64| {
            let is_near =
                || prs.get(peer).is_some_and(|progress| progress.matched + YIELD_BEHIND_MAX >= last);
            self.is_active(peer) && self.room.of_peer(peer) <= most && is_near()
        };
        let me = self.node.raft.id;
        let without_me = |peer: u64| peer != me && could_commit(peer);
        if !self.is_quorum(without_me) {
            return None;
        }
        let voters = self.membership.conf_state.voters.iter().copied();
        let held = |id: &u64| prs.get(*id).map_or(0, |progress| progress.matched);
        voters.filter(|id| without_me(*id)).max_by_key(held)
    }

    /// Whether an election's records fit for sure: a term with its vote, and the entry that begins it.
    pub(super) fn has_room_for_terms(&mut self) -> bool {
        self.has_room_for(0)
    }

    /// Whether an entry with so many bytes fits for sure, kept room included.
    pub(super) fn has_room_for(&mut self, bytes: usize) -> bool {
        let size = entry_record_size(SHORT_ENTRY_BYTES + bytes);
        self.node.mut_store().log_mut().admit(self.room.taken_bytes + size, 0)
    }

    /// Gives raft a peer's message, or as much of it as the log has room for.
    pub(super) fn receive_in_room(&mut self, mut message: Message) {
        if !self.has_room_for_terms() {
            // Only what is answered without a record: a heartbeat of this term.
            let is_heartbeat = message.get_msg_type() == MessageType::MsgHeartbeat;
            if is_heartbeat && message.term == self.node.raft.term {
                message.commit = message.commit.min(self.node.raft.raft_log.committed);
                self.step_raft(message);
            }
            return;
        }
        while message.get_msg_type() == MessageType::MsgAppend && !message.entries.is_empty() {
            let count = self.count_that_fit(&message);
            if count == message.entries.len() {
                break;
            }
            if count == 0 && self.room.taken_bytes == 0 {
                message.mut_entries().clear();
                break;
            }
            // The log has room for the rest perhaps, once it holds what came before.
            if count > 0 {
                let (first, rest) = split(message, count);
                self.step_raft(first);
                message = rest;
            }
            self.perform_all();
        }
        self.step_raft(message);
    }

    /// How many of an append's entries fit for sure, those that are held already included.
    fn count_that_fit(&mut self, message: &Message) -> usize {
        let raft_log = &self.node.raft.raft_log;
        let last = raft_log.last_index();
        let is_held =
            |index: u64, term: u64| index <= last && raft_log.term(index).is_ok_and(|found| found == term);
        let held = message.entries.iter().take_while(|entry| is_held(entry.index, entry.term)).count();
        let is_used_up = self.room.is_used_up();
        let log = self.node.mut_store().log_mut();
        let mut bytes = self.room.taken_bytes;
        let mut count = held;
        for entry in message.entries.iter().skip(held) {
            let size = entry_record_size(entry.data.len() + entry.context.len());
            // What begins a term and changes the membership is short, and without it nobody answers a read or can remove
            // whoever is full.
            let is_command = entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty();
            // An election after it must find room too.
            let keep = if is_command { self.room.terms_keep } else { entry_record_size(SHORT_ENTRY_BYTES) };
            let is_late = is_command && is_used_up;
            if (is_late && size > self.room.late_bytes_left) || !log.admit(bytes + size, keep) {
                break;
            }
            if is_late {
                self.room.late_bytes_left -= size;
            }
            bytes += size;
            count += 1;
        }
        self.room.taken_bytes = bytes;
        count
    }
}

/// An append as two: its first `count` entries, and the others behind them.
fn split(mut message: Message, count: usize) -> (Message, Message) {
    let mut entries = message.take_entries().into_vec();
    let rest = entries.split_off(count);
    let last = entries.last().expect("the first part has an entry");
    let mut second = message.clone();
    (second.index, second.log_term) = (last.index, last.term);
    second.set_entries(rest.into());
    message.set_entries(entries.into());
    (message, second)
}
