//! A machine that is snapshotted and restored goes on as if nothing had happened.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::client::connect_vsock;
use varve_agent::frame::write_line;
use varve_agent::protocol::{Action, Direction, How, Ping, Request, Stream};
use varve_agent::{STREAM_PORT, pattern};
use varve_tests::snapshots::snapshot;
use varve_tests::{Restoring, Vm};

const MIB: u64 = 1 << 20;
/// Prints a line every second on the serial console.
const TICKER: &str = "while sleep 1; do echo tick; done >/dev/ttyS0 2>&1 </dev/null &";

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

fn ping(vm: &mut Vm) -> Ping {
    vm.agent().call(&Request::Ping).unwrap()
}

/// Waits for so many more lines of the ticker.
fn wait_for_ticks(vm: &Vm, more: usize) {
    let ticks = || vm.console().matches("tick").count();
    let (start, before) = (Instant::now(), ticks());
    while ticks() < before + more {
        assert!(start.elapsed() < Duration::from_secs(60), "no ticks: {}", vm.console());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that a machine does, on all of its CPUs.
fn is_well(vm: &mut Vm, cpus: usize) {
    // Each CPU has a timer of its own, and takes work.
    for cpu in 0..cpus {
        let before = ping(vm).monotonic_ns;
        vm.sh(&format!("taskset {:x} sleep 0.3", 1 << cpu));
        let slept = Duration::from_nanos(ping(vm).monotonic_ns - before);
        assert!(slept >= Duration::from_millis(300), "CPU {cpu} slept for {slept:?}");
        assert!(slept < Duration::from_secs(30), "CPU {cpu} slept for {slept:?}");
    }
    assert_eq!(vm.info().cpus, cpus);
    let mut stream = connect_vsock(&vm.uds(), STREAM_PORT).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write_line(&mut stream, &Stream::Echo { bytes: Some(100_000) }).unwrap();
    let mut sent = vec![0; 100_000];
    pattern::fill(5, 0, &mut sent);
    stream.write_all(&sent).unwrap();
    let mut came = vec![0; 100_000];
    stream.read_exact(&mut came).unwrap();
    assert!(came == sent, "what came back on a stream is not what was sent");
    wait_for_ticks(vm, 1);
}

/// Sockets that the guest has open, as soon as their number stays the same.
fn sockets(vm: &mut Vm) -> usize {
    let mut count = || vm.sh("ls -l /proc/[0-9]*/fd 2>/dev/null; true").matches("socket:").count();
    let (mut last, mut now) = (usize::MAX, count());
    while last != now {
        thread::sleep(Duration::from_millis(300));
        (last, now) = (now, count());
    }
    now
}

fn reads(vm: &mut Vm, seed: u64) {
    let read = vm.block("vda", Direction::Read, 0, MIB, 0).unwrap();
    assert_eq!(read.crc32, pattern::crc32(seed, MIB), "the drive does not hold seed {seed}");
}

fn writes(vm: &mut Vm, seed: u64) {
    vm.block("vda", Direction::Write, 0, MIB, seed).unwrap();
    reads(vm, seed);
}

#[test]
fn goes_on_with_one_vcpu() {
    goes_on(1);
}

#[test]
fn goes_on_with_four_vcpus() {
    goes_on(4);
}

/// A machine, snapshots of it, restores of those, and a restore of a restore.
fn goes_on(cpus: usize) {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("drive"), vec![0; 2 * MIB as usize]).unwrap();
    let mut vm = Vm::builder()
        .option("--memory", "96M")
        .option("--vcpus", cpus.to_string())
        .option("--drive", at("drive"))
        .controlled()
        .start();
    vm.sh(TICKER);
    vm.memory("m", Action::Allocate, 16, 0);
    vm.memory_by(cpus, "m", Action::Fill, 1);
    writes(&mut vm, 1);
    is_well(&mut vm, cpus);

    let without = sockets(&mut vm);
    // A stream that is open at the snapshot: it stays for the machine, its copies reset it.
    let mut stream = connect_vsock(&vm.uds(), STREAM_PORT).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write_line(&mut stream, &Stream::Echo { bytes: None }).unwrap();
    let mut echo = |text: &[u8; 4]| {
        let mut came = [0; 4];
        stream.write_all(text).unwrap();
        stream.read_exact(&mut came).unwrap();
        assert_eq!(&came, text);
    };
    echo(b"one.");
    assert_eq!(sockets(&mut vm), without + 1);
    let before = ping(&mut vm);
    vm.snapshot("", &at("first"));
    fs::copy(at("drive"), at("drive-first")).unwrap();
    echo(b"two.");
    is_well(&mut vm, cpus);
    // The machine's own way from here on is not the snapshot's.
    writes(&mut vm, 2);
    vm.memory_by(cpus, "m", Action::Rewrite, 2);
    vm.snapshot("", &at("second"));
    echo(b"tri.");
    vm.memory_by(1, "m", Action::Verify, 0);
    drop(vm);

    let restore = |from: &str, drive: &str| {
        Restoring::from(&at(from)).arg("--drive").arg(format!("drive0={}", at(drive).display()))
    };
    // Both snapshots at once.
    let mut first = restore("first", "drive-first").start();
    let mut second = restore("second", "drive").start();
    for (vm, seed) in [(&mut first, 1), (&mut second, 2)] {
        assert_eq!(sockets(vm), without, "the old stream was not reset");
        vm.memory_by(cpus, "m", Action::Verify, 0);
        reads(vm, seed);
        is_well(vm, cpus);
    }
    // Time went on from where it was, not from the host's.
    let after = ping(&mut first);
    assert!(after.monotonic_ns > before.monotonic_ns, "{before:?} {after:?}");
    let gone = Duration::from_nanos(after.monotonic_ns - before.monotonic_ns);
    assert!(gone < Duration::from_secs(120), "{gone:?}");
    drop(second);

    // A restore of a restore, twice in a row.
    for round in 10..12 {
        first.memory_by(cpus, "m", Action::Rewrite, round);
        writes(&mut first, round);
        first.snapshot("", &at("again"));
        drop(first);
        first = restore("again", "drive-first").options("--strategy lazy").start();
        first.memory_by(cpus, "m", Action::Verify, 0);
        reads(&mut first, round);
        is_well(&mut first, cpus);
    }
    first.power(How::Poweroff);
    let end = first.wait();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: guest power-off\n"), "{end:?}");
}

#[test]
fn two_machines_of_one_snapshot_share_nothing() {
    let dir = folder();
    let at = dir.path().join("snapshot");
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.memory("m", Action::Allocate, 8, 0);
    vm.memory_by(1, "m", Action::Fill, 1);
    vm.snapshot("", &at);
    vm.power(How::Poweroff);
    vm.wait();
    let mut machines = [2, 3].map(|seed| (seed, Restoring::from(&at).start()));
    for (seed, vm) in &mut machines {
        vm.memory_by(2, "m", Action::Rewrite, *seed);
    }
    for (_, vm) in &mut machines {
        vm.memory_by(1, "m", Action::Verify, 0);
    }
    // The snapshot is not a machine's that came from it.
    drop(machines);
    Restoring::from(&at).start().memory_by(1, "m", Action::Verify, 0);
    assert!(snapshot(["verify".as_ref(), at.as_os_str()]).contains("no problem found"));
}

#[test]
fn paused_until_told_and_snapshotted_paused() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.sh(TICKER);
    wait_for_ticks(&vm, 1);
    vm.snapshot("--keep-paused", &at("a"));
    let state = |vm: &Vm| vm.control("GET", "/", &Value::Null)["state"].clone();
    let stands = |vm: &Vm| {
        assert_eq!(state(vm), "Paused");
        let before = vm.console();
        thread::sleep(Duration::from_secs(3));
        assert_eq!(vm.console(), before, "a paused machine prints");
    };
    stands(&vm);
    vm.snapshot("--keep-paused", &at("b"));
    // Nothing ran in between: the two are equal.
    assert!(fs::read(memory_file(&at("a"))).unwrap() == fs::read(memory_file(&at("b"))).unwrap());
    vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
    wait_for_ticks(&vm, 1);
    assert_eq!(state(&vm), "Running");
    drop(vm);

    let mut vm = Restoring::from(&at("a")).options("--paused").start();
    vm.wait_for_api();
    stands(&vm);
    vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
    wait_for_ticks(&vm, 1);
}

