//! The harness: counts the calls of a verb, then disturbs each of them once.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use crate::files::names;
use crate::order;
use crate::verbs::Verb;

/// Calls that change names, lengths or what is durable.
pub const CALLS: &str = "rename,renameat,renameat2,fsync,fdatasync,unlink,unlinkat,rmdir,link,linkat,\
                         ftruncate,mkdir,mkdirat";

/// What happens at a call.
pub const FAULTS: [&str; 2] = ["signal=KILL", "error=EIO"];

pub fn has_strace() -> bool {
    Command::new("strace").arg("-V").output().is_ok()
}

/// `command` under strace with these options, its log at `log`.
pub fn traced(command: &Command, options: &[&str], log: &Path) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-y", "-s", "0", "-o"]).arg(log).args(options);
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        strace.env(name, value.unwrap());
    }
    strace.stdin(Stdio::null());
    strace
}

/// How often each call was made by the thread that made it most often.
pub fn counted(log: &str) -> BTreeMap<String, usize> {
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if CALLS.split(',').any(|known| known == call) {
            *by_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let most = counts.entry(call.into()).or_default();
        *most = count.max(*most);
    }
    counts
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-aT").arg(from).arg(to).status();
    assert!(status.unwrap().success());
}

fn ran(name: &str, output: &Output) -> ExitStatus {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{name}: {said}");
    output.status
}

/// Kills and disturbs `verb` at each of its calls.
pub fn sweep(verb: &Verb) {
    let place = tempfile::tempdir().unwrap();
    let [kept, dir, log] = ["kept", "dir", "log"].map(|name| place.path().join(name));
    fs::create_dir(&dir).unwrap();
    (verb.prepare)(&dir);
    copy(&dir, &kept);

    let command = (verb.run)(&dir);
    let output = traced(&command, &["-e", &format!("trace={CALLS}")], &log).output().unwrap();
    assert!(ran(verb.name, &output).success(), "{}: {output:?}", verb.name);
    (verb.check)(&dir, true);
    let wanted = names(&dir);
    let seen = fs::read_to_string(&log).unwrap();
    order::check(verb.name, &seen, &dir);
    let counts = counted(&seen);
    assert!(counts.values().sum::<usize>() > 1, "{}: {counts:?}", verb.name);

    let mut times = 0;
    for (call, count) in &counts {
        for (when, fault) in (1..=*count).flat_map(|n| FAULTS.map(|fault| (n, fault))) {
            let at = format!("{}: {fault} at {call} {when} of {count}", verb.name);
            copy(&kept, &dir);
            let inject = format!("inject={call}:{fault}:when={when}");
            let output = traced(&command, &["-e", &inject], &log).output().unwrap();
            let end = ran(&at, &output);
            assert!(!fault.contains("KILL") || end.signal() == Some(9), "{at}: {output:?}");
            println!("{at}: {end}");
            (verb.check)(&dir, end.success());
            let again = (verb.run)(&dir).output().unwrap();
            assert!(ran(&at, &again).success(), "{at}, then again: {again:?}");
            (verb.check)(&dir, true);
            let mut left = names(&dir);
            if fault.contains("error") && call.starts_with("unlink") {
                // What the disk does not let go takes space and does no harm.
                left.retain(|name| wanted.contains(name) || !order::may_come_back(name));
            }
            assert_eq!(left, wanted, "{at}: what was left stays");
            times += 1;
        }
    }
    println!("{}: disturbed {times} times: {counts:?}", verb.name);
}
