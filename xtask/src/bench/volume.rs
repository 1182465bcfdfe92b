//! Where a measured cluster keeps its data: a loop-mounted ext4 file system, as `bench/compare.py` makes one.
//!
//! The machine's own file system may have no journal, or one that costs more than most; rates of two runs would not be
//! comparable. Without root it is a plain directory, and the report says so.
//!
//! Invariant: dropping it unmounts and removes it, unless something still uses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file system for one run.
pub(super) struct Volume {
    base: PathBuf,
    path: PathBuf,
    is_mounted: bool,
}

impl Volume {
    /// A fresh one of at most `bytes` under `base`, whose earlier content goes.
    pub(super) fn create(base: &Path, bytes: u64) -> Result<Self> {
        let path = base.join("volume");
        if is_mounted(&path)? {
            unmount(&path)?;
        }
        if base.exists() {
            fs::remove_dir_all(base).context("remove the last run")?;
        }
        fs::create_dir_all(&path).context("make the volume's directory")?;
        let mut volume = Self { base: base.to_owned(), path, is_mounted: false };
        match volume.mount(bytes) {
            Ok(()) => volume.is_mounted = true,
            Err(error) => eprintln!("warning: no loop-mounted volume, a plain directory is used: {error:#}"),
        }
        Ok(volume)
    }

    fn mount(&self, bytes: u64) -> Result<()> {
        let image = self.base.join("image");
        let file = fs::File::create(&image).context("make the volume's image")?;
        file.set_len(bytes).context("size the volume's image")?;
        // Everything is initialised now: the kernel would do it later, in the middle of a measurement.
        let extended = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", extended]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&self.path))
    }

    /// Its root.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For the report.
    pub(super) fn kind(&self) -> &'static str {
        if self.is_mounted { "loop-mounted ext4" } else { "plain directory" }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(error) = unmount(&self.path)
        {
            eprintln!("warning: {} stays: {error:#}", self.path.display());
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.base) {
            eprintln!("warning: {} stays: {error}", self.base.display());
        }
    }
}

fn unmount(path: &Path) -> Result<()> {
    run(Command::new("umount").arg(path))
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let path = path.to_string_lossy();
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(path.as_ref())))
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let outcome = command.output().with_context(|| format!("start {name}"))?;
    ensure!(outcome.status.success(), "{name}: {}", String::from_utf8_lossy(&outcome.stderr).trim());
    Ok(())
}
