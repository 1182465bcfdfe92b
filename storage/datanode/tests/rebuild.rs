//! A container file is read from its bytes alone, also when they were changed: never a block that was not written so,
//! never the loss of one whose own bytes are whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use datanode::extent::{ContainerHeader, ExtentHeader, ExtentTrailer, PAGE_BYTES, Salt, encode_crcs};
use datanode::layout::{ContainerLayout, layout};
use datanode::recovery::{Scan, scan};
use platform::disk::{BlockFile, DiskIo, OpenMode};
use platform::simulated::SimulatedDisk;
use proptest::prelude::*;
use wire::block::Replication;
use wire::chunk::{BlockDigest, ChunkRun, chunk_count, chunk_crc};
use wire::ids::{BlockId, ClusterId, ContainerId, Generation, LocalId};
use wire::limits::CHUNK_BYTES;

fn header(salt: u8) -> ContainerHeader {
    ContainerHeader {
        layout: 1,
        container: ContainerId(7),
        generation: Generation(2),
        replication: Replication::One,
        replica_index: 0,
        is_copy: false,
        cluster: ClusterId::default(),
        salt: Salt([salt; 16]),
    }
}

fn rules() -> &'static dyn ContainerLayout {
    layout(1).expect("layout 1 is known")
}

fn block(local: u64) -> BlockId {
    BlockId { container: ContainerId(7), local: LocalId(local) }
}

/// The bytes of an extent as a writer makes them.
fn extent(
    header: &ContainerHeader,
    local: u64,
    nonce: u64,
    data: &[u8],
    reserved: u64,
    offset: u64,
) -> Vec<u8> {
    let run = ChunkRun::new(bytes::Bytes::copy_from_slice(data));
    let length = data.len() as u64;
    let digest = BlockDigest::new(block(local), length, &run.crcs);
    let head = ExtentHeader {
        block: block(local),
        generation: header.generation,
        nonce,
        reserved,
        is_exact: reserved == length,
    };
    let trailer = ExtentTrailer { block: block(local), generation: header.generation, nonce, length, digest };
    let mut bytes = head.encode(offset, &header.salt).to_vec();
    bytes.extend_from_slice(data);
    let mut tail = encode_crcs(&run.crcs);
    tail.extend_from_slice(&trailer.encode(offset, &header.salt));
    bytes.resize(head.extent_bytes() as usize - tail.len(), 0);
    bytes.extend_from_slice(&tail);
    bytes
}

fn file_of(bytes: &[u8]) -> Arc<dyn BlockFile> {
    let disk = SimulatedDisk::new(1 << 40);
    let file = disk.open("c", OpenMode::Fresh).expect("a fresh file opens");
    file.write_at(0, &[bytes]).expect("there is room");
    file
}

fn scan_bytes(bytes: &[u8], header: &ContainerHeader) -> Scan {
    scan(&*file_of(bytes), header, rules(), 0, &[]).expect("the file can be read")
}

struct Built {
    bytes: Vec<u8>,
    /// Local id to (offset, size, data).
    blocks: BTreeMap<u64, (usize, usize, Vec<u8>)>,
}

fn build(lengths: &[(usize, usize)]) -> Built {
    let header = header(1);
    let mut bytes = header.encode();
    bytes.resize(rules().first_extent() as usize, 0);
    let mut blocks = BTreeMap::new();
    for (number, (length, slack)) in lengths.iter().enumerate() {
        let data: Vec<u8> = (0..*length).map(|at| (at * 31 + number * 7 + 1) as u8).collect();
        let offset = bytes.len();
        let local = number as u64 + 10;
        let made = extent(&header, local, local * 1000, &data, (length + slack) as u64, offset as u64);
        blocks.insert(local, (offset, made.len(), data));
        bytes.extend_from_slice(&made);
    }
    bytes.resize(bytes.len() + 16 * PAGE_BYTES as usize, 0);
    Built { bytes, blocks }
}

