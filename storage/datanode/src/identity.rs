//! Whose disk this is: cluster, datanode and disk ids in a small file, written once.
//!
//! ```text
//! "FzDiskId" | version u32 | cluster 16 | datanode 16 | disk 16 | crc64 u64      (little-endian, 68 bytes)
//! ```
//!
//! Not here: the lock (`platform::disk`), what else lies on a disk (`disk`).

use crc_fast::CrcAlgorithm;
use uuid::Uuid;
use wire::ids::{ClusterId, DatanodeId};

use crate::error::OpenError;
use platform::disk::{DiskIo, OpenMode};

const MAGIC: [u8; 8] = *b"FzDiskId";
const BYTES: usize = 68;
/// The format of disks this program writes and reads.
pub const DISK_VERSION: u32 = 1;
/// The identity file's name.
pub const IDENTITY_NAME: &str = "identity";

/// Whose disk this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The datanode.
    pub datanode: DatanodeId,
    /// The disk.
    pub disk: Uuid,
}

/// Why bytes are no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAnIdentity {
    /// Damaged.
    Damaged,
    /// Of this other version.
    Version(u32),
}

impl Identity {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&DISK_VERSION.to_le_bytes());
        bytes.extend_from_slice(self.cluster.0.as_bytes());
        bytes.extend_from_slice(self.datanode.0.as_bytes());
        bytes.extend_from_slice(self.disk.as_bytes());
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAnIdentity> {
        if bytes.len() < 12 || bytes[..8] != MAGIC {
            return Err(NotAnIdentity::Damaged);
        }
        // Magic and version stand in front of whatever a later version holds.
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes were sliced"));
        if version != DISK_VERSION {
            return Err(NotAnIdentity::Version(version));
        }
        let is_right = bytes.len() == BYTES
            && bytes[BYTES - 8..]
                == crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes[..BYTES - 8]).to_le_bytes();
        if !is_right {
            return Err(NotAnIdentity::Damaged);
        }
        let id = |at: usize| Uuid::from_slice(&bytes[at..at + 16]).expect("sixteen bytes were sliced");
        Ok(Self { cluster: ClusterId(id(12)), datanode: DatanodeId(id(28)), disk: id(44) })
    }
}

/// Reads a disk's identity; None if the disk is empty and may be formatted.
pub(crate) fn read(io: &dyn DiskIo, cluster: ClusterId) -> Result<Option<Identity>, OpenError> {
    let disk = io.name();
    let failed = |source| OpenError::Io { disk: disk.clone(), source };
    let names = io.list().map_err(failed)?;
    if !names.iter().any(|name| name == IDENTITY_NAME) {
        return if names.iter().any(|name| name.ends_with(".container")) {
            Err(OpenError::IdentityMissing { disk })
        } else {
            Ok(None)
        };
    }
    let file = io.open(IDENTITY_NAME, OpenMode::Existing).map_err(failed)?;
    let bytes = file.read_at(0, 4096).map_err(failed)?;
    let identity = Identity::decode(&bytes).map_err(|error| match error {
        NotAnIdentity::Damaged => OpenError::IdentityDamaged { disk: disk.clone() },
        NotAnIdentity::Version(version) => {
            OpenError::UnknownVersion { disk: disk.clone(), version, known: DISK_VERSION }
        }
    })?;
    if identity.cluster != cluster {
        return Err(OpenError::WrongCluster { disk, found: identity.cluster, expected: cluster });
    }
    Ok(Some(identity))
}

/// Formats an empty disk. The name appears only when the bytes are durable.
pub(crate) fn write(io: &dyn DiskIo, identity: &Identity) -> Result<(), OpenError> {
    let steps = || {
        let file = io.open("identity.new", OpenMode::Fresh)?;
        file.write_at(0, &[&identity.encode()])?;
        file.sync_all()?;
        io.rename("identity.new", IDENTITY_NAME)?;
        io.sync_names()
    };
    steps().map_err(|source| OpenError::Io { disk: io.name(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_and_future_identities_are_told_apart() {
        let identity =
            Identity { cluster: ClusterId::random(), datanode: DatanodeId::random(), disk: Uuid::nil() };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        for at in (0..8).chain(12..bytes.len()) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Identity::decode(&damaged), Err(NotAnIdentity::Damaged), "byte {at}");
        }
        let mut future = bytes.clone();
        future[8] = 2;
        assert_eq!(Identity::decode(&future), Err(NotAnIdentity::Version(2)));
        assert_eq!(Identity::decode(&bytes[..20]), Err(NotAnIdentity::Damaged));
    }
}
