//! The admin API against services that only record what they are asked: every route, with and without a proof.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::sync::Arc;

use admin::{BackupStream, Backups, CHALLENGE_PATH, Operators, ROUTES, Root, api_router, prove};
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use client::service::{CallError, OmService, ScmService};
use futures_util::stream;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tower::ServiceExt;
use uuid::Uuid;
use wire::block::{BlockEntry, DatanodeAddress, Replication};
use wire::checksum::Etag;
use wire::chunk::BlockDigest;
use wire::clock;
use wire::cluster_key::ClusterKey;
use wire::group::{GroupInfo, Member, MemberInfo, MemberRole};
use wire::ids::{
    BlockId, ClusterId, ContainerId, DatanodeId, Generation, LocalId, PipelineId, VersionId, WriteId,
};
use wire::names::BucketName;
use wire::om::{KeyAttributes, KeyHead, KeyInfo, OmReply, OmRequest, Rejection, StorageClass, UserId};
use wire::operator::*;
use wire::scm::{ContainerState, DiskReport, ScmReply, ScmRequest};
use wire::status::{Failure, Status};

const NOW_LONG_AGO_MS: u64 = 1_000_000;

/// Names of the calls that were made, and how the next ones end.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    failure: Mutex<Option<Failure>>,
    rejection: Mutex<Option<Rejection>>,
}

fn datanode(node: &str, liveness: LivenessInfo) -> DatanodeInfo {
    DatanodeInfo {
        datanode: DatanodeAddress { id: DatanodeId(Uuid::from_u128(0xd1)), address: None },
        node: node.to_owned(),
        rack: String::new(),
        liveness,
        silent_ms: Some(61_000),
        operational: OperationalInfo::InService,
        maintenance_until_ms: None,
        disks: vec![DiskReport {
            path: "/d1".into(),
            capacity_bytes: 1000,
            available_bytes: 50,
            is_failed: false,
        }],
        containers: 7,
        containers_needing_it: 1,
    }
}

fn container(id: u64) -> ContainerDetails {
    ContainerDetails {
        container: ContainerId(id),
        state: ContainerState::Closed,
        replication: Replication::Three,
        pipeline: PipelineId(1),
        created_ms: 1,
        health: vec![ContainerHealth::UnderReplicated],
        replicas: vec![ReplicaInfo {
            datanode: DatanodeId(Uuid::from_u128(0xd1)),
            node: "d1".into(),
            disk: "/d1".into(),
            generation: Generation(1),
            state: "valid".into(),
            liveness: LivenessInfo::Live,
            is_reported: true,
            is_sealed: true,
            is_unhealthy: false,
            used_bytes: 9,
            block_count: 1,
            deletion_done: 0,
        }],
    }
}

fn group(name: &str) -> GroupInfo {
    let member = |raft_id: u64, is_active| MemberInfo {
        member: Member {
            raft_id,
            incarnation: Uuid::from_u128(u128::from(raft_id)),
            node: format!("m{raft_id}"),
            address: "m:9002".parse().unwrap(),
        },
        role: MemberRole::Voter,
        is_leader: raft_id == 1,
        match_index: Some(9),
        is_active: Some(is_active),
    };
    GroupInfo {
        group: name.to_owned(),
        raft_id: 1,
        term: 3,
        leader: Some(1),
        commit_index: 9,
        applied_index: 9,
        log_first_index: 1,
        log_last_index: 9,
        state_hash: "ab".into(),
        members: vec![member(1, true), member(2, true), member(3, false)],
        vote: 1,
    }
}

fn key_blocks() -> KeyBlocks {
    let entry = |container: u64| BlockEntry {
        block: BlockId { container: ContainerId(container), local: LocalId(3) },
        offset: 0,
        length: 10,
        block_length: 10,
        digest: BlockDigest::default(),
    };
    let head = KeyHead {
        size: 20,
        etag: Etag::whole([0xab; 16]),
        modified_ms: 5,
        owner: UserId("root".into()),
        storage_class: StorageClass::Standard,
        checksum: None,
    };
    let info = KeyInfo {
        version: VersionId::default(),
        head,
        attributes: KeyAttributes::default(),
        checksums: Vec::new(),
        parts: Vec::new(),
        replication: Replication::Three,
        write_id: WriteId::default(),
        part_checksums: Default::default(),
    };
    KeyBlocks { info, start: 0, entries: vec![entry(1), entry(2)] }
}

