//! A group's directory: its lock, its creation as a whole, its identity.
//!
//! ```text
//!  DIR/lock               held by the process that has the group open
//!  DIR/creating           a replica is in the making: what stands beside it is removed at the next start
//!  DIR/identity           whose directory this is, 48 bytes; written last
//!  DIR/log.*, DIR/spare.* segments (see `log`)
//!  DIR/state.redb         rows (see `state`)
//!  DIR/unsound            this replica was found to be wrong (see `unsound`)
//!  DIR/reserve            bytes to give back when the disk is full (see `space`)
//! ```
//!
//! A new replica begins with a durable `creating` and ends with a durable `identity`, after which `creating` goes. So
//! with neither of them, whatever else is there is a replica that lost something, and is never silently made anew: a
//! replica that forgot its votes or its entries must not come back under its old id.
//!
//! Not here: what the files hold.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use platform::disk::{DiskIo, OpenMode};
use uuid::Uuid;

use crate::error::OpenError;
use crate::log::{Identity, is_log_file};
use crate::space::RESERVE;
use crate::state::{STATE, STATE_NEW};

const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
const CREATING: &str = "creating";

/// Directories of a layout that was never released.
const OLD_LAYOUT: &str = "replica";

/// The version of the identity file, and with it of the directory.
const REPLICA_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"FZREPLIC";

/// Bytes of the identity file.
const IDENTITY_SIZE: usize = 48;

/// A locked group directory.
pub(crate) struct Replica {
    disk: Arc<dyn DiskIo>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        // The operating system lets go of it as well when the process ends.
        let _ = self.disk.unlock();
    }
}

impl Replica {
    /// Locks the directory.
    pub(crate) fn lock(disk: &Arc<dyn DiskIo>) -> Result<Replica, OpenError> {
        match disk.lock() {
            Ok(true) => Ok(Replica { disk: Arc::clone(disk) }),
            Ok(false) => Err(OpenError::Locked { dir: PathBuf::from(disk.name()) }),
            Err(error) => Err(io_error("lock", &**disk, "")(error)),
        }
    }

    /// Whether a replica was ever completed here. Refuses a directory that holds parts of one.
    pub(crate) fn exists(&self) -> Result<bool, OpenError> {
        let names = self.names()?;
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        if has(OLD_LAYOUT) {
            let what = "it is of a layout that was never released".to_owned();
            return Err(self.damaged(OLD_LAYOUT, what));
        }
        if has(IDENTITY) {
            if has(CREATING) {
                self.remove(CREATING)?;
                self.sync_names()?;
            }
            return Ok(true);
        }
        let part = names.iter().find(|name| is_ours(name));
        match part {
            Some(_) if has(CREATING) => Ok(false),
            Some(name) => Err(self.damaged(IDENTITY, format!("it is missing beside {name}"))),
            None => Ok(false),
        }
    }

    /// Makes a replica: `fill` writes its files durably.
    pub(crate) fn create<E: From<OpenError>>(
        &self,
        identity: Identity,
        fill: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let disk = &*self.disk;
        disk.open(CREATING, OpenMode::Either).map_err(io_error("make", disk, CREATING))?;
        self.sync_names()?;
        for name in self.names()?.iter().filter(|name| is_ours(name)) {
            self.remove(name)?;
        }
        fill()?;
        self.sync_names()?;
        let file = disk.open(IDENTITY_NEW, OpenMode::Fresh).map_err(io_error("make", disk, IDENTITY_NEW))?;
        file.write_at(0, &[&encode_identity(identity)]).map_err(io_error("write", disk, IDENTITY_NEW))?;
        file.sync_all().map_err(io_error("sync", disk, IDENTITY_NEW))?;
        disk.rename(IDENTITY_NEW, IDENTITY).map_err(io_error("rename", disk, IDENTITY_NEW))?;
        self.sync_names()?;
        self.remove(CREATING)?;
        Ok(self.sync_names()?)
    }

