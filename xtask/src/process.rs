//! Running other programs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs a command with our own output, saying what it is; an error unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    ensure!(succeeds(command)?, "{} failed", shown(command));
    Ok(())
}

/// Runs a command with our own output, saying what it is; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    eprintln!("+ {}", shown(command));
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    Ok(status.success())
}

/// Runs a command, passing its standard output on line by line and to `each_line`; whether it succeeded.
pub(crate) fn tee(command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<bool> {
    eprintln!("+ {}", shown(command));
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {}", shown(command)))?;
    let stdout = child.stdout.take().context("the child has no standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read the child's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        each_line(&line);
    }
    Ok(child.wait().context("wait for the child")?.success())
}

/// The command as a person would type it, shortened.
fn shown(command: &Command) -> String {
    const SHOWN_BYTES_MAX: usize = 300;
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let mut line = words.join(" ");
    if line.len() > SHOWN_BYTES_MAX {
        let end = (0..=SHOWN_BYTES_MAX).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}
