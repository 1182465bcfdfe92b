//! The log's files: segment headers, names, zero-filling, renames that survive a power cut.
//!
//! `<epoch>.seg` is a segment of the log, `spare-<n>` a file of a segment's size that waits to become one,
//! `preparing` a spare in the making. A file carries the name `.seg` only while its header is durable and right, so a
//! bad header in one is damage, and a bad header in a spare is nothing.
//!
//! Not here: what the records mean (see `segmented`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use raft::eraftpb::HardState;
use rustix::fs::{FallocateFlags, fallocate};
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
const SPARE_PREFIX: &str = "spare-";
const SEGMENT_SUFFIX: &str = ".seg";

/// Zeros are written in pieces of this size.
const ZERO_PIECE: usize = 1 << 20;

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

/// What stands in a log directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Segments by ascending epoch.
    pub(crate) segments: Vec<(u64, PathBuf)>,
    pub(crate) spares: Vec<PathBuf>,
}

/// Lists the directory and removes a spare that was never finished.
pub(crate) fn list(dir: &Path) -> Result<Listing, LogError> {
    let mut listing = Listing::default();
    for item in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = item.map_err(io_error("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == PREPARING {
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
        } else if name.starts_with(SPARE_PREFIX) {
            listing.spares.push(path);
        } else if let Some(hex) = name.strip_suffix(SEGMENT_SUFFIX) {
            let epoch = u64::from_str_radix(hex, 16).map_err(|_| LogError::Damaged {
                dir: dir.to_owned(),
                what: format!("{name} is not the name of a segment"),
            })?;
            listing.segments.push((epoch, path));
        }
    }
    listing.segments.sort();
    listing.spares.sort();
    Ok(listing)
}

pub(crate) fn segment_path(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("{epoch:016x}{SEGMENT_SUFFIX}"))
}

pub(crate) fn open_file(path: &Path) -> Result<File, LogError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(io_error("open", path))
}

/// Makes a zero-filled spare, durable under its name.
pub(crate) fn prepare_spare(dir: &Path, segment_bytes: u64) -> Result<PathBuf, LogError> {
    let preparing = dir.join(PREPARING);
    let outcome = fill_with_zeros(&preparing, segment_bytes).and_then(|()| {
        let spare = unused_spare_path(dir);
        std::fs::rename(&preparing, &spare)?;
        sync_dir(dir)?;
        Ok(spare)
    });
    outcome.map_err(|source| {
        let _ = std::fs::remove_file(&preparing);
        full_or_io(dir, "prepare", &preparing, source)
    })
}

/// Turns a segment into a spare. Durable before it returns: the file's header is overwritten later, and must not be
/// then if a power cut brings the old name back.
pub(crate) fn retire_segment(dir: &Path, path: &Path) -> Result<PathBuf, LogError> {
    let spare = unused_spare_path(dir);
    std::fs::rename(path, &spare).map_err(io_error("rename", path))?;
    sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok(spare)
}

pub(crate) fn remove_segment(dir: &Path, path: &Path) -> Result<(), LogError> {
    std::fs::remove_file(path).map_err(io_error("remove", path))?;
    sync_dir(dir).map_err(io_error("sync", dir))
}

/// Gives a spare whose header is durable its segment name.
pub(crate) fn promote_spare(dir: &Path, spare: &Path, epoch: u64) -> Result<PathBuf, LogError> {
    let path = segment_path(dir, epoch);
    std::fs::rename(spare, &path).map_err(io_error("rename", spare))?;
    sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok(path)
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Io { action, path: path.to_owned(), source }
}

fn full_or_io(dir: &Path, action: &'static str, path: &Path, source: io::Error) -> LogError {
    if is_full(&source) {
        LogError::Full { dir: dir.to_owned() }
    } else {
        LogError::Io { action, path: path.to_owned(), source }
    }
}

/// Real zeros rather than an allocation: writing into allocated but unwritten blocks would change the file's extents,
/// and every fdatasync of the log would then commit the file system's journal too.
fn fill_with_zeros(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, size) {
        // Not every file system can; the zeros then allocate.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = vec![0; ZERO_PIECE.min(size as usize)];
    let mut at = 0;
    while at < size {
        let piece = zeros.len().min((size - at) as usize);
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    file.sync_all()
}

fn unused_spare_path(dir: &Path) -> PathBuf {
    (0u64..)
        .map(|number| dir.join(format!("{SPARE_PREFIX}{number:04}")))
        .find(|path| !path.exists())
        .expect("a directory has fewer than 2^64 files")
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