/// What was found must read back as what was written.
fn check_found(built: &Built, bytes: &[u8], found: &BTreeMap<LocalId, datanode::Extent>) {
    for (local, extent) in found {
        let (offset, _, data) = &built.blocks[&local.0];
        assert_eq!((extent.offset as usize, extent.length as usize), (*offset, data.len()));
        let at = offset + rules().data_offset() as usize;
        assert!(bytes[at..at + data.len()] == data[..], "block {local} has other bytes");
    }
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip { at: f64, bit: u8 },
    ZeroPage { at: f64 },
    CopyPage { from: f64, to: f64 },
    Truncate { at: f64 },
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let place = || 0.0..1.0f64;
    let one = prop_oneof![
        (place(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        place().prop_map(|at| Mutation::ZeroPage { at }),
        (place(), place()).prop_map(|(from, to)| Mutation::CopyPage { from, to }),
        place().prop_map(|at| Mutation::Truncate { at }),
    ];
    prop::collection::vec(one, 1..4)
}

/// Changes the bytes and says which ranges differ now.
fn mutate(bytes: &mut Vec<u8>, mutations: &[Mutation]) {
    let page = PAGE_BYTES as usize;
    for mutation in mutations {
        let first = rules().first_extent() as usize;
        let span = bytes.len().saturating_sub(first);
        if span < page {
            return;
        }
        let place = |at: f64| first + (span as f64 * at) as usize;
        let page_at = |at: f64| (place(at) / page * page).min(first + span - page);
        match mutation {
            Mutation::Flip { at, bit } => {
                let at = place(*at).min(bytes.len() - 1);
                bytes[at] ^= 1 << bit;
            }
            Mutation::ZeroPage { at } => {
                let at = page_at(*at);
                bytes[at..at + page].fill(0);
            }
            Mutation::CopyPage { from, to } => {
                let (from, to) = (page_at(*from), page_at(*to));
                let copy = bytes[from..from + page].to_vec();
                bytes[to..to + page].copy_from_slice(&copy);
            }
            Mutation::Truncate { at } => bytes.truncate(page_at(*at)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_give_only_true_blocks_and_all_whole_ones(
        lengths in prop::collection::vec((prop_oneof![1..9000usize, 60_000..200_000usize], prop_oneof![Just(0usize), 0..200_000usize]), 1..8),
        mutations in mutations(),
    ) {
        let built = build(&lengths);
        let mut bytes = built.bytes.clone();
        mutate(&mut bytes, &mutations);
        let scanned = scan_bytes(&bytes, &header(1));
        check_found(&built, &bytes, &scanned.found);
        let mut is_hurt = false;
        for (local, (offset, size, _)) in &built.blocks {
            let now = bytes.get(*offset..offset + size);
            let is_whole = now == Some(&built.bytes[*offset..offset + size]);
            is_hurt |= now.is_none_or(|now| now != &built.bytes[*offset..offset + size] && now.iter().any(|byte| *byte != 0));
            if is_whole {
                prop_assert!(scanned.found.contains_key(&LocalId(*local)), "block {local} is whole and was not found");
            }
        }
        let all_found = scanned.found.len() == built.blocks.len();
        prop_assert!(scanned.suspect_pages > 0 || all_found || !is_hurt || bytes.len() < built.bytes.len());
    }
}

#[test]
fn an_untouched_file_gives_all_blocks_and_no_suspects() {
    let built = build(&[(1, 0), (4096, 0), (65_536, 0), (65_537, 0), (10, 500_000), (300_000, 1)]);
    let scanned = scan_bytes(&built.bytes, &header(1));
    assert_eq!(scanned.found.len(), 6);
    assert_eq!(scanned.suspect_pages, 0);
    assert_eq!(scanned.end as usize, built.bytes.len() - 16 * PAGE_BYTES as usize);
    check_found(&built, &built.bytes, &scanned.found);
}

#[test]
fn every_torn_page_of_an_extent_is_noticed() {
    let built = build(&[(150_000, 0)]);
    let (offset, size, _) = &built.blocks[&10];
    for page in (*offset..offset + size).step_by(PAGE_BYTES as usize) {
        let mut bytes = built.bytes.clone();
        bytes[page..page + PAGE_BYTES as usize].fill(0);
        let scanned = scan_bytes(&bytes, &header(1));
        assert!(scanned.found.is_empty(), "page at {page}");
        assert_eq!(scanned.suspect_pages, (size / PAGE_BYTES as usize) as u64 - 1);
    }
}

#[test]
fn bytes_of_a_former_file_or_of_another_place_do_not_pass() {
    // The same container and generation with another salt: what the disk held before.
    let built = build(&[(5000, 0), (100_000, 0)]);
    let scanned = scan_bytes(&built.bytes, &header(2));
    assert!(scanned.found.is_empty());
    assert!(scanned.suspect_pages > 0);
    // The same bytes, a page further on: a misdirected write.
    let mut moved = header(1).encode();
    moved.resize(rules().first_extent() as usize + PAGE_BYTES as usize, 0);
    moved.extend_from_slice(&built.bytes[rules().first_extent() as usize..]);
    assert!(scan_bytes(&moved, &header(1)).found.is_empty());
}

#[test]
fn data_that_imitates_extents_does_not_pass() {
    // A user knows everything but the salt, and puts whole extents at page boundaries of his own block, which is torn.
    let mine = header(1);
    let guess = Salt([0; 16]);
    let page = PAGE_BYTES as usize;
    let start = rules().first_extent() as usize;
    let mut data = vec![0; page - rules().data_offset() as usize];
    while data.len() < 20 * page {
        let offset = start + rules().data_offset() as usize + data.len();
        let forged = ContainerHeader { salt: guess, ..mine };
        let bytes = extent(&forged, 77, 5, b"never written by anyone", 23, offset as u64);
        data.extend_from_slice(&bytes);
    }
    let real = extent(&mine, 10, 1, &data, data.len() as u64, start as u64);
    let mut bytes = mine.encode();
    bytes.resize(start, 0);
    bytes.extend_from_slice(&real);
    assert_eq!(scan_bytes(&bytes, &mine).found.len(), 1, "whole, it is one block");
    bytes[start..start + page].fill(0);
    let torn = scan_bytes(&bytes, &mine);
    assert!(torn.found.is_empty());
    assert!(torn.suspect_pages >= 20);
}

#[test]
fn known_extents_are_stepped_over_and_never_overlapped() {
    let built = build(&[(5000, 0), (100_000, 0), (5000, 0)]);
    let (offset, size, _) = &built.blocks[&11];
    let known = [(*offset as u64, *size as u64)];
    let scanned = scan(&*file_of(&built.bytes), &header(1), rules(), 0, &known).unwrap();
    let mut found: Vec<u64> = scanned.found.keys().map(|local| local.0).collect();
    found.sort_unstable();
    assert_eq!(found, [10, 12]);
    // An extent that would reach into a known one is none.
    let inside = [(*offset as u64 + PAGE_BYTES, PAGE_BYTES)];
    let scanned = scan(&*file_of(&built.bytes), &header(1), rules(), 0, &inside).unwrap();
    assert!(!scanned.found.contains_key(&LocalId(11)));
    assert!(scanned.suspect_pages > 0);
}

#[test]
fn chunk_arithmetic_of_the_tests_is_that_of_the_wire() {
    assert_eq!(chunk_count(CHUNK_BYTES as u64 + 1), 2);
    assert_eq!(chunk_crc(b"123456789"), 0xe306_9283, "CRC-32C's check value");
}
