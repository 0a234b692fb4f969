//! Seccomp filters: each kind of thread may make the system calls of its list, and no others. A
//! call that is not in the list ends the process at once (`trap`).
//!
//! ```text
//!  lists, ioctls ──> call ──(compile)──> programs ──> enter: the main thread, early
//!  file: --seccomp-filter ───────────────────────┘        confine: each other thread, as it starts
//! ```
//!
//! The main thread is filtered before it reads a configuration or hears a client, and its filter is
//! inherited by each thread that it starts; those then narrow themselves to their own list.

mod call;
mod file;
mod ioctls;
mod lists;
#[cfg(test)]
mod tests;
mod trap;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use seccompiler::BpfProgram;

use crate::lost;

use call::Call;
pub use file::FileError;
pub use trap::EXIT_CODE;

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The one that the process began with.
    Main,
    /// A vCPU's.
    Vcpu,
    /// Those of guest memory: populating, faults, recording.
    Memory,
    /// The client of the guest's agent.
    Client,
    /// Those of a pager that bring no pages: its main thread, listeners, and one for each machine.
    Pager,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Thread; 5] =
        [Thread::Main, Thread::Vcpu, Thread::Memory, Thread::Client, Thread::Pager];

    /// Its name in a file of filters. The first two are Firecracker's.
    pub fn name(self) -> &'static str {
        match self {
            Thread::Main => "vmm",
            Thread::Vcpu => "vcpu",
            Thread::Memory => "memory",
            Thread::Client => "client",
            Thread::Pager => "pager",
        }
    }

    fn lists(self, pool: bool) -> &'static [&'static [Call]] {
        use lists::*;
        match self {
            Thread::Main if pool => &[VCPU, MEMORY, CLIENT, MAIN, STARTS, COMMON, POOL],
            Thread::Memory if pool => &[MEMORY, COMMON, POOL],
            // Those of vCPUs first: what is looked for first is found fastest.
            Thread::Main => &[VCPU, MEMORY, CLIENT, MAIN, STARTS, COMMON],
            Thread::Vcpu => &[VCPU, COMMON],
            Thread::Memory => &[MEMORY, COMMON],
            // It marks invocations in a recording, too.
            Thread::Client => &[CLIENT, MEMORY, COMMON],
            Thread::Pager if pool => &[MEMORY, CLIENT, PAGER, STARTS, COMMON, POOL],
            Thread::Pager => &[MEMORY, CLIENT, PAGER, STARTS, COMMON],
        }
    }
}

/// Which filters a process uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// varve's own.
    #[default]
    Own,
    /// The same, and threads of guest memory may fetch pages from a pool.
    OwnWithPool,
    /// None.
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
    /// The kernel does not take a filter.
    #[error("seccomp filter of {thread} threads: {cause}; --no-seccomp runs without filters")]
    Filter {
        /// Whose filter.
        thread: &'static str,
        /// What the kernel, or the compiler, says.
        cause: String,
    },
}

/// The filters of this process, by [`Thread`], once it has any; each is compiled when a thread first
/// needs it. None: such threads have no more than what they inherit.
static FILTERS: OnceLock<[OnceLock<Option<BpfProgram>>; Thread::ALL.len()]> = OnceLock::new();

/// Whether this process's own filters let it reach a pool.
static POOL: AtomicBool = AtomicBool::new(false);

/// Whether this process may fetch pages from a pool, as far as its filters are varve's own.
pub fn reaches_pool() -> bool {
    FILTERS.get().is_none() || POOL.load(Ordering::Relaxed)
}

/// Filters this thread, a monitor's main one, and decides what [`confine`] does on others. To be called
/// once, while there is no other thread.
pub fn enter(choice: &Choice) -> Result<(), SeccompError> {
    enter_as(Thread::Main, choice)
}

/// The same for a process whose main thread is of another kind.
pub fn enter_as(main: Thread, choice: &Choice) -> Result<(), SeccompError> {
    lost::install().map_err(|e| refused(main, e))?;
    let filters: [OnceLock<_>; Thread::ALL.len()] = match choice {
        Choice::Off => return Ok(()),
        Choice::Own => Default::default(),
        Choice::OwnWithPool => {
            // The verbs library is loaded, and its code made executable, while that is possible.
            drop(varve_rdma::ports());
            POOL.store(true, Ordering::Relaxed);
            Default::default()
        }
        Choice::File(path) => {
            POOL.store(true, Ordering::Relaxed);
            file::read(path)?.map(OnceLock::from)
        }
    };
    trap::install().map_err(|e| refused(main, e))?;
    FILTERS.get_or_init(|| filters);
    varve_memory_tiers::confine_threads(|| confine_or_die(Thread::Memory));
    confine(main)
}

/// Narrows this thread to what its kind may call, if this process is filtered.
pub fn confine(thread: Thread) -> Result<(), SeccompError> {
    let Some(slot) = FILTERS.get().and_then(|f| f.get(thread as usize)) else { return Ok(()) };
    if slot.get().is_none() {
        let _ = slot.set(Some(compile(thread)));
    }
    match slot.get() {
        Some(Some(program)) => apply(thread, program),
        _ => Ok(()),
    }
}

/// varve's own filter for a kind of thread.
fn compile(thread: Thread) -> BpfProgram {
    let program = call::allow(thread.lists(POOL.load(Ordering::Relaxed)), libc::SECCOMP_RET_TRAP);
    // A thread is made by clone3 where there is one, whose flags are in memory that no filter sees. As
    // from an old kernel, the C library then uses clone.
    call::refuse(&[libc::SYS_clone3], libc::ENOSYS, &program)
}

/// Narrows a thread that is just starting, or ends the process: nothing runs unfiltered.
pub fn confine_or_die(thread: Thread) {
    if let Err(error) = confine(thread) {
        crate::console::restore();
        eprintln!("varve: error: {error}");
        std::process::exit(1);
    }
}

fn apply(thread: Thread, program: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(program).map_err(|e| refused(thread, e))
}

fn refused(thread: Thread, cause: impl std::fmt::Display) -> SeccompError {
    SeccompError::Filter { thread: thread.name(), cause: cause.to_string() }
}
