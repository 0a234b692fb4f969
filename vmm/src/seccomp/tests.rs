//! Filters on real threads: a forbidden call ends the process, whichever kind of thread makes it.
//!
//! A test starts itself again as a process of its own, which takes the filter and makes the call.
//!
//! UNSAFETY: memory is mapped executable, and calls are made that have no safe wrapper, to see that they
//! cannot be.
#![allow(unsafe_code)]

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output};
use std::time::Instant;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::*;

/// Which kind of thread the process is to be, its tasks, and which call it is to make.
const ROLE: &str = "VARVE_SECCOMP_TEST";

const NONE: &[Thread] = &[];
const START: &[Thread] = &[Thread::Start];
const SAVERS: &[Thread] = &[Thread::Start, Thread::Saver];

/// A call, what the message names it, the kinds of threads that may make it in a process without tasks,
/// and those in one that serves the API and saves. No name: the C library has signals blocked meanwhile,
/// and the kernel ends the process without a word.
const CALLS: &[(&str, &str, &[Thread], &[Thread])] = &[
    ("nothing", "", &Thread::ALL, &Thread::ALL),
    ("a thread", "", &[Thread::Start, Thread::Pager], &[Thread::Start, Thread::Pager]),
    ("a program", "", NONE, NONE),
    ("exec", "execve", NONE, NONE),
    ("executable memory", "mmap", NONE, NONE),
    ("an internet socket", "socket", NONE, NONE),
    (
        "a unix socket",
        "socket",
        &[Thread::Start, Thread::Main, Thread::Client, Thread::Pager],
        &[Thread::Start, Thread::Main, Thread::Client, Thread::Pager],
    ),
    ("a new file", "open", SAVERS, &[Thread::Start, Thread::Main, Thread::Saver]),
    ("another name", "rename", NONE, SAVERS),
    ("a folder", "mkdir", NONE, SAVERS),
    ("a relative path", "getcwd", SAVERS, SAVERS),
    ("another user", "setuid", NONE, NONE),
    ("another root", "chroot", NONE, NONE),
    ("tracing", "ptrace", NONE, NONE),
    ("an ioctl", "ioctl", NONE, NONE),
    ("a signal to another process", "tgkill", NONE, NONE),
    ("a thread's signal to another process", "tkill", NONE, NONE),
    ("a signal", "kill", NONE, NONE),
    ("limits of another process", "prlimit64", NONE, NONE),
    ("its own limits", "prlimit64", START, START),
    ("other limits for itself", "prlimit64", NONE, NONE),
    ("userfaultfd", "userfaultfd", START, START),
    ("a lock on a file", "fcntl", NONE, NONE),
    ("a machine", "ioctl", START, START),
    ("a process", "clone", NONE, NONE),
    ("a filter that logs", "seccomp", NONE, NONE),
    ("executable code", "mprotect", NONE, NONE),
    ("merging memory", "madvise", NONE, NONE),
    ("a lock shared by processes", "futex", NONE, NONE),
    ("a datagram socket", "socket", NONE, NONE),
    ("an unnamed file", "open", NONE, NONE),
    ("a handle of a file", "open", NONE, NONE),
    ("a signal by descriptor", "fcntl", NONE, NONE),
    ("an alarm at a time of day", "timerfd_settime", NONE, NONE),
    ("a clock of another process", "clock_gettime", NONE, NONE),
    ("a file's attributes by another way", "statx", NONE, NONE),
];

/// A process that the filtered one had better not reach.
fn victim() -> Child {
    Command::new("sleep").arg("100").spawn().unwrap()
}

/// What a call answers does not matter: that it answers does.
fn ignore<T>(_: T) {}

