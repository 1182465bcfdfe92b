//! What gateways ask of the namespace, each request to its answer.
//!
//! Not here: operators' requests (see `operators`), loans (see `lending`), who may be asked at all (see `server`).

use client::service::CallError;
use consensus::ReadView;
use wire::block::{BlockEntry, BlockToken};
use wire::ids::BucketId;
use wire::om::{
    BucketRef, CheckQuota, CommitKey, GetLayout, KeyFound, KeyPage, LAYOUT_PAGE_ENTRIES_MAX, LayoutPage,
    LookupKey, OmReply, OmRequest, Rejection, RenewTokens,
};
use wire::status::{Failure, Status};

use crate::command;
use crate::leases::LeaderMemory;
use crate::schema::UsageRow;
use crate::server::{Om, unexpected};
use crate::state::{Reply, RowsExt, Stop, block, bucket, condition, key, layout, listing, multipart, usage};

/// A listing of more rows than this runs on a blocking thread: about 0.2 ms of work.
const INLINE_ROWS_MAX: u32 = 100;

impl Om {
    async fn commit_key(&self, request: CommitKey) -> Result<Reply, CallError> {
        if wire::planted::is_on("condition_checked_early") {
            let view = self.view().await?;
            let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
            let old =
                key::get(view.as_ref(), bucket, &request.key).map_err(|error| self.store_error(&error))?;
            condition::decide(request.condition, old.map(|old| old.head.etag))?;
        }
        self.propose(request).await
    }

    async fn lookup_key(&self, memory: &LeaderMemory, request: LookupKey) -> Result<KeyFound, CallError> {
        let view = self.view().await?;
        let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
        let row = key::get(view.as_ref(), bucket, &request.key).map_err(|error| self.store_error(&error))?;
        let (info, data) = row.ok_or(Rejection::NoSuchKey)?.into_info();
        let page = match request.layout_from {
            None => None,
            Some(from) => layout::page(view.as_ref(), info.write_id, &data, from, LAYOUT_PAGE_ENTRIES_MAX)
                .map_err(|error| self.store_error(&error))?,
        };
        let read_index = view.applied_index().map_err(|error| self.store_error(&error))?;
        drop(view);
        let layout = match page {
            None => None,
            Some((start, entries)) => Some(layout_page(memory, start, entries).await?),
        };
        Ok(KeyFound { info, layout, read_index })
    }

    async fn get_layout(&self, memory: &LeaderMemory, request: GetLayout) -> Result<LayoutPage, CallError> {
        let view = self.view().await?;
        check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
        let page =
            layout::layout_page(view.as_ref(), request.write_id, request.from, LAYOUT_PAGE_ENTRIES_MAX);
        drop(view);
        let (start, entries) = page.map_err(|error| self.store_error(&error))?.ok_or(Rejection::NoSuchKey)?;
        layout_page(memory, start, entries).await
    }

    async fn renew_tokens(
        &self,
        memory: &LeaderMemory,
        request: &RenewTokens,
    ) -> Result<Vec<BlockToken>, CallError> {
        let view = self.view().await?;
        for (id, length) in &request.blocks {
            // One that was freed must not be read much longer: it goes to the datanodes after a token's life.
            if !block::lives(view.as_ref(), *id, *length).map_err(|error| self.store_error(&error))? {
                return Err(Failure::new(Status::NotFound, format!("block {id} lives no more")).into());
            }
        }
        drop(view);
        memory.wait_token_keys().await?;
        Ok(memory.read_tokens(request.blocks.iter().copied())?)
    }

