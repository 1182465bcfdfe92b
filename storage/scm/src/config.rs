//! Settings of the Storage Container Manager, with the reason of each default.

use std::path::PathBuf;
use std::sync::Arc;

use platform::disk::DiskIo;
use wire::ids::ClusterId;
use wire::limits::{BLOCK_BYTES_MAX, BLOCK_TOKEN_LIFE_MS, CLOCK_SKEW_MS};

/// How an SCM is opened.
#[derive(Debug, Clone)]
pub struct ScmConfig {
    /// The directory of its log and state.
    pub dir: PathBuf,
    /// What stands in for `dir`: another disk, of a simulated machine.
    pub disk: Option<Arc<dyn DiskIo>>,
    /// This replica's place in SCM's group.
    pub place: consensus::Place,
    /// The cluster. Datanodes of another one are refused.
    pub cluster: ClusterId,
    /// A container nearly this long is closed. The same figure as the datanodes'. 5 GiB as in Ozone: a copy of a
    /// container takes a minute on a 1 Gbit/s link.
    pub container_bytes_max: u64,
    /// Containers kept open per replication type before leases share one. 1: a single disk gains nothing from more.
    pub open_containers: usize,
    /// Containers open per replication type at most: beyond it the fullest is closed. 16.
    pub open_containers_max: usize,
    /// How often datanodes call. 1 s: a dead node is noticed within `write_silence_ms`.
    pub heartbeat_interval_ms: u64,
    /// A datanode silent for this long gets no new writes. 5 s.
    pub write_silence_ms: u64,
    /// A datanode silent for this long is stale. 15 s.
    pub stale_silence_ms: u64,
    /// A datanode silent for this long is dead; its open containers are closed. 60 s.
    pub dead_silence_ms: u64,
    /// A datanode that a writer has failed at gets no new writes for this long, though it speaks, unless too few others are
    /// left. 15 s: a disk that hangs has mostly shown itself by then.
    pub failed_writer_ms: u64,
    /// A container that has lost a dead node's replica and has others is copied only after this. 5 min: most nodes that
    /// die are back after a restart.
    pub repair_delay_ms: u64,
    /// Copies under way at once, in the whole cluster. 4.
    pub repair_copies_max: usize,
    /// Bytes a second that all copies together may take, 0 for no limit. 256 MiB: leaves most of a 10 Gbit/s link.
    pub repair_bandwidth: u64,
    /// A copy that has not moved for this long is given up. 2 min: datanodes give up a silent source after 30 s.
    pub copy_silence_ms: u64,
    /// Healthy replicas a container keeps elsewhere while a node is in maintenance (at most its target). 2: one more may
    /// fail meanwhile.
    pub maintenance_replicas: usize,
    /// Containers looked at in one go at most. 4096: about 10 ms, in which nothing else is decided and no heartbeat heard.
    pub look_step: usize,
    /// A new block token key is made this often. 24 h: a stolen key is worth little for long.
    pub token_key_rotation_ms: u64,
    /// Size of a log segment. SCM logs little: 16 MiB.
    pub log_segment_bytes: u64,
    /// Memory for state pages. 16 MiB holds the containers of a petabyte.
    pub cache_bytes: usize,
}

impl ScmConfig {
    /// The defaults for an SCM in `dir`.
    pub fn new(dir: PathBuf, cluster: ClusterId) -> Self {
        Self {
            dir,
            disk: None,
            place: consensus::Place::default(),
            cluster,
            container_bytes_max: 5 << 30,
            open_containers: 1,
            open_containers_max: 16,
            heartbeat_interval_ms: 1000,
            write_silence_ms: 5000,
            stale_silence_ms: 15_000,
            dead_silence_ms: 60_000,
            failed_writer_ms: 15_000,
            repair_delay_ms: 5 * 60 * 1000,
            repair_copies_max: 4,
            repair_bandwidth: 256 << 20,
            copy_silence_ms: 2 * 60 * 1000,
            maintenance_replicas: 2,
            look_step: 4096,
            token_key_rotation_ms: 24 * 60 * 60 * 1000,
            log_segment_bytes: 16 << 20,
            cache_bytes: 16 << 20,
        }
    }

    /// A container with less room than this left is closed: one block, but at most a tenth of a small container.
    pub(crate) fn room_min(&self) -> u64 {
        BLOCK_BYTES_MAX.min(self.container_bytes_max / 10)
    }

    /// How long a key made now opens blocks: it signs for one rotation, and what it signed outlives it.
    pub(crate) fn token_key_life_ms(&self) -> u64 {
        let outlives = BLOCK_TOKEN_LIFE_MS + 2 * CLOCK_SKEW_MS + TOKEN_KEY_PUBLISH_MS;
        self.token_key_rotation_ms + self.token_key_rotation_ms.max(outlives)
    }
}

/// OM learns a new key this much later than the datanodes do, so that none of them meets a token it cannot check.
pub(crate) const TOKEN_KEY_PUBLISH_MS: u64 = 60_000;
