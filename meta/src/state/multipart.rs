//! Multipart uploads: parts gather in rows of their own, Complete turns them into a version.
//!
//! ```text
//!   create --> in progress --complete--> completed (answers repeats) --expire--> gone
//!                  |  \--commit_part: replaces and retires an earlier part of that number
//!                  +--abort--> gone; parts through the queue
//! ```
//!
//! Parts' blocks belong to the upload's write id from their commit on, so Complete rewrites no `block` row: it writes
//! the block list, the version, and leaves the part rows to the queue. Complete, Abort and re-upload meet in log order,
//! so each race has one winner.
//!
//! Invariant: a completed upload takes no part, so a late part never changes the object.
//!
//! Not here: when a completed upload is forgotten (the leader says).

use std::iter::Peekable;
use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use consensus::{Rows, StoreError};
use serde_bytes::ByteBuf;
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind};
use wire::ids::{BucketId, WriteId};
use wire::limits::{PART_BYTES_MIN, PART_CHECKSUM_BYTES_MAX, PARTS_MAX};
use wire::names::KeyName;
use wire::om::{
    AbortUpload, CommitPart, CompleteUpload, CompletedPart, CreateUpload, KeyCommitted, KeyHead, ListParts,
    PartPage, PartRun, Rejection, UploadCompleted,
};

use crate::command::ExpireUploads;
use crate::schema::{
    KeyRest, KeyRow, PART, PartRow, UPLOAD, UPLOAD_DONE, UPLOAD_ORDER, UploadDoneRow, UploadRow, UsageRow,
    Work, decode, part_row_key, upload_order_row_key, upload_row_key,
};
use crate::state::checksum::{PartSums, combine, etag_of, value_of};
use crate::state::key::Taken;
use crate::state::{
    Reply, RowsExt, Stop, Txn, block, bucket, condition, deletion, end_of, key, layout, usage, work,
};

/// Completed uploads that one command forgets at most: two rows each.
pub(crate) const UPLOADS_EXPIRED_MAX: usize = 100;

/// An upload in progress or completed.
fn any(rows: &impl Rows, bucket: BucketId, key: &KeyName, upload: WriteId) -> Result<UploadRow, Stop> {
    let row = rows.row::<UploadRow>(UPLOAD, &upload_row_key(bucket, upload))?;
    Ok(row.filter(|row| row.key == *key).ok_or(Rejection::NoSuchUpload)?)
}

/// An upload in progress.
pub(crate) fn get(
    rows: &impl Rows,
    bucket: BucketId,
    key: &KeyName,
    upload: WriteId,
) -> Result<UploadRow, Stop> {
    let row = any(rows, bucket, key, upload)?;
    if row.completed.is_some() { Err(Rejection::NoSuchUpload.into()) } else { Ok(row) }
}

/// CreateUpload.
pub(crate) fn create(txn: &mut Txn<'_, '_>, command: CreateUpload) -> Result<Reply, Stop> {
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let upload = command.context.write_id();
    let row = UploadRow {
        key: command.key,
        created_index: txn.index,
        initiated_ms: txn.now_ms,
        owner: command.owner,
        storage_class: command.storage_class,
        replication: command.replication,
        attributes: command.attributes,
        checksum: command.checksum,
        completed: None,
    };
    txn.put(UPLOAD, &upload_row_key(bucket.id, upload), &row)?;
    let order_key = upload_order_row_key(bucket.id, row.key.as_bytes(), txn.index);
    txn.put_bytes(UPLOAD_ORDER, &order_key, &upload.to_row_key())?;
    Ok(Reply::Upload(upload))
}

/// CommitPart: the part's blocks are the upload's from now on.
pub(crate) fn commit_part(txn: &mut Txn<'_, '_>, command: CommitPart) -> Result<Reply, Stop> {
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    if !(1..=PARTS_MAX).contains(&command.part) {
        return Err(Rejection::Invalid(format!("part numbers run from 1 to {PARTS_MAX}")).into());
    }
    get(txn, bucket.id, &command.key, command.upload)?;
    let session = command.context.session;
    let loans = match key::take_blocks(txn, session, command.upload, command.size, &command.blocks)? {
        Taken::Now(loans) => loans,
        Taken::Earlier(reply) => return Ok(reply),
    };
    let row_key = part_row_key(command.upload, command.part);
    let old = txn.row::<PartRow>(PART, &row_key)?;
    // Parts do not count; one that alone passes the bound can be refused before the others come.
    usage::check_quota(txn, &bucket, UsageRow { keys: 0, bytes: command.size as i64 })?;
    loans.store(txn)?;
    block::own(txn, &command.blocks, command.upload, bucket.id, &command.key)?;
    let row = PartRow {
        size: command.size,
        etag: command.etag,
        modified_ms: txn.now_ms,
        checksums: command.checksums,
        blocks: command.blocks,
    };
    txn.put(PART, &row_key, &row)?;
    if let Some(old) = old {
        deletion::release_blocks(txn, command.upload, &old.blocks)?;
    }
    Ok(Reply::Committed(KeyCommitted { version: txn.version(), modified_ms: txn.now_ms }))
}

