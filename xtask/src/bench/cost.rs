//! What a process has spent, from /proc and from its own metrics.
//!
//! Processor time is user and system time of all its threads, in the kernel's ticks of 10 ms. Bytes written are those
//! the process made dirty; what kernel threads do to write them back is in no figure.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::rig::Node;
use crate::server::{get, resident_bytes};

/// Counters of one node at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spent {
    /// Processor time.
    pub(super) cpu_ms: f64,
    /// Bytes handed to the file system.
    pub(super) written_bytes: f64,
    /// Bytes of commands in OM's log.
    pub(super) log_bytes: f64,
    /// Entries in OM's log.
    pub(super) log_entries: f64,
    /// Writes of OM's log, each with its fdatasync.
    pub(super) log_syncs: f64,
}

impl Spent {
    /// By a meta node since its start.
    pub(super) fn by_meta(node: &Node) -> Result<Self> {
        let pid = node.pid().with_context(|| format!("{} is down", node.name))?;
        let metrics = get(&node.admin, "/metrics").context("read a node's metrics")?;
        let of_om = |name: &str| metric(&metrics, name, "om").with_context(|| format!("no metric {name}"));
        Ok(Self {
            cpu_ms: cpu_ms(&pid.to_string())?,
            written_bytes: written_bytes(pid)?,
            log_bytes: of_om("consensus_log_bytes_total")?,
            log_entries: of_om("consensus_log_entries_total")?,
            log_syncs: of_om("consensus_log_sync_seconds_count")?,
        })
    }

    /// What came since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            cpu_ms: self.cpu_ms - earlier.cpu_ms,
            written_bytes: self.written_bytes - earlier.written_bytes,
            log_bytes: self.log_bytes - earlier.log_bytes,
            log_entries: self.log_entries - earlier.log_entries,
            log_syncs: self.log_syncs - earlier.log_syncs,
        }
    }
}

/// Processor time so far of a process, or of `self`.
pub(super) fn cpu_ms(process: &str) -> Result<f64> {
    let stat =
        fs::read_to_string(format!("/proc/{process}/stat")).context("read a process's processor time")?;
    let ticks = ticks(&stat).context("parse a process's processor time")?;
    Ok(ticks as f64 * 1000.0 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time. The command, the second field, may contain spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn written_bytes(pid: u32) -> Result<f64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("read what a process has written")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes:")).context("no write_bytes")?;
    line.trim().parse().context("parse write_bytes")
}

/// A metric of a group in Prometheus' text.
fn metric(text: &str, name: &str, group: &str) -> Option<f64> {
    let label = format!("group=\"{group}\"");
    text.lines().find_map(|line| {
        let labels = line.strip_prefix(name)?.strip_prefix('{')?;
        let (labels, value) = labels.split_once("} ")?;
        if labels.contains(&label) { value.parse().ok() } else { None }
    })
}

/// Resident memory of a node.
pub(super) fn resident(node: &Node) -> Result<u64> {
    resident_bytes(node.pid().with_context(|| format!("{} is down", node.name))?)
}

/// Bytes of the files in `directory` whose names begin with one of `prefixes`.
pub(super) fn file_bytes(directory: &Path, prefixes: &[&str]) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.context("list a directory")?;
        let name = entry.file_name();
        if prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            total += entry.metadata().context("look at a file")?.len();
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_an_odd_command() {
        assert_eq!(
            ticks("42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 0 0"),
            Some(12)
        );
        assert_eq!(ticks("42 (a) S 1"), None);
    }

    #[test]
    fn a_metric_is_found_by_its_group() {
        let text = "# TYPE log_bytes counter\nlog_bytes{group=\"scm\"} 7\nlog_bytes{group=\"om\"} 12\n\
                    log_bytes_more{group=\"om\"} 1\n";
        assert_eq!(metric(text, "log_bytes", "om"), Some(12.0));
        assert_eq!(metric(text, "log_bytes", "datanode"), None);
        assert_eq!(metric(text, "log", "om"), None);
    }
}
