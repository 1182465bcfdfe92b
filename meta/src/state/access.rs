//! Users and access keys. Secrets stay sealed by the cluster key; `access_version` counts every change.
//!
//! Not here: sealing (see `seal`), permission (the gateway decides by what it cached under a version).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::om::{Rejection, UserInfo};

use crate::command::PutUser;
use crate::schema::{
    ACCESS, ACCESS_KEY, ACCESS_USER, AccessKeyRow, META, META_ACCESS_VERSION, access_row_key,
};
use crate::state::{Reply, RowsExt, Stop, Txn, end_of};

/// Access keys that one command drops at most.
const DROPPED_MAX: usize = 400;

/// An access key and its user.
pub(crate) fn get(rows: &impl Rows, access_key: &str) -> Result<(AccessKeyRow, UserInfo), Stop> {
    let key: AccessKeyRow =
        rows.row(ACCESS, &access_row_key(ACCESS_KEY, access_key))?.ok_or(Rejection::NoSuchAccessKey)?;
    let user = rows.row(ACCESS, &access_row_key(ACCESS_USER, &key.user.0))?;
    Ok((key, user.ok_or(Rejection::NoSuchAccessKey)?))
}

/// Access keys that are not among `access_keys`, at most as many as one command drops.
pub(crate) fn others(rows: &impl Rows, access_keys: &[String]) -> Result<Vec<Vec<u8>>, StoreError> {
    let prefix = access_row_key(ACCESS_KEY, "");
    let mut others = Vec::new();
    rows.scan(ACCESS, &prefix, Some(&end_of(&prefix)), &mut |row_key, _| {
        let name = &row_key[prefix.len()..];
        if !access_keys.iter().any(|kept| kept.as_bytes() == name) {
            others.push(row_key.to_vec());
        }
        if others.len() == DROPPED_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(others)
}

/// Creates or replaces a user and its key.
pub(crate) fn put_user(txn: &mut Txn<'_, '_>, command: PutUser) -> Result<Reply, StoreError> {
    let row = AccessKeyRow { user: command.user.id.clone(), nonce: command.nonce, sealed: command.sealed };
    txn.put(ACCESS, &access_row_key(ACCESS_USER, &command.user.id.0), &command.user)?;
    txn.put(ACCESS, &access_row_key(ACCESS_KEY, &command.access_key), &row)?;
    raise_version(txn)
}

/// Drops access keys that the configuration no longer names.
pub(crate) fn retain(txn: &mut Txn<'_, '_>, access_keys: &[String]) -> Result<Reply, StoreError> {
    let dropped = others(txn, access_keys)?;
    if dropped.is_empty() {
        return Ok(Reply::Done);
    }
    for row_key in &dropped {
        txn.delete(ACCESS, row_key)?;
    }
    raise_version(txn)
}

fn raise_version(txn: &mut Txn<'_, '_>) -> Result<Reply, StoreError> {
    let version = txn.current.access_version + 1;
    txn.put(META, META_ACCESS_VERSION, &version)?;
    txn.current.access_version = version;
    Ok(Reply::Done)
}
