//! Ozone's namespace as operators use it: buckets of any volume, links, bounds; and which keys lie in a container.
//!
//! Commands are idempotent by nature: creating what is there as asked for is a success, what is gone is `NoSuchBucket`.
//!
//! Not here: volumes (see `volume`), what S3 does with buckets (see `bucket`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::ids::{BlockId, BucketId, ContainerId, LocalId, WriteId};
use wire::names::{BucketName, KeyName, VolumeName};
use wire::om::{Rejection, UserId, UserInfo};
use wire::operator::{
    ContainerKey, ContainerKeys, CreateNamespaceBucket, DeleteNamespaceBucket, ListContainerKeys,
    ListNamespaceBuckets, NamespaceBucket, Quota, SetBucketQuota,
};

use crate::schema::{
    ACCESS, ACCESS_USER, BLOCK, BLOCK_REF, BUCKET, BUCKET_ID, BlockRefRow, BlockRow, BlockState, BucketRow,
    access_row_key, bucket_of_row_key, bucket_row_key, corrupt, decode,
};
use crate::state::usage::{self, bucket_usage_key};
use crate::state::{Reply, RowsExt, Stop, Txn, after, bucket, end_of, volume};

/// Owners of one block that are shown: a block that copies share may have any number.
const OWNERS_SHOWN_MAX: usize = 16;

/// CreateNamespaceBucket.
pub(crate) fn create(txn: &mut Txn<'_, '_>, command: CreateNamespaceBucket) -> Result<Reply, Stop> {
    let CreateNamespaceBucket { volume, name, owner, quota, source } = command;
    if !volume::exists(txn, &volume)? {
        return Err(Rejection::NoSuchVolume.into());
    }
    if let Some(row) = bucket::row(txn, &volume, &name)? {
        let is_same = row.owner.id == owner && row.quota == quota && row.source == source;
        return if is_same {
            Ok(Reply::Done)
        } else {
            Err(Rejection::BucketExists { owner: row.owner.id }.into())
        };
    }
    if let Some(source) = &source {
        if quota != Quota::default() {
            return Err(Rejection::Invalid("a link has no bounds: its source has".to_owned()).into());
        }
        bucket::check_link(txn, &volume, &name, source)?;
    }
    let row = BucketRow {
        id: BucketId(txn.index),
        owner: user(txn, owner)?,
        created_ms: txn.now_ms,
        location: String::new(),
        config_version: 1,
        replication: None,
        quota,
        source,
    };
    bucket::add(txn, &volume, &name, &row)?;
    Ok(Reply::Done)
}

/// The user, or one that shows its id as its name.
fn user(rows: &impl Rows, id: UserId) -> Result<UserInfo, StoreError> {
    let known = rows.row::<UserInfo>(ACCESS, &access_row_key(ACCESS_USER, &id.0))?;
    Ok(known.unwrap_or_else(|| UserInfo { display_name: id.0.clone(), id, email: None }))
}

/// SetBucketQuota: of the bucket that a link stands for. A bound below what is used refuses what would grow.
pub(crate) fn set_quota(txn: &mut Txn<'_, '_>, command: SetBucketQuota) -> Result<Reply, Stop> {
    let (found, row) = bucket::resolve(txn, command.volume, command.name)?;
    let row_key = bucket_row_key(found.volume.as_str(), found.name.as_str());
    txn.put(BUCKET, &row_key, &BucketRow { quota: command.quota, ..row })?;
    Ok(Reply::Done)
}

/// DeleteNamespaceBucket.
pub(crate) fn delete(txn: &mut Txn<'_, '_>, command: &DeleteNamespaceBucket) -> Result<Reply, Stop> {
    let row = bucket::row(txn, &command.volume, &command.name)?.ok_or(Rejection::NoSuchBucket)?;
    bucket::remove(txn, &command.volume, &command.name, &row)
}

/// ListNamespaceBuckets. A link shows what its source has; one that leads nowhere shows nothing.
pub(crate) fn list(rows: &impl Rows, request: &ListNamespaceBuckets) -> Result<Vec<NamespaceBucket>, Stop> {
    if !volume::exists(rows, &request.volume)? {
        return Err(Rejection::NoSuchVolume.into());
    }
    let prefix = bucket_row_key(request.volume.as_str(), "");
    let from = match request.after.as_str() {
        "" => prefix.clone(),
        name => after(&bucket_row_key(request.volume.as_str(), name)),
    };
    let found = rows.rows::<BucketRow>(BUCKET, &from, Some(&end_of(&prefix)), request.max as usize)?;
    let mut buckets = Vec::with_capacity(found.len());
    for (row_key, row) in found {
        let (_, name) = bucket_of_row_key(&row_key).ok_or_else(|| corrupt(BUCKET, &row_key))?;
        buckets.push(shown(rows, &request.volume, name, row)?);
    }
    Ok(buckets)
}

