//! Loans: block ids lent to a session.
//!
//! A loan's row has one bit per id. An id leaves by a commit (the block is owned), by a release, or with the loan's end
//! (the block is freed). Nothing ever sets a bit again, so log order alone settles commit against reclaim.
//!
//! Invariant: every id ever lent is on loan, owned, freed, or named by a queued `Free`.
//!
//! Not here: which lease to lend from (the leader chooses it in prepare).

use std::collections::BTreeMap;

use consensus::{Rows, StoreError};
use serde_bytes::ByteBuf;
use wire::ids::{BlockId, ContainerId, LoanId, LocalId, SessionId};
use wire::limits::LOAN_IDS_MAX;
use wire::om::{Rejection, ReleaseBlocks};

use crate::command::{ExpireLoans, TakeLoan};
use crate::schema::{LEASE, LOAN, LOAN_SESSION, LeaseRow, LoanRow, Work, decode, pair};
use crate::state::{Lent, Reply, RowsExt, Stop, Txn, block, work};

/// Released ids up to this number are freed by the command itself.
const FREED_AT_ONCE_MAX: usize = 32;
/// Loans that one command ends at most.
pub(crate) const LOANS_ENDED_MAX: usize = 100;

/// Lends ids of a lease.
pub(crate) fn take(txn: &mut Txn<'_, '_>, command: &TakeLoan) -> Result<Reply, Stop> {
    let lease_key = command.lease.to_be_bytes();
    let Some(mut lease) = txn.row::<LeaseRow>(LEASE, &lease_key)?.filter(|lease| lease.left() > 0) else {
        return Ok(Reply::LeaseExhausted);
    };
    let wanted = command.count.clamp(1, LOAN_IDS_MAX);
    let count = u64::from(wanted).min(lease.left()) as u16;
    let first = LocalId(lease.first.0 + lease.used);
    lease.used += u64::from(count);
    lease.is_ended = lease.used == lease.count;
    let lent = Lent {
        id: LoanId(txn.index),
        container: lease.container,
        generation: lease.generation,
        first,
        count,
        pipeline: lease.pipeline.clone(),
    };
    let row = LoanRow {
        id: lent.id,
        session: command.context.session,
        lease: command.lease,
        taken_ms: txn.now_ms,
        count,
        left: full_bits(count),
    };
    txn.put(LEASE, &lease_key, &lease)?;
    txn.put(LOAN, &pair(lent.container.0, first.0), &row)?;
    txn.put_bytes(LOAN_SESSION, &pair(row.session.0, row.id.0), &pair(lent.container.0, first.0))?;
    Ok(Reply::Lent(lent))
}

fn full_bits(count: u16) -> ByteBuf {
    let mut bits = vec![0xff; usize::from(count).div_ceil(8)];
    if !count.is_multiple_of(8) {
        *bits.last_mut().expect("a loan has an id") = (1u8 << (count % 8)) - 1;
    }
    ByteBuf::from(bits)
}

/// Loans touched by a command: read once, written once.
#[derive(Default)]
pub(crate) struct Loans {
    by_first: BTreeMap<(ContainerId, LocalId), (LoanRow, bool)>,
}

impl Loans {
    /// Takes an id out of its loan. False if it stands in no loan of `session`.
    pub(crate) fn take_id(
        &mut self,
        rows: &impl Rows,
        session: SessionId,
        block: BlockId,
    ) -> Result<bool, StoreError> {
        let key = (block.container, block.local);
        let known = self
            .by_first
            .range(..=key)
            .next_back()
            .is_some_and(|(first, (row, _))| covers(*first, row, block));
        if !known {
            let from = pair(block.container.0, 0);
            let to = pair(block.container.0, block.local.0.saturating_add(1));
            let Some((row_key, value)) = rows.seek_back(LOAN, &from, Some(&to))? else { return Ok(false) };
            let row: LoanRow = decode(LOAN, &row_key, &value)?;
            let first = first_of(&row_key);
            if !covers(first, &row, block) {
                return Ok(false);
            }
            self.by_first.insert(first, (row, false));
        }
        let Some((first, (row, is_changed))) = self.by_first.range_mut(..=key).next_back() else {
            return Ok(false);
        };
        let distance = (block.local.0 - first.1.0) as usize;
        let mask = 1 << (distance % 8);
        if row.session != session || row.left[distance / 8] & mask == 0 {
            return Ok(false);
        }
        row.left[distance / 8] &= !mask;
        *is_changed = true;
        Ok(true)
    }

