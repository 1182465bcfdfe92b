//! Leases: ranges of block ids that SCM granted. Their rows are the only source of loans.
//!
//! granted -> logged here -> lent from, in order -> ended (used up, or the container left OPEN) -> named to SCM as ended
//! -> dropped once SCM has logged the return.
//!
//! A container that SCM has sealed is *retired* here once nothing names it: a mark stays, so that a late grant of it is
//! never lent from, and SCM may drop its replicas. No report of a datanode is ever a reason.
//!
//! Not here: talking to SCM (see `leases` and `worker`).

use std::ops::ControlFlow;

use consensus::{Rows, StoreError};
use wire::ids::{ContainerId, LeaseId};
use wire::scm::Lease;

use crate::schema::{BLOCK, LEASE, LOAN, LeaseRow, RETIRED, RetiredRow, decode};
use crate::state::{Reply, RowsExt, Txn, end_of};

/// Logs a grant. A repeat changes nothing.
pub(crate) fn add(txn: &mut Txn<'_, '_>, lease: Lease) -> Result<Reply, StoreError> {
    let row_key = lease.id.to_be_bytes();
    if txn.row::<LeaseRow>(LEASE, &row_key)?.is_none() {
        // Of a retired container nothing is lent: the lease is named to SCM as ended.
        let is_ended = lease.count == 0 || is_retired(txn, lease.container)?;
        let row = LeaseRow {
            container: lease.container,
            generation: lease.generation,
            first: lease.first,
            count: lease.count,
            used: 0,
            pipeline: lease.pipeline,
            is_ended,
        };
        txn.put(LEASE, &row_key, &row)?;
    }
    Ok(Reply::Done)
}

/// Ends leases: no more loans from them.
pub(crate) fn end(txn: &mut Txn<'_, '_>, leases: &[LeaseId]) -> Result<Reply, StoreError> {
    for lease in leases {
        let row_key = lease.to_be_bytes();
        if let Some(row) = txn.row::<LeaseRow>(LEASE, &row_key)?
            && !row.is_ended
        {
            txn.put(LEASE, &row_key, &LeaseRow { is_ended: true, ..row })?;
        }
    }
    Ok(Reply::Done)
}

/// Drops ended leases whose return SCM has logged.
pub(crate) fn drop_returned(txn: &mut Txn<'_, '_>, leases: &[LeaseId]) -> Result<Reply, StoreError> {
    for lease in leases {
        let row_key = lease.to_be_bytes();
        if txn.row::<LeaseRow>(LEASE, &row_key)?.is_some_and(|row| row.is_ended) {
            txn.delete(LEASE, &row_key)?;
        }
    }
    Ok(Reply::Done)
}

/// Whether a container was declared empty.
pub(crate) fn is_retired(rows: &impl Rows, container: ContainerId) -> Result<bool, StoreError> {
    rows.contains(RETIRED, &container.to_be_bytes())
}

/// Whether nothing names a container: no block, owned or freed, no loan, no lease, not even an ended one.
pub(crate) fn is_retirable(rows: &impl Rows, container: ContainerId) -> Result<bool, StoreError> {
    let prefix = container.to_be_bytes();
    let end = end_of(&prefix);
    if rows.seek(BLOCK, &prefix, Some(&end))?.is_some() || rows.seek(LOAN, &prefix, Some(&end))?.is_some() {
        return Ok(false);
    }
    let mut has_lease = Ok(false);
    // A scan of few rows: leases are some per replication type.
    rows.scan(LEASE, &[], None, &mut |row_key, value| {
        has_lease = decode::<LeaseRow>(LEASE, row_key, value).map(|row| row.container == container);
        if matches!(has_lease, Ok(false)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(!has_lease?)
}

/// Declares a container empty, if it is. Answers whether it is declared so.
pub(crate) fn retire(txn: &mut Txn<'_, '_>, container: ContainerId) -> Result<Reply, StoreError> {
    if is_retired(txn, container)? {
        return Ok(Reply::Worked(1));
    }
    if !is_retirable(txn, container)? {
        return Ok(Reply::Worked(0));
    }
    let retired_ms = txn.now_ms;
    txn.put(RETIRED, &container.to_be_bytes(), &RetiredRow { retired_ms })?;
    Ok(Reply::Worked(1))
}
