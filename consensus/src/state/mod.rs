//! The state file: rows of the state machine and how far they have come, in one redb database.
//!
//! Each apply batch is one transaction that holds the rows, the applied index with its term, the state hash and the
//! membership: they can never be of different age. These transactions are not durable, the log is. From time to time
//! an empty *checkpoint* transaction makes all of them durable; a start replays the log from there.
//!
//! ```text
//!  table "consensus"   "identity" -> [format, cluster id, raft id, [table names]]
//!                      "progress" -> [applied index, applied term, [hash high, hash low], voters, learners,
//!                                     outgoing voters, next learners, auto leave, installed]
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

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::ConfState;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::error::{OpenError, StoreError};
use crate::log::Identity;
use crate::space::{Reserve, is_full};
use crate::store::{ReadView, Table, seal_row, unseal_row};

use backend::StateBackend;

/// The version of the state file.
pub(crate) const STATE_FORMAT: u32 = 1;

/// The table of this module. A state machine must not have one of this name.
const CONSENSUS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("consensus");
const CONSENSUS_NAME: &str = "consensus";
const IDENTITY: &[u8] = b"identity";
const PROGRESS: &[u8] = b"progress";

/// How far the rows have come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    pub(crate) state_hash: u128,
    pub(crate) conf_state: ConfState,
    /// The rows came from a snapshot and the log may not have caught up with them.
    pub(crate) installed: bool,
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
    db: Arc<Database>,
    tables: &'static [Table],
}

/// What opening needs to know.
pub(crate) struct StateConfig<'a> {
    pub(crate) group: &'a str,
    /// The group's directory, for messages.
    pub(crate) dir: &'a Path,
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) cache_bytes: usize,
    pub(crate) tables: &'static [Table],
    pub(crate) reserve: Arc<Reserve>,
}

impl StateFile {
    /// Makes an empty state with the sole voter `identity.raft_id`. Durable when it returns.
    pub(crate) fn create(config: &StateConfig<'_>) -> Result<StateFile, OpenError> {
        let state = StateFile { db: Arc::new(open_database(config, true)?), tables: config.tables };
        let conf_state = ConfState { voters: vec![config.identity.raft_id], ..ConfState::default() };
        let progress =
            Progress { applied_index: 0, applied_term: 0, state_hash: 0, conf_state, installed: false };
        let outcome = state.write_durably(|txn| {
            put_row(txn, IDENTITY, &identity_row(config))?;
            put_progress(txn, &progress)
        });
        outcome.map_err(|error| unusable(config, error))?;
        Ok(state)
    }

