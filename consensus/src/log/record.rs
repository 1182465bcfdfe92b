//! Records: how anything stands in a segment.
//!
//! ```text
//!  0        4        8                16               24               32
//!  +--------+--------+----------------+----------------+----------------+---------------+-----------+
//!  | crc    | length | segment epoch  | record number  | synced number  | payload       | 0 to 7 x  |
//!  | u32    | u32    | u64            | u64            | u64            | length bytes  | zero      |
//!  +--------+--------+----------------+----------------+----------------+---------------+-----------+
//! ```
//!
//! All integers are little-endian; records start at multiples of 8. The CRC32C covers everything from `length` to the
//! end of the payload, XORed with the segment's salt, which never leaves the node: a command's bytes cannot pass for
//! a record. A record of another epoch is what a recycled file held before. Record numbers ascend by one and are
//! never used twice; `synced number` says which records were durable when this one was written, so that a later
//! record convicts an earlier damaged one.
//!
//! Not here: files and the order of records (see `segmented`).

use raft::eraftpb::{Entry, EntryType};

/// Bytes in front of a payload.
pub(crate) const RECORD_HEADER_SIZE: usize = 32;

/// Bytes of an entry's payload in front of its context and data.
const ENTRY_HEADER_SIZE: usize = 24;

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_SEAL: u8 = 4;
const KIND_OPENED: u8 = 5;
const KIND_RESET: u8 = 6;

/// The longest payload of a record that is not an entry, rounded up: room to keep for seals and the like.
pub(crate) const CONTROL_RECORD_SIZE: u64 = 64;

/// What a record says.
#[derive(Debug, PartialEq)]
pub(crate) enum Record<'a> {
    /// An entry of the log.
    Entry { kind: u8, index: u64, term: u64, context: &'a [u8], data: &'a [u8] },
    /// Term, vote and commit index.
    HardState { term: u64, vote: u64, commit: u64 },
    /// Entries at and above `from` are void; the one before has `previous_term`.
    Truncate { from: u64, previous_term: u64 },
    /// The segment ends; the log goes on in the segment of this epoch and salt.
    Seal { next_epoch: u64, next_salt: u32 },
    /// The log was opened; the number jumps from `previous` to this record's.
    Opened { previous: u64 },
    /// All entries are void: the state came from a snapshot at this index and term. Term and vote stay.
    Reset { index: u64, term: u64 },
    /// A kind this program does not know.
    Unknown { kind: u8 },
}

/// A record found in a segment.
#[derive(Debug, PartialEq)]
pub(crate) struct Found<'a> {
    pub(crate) number: u64,
    pub(crate) synced: u64,
    pub(crate) record: Record<'a>,
    /// Bytes to the next record.
    pub(crate) size: usize,
}

/// What stands in every record of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) epoch: u64,
    pub(crate) salt: u32,
}

/// Bytes a record with this payload takes.
pub(crate) const fn record_size(payload_size: usize) -> u64 {
    (RECORD_HEADER_SIZE + payload_size).next_multiple_of(8) as u64
}

/// Bytes the record of an entry takes.
pub(crate) const fn entry_record_size(context_and_data_size: usize) -> u64 {
    record_size(ENTRY_HEADER_SIZE + context_and_data_size)
}

impl<'a> Record<'a> {
    pub(crate) fn of_entry(entry: &'a Entry) -> Self {
        Record::Entry {
            kind: match entry.get_entry_type() {
                EntryType::EntryNormal => 0,
                EntryType::EntryConfChange => 1,
                EntryType::EntryConfChangeV2 => 2,
            },
            index: entry.index,
            term: entry.term,
            context: &entry.context,
            data: &entry.data,
        }
    }

    /// Bytes the record takes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Record::Entry { context, data, .. } => entry_record_size(context.len() + data.len()),
            _ => CONTROL_RECORD_SIZE,
        }
    }

    /// Appends the record to `out`, whose length must be a multiple of 8.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, stamp: Stamp, number: u64, synced: u64) {
        let start = out.len();
        debug_assert_eq!(start % 8, 0, "records are aligned");
        out.extend_from_slice(&[0; 8]);
        put_words(out, &[stamp.epoch, number, synced]);
        self.encode_payload(out);
        let length = (out.len() - start - RECORD_HEADER_SIZE) as u32;
        out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&out[start + 4..]) ^ stamp.salt;
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Entry { kind, index, term, context, data } => {
                out.extend_from_slice(&[KIND_ENTRY, kind, 0, 0]);
                out.extend_from_slice(&(context.len() as u32).to_le_bytes());
                put_words(out, &[index, term]);
                out.extend_from_slice(context);
                out.extend_from_slice(data);
            }
            Record::HardState { term, vote, commit } => {
                put_words(out, &[u64::from(KIND_HARD_STATE), term, vote, commit]);
            }
            Record::Truncate { from, previous_term } => {
                put_words(out, &[u64::from(KIND_TRUNCATE), from, previous_term]);
            }
            Record::Seal { next_epoch, next_salt } => {
                put_words(out, &[u64::from(KIND_SEAL), next_epoch, u64::from(next_salt)]);
            }
            Record::Opened { previous } => put_words(out, &[u64::from(KIND_OPENED), previous]),
            Record::Reset { index, term } => put_words(out, &[u64::from(KIND_RESET), index, term]),
            Record::Unknown { .. } => unreachable!("an unknown record is never written"),
        }
    }
}

