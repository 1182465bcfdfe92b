//! What this version writes is what is committed: `tests/fixtures/{rows,commands}_1.txt`, one sample a line.
//!
//! A change of the encoding fails here. If it is meant (an appended field), the old file stays, since its bytes must
//! decode for ever (`tests/format_om.rs`), and a new file gets the next number. `UPDATE_FORMATS=1` writes the files.

use std::fmt::Write;

use consensus::Rows;
use serde_bytes::ByteBuf;
use wire::block::Replication;
use wire::checksum::{Checksum, ChecksumAlgorithm, ChecksumKind, Etag};
use wire::ids::{BucketId, ContainerId, LeaseId, LoanId, LocalId, SessionId, VersionId, WriteId};
use wire::limits::PART_BYTES_MIN;
use wire::names::{BucketName, KeyName};
use wire::om::{
    AbortUpload, CompleteUpload, CompletedPart, CopyKey, CreateBucket, CreateUpload, DeleteBucket,
    DeleteKeys, KeyAttributes, ReleaseBlocks, StorageClass, UserId, WriteCondition, WriteContext,
};

use wire::operator::{
    CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, Quota, SetBucketQuota,
    SetDefaultReplication, SetVolume,
};

use super::{Core, block_id, bucket_ref, commit_key, commit_part, entry_of, etag_of_size, user};
use crate::command::{self, Command};
use crate::inspect;
use crate::schema::{self, Data, KeyRow, TABLES, Work, WorkRow, encode};

const SESSION: SessionId = SessionId(1);

fn context(sequence: u64) -> WriteContext {
    WriteContext { session: SESSION, sequence, acknowledged: sequence - 1 }
}

fn attributes() -> KeyAttributes {
    KeyAttributes {
        content_type: Some("text/plain".into()),
        expires: Some("never".into()),
        user_metadata: vec![("colour".into(), "grün".into())],
        ..KeyAttributes::default()
    }
}

