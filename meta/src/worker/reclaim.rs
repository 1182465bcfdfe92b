//! What goes: silent sessions, old loans, completed uploads, queued work, freed blocks.
//!
//! A damaged row is passed over for this term, counted, and the next one is done; what it stands for waits for an operator.
//!
//! Not here: what the commands do (see `state`).

use client::service::CallError;
use consensus::Table;
use serde_bytes::ByteBuf;
use wire::clock;
use wire::ids::{BlockId, ContainerId, LocalId};
use wire::om::Rejection;
use wire::scm::LogDeletions;
use wire::status::Failure;

use super::{BACKLOG_COUNTED_MAX, STEPS_MAX};
use crate::command::{
    BeginHandover, Command, EndSession, ExpireLoans, ExpireUploads, FinishHandover, WorkOff,
};
use crate::error::failure_of;
use crate::leases::LeaderMemory;
use crate::schema::{
    DELETED, HandoverRow, LOAN, LoanRow, SESSION, SessionRow, UPLOAD_DONE, UploadDoneRow, WORK, pair,
};
use crate::server::Om;
use crate::state::deletion::HANDOVER_BLOCKS_MAX;
use crate::state::loan::{LOANS_ENDED_MAX, first_of};
use crate::state::multipart::UPLOADS_EXPIRED_MAX;
use crate::state::{Reply, RowsExt, deletion, session, work};

/// Rows read at once while looking for old ones.
const ROWS_SEEN_MAX: usize = 1000;

/// Proposes a command for a worker. None if it fails on a damaged row.
pub(super) async fn propose(om: &Om, command: impl Into<Command>) -> Result<Option<Reply>, Failure> {
    match om.propose_freeing(command).await {
        Ok(reply) => Ok(Some(reply)),
        Err(CallError::Rejected(Rejection::DamagedRow)) => Ok(None),
        Err(error) => Err(failure_of(error)),
    }
}

/// The row that a command of this worker stands for cannot be worked off: it is passed over.
fn give_up(om: &Om, memory: &LeaderMemory, table: Table, row_key: &[u8]) {
    if memory.give_up(table.name(), row_key) {
        om.metrics().damaged_rows.set(memory.given_up() as f64);
        tracing::error!(table = table.name(), row_key = ?row_key, "a worker passes over a damaged row");
    }
}

fn worked(reply: &Reply) -> u64 {
    match reply {
        Reply::Worked(count) => u64::from(*count),
        _ => 0,
    }
}

pub(super) async fn end_silent_sessions(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let mut sessions = Vec::new();
    let mut from = Vec::new();
    loop {
        let page = om.applied_view()?.readable_rows::<SessionRow>(SESSION, &from, None, ROWS_SEEN_MAX);
        let page = page.map_err(|error| om.fault(&error))?;
        om.count_damaged(memory, SESSION, &page.damaged);
        let live = page.rows.iter().filter(|(_, row)| !row.is_ended);
        sessions.extend(live.filter_map(|(row_key, _)| session::id_of(row_key)));
        let Some(next) = page.next else { break };
        from = next;
    }
    let mut done = 0;
    for session in memory.silent_sessions(&sessions, om.config().session_silence_ms) {
        if memory.is_given_up(SESSION.name(), &session.to_be_bytes()) {
            continue;
        }
        tracing::info!(%session, "session was silent for too long and ends");
        match propose(om, EndSession { session }).await? {
            Some(_) => done += 1,
            None => give_up(om, memory, SESSION, &session.to_be_bytes()),
        }
    }
    Ok(done)
}

pub(super) async fn expire_loans(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let taken_before_ms = clock::now_ms().saturating_sub(om.config().open_key_expire_after_ms);
    let mut from: Vec<u8> = Vec::new();
    let mut done = 0;
    loop {
        let page = om.applied_view()?.readable_rows::<LoanRow>(LOAN, &from, None, ROWS_SEEN_MAX);
        let page = page.map_err(|error| om.fault(&error))?;
        om.count_damaged(memory, LOAN, &page.damaged);
        let old = page.rows.iter().filter(|(row_key, row)| {
            row.taken_ms < taken_before_ms && !memory.is_given_up(LOAN.name(), row_key)
        });
        let old: Vec<_> = old.map(|(row_key, _)| first_of(row_key)).collect();
        for loans in old.chunks(LOANS_ENDED_MAX) {
            done += end_loans(om, memory, loans, taken_before_ms).await?;
        }
        let Some(next) = page.next else { return Ok(done) };
        from = next;
    }
}

async fn end_loans(
    om: &Om,
    memory: &LeaderMemory,
    loans: &[(ContainerId, LocalId)],
    taken_before_ms: u64,
) -> Result<u64, Failure> {
    if let Some(reply) = propose(om, ExpireLoans { loans: loans.to_vec(), taken_before_ms }).await? {
        return Ok(worked(&reply));
    }
    // One of them needs a damaged row: find it, and end the others.
    let mut done = 0;
    for loan in loans {
        match propose(om, ExpireLoans { loans: vec![*loan], taken_before_ms }).await? {
            Some(reply) => done += worked(&reply),
            None => give_up(om, memory, LOAN, &pair(loan.0.0, loan.1.0)),
        }
    }
    Ok(done)
}

