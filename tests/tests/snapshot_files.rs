//! Snapshots as Firecracker's clients make them: the same paths again, diffs over memory files and beside
//! them, places that were prepared, and a process that is killed in the middle.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use varve_agent::protocol::Action;
use varve_snapshot::{StateFile, data_run, verify};
use varve_tests::Vm;
use varve_tests::api::ask;

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-files").tempdir().unwrap()
}

fn booted() -> Vm {
    let mut vm =
        Vm::builder().option("--memory", "96M").arg("--track-dirty-pages").controlled().start();
    vm.memory("kept", Action::Allocate, 8, 0);
    vm.memory_by(1, "kept", Action::Fill, 8);
    vm
}

fn patch(vm: &Vm, state: &str) {
    vm.control("PATCH", "/vm", &json!({ "state": state }));
}

fn body(state: &Path, memory: &Path, kind: &str) -> Value {
    json!({ "snapshot_path": state, "mem_file_path": memory, "snapshot_type": kind })
}

/// Asks the paused machine for a snapshot; then it goes on.
fn create(vm: &Vm, state: &Path, memory: &Path, kind: &str) {
    patch(vm, "Paused");
    vm.control("PUT", "/snapshot/create", &body(state, memory, kind));
    patch(vm, "Resumed");
}

fn load_body(vm: &Vm, state: &Path, memory: &Path) -> Value {
    json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "File", "backend_path": memory },
        "vsock_override": { "uds_path": vm.uds() },
        "track_dirty_pages": true,
        "resume_vm": true,
    })
}

fn load(state: &Path, memory: &Path) -> Vm {
    let mut vm = Vm::unconfigured("");
    vm.control("PUT", "/snapshot/load", &load_body(&vm, state, memory));
    vm.memory_by(1, "kept", Action::Verify, 0);
    vm
}

#[test]
fn diffs_as_firecrackers_clients_make_them() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let mut vm = booted();
    // The first diff of a machine that booted holds all of it.
    create(&vm, &at("first"), &at("first.mem"), "Diff");
    drop(load(&at("first"), &at("first.mem")));

    create(&vm, &at("base"), &at("base.mem"), "Full");
    fs::copy(at("base.mem"), at("merged.mem")).unwrap();
    vm.memory_by(1, "kept", Action::Rewrite, 5);
    create(&vm, &at("diff"), &at("diff.mem"), "Diff");
    // Alone it is not enough, and that is seen.
    let other = Vm::unconfigured("");
    let alone = load_body(&other, &at("diff"), &at("diff.mem"));
    let message = other.refused("PUT", "/snapshot/load", &alone);
    assert!(message.contains("holds only the pages written since its base"), "{message}");
    drop(other);
    // The client lays it over a copy of its base.
    let (diff, merged) = (
        File::open(at("diff.mem")).unwrap(),
        File::options().write(true).open(at("merged.mem")).unwrap(),
    );
    let len = diff.metadata().unwrap().len();
    let mut from = 0;
    while let Some((start, end)) = data_run(&diff, from, len).unwrap() {
        let mut data = vec![0; (end - start) as usize];
        diff.read_exact_at(&mut data, start).unwrap();
        merged.write_all_at(&data, start).unwrap();
        from = end;
    }
    drop(load(&at("diff"), &at("merged.mem")));

    // Or has the next one written over it: it holds the base's pages, too.
    vm.memory_by(1, "kept", Action::Rewrite, 6);
    create(&vm, &at("full"), &at("full.mem"), "Full");
    vm.memory_by(1, "kept", Action::Rewrite, 7);
    create(&vm, &at("over"), &at("full.mem"), "Diff");
    let state = StateFile::read(&at("over")).unwrap();
    assert!(state.dirty.is_none() && state.sums.is_some());
    let mut copy = load(&at("over"), &at("full.mem"));
    copy.memory_by(1, "kept", Action::Rewrite, 8);
    create(&copy, &at("again"), &at("full.mem"), "Diff");
    drop((vm, copy));
    drop(load(&at("again"), &at("full.mem")));
}

