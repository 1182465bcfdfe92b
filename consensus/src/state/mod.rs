//! The state file: rows of the state machine and how far they have come, in one redb database.
//!
//! Each apply batch is one transaction that holds the rows, the applied index with its term, the state hash and the
//! membership: they can never be of different age. These transactions are not durable, the log is. From time to time
//! an empty *checkpoint* transaction makes all of them durable; a start replays the log from there.
//!
//! ```text
//!  table "consensus"   "identity" -> [format, cluster id, raft id, [table names]]
//!                      "progress" -> [applied index, applied term, [hash high, hash low], voters, learners,
//!                                     outgoing voters, next learners, auto leave, installed, [member]]
//!  every other table   the state machine's
//! ```
//!
//! Both rows are MessagePack arrays behind a row checksum like any other; `docs/formats/state.md` has the bytes.
//!
//! Invariants:
//! * Every durable transaction asks for quick repair: one that does not makes the next start after a crash read the
//!   whole file.
//! * After an error of redb nothing more is written: the callers abort.
//!
//! Not here: when to checkpoint (see `apply`), rows (see `store`).

mod backend;
pub(crate) mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::RwLock;
use platform::disk::{DiskIo, OpenMode};
use raft::eraftpb::ConfState;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};
use wire::group::Member;

use crate::error::{OpenError, StoreError};
use crate::log::{Identity, open_as_stored};
use crate::space::{Reserve, is_full};
use crate::store::{ReadView, Table, seal_row, unseal_row};

use backend::StateBackend;

/// The version of the state file.
pub(crate) const STATE_FORMAT: u32 = 1;

/// The state file.
pub(crate) const STATE: &str = "state.redb";

/// A state file that a snapshot is being written to.
pub(crate) const STATE_NEW: &str = "state.new";

/// redb's header: it names the roots of the newest durable commit. A commit writes it anew only once a sync of all that it
/// names has succeeded (two phases, as quick repair asks for), so of all the file only it can be something that a failed
/// sync left in memory. The rest may stay there: to read gigabytes again would be most of a start.
const HEADER_BYTES: u64 = 4096;

/// The table of this module. A state machine must not have one of this name.
const CONSENSUS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("consensus");
const CONSENSUS_NAME: &str = "consensus";
const IDENTITY: &[u8] = b"identity";
const PROGRESS: &[u8] = b"progress";

/// How far the rows have come.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Progress {
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) state_hash: u128,
    pub(crate) conf_state: ConfState,
    /// Raft ids that were members once and never will be again, oldest first.
    pub(crate) former: Vec<u64>,
    /// The rows came from a snapshot and the log may not have caught up with them.
    pub(crate) installed: bool,
    /// Who the voters and learners are, by raft id.
    pub(crate) members: Vec<Member>,
}

/// [`Progress`] as stored. Append fields with `#[serde(default)]`, never reorder.
#[derive(Serialize, Deserialize)]
struct ProgressRow {
    applied_index: u64,
    applied_term: u64,
    state_hash: (u64, u64),
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
    learners_next: Vec<u64>,
    auto_leave: bool,
    installed: bool,
    #[serde(default)]
    members: Vec<Member>,
    #[serde(default)]
    former: Vec<u64>,
}

/// Whose rows these are. Append fields with `#[serde(default)]`, never reorder.
#[derive(Serialize, Deserialize)]
struct IdentityRow {
    format: u32,
    cluster_id: uuid::Uuid,
    raft_id: u64,
    tables: Vec<String>,
}

/// An open state file.
pub(crate) struct StateFile {
    db: Arc<StateDb>,
    tables: &'static [Table],
}

/// The database below a state file and its views. It closes when it is told to, or when the last of them is gone: so
/// views outlive the file's replacement by a snapshot, and do not keep it open once the group has stopped.
pub(crate) struct StateDb {
    db: RwLock<Option<Database>>,
    length: Arc<AtomicU64>,
}

impl StateDb {
    /// Ends it for everyone.
    pub(crate) fn close(&self) {
        drop(self.db.write().take());
    }

    /// The file's length in bytes as it changes.
    pub(crate) fn length(&self) -> &Arc<AtomicU64> {
        &self.length
    }

    fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        let db = self.db.read();
        Ok(db.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_read()?)
    }

    fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        let db = self.db.read();
        Ok(db.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_write()?)
    }
}

