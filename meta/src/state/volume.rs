//! Volumes: namespaces above buckets, with an owner and bounds. S3 buckets live in `s3v`, made with the first of them.
//!
//! A row counts its buckets, so that the bound on their number, and whether the volume is empty, need no scan. Commands
//! are idempotent by nature: creating what is there as asked for is a success.
//!
//! Not here: bytes used (see `usage`), who may do this (operators' listener).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::names::{S3_VOLUME, VolumeName};
use wire::om::{QuotaUnit, Rejection, UserId};
use wire::operator::{CreateVolume, DeleteVolume, ListVolumes, Quota, SetVolume, VolumeInfo};

use crate::schema::{VOLUME, VOLUME_OWNER, VolumeRow, owner_row_key};
use crate::state::usage::{self, volume_usage_key};
use crate::state::{Reply, RowsExt, Stop, Txn, after, end_of};

/// A volume's row. `s3v` is there before its first bucket, as if it had been made without owner or bounds.
fn get(rows: &impl Rows, name: &VolumeName) -> Result<Option<VolumeRow>, StoreError> {
    let row = rows.row::<VolumeRow>(VOLUME, name.as_str().as_bytes())?;
    let fresh =
        || VolumeRow { owner: UserId(String::new()), created_ms: 0, quota: Quota::default(), buckets: 0 };
    Ok(row.or_else(|| (name.as_str() == S3_VOLUME).then(fresh)))
}

/// A volume's bounds.
pub(crate) fn quota(rows: &impl Rows, name: &VolumeName) -> Result<Quota, StoreError> {
    Ok(get(rows, name)?.map(|row| row.quota).unwrap_or_default())
}

fn put(txn: &mut Txn<'_, '_>, name: &VolumeName, row: VolumeRow) -> Result<(), StoreError> {
    let created_ms = if row.created_ms == 0 { txn.now_ms } else { row.created_ms };
    txn.put(VOLUME, name.as_str().as_bytes(), &VolumeRow { created_ms, ..row })
}

/// Counts a new bucket, if the volume exists and takes another.
pub(crate) fn add_bucket(txn: &mut Txn<'_, '_>, name: &VolumeName) -> Result<(), Stop> {
    let row = get(txn, name)?.ok_or(Rejection::NoSuchVolume)?;
    let wanted = row.buckets + 1;
    if let Some(limit) = row.quota.count.filter(|limit| wanted > *limit) {
        let of = format!("volume {name}");
        return Err(Rejection::QuotaExceeded { of, unit: QuotaUnit::Buckets, limit, wanted }.into());
    }
    Ok(put(txn, name, VolumeRow { buckets: wanted, ..row })?)
}

/// A bucket is gone.
pub(crate) fn remove_bucket(txn: &mut Txn<'_, '_>, name: &VolumeName) -> Result<(), StoreError> {
    match get(txn, name)? {
        Some(row) => put(txn, name, VolumeRow { buckets: row.buckets.saturating_sub(1), ..row }),
        None => Ok(()),
    }
}

/// Whether the volume exists.
pub(crate) fn exists(rows: &impl Rows, name: &VolumeName) -> Result<bool, StoreError> {
    Ok(get(rows, name)?.is_some())
}

/// CreateVolume.
pub(crate) fn create(txn: &mut Txn<'_, '_>, command: CreateVolume) -> Result<Reply, Stop> {
    let CreateVolume { name, owner, quota } = command;
    if let Some(row) = get(txn, &name)? {
        let is_same = row.owner == owner && row.quota == quota;
        return if is_same { Ok(Reply::Done) } else { Err(Rejection::VolumeExists.into()) };
    }
    txn.put_bytes(VOLUME_OWNER, &owner_row_key(&owner, name.as_str()), &[])?;
    put(txn, &name, VolumeRow { owner, created_ms: 0, quota, buckets: 0 })?;
    Ok(Reply::Done)
}

/// SetVolume. A bound below what is used refuses what would grow, and nothing else.
pub(crate) fn set(txn: &mut Txn<'_, '_>, command: SetVolume) -> Result<Reply, Stop> {
    let SetVolume { name, owner, quota } = command;
    let mut row = get(txn, &name)?.ok_or(Rejection::NoSuchVolume)?;
    if let Some(owner) = owner.filter(|owner| *owner != row.owner) {
        txn.delete(VOLUME_OWNER, &owner_row_key(&row.owner, name.as_str()))?;
        txn.put_bytes(VOLUME_OWNER, &owner_row_key(&owner, name.as_str()), &[])?;
        row.owner = owner;
    }
    row.quota = quota.unwrap_or(row.quota);
    put(txn, &name, row)?;
    Ok(Reply::Done)
}

/// DeleteVolume.
pub(crate) fn delete(txn: &mut Txn<'_, '_>, command: &DeleteVolume) -> Result<Reply, Stop> {
    let name = &command.name;
    if name.as_str() == S3_VOLUME {
        return Err(Rejection::Invalid(format!("volume {S3_VOLUME} cannot be deleted")).into());
    }
    let row = get(txn, name)?.ok_or(Rejection::NoSuchVolume)?;
    if row.buckets > 0 {
        return Err(Rejection::VolumeNotEmpty.into());
    }
    txn.delete(VOLUME_OWNER, &owner_row_key(&row.owner, name.as_str()))?;
    txn.delete(VOLUME, name.as_str().as_bytes())?;
    Ok(Reply::Done)
}

/// ListVolumes: of one owner by its rows, else all.
pub(crate) fn list(rows: &impl Rows, request: &ListVolumes) -> Result<Vec<VolumeInfo>, StoreError> {
    let (table, prefix) = match &request.owner {
        Some(owner) => (VOLUME_OWNER, owner_row_key(owner, "")),
        None => (VOLUME, Vec::new()),
    };
    let from = match request.after.as_str() {
        "" => prefix.clone(),
        name => after(&[prefix.as_slice(), name.as_bytes()].concat()),
    };
    let end = (!prefix.is_empty()).then(|| end_of(&prefix));
    let mut names: Vec<VolumeName> = Vec::new();
    if request.max > 0 {
        rows.scan(table, &from, end.as_deref(), &mut |row_key, _| {
            let name = std::str::from_utf8(&row_key[prefix.len()..]).ok();
            names.extend(name.and_then(|name| VolumeName::new(name).ok()));
            if names.len() >= request.max as usize {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
    }
    let mut volumes = Vec::with_capacity(names.len());
    for name in names {
        if let Some(row) = get(rows, &name)? {
            volumes.push(VolumeInfo {
                used_bytes: usage::read(rows, &volume_usage_key(name.as_str()))?.bytes.max(0) as u64,
                name: name.as_str().to_owned(),
                owner: row.owner,
                created_ms: row.created_ms,
                quota: row.quota,
                buckets: row.buckets,
            });
        }
    }
    Ok(volumes)
}
