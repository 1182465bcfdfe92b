//! The admin API: one table of routes, and one way through which every call goes.
//!
//! ```text
//!   head -> proof checked -> body read (bounded) -> body checked against the proof -> the route's handler -> JSON
//! ```
//!
//! Invariants: a path of `/api` that no route has is refused like any other without a proof, so that nothing can be
//! found out by trying. [`CHALLENGE_PATH`] alone answers anybody, and tells nothing.
//!
//! Not here: what the routes do.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use axum::{Json, Router};
use bytes::Bytes;
use client::service::{OmService, ScmService, call_om, call_scm};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wire::clock;
use wire::cluster_key::ClusterKey;
use wire::om::{OmCall, UserId};
use wire::operator::PAGE_MAX;
use wire::scm::ScmCall;

use crate::backup::{self, Backups};
use crate::error::ApiError;
use crate::proof::{Root, Verifier};
use crate::{group, locate, namespace, om, scm, status};

/// Bytes of a call's body at most.
const BODY_BYTES_MAX: usize = 64 << 10;
/// A group's backup: bytes, not JSON, so that it is not among [`ROUTES`].
const BACKUP_PATH: &str = "/api/v1/groups/{group}/backup";
/// Answers, to anybody, what stands for this process in proofs (see `proof`): text, not JSON, for a shell's sake.
pub const CHALLENGE_PATH: &str = "/api/v1/challenge";
/// Entries of a page where the call names no number.
const PAGE_DEFAULT: u32 = 100;

/// What the admin API calls, and whom it lets in.
pub struct Operators {
    pub(crate) om: Arc<dyn OmService>,
    pub(crate) scm: Arc<dyn ScmService>,
    pub(crate) root_user: UserId,
    verifier: Verifier,
    /// The replicas of this process, if it has any.
    backups: OnceLock<Arc<dyn Backups>>,
}

impl Operators {
    /// An API on `om` and `scm` (clients that find the leader) for holders of `key` or `root`; `root_user` owns what is
    /// created without an owner.
    pub fn new(
        om: Arc<dyn OmService>,
        scm: Arc<dyn ScmService>,
        key: ClusterKey,
        root: Option<Root>,
        root_user: UserId,
    ) -> Arc<Self> {
        Arc::new(Self { om, scm, root_user, verifier: Verifier::new(key, root), backups: OnceLock::new() })
    }

    /// Names the replicas of this process, whose backups can be read. Once.
    pub fn set_backups(&self, backups: Arc<dyn Backups>) {
        // Whoever was named first stays.
        let _ = self.backups.set(backups);
    }

    /// What stands for this process in proofs.
    pub fn challenge(&self) -> &str {
        self.verifier.challenge()
    }

    pub(crate) fn backups(&self) -> Option<&Arc<dyn Backups>> {
        self.backups.get()
    }

    /// Checks the proof of a call without a body.
    pub(crate) async fn admit(&self, request: Request) -> Result<(), ApiError> {
        let (head, body) = request.into_parts();
        let proof = self.verifier.verify(&head, clock::now_ms())?;
        let broken = |_| ApiError::BadRequest("the call has no body".to_owned());
        proof.check(&Limited::new(body, 0).collect().await.map_err(broken)?.to_bytes())
    }

    pub(crate) async fn om<C: OmCall>(&self, call: C) -> Result<C::Reply, ApiError> {
        call_om(&*self.om, call).await.map_err(ApiError::om)
    }

    pub(crate) async fn scm<C: ScmCall>(&self, call: C) -> Result<C::Reply, ApiError> {
        call_scm(&*self.scm, call).await.map_err(ApiError::scm)
    }
}

/// What a handler is given.
pub(crate) struct Call {
    path: BTreeMap<String, String>,
    query: BTreeMap<String, String>,
    body: Bytes,
}

impl Call {
    /// A part of the path that the route names.
    pub(crate) fn path<T: std::str::FromStr>(&self, name: &str) -> Result<T, ApiError> {
        let text = self.path.get(name).map_or("", String::as_str);
        text.parse().map_err(|_| ApiError::BadRequest(format!("{text:?} is no {name}")))
    }