    /// Writes what changed; a loan without ids is dropped.
    pub(crate) fn store(self, txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
        for ((container, first), (row, is_changed)) in self.by_first {
            if !is_changed {
                continue;
            }
            if row.left.iter().all(|bits| *bits == 0) {
                drop_rows(txn, container, first, &row)?;
            } else {
                txn.put(LOAN, &pair(container.0, first.0), &row)?;
            }
        }
        Ok(())
    }
}

fn covers(first: (ContainerId, LocalId), row: &LoanRow, block: BlockId) -> bool {
    first.0 == block.container
        && block.local.0.checked_sub(first.1.0).is_some_and(|distance| distance < u64::from(row.count))
}

/// Container and first id of a loan's row key.
pub(crate) fn first_of(row_key: &[u8]) -> (ContainerId, LocalId) {
    let number = row_key.first_chunk().map_or(0, |bytes: &[u8; 16]| u128::from_be_bytes(*bytes));
    (ContainerId((number >> 64) as u64), LocalId(number as u64))
}

/// ReleaseBlocks: ids that are not on loan to the session are passed over, since their fate is settled.
pub(crate) fn release(txn: &mut Txn<'_, '_>, command: &ReleaseBlocks) -> Result<Reply, Stop> {
    if command.blocks.len() > usize::from(LOAN_IDS_MAX) {
        return Err(Rejection::Invalid(format!("more than {LOAN_IDS_MAX} blocks in one release")).into());
    }
    let session = command.context.session;
    let mut loans = Loans::default();
    let mut released = Vec::new();
    for block in &command.blocks {
        if loans.take_id(txn, session, *block)? {
            released.push(*block);
        }
    }
    loans.store(txn)?;
    if let Some(loan) = command.loan {
        end_by_id(txn, session, loan)?;
    }
    if released.len() <= FREED_AT_ONCE_MAX {
        for block in released {
            block::free_lent(txn, block)?;
        }
        return Ok(Reply::Done);
    }
    let mut by_container: BTreeMap<ContainerId, Vec<LocalId>> = BTreeMap::new();
    for block in released {
        by_container.entry(block.container).or_default().push(block.local);
    }
    for (container, locals) in by_container {
        work::queue(txn, Work::Free { container, runs: runs_of(locals) })?;
    }
    Ok(Reply::Done)
}

fn runs_of(mut locals: Vec<LocalId>) -> Vec<(LocalId, u16)> {
    locals.sort_unstable();
    let mut runs: Vec<(LocalId, u16)> = Vec::new();
    for local in locals {
        match runs.last_mut() {
            Some((first, count)) if first.0 + u64::from(*count) == local.0 => *count += 1,
            _ => runs.push((local, 1)),
        }
    }
    runs
}

fn end_by_id(txn: &mut Txn<'_, '_>, session: SessionId, loan: LoanId) -> Result<(), StoreError> {
    let Some(row_key) = txn.get(LOAN_SESSION, &pair(session.0, loan.0))? else { return Ok(()) };
    let (container, first) = first_of(&row_key);
    match txn.row::<LoanRow>(LOAN, &row_key)? {
        Some(row) if row.id == loan => end(txn, container, first, &row),
        _ => Ok(()),
    }
}

/// Ends a loan: its rows go, its ids are queued to be freed. Four rows.
pub(crate) fn end(
    txn: &mut Txn<'_, '_>,
    container: ContainerId,
    first: LocalId,
    row: &LoanRow,
) -> Result<(), StoreError> {
    drop_rows(txn, container, first, row)?;
    let locals = (0..row.count)
        .filter(|distance| row.left[usize::from(*distance) / 8] & (1 << (distance % 8)) != 0)
        .map(|distance| LocalId(first.0 + u64::from(distance)))
        .collect();
    work::queue(txn, Work::Free { container, runs: runs_of(locals) })
}

fn drop_rows(
    txn: &mut Txn<'_, '_>,
    container: ContainerId,
    first: LocalId,
    row: &LoanRow,
) -> Result<(), StoreError> {
    txn.delete(LOAN, &pair(container.0, first.0))?;
    txn.delete(LOAN_SESSION, &pair(row.session.0, row.id.0))?;
    Ok(())
}

/// Ends loans that are older than the leader's setting allows.
pub(crate) fn expire(txn: &mut Txn<'_, '_>, command: &ExpireLoans) -> Result<Reply, StoreError> {
    let mut ended = 0;
    for (container, first) in command.loans.iter().take(LOANS_ENDED_MAX) {
        if let Some(row) = txn.row::<LoanRow>(LOAN, &pair(container.0, first.0))?
            && row.taken_ms < command.taken_before_ms
        {
            end(txn, *container, *first, &row)?;
            ended += 1;
        }
    }
    Ok(Reply::Worked(ended))
}
