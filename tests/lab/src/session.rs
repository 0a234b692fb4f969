//! Attending a running emulated host: its streams are passed on live, and its end is told apart:
//! the command's exit, the time limit, or a lab that failed or hangs.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use crate::ports::Ends;

/// How much of the console is kept for a failure's report, in bytes.
const TAIL: usize = 16 << 10;
/// How many of its lines are shown.
const TAIL_LINES: usize = 60;
/// Between two interrupts that the lab is sent.
const NUDGE: Duration = Duration::from_millis(250);
/// Between the command's exit code and the end of QEMU.
const ENDING: Duration = Duration::from_secs(15);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole run.
    pub run: Duration,
    /// From QEMU's start to the first sign of life.
    pub boot: Duration,
    /// Between two signs of life.
    pub silence: Duration,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this exit code.
    Exit(u8),
    /// [`Limits::run`] passed.
    TimeLimit,
    /// The lab failed.
    Failed {
        /// Why, in several lines: what was seen, and the console's last words.
        reason: String,
        /// Whether the lab had given a sign of life, of any kind.
        lived: bool,
    },
}

/// Whose bytes a stream brings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Console,
    Ctl,
    Beat,
    Out,
    Err,
}

/// A lab in progress.
#[derive(Debug)]
pub struct Session {
    child: Child,
    started: Instant,
    /// The last sign of life.
    beat: Option<Instant>,
    ctl: Vec<u8>,
    console: Vec<u8>,
    verbose: bool,
}

impl Session {
    /// Watches over `child`; `verbose` shows its console on standard error.
    pub fn new(child: Child, verbose: bool) -> Self {
        Self { child, started: Instant::now(), beat: None, ctl: vec![], console: vec![], verbose }
    }

    /// Sends the job and attends the lab to its end. Then QEMU has ended, too.
    pub fn attend(mut self, ends: Ends, job: &[u8], stdin: bool, limits: Limits) -> Result<End> {
        let end = self.pump(ends, job, stdin, limits);
        // In the normal case it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        end
    }

    fn pump(&mut self, ends: Ends, job: &[u8], stdin: bool, limits: Limits) -> Result<End> {
        let Ends { console, ctl, beat, out, err, input } = ends;
        ctl.set_write_timeout(Some(limits.boot)).context("cannot limit the wait for the lab")?;
        if let Err(error) = (&ctl).write_all(job) {
            return Ok(self.failed(&format!("the lab takes no job: {error}")));
        }
        let mut nudge = Nudge::new(&beat)?;
        let mut streams = vec![
            (Source::Console, console),
            (Source::Ctl, ctl),
            (Source::Beat, beat),
            (Source::Out, out),
            (Source::Err, err),
        ];
        let mut input = Input::new(input, stdin)?;
        let mut code_at = None;
        while !streams.is_empty() {
            let ready = wait(&streams, &input)?;
            input.serve(ready.input)?;
            nudge.serve();
            let mut index = 0;
            streams.retain_mut(|(source, stream)| {
                let is_ready = ready.streams[index];
                index += 1;
                !is_ready || self.take(*source, stream).is_some()
            });
            let now = Instant::now();
            if let Some(end) = self.said() {
                // The streams may still hold output.
                let at = *code_at.get_or_insert(now);
                if now - at > ENDING || matches!(end, End::Failed { .. }) {
                    return Ok(end);
                }
                continue;
            }
            if now - self.started > limits.run {
                return Ok(End::TimeLimit);
            }
            if let Some(reason) = self.silent(now, limits) {
                return Ok(self.failed(&reason));
            }
        }
        Ok(self.said().unwrap_or_else(|| self.failed("the lab ended without an exit code")))
    }

