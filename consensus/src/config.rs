//! How a group is opened: its settings, and which of them contradict one another.
//!
//! Not here: opening (see `group::open`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use platform::disk::{Directory, DiskIo};
use uuid::Uuid;
use wire::group::Member;
use wire::host::HostPort;

use crate::error::OpenError;
use crate::log::Identity;
use crate::marker::Marker;
use crate::peer::PeerTransport;

/// The longest command: raft panics on a Ready that is much longer than this.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes of commands that share one append at most: bounds how long the first one waits.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// A segment holds its header and some commands, and its offsets are 32-bit.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=1 << 30;

/// Entries kept for peers that are behind: what a busy group logs while one of its replicas restarts, a minute or two at
/// 1,000 commands a second, some 50 MiB of them. Whoever was away for longer gets a snapshot.
const LOG_KEEP_ENTRIES: u64 = 100_000;

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
    /// Commands under way at most; more are answered [`ProposeError::Overloaded`](crate::ProposeError::Overloaded). Default 4,096.
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
    /// How often time is told: a heartbeat every tick, an election after ten to twenty. Zero: by [`Group::tick`](crate::Group::tick) alone.
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
    pub(crate) fn dir(&self) -> PathBuf {
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
    pub(crate) fn first_voters(&self) -> Vec<Member> {
        match (self.join, self.voters.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => vec![self.me()],
            (false, false) => self.voters.clone(),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { cluster_id: self.cluster_id, raft_id: self.raft_id }
    }

    pub(crate) fn batch_bytes_max(&self) -> usize {
        BATCH_BYTES_MAX.min(self.log_segment_bytes / 4) as usize
    }

    /// A command must fit into a segment beside what is kept there.
    pub(crate) fn command_bytes_max(&self) -> usize {
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
