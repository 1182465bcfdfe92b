//! Runs a checkout of the public ceph/s3-tests, unpatched, against a fresh release server or a cluster of processes.
//!
//! The suite wants an account of its own for two users, so the server is configured with those of
//! `s3-tests/ceph/s3tests.conf`; only the port is filled in. Most tests run on several workers, which the suite allows:
//! each picks its own bucket prefix. Two tests count every bucket of the account and run alone afterwards.
//!
//! A test that is skipped counts as failed: it asks for something we do not offer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::CephArguments;
use crate::counts::{self, Case, Outcome};
use crate::process;
use crate::rig::{Rig, Role, Shape};
use crate::server::Server;
use crate::stopwatch::Stopwatch;
use crate::venv::Venv;
use crate::workspace::Workspace;

/// They want an account without other buckets (the suite's own remark at both).
const ALONE: [&str; 2] = ["test_list_buckets_paginated", "test_buckets_list_ctime"];

/// Groups that start so belong to S3 itself; the others test other services or one vendor's extensions.
const CORE: &str = "C-";

/// One test may take this long: the slowest of the suite that we offer takes 60 s.
const TEST_DEADLINE: Duration = Duration::from_secs(300);

/// Test names by group, as `groups.json` lists them.
type Groups = BTreeMap<String, Vec<String>>;

/// True if the suite ran; what fails in it is reported, and judged by its reader.
pub(crate) fn run(workspace: &Workspace, arguments: &CephArguments) -> Result<bool> {
    let checkout =
        arguments.path.canonicalize().with_context(|| format!("find {}", arguments.path.display()))?;
    ensure!(checkout.join("s3tests").is_dir(), "{} is no checkout of ceph/s3-tests", checkout.display());
    let groups = read_groups(&workspace.path("s3-tests/ceph/groups.json"))?;
    let tests = select(&groups, &arguments.groups, arguments.keyword.as_deref())?;

    let binary = workspace.release_server(arguments.binary.as_deref())?;
    let packages = ["pytest-xdist", "pytest-timeout"];
    let venv = Venv::ready(workspace, &[checkout.join("requirements.txt")], &packages)?;
    let directory = workspace.target("s3-tests/ceph");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove the last run")?;
    }
    std::fs::create_dir_all(&directory).context("make a directory for the run")?;

    let template = std::fs::read_to_string(workspace.path("s3-tests/ceph/s3tests.conf"))
        .context("read s3-tests/ceph/s3tests.conf")?;
    let target = match arguments.cluster {
        true => Target::start_cluster(&binary, &directory, &server_config(&template)?)?,
        false => Target::start_one(&binary, &directory, &server_config(&template)?)?,
    };
    let suite_config = directory.join("s3tests.conf");
    std::fs::write(&suite_config, suite_config_for(&template, &target.s3)?).context("write s3tests.conf")?;

    let watch = Stopwatch::start();
    let runner = Runner { venv: &venv, checkout: &checkout, config: &suite_config, directory: &directory };
    let (alone, together): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(|test| ALONE.contains(&short_name(test)));
    let mut cases = runner.pytest("together", &together, &["-n", "4"])?;
    cases.extend(runner.pytest("alone", &alone, &[])?);
    if let Some(kept) = &arguments.keep_log {
        std::fs::copy(&target.log, kept).context("keep the server's log")?;
    }
    drop(target);
    std::fs::remove_dir_all(directory.join("data")).context("remove the server's data")?;
    report(&groups, &cases, arguments.failed);
    eprintln!("took {:.0} s", watch.elapsed().as_secs_f64());
    print_core(&groups, &cases);
    Ok(true)
}

/// What the suite talks to; ends with it.
struct Target {
    s3: String,
    /// The log of the process behind `s3`.
    log: PathBuf,
    _running: Running,
}

#[expect(dead_code, reason = "held so that its processes end when it is dropped")]
enum Running {
    One(Server),
    Cluster(Rig),
}

impl Target {
    fn start_one(binary: &Path, directory: &Path, users: &str) -> Result<Self> {
        let config = directory.join("server.toml");
        std::fs::write(&config, users).context("write the server's configuration")?;
        let log = directory.join("server.log");
        let server = Server::start(binary, &directory.join("data"), Some(&config), &log)?;
        server.wait_ready()?;
        Ok(Self { s3: server.s3().to_owned(), log, _running: Running::One(server) })
    }

