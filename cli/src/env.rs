//! `ferrozone env`: prints ready settings for clients of the server in a data directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::identity::{Credentials, read_json};

/// Arguments of `ferrozone env`.
#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// Data directory of the server.
    #[arg(default_value = "./ferrozone-data")]
    data_dir: PathBuf,
    /// The same, by name.
    #[arg(long = "data-dir", conflicts_with = "data_dir", value_name = "DIR")]
    data_dir_flag: Option<PathBuf>,
    /// For which program.
    #[arg(long, value_enum, default_value = "sh")]
    format: Format,
}

/// For which program.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Export lines for a shell: eval "$(ferrozone env)".
    Sh,
    /// One JSON object.
    Json,
    /// A profile for ~/.aws/config.
    Aws,
    /// A remote for rclone.conf.
    Rclone,
}

/// Where a running server listens: `endpoints.json` in its data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// URL of S3.
    pub s3: String,
    /// URL of the operators' port.
    pub admin: String,
    /// Region in answers.
    pub region: String,
    /// The file with the root credentials; a node of a cluster has it beside its configuration.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
}

impl Endpoints {
    /// The file's path.
    pub(crate) fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("endpoints.json")
    }

    /// The root credentials of the server in a data directory.
    pub(crate) fn credentials(data_dir: &Path) -> anyhow::Result<Credentials> {
        let endpoints: Option<Self> = read_json(&Self::file(data_dir))?;
        match endpoints.and_then(|endpoints| endpoints.credentials_file) {
            Some(file) => {
                read_json(&file)?.with_context(|| format!("{} does not exist any more", file.display()))
            }
            None => Credentials::load(data_dir),
        }
    }
}

/// Prints the settings.
pub(crate) fn run(args: &EnvArgs) -> anyhow::Result<()> {
    let data_dir = args.data_dir_flag.as_ref().unwrap_or(&args.data_dir);
    let credentials = Endpoints::credentials(data_dir)?;
    let endpoints: Endpoints = read_json(&Endpoints::file(data_dir))?
        .with_context(|| format!("no server has run in {}", data_dir.display()))?;
    if endpoints.s3.is_empty() {
        bail!("the server in {} has no gateway: name the directory of one that has", data_dir.display());
    }
    print!("{}", settings(args.format, &credentials, &endpoints)?);
    Ok(())
}

fn settings(format: Format, credentials: &Credentials, endpoints: &Endpoints) -> anyhow::Result<String> {
    let Credentials { access_key, secret_key } = credentials;
    let Endpoints { s3, region, .. } = endpoints;
    Ok(match format {
        Format::Sh => format!(
            "export AWS_ENDPOINT_URL={}\nexport AWS_ACCESS_KEY_ID={}\nexport AWS_SECRET_ACCESS_KEY={}\n\
             export AWS_DEFAULT_REGION={}\nexport AWS_REGION={}\n",
            quoted(s3),
            quoted(access_key),
            quoted(secret_key),
            quoted(region),
            quoted(region)
        ),
        Format::Json => {
            let object = serde_json::json!({
                "endpoint": s3, "admin": endpoints.admin, "region": region,
                "access_key": access_key, "secret_key": secret_key,
            });
            format!("{}\n", serde_json::to_string_pretty(&object)?)
        }
        Format::Aws => format!(
            "[profile ferrozone]\nregion = {region}\nendpoint_url = {s3}\naws_access_key_id = {access_key}\n\
             aws_secret_access_key = {secret_key}\ns3 =\n    addressing_style = path\n"
        ),
        Format::Rclone => format!(
            "[ferrozone]\ntype = s3\nprovider = Other\nendpoint = {s3}\nregion = {region}\n\
             access_key_id = {access_key}\nsecret_access_key = {secret_key}\nforce_path_style = true\n"
        ),
    })
}

/// A word for a POSIX shell.
fn quoted(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_where_the_server_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, file) = (dir.path().join("data"), dir.path().join("credentials.json"));
        std::fs::create_dir(&data_dir).unwrap();
        let error = Endpoints::credentials(&data_dir).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("ferrozone server"), "{error}");
        let drawn = Credentials::random();
        crate::identity::write_json(&file, &drawn).unwrap();
        let mut endpoints = Endpoints {
            s3: "http://g1:9000".to_owned(),
            admin: String::new(),
            region: "r".to_owned(),
            credentials_file: Some(file.clone()),
        };
        crate::identity::write_json(&Endpoints::file(&data_dir), &endpoints).unwrap();
        assert!(Endpoints::credentials(&data_dir).unwrap() == drawn, "beside node.toml");
        std::fs::rename(&file, data_dir.join("credentials.json")).unwrap();
        endpoints.credentials_file = None;
        crate::identity::write_json(&Endpoints::file(&data_dir), &endpoints).unwrap();
        assert!(Endpoints::credentials(&data_dir).unwrap() == drawn, "in the data directory");
    }

    #[test]
    fn shell_words_survive_quotes() {
        assert_eq!(quoted("http://127.0.0.1:9000"), "http://127.0.0.1:9000");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}
