//! How a machine ends: by its guest, by a crash, by a signal; and what is left when it has.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, Termios};
use varve_agent::protocol::How;
use varve_tests::{Terminal, Vm, VmBuilder, command};

fn small() -> VmBuilder {
    Vm::builder().option("--memory", "128M")
}

/// A machine that is ended before its guest is up, once the kernel runs.
fn early() -> VmBuilder {
    small().without_vsock().cmdline("loglevel=7")
}

/// The files of a machine, by name; its console and messages are the harness's.
fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|n| n != "console" && n != "stderr").collect();
    names.sort();
    names
}

/// A guest that ends in some way: the exit code and the monitor's last words.
fn ends(how: How, prepare: &str) -> (Option<i32>, String) {
    let mut vm = small().start();
    vm.agent();
    if !prepare.is_empty() {
        vm.sh(prepare);
    }
    assert_eq!(files(vm.dir()), ["v.sock"]);
    vm.power(how);
    let (end, dir) = vm.wait_and_keep();
    assert_eq!(files(dir.path()), [""; 0], "left behind after {how:?}: {end:?}");
    assert_eq!(end.signal, None, "{end:?}");
    (end.code, end.stderr)
}

#[test]
fn reboot_by_the_keyboard_controller() {
    assert_eq!(ends(How::Reboot, ""), (Some(0), "varve: guest reset\n".into()));
}

#[test]
fn reboot_by_the_acpi_register() {
    let prepare = "echo acpi > /sys/kernel/reboot/type";
    assert_eq!(ends(How::Reboot, prepare), (Some(0), "varve: guest reset\n".into()));
}

#[test]
fn reboot_by_a_triple_fault() {
    let end = ends(How::TripleFault, "");
    assert_eq!(end, (Some(0), "varve: guest reset (triple fault)\n".into()));
}

#[test]
fn power_off() {
    assert_eq!(ends(How::Poweroff, ""), (Some(0), "varve: guest power-off\n".into()));
}

#[test]
fn a_kernel_panic_is_a_crash() {
    assert_eq!(ends(How::Panic, ""), (Some(3), "varve: guest kernel panic\n".into()));
}

/// A guest that has stopped its processors is still a machine, and is ended by a signal.
#[test]
fn a_halted_machine_stays_until_a_signal() {
    let mut vm = small().cmdline("loglevel=7").start();
    vm.power(How::Halt);
    vm.wait_for_console("reboot: System halted");
    std::thread::sleep(Duration::from_secs(1));
    assert!(vm.runs(), "{}", vm.stderr());
    vm.signal("TERM");
    let end = vm.wait();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: stopped by SIGTERM\n"));
}

#[test]
fn signals_end_it_cleanly() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut vm = early().start();
        vm.wait_for_console("Linux version");
        vm.signal(signal);
        let (end, dir) = vm.wait_and_keep();
        let code = if signal == "HUP" { 156 } else { 0 };
        assert_eq!((end.code, end.signal), (Some(code), None), "{end:?}");
        assert_eq!(end.stderr, format!("varve: stopped by SIG{signal}\n"));
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

/// The monitor obeys from its start, long before there is a guest.
#[test]
fn a_signal_in_the_making_leaves_nothing() {
    let vm = small().start();
    let deadline = Instant::now() + varve_tests::vm::PATIENCE;
    while !vm.uds().exists() {
        assert!(Instant::now() < deadline, "no socket: {}", vm.stderr());
    }
    vm.signal("TERM");
    let (end, dir) = vm.wait_and_keep();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: stopped by SIGTERM\n"));
    assert_eq!(files(dir.path()), [""; 0]);
}

fn same(a: &Termios, b: &Termios) -> bool {
    a.input_modes == b.input_modes
        && a.output_modes == b.output_modes
        && a.control_modes == b.control_modes
        && a.local_modes == b.local_modes
}

/// Starts a guest on a terminal, ends it when it prints, and sees the terminal as it was.
fn gives_the_terminal_back(end_it: impl FnOnce(&Terminal, &Vm), last_words: &str) {
    let terminal = Terminal::open();
    let before = terminal.mode();
    assert!(before.local_modes.contains(LocalModes::ECHO | LocalModes::ICANON));
    let vm = early().start_on(&terminal);
    terminal.wait_for("Linux version");
    let meanwhile = terminal.mode();
    assert!(!meanwhile.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON));
    end_it(&terminal, &vm);
    let end = vm.wait();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), last_words));
    assert!(same(&before, &terminal.mode()), "{:?}", terminal.mode());
}

#[test]
fn sigterm_gives_the_terminal_back() {
    gives_the_terminal_back(|_, vm| vm.signal("TERM"), "varve: stopped by SIGTERM\n");
}

#[test]
fn ctrl_c_ends_it_and_gives_the_terminal_back() {
    gives_the_terminal_back(|terminal, _| terminal.type_in(b"\x03"), "varve: stopped by SIGINT\n");
}

/// A guest that ends by itself gives it back too.
#[test]
fn a_panic_gives_the_terminal_back() {
    let terminal = Terminal::open();
    let before = terminal.mode();
    // Without a root device and an initrd, the kernel panics, and reboots at once.
    let vm = early().initrd(None).start_on(&terminal);
    terminal.wait_for("Unable to mount root fs");
    let end = vm.wait();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), "varve: guest reset\n"));
    assert!(same(&before, &terminal.mode()), "{:?}", terminal.mode());
}

/// Nothing can clean up after SIGKILL: the socket's file stays, and the next start says so.
#[test]
fn a_killed_monitor_leaves_its_socket_only() {
    let mut vm = small().start();
    vm.agent();
    vm.signal("KILL");
    let (end, dir) = vm.wait_and_keep();
    assert_eq!((end.code, end.signal), (None, Some(9)));
    assert_eq!(files(dir.path()), ["v.sock"]);

    let uds = dir.path().join("v.sock");
    let vsock = format!("cid=3,uds={}", uds.display());
    let kernel = varve_tests::images::image("vmlinux");
    let args = ["run", "--kernel", kernel.to_str().unwrap(), "--vsock", &vsock];
    let again = command::run(args);
    let message = format!(
        "varve: error: vsock: {uds:?} exists already: another machine may be using it; remove it \
         if none does, or choose another uds_path\n"
    );
    assert_eq!((again.code, again.stderr), (Some(1), message));
    assert!(uds.exists(), "what is someone else's is not removed");
}
