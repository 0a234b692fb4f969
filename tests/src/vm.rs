//! One machine under test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use varve_agent::CONTROL_PORT;
use varve_agent::client::{Client, connect_vsock};
use varve_agent::protocol::{How, Power, Request};

use crate::images::{image, varve};
use crate::terminal::Terminal;
use crate::threads;

/// Long enough for any guest to boot under emulation; a test that waits longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Parameters that every guest gets: quiet, and ended by a panic; the kernel's cipher self-tests, half
/// of an emulated boot, are left out. What the kernel does with KVM is its own default.
pub const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet 8250.nr_uarts=1 cryptomgr.notests";

/// The parameters that README tells users to start a guest with: all else is the kernel's default.
pub const USERS_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// A machine to be started.
pub struct VmBuilder {
    args: Vec<OsString>,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    vsock: bool,
    config_file: Option<serde_json::Value>,
    typed: bool,
    dir: tempfile::TempDir,
}

/// A running machine. Killed when dropped; if the test fails, what it said is shown.
pub struct Vm {
    child: Child,
    dir: tempfile::TempDir,
    reaped: bool,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code, or none if a signal killed the process.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// What the monitor said on standard error.
    pub stderr: String,
    /// What the guest printed on its console.
    pub console: String,
}

impl Vm {
    /// A machine that boots the tools initramfs with the default kernel and a vsock, until told
    /// otherwise.
    pub fn builder() -> VmBuilder {
        VmBuilder {
            args: Vec::new(),
            kernel: image("vmlinux"),
            initrd: Some(image("initramfs-tools.cpio")),
            cmdline: CMDLINE.into(),
            vsock: true,
            config_file: None,
            typed: false,
            dir: tempfile::Builder::new().prefix("varve-test").tempdir().unwrap(),
        }
    }
}

impl VmBuilder {
    /// A folder that lives as long as the machine; for sockets and disk images.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One more argument of `varve run`.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// An option with its value.
    pub fn option(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// Another kernel image.
    pub fn kernel(mut self, path: PathBuf) -> Self {
        self.kernel = path;
        self
    }

    /// The guest kernel of a version (see [`crate::images::kernel_versions`]), with its own
    /// initramfs with tools.
    pub fn kernel_version(mut self, version: &str) -> Self {
        self.kernel = image(&format!("vmlinux-{version}"));
        self.initrd = Some(image(&format!("initramfs-tools-{version}.cpio")));
        self
    }

    /// Debian's kernel 6.12, with its own initramfs with tools.
    pub fn kernel_6_12(self) -> Self {
        self.kernel_version("6.12")
    }

    /// [`USERS_CMDLINE`] in place of [`CMDLINE`].
    pub fn users_cmdline(mut self) -> Self {
        self.cmdline = USERS_CMDLINE.into();
        self
    }

    /// Another initrd, or none.
    pub fn initrd(mut self, path: Option<PathBuf>) -> Self {
        self.initrd = path;
        self
    }

    /// More kernel parameters.
    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
    }

    /// No vsock: a machine without an agent to talk to.
    pub fn without_vsock(mut self) -> Self {
        self.vsock = false;
        self
    }

    /// A configuration file in place of all options that describe the machine.
    pub fn config_file(mut self, content: serde_json::Value) -> Self {
        self.config_file = Some(content);
        self
    }

    /// With a console that can be typed into, by [`Vm::input`].
    pub fn typed(mut self) -> Self {
        self.typed = true;
        self
    }

