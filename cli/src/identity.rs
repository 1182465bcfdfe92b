//! What the first start makes and every later one keeps: the cluster's id and key, and the root credentials.
//!
//! Both lie in the data directory, readable by the server's user alone. Nothing is well known: without
//! `FERROZONE_ROOT_USER` and `FERROZONE_ROOT_PASSWORD` (or MinIO's names for them) the credentials are random.
//!
//! Not here: other users (configuration), secrets at rest in OM (meta seals them by the cluster key).

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use wire::ids::ClusterId;

use crate::config::Config;

/// Letters of generated access keys: as AWS's, upper case and digits.
const ACCESS_KEY_LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Letters of generated secrets.
const SECRET_LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";

/// The cluster this node belongs to.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub id: ClusterId,
    /// 32 random bytes in hexadecimal.
    key: String,
}

impl Cluster {
    /// Draws a new cluster.
    pub(crate) fn random() -> Self {
        Self { id: ClusterId::random(), key: hex::encode(wire::random::array::<32>()) }
    }

    /// Reads the cluster's identity, or draws one for a fresh data directory that is a cluster of its own.
    pub(crate) fn establish(config: &Config) -> anyhow::Result<Self> {
        let file = config.cluster_file();
        let kept: Option<Self> = read_json(&file)?;
        let cluster = match kept {
            Some(cluster) => cluster,
            None if config.is_cluster() || config.cluster.key_file.is_some() => bail!(
                "{} does not exist: copy the cluster's file there, as `ferrozone cluster init` wrote it",
                file.display()
            ),
            None => {
                let drawn = Self::random();
                write_json(&file, &drawn)?;
                drawn
            }
        };
        check_private(&file)?;
        if config.cluster.id.is_some_and(|id| id != cluster.id) {
            bail!(
                "{} is of cluster {}, not of the one that cluster.id names; files of two clusters were mixed",
                file.display(),
                cluster.id
            );
        }
        Ok(cluster)
    }

    /// Reads the identity of a cluster that exists.
    pub(crate) fn load(file: &Path) -> anyhow::Result<Self> {
        read_json(file)?.with_context(|| format!("{} does not exist", file.display()))
    }

    /// The cluster key.
    pub(crate) fn key(&self) -> anyhow::Result<[u8; 32]> {
        let mut key = [0; 32];
        hex::decode_to_slice(&self.key, &mut key)
            .context("cluster.json: the key is not 64 hexadecimal digits")?;
        Ok(key)
    }
}

/// An access key with its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub access_key: String,
    pub secret_key: String,
}

/// Where the root credentials came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Drawn just now: shown once.
    Generated,
    /// Kept from an earlier start.
    Kept,
    /// Given by the environment.
    Given,
}

/// Path of the root credentials.
pub(crate) fn credentials_file(data_dir: &Path) -> PathBuf {
    data_dir.join("credentials.json")
}

impl Credentials {
    /// The credentials that `ferrozone env` tells.
    pub(crate) fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let file = credentials_file(data_dir);
        read_json(&file)?.with_context(|| {
            format!(
                "{} does not exist: start `ferrozone server {}` first",
                file.display(),
                data_dir.display()
            )
        })
    }

    /// Draws new ones.
    pub(crate) fn random() -> Self {
        Self { access_key: draw(20, ACCESS_KEY_LETTERS), secret_key: draw(40, SECRET_LETTERS) }
    }

    /// Given by the environment, else kept in `file`, else drawn. What is found is written for `ferrozone env`.
    pub(crate) fn establish(
        file: &Path,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<(Self, Origin)> {
        let user = from_environment(&environment, &["FERROZONE_ROOT_USER", "MINIO_ROOT_USER"])?;
        let password = from_environment(&environment, &["FERROZONE_ROOT_PASSWORD", "MINIO_ROOT_PASSWORD"])?;
        let kept: Option<Self> = read_json(file)?;
        match (user, password, kept) {
            (Some(access_key), Some(secret_key), kept) => {
                if access_key.len() < 3 || secret_key.len() < 8 {
                    bail!("the root user needs at least 3 characters and its password 8");
                }
                let given = Self { access_key, secret_key };
                if kept.as_ref() != Some(&given) {
                    write_json(file, &given)?;
                }
                Ok((given, Origin::Given))
            }
            (None, None, Some(kept)) => Ok((kept, Origin::Kept)),
            (None, None, None) => {
                let drawn = Self::random();
                write_json(file, &drawn)?;
                Ok((drawn, Origin::Generated))
            }
            _ => bail!("set both FERROZONE_ROOT_USER and FERROZONE_ROOT_PASSWORD, or neither"),
        }
    }
}

