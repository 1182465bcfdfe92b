//! S3 over HTTP. Knows S3 words; owns no data.
//!
//! ```text
//!   server    accept loop, limits, timers (hyper, HTTP/1.1)
//!     -> dispatch   one request: target -> authenticate -> operation -> unbuilt headers -> handler -> answer
//!          target     bucket and key from Host and raw path      operation   the one routing table
//!          query      query parameters, decoded once             access      signing keys, buckets, permission
//!          headers    refusals, content headers, storage class   conditions  If-* headers
//!          checksum   Content-MD5 and x-amz-checksum-*           request_body  body without its framing
//!          error      every refusal as S3 says it                response    answers and their bodies
//!          xml        bodies in and out, with limits
//!     -> handlers, one file per operation family
//!          service, bucket, bucket_settings, acl, listing, list_objects, list_uploads,
//!          delete_object, multipart, put_object (commit_object), get_object, copy_object, ...
//! ```
//!
//! Invariants:
//! * Every operation passes `access::authenticate`, and every use of a bucket passes `access::authorize`.
//! * What S3 has and we have not built answers 501 with its name and stores nothing.
//! * A body is looked at only after every check that can be made without it: hyper then sends `100 Continue`.
//! * A commit runs in a spawned task: a client that goes away cannot stop it half way.
//!
//! Not here: signatures and permission (auth), blocks (client), what a commit means (meta).

mod access;
mod acl;
#[cfg(test)]
mod behaviour;
mod bucket;
mod bucket_settings;
mod checksum;
mod commit_object;
mod conditions;
pub mod config;
mod copy_object;
mod delete_object;
mod digest;
mod dispatch;
mod error;
mod gateway;
mod get_object;
mod headers;
mod list_objects;
mod list_uploads;
mod listing;
pub mod metrics;
mod multipart;
mod object_body;
mod operation;
mod put_object;
mod query;
mod range;
mod read_conditions;
mod request;
mod request_body;
mod response;
mod server;
mod service;
mod target;
#[cfg(test)]
mod testing;
mod upload_part;
mod xml;

pub use config::GatewayConfig;
pub use gateway::Gateway;
