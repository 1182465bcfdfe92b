//! Counters of buckets and volumes, written once per apply batch.
//!
//! A busy bucket's counter would otherwise be rewritten by every command. The deltas of a batch live in memory and reach
//! their rows in the same transaction as the commands that caused them.
//!
//! Not here: quota (comes with its issue; it will read row plus pending delta).

use std::collections::BTreeMap;

use consensus::{Rows, StoreError, WriteBatch};
use wire::ids::BucketId;
use wire::names::S3_VOLUME;

use crate::schema::{USAGE, UsageRow, decode, encode};

/// Changes by row key of `usage`.
#[derive(Debug, Default)]
pub(crate) struct UsageDeltas {
    deltas: BTreeMap<Vec<u8>, UsageRow>,
    /// Buckets that are gone: their row is dropped.
    dropped: Vec<BucketId>,
}

/// Row key of a bucket's counters.
pub(crate) fn bucket_usage_key(bucket: BucketId) -> Vec<u8> {
    [b"b".as_slice(), &bucket.to_be_bytes()].concat()
}

/// Row key of a volume's counters.
pub(crate) fn volume_usage_key(volume: &str) -> Vec<u8> {
    [b"v", volume.as_bytes()].concat()
}

impl UsageDeltas {
    /// Adds to the bucket's counters and its volume's.
    pub(crate) fn add(&mut self, bucket: BucketId, delta: UsageRow) {
        for row_key in [bucket_usage_key(bucket), volume_usage_key(S3_VOLUME)] {
            self.deltas.entry(row_key).or_default().add(&delta);
        }
    }

    /// The bucket is gone, and had no keys: its row goes. Its id never returns.
    pub(crate) fn drop_bucket(&mut self, bucket: BucketId) {
        self.dropped.push(bucket);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (row_key, delta) in other.deltas {
            self.deltas.entry(row_key).or_default().add(&delta);
        }
        self.dropped.extend(other.dropped);
    }

    /// Adds what has gathered to the rows.
    pub(crate) fn write(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        for (row_key, delta) in std::mem::take(&mut self.deltas) {
            unless_damaged(add_to_row(batch, &row_key, &delta))?;
        }
        for bucket in std::mem::take(&mut self.dropped) {
            unless_damaged(batch.delete(USAGE, &bucket_usage_key(bucket)).map(|_| ()))?;
        }
        Ok(())
    }
}

fn add_to_row(batch: &mut WriteBatch<'_>, row_key: &[u8], delta: &UsageRow) -> Result<(), StoreError> {
    let mut row: UsageRow = match batch.get(USAGE, row_key)? {
        Some(value) => decode(USAGE, row_key, &value)?,
        None => UsageRow::default(),
    };
    row.add(delta);
    batch.put(USAGE, row_key, &encode(&row))
}

/// A damaged counter is not worth stopping for: it stays damaged, operators are told, keys go on.
pub(crate) fn unless_damaged(outcome: Result<(), StoreError>) -> Result<(), StoreError> {
    match outcome {
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::error!(%error, "a row of counters or of the clock is not written");
            Ok(())
        }
        outcome => outcome,
    }
}
