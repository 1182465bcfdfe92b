//! Keys: `commit_key`, deletion, look-up.
//!
//! A commit re-checks everything the gateway checked before the body, takes the blocks out of their loans, writes the
//! new version and retires the old one, in one transaction: a key is invisible before and whole after.
//!
//! Not here: copies (see `copy`), listings (see `listing`).

use consensus::{Rows, StoreError};
use wire::block::BlockEntry;
use wire::ids::{BucketId, SessionId, WriteId};
use wire::limits::COMMIT_BLOCKS_MAX;
use wire::names::KeyName;
use wire::om::{
    CommitKey, DELETE_KEYS_PER_COMMAND, DeleteKeys, KeyCommitted, KeyHead, KeysDeleted, Rejection,
    WriteCondition,
};

use crate::schema::{KEY, KeyRest, KeyRow, UsageRow, key_row_key};
use crate::state::bucket::Bucket;
use crate::state::loan::Loans;
use crate::state::{Reply, Stop, Txn, block, bucket, condition, deletion, layout, session, usage};

/// The current version of a key.
pub(crate) fn get(rows: &impl Rows, bucket: BucketId, key: &KeyName) -> Result<Option<KeyRow>, StoreError> {
    let row_key = key_row_key(bucket, key.as_bytes());
    match rows.get(KEY, &row_key)? {
        Some(value) => KeyRow::decode(&row_key, &value).map(Some),
        None => Ok(None),
    }
}

/// Writes a version over what was there, if the bounds of bucket and volume allow it.
pub(crate) fn replace(
    txn: &mut Txn<'_, '_>,
    bucket: &Bucket,
    key: &KeyName,
    old: Option<&KeyRow>,
    row: &KeyRow,
) -> Result<(), Stop> {
    let (old_keys, old_bytes) = old.map_or((0, 0), |old| (1, old.head.size as i64));
    let delta = UsageRow { keys: 1 - old_keys, bytes: row.head.size as i64 - old_bytes };
    usage::check_quota(txn, bucket, delta)?;
    txn.put_bytes(KEY, &key_row_key(bucket.id, key.as_bytes()), &row.encode())?;
    txn.usage.add(bucket, delta);
    Ok(())
}

/// What taking blocks out of their loans came to.
pub(crate) enum Taken {
    /// They are out; nothing is written yet.
    Now(Loans),
    /// This write committed them before: its answer.
    Earlier(Reply),
}

/// Checks a block list and takes its ids out of the session's loans.
pub(crate) fn take_blocks(
    rows: &impl Rows,
    session: SessionId,
    write_id: WriteId,
    size: u64,
    entries: &[BlockEntry],
) -> Result<Taken, Stop> {
    check_entries(size, entries)?;
    let mut loans = Loans::default();
    for entry in entries {
        if loans.take_id(rows, session, entry.block)? {
            continue;
        }
        return match session::earlier_success(rows, write_id, entry.block)? {
            Some(reply) => Ok(Taken::Earlier(reply)),
            None if wire::planted::is_on("loan_outlives_session") => continue,
            None => Err(Rejection::NotOnLoan(entry.block).into()),
        };
    }
    Ok(Taken::Now(loans))
}

fn check_entries(size: u64, entries: &[BlockEntry]) -> Result<(), Rejection> {
    if entries.len() > COMMIT_BLOCKS_MAX {
        return Err(Rejection::Invalid(format!("more than {COMMIT_BLOCKS_MAX} blocks in one commit")));
    }
    let mut sum = 0u64;
    for entry in entries {
        let is_sound = entry.length > 0
            && entry.offset.checked_add(entry.length).is_some_and(|end| end <= entry.block_length);
        if !is_sound {
            return Err(Rejection::Invalid(format!("block {} has a wrong extent", entry.block)));
        }
        sum = sum.saturating_add(entry.length);
    }
    if sum != size {
        return Err(Rejection::Invalid(format!("the blocks hold {sum} bytes, not {size}")));
    }
    Ok(())
}

/// CommitKey.
pub(crate) fn commit(txn: &mut Txn<'_, '_>, command: CommitKey) -> Result<Reply, Stop> {
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let write_id = command.context.write_id();
    let loans = match take_blocks(txn, command.context.session, write_id, command.size, &command.blocks)? {
        Taken::Now(loans) => loans,
        Taken::Earlier(reply) => return Ok(reply),
    };
    let old = get(txn, bucket.id, &command.key)?;
    condition::check(command.condition, old.as_ref().map(|old| old.head.etag))?;
    loans.store(txn)?;
    block::own(txn, &command.blocks, write_id, bucket.id, &command.key)?;
    let data = layout::store(txn, write_id, command.blocks.into_iter())?;
    let version = txn.version();
    let row = KeyRow {
        head: KeyHead {
            size: command.size,
            etag: command.etag,
            modified_ms: txn.now_ms,
            owner: command.owner,
            storage_class: command.storage_class,
            checksum: command.checksum,
        },
        rest: KeyRest {
            version,
            write_id,
            replication: command.replication,
            attributes: command.attributes,
            checksums: command.checksums,
            parts: Vec::new(),
            data,
            part_checksums: Default::default(),
        },
    };
    replace(txn, &bucket, &command.key, old.as_ref(), &row)?;
    if let Some(old) = old {
        deletion::retire_version(txn, old.rest.write_id, &old.rest.data)?;
    }
    Ok(Reply::Committed(KeyCommitted { version, modified_ms: txn.now_ms }))
}

/// DeleteKeys: each key for itself.
pub(crate) fn delete(txn: &mut Txn<'_, '_>, command: &DeleteKeys) -> Result<Reply, Stop> {
    if command.keys.len() > DELETE_KEYS_PER_COMMAND {
        let message = format!("more than {DELETE_KEYS_PER_COMMAND} keys in one command");
        return Err(Rejection::Invalid(message).into());
    }
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let mut outcomes = Vec::with_capacity(command.keys.len());
    for (key, condition) in &command.keys {
        outcomes.push(delete_one(txn, &bucket, key, *condition)?);
    }
    Ok(Reply::Deleted(KeysDeleted { outcomes, index: txn.index }))
}

fn delete_one(
    txn: &mut Txn<'_, '_>,
    bucket: &Bucket,
    key: &KeyName,
    condition: WriteCondition,
) -> Result<Result<(), Rejection>, StoreError> {
    let old = get(txn, bucket.id, key)?;
    if let Err(rejection) = condition::check(condition, old.as_ref().map(|old| old.head.etag)) {
        return Ok(Err(rejection));
    }
    if let Some(old) = old {
        txn.delete(KEY, &key_row_key(bucket.id, key.as_bytes()))?;
        txn.usage.add(bucket, UsageRow { keys: -1, bytes: -(old.head.size as i64) });
        deletion::retire_version(txn, old.rest.write_id, &old.rest.data)?;
    }
    Ok(Ok(()))
}
