//! The whole service over a real log and state, with an SCM in memory.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use client::service::CallError;
use meta::OmConfig;
use support::{FakeScm, Rig, bucket_ref, config, entry, key, until, user};
use tempfile::TempDir;
use wire::block::{
    BlockOperation, ContainerLocation, DatanodeAddress, ReplicaLocation, Replication, TokenKey,
};
use wire::checksum::Etag;
use wire::ids::{DatanodeId, LocalId};
use wire::limits::BLOCK_TOKEN_LIFE_MS;
use wire::names::BucketName;
use wire::om::{
    CheckQuota, CompleteUpload, CompletedPart, CopyKey, DegradeBlocks, DeleteBucket, DeleteKeys, EndSession,
    GetBucket, GetLayout, GetSigningKey, ListItem, ListKeys, ListParts, PutUser, RefreshLocations, Rejection,
    ReleaseBlocks, RenewSession, RenewTokens, RetainAccessKeys, Secret, SignV2, StorageClass, TakeLoan,
    UserId, WriteCondition,
};
use wire::operator::{
    CreateNamespaceBucket, CreateVolume, GetGroup, GetOmOverview, ListContainerKeys, ListNamespaceBuckets,
    ListVolumes, Quota, SetDefaultReplication, WhereKey,
};
use wire::scm::Degraded;
use wire::status::Status;

fn rejected<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> Rejection {
    match outcome {
        Err(CallError::Rejected(rejection)) => rejection,
        other => panic!("expected a rejection, got {other:?}"),
    }
}

