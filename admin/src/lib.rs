//! The operators' port: health, metrics, and the admin API that the command line and the console stand on.
//!
//! * `health`: `GET /healthz/live`, `/healthz/ready`, `/metrics`. Open to whoever reaches the port: they show no data.
//! * `api`: the route table of `/api/v1`, and the one way from a request to its answer. JSON in, JSON out.
//! * `proof`: who may call it: holders of the cluster key, or of the root credentials. Reads too.
//! * `om`, `scm`, `group`, `namespace`: one resource after the other, each a call of OM or SCM.
//! * `locate`: where a key's bytes are, joined from OM's block list and SCM's containers.
//! * `status`: what is wrong with the cluster, first and in words that can be acted on.
//! * `view`: answers that join several calls; all others are `wire::operator`'s types as they are.
//! * `error`: every refusal, as status, code and message.
//!
//! Invariants:
//! * Nothing here is served on the S3 port, and nothing here shows a secret.
//! * Every route of `/api` asks for a proof before it reads a body or calls anything; but the one that answers the
//!   challenge a proof needs.
//! * Nothing is known here that the services cannot tell: no state, no database.
//!
//! Not here: the listener (the caller serves the routers), what the metrics mean (each crate's `metrics`).

mod api;
mod backup;
mod error;
mod group;
mod health;
mod locate;
mod namespace;
mod om;
mod proof;
mod scm;
mod status;
pub mod view;

pub use api::{CHALLENGE_PATH, Operators, ROUTES, Route, api_router};
pub use backup::{BackupStream, Backups};
pub use error::ApiError;
pub use health::{MetricsError, Readiness, record_metrics, router};
pub use proof::{Root, prove};
