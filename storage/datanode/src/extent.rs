//! Header and trailer of an extent, and the pages at the beginning of a container file: bytes and back.
//!
//! ```text
//! extent:  | header 64 | data ... | padding or hole | chunk CRCs, 4 each | trailer 64 |   a multiple of 4 KiB
//! ```
//!
//! The trailer ends at the extent's end, whose place follows from the header alone, so a file can be read without an
//! index. Header and trailer end in a CRC-64 over their fields, the extent's place in the file and the container's
//! *salt*: random bytes that never leave the node. Without the salt nobody can make bytes that pass, so neither a
//! user's data nor what a disk held before can be taken for an extent; the place makes misdirected writes show.
//!
//! Not here: which extents a file holds (`recovery`), when they are written (`write`).

use crc_fast::{CrcAlgorithm, Digest};
use uuid::Uuid;
use wire::block::Replication;
use wire::chunk::{BlockDigest, chunk_count};
use wire::ids::{BlockId, ClusterId, ContainerId, Generation, LocalId};
use wire::limits::{BLOCK_BYTES_MAX, CHUNK_BYTES};

/// Extents begin and end at multiples of this: the page a disk writes or loses as one.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a trailer.
pub const TRAILER_BYTES: usize = 64;

const HEADER_MAGIC: [u8; 8] = *b"FzBlock1";
const TRAILER_MAGIC: [u8; 8] = *b"FzBlkEnd";
const CONTAINER_MAGIC: [u8; 8] = *b"FzContnr";
const SEAL_MAGIC: [u8; 8] = *b"FzSealed";
const FLAG_EXACT: u32 = 1;
const CONTAINER_HEADER_BYTES: usize = 88;
const SEAL_BYTES: usize = 48;
const FLAG_COPY: u16 = 1;

/// Random bytes of a container that never leave the node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 16]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(***)")
    }
}

/// The first page of a container file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerHeader {
    /// Which layout the rest of the file has.
    pub layout: u32,
    /// The container.
    pub container: ContainerId,
    /// The replica's life.
    pub generation: Generation,
    /// The container's replication type.
    pub replication: Replication,
    /// 0 for replication; a shard number for erasure coding.
    pub replica_index: u8,
    /// Made by copying another replica, not by writers.
    pub is_copy: bool,
    /// The cluster.
    pub cluster: ClusterId,
    /// See [`Salt`].
    pub salt: Salt,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentHeader {
    /// The block.
    pub block: BlockId,
    /// The replica's life.
    pub generation: Generation,
    /// Drawn for this write; equal in the trailer.
    pub nonce: u64,
    /// Bytes of data there is room for.
    pub reserved: u64,
    /// Whether exactly `reserved` bytes are stored.
    pub is_exact: bool,
}

/// What a trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtentTrailer {
    /// The block.
    pub block: BlockId,
    /// The replica's life.
    pub generation: Generation,
    /// Equal in the header.
    pub nonce: u64,
    /// Bytes of data.
    pub length: u64,
    /// Over ids, length and chunk CRCs.
    pub digest: BlockDigest,
}

/// Bytes of the extent of a block with room for `reserved` bytes.
pub const fn extent_bytes(reserved: u64) -> u64 {
    let raw = HEADER_BYTES as u64 + reserved + 4 * chunk_count(reserved) + TRAILER_BYTES as u64;
    raw.next_multiple_of(PAGE_BYTES)
}

struct Fields<'a>(&'a mut [u8], usize);

impl Fields<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
        self
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

/// CRC-64/NVME over fields, place and salt.
fn salted_crc(fields: &[u8], offset: u64, salt: &Salt) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(fields);
    digest.update(&offset.to_le_bytes());
    digest.update(&salt.0);
    digest.finalize()
}

impl ExtentHeader {
    /// Bytes of the whole extent.
    pub const fn extent_bytes(&self) -> u64 {
        extent_bytes(self.reserved)
    }