/// One of each kind, in an order in which all of them succeed.
fn commands() -> Vec<Command> {
    let bucket = bucket_ref("bucket", 3);
    let key = |name: &str| KeyName::new(name).unwrap();
    let upload = WriteId { session: SESSION, sequence: 10 };
    let big = |local| entry_of(block_id(7, local), PART_BYTES_MIN);
    let checksum = Some((ChecksumAlgorithm::Crc64Nvme, ChecksumKind::FullObject));
    let mut commit = commit_key(context(3), bucket.clone(), "a/key", vec![entry_of(block_id(7, 1), 300)]);
    commit.attributes = attributes();
    commit.checksum = Some((ChecksumAlgorithm::Sha256, ChecksumKind::Composite));
    commit.checksums = vec![Checksum::full(ChecksumAlgorithm::Crc32, vec![1, 2, 3, 4])];
    let long: Vec<_> = (2..8).map(|local| entry_of(block_id(7, local), 70_000)).collect();
    let create = |sequence, name: &str| CreateUpload {
        context: context(sequence),
        bucket: bucket.clone(),
        key: key(name),
        owner: user("root"),
        storage_class: StorageClass::ReducedRedundancy,
        replication: Replication::One,
        attributes: attributes(),
        checksum,
    };
    let copy = CopyKey {
        context: context(5),
        source_bucket: bucket.clone(),
        source_key: key("a/key"),
        source_version: VersionId { index: 5, ordinal: 0 },
        bucket: bucket.clone(),
        key: key("copy"),
        condition: WriteCondition::IfAbsent,
        owner: UserId("root".into()),
        storage_class: StorageClass::Standard,
        replication: Replication::One,
        attributes: None,
    };
    let complete = CompleteUpload {
        context: context(13),
        bucket: bucket.clone(),
        key: key("multi"),
        upload,
        parts: [1, 2]
            .map(|part| CompletedPart { part, etag: Some(etag_of_size(PART_BYTES_MIN)), checksum: None })
            .into(),
        condition: WriteCondition::IfMatch(Etag { md5: [0xaa; 16], parts: 3 }),
        expected: None,
        expected_size: Some(2 * PART_BYTES_MIN),
    };
    let name = |name: &str| BucketName::new(name).unwrap();
    let quota = Quota { bytes: Some(1 << 40), count: Some(7) };
    let keys = vec![(key("long"), WriteCondition::IfPresent), (key("none"), WriteCondition::None)];
    vec![
        command::OpenSession { nonce: [9; 16] }.into(),
        lease(),
        CreateBucket {
            context: context(1),
            name: bucket.name.clone(),
            owner: user("root"),
            location: "eu-central-1".into(),
        }
        .into(),
        command::TakeLoan { context: context(2), lease: LeaseId(4), count: 20 }.into(),
        commit.into(),
        commit_key(context(4), bucket.clone(), "long", long).into(),
        copy.into(),
        DeleteKeys { context: context(6), bucket: bucket.clone(), keys }.into(),
        create(10, "multi").into(),
        commit_part(context(11), bucket.clone(), "multi", upload, 1, vec![big(9)]).into(),
        commit_part(context(12), bucket.clone(), "multi", upload, 2, vec![big(10)]).into(),
        complete.clone().into(),
        CompleteUpload { context: context(14), condition: WriteCondition::None, ..complete }.into(),
        create(15, "aborted").into(),
        commit_part(
            context(16),
            bucket.clone(),
            "aborted",
            WriteId { session: SESSION, sequence: 15 },
            1,
            vec![big(11)],
        )
        .into(),
        AbortUpload {
            context: context(17),
            bucket: bucket.clone(),
            key: key("aborted"),
            upload: WriteId { session: SESSION, sequence: 15 },
        }
        .into(),
        create(18, "open\0end").into(),
        ReleaseBlocks { context: context(19), blocks: vec![block_id(7, 12)], loan: Some(LoanId(99)) }.into(),
        command::ExpireLoans { loans: vec![(ContainerId(7), LocalId(1))], taken_before_ms: 5 }.into(),
        command::ExpireUploads { rows: vec![ByteBuf::from(13u64.to_be_bytes())], completed_before_ms: 5 }
            .into(),
        command::BeginHandover { freed_before_ms: u64::MAX, count_max: 240, skip: Vec::new() }.into(),
        command::FinishHandover { batch: 77, ..Default::default() }.into(),
        command::WorkOff { row_key: ByteBuf::from(schema::work_row_key(0, 1, 2)) }.into(),
        DeleteBucket { context: context(20), bucket }.into(),
        command::PutUser {
            user: user("root"),
            access_key: "AK".into(),
            nonce: [4; 12],
            sealed: ByteBuf::from(vec![1, 2, 3]),
        }
        .into(),
        command::RetainAccessKeys { access_keys: vec!["AK".into()] }.into(),
        command::EndLeases { leases: vec![LeaseId(5)] }.into(),
        command::DropLeases { leases: vec![LeaseId(5)] }.into(),
        command::EndSession { session: SessionId(500) }.into(),
        command::InitDefaults { replication: Replication::One }.into(),
        SetDefaultReplication { bucket: None, replication: Some(Replication::Three) }.into(),
        CreateVolume { name: name("hive"), owner: UserId("alice".into()), quota }.into(),
        SetVolume { name: name("hive"), owner: Some(UserId("bob".into())), quota: None }.into(),
        CreateNamespaceBucket {
            volume: name("hive"),
            name: name("tables"),
            owner: UserId("bob".into()),
            quota,
            source: None,
        }
        .into(),
        CreateNamespaceBucket {
            volume: name("s3v"),
            name: name("link"),
            owner: UserId("root".into()),
            quota: Quota::default(),
            source: Some((name("hive"), name("tables"))),
        }
        .into(),
        SetDefaultReplication { bucket: Some(name("link")), replication: Some(Replication::One) }.into(),
        SetBucketQuota { volume: name("hive"), name: name("tables"), quota: Quota { bytes: None, ..quota } }
            .into(),
        DeleteNamespaceBucket { volume: name("hive"), name: name("none") }.into(),
        DeleteVolume { name: name("none") }.into(),
        command::RetireContainer { container: ContainerId(1234) }.into(),
    ]
}