    fn start_cluster(binary: &Path, directory: &Path, users: &str) -> Result<Self> {
        let mut rig = Rig::create(binary, directory, Shape { metas: 3, datanodes: 3, gateways: 2 }, &[])?;
        rig.configure(Role::Gateway, users)?;
        rig.start_all()?;
        let gateway = &rig.names(Role::Gateway)[0];
        Ok(Self { s3: rig.s3(gateway)?, log: rig.log(gateway), _running: Running::Cluster(rig) })
    }
}

struct Runner<'a> {
    venv: &'a Venv,
    checkout: &'a Path,
    config: &'a Path,
    directory: &'a Path,
}

impl Runner<'_> {
    fn pytest(&self, name: &str, tests: &[String], words: &[&str]) -> Result<Vec<Case>> {
        if tests.is_empty() {
            return Ok(Vec::new());
        }
        let results = self.directory.join(format!("{name}.xml"));
        // A command line has room for all of them, but a file is kinder to who reads the process list.
        let list = self.directory.join(format!("{name}.txt"));
        std::fs::write(&list, tests.join("\n")).context("write the list of tests")?;
        let mut command = self.venv.command();
        command
            .args(["-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:warnings"])
            .arg(format!("--timeout={}", TEST_DEADLINE.as_secs()))
            .arg(format!("--junitxml={}", results.display()))
            .args(words)
            .arg(format!("@{}", list.display()))
            .current_dir(self.checkout)
            .env("S3TEST_CONF", self.config)
            .stdout(
                std::fs::File::create(self.directory.join(format!("{name}.out"))).context("keep output")?,
            );
        // Failing tests are the expected outcome of a suite that covers more than we offer.
        process::succeeds(&mut command)?;
        ensure!(
            results.exists(),
            "pytest wrote no results; its output is {}",
            self.directory.join(format!("{name}.out")).display()
        );
        counts::read_junit(&results)
    }
}

fn read_groups(path: &Path) -> Result<Groups> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).context("read groups.json")
}

/// The tests of the named groups, each once, in the suite's order within a group.
fn select(groups: &Groups, names: &[String], keyword: Option<&str>) -> Result<Vec<String>> {
    for name in names {
        ensure!(
            groups.contains_key(name),
            "no group {name}; there are {}",
            groups.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        );
    }
    let wanted = |group: &str| match names {
        [] => group.starts_with(CORE),
        names => names.iter().any(|name| name == group),
    };
    let mut seen = BTreeSet::new();
    let tests: Vec<String> = groups
        .iter()
        .filter(|(group, _)| wanted(group))
        .flat_map(|(_, tests)| tests)
        .filter(|test| keyword.is_none_or(|word| test.contains(word)))
        .filter(|test| seen.insert(test.as_str()))
        .cloned()
        .collect();
    ensure!(!tests.is_empty(), "no test is selected");
    Ok(tests)
}

/// `test_x[a-b]` of `path/file.py::test_x[a-b]`.
fn short_name(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// Users of the suite's configuration, as our own.
fn server_config(template: &str) -> Result<String> {
    let mut config = String::new();
    for section in ["s3 main", "s3 alt"] {
        let field = |name: &str| {
            ini_field(template, section, name).with_context(|| format!("[{section}] has no {name}"))
        };
        config.push_str("[[users]]\n");
        for (ours, theirs) in [
            ("id", "user_id"),
            ("display_name", "display_name"),
            ("email", "email"),
            ("access_key", "access_key"),
            ("secret_key", "secret_key"),
        ] {
            config.push_str(&format!("{ours} = {:?}\n", field(theirs)?));
        }
    }
    Ok(config)
}

fn suite_config_for(template: &str, endpoint: &str) -> Result<String> {
    let (_, port) = endpoint.rsplit_once(':').context("the endpoint has no port")?;
    let lines = template.lines().map(|line| match line.starts_with("port =") {
        true => format!("port = {port}\n"),
        false => format!("{line}\n"),
    });
    Ok(lines.collect())
}

fn ini_field<'a>(text: &'a str, section: &str, name: &str) -> Option<&'a str> {
    let header = format!("[{section}]");
    let lines = text.lines().skip_while(|line| line.trim() != header).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The worst outcome of each test: a parametrised test passes only if each of its cases does.
fn worst(cases: &[Case]) -> BTreeMap<&str, &Case> {
    let mut worst: BTreeMap<&str, &Case> = BTreeMap::new();
    for case in cases {
        let kept = worst.entry(&case.name).or_insert(case);
        if case.outcome > kept.outcome {
            *kept = case;
        }
    }
    worst
}

