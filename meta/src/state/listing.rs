//! Listings: keys and uploads in byte order, cut at a delimiter.
//!
//! A common prefix is emitted when its first key is met; the scan then seeks past everything under it. So a page costs
//! what it returns, however many keys a prefix hides. Of a key's row only the head is decoded.
//!
//! Where to go on: strictly after `after`. A common prefix equal to it is passed over whole; one that `after` lies
//! inside is given again if a key behind `after` exists under it.
//!
//! Not here: S3's markers and tokens (the gateway maps them to `after`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError, Table};
use wire::ids::{BucketId, WriteId};
use wire::names::KeyName;
use wire::om::{KeyPage, ListItem, ListKeys, ListUploads, UploadItem, UploadPage};

use crate::schema::{
    ESCAPE_END, KEY, KeyRow, UPLOAD, UPLOAD_ORDER, UploadRow, after_prefix, corrupt, escape,
    upload_order_row_key, upload_row_key,
};
use crate::state::{RowsExt, end_of};

/// The common prefix of `name`: up to and with the first delimiter behind the prefix.
fn common_prefix<'n>(name: &'n [u8], prefix: &[u8], delimiter: &[u8]) -> Option<&'n [u8]> {
    if delimiter.is_empty() {
        return None;
    }
    let rest = name.strip_prefix(prefix)?;
    let at = find(rest, delimiter)?;
    Some(&name[..prefix.len() + at + delimiter.len()])
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    match needle {
        [byte] => haystack.iter().position(|b| b == byte),
        _ => haystack.windows(needle.len()).position(|window| window == needle),
    }
}

/// Where one scan of a page ended.
enum Step {
    /// A common prefix: everything under it is to be passed over.
    Past(Vec<u8>),
    /// The page is full and more follows.
    Truncated,
    /// The range is done.
    Done,
}

/// ListKeys. No blocking work beyond the rows of the page.
pub(crate) fn list_keys(
    rows: &impl Rows,
    bucket: BucketId,
    request: &ListKeys,
) -> Result<KeyPage, StoreError> {
    let mut page = KeyPage { items: Vec::new(), is_truncated: false, read_index: 0 };
    let max = request.max as usize;
    if max == 0 {
        return Ok(page);
    }
    let base = bucket.to_be_bytes();
    let (prefix, delimiter) = (request.prefix.as_bytes(), request.delimiter.as_bytes());
    let end = end_of(&[&base, prefix].concat());
    let mut from = [&base, start_name(prefix, delimiter, request.after.as_bytes()).as_slice()].concat();
    loop {
        let step = scan_page(rows, KEY, &from, &end, &mut |row_key, value| {
            if page.items.len() == max {
                return Ok(Some(Step::Truncated));
            }
            let name = &row_key[base.len()..];
            if let Some(common) = common_prefix(name, prefix, delimiter) {
                page.items.push(ListItem::Prefix(text_of(KEY, row_key, common)?));
                return Ok(Some(Step::Past(common.to_vec())));
            }
            let key = KeyName::from_bytes(name).map_err(|_| corrupt(KEY, row_key))?;
            page.items.push(ListItem::Key(key, KeyRow::decode_head(row_key, value)?));
            Ok(None)
        })?;
        match step {
            Step::Past(common) => from = end_of(&[base.as_slice(), &common].concat()),
            Step::Truncated => {
                page.is_truncated = true;
                return Ok(page);
            }
            Step::Done => return Ok(page),
        }
    }
}

/// The first name that may be listed.
fn start_name(prefix: &[u8], delimiter: &[u8], after: &[u8]) -> Vec<u8> {
    if after.is_empty() {
        return prefix.to_vec();
    }
    let next = match common_prefix(after, prefix, delimiter) {
        Some(common) if common == after => {
            after_prefix(common).unwrap_or_else(|| vec![0xff; after.len() + 1])
        }
        _ => [after, &[0]].concat(),
    };
    next.max(prefix.to_vec())
}

/// Takes a row into the page; a step ends the scan.
type VisitRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Option<Step>, StoreError> + 'a;

fn scan_page(
    rows: &impl Rows,
    table: Table,
    from: &[u8],
    end: &[u8],
    visit: &mut VisitRow<'_>,
) -> Result<Step, StoreError> {
    let mut outcome = Ok(Step::Done);
    rows.scan(table, from, Some(end), &mut |row_key, value| match visit(row_key, value) {
        Ok(None) => ControlFlow::Continue(()),
        Ok(Some(step)) => {
            outcome = Ok(step);
            ControlFlow::Break(())
        }
        Err(error) => {
            outcome = Err(error);
            ControlFlow::Break(())
        }
    })?;
    outcome
}

