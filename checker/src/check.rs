//! Decides whether a history could have come from one correct store.
//!
//! Every write tells the Raft index at which it took place, every read the index as of which it was answered: the
//! *witness*. So the order of all operations is known and need not be searched for. What is checked:
//!
//! ```text
//!   order   what was answered before another began has no later index; a read that began after a write sees it
//!   value   a read as of r shows the last write at or below r, whole; a page of a listing likewise for all its keys
//!   once    what is read was written by somebody who was told that index, or nothing at all: not twice, nor though it failed
//!   winner  a conditional write took place only if its condition held just below its index
//! ```
//!
//! Writes without an answer have no index, unless somebody read them; one that nobody read explains nothing but absence
//! (an unanswered deletion).
//!
//! Not here: what is on disks at the end (`audit`).

use std::collections::BTreeMap;

use crate::history::{Answer, Ask, Condition, History, KeyIndex, Op, OpId, Page};

/// A write whose place is known.
#[derive(Debug, Clone, Copy)]
struct Placed {
    index: u64,
    /// None for a deletion.
    content: Option<OpId>,
    /// Who wrote it.
    op: OpId,
}

/// A write in words; None is a key that was never written.
fn told(placed: Option<Placed>) -> String {
    match placed {
        None => "nothing".to_owned(),
        Some(Placed { index, content: Some(content), op }) => {
            format!("the body of op {content}, written by op {op} at index {index}")
        }
        Some(Placed { index, content: None, op }) => {
            format!("nothing since op {op} deleted it at index {index}")
        }
    }
}

/// Checks a history; answers what is wrong with it, nothing if nothing is.
pub fn check(history: &History) -> Vec<String> {
    let mut checker =
        Checker { history, writes: BTreeMap::new(), lost_deletes: BTreeMap::new(), wrong: Vec::new() };
    checker.place();
    checker.check_order();
    for op in &history.ops {
        checker.check_value(op);
    }
    checker.wrong
}

struct Checker<'h> {
    history: &'h History,
    /// By key, in order of index.
    writes: BTreeMap<KeyIndex, Vec<Placed>>,
    /// Deletions nobody heard of, by key: when they were begun.
    lost_deletes: BTreeMap<KeyIndex, Vec<u64>>,
    wrong: Vec<String>,
}