/// CompleteUpload.
pub(crate) fn complete(txn: &mut Txn<'_, '_>, command: &CompleteUpload) -> Result<Reply, Stop> {
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let upload = any(txn, bucket.id, &command.key, command.upload)?;
    if let Some(completed) = upload.completed {
        return Ok(Reply::Completed(completed));
    }
    let parts = chosen_parts(txn, command)?;
    check_sizes(&parts)?;
    let sums: Vec<PartSums<'_>> = parts
        .iter()
        .map(|(_, row)| PartSums { size: row.size, etag: row.etag, checksums: &row.checksums })
        .collect();
    let size = parts.iter().map(|(_, row)| row.size).sum();
    check_expected(command, size, &sums)?;
    let old = key::get(txn, bucket.id, &command.key)?;
    condition::check(command.condition, old.as_ref().map(|old| old.head.etag))?;

    let version = txn.version();
    let checksums = object_checksums(upload.checksum, &sums);
    let wanted = upload.checksum.map_or(ChecksumAlgorithm::Crc64Nvme, |(algorithm, _)| algorithm);
    let completed = UploadCompleted {
        version,
        etag: etag_of(&sums),
        checksum: checksums.iter().find(|checksum| checksum.algorithm == wanted).cloned(),
        size,
    };
    let blocks = parts.iter().flat_map(|(_, row)| row.blocks.iter().copied());
    let data = layout::store(txn, command.upload, blocks)?;
    let row = KeyRow {
        head: KeyHead {
            size,
            etag: completed.etag,
            modified_ms: txn.now_ms,
            owner: upload.owner.id.clone(),
            storage_class: upload.storage_class,
            checksum: upload.checksum,
        },
        rest: KeyRest {
            version,
            write_id: command.upload,
            replication: upload.replication,
            attributes: upload.attributes.clone(),
            checksums,
            parts: part_runs(parts.iter().map(|(_, row)| row.size)),
            data,
            part_checksums: part_checksums(upload.checksum, &sums),
        },
    };
    key::replace(txn, &bucket, &command.key, old.as_ref(), &row)?;
    if let Some(old) = old {
        deletion::retire_version(txn, old.rest.write_id, &old.rest.data)?;
    }
    let used = number_runs(parts.iter().map(|(part, _)| *part));
    work::queue(txn, Work::Parts { upload: command.upload, used })?;
    finish(txn, bucket.id, command.upload, upload, completed.clone())?;
    Ok(Reply::Completed(completed))
}

/// The upload row turns `completed`: it is no longer listed, takes no part, and answers repeats for a while.
fn finish(
    txn: &mut Txn<'_, '_>,
    bucket: BucketId,
    upload: WriteId,
    row: UploadRow,
    completed: UploadCompleted,
) -> Result<(), StoreError> {
    txn.delete(UPLOAD_ORDER, &upload_order_row_key(bucket, row.key.as_bytes(), row.created_index))?;
    let row = UploadRow { completed: Some(completed), attributes: Default::default(), ..row };
    txn.put(UPLOAD, &upload_row_key(bucket, upload), &row)?;
    let done = UploadDoneRow { bucket, upload, completed_ms: txn.now_ms };
    txn.put(UPLOAD_DONE, &txn.index.to_be_bytes(), &done)
}

