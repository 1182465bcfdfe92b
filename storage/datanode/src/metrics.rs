//! Every metric of the datanode, with its meaning. No label comes from a user.

use metrics::{counter, gauge, histogram};

/// Writers that shared one sync.
pub(crate) fn commit_batch(writers: usize) {
    histogram!("datanode_commit_batch_blocks").record(writers as f64);
}

/// A sync of a container file succeeded.
pub(crate) fn sync_done(elapsed_ns: u64) {
    histogram!("datanode_sync_seconds").record(elapsed_ns as f64 / 1e9);
}

/// A block became durable.
pub(crate) fn block_written(bytes: u64) {
    counter!("datanode_blocks_written_total").increment(1);
    counter!("datanode_block_written_bytes_total").increment(bytes);
}

/// Bytes of blocks were handed to a reader.
pub(crate) fn block_read(bytes: u64) {
    counter!("datanode_blocks_read_total").increment(1);
    counter!("datanode_block_read_bytes_total").increment(bytes);
}

/// Blocks were deleted.
pub(crate) fn blocks_deleted(count: u64) {
    counter!("datanode_blocks_deleted_total").increment(count);
}

/// A check of stored bytes failed.
pub(crate) fn damage_found() {
    counter!("datanode_damage_found_total").increment(1);
}

/// Disks out of service.
pub(crate) fn disks_failed(count: usize) {
    gauge!("datanode_disks_failed_count").set(count as f64);
}

/// Container replicas here, and live bytes in them.
pub(crate) fn replicas(count: usize, used_bytes: u64) {
    gauge!("datanode_replicas_count").set(count as f64);
    gauge!("datanode_used_bytes").set(used_bytes as f64);
}

/// Pages found after a crash that are neither zero nor part of a block.
pub(crate) fn suspect_pages(count: u64) {
    counter!("datanode_suspect_pages_total").increment(count);
}

/// A replica was copied here and verified.
pub(crate) fn copy_done(bytes: u64) {
    counter!("datanode_copies_total").increment(1);
    counter!("datanode_copied_bytes_total").increment(bytes);
}

/// A replica was not copied.
pub(crate) fn copy_failed() {
    counter!("datanode_copies_failed_total").increment(1);
}
