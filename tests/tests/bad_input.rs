//! What a machine is made from and that is not as it should be: one line says what, and nothing is
//! left behind. Needs a KVM that makes machines; no guest gets to run.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use varve_tests::Ended;
use varve_tests::command::finish;
use varve_tests::images::{image, varve};

/// A folder in which `varve run` is tried.
struct Try(tempfile::TempDir);

impl Try {
    fn new() -> Try {
        Try(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a file of zeros.
    fn file(&self, name: &str, bytes: u64) {
        File::create(self.path().join(name)).unwrap().set_len(bytes).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The one line that `varve run` fails with, in this folder, which stays as it is.
    fn error(&self, args: &[&str]) -> String {
        let before = self.names();
        let mut command = Command::new(varve());
        command.current_dir(self.path()).arg("run").args(args);
        let message = error_of(finish(command));
        assert_eq!(self.names(), before, "left behind after {args:?}: {message}");
        message
    }

    /// The same with a kernel that is good.
    fn error_with_kernel(&self, args: &[&str]) -> String {
        let kernel = image("bzImage");
        let mut all = vec!["--kernel", kernel.to_str().unwrap()];
        all.extend(args);
        self.error(&all)
    }
}

fn error_of(end: Ended) -> String {
    assert_eq!((end.code, end.console.as_str()), (Some(1), ""), "{end:?}");
    let line = end.stderr.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.strip_prefix("varve: error: ").unwrap().to_owned()
}

#[test]
fn kernels() {
    let dir = Try::new();
    let missing = dir.error(&["--kernel", "none"]);
    assert_eq!(missing, "cannot read kernel \"none\": No such file or directory (os error 2)");
    assert_eq!(dir.error(&["--kernel", "."]), "cannot read kernel \".\": not a regular file");
    let pipe = Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
    assert!(pipe.success());
    assert_eq!(dir.error(&["--kernel", "pipe"]), "cannot read kernel \"pipe\": not a regular file");

    fs::write(dir.path().join("script"), "#!/bin/sh\nexit\n").unwrap();
    let script = dir.error(&["--kernel", "script"]);
    assert!(script.starts_with("kernel \"script\" is neither an ELF vmlinux nor a bzImage"));
    assert!(
        script.ends_with("give an uncompressed vmlinux or a distribution's vmlinuz"),
        "{script}"
    );

    for (name, keep) in [("bzImage", 3 << 20), ("vmlinux", 8 << 20), ("vmlinux", 100)] {
        let whole = fs::read(image(name)).unwrap();
        fs::write(dir.path().join(name), &whole[..keep]).unwrap();
        let cut = dir.error(&["--kernel", name]);
        let start = format!("kernel {name:?} is cut short: {keep} bytes where its header says ");
        assert!(cut.starts_with(&start), "{cut}");
    }
    for name in ["vmlinux", "bzImage"] {
        let small = dir.error(&["--memory", "32M", "--kernel", image(name).to_str().unwrap()]);
        assert!(small.contains("past the 32 MiB of low memory; give the machine more"), "{small}");
    }
    let pvh = dir.error_with_kernel(&["--boot-protocol", "pvh"]);
    assert!(pvh.ends_with("has no PVH entry point; it needs boot protocol 'linux'"), "{pvh}");
}

#[test]
fn initrds() {
    let dir = Try::new();
    dir.file("big", 120 << 20);
    dir.file("empty", 0);
    let big = dir.error_with_kernel(&["--memory", "128M", "--initrd", "big"]);
    assert!(big.starts_with("initrd \"big\" of 125829120 bytes does not fit into low memory"));
    assert!(big.ends_with("give the machine more memory"), "{big}");
    assert_eq!(dir.error_with_kernel(&["--initrd", "empty"]), "initrd \"empty\" is empty");
    let none = dir.error_with_kernel(&["--initrd", "none"]);
    assert_eq!(none, "cannot read initrd \"none\": No such file or directory (os error 2)");
}

#[test]
fn command_lines() {
    let dir = Try::new();
    let long = dir.error_with_kernel(&["--cmdline", &"x".repeat(3000)]);
    let most = "at most 2047 bytes of printable ASCII";
    let many = "3000 bytes and what the machine adds are too many";
    assert_eq!(long, format!("kernel command line: {many}; {most}"));
    let foreign = dir.error_with_kernel(&["--cmdline", "café"]);
    assert_eq!(foreign, format!("kernel command line: 'é' in it; {most}"));
}

#[test]
fn drives() {
    let dir = Try::new();
    let drive = |path: &str| dir.error_with_kernel(&["--drive", path]);
    assert!(drive("none").starts_with("drive \"drive0\": cannot open \"none\": No such file"));
    assert!(drive(".").starts_with("drive \"drive0\": cannot open \".\": Is a directory"));
    assert!(drive("/dev/null:ro").ends_with("is not a regular file or block device"));
}

#[test]
fn consoles() {
    let dir = Try::new();
    let error = dir.error_with_kernel(&["--console", "file=none/log"]);
    assert_eq!(error, "console file \"none/log\": No such file or directory (os error 2)");
}

#[test]
fn sockets() {
    let dir = Try::new();
    let vsock = |value: &str| dir.error_with_kernel(&["--vsock", value]);
    let reserved = "vsock: guest_cid 2 is reserved: use a number from 3 to 4294967294";
    assert_eq!(vsock("cid=2,uds=v"), reserved);
    assert!(vsock("cid=3,uds=none/v").starts_with("vsock: cannot listen on \"none/v\": No such"));

    // What another machine may listen on stays, whether it still does or not.
    let listener = UnixListener::bind(dir.path().join("v")).unwrap();
    let exists = "vsock: \"v\" exists already: another machine may be using it; remove it if none \
                  does, or choose another uds_path";
    assert_eq!(vsock("cid=3,uds=v"), exists);
    drop(listener);
    assert_eq!(vsock("cid=3,uds=v"), exists);
    fs::remove_file(dir.path().join("v")).unwrap();
    let both = dir.error_with_kernel(&["--api-sock", "v", "--vsock", "cid=3,uds=v"]);
    assert_eq!(both, exists);

    fs::write(dir.path().join("notes"), "keep me").unwrap();
    let api = dir.error_with_kernel(&["--api-sock", "notes"]);
    assert!(api.starts_with("API socket \"notes\""), "{api}");
    assert!(vsock("cid=3,uds=notes").starts_with("vsock: \"notes\" exists already"));
    assert_eq!(fs::read_to_string(dir.path().join("notes")).unwrap(), "keep me");
}

#[test]
fn interfaces() {
    let dir = Try::new();
    let net = |value: &str| dir.error_with_kernel(&["--net", value]);
    assert!(net("tap=much-too-long-a-name").contains("cannot name a tap: 1 to 15 characters"));
    assert!(net("tap=lo").ends_with(
        "\"lo\" is not a tap with a single queue: name another one, or remove it and retry"
    ));
    assert!(net("tap=t,mac=01:00:00:00:00:00").contains("is a multicast address"));
    assert!(net("tap=t,mtu=9").contains("an MTU of 9 is too small"));
}

/// A failure late in the making undoes what came before it: socket, tap and all.
#[test]
fn nothing_is_left_of_a_machine_that_fails_late() {
    let dir = Try::new();
    dir.file("disk", 1 << 20);
    let tap = format!("vl{}", std::process::id());
    let error = dir.error_with_kernel(&[
        "--drive",
        "disk",
        "--net",
        &format!("tap={tap}"),
        "--vsock",
        "cid=3,uds=v",
        "--initrd",
        "none",
    ]);
    assert!(error.starts_with("cannot read initrd"), "{error}");
    assert!(!Path::new("/sys/class/net").join(tap).exists());
}

#[test]
fn no_kvm() {
    // In a mount namespace of its own, a /dev without it.
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.arg(varve()).args(["run", "--kernel"]).arg(image("bzImage"));
    let missing = error_of(finish(command));
    assert_eq!(
        missing,
        "KVM: cannot open /dev/kvm (No such file or directory (os error 2)): load the kvm_intel \
         or kvm_amd module, or enable virtualization in firmware"
    );
}

#[test]
fn no_right_to_kvm() {
    if !rustix::process::geteuid().is_root() {
        varve_skip::skip!("root", "only root can become a user who may not open /dev/kvm");
        return;
    }
    // The build folder may be closed to others, a copy is not.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("varve");
    fs::copy(varve(), &copy).unwrap();
    for path in [dir.path(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let nobody = 65534;
    let mut command = Command::new(copy);
    command.uid(nobody).gid(nobody).current_dir("/").args(["run", "--kernel", "vmlinux"]);
    let denied = error_of(finish(command));
    assert_eq!(
        denied,
        "KVM: cannot open /dev/kvm (Permission denied (os error 13)): add this user to the group \
         that owns it (usually kvm)"
    );
}