#[test]
fn a_diff_holds_what_was_written_and_merges() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let mut vm = Vm::builder()
        .option("--memory", "96M")
        .option("--vcpus", "2")
        .arg("--track-dirty-pages")
        .controlled()
        .start();
    for (name, mib) in [("kept", 16), ("changed", 4)] {
        vm.memory(name, Action::Allocate, mib, 0);
        vm.memory_by(2, name, Action::Fill, mib);
    }
    vm.snapshot("", &at("base"));
    for round in 1..=2 {
        vm.memory_by(2, "changed", Action::Rewrite, 100 + round);
        let end = vm.diff(&at("diff"));
        assert_eq!(end.code, Some(0), "{end:?}");
        let stored = stored_bytes(&memory_file(&at("diff")));
        // What was rewritten, and what the guest needs to do so; not what stayed.
        assert!((4 * MIB..10 * MIB).contains(&stored), "a diff of {stored} bytes");
        let end = Restoring::from(&at("diff")).end();
        assert_eq!(end.code, Some(1), "{end:?}");
        assert!(end.stderr.contains("holds only the pages written since its base"), "{end:?}");
        let merged = at(&format!("merged{round}"));
        let base = if round == 1 { at("base") } else { at("merged1") };
        snapshot(["merge".into(), base, at("diff"), "--out".into(), merged.clone()]);
        let mut copy = Restoring::from(&merged).start();
        copy.memory_by(2, "kept", Action::Verify, 0);
        copy.memory_by(2, "changed", Action::Verify, 0);
        assert_eq!(copy.info().cpus, 2);
    }
    // A diff of a machine that was restored, into its base, in place.
    let mut vm = Restoring::from(&at("merged2")).options("--strategy eager").start();
    vm.memory_by(1, "kept", Action::Rewrite, 7);
    let end = vm.diff(&at("diff"));
    assert_eq!(end.code, Some(0), "{end:?}");
    drop(vm);
    snapshot(["merge".into(), at("merged2"), at("diff")]);
    let mut vm = Restoring::from(&at("merged2")).start();
    vm.memory_by(1, "kept", Action::Verify, 0);
    vm.memory_by(1, "changed", Action::Verify, 0);
}

#[test]
fn a_diff_needs_tracking() {
    let dir = folder();
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    vm.info();
    let end = vm.diff(&dir.path().join("diff"));
    assert_eq!(end.code, Some(1), "{end:?}");
    assert_eq!(
        end.stderr,
        "varve: error: Create snapshot error: a diff snapshot needs track_dirty_pages (--track-dirty-pages), which this \
         machine was started without (status 400)\n"
    );
    // It left nothing, and the machine goes on.
    assert_eq!(files(dir.path()), [""; 0]);
    vm.info();
}

/// The raw memory file of a snapshot's folder, which its state file names.
fn memory_file(dir: &Path) -> std::path::PathBuf {
    let names = files(dir);
    let mut memory = names.iter().filter(|name| name.starts_with("memory"));
    let name = memory.next().unwrap_or_else(|| panic!("{names:?}"));
    assert_eq!(memory.next(), None, "{names:?}");
    dir.join(name)
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn stored_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}
