//! Starting `varve-lab` from tests, which prepares the lab once.
#![allow(clippy::unwrap_used, reason = "these are steps of tests, which fail by panic")]
#![allow(dead_code, reason = "no file of tests uses all of it")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use rustix::process::Pid;
use varve_lab::place::Place;

const PROGRAM: &str = env!("CARGO_BIN_EXE_varve-lab");

/// A run of `varve-lab` in the making.
pub struct Lab {
    command: Command,
    input: Vec<u8>,
}

impl Lab {
    /// `varve-lab run` with `options`, in a lab that is prepared.
    pub fn run(options: &[&str]) -> Self {
        Self::prepared(&["run"], options)
    }

    /// `varve-lab exec`.
    pub fn exec() -> Self {
        Self::prepared(&["exec"], &[])
    }

    fn prepared(action: &[&str], options: &[&str]) -> Self {
        static PREPARED: OnceLock<()> = OnceLock::new();
        PREPARED.get_or_init(|| {
            let output = Command::new(PROGRAM).arg("setup").output().unwrap();
            assert!(output.status.success(), "the lab can not be prepared: {output:?}");
        });
        let mut command = Command::new(PROGRAM);
        command.args(action).args(options).arg("--");
        Self { command, input: vec![] }
    }

    /// Any command line of `varve-lab`, with a lab folder of its own.
    pub fn unprepared(words: &[&str], dir: &Path) -> Output {
        Command::new(PROGRAM).args(words).env("VARVE_LAB_DIR", dir).output().unwrap()
    }

    /// The lab's folder.
    pub fn dir() -> PathBuf {
        Place::find().unwrap().dir().to_owned()
    }

    pub fn at(mut self, dir: &Path) -> Self {
        self.command.env("VARVE_LAB_DIR", dir);
        self
    }

    pub fn folder(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn input(mut self, bytes: &[u8]) -> Self {
        self.input = bytes.to_vec();
        self
    }

    /// Runs a shell script to its end.
    pub fn sh(self, script: &str) -> Output {
        self.command(&["sh", "-c", script])
    }

    /// Runs a command to its end.
    pub fn command(mut self, words: &[&str]) -> Output {
        self.command.args(words).stdin(Stdio::piped());
        let mut child = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input;
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Starts a shell script.
    pub fn start(mut self, script: &str) -> Child {
        self.command.args(["sh", "-c", script]).stdin(Stdio::null());
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads the standard output of `child` until `line` comes, and leaves the rest.
pub fn wait_for_line(child: &mut Child, line: &str) {
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said.trim_end(), line);
}

/// The process that `parent` started.
pub fn only_child(parent: u32) -> Pid {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(children.len(), 1);
    Pid::from_raw(children[0]).unwrap()
}

/// Whether a process has ended, though it may still wait for its parent.
pub fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}