fn text_of(table: Table, row_key: &[u8], bytes: &[u8]) -> Result<String, StoreError> {
    // A delimiter that is a whole UTF-8 string cuts between characters.
    String::from_utf8(bytes.to_vec()).map_err(|_| corrupt(table, row_key))
}

/// ListUploads: by key, then by initiation.
pub(crate) fn list_uploads(
    rows: &impl Rows,
    bucket: BucketId,
    request: &ListUploads,
) -> Result<UploadPage, StoreError> {
    let mut page = UploadPage { items: Vec::new(), is_truncated: false };
    let max = request.max as usize;
    if max == 0 {
        return Ok(page);
    }
    let base = bucket.to_be_bytes();
    let (prefix, delimiter) = (request.prefix.as_bytes(), request.delimiter.as_bytes());
    let prefix_key = escaped(&base, prefix);
    let end = end_of(&prefix_key);
    let mut from = first_upload(rows, bucket, request)?.max(prefix_key);
    let mut found: Vec<(usize, WriteId)> = Vec::new();
    loop {
        let step = scan_page(rows, UPLOAD_ORDER, &from, &end, &mut |row_key, value| {
            if page.items.len() + found.len() == max {
                return Ok(Some(Step::Truncated));
            }
            let name = unescaped(&row_key[base.len()..]).ok_or_else(|| corrupt(UPLOAD_ORDER, row_key))?;
            if let Some(common) = common_prefix(&name, prefix, delimiter) {
                page.items.push(UploadItem::Prefix(text_of(UPLOAD_ORDER, row_key, common)?));
                return Ok(Some(Step::Past(common.to_vec())));
            }
            let id = value.first_chunk().ok_or_else(|| corrupt(UPLOAD_ORDER, row_key))?;
            // Uploads are read after the scan; remember how many prefixes stand before each.
            found.push((page.items.len(), WriteId::from_row_key(*id)));
            Ok(None)
        })?;
        match step {
            Step::Past(common) => from = end_of(&escaped(&base, &common)),
            Step::Truncated => {
                page.is_truncated = true;
                break;
            }
            Step::Done => break,
        }
    }
    page.items = with_uploads(rows, bucket, page.items, found)?;
    Ok(page)
}

/// Puts the uploads between the prefixes, where they were met.
fn with_uploads(
    rows: &impl Rows,
    bucket: BucketId,
    prefixes: Vec<UploadItem>,
    found: Vec<(usize, WriteId)>,
) -> Result<Vec<UploadItem>, StoreError> {
    let mut items = Vec::with_capacity(prefixes.len() + found.len());
    let mut prefixes = prefixes.into_iter();
    let mut passed = 0;
    for (before, upload) in found {
        items.extend(prefixes.by_ref().take(before - passed));
        passed = before;
        let row_key = upload_row_key(bucket, upload);
        let row = rows.row::<UploadRow>(UPLOAD, &row_key)?.ok_or_else(|| corrupt(UPLOAD, &row_key))?;
        items.push(UploadItem::Upload(row.info(upload)));
    }
    items.extend(prefixes);
    Ok(items)
}

fn first_upload(rows: &impl Rows, bucket: BucketId, request: &ListUploads) -> Result<Vec<u8>, StoreError> {
    let base = bucket.to_be_bytes();
    let after = request.key_after.as_bytes();
    if after.is_empty() {
        return Ok(base.to_vec());
    }
    let (prefix, delimiter) = (request.prefix.as_bytes(), request.delimiter.as_bytes());
    if common_prefix(after, prefix, delimiter) == Some(after) {
        return Ok(end_of(&escaped(&base, after)));
    }
    let Some(upload) = request.upload_after else {
        // Behind all uploads of that key, before any longer key.
        return Ok(end_of(&[escaped(&base, after).as_slice(), &ESCAPE_END].concat()));
    };
    let row = rows.row::<UploadRow>(UPLOAD, &upload_row_key(bucket, upload))?;
    // The upload may be gone by now. A session's uploads are younger than the session, so going on from there may
    // give some again, and skips none.
    let index = row.map_or(upload.session.0, |row| row.created_index + 1);
    Ok(upload_order_row_key(bucket, after, index))
}

fn escaped(base: &[u8], key: &[u8]) -> Vec<u8> {
    let mut row_key = base.to_vec();
    escape(key, &mut row_key);
    row_key
}

fn unescaped(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(bytes.len());
    let mut bytes = bytes.iter();
    loop {
        match bytes.next()? {
            0 => match bytes.next()? {
                0xff => key.push(0),
                1 => return Some(key),
                _ => return None,
            },
            byte => key.push(*byte),
        }
    }
}