#[tokio::test]
async fn a_key_lives_through_restart_and_goes_when_deleted() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(16).await;
    let keys = [TokenKey { id: 1, secret: [5; 32], expires_ms: u64::MAX }];
    assert_eq!(loan.token.verify(&keys, 0), Ok(()));
    let committed = rig.put(&bucket, "a/b", vec![entry(&loan, 0, 100)]).await;
    rig.om.shutdown().await;
    drop(rig);

    let mut rig = Rig::open(&dir, scm.clone()).await;
    let found = rig.call(Rig::lookup(&bucket, "a/b")).await.unwrap();
    assert_eq!(found.info.version, committed.version);
    let page = found.layout.unwrap();
    assert_eq!((page.start, page.entries.len(), page.locations.len()), (0, 1, 1));
    assert_eq!(page.tokens[0].verify(&keys, 0), Ok(()));
    assert_eq!(page.tokens[0].covers(BlockOperation::Read, page.entries[0].block, 100), Ok(()));

    let list = ListKeys {
        bucket: bucket.clone(),
        prefix: String::new(),
        delimiter: String::new(),
        after: String::new(),
        max: 1000,
    };
    let listed = rig.call(list).await.unwrap();
    let found = rig.call(Rig::lookup(&bucket, "a/b")).await.unwrap();
    let committed = found.info.version.index;
    assert!(
        committed <= listed.read_index && listed.read_index <= found.read_index,
        "reads say when they were"
    );
    assert!(
        matches!(&listed.items[..], [ListItem::Key(name, head)] if *name == key("a/b") && head.size == 100)
    );

    let context = rig.context();
    let delete =
        DeleteKeys { context, bucket: bucket.clone(), keys: vec![(key("a/b"), WriteCondition::None)] };
    let deleted = rig.call(delete).await.unwrap();
    assert_eq!(deleted.outcomes, [Ok(())]);
    assert!(deleted.index > found.read_index);
    assert_eq!(rejected(rig.call(Rig::lookup(&bucket, "a/b")).await), Rejection::NoSuchKey);
    let block = entry(&loan, 0, 100).block;
    until("scm has logged the deletion", || scm.state.lock().deleted.contains(&block)).await;
    let context = rig.context();
    rig.call(DeleteBucket { context, bucket: bucket.clone() }).await.unwrap();
    assert_eq!(rejected(rig.call(GetBucket { name: bucket.name }).await), Rejection::NoSuchBucket);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_repeated_command_has_one_effect_and_one_answer() {
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::open(&dir, Arc::default()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(4).await;
    let mut commit = rig.commit_request(&bucket, "k", vec![entry(&loan, 0, 10)]);
    commit.condition = WriteCondition::IfAbsent;
    let first = rig.call(commit.clone()).await.unwrap();
    assert_eq!(rig.call(commit.clone()).await.unwrap(), first);
    // Another command may not take the same blocks.
    commit.context = rig.context();
    commit.condition = WriteCondition::None;
    assert_eq!(rejected(rig.call(commit).await), Rejection::NotOnLoan(entry(&loan, 0, 10).block));
    rig.om.shutdown().await;
}

#[tokio::test]
async fn an_ended_session_commits_nothing_and_its_ids_reach_scm() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(256).await;
    rig.put(&bucket, "kept", vec![entry(&loan, 0, 10)]).await;
    rig.call(EndSession { session: rig.session }).await.unwrap();
    let late = rig.commit_request(&bucket, "late", vec![entry(&loan, 1, 10)]);
    assert_eq!(rejected(rig.call(late).await), Rejection::SessionEnded);
    assert_eq!(
        rejected(rig.call(RenewSession { session: rig.session, acknowledged: 0 }).await),
        Rejection::SessionEnded
    );
    until("all other ids are freed", || scm.state.lock().deleted.len() == 255).await;
    assert!(!scm.state.lock().deleted.contains(&entry(&loan, 0, 10).block));
    until("the queue is empty", || rig.om.status().unwrap().queued_work == 0).await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_batch_of_deletions_is_logged_once_although_its_answer_is_lost() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(8).await;
    scm.state.lock().lost_answers = 3;
    for at in 0..5 {
        rig.put(&bucket, "same", vec![entry(&loan, at, 10)]).await;
    }
    until("the backlog is gone", || {
        scm.state.lock().deleted.len() == 4 && rig.om.status().unwrap().deletion_backlog_blocks == 0
    })
    .await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn without_scm_a_loan_says_what_is_awaited_and_comes_when_it_can() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    scm.is_down.store(true, Ordering::SeqCst);
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let context = rig.context();
    let request = TakeLoan {
        context,
        replication: Replication::Three,
        count: 8,
        avoid: Vec::new(),
        avoid_datanodes: Vec::new(),
    };
    match rig.call(request.clone()).await {
        Err(CallError::Failed(failure)) => {
            assert_eq!(failure.status, Status::Retry);
            assert!(failure.message.contains("no datanode is ready"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
    scm.is_down.store(false, Ordering::SeqCst);
    let loan = rig.call(request).await.unwrap();
    assert_eq!((loan.count, loan.pipeline.replication), (8, Replication::Three));
    rig.om.shutdown().await;
}

#[tokio::test]
async fn containers_that_closed_or_are_avoided_lend_no_more() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let first = rig.loan(1).await;
    let context = rig.context();
    let request = TakeLoan {
        context,
        replication: Replication::One,
        count: 1,
        avoid: vec![first.container],
        avoid_datanodes: Vec::new(),
    };
    let second = rig.call(request).await.unwrap();
    assert_ne!(second.container, first.container);
    scm.state.lock().closed.insert(second.container);
    let lease = scm.state.lock().leases.iter().find(|lease| lease.container == second.container).unwrap().id;
    until("the lease is returned", || scm.state.lock().returned.contains(&lease)).await;
    for _ in 0..8 {
        assert_ne!(rig.loan(1).await.container, second.container);
    }
    rig.om.shutdown().await;
}

#[tokio::test]
async fn users_sign_and_a_change_makes_old_knowledge_stale() {
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::open(&dir, Arc::default()).await;
    let bucket = rig.create_bucket("first").await;
    let put = PutUser { user: user("root"), access_key: "AK".into(), secret: Secret("s3cret".into()) };
    rig.call(put.clone()).await.unwrap();
    let request = GetSigningKey {
        access_key: "AK".into(),
        day: "20260101".into(),
        region: "us-east-1".into(),
        service: "s3".into(),
    };
    let signing = rig.call(request.clone()).await.unwrap();
    assert_eq!(signing.access_version, 1);
    assert_eq!(
        rejected(rig.call(Rig::lookup(&bucket, "x")).await),
        Rejection::StaleAccess { access_version: 1 }
    );
    // The same user again, as at every start, changes nothing.
    rig.call(put).await.unwrap();
    rig.call(RetainAccessKeys { access_keys: vec!["AK".into()] }).await.unwrap();
    assert_eq!(rig.call(request.clone()).await.unwrap(), signing);
    let sign = SignV2 { access_key: "AK".into(), string_to_sign: "GET\n".into() };
    assert_eq!(rig.call(sign).await.unwrap().user, user("root"));
    rig.call(RetainAccessKeys { access_keys: Vec::new() }).await.unwrap();
    assert_eq!(rejected(rig.call(request).await), Rejection::NoSuchAccessKey);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_multipart_object_is_read_through_its_layout_until_grace_is_over() {
    const PART: u64 = 5 << 20;
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(16).await;
    let upload = rig.create_upload(&bucket, "big").await;
    for part in 1..=8 {
        rig.put_part(&bucket, "big", upload, part, entry(&loan, u64::from(part), PART)).await;
    }
    let list = ListParts { bucket: bucket.clone(), key: key("big"), upload, after: 2, max: 3 };
    let page = rig.call(list).await.unwrap();
    assert_eq!(page.parts.iter().map(|part| part.part).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(page.is_truncated);
    let named = |part: u32| CompletedPart { part, etag: Some(Etag::whole([part as u8; 16])), checksum: None };
    let complete = CompleteUpload {
        context: rig.context(),
        bucket: bucket.clone(),
        key: key("big"),
        upload,
        parts: [1, 2, 3, 5, 6, 8].map(named).to_vec(),
        condition: WriteCondition::None,
        expected: None,
        expected_size: Some(6 * PART),
    };
    let completed = rig.call(complete.clone()).await.unwrap();
    let again = CompleteUpload { context: rig.context(), ..complete };
    assert_eq!(rig.call(again).await.unwrap(), completed);
    let found = rig.call(Rig::lookup(&bucket, "big")).await.unwrap();
    assert_eq!(found.layout.unwrap().entries.len(), 6);
    assert_eq!(found.info.parts.len(), 1);
    let layout = GetLayout { bucket: bucket.clone(), write_id: upload, from: 2 * PART + 1 };
    let page = rig.call(layout).await.unwrap();
    assert_eq!((page.start, page.entries[0].block), (2 * PART, entry(&loan, 3, PART).block));
    until("the parts not named are freed", || scm.state.lock().deleted.len() == 2).await;

    let copy = CopyKey {
        context: rig.context(),
        source_bucket: bucket.clone(),
        source_key: key("big"),
        source_version: completed.version,
        bucket: bucket.clone(),
        key: key("copy"),
        condition: WriteCondition::None,
        owner: user("root").id,
        storage_class: StorageClass::Standard,
        replication: Replication::One,
        attributes: None,
    };
    rig.call(copy).await.unwrap();
    for name in ["big", "copy"] {
        assert_eq!(scm.state.lock().deleted.len(), 2, "shared blocks live while {name} does");
        let context = rig.context();
        let keys = vec![(key(name), WriteCondition::None)];
        rig.call(DeleteKeys { context, bucket: bucket.clone(), keys }).await.unwrap();
        until("the queue is empty", || rig.om.status().unwrap().queued_work == 0).await;
    }
    until("all blocks are freed", || scm.state.lock().deleted.len() == 8).await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_paused_worker_rests() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open_with(config(&dir), scm.clone()).await;
    assert!(rig.om.set_worker_paused("deletion handover", true));
    assert!(!rig.om.set_worker_paused("no such worker", true));
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(2).await;
    rig.put(&bucket, "k", vec![entry(&loan, 0, 10)]).await;
    rig.put(&bucket, "k", vec![entry(&loan, 1, 10)]).await;
    until("a block waits", || rig.om.status().unwrap().deletion_backlog_blocks == 1).await;
    assert!(scm.state.lock().deleted.is_empty());
    assert!(rig.om.set_worker_paused("deletion handover", false));
    until("it is handed over", || scm.state.lock().deleted.len() == 1).await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn silence_age_and_time_end_sessions_loans_and_completed_uploads() {
    const PART: u64 = 5 << 20;
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let short = OmConfig {
        session_silence_ms: 400,
        open_key_expire_after_ms: 100,
        open_key_scan_interval_ms: 10,
        completed_upload_keep_ms: 100,
        ..config(&dir)
    };
    let mut rig = Rig::open_with(short, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(4).await;
    let upload = rig.create_upload(&bucket, "k").await;
    rig.put_part(&bucket, "k", upload, 1, entry(&loan, 0, PART)).await;
    let complete = CompleteUpload {
        context: rig.context(),
        bucket: bucket.clone(),
        key: key("k"),
        upload,
        parts: vec![CompletedPart { part: 1, etag: Some(Etag::whole([1; 16])), checksum: None }],
        condition: WriteCondition::None,
        expected: None,
        expected_size: None,
    };
    rig.call(complete.clone()).await.unwrap();
    until("the loan has expired", || scm.state.lock().deleted.len() == 3).await;
    let done = |name: &str| {
        let workers = rig.om.status().unwrap().workers;
        workers.into_iter().find(|worker| worker.name == name).map(|worker| worker.done).unwrap()
    };
    until("the completed upload is forgotten", || done("upload expiry") == 1).await;
    until("the silent session has ended", || done("session silence") >= 1).await;
    let late = CompleteUpload { context: rig.context(), ..complete };
    assert_eq!(rejected(rig.call(late).await), Rejection::SessionEnded);
    assert!(rig.call(Rig::lookup(&bucket, "k")).await.is_ok());
    rig.om.shutdown().await;
}

fn datanode(number: u128) -> DatanodeId {
    DatanodeId(uuid::Uuid::from_u128(number))
}

#[tokio::test]
async fn a_degraded_container_lends_no_more_and_its_loans_still_commit() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(8).await;
    let degrade = DegradeBlocks {
        session: rig.session,
        container: loan.container,
        generation: loan.generation,
        acknowledged: Vec::new(),
        failed: vec![datanode(1)],
    };
    assert_eq!(rig.call(degrade.clone()).await.unwrap(), Degraded::Refused);
    assert_eq!(rig.loan(1).await.container, loan.container);
    let degrade = DegradeBlocks { acknowledged: vec![datanode(2), datanode(3)], ..degrade };
    // A repeat is answered as the first was.
    for _ in 0..2 {
        assert_eq!(rig.call(degrade.clone()).await.unwrap(), Degraded::Accepted);
    }
    assert_eq!(scm.state.lock().degraded, [loan.container, loan.container]);
    assert_ne!(rig.loan(1).await.container, loan.container);
    rig.put(&bucket, "k", vec![entry(&loan, 0, 10)]).await;
    rig.call(EndSession { session: rig.session }).await.unwrap();
    assert_eq!(rejected(rig.call(degrade).await), Rejection::SessionEnded);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn a_loan_goes_around_failed_datanodes_if_it_can() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    scm.state.lock().datanodes = vec![datanode(1), datanode(2)];
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let mut around = async |avoid: &[DatanodeId]| {
        let request = TakeLoan {
            context: rig.context(),
            replication: Replication::One,
            count: 1,
            avoid: Vec::new(),
            avoid_datanodes: avoid.to_vec(),
        };
        rig.call(request).await.unwrap().pipeline.members[0].id
    };
    assert_eq!(around(&[]).await, datanode(1));
    assert_eq!(around(&[datanode(1)]).await, datanode(2));
    assert_eq!(around(&[datanode(2)]).await, datanode(1));
    let granted = scm.state.lock().leases.len();
    // There is none without both: any serves, and SCM is asked once and then left alone.
    for _ in 0..5 {
        around(&[datanode(1), datanode(2)]).await;
    }
    assert_eq!(scm.state.lock().leases.len(), granted + 1);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn locations_are_remembered_until_a_reader_asks_anew() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(8).await;
    rig.put(&bucket, "k", vec![entry(&loan, 0, 10)]).await;
    let at = |number| ContainerLocation {
        container: loan.container,
        replicas: vec![ReplicaLocation {
            datanode: DatanodeAddress { id: datanode(number), address: None },
            generation: loan.generation,
        }],
    };
    let read = async |rig: &Rig| rig.call(Rig::lookup(&bucket, "k")).await.unwrap().layout.unwrap().locations;
    // The open lease says where it is.
    assert_eq!(read(&rig).await[0].replicas[0].datanode.id, DatanodeId::default());
    assert_eq!(scm.state.lock().located, 0);
    scm.state.lock().locations.insert(loan.container, at(5));
    let refresh = RefreshLocations { containers: vec![loan.container] };
    assert_eq!(rig.call(refresh.clone()).await.unwrap(), [at(5)]);
    assert_eq!(read(&rig).await, [at(5)]);
    scm.state.lock().locations.insert(loan.container, at(6));
    assert_eq!(read(&rig).await, [at(5)]);
    assert_eq!(rig.call(refresh).await.unwrap(), [at(6)]);
    assert_eq!(read(&rig).await, [at(6)]);
    assert_eq!(scm.state.lock().located, 2);
    rig.om.shutdown().await;
}

#[tokio::test]
async fn read_tokens_are_renewed_for_blocks_that_live() {
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::open(&dir, Arc::default()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(4).await;
    rig.put(&bucket, "k", vec![entry(&loan, 0, 10)]).await;
    let block = entry(&loan, 0, 10).block;
    let tokens = rig.call(RenewTokens { blocks: vec![(block, 10)] }).await.unwrap();
    let [token] = &tokens[..] else { panic!("{tokens:?}") };
    token.covers(BlockOperation::Read, block, 10).unwrap();
    assert!(token.claim.expires_ms > wire::clock::now_ms() + BLOCK_TOKEN_LIFE_MS / 2);

    // Another length, a block on loan, and one whose key is gone.
    let lent = entry(&loan, 1, 10).block;
    let context = rig.context();
    let keys = vec![(key("k"), WriteCondition::None)];
    for blocks in [vec![(block, 11)], vec![(block, 10), (lent, 10)]] {
        let refused = rig.call(RenewTokens { blocks }).await.unwrap_err();
        assert!(matches!(refused, CallError::Failed(failure) if failure.status == Status::NotFound));
    }
    rig.call(DeleteKeys { context, bucket, keys }).await.unwrap();
    let refused = rig.call(RenewTokens { blocks: vec![(block, 10)] }).await.unwrap_err();
    assert!(matches!(refused, CallError::Failed(failure) if failure.status == Status::NotFound));
    rig.om.shutdown().await;
}

#[tokio::test]
async fn an_empty_container_goes_once_nothing_names_it() {
    let dir = TempDir::new().unwrap();
    let scm = Arc::new(FakeScm::default());
    let mut rig = Rig::open(&dir, scm.clone()).await;
    let bucket = rig.create_bucket("first").await;
    let loan = rig.loan(4).await;
    rig.put(&bucket, "k", vec![entry(&loan, 0, 10)]).await;
    scm.state.lock().closed.insert(loan.container);
    let lease = scm.state.lock().leases[0].id;
    until("the lease is returned", || scm.state.lock().returned.contains(&lease)).await;
    let done = |om: &meta::Om| {
        let worker =
            om.status().unwrap().workers.into_iter().find(|worker| worker.name == "container retirement");
        worker.unwrap().last_turn_ms
    };
    let context = rig.context();
    rig.call(ReleaseBlocks { context, blocks: Vec::new(), loan: Some(loan.id) }).await.unwrap();
    until("the ids not used are gone", || scm.state.lock().deleted.len() == 3).await;
    let before = done(&rig.om);
    until("the worker has looked", || done(&rig.om) > before).await;
    assert!(scm.state.lock().retired.is_empty(), "a key lies there");
    scm.state.lock().lost_answers = 2;
    let context = rig.context();
    let keys = vec![(key("k"), WriteCondition::None)];
    rig.call(DeleteKeys { context, bucket, keys }).await.unwrap();
    until("scm is told", || scm.state.lock().retired.contains(&loan.container)).await;
    rig.om.shutdown().await;
}

#[tokio::test]
async fn operators_see_namespace_keys_and_containers() {
    let dir = TempDir::new().unwrap();
    let three = OmConfig { default_replication: Replication::Three, ..config(&dir) };
    let mut rig = Rig::open_with(three, Arc::default()).await;
    let name = |name: &str| BucketName::new(name).unwrap();
    let quota = Quota { bytes: Some(100), count: None };
    let alice = || UserId("alice".into());
    for _ in 0..2 {
        rig.call(CreateVolume { name: name("hive"), owner: alice(), quota }).await.unwrap();
        let bucket = CreateNamespaceBucket {
            volume: name("hive"),
            name: name("tables"),
            owner: alice(),
            quota: Quota::default(),
            source: None,
        };
        rig.call(bucket.clone()).await.unwrap();
        let source = Some((name("hive"), name("tables")));
        let link = CreateNamespaceBucket { volume: name("s3v"), name: name("shown"), source, ..bucket };
        rig.call(link).await.unwrap();
    }
    let mut info = rig.call(GetBucket { name: name("shown") }).await.unwrap();
    while info.replication != Replication::Three {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        info = rig.call(GetBucket { name: name("shown") }).await.unwrap();
    }
    let bucket = bucket_ref(info);
    let loan = rig.loan(4).await;
    rig.put(&bucket, "k", vec![entry(&loan, 0, 60), entry(&loan, 1, 30)]).await;
    let large = rig.commit_request(&bucket, "large", vec![entry(&loan, 2, 50)]);
    let refused = rejected(rig.call(large).await);
    assert!(matches!(refused, Rejection::QuotaExceeded { limit: 100, wanted: 140, .. }), "{refused}");

    // The same answer can be had before the body: of a new key, of one that is replaced, of a part.
    for (name, bytes, wanted) in [("large", 11, 101), ("k", 101, 101), ("", 20, 110)] {
        let ask =
            |bytes| CheckQuota { bucket: bucket.clone(), key: (!name.is_empty()).then(|| key(name)), bytes };
        let refused = rejected(rig.call(ask(bytes)).await);
        assert!(
            matches!(refused, Rejection::QuotaExceeded { wanted: would, .. } if would == wanted),
            "{refused}"
        );
        rig.call(ask(bytes - (wanted - 100))).await.unwrap();
    }

    let place = rig.call(WhereKey { bucket: name("shown"), key: key("k"), from: 70 }).await.unwrap();
    assert_eq!((place.start, place.entries), (60, vec![entry(&loan, 1, 30)]));
    let keys = ListContainerKeys { container: loan.container, after: LocalId(0), max: 1 };
    let page = rig.call(keys).await.unwrap();
    assert!(page.is_truncated);
    assert_eq!(page.blocks[0].bucket.as_deref(), Some("hive/tables"));
    assert_eq!(page.blocks[0].key.as_deref(), Some("k"));
    let volumes = ListVolumes { owner: Some(alice()), after: String::new(), max: 10 };
    let volumes = rig.call(volumes).await.unwrap();
    assert_eq!((volumes.len(), volumes[0].used_bytes, volumes[0].quota), (1, 90, quota));
    let buckets = ListNamespaceBuckets { volume: name("s3v"), after: String::new(), max: 10 };
    let buckets = rig.call(buckets).await.unwrap();
    assert_eq!((buckets.len(), buckets[0].keys, buckets[0].used_bytes), (1, 1, 90));
    let overview = rig.call(GetOmOverview {}).await.unwrap();
    assert_eq!((overview.volumes, overview.buckets, overview.keys, overview.bytes), (2, 2, 1, 90));
    assert_eq!(overview.default_replication, Replication::Three);
    let group = rig.call(GetGroup {}).await.unwrap();
    assert_eq!((group.group.as_str(), group.leader), ("om", Some(1)));

    // An operator's choice outlives the configuration's.
    let choice = SetDefaultReplication { bucket: None, replication: Some(Replication::One) };
    rig.call(choice).await.unwrap();
    rig.om.shutdown().await;
    let three = OmConfig { default_replication: Replication::Three, ..config(&dir) };
    let rig = Rig::open_with(three, Arc::default()).await;
    assert_eq!(rig.call(GetBucket { name: name("shown") }).await.unwrap().replication, Replication::One);
    rig.om.shutdown().await;
}