    pub(crate) async fn answer(
        &self,
        memory: &LeaderMemory,
        request: OmRequest,
    ) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::OpenSession(request) => {
                match self.propose(command::OpenSession { nonce: request.nonce }).await? {
                    Reply::Session(session) => {
                        memory.touch(session);
                        Ok(OmReply::OpenSession(session))
                    }
                    _ => Err(unexpected()),
                }
            }
            Q::RenewSession(request) => self.renew(memory, request).await.map(OmReply::RenewSession),
            Q::EndSession(request) => {
                self.propose_freeing(command::EndSession { session: request.session }).await?;
                Ok(OmReply::EndSession(()))
            }
            Q::TakeLoan(request) => self.take_loan(memory, request).await.map(OmReply::TakeLoan),
            Q::ReleaseBlocks(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::ReleaseBlocks(()))
            }
            Q::DegradeBlocks(request) => {
                self.degrade_blocks(memory, request).await.map(OmReply::DegradeBlocks)
            }
            Q::RefreshLocations(request) => {
                // A view, so that a leader that was deposed does not answer from what it once knew.
                drop(self.view().await?);
                Ok(OmReply::RefreshLocations(memory.ask_locations(&request.containers).await?))
            }
            Q::RenewTokens(request) => self.renew_tokens(memory, &request).await.map(OmReply::RenewTokens),
            Q::PutUser(request) => self.put_user(request).await.map(OmReply::PutUser),
            Q::RetainAccessKeys(request) => {
                self.retain_access_keys(request).await.map(OmReply::RetainAccessKeys)
            }
            Q::GetSigningKey(request) => self.signing_key(request).await.map(OmReply::GetSigningKey),
            Q::SignV2(request) => self.sign_v2(request).await.map(OmReply::SignV2),
            request => self.answer_namespace(memory, request).await,
        }
    }

    async fn answer_namespace(
        &self,
        memory: &LeaderMemory,
        request: OmRequest,
    ) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::CreateBucket(request) => match self.propose(request).await? {
                Reply::Bucket(bucket) => Ok(OmReply::CreateBucket(bucket)),
                _ => Err(unexpected()),
            },
            Q::GetBucket(request) => {
                let view = self.view().await?;
                let current = view.current().map_err(|error| self.store_error(&error))?;
                let bucket = bucket::get(view.as_ref(), current.defaults, &request.name);
                Ok(OmReply::GetBucket(bucket.map_err(|stop| self.stop_error(stop))?))
            }
            Q::DeleteBucket(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::DeleteBucket(()))
            }
            Q::ListBuckets(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| Ok(bucket::list(view, view.current()?.defaults, &request)?);
                self.read_many(is_short, read).await.map(OmReply::ListBuckets)
            }
            Q::CommitKey(request) => match self.commit_key(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CommitKey(committed)),
                _ => Err(unexpected()),
            },
            Q::LookupKey(request) => self.lookup_key(memory, request).await.map(OmReply::LookupKey),
            Q::GetLayout(request) => self.get_layout(memory, request).await.map(OmReply::GetLayout),
            Q::CheckQuota(request) => {
                let view = self.view().await?;
                check_quota(&view, &request).map_err(|stop| self.stop_error(stop))?;
                Ok(OmReply::CheckQuota(()))
            }
            Q::DeleteKeys(request) => match self.propose_freeing(request).await? {
                Reply::Deleted(deleted) => Ok(OmReply::DeleteKeys(deleted)),
                _ => Err(unexpected()),
            },
            Q::CopyKey(request) => match self.propose(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CopyKey(committed)),
                _ => Err(unexpected()),
            },
            Q::ListKeys(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    let page = listing::list_keys(view, bucket, &request)?;
                    Ok(KeyPage { read_index: view.applied_index()?, ..page })
                };
                self.read_many(is_short, read).await.map(OmReply::ListKeys)
            }
            request => self.answer_multipart(request).await,
        }
    }

    async fn answer_multipart(&self, request: OmRequest) -> Result<OmReply, CallError> {
        use OmRequest as Q;
        match request {
            Q::CreateUpload(request) => match self.propose(request).await? {
                Reply::Upload(upload) => Ok(OmReply::CreateUpload(upload)),
                _ => Err(unexpected()),
            },
            Q::GetUpload(request) => {
                let view = self.view().await?;
                let bucket = check(&view, &request.bucket).map_err(|stop| self.stop_error(stop))?;
                let row = multipart::get(view.as_ref(), bucket, &request.key, request.upload);
                Ok(OmReply::GetUpload(row.map_err(|stop| self.stop_error(stop))?.info(request.upload)))
            }
            Q::CommitPart(request) => match self.propose(request).await? {
                Reply::Committed(committed) => Ok(OmReply::CommitPart(committed)),
                _ => Err(unexpected()),
            },
            Q::CompleteUpload(request) => match self.propose(request).await? {
                Reply::Completed(completed) => Ok(OmReply::CompleteUpload(completed)),
                _ => Err(unexpected()),
            },
            Q::AbortUpload(request) => {
                self.propose_freeing(request).await?;
                Ok(OmReply::AbortUpload(()))
            }
            Q::ListParts(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    multipart::list_parts(view, bucket, &request)
                };
                self.read_many(is_short, read).await.map(OmReply::ListParts)
            }
            Q::ListUploads(request) => {
                let is_short = request.max <= INLINE_ROWS_MAX;
                let read = move |view: &ReadView| {
                    let bucket = check(view, &request.bucket)?;
                    Ok(listing::list_uploads(view, bucket, &request)?)
                };
                self.read_many(is_short, read).await.map(OmReply::ListUploads)
            }
            Q::MembershipChange(change) => {
                self.group().change_membership(change).await.map_err(Failure::from)?;
                Ok(OmReply::MembershipChange(()))
            }
            Q::TransferLeadership(request) => {
                self.group().hand_over(request.raft_id).await.map_err(Failure::from)?;
                Ok(OmReply::TransferLeadership(()))
            }
            request => self.answer_operator(request).await,
        }
    }
}

async fn layout_page(
    memory: &LeaderMemory,
    start: u64,
    entries: Vec<BlockEntry>,
) -> Result<LayoutPage, CallError> {
    memory.wait_token_keys().await?;
    let tokens = memory.read_tokens(entries.iter().map(|entry| (entry.block, entry.block_length)))?;
    let locations = memory.locate(&entries).await?;
    Ok(LayoutPage { start, entries, tokens, locations })
}

/// As a commit would decide it, by what stands in rows.
fn check_quota(view: &ReadView, request: &CheckQuota) -> Result<(), Stop> {
    let bucket = bucket::check(view, view.current()?, &request.bucket)?;
    let old = match &request.key {
        Some(name) => key::get(view, bucket.id, name)?,
        None => None,
    };
    let (old_keys, old_bytes) = old.map_or((0, 0), |old| (1, old.head.size as i64));
    let keys = i64::from(request.key.is_some()) - old_keys;
    let delta = UsageRow { keys, bytes: request.bytes as i64 - old_bytes };
    usage::check_bounds(view, &bucket, delta, |row_key| usage::read(view, row_key))
}

fn check(view: &ReadView, bucket: &BucketRef) -> Result<BucketId, Stop> {
    Ok(bucket::check(view, view.current()?, bucket)?.id)
}
