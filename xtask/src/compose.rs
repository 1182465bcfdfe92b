//! Runs the compose file under a docker engine: see `s3-tests/compose/compose.py`.
//!
//! Where no engine can be had it fails and says what is missing.

use std::path::Path;

use anyhow::Result;

use crate::ComposeArguments;
use crate::counts::Counts;
use crate::process;
use crate::venv::Venv;
use crate::workspace::Workspace;

/// What every change runs: small, and ended in time whatever happens. Most of it is the making of a base image where none
/// can be pulled.
const SMALL_FILES: u64 = 200;
const SMALL_MEGABYTES: u64 = 20;
const SMALL_DEADLINE_S: u64 = 480;

/// True if the test passed.
pub(crate) fn run(workspace: &Workspace, arguments: &ComposeArguments) -> Result<bool> {
    let binary = if arguments.debug {
        workspace.build_server(false)?
    } else {
        workspace.release_server(arguments.binary.as_deref())?
    };
    compose(workspace, &binary, [arguments.files, arguments.megabytes, arguments.deadline])
}

/// A small run with the server that the other tests have built already; one test of the sum.
pub(crate) fn run_small(workspace: &Workspace) -> Result<Counts> {
    let binary = match workspace.build_server(false) {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(Counts::BROKEN_STEP);
        }
    };
    let has_passed = compose(workspace, &binary, [SMALL_FILES, SMALL_MEGABYTES, SMALL_DEADLINE_S])?;
    Ok(Counts { passed: u64::from(has_passed), failed: u64::from(!has_passed) })
}

fn compose(workspace: &Workspace, binary: &Path, [files, megabytes, deadline]: [u64; 3]) -> Result<bool> {
    // The environment that s3-tests/ has made: the aws command.
    let requirements = ["s3-tests/requirements.txt", "s3-tests/requirements-clients.txt"];
    let venv = Venv::ready(workspace, &requirements.map(|file| workspace.path(file)), &[])?;
    let mut command = venv.command();
    command.arg(workspace.path("s3-tests/compose/compose.py")).arg("--binary").arg(binary);
    for (name, value) in [("--files", files), ("--megabytes", megabytes), ("--deadline", deadline)] {
        command.arg(name).arg(value.to_string());
    }
    process::succeeds(&mut command)
}
