//! The `varve` command run to its end, for what it says rather than for a guest.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Ended;
use crate::images::varve;
use crate::threads;

/// A command that ends by itself is through long before, under emulation as well.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs `varve` with `args`, without input.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Ended {
    let mut command = Command::new(varve());
    command.args(args);
    finish(command)
}

/// Runs a command to its end, without input. What it prints must fit into two pipes.
///
/// # Panics
///
/// If it does not end; it is killed then.
pub fn finish(mut command: Command) -> Ended {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut killed = None;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            killed = Some(threads::of(child.id()));
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut end = Ended {
        code: status.code(),
        signal: status.signal(),
        stderr: String::new(),
        console: String::new(),
    };
    child.stdout.unwrap().read_to_string(&mut end.console).unwrap();
    child.stderr.unwrap().read_to_string(&mut end.stderr).unwrap();
    if let Some(threads) = killed {
        panic!("{command:?} did not end: {end:?}\n--- threads\n{threads}");
    }
    end
}