/// What opening needs to know.
#[derive(Clone)]
pub(crate) struct StateConfig {
    pub(crate) group: String,
    pub(crate) disk: Arc<dyn DiskIo>,
    pub(crate) identity: Identity,
    pub(crate) cache_bytes: usize,
    pub(crate) tables: &'static [Table],
    pub(crate) reserve: Arc<Reserve>,
    /// The first voters of a state that is made; none if it waits to be added to a group.
    pub(crate) voters: Vec<Member>,
}

impl StateConfig {
    /// Where the files are, for messages.
    fn dir(&self) -> PathBuf {
        PathBuf::from(self.disk.name())
    }

    fn path(&self) -> PathBuf {
        self.dir().join(STATE)
    }
}

impl StateFile {
    /// Makes an empty state with its first voters. Durable when it returns.
    pub(crate) fn create(config: &StateConfig) -> Result<StateFile, OpenError> {
        let state = StateFile { db: open_database(config, STATE, OpenMode::Fresh)?, tables: config.tables };
        let voters = config.voters.iter().map(|member| member.raft_id).collect();
        let conf_state = ConfState { voters, ..ConfState::default() };
        let progress = Progress { conf_state, members: config.voters.clone(), ..Progress::default() };
        let outcome = state.write_durably(|txn| {
            put_row(txn, IDENTITY, &identity_row(config))?;
            put_progress(txn, &progress)
        });
        outcome.map_err(|error| unusable(config, error))?;
        Ok(state)
    }

    /// Opens an existing state, checks that it is this replica's, and answers how far it has come.
    pub(crate) fn open(config: &StateConfig) -> Result<(StateFile, Progress), OpenError> {
        remove_unfinished(config)?;
        let state =
            StateFile { db: open_database(config, STATE, OpenMode::Existing)?, tables: config.tables };
        let found: IdentityRow = state.get_row(IDENTITY).map_err(|error| unusable(config, error))?;
        if found.format != STATE_FORMAT {
            return Err(OpenError::Format { path: config.path(), found: found.format, known: STATE_FORMAT });
        }
        let identity = Identity { cluster_id: found.cluster_id, raft_id: found.raft_id };
        if identity != config.identity {
            return Err(OpenError::Foreign {
                dir: config.dir(),
                found: identity.to_string(),
                expected: config.identity.to_string(),
            });
        }
        let progress = get_progress(&state).map_err(|error| unusable(config, error))?;
        state.adopt_tables(config, &found.tables)?;
        Ok((state, progress))
    }

    /// A non-durable transaction for a batch.
    pub(crate) fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::None).map_err(redb::Error::from)?;
        Ok(txn)
    }

    /// Makes every committed batch durable.
    pub(crate) fn checkpoint(&self) -> Result<(), StoreError> {
        self.write_durably(|_| Ok(()))
    }

    pub(crate) fn view(&self) -> Result<ReadView, StoreError> {
        view_of(&self.db, self.tables)
    }

    /// Notes durably that the log has caught up with rows that came from a snapshot.
    pub(crate) fn clear_installed(&self, progress: &mut Progress) -> Result<(), StoreError> {
        progress.installed = false;
        self.write_durably(|txn| put_progress(txn, progress))
    }

    /// The database itself, for readers on other threads.
    pub(crate) fn database(&self) -> &Arc<StateDb> {
        &self.db
    }

    fn write_durably(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut txn = self.db.begin_write()?;
        txn.set_quick_repair(true);
        write(&txn)?;
        txn.commit()?;
        Ok(())
    }

    /// The stored list may be a beginning of the program's: an upgrade appends tables.
    fn adopt_tables(&self, config: &StateConfig, found: &[String]) -> Result<(), OpenError> {
        let known: Vec<&str> = config.tables.iter().map(Table::name).collect();
        if !known.iter().zip(found).all(|(known, found)| known == found) || found.len() > known.len() {
            let what = format!("it has tables {found:?}, this program knows {known:?}");
            return Err(damaged(config, what));
        }
        if found.len() < known.len() {
            self.write_durably(|txn| put_row(txn, IDENTITY, &identity_row(config)))
                .map_err(|error| unusable(config, error))?;
        }
        Ok(())
    }

    fn get_row<T: for<'de> Deserialize<'de>>(&self, row_key: &[u8]) -> Result<T, StoreError> {
        read_row(&self.db.begin_read()?.open_table(CONSENSUS)?, row_key)
    }
}

pub(crate) fn view_of(db: &Arc<StateDb>, tables: &'static [Table]) -> Result<ReadView, StoreError> {
    Ok(ReadView::new(db.begin_read()?, tables, Some(Arc::clone(db))))
}

