//! Makes a stored body a key: the last step of PutObject and of a copy by bytes.
//!
//! Invariants:
//! * A client that goes away during the commit does not stop it: it runs in a task of its own.
//! * Blocks of a body that was not committed are released.
//!
//! Not here: taking the body in (see `object_body`), parts of uploads (see `upload_part`), the decision (meta).

use std::sync::Arc;

use auth::Action;
use client::service::CallError;
use platform::task;
use tokio::time::Instant;
use wire::block::Replication;
use wire::checksum::{Checksum, ChecksumKind, Etag};
use wire::clock::UnixMs;
use wire::om::{CommitKey, KeyAttributes, StorageClass, WriteCondition};

use crate::access::Bucket;
use crate::checksum::answered;
use crate::error::S3Error;
use crate::object_body::StoredBody;
use crate::request::RequestContext;

/// What a new key is beside its bytes.
pub(crate) struct NewKey {
    pub(crate) condition: WriteCondition,
    pub(crate) storage_class: StorageClass,
    pub(crate) replication: Replication,
    pub(crate) attributes: KeyAttributes,
}

/// A key that is visible.
pub(crate) struct Committed {
    pub(crate) etag: Etag,
    pub(crate) modified_ms: UnixMs,
    /// The one to answer with.
    pub(crate) checksum: Option<Checksum>,
}

/// Commits a body as the request's key, whose owner is the caller.
pub(crate) async fn commit_object(
    context: &Arc<RequestContext>,
    body: StoredBody,
    new: NewKey,
) -> Result<Committed, S3Error> {
    let owner = context.owner()?.id;
    let etag = Etag::whole(body.md5);
    let context = context.clone();
    let commit = task::spawn(async move {
        wire::failpoint::hit("gateway_before_commit_key");
        let (key, session) = (context.key()?, &context.gateway.session);
        let (context_ref, body_ref, new, owner) = (&context, &body, &new, &owner);
        let work = |bucket: Bucket| async move {
            let make = |write| CommitKey {
                context: write,
                bucket: bucket.reference.clone(),
                key: key.clone(),
                condition: new.condition,
                owner: owner.clone(),
                size: body_ref.size,
                etag,
                storage_class: new.storage_class,
                replication: new.replication,
                attributes: new.attributes.clone(),
                checksum: body_ref.algorithm.map(|algorithm| (algorithm, ChecksumKind::FullObject)),
                checksums: body_ref.checksums.clone(),
                blocks: body_ref.blocks.entries().to_vec(),
            };
            let asked = Instant::now();
            let committed = session.command(make).await?;
            context_ref.gateway.access.confirm_bucket(&bucket, asked);
            Ok::<_, CallError>(committed)
        };
        // On an error the blocks are dropped, and so released. If OM did commit them after all, the release finds
        // them no longer on loan and changes nothing.
        let committed = context.with_bucket(Action::PutObject, work).await?;
        context.witness(committed.version.index);
        wire::failpoint::hit("gateway_after_commit_key");
        let StoredBody { blocks, checksums, algorithm, .. } = body;
        blocks.committed();
        let checksum = answered(checksums, algorithm);
        Ok(Committed { etag, modified_ms: committed.modified_ms, checksum })
    });
    finished(commit).await
}

/// What a task came to. It is lost only when the runtime shuts down.
pub(crate) async fn finished<T>(task: tokio::task::JoinHandle<Result<T, S3Error>>) -> Result<T, S3Error> {
    task.await.map_err(|error| {
        tracing::error!(%error, "a commit ended without an outcome");
        S3Error::unavailable("The server is shutting down. The outcome of the request is not known.")
    })?
}
