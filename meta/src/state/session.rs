//! Sessions: a gateway's life, and one effect and one answer for each of its commands.
//!
//! The reply of a command is kept in a `request` row until the session acknowledges it. Rows are dropped in steps, when
//! the acknowledged mark has moved far enough, so that a command costs one row written and one dropped, and the session
//! row is written once a step. Commands below the mark are refused: whether they ran is settled, their caller is gone.
//!
//! Ending: one command refuses all later commits; the queue then takes the loans back piece by piece.
//!
//! Not here: when a session is silent for too long (leader memory, see `worker`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::ids::{BlockId, SessionId, VersionId, WriteId};
use wire::om::{KeyCommitted, Rejection, WriteContext};

use crate::command::OpenSession;
use crate::schema::{BLOCK, BlockRow, REQUEST, SESSION, SESSION_NONCE, SessionRow, Work, pair};
use crate::state::{Reply, RowsExt, Stop, Txn, settled, work};

/// Replies are dropped when this many are acknowledged: one session row written for so many commands.
const ACKNOWLEDGE_STEP: u64 = 64;
/// Replies dropped by one command at most: its share of `COMMAND_ROWS_MAX`.
const REPLIES_DROPPED_MAX: usize = 80;

/// Opens a session, or answers with the one that has this nonce.
pub(crate) fn open(txn: &mut Txn<'_, '_>, command: OpenSession) -> Result<Reply, StoreError> {
    let same = match txn.row::<SessionId>(SESSION_NONCE, &command.nonce)? {
        Some(session) => txn.row::<SessionRow>(SESSION, &session.to_be_bytes())?.map(|row| (session, row)),
        None => None,
    };
    if let Some((session, _)) = same.filter(|(_, row)| !row.is_ended) {
        return Ok(Reply::Session(session));
    }
    let session = SessionId(txn.index);
    let row = SessionRow { nonce: command.nonce, opened_ms: txn.now_ms, is_ended: false, low_water: 0 };
    txn.put(SESSION, &session.to_be_bytes(), &row)?;
    txn.put(SESSION_NONCE, &row.nonce, &session)?;
    Ok(Reply::Session(session))
}

/// Drops an ended session, the last of its rows. Another one may have its nonce by now.
pub(crate) fn forget(txn: &mut Txn<'_, '_>, session: SessionId) -> Result<(), StoreError> {
    if let Some(row) = txn.row::<SessionRow>(SESSION, &session.to_be_bytes())?
        && txn.row::<SessionId>(SESSION_NONCE, &row.nonce)? == Some(session)
    {
        txn.delete(SESSION_NONCE, &row.nonce)?;
    }
    txn.delete(SESSION, &session.to_be_bytes())?;
    Ok(())
}

/// The session that a row key names.
pub(crate) fn id_of(row_key: &[u8]) -> Option<SessionId> {
    Some(SessionId(u64::from_be_bytes(row_key.try_into().ok()?)))
}

/// Ends a session: refuses its commands from here on, and queues the return of its loans.
pub(crate) fn end(txn: &mut Txn<'_, '_>, session: SessionId) -> Result<Reply, StoreError> {
    if let Some(row) = txn.row::<SessionRow>(SESSION, &session.to_be_bytes())?
        && !row.is_ended
    {
        txn.put(SESSION, &session.to_be_bytes(), &SessionRow { is_ended: true, ..row })?;
        work::queue(txn, Work::Session { session })?;
    }
    Ok(Reply::Done)
}

/// Runs a command of a session once: a repeat is answered as the first was.
pub(crate) fn in_session(
    txn: &mut Txn<'_, '_>,
    context: WriteContext,
    run: impl FnOnce(&mut Txn<'_, '_>) -> Result<Reply, Stop>,
) -> Result<Reply, StoreError> {
    in_session_with_blocks(txn, context, None, run)
}

/// As [`in_session`], for a command that commits blocks: where session and reply are gone, the row of its first block
/// still tells whether it succeeded.
pub(crate) fn in_session_with_blocks(
    txn: &mut Txn<'_, '_>,
    context: WriteContext,
    first_block: Option<(WriteId, BlockId)>,
    run: impl FnOnce(&mut Txn<'_, '_>) -> Result<Reply, Stop>,
) -> Result<Reply, StoreError> {
    let request_key = context.write_id().to_row_key();
    if let Some(reply) = txn.row(REQUEST, &request_key)?
        && !wire::planted::is_on("dedup_off")
    {
        return Ok(reply);
    }
    let refused = match txn.row::<SessionRow>(SESSION, &context.session.to_be_bytes())? {
        None if wire::planted::is_on("loan_outlives_session") => None,
        None => Some(Rejection::SessionEnded),
        Some(row) if row.is_ended && !wire::planted::is_on("loan_outlives_session") => {
            Some(Rejection::SessionEnded)
        }
        Some(row) if context.sequence < row.low_water => Some(Rejection::Forgotten),
        Some(row) => {
            drop_replies(txn, context, row)?;
            None
        }
    };
    if let Some(rejection) = refused {
        let earlier = match first_block {
            Some((write_id, block)) => earlier_success(txn, write_id, block)?,
            None => None,
        };
        return Ok(earlier.unwrap_or(Reply::Rejected(rejection)));
    }
    let reply = settled(txn, run)?;
    if reply != Reply::LeaseExhausted {
        txn.put(REQUEST, &request_key, &reply)?;
    }
    Ok(reply)
}

/// The answer of a commit whose blocks this write already owns, or owned once.
pub(crate) fn earlier_success(
    rows: &impl Rows,
    write_id: WriteId,
    block: BlockId,
) -> Result<Option<Reply>, StoreError> {
    let row = rows.row::<BlockRow>(BLOCK, &block.to_row_key())?;
    Ok(row.filter(|row| row.owner == write_id).map(|row| {
        let version = VersionId { index: row.committed_index, ordinal: 0 };
        Reply::Committed(KeyCommitted { version, modified_ms: row.committed_ms })
    }))
}

fn drop_replies(txn: &mut Txn<'_, '_>, context: WriteContext, row: SessionRow) -> Result<(), StoreError> {
    // A command never acknowledges itself.
    let acknowledged = context.acknowledged.min(context.sequence);
    if acknowledged < row.low_water + ACKNOWLEDGE_STEP {
        return Ok(());
    }
    let from = pair(context.session.0, row.low_water);
    let to = pair(context.session.0, acknowledged);
    let dropped = row_keys(txn, &from, &to, REPLIES_DROPPED_MAX)?;
    for row_key in &dropped {
        txn.delete(REQUEST, row_key)?;
    }
    let low_water = match dropped.last() {
        Some(last) if dropped.len() == REPLIES_DROPPED_MAX => sequence_of(last) + 1,
        _ => acknowledged,
    };
    txn.put(SESSION, &context.session.to_be_bytes(), &SessionRow { low_water, ..row })
}

/// Row keys of remembered replies in a range, at most `count_max`.
pub(crate) fn row_keys(
    rows: &impl Rows,
    from: &[u8],
    to: &[u8],
    count_max: usize,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut found = Vec::new();
    rows.scan(REQUEST, from, Some(to), &mut |row_key, _| {
        found.push(row_key.to_vec());
        if found.len() == count_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(found)
}

fn sequence_of(row_key: &[u8]) -> u64 {
    row_key.last_chunk().map_or(0, |sequence| u64::from_be_bytes(*sequence))
}
