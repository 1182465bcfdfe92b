//! The log against a model: whatever is cut, flipped or reopened, it gives the same entries, an honest cut of what
//! was never promised, or a refusal; never other entries.

use std::path::Path;

use platform::disk::Directory;
use platform::simulated::{Faults, SimulatedDisk};
use proptest::prelude::*;

use super::*;

const SEGMENT_BYTES: u64 = 16 << 10;

fn config(dir: &Path) -> LogConfig {
    LogConfig {
        disk: Arc::new(Directory::open(dir).unwrap()),
        identity: Identity { cluster_id: uuid::Uuid::from_u128(7), raft_id: 1 },
        segment_bytes: SEGMENT_BYTES,
        name: "test".to_owned(),
    }
}

fn entry(index: u64, term: u64, size: usize) -> Entry {
    let data: Vec<u8> = (0..size).map(|at| (index as usize * 31 + term as usize * 7 + at) as u8).collect();
    Entry { index, term, data: data.into(), ..Entry::default() }
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 1, commit, ..HardState::default() }
}

fn all(log: &SegmentedLog) -> Vec<Entry> {
    log.entries(log.first_index(), log.last_index() + 1, u64::MAX).unwrap()
}

/// Appends `count` entries of `size` bytes and syncs.
fn fill(log: &mut SegmentedLog, count: u64, size: usize) {
    let first = log.last_index() + 1;
    let entries: Vec<Entry> = (first..first + count).map(|index| entry(index, 1, size)).collect();
    log.append(&entries, &hard_state(1, log.last_index())).unwrap();
    log.sync().unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn entries_survive_reopening_over_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    for _ in 0..20 {
        fill(&mut log, 5, 900);
    }
    assert!(log.rolls() >= 4);
    let before = all(&log);
    assert_eq!(before.len(), 100);
    drop(log);
    let log = SegmentedLog::open(config(dir.path())).unwrap();
    assert_eq!(all(&log), before);
    assert_eq!(*log.hard_state(), hard_state(1, 95));
    assert_eq!((log.term(0), log.term(100), log.term(101)), (Some(0), Some(1), None));
    assert_eq!(log.entries(3, 50, 2000).unwrap(), before[2..4]);
    assert_eq!(log.entries(3, 50, 1).unwrap(), before[2..3]);
}

#[test]
fn recycled_segments_carry_the_log_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    let mut reopened = 0;
    for round in 0..60 {
        fill(&mut log, 5, 900);
        log.compact(log.last_index() - 2).unwrap();
        log.maintain();
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert!(files <= 6, "{files} files in round {round}");
        if round % 7 == 0 {
            let (first, before) = (log.first_index(), all(&log));
            drop(log);
            log = SegmentedLog::open(config(dir.path())).unwrap();
            assert_eq!((log.first_index(), all(&log)), (first, before));
            assert_eq!(log.term(first - 1), Some(u64::from(first > 1)));
            reopened += 1;
        }
    }
    assert!(log.first_index() > 200 && reopened > 5);
}

#[test]
fn a_conflict_replaces_the_tail_even_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    for _ in 0..6 {
        fill(&mut log, 5, 900);
        let commit = hard_state(1, 3);
        log.append(&[], &commit).unwrap();
    }
    let old = all(&log);
    let replaced: Vec<Entry> = (5..9).map(|index| entry(index, 2, 40)).collect();
    log.append(&replaced, &hard_state(2, 4)).unwrap();
    log.sync().unwrap();
    let expected: Vec<Entry> = old[..4].iter().cloned().chain(replaced).collect();
    assert_eq!(all(&log), expected);
    // The segments that held only void entries go, and what is left still opens.
    log.compact(4).unwrap();
    let (first, kept) = (log.first_index(), all(&log));
    drop(log);
    let mut log = SegmentedLog::open(config(dir.path())).unwrap();
    assert_eq!((log.first_index(), all(&log)), (first, kept));
    assert_eq!(log.term(first - 1), Some(1));
    assert_eq!(log.term(8), Some(2));
    fill_term(&mut log, 2);
    assert_eq!(log.last_index(), 9);
}

fn fill_term(log: &mut SegmentedLog, term: u64) {
    let next = log.last_index() + 1;
    log.append(&[entry(next, term, 10)], &hard_state(term, next - 1)).unwrap();
    log.sync().unwrap();
}

