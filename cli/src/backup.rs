//! Backups of the metadata: served to operators, kept in files, and made into directories again.
//!
//! ```text
//!   ferrozone admin om backup FILE  --> admin API of a node with OM --> the replica's rows --> FILE, whole or not at all
//!   ferrozone cluster restore --config node.toml --om FILE --scm FILE --> fresh directories of one voter each
//! ```
//!
//! Both groups are restored together: SCM's backup has to be the newer one, since OM's rows name containers of SCM.
//!
//! Not here: the file (consensus), adding more nodes afterwards (`admin_cli::membership`).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admin::{BackupStream, Backups};
use anyhow::Context;
use clap::Args;
use consensus::BackupInfo;
use meta::OmConfig;
use scm::ScmConfig;

use crate::config::Config;
use crate::fresh_file::FreshFile;
use crate::identity::Cluster;
use crate::reach::Api;
use crate::roles::{om_config, restored_place, scm_config};
use crate::server::Unusable;
use crate::topology::Group;

/// The replicas of this process.
pub(crate) struct LocalBackups {
    pub(crate) om: Option<Arc<meta::Om>>,
    pub(crate) scm: Option<Arc<scm::Scm>>,
}

impl Backups for LocalBackups {
    fn begin(&self, group: &str) -> Option<BackupStream> {
        match group {
            "om" => self.om.as_ref().map(|om| om.backup()),
            "scm" => self.scm.as_ref().map(|scm| scm.backup()),
            _ => None,
        }
    }
}

/// Keeps a group's backup in `file`, which must not exist; answers its length.
pub(crate) async fn keep(api: &Api, group: &str, file: &Path) -> anyhow::Result<u64> {
    // It holds sealed secrets and everybody's names.
    let mut kept = FreshFile::begin(file, 0o600)?;
    let mut length = 0;
    api.download(&format!("/api/v1/groups/{group}/backup"), |piece| {
        length += piece.len() as u64;
        kept.write(piece)
    })
    .await?;
    kept.keep()?;
    Ok(length)
}

/// Arguments of `ferrozone cluster restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The configuration of the node that is to hold the metadata: a new one, as `cluster add-node` makes it.
    #[arg(long, value_name = "NODE_TOML")]
    config: Option<PathBuf>,
    /// The data directory of a cluster of one process, with its cluster.json.
    #[arg(long, value_name = "DIR", conflicts_with = "config", required_unless_present = "config")]
    data_dir: Option<PathBuf>,
    /// OM's backup.
    #[arg(long, value_name = "FILE")]
    om: PathBuf,
    /// SCM's backup, taken after OM's.
    #[arg(long, value_name = "FILE")]
    scm: PathBuf,
}

/// Makes the directories of both groups.
pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<String> {
    let mut config = Config::load(args.config.as_deref(), std::env::vars()).context(Unusable)?;
    if let Some(data_dir) = &args.data_dir {
        config.data_dir = data_dir.clone();
    }
    let file = config.cluster_file();
    let cluster = Cluster::load(&file).with_context(|| {
        format!("the backup's cluster key is needed: put cluster.json at {}", file.display())
    })?;
    // SCM first: without it OM's names nothing.
    let scm_config =
        ScmConfig { place: restored_place(&config, Group::Scm)?, ..scm_config(&config, &cluster) };
    let scm = scm::restore(&scm_config, &mut open(&args.scm)?);
    let scm = scm.with_context(|| format!("restore SCM from {}", args.scm.display()))?;
    let om_config = OmConfig {
        place: restored_place(&config, Group::Om)?,
        ..om_config(&config, &cluster, cluster.key()?)?
    };
    let om = meta::restore(&om_config, &mut open(&args.om)?);
    let om = om.with_context(|| format!("restore OM from {}", args.om.display()))?;
    Ok(tell(&om, &scm))
}

fn open(file: &Path) -> anyhow::Result<BufReader<File>> {
    let opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    Ok(BufReader::new(opened))
}

fn tell(om: &BackupInfo, scm: &BackupInfo) -> String {
    let mut text = format!(
        "Restored OM up to command {} and SCM up to command {}. This node alone votes in both groups: start it, then add \
         others (ferrozone cluster add-node, ferrozone admin om add-peer, scm add-peer).\n\
         What was written after the backups is lost, and keys deleted or overwritten since may name blocks that are gone.\n",
        om.applied_index, scm.applied_index
    );
    if scm.taken_ms < om.taken_ms {
        text.push_str(
            "WARNING: SCM's backup is older than OM's: keys may lie in containers that SCM does not know. Take SCM's last.\n",
        );
    }
    if om.members.len() > 1 {
        text.push_str(
            "The old members of both groups must stay stopped; they are not listened to any more.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_backup_of_scm_is_told() {
        let info = |taken_ms| BackupInfo {
            group: String::new(),
            taken_ms,
            cluster_id: uuid::Uuid::nil(),
            applied_index: 7,
            state_hash: 0,
            members: Vec::new(),
        };
        assert!(tell(&info(5), &info(4)).contains("WARNING"));
        let told = tell(&info(5), &info(6));
        assert!(!told.contains("WARNING") && told.contains("up to command 7"), "{told}");
    }
}