/// How far the rows of one read transaction have come.
pub(crate) fn applied_index_of(txn: &ReadTransaction) -> Result<u64, StoreError> {
    let opened = match txn.open_table(CONSENSUS) {
        Ok(opened) => opened,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    Ok(read_row::<ProgressRow>(&opened, PROGRESS)?.applied_index)
}

/// How far the rows of one read transaction have come.
pub(crate) fn read_progress(txn: &ReadTransaction) -> Result<Progress, StoreError> {
    Ok(progress_of(read_row(&txn.open_table(CONSENSUS)?, PROGRESS)?))
}

fn read_row<T: for<'de> Deserialize<'de>>(
    table: &ReadOnlyTable<&'static [u8], &'static [u8]>,
    row_key: &[u8],
) -> Result<T, StoreError> {
    let corrupt = || StoreError::Corrupt { table: CONSENSUS_NAME, row_key: row_key.to_vec() };
    let stored = table.get(row_key)?.ok_or_else(corrupt)?;
    let value = unseal_row(CONSENSUS_NAME, row_key, stored.value()).ok_or_else(corrupt)?;
    rmp_serde::from_slice(value).map_err(|_| corrupt())
}

/// Writes how far the rows have come, in the transaction that brings them there.
pub(crate) fn put_progress(txn: &WriteTransaction, progress: &Progress) -> Result<(), StoreError> {
    let conf_state = &progress.conf_state;
    let row = ProgressRow {
        applied_index: progress.applied_index,
        applied_term: progress.applied_term,
        state_hash: ((progress.state_hash >> 64) as u64, progress.state_hash as u64),
        voters: conf_state.voters.clone(),
        learners: conf_state.learners.clone(),
        voters_outgoing: conf_state.voters_outgoing.clone(),
        learners_next: conf_state.learners_next.clone(),
        auto_leave: conf_state.auto_leave,
        installed: progress.installed,
        members: progress.members.clone(),
        former: progress.former.clone(),
    };
    put_row(txn, PROGRESS, &row)
}

fn get_progress(state: &StateFile) -> Result<Progress, StoreError> {
    Ok(progress_of(state.get_row(PROGRESS)?))
}

fn progress_of(row: ProgressRow) -> Progress {
    let conf_state = ConfState {
        voters: row.voters,
        learners: row.learners,
        voters_outgoing: row.voters_outgoing,
        learners_next: row.learners_next,
        auto_leave: row.auto_leave,
        ..ConfState::default()
    };
    Progress {
        applied_index: row.applied_index,
        applied_term: row.applied_term,
        state_hash: u128::from(row.state_hash.0) << 64 | u128::from(row.state_hash.1),
        conf_state,
        former: row.former,
        installed: row.installed,
        members: row.members,
    }
}

fn put_row(txn: &WriteTransaction, row_key: &[u8], row: &impl Serialize) -> Result<(), StoreError> {
    let value = rmp_serde::to_vec(row).expect("numbers, lists and names encode");
    txn.open_table(CONSENSUS)?.insert(row_key, seal_row(CONSENSUS_NAME, row_key, &value).as_slice())?;
    Ok(())
}

fn identity_row(config: &StateConfig) -> IdentityRow {
    IdentityRow {
        format: STATE_FORMAT,
        cluster_id: config.identity.cluster_id,
        raft_id: config.identity.raft_id,
        tables: config.tables.iter().map(|table| table.name().to_owned()).collect(),
    }
}

/// Removes what a snapshot that was not installed has left.
fn remove_unfinished(config: &StateConfig) -> Result<(), OpenError> {
    match config.disk.remove(STATE_NEW) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(OpenError::Io { action: "remove", path: config.dir().join(STATE_NEW), source })
        }
        _ => Ok(()),
    }
}

fn open_database(config: &StateConfig, name: &str, mode: OpenMode) -> Result<Arc<StateDb>, OpenError> {
    let length = Arc::new(AtomicU64::new(0));
    let opened = match mode {
        OpenMode::Existing => open_as_stored(&*config.disk, name, HEADER_BYTES),
        mode => config.disk.open(name, mode),
    };
    let backend = opened
        .and_then(|file| {
            // A snapshot in the making can be sent again: it never uses up what others need to go on.
            let reserve = (name == STATE).then(|| Arc::clone(&config.reserve));
            StateBackend::open(&config.group, file, Arc::clone(&length), reserve)
        })
        .map_err(|source| OpenError::Io { action: "open", path: config.dir().join(name), source })?;
    let opened = Database::builder()
        .set_cache_size(config.cache_bytes)
        // Every durable commit allows for a quick repair. A full one means that bytes are not what was written.
        .set_repair_callback(|session| session.abort())
        .create_with_backend(backend);
    match opened {
        Ok(db) => Ok(Arc::new(StateDb { db: RwLock::new(Some(db)), length })),
        Err(DatabaseError::RepairAborted) => {
            Err(damaged(config, "its newest checkpoint is unreadable".to_owned()))
        }
        Err(DatabaseError::Storage(redb::StorageError::Io(error))) if is_full(&error) => {
            Err(OpenError::Full { dir: config.dir() })
        }
        Err(error) => Err(damaged(config, error.to_string())),
    }
}

