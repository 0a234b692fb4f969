//! Guests take asynchronous page faults, unless their kernel was told not to (`no-kvmapf`): the same is
//! recorded of both, and a recorded guest does not notice that it gets none.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::Value;
use varve_agent::protocol::Action;
use varve_snapshot::{STATE_FILE, StateFile};
use varve_tests::{Restoring, Vm};

/// MSR_KVM_ASYNC_PF_EN, and its bits: on, and told of by an interrupt.
const CONTROL: u32 = 0x4b56_4d02;
const ON: u64 = 1 | 1 << 3;

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap()
}

fn machine(vcpus: u8, cmdline: &str) -> Vm {
    let builder = Vm::builder().option("--memory", "96M").option("--vcpus", vcpus.to_string());
    builder.cmdline(cmdline).controlled().start()
}

fn invoke(vm: &mut Vm) {
    vm.memory_by(2, "read", Action::Verify, 0);
    vm.memory_by(2, "written", Action::Rewrite, 9);
    vm.memory_by(1, "fresh", Action::Fill, 9);
}

/// The register of each vCPU as a snapshot has it.
fn control(dir: &Path) -> Vec<u64> {
    let file = StateFile::read(&dir.join(STATE_FILE)).unwrap();
    let (_, machine) = varve_vmm::snapshot::load(file).unwrap();
    machine.vcpus.iter().map(|vcpu| vcpu.msr(CONTROL).unwrap()).collect()
}

#[test]
fn guests_with_and_without_asynchronous_faults_are_recorded_alike() {
    let recorded = ["no-kvmapf", ""].map(|cmdline| {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        let mut vm = machine(1, cmdline);
        for name in ["read", "written", "fresh"] {
            vm.memory(name, Action::Allocate, 6, 0);
            if name != "fresh" {
                vm.memory_by(1, name, Action::Fill, 1);
            }
        }
        vm.snapshot("", &at("snapshot"));
        drop(vm);
        assert_eq!(control(&at("snapshot"))[0] & ON, if cmdline.is_empty() { ON } else { 0 });
        ["faults", "pagemap"].map(|by| {
            let recording = Restoring::recording(&at("snapshot"), &at(by));
            let mut vm = recording.options("--json --by").options(by).start();
            invoke(&mut vm);
            let report = vm.end_with_report();
            let number = |value: &Value| value.as_u64().unwrap();
            let pages @ [all, written] = [0, 1].map(|at| number(&report["recorded"][at]));
            println!("{cmdline:?} by {by}: {all} touched, {written} written");
            pages
        })
    });
    let [without, with] = recorded;
    for (without, with) in without.as_flattened().iter().zip(with.as_flattened()) {
        assert!(without.abs_diff(*with) * 20 <= *without, "{recorded:?}");
    }
}

/// A recorded guest keeps what it has in the register, and what it writes there: so do its snapshots.
#[test]
fn a_recorded_guest_keeps_its_asynchronous_faults() {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let mut vm = machine(2, "");
    vm.agent();
    vm.snapshot("", &at("before"));
    drop(vm);
    let before = control(&at("before"));
    assert!(before.iter().all(|control| control & ON == ON), "{before:x?}");

    let mut vm = Restoring::recording(&at("before"), &at("trace")).start();
    vm.agent();
    // A processor that goes offline gives them up, and takes them again when it is back.
    let online = |vm: &mut Vm, on: u8| {
        vm.sh(&format!("echo {on} >/sys/devices/system/cpu/cpu1/online"));
    };
    online(&mut vm, 0);
    vm.snapshot("", &at("offline"));
    online(&mut vm, 1);
    vm.snapshot("", &at("online"));
    drop(vm);
    assert_eq!(control(&at("offline")), [before[0], 0]);
    assert_eq!(control(&at("online")), before);

    // And it goes on with them.
    let mut vm = Restoring::from(&at("online")).start();
    assert_eq!(vm.info().cpus, 2);
    vm.snapshot("", &at("after"));
    assert_eq!(control(&at("after")), before);
}
