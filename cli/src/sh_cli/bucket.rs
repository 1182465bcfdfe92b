//! `ferrozone sh bucket`.

use admin::view::Page;
use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};
use wire::clock::{self, UnixMs};
use wire::operator::{NamespaceBucket, Quota};

use super::volume::short_owner;
use super::{ClearArgs, QuotaArgs, parts, shown, used};
use crate::admin_cli::container::{PageArgs, more};
use crate::admin_cli::{Screen, escape, with_query};
use crate::reach::read;
use crate::show::{ago, bound, fields, replicas, size, table, time};

#[derive(Debug, Subcommand)]
pub(super) enum BucketCommand {
    /// Create a bucket.
    Create {
        /// /VOLUME/BUCKET; buckets of volume s3v are those that S3 sees.
        bucket: String,
        /// Its owner's id [default: the root user].
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Buckets of a volume.
    #[command(visible_alias = "ls")]
    List {
        /// /VOLUME
        volume: String,
        #[command(flatten)]
        page: PageArgs,
    },
    /// A bucket.
    Info {
        /// /VOLUME/BUCKET
        bucket: String,
    },
    /// Make a bucket of another volume appear in S3 under a name.
    Link {
        /// /VOLUME/BUCKET that is to appear.
        source: String,
        /// /s3v/NAME under which it does.
        link: String,
    },
    /// Set its bounds; one below what is used refuses what would grow.
    Setquota {
        /// /VOLUME/BUCKET
        bucket: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Take its bounds away: those named, else both.
    Clrquota {
        /// /VOLUME/BUCKET
        bucket: String,
        #[command(flatten)]
        which: ClearArgs,
    },
    /// Delete an empty bucket, or a link (never what it stands for).
    Delete {
        /// /VOLUME/BUCKET
        bucket: String,
    },
}

pub(super) async fn run(screen: &Screen, command: BucketCommand) -> anyhow::Result<()> {
    match command {
        BucketCommand::Create { bucket, user, quota } => {
            let [volume, name] = parts(&bucket)?;
            let body = json!({ "name": name, "owner": user, "quota": quota.over(Quota::default()) });
            screen.api.ask("POST", &buckets_path(&volume), Some(body)).await?;
            info(screen, &volume, &name).await
        }
        BucketCommand::List { volume, page } => {
            let [volume] = parts(&volume)?;
            let now_ms = clock::now_ms();
            screen
                .show(&with_query(&buckets_path(&volume), &page.query()), |page: Page<NamespaceBucket>| {
                    format!("{}{}", list_text(&page.items, now_ms), more(&page.next))
                })
                .await
        }
        BucketCommand::Info { bucket } => {
            let [volume, name] = parts(&bucket)?;
            info(screen, &volume, &name).await
        }
        BucketCommand::Link { source, link } => {
            let [volume, name] = parts(&link)?;
            let source: [String; 2] = parts(&source)?;
            let body = json!({ "name": name, "source": source });
            screen.api.ask("POST", &buckets_path(&volume), Some(body)).await?;
            info(screen, &volume, &name).await
        }
        BucketCommand::Setquota { bucket, quota } => {
            if quota.is_empty() {
                bail!("name a bound: --space-quota 10GiB, --namespace-quota 1000");
            }
            change_quota(screen, &bucket, |current| quota.over(current)).await
        }
        BucketCommand::Clrquota { bucket, which } => {
            change_quota(screen, &bucket, |current| which.from(current)).await
        }
        BucketCommand::Delete { bucket } => {
            let [volume, name] = parts(&bucket)?;
            let answer = screen.api.ask("DELETE", &path(&volume, &name), None).await?;
            screen.done(&answer, &format!("Bucket {volume}/{name} is deleted."))
        }
    }
}

fn buckets_path(volume: &str) -> String {
    format!("/api/v1/volumes/{}/buckets", escape(volume))
}

fn path(volume: &str, name: &str) -> String {
    format!("{}/{}", buckets_path(volume), escape(name))
}

async fn info(screen: &Screen, volume: &str, name: &str) -> anyhow::Result<()> {
    shown(screen, &path(volume, name), |answer: Value| Ok(info_text(&read(answer)?))).await
}

async fn change_quota(
    screen: &Screen,
    bucket: &str,
    change: impl FnOnce(Quota) -> Quota,
) -> anyhow::Result<()> {
    let [volume, name] = parts(bucket)?;
    let current: NamespaceBucket = screen.api.get(&path(&volume, &name)).await?;
    let body = serde_json::to_value(change(current.quota))?;
    screen.api.ask("PUT", &format!("{}/quota", path(&volume, &name)), Some(body)).await?;
    info(screen, &volume, &name).await
}

fn source(bucket: &NamespaceBucket) -> Option<String> {
    bucket.source.as_ref().map(|(volume, name)| format!("/{volume}/{name}"))
}

fn list_text(buckets: &[NamespaceBucket], now_ms: UnixMs) -> String {
    let rows = buckets.iter().map(|bucket| {
        vec![
            bucket.name.to_string(),
            short_owner(&bucket.owner.0),
            bucket.keys.to_string(),
            bound(bucket.quota.count, |count| count.to_string()),
            size(bucket.used_bytes),
            bound(bucket.quota.bytes, size),
            ago(bucket.created_ms, now_ms),
            source(bucket).unwrap_or_default(),
        ]
    });
    table(&["bucket", "owner", ">keys", ">bound", ">used", ">bound", "created", "link to"], rows)
}

fn info_text(bucket: &NamespaceBucket) -> String {
    let mut lines = vec![
        ("bucket", format!("/{}/{}", bucket.volume, bucket.name)),
        ("owner", bucket.owner.0.clone()),
        ("created", time(bucket.created_ms)),
        ("keys", used(bucket.keys.to_string(), bucket.quota.count.map(|count| count.to_string()))),
        ("space", used(size(bucket.used_bytes), bucket.quota.bytes.map(size))),
        ("replication", bucket.replication.map_or_else(|| "the cluster's default".to_owned(), replicas)),
    ];
    if let Some(source) = source(bucket) {
        lines.push(("link to", source));
    }
    fields(&lines)
}

#[cfg(test)]
mod tests {
    use wire::names::BucketName;
    use wire::om::UserId;

    use super::*;

    #[test]
    fn buckets_and_links_are_shown() {
        let bucket = NamespaceBucket {
            volume: "s3v".to_owned(),
            name: BucketName::new("photos").unwrap(),
            owner: UserId("ann".to_owned()),
            created_ms: 0,
            quota: Quota { bytes: None, count: Some(1000) },
            keys: 3,
            used_bytes: 1 << 20,
            replication: None,
            source: Some(("sales".to_owned(), BucketName::new("q1-2026").unwrap())),
        };
        assert_eq!(
            list_text(std::slice::from_ref(&bucket), 5000),
            "BUCKET  OWNER  KEYS  BOUND     USED  BOUND  CREATED  LINK TO\n\
             photos  ann       3   1000  1.0 MiB      -  5 s ago  /sales/q1-2026\n"
        );
        assert!(
            info_text(&bucket).ends_with("replication  the cluster's default\nlink to      /sales/q1-2026\n")
        );
    }
}
