//! Settings of OM, each with the reason of its default.

use std::fmt;
use std::sync::Arc;

use platform::disk::DiskIo;
use wire::block::Replication;
use wire::ids::ClusterId;
use wire::limits::{BLOCK_BYTES_MAX, SESSION_SILENCE_MS};

/// How an OM is opened and paced.
#[derive(Clone)]
pub struct OmConfig {
    /// Where log and state are: a directory of the operating system, or a simulated disk.
    pub disk: Arc<dyn DiskIo>,
    /// This replica's place in OM's group.
    pub place: consensus::Place,
    /// The cluster; a directory of another one is refused.
    pub cluster_id: ClusterId,
    /// The cluster's key: seals secrets of access keys at rest.
    pub cluster_key: [u8; 32],
    /// What the state file may keep in memory.
    pub cache_bytes: usize,
    /// Size of a log segment. Two exist at least.
    pub log_segment_bytes: u64,
    /// Freed blocks stay readable for this long: more than a token's life of 30 min plus skew, for readers under way.
    pub delete_grace_ms: u64,
    /// A loan ends when it is this old (Ozone's open-key expiry: 7 days).
    pub open_key_expire_after_ms: u64,
    /// How often loans are looked at (Ozone: 300 s).
    pub open_key_scan_interval_ms: u64,
    /// A session silent for this long is ended.
    pub session_silence_ms: u64,
    /// A completed upload answers repeats for this long.
    pub completed_upload_keep_ms: u64,
    /// How often the deletion queue is looked at.
    pub deletion_interval_ms: u64,
    /// How often queued work is looked for.
    pub work_interval_ms: u64,
    /// How often leases are compared with SCM.
    pub lease_interval_ms: u64,
    /// How often empty containers are looked for.
    pub retire_interval_ms: u64,
    /// Replication of new keys while the state names none: logged once, by the first leader of a cluster. Operators change
    /// it by `SetDefaultReplication`.
    pub default_replication: Replication,
    /// Bytes of one block at most, as write tokens say: several must fit a container.
    pub block_bytes_max: u64,
    /// Replication types for which leases are held before anybody asks, beside the default.
    pub replications: Vec<Replication>,
}

impl OmConfig {
    /// The defaults.
    pub fn new(disk: Arc<dyn DiskIo>, cluster_id: ClusterId, cluster_key: [u8; 32]) -> Self {
        const HOUR_MS: u64 = 60 * 60 * 1000;
        Self {
            disk,
            place: consensus::Place::default(),
            cluster_id,
            cluster_key,
            // Idle memory is to stay small; the page cache of the machine holds the rest.
            cache_bytes: 32 << 20,
            log_segment_bytes: 64 << 20,
            delete_grace_ms: HOUR_MS,
            open_key_expire_after_ms: 7 * 24 * HOUR_MS,
            open_key_scan_interval_ms: 300 * 1000,
            session_silence_ms: SESSION_SILENCE_MS,
            completed_upload_keep_ms: 7 * 24 * HOUR_MS,
            deletion_interval_ms: 1000,
            // An aborted upload should be gone from the disks' accounts soon, and an idle OM should sleep.
            work_interval_ms: 500,
            // A container that left OPEN must not be lent from for long.
            lease_interval_ms: 1000,
            // An empty container costs little: its blocks are punched already.
            retire_interval_ms: 30_000,
            default_replication: Replication::One,
            block_bytes_max: BLOCK_BYTES_MAX,
            replications: Vec::new(),
        }
    }
}

impl fmt::Debug for OmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OmConfig")
            .field("disk", &self.disk.name())
            .field("cluster_id", &self.cluster_id)
            .field("cache_bytes", &self.cache_bytes)
            .field("delete_grace_ms", &self.delete_grace_ms)
            .field("open_key_expire_after_ms", &self.open_key_expire_after_ms)
            .finish_non_exhaustive()
    }
}