fn lease() -> Command {
    let mut other = Core::new();
    other.add_lease(4, 7, 1000);
    let value = other.view().get(schema::LEASE, &LeaseId(4).to_be_bytes()).unwrap().unwrap();
    let row: schema::LeaseRow = rmp_serde::from_slice(&value).unwrap();
    let lease = wire::scm::Lease {
        id: LeaseId(4),
        container: row.container,
        generation: row.generation,
        first: row.first,
        count: row.count,
        pipeline: row.pipeline,
    };
    command::AddLease { lease }.into()
}

/// Rows that the commands above do not leave behind.
fn further_rows(core: &mut Core) {
    let write_id = WriteId { session: SESSION, sequence: 3 };
    let works = [
        Work::Release { write_id, blocks: vec![block_id(7, 1)] },
        Work::Free { container: ContainerId(7), runs: vec![(LocalId(4), 9)] },
        Work::Uploads { bucket: BucketId(3) },
        Work::Session { session: SESSION },
    ];
    core.store.write(|batch| {
        for (ordinal, work) in works.into_iter().enumerate() {
            let row = WorkRow { queued_ms: 1_000_000, work };
            batch.put(schema::WORK, &schema::work_row_key(0, 1000, ordinal as u32), &encode(&row)).unwrap();
        }
        let inline_key = schema::key_row_key(BucketId(3), b"inline");
        let row_key = schema::key_row_key(BucketId(3), b"a/key");
        let mut row = KeyRow::decode(&row_key, &batch.get(schema::KEY, &row_key).unwrap().unwrap()).unwrap();
        row.rest.data = Data::Inline(ByteBuf::from(vec![7; 5]));
        batch.put(schema::KEY, &inline_key, &row.encode()).unwrap();
    });
}

fn samples() -> (String, String) {
    let mut core = Core::new();
    let (mut rows_text, mut commands_text) = (String::new(), String::new());
    for command in commands() {
        let bytes = command.encode(core.now_ms);
        let shown = inspect::command(&bytes).unwrap();
        writeln!(commands_text, "{} = {shown:?}", hex::encode(&bytes)).unwrap();
        core.apply(command);
    }
    further_rows(&mut core);
    for table in TABLES {
        let mut count = 0;
        core.view()
            .scan(*table, &[], None, &mut |row_key, value| {
                let shown = inspect::row(table.name(), row_key, value).unwrap();
                let (row_key, value) = (hex::encode(row_key), hex::encode(value));
                writeln!(rows_text, "{} {row_key} {value} = {shown:?}", table.name()).unwrap();
                count += 1;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert!(count > 0, "table {} has no sample", table.name());
    }
    (rows_text, commands_text)
}

#[test]
fn what_is_written_is_what_is_committed() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let (rows, commands) = samples();
    for (name, text) in [("rows_1.txt", rows), ("commands_1.txt", commands)] {
        if std::env::var_os("UPDATE_FORMATS").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), &text).unwrap();
        }
        let committed = std::fs::read_to_string(dir.join(name)).unwrap();
        for (now, then) in text.lines().zip(committed.lines()) {
            assert_eq!(now, then, "{name}: the encoding has changed");
        }
        assert_eq!(text.lines().count(), committed.lines().count(), "{name}: samples came or went");
    }
}

#[test]
fn every_command_kind_has_a_sample() {
    let kinds: std::collections::BTreeSet<u8> = commands().iter().map(Command::kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<u8>>(), Command::KINDS);
}