#[test]
fn a_reset_keeps_term_and_vote() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    fill(&mut log, 5, 10);
    let voted = HardState { vote: 3, ..hard_state(4, 5) };
    log.append(&[], &voted).unwrap();
    log.reset(100, 4).unwrap();
    for _ in 0..2 {
        assert_eq!((log.first_index(), log.last_index(), log.term(100)), (101, 100, Some(4)));
        assert_eq!(*log.hard_state(), HardState { commit: 100, ..voted.clone() });
        drop(log);
        log = SegmentedLog::open(config(dir.path())).unwrap();
    }
    log.compact(100).unwrap();
    assert_eq!(log.segments.len(), 1, "what is void goes");
    fill_term(&mut log, 4);
    // In a term that this replica never heard of it has not voted.
    log.reset(200, 9).unwrap();
    for _ in 0..2 {
        assert_eq!(*log.hard_state(), HardState { vote: 0, ..hard_state(9, 200) });
        drop(log);
        log = SegmentedLog::open(config(dir.path())).unwrap();
    }
}

#[test]
fn damage_below_a_synced_record_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    for _ in 0..3 {
        fill(&mut log, 2, 100);
    }
    let path = dir.path().join(&log.last_segment().name);
    let (_, at) = log.segment_of(2).unwrap();
    drop(log);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at as usize + 60] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let Err(error) = SegmentedLog::open(config(dir.path())) else { panic!("opened a damaged log") };
    let text = error.to_string();
    assert!(text.contains("says that it was durable") && text.contains("restore the directory"), "{text}");
}

#[test]
fn missing_or_foreign_segments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    for _ in 0..20 {
        fill(&mut log, 5, 900);
    }
    let paths: Vec<PathBuf> = log.segments.iter().map(|segment| dir.path().join(&segment.name)).collect();
    drop(log);
    for path in &paths[1..] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        std::fs::remove_file(copy.path().join(path.file_name().unwrap())).unwrap();
        assert!(matches!(SegmentedLog::open(config(copy.path())), Err(LogError::Damaged { .. })), "{path:?}");
    }
    let mut foreign = config(dir.path());
    foreign.identity.raft_id = 2;
    assert!(matches!(SegmentedLog::open(foreign), Err(LogError::Foreign { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(SegmentedLog::open(config(empty.path())), Err(LogError::Damaged { .. })));
}

#[test]
fn garbage_behind_a_cut_never_continues_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    fill(&mut log, 1, 48);
    // A batch that was never synced: its first record is torn, the others reached the disk.
    let batch: Vec<Entry> = (2..8).map(|index| entry(index, 1, 48)).collect();
    log.append(&batch, &hard_state(1, 1)).unwrap();
    let path = dir.path().join(&log.last_segment().name);
    let (_, torn) = log.segment_of(2).unwrap();
    drop(log);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[torn as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // The new record is as long as the torn one, so the next old record stands right where the log would go on.
    let mut log = SegmentedLog::open(config(dir.path())).unwrap();
    assert_eq!(log.last_index(), 1);
    for index in 2..5 {
        drop(log);
        log = SegmentedLog::open(config(dir.path())).unwrap();
        assert_eq!(log.last_index(), index - 1);
        log.append(&[entry(index, 5, 48)], &hard_state(5, 1)).unwrap();
        log.sync().unwrap();
        assert!(all(&log).iter().all(|entry| entry.index == 1 || entry.term == 5));
    }
}

#[test]
fn a_crash_in_the_middle_of_a_roll_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    while log.rolls() == 0 {
        fill(&mut log, 1, 900);
    }
    // Between seal and rename the new segment still has a spare's name.
    let path = dir.path().join(&log.last_segment().name);
    let expected = log.last_index() - 1;
    drop(log);
    std::fs::rename(&path, dir.path().join("spare.0000")).unwrap();
    // What the spare holds behind its header was written after the rename, so take it back too.
    let mut bytes = std::fs::read(dir.path().join("spare.0000")).unwrap();
    bytes[SEGMENT_HEADER_SIZE as usize..].fill(0);
    std::fs::write(dir.path().join("spare.0000"), &bytes).unwrap();
    let mut log = SegmentedLog::open(config(dir.path())).unwrap();
    assert_eq!(log.last_index(), expected);
    fill(&mut log, 3, 100);
    assert_eq!(log.last_index(), expected + 3);
}

#[test]
fn admission_promises_only_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = SegmentedLog::create(config(dir.path())).unwrap();
    assert!(log.admit(1000, 0));
    assert!(log.admit(SEGMENT_BYTES - SEGMENT_HEADER_SIZE - CONTROL_ROOM, 0), "with a spare");
    assert!(!log.admit(SEGMENT_BYTES, 0));
    // No further segment can be made here.
    log.maintain();
    log.poll_preparing(true);
    let spares = std::mem::take(&mut log.spares);
    let disk = std::mem::replace(&mut log.config.disk, Arc::new(SimulatedDisk::new(0)));
    log.preparer = None;
    let mut appended = 0;
    while log.admit(1000, 2000) {
        fill(&mut log, 1, 900);
        appended += 1;
    }
    assert!(appended > 5 && log.rolls() == 0);
    assert!(log.admit(1000, 0), "what frees space may use the rest");
    log.config.disk = disk;
    log.preparer = None;
    log.spares = spares;
    assert!(log.admit(1000, 2000), "and it recovers");
    fill(&mut log, 20, 900);
}

