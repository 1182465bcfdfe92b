//! Bytes that must decode for ever: one sample of each command and row, as the first version wrote them.
//!
//! A sample is never changed. A new version of a command or row brings a new sample beside the old one: what the second
//! version appended to has one in `samples_v2.txt`, what the third did in `samples_v3.txt`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::block::Replication;
use wire::ids::{ContainerId, Generation, LeaseId, LocalId, PipelineId};
use wire::scm::ContainerState;

use super::{
    add_token_key, begin_copy, close, datanode, decommission, degrade, delete, delete_replicas, end_copy,
    forget_datanode, forget_replicas, give_back, grant, invalidate, life, pass, raise, register, retire,
    seal, set_datanode,
};
use crate::command::Command;
use crate::schema::{
    ContainerRow, DatanodeRow, DeletionBatchRow, DeletionRow, DiskRow, LeaseRow, OperationalState,
    PipelineRow, ReplicaRow, ReplicaState, TokenKeyRow, encode,
};

/// The samples, by name, in hexadecimal.
const SAMPLES_V1: &str = include_str!("samples_v1.txt");
const SAMPLES_V2: &str = include_str!("samples_v2.txt");
const SAMPLES_V3: &str = include_str!("samples_v3.txt");

fn sample(samples: &str, name: &str) -> Vec<u8> {
    let line = samples.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
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
    let is_changed = SAMPLES_V2.lines().any(|line| line.split(' ').next() == Some(name));
    assert_eq!(rmp_serde::from_slice::<T>(&sample(SAMPLES_V1, name)).unwrap(), *row, "{name} decodes");
    if !is_changed {
        assert_eq!(bytes, sample(SAMPLES_V1, name), "{name} is encoded as before");
    }
}

fn check_v2<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, row: &T) {
    let bytes = encode(row);
    if std::env::var_os("PRINT_SAMPLES").is_some() {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("SAMPLE2 {name} {digits}");
        return;
    }
    let is_changed = SAMPLES_V3.lines().any(|line| line.split(' ').next() == Some(name));
    assert_eq!(rmp_serde::from_slice::<T>(&sample(SAMPLES_V2, name)).unwrap(), *row, "{name} decodes");
    if !is_changed {
        assert_eq!(bytes, sample(SAMPLES_V2, name), "{name} is encoded as before");
    }
}

#[test]
fn commands_of_the_third_version_decode() {
    let command = decommission(3, 4);
    let bytes = encode(&command);
    if std::env::var_os("PRINT_SAMPLES").is_some() {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("SAMPLE3 set_datanode {digits}");
        return;
    }
    assert_eq!(Command::decode(&sample(SAMPLES_V3, "set_datanode")).unwrap(), command);
    assert_eq!(bytes, sample(SAMPLES_V3, "set_datanode"));
}

#[test]
fn commands_of_the_second_version_decode() {
    let mut named = register(1);
    if let Command::RegisterDatanode(command) = &mut named {
        (command.node, command.rack) = ("d1".to_owned(), "r1".to_owned());
    }
    let commands: [(&str, Command); 11] = [
        ("register_datanode", named),
        ("degrade_container", degrade(4, 1, &[1, 2], 1_700_000_000_000)),
        ("retire_container", retire(4)),
        ("invalidate_replicas", invalidate(4, &[(3, 1)], 1_700_000_000_000)),
        ("begin_copy", begin_copy(4, (1, 1), 5)),
        ("end_copy", end_copy(4, (5, 2), 17)),
        ("delete_replicas", delete_replicas(4, &[(3, 1)])),
        ("forget_replicas", forget_replicas(4, &[(3, 1)])),
        ("raise_containers", raise(&[4, 300], 1_700_000_000_000)),
        ("set_datanode", set_datanode(3, OperationalState::EnteringMaintenance, Some(1_700_000_000_000))),
        ("forget_datanode", forget_datanode(3, &[4], true)),
    ];
    for (name, command) in commands {
        check_v2(name, &command);
    }
}

#[test]
fn rows_of_the_second_version_decode() {
    let replica = ReplicaRow {
        datanode: datanode(5),
        generation: Generation(2),
        index: 0,
        state: ReplicaState::Copying,
        source: Some(life(1, 1)),
    };
    let container = ContainerRow {
        state: ContainerState::Closed,
        replication: Replication::Three,
        pipeline: PipelineId(2),
        generation: Generation(1),
        created_ms: 1_700_000_000_000,
        next_local: LocalId(65_537),
        last_deletion: 3,
        purged_deletion: 1,
        replicas: vec![replica],
        closing_ms: 1_700_000_000_001,
        last_generation: Generation(2),
    };
    check_v2("container", &container);
    check_v2("tended", &());
    let datanode = DatanodeRow {
        address: None,
        incarnation: 5,
        registered_ms: 6,
        operational: OperationalState::EnteringMaintenance,
        disks: Vec::new(),
        node: "d1".to_owned(),
        rack: "r1".to_owned(),
        maintenance_until_ms: Some(1_700_000_000_000),
    };
    check_v2("datanode", &datanode);
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
    let replica = ReplicaRow {
        datanode: datanode(1),
        generation: Generation(1),
        index: 0,
        state: ReplicaState::Valid,
        source: None,
    };
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
        last_generation: Generation(0),
    };
    check("container", &container);
    check("active", &());
    let disks = vec![DiskRow { path: "disk0".to_owned(), capacity_bytes: 1 << 40 }];
    let address = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 7000)).into());
    let operational = OperationalState::InService;
    let datanode_row = DatanodeRow {
        address,
        incarnation: 5,
        registered_ms: 6,
        operational,
        disks,
        node: String::new(),
        rack: String::new(),
        maintenance_until_ms: None,
    };
    check("datanode", &datanode_row);
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
    let mut bytes = sample(SAMPLES_V1, "container");
    assert_eq!(bytes[0], 0x9a, "an array of ten");
    bytes[0] = 0x99;
    bytes.truncate(bytes.len() - 9);
    let row: ContainerRow = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!((row.next_local, row.closing_ms), (LocalId(65_537), 0));
}
