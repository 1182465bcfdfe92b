//! The core: applies commands to rows. Pure, the same on every replica.
//!
//! ```text
//!   entry --> decode --> clock --> in_session (repeat? refused?) --> the noun's apply --> reply
//!                                        |                                |
//!                                        +-- request row: the reply ------+   a rejection takes its rows back
//! ```
//!
//! Invariants:
//! * A command that is rejected leaves no row but the remembered reply.
//! * A command writes at most `COMMAND_ROWS_MAX` rows; what is larger is queued (see `work`).
//! * Time never goes back: it is the latest of all commands applied.
//!
//! Not here: who proposes (see `server` and `worker`), views and their answers (`server`, over the same functions).

pub(crate) mod access;
pub(crate) mod block;
pub(crate) mod bucket;
pub(crate) mod checksum;
pub(crate) mod condition;
pub(crate) mod copy;
pub(crate) mod deletion;
pub(crate) mod key;
pub(crate) mod layout;
pub(crate) mod lease;
pub(crate) mod listing;
pub(crate) mod loan;
pub(crate) mod multipart;
pub(crate) mod namespace;
pub(crate) mod session;
pub(crate) mod usage;
pub(crate) mod volume;
pub(crate) mod work;

#[cfg(test)]
pub(crate) mod tests;

use std::ops::ControlFlow;

use consensus::{Entry, ReadView, Rows, StateMachine, StoreError, Table, WriteBatch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::block::Pipeline;
use wire::clock::UnixMs;
use wire::ids::{ContainerId, Generation, LoanId, LocalId, SessionId, VersionId, WriteId};
use wire::limits::COMMAND_ROWS_MAX;
use wire::om::{BucketInfo, KeyCommitted, KeysDeleted, Rejection, UploadCompleted};

use crate::command::Command;
use crate::schema::{
    self, DefaultsRow, HandoverRow, META, META_ACCESS_VERSION, META_CLOCK, META_DEFAULTS, TABLES, decode,
    encode,
};
use crate::state::usage::UsageDeltas;

/// Ids lent by one command. The shell adds the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lent {
    pub(crate) id: LoanId,
    pub(crate) container: ContainerId,
    pub(crate) generation: Generation,
    pub(crate) first: LocalId,
    pub(crate) count: u16,
    pub(crate) pipeline: Pipeline,
}

/// What apply answers. Those of commands with a context are kept in `request` rows: a format, append only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "made once and consumed at once")]
pub(crate) enum Reply {
    /// Done, with nothing to say.
    Done,
    /// The request does not fit the state.
    Rejected(Rejection),
    /// See `OpenSession`.
    Session(SessionId),
    /// See `TakeLoan`.
    Lent(Lent),
    /// The lease named by `TakeLoan` has no ids left: choose another. Not remembered.
    LeaseExhausted,
    /// See `CreateBucket`.
    Bucket(BucketInfo),
    /// See `CommitKey`, `CopyKey`, `CommitPart`.
    Committed(KeyCommitted),
    /// See `DeleteKeys`.
    Deleted(KeysDeleted),
    /// See `CreateUpload`.
    Upload(WriteId),
    /// See `CompleteUpload`.
    Completed(UploadCompleted),
    /// See `BeginHandover`: None if nothing is due.
    Handover(Option<HandoverRow>),
    /// How many of what was asked for are done; more may be left.
    Worked(u32),
}

/// Why a command or call went no further.
#[derive(Debug)]
pub(crate) enum Stop {
    /// An answer: the request does not fit the state.
    Reject(Rejection),
    /// No answer: rows could not be read.
    Fault(StoreError),
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Reject(rejection)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Fault(error)
    }
}

/// Damaged rows that one scan passes over at most.
pub(crate) const DAMAGED_PASSED_MAX: usize = 240;

/// Rows that could be read.
pub(crate) struct Readable<T> {
    /// (row key, decoded row).
    pub(crate) rows: Vec<(Vec<u8>, T)>,
    /// Keys of rows in between that could not.
    pub(crate) damaged: Vec<Vec<u8>>,
    /// Where to go on; None at the end of the range.
    pub(crate) next: Option<Vec<u8>>,
}

