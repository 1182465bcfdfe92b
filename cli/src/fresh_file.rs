//! A file, or a directory of files, that appears whole or not at all: made under a name of its own beside its place, synced,
//! then named.
//!
//! Invariants:
//! * No file that was there before is touched: the temporary name is drawn fresh, and naming refuses to replace.
//! * A power cut leaves the whole file or none under its name.
//!
//! Not here: files that a server rewrites (`identity::write_json`).

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::{NamedTempFile, TempDir};

/// A file on its way to its place. Dropped before it is kept, it is gone.
pub(crate) struct FreshFile {
    part: NamedTempFile,
    place: PathBuf,
}

impl FreshFile {
    /// Begins a file that is to be named `place`, which must not exist. `mode` as for `open`: the umask narrows it.
    pub(crate) fn begin(place: &Path, mode: u32) -> anyhow::Result<Self> {
        if place.symlink_metadata().is_ok() {
            bail!("{} exists: name another file", place.display());
        }
        let name = place.file_name().with_context(|| format!("{} names no file", place.display()))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        let part = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".part")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory(place))
            .with_context(|| format!("create a file in {}", directory(place).display()))?;
        Ok(Self { part, place: place.to_owned() })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.part.write_all(bytes).with_context(|| format!("write {}", self.place.display()))
    }

    /// Makes it durable and gives it its name.
    pub(crate) fn keep(self) -> anyhow::Result<()> {
        let Self { part, place } = self;
        part.as_file().sync_all().with_context(|| format!("sync {}", place.display()))?;
        part.persist_noclobber(&place)
            .map_err(|failed| failed.error)
            .with_context(|| format!("name the file {}", place.display()))?;
        sync_directory(directory(&place))
    }
}

/// A directory on its way to its place, readable by its owner alone. Dropped before it is kept, it is gone with all in it.
pub(crate) struct FreshDirectory {
    part: TempDir,
    place: PathBuf,
}

impl FreshDirectory {
    /// Begins a directory that is to be named `place`, which must not exist; those above it are made.
    pub(crate) fn begin(place: &Path) -> anyhow::Result<Self> {
        let name = place.file_name().with_context(|| format!("{} names no directory", place.display()))?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let above = directory(place);
        fs::create_dir_all(above).with_context(|| format!("create directory {}", above.display()))?;
        let part = tempfile::Builder::new()
            .prefix(&prefix)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(above)
            .with_context(|| format!("create a directory in {}", above.display()))?;
        Ok(Self { part, place: place.to_owned() })
    }

    /// Where its files are made.
    pub(crate) fn path(&self) -> &Path {
        self.part.path()
    }

    /// Makes all in it durable and gives it its name.
    pub(crate) fn keep(self) -> anyhow::Result<()> {
        let Self { part, place } = self;
        sync_all(part.path())?;
        if place.symlink_metadata().is_ok() {
            // An empty directory would be replaced.
            bail!("{} has come into being meanwhile", place.display());
        }
        fs::rename(part.path(), &place).with_context(|| format!("name the directory {}", place.display()))?;
        // It is no temporary directory any more.
        let _ = part.keep();
        sync_directory(directory(&place))
    }
}

/// Syncs the files below a directory, and the directories.
fn sync_all(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.with_context(|| format!("sync {}", path.display()))?;
        }
    }
    sync_directory(dir)
}

/// Makes names in a directory durable.
fn sync_directory(directory: &Path) -> anyhow::Result<()> {
    File::open(directory)
        .and_then(|opened| opened.sync_all())
        .with_context(|| format!("sync {}", directory.display()))
}

/// Where a file lies.
fn directory(file: &Path) -> &Path {
    file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn file_appears_whole_and_touches_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("report.txt");
        for other in ["report.part", "report.txt.part", "report"] {
            std::fs::write(dir.path().join(other), "the user's").unwrap();
        }
        let before = names(dir.path());
        let mut file = FreshFile::begin(&place, 0o600).unwrap();
        file.write(b"half").unwrap();
        assert!(!place.exists());
        drop(file);
        assert_eq!(names(dir.path()), before);

        let mut file = FreshFile::begin(&place, 0o600).unwrap();
        file.write(b"whole").unwrap();
        file.keep().unwrap();
        assert_eq!(std::fs::read(&place).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        for other in &before {
            assert_eq!(std::fs::read(dir.path().join(other)).unwrap(), b"the user's", "{other}");
        }
        assert_eq!(names(dir.path()).len(), before.len() + 1);
    }

    #[test]
    fn directory_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("above/cluster");
        let fresh = FreshDirectory::begin(&place).unwrap();
        fs::create_dir(fresh.path().join("node")).unwrap();
        fs::write(fresh.path().join("node/file"), "half").unwrap();
        assert!(!place.exists());
        drop(fresh);
        assert_eq!(names(&dir.path().join("above")), [""; 0]);

        let fresh = FreshDirectory::begin(&place).unwrap();
        fs::create_dir(fresh.path().join("node")).unwrap();
        fs::write(fresh.path().join("node/file"), "whole").unwrap();
        fresh.keep().unwrap();
        assert_eq!(fs::read(place.join("node/file")).unwrap(), b"whole");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(names(&dir.path().join("above")), ["cluster"]);

        let late = FreshDirectory::begin(&place).unwrap();
        assert!(late.keep().unwrap_err().to_string().contains("meanwhile"));
        assert!(place.join("node/file").exists());
    }

    #[test]
    fn what_is_there_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("report.txt");
        let mut file = FreshFile::begin(&place, 0o666).unwrap();
        file.write(b"new").unwrap();
        std::fs::write(&place, "came first").unwrap();
        let error = format!("{:#}", file.keep().unwrap_err());
        assert!(error.contains("report.txt"), "{error}");
        assert_eq!(std::fs::read(&place).unwrap(), b"came first");
        assert_eq!(names(dir.path()), ["report.txt"]);
        let error = FreshFile::begin(&place, 0o666).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("exists"), "{error}");
    }
}
