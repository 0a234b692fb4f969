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

/// Messages of a command line that Firecracker would refuse too, with its exit code.
fn firecracker_refused(args: &[&str], code: i32) -> String {
    let Ended { code: found, stderr, console, .. } = run(args);
    assert_eq!((found, console.as_str()), (Some(code), ""), "{args:?}: {stderr}");
    stderr
}

#[test]
fn firecrackers_options() {
    for (args, code, word) in [
        (&["--no-api"][..], 153, "--config-file"),
        (&["--id", "a_b"], 153, "invalid char (_) at position 1"),
        (&["--id", ""], 153, "between 1 and 64"),
        (&["--start-time-us", "now"], 153, "'now'"),
        (&["--http-api-max-payload-size", "-1"], 153, "-1"),
        (&["--seccomp-filter", "f", "--no-seccomp"], 153, "cannot be used with"),
        (&["--enable-pci"], 153, "'--enable-pci' is not supported"),
        (&["--level", "loud"], 152, "'--level loud'"),
        (&["--config-file", "/no/such.json", "--no-api"], 1, "\"/no/such.json\": No such file"),
        (&["--describe-snapshot", "/no/such"], 1, "No such file"),
        (&["--describe-snapshot", "/proc/version"], 1, "not a varve state file"),
        (&["--boot-timer", "run", "--kernel", "k"], 153, "'--boot-timer' in front of 'run'"),
    ] {
        let message = firecracker_refused(args, code);
        assert!(message.contains(word), "{args:?}: {message}");
    }
    assert_eq!(output(&["--snapshot-version"]), "v1.2.0\n");
    let help = output(&["--help"]);
    for option in ["--api-sock", "--config-file", "--no-api", "--metadata", "--parent-cpu-time-us"]
    {
        assert!(help.contains(option), "{option} is not in:\n{help}");
    }
}

#[test]
fn help_teaches() {
    let top = output(&["--help"]);
    for word in ["Usage: varve", "run", "--log-level", "Exit codes: 0"] {
        assert!(top.contains(word), "{word:?} is not in:\n{top}");
    }
    assert!(output(&["-h"]).contains("Exit codes: 0"));

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
    // As tools parse it that look for Firecracker: two words on the first line, the second one a
    // number with a `v`.
    let version = output(&["--version"]);
    let first: Vec<_> = version.lines().next().unwrap().split(' ').collect();
    let [name, number] = first[..] else { panic!("{first:?}") };
    let parts: Vec<u32> =
        number.strip_prefix('v').unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!((name, parts.len()), ("Firecracker", 3));
    let own = format!("\nvarve {}", env!("CARGO_PKG_VERSION"));
    assert!(version.contains(&own), "{version}");
    assert_eq!(output(&["-V"]), version);
}

#[test]
fn what_is_not_known_is_named() {
    assert!(firecracker_refused(&["--frobnicate"], 153).contains("'--frobnicate'"));
    assert!(refused(&["run", "--frobnicate"]).contains("'--frobnicate'"));
    // A near miss is answered with what was meant.
    let near = refused(&["run", "--kernal", "vmlinux"]);
    assert!(near.contains("'--kernal'") && near.contains("'--kernel'"), "{near}");
    assert!(refused(&["start"]).contains("'start'"));
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
