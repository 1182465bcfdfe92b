//! What a datanode opens and what it refuses, on real directories.

use std::fs;
use std::path::Path;

use datanode::identity::Identity;
use datanode::{Datanode, DatanodeConfig, OpenError};
use wire::ids::{ClusterId, DatanodeId};

fn cluster(byte: u8) -> ClusterId {
    ClusterId(uuid::Uuid::from_bytes([byte; 16]))
}

fn config(paths: &[&Path]) -> DatanodeConfig {
    DatanodeConfig::new(paths.iter().map(|path| path.to_path_buf()).collect(), cluster(1))
}

async fn open(config: DatanodeConfig) -> Result<Datanode, OpenError> {
    tokio::task::spawn_blocking(|| Datanode::open(config)).await.expect("opening does not panic")
}

#[tokio::test]
async fn an_empty_directory_is_formatted_and_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("not/yet/there");
    let first = open(config(&[&disk])).await.unwrap();
    let id = first.id();
    first.shutdown().await;
    drop(first);
    let second = open(config(&[&disk])).await.unwrap();
    assert_eq!(second.id(), id);
    second.shutdown().await;
}

#[tokio::test]
async fn a_disk_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(config(&[dir.path()])).await.unwrap();
    let refused = open(config(&[dir.path()])).await.err().unwrap();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    first.shutdown().await;
}

#[tokio::test]
async fn disks_of_others_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let identity = |cluster, datanode: u8| Identity {
        cluster,
        datanode: DatanodeId(uuid::Uuid::from_bytes([datanode; 16])),
        disk: uuid::Uuid::from_bytes([9; 16]),
    };
    let put = |name: &str, bytes: &[u8]| {
        let disk = dir.path().join(name);
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("identity"), bytes).unwrap();
        disk
    };
    let foreign = put("foreign", &identity(cluster(2), 3).encode());
    let refused = open(config(&[&foreign])).await.err().unwrap();
    assert!(matches!(refused, OpenError::WrongCluster { .. }), "{refused}");
    assert!(!foreign.join("index.redb").exists());

    let mut bytes = identity(cluster(1), 3).encode();
    bytes[8] = 7;
    let future = put("future", &bytes);
    let refused = open(config(&[&future])).await.err().unwrap();
    assert!(matches!(refused, OpenError::UnknownVersion { version: 7, .. }), "{refused}");

    let damaged = put("damaged", b"FzDiskId");
    let refused = open(config(&[&damaged])).await.err().unwrap();
    assert!(matches!(refused, OpenError::IdentityDamaged { .. }), "{refused}");

    let one = put("one", &identity(cluster(1), 3).encode());
    let two = put("two", &identity(cluster(1), 4).encode());
    let refused = open(config(&[&one, &two])).await.err().unwrap();
    assert!(matches!(refused, OpenError::WrongDatanode { .. }), "{refused}");

    let nameless = dir.path().join("nameless");
    fs::create_dir_all(&nameless).unwrap();
    fs::write(nameless.join("0000000000000001.container"), b"").unwrap();
    let refused = open(config(&[&nameless])).await.err().unwrap();
    assert!(matches!(refused, OpenError::IdentityMissing { .. }), "{refused}");

    let refused = open(config(&[])).await.err().unwrap();
    assert!(matches!(refused, OpenError::NoDisks), "{refused}");
}

#[tokio::test]
async fn a_second_disk_joins_the_datanode_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let first = open(config(&[&one])).await.unwrap();
    let id = first.id();
    first.shutdown().await;
    drop(first);
    let both = open(config(&[&two, &one])).await.unwrap();
    assert_eq!(both.id(), id);
    assert_eq!(both.report().0.len(), 2);
    both.shutdown().await;
}
