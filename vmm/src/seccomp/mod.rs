//! Seccomp filters: each kind of thread may make the system calls of its list, and no others. A
//! call that is not in the list ends the process at once (`trap`).
//!
//! ```text
//!  lists, ioctls ──> call ──(compile)──> programs ──> enter: the main thread, early
//!  file: --seccomp-filter ───────────────────────┘        confine: each other thread, as it starts
//!                                                          settle: the main thread again, later
//! ```
//!
//! The main thread is filtered before it reads a configuration or hears a client, and its filter is
//! inherited by each thread that it starts; those then narrow themselves to their own list. Once the
//! machine is there, the main thread needs less, and narrows itself, too. What a process was not told
//! to do ([`Tasks`]) is in no list of it.

mod call;
#[cfg(test)]
mod counts;
mod file;
mod ioctls;
mod lists;
#[cfg(test)]
mod tests;
mod trap;

use std::path::PathBuf;
use std::sync::OnceLock;

use seccompiler::BpfProgram;

use call::Call;
pub use file::FileError;
pub use trap::EXIT_CODE;

/// A kind of thread, at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The one that the process began with, until its machine is there.
    Start,
    /// The same from then on.
    Main,
    /// A drive's, where it has one of its own.
    Drive,
    /// A vCPU's.
    Vcpu,
    /// The one that writes snapshots and traces.
    Saver,
    /// Those of guest memory: populating, faults, recording.
    Memory,
    /// The client of the guest's agent.
    Client,
    /// Those of a pager that bring no pages: its main thread, listeners, and one for each machine.
    Pager,
}

/// What a process is to do besides running a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Answer requests of the API's clients.
    pub api: bool,
    /// Write snapshots or traces.
    pub saves: bool,
    /// Fetch pages from a pool, or send them there.
    pub pool: bool,
}

impl Tasks {
    /// All of them.
    pub const ALL: Tasks = Tasks { api: true, saves: true, pool: true };
}

impl Thread {
    /// All kinds.
    pub const ALL: [Thread; 8] = [
        Thread::Start,
        Thread::Main,
        Thread::Drive,
        Thread::Vcpu,
        Thread::Saver,
        Thread::Memory,
        Thread::Client,
        Thread::Pager,
    ];

    /// Its name in a file of filters: `vmm` and `vcpu` are Firecracker's.
    pub fn name(self) -> &'static str {
        match self {
            Thread::Start => "start",
            Thread::Main => "vmm",
            Thread::Drive => "drive",
            Thread::Vcpu => "vcpu",
            Thread::Saver => "saver",
            Thread::Memory => "memory",
            Thread::Client => "client",
            Thread::Pager => "pager",
        }
    }

    fn lists(self, tasks: Tasks) -> Vec<&'static [Call]> {
        let mut lists = self.own_lists(tasks);
        lists.extend([lists::DEBUG, lists::MUSL]);
        lists
    }

    /// The lists without what the C library and the build add.
    fn own_lists(self, tasks: Tasks) -> Vec<&'static [Call]> {
        use lists::*;
        let own: &[&[Call]] = match self {
            // Those of vCPUs first: what is looked for first is found fastest.
            Thread::Start => &[VCPU, MEMORY, CLIENT, DRIVE, MAIN, MAKES, STARTS],
            Thread::Main => &[MAIN, DRIVE],
            Thread::Drive => &[DRIVE],
            Thread::Vcpu => &[VCPU],
            Thread::Saver => &[SAVES],
            Thread::Memory => &[MEMORY],
            // It marks invocations in a recording, too.
            Thread::Client => &[CLIENT, MEMORY],
            Thread::Pager => &[MEMORY, CLIENT, PAGER, STARTS],
        };
        let mut lists = [own, &[COMMON]].concat();
        let mains = matches!(self, Thread::Start | Thread::Main);
        if mains && tasks.api {
            lists.push(API);
        }
        match self {
            // It starts the one that writes.
            Thread::Start if tasks.saves => lists.push(SAVES),
            Thread::Main if tasks.saves => lists.push(RECORDS),
            _ => {}
        }
        if tasks.pool && self == Thread::Main {
            lists.extend([OFFLOADS, MEMORY, STARTS]);
        }
        if tasks.pool && (mains || matches!(self, Thread::Memory | Thread::Pager)) {
            lists.push(POOL);
        }
        lists
    }
}

/// Which filters a process uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// varve's own, for these tasks.
    Own(Tasks),
    /// None.
    #[default]
    Off,
    /// Those of a file.
    File(PathBuf),
}

