//! Nothing that a guest prints, a reader leaves unread, a client names or a host is short of holds up
//! the API, or the end when a signal asks for it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use varve_tests::api::ask;
use varve_tests::images::{image, varve};
use varve_tests::vm::PATIENCE;

/// The kernel prints as much as it can.
const CHATTER: &str =
    "console=ttyS0 reboot=k panic=-1 no-kvmapf loglevel=8 ignore_loglevel initcall_debug";

/// A monitor with Firecracker's command line.
struct Monitor {
    child: Child,
    dir: tempfile::TempDir,
}

impl Monitor {
    /// `limits` is a line for the shell, `options` are more arguments.
    fn start(limits: &str, options: &[&str], stdout: Stdio, stderr: Stdio) -> Monitor {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("{limits} exec \"$0\" \"$@\""))
            .arg(varve())
            .args(["--log-path", "log", "--metrics-path", "metrics"])
            .args(options)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap();
        Monitor { child, dir }
    }

    /// One with an API socket that answers.
    fn with_api(limits: &str, stdout: Stdio, stderr: Stdio) -> Monitor {
        let mut monitor = Monitor::start(limits, &["--api-sock", "api.sock"], stdout, stderr);
        let until = Instant::now() + PATIENCE;
        while UnixStream::connect(monitor.path("api.sock")).is_err() {
            let ended = monitor.child.try_wait().unwrap();
            assert!(Instant::now() < until && ended.is_none(), "{}", monitor.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        monitor
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn ask(&self, method: &str, target: &str, body: &Value) -> (u16, Value) {
        ask(&self.path("api.sock"), method, target, body)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}: {}", self.log()))
    }

    fn does(&self, method: &str, target: &str, body: Value) {
        let (status, answer) = self.ask(method, target, &body);
        assert!(status == 200 || status == 204, "{method} {target}: {answer}");
    }

    fn boot(&self, parameters: &str) {
        let (kernel, initrd) = (image("vmlinux"), image("initramfs.cpio"));
        self.does(
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": kernel, "initrd_path": initrd, "boot_args": parameters }),
        );
        self.does("PUT", "/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
        self.does("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    }

    fn counted(&self, group: &str, name: &str) -> u64 {
        let totals = self.ask("GET", "/metrics", &Value::Null).1;
        totals[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name}: {totals}"))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) {
        self.signal("TERM");
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
        assert!(!self.path("api.sock").exists());
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_console_that_nobody_reads() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut monitor = Monitor::with_api("", writer.into(), Stdio::null());
    monitor.boot(CHATTER);
    until("no byte was dropped", || monitor.counted("uart", "missed_write_count") > 0);
    monitor.does("PATCH", "/vm", json!({ "state": "Paused" }));
    monitor.does("PATCH", "/vm", json!({ "state": "Resumed" }));
    // A reader gets what was kept, and the guest goes on.
    let mut bytes = vec![0; 64 << 10];
    reader.read_exact(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("Linux version"));
    monitor.stop();
}

#[test]
fn messages_that_nobody_reads() {
    let (_reader, mut writer) = std::io::pipe().unwrap();
    // Full from the start.
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let out = writer.try_clone().unwrap();
    let mut monitor = Monitor::with_api("", out.into(), writer.into());
    // To standard error until now, and to standard output from now on.
    monitor.does("PUT", "/logger", json!({ "level": "Debug" }));
    for _ in 0..20 {
        monitor.ask("PUT", "/boot-source", &json!({ "kernel_image_path": "/nowhere" }));
    }
    monitor.boot(CHATTER);
    monitor.does("GET", "/", Value::Null);
    monitor.stop();
}

#[test]
fn twenty_descriptors() {
    let monitor = &mut Monitor::with_api("ulimit -n 20;", Stdio::null(), Stdio::null());
    let silent: Vec<_> =
        (0..30).map(|_| UnixStream::connect(monitor.path("api.sock")).unwrap()).collect();
    monitor.does("GET", "/", Value::Null);
    drop(silent);
    assert!(monitor.log().len() < 20_000, "{} bytes of log", monitor.log().len());
    monitor.does("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "v.sock" }));
    monitor.does("GET", "/", Value::Null);
    monitor.stop();
    assert!(!monitor.path("v.sock").exists());
}

#[test]
fn signals_that_end_a_process_are_named() {
    for (signal, name, code, count) in [
        (libc::SIGSEGV, "SEGV", 150, "sigsegv"),
        (libc::SIGBUS, "BUS", 149, "sigbus"),
        (libc::SIGILL, "ILL", 157, "sigill"),
        (libc::SIGXCPU, "XCPU", 154, "sigxcpu"),
        (libc::SIGXFSZ, "XFSZ", 151, "sigxfsz"),
    ] {
        let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::piped());
        monitor.signal(name);
        assert_eq!(monitor.wait().code(), Some(code), "SIG{name}");
        let mut said = String::new();
        monitor.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains(&format!("ended by SIG{name}")), "{said}");
        let words = format!("Shutting down VM after intercepting signal {signal}, code 0.");
        assert!(monitor.log().contains(&words), "{}", monitor.log());
        let lines = fs::read_to_string(monitor.path("metrics")).unwrap();
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["signals"][count], 1, "{last}");
        assert!(!monitor.path("api.sock").exists());
    }
    let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
    monitor.signal("PIPE");
    until("SIGPIPE is not counted", || monitor.counted("signals", "sigpipe") == 1);
    monitor.stop();
}

#[test]
fn a_file_that_gets_too_long_is_an_error_of_the_request() {
    // Blocks of 512 or 1,024 bytes: far less than the guest's memory.
    let mut monitor = Monitor::with_api("ulimit -f 8000;", Stdio::null(), Stdio::null());
    monitor.boot("reboot=k panic=-1 no-kvmapf");
    monitor.does("PATCH", "/vm", json!({ "state": "Paused" }));
    let files = json!({ "snapshot_path": "state", "mem_file_path": "memory" });
    let (status, answer) = monitor.ask("PUT", "/snapshot/create", &files);
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("File too large"), "{answer}");
    assert_eq!(monitor.counted("signals", "sigxfsz"), 1);
    assert!(!monitor.path("state").exists() && !monitor.path("memory").exists());
    monitor.does("PATCH", "/vm", json!({ "state": "Resumed" }));
    monitor.stop();
}

/// A named pipe in the place of each file that a client may name.
#[test]
fn pipes_in_the_place_of_files() {
    let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
    let pipe = monitor.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let refused = |target: &str, body: Value| {
        let (status, answer) = monitor.ask("PUT", target, &body);
        assert_eq!(status, 400, "{target} {body}: {answer}");
    };
    let kernel = image("vmlinux");
    refused("/boot-source", json!({ "kernel_image_path": pipe }));
    refused("/boot-source", json!({ "kernel_image_path": kernel, "initrd_path": pipe }));
    let drive = json!({
        "drive_id": "d", "path_on_host": pipe, "is_root_device": false, "is_read_only": true
    });
    refused("/drives/d", drive);
    monitor.does("PUT", "/serial", json!({ "serial_out_path": pipe }));
    monitor.boot(CHATTER);
    monitor.does("PATCH", "/vm", json!({ "state": "Paused" }));
    for (state, memory) in [("pipe", "memory"), ("state", "pipe")] {
        refused("/snapshot/create", json!({ "snapshot_path": state, "mem_file_path": memory }));
    }
    monitor.stop();

    for (state, memory) in [("pipe", "memory"), ("state", "pipe")] {
        let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
        assert!(Command::new("mkfifo").arg(monitor.path("pipe")).status().unwrap().success());
        fs::write(monitor.path("state"), "").unwrap();
        let memory = json!({ "backend_type": "File", "backend_path": memory });
        let load = json!({ "snapshot_path": state, "mem_backend": memory });
        let (status, answer) = monitor.ask("PUT", "/snapshot/load", &load);
        assert_eq!(status, 400, "{answer}");
        assert_eq!(monitor.wait().code(), Some(1));
    }
}

#[test]
fn a_start_that_fails_says_so_in_the_log() {
    let config = json!({ "boot-source": { "kernel_image_path": "/nowhere/vmlinux" } });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    fs::write(&path, config.to_string()).unwrap();
    let options = ["--no-api", "--config-file", path.to_str().unwrap()];
    let mut monitor = Monitor::start("", &options, Stdio::null(), Stdio::null());
    assert_eq!(monitor.wait().code(), Some(1));
    let log = monitor.log();
    let reason = log.lines().find(|line| line.contains("varve ends with an error: "));
    assert!(reason.is_some_and(|line| line.contains("/nowhere/vmlinux")), "{log}");
}

/// The main thread waits for the writer of a pipe, and so does not see the signal.
#[test]
fn a_signal_ends_a_monitor_that_hangs_before_the_boot() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let options = ["--api-sock", "api.sock", "--config-file", pipe.to_str().unwrap()];
    let mut monitor = Monitor::start("", &options, Stdio::null(), Stdio::null());
    until("no socket", || monitor.path("api.sock").exists());
    monitor.stop();
}

fn snapshot(monitor: &Monitor, dir: &Path) {
    monitor.does("PATCH", "/vm", json!({ "state": "Paused" }));
    let (state, memory) = (dir.join("state"), dir.join("memory"));
    let files = json!({ "snapshot_path": state, "mem_file_path": memory });
    monitor.does("PUT", "/snapshot/create", files);
}

/// A page fault handler that takes the memory and brings no page: who touches one waits for ever.
#[test]
fn a_signal_ends_a_monitor_that_waits_for_memory() {
    let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
    monitor.boot(CHATTER);
    let dir = tempfile::tempdir().unwrap();
    snapshot(&monitor, dir.path());
    monitor.stop();

    let socket = dir.path().join("handler");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
    let memory = json!({ "backend_type": "Uffd", "backend_path": socket });
    let load = json!({
        "snapshot_path": dir.path().join("state"), "mem_backend": memory, "resume_vm": true
    })
    .to_string();
    let mut client = UnixStream::connect(monitor.path("api.sock")).unwrap();
    let head = format!("PUT /snapshot/load HTTP/1.1\r\nContent-Length: {}\r\n\r\n", load.len());
    client.write_all(format!("{head}{load}").as_bytes()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    monitor.stop();
    drop(stream);
}

/// A snapshot is there as a whole or not at all, and nothing is left beside it.
#[test]
fn a_signal_ends_a_monitor_that_saves() {
    for delay in [0, 30, 100, 300] {
        let mut monitor = Monitor::with_api("", Stdio::null(), Stdio::null());
        monitor.boot(CHATTER);
        monitor.does("PATCH", "/vm", json!({ "state": "Paused" }));
        let files = json!({ "snapshot_path": "state", "mem_file_path": "memory" }).to_string();
        let mut client = UnixStream::connect(monitor.path("api.sock")).unwrap();
        let head =
            format!("PUT /snapshot/create HTTP/1.1\r\nContent-Length: {}\r\n\r\n", files.len());
        client.write_all(format!("{head}{files}").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        monitor.stop();
        let is_there = |name: &str| monitor.path(name).exists();
        assert_eq!(is_there("state"), is_there("memory"), "after {delay} ms");
    }
}