#[async_trait]
impl OmService for Fake {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        self.calls.lock().push(format!("om {}", request.name()));
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure.into());
        }
        if let Some(rejection) = self.rejection.lock().clone() {
            return Err(rejection.into());
        }
        use OmRequest as Q;
        Ok(match request {
            Q::GetGroup(_) => OmReply::GetGroup(group("om")),
            Q::MembershipChange(_) => OmReply::MembershipChange(()),
            Q::TransferLeadership(_) => OmReply::TransferLeadership(()),
            Q::GetOmOverview(_) => OmReply::GetOmOverview(OmOverview {
                volumes: 1,
                buckets: 1,
                keys: 2,
                bytes: 3,
                sessions: 1,
                loans: 1,
                uploads: 0,
                deletion_backlog: 1,
                deletion_oldest_ms: Some(1),
                work_backlog: 0,
                default_replication: Replication::Three,
                delete_grace_ms: Some(3_600_000),
            }),
            Q::SetDefaultReplication(_) => OmReply::SetDefaultReplication(()),
            Q::WhereKey(_) => OmReply::WhereKey(key_blocks()),
            Q::ListContainerKeys(_) => {
                OmReply::ListContainerKeys(ContainerKeys { blocks: Vec::new(), is_truncated: false })
            }
            Q::CreateVolume(_) => OmReply::CreateVolume(()),
            Q::SetVolume(_) => OmReply::SetVolume(()),
            Q::DeleteVolume(_) => OmReply::DeleteVolume(()),
            Q::ListVolumes(list) => {
                let names = ["aaa", "abb", "abc", "abd"].into_iter().filter(|name| **name > *list.after);
                let volume = |name: &str| VolumeInfo {
                    name: name.to_owned(),
                    owner: UserId("root".into()),
                    created_ms: 1,
                    quota: Quota::default(),
                    used_bytes: 0,
                    buckets: 0,
                };
                OmReply::ListVolumes(names.take(list.max as usize).map(volume).collect())
            }
            Q::CreateNamespaceBucket(_) => OmReply::CreateNamespaceBucket(()),
            Q::SetBucketQuota(_) => OmReply::SetBucketQuota(()),
            Q::DeleteNamespaceBucket(_) => OmReply::DeleteNamespaceBucket(()),
            Q::ListNamespaceBuckets(list) => OmReply::ListNamespaceBuckets(vec![NamespaceBucket {
                volume: list.volume.to_string(),
                name: BucketName::new("abc").unwrap(),
                owner: UserId("root".into()),
                created_ms: 1,
                quota: Quota::default(),
                keys: 0,
                used_bytes: 0,
                replication: None,
                source: None,
            }]),
            other => panic!("the admin API does not ask {}", other.name()),
        })
    }
}

#[async_trait]
impl ScmService for Fake {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        self.calls.lock().push(format!("scm {}", request.name()));
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        use ScmRequest as Q;
        Ok(match request {
            Q::GetGroup(_) => ScmReply::GetGroup(group("scm")),
            Q::MembershipChange(_) => ScmReply::MembershipChange(()),
            Q::TransferLeadership(_) => ScmReply::TransferLeadership(()),
            Q::ListDatanodes(_) => ScmReply::ListDatanodes(vec![datanode("d1", LivenessInfo::Dead)]),
            Q::SetDatanode(_) => ScmReply::SetDatanode(()),
            Q::ListContainers(_) => ScmReply::ListContainers(vec![container(1)]),
            Q::GetContainers(get) => ScmReply::GetContainers(
                get.containers.into_iter().filter(|id| id.0 == 1).map(|id| container(id.0)).collect(),
            ),
            Q::CloseContainer(_) => ScmReply::CloseContainer(()),
            Q::RaiseReplication(_) => ScmReply::RaiseReplication(Raised { containers: 1, next: None }),
            Q::ListPipelines(_) => ScmReply::ListPipelines(Vec::new()),
            Q::GetRepair(_) => ScmReply::GetRepair(RepairInfo {
                missing: 1,
                under_replicated: 2,
                over_replicated: 0,
                unhealthy: 0,
                deleting: 0,
                copies: Vec::new(),
                bytes_per_second: 0,
                mis_placed: 0,
            }),
            Q::GetScmOverview(_) => ScmReply::GetScmOverview(ScmOverview {
                open: 1,
                closing: 0,
                closed: 2,
                deleting: 0,
                leases: 1,
                deletions_pending: 0,
                awaiting: Vec::new(),
            }),
            other => panic!("the admin API does not ask {}", other.name()),
        })
    }
}