/// Paths are what they are called, again and again; prepared files are written, whatever they are.
#[test]
fn paths_are_taken_literally() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let vm = booted();
    for _ in 0..3 {
        create(&vm, &at("state"), &at("memory"), "Full");
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["memory", "state"]);
    }
    drop(load(&at("state"), &at("memory")));
    let report = verify(dir.path()).unwrap();
    assert!(report.problems.is_empty() && report.unchecked.is_empty(), "{report:?}");

    fs::create_dir(at("far")).unwrap();
    fs::write(at("far/memory"), "").unwrap();
    std::os::unix::fs::symlink("far/memory", at("link")).unwrap();
    create(&vm, &at("second"), &at("link"), "Full");
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    drop(load(&at("second"), &at("link")));

    // What cannot be written costs nothing of what is there, and does not keep anybody waiting.
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    patch(&vm, "Paused");
    for (state, memory) in [("state", "fifo"), ("fifo", "memory"), ("far", "memory")] {
        let body = body(&at(state), &at(memory), "Full");
        let message = vm.refused("PUT", "/snapshot/create", &body);
        assert!(message.contains("regular file") || message.contains("folder"), "{message}");
    }
    patch(&vm, "Resumed");
    drop(load(&at("state"), &at("memory")));

    // Files that are mounted cannot be replaced.
    let mounted: Vec<PathBuf> = ["in-state", "in-memory"].map(at).into();
    for (target, name) in mounted.iter().zip(["out-state", "out-memory"]) {
        fs::write(at(name), "").unwrap();
        fs::write(target, "").unwrap();
        let mount = Command::new("mount").arg("--bind").arg(at(name)).arg(target).status();
        assert!(mount.unwrap().success());
    }
    let inode = fs::metadata(&mounted[1]).unwrap().ino();
    for _ in 0..2 {
        create(&vm, &mounted[0], &mounted[1], "Full");
        drop(load(&at("out-state"), &at("out-memory")));
    }
    assert_eq!(fs::metadata(&mounted[1]).unwrap().ino(), inode);
    for target in &mounted {
        assert!(Command::new("umount").arg(target).status().unwrap().success());
    }
}

/// Killed at every rename and sync while it replaces a snapshot: the next process loads one.
#[test]
fn killed_while_a_snapshot_is_replaced() {
    if Command::new("strace").arg("-V").output().is_err() {
        return println!("skipped: strace is missing (apt-get install strace)");
    }
    let dir = folder();
    let (state, memory) = (dir.path().join("state"), dir.path().join("memory"));
    create(&booted(), &state, &memory, "Full");
    for call in ["rename,renameat,renameat2", "fsync,fdatasync"] {
        let mut ended = false;
        for when in 1..20 {
            let vm = load(&state, &memory);
            patch(&vm, "Paused");
            let mut strace = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-p", &vm.pid().to_string()])
                .args(["-e", &format!("trace={call}")])
                .args(["-e", &format!("inject={call}:signal=KILL:when={when}")])
                .spawn()
                .unwrap();
            let status = format!("/proc/{}/status", vm.pid());
            while !fs::read_to_string(&status)
                .unwrap()
                .lines()
                .any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
            {
                thread::sleep(Duration::from_millis(10));
            }
            let request = body(&state, &memory, "Full");
            let answer = ask(&vm.api(), "PUT", "/snapshot/create", &request);
            ended = answer.is_ok_and(|(status, _)| status == 204);
            drop(vm);
            strace.wait().unwrap();
            if ended {
                assert!(when > 3, "{call}: nothing was asked of the file system");
                break;
            }
        }
        assert!(ended, "{call}: killed again and again");
    }
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["memory", "state"], "what was left was cleaned");
    drop(load(&state, &memory));
}
