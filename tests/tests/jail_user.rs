//! Another user in the jail, with files of root's: kernels, drives and snapshots that it may read, and
//! outputs that were made and mounted beforehand.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use varve_agent::protocol::{Action, How};
use varve_snapshot::{MEMORY_FILE, STATE_FILE, Trace};
use varve_tests::images::image;
use varve_tests::jail::{Jail, OWNER};
use varve_tests::snapshots::tier;
use varve_tests::vm::CMDLINE;
use varve_tests::{Restoring, Vm, command};

/// Every way to restore a tiered snapshot.
const WAYS: [&str; 8] =
    ["lazy", "eager", "reap", "faasnap", "tiered", "tiered --cold paged", "template", "auto"];

/// The image of the machine's drive.
fn drive() -> tempfile::NamedTempFile {
    let drive = tempfile::NamedTempFile::new().unwrap();
    drive.as_file().set_len(1 << 20).unwrap();
    drive
}

/// Boots a machine from files of root's, whose log, metrics, console and pid file are mounted, and
/// leaves its snapshot in `out`.
fn boot(out: &Path) {
    let jail = Jail::new("boots");
    jail.place_of_root(&image("vmlinux"), "vmlinux");
    jail.place_of_root(&image("initramfs-tools.cpio"), "initrd");
    let drive = drive();
    jail.place_of_root(drive.path(), "drive");
    let config = json!({
        "boot-source": {
            "kernel_image_path": "/vmlinux", "initrd_path": "/initrd",
            // Without "quiet": the console is to show something.
            "boot_args": CMDLINE.replace("quiet ", ""),
        },
        "drives": [{
            "drive_id": "data", "path_on_host": "/drive", "is_root_device": false,
            "is_read_only": true, "io_engine": "Async",
        }],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 96},
        "vsock": {"guest_cid": 3, "uds_path": "/v.sock"},
        "logger": {"log_path": "/log", "level": "Info"},
        "metrics": {"metrics_path": "/metrics"},
        "serial": {"serial_out_path": "/console"},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), config.to_string()).unwrap();
    jail.place_of_root(file.path(), "vm.json");
    let saved = out.join("empty");
    fs::create_dir(&saved).unwrap();
    jail.place(&saved, "out");
    fs::remove_dir(&saved).unwrap();
    let outputs = ["log", "metrics", "console", "varve.pid"].map(|name| jail.mount_file(name));

    let root = jail.root();
    let command = jail.command("", "--config-file /vm.json --api-sock /api.sock");
    let mut vm = jail.start(command);
    vm.memory("data", Action::Allocate, 4, 0);
    vm.memory("data", Action::Fill, 4, 5);
    vm.control("PATCH", "/vm", &json!({"state": "Paused"}));
    let body = json!({"snapshot_path": "/out/state", "mem_file_path": "/out/memory"});
    vm.control("PUT", "/snapshot/create", &body);
    vm.control("PUT", "/actions", &json!({"action_type": "FlushMetrics"}));
    let [log, metrics, console, pid] = outputs.each_ref().map(|output| output.content());
    assert!(String::from_utf8(log).unwrap().contains("booting"));
    assert!(metrics.starts_with(b"{"), "{} bytes of metrics", metrics.len());
    assert!(String::from_utf8_lossy(&console).contains("Linux version"));
    assert_eq!(pid, vm.pid().to_string().into_bytes());

    for (name, saved) in [(STATE_FILE, "state"), (MEMORY_FILE, "memory")] {
        fs::copy(root.join("out").join(saved), out.join(name)).unwrap();
    }
    vm.control("PATCH", "/vm", &json!({"state": "Resumed"}));
    vm.power(How::Poweroff);
    assert_eq!(vm.wait().code, Some(0));
}

#[test]
fn another_user_runs_what_root_owns() {
    let outside = tempfile::tempdir().unwrap();
    let flat = outside.path().join("flat");
    fs::create_dir(&flat).unwrap();
    boot(&flat);

    records(&flat);

    // Tiered outside, by root.
    let trace = outside.path().join("trace");
    let drive = drive();
    let options = format!("--json --drive data={}", drive.path().display());
    let mut vm = Restoring::recording(&flat, &trace).options(&options).start();
    vm.memory("data", Action::Verify, 0, 0);
    vm.end_with_report();
    tier(&flat, &[&trace], "");
    for way in WAYS {
        let jail = Jail::new("restores");
        jail.place_of_root(&flat, "snapshot");
        let monitor = format!("restore /snapshot --api-sock /api.sock --strategy {way}");
        let mut vm = in_jail(jail, &monitor);
        vm.memory("data", Action::Verify, 0, 0);
        vm.power(How::Poweroff);
        let end = vm.wait();
        assert_eq!(end.code, Some(0), "{way}: {end:?}");
    }
}

