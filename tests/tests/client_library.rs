//! A client library that was written for Firecracker, as it is published, leads varve's machines
//! through their life: it starts the process, configures, boots, pauses, saves, and restores into a
//! process of another machine.
//!
//! It is bandsox, from PyPI; versions are in `tests/clients/requirements.txt`, `make clients` installs
//! it. All steps but one are functions of its own: the boot source goes through its request function,
//! because its `put_boot_source` knows no initrd, for which reason its all-in-one `configure` is not used
//! either. Drives have the `io_engine` that it asks for unasked, Async.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use varve_agent::CONTROL_PORT;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{Action, Info, Memory, MemoryReply, Request};
use varve_tests::images::{image, root, varve};
use varve_tests::vm::{CMDLINE, PATIENCE};

/// The script that uses the library.
struct Script {
    child: Child,
    steps: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Script {
    /// Starts it; the first thing it does is to boot a machine.
    fn start(folder: &Path) -> Script {
        let library = root().join("target/clients");
        assert!(library.join("bandsox").exists(), "no client library: run 'make clients'");
        let file = |name: &str, path: &Path| {
            let mut word = OsString::from(format!("{name}="));
            word.push(path);
            word
        };
        let mut child = Command::new("/usr/bin/python3")
            .arg(root().join("tests/clients/lifecycle.py"))
            .arg(file("folder", folder))
            .arg(file("binary", &varve()))
            .arg(file("kernel", &image("vmlinux")))
            .arg(file("initrd", &image("initramfs-tools.cpio")))
            .arg(file("rootfs", &image("functions.ext4")))
            .arg(format!("boot_args={CMDLINE}"))
            .env("PYTHONPATH", library)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let steps = child.stdin.take();
        let mut script = Script { child, steps, answers };
        script.answer("boot");
        script
    }

    fn answer(&mut self, step: &str) {
        let line = self.answers.next().unwrap_or_else(|| panic!("the script ended in {step:?}"));
        assert_eq!(line.unwrap(), step);
    }

    fn step(&mut self, step: &str) {
        writeln!(self.steps.as_ref().unwrap(), "{step}").unwrap();
        self.answer(step);
    }

    /// Ends it, and the machine with it.
    fn end(mut self) {
        self.steps = None;
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // At the end of its input it stops the machine, also where the test has failed.
        self.steps = None;
        let _ = self.child.wait();
    }
}

fn agent(uds: &Path) -> Client<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(stream) = connect_vsock(uds, CONTROL_PORT) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            return Client::new(stream);
        }
        assert!(Instant::now() < deadline, "the agent does not answer");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_machines_life_by_a_library_for_firecracker() {
    let folder = tempfile::Builder::new().prefix("varve-test").tempdir().unwrap();
    let uds = folder.path().join("v.sock");
    let mut script = Script::start(folder.path());
    let memory = |action: Action| {
        let mib = (action == Action::Allocate).then_some(8);
        let region = Memory { name: "kept".into(), action, mib, seed: 11, threads: None };
        let _: MemoryReply = agent(&uds).call(&Request::Memory(region)).unwrap();
    };
    let info: Info = agent(&uds).call(&Request::Info).unwrap();
    assert_eq!((info.cpus, info.cid), (1, Some(3)));
    let drives: Vec<_> = info.block.iter().map(|d| (d.serial.as_deref(), d.read_only)).collect();
    assert_eq!(drives, [(Some("rootfs"), true)]);
    script.step("refused");
    memory(Action::Allocate);
    memory(Action::Fill);

    script.step("snapshot");
    memory(Action::Free);
    script.step("restore");
    // The second machine has what the first had when it was saved, and has since given away.
    memory(Action::Verify);
    let restored: Info = agent(&uds).call(&Request::Info).unwrap();
    assert_eq!(restored.block, info.block);
    script.end();
    assert!(!folder.path().join("second.sock").exists(), "the monitor runs on");
}
