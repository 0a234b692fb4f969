//! Machines that are snapshotted and that come from snapshots: snapshot commands, restores.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use varve_agent::protocol::{Action, Memory, MemoryReply, Request};

use crate::images::varve;
use crate::{Ended, Vm, VmBuilder, command};

/// A machine to be restored.
pub struct Restoring {
    /// The words of the command up to its options.
    verb: Vec<OsString>,
    args: Vec<OsString>,
    dir: tempfile::TempDir,
}

impl Restoring {
    /// A restore of the snapshot in a folder. The machine's sockets are in a folder of its own, so
    /// that several of them run beside each other.
    pub fn from(snapshot: &Path) -> Restoring {
        Restoring::with(["restore".into(), snapshot.into()].into())
    }

    /// A restore that is recorded to a trace file.
    pub fn recording(snapshot: &Path, trace: &Path) -> Restoring {
        let record = ["snapshot".into(), "record".into(), snapshot.into()];
        let trace = ["--trace".into(), trace.into()];
        Restoring::with(record.into_iter().chain(trace).collect())
    }

    fn with(verb: Vec<OsString>) -> Restoring {
        let dir = tempfile::Builder::new().prefix("varve-test").tempdir().unwrap();
        Restoring { verb, args: Vec::new(), dir }
    }

    /// Options, separated by blanks.
    pub fn options(mut self, options: &str) -> Self {
        self.args.extend(options.split_whitespace().map(OsString::from));
        self
    }

    /// One more argument, which may hold blanks.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The whole command.
    pub fn command(&self) -> Command {
        let mut command = Command::new(varve());
        command.args(&self.verb);
        command.arg("--vsock").arg(self.dir.path().join("v.sock"));
        command.arg("--api-sock").arg(self.dir.path().join("api.sock"));
        command.args(&self.args);
        command
    }

    /// Starts it.
    pub fn start(self) -> Vm {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(File::create(self.dir.path().join("console")).unwrap());
        Vm::spawn(command, self.dir)
    }

    /// The folder of its sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs it to its end, which must come without anybody's help.
    pub fn end(&self) -> Ended {
        command::finish(self.command())
    }
}

impl VmBuilder {
    /// With a control socket, as every restored machine has.
    pub fn controlled(self) -> Self {
        let path = self.dir().join("api.sock");
        self.option("--api-sock", path)
    }
}

impl Vm {
    /// Snapshots the machine into a folder; with more options, separated by blanks.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn snapshot(&self, options: &str, dir: &Path) {
        let end = self.try_snapshot(options, dir);
        assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{end:?}");
    }

    /// Snapshots the machine and tells how that went.
    pub fn try_snapshot(&self, options: &str, dir: &Path) -> Ended {
        self.save("create", options, dir)
    }

    /// Saves what the machine wrote since its last snapshot, and tells how that went.
    pub fn diff(&self, dir: &Path) -> Ended {
        self.save("diff", "", dir)
    }

    fn save(&self, verb: &str, options: &str, dir: &Path) -> Ended {
        let mut args: Vec<OsString> = vec!["snapshot".into(), verb.into()];
        args.extend(options.split_whitespace().map(OsString::from));
        args.extend(["--api-sock".into(), self.api().into(), dir.into()]);
        command::run(args)
    }

    /// Works on a region of the guest's memory, as [`Vm::memory`] does, by several threads.
    ///
    /// # Panics
    ///
    /// If the agent cannot do it, or finds a word that is wrong.
    pub fn memory_by(&mut self, threads: usize, name: &str, action: Action, seed: u64) {
        let threads = Some(threads);
        let request = Memory { name: name.into(), action, mib: None, seed, threads };
        if let Err(error) = self.agent().call::<MemoryReply>(&Request::Memory(request)) {
            panic!("{action:?} of {name}: {error}\n{}", self.stderr());
        }
    }

    /// Ends the monitor by a signal and returns what it printed on standard output, as JSON.
    ///
    /// # Panics
    ///
    /// If it does not end well.
    pub fn end_with_report(self) -> Value {
        self.signal("TERM");
        let end = self.wait();
        assert_eq!(end.code, Some(0), "{end:?}");
        serde_json::from_str(&end.console).unwrap_or_else(|e| panic!("{e}: {end:?}"))
    }
}

/// Runs `varve snapshot`, and returns what it printed.
///
/// # Panics
///
/// If it fails.
pub fn snapshot<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> String {
    let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    let mut all: Vec<OsString> = vec!["snapshot".into()];
    all.extend(args.iter().cloned());
    let end = command::run(all);
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{args:?}: {end:?}");
    end.console
}

/// Splits a snapshot into tiers by traces.
pub fn tier(dir: &Path, traces: &[&Path], more: &str) -> String {
    let mut args: Vec<OsString> = vec!["tier".into(), dir.into()];
    for trace in traces {
        args.extend(["--trace".into(), (*trace).into()]);
    }
    args.extend(more.split_whitespace().map(OsString::from));
    snapshot(args)
}