pub(super) async fn work_off(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let mut done = 0;
    for _ in 0..STEPS_MAX {
        let queued_before_ms = om.grace_begins_ms();
        let is_given_up = |row_key: &[u8]| memory.is_given_up(WORK.name(), row_key);
        let row_key = match work::next_due(&om.applied_view()?, queued_before_ms, &is_given_up) {
            Ok(Some(row_key)) => row_key,
            Ok(None) => break,
            Err(consensus::StoreError::Corrupt { row_key, .. }) => {
                om.count_damaged(memory, WORK, &[row_key]);
                continue;
            }
            Err(error) => return Err(om.fault(&error)),
        };
        match propose(om, WorkOff { row_key: row_key.clone().into() }).await? {
            Some(reply) => done += worked(&reply),
            None => give_up(om, memory, WORK, &row_key),
        }
    }
    Ok(done)
}

pub(super) async fn hand_over(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let mut done = 0;
    for _ in 0..STEPS_MAX {
        let freed_before_ms = om.grace_begins_ms();
        let view = om.view().await.map_err(failure_of)?;
        let due = deletion::due(view.as_ref(), freed_before_ms).map_err(|error| om.fault(&error))?;
        drop(view);
        let Some(damaged) = due else { break };
        om.count_damaged(memory, DELETED, &damaged);
        let skip = damaged.into_iter().map(ByteBuf::from).collect();
        let begin = BeginHandover { freed_before_ms, count_max: HANDOVER_BLOCKS_MAX, skip };
        let reply = om.propose_freeing(begin).await.map_err(failure_of)?;
        let Reply::Handover(Some(handover)) = reply else { break };
        done += hand_over_batch(om, memory, &handover).await?;
    }
    let backlog = deletion::backlog(&om.applied_view()?, BACKLOG_COUNTED_MAX);
    let (count, _) = backlog.map_err(|error| om.fault(&error))?;
    om.metrics().deletion_backlog.set(count as f64);
    Ok(done)
}

async fn hand_over_batch(om: &Om, memory: &LeaderMemory, handover: &HandoverRow) -> Result<u64, Failure> {
    let view = om.view().await.map_err(failure_of)?;
    let batch = deletion::read_batch(view.as_ref(), handover).map_err(|error| om.fault(&error))?;
    drop(view);
    om.count_damaged(memory, DELETED, &batch.damaged_rows);
    let block_rows: Vec<Vec<u8>> =
        batch.damaged_blocks.iter().map(|block| block.to_row_key().to_vec()).collect();
    om.count_damaged(memory, crate::schema::BLOCK, &block_rows);
    let blocks: Vec<BlockId> = batch.blocks;
    memory.call(LogDeletions { batch: handover.batch, blocks }).await?;
    wire::failpoint::hit("meta_deletion_handed_over");
    let finish = FinishHandover {
        batch: handover.batch,
        skip: batch.damaged_rows.into_iter().map(ByteBuf::from).collect(),
        skip_blocks: batch.damaged_blocks,
    };
    let count = worked(&om.propose_freeing(finish).await.map_err(failure_of)?);
    om.metrics().blocks_handed_over.increment(count);
    Ok(count)
}

pub(super) async fn expire_uploads(om: &Om, memory: &LeaderMemory) -> Result<u64, Failure> {
    let completed_before_ms = clock::now_ms().saturating_sub(om.config().completed_upload_keep_ms);
    let mut from: Vec<u8> = Vec::new();
    let mut done = 0;
    loop {
        let page =
            om.applied_view()?.readable_rows::<UploadDoneRow>(UPLOAD_DONE, &from, None, UPLOADS_EXPIRED_MAX);
        let page = page.map_err(|error| om.fault(&error))?;
        om.count_damaged(memory, UPLOAD_DONE, &page.damaged);
        let old: Vec<ByteBuf> = page
            .rows
            .iter()
            .take_while(|(_, row)| row.completed_ms < completed_before_ms)
            .filter(|(row_key, _)| !memory.is_given_up(UPLOAD_DONE.name(), row_key))
            .map(|(row_key, _)| ByteBuf::from(row_key.clone()))
            .collect();
        let is_last = page.rows.last().is_none_or(|(_, row)| row.completed_ms >= completed_before_ms);
        if !old.is_empty() {
            done += forget_uploads(om, memory, old, completed_before_ms).await?;
        }
        match page.next {
            Some(next) if !is_last => from = next,
            _ => return Ok(done),
        }
    }
}

async fn forget_uploads(
    om: &Om,
    memory: &LeaderMemory,
    rows: Vec<ByteBuf>,
    completed_before_ms: u64,
) -> Result<u64, Failure> {
    if let Some(reply) = propose(om, ExpireUploads { rows: rows.clone(), completed_before_ms }).await? {
        return Ok(worked(&reply));
    }
    let mut done = 0;
    for row_key in rows {
        match propose(om, ExpireUploads { rows: vec![row_key.clone()], completed_before_ms }).await? {
            Some(reply) => done += worked(&reply),
            None => give_up(om, memory, UPLOAD_DONE, &row_key),
        }
    }
    Ok(done)
}
