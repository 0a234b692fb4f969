//! Running a command-line tool and keeping what it said; which tools are run is the callers' business.

use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// How much of a failed tool's standard error is worth repeating, in lines.
const STDERR_LINES: usize = 6;

/// Runs `command` to its end and returns what it wrote to its standard output.
///
/// `package` is the Debian package that has the tool, named when it cannot be started.
pub fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program: name, package, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    Err(Error::Tool {
        command: line.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
        status: output.status,
        stderr: lines[lines.len().saturating_sub(STDERR_LINES)..].join("; "),
    })
}

/// [`run`], for a tool whose output is text.
pub fn run_text(command: &mut Command, package: &'static str) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command, package)?).into_owned())
}