    /// A part of the path, through the type's JSON form.
    pub(crate) fn path_as<T: DeserializeOwned>(&self, name: &str) -> Result<T, ApiError> {
        read_word(name, self.path.get(name).map_or("", String::as_str))
    }

    /// A query parameter as text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A query parameter, through the type's JSON form: a number, or a word of an enum.
    pub(crate) fn query_as<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.text(name).map(|text| read_word(name, text)).transpose()
    }

    /// `max`, cut to what a page may hold.
    pub(crate) fn max(&self) -> Result<u32, ApiError> {
        Ok(self.query_as("max")?.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX))
    }

    /// The body; an empty one reads as `{}`.
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| ApiError::BadRequest(format!("the body: {error}")))
    }
}

/// Reads a number, or else a word: `17`, `under_replicated`, a UUID.
fn read_word<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ApiError> {
    let number = text.parse::<u64>().ok().and_then(|number| serde_json::from_value(number.into()).ok());
    let word = || serde_json::from_value(Value::String(text.to_owned()));
    match number {
        Some(value) => Ok(value),
        None => word().map_err(|error| ApiError::BadRequest(format!("{name}={text}: {error}"))),
    }
}

/// What handlers answer: JSON.
pub(crate) type Answer = Result<Value, ApiError>;
type Handler = fn(Arc<Operators>, Call) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Turns an answer to JSON.
pub(crate) fn json(value: impl Serialize) -> Answer {
    serde_json::to_value(value).map_err(|error| ApiError::Conflict(format!("the answer is no JSON: {error}")))
}

/// A route of the admin API.
pub struct Route {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// With `{names}` of its parts.
    pub path: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    handler: Handler,
}

macro_rules! routes {
    ($($method:ident $path:literal $handler:path, $about:literal;)*) => {
        &[$(Route {
            method: stringify!($method),
            path: $path,
            about: $about,
            handler: |operators, call| Box::pin(async move { $handler(&operators, &call).await }),
        }),*]
    };
}

/// Every route.
pub const ROUTES: &[Route] = routes! {
    GET "/api/v1/status" status::get, "what is wrong, and the cluster at a glance";
    GET "/api/v1/om" om::overview, "OM at a glance";
    PUT "/api/v1/replication" om::set_default_replication, "replication of new keys: {bucket?, replication?}";
    GET "/api/v1/where" locate::key, "where a key's bytes are: bucket, key, from";
    GET "/api/v1/scm" scm::overview, "SCM at a glance";
    GET "/api/v1/datanodes" scm::list_datanodes, "all datanodes";
    GET "/api/v1/datanodes/{id}" scm::get_datanode, "a datanode, by id or name";
    POST "/api/v1/datanodes/{id}/decommission" scm::decommission, "empty it, then let it go: {force?}";
    POST "/api/v1/datanodes/{id}/maintenance" scm::maintenance, "let it be away: {until_ms?, force?}";
    POST "/api/v1/datanodes/{id}/recommission" scm::recommission, "let it take part again";
    POST "/api/v1/datanodes/{id}/forget" scm::forget, "strike off a dead or decommissioned one: {force?}";
    GET "/api/v1/datanodes/{id}/loss" scm::loss, "what lies there and nowhere else";
    GET "/api/v1/containers" scm::list_containers, "containers: after, max, state, datanode, health";
    POST "/api/v1/containers/raise" scm::raise, "raise containers of one replica to three: {after?, max?}";
    GET "/api/v1/containers/{id}" scm::get_container, "a container with its replicas";
    GET "/api/v1/containers/{id}/keys" om::container_keys, "which keys lie in it: after, max";
    POST "/api/v1/containers/{id}/close" scm::close_container, "close an open one";
    GET "/api/v1/pipelines" scm::list_pipelines, "pipelines with open containers";
    GET "/api/v1/repair" scm::repair, "what the replication manager does and has before it";
    GET "/api/v1/groups/{group}" group::get, "the Raft group of om or scm";
    POST "/api/v1/groups/{group}/members" group::add, "add a learner: a member";
    POST "/api/v1/groups/{group}/members/{raft_id}/promote" group::promote, "let a learner vote";
    DELETE "/api/v1/groups/{group}/members/{raft_id}" group::remove, "remove a member: force";
    POST "/api/v1/groups/{group}/transfer" group::transfer, "hand leadership on: {raft_id?}";
    GET "/api/v1/volumes" namespace::list_volumes, "volumes: owner, after, max";
    POST "/api/v1/volumes" namespace::create_volume, "create a volume: {name, owner?, quota?}";
    GET "/api/v1/volumes/{volume}" namespace::get_volume, "a volume";
    PUT "/api/v1/volumes/{volume}" namespace::set_volume, "change it: {owner?, quota?}";
    DELETE "/api/v1/volumes/{volume}" namespace::delete_volume, "delete an empty one";
    GET "/api/v1/volumes/{volume}/buckets" namespace::list_buckets, "its buckets: after, max";
    POST "/api/v1/volumes/{volume}/buckets" namespace::create_bucket, "create one: {name, owner?, quota?, source?}";
    GET "/api/v1/volumes/{volume}/buckets/{bucket}" namespace::get_bucket, "a bucket";
    PUT "/api/v1/volumes/{volume}/buckets/{bucket}/quota" namespace::set_quota, "its bounds: {bytes?, count?}";
    DELETE "/api/v1/volumes/{volume}/buckets/{bucket}" namespace::delete_bucket, "delete an empty one, or a link";
};

