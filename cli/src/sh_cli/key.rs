//! `ferrozone sh key`: keys of the buckets that S3 sees, through S3 and as the root user.
//!
//! A file is sent in one PUT. A key is fetched into a file that appears whole (`fresh_file`).
//!
//! Not here: multipart (use an S3 client for files over 5 GiB), other users.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Subcommand;
use futures_util::TryStreamExt;
use s3_client::{Config as S3Config, Endpoint, ListRequest, Payload, PayloadMode, S3Client, Secure};
use serde_json::json;
use tokio_util::io::ReaderStream;
use wire::names::S3_VOLUME;

use super::parts;
use crate::config::Config;
use crate::env::Endpoints;
use crate::fresh_file::FreshFile;
use crate::identity::{Credentials, read_json};
use crate::reach::{ReachArgs, Refusal, authority, certified_name};
use crate::s3_trust::S3Trust;
use crate::show::{fields, size, table};

/// S3's bound of one PUT.
const PUT_BYTES_MAX: u64 = 5 << 30;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Keys of a bucket.
    #[command(visible_alias = "ls")]
    List {
        /// /s3v/BUCKET
        bucket: String,
        /// Only those that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only those after this one.
        #[arg(long)]
        after: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        max: u32,
    },
    /// A key.
    Info {
        /// /s3v/BUCKET/KEY
        key: String,
    },
    /// Store a file as a key.
    Put {
        /// /s3v/BUCKET/KEY
        key: String,
        /// The file.
        file: PathBuf,
    },
    /// Store a key as a file.
    Get {
        /// /s3v/BUCKET/KEY
        key: String,
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Print a key.
    Cat {
        /// /s3v/BUCKET/KEY
        key: String,
    },
    /// Delete a key.
    Delete {
        /// /s3v/BUCKET/KEY
        key: String,
    },
}

pub(super) async fn run(reach: &ReachArgs, command: KeyCommand) -> anyhow::Result<()> {
    let client = client(reach)?;
    let is_json = reach.json;
    match command {
        KeyCommand::List { bucket, prefix, after, max } => {
            let bucket = seen_bucket(parts(&bucket)?)?;
            list(&client, is_json, &bucket, prefix, after, max).await
        }
        KeyCommand::Info { key } => {
            let (bucket, key) = seen_key(&key)?;
            let head = client.head_object(&bucket, &key).await.map_err(refused)?;
            let header = |name: &str| {
                head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
            };
            let length = head.length().unwrap_or(0);
            let etag = head.etag().unwrap_or_default().to_owned();
            let (modified, content_type) = (header("last-modified"), header("content-type"));
            if is_json {
                return print_json(&json!({
                    "key": key, "size_bytes": length, "etag": etag, "last_modified": modified,
                    "content_type": content_type,
                }));
            }
            let text = fields(&[
                ("key", format!("/{S3_VOLUME}/{bucket}/{key}")),
                ("size", size(length)),
                ("etag", etag),
                ("modified", modified),
                ("type", content_type),
            ]);
            print(text.as_bytes())
        }
        KeyCommand::Put { key, file } => {
            let (bucket, key) = seen_key(&key)?;
            put(&client, &bucket, &key, &file).await
        }
        KeyCommand::Get { key, file } => {
            let (bucket, key) = seen_key(&key)?;
            get(&client, &bucket, &key, &file).await
        }
        KeyCommand::Cat { key } => {
            let (bucket, key) = seen_key(&key)?;
            let mut object = client.get_object(&bucket, &key).await.map_err(refused)?;
            while let Some(chunk) = object.chunk().await.map_err(refused)? {
                print(&chunk)?;
            }
            Ok(())
        }
        KeyCommand::Delete { key } => {
            let (bucket, key) = seen_key(&key)?;
            client.delete_object(&bucket, &key).await.map_err(refused).map(drop)
        }
    }
}

/// A client of the gateway that the configuration or the data directory names, as root.
fn client(reach: &ReachArgs) -> anyhow::Result<S3Client> {
    let config = match &reach.config {
        Some(file) => Some(Config::load(Some(file), std::env::vars())?),
        None => None,
    };
    let data_dir = config.as_ref().map_or(&reach.data_dir, |config| &config.data_dir);
    let endpoints: Option<Endpoints> = read_json(&Endpoints::file(data_dir))?;
    let (s3, region) = match (&config, endpoints) {
        (_, Some(endpoints)) if !endpoints.s3.is_empty() => (endpoints.s3, endpoints.region),
        (Some(config), _) if config.has_role(crate::topology::Role::Gateway) => {
            let scheme = if config.s3.certificate.is_some() { "https" } else { "http" };
            (format!("{scheme}://{}", config.s3.address), config.s3.region.clone())
        }
        _ => bail!(
            "{} is no data directory of a node with a gateway: name one by --config or --data-dir",
            data_dir.display()
        ),
    };
    let credentials = match &config {
        Some(config) => {
            let file = config.credentials_file();
            read_json::<Credentials>(&file)?.with_context(|| format!("{} does not exist", file.display()))?
        }
        None => Endpoints::credentials(data_dir)?,
    };
    let endpoint: Endpoint = s3.parse().map_err(|error| anyhow::anyhow!("S3 at {s3}: {error}"))?;
    let secure: Option<Arc<dyn Secure>> = match endpoint.is_https() {
        true => {
            let key_file = reach.key_file(config.as_ref());
            let authority = authority(reach.ca.clone(), config.as_ref(), Some(&key_file))?;
            let address = s3.parse().with_context(|| format!("S3 at {s3}"))?;
            let name = certified_name(&address, config.as_ref())?;
            Some(Arc::new(S3Trust::open(&authority, Some(name))?))
        }
        false => None,
    };
    Ok(S3Client::new(S3Config {
        secure,
        credentials: Some(s3_client::Credentials::new(credentials.access_key, credentials.secret_key)),
        region,
        payload: PayloadMode::Unsigned,
        ..S3Config::new(endpoint)
    }))
}

