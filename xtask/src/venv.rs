//! A Python environment of pinned packages, made on first use.
//!
//! It lives under `target/`, named by a hash of its requirements: a changed requirement makes a new one, an unchanged
//! one is reused. A marker file is written last, so that a half-made environment is made again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// A ready Python environment.
#[derive(Debug)]
pub(crate) struct Venv {
    directory: PathBuf,
}

impl Venv {
    /// Makes or reuses the environment for these requirement files and further packages.
    pub(crate) fn ready(workspace: &Workspace, requirements: &[PathBuf], packages: &[&str]) -> Result<Self> {
        let directory = workspace.target(&format!("venv/{:016x}", fingerprint(requirements, packages)?));
        let venv = Self { directory };
        let marker = venv.directory.join("complete");
        if marker.exists() {
            return Ok(venv);
        }
        venv.create()?;
        let mut install = Command::new(venv.python());
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        for file in requirements {
            install.arg("-r").arg(file);
        }
        install.args(packages);
        process::run(&mut install).context("install Python packages (pip needs to reach a package index)")?;
        std::fs::write(&marker, "").with_context(|| format!("write {}", marker.display()))?;
        Ok(venv)
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.directory.join("bin/python")
    }

    /// Where the commands of its packages are, for the front of `PATH`.
    pub(crate) fn bin(&self) -> PathBuf {
        self.directory.join("bin")
    }

    /// Runs Python with the environment's commands first on the path.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.python());
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let mut path = self.bin().into_os_string();
        path.push(":");
        path.push(rest);
        command.env("PATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    fn create(&self) -> Result<()> {
        if self.directory.exists() {
            std::fs::remove_dir_all(&self.directory).context("remove a half-made Python environment")?;
        }
        let mut create = Command::new("python3");
        create.args(["-m", "venv"]).arg(&self.directory);
        match process::succeeds(&mut create) {
            Ok(true) => Ok(()),
            Ok(false) => bail!(
                "python3 cannot make a virtual environment: install its venv module \
                 (Debian and Ubuntu: apt-get install python3-venv) and run this again"
            ),
            Err(error) => {
                Err(error.context("Python 3 is needed for s3-tests/: install python3 and run this again"))
            }
        }
    }
}

/// Tells environments apart; not a security measure.
fn fingerprint(requirements: &[PathBuf], packages: &[&str]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in requirements {
        read(file)?.hash(&mut hasher);
    }
    packages.hash(&mut hasher);
    Ok(hasher.finish())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}
