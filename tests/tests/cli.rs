//! The command line: what it teaches, and how it refuses. No machine is started.

#![allow(clippy::unwrap_used, reason = "tests")]

use varve_tests::Ended;
use varve_tests::command::run;

/// Output of a command that works.
fn output(args: &[&str]) -> String {
    let end = run(args);
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{args:?}: {end:?}");
    end.console
}

/// Messages of a command line that is wrong.
fn refused(args: &[&str]) -> String {
    let Ended { code, stderr, console, .. } = run(args);
    assert_eq!((code, console.as_str()), (Some(2), ""), "{args:?}: {stderr}");
    stderr
}

#[test]
fn help_teaches() {
    let top = output(&["--help"]);
    for word in ["Usage: varve", "run", "--log-level", "Exit codes: 0"] {
        assert!(top.contains(word), "{word:?} is not in:\n{top}");
    }
    assert_eq!(output(&["-h"]), top);

    let run = output(&["run", "--help"]);
    let examples = run.split_once("Examples:").expect("no examples").1;
    for line in ["varve run --kernel vmlinux --initrd", "--vsock cid=3", "--config-file vm.json"] {
        assert!(examples.contains(line), "{line:?} is not in:\n{examples}");
    }
    // Every option says what it is for.
    let options = run.split_once("Options:").unwrap().1.split_once("Examples:").unwrap().0;
    let names: Vec<_> = options.split_whitespace().filter(|w| w.starts_with("--")).collect();
    for name in ["--kernel", "--initrd", "--cmdline", "--rootfs", "--drive", "--net", "--vsock"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for name in ["--memory", "--vcpus", "--console", "--config-file", "--balloon", "--entropy"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[test]
fn version() {
    let version = output(&["--version"]);
    let number = version.strip_prefix("varve ").and_then(|v| v.strip_suffix('\n')).unwrap();
    assert_eq!(number, env!("CARGO_PKG_VERSION"));
    assert_eq!(output(&["-V"]), version);
}

#[test]
fn what_is_not_known_is_named() {
    assert!(refused(&["--frobnicate"]).contains("'--frobnicate'"));
    assert!(refused(&["run", "--frobnicate"]).contains("'--frobnicate'"));
    // A near miss is answered with what was meant.
    let near = refused(&["run", "--kernal", "vmlinux"]);
    assert!(near.contains("'--kernal'") && near.contains("'--kernel'"), "{near}");
    assert!(refused(&["start"]).contains("'start'"));
    let none = refused(&[]);
    assert!(none.contains("Usage: varve"), "{none}");
    assert!(refused(&["run"]).contains("--kernel <FILE>"));
    let file = ["run", "--config-file", "vm.json", "--memory", "1G"];
    let both = refused(&file);
    assert!(both.contains("--config-file") && both.contains("--memory"), "{both}");
}

#[test]
fn log_level() {
    let bad = refused(&["run", "--kernel", "k", "--log-level", "loud"]);
    assert!(bad.contains("'loud' for '--log-level"), "{bad}");
    assert!(bad.contains("off, error, warn, info, debug and trace"), "{bad}");
    // Before and behind the command.
    for args in [["--log-level", "debug", "run"], ["run", "--log-level", "debug"]] {
        let end = run(args.into_iter().chain(["--kernel", "/no/such/kernel"]));
        assert_eq!(end.code, Some(1), "{end:?}");
    }
}
