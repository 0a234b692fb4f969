//! `exec`: runs a command with a time limit and keeps what it says, up to a limit.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use varve_agent::protocol::{Exec, ExecReply};

use super::poll;

const DEFAULT_TIMEOUT_S: f64 = 60.0;
/// Each output is kept up to here, in bytes; JSON may make six out of one.
const KEEP: usize = 2 << 20;

/// Runs a command to its end.
///
/// Its outputs are those written until it ended: what children that it left behind write later is
/// not waited for.
pub fn run(request: &Exec) -> Result<ExecReply> {
    let (program, arguments) = request.argv.split_first().context("argv is empty")?;
    let deadline = poll::deadline(request.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program:?}"))?;
    let (mut stdout, mut stderr) = (Output::default(), Output::default());
    let group = Pid::from_child(&child);
    let finished = follow(&mut child, request.stdin.as_bytes(), deadline, &mut stdout, &mut stderr);
    if !matches!(finished, Ok(true)) {
        // It may have ended by itself in between.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    let timed_out = !finished?;
    Ok(ExecReply {
        code: status.code(),
        signal: status.signal(),
        timed_out,
        truncated: stdout.cut || stderr.cut,
        stdout: stdout.text(),
        stderr: stderr.text(),
    })
}

/// Feeds the child and takes what it says until it ends; false when time is up first.
fn follow(
    child: &mut Child,
    mut input: &[u8],
    deadline: std::time::Instant,
    out: &mut Output,
    err: &mut Output,
) -> Result<bool> {
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let pipes = [
        stdin.as_ref().map(AsFd::as_fd),
        stdout.as_ref().map(AsFd::as_fd),
        stderr.as_ref().map(AsFd::as_fd),
    ];
    for pipe in pipes.into_iter().flatten() {
        rustix::io::ioctl_fionbio(pipe, true)?;
    }
    loop {
        if input.is_empty() {
            stdin = None;
        }
        let wanted = [
            Some((end.as_fd(), PollFlags::IN)),
            stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::OUT)),
            stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)),
        ];
        let Some([ended, writable, _, _]) = poll::ready(wanted, deadline)? else {
            return Ok(false);
        };
        if writable && let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(count) => input = &input[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It does not want to read more.
                Err(_) => input = &[],
            }
        }
        out.take(&mut stdout)?;
        err.take(&mut stderr)?;
        if ended {
            return Ok(true);
        }
    }
}

/// What came out of one pipe.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    cut: bool,
}

impl Output {
    /// Takes all that is there now, and drops the pipe at its end.
    fn take<P: Read>(&mut self, pipe: &mut Option<P>) -> io::Result<()> {
        let Some(reader) = pipe else { return Ok(()) };
        let mut buffer = [0; 16384];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => {
                    *pipe = None;
                    return Ok(());
                }
                Ok(count) => {
                    let kept = count.min(KEEP - self.bytes.len());
                    self.bytes.extend_from_slice(&buffer[..kept]);
                    self.cut |= kept < count;
                    // A pipe that never runs dry must not keep others waiting.
                    if count < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