/// Exit codes as for calls of the admin API.
fn refused(error: s3_client::Error) -> anyhow::Error {
    let Some(answer) = error.s3() else { return anyhow::Error::new(error) };
    let code = match answer.status.as_u16() {
        404 => "not_found",
        401 | 403 => "unauthenticated",
        409 | 412 => "conflict",
        503 => "unavailable",
        _ => "",
    };
    Refusal { code: code.to_owned(), message: error.to_string() }.into()
}

fn seen_bucket([volume, bucket]: [String; 2]) -> anyhow::Result<String> {
    if volume != S3_VOLUME {
        bail!(
            "keys are reached through S3, which sees volume {S3_VOLUME} alone: make \"ferrozone sh bucket link \
             /{volume}/{bucket} /{S3_VOLUME}/NAME\" first"
        );
    }
    Ok(bucket)
}

fn seen_key(address: &str) -> anyhow::Result<(String, String)> {
    let [volume, bucket, key] = parts(address)?;
    Ok((seen_bucket([volume, bucket])?, key))
}

async fn list(
    client: &S3Client,
    is_json: bool,
    bucket: &str,
    prefix: String,
    after: Option<String>,
    max: u32,
) -> anyhow::Result<()> {
    let request =
        ListRequest { prefix, start_after: after, max_keys: Some(max.min(1000)), ..ListRequest::default() };
    let mut pages = client.list_pages(bucket, request);
    let mut found = Vec::new();
    let mut is_cut = false;
    while let Some(page) = pages.next().await.map_err(refused)? {
        found.extend(page.objects);
        is_cut = page.next_continuation_token.is_some() || found.len() > max as usize;
        if found.len() >= max as usize {
            break;
        }
    }
    found.truncate(max as usize);
    if is_json {
        let items: Vec<_> = found
            .iter()
            .map(|entry| {
                json!({
                    "key": entry.key, "size_bytes": entry.size_bytes, "etag": entry.etag,
                    "last_modified": entry.last_modified,
                })
            })
            .collect();
        return print_json(&json!({ "items": items, "is_truncated": is_cut }));
    }
    let rows = found
        .iter()
        .map(|entry| vec![entry.key.clone(), size(entry.size_bytes), entry.last_modified.clone()]);
    let mut text = table(&["key", ">size", "modified"], rows);
    if let Some(last) = found.last().filter(|_| is_cut) {
        text.push_str(&format!("There is more: --after {}\n", crate::show::printable(&last.key)));
    }
    print(text.as_bytes())
}

async fn put(client: &S3Client, bucket: &str, key: &str, file: &Path) -> anyhow::Result<()> {
    let opened = tokio::fs::File::open(file).await.with_context(|| format!("open {}", file.display()))?;
    let length = opened.metadata().await.with_context(|| format!("look at {}", file.display()))?.len();
    if length > PUT_BYTES_MAX {
        bail!(
            "{} is longer than {}: use an S3 client, which sends it in parts",
            file.display(),
            size(PUT_BYTES_MAX)
        );
    }
    let payload = Payload::stream(length, ReaderStream::new(opened).map_ok(Into::into));
    client.put_object(bucket, key, payload).await.map_err(refused)?;
    Ok(())
}

async fn get(client: &S3Client, bucket: &str, key: &str, file: &Path) -> anyhow::Result<()> {
    // The mode that any program's new file has.
    let mut out = FreshFile::begin(file, 0o666)?;
    let mut object = client.get_object(bucket, key).await.map_err(refused)?;
    while let Some(chunk) = object.chunk().await.map_err(refused)? {
        out.write(&chunk)?;
    }
    out.keep()
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print(format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// A reader that has gone away (`| head`) is no failure.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("print the answer")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_volumes_are_refused_with_what_to_do() {
        assert_eq!(seen_key("/s3v/b/a/b").unwrap(), ("b".to_owned(), "a/b".to_owned()));
        let error = seen_key("/sales/q1/a").unwrap_err().to_string();
        assert!(error.contains("sh bucket link /sales/q1 /s3v/NAME"), "{error}");
    }
}
