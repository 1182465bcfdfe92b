//! Proof that the simulator sees: every planted bug is caught at a seed on record.
//!
//! ```text
//!   sim --planted          each bug at its recorded seed, and that seed without the bug: what CI runs
//!   sim --find BUG         searches the seeds from 1; --record writes what it finds into planted.txt
//! ```
//!
//! A run is a function of its seed and of the whole program, so that any change may move a bug out of a seed. A record is
//! therefore where to begin: the bug counts as caught if one of [`SEEDS_TRIED`] seeds from there on finds it, and that
//! seed passes without it. [`SEEDS_SEARCHED`] seeds from 1 are what a simulator may take to find a bug at all.
//!
//! Not here: the bugs (`wire::planted`), a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use wire::planted::BUGS;

/// Seeds in which a bug must be found at all.
const SEEDS_SEARCHED: u64 = 200;
/// Seeds from the recorded one on that are tried.
const SEEDS_TRIED: u64 = 8;

/// Where a bug is caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    seed: u64,
    minutes: u64,
}

/// Bug, seed and minutes a line, in order of `BUGS`.
const RECORDS: &str = include_str!("../planted.txt");

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("planted.txt")
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Record>> {
    let mut records = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [bug, seed, minutes] = words[..] else { bail!("not a record: {line}") };
        if !BUGS.iter().any(|(name, _)| *name == bug) {
            bail!("no planted bug is called {bug}");
        }
        records.insert(bug.to_owned(), Record { seed: seed.parse()?, minutes: minutes.parse()? });
    }
    Ok(records)
}

/// What a run in a process of its own came to.
struct Outcome {
    is_clean: bool,
    /// The first violation, or how it ended.
    says: String,
}

fn start(bug: Option<&str>, record: Record) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &record.seed.to_string(), "--minutes", &record.minutes.to_string()]);
    if let Some(bug) = bug {
        command.args(["--bug", bug]);
    }
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

fn finish(child: Child) -> anyhow::Result<Outcome> {
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find_map(|line| line.strip_prefix("violation: ")).map(str::to_owned);
    let is_clean = output.status.success();
    // Whatever else ends a run, want of memory for one, has found nothing.
    if !is_clean && said.is_none() {
        bail!("a run ended with {} and named no violation", output.status);
    }
    Ok(Outcome { is_clean, says: said.unwrap_or_default() })
}

/// Whether this seed finds the bug and passes without it; what it says.
fn is_caught(bug: &str, record: Record) -> anyhow::Result<Option<String>> {
    let with = finish(start(Some(bug), record)?)?;
    if with.is_clean {
        return Ok(None);
    }
    let without = finish(start(None, record)?)?;
    if !without.is_clean {
        println!("seed {} fails without {bug} too: {}", record.seed, without.says);
        return Ok(None);
    }
    Ok(Some(with.says))
}

fn caught_from(bug: &str, first: Record, seeds: u64) -> anyhow::Result<Option<(Record, String)>> {
    for seed in first.seed..first.seed + seeds {
        let record = Record { seed, ..first };
        if let Some(says) = is_caught(bug, record)? {
            return Ok(Some((record, says)));
        }
    }
    Ok(None)
}

/// Tries every bug at its record; `jobs` at once. Whether all were caught.
pub(crate) fn check(jobs: usize) -> anyhow::Result<bool> {
    let records = parse(RECORDS)?;
    let bugs: Vec<&str> = records.keys().map(String::as_str).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    let work = || -> anyhow::Result<()> {
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(bug) = bugs.get(at).copied() else { return Ok(()) };
            let caught = match records.get(bug) {
                Some(record) => caught_from(bug, *record, SEEDS_TRIED)?,
                None => None,
            };
            match caught {
                Some((record, says)) => println!("bug {bug}: caught at seed {}: {says}", record.seed),
                None => {
                    println!("bug {bug}: MISSED; sim --find {bug} --record");
                    if let Ok(mut missed) = missed.lock() {
                        missed.push(bug);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let missed = missed.into_inner().map(|missed| missed.len()).unwrap_or(usize::MAX);
    println!("{} passed, {missed} failed", bugs.len() - missed.min(bugs.len()));
    Ok(missed == 0)
}

/// Searches a bug, or `all` of them; writes the record if `is_to_record`. Whether it was found.
pub(crate) fn find(bug: &str, minutes: u64, is_to_record: bool) -> anyhow::Result<bool> {
    let wanted: Vec<&str> =
        BUGS.iter().map(|(name, _)| *name).filter(|name| bug == "all" || *name == bug).collect();
    if wanted.is_empty() {
        bail!("no planted bug is called {bug}; --list-bugs names them");
    }
    let mut has_all = true;
    for bug in wanted {
        match caught_from(bug, Record { seed: 1, minutes }, SEEDS_SEARCHED)? {
            Some((record, says)) => {
                println!("bug {bug}: caught at seed {} of {minutes} minutes: {says}", record.seed);
                if is_to_record {
                    write(bug, record)?;
                }
            }
            None => {
                println!("bug {bug}: MISSED in {SEEDS_SEARCHED} seeds of {minutes} minutes");
                has_all = false;
            }
        }
    }
    Ok(has_all)
}

fn write(bug: &str, record: Record) -> anyhow::Result<()> {
    let path = file();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut records = parse(&text)?;
    records.insert(bug.to_owned(), record);
    let lines = BUGS.iter().filter_map(|(name, _)| {
        let record = records.get(*name)?;
        Some(format!("{name} {} {}\n", record.seed, record.minutes))
    });
    std::fs::write(&path, lines.collect::<String>()).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_is_on_record() {
        let records = parse(RECORDS).unwrap();
        for (name, _) in BUGS {
            assert!(records.contains_key(*name), "{name}: sim --find {name} --record");
        }
        assert!(records.values().all(|record| (1..=SEEDS_SEARCHED).contains(&record.seed)));
    }
}