    /// The arguments of `varve`, all of them.
    fn args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["run".into()];
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        if let Some(content) = &self.config_file {
            let path = self.dir().join("machine.json");
            fs::write(&path, content.to_string()).unwrap();
            option("--config-file", path.into());
        } else {
            option("--kernel", self.kernel.clone().into());
            option("--cmdline", self.cmdline.clone().into());
            if let Some(initrd) = &self.initrd {
                option("--initrd", initrd.into());
            }
            if self.vsock {
                let uds = self.dir().join("v.sock");
                option("--vsock", format!("cid=3,uds={}", uds.display()).into());
            }
        }
        args.extend(self.args.iter().cloned());
        args
    }

    /// Starts the monitor. It writes console and messages to files, so that nothing ever blocks.
    pub fn start(self) -> Vm {
        let mut command = Command::new(varve());
        command
            .args(self.args())
            .stdin(if self.typed { Stdio::piped() } else { Stdio::null() })
            .stdout(File::create(self.dir().join("console")).unwrap());
        Vm::spawn(command, self.dir)
    }

    /// Starts the monitor on a terminal, as a shell does: in a session that this terminal controls.
    pub fn start_on(self, terminal: &Terminal) -> Vm {
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(varve())
            .args(self.args())
            .stdin(terminal.stdio())
            .stdout(terminal.stdio());
        Vm::spawn(command, self.dir)
    }
}

impl Vm {
    /// Starts a monitor that has its folder already.
    pub(crate) fn spawn(mut command: Command, dir: tempfile::TempDir) -> Vm {
        command.stderr(File::create(dir.path().join("stderr")).unwrap());
        let child = command.spawn().unwrap();
        Vm { child, dir, reaped: false }
    }

    /// The machine's own folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The unix socket of its vsock device.
    pub fn uds(&self) -> PathBuf {
        self.dir().join("v.sock")
    }

    /// Process id of the monitor.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where to type into the console of a machine that is [`VmBuilder::typed`].
    pub fn input(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }

    /// The input of a machine that is [`VmBuilder::typed`]; it ends where this is dropped.
    pub fn close_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether the monitor has not ended.
    pub fn runs(&mut self) -> bool {
        let status = self.child.try_wait().unwrap();
        self.reaped |= status.is_some();
        status.is_none()
    }

    /// What the guest has printed so far.
    pub fn console(&self) -> String {
        read(&self.dir().join("console"))
    }

    /// What the monitor has said so far.
    pub fn stderr(&self) -> String {
        read(&self.dir().join("stderr"))
    }

    /// A connection to the agent, as soon as it answers.
    ///
    /// # Panics
    ///
    /// If the machine ends or [`PATIENCE`] does.
    pub fn agent(&mut self) -> Client<UnixStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(stream) = connect_vsock(&self.uds(), CONTROL_PORT) {
                // A guest that hangs fails the test, rather than to hang that too.
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                return Client::new(stream);
            }
            if !self.runs() {
                panic!("the machine ended before its agent was ready{}", self.story());
            }
            assert!(Instant::now() < deadline, "the agent is not ready{}", self.story());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the console shows `text`.
    pub fn wait_for_console(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.console().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} on the console{}", self.story());
            assert!(self.runs(), "it ended{}", self.story());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks the agent to end the machine, without an answer to wait for.
    pub fn power(&mut self, how: How) {
        // The answer may or may not come before the end.
        let _ = self.agent().call::<serde_json::Value>(&Request::Power(Power { how }));
    }

    /// Sends a signal to the monitor.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// If [`PATIENCE`] ends first.
    pub fn wait(self) -> Ended {
        self.wait_and_keep().0
    }

    /// Waits for the end, and keeps the machine's folder for those who look at what it left.
    ///
    /// # Panics
    ///
    /// If [`PATIENCE`] ends first.
    pub fn wait_and_keep(mut self) -> (Ended, tempfile::TempDir) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the machine does not end{}", self.story());
            std::thread::sleep(Duration::from_millis(10));
        };
        self.reaped = true;
        let end = Ended {
            code: status.code(),
            signal: status.signal(),
            stderr: self.stderr(),
            console: self.console(),
        };
        let empty = tempfile::tempdir().unwrap();
        (end, std::mem::replace(&mut self.dir, empty))
    }

    /// What guest and monitor said; of a monitor that runs, what its threads do.
    fn story(&self) -> String {
        let (console, stderr) = (self.console(), self.stderr());
        // The process id of a monitor that was waited for may be another process's.
        let threads = if self.reaped { String::new() } else { threads::of(self.pid()) };
        format!("\n--- console\n{console}\n--- stderr\n{stderr}\n--- threads\n{threads}")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine of the failed test{}", self.story());
        }
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
