//! A group's directory: its lock, its creation as a whole, its identity.
//!
//! ```text
//!  DIR/LOCK               held by the process that has the group open
//!  DIR/replica/identity   whose directory this is, 48 bytes
//!  DIR/replica/log/       segments (see `log`)
//!  DIR/replica/state.redb rows (see `state`)
//!  DIR/replica/reserve    bytes to give back when the disk is full (see `space`)
//!  DIR/creating/          a replica in the making; removed at the next start
//! ```
//!
//! A new replica is made under `creating` and renamed when all of it is durable. So whatever is missing from
//! `replica` was lost and not merely unfinished, and is never silently made anew: a replica that forgot its votes or
//! its entries must not come back under its old id.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::error::OpenError;
use crate::log::Identity;

/// The version of the identity file, and with it of the directory.
const REPLICA_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"FZREPLIC";

/// Bytes of the identity file.
const IDENTITY_SIZE: usize = 48;

/// A locked group directory.
pub(crate) struct Replica {
    dir: PathBuf,
    /// Released by the operating system when closed, also after a crash.
    _lock: File,
}

impl Replica {
    /// Makes and locks the directory.
    pub(crate) fn lock(dir: &Path) -> Result<Replica, OpenError> {
        std::fs::create_dir_all(dir).map_err(io_error("make", dir))?;
        let path = dir.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Replica { dir: dir.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked { dir: dir.to_owned() }),
            Err(error) => Err(OpenError::Io { action: "lock", path, source: error.into() }),
        }
    }

    /// Whether a replica was ever completed here.
    pub(crate) fn exists(&self) -> bool {
        self.root().exists()
    }

    /// Where the replica's files are.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("replica")
    }

    /// Makes a replica: `fill` writes its files durably into the directory it is given.
    pub(crate) fn create(
        &self,
        identity: Identity,
        fill: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let creating = self.dir.join("creating");
        match std::fs::remove_dir_all(&creating) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::Io { action: "remove", path: creating, source: error });
            }
            _ => {}
        }
        let log = creating.join("log");
        std::fs::create_dir_all(&log).map_err(io_error("make", &log))?;
        fill(&creating)?;
        let path = creating.join("identity");
        std::fs::write(&path, encode_identity(identity)).map_err(io_error("write", &path))?;
        for path in [&path, &log, &creating] {
            sync(path)?;
        }
        std::fs::rename(&creating, self.root()).map_err(io_error("rename", &creating))?;
        sync(&self.dir)?;
        match self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }

    /// Checks that the directory is that of `expected` and complete.
    pub(crate) fn check(&self, expected: Identity) -> Result<(), OpenError> {
        let path = self.root().join("identity");
        let bytes = std::fs::read(&path).map_err(|error| self.missing(&path, error))?;
        let found = match decode_identity(&bytes) {
            Ok(found) => found,
            Err(Some(format)) => {
                return Err(OpenError::Format { path, found: format, known: REPLICA_FORMAT });
            }
            Err(None) => return Err(self.damaged(path, "it is not an identity file".to_owned())),
        };
        if found != expected {
            return Err(OpenError::Foreign {
                dir: self.dir.clone(),
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        for name in ["log", "state.redb"] {
            let path = self.root().join(name);
            std::fs::metadata(&path).map_err(|error| self.missing(&path, error))?;
        }
        Ok(())
    }

    pub(crate) fn damaged(&self, path: PathBuf, what: String) -> OpenError {
        OpenError::Damaged { dir: self.dir.clone(), path, what }
    }

    fn missing(&self, path: &Path, error: io::Error) -> OpenError {
        if error.kind() == io::ErrorKind::NotFound {
            return self.damaged(path.to_owned(), "it is missing".to_owned());
        }
        OpenError::Io { action: "read", path: path.to_owned(), source: error }
    }
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

fn sync(path: &Path) -> Result<(), OpenError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |source| {
        if crate::space::is_full(&source) {
            return OpenError::Full { dir: path.parent().unwrap_or(path).to_owned() };
        }
        OpenError::Io { action, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cluster_id: Uuid::from_u128(0x1234), raft_id: 3 }
    }

    fn created(dir: &Path) -> Replica {
        let replica = Replica::lock(dir).unwrap();
        let fill =
            |root: &Path| std::fs::write(root.join("state.redb"), b"x").map_err(io_error("write", root));
        replica.create(identity(), fill).unwrap();
        replica
    }

    #[test]
    fn a_directory_is_open_once() {
        let dir = tempfile::tempdir().unwrap();
        let replica = created(dir.path());
        let Err(error) = Replica::lock(dir.path()) else { panic!("locked twice") };
        assert!(error.to_string().contains("in use by another process"), "{error}");
        drop(replica);
        assert!(Replica::lock(dir.path()).unwrap().exists());
    }

    #[test]
    fn what_is_foreign_damaged_or_missing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let replica = created(dir.path());
        replica.check(identity()).unwrap();
        let other = Identity { raft_id: 4, ..identity() };
        assert!(matches!(replica.check(other), Err(OpenError::Foreign { .. })));

        let path = replica.root().join("identity");
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(replica.check(identity()), Err(OpenError::Damaged { .. })), "byte {at}");
        }
        std::fs::write(&path, &bytes).unwrap();
        std::fs::remove_file(replica.root().join("state.redb")).unwrap();
        assert!(matches!(replica.check(identity()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn an_interrupted_creation_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica::lock(dir.path()).unwrap();
        let refused = replica.create(identity(), |root| Err(OpenError::Full { dir: root.to_owned() }));
        assert!(refused.is_err() && !replica.exists());
        drop(replica);
        assert!(created(dir.path()).exists());
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
