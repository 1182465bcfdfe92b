//! Buckets of all volumes, and links to them.
//!
//! S3 knows the buckets of volume `s3v`. A *link* is a bucket's row that names another bucket: every call by its name acts on
//! the bucket at the end of the links, its keys, bounds, usage and configuration; deleting the link deletes the link.
//!
//! Every call about a bucket names what its caller decided by; [`check`] refuses what is no longer current, so that
//! permission is never judged by old configuration.
//!
//! Invariants:
//! * A bucket without a row has no key; its uploads are in the queue or gone.
//! * Links never lead to themselves. A link whose source is gone leads to no bucket.
//!
//! Not here: what keys are (see `key`), operators' listings (see `namespace`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::ids::BucketId;
use wire::limits::BUCKETS_PER_OWNER_MAX;
use wire::names::{BucketName, S3_VOLUME, VolumeName};
use wire::om::{
    BucketInfo, BucketPage, BucketRef, CreateBucket, DeleteBucket, ListBuckets, Rejection, UserId,
};
use wire::operator::{Quota, SetDefaultReplication};

use crate::schema::{
    BUCKET, BUCKET_ID, BucketRow, DefaultsRow, KEY, META, META_DEFAULTS, OWNER, UPLOAD, Work,
    bucket_of_row_key, bucket_row_key, owner_row_key,
};
use crate::state::{Current, Reply, RowsExt, Stop, Txn, after, end_of, volume, work};

/// Links that are followed one after the other at most.
const LINKS_MAX: usize = 8;

/// The bucket that a call acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) id: BucketId,
    pub(crate) volume: VolumeName,
    pub(crate) name: BucketName,
    pub(crate) quota: Quota,
}

/// The volume of S3's buckets.
pub(crate) fn s3_volume() -> VolumeName {
    VolumeName::new(S3_VOLUME).expect("it is a legal name")
}

/// A bucket's own row, or a link's.
pub(crate) fn row(
    rows: &impl Rows,
    volume: &VolumeName,
    name: &BucketName,
) -> Result<Option<BucketRow>, StoreError> {
    rows.row(BUCKET, &bucket_row_key(volume.as_str(), name.as_str()))
}

/// The bucket at the end of the links.
pub(crate) fn resolve(
    rows: &impl Rows,
    volume: VolumeName,
    name: BucketName,
) -> Result<(Bucket, BucketRow), Stop> {
    let (mut volume, mut name) = (volume, name);
    for _ in 0..=LINKS_MAX {
        let row = row(rows, &volume, &name)?.ok_or(Rejection::NoSuchBucket)?;
        match row.source {
            None => return Ok((Bucket { id: row.id, volume, name, quota: row.quota }, row)),
            Some(source) => (volume, name) = source,
        }
    }
    Err(Rejection::NoSuchBucket.into())
}

/// Whether a link at (volume, name) to `source` would lead to itself, or through too many others.
pub(crate) fn check_link(
    rows: &impl Rows,
    volume: &VolumeName,
    name: &BucketName,
    source: &(VolumeName, BucketName),
) -> Result<(), Stop> {
    let mut next = source.clone();
    for _ in 0..LINKS_MAX {
        if (&next.0, &next.1) == (volume, name) {
            return Err(Rejection::Invalid("the link would lead to itself".to_owned()).into());
        }
        match row(rows, &next.0, &next.1)?.and_then(|row| row.source) {
            Some(source) => next = source,
            None => return Ok(()),
        }
    }
    Err(Rejection::Invalid(format!("the link would lead through more than {LINKS_MAX} others")).into())
}

/// The bucket, if the caller's knowledge of it and of its user is current.
pub(crate) fn check(rows: &impl Rows, current: Current, bucket: &BucketRef) -> Result<Bucket, Stop> {
    let (found, row) = resolve(rows, s3_volume(), bucket.name.clone())?;
    if bucket.access_version != current.access_version {
        return Err(Rejection::StaleAccess { access_version: current.access_version }.into());
    }
    let config_version = row.config_version + current.defaults.version;
    if row.id != bucket.id || config_version != bucket.config_version {
        return Err(Rejection::StaleBucket(Box::new(row.info(bucket.name.clone(), current.defaults))).into());
    }
    Ok(found)
}

/// A bucket of `s3v` by name.
pub(crate) fn get(rows: &impl Rows, defaults: DefaultsRow, name: &BucketName) -> Result<BucketInfo, Stop> {
    let (_, row) = resolve(rows, s3_volume(), name.clone())?;
    Ok(row.info(name.clone(), defaults))
}

/// CreateBucket.
pub(crate) fn create(txn: &mut Txn<'_, '_>, command: CreateBucket) -> Result<Reply, Stop> {
    if let Some(row) = row(txn, &s3_volume(), &command.name)? {
        return Err(Rejection::BucketExists { owner: row.owner.id }.into());
    }
    let row = BucketRow {
        id: BucketId(txn.index),
        owner: command.owner,
        created_ms: txn.now_ms,
        location: command.location,
        config_version: 1,
        replication: None,
        quota: Quota::default(),
        source: None,
    };
    add(txn, &s3_volume(), &command.name, &row)?;
    Ok(Reply::Bucket(row.info(command.name, txn.current.defaults)))
}

