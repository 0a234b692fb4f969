//! Handlers of signals. They note what came, wake the thread that deals with it ([`crate::signals`])
//! and, for signals after which a thread cannot go on, end the process if that thread does not.
//!
//! | signal | what becomes of the process |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGHUP | the machine ends |
//! | SIGBUS, SIGSEGV, SIGILL, SIGXCPU; SIGXFSZ of another process | ends at once, exit codes as Firecracker's |
//! | SIGXFSZ for a write of its own | counted: the write fails with EFBIG |
//! | SIGPIPE | counted: the write fails with EPIPE |
//!
//! UNSAFETY: handlers are registered with the kernel, which calls them with pointers. A handler runs
//! in the middle of anything: it allocates nothing and takes no lock.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::fmt::{self, Write};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A signal after which a thread cannot go on: number, name, exit code of the process (Firecracker's
/// `FcExitCode`).
const ENDING: [(c_int, &str, u8); 5] = [
    (libc::SIGBUS, "SIGBUS", 149),
    (libc::SIGSEGV, "SIGSEGV", 150),
    (libc::SIGXFSZ, "SIGXFSZ", 151),
    (libc::SIGXCPU, "SIGXCPU", 154),
    (libc::SIGILL, "SIGILL", 157),
];
/// Signals that ask for the machine's end.
const ASKING: [(c_int, &str); 3] =
    [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT"), (libc::SIGHUP, "SIGHUP")];

/// How long a thread that cannot go on waits for the signals' thread to end the process.
const GRACE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Wakes the thread that deals with signals.
static WAKE: OnceLock<OwnedFd> = OnceLock::new();
/// Id of that thread; 0 while there is none.
static DEALER: AtomicI32 = AtomicI32::new(0);
/// The signal that asked for the end and was not taken yet; 0: none.
static ASKED: AtomicI32 = AtomicI32::new(0);
/// The first signal after which a thread cannot go on, its `si_code` and the exit code.
static FATAL: AtomicI32 = AtomicI32::new(0);
static FATAL_CODE: AtomicI32 = AtomicI32::new(0);
static FATAL_EXIT: AtomicU8 = AtomicU8::new(0);
/// A thread is in the handler that ends the process.
static ENDS: AtomicI32 = AtomicI32::new(0);
static SIGPIPES: AtomicU64 = AtomicU64::new(0);
static SIGXFSZS: AtomicU64 = AtomicU64::new(0);

/// Explains a SIGBUS that the kernel sent for an access to `address`, and its `si_code`: writes into `line` what is
/// known of it and returns the exit code of the process; none if the address is not one it knows.
/// It runs in the handler: no allocation, no lock that is waited for.
pub type ExplainBus = fn(address: usize, code: c_int, line: &mut Line) -> Option<u8>;

/// Consulted by the handler of SIGBUS.
static EXPLAIN_BUS: OnceLock<ExplainBus> = OnceLock::new();

/// Has the handler of SIGBUS consult `explain`. Only the first call counts.
pub fn explain_bus(explain: ExplainBus) {
    let _ = EXPLAIN_BUS.set(explain);
}

/// Takes all of them over. To be called before the process is filtered; later calls do nothing.
pub fn install() -> io::Result<()> {
    if WAKE.get().is_some() {
        return Ok(());
    }
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    if WAKE.set(wake).is_err() {
        return Ok(());
    }
    for (signal, _) in ASKING {
        handle(signal, on_asked)?;
    }
    for (signal, ..) in ENDING {
        handle(signal, on_fatal)?;
    }
    handle(libc::SIGPIPE, on_pipe)
}

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

fn handle(signal: c_int, handler: Handler) -> io::Result<()> {
    // SAFETY: zeros are a valid `sigaction`: no handler, no flags, no signal blocked.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // On the stack for signals that each thread of Rust has: its own may be what is used up.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the form that SA_SIGINFO asks for and keeps to what handlers may do.
    match unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the signals' thread finds when it is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// A signal asks for the machine's end.
    Asked(&'static str),
    /// A thread cannot go on.
    Fatal {
        /// The signal.
        signal: c_int,
        /// What the kernel says of it (`si_code`).
        code: c_int,
        /// Exit code of the process.
        exit: u8,
    },
}

/// Makes this thread the one that deals with signals.
pub fn deal() {
    DEALER.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
}

/// Waits until something came, `for_at_most` so long, or [`wake`] was called; takes it.
pub fn wait(for_at_most: Option<Timespec>) -> Option<Came> {
    let fd = WAKE.get()?;
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], for_at_most.as_ref());
    let _ = rustix::io::read(fd, &mut [0; 8]);
    let fatal = FATAL.load(Ordering::SeqCst);
    if fatal != 0 {
        let code = FATAL_CODE.load(Ordering::SeqCst);
        return Some(Came::Fatal { signal: fatal, code, exit: FATAL_EXIT.load(Ordering::SeqCst) });
    }
    let asked = ASKED.swap(0, Ordering::SeqCst);
    ASKING.iter().find(|(signal, _)| *signal == asked).map(|(_, name)| Came::Asked(name))
}

