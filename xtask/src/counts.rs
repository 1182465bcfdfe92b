//! How many tests passed and failed, from what the runners print or write.

use std::fmt;
use std::io::BufRead;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::{Context, Result};
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Passed and failed tests. Shown as the line that every test command ends with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests, or whole steps, that did not.
    pub(crate) failed: u64,
}

impl Counts {
    /// A step that broke off without naming a failed test still fails the run.
    pub(crate) const BROKEN_STEP: Self = Self { passed: 0, failed: 1 };

    /// Something ran and nothing failed: a run of no tests is no success.
    pub(crate) fn all_passed(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Reads cargo's `test result: ok. 3 passed; 0 failed; ...`; none for any other line.
    pub(crate) fn of_cargo_line(line: &str) -> Option<Self> {
        let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |word: &str| {
            rest.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
        };
        Some(Self { passed: count("passed")?, failed: count("failed")? })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What became of one test case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It passed.
    Passed,
    /// It was not run.
    Skipped,
    /// An assertion did not hold.
    Failed,
    /// Its set-up or tear-down broke.
    Error,
}

/// One case of a JUnit file.
#[derive(Debug)]
pub(crate) struct Case {
    /// Name with parameters, without file and class.
    pub(crate) name: String,
    /// The worse one where a case both fails and breaks in its tear-down.
    pub(crate) outcome: Outcome,
    /// What the runner says of it, the empty string for a pass.
    pub(crate) message: String,
}

/// The cases of a JUnit file.
pub(crate) fn read_junit(path: &Path) -> Result<Vec<Case>> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    parse_junit(std::io::BufReader::new(file)).with_context(|| format!("read {}", path.display()))
}

/// Sums up cases; a skip counts as neither.
pub(crate) fn sum(cases: &[Case]) -> Counts {
    let count =
        |wanted: &[Outcome]| cases.iter().filter(|case| wanted.contains(&case.outcome)).count() as u64;
    Counts { passed: count(&[Outcome::Passed]), failed: count(&[Outcome::Failed, Outcome::Error]) }
}

fn parse_junit(input: impl BufRead) -> Result<Vec<Case>> {
    let mut reader = Reader::from_reader(input);
    let mut cases: Vec<Case> = Vec::new();
    let mut buffer = Vec::new();
    loop {
        match reader.read_event_into(&mut buffer)? {
            Event::Start(tag) | Event::Empty(tag) => take_tag(&tag, &mut cases)?,
            Event::Eof => return Ok(cases),
            _ => {}
        }
        buffer.clear();
    }
}

fn take_tag(tag: &BytesStart<'_>, cases: &mut Vec<Case>) -> Result<()> {
    let outcome = match tag.name().as_ref() {
        "testcase" => {
            let name = attribute(tag, "name")?.context("a testcase has no name")?;
            cases.push(Case { name, outcome: Outcome::Passed, message: String::new() });
            return Ok(());
        }
        "failure" => Outcome::Failed,
        "error" => Outcome::Error,
        "skipped" => Outcome::Skipped,
        _ => return Ok(()),
    };
    let case = cases.last_mut().context("an outcome outside a testcase")?;
    if outcome >= case.outcome {
        case.outcome = outcome;
        case.message = attribute(tag, "message")?.unwrap_or_default();
    }
    Ok(())
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    let Some(attribute) = tag.try_get_attribute(name)? else { return Ok(None) };
    let raw = attribute.value.into_owned();
    // A message may hold references we have no use for: show it as it stands then.
    Ok(Some(quick_xml::escape::unescape(&raw).map(|text| text.into_owned()).unwrap_or(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_result_lines_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s";
        assert_eq!(Counts::of_cargo_line(line), Some(Counts { passed: 12, failed: 3 }));
        assert_eq!(Counts::of_cargo_line("test a::b ... ok"), None);
    }

    #[test]
    fn a_run_of_no_tests_is_no_success() {
        assert!(!Counts::default().all_passed());
        assert!(Counts { passed: 1, failed: 0 }.all_passed());
        assert!(!Counts { passed: 1, failed: 1 }.all_passed());
    }

    #[test]
    fn junit_outcomes_are_told_apart() {
        let xml = br#"<?xml version="1.0"?><testsuites><testsuite>
            <testcase name="fine"/>
            <testcase name="bad[a&gt;b]"><failure message="1 &lt; 2">trace</failure></testcase>
            <testcase name="torn"><failure message="x"/><error message="tear-down"/></testcase>
            <testcase name="left"><skipped message="why"/></testcase>
            </testsuite></testsuites>"#;
        let cases = parse_junit(&xml[..]).unwrap();
        let seen: Vec<_> = cases.iter().map(|case| (case.name.as_str(), case.outcome)).collect();
        assert_eq!(
            seen,
            [
                ("fine", Outcome::Passed),
                ("bad[a>b]", Outcome::Failed),
                ("torn", Outcome::Error),
                ("left", Outcome::Skipped)
            ]
        );
        assert_eq!(cases[1].message, "1 < 2");
        assert_eq!(sum(&cases), Counts { passed: 1, failed: 2 });
    }
}