    /// Opens an existing state, checks that it is this replica's, and answers how far it has come.
    pub(crate) fn open(config: &StateConfig<'_>) -> Result<(StateFile, Progress), OpenError> {
        let state = StateFile { db: Arc::new(open_database(config, false)?), tables: config.tables };
        let found: IdentityRow = state.get_row(IDENTITY).map_err(|error| unusable(config, error))?;
        if found.format != STATE_FORMAT {
            return Err(OpenError::Format {
                path: config.path.clone(),
                found: found.format,
                known: STATE_FORMAT,
            });
        }
        let identity = Identity { cluster_id: found.cluster_id, raft_id: found.raft_id };
        if identity != config.identity {
            return Err(OpenError::Foreign {
                dir: config.dir.to_owned(),
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

    /// The database itself, for readers on other threads.
    pub(crate) fn database(&self) -> &Arc<Database> {
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
    fn adopt_tables(&self, config: &StateConfig<'_>, found: &[String]) -> Result<(), OpenError> {
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

pub(crate) fn view_of(db: &Database, tables: &'static [Table]) -> Result<ReadView, StoreError> {
    Ok(ReadView::new(db.begin_read()?, tables))
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
    };
    put_row(txn, PROGRESS, &row)
}

fn get_progress(state: &StateFile) -> Result<Progress, StoreError> {
    let row: ProgressRow = state.get_row(PROGRESS)?;
    let conf_state = ConfState {
        voters: row.voters,
        learners: row.learners,
        voters_outgoing: row.voters_outgoing,
        learners_next: row.learners_next,
        auto_leave: row.auto_leave,
        ..ConfState::default()
    };
    Ok(Progress {
        applied_index: row.applied_index,
        applied_term: row.applied_term,
        state_hash: u128::from(row.state_hash.0) << 64 | u128::from(row.state_hash.1),
        conf_state,
        installed: row.installed,
    })
}

fn put_row(txn: &WriteTransaction, row_key: &[u8], row: &impl Serialize) -> Result<(), StoreError> {
    let value = rmp_serde::to_vec(row).expect("numbers, lists and names encode");
    txn.open_table(CONSENSUS)?.insert(row_key, seal_row(CONSENSUS_NAME, row_key, &value).as_slice())?;
    Ok(())
}

fn identity_row(config: &StateConfig<'_>) -> IdentityRow {
    IdentityRow {
        format: STATE_FORMAT,
        cluster_id: config.identity.cluster_id,
        raft_id: config.identity.raft_id,
        tables: config.tables.iter().map(|table| table.name().to_owned()).collect(),
    }
}

fn open_database(config: &StateConfig<'_>, create: bool) -> Result<Database, OpenError> {
    let backend = StateBackend::open(config.group, &config.path, create, Arc::clone(&config.reserve))
        .map_err(|source| OpenError::Io { action: "open", path: config.path.clone(), source })?;
    let opened = Database::builder()
        .set_cache_size(config.cache_bytes)
        // Every durable commit allows for a quick repair. A full one means that bytes are not what was written.
        .set_repair_callback(|session| session.abort())
        .create_with_backend(backend);
    match opened {
        Ok(db) => Ok(db),
        Err(DatabaseError::RepairAborted) => {
            Err(damaged(config, "its newest checkpoint is unreadable".to_owned()))
        }
        Err(DatabaseError::Storage(redb::StorageError::Io(error))) if is_full(&error) => {
            Err(OpenError::Full { dir: config.dir.to_owned() })
        }
        Err(error) => Err(damaged(config, error.to_string())),
    }
}

fn damaged(config: &StateConfig<'_>, what: String) -> OpenError {
    OpenError::Damaged { dir: config.dir.to_owned(), path: config.path.clone(), what }
}

fn unusable(config: &StateConfig<'_>, error: StoreError) -> OpenError {
    if let StoreError::Redb(cause) = &error
        && let redb::Error::Io(cause) = &**cause
        && is_full(cause)
    {
        return OpenError::Full { dir: config.dir.to_owned() };
    }
    let cause = match error {
        StoreError::Redb(cause) => cause.to_string(),
        corrupt => corrupt.to_string(),
    };
    damaged(config, cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Rows, WriteBatch};

    const FRUIT: Table = Table::new(0, "fruit");
    const TABLES: &[Table] = &[FRUIT];
    const MORE_TABLES: &[Table] = &[FRUIT, Table::new(1, "colour")];

    fn config(dir: &Path, tables: &'static [Table]) -> StateConfig<'static> {
        StateConfig {
            group: "test",
            dir: Path::new("here"),
            path: dir.join("state.redb"),
            identity: Identity { cluster_id: uuid::Uuid::from_u128(5), raft_id: 1 },
            cache_bytes: 1 << 20,
            tables,
            reserve: Arc::new(Reserve::open(&dir.join("reserve"), 1 << 20).unwrap()),
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
            installed: false,
        };
        drop(batch);
        put_progress(&txn, &progress).unwrap();
        txn.commit().unwrap();
    }

    /// The file as a power cut would leave it, opened elsewhere.
    fn after_crash(dir: &Path, open: impl FnOnce(StateFile, Progress)) {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(dir.join("state.redb"), copy.path().join("state.redb")).unwrap();
        let (state, progress) = StateFile::open(&config(copy.path(), TABLES)).unwrap();
        open(state, progress);
    }

    #[test]
    fn a_crash_goes_back_to_the_checkpoint_and_rows_agree_with_progress() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFile::create(&config(dir.path(), TABLES)).unwrap();
        after_crash(dir.path(), |_, progress| assert_eq!(progress.applied_index, 0));
        put(&state, "apple", 1);
        put(&state, "banana", 2);
        after_crash(dir.path(), |state, progress| {
            assert_eq!(progress.applied_index, 0);
            assert_eq!(state.view().unwrap().get(FRUIT, b"apple").unwrap(), None);
        });
        state.checkpoint().unwrap();
        put(&state, "cherry", 3);
        after_crash(dir.path(), |state, progress| {
            assert_eq!((progress.applied_index, progress.applied_term), (2, 2));
            assert_ne!(progress.state_hash, 0);
            assert!(state.view().unwrap().contains(FRUIT, b"banana").unwrap());
            assert!(!state.view().unwrap().contains(FRUIT, b"cherry").unwrap());
        });
    }

    #[test]
    fn another_replicas_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateFile::create(&config(dir.path(), TABLES)).unwrap());
        let mut other = config(dir.path(), TABLES);
        other.identity.raft_id = 2;
        assert!(matches!(StateFile::open(&other), Err(OpenError::Foreign { .. })));
        assert!(StateFile::open(&config(dir.path(), TABLES)).is_ok());
    }

    #[test]
    fn tables_may_be_appended_and_never_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateFile::create(&config(dir.path(), TABLES)).unwrap());
        drop(StateFile::open(&config(dir.path(), MORE_TABLES)).unwrap());
        assert!(matches!(StateFile::open(&config(dir.path(), TABLES)), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn garbage_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateFile::create(&config(dir.path(), TABLES)).unwrap());
        let path = dir.path().join("state.redb");
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        std::fs::write(&path, vec![0x55; size]).unwrap();
        let Err(error) = StateFile::open(&config(dir.path(), TABLES)) else { panic!("opened garbage") };
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
        };
        let bytes = rmp_serde::to_vec(&row).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "99cd012c029201cfffffffffffffffff9101909090c2c2");
        let back: ProgressRow = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!((back.applied_index, back.state_hash), (300, (1, u64::MAX)));
    }

    #[test]
    fn identity_has_the_documented_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = rmp_serde::to_vec(&identity_row(&config(dir.path(), TABLES))).unwrap();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "9401c410000000000000000000000000000000050191a56672756974");
    }
}
