//! Settings of a datanode, with the reason of each default.

use std::path::PathBuf;

use wire::ids::ClusterId;

/// How a datanode is opened.
#[derive(Debug, Clone)]
pub struct DatanodeConfig {
    /// One directory per disk, made if absent.
    pub disks: Vec<PathBuf>,
    /// The cluster; disks of another one are refused.
    pub cluster: ClusterId,
    /// The internal listener, told to SCM. None while it serves only inside its own process.
    pub address: Option<wire::host::HostPort>,
    /// This machine's name, for people.
    pub node: String,
    /// Where it stands, for placement. Empty if racks do not matter.
    pub rack: String,
    /// A container takes no block that would end beyond this (Ozone: 5 GiB).
    pub container_bytes_max: u64,
    /// Container files grow by this. 64 MiB keeps metadata writes rare; a small disk takes at most a 256th of itself.
    pub growth_step: u64,
    /// Space left free on each disk: room for the index, so that deletion works on a full disk. A small disk keeps at
    /// most a sixteenth of itself.
    pub reserve_bytes: u64,
    /// What each disk's index may keep in memory.
    pub index_cache_bytes: usize,
    /// Files of sealed containers kept open at most, over all disks.
    pub open_files_max: usize,
    /// Replicas copied from other datanodes at once. Few: a copy is limited by SCM in bandwidth, not in number.
    pub copies_max: usize,
    /// A block that is still on its way here this long after its container began to close is broken off, so that one slow
    /// client keeps nobody else's blocks from being sealed and repaired. Long enough for a whole block over a line of
    /// 1.2 Mbit/s: a container also closes when it is full, and then nothing is wrong.
    pub closing_patience_ms: u64,
    /// How often recent blocks go to the index off the write path.
    pub index_flush_ms: u64,
    /// How often the index is made durable: bounds what is read again after a crash.
    pub index_checkpoint_ms: u64,
}

impl DatanodeConfig {
    /// The defaults for `disks` of `cluster`.
    pub fn new(disks: Vec<PathBuf>, cluster: ClusterId) -> Self {
        Self {
            disks,
            cluster,
            address: None,
            node: String::new(),
            rack: String::new(),
            container_bytes_max: 5 << 30,
            growth_step: 64 << 20,
            reserve_bytes: 256 << 20,
            index_cache_bytes: 16 << 20,
            open_files_max: 512,
            copies_max: 2,
            closing_patience_ms: 30 * 60 * 1000,
            index_flush_ms: 200,
            index_checkpoint_ms: 5000,
        }
    }
}