/// Writes the rows of a new bucket or link.
pub(crate) fn add(
    txn: &mut Txn<'_, '_>,
    volume: &VolumeName,
    name: &BucketName,
    row: &BucketRow,
) -> Result<(), Stop> {
    if volume.as_str() == S3_VOLUME {
        let count = owned_count(txn, &row.owner.id)?;
        if count >= BUCKETS_PER_OWNER_MAX as u64 {
            return Err(Rejection::TooManyBuckets.into());
        }
        txn.put_bytes(OWNER, &owner_row_key(&row.owner.id, name.as_str()), &[])?;
        txn.put(OWNER, &owner_row_key(&row.owner.id, ""), &(count + 1))?;
    }
    volume::add_bucket(txn, volume)?;
    let row_key = bucket_row_key(volume.as_str(), name.as_str());
    if row.source.is_none() {
        txn.put_bytes(BUCKET_ID, &row.id.to_be_bytes(), &row_key)?;
    }
    Ok(txn.put(BUCKET, &row_key, row)?)
}

/// DeleteBucket: the link if it is one. Else no key may be left.
pub(crate) fn delete(txn: &mut Txn<'_, '_>, command: &DeleteBucket) -> Result<Reply, Stop> {
    check(txn, txn.current, &command.bucket)?;
    let row = row(txn, &s3_volume(), &command.bucket.name)?.ok_or(Rejection::NoSuchBucket)?;
    remove(txn, &s3_volume(), &command.bucket.name, &row)
}

/// Drops the rows of a bucket without keys, or of a link; unfinished uploads go through the queue.
pub(crate) fn remove(
    txn: &mut Txn<'_, '_>,
    volume: &VolumeName,
    name: &BucketName,
    row: &BucketRow,
) -> Result<Reply, Stop> {
    let prefix = row.id.to_be_bytes();
    if row.source.is_none() {
        if !is_empty_range(txn, KEY, &prefix)? {
            return Err(Rejection::BucketNotEmpty.into());
        }
        txn.delete(BUCKET_ID, &prefix)?;
        if !is_empty_range(txn, UPLOAD, &prefix)? {
            work::queue(txn, Work::Uploads { bucket: row.id })?;
        }
    }
    if volume.as_str() == S3_VOLUME {
        let count = owned_count(txn, &row.owner.id)?;
        txn.delete(OWNER, &owner_row_key(&row.owner.id, name.as_str()))?;
        txn.put(OWNER, &owner_row_key(&row.owner.id, ""), &count.saturating_sub(1))?;
    }
    volume::remove_bucket(txn, volume)?;
    txn.delete(BUCKET, &bucket_row_key(volume.as_str(), name.as_str()))?;
    Ok(Reply::Done)
}

/// SetDefaultReplication: of one bucket, whose configuration is another then, or of the cluster, and then of all.
pub(crate) fn set_replication(txn: &mut Txn<'_, '_>, command: SetDefaultReplication) -> Result<Reply, Stop> {
    let Some(name) = command.bucket else {
        let Some(replication) = command.replication else {
            let message = "the cluster's default replication cannot be left open";
            return Err(Rejection::Invalid(message.to_owned()).into());
        };
        set_defaults(txn, replication)?;
        return Ok(Reply::Done);
    };
    let (bucket, mut row) = resolve(txn, s3_volume(), name)?;
    if row.replication != command.replication {
        row.replication = command.replication;
        row.config_version += 1;
        txn.put(BUCKET, &bucket_row_key(bucket.volume.as_str(), bucket.name.as_str()), &row)?;
    }
    Ok(Reply::Done)
}

fn set_defaults(txn: &mut Txn<'_, '_>, replication: wire::block::Replication) -> Result<(), StoreError> {
    let before = txn.row::<DefaultsRow>(META, META_DEFAULTS)?;
    let DefaultsRow { replication: now, version } = before.unwrap_or_default();
    // What was never named is written although it is the same: it was named now.
    if before.is_none() || now != replication {
        let version = if now == replication { version } else { version + 1 };
        let row = DefaultsRow { replication, version };
        txn.put(META, META_DEFAULTS, &row)?;
        txn.current.defaults = row;
    }
    Ok(())
}

/// The configuration's default, unless one was named before.
pub(crate) fn init_defaults(
    txn: &mut Txn<'_, '_>,
    replication: wire::block::Replication,
) -> Result<Reply, StoreError> {
    if !txn.contains(META, META_DEFAULTS)? {
        set_defaults(txn, replication)?;
    }
    Ok(Reply::Done)
}

/// ListBuckets of one owner. A link shows the bucket it stands for; one that leads nowhere shows itself.
pub(crate) fn list(
    rows: &impl Rows,
    defaults: DefaultsRow,
    request: &ListBuckets,
) -> Result<BucketPage, StoreError> {
    let base = owner_row_key(&request.owner, &request.prefix);
    let names_at = owner_row_key(&request.owner, "").len();
    let behind = after(&owner_row_key(&request.owner, &request.after));
    let from = if request.after.is_empty() { base.clone() } else { behind.max(base.clone()) };
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
        let own = match resolve(rows, s3_volume(), name.clone()) {
            Ok((_, row)) => Some(row),
            Err(Stop::Reject(_)) => row(rows, &s3_volume(), &name)?,
            Err(Stop::Fault(error)) => return Err(error),
        };
        buckets.extend(own.map(|row| row.info(name, defaults)));
    }
    Ok(BucketPage { buckets, is_truncated })
}

/// How many buckets and links there are, up to `count_max`: for operators.
pub(crate) fn count(rows: &impl Rows, count_max: usize) -> Result<usize, StoreError> {
    let mut count = 0;
    rows.scan(BUCKET, &[], None, &mut |row_key, _| {
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
