//! `ferrozone admin`: asks the admin API of a node and prints its JSON.
//!
//! Each command is one call of the API; the cluster key in the node's `cluster.json` proves it. What is refused says why
//! and ends with exit code 1.
//!
//! Not here: what the calls mean (the crate `admin`), tables for people (to come).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use admin::prove;
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use wire::cluster_key::ClusterKey;

use crate::env::Endpoints;
use crate::identity::{Cluster, read_json};

/// An answer's bytes at most: a page of a thousand containers is about a MiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// A change of membership waits for replicas to catch up with it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Arguments of `ferrozone admin`.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// URL of a node's operators' port [default: that of the server in the data directory].
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The cluster's file with its id and key [default: DATA_DIR/cluster.json].
    #[arg(long, value_name = "FILE")]
    cluster_file: Option<PathBuf>,
    /// Data directory of a server on this machine.
    #[arg(long, value_name = "DIR", default_value = "./ferrozone-data")]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// What is wrong with the cluster, and the cluster at a glance.
    Status,
    /// OM at a glance.
    Om,
    /// SCM at a glance.
    Scm,
    /// The Raft group of om or scm: members, leader, indexes.
    Group {
        /// om or scm.
        group: String,
    },
    /// Hand leadership of a group to a voter, or to the one that is furthest on.
    TransferLeader {
        /// om or scm.
        group: String,
        /// To whom.
        #[arg(long)]
        raft_id: Option<u64>,
    },
    /// All datanodes.
    Datanodes,
    /// Change what a datanode is to do.
    Datanode {
        /// What.
        #[arg(value_enum)]
        wish: Wish,
        /// Its id or name.
        id: String,
        /// Even if data would be lost or stay below its target.
        #[arg(long)]
        force: bool,
    },
    /// Containers, optionally with one trouble alone: missing, under_replicated, unhealthy ...
    Containers {
        /// Only those with this trouble.
        #[arg(long)]
        health: Option<String>,
    },
    /// A container with its replicas.
    Container {
        /// Its id.
        id: u64,
    },
    /// Which keys lie in a container.
    ContainerKeys {
        /// Its id.
        id: u64,
    },
    /// Raise containers of one replica to three, a thousand at a time.
    RaiseContainers,
    /// Pipelines with open containers.
    Pipelines,
    /// What the replication manager does and has before it.
    Repair,
    /// Where a key's bytes are: blocks, containers, datanodes and disks, with health.
    Where {
        /// s3://bucket/key
        key: String,
    },
    /// Replicas of new keys: One or Three, for the cluster or one bucket.
    SetReplication {
        /// One or Three.
        replication: String,
        /// A bucket alone.
        #[arg(long)]
        bucket: Option<String>,
    },
    /// Any path of the API, for what has no command yet: /api/v1/volumes ...
    Get {
        /// The path with its query.
        path: String,
    },
}

/// What a datanode is to do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Wish {
    /// Be emptied, then go.
    Decommission,
    /// Be away for a while.
    Maintenance,
    /// Take part again.
    Recommission,
    /// Be struck off: it is dead or decommissioned and will not return.
    Forget,
}

/// Asks and prints.
pub(crate) async fn run(args: AdminArgs) -> anyhow::Result<ExitCode> {
    let (method, path, body) = call_of(&args.command)?;
    let admin = match &args.admin {
        Some(admin) => admin.trim_end_matches('/').to_owned(),
        None => {
            let file = Endpoints::file(&args.data_dir);
            let endpoints: Option<Endpoints> = read_json(&file)?;
            let hint = || format!("{} does not exist: name a node with --admin URL", file.display());
            endpoints.with_context(hint)?.admin
        }
    };
    let key_file = args.cluster_file.clone().unwrap_or_else(|| args.data_dir.join("cluster.json"));
    let answer = ask(&admin, &key_file, method, &path, body).await?;
    println!("{}", serde_json::to_string_pretty(&answer).context("print the answer")?);
    Ok(ExitCode::SUCCESS)
}

