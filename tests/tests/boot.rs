//! Booting: every way into a kernel, processors, memory, and what the guest finds in its machine.

#![allow(clippy::unwrap_used, reason = "tests")]

use varve_agent::protocol::{Action, How, Memory, MemoryReply, Request};
use varve_tests::Vm;
use varve_tests::images::image;

/// The guest's map of its memory: where ordinary memory begins and ends.
fn system_ram(vm: &mut Vm) -> Vec<String> {
    let map = vm.sh("cat /proc/iomem");
    let ram = |line: &str| line.strip_suffix(" : System RAM").map(str::to_owned);
    map.lines().filter(|line| !line.starts_with(' ')).filter_map(ram).collect()
}

/// Values of one field of `/proc/cpuinfo`, processor by processor.
fn cpuinfo(vm: &mut Vm, field: &str) -> Vec<String> {
    let all = vm.sh("cat /proc/cpuinfo");
    all.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == field)
        .map(|(_, value)| value.trim().to_owned())
        .collect()
}

fn power_off(mut vm: Vm) -> String {
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert!(end.stderr.ends_with("varve: guest power-off\n"), "{end:?}");
    end.stderr
}

#[test]
fn every_way_into_the_kernel() {
    for (kernel, protocol) in [("vmlinux", "pvh"), ("vmlinux", "linux"), ("bzImage", "auto")] {
        let mut vm = Vm::builder()
            .kernel(image(kernel))
            .option("--boot-protocol", protocol)
            .option("--memory", "128M")
            .start();
        assert_eq!(vm.info().cpus, 1, "{kernel} by {protocol}");
        assert_eq!(
            system_ram(&mut vm),
            ["00001000-0009fbff", "00100000-07ffffff"],
            "{kernel} by {protocol}"
        );
        power_off(vm);
    }
}

/// What only a guest can tell about CPUID, ACPI and clocks.
#[test]
fn the_guest_knows_its_machine() {
    let mut vm =
        Vm::builder().option("--memory", "128M").option("--vcpus", "2").arg("--boot-timer").start();
    let info = vm.info();
    assert_eq!(info.cpus, 2);
    // Of 128 MiB, the kernel keeps its own text and data, page structures and crypto tables.
    let missing = (128 << 10) - info.memory_kib;
    assert!(missing < 48 << 10, "{missing} KiB of 128 MiB are not there");

    assert_eq!(cpuinfo(&mut vm, "apicid"), ["0", "1"]);
    assert_eq!(cpuinfo(&mut vm, "core id"), ["0", "1"]);
    assert_eq!(cpuinfo(&mut vm, "cpu cores"), ["2", "2"]);
    assert_eq!(cpuinfo(&mut vm, "siblings"), ["2", "2"]);
    for flags in cpuinfo(&mut vm, "flags") {
        assert!(flags.split(' ').any(|flag| flag == "hypervisor"), "{flags}");
    }
    let sysfs = |vm: &mut Vm, file: &str| vm.sh(&format!("cat /sys/{file}")).trim().to_owned();
    let clock = "devices/system/clocksource/clocksource0/current_clocksource";
    assert_eq!(sysfs(&mut vm, clock), "kvm-clock");
    // This kernel has no driver for the generation id; it is there for those that have.
    let ids = vm.sh("cat /sys/bus/acpi/devices/*/modalias");
    assert!(ids.contains(":VM_GEN_COUNTER:"), "{ids}");
    let drivers =
        vm.sh("ls /sys/bus/platform/drivers/virtio-mmio /sys/bus/platform/drivers/*pvpanic*");
    assert!(drivers.contains("LNRO0005:00") && drivers.contains("QEMU0001:00"), "{drivers}");

    let messages = power_off(vm);
    let mark = |what: &str| -> f64 {
        let start = format!("varve: boot timer: {what} after ");
        let mut lines = messages.lines().filter_map(|line| line.strip_prefix(start.as_str()));
        let time = lines.next().unwrap_or_else(|| panic!("no {what:?} in {messages}"));
        assert_eq!(lines.next(), None, "{messages}");
        time.strip_suffix(" ms").unwrap().parse().unwrap()
    };
    let (init, agent) = (mark("init reached"), mark("agent ready"));
    assert!(0.0 < init && init < agent, "{messages}");
}

/// Eight processors that all work, and memory on both sides of the hole for devices.
#[test]
fn eight_processors_and_four_gibibytes() {
    let mut vm = Vm::builder().option("--memory", "4G").option("--vcpus", "8").start();
    let info = vm.info();
    assert_eq!(info.cpus, 8);
    assert_eq!(cpuinfo(&mut vm, "apicid"), ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let interrupts = vm.sh("grep LOC: /proc/interrupts");
    let ticks: Vec<u64> = interrupts.split_whitespace().flat_map(str::parse).collect();
    assert!(ticks.len() == 8 && ticks.iter().all(|&n| n > 0), "{interrupts}");

    assert_eq!(
        system_ram(&mut vm),
        ["00001000-0009fbff", "00100000-bfffffff", "100000000-13fffffff"]
    );
    let missing = (4 << 20) - info.memory_kib;
    assert!(missing < 256 << 10, "{missing} KiB of 4 GiB are not there");

    // The zone above the hole is where Linux takes memory from first.
    let free_above = |vm: &mut Vm| -> u64 {
        let text = vm.sh("grep -A1 'zone   Normal' /proc/zoneinfo");
        text.split_whitespace().last().unwrap().parse().unwrap()
    };
    let before = free_above(&mut vm);
    for action in [Action::Allocate, Action::Fill, Action::Verify] {
        let name = "above".to_owned();
        let request = Memory { name, action, mib: Some(32), seed: 7, threads: None };
        let reply: MemoryReply = vm.agent().call(&Request::Memory(request)).unwrap();
        assert_eq!(reply.mib, 32);
    }
    let taken = before.saturating_sub(free_above(&mut vm));
    assert!(taken >= 4096, "only {taken} of 8192 pages came from above the hole");
    power_off(vm);
}

/// Debian's kernel reads no MP table, so it comes up with one processor and, for want of
/// virtio-mmio parameters, without devices; console and boot parameters must do.
#[test]
fn a_kernel_without_acpi_reaches_init() {
    let mut vm = Vm::builder()
        .option("--memory", "128M")
        .cmdline("acpi=off i8042.noaux i8042.nokbd")
        .without_vsock()
        .start();
    vm.wait_for_console("varve-init: up");
    vm.signal("TERM");
    assert_eq!(vm.wait().code, Some(0));
}
