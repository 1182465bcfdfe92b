//! Bytes that must decode for ever: one sample of each command and row, as the first version wrote them.
//!
//! A sample is never changed. A new version of a command or row brings a new sample beside the old one.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::block::Replication;
use wire::ids::{ContainerId, Generation, LeaseId, LocalId, PipelineId};
use wire::scm::ContainerState;

use super::{add_token_key, close, datanode, delete, give_back, grant, pass, register, seal};
use crate::command::Command;
use crate::schema::{
    ContainerRow, DatanodeRow, DeletionBatchRow, DeletionRow, DiskRow, LeaseRow, OperationalState,
    PipelineRow, ReplicaRow, ReplicaState, TokenKeyRow, encode,
};

/// The samples, by name, in hexadecimal.
const SAMPLES: &str = include_str!("samples_v1.txt");

fn sample(name: &str) -> Vec<u8> {
    let line = SAMPLES.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let digits = line.unwrap_or_else(|| panic!("no sample {name}")).as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, row: &T) {
    let bytes = encode(row);
    if std::env::var_os("PRINT_SAMPLES").is_some() {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("SAMPLE {name} {digits}");
        return;
    }
    assert_eq!(rmp_serde::from_slice::<T>(&sample(name)).unwrap(), *row, "{name} decodes");
    assert_eq!(bytes, sample(name), "{name} is encoded as before");
}

#[test]
fn commands_of_the_first_version_decode() {
    let commands: [(&str, Command); 8] = [
        ("grant_lease", grant(9, Some(4), &[1, 2, 3], 1_700_000_000_000)),
        ("return_leases", give_back(&[3, 70_000])),
        ("close_containers", close(4, 1_700_000_000_000)),
        ("seal_container", seal(4, &[1, 2])),
        ("log_deletions", delete(12, 1, 4, &[1, 300])),
        ("pass_deletions", pass(4, &[(1, 17)])),
        ("register_datanode", register(1)),
        ("add_token_key", add_token_key(2, 1_700_000_000_000)),
    ];
    for (name, command) in commands {
        check(name, &command);
    }
}

#[test]
fn rows_of_the_first_version_decode() {
    let replica =
        ReplicaRow { datanode: datanode(1), generation: Generation(1), index: 0, state: ReplicaState::Valid };
    let container = ContainerRow {
        state: ContainerState::Closing,
        replication: Replication::One,
        pipeline: PipelineId(2),
        generation: Generation(1),
        created_ms: 1_700_000_000_000,
        next_local: LocalId(65_537),
        last_deletion: 3,
        purged_deletion: 1,
        replicas: vec![replica],
        closing_ms: 1_700_000_000_001,
    };
    check("container", &container);
    check("active", &());
    let disks = vec![DiskRow { path: "disk0".to_owned(), capacity_bytes: 1 << 40 }];
    let address = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 7000)).into());
    let operational = OperationalState::InService;
    check("datanode", &DatanodeRow { address, incarnation: 5, registered_ms: 6, operational, disks });
    check(
        "pipeline",
        &PipelineRow { replication: Replication::Three, members: vec![datanode(1), datanode(2)] },
    );
    check("lease", &LeaseRow { container: ContainerId(4), first: LocalId(1), count: 65_536, request: 9 });
    check("request", &LeaseId(3));
    check("deletion", &DeletionRow { blocks: vec![LocalId(1), LocalId(300)] });
    check("deletion_batch", &DeletionBatchRow { batch: 12, fingerprint: u64::MAX, parts_done: 2 });
    check("token_key", &TokenKeyRow { secret: [7; 32], created_ms: 1, expires_ms: 2 });
}

#[test]
fn appended_fields_are_optional() {
    // A container row from before `closing_ms`: an array that is one shorter.
    let mut bytes = sample("container");
    assert_eq!(bytes[0], 0x9a, "an array of ten");
    bytes[0] = 0x99;
    bytes.truncate(bytes.len() - 9);
    let row: ContainerRow = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!((row.next_local, row.closing_ms), (LocalId(65_537), 0));
}