    /// Takes what `stream` has; `None` at its end.
    fn take(&mut self, source: Source, stream: &mut UnixStream) -> Option<()> {
        let mut buffer = [0; 64 << 10];
        let length = match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Some(()),
            // QEMU ended with bytes of ours unread.
            Err(_) => return None,
        };
        let bytes = &buffer[..length];
        match source {
            Source::Console => {
                if self.verbose {
                    let _ = io::stderr().write_all(bytes);
                }
                self.console.extend_from_slice(bytes);
                let excess = self.console.len().saturating_sub(TAIL);
                self.console.drain(..excess);
            }
            Source::Ctl => self.ctl.extend_from_slice(bytes),
            Source::Beat => self.beat = Some(Instant::now()),
            // A reader that has gone away is no reason to stop the command half-way.
            Source::Out => drop(io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())),
            Source::Err => drop(io::stderr().write_all(bytes)),
        }
        Some(())
    }

    /// What the lab's init said on the control port about the end, if it did.
    fn said(&self) -> Option<End> {
        let whole = self.ctl.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let text = String::from_utf8_lossy(&self.ctl[..whole]);
        text.lines().find_map(|line| match line.split_once(' ')? {
            ("exit", code) => code.parse().ok().map(End::Exit),
            ("fail", reason) => {
                Some(self.failed(&format!("the lab could not be set up: {reason}")))
            }
            _ => None,
        })
    }

    /// Why the lab counts as hanging.
    fn silent(&self, now: Instant, limits: Limits) -> Option<String> {
        match self.beat {
            None if now - self.started > limits.boot => Some(format!(
                "the lab gave no sign of life within {} s of its start",
                limits.boot.as_secs()
            )),
            Some(beat) if now - beat > limits.silence => {
                Some(format!("the lab hangs: no sign of life for {} s", limits.silence.as_secs()))
            }
            _ => None,
        }
    }

    fn failed(&self, reason: &str) -> End {
        let console = String::from_utf8_lossy(&self.console);
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        let reason = if tail.is_empty() {
            reason.to_owned()
        } else {
            format!("{reason}; the end of its console:\n{tail}")
        };
        End::Failed { reason, lived: self.beat.is_some() || !self.ctl.is_empty() }
    }
}

/// What can be served without waiting.
struct Ready {
    streams: Vec<bool>,
    input: bool,
}

/// Interrupts the lab now and then.
///
/// QEMU sometimes loses the request behind an interrupt that the emulated local APIC holds already,
/// most of all while a guest exits a lot: its threads change the CPU's request bits unlocked where
/// they enter and leave an SVM guest. An idle host then sleeps until there is another interrupt,
/// which delivers both.
struct Nudge {
    port: UnixStream,
    last: Instant,
}

impl Nudge {
    fn new(port: &UnixStream) -> Result<Self> {
        let port = port.try_clone().context("cannot copy a descriptor")?;
        Ok(Self { port, last: Instant::now() })
    }

    /// Sends a byte if it is time. One that is not taken is as good as sent: others wait there.
    fn serve(&mut self) {
        if self.last.elapsed() >= NUDGE {
            self.last = Instant::now();
            let _ = rustix::net::send(&self.port, b"\n", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

/// Waits until something can be served, for [`NUDGE`] at most: limits are checked in between.
fn wait(streams: &[(Source, UnixStream)], input: &Input) -> Result<Ready> {
    let mut fds: Vec<PollFd<'_>> =
        streams.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN)).collect();
    let polled = input.polled();
    if let Some((fd, flags)) = polled {
        fds.push(PollFd::from_borrowed_fd(fd, flags));
    }
    let limit = Timespec { tv_sec: 0, tv_nsec: NUDGE.subsec_nanos().into() };
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("cannot wait for the lab"),
    }
    let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let input = polled.is_some() && ready.pop() == Some(true);
    Ok(Ready { streams: ready, input })
}

/// Standard input on its way into the lab. Never blocks: a command that does not read must not
/// keep its own output from being passed on.
struct Input {
    stdin: io::Stdin,
    port: UnixStream,
    pending: Vec<u8>,
    open: bool,
}

impl Input {
    fn new(port: UnixStream, open: bool) -> Result<Self> {
        port.set_nonblocking(true).context("cannot prepare the input port")?;
        Ok(Self { stdin: io::stdin(), port, pending: vec![], open })
    }

    /// What to wait for.
    fn polled(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if !self.pending.is_empty() {
            Some((self.port.as_fd(), PollFlags::OUT))
        } else if self.open {
            Some((self.stdin.as_fd(), PollFlags::IN))
        } else {
            None
        }
    }

    fn serve(&mut self, ready: bool) -> Result<()> {
        if !ready {
            return Ok(());
        }
        if self.pending.is_empty() {
            let mut buffer = [0; 64 << 10];
            // Past the buffer of `Stdin`, which would hide bytes from poll.
            let length = rustix::io::read(&self.stdin, &mut buffer).context("standard input")?;
            self.pending.extend_from_slice(&buffer[..length]);
            if length == 0 {
                self.open = false;
                let _ = self.port.shutdown(std::net::Shutdown::Write);
            }
        }
        match self.port.write(&self.pending) {
            Ok(length) => drop(self.pending.drain(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The lab has ended; its end is told by the other streams.
            Err(_) => {
                self.pending.clear();
                self.open = false;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
