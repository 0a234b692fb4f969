//! varve in its jail: another user, a root folder of its own, filters on every thread, and nothing of
//! whoever started it; machines boot, answer, are saved and restored there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use varve_agent::protocol::{Action, How};
use varve_snapshot::{MEMORY_FILE, STATE_FILE};
use varve_tests::images::{image, varve};
use varve_tests::jail::{Jail, OWNER};
use varve_tests::snapshots::tier;
use varve_tests::vm::CMDLINE;
use varve_tests::{Restoring, Vm, command, network};

/// A line of /proc/PID/status (proc_pid_status(5)), in words.
fn status(file: &Path, key: &str) -> Vec<String> {
    words_of(&fs::read_to_string(file).unwrap(), key)
}

fn words_of(status: &str, key: &str) -> Vec<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

/// Names of threads, each of which must have filters; one that is just starting may yet get its own.
fn filtered_threads(pid: u32) -> BTreeSet<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (confined, others): (Vec<_>, Vec<_>) =
            threads(pid).into_iter().partition(|&(_, confined)| confined);
        if others.is_empty() {
            return confined.into_iter().map(|(name, _)| name).collect();
        }
        assert!(Instant::now() < deadline, "no filters of their own: {others:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Threads by name, and whether each has as many filters as it must have.
fn threads(pid: u32) -> Vec<(String, bool)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let look = |task: std::io::Result<fs::DirEntry>| {
        // A thread that populated memory may have ended meanwhile.
        let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        let name = words_of(&status, "Name").remove(0);
        assert_eq!(words_of(&status, "Seccomp"), ["2"], "{name}");
        let filters: u32 = words_of(&status, "Seccomp_filters")[0].parse().unwrap();
        // What the process began with, and what each kind is narrowed to: the main thread when the
        // machine is there.
        Some((name, filters == 2))
    };
    tasks.filter_map(look).collect()
}

/// Looks at a monitor in its jail from outside.
fn is_jailed(vm: &Vm, root: &Path) {
    let proc = Path::new("/proc").join(vm.pid().to_string());
    let inode = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).unwrap();
    assert_eq!(inode(&proc.join("root/.")), inode(root));
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");

    let of = |key| status(&proc.join("status"), key);
    assert_eq!(of("Uid"), vec![OWNER.0.to_string(); 4]);
    assert_eq!(of("Gid"), vec![OWNER.1.to_string(); 4]);
    assert_eq!(of("Groups"), [""; 0]);
    assert_eq!((of("CapEff"), of("NoNewPrivs")), (vec!["0".repeat(16)], vec!["1".into()]));
    assert_eq!(fs::read(proc.join("environ")).unwrap(), b"");
    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(files.split_whitespace().filter(|&word| word == "300").count() == 2, "{files}");

    for entry in fs::read_dir(proc.join("fd")).unwrap() {
        // A connection that ended meanwhile is gone from the folder.
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        let inherited = target.to_str().unwrap().contains("secret");
        assert!(!inherited, "{target:?} is open in the jail");
    }
    assert!(filtered_threads(vm.pid()).contains("vcpu0"));
}

/// A machine that boots in a jail is saved there; what it saved is restored in others.
#[test]
fn machines_live_in_jails() {
    let jail = Jail::new("boots");
    jail.place(&image("vmlinux"), "vmlinux");
    jail.place(&image("initramfs-tools.cpio"), "initrd");
    let config = json!({
        "boot-source": {
            "kernel_image_path": "/vmlinux", "initrd_path": "/initrd", "boot_args": CMDLINE,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 96},
        "vsock": {"guest_cid": 3, "uds_path": "/v.sock"},
        "entropy": {},
    });
    let outside = tempfile::Builder::new().prefix("secret").tempdir().unwrap();
    let file = outside.path().join("vm.json");
    fs::write(&file, config.to_string()).unwrap();
    jail.place(&file, "vm.json");
    // What a careless parent leaves open, and in the environment.
    let secret = File::open(&file).unwrap();
    fcntl_setfd(secret.as_fd(), FdFlags::empty()).unwrap();
    let root = jail.root();
    let monitor = "--config-file /vm.json --api-sock /api.sock";
    let mut command = jail.command("--resource-limit no-file=300", monitor);
    command.env("SECRET", "1");
    let mut vm = jail.start(command);
    vm.memory("data", Action::Allocate, 4, 0);
    vm.memory("data", Action::Fill, 4, 5);
    is_jailed(&vm, &root);
    let pid = fs::read_to_string(root.join("varve.pid")).unwrap();
    assert_eq!(pid, vm.pid().to_string());

    vm.control("PATCH", "/vm", &json!({"state": "Paused"}));
    let (state, memory) = (format!("/{STATE_FILE}"), format!("/{MEMORY_FILE}"));
    let body = json!({"snapshot_path": state, "mem_file_path": memory});
    vm.control("PUT", "/snapshot/create", &body);
    let snapshot = outside.path().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    for name in [STATE_FILE, MEMORY_FILE] {
        fs::copy(root.join(name), snapshot.join(name)).unwrap();
    }
    drop(vm);

    // Recorded and tiered outside, with what a reader of it needs.
    let trace = outside.path().join("trace");
    let recording = Restoring::recording(&snapshot, &trace).options("--json");
    let mut vm = recording.start();
    vm.memory("data", Action::Verify, 0, 0);
    assert!(filtered_threads(vm.pid()).contains("recorder"));
    vm.end_with_report();
    tier(&snapshot, &[&trace], "");

    // Cold pages are paged in: that takes userfaultfd, of which a common user may have only the
    // device.
    for (number, ways) in ["--strategy lazy", "--strategy tiered --cold paged"].iter().enumerate() {
        let jail = Jail::new(&format!("restores-{number}"));
        jail.place(&snapshot, "snapshot");
        let root = jail.root();
        let monitor = format!("restore /snapshot --api-sock /api.sock {ways}");
        let command = jail.command("--resource-limit no-file=300", &monitor);
        let mut vm = jail.start(command);
        vm.memory("data", Action::Verify, 0, 0);
        is_jailed(&vm, &root);
        let threads = filtered_threads(vm.pid());
        assert_eq!(threads.contains("faults"), number == 1, "{threads:?}");
        assert!(threads.contains("saver"), "{threads:?}");
        vm.power(How::Poweroff);
        let end = vm.wait();
        assert_eq!(end.code, Some(0), "{end:?}");
    }
}

