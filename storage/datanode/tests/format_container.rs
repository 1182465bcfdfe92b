//! Committed bytes of each released layout must still decode, and encode to the same bytes.

use datanode::extent::{
    ContainerHeader, ExtentHeader, ExtentTrailer, Salt, Seal, decode_seal, encode_seal, extent_bytes,
};
use datanode::identity::{Identity, NotAnIdentity};
use datanode::members;
use wire::block::Replication;
use wire::chunk::BlockDigest;
use wire::ids::{BlockId, ClusterId, ContainerId, DatanodeId, Generation, LocalId};

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn uuid(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte; 16])
}

fn container() -> ContainerHeader {
    ContainerHeader {
        layout: 1,
        container: ContainerId(0x0102),
        generation: Generation(3),
        replication: Replication::Three,
        replica_index: 0,
        is_copy: false,
        cluster: ClusterId(uuid(0xaa)),
        salt: Salt([0x5a; 16]),
    }
}

fn block() -> BlockId {
    BlockId { container: ContainerId(0x0102), local: LocalId(0x0a0b) }
}

const CONTAINER_V1: &str = "467a436f6e746e72010000000300000002010000000000000300000000000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a000000000000000000000000000000005491c75e6992b616";
const SEAL_V1: &str =
    "467a5365616c6564020100000000000003000000000000000090000000000000000000000000000087fd27ab91cd01cb";
const HEADER_V1: &str = "467a426c6f636b31020100000000000003000000000000000b0a0000000000007700000000000000701101000000000000000100010000004a691592eb8423fa";
const TRAILER_V1: &str = "467a426c6b456e64020100000000000003000000000000000b0a000000000000770000000000000070110100000000008877665544332211530d5aa30844d2b1";
const IDENTITY_V1: &str = "467a4469736b496401000000aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbcccccccccccccccccccccccccccccccc94c6fe2551b0c3c1";

#[test]
fn container_header_of_layout_1() {
    let page = container().encode();
    assert_eq!(page.len(), 4096);
    assert!(page[88..].iter().all(|byte| *byte == 0));
    assert_eq!(hex(&page[..88]), CONTAINER_V1);
    assert_eq!(ContainerHeader::decode(&unhex(CONTAINER_V1)), Some(container()));
    let mut damaged = unhex(CONTAINER_V1);
    damaged[20] ^= 1;
    assert_eq!(ContainerHeader::decode(&damaged), None);
}

#[test]
fn seal_of_layout_1() {
    let page = encode_seal(&container(), 0x9000, 0);
    assert!(page[48..].iter().all(|byte| *byte == 0));
    assert_eq!(hex(&page[..48]), SEAL_V1);
    assert_eq!(decode_seal(&unhex(SEAL_V1), &container()), Some(Seal { end: 0x9000, deletion_done: 0 }));
    let other = ContainerHeader { generation: Generation(4), ..container() };
    assert_eq!(decode_seal(&unhex(SEAL_V1), &other), None);
}

#[test]
fn flag_and_number_of_a_copy() {
    let copy = ContainerHeader { is_copy: true, ..container() };
    let page = copy.encode();
    assert_eq!(page[12..16], [3, 0, 1, 0]);
    assert_eq!(ContainerHeader::decode(&page), Some(copy));
    let seal = encode_seal(&copy, 0x9000, 0x0102);
    assert_eq!(seal[24..40], [0, 0x90, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(decode_seal(&seal, &copy), Some(Seal { end: 0x9000, deletion_done: 0x0102 }));
}

const MEMBERS_V1: &str = "467a4d656d6265720200000000000000ccccccccccccccccccccccccccccccccddddddddddddddddddddddddddddddddfc395f5ec25689c9";

#[test]
fn members_of_version_1() {
    let disks = [uuid(0xdd), uuid(0xcc)].into();
    assert_eq!(hex(&members::encode(&disks)), MEMBERS_V1);
    assert_eq!(members::decode(&unhex(MEMBERS_V1)), Some(disks));
}

#[test]
fn extent_of_layout_1() {
    let salt = container().salt;
    let header = ExtentHeader {
        block: block(),
        generation: Generation(3),
        nonce: 0x77,
        reserved: 70_000,
        is_exact: true,
    };
    assert_eq!(hex(&header.encode(0x2000, &salt)), HEADER_V1);
    assert_eq!(ExtentHeader::decode(&unhex(HEADER_V1), 0x2000, &salt), Some(header));
    let trailer = ExtentTrailer {
        block: block(),
        generation: Generation(3),
        nonce: 0x77,
        length: 70_000,
        digest: BlockDigest(0x1122_3344_5566_7788),
    };
    assert_eq!(hex(&trailer.encode(0x2000, &salt)), TRAILER_V1);
    assert_eq!(ExtentTrailer::decode(&unhex(TRAILER_V1), 0x2000, &salt), Some(trailer));
    assert!(trailer.fits(&header));
    assert_eq!(extent_bytes(70_000), 18 * 4096);
}

#[test]
fn identity_of_version_1() {
    let identity =
        Identity { cluster: ClusterId(uuid(0xaa)), datanode: DatanodeId(uuid(0xbb)), disk: uuid(0xcc) };
    assert_eq!(hex(&identity.encode()), IDENTITY_V1);
    assert_eq!(Identity::decode(&unhex(IDENTITY_V1)), Ok(identity));
    assert_eq!(Identity::decode(b""), Err(NotAnIdentity::Damaged));
}