fn damaged(config: &StateConfig, what: String) -> OpenError {
    OpenError::Damaged { dir: config.dir(), path: config.path(), what }
}

fn unusable(config: &StateConfig, error: StoreError) -> OpenError {
    if error.is_full() {
        return OpenError::Full { dir: config.dir() };
    }
    let cause = match error {
        StoreError::Redb(cause) => cause.to_string(),
        corrupt => corrupt.to_string(),
    };
    damaged(config, cause)
}

#[cfg(test)]
mod tests {
    use platform::simulated::{Faults, SimulatedDisk};

    use super::*;
    use crate::store::{Rows, WriteBatch};

    const FRUIT: Table = Table::new(0, "fruit");
    const TABLES: &[Table] = &[FRUIT];
    const MORE_TABLES: &[Table] = &[FRUIT, Table::new(1, "colour")];

    fn member() -> Member {
        let address = wire::host::HostPort::new("om1:9002").unwrap();
        Member { raft_id: 1, incarnation: uuid::Uuid::from_u128(6), node: "om1".to_owned(), address }
    }

    fn config(disk: &SimulatedDisk, tables: &'static [Table]) -> StateConfig {
        let disk: Arc<dyn DiskIo> = Arc::new(disk.clone());
        StateConfig {
            group: "test".to_owned(),
            disk: Arc::clone(&disk),
            identity: Identity { cluster_id: uuid::Uuid::from_u128(5), raft_id: 1 },
            cache_bytes: 1 << 20,
            tables,
            reserve: Arc::new(Reserve::open(&disk, 1 << 20).unwrap()),
            voters: vec![member()],
        }
    }

    fn put(state: &StateFile, row_key: &str, index: u64) {
        let txn = state.begin().unwrap();
        let mut batch = WriteBatch::new(&txn, state.tables, 0);
        batch.put(FRUIT, row_key.as_bytes(), b"value").unwrap();
        let progress = Progress {
            applied_index: index,
            applied_term: 2,
            state_hash: batch.state_hash(),
            conf_state: ConfState { voters: vec![1], ..ConfState::default() },
            ..Progress::default()
        };
        drop(batch);
        put_progress(&txn, &progress).unwrap();
        txn.commit().unwrap();
    }

    /// The file as the death of the process would leave it, opened elsewhere.
    fn after_crash(disk: &SimulatedDisk, open: impl FnOnce(StateFile, Progress)) {
        let copy = SimulatedDisk::new(64 << 20);
        let file = DiskIo::open(&copy, STATE, OpenMode::Fresh).unwrap();
        file.write_at(0, &[&disk.contents(STATE).unwrap()]).unwrap();
        let (state, progress) = StateFile::open(&config(&copy, TABLES)).unwrap();
        open(state, progress);
    }

    #[test]
    fn a_crash_goes_back_to_the_checkpoint_and_rows_agree_with_progress() {
        let disk = SimulatedDisk::new(64 << 20);
        let state = StateFile::create(&config(&disk, TABLES)).unwrap();
        after_crash(&disk, |_, progress| assert_eq!(progress.applied_index, 0));
        put(&state, "apple", 1);
        put(&state, "banana", 2);
        after_crash(&disk, |state, progress| {
            assert_eq!(progress.applied_index, 0);
            assert_eq!(state.view().unwrap().get(FRUIT, b"apple").unwrap(), None);
        });
        state.checkpoint().unwrap();
        put(&state, "cherry", 3);
        after_crash(&disk, |state, progress| {
            assert_eq!((progress.applied_index, progress.applied_term), (2, 2));
            assert_ne!(progress.state_hash, 0);
            assert!(state.view().unwrap().contains(FRUIT, b"banana").unwrap());
            assert!(!state.view().unwrap().contains(FRUIT, b"cherry").unwrap());
        });
    }