impl Checker<'_> {
    /// Puts every write whose index is known into its place.
    fn place(&mut self) {
        let mut places: BTreeMap<(KeyIndex, u64), Placed> = BTreeMap::new();
        for op in &self.history.ops {
            match (&op.ask, &op.answer) {
                (Ask::Put { key, .. } | Ask::Copy { to: key, .. }, Answer::Written { index, content }) => {
                    let placed = Placed { index: *index, content: Some(*content), op: op.id };
                    if let Some(other) = places.insert((*key, *index), placed)
                        && other.content != placed.content
                    {
                        self.wrong.push(format!(
                            "two writes of key {key} at index {index}: {other:?} and {placed:?}"
                        ));
                    }
                }
                (Ask::Delete { key }, Answer::Deleted { index }) => {
                    places.insert((*key, *index), Placed { index: *index, content: None, op: op.id });
                }
                (Ask::Delete { key }, Answer::Unknown) => {
                    self.lost_deletes.entry(*key).or_default().push(op.begun);
                }
                _ => {}
            }
        }
        // A read tells the place of a write whose answer was lost.
        for op in &self.history.ops {
            if let (Ask::Get { key }, Answer::Found { content, version, .. }) = (&op.ask, &op.answer) {
                let placed = Placed { index: *version, content: Some(*content), op: *content };
                let known = places.entry((*key, *version)).or_insert_with(|| {
                    if !self.may_have_written(*key, *content) {
                        self.wrong.push(format!(
                            "op {} reads body {content} as version {version} of key {key}: everybody who may have \
                             written it there was told otherwise, op {content} {:?}",
                            op.id, self.history.ops[*content as usize].answer
                        ));
                    }
                    placed
                });
                if known.content != Some(*content) {
                    self.wrong.push(format!(
                        "op {} reads body {content} as version {version} of key {key}, which was {}",
                        op.id,
                        told(Some(*known))
                    ));
                }
            }
        }
        for ((key, _), placed) in places {
            self.writes.entry(key).or_default().push(placed);
        }
    }

    /// Whether a write of this body to this key was never answered.
    fn may_have_written(&self, key: KeyIndex, content: OpId) -> bool {
        let writes = |op: &Op| match &op.ask {
            Ask::Put { key: to, .. } => *to == key && op.id == content,
            Ask::Copy { to, .. } => *to == key,
            _ => false,
        };
        self.history.ops.iter().any(|op| op.answer == Answer::Unknown && writes(op))
    }

    /// Real time against the order of indexes. One sweep in order of events, keeping the highest index answered so far.
    fn check_order(&mut self) {
        enum Event {
            Begin(OpId, u64, bool),
            End(u64),
        }
        let mut events: Vec<(u64, Event)> = Vec::new();
        let mut note = |begun: u64, ended: u64, id: OpId, index: u64, is_write: bool| {
            events.push((begun, Event::Begin(id, index, is_write)));
            if ended != u64::MAX {
                events.push((ended, Event::End(index)));
            }
        };
        for op in &self.history.ops {
            match &op.answer {
                Answer::Written { index, .. } | Answer::Deleted { index } => {
                    note(op.begun, op.ended, op.id, *index, true);
                }
                Answer::Found { as_of, .. } => note(op.begun, op.ended, op.id, *as_of, false),
                Answer::Listed { pages } => {
                    for page in pages {
                        note(page.begun, page.ended, op.id, page.as_of, false);
                    }
                }
                _ => {}
            }
        }
        events.sort_by_key(|(at, _)| *at);
        let mut highest = 0;
        for (_, event) in events {
            match event {
                Event::End(index) => highest = highest.max(index),
                Event::Begin(id, index, is_write) => {
                    if index < highest || (is_write && index == highest && highest > 0) {
                        let what = if is_write { "took place" } else { "read as of" };
                        self.wrong.push(format!(
                            "op {id} {what} index {index} though index {highest} had been answered before it began: {:?}",
                            self.history.ops[id as usize]
                        ));
                    }
                }
            }
        }
    }

    fn check_value(&mut self, op: &Op) {
        match (&op.ask, &op.answer) {
            (Ask::Get { key }, Answer::Found { content, version, as_of }) => {
                self.check_found(op, *key, *content, *version, *as_of);
            }
            (Ask::Get { key }, Answer::Absent) => self.check_absent(op, *key),
            (Ask::Put { key, condition, .. }, Answer::Written { index, .. }) => {
                self.check_condition(op, *key, *condition, *index);
            }
            (_, Answer::Listed { pages }) => {
                for page in pages {
                    self.check_page(op, page);
                }
            }
            _ => {}
        }
    }

    fn check_found(&mut self, op: &Op, key: KeyIndex, content: OpId, version: u64, as_of: u64) {
        let writer = &self.history.ops[content as usize];
        if writer.begun > op.ended {
            self.wrong.push(format!("op {} read body {content} before it was written", op.id));
        }
        let last = last_at(self.writes.get(&key), as_of);
        match last {
            Some(last) if last.index == version && last.content == Some(content) => {}
            _ => self.wrong.push(format!(
                "op {} read body {content} of version {version} as of {as_of}, but key {key} held {} then",
                op.id,
                told(last)
            )),
        }
    }

    /// Absence carries no index: it must have been true at some point while the call was under way.
    fn check_absent(&mut self, op: &Op, key: KeyIndex) {
        let (low, high) = self.span(op);
        let writes = self.writes.get(&key);
        let was_absent_at = |index: u64| last_at(writes, index).is_none_or(|last| last.content.is_none());
        let changes = writes
            .into_iter()
            .flatten()
            .map(|write| write.index)
            .filter(|index| (low..=high).contains(index));
        if was_absent_at(low) || changes.clone().any(was_absent_at) {
            return;
        }
        let lost =
            self.lost_deletes.get(&key).is_some_and(|begun| begun.iter().any(|begun| *begun < op.ended));
        if !lost {
            let last = last_at(writes, low);
            self.wrong.push(format!(
                "op {} found key {key} absent between indexes {low} and {high}, but it held {} all the time",
                op.id,
                told(last)
            ));
        }
    }

    /// Indexes between which a call without a witness took place.
    fn span(&self, op: &Op) -> (u64, u64) {
        let (mut low, mut high) = (0, u64::MAX);
        for other in &self.history.ops {
            let (index, is_write) = match &other.answer {
                Answer::Written { index, .. } | Answer::Deleted { index } => (*index, true),
                Answer::Found { as_of, .. } => (*as_of, false),
                _ => continue,
            };
            if other.ended < op.begun {
                low = low.max(index);
            }
            if other.begun > op.ended {
                // What began after the end has a later index if it wrote, and at least the same if it read.
                high = high.min(if is_write { index - 1 } else { index });
            }
        }
        (low, high.max(low))
    }

    fn check_condition(&mut self, op: &Op, key: KeyIndex, condition: Condition, index: u64) {
        let before = last_at(self.writes.get(&key), index - 1);
        let present = before.and_then(|before| before.content);
        let lost_delete =
            self.lost_deletes.get(&key).is_some_and(|begun| begun.iter().any(|begun| *begun < op.ended));
        let holds = match condition {
            Condition::None => true,
            Condition::IfAbsent => present.is_none() || lost_delete,
            Condition::IfMatch(wanted) => present == Some(wanted),
        };
        if !holds {
            self.wrong.push(format!(
                "op {} wrote key {key} at index {index} under {condition:?}, but it held {} then",
                op.id,
                told(before)
            ));
        }
    }

    fn check_page(&mut self, op: &Op, page: &Page) {
        let listed: BTreeMap<KeyIndex, OpId> = page.keys.iter().copied().collect();
        if listed.len() != page.keys.len() {
            self.wrong.push(format!("op {} lists a key twice: {:?}", op.id, page.keys));
        }
        for (key, writes) in &self.writes {
            let is_covered =
                page.after.is_none_or(|after| *key > after) && page.until.is_none_or(|until| *key <= until);
            if !is_covered {
                continue;
            }
            let last = last_at(Some(writes), page.as_of);
            let expected = last.and_then(|last| last.content);
            let found = listed.get(key).copied();
            if expected == found {
                continue;
            }
            // What is unanswered has no place: a write seen in the listing alone, or a deletion.
            let by_lost_write = found.is_some_and(|content| self.may_have_written(*key, content));
            let by_lost_delete = found.is_none()
                && self
                    .lost_deletes
                    .get(key)
                    .is_some_and(|begun| begun.iter().any(|begun| *begun < page.ended));
            if !by_lost_write && !by_lost_delete {
                self.wrong.push(format!(
                    "op {} lists key {key} as {found:?} as of {}, but it held {}",
                    op.id,
                    page.as_of,
                    told(last)
                ));
            }
        }
    }
}