/// Everything that a jailer may be asked for, around a process that waits for requests.
#[test]
fn a_jail_apart_from_all_others() {
    network::ip("netns add varve-jail-test");
    let jail = Jail::new("apart");
    let root = jail.root();
    let options = "--netns /run/netns/varve-jail-test --new-pid-ns --daemonize --cgroup-version 2 \
                   --cgroup pids.max=77 --parent-cgroup varve-test/jails";
    let end = command::finish(jail.command(options, "--api-sock /api.sock"));
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{end:?}");

    let deadline = Instant::now() + Duration::from_secs(20);
    let mut socket = loop {
        match UnixStream::connect(root.join("api.sock")) {
            Ok(socket) => break socket,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    socket.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"id\":\"apart\""), "{answer}");

    let pid = fs::read_to_string(root.join("varve.pid")).unwrap();
    let proc = Path::new("/proc").join(&pid);
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let network = Path::new("/run/netns/varve-jail-test");
    assert_eq!(inode(&proc.join("ns/net")), inode(network));
    // The first process of its own namespace, and a session of its own.
    assert_eq!(status(&proc.join("status"), "NSpid"), [pid.as_str(), "1"]);
    assert_ne!(inode(&proc.join("ns/pid")), inode(Path::new("/proc/self/ns/pid")));
    for fd in ["0", "1", "2"] {
        let null = fs::metadata(proc.join("fd").join(fd)).unwrap();
        assert_eq!((null.rdev() >> 8, null.rdev() & 0xff), (1, 3), "{fd} is /dev/null");
    }
    let group = fs::read_to_string(proc.join("cgroup")).unwrap();
    assert_eq!(group.trim(), "0::/varve-test/jails/apart");
    let limit = "/sys/fs/cgroup/varve-test/jails/apart/pids.max";
    assert_eq!(fs::read_to_string(limit).unwrap(), "77\n");

    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    while proc.exists() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn wrong_jails_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().to_str().unwrap();
    let program = varve().to_str().unwrap().to_owned();
    let usual = [
        ("--id", "x"),
        ("--exec-file", &program),
        ("--uid", "1"),
        ("--gid", "1"),
        ("--chroot-base-dir", base),
    ];
    let cases = [
        ("--id", "a/b", "--id"),
        ("--exec-file", "/nonexistent", "--exec-file /nonexistent"),
        ("--exec-file", base, "not a file"),
        ("--chroot-base-dir", "/nonexistent", "--chroot-base-dir /nonexistent"),
        ("--netns", "/nonexistent", "--netns /nonexistent"),
        ("--cgroup", "nothing.of=this", "--cgroup-version 1"),
        ("--resource-limit", "cpu=1", "--resource-limit \"cpu=1\""),
        ("--uid", "root", "--uid"),
    ];
    for (name, value, said) in cases {
        let mut arguments: std::collections::BTreeMap<_, _> = usual.into_iter().collect();
        arguments.insert(name, value);
        let mut jailer = std::process::Command::new(varve().with_file_name("varve-jailer"));
        jailer.args(arguments.iter().flat_map(|(name, value)| [name, value]));
        let end = command::finish(jailer);
        assert_eq!(end.code, Some(1), "{name} {value}: {end:?}");
        assert!(end.stderr.contains(said), "{name} {value}: {end:?}");
    }
}