    #[test]
    fn what_a_failed_sync_left_in_memory_is_not_believed() {
        // The sync of what a commit names, and that of the header that names it.
        for good_syncs in 0..2 {
            for toss in 0..20 {
                let disk = SimulatedDisk::new(64 << 20);
                let state = StateFile::create(&config(&disk, TABLES)).unwrap();
                DiskIo::sync_names(&disk).unwrap();
                put(&state, "apple", 1);
                state.checkpoint().unwrap();
                put(&state, "banana", 2);
                disk.set_faults(Faults {
                    next_sync_fails: good_syncs == 0,
                    sync_fails_after: good_syncs,
                    ..Faults::default()
                });
                let checkpoint = std::panic::AssertUnwindSafe(|| state.checkpoint());
                let ended = platform::node::enter(Some(1), || std::panic::catch_unwind(checkpoint));
                assert!(ended.is_err(), "the process ends");
                std::mem::forget(state);
                // The machine lives on, and so does its memory, until the power goes.
                disk.kill();
                let (state, believed) = StateFile::open(&config(&disk, TABLES)).unwrap();
                put(&state, "cherry", 3);
                state.checkpoint().unwrap();
                std::mem::forget(state);
                disk.crash(toss);
                let (state, found) = StateFile::open(&config(&disk, TABLES)).unwrap();
                assert_eq!((believed.applied_index, found.applied_index), (1, 3));
                let view = state.view().unwrap();
                assert!(view.contains(FRUIT, b"apple").unwrap() && view.contains(FRUIT, b"cherry").unwrap());
                assert!(!view.contains(FRUIT, b"banana").unwrap());
            }
        }
    }

    #[test]
    fn another_replicas_state_is_refused() {
        let disk = SimulatedDisk::new(64 << 20);
        drop(StateFile::create(&config(&disk, TABLES)).unwrap());
        let mut other = config(&disk, TABLES);
        other.identity.raft_id = 2;
        assert!(matches!(StateFile::open(&other), Err(OpenError::Foreign { .. })));
        assert!(StateFile::open(&config(&disk, TABLES)).is_ok());
    }

    #[test]
    fn tables_may_be_appended_and_never_dropped() {
        let disk = SimulatedDisk::new(64 << 20);
        drop(StateFile::create(&config(&disk, TABLES)).unwrap());
        drop(StateFile::open(&config(&disk, MORE_TABLES)).unwrap());
        assert!(matches!(StateFile::open(&config(&disk, TABLES)), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn garbage_is_refused_with_advice() {
        let disk = SimulatedDisk::new(64 << 20);
        drop(StateFile::create(&config(&disk, TABLES)).unwrap());
        let size = disk.contents(STATE).unwrap().len();
        disk.damage(STATE, 0, &vec![0x55; size]);
        let Err(error) = StateFile::open(&config(&disk, TABLES)) else { panic!("opened garbage") };
        assert!(error.to_string().contains("from a backup"), "{error}");
    }

    /// The released format: rows of version 1 must decode for ever.
    #[test]
    fn progress_has_the_documented_bytes() {
        let row = ProgressRow {
            applied_index: 300,
            applied_term: 2,
            state_hash: (1, u64::MAX),
            voters: vec![1],
            learners: vec![],
            voters_outgoing: vec![],
            learners_next: vec![],
            auto_leave: false,
            installed: false,
            members: vec![member()],
            former: vec![7],
        };
        let bytes = rmp_serde::to_vec(&row).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "9bcd012c029201cfffffffffffffffff9101909090c2c2919401c41000000000000000000000000000000006a36f6d31\
             a86f6d313a393030329107"
        );
        let back: ProgressRow = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!((back.applied_index, back.state_hash), (300, (1, u64::MAX)));
        // Rows from before members were kept.
        let old = [
            0x99, 0xcd, 1, 0x2c, 2, 0x92, 1, 0xcf, 255, 255, 255, 255, 255, 255, 255, 255, 0x91, 1, 0x90,
            0x90, 0x90, 0xc2, 0xc2,
        ];
        let back: ProgressRow = rmp_serde::from_slice(&old).unwrap();
        assert!(back.voters == [1] && back.members.is_empty() && back.former.is_empty());
    }

    #[test]
    fn identity_has_the_documented_bytes() {
        let disk = SimulatedDisk::new(64 << 20);
        let bytes = rmp_serde::to_vec(&identity_row(&config(&disk, TABLES))).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "9401c410000000000000000000000000000000050191a56672756974");
    }
}