/// Method, path and body of a command.
fn call_of(command: &AdminCommand) -> anyhow::Result<(&'static str, String, Option<Value>)> {
    let get = |path: &str| Ok(("GET", format!("/api/v1/{path}"), None));
    let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    match command {
        AdminCommand::Status => get("status"),
        AdminCommand::Om => get("om"),
        AdminCommand::Scm => get("scm"),
        AdminCommand::Group { group } => get(&format!("groups/{}", escape(group))),
        AdminCommand::TransferLeader { group, raft_id } => Ok((
            "POST",
            format!("/api/v1/groups/{}/transfer", escape(group)),
            Some(json!({ "raft_id": raft_id })),
        )),
        AdminCommand::Datanodes => get("datanodes"),
        AdminCommand::Datanode { wish, id, force } => {
            let verb = match wish {
                Wish::Decommission => "decommission",
                Wish::Maintenance => "maintenance",
                Wish::Recommission => "recommission",
                Wish::Forget => "forget",
            };
            Ok(("POST", format!("/api/v1/datanodes/{}/{verb}", escape(id)), Some(json!({ "force": force }))))
        }
        AdminCommand::Containers { health: None } => get("containers"),
        AdminCommand::Containers { health: Some(health) } => {
            get(&format!("containers?health={}", escape(health)))
        }
        AdminCommand::Container { id } => get(&format!("containers/{id}")),
        AdminCommand::ContainerKeys { id } => get(&format!("containers/{id}/keys")),
        AdminCommand::RaiseContainers => Ok(("POST", "/api/v1/containers/raise".to_owned(), Some(json!({})))),
        AdminCommand::Pipelines => get("pipelines"),
        AdminCommand::Repair => get("repair"),
        AdminCommand::Where { key } => {
            let split = key.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
            let Some((bucket, key)) = split else { bail!("{key:?} is no s3://bucket/key") };
            get(&format!("where?bucket={}&key={}", escape(bucket), escape(key)))
        }
        AdminCommand::SetReplication { replication, bucket } => {
            let body = json!({ "replication": replication, "bucket": bucket });
            Ok(("PUT", "/api/v1/replication".to_owned(), Some(body)))
        }
        AdminCommand::Get { path } => Ok(("GET", path.clone(), None)),
    }
}

async fn ask(
    admin: &str,
    key_file: &Path,
    method: &'static str,
    path: &str,
    body: Option<Value>,
) -> anyhow::Result<Value> {
    let cluster = Cluster::load(key_file)?;
    let key = ClusterKey::new(cluster.id, cluster.key()?);
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("{admin}{path}"))
        .header(
            http::header::AUTHORIZATION,
            prove(&key, method, path, body.as_bytes(), wire::clock::now_ms()),
        )
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .with_context(|| format!("{admin}{path} is no address"))?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let exchange = async {
        let response = client.request(request).await.with_context(|| {
            format!(
                "no answer from {admin}: is the node up, and is this its operators' port (admin.address)?"
            )
        })?;
        let status = response.status();
        let collected = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = collected.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
        anyhow::Ok((status, bytes))
    };
    let (status, bytes) = tokio::time::timeout(DEADLINE, exchange)
        .await
        .with_context(|| format!("{admin} did not answer within {} s", DEADLINE.as_secs()))??;
    let answer: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("{admin} answered {status} with something that is not JSON"))?;
    if !status.is_success() {
        let message = answer["message"].as_str().unwrap_or("no reason was given");
        bail!("{status}: {message}");
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_change_the_path() {
        let id = "../scm?x=1".to_owned();
        let (_, path, _) = call_of(&AdminCommand::Datanode { wish: Wish::Forget, id, force: false }).unwrap();
        assert_eq!(path, "/api/v1/datanodes/%2E%2E%2Fscm%3Fx%3D1/forget");
        let (_, path, _) = call_of(&AdminCommand::Where { key: "s3://b/a b&c".to_owned() }).unwrap();
        assert_eq!(path, "/api/v1/where?bucket=b&key=a%20b%26c");
        assert!(call_of(&AdminCommand::Where { key: "b/a".to_owned() }).is_err());
    }
}