/// The value of the first variable that is set, or the content of the file that its `_FILE` form names.
fn from_environment(
    environment: &impl Fn(&str) -> Option<String>,
    names: &[&str],
) -> anyhow::Result<Option<String>> {
    for name in names {
        if let Some(value) = environment(name).filter(|value| !value.is_empty()) {
            return Ok(Some(value));
        }
        if let Some(file) = environment(&format!("{name}_FILE")) {
            let value = fs::read_to_string(&file).with_context(|| format!("read {name}_FILE {file}"))?;
            return Ok(Some(value.trim_end_matches(['\r', '\n']).to_owned()));
        }
    }
    Ok(None)
}

fn draw<const N: usize>(length: usize, letters: &[u8; N]) -> String {
    // N divides 256, so every letter is equally likely.
    let mut bytes = vec![0; length];
    wire::random::fill(&mut bytes);
    bytes.iter().map(|byte| char::from(letters[usize::from(*byte) % N])).collect()
}

/// Reads a JSON file; None if it does not exist.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(file: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(file) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged", file.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// Refuses a secret that others can read.
pub(crate) fn check_private(file: &Path) -> anyhow::Result<()> {
    let metadata = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
    if metadata.permissions().mode() & 0o007 != 0 {
        bail!("{0} can be read by every user of this machine: chmod 600 {0}", file.display());
    }
    Ok(())
}

/// Writes a JSON file whole or not at all, durably, readable by this user alone.
pub(crate) fn write_json(file: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let fresh = file.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut handle = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        handle.write_all(&serde_json::to_vec_pretty(value)?)?;
        handle.sync_all()?;
        fs::rename(&fresh, file)?;
        let dir = file.parent().context("the file has no directory")?;
        fs::File::open(dir)?.sync_all()?;
        Ok(())
    };
    write().with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(data_dir: &Path) -> Config {
        Config { data_dir: data_dir.to_owned(), ..Config::default() }
    }

    #[test]
    fn credentials_are_drawn_once_kept_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = credentials_file(dir.path());
        let (drawn, origin) = Credentials::establish(&file, |_| None).unwrap();
        assert_eq!((origin, drawn.access_key.len(), drawn.secret_key.len()), (Origin::Generated, 20, 40));
        let (kept, origin) = Credentials::establish(&file, |_| None).unwrap();
        assert!(kept == drawn && origin == Origin::Kept);
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn environment_gives_both_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        let given = |name: &str| match name {
            "MINIO_ROOT_USER" => Some("admin".to_owned()),
            "FERROZONE_ROOT_PASSWORD" => Some("long enough".to_owned()),
            _ => None,
        };
        let (credentials, origin) = Credentials::establish(&credentials_file(dir.path()), given).unwrap();
        assert_eq!((credentials.access_key.as_str(), origin), ("admin", Origin::Given));
        assert!(Credentials::load(dir.path()).unwrap() == credentials);
        let half = |name: &str| (name == "FERROZONE_ROOT_USER").then(|| "admin".to_owned());
        assert!(Credentials::establish(&credentials_file(dir.path()), half).is_err());
    }

    #[test]
    fn damaged_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cluster.json"), "{").unwrap();
        let error = Cluster::establish(&config(dir.path())).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("cluster.json is damaged"));
    }

    #[test]
    fn identity_of_another_cluster_or_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let drawn = Cluster::establish(&config).unwrap();
        assert_eq!(Cluster::establish(&config).unwrap().id, drawn.id);
        config.cluster.id = Some(ClusterId::random());
        let error = Cluster::establish(&config).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("two clusters were mixed"), "{error:#}");
        config.cluster.key_file = Some(dir.path().join("elsewhere.json"));
        let error = Cluster::establish(&config).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("cluster init"), "{error:#}");
        fs::set_permissions(dir.path().join("cluster.json"), fs::Permissions::from_mode(0o644)).unwrap();
        (config.cluster.key_file, config.cluster.id) = (None, None);
        let error = Cluster::establish(&config).map(|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("chmod 600"), "{error:#}");
    }
}
