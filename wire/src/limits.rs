//! Every limit that more than one crate must know, with its origin.

use std::time::Duration;

/// S3: a key has at most 1,024 bytes.
pub const KEY_NAME_BYTES_MAX: usize = 1024;
/// S3: an object in one PUT, a part, and a copied object have at most 5 GiB.
pub const PUT_BYTES_MAX: u64 = 5 << 30;
/// S3: a part that is not the last has at least 5 MiB.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// S3: part numbers run from 1 to 10,000.
pub const PARTS_MAX: u32 = 10_000;
/// S3: a page of a listing holds at most 1,000 entries.
pub const LIST_ENTRIES_MAX: u32 = 1000;
/// S3: DeleteObjects takes at most 1,000 keys.
pub const DELETE_KEYS_MAX: usize = 1000;
/// S3: user metadata, names and values together, has at most 2 KiB.
pub const USER_METADATA_BYTES_MAX: usize = 2048;
/// S3: an account has at most this many buckets here (AWS allows 10,000 by default).
pub const BUCKETS_PER_OWNER_MAX: usize = 10_000;

/// Bytes in a chunk: the unit of checksums, later of encryption and erasure coding (design: 64 KiB).
pub const CHUNK_BYTES: usize = 64 << 10;
/// Bytes in a block at most (Ozone: 256 MiB).
pub const BLOCK_BYTES_MAX: u64 = 256 << 20;
/// A body of unknown length: buffered up to this, then ...
pub const STREAM_BUFFER_BYTES: usize = 4 << 20;
/// ... one block of this size, then ...
pub const STREAM_FIRST_BLOCK_BYTES: u64 = 16 << 20;
/// ... blocks of this size, whose unused end is punched.
pub const STREAM_BLOCK_BYTES: u64 = 64 << 20;
/// Bytes of a [`crate::chunk::ChunkRun`] at most: how much of a body moves in one step.
pub const CHUNK_RUN_BYTES_MAX: usize = 1 << 20;

/// Ids in a loan at most (design: 256). The bitmap of ids left has as many bits.
pub const LOAN_IDS_MAX: u16 = 256;
/// Ids SCM grants in one lease. Enough that a container of small blocks needs few grants.
pub const LEASE_IDS: u64 = 65_536;
/// A gateway uses a loan no longer than this: its block tokens live a little longer.
pub const LOAN_USE_MS: u64 = 25 * 60 * 1000;
/// Life of a block token (design: 30 min).
pub const BLOCK_TOKEN_LIFE_MS: u64 = 30 * 60 * 1000;
/// Clocks of our own nodes differ by less than this.
pub const CLOCK_SKEW_MS: u64 = 30 * 1000;

/// What a gateway chooses for a new key before it asks OM, it chooses by a configuration that OM gave or confirmed within
/// this time; who changes such a choice is answered when it has passed.
pub const BUCKET_CURRENT: Duration = Duration::from_secs(1);

/// Rows one OM command writes at most (design: 512); larger work is cut into commands.
pub const COMMAND_ROWS_MAX: usize = 512;
/// Bytes of a Raft command at most (faults.md, RF13: raft-rs panics on oversized Readies).
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Block entries in a version's own row; longer lists lie in `layout` rows.
pub const ROW_BLOCKS_MAX: usize = 4;
/// Bytes of part checksums kept with a key at most: 2,048 parts of SHA-256, all 10,000 of CRC32. Beyond it the object's own
/// checksum is kept alone, since a key's row is read whole by every GET.
pub const PART_CHECKSUM_BYTES_MAX: usize = 64 << 10;
/// Bytes of one `layout` row.
pub const LAYOUT_ROW_BYTES: usize = 16 << 10;
/// Block entries of one commit at most: 5 GiB in 64 MiB blocks is 80; the rest is room.
pub const COMMIT_BLOCKS_MAX: usize = 128;
/// Block entries a copy may share at most (block and block_ref rows of one command); longer sources are copied by bytes.
pub const COPY_SHARED_BLOCKS_MAX: usize = 200;
/// Bytes of an RPC message at most: a Complete of 10,000 parts is about 0.6 MiB.
pub const RPC_BYTES_MAX: usize = 4 << 20;
/// A session silent for this long is ended (design: 10 min).
pub const SESSION_SILENCE_MS: u64 = 10 * 60 * 1000;
