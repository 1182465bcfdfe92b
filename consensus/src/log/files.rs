//! The log's files: segment headers, names, zero-filling, renames that survive a power cut.
//!
//! `log.<epoch>` is a segment of the log, `spare.<n>` a file of a segment's size that waits to become one, `preparing`
//! a spare in the making. A file carries a segment's name only while its header is durable and right, so a bad header
//! in one is damage, and a bad header in a spare is nothing.
//!
//! Not here: what the records mean (see `segmented`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use platform::disk::{BlockFile, DiskIo, OpenMode, write_zeros};
use raft::eraftpb::HardState;
use uuid::Uuid;

use super::record::Stamp;
use crate::error::LogError;
use crate::space::is_full;

/// The version of the log's bytes.
pub(crate) const LOG_FORMAT: u32 = 1;

/// Bytes in front of the first record: one page, so that no record shares the header's.
pub(crate) const SEGMENT_HEADER_SIZE: u64 = 4096;

const MAGIC: &[u8; 8] = b"FZRAFLOG";

/// Bytes of the header that carry something; the CRC is the last four.
const HEADER_USED: usize = 112;

const PREPARING: &str = "preparing";
const SPARE_PREFIX: &str = "spare.";
const SEGMENT_PREFIX: &str = "log.";

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: Uuid,
    pub(crate) raft_id: u64,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "replica {} of cluster {}", self.raft_id, self.cluster_id)
    }
}

/// The first bytes of a segment.
///
/// ```text
///   0  magic "FZRAFLOG"          56  base index, u64 (the last entry before the segment)
///   8  format, u32 = 1           64  base term, u64
///  12  header size, u32 = 4096   72  term, u64      \
///  16  cluster id, 16 bytes      80  vote, u64       > as they were when the segment began
///  32  raft id, u64              88  commit, u64    /
///  40  epoch, u64                96  segment size, u64
///  48  first record number, u64 104  salt, u32; 108  crc32c of bytes 0 to 107, u32; then zeros to 4096
/// ```
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SegmentHeader {
    pub(crate) identity: Identity,
    pub(crate) stamp: Stamp,
    pub(crate) first_number: u64,
    pub(crate) base_index: u64,
    pub(crate) base_term: u64,
    pub(crate) hard_state: HardState,
    pub(crate) segment_bytes: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_SIZE as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&LOG_FORMAT.to_le_bytes());
        out.extend_from_slice(&(SEGMENT_HEADER_SIZE as u32).to_le_bytes());
        out.extend_from_slice(self.identity.cluster_id.as_bytes());
        for word in [
            self.identity.raft_id,
            self.stamp.epoch,
            self.first_number,
            self.base_index,
            self.base_term,
            self.hard_state.term,
            self.hard_state.vote,
            self.hard_state.commit,
            self.segment_bytes,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.stamp.salt.to_le_bytes());
        out.extend_from_slice(&crc_fast::crc32_iscsi(&out).to_le_bytes());
        debug_assert_eq!(out.len(), HEADER_USED);
        out.resize(SEGMENT_HEADER_SIZE as usize, 0);
        out
    }

    /// The header in `bytes`, or what is wrong with it. The format is looked at before the CRC, so that a later
    /// version's header is named as such.
    pub(crate) fn decode(bytes: &[u8]) -> Result<SegmentHeader, BadHeader> {
        if bytes.len() < SEGMENT_HEADER_SIZE as usize || bytes[..8] != *MAGIC {
            return Err(BadHeader::Damaged);
        }
        let crc = u32::from_le_bytes(bytes[HEADER_USED - 4..HEADER_USED].try_into().expect("four bytes"));
        let intact = crc == crc_fast::crc32_iscsi(&bytes[..HEADER_USED - 4]);
        let format = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if format != LOG_FORMAT {
            // A flipped bit in a version we know must not send the operator looking for another program.
            let as_ours = intact || format > LOG_FORMAT && format < 1 << 16;
            return Err(if as_ours { BadHeader::Format(format) } else { BadHeader::Damaged });
        }
        if !intact {
            return Err(BadHeader::Damaged);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let hard_state =
            HardState { term: word(72), vote: word(80), commit: word(88), ..HardState::default() };
        Ok(SegmentHeader {
            identity: Identity {
                cluster_id: Uuid::from_slice(&bytes[16..32]).expect("sixteen bytes"),
                raft_id: word(32),
            },
            stamp: Stamp {
                epoch: word(40),
                salt: u32::from_le_bytes(bytes[104..108].try_into().expect("four bytes")),
            },
            first_number: word(48),
            base_index: word(56),
            base_term: word(64),
            hard_state,
            segment_bytes: word(96),
        })
    }
}

/// Why a header does not decode.
#[derive(Debug, PartialEq)]
pub(crate) enum BadHeader {
    Damaged,
    Format(u32),
}

/// What stands of a log on a disk.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Segments by ascending epoch.
    pub(crate) segments: Vec<(u64, String)>,
    pub(crate) spares: Vec<String>,
}

/// Lists the log's files and removes a spare that was never finished.
pub(crate) fn list(disk: &dyn DiskIo) -> Result<Listing, LogError> {
    let mut listing = Listing::default();
    for name in disk.list().map_err(io_error("list", disk, ""))? {
        if name == PREPARING {
            disk.remove(&name).map_err(io_error("remove", disk, &name))?;
        } else if name.starts_with(SPARE_PREFIX) {
            listing.spares.push(name);
        } else if let Some(hex) = name.strip_prefix(SEGMENT_PREFIX) {
            let epoch = u64::from_str_radix(hex, 16).map_err(|_| LogError::Damaged {
                dir: PathBuf::from(disk.name()),
                what: format!("{name} is not the name of a segment"),
            })?;
            listing.segments.push((epoch, name));
        }
    }
    listing.segments.sort();
    listing.spares.sort();
    Ok(listing)
}

