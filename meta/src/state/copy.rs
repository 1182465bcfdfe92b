//! CopyKey: copies share blocks; a copy onto itself moves no bytes and keeps its references.
//!
//! The command names the version that the gateway evaluated. Apply takes the references from that row and fails if it
//! is gone, so a copy never gets blocks that are being freed.
//!
//! Not here: copies that cannot share (the gateway reads and writes the bytes).

use wire::limits::COPY_SHARED_BLOCKS_MAX;
use wire::om::{CopyKey, KeyCommitted, KeyHead, Rejection};

use crate::schema::{KeyRest, KeyRow};
use crate::state::{Reply, Stop, Txn, block, bucket, condition, deletion, key, layout};

/// CopyKey.
pub(crate) fn copy(txn: &mut Txn<'_, '_>, command: CopyKey) -> Result<Reply, Stop> {
    let source_bucket = bucket::check(txn, txn.current, &command.source_bucket)?;
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let source = key::get(txn, source_bucket.id, &command.source_key)?.ok_or(Rejection::NoSuchKey)?;
    if source.rest.version != command.source_version {
        return Err(Rejection::SourceChanged.into());
    }
    let is_itself = source_bucket.id == bucket.id && command.source_key == command.key;
    let old = if is_itself { Some(source.clone()) } else { key::get(txn, bucket.id, &command.key)? };
    condition::check(command.condition, old.as_ref().map(|old| old.head.etag))?;
    if source.rest.replication != command.replication && source.head.size > 0 {
        return Err(Rejection::CannotShare.into());
    }
    let version = txn.version();
    let mut row = KeyRow {
        head: KeyHead {
            modified_ms: txn.now_ms,
            owner: command.owner,
            storage_class: command.storage_class,
            ..source.head
        },
        rest: KeyRest {
            version,
            replication: command.replication,
            attributes: command.attributes.unwrap_or(source.rest.attributes),
            ..source.rest
        },
    };
    if !is_itself {
        let write_id = command.context.write_id();
        let entries = layout::whole(txn, row.rest.write_id, &row.rest.data, COPY_SHARED_BLOCKS_MAX)?
            .ok_or(Rejection::CannotShare)?;
        for entry in &entries {
            if !block::share(txn, entry.block, write_id, bucket.id, &command.key)? {
                return Err(Rejection::CannotShare.into());
            }
        }
        row.rest.data = layout::store(txn, write_id, entries.into_iter())?;
        row.rest.write_id = write_id;
    }
    key::replace(txn, &bucket, &command.key, old.as_ref(), &row)?;
    if let Some(old) = old.filter(|_| !is_itself) {
        deletion::retire_version(txn, old.rest.write_id, &old.rest.data)?;
    }
    Ok(Reply::Committed(KeyCommitted { version, modified_ms: txn.now_ms }))
}
