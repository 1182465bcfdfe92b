//! What operators ask: OM at a glance, where a key is, which keys a container holds, Ozone's namespace, the group.
//!
//! All of it comes from OM's own tables. Counts stop at a limit, so that looking costs the same however much there is.
//!
//! Not here: who may ask (the listener), JSON (admin).

use std::ops::ControlFlow;

use client::service::CallError;
use consensus::{ReadView, Rows, StoreError, Table};
use wire::om::{LAYOUT_PAGE_ENTRIES_MAX, OmReply, OmRequest, Rejection};
use wire::operator::{KeyBlocks, OmOverview, PAGE_MAX, WhereKey};
use wire::status::{Failure, Status};

use crate::command::Command;
use crate::schema::{LOAN, SESSION, SessionRow, UPLOAD_ORDER, USAGE, UsageRow, VOLUME, WORK, decode};
use crate::server::Om;
use crate::state::usage::volume_usage_key;
use crate::state::{RowsExt, Stop, bucket, deletion, end_of, key, layout, namespace, volume};

/// Things are counted up to this number.
pub(crate) const COUNTED_MAX: usize = 10_000;

impl Om {
    /// Answers operators' calls. Those that change something are logged.
    pub(crate) async fn answer_operator(&self, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::GetOmOverview(_) => {
                let delete_grace_ms = self.delete_grace_ms();
                let read = move |view: &ReadView| overview(view, delete_grace_ms);
                self.read_many(false, read).await.map(OmReply::GetOmOverview)
            }
            Q::WhereKey(request) => {
                self.read_many(false, move |view| where_key(view, request)).await.map(OmReply::WhereKey)
            }
            Q::ListContainerKeys(mut request) => {
                request.max = request.max.min(PAGE_MAX);
                let read = move |view: &ReadView| Ok(namespace::container_keys(view, &request)?);
                self.read_many(false, read).await.map(OmReply::ListContainerKeys)
            }
            Q::ListVolumes(mut request) => {
                request.max = request.max.min(PAGE_MAX);
                let read = move |view: &ReadView| Ok(volume::list(view, &request)?);
                self.read_many(false, read).await.map(OmReply::ListVolumes)
            }
            Q::ListNamespaceBuckets(mut request) => {
                request.max = request.max.min(PAGE_MAX);
                let read = move |view: &ReadView| namespace::list(view, &request);
                self.read_many(false, read).await.map(OmReply::ListNamespaceBuckets)
            }
            Q::SetDefaultReplication(request) => {
                self.settle(request).await.map(OmReply::SetDefaultReplication)
            }
            Q::CreateVolume(request) => self.settle(request).await.map(OmReply::CreateVolume),
            Q::SetVolume(request) => self.settle(request).await.map(OmReply::SetVolume),
            Q::CreateNamespaceBucket(request) => {
                self.settle(request).await.map(OmReply::CreateNamespaceBucket)
            }
            Q::SetBucketQuota(request) => self.settle(request).await.map(OmReply::SetBucketQuota),
            Q::DeleteVolume(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::DeleteVolume(()))
            }
            Q::DeleteNamespaceBucket(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::DeleteNamespaceBucket(()))
            }
            other => {
                let message = format!("{} is not answered here", other.name());
                Err(Failure::new(Status::Internal, message).into())
            }
        }
    }

    async fn settle(&self, command: impl Into<Command>) -> Result<(), CallError> {
        self.propose(command).await.map(|_| ())
    }
}

fn where_key(view: &ReadView, request: WhereKey) -> Result<KeyBlocks, Stop> {
    let (found, _) = bucket::resolve(view, bucket::s3_volume(), request.bucket)?;
    let row = key::get(view, found.id, &request.key)?.ok_or(Rejection::NoSuchKey)?;
    let (info, data) = row.into_info();
    let page = layout::page(view, info.write_id, &data, request.from, LAYOUT_PAGE_ENTRIES_MAX)?;
    let (start, entries) = page.unwrap_or((request.from, Vec::new()));
    Ok(KeyBlocks { info, start, entries })
}

fn overview(view: &ReadView, delete_grace_ms: u64) -> Result<OmOverview, Stop> {
    let (deletion_backlog, deletion_oldest_ms) = deletion::backlog(view, COUNTED_MAX)?;
    let mut used = UsageRow::default();
    let prefix = volume_usage_key("");
    view.scan_readable(USAGE, &prefix, Some(&end_of(&prefix)), &mut |row_key, value| {
        used.add(&decode(USAGE, row_key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut sessions = 0;
    view.scan_readable(SESSION, &[], None, &mut |row_key, value| {
        sessions += u64::from(!decode::<SessionRow>(SESSION, row_key, value)?.is_ended);
        Ok(if sessions as usize >= COUNTED_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(OmOverview {
        volumes: count(view, VOLUME)?,
        buckets: bucket::count(view, COUNTED_MAX)? as u64,
        keys: used.keys.max(0) as u64,
        bytes: used.bytes.max(0) as u64,
        sessions,
        loans: count(view, LOAN)?,
        uploads: count(view, UPLOAD_ORDER)?,
        deletion_backlog: deletion_backlog as u64,
        deletion_oldest_ms,
        work_backlog: count(view, WORK)?,
        default_replication: view.current()?.defaults.replication,
        delete_grace_ms: Some(delete_grace_ms),
    })
}

/// Rows of a table that can be read, up to a limit.
pub(crate) fn count(rows: &impl Rows, table: Table) -> Result<u64, StoreError> {
    let mut count = 0;
    rows.scan_readable(table, &[], None, &mut |_, _| {
        count += 1;
        Ok(if count >= COUNTED_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(count as u64)
}