fn make(call: &str, victim: i32) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let limits = libc::rlimit64 { rlim_cur: 64, rlim_max: 64 };
    let mut found = limits;
    let prlimit = |pid: i32, new: *const libc::rlimit64, old: *mut libc::rlimit64| {
        // SAFETY: each pointer is null or leads to a structure of this function.
        ignore(unsafe { libc::prlimit64(pid, libc::RLIMIT_CORE, new, old) });
    };
    match call {
        "a thread" => drop(std::thread::spawn(|| ()).join()),
        "a program" => drop(Command::new("true").status()),
        // SAFETY: two texts and a list of one, each ended by a zero.
        "exec" => ignore(unsafe {
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
        "another name" => drop(std::fs::rename("/nonexistent", "/nonexistent2")),
        "a folder" => drop(std::fs::create_dir("/nonexistent/folder")),
        "a relative path" => drop(std::fs::canonicalize("nonexistent")),
        // SAFETY: these calls take numbers only, and are not expected to return.
        "another user" => ignore(unsafe { libc::syscall(libc::SYS_setuid, 1) }),
        "another root" => drop(rustix::process::chroot("/")),
        // SAFETY: as above; PTRACE_TRACEME takes nothing.
        "tracing" => ignore(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }),
        // TIOCSTI, which types into the terminal.
        // SAFETY: reads one byte.
        "an ioctl" => ignore(unsafe { libc::ioctl(0, libc::TIOCSTI, b"x".as_ptr()) }),
        "a signal to another process" => {
            // SAFETY: a signal to a process of this test.
            ignore(unsafe { libc::syscall(libc::SYS_tgkill, victim, victim, libc::SIGABRT) })
        }
        "a thread's signal to another process" => {
            // SAFETY: as above.
            ignore(unsafe { libc::syscall(libc::SYS_tkill, victim, libc::SIGABRT) })
        }
        // SAFETY: as above.
        "a signal" => ignore(unsafe { libc::kill(victim, libc::SIGABRT) }),
        "limits of another process" => prlimit(victim, std::ptr::null(), &mut found),
        "its own limits" => prlimit(0, std::ptr::null(), &mut found),
        "other limits for itself" => prlimit(own, &limits, std::ptr::null_mut()),
        // SAFETY: takes a number.
        "userfaultfd" => ignore(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) }),
        "a lock on a file" => {
            // SAFETY: a structure of zeros is one; the call reads it.
            ignore(unsafe { libc::fcntl(0, libc::F_SETLK, &std::mem::zeroed::<libc::flock>()) })
        }
        // KVM_CREATE_VM.
        // SAFETY: takes a number.
        "a machine" => ignore(unsafe { libc::ioctl(0, 0xae01, 0) }),
        // Without the flags of a thread it would be a process, as by fork.
        // SAFETY: a process of one thread that goes on with its own copy of memory.
        "a process" => ignore(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }),
        // SAFETY: the kernel reads no filter from a null pointer.
        "a filter that logs" => ignore(unsafe {
            let log = libc::SECCOMP_FILTER_FLAG_LOG;
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, log, 0)
        }),
        "executable code" => {
            let exec = libc::PROT_READ | libc::PROT_EXEC;
            // SAFETY: no byte at all is changed.
            ignore(unsafe { libc::mprotect(std::ptr::null_mut(), 0, exec) })
        }
        "merging memory" => {
            // SAFETY: no byte at all is advised about.
            ignore(unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_MERGEABLE) })
        }
        "a lock shared by processes" => {
            // SAFETY: the kernel takes no lock at a null pointer.
            ignore(unsafe { libc::syscall(libc::SYS_futex, 0, libc::FUTEX_LOCK_PI, 0, 0, 0, 0) })
        }
        "a datagram socket" => drop(std::os::unix::net::UnixDatagram::unbound()),
        "an unnamed file" => open(libc::O_TMPFILE | libc::O_RDWR),
        "a handle of a file" => open(libc::O_PATH | libc::O_WRONLY),
        // SAFETY: takes numbers.
        "a signal by descriptor" => ignore(unsafe { libc::fcntl(0, libc::F_SETOWN, own) }),
        "an alarm at a time of day" => {
            let absolute = libc::TFD_TIMER_ABSTIME;
            // SAFETY: a null pointer is refused.
            ignore(unsafe { libc::syscall(libc::SYS_timerfd_settime, 0, absolute, 0, 0) })
        }
        "a clock of another process" => {
            // Its number is made of the process's (linux/posix-timers.h): CPUCLOCK_SCHED is 2.
            let clock = (!victim << 3) | 2;
            // SAFETY: a null pointer is refused.
            ignore(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, 0) })
        }
        "a file's attributes by another way" => {
            let automount = libc::AT_NO_AUTOMOUNT;
            // SAFETY: null pointers are refused.
            ignore(unsafe { libc::syscall(libc::SYS_statx, 0, 0, automount, 0, 0) })
        }
        "its own end" => std::process::abort(),
        _ => {}
    }
}

fn open(flags: i32) {
    // SAFETY: a text that ends with a zero; a mode follows.
    ignore(unsafe { libc::open(c"/tmp".as_ptr(), flags | libc::O_CLOEXEC, 0o600) });
}

/// What the process does that [`run`] starts; on its own this test does nothing.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.splitn(4, ' ');
    let (thread, tasks) = (words.next().unwrap(), words.next().unwrap());
    let (victim, call) = (words.next().unwrap().parse().unwrap(), words.next().unwrap());
    let thread = Thread::ALL.into_iter().find(|t| t.name() == thread).unwrap();
    let saves = tasks == "api";
    enter(&Choice::Own(Tasks { api: saves, saves, pool: false })).unwrap();
    if thread != Thread::Start {
        confine(thread).unwrap();
    }
    make(call, victim);
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
    let mut victim = victim();
    for thread in Thread::ALL {
        for (call, name, bare, with_tasks) in CALLS {
            for (tasks, allowed) in [("none", bare), ("api", with_tasks)] {
                let role = format!("{} {tasks} {} {call}", thread.name(), victim.id());
                let output = run(&role);
                let said = String::from_utf8_lossy(&output.stderr);
                let end = (output.status.code(), output.status.signal());
                if allowed.contains(&thread) {
                    assert_eq!(end, (Some(0), None), "{role}: {said}");
                    assert!(said.contains("done: "), "{role}: {said}");
                    continue;
                }
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
    assert_eq!(victim.try_wait().unwrap(), None, "the other process lives");
    victim.kill().unwrap();
    victim.wait().unwrap();
}

/// A thread that aborts sends its own process a signal.
#[test]
fn each_thread_may_end_its_process() {
    for thread in Thread::ALL {
        let output = run(&format!("{} none 0 its own end", thread.name()));
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{thread:?}: {output:?}");
    }
}

#[test]
fn without_filters_everything_goes() {
    assert_eq!(enter(&Choice::Off).map_err(|e| e.to_string()), Ok(()));
    make("an internet socket", 0);
}

/// The kernel takes no filter of more than 4096 instructions, and start-up pays for each.
#[test]
fn filters_are_small() {
    for thread in Thread::ALL {
        let started = Instant::now();
        let program = call::allow(&thread.lists(Tasks::ALL), 1, libc::SECCOMP_RET_TRAP);
        println!("{thread:?}: {} instructions in {:?}", program.len(), started.elapsed());
        assert!(program.len() < 700, "{thread:?}: {}", program.len());
    }
}
