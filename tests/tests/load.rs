//! `PUT /snapshot/load`: machines from snapshots by requests alone, in a process that had none.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::pattern;
use varve_agent::protocol::{Direction, Ping, Request};
use varve_snapshot::{MANIFEST_FILE, STATE_FILE, StateFile, Trace};
use varve_tests::Vm;
use varve_tests::snapshots::tier;

const MIB: u64 = 1 << 20;

/// A snapshot that the tests share.
struct Saved {
    dir: tempfile::TempDir,
    /// The guest's clock shortly before.
    clock_ns: u64,
    at: Instant,
}

impl Saved {
    /// Of a machine with a function that has been called, a drive and a balloon.
    fn new() -> Saved {
        let dir = tempfile::Builder::new().prefix("varve-load").tempdir().unwrap();
        let drive = |name: &str, seed| {
            let mut data = vec![0; MIB as usize];
            pattern::fill(seed, 0, &mut data);
            fs::write(dir.path().join(name), data).unwrap();
        };
        drive("drive", 1);
        drive("other-drive", 2);
        let mut vm = Vm::builder()
            .option("--memory", "96M")
            .option("--drive", dir.path().join("drive"))
            .option("--balloon", "size=0")
            .controlled()
            .start();
        vm.install_function();
        vm.call_function(1);
        let clock_ns = clock(&mut vm);
        let at = Instant::now();
        vm.snapshot("", &dir.path().join("flat"));
        Saved { dir, clock_ns, at }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.at("flat").join(STATE_FILE)
    }

    fn memory(&self) -> PathBuf {
        let state = StateFile::read(&self.state()).unwrap();
        self.at("flat").join(state.memory_file.unwrap())
    }

