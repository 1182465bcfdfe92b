//! `ferrozone env`: prints ready settings for clients of the server in a data directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
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
}

impl Endpoints {
    /// The file's path.
    pub(crate) fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("endpoints.json")
    }
}

/// Prints the settings.
pub(crate) fn run(args: &EnvArgs) -> anyhow::Result<()> {
    let data_dir = args.data_dir_flag.as_ref().unwrap_or(&args.data_dir);
    let credentials = Credentials::load(data_dir)?;
    let endpoints: Endpoints = read_json(&Endpoints::file(data_dir))?
        .with_context(|| format!("no server has run in {}", data_dir.display()))?;
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
    fn shell_words_survive_quotes() {
        assert_eq!(quoted("http://127.0.0.1:9000"), "http://127.0.0.1:9000");
        assert_eq!(quoted("it's $HOME"), "'it'\\''s $HOME'");
    }
}