    /// The bytes of the header of an extent at `offset`.
    pub fn encode(&self, offset: u64, salt: &Salt) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        Fields(&mut bytes, 0)
            .put(&HEADER_MAGIC)
            .put(&self.block.container.0.to_le_bytes())
            .put(&self.generation.0.to_le_bytes())
            .put(&self.block.local.0.to_le_bytes())
            .put(&self.nonce.to_le_bytes())
            .put(&self.reserved.to_le_bytes())
            .put(&(CHUNK_BYTES as u32).to_le_bytes())
            .put(&(if self.is_exact { FLAG_EXACT } else { 0 }).to_le_bytes());
        let crc = salted_crc(&bytes[..56], offset, salt);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at `offset`, if `bytes` begin with one that is right in every field.
    pub fn decode(bytes: &[u8], offset: u64, salt: &Salt) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let is_ours =
            bytes[..8] == HEADER_MAGIC && u64_at(bytes, 56) == salted_crc(&bytes[..56], offset, salt);
        let flags = u32_at(bytes, 52);
        let reserved = u64_at(bytes, 40);
        if !is_ours
            || u32_at(bytes, 48) != CHUNK_BYTES as u32
            || flags > FLAG_EXACT
            || reserved > BLOCK_BYTES_MAX
        {
            return None;
        }
        Some(Self {
            block: BlockId { container: ContainerId(u64_at(bytes, 8)), local: LocalId(u64_at(bytes, 24)) },
            generation: Generation(u64_at(bytes, 16)),
            nonce: u64_at(bytes, 32),
            reserved,
            is_exact: flags == FLAG_EXACT,
        })
    }
}

impl ExtentTrailer {
    /// The bytes of the trailer of the extent that begins at `offset`.
    pub fn encode(&self, offset: u64, salt: &Salt) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        Fields(&mut bytes, 0)
            .put(&TRAILER_MAGIC)
            .put(&self.block.container.0.to_le_bytes())
            .put(&self.generation.0.to_le_bytes())
            .put(&self.block.local.0.to_le_bytes())
            .put(&self.nonce.to_le_bytes())
            .put(&self.length.to_le_bytes())
            .put(&self.digest.0.to_le_bytes());
        let crc = salted_crc(&bytes[..56], offset, salt);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The trailer of the extent at `offset`, if `bytes` are one.
    pub fn decode(bytes: &[u8], offset: u64, salt: &Salt) -> Option<Self> {
        let bytes = bytes.get(..TRAILER_BYTES)?;
        if bytes[..8] != TRAILER_MAGIC || u64_at(bytes, 56) != salted_crc(&bytes[..56], offset, salt) {
            return None;
        }
        Some(Self {
            block: BlockId { container: ContainerId(u64_at(bytes, 8)), local: LocalId(u64_at(bytes, 24)) },
            generation: Generation(u64_at(bytes, 16)),
            nonce: u64_at(bytes, 32),
            length: u64_at(bytes, 40),
            digest: BlockDigest(u64_at(bytes, 48)),
        })
    }

    /// Whether header and trailer belong to one write.
    pub fn fits(&self, header: &ExtentHeader) -> bool {
        self.block == header.block
            && self.generation == header.generation
            && self.nonce == header.nonce
            && if header.is_exact { self.length == header.reserved } else { self.length <= header.reserved }
    }
}

/// The bytes of a chunk list.
pub fn encode_crcs(crcs: &[u32]) -> Vec<u8> {
    crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect()
}

/// A chunk list from its bytes.
pub fn decode_crcs(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|crc| u32_at(crc, 0)).collect()
}