/// What a run does to a log.
#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, size: usize, sync: bool },
    Conflict { back: u64, size: usize },
    Commit { ahead: u64 },
    Compact { behind: u64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..6u64, 0..3000usize, any::<bool>()).prop_map(|(count, size, sync)| Step::Append { count, size, sync }),
        2 => (1..8u64, 0..500usize).prop_map(|(back, size)| Step::Conflict { back, size }),
        3 => (0..10u64).prop_map(|ahead| Step::Commit { ahead }),
        2 => (0..5u64).prop_map(|behind| Step::Compact { behind }),
        1 => Just(Step::Reopen),
    ]
}

/// A log beside a plain list of what it must hold.
struct Modelled {
    dir: tempfile::TempDir,
    log: Option<SegmentedLog>,
    /// Entry of index i at i - 1, from the very first.
    model: Vec<Entry>,
    term: u64,
    commit: u64,
    /// What the model was at the last sync.
    synced: Vec<Entry>,
}

impl Modelled {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Some(SegmentedLog::create(config(dir.path())).unwrap());
        Modelled { dir, log, model: Vec::new(), term: 1, commit: 0, synced: Vec::new() }
    }

    fn append(&mut self, from: u64, count: u64, size: usize, sync: bool) {
        let entries: Vec<Entry> = (from..from + count).map(|index| entry(index, self.term, size)).collect();
        self.model.truncate(from as usize - 1);
        self.model.extend(entries.iter().cloned());
        let log = self.log.as_mut().unwrap();
        log.append(&entries, &hard_state(self.term, self.commit)).unwrap();
        if sync {
            log.sync().unwrap();
            self.synced = self.model.clone();
        }
    }

    fn run(&mut self, step: &Step) {
        let last = self.model.len() as u64;
        match *step {
            Step::Append { count, size, sync } => self.append(last + 1, count, size, sync),
            Step::Conflict { back, size } => {
                self.term += 1;
                self.append((last + 1).saturating_sub(back).max(self.commit + 1), 1, size, true);
            }
            Step::Commit { ahead } => {
                self.commit = (self.commit + ahead).min(self.synced.len().min(self.model.len()) as u64);
                self.append(last + 1, 0, 0, false);
            }
            Step::Compact { behind } => {
                let index = self.commit.saturating_sub(behind);
                self.log.as_mut().unwrap().compact(index).unwrap();
            }
            Step::Reopen => {
                self.log = None;
                self.log = Some(SegmentedLog::open(config(self.dir.path())).unwrap());
                self.synced = self.model.clone();
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let log = self.log.as_ref().unwrap();
        prop_assert_eq!(log.last_index(), self.model.len() as u64);
        prop_assert!(log.first_index() <= self.commit + 1);
        prop_assert_eq!(&all(log)[..], &self.model[log.first_index() as usize - 1..]);
        for index in log.first_index().max(1)..=log.last_index() {
            prop_assert_eq!(log.term(index), Some(self.model[index as usize - 1].term));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_list(steps in prop::collection::vec(step(), 1..40)) {
        let mut modelled = Modelled::new();
        for step in &steps {
            modelled.run(step);
        }
        modelled.check()?;
        modelled.run(&Step::Reopen);
        modelled.check()?;
    }

    #[test]
    fn a_mutated_log_never_gives_other_entries(
        steps in prop::collection::vec(step(), 1..25),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255u8, 1..64usize), 1..3),
    ) {
        let mut modelled = Modelled::new();
        for step in &steps {
            modelled.run(step);
        }
        let first = modelled.log.as_ref().unwrap().first_index();
        modelled.log = None;
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(modelled.dir.path()).unwrap().map(|item| item.unwrap().path()).collect();
        files.retain(|path| !path.ends_with("lock"));
        files.sort();
        for (file, at, mask, size) in &damage {
            let path = file.get(&files);
            let mut bytes = std::fs::read(path).unwrap();
            // Mostly near the start, where the records are.
            let at = at.index(bytes.len());
            for byte in bytes[at..].iter_mut().take(*size) {
                *byte ^= *mask;
            }
            std::fs::write(path, &bytes).unwrap();
        }
        if let Ok(log) = SegmentedLog::open(config(modelled.dir.path())) {
            // A prefix of what there was, never less than what was known committed.
            prop_assert!(log.first_index() <= first || log.first_index() <= modelled.commit + 1);
            let kept = log.last_index() as usize;
            let found = all(&log);
            let is_prefix_of = |model: &[Entry]| {
                kept <= model.len() && found[..] == model[log.first_index() as usize - 1..kept]
            };
            // A cut may end before the last conflict was logged; then what it replaced is back.
            let prefix = is_prefix_of(&modelled.model);
            let older = found.iter().all(|entry| *entry == self::entry(entry.index, entry.term, entry.data.len()));
            prop_assert!(prefix || older, "entries that were never appended");
        }
    }

    #[test]
    fn an_unsynced_tail_is_cut_and_the_rest_kept(
        steps in prop::collection::vec(step(), 1..25),
        lost in any::<prop::sample::Index>(),
        batch in 1..6u64,
        size in 0..2000usize,
    ) {
        let mut modelled = Modelled::new();
        for step in &steps {
            modelled.run(step);
        }
        // Everything so far is durable; the next batch is torn somewhere.
        modelled.append(modelled.model.len() as u64 + 1, 1, 10, true);
        let (rolls, start) = {
            let log = modelled.log.as_ref().unwrap();
            (log.rolls(), log.position)
        };
        modelled.append(modelled.model.len() as u64 + 1, batch, size, false);
        let log = modelled.log.take().unwrap();
        prop_assume!(log.rolls() == rolls);
        let (end, path) = (log.position, modelled.dir.path().join(&log.last_segment().name));
        drop(log);
        let from = start + lost.index((end - start) as usize) as u64;
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in &mut bytes[from as usize..end as usize] {
            *byte = 0;
        }
        std::fs::write(&path, &bytes).unwrap();
        let log = SegmentedLog::open(config(modelled.dir.path())).unwrap();
        prop_assert!(log.last_index() >= modelled.synced.len() as u64);
        let kept = log.last_index() as usize;
        prop_assert_eq!(&all(&log)[..], &modelled.model[log.first_index() as usize - 1..kept]);
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_is_not_believed() {
    for seed in 0..40 {
        let disk = SimulatedDisk::new(64 << 20);
        let config = || LogConfig { disk: Arc::new(disk.clone()), ..config(Path::new(".")) };
        let mut log = SegmentedLog::create(config()).unwrap();
        fill(&mut log, 5, 900);
        log.append(&[entry(6, 1, 3000), entry(7, 1, 3000)], &hard_state(1, 5)).unwrap();
        disk.set_faults(Faults { next_sync_fails: true, ..Faults::default() });
        assert!(log.sync().is_err());
        // The process ends of it and starts again; the machine lives on, and so does its memory.
        disk.kill();
        drop(log);
        let mut log = SegmentedLog::open(config()).unwrap();
        fill(&mut log, 3, 900);
        let last = log.last_index();
        let before = all(&log);
        drop(log);
        disk.crash(seed);
        let log = SegmentedLog::open(config()).unwrap();
        assert_eq!(log.last_index(), last);
        assert_eq!(all(&log), before);
    }
}
