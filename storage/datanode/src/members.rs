//! Which disks a datanode has: a list on each of them, so that a disk that is missing is missed.
//!
//! A replica that is not found is one of three: never created here, lost with a disk, or not loaded. Only a datanode that
//! has all its disks can say the first, and only then may an empty replica begin; or if the container was opened after the
//! datanode registered, since it cannot have been on a disk that was missing by then. So a disk that is gone for good need
//! not be struck off the list: it bars nothing but containers of its own time.
//!
//! ```text
//! "FzMember" | count u32 | 0 u32 | disk ids, 16 each | crc64 u64      (little-endian)
//! ```
//!
//! Invariant: a disk takes no container before it and all disks at hand know of it.
//!
//! Not here: whose disk it is (`identity`).

use std::collections::BTreeSet;
use std::io;

use crc_fast::CrcAlgorithm;
use platform::disk::{DiskIo, OpenMode};
use uuid::Uuid;

/// The file's name.
pub(crate) const MEMBERS_NAME: &str = "members";
const MAGIC: [u8; 8] = *b"FzMember";
const HEAD_BYTES: usize = 16;
/// Disks a datanode has had at most: more are a damaged file.
const MEMBERS_MAX: usize = 4096;

/// The file's bytes.
pub fn encode(disks: &BTreeSet<Uuid>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(disks.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for disk in disks {
        bytes.extend_from_slice(disk.as_bytes());
    }
    let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The disks, if the bytes are right.
pub fn decode(bytes: &[u8]) -> Option<BTreeSet<Uuid>> {
    let (fields, crc) = bytes.split_last_chunk::<8>()?;
    let is_right = fields.len() >= HEAD_BYTES
        && fields[..8] == MAGIC
        && *crc == crc_fast::checksum(CrcAlgorithm::Crc64Nvme, fields).to_le_bytes();
    if !is_right {
        return None;
    }
    let count = u32::from_le_bytes(fields[8..12].try_into().expect("four bytes were sliced")) as usize;
    let disks = fields[HEAD_BYTES..].chunks_exact(16).map(|id| Uuid::from_slice(id).expect("sixteen bytes"));
    (fields.len() == HEAD_BYTES + 16 * count).then(|| disks.collect())
}

/// The list on a disk; empty if it has none. None if it is damaged.
pub(crate) fn read(io: &dyn DiskIo) -> io::Result<Option<BTreeSet<Uuid>>> {
    if !io.list()?.iter().any(|name| name == MEMBERS_NAME) {
        return Ok(Some(BTreeSet::new()));
    }
    let file = io.open(MEMBERS_NAME, OpenMode::Existing)?;
    Ok(decode(&file.read_at(0, HEAD_BYTES + 16 * MEMBERS_MAX + 8)?))
}

/// The id of a disk whose formatting was begun beside disks that are `named`, and cut off. None if it was not, or if
/// anything else lies on it: then it was emptied.
pub(crate) fn begun(io: &dyn DiskIo, named: &BTreeSet<Uuid>) -> Option<Uuid> {
    let names = io.list().ok()?;
    let is_bare = names.iter().all(|name| name == MEMBERS_NAME || name == "lock" || name.ends_with(".new"));
    let members = read(io).ok()??;
    let is_of_theirs = members.iter().any(|disk| named.contains(disk));
    if is_bare && is_of_theirs { members.difference(named).next().copied() } else { None }
}

/// Writes the list. It replaces the former one as a whole.
pub(crate) fn write(io: &dyn DiskIo, disks: &BTreeSet<Uuid>) -> io::Result<()> {
    let file = io.open("members.new", OpenMode::Fresh)?;
    file.write_at(0, &[&encode(disks)])?;
    file.sync_all()?;
    io.rename("members.new", MEMBERS_NAME)?;
    io.sync_names()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_list_is_none() {
        let disks: BTreeSet<Uuid> = [1, 2].map(|byte| Uuid::from_bytes([byte; 16])).into();
        let bytes = encode(&disks);
        assert_eq!(decode(&bytes), Some(disks));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(b""), None);
    }
}