impl ContainerHeader {
    /// The page.
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES as usize];
        let replication = match self.replication {
            Replication::One => 1,
            Replication::Three => 3,
        };
        Fields(&mut page, 0)
            .put(&CONTAINER_MAGIC)
            .put(&self.layout.to_le_bytes())
            .put(&[replication, self.replica_index])
            .put(&(if self.is_copy { FLAG_COPY } else { 0 }).to_le_bytes())
            .put(&self.container.0.to_le_bytes())
            .put(&self.generation.0.to_le_bytes())
            .put(self.cluster.0.as_bytes())
            .put(&self.salt.0)
            .put(&[0; 16]);
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &page[..CONTAINER_HEADER_BYTES - 8]);
        page[CONTAINER_HEADER_BYTES - 8..CONTAINER_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// The header, if the page is one. The layout may be one that this program does not know.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let bytes = page.get(..CONTAINER_HEADER_BYTES)?;
        let crc = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes[..CONTAINER_HEADER_BYTES - 8]);
        if bytes[..8] != CONTAINER_MAGIC || u64_at(bytes, CONTAINER_HEADER_BYTES - 8) != crc {
            return None;
        }
        let replication = match bytes[12] {
            1 => Replication::One,
            3 => Replication::Three,
            _ => return None,
        };
        Some(Self {
            layout: u32_at(bytes, 8),
            container: ContainerId(u64_at(bytes, 16)),
            generation: Generation(u64_at(bytes, 24)),
            replication,
            replica_index: bytes[13],
            is_copy: bytes[14] & FLAG_COPY as u8 != 0,
            cluster: ClusterId(Uuid::from_slice(&bytes[32..48]).ok()?),
            salt: Salt(bytes[48..64].try_into().ok()?),
        })
    }
}

/// What a seal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Where the last extent ends.
    pub end: u64,
    /// The last deletion transaction that was done when a copy was made. 0 in a file that was written here: its
    /// deletions are known to the index alone, since they may not have been punched yet.
    pub deletion_done: u64,
}

/// The seal: the second page of a file that takes no more blocks. See [`Seal`].
pub fn encode_seal(header: &ContainerHeader, end: u64, deletion_done: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES as usize];
    Fields(&mut page, 0)
        .put(&SEAL_MAGIC)
        .put(&header.container.0.to_le_bytes())
        .put(&header.generation.0.to_le_bytes())
        .put(&end.to_le_bytes())
        .put(&deletion_done.to_le_bytes());
    let crc = salted_crc(&page[..SEAL_BYTES - 8], PAGE_BYTES, &header.salt);
    page[SEAL_BYTES - 8..SEAL_BYTES].copy_from_slice(&crc.to_le_bytes());
    page
}

/// What the seal says; None if the page is not this file's seal.
pub fn decode_seal(page: &[u8], header: &ContainerHeader) -> Option<Seal> {
    let bytes = page.get(..SEAL_BYTES)?;
    let is_ours = bytes[..8] == SEAL_MAGIC
        && u64_at(bytes, 8) == header.container.0
        && u64_at(bytes, 16) == header.generation.0
        && u64_at(bytes, SEAL_BYTES - 8) == salted_crc(&bytes[..SEAL_BYTES - 8], PAGE_BYTES, &header.salt);
    is_ours.then(|| Seal { end: u64_at(bytes, 24), deletion_done: u64_at(bytes, 32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ExtentHeader {
        ExtentHeader {
            block: BlockId { container: ContainerId(3), local: LocalId(4) },
            generation: Generation(1),
            nonce: 99,
            reserved: 4096,
            is_exact: true,
        }
    }

    #[test]
    fn header_passes_only_in_its_place_and_with_its_salt() {
        let salt = Salt([7; 16]);
        let bytes = header().encode(8192, &salt);
        assert_eq!(ExtentHeader::decode(&bytes, 8192, &salt), Some(header()));
        assert_eq!(ExtentHeader::decode(&bytes, 12288, &salt), None);
        assert_eq!(ExtentHeader::decode(&bytes, 8192, &Salt([8; 16])), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert_eq!(ExtentHeader::decode(&damaged, 8192, &salt), None, "byte {at}");
        }
    }

    #[test]
    fn small_block_takes_what_it_needs_rounded_once() {
        assert_eq!(extent_bytes(1), 4096);
        assert_eq!(extent_bytes(4096 - 132), 4096);
        assert_eq!(extent_bytes(4096 - 131), 8192);
        assert_eq!(extent_bytes(65536), 17 * 4096);
    }
}