/// Whether a file of this name is the log's.
pub(crate) fn is_log_file(name: &str) -> bool {
    name == PREPARING || name.starts_with(SPARE_PREFIX) || name.starts_with(SEGMENT_PREFIX)
}

pub(crate) fn segment_name(epoch: u64) -> String {
    format!("{SEGMENT_PREFIX}{epoch:016x}")
}

pub(crate) fn open_file(disk: &dyn DiskIo, name: &str) -> Result<Arc<dyn BlockFile>, LogError> {
    disk.open(name, OpenMode::Existing).map_err(io_error("open", disk, name))
}

/// Opens a file of which the bytes up to `end` will be believed. After a failed fsync the kernel shows what never reached
/// the disk: memory is written out first and then not asked.
pub(crate) fn open_as_stored(disk: &dyn DiskIo, name: &str, end: u64) -> std::io::Result<Arc<dyn BlockFile>> {
    let file = disk.open(name, OpenMode::Existing)?;
    file.sync_all()?;
    file.drop_cached(end)?;
    Ok(file)
}

/// Makes a zero-filled spare, durable under its name.
pub(crate) fn prepare_spare(disk: &dyn DiskIo, segment_bytes: u64) -> Result<String, LogError> {
    let outcome = fill_with_zeros(disk, segment_bytes).and_then(|()| {
        let spare = unused_spare_name(disk)?;
        disk.rename(PREPARING, &spare)?;
        disk.sync_names()?;
        Ok(spare)
    });
    outcome.map_err(|source| {
        let _ = disk.remove(PREPARING);
        if is_full(&source) {
            return LogError::Full { dir: PathBuf::from(disk.name()) };
        }
        io_error("prepare", disk, PREPARING)(source)
    })
}

/// Turns a segment into a spare. Durable before it returns: the file's header is overwritten later, and must not be
/// then if a power cut brings the old name back.
pub(crate) fn retire_segment(disk: &dyn DiskIo, name: &str) -> Result<String, LogError> {
    let spare = unused_spare_name(disk).map_err(io_error("list", disk, ""))?;
    disk.rename(name, &spare).map_err(io_error("rename", disk, name))?;
    disk.sync_names().map_err(io_error("sync", disk, ""))?;
    Ok(spare)
}

pub(crate) fn remove_segment(disk: &dyn DiskIo, name: &str) -> Result<(), LogError> {
    disk.remove(name).map_err(io_error("remove", disk, name))?;
    disk.sync_names().map_err(io_error("sync", disk, ""))
}

/// Gives a spare whose header is durable its segment name.
pub(crate) fn promote_spare(disk: &dyn DiskIo, spare: &str, epoch: u64) -> Result<String, LogError> {
    let name = segment_name(epoch);
    disk.rename(spare, &name).map_err(io_error("rename", disk, spare))?;
    disk.sync_names().map_err(io_error("sync", disk, ""))?;
    Ok(name)
}

pub(crate) fn io_error(
    action: &'static str,
    disk: &dyn DiskIo,
    name: &str,
) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = PathBuf::from(disk.name()).join(name);
    move |source| LogError::Io { action, path, source }
}

/// Real zeros rather than an allocation: writing into allocated but unwritten blocks would change the file's extents,
/// and every fdatasync of the log would then commit the file system's journal too.
fn fill_with_zeros(disk: &dyn DiskIo, size: u64) -> io::Result<()> {
    let file = disk.open(PREPARING, OpenMode::Fresh)?;
    file.allocate(0, size)?;
    write_zeros(&*file, 0, size)?;
    file.sync_all()
}

fn unused_spare_name(disk: &dyn DiskIo) -> io::Result<String> {
    let names = disk.list()?;
    let unused =
        (0u64..).map(|number| format!("{SPARE_PREFIX}{number:04}")).find(|name| !names.contains(name));
    Ok(unused.expect("a directory has fewer than 2^64 files"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            identity: Identity { cluster_id: Uuid::from_u128(0x0102_0304_0506_0708), raft_id: 1 },
            stamp: Stamp { epoch: 3, salt: 0xfeed_f00d },
            first_number: 77,
            base_index: 50,
            base_term: 2,
            hard_state: HardState { term: 2, vote: 1, commit: 49, ..HardState::default() },
            segment_bytes: 65536,
        }
    }

    #[test]
    fn a_header_has_the_documented_bytes() {
        let bytes = header().encode();
        let text: String = bytes[..HEADER_USED].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            text,
            "465a5241464c4f47010000000010000000000000000000000102030405060708010000000000000003000000000000004d\
             0000000000000032000000000000000200000000000000020000000000000001000000000000003100000000000000000001\
             00000000000df0edfea645174e"
        );
        assert!(bytes[HEADER_USED..].iter().all(|byte| *byte == 0));
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
    }

    #[test]
    fn a_damaged_or_newer_header_is_refused() {
        for at in 0..HEADER_USED {
            let mut bytes = header().encode();
            bytes[at] ^= 0x40;
            assert!(SegmentHeader::decode(&bytes).is_err(), "byte {at}");
        }
        let mut newer = header().encode();
        newer[8] = 2;
        assert_eq!(SegmentHeader::decode(&newer), Err(BadHeader::Format(2)));
        assert_eq!(SegmentHeader::decode(&[]), Err(BadHeader::Damaged));
    }
}
