//! Settings that come through pipes, and names of what holds no settings.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

/// Generous: the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: [&str; 2] = ["--no-api", "--config-file"];
/// What the error about this text says proves that it was read.
const TEXT: &str = r#"{"sent-through-a-pipe": 1}"#;

fn start(options: &[&str], path: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varve"));
    command.args(options).arg(path).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn fifo(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("fifo");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    path
}

fn words(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn pipes_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(&dir);
    let child = start(&CONFIG, &fifo);
    std::fs::write(&fifo, TEXT).unwrap();
    let said = words(child);
    assert!(said.contains("sent-through-a-pipe"), "{said}");

    for path in ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"] {
        let mut child = start(&CONFIG, Path::new(path));
        child.stdin.take().unwrap().write_all(TEXT.as_bytes()).unwrap();
        let said = words(child);
        assert!(said.contains("sent-through-a-pipe"), "{path}: {said}");
    }
}

#[test]
fn signals_end_the_wait_for_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(&dir);
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = start(&CONFIG, &fifo);
        let pid = Pid::from_child(&child);
        let start = Instant::now();
        // It waits in open(2), or is on the way there.
        thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "it does not wait");
        kill_process(pid, signal).unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "{signal:?} does not end it");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_has_no_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let metadata = ["--api-sock", socket.to_str().unwrap(), "--metadata"];
    for options in [CONFIG.as_slice(), &metadata] {
        let said = words(start(options, Path::new("/dev/zero")));
        assert!(said.contains("/dev/zero") && said.contains("longer than 16 MiB"), "{said}");
    }
}