/// What [`RowsExt::scan_readable`] calls for each row: (row key, value).
pub(crate) type TryVisit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'a;

/// The row key right behind another.
pub(crate) fn after(row_key: &[u8]) -> Vec<u8> {
    [row_key, &[0]].concat()
}

/// What every call is checked against, and what buckets inherit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Current {
    /// Counts changes of users and access keys.
    pub(crate) access_version: u64,
    /// The cluster's defaults.
    pub(crate) defaults: DefaultsRow,
}

/// Reading decoded rows.
pub(crate) trait RowsExt: Rows {
    /// The decoded row.
    fn row<T: DeserializeOwned>(&self, table: Table, row_key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.get(table, row_key)? {
            Some(value) => decode(table, row_key, &value).map(Some),
            None => Ok(None),
        }
    }

    /// The rows of `[from, to)`, at most `count_max`, as (row key, decoded row).
    fn rows<T: DeserializeOwned>(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        count_max: usize,
    ) -> Result<Vec<(Vec<u8>, T)>, StoreError> {
        let mut rows = Vec::new();
        let mut fault = None;
        if count_max == 0 {
            return Ok(rows);
        }
        self.scan(table, from, to, &mut |row_key, value| {
            match decode(table, row_key, value) {
                Ok(row) => rows.push((row_key.to_vec(), row)),
                Err(error) => {
                    fault = Some(error);
                    return ControlFlow::Break(());
                }
            }
            if rows.len() == count_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        fault.map_or(Ok(rows), Err)
    }

    /// Calls `visit` for the rows of `[from, to)` that can be read, until it breaks; answers with the keys of those that
    /// cannot, at most [`DAMAGED_PASSED_MAX`]. For the leader's workers under a sole voter, never in apply.
    fn scan_readable(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut TryVisit<'_>,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut damaged: Vec<Vec<u8>> = Vec::new();
        let mut from = from.to_vec();
        loop {
            let mut fault = None;
            let scanned = self.scan(table, &from, to, &mut |row_key, value| match visit(row_key, value) {
                Ok(step) => step,
                Err(error) => {
                    fault = Some(error);
                    ControlFlow::Break(())
                }
            });
            match scanned.and(fault.map_or(Ok(()), Err)) {
                Ok(()) => return Ok(damaged),
                Err(StoreError::Corrupt { table: at, row_key })
                    if at == table.name() && damaged.len() < DAMAGED_PASSED_MAX =>
                {
                    from = after(&row_key);
                    damaged.push(row_key);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`RowsExt::rows`], passing over rows that cannot be read.
    fn readable_rows<T: DeserializeOwned>(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        count_max: usize,
    ) -> Result<Readable<T>, StoreError> {
        let mut rows: Vec<(Vec<u8>, T)> = Vec::new();
        let damaged = self.scan_readable(table, from, to, &mut |row_key, value| {
            rows.push((row_key.to_vec(), decode(table, row_key, value)?));
            Ok(if rows.len() >= count_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let next = rows.last().filter(|_| rows.len() >= count_max).map(|(row_key, _)| after(row_key));
        Ok(Readable { rows, damaged, next })
    }

    /// What every call is checked against.
    fn current(&self) -> Result<Current, StoreError> {
        Ok(Current {
            access_version: self.row(META, META_ACCESS_VERSION)?.unwrap_or(0),
            defaults: self.row(META, META_DEFAULTS)?.unwrap_or_default(),
        })
    }
}

impl<R: Rows + ?Sized> RowsExt for R {}

/// One command under way.
pub(crate) struct Txn<'a, 'b> {
    pub(crate) batch: &'a mut WriteBatch<'b>,
    /// Its Raft index.
    pub(crate) index: u64,
    /// Its time.
    pub(crate) now_ms: UnixMs,
    /// What calls are checked against.
    pub(crate) current: Current,
    /// Changes of the counters by earlier commands that have not reached their rows.
    pub(crate) pending: &'a UsageDeltas,
    /// Changes of the counters, kept only if the command succeeds.
    pub(crate) usage: UsageDeltas,
    ordinal: u32,
    rows_written: usize,
}

impl Txn<'_, '_> {
    pub(crate) fn put<T: Serialize>(
        &mut self,
        table: Table,
        row_key: &[u8],
        row: &T,
    ) -> Result<(), StoreError> {
        self.put_bytes(table, row_key, &encode(row))
    }

    pub(crate) fn put_bytes(&mut self, table: Table, row_key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.rows_written += 1;
        self.batch.put(table, row_key, value)
    }

    pub(crate) fn delete(&mut self, table: Table, row_key: &[u8]) -> Result<bool, StoreError> {
        self.rows_written += 1;
        self.batch.delete(table, row_key)
    }

    /// Rows written so far.
    pub(crate) fn rows_written(&self) -> usize {
        self.rows_written
    }

    /// A number unique within this command, for row keys of queues.
    pub(crate) fn next_ordinal(&mut self) -> u32 {
        self.ordinal += 1;
        self.ordinal - 1
    }

    /// The version that this command makes.
    pub(crate) fn version(&self) -> VersionId {
        VersionId { index: self.index, ordinal: 0 }
    }
}

impl Rows for Txn<'_, '_> {
    fn get(&self, table: Table, row_key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.batch.get(table, row_key)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut consensus::Visit<'_>,
    ) -> Result<(), StoreError> {
        self.batch.scan(table, from, to, visit)
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut consensus::Visit<'_>,
    ) -> Result<(), StoreError> {
        self.batch.scan_back(table, from, to, visit)
    }
}

/// OM as consensus replicates it. Its fields are caches of rows, written by `finish_batch` or beside their row.
#[derive(Default)]
pub(crate) struct OmState {
    clock_ms: UnixMs,
    clock_is_dirty: bool,
    current: Current,
    usage: UsageDeltas,
}

impl StateMachine for OmState {
    type Reply = Reply;
    const TABLES: &'static [Table] = TABLES;

    fn apply(&mut self, batch: &mut WriteBatch<'_>, entry: Entry<'_>) -> Result<Reply, StoreError> {
        let (now_ms, command) = Command::decode(entry.command).unwrap_or_else(|| {
            panic!("command {} of the log was written by a newer version of this program", entry.index)
        });
        if now_ms > self.clock_ms {
            self.clock_ms = now_ms;
            self.clock_is_dirty = true;
        }
        let mut txn = Txn {
            batch,
            index: entry.index,
            now_ms: self.clock_ms,
            current: self.current,
            pending: &self.usage,
            usage: UsageDeltas::default(),
            ordinal: 0,
            rows_written: 0,
        };
        let reply = run(&mut txn, command)?;
        debug_assert!(txn.rows_written() <= COMMAND_ROWS_MAX, "{} rows by one command", txn.rows_written());
        let Txn { current, usage, .. } = txn;
        self.current = current;
        self.usage.merge(usage);
        Ok(reply)
    }

    fn finish_batch(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        if self.clock_is_dirty {
            usage::unless_damaged(batch.put(META, META_CLOCK, &encode(&self.clock_ms)))?;
            self.clock_is_dirty = false;
        }
        self.usage.write(batch)
    }

    fn recovered(&mut self, view: &ReadView) -> Result<(), StoreError> {
        *self = Self {
            clock_ms: view.row(META, META_CLOCK)?.unwrap_or(0),
            clock_is_dirty: false,
            current: view.current()?,
            // What was not written was taken back with its commands.
            usage: UsageDeltas::default(),
        };
        Ok(())
    }
}

fn run(txn: &mut Txn<'_, '_>, command: Command) -> Result<Reply, StoreError> {
    use session::{in_session, in_session_with_blocks};
    match command {
        Command::OpenSession(body) => session::open(txn, body),
        Command::EndSession(body) => session::end(txn, body.session),
        Command::AddLease(body) => lease::add(txn, body.lease),
        Command::EndLeases(body) => lease::end(txn, &body.leases),
        Command::DropLeases(body) => lease::drop_returned(txn, &body.leases),
        Command::TakeLoan(body) => in_session(txn, body.context, |txn| loan::take(txn, &body)),
        Command::ReleaseBlocks(body) => in_session(txn, body.context, |txn| loan::release(txn, &body)),
        Command::ExpireLoans(body) => loan::expire(txn, &body),
        Command::WorkOff(body) => work::work_off(txn, &body.row_key),
        Command::BeginHandover(body) => deletion::begin_handover(txn, &body),
        Command::FinishHandover(body) => deletion::finish_handover(txn, &body),
        Command::ExpireUploads(body) => multipart::expire_completed(txn, &body),
        Command::PutUser(body) => access::put_user(txn, body),
        Command::RetainAccessKeys(body) => access::retain(txn, &body.access_keys),
        Command::CreateBucket(body) => in_session(txn, body.context, |txn| bucket::create(txn, body)),
        Command::DeleteBucket(body) => in_session(txn, body.context, |txn| bucket::delete(txn, &body)),
        Command::CommitKey(body) => {
            let write_id = body.context.write_id();
            let first = body.blocks.first().map(|entry| (write_id, entry.block));
            in_session_with_blocks(txn, body.context, first, |txn| key::commit(txn, body))
        }
        Command::DeleteKeys(body) => in_session(txn, body.context, |txn| key::delete(txn, &body)),
        Command::CopyKey(body) => in_session(txn, body.context, |txn| copy::copy(txn, body)),
        Command::CreateUpload(body) => in_session(txn, body.context, |txn| multipart::create(txn, body)),
        Command::CommitPart(body) => {
            let first = body.blocks.first().map(|entry| (body.upload, entry.block));
            in_session_with_blocks(txn, body.context, first, |txn| multipart::commit_part(txn, body))
        }
        Command::CompleteUpload(body) => in_session(txn, body.context, |txn| multipart::complete(txn, &body)),
        Command::AbortUpload(body) => in_session(txn, body.context, |txn| multipart::abort(txn, &body)),
        Command::RetireContainer(body) => lease::retire(txn, body.container),
        Command::InitDefaults(body) => bucket::init_defaults(txn, body.replication),
        Command::SetDefaultReplication(body) => settled(txn, |txn| bucket::set_replication(txn, body)),
        Command::CreateVolume(body) => settled(txn, |txn| volume::create(txn, body)),
        Command::SetVolume(body) => settled(txn, |txn| volume::set(txn, body)),
        Command::DeleteVolume(body) => settled(txn, |txn| volume::delete(txn, &body)),
        Command::CreateNamespaceBucket(body) => settled(txn, |txn| namespace::create(txn, body)),
        Command::SetBucketQuota(body) => settled(txn, |txn| namespace::set_quota(txn, body)),
        Command::DeleteNamespaceBucket(body) => settled(txn, |txn| namespace::delete(txn, &body)),
    }
}

/// Runs a command without a session: what it wrote is taken back if it is rejected.
pub(crate) fn settled(
    txn: &mut Txn<'_, '_>,
    run: impl FnOnce(&mut Txn<'_, '_>) -> Result<Reply, Stop>,
) -> Result<Reply, StoreError> {
    let current = txn.current;
    match run(txn) {
        Ok(reply) => Ok(reply),
        Err(Stop::Fault(error)) => Err(error),
        Err(Stop::Reject(rejection)) => {
            txn.batch.rollback_entry()?;
            txn.usage = UsageDeltas::default();
            txn.current = current;
            Ok(Reply::Rejected(rejection))
        }
    }
}

/// Row key bound behind everything that begins with `prefix`.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    schema::after_prefix(prefix).unwrap_or_else(|| vec![0xff; prefix.len() + 1])
}