/// The record at the start of `bytes`, or `None` if there is none of this stamp.
pub(crate) fn decode(bytes: &[u8], stamp: Stamp) -> Option<Found<'_>> {
    // The epoch first: a scan over a recycled or zero-filled tail then costs one comparison a place.
    if bytes.len() < RECORD_HEADER_SIZE || word(bytes, 8) != stamp.epoch {
        return None;
    }
    let length = u32_at(bytes, 4) as usize;
    let payload = bytes.get(RECORD_HEADER_SIZE..)?.get(..length)?;
    if crc_fast::crc32_iscsi(&bytes[4..RECORD_HEADER_SIZE + length]) ^ stamp.salt != u32_at(bytes, 0) {
        return None;
    }
    Some(Found {
        number: word(bytes, 16),
        synced: word(bytes, 24),
        record: decode_payload(payload)?,
        size: record_size(length) as usize,
    })
}

/// Bytes of the whole record at the start of `bytes`, as its unverified length says.
pub(crate) fn claimed_size(bytes: &[u8]) -> usize {
    record_size(u32_at(bytes, 4) as usize) as usize
}

fn decode_payload(payload: &[u8]) -> Option<Record<'_>> {
    let kind = *payload.first()?;
    let words = payload.len() / 8;
    let enough = |count: usize| (words >= count).then_some(());
    Some(match kind {
        KIND_ENTRY => {
            enough(3)?;
            let rest = &payload[ENTRY_HEADER_SIZE..];
            let (context, data) = rest.split_at_checked(u32_at(payload, 4) as usize)?;
            Record::Entry {
                kind: payload[1],
                index: word(payload, 8),
                term: word(payload, 16),
                context,
                data,
            }
        }
        KIND_HARD_STATE => {
            enough(4)?;
            Record::HardState { term: word(payload, 8), vote: word(payload, 16), commit: word(payload, 24) }
        }
        KIND_TRUNCATE => {
            enough(3)?;
            Record::Truncate { from: word(payload, 8), previous_term: word(payload, 16) }
        }
        KIND_SEAL => {
            enough(3)?;
            Record::Seal { next_epoch: word(payload, 8), next_salt: word(payload, 16) as u32 }
        }
        KIND_OPENED => {
            enough(2)?;
            Record::Opened { previous: word(payload, 8) }
        }
        KIND_RESET => {
            enough(3)?;
            Record::Reset { index: word(payload, 8), term: word(payload, 16) }
        }
        kind => Record::Unknown { kind },
    })
}

/// A raft entry with bytes of its own.
pub(crate) fn to_entry(kind: u8, index: u64, term: u64, context: &[u8], data: &[u8]) -> Option<Entry> {
    let mut entry = Entry { index, term, ..Entry::default() };
    entry.set_entry_type(match kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return None,
    });
    entry.context = context.to_vec().into();
    entry.data = data.to_vec().into();
    Some(entry)
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were sliced"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { epoch: 7, salt: 0x5a17_5a17 };

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        record.encode(&mut out, STAMP, 41, 40);
        out
    }

    /// The released format: these bytes must decode for ever.
    #[test]
    fn records_have_the_documented_bytes() {
        let cases: &[(Record<'_>, &str)] = &[
            (
                Record::Entry { kind: 0, index: 9, term: 2, context: b"", data: b"put a" },
                "d5f0634c1d0000000700000000000000290000000000000028000000000000000100000000000000\
                 090000000000000002000000000000007075742061000000",
            ),
            (
                Record::Entry { kind: 2, index: 9, term: 2, context: b"ctx", data: b"" },
                "c754e2a21b0000000700000000000000290000000000000028000000000000000102000003000000\
                 090000000000000002000000000000006374780000000000",
            ),
            (
                Record::HardState { term: 3, vote: 1, commit: 8 },
                "e0f16912200000000700000000000000290000000000000028000000000000000200000000000000\
                 030000000000000001000000000000000800000000000000",
            ),
            (
                Record::Truncate { from: 6, previous_term: 2 },
                "0554dae5180000000700000000000000290000000000000028000000000000000300000000000000\
                 06000000000000000200000000000000",
            ),
            (
                Record::Seal { next_epoch: 8, next_salt: 0xdead_beef },
                "ade84423180000000700000000000000290000000000000028000000000000000400000000000000\
                 0800000000000000efbeadde00000000",
            ),
            (
                Record::Opened { previous: 40 },
                "6fea56fc100000000700000000000000290000000000000028000000000000000500000000000000\
                 2800000000000000",
            ),
            (
                Record::Reset { index: 100, term: 4 },
                "fd97379b180000000700000000000000290000000000000028000000000000000600000000000000\
                 64000000000000000400000000000000",
            ),
        ];
        for (record, expected) in cases {
            let bytes = encoded(record);
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(text, *expected, "{record:?}");
            let found = decode(&bytes, STAMP).unwrap();
            assert_eq!((&found.record, found.number, found.synced), (record, 41, 40));
            assert_eq!(found.size, bytes.len());
            assert!(found.size as u64 <= record.size());
        }
    }

    #[test]
    fn a_flipped_bit_or_a_foreign_stamp_is_no_record() {
        let bytes = encoded(&Record::Entry { kind: 0, index: 9, term: 2, context: b"", data: b"put a" });
        for bit in 0..(RECORD_HEADER_SIZE + ENTRY_HEADER_SIZE + 5) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged, STAMP), None, "bit {bit}");
        }
        for size in 0..RECORD_HEADER_SIZE + ENTRY_HEADER_SIZE + 5 {
            assert_eq!(decode(&bytes[..size], STAMP), None);
        }
        assert_eq!(decode(&bytes, Stamp { epoch: 8, ..STAMP }), None);
        assert_eq!(decode(&bytes, Stamp { salt: 1, ..STAMP }), None);
    }
}
