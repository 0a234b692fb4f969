//! What a restored machine has of its processor and clock: what a booted one has.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use varve_skip::skipped;
use varve_snapshot::{STATE_FILE, StateFile};
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

/// Every strategy, and the ways in which stage-2 is filled: beside the guest, before it, not at all.
const WAYS: [&str; 10] = [
    "--strategy lazy",
    "--strategy eager",
    "--strategy reap",
    "--strategy faasnap",
    "--strategy tiered",
    "--strategy template",
    "--strategy auto",
    "--strategy tiered --wait all --tune threads=2",
    "--strategy template --cold paged --wait written",
    "--strategy tiered --tune prefault=false",
];

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

fn machine(vcpus: u8) -> Vm {
    let builder = Vm::builder().option("--memory", "96M").option("--vcpus", vcpus.to_string());
    let mut vm = builder.controlled().start();
    vm.agent();
    vm
}

fn clock_is_stable(vm: &Vm) -> bool {
    vm.control("GET", "/memory", &Value::Null)["clock_is_stable"].as_bool().unwrap()
}

/// KVM's own word: the clock that the guest reads without a system call.
#[test]
fn the_guests_clock_is_stable_after_every_restore() {
    for vcpus in [1, 2] {
        let dir = folder();
        let (snapshot, trace) = (dir.path().join("snapshot"), dir.path().join("trace"));
        let vm = machine(vcpus);
        if !clock_is_stable(&vm) {
            return skipped(
                "clock",
                "the guest's clock after restores",
                "this host's clock is not its TSC",
            );
        }
        vm.snapshot("", &snapshot);
        drop(vm);
        let stable = |restoring: Restoring, way: &str| {
            let mut vm = restoring.start();
            vm.wait_for_api();
            let at_once = clock_is_stable(&vm);
            vm.agent();
            // Until all vCPUs have run.
            vm.sh("for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu true; done");
            let running = clock_is_stable(&vm);
            assert!(at_once && running, "{vcpus} vCPUs, {way}: {at_once}, {running}");
            assert!(!vm.stderr().contains("clock"), "{}", vm.stderr());
            vm
        };
        stable(Restoring::from(&snapshot), "flat");
        for how in ["faults", "pagemap", "mincore"] {
            let by = format!("--by {how} --json");
            let vm = stable(Restoring::recording(&snapshot, &trace).options(&by), how);
            let report = vm.end_with_report();
            assert_eq!(report["clock_is_stable"], true, "{report}");
        }
        tier(&snapshot, &[&trace], "");
        for way in WAYS {
            stable(Restoring::from(&snapshot).options(way), way);
        }
        // Saved again, and again.
        let again = dir.path().join("again");
        stable(Restoring::from(&snapshot), "auto").snapshot("", &again);
        stable(Restoring::from(&again), "a restored machine's snapshot");
    }
}

/// The vCPUs of a snapshot, each as JSON: what differs from one restore to the next is left out.
fn vcpus(dir: &Path) -> Vec<Value> {
    let file = StateFile::read(&dir.join(STATE_FILE)).unwrap();
    let (_, machine) = varve_vmm::snapshot::load(file).unwrap();
    let mut machine = machine.vcpus;
    for vcpu in &mut machine {
        // Time goes on: the counter itself, and Hyper-V's.
        [0x10, 0x4000_0010, 0x4000_0020].into_iter().for_each(|msr| vcpu.set_msr(msr, 0));
        // AMD has 32 bits of IA32_SYSENTER_ESP and _EIP.
        for msr in [0x175, 0x176] {
            let value = vcpu.msr(msr).unwrap();
            vcpu.set_msr(msr, value & 0xffff_ffff);
        }
        // Interrupts that are pending: devices tell of the restore.
        vcpu.lapic().regs[0x200..0x280].fill(0);
    }
    machine.iter().map(|vcpu| json!(vcpu)).collect()
}

#[test]
fn a_restored_processor_is_the_one_that_was_saved() {
    let dir = folder();
    let saved = dir.path().join("saved");
    machine(2).snapshot("", &saved);
    for (way, restoring) in [
        ("restored", Restoring::from(&saved)),
        ("recorded", Restoring::recording(&saved, &dir.path().join("trace"))),
    ] {
        let mut vm = restoring.options("--paused").start();
        vm.wait_for_api();
        let again = dir.path().join(way);
        vm.snapshot("--keep-paused", &again);
        let (before, after) = (vcpus(&saved), vcpus(&again));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            for (name, value) in before.as_object().unwrap() {
                assert!(*value == after[name], "{way} {name}: {value}\n{}", after[name]);
            }
        }
    }
}

/// A guest that stood still is told of it: its watchdog does not take that for a lockup.
#[test]
fn a_pause_is_no_lockup() {
    let mut vm = machine(1);
    // A processor that does not reschedule for two seconds is locked up.
    vm.sh("echo 1 >/proc/sys/kernel/watchdog_thresh; (while :; do :; done) >/dev/null 2>&1 &");
    thread::sleep(Duration::from_secs(4));
    for _ in 0..2 {
        vm.control("PATCH", "/vm", &json!({ "state": "Paused" }));
        thread::sleep(Duration::from_secs(8));
        vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
        thread::sleep(Duration::from_secs(4));
    }
    let log = vm.sh("cat /proc/sys/kernel/watchdog_thresh; dmesg");
    assert!(log.starts_with("1\n"), "{log}");
    assert!(!log.contains("lockup"), "{log}");
}
