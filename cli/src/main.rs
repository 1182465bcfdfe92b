//! The one binary, `ferrozone`: `server` runs the roles, `cluster` makes the files of a cluster's nodes, `env` tells clients
//! how to reach it, `admin` and `sh` ask and direct it, `bench` measures.
//!
//! Exit codes: 0 success; 1 failure, said on standard error; 2 wrong arguments; 78 (EX_CONFIG) a configuration or a
//! data directory that cannot be used; `admin`, `sh` and `bench` have more, told by their help.

mod admin_cli;
mod backup;
mod bench;
mod certificates;
mod cluster_init;
mod config;
mod contacts;
mod env;
mod fresh_file;
mod identity;
mod reach;
mod roles;
mod s3_trust;
mod server;
mod sh_cli;
mod show;
mod topology;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// sysexits.h: something was found in an unconfigured or misconfigured state.
const EXIT_CONFIG: u8 = 78;

#[derive(Debug, Parser)]
#[command(name = "ferrozone", version, about = "An S3-compatible object service in one program")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: all roles in one process.
    Server(server::ServerArgs),
    /// Print client settings for a server's data directory.
    Env(env::EnvArgs),
    /// Make the files of a cluster's nodes.
    Cluster(cluster_init::ClusterArgs),
    /// Ask and direct a cluster: status, datanodes, containers, repair, where a key is.
    Admin(admin_cli::AdminArgs),
    /// Ozone's namespace: volumes, buckets, links, quotas, keys.
    Sh(sh_cli::ShArgs),
    /// Measure an S3 endpoint.
    Bench(Box<bench::BenchArgs>),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Server(args) => server::run(args),
        Command::Env(args) => env::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Cluster(args) => cluster_init::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Admin(args) => run_async(admin_cli::run(args)),
        Command::Sh(args) => run_async(sh_cli::run(args)),
        Command::Bench(args) => run_async(bench::run(*args)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ferrozone: {error:#}");
        match (error.downcast_ref::<server::Unusable>(), error.downcast_ref::<reach::Refusal>()) {
            (Some(_), _) => ExitCode::from(EXIT_CONFIG),
            (_, Some(refusal)) => ExitCode::from(refusal.exit_code()),
            _ => ExitCode::FAILURE,
        }
    })
}

fn run_async(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
