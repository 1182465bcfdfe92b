//! Rules of CONTRIBUTING.md that no compiler checks.
//!
//! Each rule is a function from what it looks at to findings, a sentence each that names the place. Tidy is a test: it
//! has no switches and no exceptions but those written beside a rule with their reason.
//!
//! Not here: what clippy bans (`clippy.toml`) and what rustfmt lays out.

mod dependencies;
mod lexer;
mod sources;

use anyhow::Result;

use crate::workspace::Workspace;

/// What broke which rule, where.
pub(crate) type Findings = Vec<String>;

/// All findings; none if all is tidy.
pub(crate) fn check(workspace: &Workspace) -> Result<Findings> {
    let mut findings = dependencies::check(workspace)?;
    findings.extend(sources::check(workspace)?);
    Ok(findings)
}

/// Prints them.
pub(crate) fn report(findings: &Findings) {
    for finding in findings {
        println!("tidy: {finding}");
    }
    eprintln!("tidy: {} findings", findings.len());
}