fn shown(
    rows: &impl Rows,
    volume: &VolumeName,
    name: BucketName,
    row: BucketRow,
) -> Result<NamespaceBucket, Stop> {
    let source = match bucket::resolve(rows, volume.clone(), name.clone()) {
        Ok((_, source)) => source,
        Err(Stop::Reject(_)) => row.clone(),
        Err(fault) => return Err(fault),
    };
    let used = usage::read(rows, &bucket_usage_key(source.id))?;
    Ok(NamespaceBucket {
        volume: volume.as_str().to_owned(),
        name,
        owner: row.owner.id,
        created_ms: row.created_ms,
        quota: source.quota,
        keys: used.keys.max(0) as u64,
        used_bytes: used.bytes.max(0) as u64,
        replication: source.replication,
        source: row.source.map(|(volume, name)| (volume.as_str().to_owned(), name)),
    })
}

/// ListContainerKeys: a range of the block table. All shown owners of a block stand on one page.
pub(crate) fn container_keys(
    rows: &impl Rows,
    request: &ListContainerKeys,
) -> Result<ContainerKeys, StoreError> {
    let ListContainerKeys { container, after: behind, max } = *request;
    let mut page = ContainerKeys { blocks: Vec::new(), is_truncated: false };
    let Some(first) = behind.0.checked_add(1).filter(|_| max > 0) else { return Ok(page) };
    let from = BlockId { container, local: LocalId(first) }.to_row_key();
    let end = end_of(&container.to_be_bytes());
    let mut found: Vec<(LocalId, BlockRow)> = Vec::new();
    let mut fault = None;
    rows.scan(BLOCK, &from, Some(&end), &mut |row_key, value| {
        if found.len() == max as usize {
            page.is_truncated = true;
            return ControlFlow::Break(());
        }
        let local = row_key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        match decode(BLOCK, row_key, value) {
            Ok(row) => found.push((LocalId(local), row)),
            Err(error) => fault = Some(error),
        }
        if fault.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(error) = fault {
        return Err(error);
    }
    for (local, row) in found {
        if page.blocks.len() >= max as usize {
            page.is_truncated = true;
            break;
        }
        show_block(rows, container, local, row, &mut page.blocks)?;
    }
    Ok(page)
}

fn show_block(
    rows: &impl Rows,
    container: ContainerId,
    local: LocalId,
    row: BlockRow,
    out: &mut Vec<ContainerKey>,
) -> Result<(), StoreError> {
    let is_freed = row.state == BlockState::Freed;
    let shown = |write_id, bucket: Option<String>, key: Option<KeyName>| ContainerKey {
        local,
        length: row.length,
        is_freed,
        write_id,
        bucket,
        key: key.map(String::from),
    };
    out.push(shown(row.owner, name_of(rows, row.bucket)?, row.key.clone()));
    if row.references > 1 {
        let prefix = BlockId { container, local }.to_row_key();
        let end = end_of(&prefix);
        for (row_key, other) in rows.rows::<BlockRefRow>(BLOCK_REF, &prefix, Some(&end), OWNERS_SHOWN_MAX)? {
            let write_id = row_key.last_chunk().copied().map(WriteId::from_row_key).unwrap_or_default();
            out.push(shown(write_id, name_of(rows, other.bucket)?, Some(other.key)));
        }
    }
    Ok(())
}

/// `BUCKET` of volume `s3v`, or `VOLUME/BUCKET`. None if it is gone.
fn name_of(rows: &impl Rows, bucket: BucketId) -> Result<Option<String>, StoreError> {
    let row_key = rows.get(BUCKET_ID, &bucket.to_be_bytes())?;
    let found = row_key.as_deref().and_then(bucket_of_row_key);
    Ok(found.map(|(volume, name)| match volume {
        wire::names::S3_VOLUME => name.as_str().to_owned(),
        volume => format!("{volume}/{name}"),
    }))
}
