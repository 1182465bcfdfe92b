//! A small state machine for the tests: a register a name, and counters written once a batch.

#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub(crate) mod net;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use consensus::{Entry, Group, GroupConfig, ReadView, Rows, StateMachine, StoreError, Table, WriteBatch};

pub(crate) const REGISTER: Table = Table::new(0, "register");
pub(crate) const COUNTER: Table = Table::new(1, "counter");

/// Commands: `set NAME VALUE` answers the entry's index, `get NAME` the value, `del NAME`.
pub(crate) struct Registers {
    /// Registers set by each first letter, not written yet.
    counted: BTreeMap<u8, u64>,
    /// Stands behind every value: a machine with another one than the others' is wrong.
    suffix: &'static str,
}

impl Registers {
    pub(crate) fn new() -> Self {
        Registers { counted: BTreeMap::new(), suffix: "" }
    }

    /// One that applies commands otherwise than all others.
    pub(crate) fn wrong() -> Self {
        Registers { suffix: "!", ..Self::new() }
    }
}

impl StateMachine for Registers {
    type Reply = String;

    const TABLES: &'static [Table] = &[REGISTER, COUNTER];

    fn apply(&mut self, batch: &mut WriteBatch<'_>, entry: Entry<'_>) -> Result<String, StoreError> {
        let text = std::str::from_utf8(entry.command).unwrap();
        let mut words = text.splitn(3, ' ');
        let (verb, name, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or(""));
        let old = batch.get(REGISTER, name.as_bytes())?;
        match verb {
            "set" => {
                let value = format!("{value}{}", self.suffix);
                batch.put(REGISTER, name.as_bytes(), value.as_bytes())?;
                *self.counted.entry(name.as_bytes()[0]).or_default() += 1;
                Ok(entry.index.to_string())
            }
            "del" => Ok(batch.delete(REGISTER, name.as_bytes())?.to_string()),
            // Writes before it fails, as a careless machine might.
            "careless" => {
                batch.put(REGISTER, b"careless", b"half done")?;
                batch.get(REGISTER, name.as_bytes())?;
                Ok("done".to_owned())
            }
            "panic" => panic!("asked to"),
            _ => Ok(String::from_utf8(old.unwrap_or_default()).unwrap()),
        }
    }

    fn finish_batch(&mut self, batch: &mut WriteBatch<'_>) -> Result<(), StoreError> {
        for (letter, count) in &self.counted {
            let old = batch.get(COUNTER, &[*letter])?;
            let old = old.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
            batch.put(COUNTER, &[*letter], &(old + count).to_be_bytes())?;
        }
        self.counted.clear();
        Ok(())
    }

    fn recovered(&mut self, _view: &ReadView) -> Result<(), StoreError> {
        self.counted.clear();
        Ok(())
    }
}

/// Small files, and checkpoints so often that a test sees many.
pub(crate) fn config(dir: &Path) -> GroupConfig {
    GroupConfig {
        log_segment_bytes: 64 << 10,
        cache_bytes: 4 << 20,
        checkpoint_rows: 50,
        checkpoint_interval: Duration::from_millis(200),
        disk_free_min_bytes: 0,
        reserve_bytes: 1 << 20,
        ..GroupConfig::new("test", consensus::directory(dir).unwrap(), uuid::Uuid::from_u128(77))
    }
}

pub(crate) async fn open(dir: &Path) -> Group<Registers> {
    let group = Group::open(config(dir), Registers::new()).unwrap();
    group.wait_leader().await.unwrap();
    group
}

pub(crate) async fn ask(group: &Group<Registers>, command: &str) -> String {
    group.propose(Bytes::copy_from_slice(command.as_bytes())).await.unwrap()
}

/// A register, linearizably.
pub(crate) async fn read(group: &Group<Registers>, name: &str) -> Option<String> {
    let view = group.read().await.unwrap();
    view.get(REGISTER, name.as_bytes()).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}
