//! Runs the compose file under a docker engine: see `s3-tests/compose/compose.py`.

use anyhow::Result;

use crate::ComposeArguments;
use crate::process;
use crate::venv::Venv;
use crate::workspace::Workspace;

/// True if the test passed.
pub(crate) fn run(workspace: &Workspace, arguments: &ComposeArguments) -> Result<bool> {
    let binary = if arguments.debug {
        workspace.build_server(false)?
    } else {
        workspace.release_server(arguments.binary.as_deref())?
    };
    let venv = Venv::ready(workspace, &[workspace.path("s3-tests/requirements-clients.txt")], &[])?;
    let mut command = venv.command();
    command.arg(workspace.path("s3-tests/compose/compose.py")).arg("--binary").arg(binary).args([
        "--files",
        &arguments.files.to_string(),
        "--megabytes",
        &arguments.megabytes.to_string(),
    ]);
    process::succeeds(&mut command)
}
