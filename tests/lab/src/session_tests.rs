//! The session against a shell script in QEMU's place, and socket pairs for its ports.

use super::*;
use crate::ports::connect;
use std::process::{Command, Stdio};

const SECOND: Duration = Duration::from_secs(1);
/// So long that a busy machine does not reach them.
const LIMITS: Limits = Limits {
    run: Duration::from_secs(60),
    boot: Duration::from_secs(30),
    silence: Duration::from_secs(15),
};

/// Runs `script` as the lab: it finds the ports as shell variables that name descriptors.
fn lab(script: &str, limits: Limits) -> End {
    let (ends, inherited) = connect().unwrap();
    let [ctl, beat, out, err, input] = inherited.ports();
    let console = inherited.console();
    let names = format!("ctl={ctl} beat={beat} out={out} err={err} in={input} console={console}\n");
    // dash takes descriptors of one digit only.
    let child = Command::new("bash").args(["-c", &(names + script)]).stdin(Stdio::null()).spawn();
    let session = Session::new(child.unwrap(), false);
    drop(inherited);
    session.attend(ends, b"job\n", false, limits).unwrap()
}

fn reason(end: End) -> String {
    match end {
        End::Failed { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exit_code_comes_through() {
    let script = "read line <&$ctl; [ $line = job ] || exit; echo beat >&$beat; echo exit 7 >&$ctl";
    assert_eq!(lab(script, LIMITS), End::Exit(7));
}

#[test]
fn an_end_without_a_code_is_a_failure_with_the_console() {
    let end = lab("echo beat >&$beat; echo 'Kernel panic' >&$console; sleep 0.1", LIMITS);
    let reason = reason(end);
    assert!(reason.contains("without an exit code") && reason.contains("Kernel panic"), "{reason}");
}

#[test]
fn a_failed_set_up_is_told() {
    let end = lab("echo 'fail no pmem0' >&$ctl; sleep 9", LIMITS);
    assert!(reason(end).contains("could not be set up: no pmem0"));
}

#[test]
fn silence_is_a_hang() {
    let begin = Instant::now();
    let limits = Limits { silence: SECOND, ..LIMITS };
    let end = lab("echo beat >&$beat; exec sleep 60", limits);
    assert!(begin.elapsed() < Duration::from_secs(9));
    assert!(reason(end).contains("hangs"));
}

#[test]
fn a_lab_that_never_lives_is_told_apart() {
    let end = lab("exec sleep 60", Limits { boot: SECOND, ..LIMITS });
    assert!(matches!(&end, End::Failed { lived: false, .. }), "{end:?}");
    assert!(reason(end).contains("no sign of life within"));
}

#[test]
fn the_time_limit_holds_while_the_lab_lives() {
    let script = "while echo beat >&$beat; do sleep 0.2; done";
    assert_eq!(lab(script, Limits { run: 2 * SECOND, ..LIMITS }), End::TimeLimit);
}