/// The rows of the parts that Complete names, in order.
fn chosen_parts(rows: &impl Rows, command: &CompleteUpload) -> Result<Vec<(u32, PartRow)>, Stop> {
    let (Some(first), Some(last)) = (command.parts.first(), command.parts.last()) else {
        return Err(Rejection::Invalid("no part is named".to_owned()).into());
    };
    if !command.parts.is_sorted_by(|a, b| a.part <= b.part) {
        return Err(Rejection::InvalidPartOrder.into());
    }
    // A client that sent a part twice may name both answers; the later one stands.
    let is_last_of_its_number =
        |at: usize| command.parts.get(at + 1).is_none_or(|next| next.part != command.parts[at].part);
    let from = part_row_key(command.upload, first.part);
    let to = part_row_key(command.upload, last.part.saturating_add(1));
    let wanted = command.parts.iter().enumerate().filter(|(at, _)| is_last_of_its_number(*at));
    let mut wanted = wanted.map(|(_, part)| part).peekable();
    let mut chosen = Vec::with_capacity(command.parts.len());
    let mut stop = None;
    rows.scan(PART, &from, Some(&to), &mut |row_key, value| {
        match choose(&mut wanted, row_key, value) {
            Ok(None) => {}
            Ok(Some(part)) => chosen.push(part),
            Err(reason) => stop = Some(reason),
        }
        if stop.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(stop) = stop {
        return Err(stop);
    }
    match wanted.next() {
        Some(missing) => Err(Rejection::InvalidPart { part: missing.part, actual: None }.into()),
        None => Ok(chosen),
    }
}

fn choose<'a>(
    wanted: &mut Peekable<impl Iterator<Item = &'a CompletedPart>>,
    row_key: &[u8],
    value: &[u8],
) -> Result<Option<(u32, PartRow)>, Stop> {
    let part = row_key.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let Some(named) = wanted.peek() else { return Ok(None) };
    if named.part > part {
        return Ok(None);
    }
    if named.part < part {
        return Err(Rejection::InvalidPart { part: named.part, actual: None }.into());
    }
    let row: PartRow = decode(PART, row_key, value)?;
    if named.etag != Some(row.etag) {
        return Err(Rejection::InvalidPart { part, actual: Some(row.etag) }.into());
    }
    if let Some(checksum) = &named.checksum {
        let stored = value_of(&row.checksums, checksum.algorithm);
        if stored != Some(checksum.value.as_slice()) {
            let computed = stored.map(|stored| STANDARD.encode(stored)).unwrap_or_default();
            return Err(Rejection::ChecksumMismatch { algorithm: checksum.algorithm, computed }.into());
        }
    }
    wanted.next();
    Ok(Some((part, row)))
}

fn check_sizes(parts: &[(u32, PartRow)]) -> Result<(), Rejection> {
    let Some((_, but_last)) = parts.split_last() else { return Ok(()) };
    match but_last.iter().find(|(_, row)| row.size < PART_BYTES_MIN) {
        Some((part, row)) => {
            Err(Rejection::PartTooSmall { part: *part, size: row.size, minimum: PART_BYTES_MIN })
        }
        None => Ok(()),
    }
}

fn check_expected(command: &CompleteUpload, size: u64, sums: &[PartSums<'_>]) -> Result<(), Rejection> {
    if let Some(declared) = command.expected_size.filter(|declared| *declared != size) {
        return Err(Rejection::SizeMismatch { declared, actual: size });
    }
    let Some(expected) = &command.expected else { return Ok(()) };
    let algorithm = expected.algorithm;
    let Some(computed) = combine(algorithm, expected.kind, sums) else {
        let message = format!("the parts have no {} checksums to compare with", algorithm.name());
        return Err(Rejection::Invalid(message));
    };
    if computed.value == expected.value {
        return Ok(());
    }
    Err(Rejection::ChecksumMismatch { algorithm, computed: printed(&computed, sums.len()) })
}

fn printed(checksum: &Checksum, parts: usize) -> String {
    let value = STANDARD.encode(&checksum.value);
    match checksum.kind {
        ChecksumKind::FullObject => value,
        ChecksumKind::Composite => format!("{value}-{parts}"),
    }
}

/// What the object keeps: the checksum asked for, and CRC64NVME of all bytes where every part has one.
fn object_checksums(
    asked: Option<(ChecksumAlgorithm, ChecksumKind)>,
    sums: &[PartSums<'_>],
) -> Vec<Checksum> {
    let always = (ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject);
    let mut checksums: Vec<Checksum> =
        asked.and_then(|(algorithm, kind)| combine(algorithm, kind, sums)).into_iter().collect();
    if asked != Some(always) {
        checksums.extend(combine(always.0, always.1, sums));
    }
    checksums
}

/// The parts' checksums of the algorithm asked for, one after the other; none if one is missing or they are too many.
fn part_checksums(asked: Option<(ChecksumAlgorithm, ChecksumKind)>, sums: &[PartSums<'_>]) -> ByteBuf {
    let values = asked.map(|(algorithm, _)| {
        let values: Option<Vec<&[u8]>> =
            sums.iter().map(|part| value_of(part.checksums, algorithm)).collect();
        values.unwrap_or_default().concat()
    });
    ByteBuf::from(values.filter(|values| values.len() <= PART_CHECKSUM_BYTES_MAX).unwrap_or_default())
}

/// Part sizes, run-length coded.
fn part_runs(sizes: impl Iterator<Item = u64>) -> Vec<PartRun> {
    let mut runs: Vec<PartRun> = Vec::new();
    for size in sizes {
        match runs.last_mut() {
            Some(run) if run.size == size => run.count += 1,
            _ => runs.push(PartRun { count: 1, size }),
        }
    }
    runs
}

/// Ascending numbers as runs of (first, count).
fn number_runs(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Whether ascending runs of (first, count) hold a number.
pub(crate) fn runs_contain(runs: &[(u32, u32)], number: u32) -> bool {
    let behind = runs.partition_point(|(first, _)| *first <= number);
    behind > 0 && number - runs[behind - 1].0 < runs[behind - 1].1
}

/// AbortUpload.
pub(crate) fn abort(txn: &mut Txn<'_, '_>, command: &AbortUpload) -> Result<Reply, Stop> {
    let bucket = bucket::check(txn, txn.current, &command.bucket)?;
    let row = get(txn, bucket.id, &command.key, command.upload)?;
    drop_upload(txn, bucket.id, command.upload, &row)?;
    Ok(Reply::Done)
}

/// Drops an upload's rows; its parts go through the queue. Three rows.
pub(crate) fn drop_upload(
    txn: &mut Txn<'_, '_>,
    bucket: BucketId,
    upload: WriteId,
    row: &UploadRow,
) -> Result<(), StoreError> {
    txn.delete(UPLOAD, &upload_row_key(bucket, upload))?;
    if row.completed.is_some() {
        // Its parts are in the queue since Complete.
        return Ok(());
    }
    txn.delete(UPLOAD_ORDER, &upload_order_row_key(bucket, row.key.as_bytes(), row.created_index))?;
    work::queue(txn, Work::Parts { upload, used: Vec::new() })
}

/// Forgets completed uploads that are older than the leader's setting allows.
pub(crate) fn expire_completed(txn: &mut Txn<'_, '_>, command: &ExpireUploads) -> Result<Reply, StoreError> {
    let mut expired = 0;
    for row_key in command.rows.iter().take(UPLOADS_EXPIRED_MAX) {
        let done = txn.row::<UploadDoneRow>(UPLOAD_DONE, row_key)?;
        let Some(done) = done.filter(|done| done.completed_ms < command.completed_before_ms) else {
            continue;
        };
        txn.delete(UPLOAD, &upload_row_key(done.bucket, done.upload))?;
        txn.delete(UPLOAD_DONE, row_key)?;
        expired += 1;
    }
    Ok(Reply::Worked(expired))
}

/// ListParts.
pub(crate) fn list_parts(rows: &impl Rows, bucket: BucketId, request: &ListParts) -> Result<PartPage, Stop> {
    let upload = get(rows, bucket, &request.key, request.upload)?;
    let from = part_row_key(request.upload, request.after.saturating_add(1));
    let end = end_of(&request.upload.to_row_key());
    let max = request.max as usize;
    let found = rows.rows::<PartRow>(PART, &from, Some(&end), max.saturating_add(1))?;
    let is_truncated = max > 0 && found.len() > max;
    let parts = found
        .into_iter()
        .take(max)
        .map(|(row_key, row)| row.info(row_key.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))));
    Ok(PartPage { parts: parts.collect(), upload: upload.info(request.upload), is_truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_hold_what_went_in() {
        let runs = number_runs([1, 2, 3, 7, 9, 10].into_iter());
        assert_eq!(runs, [(1, 3), (7, 1), (9, 2)]);
        let held: Vec<u32> = (0..12).filter(|number| runs_contain(&runs, *number)).collect();
        assert_eq!(held, [1, 2, 3, 7, 9, 10]);
        assert!(!runs_contain(&[], 1));
    }

    #[test]
    fn equal_parts_are_one_run() {
        let runs = part_runs(std::iter::repeat_n(8, 9_999).chain([3]));
        assert_eq!(runs, [PartRun { count: 9_999, size: 8 }, PartRun { count: 1, size: 3 }]);
    }
}