/// A node with OM and without SCM.
impl Backups for Fake {
    fn begin(&self, group: &str) -> Option<BackupStream> {
        self.calls.lock().push(format!("backup {group}"));
        let pieces = match self.failure.lock().clone() {
            Some(failure) => vec![Err(failure)],
            None => vec![Ok(Bytes::from_static(b"FZ")), Ok(Bytes::from_static(b"BACKUP"))],
        };
        (group == "om").then(|| Box::pin(stream::iter(pieces)) as BackupStream)
    }
}

struct Api {
    fake: Arc<Fake>,
    key: ClusterKey,
    challenge: String,
    router: Router,
}

const SECRET: &str = "a root secret";

fn api() -> Api {
    let fake = Arc::new(Fake::default());
    let key = ClusterKey::new(ClusterId(Uuid::from_u128(1)), [7; 32]);
    let root = Root { access_key: "ROOTKEY".into(), secret_key: SECRET.into(), region: "us-east-1".into() };
    let owner = UserId("root".into());
    let operators = Operators::new(fake.clone(), fake.clone(), key.clone(), Some(root), owner);
    operators.set_backups(fake.clone());
    Api { fake, key, challenge: operators.challenge().to_owned(), router: api_router(operators) }
}

impl Api {
    async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn request(method: &str, path: &str, body: &str) -> Request<Body> {
        Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap()
    }

    fn signed(&self, method: &str, path: &str, body: &str, now_ms: u64) -> Request<Body> {
        let mut request = Self::request(method, path, body);
        let proof = prove(&self.key, &self.challenge, method, path, body.as_bytes(), now_ms);
        request.headers_mut().insert("authorization", proof);
        request
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
        self.send(self.signed(method, path, body, clock::now_ms())).await
    }
}