/// Serves the admin API under `/api`. To be merged with [`crate::router`].
pub fn api_router(operators: Arc<Operators>) -> Router {
    let mut by_path: BTreeMap<&str, MethodRouter<Arc<Operators>>> = BTreeMap::new();
    for route in ROUTES {
        let handler = route.handler;
        let filter = match route.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "PUT" => MethodFilter::PUT,
            _ => MethodFilter::DELETE,
        };
        let serve = move |State(operators): State<Arc<Operators>>, path: RawPathParams, request: Request| {
            let path = path.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            answer(operators, path, request, Some(handler))
        };
        let methods = by_path.remove(route.path).unwrap_or_default();
        by_path.insert(route.path, methods.merge(on(filter, serve)));
    }
    let unknown = |State(operators): State<Arc<Operators>>, request: Request| {
        answer(operators, BTreeMap::new(), request, None)
    };
    let mut router = Router::new().route("/api/{*rest}", axum::routing::any(unknown));
    let challenge = |State(operators): State<Arc<Operators>>| async move { operators.challenge().to_owned() };
    router = router.route(CHALLENGE_PATH, get(challenge).fallback(unknown));
    router = router.route(BACKUP_PATH, get(backup::get).fallback(unknown));
    for (path, methods) in by_path {
        router = router.route(path, methods.fallback(unknown));
    }
    router.with_state(operators)
}

async fn answer(
    operators: Arc<Operators>,
    path: BTreeMap<String, String>,
    request: Request,
    handler: Option<Handler>,
) -> Response {
    let (head, body) = request.into_parts();
    match perform(operators, path, &head, body, handler).await {
        Ok(value) => Json(value).into_response(),
        Err(error) => {
            tracing::debug!(method = %head.method, path = head.uri.path(), %error, "refused an operator's call");
            error.into_response()
        }
    }
}

async fn perform(
    operators: Arc<Operators>,
    path: BTreeMap<String, String>,
    head: &Parts,
    body: Body,
    handler: Option<Handler>,
) -> Answer {
    let proof = operators.verifier.verify(head, clock::now_ms())?;
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::TooLarge(BODY_BYTES_MAX)
        } else {
            ApiError::BadRequest("the body broke off".to_owned())
        }
    })?;
    let body = body.to_bytes();
    proof.check(&body)?;
    let handler = handler.ok_or_else(|| ApiError::NoRoute(format!("{} {}", head.method, head.uri.path())))?;
    let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&head.uri)
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    if head.method != http::Method::GET {
        tracing::info!(method = %head.method, path = head.uri.path(), "an operator's call");
    }
    handler(operators, Call { path, query, body }).await
}
