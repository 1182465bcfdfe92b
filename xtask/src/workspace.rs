//! Where things are in this checkout, and how the server is built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process;

/// This checkout and its target directory.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and `.cargo/config.toml` count.
    pub(crate) fn find() -> Result<Self> {
        let output = Command::new(process::cargo())
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata failed");
        let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
        let path = |field: &str| {
            metadata[field]
                .as_str()
                .map(PathBuf::from)
                .with_context(|| format!("cargo metadata has no {field}"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")?, metadata })
    }

    /// The directory of the root manifest.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path below the target directory, which is never committed.
    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// What `cargo metadata` says of our own crates.
    pub(crate) fn metadata(&self) -> &Value {
        &self.metadata
    }

    /// `cargo`, to be run in the root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(process::cargo());
        command.current_dir(&self.root);
        command
    }

    /// Builds the server and says where it is.
    pub(crate) fn build_server(&self, release: bool) -> Result<PathBuf> {
        self.build_program("ferrozone", release)
    }

    /// Builds a program of this workspace and says where it is.
    ///
    /// The whole workspace's features are asked for, as `cargo test --workspace` does: otherwise cargo would resolve
    /// other features and build most dependencies a second time.
    pub(crate) fn build_program(&self, name: &str, release: bool) -> Result<PathBuf> {
        let mut command = self.cargo();
        command.args(["build", "--workspace", "--bin", name]);
        if release {
            command.arg("--release");
        }
        process::run(&mut command).with_context(|| format!("build {name}"))?;
        let profile = if release { "release" } else { "debug" };
        Ok(self.target.join(profile).join(name))
    }

    /// `given`, or a fresh release build.
    pub(crate) fn release_server(&self, given: Option<&Path>) -> Result<PathBuf> {
        match given {
            Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display())),
            None => self.build_server(true),
        }
    }
}