fn group_of(groups: &Groups) -> BTreeMap<&str, &str> {
    let pairs =
        groups.iter().flat_map(|(group, tests)| tests.iter().map(move |test| (short_name(test), group)));
    pairs.map(|(test, group)| (test, group.as_str())).collect()
}

fn report(groups: &Groups, cases: &[Case], list_failed: bool) {
    let group_of = group_of(groups);
    let mut table: BTreeMap<&str, BTreeMap<Outcome, usize>> = BTreeMap::new();
    let worst = worst(cases);
    for (name, case) in &worst {
        let group = group_of.get(name).copied().unwrap_or("unknown");
        *table.entry(group).or_default().entry(case.outcome).or_default() += 1;
    }
    for (group, outcomes) in &table {
        let count = |outcome| outcomes.get(&outcome).copied().unwrap_or(0);
        println!(
            "{group:34} {:4} of {:4} run, {:4} known   ({} failed, {} broken, {} skipped)",
            count(Outcome::Passed),
            outcomes.values().sum::<usize>(),
            groups.get(*group).map_or(0, Vec::len),
            count(Outcome::Failed),
            count(Outcome::Error),
            count(Outcome::Skipped),
        );
    }
    if list_failed {
        for (name, case) in worst.iter().filter(|(_, case)| case.outcome != Outcome::Passed) {
            let group = group_of.get(name).copied().unwrap_or("unknown");
            let message: String = case.message.lines().next().unwrap_or_default().chars().take(160).collect();
            println!("  {:?} {group} {name}: {message}", case.outcome);
        }
    }
}

/// The line that the run ends with.
fn print_core(groups: &Groups, cases: &[Case]) {
    let group_of = group_of(groups);
    let worst = worst(cases);
    let core: Vec<_> = worst
        .iter()
        .filter(|(name, _)| group_of.get(*name).is_some_and(|group| group.starts_with(CORE)))
        .collect();
    let passed = core.iter().filter(|(_, case)| case.outcome == Outcome::Passed).count();
    let known: usize =
        groups.iter().filter(|(group, _)| group.starts_with(CORE)).map(|(_, tests)| tests.len()).sum();
    println!("core: {passed} of {} run, {known} known", core.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, outcome: Outcome) -> Case {
        Case { name: name.to_owned(), outcome, message: String::new() }
    }

    const INI: &str = "[DEFAULT]\nport = 9000\n[s3 main]\nuser_id = m\ndisplay_name = main\nemail = m@e\n\
        access_key = A\nsecret_key = S\n\n[s3 alt]\nuser_id = a\ndisplay_name = alt\nemail = a@e\n\
        access_key = B\nsecret_key = T\n";

    #[test]
    fn users_of_the_suite_become_ours() {
        let config = server_config(INI).unwrap();
        assert!(config.starts_with("[[users]]\nid = \"m\"\ndisplay_name = \"main\"\n"), "{config}");
        assert_eq!(config.matches("[[users]]").count(), 2);
        assert!(server_config("[s3 main]\n").is_err());
    }

    #[test]
    fn the_port_is_filled_in() {
        let text = suite_config_for(INI, "http://127.0.0.1:4123").unwrap();
        assert!(text.contains("\nport = 4123\n") && !text.contains("9000"), "{text}");
    }

    #[test]
    fn a_parametrised_test_passes_only_with_all_its_cases() {
        let cases = [case("t", Outcome::Passed), case("t", Outcome::Skipped), case("u", Outcome::Passed)];
        let worst = worst(&cases);
        assert_eq!(worst["t"].outcome, Outcome::Skipped);
        assert_eq!(worst["u"].outcome, Outcome::Passed);
    }

    #[test]
    fn selection_is_core_unless_groups_are_named() {
        let groups: Groups = [
            ("C-a".to_owned(), vec!["f.py::test_one".to_owned(), "f.py::test_two".to_owned()]),
            ("X1".to_owned(), vec!["f.py::test_three".to_owned()]),
        ]
        .into();
        assert_eq!(select(&groups, &[], None).unwrap().len(), 2);
        assert_eq!(select(&groups, &["X1".to_owned()], None).unwrap(), ["f.py::test_three"]);
        assert_eq!(select(&groups, &[], Some("two")).unwrap(), ["f.py::test_two"]);
        assert!(select(&groups, &["C-none".to_owned()], None).is_err());
    }
}
