//! Leases: ranges of block ids that SCM granted. Their rows are the only source of loans.
//!
//! granted -> logged here -> lent from, in order -> ended (used up, or the container left OPEN) -> named to SCM as ended
//! -> dropped once SCM has logged the return.
//!
//! Not here: talking to SCM (see `leases` and `worker`).

use consensus::StoreError;
use wire::ids::LeaseId;
use wire::scm::Lease;

use crate::schema::{LEASE, LeaseRow};
use crate::state::{Reply, RowsExt, Txn};

/// Logs a grant. A repeat changes nothing.
pub(crate) fn add(txn: &mut Txn<'_, '_>, lease: Lease) -> Result<Reply, StoreError> {
    let row_key = lease.id.to_be_bytes();
    if txn.row::<LeaseRow>(LEASE, &row_key)?.is_none() {
        let row = LeaseRow {
            container: lease.container,
            generation: lease.generation,
            first: lease.first,
            count: lease.count,
            used: 0,
            pipeline: lease.pipeline,
            is_ended: lease.count == 0,
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