    /// Checks that the directory is that of `expected` and complete.
    pub(crate) fn check(&self, expected: Identity) -> Result<(), OpenError> {
        let disk = &*self.disk;
        let file = disk.open(IDENTITY, OpenMode::Existing).map_err(|error| self.missing(IDENTITY, error))?;
        let bytes = file.read_at(0, IDENTITY_SIZE + 1).map_err(io_error("read", disk, IDENTITY))?;
        let found = match decode_identity(&bytes) {
            Ok(found) => found,
            Err(Some(found)) => {
                let path = self.dir().join(IDENTITY);
                return Err(OpenError::Format { path, found, known: REPLICA_FORMAT });
            }
            Err(None) => return Err(self.damaged(IDENTITY, "it is not an identity file".to_owned())),
        };
        if found != expected {
            return Err(OpenError::Foreign {
                dir: self.dir(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        // Either name alone: a crash may have come between the two halves of a rename.
        let names = self.names()?;
        if !names.iter().any(|name| name == STATE) {
            return Err(self.damaged(STATE, "it is missing".to_owned()));
        }
        Ok(())
    }

    pub(crate) fn damaged(&self, name: &str, what: String) -> OpenError {
        OpenError::Damaged { dir: self.dir(), path: self.dir().join(name), what }
    }

    fn dir(&self) -> PathBuf {
        PathBuf::from(self.disk.name())
    }

    fn names(&self) -> Result<Vec<String>, OpenError> {
        self.disk.list().map_err(io_error("list", &*self.disk, ""))
    }

    fn remove(&self, name: &str) -> Result<(), OpenError> {
        self.disk.remove(name).map_err(io_error("remove", &*self.disk, name))
    }

    fn sync_names(&self) -> Result<(), OpenError> {
        self.disk.sync_names().map_err(io_error("sync", &*self.disk, ""))
    }

    fn missing(&self, name: &str, error: io::Error) -> OpenError {
        if error.kind() == io::ErrorKind::NotFound {
            return self.damaged(name, "it is missing".to_owned());
        }
        io_error("read", &*self.disk, name)(error)
    }
}

/// Whether a file of this name is part of a replica.
fn is_ours(name: &str) -> bool {
    [STATE, STATE_NEW, RESERVE, IDENTITY_NEW].contains(&name) || is_log_file(name)
}

/// magic, format u32, zero u32, cluster id, raft id u64, zero u32, crc32c of all before it u32.
fn encode_identity(identity: Identity) -> Vec<u8> {
    let mut out = Vec::with_capacity(IDENTITY_SIZE);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&REPLICA_FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(identity.cluster_id.as_bytes());
    out.extend_from_slice(&identity.raft_id.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&crc_fast::crc32_iscsi(&out).to_le_bytes());
    debug_assert_eq!(out.len(), IDENTITY_SIZE);
    out
}

/// The identity, or the format of a file this program does not know, if it is one at all.
fn decode_identity(bytes: &[u8]) -> Result<Identity, Option<u32>> {
    let Some((checked, crc)) = bytes.split_last_chunk::<4>() else { return Err(None) };
    if crc_fast::crc32_iscsi(checked).to_le_bytes() != *crc
        || !checked.starts_with(MAGIC)
        || checked.len() < 12
    {
        return Err(None);
    }
    let format = u32::from_le_bytes(checked[8..12].try_into().expect("four bytes"));
    if format != REPLICA_FORMAT {
        return Err(Some(format));
    }
    if bytes.len() != IDENTITY_SIZE {
        return Err(None);
    }
    Ok(Identity {
        cluster_id: Uuid::from_slice(&checked[16..32]).expect("sixteen bytes"),
        raft_id: u64::from_le_bytes(checked[32..40].try_into().expect("eight bytes")),
    })
}

pub(crate) fn io_error(
    action: &'static str,
    disk: &dyn DiskIo,
    name: &str,
) -> impl FnOnce(io::Error) -> OpenError + use<> {
    let dir = PathBuf::from(disk.name());
    let path = dir.join(name);
    move |source| {
        if crate::space::is_full(&source) {
            return OpenError::Full { dir };
        }
        OpenError::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use platform::disk::Directory;
    use platform::simulated::SimulatedDisk;

    use super::*;

    fn identity() -> Identity {
        Identity { cluster_id: Uuid::from_u128(0x1234), raft_id: 3 }
    }

    fn fill(disk: &Arc<dyn DiskIo>) -> Result<(), OpenError> {
        disk.open(STATE, OpenMode::Fresh).map(drop).map_err(io_error("write", &**disk, STATE))
    }

    fn created(disk: &Arc<dyn DiskIo>) -> Replica {
        let replica = Replica::lock(disk).unwrap();
        assert!(!replica.exists().unwrap());
        replica.create(identity(), || fill(disk)).unwrap();
        replica
    }

    #[test]
    fn a_directory_is_open_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = || -> Arc<dyn DiskIo> { Arc::new(Directory::open(dir.path()).unwrap()) };
        let replica = created(&open());
        let Err(error) = Replica::lock(&open()) else { panic!("locked twice") };
        assert!(error.to_string().contains("in use by another process"), "{error}");
        drop(replica);
        assert!(Replica::lock(&open()).unwrap().exists().unwrap());
    }

    #[test]
    fn what_is_foreign_damaged_or_missing_is_refused() {
        let simulated = SimulatedDisk::new(1 << 20);
        let disk: Arc<dyn DiskIo> = Arc::new(simulated.clone());
        let replica = created(&disk);
        replica.check(identity()).unwrap();
        let other = Identity { raft_id: 4, ..identity() };
        assert!(matches!(replica.check(other), Err(OpenError::Foreign { .. })));

        let bytes = simulated.contents(IDENTITY).unwrap();
        for (at, byte) in (0..).zip(&bytes) {
            simulated.damage(IDENTITY, at, &[byte ^ 4]);
            assert!(matches!(replica.check(identity()), Err(OpenError::Damaged { .. })), "byte {at}");
            simulated.damage(IDENTITY, at, &[*byte]);
        }
        disk.rename(IDENTITY, "elsewhere").unwrap();
        assert!(
            matches!(replica.exists(), Err(OpenError::Damaged { .. })),
            "a lost identity is no new replica"
        );
        disk.rename("elsewhere", IDENTITY).unwrap();
        disk.remove(STATE).unwrap();
        assert!(replica.exists().unwrap());
        assert!(matches!(replica.check(identity()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn the_layout_before_the_first_release_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("replica")).unwrap();
        let disk: Arc<dyn DiskIo> = Arc::new(Directory::open(dir.path()).unwrap());
        let refused = Replica::lock(&disk).unwrap().exists().unwrap_err();
        assert!(refused.to_string().contains("never released"), "{refused}");
    }

    #[test]
    fn a_creation_that_crashes_anywhere_starts_anew_or_is_complete() {
        for operations in 1.. {
            let simulated = SimulatedDisk::new(1 << 20);
            let disk: Arc<dyn DiskIo> = Arc::new(simulated.clone());
            simulated.crash_after(operations, operations);
            let made = Replica::lock(&disk).and_then(|replica| replica.create(identity(), || fill(&disk)));
            if simulated.cancel_crash() {
                made.unwrap();
                return;
            }
            let disk: Arc<dyn DiskIo> = Arc::new(simulated.clone());
            let replica = Replica::lock(&disk).unwrap();
            if !replica.exists().unwrap() {
                replica.create(identity(), || fill(&disk)).unwrap();
            }
            assert!(replica.exists().unwrap(), "after {operations}");
            replica.check(identity()).unwrap();
        }
    }

    #[test]
    fn identity_has_the_documented_bytes() {
        let text: String = encode_identity(identity()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "465a5245504c49430100000000000000000000000000000000000000000012340300000000000000000000001e8bb7ff"
        );
        let mut newer = encode_identity(identity());
        newer[8] = 2;
        let crc = crc_fast::crc32_iscsi(&newer[..IDENTITY_SIZE - 4]);
        newer[IDENTITY_SIZE - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_identity(&newer), Err(Some(2)));
    }
}
