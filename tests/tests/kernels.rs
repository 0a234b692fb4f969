//! Guests as users start them: Debian's two kernels with their own defaults, none of the parameters that
//! make other tests' guests fast. And what two machines from one snapshot must not share.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use varve_agent::pattern;
use varve_agent::protocol::{Action, Direction, Request, Rng, RngReply};
use varve_tests::images::kernel_versions;
use varve_tests::snapshots::tier;
use varve_tests::vm::USERS_CMDLINE;
use varve_tests::{Restoring, Vm};

const MIB: u64 = 1 << 20;
/// Draws from the kernel's generator, as programs do and as its own file does.
const DRAW: &str = "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid";
/// What a kernel with a driver for the VM generation id says when it has noticed a restore.
const NOTICED: &str = "crng reseeded due to virtual machine fork";
/// How many drivers for the VM generation id the guest's kernel has.
const DRIVERS: &str = "ls -d /sys/bus/*/drivers/vmgenid 2>/dev/null | wc -l";
/// Kernels from this one on have the driver in their images. Debian's 6.1 for clouds has none: the agent
/// stands in.
const WITH_DRIVER: [u32; 2] = [6, 12];
/// How long the driver may take: it is told of the restore by an interrupt.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn kernel_6_1_with_its_defaults() {
    lives_by_defaults("6.1");
}

#[test]
fn kernel_6_12_with_its_defaults() {
    lives_by_defaults("6.12");
}

/// Each processor's generator has a key of its own, made when it is first drawn from.
#[test]
fn copies_differ_on_each_processor() {
    for version in kernel_versions() {
        let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
        let snapshot = dir.path().join("snapshot");
        let mut vm = Vm::builder()
            .kernel_version(&version)
            .users_cmdline()
            .option("--memory", "128M")
            .option("--vcpus", "2")
            .controlled()
            .start();
        vm.sh(&on_each(2));
        vm.snapshot("", &snapshot);
        drop(vm);
        copies_differ(&version, &snapshot, 2);
    }
}

/// Draws on one processor after another.
fn on_each(processors: usize) -> String {
    let on = |processor| format!("taskset {:x} sh -c '{DRAW}'", 1 << processor);
    (0..processors).map(on).collect::<Vec<_>>().join("; ")
}

/// Boot, devices, snapshot, two restores of it, a recording, and a restore by each strategy.
fn lives_by_defaults(version: &str) {
    if !kernel_versions().iter().any(|made| made == version) {
        println!("skipped: this Debian release has no kernel {version}");
        return;
    }
    let dir = tempfile::Builder::new().prefix("varve-snapshot").tempdir().unwrap();
    let (snapshot, trace) = (dir.path().join("snapshot"), dir.path().join("trace"));
    boot(version, dir.path(), &snapshot);
    copies_differ(version, &snapshot, 1);

    let mut vm = Restoring::recording(&snapshot, &trace).options("--json").start();
    vm.memory("m", Action::Rewrite, 0, 2);
    vm.end_with_report();
    tier(&snapshot, &[&trace], "");
    for strategy in ["lazy", "eager", "reap", "faasnap", "tiered", "template", "auto"] {
        let mut vm = Restoring::from(&snapshot).options("--strategy").arg(strategy).start();
        vm.memory("m", Action::Rewrite, 0, 3);
        vm.memory("m", Action::Verify, 0, 0);
        let memory = vm.control("GET", "/memory", &Value::Null);
        assert!(memory["strategy"] == strategy || strategy == "auto", "{strategy}: {memory}");
        println!("{version} {strategy}: right");
    }
}

/// A machine with each kind of device that needs nothing of the host, and a snapshot of it.
fn boot(version: &str, dir: &Path, snapshot: &Path) {
    fs::write(dir.join("drive"), vec![0; MIB as usize]).unwrap();
    let mut vm = Vm::builder()
        .kernel_version(version)
        .users_cmdline()
        .option("--memory", "128M")
        .option("--drive", dir.join("drive"))
        .arg("--entropy")
        .controlled()
        .start();
    let info = vm.info();
    assert!(info.kernel.starts_with(&format!("{version}.")), "{}", info.kernel);
    // The monitor adds what it must, and none of what tests add.
    assert!(info.cmdline.contains(USERS_CMDLINE), "{}", info.cmdline);
    for word in ["no-kvmapf", "8250", "cryptomgr"] {
        assert!(!info.cmdline.contains(word), "{}", info.cmdline);
    }
    let written = vm.block("vda", Direction::Write, 0, MIB, 1).unwrap();
    assert_eq!(written.crc32, pattern::crc32(1, MIB));
    let drawn: RngReply = vm.agent().call(&Request::Rng(Rng { bytes: 64 })).unwrap();
    assert!(drawn.source.starts_with("virtio_rng"), "{}", drawn.source);
    vm.memory("m", Action::Allocate, 4, 0);
    vm.memory("m", Action::Fill, 0, 1);
    // What drawing needs is in memory.
    vm.sh(&on_each(1));
    vm.snapshot("", snapshot);
}

/// The first that two machines from one snapshot draw on each of their processors is not the same.
fn copies_differ(version: &str, snapshot: &Path, processors: usize) {
    let draws = [(); 2].map(|()| {
        let mut vm = Restoring::from(snapshot).start();
        let drawn = vm.sh(&on_each(processors));
        kernel_notices(&mut vm, version);
        assert!(!vm.console().contains("varve-agent: "), "{}", vm.console());
        drawn.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(draws[0].len(), 2 * processors, "{draws:?}");
    for (one, other) in draws[0].iter().zip(&draws[1]) {
        assert_ne!(one, other, "kernel {version}: drawn by two restores of one snapshot");
    }
}

/// A kernel with the driver says once that it has noticed the restore, sooner or later; others never do.
fn kernel_notices(vm: &mut Vm, version: &str) {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap());
    let newer = [(); 2].map(|()| numbers.next().unwrap_or_default()) >= WITH_DRIVER;
    let expected: usize = vm.sh(DRIVERS).trim().parse().unwrap();
    assert!(expected == 1 || !newer, "kernel {version} has {expected} drivers for the id");
    let start = Instant::now();
    let noticed = loop {
        let noticed = vm.sh("dmesg").matches(NOTICED).count();
        if noticed >= expected || start.elapsed() > PATIENCE {
            break noticed;
        }
        thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(noticed, expected, "kernel {version}");
}