/// Starts a monitor that finds its drive at the usual place.
fn in_jail(jail: Jail, monitor: &str) -> Vm {
    let drive = drive();
    jail.place_of_root(drive.path(), "drive");
    let command = jail.command("", monitor);
    jail.start(command)
}

/// By faults, to a file that is mounted; in other ways a recording would see nothing, which is said.
fn records(flat: &Path) {
    let jail = Jail::new("records");
    jail.place_of_root(flat, "snapshot");
    let trace = jail.mount_file("trace");
    let monitor = "snapshot record /snapshot --trace /trace --api-sock /api.sock --json";
    let mut vm = in_jail(jail, monitor);
    vm.memory("data", Action::Verify, 0, 0);
    vm.end_with_report();
    let trace = Trace::from_bytes(&trace.content()).unwrap();
    assert!(trace.pages().len() > 1000, "{} pages recorded", trace.pages().len());

    let user = format!("does not tell user {}", OWNER.0);
    let refused = [("mincore", user.as_str()), ("pagemap", "needs /proc/self/pagemap")];
    for (by, reason) in refused {
        let jail = Jail::new("refuses");
        jail.place_of_root(flat, "snapshot");
        let monitor = format!("snapshot record /snapshot --trace /trace --json --by {by}");
        let end = in_jail(jail, &monitor).wait();
        assert_eq!(end.code, Some(1), "{by}: {end:?}");
        assert!(end.stderr.contains(reason), "{by}: {end:?}");
        assert!(end.stderr.contains("record by faults"), "{by}: {end:?}");
    }
}

/// A monitor without a machine in a jail.
fn waits(jail: Jail, options: &str) -> Vm {
    let command = jail.command(options, "--api-sock /api.sock");
    let mut vm = jail.start(command);
    vm.wait_for_api();
    vm
}

/// A jail belongs to one monitor, until it has ended: however it is started, and however it ends.
#[test]
fn a_jail_that_runs_is_refused_to_others() {
    for options in ["", "--daemonize", "--new-pid-ns", "--new-pid-ns --daemonize"] {
        let jail = Jail::new("one");
        let (root, again) = (jail.root(), || jail.command("", "--api-sock /again.sock"));
        let apart = !options.is_empty();
        let mut jailer = jail.command(options, "--api-sock /api.sock");
        let first = if apart {
            // The jailer itself ends.
            assert!(jailer.status().unwrap().success());
            None
        } else {
            Some(jailer.spawn().unwrap())
        };
        let deadline = std::time::Instant::now() + varve_tests::vm::PATIENCE;
        while std::os::unix::net::UnixStream::connect(root.join("api.sock")).is_err() {
            assert!(std::time::Instant::now() < deadline, "{options}: no socket");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let pid = fs::read_to_string(root.join("varve.pid")).unwrap();
        let end = command::finish(again());
        assert_eq!(end.code, Some(1), "{options}: {end:?}");
        assert!(end.stderr.contains("--id one: a monitor runs in the jail"), "{end:?}");
        assert_eq!(fs::read_to_string(root.join("varve.pid")).unwrap(), pid, "{options}");
        assert!(!root.join("again.sock").exists());

        let kill = Command::new("kill").args(["-KILL", &pid]).status().unwrap();
        assert!(kill.success());
        let proc = Path::new("/proc").join(&pid);
        let gone = || {
            let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
            status.is_empty() || status.contains("State:\tZ")
        };
        while !gone() {
            assert!(std::time::Instant::now() < deadline, "{options}: it does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if let Some(mut first) = first {
            first.wait().unwrap();
        }
        // What the dead one left is no hindrance.
        let mut second = again().spawn().unwrap();
        while std::os::unix::net::UnixStream::connect(root.join("again.sock")).is_err() {
            assert!(std::time::Instant::now() < deadline, "{options}: no second monitor");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        second.kill().unwrap();
        second.wait().unwrap();
    }
}

/// A jail without limits beside one with limits, below the same group.
#[test]
fn a_group_that_passes_limits_on_is_joined_below() {
    let group = |vm: &Vm| {
        let mut text = String::new();
        let path = Path::new("/proc").join(vm.pid().to_string()).join("cgroup");
        File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text.trim().to_owned()
    };
    let parent = "--cgroup-version 2 --parent-cgroup varve-test/both";
    fs::create_dir_all("/sys/fs/cgroup/varve-test/both").unwrap();
    let before = waits(Jail::new("before"), parent);
    assert_eq!(group(&before), "0::/varve-test/both");
    drop(before);
    let limited = waits(Jail::new("limited"), &format!("{parent} --cgroup pids.max=77"));
    assert_eq!(group(&limited), "0::/varve-test/both/limited");
    let beside = waits(Jail::new("beside"), parent);
    assert_eq!(group(&beside), "0::/varve-test/both/beside");
    let nowhere = waits(Jail::new("nowhere"), "--cgroup-version 2");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_eq!(group(&nowhere), own.trim());
}
