//! Filters on real threads: a forbidden call ends the process, whichever kind of thread makes it.
//!
//! A test starts itself again as a process of its own, which takes the filter and makes the call.
//!
//! UNSAFETY: memory is mapped executable, to see that it cannot be.
#![allow(unsafe_code)]

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::*;

/// Which kind of thread the process is to be, and which call it is to make.
const ROLE: &str = "VARVE_SECCOMP_TEST";

/// A call, what the message names it, and the kinds of threads that may make it. No name: the C library
/// has signals blocked meanwhile, and the kernel ends the process without a word.
const CALLS: &[(&str, &str, &[Thread])] = &[
    ("nothing", "", &Thread::ALL),
    ("a thread", "", &[Thread::Main, Thread::Pager]),
    ("a program", "", &[]),
    ("exec", "execve", &[]),
    ("executable memory", "mmap", &[]),
    ("an internet socket", "socket", &[]),
    ("a unix socket", "socket", &[Thread::Main, Thread::Client, Thread::Pager]),
    ("a new file", "open", &[Thread::Main]),
    ("another user", "setuid", &[]),
    ("another root", "chroot", &[]),
    ("tracing", "ptrace", &[]),
    ("an ioctl", "ioctl", &[]),
];

fn make(call: &str) {
    match call {
        "a thread" => drop(std::thread::spawn(|| ()).join()),
        "a program" => drop(Command::new("true").status()),
        // SAFETY: two texts and a list of one, each ended by a zero.
        "exec" => drop(unsafe {
            libc::execv(c"/bin/true".as_ptr(), [c"true".as_ptr(), std::ptr::null()].as_ptr())
        }),
        "executable memory" => {
            let prot = ProtFlags::READ | ProtFlags::EXEC;
            // SAFETY: a new mapping, which nothing uses.
            let _ = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, prot, MapFlags::PRIVATE) };
        }
        "an internet socket" => drop(TcpStream::connect("127.0.0.1:1")),
        "a unix socket" => drop(UnixStream::connect("/nonexistent")),
        "a new file" => drop(File::create("/dev/null")),
        // SAFETY: these calls take numbers only, and are not expected to return.
        "another user" => drop(unsafe { libc::syscall(libc::SYS_setuid, 1) }),
        "another root" => drop(rustix::process::chroot("/")),
        // SAFETY: as above; PTRACE_TRACEME takes nothing.
        "tracing" => drop(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
        // TIOCSTI, which types into the terminal.
        // SAFETY: reads one byte.
        "an ioctl" => drop(unsafe { libc::ioctl(0, libc::TIOCSTI, b"x".as_ptr()) }),
        _ => {}
    }
}

/// What the process does that [`run`] starts; on its own this test does nothing.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (thread, call) = role.split_once(' ').unwrap();
    let thread = Thread::ALL.into_iter().find(|t| t.name() == thread).unwrap();
    enter(&Choice::Own).unwrap();
    if thread != Thread::Main {
        confine(thread).unwrap();
    }
    make(call);
    eprintln!("done: {call}");
    std::process::exit(0);
}

fn run(role: &str) -> Output {
    let test = concat!(module_path!(), "::role");
    let (_, test) = test.split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(ROLE, role)
        .output()
        .unwrap()
}

#[test]
fn a_forbidden_call_ends_the_process() {
    for thread in Thread::ALL {
        for (call, name, allowed) in CALLS {
            let role = format!("{} {call}", thread.name());
            let output = run(&role);
            let said = String::from_utf8_lossy(&output.stderr);
            let end = (output.status.code(), output.status.signal());
            if allowed.contains(&thread) {
                assert_eq!(end, (Some(0), None), "{role}: {said}");
                assert!(said.contains("done: "), "{role}: {said}");
            } else {
                assert!(!said.contains("done: "), "{role}: {said}");
                if name.is_empty() {
                    assert_eq!(end, (None, Some(libc::SIGSYS)), "{role}: {said}");
                    continue;
                }
                assert_eq!(end, (Some(i32::from(EXIT_CODE)), None), "{role}: {said}");
                let named = format!("made a forbidden system call: {name}");
                assert!(said.contains(&named), "{role}: {said}");
            }
        }
    }
}

#[test]
fn without_filters_everything_goes() {
    assert_eq!(enter(&Choice::Off).map_err(|e| e.to_string()), Ok(()));
    make("an internet socket");
}

/// The kernel takes no filter of more than 4096 instructions, and start-up pays for each.
#[test]
fn filters_are_small() {
    for thread in Thread::ALL {
        let started = Instant::now();
        let program = call::allow(thread.lists(true), libc::SECCOMP_RET_TRAP);
        println!("{thread:?}: {} instructions in {:?}", program.len(), started.elapsed());
        assert!(program.len() < 500, "{thread:?}: {}", program.len());
    }
}
