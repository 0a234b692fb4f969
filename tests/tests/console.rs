//! The serial console: input that reaches the guest, a file that takes the output, silence.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write;
use std::thread;

use varve_agent::protocol::{ExecReply, How};
use varve_tests::guest::shell;
use varve_tests::{Vm, VmBuilder};

fn small() -> VmBuilder {
    Vm::builder().option("--memory", "128M")
}

/// Types `text` while the guest runs `reader`, which first says on the console that it is there;
/// returns what the reader printed.
fn typed(vm: &mut Vm, name: &str, reader: &str, text: &[u8]) -> String {
    let mut agent = vm.agent();
    let script =
        format!("exec 3</dev/ttyS0; echo '{name} is there' >/dev/ttyS0; {{ {reader}; }} <&3");
    let reading = thread::spawn(move || agent.call::<ExecReply>(&shell(&script)).unwrap());
    vm.wait_for_console(&format!("{name} is there"));
    vm.input().write_all(text).unwrap();
    let reply = reading.join().unwrap();
    assert_eq!(reply.code, Some(0), "{name}: {reply:?} {}", vm.console());
    reply.stdout
}

#[test]
fn input_reaches_the_guest_whole() {
    let mut vm = small().typed().start();
    vm.agent();
    let line = typed(&mut vm, "line", "read line; echo \"got $line\"", b"hello, guest\n");
    assert_eq!(line, "got hello, guest\n");
    // The guest's terminal echoes.
    vm.wait_for_console("hello, guest");

    // A paste is many times the UART's buffer; each byte must arrive once and in order.
    vm.sh("stty -F /dev/ttyS0 raw -echo");
    for round in 0..3 {
        let paste: String = (0..512).map(|i| format!("{:07}.", round * 100_000 + i * 7)).collect();
        assert_eq!(paste.len(), 4096);
        let count = "dd bs=1 count=4096 2>/dev/null";
        let got = typed(&mut vm, &format!("paste {round}"), count, paste.as_bytes());
        assert!(got == paste, "{} of 4096 bytes came: {got:?}", got.len());
    }
    vm.power(How::Poweroff);
    assert_eq!(vm.wait().code, Some(0));
}

/// Input may end before the machine does: it goes on.
#[test]
fn the_end_of_input_is_not_the_end() {
    let mut vm = small().typed().start();
    drop(vm.close_input());
    assert_eq!(vm.sh("echo still here"), "still here\n");
}

#[test]
fn a_file_takes_the_output_behind_what_it_has() {
    let builder = small();
    let log = builder.dir().join("guest.log");
    fs::write(&log, "from yesterday\n").unwrap();
    let mut vm = builder.option("--console", format!("file={}", log.display())).start();
    vm.agent();
    vm.power(How::Poweroff);
    let (end, _dir) = vm.wait_and_keep();
    assert_eq!((end.code, end.console.as_str()), (Some(0), ""), "{end:?}");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("from yesterday\n") && text.contains("varve-agent: ready"), "{text}");
}

#[test]
fn off_is_silent() {
    let mut vm = small().option("--console", "off").start();
    assert_eq!(vm.sh("echo for nobody >/dev/ttyS0; cat /proc/consoles | grep -c ttyS0"), "1\n");
    vm.power(How::Poweroff);
    let end = vm.wait();
    assert_eq!((end.code, end.console.as_str()), (Some(0), ""));
    assert_eq!(end.stderr, "varve: guest power-off\n");
}
