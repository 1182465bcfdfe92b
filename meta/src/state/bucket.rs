//! Buckets of volume `s3v`.
//!
//! Every call about a bucket names what its caller decided by; [`check`] refuses what is no longer current, so that
//! permission is never judged by old configuration.
//!
//! Invariant: a bucket without a row has no key; its uploads are in the queue or gone.
//!
//! Not here: what keys are (see `key`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::ids::BucketId;
use wire::limits::BUCKETS_PER_OWNER_MAX;
use wire::names::{BucketName, S3_VOLUME};
use wire::om::{
    BucketInfo, BucketPage, BucketRef, CreateBucket, DeleteBucket, ListBuckets, Rejection, UserId,
};

use crate::schema::{
    BUCKET, BucketRow, KEY, OWNER, UPLOAD, Work, bucket_of_row_key, bucket_row_key, owner_row_key,
};
use crate::state::{Reply, RowsExt, Stop, Txn, end_of, volume, work};

/// The bucket, if the caller's knowledge of it and of its user is current.
pub(crate) fn check(rows: &impl Rows, access_version: u64, bucket: &BucketRef) -> Result<BucketId, Stop> {
    let row = rows
        .row::<BucketRow>(BUCKET, &bucket_row_key(bucket.name.as_str()))?
        .ok_or(Rejection::NoSuchBucket)?;
    if bucket.access_version != access_version {
        return Err(Rejection::StaleAccess { access_version }.into());
    }
    if row.id != bucket.id || row.config_version != bucket.config_version {
        return Err(Rejection::StaleBucket(Box::new(row.info(bucket.name.clone()))).into());
    }
    Ok(row.id)
}

/// A bucket by name.
pub(crate) fn get(rows: &impl Rows, name: &BucketName) -> Result<BucketInfo, Stop> {
    let row = rows.row::<BucketRow>(BUCKET, &bucket_row_key(name.as_str()))?;
    Ok(row.ok_or(Rejection::NoSuchBucket)?.info(name.clone()))
}

/// CreateBucket.
pub(crate) fn create(txn: &mut Txn<'_, '_>, command: CreateBucket) -> Result<Reply, Stop> {
    let row_key = bucket_row_key(command.name.as_str());
    if let Some(row) = txn.row::<BucketRow>(BUCKET, &row_key)? {
        return Err(Rejection::BucketExists { owner: row.owner.id }.into());
    }
    let count = owned_count(txn, &command.owner.id)?;
    if count >= BUCKETS_PER_OWNER_MAX as u64 {
        return Err(Rejection::TooManyBuckets.into());
    }
    volume::ensure_s3_volume(txn)?;
    let row = BucketRow {
        id: BucketId(txn.index),
        owner: command.owner,
        created_ms: txn.now_ms,
        location: command.location,
        config_version: 1,
    };
    txn.put(BUCKET, &row_key, &row)?;
    txn.put_bytes(OWNER, &owner_row_key(&row.owner.id, command.name.as_str()), &[])?;
    txn.put(OWNER, &owner_row_key(&row.owner.id, ""), &(count + 1))?;
    Ok(Reply::Bucket(row.info(command.name)))
}

/// DeleteBucket: no key may be left; unfinished uploads go through the queue.
pub(crate) fn delete(txn: &mut Txn<'_, '_>, command: &DeleteBucket) -> Result<Reply, Stop> {
    let id = check(txn, txn.access_version, &command.bucket)?;
    let prefix = id.to_be_bytes();
    if !is_empty_range(txn, KEY, &prefix)? {
        return Err(Rejection::BucketNotEmpty.into());
    }
    let name = command.bucket.name.as_str();
    let row_key = bucket_row_key(name);
    let owner = txn.row::<BucketRow>(BUCKET, &row_key)?.ok_or(Rejection::NoSuchBucket)?.owner.id;
    let count = owned_count(txn, &owner)?;
    txn.delete(BUCKET, &row_key)?;
    txn.delete(OWNER, &owner_row_key(&owner, name))?;
    txn.put(OWNER, &owner_row_key(&owner, ""), &count.saturating_sub(1))?;
    if !is_empty_range(txn, UPLOAD, &prefix)? {
        work::queue(txn, Work::Uploads { bucket: id })?;
    }
    txn.usage.drop_bucket(id);
    Ok(Reply::Done)
}

/// ListBuckets of one owner.
pub(crate) fn list(rows: &impl Rows, request: &ListBuckets) -> Result<BucketPage, StoreError> {
    let base = owner_row_key(&request.owner, &request.prefix);
    let names_at = owner_row_key(&request.owner, "").len();
    let after = [owner_row_key(&request.owner, &request.after).as_slice(), &[0]].concat();
    let from = if request.after.is_empty() { base.clone() } else { after.max(base.clone()) };
    let mut names = Vec::new();
    let mut is_truncated = false;
    rows.scan(OWNER, &from, Some(&end_of(&base)), &mut |row_key, _| {
        let name = std::str::from_utf8(&row_key[names_at..]).ok().and_then(|name| BucketName::new(name).ok());
        // The row without a name holds the count.
        let Some(name) = name else { return ControlFlow::Continue(()) };
        if names.len() as u64 >= u64::from(request.max) {
            is_truncated = request.max > 0;
            return ControlFlow::Break(());
        }
        names.push(name);
        ControlFlow::Continue(())
    })?;
    let mut buckets = Vec::with_capacity(names.len());
    for name in names {
        if let Some(row) = rows.row::<BucketRow>(BUCKET, &bucket_row_key(name.as_str()))? {
            buckets.push(row.info(name));
        }
    }
    Ok(BucketPage { buckets, is_truncated })
}

/// How many buckets there are, up to `count_max`: for operators.
pub(crate) fn count(rows: &impl Rows, count_max: usize) -> Result<usize, StoreError> {
    let mut count = 0;
    let prefix = [S3_VOLUME.as_bytes(), &[0]].concat();
    rows.scan(BUCKET, &prefix, Some(&end_of(&prefix)), &mut |row_key, _| {
        count += usize::from(bucket_of_row_key(row_key).is_some());
        if count == count_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(count)
}

fn owned_count(rows: &impl Rows, owner: &UserId) -> Result<u64, StoreError> {
    Ok(rows.row(OWNER, &owner_row_key(owner, ""))?.unwrap_or(0))
}

fn is_empty_range(rows: &impl Rows, table: consensus::Table, prefix: &[u8]) -> Result<bool, StoreError> {
    let mut is_empty = true;
    rows.scan(table, prefix, Some(&end_of(prefix)), &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    })?;
    Ok(is_empty)
}
