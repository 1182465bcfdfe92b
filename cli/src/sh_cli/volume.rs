//! `ferrozone sh volume`.

use admin::view::Page;
use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};
use wire::clock::{self, UnixMs};
use wire::operator::VolumeInfo;

use super::{ClearArgs, QuotaArgs, parts, shown, used};
use crate::admin_cli::container::{PageArgs, more};
use crate::admin_cli::{Screen, escape, with_query};
use crate::reach::read;
use crate::show::{ago, bound, fields, size, table, time};

#[derive(Debug, Subcommand)]
pub(super) enum VolumeCommand {
    /// Create a volume.
    Create {
        /// /VOLUME
        volume: String,
        /// Its owner's id [default: the root user].
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Volumes, of one user or all.
    #[command(visible_alias = "ls")]
    List {
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// A volume.
    Info {
        /// /VOLUME
        volume: String,
    },
    /// Give it to another owner.
    Update {
        /// /VOLUME
        volume: String,
        /// The new owner's id.
        #[arg(long)]
        user: String,
    },
    /// Set its bounds; one below what is used refuses what would grow.
    Setquota {
        /// /VOLUME
        volume: String,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// Take its bounds away: those named, else both.
    Clrquota {
        /// /VOLUME
        volume: String,
        #[command(flatten)]
        which: ClearArgs,
    },
    /// Delete an empty volume.
    Delete {
        /// /VOLUME
        volume: String,
    },
}

pub(super) async fn run(screen: &Screen, command: VolumeCommand) -> anyhow::Result<()> {
    match command {
        VolumeCommand::Create { volume, user, quota } => {
            let [name] = parts(&volume)?;
            let body = json!({ "name": name, "owner": user, "quota": quota.over(Default::default()) });
            screen.api.ask("POST", "/api/v1/volumes", Some(body)).await?;
            info(screen, &name).await
        }
        VolumeCommand::List { user, page } => {
            let [after, max] = page.query();
            let path = with_query("/api/v1/volumes", &[("owner", user), after, max]);
            let now_ms = clock::now_ms();
            screen
                .show(&path, |page: Page<VolumeInfo>| {
                    format!("{}{}", list_text(&page.items, now_ms), more(&page.next))
                })
                .await
        }
        VolumeCommand::Info { volume } => info(screen, &parts::<1>(&volume)?[0]).await,
        VolumeCommand::Update { volume, user } => {
            let [name] = parts(&volume)?;
            screen.api.ask("PUT", &path(&name), Some(json!({ "owner": user }))).await?;
            info(screen, &name).await
        }
        VolumeCommand::Setquota { volume, quota } => {
            if quota.is_empty() {
                bail!("name a bound: --space-quota 10GiB, --namespace-quota 1000");
            }
            change_quota(screen, &volume, |current| quota.over(current)).await
        }
        VolumeCommand::Clrquota { volume, which } => {
            change_quota(screen, &volume, |current| which.from(current)).await
        }
        VolumeCommand::Delete { volume } => {
            let [name] = parts(&volume)?;
            let answer = screen.api.ask("DELETE", &path(&name), None).await?;
            screen.done(&answer, &format!("Volume {name} is deleted."))
        }
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/volumes/{}", escape(name))
}

async fn info(screen: &Screen, name: &str) -> anyhow::Result<()> {
    shown(screen, &path(name), |answer: Value| Ok(info_text(&read(answer)?))).await
}

async fn change_quota(
    screen: &Screen,
    volume: &str,
    change: impl FnOnce(wire::operator::Quota) -> wire::operator::Quota,
) -> anyhow::Result<()> {
    let [name] = parts(volume)?;
    let current: VolumeInfo = screen.api.get(&path(&name)).await?;
    let body = json!({ "quota": change(current.quota) });
    screen.api.ask("PUT", &path(&name), Some(body)).await?;
    info(screen, &name).await
}

fn list_text(volumes: &[VolumeInfo], now_ms: UnixMs) -> String {
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            short_owner(&volume.owner.0),
            volume.buckets.to_string(),
            bound(volume.quota.count, |count| count.to_string()),
            size(volume.used_bytes),
            bound(volume.quota.bytes, size),
            ago(volume.created_ms, now_ms),
        ]
    });
    table(&["volume", "owner", ">buckets", ">bound", ">used", ">bound", "created"], rows)
}

/// The root user's id is long, as AWS's canonical ids are.
pub(super) fn short_owner(owner: &str) -> String {
    const WIDTH: usize = 16;
    match owner.chars().count() {
        0..=WIDTH => owner.to_owned(),
        _ => format!("{}...", owner.chars().take(WIDTH - 3).collect::<String>()),
    }
}

fn info_text(volume: &VolumeInfo) -> String {
    fields(&[
        ("volume", volume.name.clone()),
        ("owner", volume.owner.0.clone()),
        ("created", time(volume.created_ms)),
        ("buckets", used(volume.buckets.to_string(), volume.quota.count.map(|count| count.to_string()))),
        ("space", used(size(volume.used_bytes), volume.quota.bytes.map(size))),
    ])
}

#[cfg(test)]
mod tests {
    use wire::om::UserId;
    use wire::operator::Quota;

    use super::*;

    #[test]
    fn volumes_are_shown_with_bounds() {
        let volume = VolumeInfo {
            name: "sales".to_owned(),
            owner: UserId("0123456789abcdef0123456789abcdef".to_owned()),
            created_ms: 0,
            quota: Quota { bytes: Some(1 << 40), count: None },
            used_bytes: 1 << 30,
            buckets: 12,
        };
        assert_eq!(
            list_text(std::slice::from_ref(&volume), 5000),
            "VOLUME  OWNER             BUCKETS  BOUND     USED    BOUND  CREATED\n\
             sales   0123456789abc...       12      -  1.0 GiB  1.0 TiB  5 s ago\n"
        );
        assert_eq!(
            info_text(&volume),
            "volume   sales\nowner    0123456789abcdef0123456789abcdef\ncreated  1970-01-01 00:00:00 UTC\n\
             buckets  12, no bound\nspace    1.0 GiB of 1.0 TiB\n"
        );
    }
}