    /// The body of a request that loads it.
    fn body(&self, vm: &Vm, backend: &str, path: &Path, more: Value) -> Value {
        let mut body = json!({
            "snapshot_path": self.state(),
            "mem_backend": { "backend_type": backend, "backend_path": path },
            "vsock_override": { "uds_path": vm.uds() },
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    /// A machine that is loaded from it.
    fn load(&self, backend: &str, path: &Path, more: Value) -> Vm {
        let vm = Vm::unconfigured("--level Info");
        vm.control("PUT", "/snapshot/load", &self.body(&vm, backend, path, more));
        vm
    }

    /// Refused; and then the process ends as Firecracker's does.
    fn fails(&self, backend: &str, path: &Path, more: Value, why: &str) {
        let vm = Vm::unconfigured("");
        let body = self.body(&vm, backend, path, more);
        let message = vm.refused("PUT", "/snapshot/load", &body);
        assert!(message.starts_with("Load snapshot error: "), "{message}");
        assert!(message.contains(why), "{message}");
        let end = vm.wait();
        assert_eq!(end.code, Some(1), "{end:?}");
        assert!(end.stderr.contains(why), "{end:?}");
    }
}

fn clock(vm: &mut Vm) -> u64 {
    vm.agent().call::<Ping>(&Request::Ping).unwrap().monotonic_ns
}

fn method(vm: &Vm) -> Value {
    vm.control("GET", "/memory", &Value::Null)["strategy"].clone()
}

fn patch_vm(vm: &Vm, state: &str) {
    vm.control("PATCH", "/vm", &json!({ "state": state }));
}

/// A page fault handler of the tests' own; killed when dropped.
struct Handler(Child, PathBuf);

impl Handler {
    fn start(saved: &Saved, name: &str, option: &[&str]) -> Handler {
        let socket = saved.at(name);
        let child = Command::new(env!("CARGO_BIN_EXE_page-handler"))
            .arg(&socket)
            .arg(saved.memory())
            .args(option)
            .stdout(Stdio::from(File::create(saved.at("handler-said")).unwrap()))
            .spawn()
            .unwrap();
        while !socket.exists() {
            thread::sleep(Duration::from_millis(2));
        }
        Handler(child, socket)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn machines_are_loaded() {
    let saved = Saved::new();
    let start = Instant::now();
    let done = |what: &str| println!("{what}, after {:.1?}", start.elapsed());
    by_file(&saved);
    done("by file");
    with_a_serial_port_of_this_host(&saved);
    done("with a serial port of this host");
    by_handler(&saved);
    done("by handler");
    by_handler_in_huge_pages(&saved);
    done("by handler, in huge pages");
    without_handler(&saved);
    done("handlers that end");
    recorded_and_tiered(&saved);
    done("recorded and tiered");
    failures(&saved);
    done("failures");
}

fn by_file(saved: &Saved) {
    let mut vm = saved.load(
        "File",
        &saved.memory(),
        json!({
            "track_dirty_pages": true,
            "drive_overrides": [{ "drive_id": "drive0", "path_on_host": saved.at("other-drive") }],
        }),
    );
    assert!(vm.console().contains("snapshot loaded in"), "{}", vm.console());
    assert_eq!(vm.control("GET", "/", &Value::Null)["state"], "Paused");
    assert_eq!(method(&vm), "lazy");
    patch_vm(&vm, "Resumed");
    vm.call_function(2);
    let drive = vm.block("vda", Direction::Read, 0, MIB, 0).unwrap();
    assert_eq!(drive.crc32, pattern::crc32(2, MIB), "not the drive of the override");
    // The clock went on from where it stood.
    let gone = Duration::from_nanos(clock(&mut vm) - saved.clock_ns);
    assert!(gone < saved.at.elapsed(), "{gone:?} of {:?}", saved.at.elapsed());
    let twice = saved.body(&vm, "File", &saved.memory(), json!({}));
    assert_eq!(
        vm.refused("PUT", "/snapshot/load", &twice),
        "The requested operation is not supported after starting the microVM."
    );
    // Its writes are tracked, so that a diff can be made.
    patch_vm(&vm, "Paused");
    let diff = json!({
        "snapshot_type": "Diff",
        "snapshot_path": saved.at("diff-state"),
        "mem_file_path": saved.at("diff-memory"),
    });
    vm.control("PUT", "/snapshot/create", &diff);
    let dirty = StateFile::read(&saved.at("diff-state")).unwrap().dirty.unwrap();
    let dirty: u64 = dirty.iter().map(|range| range.len()).sum();
    assert!((2 * MIB..48 * MIB).contains(&dirty), "{dirty} bytes in the diff");

    let passed = saved.at.elapsed();
    let mut vm = saved.load(
        "File",
        &saved.memory(),
        json!({
            "resume_vm": true,
            "clock_realtime": true,
            "restore": { "strategy": "eager" },
            "huge_pages": "Transparent",
        }),
    );
    assert!(vm.console().contains("snapshot loaded and resumed in"), "{}", vm.console());
    let gone = Duration::from_nanos(clock(&mut vm) - saved.clock_ns);
    assert!(gone >= passed, "the guest's clock went on by {gone:?}, the host's by {passed:?}");
    vm.call_function(3);
    assert_eq!(method(&vm), "eager");
    patch_vm(&vm, "Paused");
    let message = vm.refused("PUT", "/snapshot/create", &diff);
    assert!(message.contains("track_dirty_pages"), "{message}");
}

/// The serial port's file, its limit, and a CPU template may be set before, as in Firecracker.
fn with_a_serial_port_of_this_host(saved: &Saved) {
    let mut vm = Vm::unconfigured("");
    let output = saved.at("serial");
    // 64 bytes an hour.
    let limiter = json!({ "size": 64, "refill_time": 3_600_000 });
    let serial = json!({ "serial_out_path": output, "rate_limiter": limiter });
    vm.control("PUT", "/serial", &serial);
    vm.control("PUT", "/cpu-config", &json!({}));
    let body = saved.body(&vm, "File", &saved.memory(), json!({ "resume_vm": true }));
    vm.control("PUT", "/snapshot/load", &body);
    vm.sh("echo from the guest >/dev/ttyS0");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(&output).unwrap().contains("from the guest") {
        assert!(Instant::now() < deadline, "nothing comes to the file that was set");
        thread::sleep(Duration::from_millis(50));
    }
    vm.sh("head -c 1000 /dev/zero | tr '\\0' x >/dev/ttyS0");
    assert!(fs::metadata(&output).unwrap().len() <= 64, "the limit that was set does not hold");
}

fn by_handler(saved: &Saved) {
    let mut handler = Handler::start(saved, "handler", &[]);
    let mut vm = saved.load("Uffd", &handler.1, json!({ "resume_vm": true }));
    vm.call_function(4);
    assert_eq!(method(&vm), "uffd");
    // Pages that the balloon gives back are zero when they come again, and the guest lives on them.
    for (mib, counter) in [(16, "balloon_inflate"), (0, "balloon_deflate")] {
        vm.control("PATCH", "/balloon", &json!({ "amount_mib": mib }));
        let deadline = Instant::now() + Duration::from_secs(60);
        while vm.number("/proc/vmstat", counter) < 16 * MIB / 4096 {
            assert!(Instant::now() < deadline, "{counter} stands still");
            thread::sleep(Duration::from_millis(50));
        }
    }
    vm.call_function(5);
    handler.kill();
    let end = vm.wait();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("has ended; missing pages have no source"), "{end:?}");
}

fn by_handler_in_huge_pages(saved: &Saved) {
    let pool = "/proc/sys/vm/nr_hugepages";
    fs::write(pool, "52").unwrap();
    let handler = Handler::start(saved, "handler-2M", &[]);
    let mut vm = saved.load("Uffd", &handler.1, json!({ "resume_vm": true, "huge_pages": "2M" }));
    vm.call_function(7);
    // What only the handler knows is in the machine's next snapshot.
    let again = saved.at("again");
    vm.snapshot("", &again);
    drop(vm);
    fs::write(pool, "0").unwrap();
    let state = StateFile::read(&again.join(STATE_FILE)).unwrap();
    let memory = again.join(state.memory_file.unwrap());
    let more = json!({ "snapshot_path": again.join(STATE_FILE), "huge_pages": "None" });
    let mut vm = saved.load("File", &memory, more);
    patch_vm(&vm, "Resumed");
    vm.call_function(6);
}

/// A machine whose pages nobody brings any more ends, rather than to wait for ever.
fn without_handler(saved: &Saved) {
    // It closes its connection, and goes on to answer.
    let mut handler = Handler::start(saved, "handler-silent", &["--hang-up"]);
    let mut vm = saved.load("Uffd", &handler.1, json!({ "resume_vm": true }));
    vm.call_function(8);
    handler.kill();
    let end = vm.wait();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert!(end.stderr.contains("has ended; missing pages have no source"), "{end:?}");
    // Nobody listens there now.
    saved.fails(
        "Uffd",
        &handler.1,
        json!({}),
        "cannot hand guest memory to the page fault handler",
    );
}

fn recorded_and_tiered(saved: &Saved) {
    let trace = saved.at("trace");
    let record = json!({ "resume_vm": true, "record": { "trace_path": trace } });
    let mut vm = saved.load("File", &saved.memory(), record);
    vm.control("PUT", "/trace", &json!({ "action": "Mark", "label": "count 20" }));
    vm.call_function(20);
    let memory = vm.control("GET", "/memory", &Value::Null);
    assert_eq!(memory["strategy"], "record", "{memory}");
    assert!(memory["recording"]["pages"].as_u64().unwrap() > 500, "{memory}");
    vm.control("PUT", "/trace", &json!({ "action": "Save" }));
    let message = vm.refused("PUT", "/trace", &json!({ "action": "Mark", "label": "late" }));
    assert!(message.contains("has ended"), "{message}");
    drop(vm);
    let read = Trace::read(&trace).unwrap();
    assert_eq!(read.labels, ["resume", "count 20"]);

    tier(&saved.at("flat"), &[&trace], &format!("--out {}", saved.at("tiered").display()));
    let tiered = saved.at("tiered");
    let more = json!({
        "resume_vm": true,
        "restore": { "strategy": "tiered", "wait": "written", "threads": 2 },
    });
    let mut vm = saved.load("Tiered", &tiered, more);
    vm.call_function(22);
    let memory = vm.control("GET", "/memory", &Value::Null);
    assert_eq!(memory["strategy"], "tiered", "{memory}");
    assert!(memory["census"]["rw"]["private"].as_u64().unwrap() > 400, "{memory}");
    let message = vm.refused("PUT", "/trace", &json!({ "action": "Save" }));
    assert!(message.contains("not being recorded"), "{message}");
    // Without a word of the state file, as the snapshot knows its own.
    let mut vm = Vm::unconfigured("");
    let mut body = saved.body(&vm, "Tiered", &tiered, json!({ "resume_vm": true }));
    body.as_object_mut().unwrap().remove("snapshot_path");
    vm.control("PUT", "/snapshot/load", &body);
    vm.call_function(23);
    // A state file that is not the images'.
    let other = json!({ "snapshot_path": saved.at("again").join(STATE_FILE) });
    saved.fails("Tiered", &tiered, other, "content");
}

fn failures(saved: &Saved) {
    let none = saved.at("none");
    saved.fails("File", &none, json!({}), "No such file");
    saved.fails("File", &saved.memory(), json!({ "snapshot_path": none }), "No such file");
    saved.fails("File", &saved.memory(), json!({ "snapshot_path": saved.memory() }), "memory");
    saved.fails("File", &saved.at("drive"), json!({}), "drive");
    saved.fails("Tiered", &saved.at("flat"), json!({}), MANIFEST_FILE);
    let tiered = json!({ "restore": { "strategy": "tiered" } });
    saved.fails("File", &saved.memory(), tiered, "needs a tiered snapshot");
    let net = json!({ "network_overrides": [{ "iface_id": "eth9", "host_dev_name": "tap0" }] });
    saved.fails("File", &saved.memory(), net, "eth9");
    let drive = json!({ "drive_overrides": [{ "drive_id": "drive0", "path_on_host": none }] });
    saved.fails("File", &saved.memory(), drive, "drive0");

    // What is wrong with the request costs the request only.
    let mut vm = Vm::unconfigured("");
    let refused = |vm: &Vm, body: &Value| vm.refused("PUT", "/snapshot/load", body);
    let nfs = json!({ "backend_type": "Nfs", "backend_path": none });
    let message = refused(&vm, &json!({ "snapshot_path": none, "mem_backend": nfs }));
    assert!(message.contains("unknown variant `Nfs`"), "{message}");
    let message = refused(&vm, &json!({ "snapshot_path": none }));
    assert_eq!(
        message,
        "An error occurred when deserializing the json body of a request: missing field: either \
         `mem_backend` or `mem_file_path` is required."
    );
    let message = vm.refused("PUT", "/trace", &json!({ "action": "Save" }));
    let before = "The requested operation is not supported before starting the microVM.";
    assert_eq!(message, before);
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": 128 });
    vm.control("PUT", "/machine-config", &machine);
    let file = saved.body(&vm, "File", &saved.memory(), json!({}));
    assert_eq!(
        refused(&vm, &file),
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
         boot-specific resources."
    );
    assert!(vm.runs());
}
