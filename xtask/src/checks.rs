//! What `ci` checks before it runs tests: format, clippy, documentation, tidy.
//!
//! A failed check does not stop the others: one run tells all there is to mend.

use anyhow::Result;

use crate::counts::Counts;
use crate::process;
use crate::tidy;
use crate::workspace::Workspace;

/// Each check counts as one passed or failed test.
pub(crate) fn run(workspace: &Workspace) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut note = |name: &str, passed: bool| {
        eprintln!("check {name}: {}", if passed { "ok" } else { "FAILED" });
        counts += Counts { passed: u64::from(passed), failed: u64::from(!passed) };
    };

    note("format", process::succeeds(workspace.cargo().args(["fmt", "--all", "--check"]))?);

    let findings = tidy::check(workspace)?;
    tidy::report(&findings);
    note("tidy", findings.is_empty());

    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    note("clippy", process::succeeds(workspace.cargo().args(clippy))?);

    let mut documentation = workspace.cargo();
    documentation
        .args(["doc", "--no-deps", "--workspace", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    note("documentation", process::succeeds(&mut documentation)?);

    if let Some(passed) = dependencies_allowed(workspace)? {
        note("cargo deny", passed);
    }
    Ok(counts)
}

/// deny.toml, where cargo-deny is installed; it reads an advisory database from the network, so it is no must.
fn dependencies_allowed(workspace: &Workspace) -> Result<Option<bool>> {
    let installed =
        workspace.cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success());
    if !installed {
        eprintln!("check cargo deny: left out, cargo-deny is not installed");
        return Ok(None);
    }
    process::succeeds(workspace.cargo().args(["deny", "check"])).map(Some)
}