/// The last write at or below an index.
fn last_at(writes: Option<&Vec<Placed>>, index: u64) -> Option<Placed> {
    let writes = writes?;
    let count = writes.partition_point(|write| write.index <= index);
    count.checked_sub(1).map(|at| writes[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Script(History);

    impl Script {
        fn new() -> Self {
            Self(History::default())
        }

        fn now(&mut self, ask: Ask, answer: Answer) -> OpId {
            let id = self.0.begin(ask);
            self.0.end(id, answer);
            id
        }

        fn put(&mut self, index: u64) -> OpId {
            let id = self.0.ops.len() as OpId;
            let ask = Ask::Put { key: 0, condition: Condition::None, bytes: 1, by_upload: false };
            self.now(ask, Answer::Written { index, content: id })
        }

        fn get(&mut self, content: OpId, version: u64, as_of: u64) {
            self.now(Ask::Get { key: 0 }, Answer::Found { content, version, as_of });
        }
    }

    #[test]
    fn orderly_history_passes() {
        let mut script = Script::new();
        let first = script.put(5);
        script.get(first, 5, 5);
        let second = script.put(7);
        script.get(second, 7, 9);
        script.now(Ask::Delete { key: 0 }, Answer::Deleted { index: 10 });
        script.now(Ask::Get { key: 0 }, Answer::Absent);
        assert_eq!(check(&script.0), Vec::<String>::new());
    }

    #[test]
    fn stale_read_is_found() {
        let mut script = Script::new();
        let first = script.put(5);
        script.put(7);
        script.get(first, 5, 6);
        assert_eq!(check(&script.0).len(), 1);
    }

    #[test]
    fn lost_write_is_found() {
        let mut script = Script::new();
        let first = script.put(5);
        script.put(7);
        script.get(first, 5, 8);
        assert_eq!(check(&script.0).len(), 1);
        let mut script = Script::new();
        script.put(5);
        script.now(Ask::Get { key: 0 }, Answer::Absent);
        assert_eq!(check(&script.0).len(), 1);
    }

    #[test]
    fn two_winners_are_found() {
        let mut script = Script::new();
        script.put(5);
        let id = script.0.ops.len() as OpId;
        let ask = Ask::Put { key: 0, condition: Condition::IfAbsent, bytes: 1, by_upload: false };
        script.now(ask, Answer::Written { index: 6, content: id });
        assert_eq!(check(&script.0).len(), 1);
    }

    #[test]
    fn second_effect_is_found() {
        let is_found =
            |script: &Script| check(&script.0).iter().any(|wrong| wrong.contains("told otherwise"));
        let mut script = Script::new();
        let first = script.put(5);
        script.get(first, 4, 4);
        assert!(is_found(&script), "written at 4, and again at 5");
        let mut script = Script::new();
        let ask = Ask::Put { key: 0, condition: Condition::IfAbsent, bytes: 1, by_upload: false };
        let refused = script.now(ask, Answer::Refused { current: None });
        script.get(refused, 3, 4);
        assert!(is_found(&script), "refused, and done");
        let mut script = Script::new();
        let first = script.put(5);
        script.0.begin(Ask::Copy { from: 1, to: 0 });
        script.get(first, 7, 8);
        assert_eq!(check(&script.0), Vec::<String>::new(), "a copy that was not answered");
    }

    #[test]
    fn unanswered_writes_may_or_may_not_be_seen() {
        let mut script = Script::new();
        let first = script.put(5);
        let ask = Ask::Put { key: 0, condition: Condition::None, bytes: 1, by_upload: false };
        let lost = script.0.begin(ask);
        script.get(first, 5, 8);
        script.get(lost, 9, 10);
        assert_eq!(check(&script.0), Vec::<String>::new());
        script.get(first, 5, 11);
        assert_eq!(check(&script.0).len(), 1, "once seen it stays");
    }

    #[test]
    fn listing_must_be_one_moment() {
        let mut script = Script::new();
        let first = script.put(5);
        let page = |keys: Vec<(KeyIndex, OpId)>, as_of, at: u64| Answer::Listed {
            pages: vec![Page { after: None, until: None, keys, as_of, begun: at, ended: at + 1 }],
        };
        script.now(Ask::List, page(vec![(0, first)], 5, 3));
        assert_eq!(check(&script.0), Vec::<String>::new());
        script.now(Ask::List, page(vec![], 6, 5));
        assert_eq!(check(&script.0).len(), 1);
    }

    #[test]
    fn listing_may_show_what_nobody_was_told_of() {
        let mut script = Script::new();
        script.put(5);
        let ask = Ask::Put { key: 1, condition: Condition::None, bytes: 1, by_upload: false };
        let other = script.0.ops.len() as OpId;
        script.now(ask.clone(), Answer::Written { index: 6, content: other });
        let page = |content| Answer::Listed {
            pages: vec![Page {
                after: None,
                until: Some(0),
                keys: vec![(0, content)],
                as_of: 8,
                begun: 9,
                ended: 10,
            }],
        };
        script.now(Ask::List, page(other));
        assert_eq!(check(&script.0).len(), 1, "nobody may have written it there");
        script.0.begin(Ask::Copy { from: 1, to: 0 });
        assert_eq!(check(&script.0), Vec::<String>::new(), "a copy that was not answered");
        let elsewhere = script.0.begin(ask);
        script.now(Ask::List, page(elsewhere));
        assert_eq!(check(&script.0), Vec::<String>::new());
    }
}