/// Each route, a call of it, and the last call of a service that it makes.
const CALLS: &[(&str, &str, &str, &str, &str)] = &[
    ("GET", "/api/v1/status", "/api/v1/status", "", "scm GetRepair"),
    ("GET", "/api/v1/om", "/api/v1/om", "", "om GetOmOverview"),
    (
        "PUT",
        "/api/v1/replication",
        "/api/v1/replication",
        r#"{"replication":"Three"}"#,
        "om SetDefaultReplication",
    ),
    ("GET", "/api/v1/where", "/api/v1/where?bucket=abc&key=a%2Fb", "", "scm GetContainers"),
    ("GET", "/api/v1/scm", "/api/v1/scm", "", "scm GetScmOverview"),
    ("GET", "/api/v1/datanodes", "/api/v1/datanodes", "", "scm ListDatanodes"),
    ("GET", "/api/v1/datanodes/{id}", "/api/v1/datanodes/d1", "", "scm ListDatanodes"),
    (
        "POST",
        "/api/v1/datanodes/{id}/decommission",
        "/api/v1/datanodes/d1/decommission",
        "",
        "scm SetDatanode",
    ),
    (
        "POST",
        "/api/v1/datanodes/{id}/maintenance",
        "/api/v1/datanodes/00000000-0000-0000-0000-0000000000d1/maintenance",
        r#"{"until_ms":5,"force":true}"#,
        "scm SetDatanode",
    ),
    (
        "POST",
        "/api/v1/datanodes/{id}/recommission",
        "/api/v1/datanodes/d1/recommission",
        "",
        "scm SetDatanode",
    ),
    ("POST", "/api/v1/datanodes/{id}/forget", "/api/v1/datanodes/d1/forget", "", "scm SetDatanode"),
    ("GET", "/api/v1/datanodes/{id}/loss", "/api/v1/datanodes/d1/loss", "", "om ListContainerKeys"),
    (
        "GET",
        "/api/v1/containers",
        "/api/v1/containers?state=Closed&health=under_replicated&after=1&max=5",
        "",
        "scm ListContainers",
    ),
    (
        "POST",
        "/api/v1/containers/raise",
        "/api/v1/containers/raise",
        r#"{"after":1}"#,
        "scm RaiseReplication",
    ),
    ("GET", "/api/v1/containers/{id}", "/api/v1/containers/1", "", "scm GetContainers"),
    ("GET", "/api/v1/containers/{id}/keys", "/api/v1/containers/1/keys", "", "scm GetContainers"),
    ("POST", "/api/v1/containers/{id}/close", "/api/v1/containers/1/close", "", "scm CloseContainer"),
    ("GET", "/api/v1/pipelines", "/api/v1/pipelines", "", "scm ListPipelines"),
    ("GET", "/api/v1/repair", "/api/v1/repair", "", "scm GetRepair"),
    ("GET", "/api/v1/groups/{group}", "/api/v1/groups/om", "", "om GetGroup"),
    (
        "POST",
        "/api/v1/groups/{group}/members",
        "/api/v1/groups/scm/members",
        r#"{"raft_id":4,"incarnation":"00000000-0000-0000-0000-000000000004","node":"m4","address":"m4:9002"}"#,
        "scm GetGroup",
    ),
    (
        "POST",
        "/api/v1/groups/{group}/members/{raft_id}/promote",
        "/api/v1/groups/om/members/4/promote",
        "",
        "om GetGroup",
    ),
    (
        "DELETE",
        "/api/v1/groups/{group}/members/{raft_id}",
        "/api/v1/groups/om/members/4?force=true",
        "",
        "om GetGroup",
    ),
    ("POST", "/api/v1/groups/{group}/transfer", "/api/v1/groups/om/transfer", "", "om GetGroup"),
    ("GET", "/api/v1/volumes", "/api/v1/volumes?owner=root", "", "om ListVolumes"),
    ("POST", "/api/v1/volumes", "/api/v1/volumes", r#"{"name":"abc"}"#, "om CreateVolume"),
    ("GET", "/api/v1/volumes/{volume}", "/api/v1/volumes/abc", "", "om ListVolumes"),
    (
        "PUT",
        "/api/v1/volumes/{volume}",
        "/api/v1/volumes/abc",
        r#"{"quota":{"bytes":5,"count":null}}"#,
        "om SetVolume",
    ),
    ("DELETE", "/api/v1/volumes/{volume}", "/api/v1/volumes/abc", "", "om DeleteVolume"),
    ("GET", "/api/v1/volumes/{volume}/buckets", "/api/v1/volumes/abc/buckets", "", "om ListNamespaceBuckets"),
    (
        "POST",
        "/api/v1/volumes/{volume}/buckets",
        "/api/v1/volumes/s3v/buckets",
        r#"{"name":"lnk","source":["vol","buc"]}"#,
        "om CreateNamespaceBucket",
    ),
    (
        "GET",
        "/api/v1/volumes/{volume}/buckets/{bucket}",
        "/api/v1/volumes/abc/buckets/abc",
        "",
        "om ListNamespaceBuckets",
    ),
    (
        "PUT",
        "/api/v1/volumes/{volume}/buckets/{bucket}/quota",
        "/api/v1/volumes/abc/buckets/abc/quota",
        r#"{"bytes":1,"count":2}"#,
        "om SetBucketQuota",
    ),
    (
        "DELETE",
        "/api/v1/volumes/{volume}/buckets/{bucket}",
        "/api/v1/volumes/abc/buckets/abc",
        "",
        "om DeleteNamespaceBucket",
    ),
];

#[tokio::test]
async fn every_route_answers_whoever_proves_the_cluster_key() {
    let listed: Vec<(&str, &str)> = ROUTES.iter().map(|route| (route.method, route.path)).collect();
    let tried: Vec<(&str, &str)> = CALLS.iter().map(|call| (call.0, call.1)).collect();
    assert_eq!(listed, tried, "every route is called");
    for (method, _, path, body, asked) in CALLS {
        let api = api();
        let (status, answer) = api.call(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        assert_eq!(api.fake.calls.lock().last().map(String::as_str), Some(*asked), "{method} {path}");
    }
}

#[tokio::test]
async fn backup_streams_to_whoever_proves_the_cluster_key() {
    let api = api();
    let path = "/api/v1/groups/om/backup";
    let (status, answer) = api.send(Api::request("GET", path, "")).await;
    assert_eq!((status, answer["code"].as_str()), (StatusCode::UNAUTHORIZED, Some("unauthenticated")));
    assert!(api.fake.calls.lock().is_empty(), "nothing was read for it");

    let signed = |path: &str| api.signed("GET", path, "", clock::now_ms());
    let response = api.router.clone().oneshot(signed(path)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "FZBACKUP");
    let (status, answer) = api.send(signed("/api/v1/groups/scm/backup")).await;
    assert!(
        status == StatusCode::CONFLICT && answer["message"].as_str().unwrap().contains("node.roles has scm")
    );
    assert_eq!(api.send(signed("/api/v1/groups/gateway/backup")).await.0, StatusCode::NOT_FOUND);
    *api.fake.failure.lock() = Some(Failure::new(Status::Retry, "om has stopped"));
    let (status, answer) = api.send(signed(path)).await;
    assert!(!status.is_success() && answer["message"].as_str().unwrap().contains("om has stopped"));
}

#[tokio::test]
async fn every_route_refuses_other_proofs_and_calls_nothing() {
    let api = api();
    let now_ms = clock::now_ms();
    let unknown = ("GET", "", "/api/v1/nothing", "", "");
    for (method, _, path, body, _) in CALLS.iter().chain([&unknown]) {
        let of_key = |key: &ClusterKey, method: &str, path_signed: &str, body_signed: &str, at_ms| {
            let mut request = Api::request(method, path, body);
            let proof = prove(key, &api.challenge, method, path_signed, body_signed.as_bytes(), at_ms);
            request.headers_mut().insert("authorization", proof);
            request
        };
        let mut double = api.signed(method, path, body, now_ms);
        let again = double.headers()["authorization"].clone();
        double.headers_mut().append("authorization", again);
        let mut nonsense = Api::request(method, path, body);
        nonsense.headers_mut().insert("authorization", "Bearer Ferrozone".parse().unwrap());
        let forged = ClusterKey::new(api.key.id, [8; 32]);
        let other = ClusterKey::new(ClusterId(Uuid::from_u128(2)), [7; 32]);
        let other_method = {
            let mut request = Api::request(method, path, body);
            let proof = prove(&api.key, &api.challenge, "PATCH", path, body.as_bytes(), now_ms);
            request.headers_mut().insert("authorization", proof);
            request
        };
        let refused = [
            ("none", Api::request(method, path, body)),
            ("nonsense", nonsense),
            ("two", double),
            ("forged", of_key(&forged, method, path, body, now_ms)),
            ("other cluster", of_key(&other, method, path, body, now_ms)),
            ("other path", of_key(&api.key, method, "/api/v1/other", body, now_ms)),
            ("other method", other_method),
            ("other body", of_key(&api.key, method, path, "{ }", now_ms)),
            ("expired", of_key(&api.key, method, path, body, NOW_LONG_AGO_MS)),
        ];
        for (what, request) in refused {
            let (status, answer) = api.send(request).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {method} {path}");
            assert_eq!(answer["code"], "unauthenticated", "{what}");
        }
    }
    assert_eq!(*api.fake.calls.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn replayed_call_has_no_effect() {
    let api = api();
    let (method, path) = ("POST", "/api/v1/containers/1/close");
    let proof = prove(&api.key, &api.challenge, method, path, b"", clock::now_ms());
    let request = || {
        let mut request = Api::request(method, path, "");
        request.headers_mut().insert("authorization", proof.clone());
        request
    };
    assert_eq!(api.send(request()).await.0, StatusCode::OK);
    let (status, answer) = api.send(request()).await;
    assert_eq!(
        (status, answer["message"].as_str()),
        (StatusCode::UNAUTHORIZED, Some("the call was made before"))
    );
    assert_eq!(api.fake.calls.lock().len(), 1);
}

/// A call is captured, as it went to one node.
fn captured(api: &Api, method: &str, path: &str) -> impl Fn() -> Request<Body> {
    let proof = prove(&api.key, &api.challenge, method, path, b"", clock::now_ms());
    let (method, path) = (method.to_owned(), path.to_owned());
    move || {
        let mut request = Api::request(&method, &path, "");
        request.headers_mut().insert("authorization", proof.clone());
        request
    }
}

#[tokio::test]
async fn captured_call_opens_no_other_node_nor_the_same_started_anew() {
    let (first, other) = (api(), api());
    let call = captured(&first, "POST", "/api/v1/containers/1/close");
    // `other` has the same key, as another node of the cluster and as the first one started anew.
    let (status, answer) = other.send(call()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(answer["message"].as_str().unwrap().contains("for another node"), "{answer}");
    let backup = captured(&first, "GET", "/api/v1/groups/om/backup");
    assert_eq!(other.send(backup()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(*other.fake.calls.lock(), Vec::<String>::new());
    assert_eq!(first.send(call()).await.0, StatusCode::OK);

    let (path, body) = ("/api/v1/volumes", r#"{"name":"abc"}"#);
    let of_first = format!("challenge={}", first.challenge);
    let by_root = |query: &str| signed_by("ROOTKEY", SECRET, path, query, body, clock::now_ms());
    for (query, part) in [(of_first.as_str(), "for another node"), ("", "?challenge=")] {
        let (status, answer) = other.send(by_root(query)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(answer["message"].as_str().unwrap().contains(part), "{answer}");
    }
    // What root signed cannot be given another challenge.
    let mut changed = by_root(&of_first);
    *changed.uri_mut() = format!("{path}?challenge={}", other.challenge).parse().unwrap();
    assert_eq!(other.send(changed).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(*other.fake.calls.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn challenge_is_told_to_anybody() {
    let api = api();
    let response = api.router.clone().oneshot(Api::request("GET", CHALLENGE_PATH, "")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), api.challenge.as_bytes());
    assert_eq!(api.send(Api::request("POST", CHALLENGE_PATH, "")).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn refusals_say_code_and_cause() {
    let api = api();
    for (method, path, body, status, part) in [
        ("GET", "/api/v1/nothing", "", 404, "there is no GET /api/v1/nothing"),
        ("PUT", "/api/v1/status", "", 404, "there is no PUT /api/v1/status"),
        ("GET", "/api/v1/groups/recon", "", 404, "there are om and scm"),
        ("GET", "/api/v1/datanodes/d9", "", 404, "datanode d9"),
        ("GET", "/api/v1/containers/9", "", 404, "container 9"),
        ("GET", "/api/v1/containers/9/keys", "", 404, "container 9"),
        ("GET", "/api/v1/volumes/abe", "", 404, "volume abe"),
        ("GET", "/api/v1/containers/x", "", 400, "is no id"),
        ("GET", "/api/v1/containers?state=Shut", "", 400, "unknown variant"),
        ("GET", "/api/v1/where?bucket=abc", "", 400, "name the key"),
        ("GET", "/api/v1/where?bucket=A&key=k", "", 400, "not a legal bucket name"),
        ("POST", "/api/v1/volumes", "{", 400, "the body"),
        ("POST", "/api/v1/volumes", r#"{"nam":"abc"}"#, 400, "unknown field"),
        ("POST", "/api/v1/containers/raise", r#"{"max":-1}"#, 400, "the body"),
    ] {
        let (found, answer) = api.call(method, path, body).await;
        let message = answer["message"].as_str().unwrap().to_owned();
        assert_eq!(found.as_u16(), status, "{method} {path}: {message}");
        assert!(message.contains(part), "{part:?} not in {message:?}");
    }
    let long = " ".repeat(65 << 10);
    assert_eq!(api.call("POST", "/api/v1/volumes", &long).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    for (failure, status) in [(Status::Retry, 503), (Status::Unknown, 504), (Status::Denied, 502)] {
        *api.fake.failure.lock() = Some(Failure::new(failure, "why"));
        let (found, answer) = api.call("GET", "/api/v1/om", "").await;
        assert_eq!((found.as_u16(), answer["message"].as_str()), (status, Some("om: why")));
    }
    *api.fake.failure.lock() = Some(Failure::new(Status::Invalid, "3 containers would be lost"));
    let (found, answer) = api.call("POST", "/api/v1/containers/1/close", "").await;
    assert_eq!((found.as_u16(), answer["message"].as_str()), (409, Some("3 containers would be lost")));
    *api.fake.failure.lock() = None;
    *api.fake.rejection.lock() = Some(Rejection::BucketNotEmpty);
    let (found, answer) = api.call("DELETE", "/api/v1/volumes/abc", "").await;
    assert_eq!((found.as_u16(), answer["code"].as_str()), (409, Some("conflict")));
}

#[tokio::test]
async fn key_is_found_down_to_its_disks() {
    let api = api();
    let (_, answer) = api.call("GET", "/api/v1/where?bucket=abc&key=17", "").await;
    let found: admin::view::KeyLocation = serde_json::from_value(answer).unwrap();
    assert_eq!((found.size, found.etag.len(), found.next_from), (20, 32, None));
    let [first, second] = found.blocks.as_slice() else { panic!("two blocks") };
    assert_eq!((first.start, second.start), (0, 10));
    assert_eq!(first.health, [ContainerHealth::UnderReplicated]);
    assert_eq!((first.replicas[0].node.as_str(), first.replicas[0].disk.as_str()), ("d1", "/d1"));
    assert_eq!((second.state, second.replicas.len()), (None, 0), "a container that scm does not know");
}

#[tokio::test]
async fn status_says_the_worst_first() {
    let api = api();
    let status = |answer: Value| serde_json::from_value::<admin::view::ClusterStatus>(answer).unwrap();
    let found = status(api.call("GET", "/api/v1/status", "").await.1);
    let words: Vec<&str> = found.problems.iter().map(|problem| problem.what.as_str()).collect();
    assert_eq!(words[0], "1 container cannot be read: no whole replica is reachable");
    for part in [
        "om: 1 of 3 voters does not answer its leader: m3",
        "datanode d1 is dead: silent for 61 s, 7 containers",
        "disk /d1 of datanode d1 is more than 90% full",
        "2 containers with too few replicas",
        "freed blocks have waited",
    ] {
        assert!(words.iter().any(|word| word.starts_with(part)), "{part:?} not in {words:?}");
    }
    *api.fake.failure.lock() = Some(Failure::new(Status::Retry, "nobody leads"));
    let found = status(api.call("GET", "/api/v1/status", "").await.1);
    assert_eq!(found.problems.len(), 2);
    assert_eq!(found.problems[1].what, "scm does not answer: scm: nobody leads");
    assert_eq!(found.om, None);
}

/// Signs as Signature Version 4 says, for a query of one parameter or none.
fn signed_by(
    access_key: &str,
    secret: &str,
    path: &str,
    query: &str,
    body: &str,
    now_ms: u64,
) -> Request<Body> {
    use hmac::{Hmac, KeyInit, Mac};
    let seconds = now_ms / 1000;
    let days = i64::try_from(seconds / 86_400).unwrap();
    // Civil date from a day number (Howard Hinnant's algorithm).
    let shifted = days + 719_468;
    let era_day = shifted.rem_euclid(146_097);
    let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + shifted.div_euclid(146_097) * 400 + i64::from(month <= 2);
    let date = format!("{year:04}{month:02}{day:02}");
    let time = seconds % 86_400;
    let stamp = format!("{date}T{:02}{:02}{:02}Z", time / 3600, time / 60 % 60, time % 60);
    let hash = hex::encode(Sha256::digest(body));
    let headers = format!("host:admin\nx-amz-content-sha256:{hash}\nx-amz-date:{stamp}\n");
    let names = "host;x-amz-content-sha256;x-amz-date";
    let canonical = format!("POST\n{path}\n{query}\n{headers}\n{names}\n{hash}");
    let scope = format!("{date}/us-east-1/s3/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let secret = auth::SecretKey::new(secret.to_owned());
    let key = auth::SigningKey::derive(&secret, &date, "us-east-1", "s3").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(to_sign.as_bytes());
    let signature = hex::encode(mac.finalize().into_bytes());
    let text = format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    );
    Request::post(format!("{path}?{query}"))
        .header("host", "admin")
        .header("x-amz-date", stamp)
        .header("x-amz-content-sha256", hash)
        .header("authorization", text)
        .body(Body::from(body.to_owned()))
        .unwrap()
}

#[tokio::test]
async fn root_may_sign_as_for_s3_and_nobody_else() {
    let api = api();
    let (path, body, now_ms) = ("/api/v1/volumes", r#"{"name":"abc"}"#, clock::now_ms());
    let query = format!("challenge={}", api.challenge);
    let query = query.as_str();
    let (status, answer) = api.send(signed_by("ROOTKEY", SECRET, path, query, body, now_ms)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let mut other_body = signed_by("ROOTKEY", SECRET, path, query, body, now_ms - 1000);
    *other_body.body_mut() = Body::from(r#"{"name":"abd"}"#);
    for request in [
        signed_by("ROOTKEY", SECRET, path, query, body, now_ms),
        signed_by("ROOTKEY", "another secret", path, query, body, now_ms),
        signed_by("ROOTKEY", SECRET, path, query, body, now_ms - 3_600_000),
        other_body,
    ] {
        assert_eq!(api.send(request).await.0, StatusCode::UNAUTHORIZED);
    }
    let (status, _) = api.send(signed_by("OTHERKEY", SECRET, path, query, body, now_ms)).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(api.fake.calls.lock().len(), 1);
}
