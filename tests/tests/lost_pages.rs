//! Pages that are lost while a guest runs on them: the machine ends, and says which page, image and tier.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{Action, Memory, MemoryReply, Request};
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

const FILES: [&str; 4] = ["memory", "ro", "rw", "cold"];

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

/// Cuts off what guests may have mapped.
fn truncate(dir: &Path, to: u64) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if FILES.iter().any(|start| name.starts_with(start)) {
            let file = OpenOptions::new().write(true).open(entry.path()).unwrap();
            file.set_len(to.min(file.metadata().unwrap().len())).unwrap();
        }
    }
}

/// Has the guest touch its region. Until the machine ends, the agent may or may not answer.
fn touch(vm: &Vm) {
    let Ok(stream) = connect_vsock(&vm.uds(), varve_agent::CONTROL_PORT) else { return };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let (name, action) = ("m".into(), Action::Verify);
    let verify = Memory { name, action, mib: None, seed: 0, threads: None };
    let reply = Client::new(stream).call::<MemoryReply>(&Request::Memory(verify));
    println!("{reply:?}");
}

#[test]
fn a_truncated_image_ends_the_machine() {
    let dir = folder();
    let (flat, trace) = (dir.path().join("flat"), dir.path().join("trace"));
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 8, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &flat);
    drop(vm);
    let mut vm = Restoring::recording(&flat, &trace).options("--json").start();
    vm.agent();
    vm.end_with_report();
    tier(&flat, &[&trace], "");

    for (way, to) in [
        ("--strategy lazy", 0),
        ("--strategy lazy", 16 << 20),
        ("--strategy lazy --paused", 16 << 20),
        ("--strategy lazy --tune prefault=false", 0),
        ("--strategy faasnap", 0),
        ("--strategy tiered --tune prefault=false", 0),
        ("--strategy template", 0),
    ] {
        let copy = folder();
        for entry in fs::read_dir(&flat).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let mut vm = Restoring::from(copy.path()).options(way).start();
        vm.wait_for_api();
        let paused = way.contains("paused");
        // It answers once memory is restored.
        let _ = vm.control("GET", "/memory", &Value::Null);
        if !paused {
            vm.agent();
        }
        // Here the guest itself meets the page first, or nobody does before the lengths are looked at.
        let busy = way == "--strategy lazy --tune prefault=false";
        if busy {
            vm.sh("(while :; do :; done) >/dev/null 2>&1 </dev/null &");
        }
        truncate(copy.path(), to);
        let start = Instant::now();
        while vm.runs() {
            assert!(start.elapsed() < Duration::from_secs(60), "{way}: it runs without its pages");
            if !paused && !busy {
                touch(&vm);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let end = vm.wait();
        println!("{way}, {to}: {}", end.stderr);
        assert_eq!(end.code, Some(5), "{way}: {end:?}");
        assert!(end.stderr.starts_with("varve: guest memory is lost: guest page"), "{end:?}");
        assert_eq!(end.stderr.matches("guest page").count(), 1, "{end:?}");
        assert!(end.stderr.contains("local image "), "{end:?}");
        assert!(FILES.iter().any(|name| end.stderr.contains(name)), "{end:?}");
    }
}
