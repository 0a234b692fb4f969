//! What the kernel and KVM have to do for a guest whose memory is all there: nothing. Their own
//! counters tell.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_agent::protocol::Action;
use varve_tests::snapshots::tier;
use varve_tests::{Restoring, Vm};

const PAGES_PER_MIB: u64 = 256;
/// Faults that a recorded call may take though all that it touched was there: buffers of sockets and
/// stacks of threads are not at the same place each time. Seen: 3 to 12.
const HANDFUL: u64 = 24;
const REPEATS: u64 = 3;

fn invoke(vm: &mut Vm) {
    vm.memory_by(2, "read", Action::Verify, 0);
    vm.memory_by(2, "written", Action::Rewrite, 9);
    vm.memory_by(1, "fresh", Action::Rewrite, 9);
}

fn report(vm: &Vm) -> Value {
    vm.control("GET", "/memory", &Value::Null)
}

/// Host faults of the vCPUs, and second-level ones.
fn faults(report: &Value) -> [u64; 2] {
    let number = |name: &str| report["vcpu_faults"][name].as_u64().unwrap();
    [number("minor") + number("major"), number("stage2")]
}

fn private(report: &Value, class: &str) -> u64 {
    report["census"][class]["private"].as_u64().unwrap()
}

#[test]
fn a_guest_whose_memory_is_there_takes_no_faults() {
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    let (flat, trace) = (dir.path().join("snapshot"), dir.path().join("trace"));
    let mut vm = Vm::builder().option("--memory", "96M").controlled().start();
    for (name, mib) in [("read", 4), ("written", 4), ("fresh", 2)] {
        vm.memory(name, Action::Allocate, mib, 0);
        if name != "fresh" {
            vm.memory_by(1, name, Action::Fill, mib);
        }
    }
    vm.snapshot("", &flat);
    drop(vm);
    let mut vm = Restoring::recording(&flat, &trace).options("--json").start();
    for _ in 0..2 {
        invoke(&mut vm);
    }
    vm.end_with_report();
    tier(&flat, &[&trace], "");

    // For comparison: nothing is there.
    let mut vm = Restoring::from(&flat).options("--strategy lazy").start();
    invoke(&mut vm);
    let lazy = faults(&report(&vm));
    println!("lazy: {lazy:?}");
    assert!(lazy[0] > 8 * PAGES_PER_MIB && lazy[1] > 8 * PAGES_PER_MIB, "{lazy:?}");
    drop(vm);

    for way in ["tiered", "template"] {
        let way = format!("--strategy {way} --wait all --paused");
        let mut vm = Restoring::from(&flat).options(&way).start();
        vm.wait_for_api();
        let before = report(&vm);
        // What was recorded as written is private before the guest runs.
        assert_eq!(before["census"]["rw"]["pages"], before["census"]["rw"]["private"], "{before}");
        assert!(private(&before, "rw") >= 6 * PAGES_PER_MIB, "{before}");
        vm.control("PATCH", "/vm", &json!({ "state": "Resumed" }));
        let ready = stage2_is_filled(&vm);
        invoke(&mut vm);
        let first = report(&vm);
        for _ in 0..REPEATS {
            invoke(&mut vm);
        }
        let last = report(&vm);
        let counts = [&before, &ready, &first, &last].map(faults);
        println!("{way}: paused, ready, after one call, after {REPEATS} more: {counts:?}");
        let [paused, ready_at, one, all] = counts;
        // The guest has not run yet.
        assert_eq!(paused[1], 0, "{counts:?}");
        for kind in [0, 1] {
            assert!(one[kind] - ready_at[kind] <= HANDFUL, "{counts:?}");
            assert!(all[kind] - one[kind] <= REPEATS * HANDFUL, "{counts:?}");
        }
        // Nor does a page that was not recorded as written become private.
        for class in ["zero", "ro", "cold"] {
            let more = private(&last, class) - private(&before, class);
            assert!(more <= (1 + REPEATS) * HANDFUL, "{more} of {class}");
        }
    }
}

/// Waits until second-level tables are filled beside the guest.
fn stage2_is_filled(vm: &Vm) -> Value {
    let start = Instant::now();
    let mut last = (Value::Null, Instant::now());
    loop {
        let now = report(vm);
        let pages = now["counters"]["pages"]["stage2"].clone();
        if pages != last.0 {
            last = (pages, Instant::now());
        } else if last.1.elapsed() > Duration::from_millis(500) {
            return now;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{now}");
        thread::sleep(Duration::from_millis(50));
    }
}
