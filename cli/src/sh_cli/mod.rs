//! `ferrozone sh`: Ozone's namespace of volumes, buckets and keys, with Ozone's verbs.
//!
//! Things are addressed as in Ozone's shell: `/volume`, `/volume/bucket`, `/volume/bucket/key`. Volumes and buckets go through
//! the admin API. Keys go through S3, as the root user: what S3 does not see (buckets of other volumes than `s3v` that
//! no link names) has to be linked first, and the command says so.
//!
//! Not here: rename (S3 and OM have none), access control lists, snapshots.

mod bucket;
mod key;
mod volume;

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::Value;
use wire::operator::Quota;

use crate::admin_cli::Screen;
use crate::config::Size;
use crate::reach::{Api, EXIT_CODES, ReachArgs};

/// Arguments of `ferrozone sh`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct ShArgs {
    #[command(flatten)]
    reach: ReachArgs,
    #[command(subcommand)]
    command: ShCommand,
}

#[derive(Debug, Subcommand)]
enum ShCommand {
    /// Volumes: an account's or tenant's buckets, with an owner and bounds.
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Buckets of any volume, and links to them.
    #[command(subcommand)]
    Bucket(bucket::BucketCommand),
    /// Keys of buckets that S3 sees.
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Runs a command.
pub(crate) async fn run(args: ShArgs) -> anyhow::Result<ExitCode> {
    if let ShCommand::Key(command) = args.command {
        key::run(&args.reach, command).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen { api: Api::find(&args.reach)?, is_json: args.reach.json };
    match args.command {
        ShCommand::Volume(command) => volume::run(&screen, command).await?,
        ShCommand::Bucket(command) => bucket::run(&screen, command).await?,
        ShCommand::Key(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The parts of an address; the last takes the rest, slashes and all.
fn parts<const N: usize>(address: &str) -> anyhow::Result<[String; N]> {
    const FORMS: [&str; 3] = ["/VOLUME", "/VOLUME/BUCKET", "/VOLUME/BUCKET/KEY"];
    let mut rest = address.strip_prefix('/').unwrap_or(address).splitn(N, '/');
    let parts = std::array::from_fn(|_| rest.next().unwrap_or_default().to_owned());
    let is_key = N == FORMS.len();
    if parts.iter().any(String::is_empty) || (!is_key && parts[N - 1].contains('/')) {
        bail!("{address:?} is no address here: write {}", FORMS[N - 1]);
    }
    Ok(parts)
}

/// Bounds as the command line names them (Ozone's names).
#[derive(Debug, Clone, Copy, Args)]
struct QuotaArgs {
    /// Bytes of keys, before replication: 10GiB, 5TiB.
    #[arg(long, value_name = "SIZE", visible_alias = "quota")]
    space_quota: Option<Size>,
    /// Keys of a bucket; buckets of a volume.
    #[arg(long, value_name = "COUNT")]
    namespace_quota: Option<u64>,
}

impl QuotaArgs {
    /// `current` with what is given put in its place.
    fn over(self, current: Quota) -> Quota {
        Quota {
            bytes: self.space_quota.map(|size| size.0).or(current.bytes),
            count: self.namespace_quota.or(current.count),
        }
    }

    fn is_empty(self) -> bool {
        self.space_quota.is_none() && self.namespace_quota.is_none()
    }
}

/// Which bounds to take away.
#[derive(Debug, Clone, Copy, Args)]
struct ClearArgs {
    /// The bound of bytes.
    #[arg(long)]
    space_quota: bool,
    /// The bound of keys or buckets.
    #[arg(long)]
    namespace_quota: bool,
}

impl ClearArgs {
    /// Without the named ones; without any if none is named.
    fn from(self, current: Quota) -> Quota {
        if !self.space_quota && !self.namespace_quota {
            return Quota::default();
        }
        Quota {
            bytes: current.bytes.filter(|_| !self.space_quota),
            count: current.count.filter(|_| !self.namespace_quota),
        }
    }
}

/// A bound with how much of it is used: `3 of 10`.
fn used(used: String, bound: Option<String>) -> String {
    match bound {
        Some(bound) => format!("{used} of {bound}"),
        None => format!("{used}, no bound"),
    }
}

/// Shows a thing after it was changed.
async fn shown(
    screen: &Screen,
    path: &str,
    text: impl FnOnce(Value) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let answer = screen.api.ask("GET", path, None).await?;
    screen.print(answer, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_as_many_parts_as_their_noun() {
        assert_eq!(parts::<1>("/sales").unwrap(), ["sales"]);
        assert_eq!(parts::<2>("sales/q1").unwrap(), ["sales", "q1"]);
        assert_eq!(parts::<3>("/s3v/b/a/b/").unwrap(), ["s3v", "b", "a/b/"]);
        for error in [
            parts::<1>("/").err(),
            parts::<1>("/a/b").err(),
            parts::<2>("/a").err(),
            parts::<2>("/a/b/c").err(),
        ] {
            assert!(error.unwrap().to_string().contains("write /VOLUME"));
        }
    }

    #[test]
    fn quota_changes_what_is_named_alone() {
        let current = Quota { bytes: Some(5), count: Some(7) };
        let given = QuotaArgs { space_quota: Some(Size(9)), namespace_quota: None };
        assert_eq!(given.over(current), Quota { bytes: Some(9), count: Some(7) });
        let clear = |space_quota, namespace_quota| ClearArgs { space_quota, namespace_quota }.from(current);
        assert_eq!(clear(false, false), Quota::default());
        assert_eq!(clear(true, false), Quota { bytes: None, count: Some(7) });
    }
}
