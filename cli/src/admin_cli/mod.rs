//! `ferrozone admin`: asks and directs a cluster through the admin API, noun by noun.
//!
//! * `status`: what is wrong, and the cluster at a glance. `group`: OM, SCM and their Raft groups; `membership`: members
//!   that come and go, with progress. `datanode`, `container`, `repair`, `locate` (`where`): one resource each.
//!
//! A command asks, then shows: a table for people, the API's own answer with `--json`. What is shown is made by functions of
//! the answer and the present alone, so that tests hold them against texts.
//!
//! Invariants:
//! * Nothing is shown that the admin API does not tell.
//! * What takes redundancy or data away is asked for without force first, and says what would be lost.
//!
//! Not here: reaching the API and exit codes (`reach`), the namespace (`sh_cli`).

pub(crate) mod container;
mod datanode;
mod group;
mod locate;
mod membership;
mod repair;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::reach::{Api, EXIT_CODES, ReachArgs, read};

/// Arguments of `ferrozone admin`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct AdminArgs {
    #[command(flatten)]
    reach: ReachArgs,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// What is wrong with the cluster, and the cluster at a glance.
    Status {
        /// End with exit code 10 if there are warnings, 11 if something is critical.
        #[arg(long)]
        check: bool,
    },
    /// The Ozone Manager: its state, its Raft group, its members.
    #[command(subcommand)]
    Om(group::OmCommand),
    /// The Storage Container Manager: its state, its Raft group, its members.
    #[command(subcommand)]
    Scm(group::GroupCommand),
    /// Add a node with OM and SCM to both groups: it catches up first, then it votes.
    AddNode {
        /// The new node's configuration, as `ferrozone cluster add-node` made it.
        #[arg(value_name = "NODE_TOML")]
        new: PathBuf,
        #[command(flatten)]
        patience: membership::Patience,
    },
    /// Remove a node from both groups. What its datanode holds is not touched.
    RemoveNode {
        /// Its name or raft id.
        node: String,
        /// Even if fewer failures are survived then, or the rest has no active majority. The last voter is never removed.
        #[arg(long)]
        force: bool,
    },
    /// Put a new node in a lost one's place, in both groups.
    ReplaceNode {
        /// The lost node's name.
        old: String,
        /// The new node's configuration, as `ferrozone cluster add-node` made it.
        #[arg(value_name = "NODE_TOML")]
        new: PathBuf,
        #[command(flatten)]
        patience: membership::Patience,
    },
    /// Datanodes: list, empty, send away, take back, strike off.
    #[command(subcommand)]
    Datanode(datanode::DatanodeCommand),
    /// Containers: list, show, the keys in one, close, raise to three replicas.
    #[command(subcommand)]
    Container(container::ContainerCommand),
    /// Pipelines: which datanodes are written together.
    #[command(subcommand)]
    Pipeline(repair::PipelineCommand),
    /// What the replication manager does and has before it.
    Repair,
    /// Where a key's bytes are: blocks, containers, datanodes and disks, with health.
    Where {
        /// s3://bucket/key
        key: String,
    },
    /// Any path of the API as JSON: /api/v1/status ...
    Get {
        /// The path with its query.
        path: String,
    },
}

/// Runs a command.
pub(crate) async fn run(args: AdminArgs) -> anyhow::Result<ExitCode> {
    let screen = Screen { api: Api::find(&args.reach)?, is_json: args.reach.json };
    match args.command {
        AdminCommand::Status { check } => return status::run(&screen, check).await,
        AdminCommand::Om(command) => group::run_om(&screen, command).await?,
        AdminCommand::Scm(command) => group::run(&screen, group::Service::Scm, command).await?,
        AdminCommand::AddNode { new, patience } => {
            membership::add_node(&screen, &new, None, &patience).await?;
        }
        AdminCommand::RemoveNode { node, force } => membership::remove_node(&screen, &node, force).await?,
        AdminCommand::ReplaceNode { old, new, patience } => {
            membership::add_node(&screen, &new, Some(&old), &patience).await?;
        }
        AdminCommand::Datanode(command) => datanode::run(&screen, command).await?,
        AdminCommand::Container(command) => container::run(&screen, command).await?,
        AdminCommand::Pipeline(command) => repair::run_pipeline(&screen, command).await?,
        AdminCommand::Repair => repair::run(&screen).await?,
        AdminCommand::Where { key } => locate::run(&screen, &key).await?,
        AdminCommand::Get { path } => screen.print_json(&screen.api.ask("GET", &path, None).await?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The API, and the way in which its answers are shown.
pub(crate) struct Screen {
    pub(crate) api: Api,
    pub(crate) is_json: bool,
}

impl Screen {
    /// Asks, and shows the answer.
    pub(crate) async fn show<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        show: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        let answer = self.api.ask("GET", path, None).await?;
        self.print(answer, |answer| Ok(show(read(answer)?)))
    }

    /// Prints an answer as JSON, or as `text` makes it.
    pub(crate) fn print(
        &self,
        answer: Value,
        text: impl FnOnce(Value) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        if self.is_json {
            return self.print_json(&answer);
        }
        print_text(&text(answer)?)
    }

    /// Says that something was done. With `--json` the answer says it.
    pub(crate) fn done(&self, answer: &Value, text: &str) -> anyhow::Result<()> {
        if self.is_json { self.print_json(answer) } else { print_text(&format!("{text}\n")) }
    }

    /// Prints an answer as it is.
    pub(crate) fn print_json(&self, answer: &Value) -> anyhow::Result<()> {
        print_text(&format!("{}\n", serde_json::to_string_pretty(answer).context("print the answer")?))
    }
}

/// A reader that has gone away (`| head`) is no failure.
fn print_text(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("print the answer")
        }
        _ => Ok(()),
    }
}

/// A part of a path or a value in a query: it cannot change either.
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A path with those of the parameters that have a value.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given: Vec<String> = parameters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", escape(value.as_ref()?))))
        .collect();
    if given.is_empty() { path.to_owned() } else { format!("{path}?{}", given.join("&")) }
}

/// A value as its JSON form writes it: `in_service`, `Closed`; for people without underscores, in lower case.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    let word = word.as_ref().and_then(Value::as_str).unwrap_or("?");
    word.replace('_', " ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_change_the_path() {
        assert_eq!(escape("../scm?x=1"), "%2E%2E%2Fscm%3Fx%3D1");
        let query = [("a", None), ("key", Some("a b&c".to_owned())), ("max", Some("5".to_owned()))];
        assert_eq!(with_query("/p", &query), "/p?key=a%20b%26c&max=5");
        assert_eq!(with_query("/p", &query[..1]), "/p");
    }
}
