//! Processes beside a machine: memory nodes and pagers, started as users start them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use varve_agent::protocol::Action;
use varve_snapshot::ManifestReader;

use crate::images::varve;
use crate::snapshots::tier;
use crate::vm::PATIENCE;
use crate::{Restoring, Vm, command, threads};

/// The lab's soft-RoCE device is at this address.
pub const RDMA_ADDRESS: &str = "10.78.0.1";
/// The key of the tests' tenant.
pub const KEY: &str = "3333333333333333333333333333333333333333333333333333333333333333";

/// A process that serves until it is killed, at the latest when this is dropped.
pub struct Service {
    process: Child,
    /// Where it listens.
    pub place: String,
    /// What it says goes into files here: nobody reads a pipe to its end.
    dir: tempfile::TempDir,
    /// Counters that were read.
    lines: usize,
}

impl Service {
    /// A memory node at a free port of an address.
    pub fn node(address: &str, keys: &Path) -> Service {
        Service::node_with(&format!("{address}:0"), keys, &[])
    }

    /// A memory node at an address and port, with more options.
    pub fn node_with(listen: &str, keys: &Path, more: &[&str]) -> Service {
        let mut node = Command::new(varve());
        node.args(["pool", "serve", "--listen", listen, "--keys"]).arg(keys).args(more);
        Service::node_by(node)
    }

    /// A memory node that a command starts.
    pub fn node_by(command: Command) -> Service {
        let mut node = Service::start(command);
        node.place = node.place.rsplit(' ').next().unwrap().to_owned();
        node
    }

    /// A pager for a snapshot, with more options.
    pub fn pager(socket: &Path, snapshot: &Path, more: &[&str]) -> Service {
        let mut pager = Command::new(varve());
        pager.arg("pager").arg("--listen").arg(socket).arg("--snapshot").arg(snapshot).args(more);
        let mut pager = Service::start(pager);
        pager.place = socket.to_str().unwrap().to_owned();
        pager
    }

    /// Waits for the line that says that it listens.
    fn start(mut command: Command) -> Service {
        let dir = tempfile::Builder::new().prefix("varve-service").tempdir().unwrap();
        let file = |name: &str| File::create(dir.path().join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        let mut process = command.spawn().unwrap();
        let line = until(|| {
            let said = fs::read_to_string(dir.path().join("err")).unwrap();
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?}: {said}");
            whole_lines(&said).find(|line| line.contains(" listens at ")).map(str::to_owned)
        });
        Service { process, place: line.trim().to_owned(), dir, lines: 0 }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What it said on standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("err")).unwrap()
    }

    /// What a pager has counted.
    pub fn counters(&mut self) -> Value {
        self.signal(Signal::USR1);
        self.lines += 1;
        let line = until(|| {
            let out = fs::read_to_string(self.dir.path().join("out")).unwrap();
            whole_lines(&out).nth(self.lines - 1).map(str::to_owned)
        });
        serde_json::from_str(&line).unwrap()
    }

    /// Ends it as users do, and returns what it said.
    pub fn end(mut self) -> String {
        self.signal(Signal::TERM);
        let status = self.process.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.said());
        self.said()
    }
}

/// Lines that are written to their end.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines()
}

/// Waits for something that comes by itself.
fn until<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() && matches!(self.process.try_wait(), Ok(None)) {
            eprintln!("the service at {}: {}", self.place, threads::of(self.process.id()));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A file with the key of the tests' tenant.
pub fn key_file(dir: &Path) -> PathBuf {
    let path = dir.join("keys");
    fs::write(&path, format!("acme {KEY}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A tiered snapshot of a machine of 96 MiB with a balloon, and with regions `hot` and `cold` of 4 MiB,
/// whose cold pages are on all of `nodes`, and not here any more.
pub fn published(dir: &Path, keys: &Path, nodes: &[Service]) {
    let mut vm =
        Vm::builder().option("--memory", "96M").option("--balloon", "size=0").controlled().start();
    for (name, seed) in [("hot", 1), ("cold", 2)] {
        vm.memory(name, Action::Allocate, 4, 0);
        vm.memory_by(1, name, Action::Fill, seed);
    }
    vm.snapshot("", dir);
    drop(vm);
    let trace = dir.join("trace");
    let mut vm = Restoring::recording(dir, &trace).options("--json").start();
    vm.memory_by(1, "hot", Action::Verify, 0);
    vm.end_with_report();
    tier(dir, &[&trace], "");
    let to: Vec<_> = nodes.iter().map(|n| n.place.as_str()).collect();
    let (to, copies) = (to.join(","), nodes.len().to_string());
    let end = command::run([
        "pool".as_ref(),
        "publish".as_ref(),
        dir.as_os_str(),
        "--to".as_ref(),
        to.as_ref(),
        "--copies".as_ref(),
        copies.as_ref(),
        "--keys".as_ref(),
        keys.as_os_str(),
    ]);
    assert_eq!(end.code, Some(0), "{end:?}");
    let cold = ManifestReader::open(dir).unwrap();
    let cold = cold.named("cold").unwrap().path(cold.folder());
    fs::remove_file(cold).unwrap();
}