/// Why there are no filters.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The file is no good.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel does not take a handler of a signal.
    #[error("handlers of signals")]
    Signals(#[source] std::io::Error),
    /// The kernel does not take a filter.
    #[error("seccomp filter of {thread} threads: {cause}; --no-seccomp runs without filters")]
    Filter {
        /// Whose filter.
        thread: &'static str,
        /// What the kernel, or the compiler, says.
        cause: String,
    },
}

/// The filters of this process, once it has any.
static FILTERS: OnceLock<Filters> = OnceLock::new();

struct Filters {
    /// What varve's own filters are for; none: they are a file's.
    tasks: Option<Tasks>,
    /// By [`Thread`]; each is compiled when a thread first needs it. None: such threads have no more than
    /// what they inherit.
    programs: [OnceLock<Option<BpfProgram>>; Thread::ALL.len()],
}

/// Whether the filters of this process are varve's own, if it has any.
fn is_own() -> bool {
    FILTERS.get().is_none_or(|filters| filters.tasks.is_some())
}

/// Whether this process may fetch pages from a pool, as far as its filters are varve's own.
pub fn reaches_pool() -> bool {
    let tasks = FILTERS.get().and_then(|filters| filters.tasks);
    tasks.is_none_or(|tasks| tasks.pool)
}

/// Whether this process may write snapshots and traces, as far as its filters are varve's own.
pub fn saves() -> bool {
    let tasks = FILTERS.get().and_then(|filters| filters.tasks);
    tasks.is_none_or(|tasks| tasks.saves)
}

/// Filters this thread, a monitor's main one, and decides what [`confine`] does on others. To be called
/// once, while there is no other thread.
///
/// # Errors
///
/// If a file of filters is no good, or the kernel takes no filter.
pub fn enter(choice: &Choice) -> Result<(), SeccompError> {
    enter_as(Thread::Start, choice)
}

/// The same for a process whose main thread is of another kind.
///
/// # Errors
///
/// As of [`enter`].
pub fn enter_as(main: Thread, choice: &Choice) -> Result<(), SeccompError> {
    crate::stdio::prepare();
    let (main, filters) = match choice {
        Choice::Off => return Ok(()),
        Choice::Own(tasks) => {
            if tasks.pool {
                // The verbs library is loaded, and its code made executable, while that is possible.
                drop(varve_rdma::ports());
            }
            (main, Filters { tasks: Some(*tasks), programs: Default::default() })
        }
        // A file has one filter for the main thread.
        Choice::File(path) => {
            let programs = file::read(path)?.map(OnceLock::from);
            (Thread::Main, Filters { tasks: None, programs })
        }
    };
    trap::install().map_err(|e| refused(main, e))?;
    FILTERS.get_or_init(|| filters);
    varve_memory_tiers::confine_threads(|| confine_or_die(Thread::Memory));
    confine(main)
}

/// Narrows this thread to what its kind may call, if this process is filtered.
///
/// # Errors
///
/// If the kernel takes no filter.
pub fn confine(thread: Thread) -> Result<(), SeccompError> {
    let Some(filters) = FILTERS.get() else { return Ok(()) };
    let Some(slot) = filters.programs.get(thread as usize) else { return Ok(()) };
    if slot.get().is_none()
        && let Some(tasks) = filters.tasks
    {
        let _ = slot.set(Some(compile(thread, tasks)));
    }
    match slot.get() {
        Some(Some(program)) => apply(thread, program),
        _ => Ok(()),
    }
}

/// Narrows the main thread to what it needs beside a machine that is there, or ends the process. A file's
/// filters are not narrowed.
pub fn settle() {
    if FILTERS.get().is_some_and(|filters| filters.tasks.is_some()) {
        confine_or_die(Thread::Main);
    }
}

/// varve's own filter for a kind of thread of this process.
fn compile(thread: Thread, tasks: Tasks) -> BpfProgram {
    // As the process sees itself: in a PID namespace of its own that is 1.
    let pid = std::process::id();
    let program = call::allow(&thread.lists(tasks), pid, libc::SECCOMP_RET_TRAP);
    // A thread is made by clone3 where there is one, whose flags are in memory that no filter sees. As
    // from an old kernel, the C library then uses clone.
    call::refuse(&[libc::SYS_clone3], libc::ENOSYS, &program)
}

/// Narrows a thread that is just starting, or ends the process: nothing runs unfiltered.
pub fn confine_or_die(thread: Thread) {
    if let Err(error) = confine(thread) {
        crate::terminal::restore();
        crate::stdio::last_words(&format!("varve: error: {error}"));
        std::process::exit(1);
    }
}

fn apply(thread: Thread, program: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(program).map_err(|e| refused(thread, e))
}

fn refused(thread: Thread, cause: impl std::fmt::Display) -> SeccompError {
    SeccompError::Filter { thread: thread.name(), cause: cause.to_string() }
}
