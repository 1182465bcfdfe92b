//! Counters of buckets and volumes, written once per apply batch.
//!
//! A busy bucket's counter would otherwise be rewritten by every command. The deltas of a batch live in memory and reach
//! their rows in the same transaction as the commands that caused them.
//!
//! A row of zeros is dropped, so that what is gone leaves nothing.
//!
//! Quotas are decided by row and pending deltas together, so that how commands fall into batches does not show.
//!
//! Not here: bounds themselves (rows of buckets and volumes).

use std::collections::BTreeMap;

use consensus::{Rows, StoreError, WriteBatch};
use wire::ids::BucketId;
use wire::om::{QuotaUnit, Rejection};
use wire::operator::Quota;

use crate::schema::{USAGE, UsageRow, decode, encode};
use crate::state::bucket::Bucket;
use crate::state::{RowsExt, Stop, Txn, volume};

/// Changes by row key of `usage`.
#[derive(Debug, Default)]
pub(crate) struct UsageDeltas {
    deltas: BTreeMap<Vec<u8>, UsageRow>,
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
    pub(crate) fn add(&mut self, bucket: &Bucket, delta: UsageRow) {
        for row_key in [bucket_usage_key(bucket.id), volume_usage_key(bucket.volume.as_str())] {
            self.deltas.entry(row_key).or_default().add(&delta);
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (row_key, delta) in other.deltas {
            self.deltas.entry(row_key).or_default().add(&delta);
        }
    }

    /// Adds what has gathered to the rows.
    pub(crate) fn write(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        for (row_key, delta) in std::mem::take(&mut self.deltas) {
            unless_damaged(add_to_row(batch, &row_key, &delta))?;
        }
        Ok(())
    }

    fn of(&self, row_key: &[u8]) -> UsageRow {
        self.deltas.get(row_key).copied().unwrap_or_default()
    }
}

/// Counters as their row has them.
pub(crate) fn read(rows: &impl Rows, row_key: &[u8]) -> Result<UsageRow, StoreError> {
    Ok(rows.row(USAGE, row_key)?.unwrap_or_default())
}

/// Refuses a change that would pass a bound of the bucket or of its volume. What does not grow passes always.
pub(crate) fn check_quota(txn: &Txn<'_, '_>, bucket: &Bucket, delta: UsageRow) -> Result<(), Stop> {
    check_bounds(txn, bucket, delta, |row_key| current(txn, row_key))
}

/// The same, with the counters that `current` finds by their row keys.
pub(crate) fn check_bounds(
    rows: &impl Rows,
    bucket: &Bucket,
    delta: UsageRow,
    current: impl Fn(&[u8]) -> Result<UsageRow, StoreError>,
) -> Result<(), Stop> {
    if delta.bytes <= 0 && delta.keys <= 0 {
        return Ok(());
    }
    let volume_bytes = volume::quota(rows, &bucket.volume)?.bytes;
    if bucket.quota != Quota::default() {
        let of = || format!("bucket {}", bucket.name);
        let now = current(&bucket_usage_key(bucket.id))?;
        check_bound(of, QuotaUnit::Bytes, bucket.quota.bytes, now.bytes, delta.bytes)?;
        check_bound(of, QuotaUnit::Keys, bucket.quota.count, now.keys, delta.keys)?;
    }
    if volume_bytes.is_some() {
        let now = current(&volume_usage_key(bucket.volume.as_str()))?;
        let of = || format!("volume {}", bucket.volume);
        check_bound(of, QuotaUnit::Bytes, volume_bytes, now.bytes, delta.bytes)?;
    }
    Ok(())
}

/// Row, deltas of this batch, and of this command.
fn current(txn: &Txn<'_, '_>, row_key: &[u8]) -> Result<UsageRow, StoreError> {
    let mut row = read(txn, row_key)?;
    row.add(&txn.pending.of(row_key));
    row.add(&txn.usage.of(row_key));
    Ok(row)
}

fn check_bound(
    of: impl Fn() -> String,
    unit: QuotaUnit,
    limit: Option<u64>,
    now: i64,
    delta: i64,
) -> Result<(), Rejection> {
    let wanted = now.saturating_add(delta).max(0) as u64;
    match limit {
        Some(limit) if delta > 0 && wanted > limit => {
            Err(Rejection::QuotaExceeded { of: of(), unit, limit, wanted })
        }
        _ => Ok(()),
    }
}

fn add_to_row(batch: &mut WriteBatch<'_>, row_key: &[u8], delta: &UsageRow) -> Result<(), StoreError> {
    let mut row: UsageRow = match batch.get(USAGE, row_key)? {
        Some(value) => decode(USAGE, row_key, &value)?,
        None => UsageRow::default(),
    };
    row.add(delta);
    if row == UsageRow::default() {
        return batch.delete(USAGE, row_key).map(|_| ());
    }
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