/// Wakes the thread that deals with signals.
pub fn wake() {
    if let Some(fd) = WAKE.get() {
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}

/// SIGPIPEs so far.
pub fn sigpipes() -> u64 {
    SIGPIPES.load(Ordering::Relaxed)
}

/// Writes of this process that were past its file size limit.
pub fn sigxfszs() -> u64 {
    SIGXFSZS.load(Ordering::Relaxed)
}

/// A handler must leave `errno` to the code that it interrupts.
fn keeping_errno(act: impl FnOnce()) {
    // SAFETY: the C library's `errno` of this thread, which is there as long as the thread.
    let errno = unsafe { &mut *libc::__errno_location() };
    let before = *errno;
    act();
    *errno = before;
}

/// Whether the signal is this process's own: sent by the kernel for one of its calls.
fn is_own(info: &libc::siginfo_t) -> bool {
    // SAFETY: `si_pid` is a plain number wherever `si_code` says that a process sent the signal.
    let sender = unsafe { info.si_pid() };
    info.si_code > 0 || sender == rustix::process::getpid().as_raw_nonzero().get()
}

extern "C" fn on_asked(signal: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    keeping_errno(|| {
        ASKED.store(signal, Ordering::SeqCst);
        wake();
    });
}

extern "C" fn on_pipe(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    SIGPIPES.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn on_fatal(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    if signal == libc::SIGXFSZ && is_own(info) {
        SIGXFSZS.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let known = ENDING.iter().find(|(number, ..)| *number == signal);
    let (name, mut exit) = known.map_or(("a signal", 1), |(_, name, exit)| (*name, *exit));
    let code = info.si_code;
    let mut line = Line::new();
    let mut explained = None;
    if code > 0 {
        // SAFETY: the kernel fills `si_addr` for the signals that it sends for a fault; for the
        // others it is a number that is only printed.
        let address = unsafe { info.si_addr() } as usize;
        if signal == libc::SIGBUS {
            explained = EXPLAIN_BUS.get().and_then(|explain| {
                let _ = write!(line, "varve: ");
                explain(address, code, &mut line)
            });
        }
        match explained {
            Some(own) => exit = own,
            None => {
                line = Line::new();
                let _ =
                    write!(line, "varve: ended by {name} (code {code}) at address {address:#x}");
            }
        }
    } else {
        // SAFETY: see `is_own`.
        let sender = unsafe { info.si_pid() };
        let _ = write!(line, "varve: ended by {name}, sent by process {sender}");
    }
    line.end();
    end_process(signal, code, exit, &line)
}

/// Ends the process from a handler: says `line` on standard error, leaves log and metrics to the
/// signals' thread, and does not wait for that thread long. `line` ends in a line feed.
pub fn end_process(signal: c_int, code: c_int, exit: u8, line: &Line) -> ! {
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    match ENDS.compare_exchange(0, own, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        // The handler itself met a fault.
        Err(first) if first == own => exit_now(exit),
        Err(_) => loop {
            let _ = poll(&mut [], Some(&GRACE));
        },
    }
    line.say();
    FATAL_CODE.store(code, Ordering::SeqCst);
    FATAL_EXIT.store(exit, Ordering::SeqCst);
    FATAL.store(signal, Ordering::SeqCst);
    let dealer = DEALER.load(Ordering::SeqCst);
    if dealer != 0 && dealer != own {
        wake();
        let _ = poll(&mut [], Some(&GRACE));
    }
    exit_now(exit)
}

/// Gives the terminal back and ends the process, without running anything else of it.
pub fn exit_now(exit: u8) -> ! {
    crate::terminal::restore_if_free();
    // SAFETY: ends the process.
    unsafe { libc::_exit(exit.into()) }
}

/// Text in a fixed place; what is too long is cut.
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    /// Nothing yet.
    pub fn new() -> Line {
        Line { bytes: [0; 512], len: 0 }
    }

    /// Ends the line, whatever its length is.
    pub fn end(&mut self) {
        self.len = self.len.min(self.bytes.len() - 1);
        self.bytes[self.len] = b'\n';
        self.len += 1;
    }

    /// Writes it to standard error, if that has room soon.
    pub fn say(&self) {
        const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        let stderr = rustix::stdio::stderr();
        if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&SOON)) != Ok(0) {
            self.write();
        }
    }

    /// Writes it to standard error, whether or not that has room.
    pub fn write(&self) {
        let text = self.bytes.get(..self.len).unwrap_or_default();
        let _ = rustix::io::write(rustix::stdio::stderr(), text);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).ok_or(fmt::Error)?;
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}
