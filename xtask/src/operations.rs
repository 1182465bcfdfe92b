//! Runs every command of docs/operations.md: see `s3-tests/operations/operations.py`.

use std::process::Command;

use anyhow::{Context, Result};

use crate::OperationsArguments;
use crate::process;
use crate::workspace::Workspace;

/// True if every command of the manual did what the manual says.
pub(crate) fn run(workspace: &Workspace, arguments: &OperationsArguments) -> Result<bool> {
    let binary = match &arguments.binary {
        Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display()))?,
        None => workspace.build_server(false)?,
    };
    // It needs the standard library alone.
    let mut command = Command::new("python3");
    command.arg(workspace.path("s3-tests/operations/operations.py")).arg("--binary").arg(binary);
    if arguments.verbose {
        command.arg("--verbose");
    }
    process::succeeds(&mut command)
}
