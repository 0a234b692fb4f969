//! What each kind of thread may call.
//!
//! A thread has its own list and [`COMMON`]. While the machine is made, the main thread has all of them:
//! filters are inherited and can only be narrowed, and it starts the others. Then it narrows itself, too.
//! No list has a call that starts another program, makes memory executable, changes who the process is,
//! reaches another process by a signal, or looks into it.
//!
//! A call has a rule for its arguments where that keeps something out. Paths and addresses are in memory
//! that no filter sees.

use libc::*;

use super::call::Call;
use super::ioctls;

const fn any(number: c_long) -> Call {
    Call::any(number)
}

/// Signals that varve sends to its own threads: the end by abort, and a vCPU's kick, which is
/// SIGRTMIN of glibc or of musl.
const OWN_SIGNALS: &[u32] = &[SIGABRT as u32, 34, 35];

/// Operations of futex(2) that locks, and ends of threads, are made of: waiting and waking, with and without
/// a deadline, between this process's threads or, in the lowest row, as the kernel wakes who waits for a
/// thread's end.
const FUTEX: &[u32] = &[
    (FUTEX_WAKE | FUTEX_PRIVATE_FLAG) as u32,
    (FUTEX_WAIT | FUTEX_PRIVATE_FLAG) as u32,
    (FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG) as u32,
    (FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME) as u32,
    (FUTEX_REQUEUE | FUTEX_PRIVATE_FLAG) as u32,
    (FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG) as u32,
    FUTEX_WAKE as u32,
    FUTEX_WAIT as u32,
    (FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME) as u32,
];

/// Clocks of all, of this process and of the thread. Those of other processes have other numbers.
const OWN_CLOCKS: &[u32] = &[
    CLOCK_MONOTONIC as u32,
    CLOCK_REALTIME as u32,
    CLOCK_PROCESS_CPUTIME_ID as u32,
    CLOCK_THREAD_CPUTIME_ID as u32,
    CLOCK_MONOTONIC_RAW as u32,
    CLOCK_REALTIME_COARSE as u32,
    CLOCK_MONOTONIC_COARSE as u32,
    CLOCK_BOOTTIME as u32,
];

/// Flags of receiving: perhaps not to wait, and perhaps to leave it there.
const RECEIVING: &[u32] =
    &[0, MSG_PEEK as u32, MSG_DONTWAIT as u32, (MSG_PEEK | MSG_DONTWAIT) as u32];

/// Ways to ask for random numbers, without those that are for keys of the system.
const RANDOM: &[u32] = &[0, GRND_NONBLOCK, GRND_INSECURE];

/// Bits of openat(2) with which a file is written, made or emptied.
const WRITES: u32 = (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) as u32;

/// What fcntl(2) is asked for: flags of descriptors and files, and copies of descriptors. No locks, leases,
/// signals or seals.
const DESCRIPTORS: &[u32] =
    &[F_GETFD as u32, F_SETFD as u32, F_GETFL as u32, F_SETFL as u32, F_DUPFD_CLOEXEC as u32];

/// Operations of epoll_ctl(2).
const EPOLL: &[u32] = &[EPOLL_CTL_ADD as u32, EPOLL_CTL_MOD as u32, EPOLL_CTL_DEL as u32];

/// Flags of sending: nobody is to get SIGPIPE, and perhaps not to wait.
const SENDING: &[u32] =
    &[MSG_NOSIGNAL as u32, (MSG_NOSIGNAL | MSG_DONTWAIT) as u32, 0, MSG_DONTWAIT as u32];

/// Signals whose handlers may be changed: these, glibc's own (cancelling threads, changing users), and
/// those that ask varve to end.
const HANDLED_SIGNALS: &[u32] =
    &[SIGABRT as u32, 32, 33, 34, 35, SIGHUP as u32, SIGINT as u32, SIGTERM as u32];

/// Flags of clone(2) with which glibc makes a thread. musl adds one that the kernel ignores.
const THREAD: &[u32] = &[GLIBC_THREAD, GLIBC_THREAD | CLONE_DETACHED as u32];
const GLIBC_THREAD: u32 = (CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID) as u32;

/// Flags of statx(2) in the standard library: by name, by descriptor, and of a link itself.
const STATUS: &[u32] = &[0, AT_EMPTY_PATH as u32, AT_SYMLINK_NOFOLLOW as u32];

/// Types of sockets that carry a stream. Datagrams and raw packets are not among them.
const STREAM: &[u32] = &[
    SOCK_STREAM as u32,
    (SOCK_STREAM | SOCK_CLOEXEC) as u32,
    (SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK) as u32,
];

/// Flags of a new descriptor. eventfd2, timerfd_create, pipe2 and userfaultfd share their values.
const NEW: &[u32] = &[0, O_CLOEXEC as u32, O_NONBLOCK as u32, (O_CLOEXEC | O_NONBLOCK) as u32];

/// Bits of openat(2) that varve never sets. Among them are O_TMPFILE, O_PATH, O_ASYNC, O_DIRECT, O_SYNC and
/// O_NOATIME.
const UNUSED: u32 = !((O_ACCMODE
    | O_CREAT
    | O_EXCL
    | O_NOCTTY
    | O_TRUNC
    | O_APPEND
    | O_NONBLOCK
    | O_DIRECTORY
    | O_NOFOLLOW
    | O_CLOEXEC) as u32
    // O_LARGEFILE, which is zero in the C library and not in the kernel.
    | 0o100_000);

/// Bits of openat(2) that make or empty a file.
const CREATES: u32 = (O_CREAT | O_TRUNC) as u32;

/// PR_GET_AUXV (Linux 6.4): what the kernel told the process at its start, where there is no /proc.
const GET_AUXV: u32 = 0x4155_5856;

/// Memory, locks, time, messages, and the end of a thread or of the process.
pub const COMMON: &[Call] = &[
    any(SYS_read),
    any(SYS_write),
    any(SYS_close),
    Call::only(SYS_futex, 1, FUTEX),
    any(SYS_sched_yield),
    any(SYS_restart_syscall),
    // The heap, and stacks.
    any(SYS_brk),
    any(SYS_munmap),
    Call::only(SYS_mremap, 3, &[MREMAP_MAYMOVE as u32]),
    Call::without(SYS_mmap, 2, PROT_EXEC as u32),
    Call::without(SYS_mprotect, 2, PROT_EXEC as u32),
    Call::only(SYS_madvise, 2, &[MADV_DONTNEED as u32, MADV_FREE as u32]),
    // Clocks, where the vDSO has none.
    Call::only(SYS_clock_gettime, 0, OWN_CLOCKS),
    Call::only(SYS_getrandom, 2, RANDOM),
    // Output that must not wait.
    Call::any(SYS_ppoll).and_null(3),
    Call::only(SYS_pwritev2, 5, &[RWF_NOWAIT as u32]),
    // Signals, panics, ends.
    any(SYS_rt_sigreturn),
    any(SYS_rt_sigprocmask),
    any(SYS_sigaltstack),
    any(SYS_gettid),
    any(SYS_getpid),
    Call::on_itself(SYS_tgkill, 0).and_only(2, OWN_SIGNALS),
    Call::only(SYS_prctl, 0, &[PR_GET_NAME as u32, GET_AUXV]),
    Call::only(SYS_ioctl, 1, ioctls::TERMINAL),
    any(SYS_exit),
    any(SYS_exit_group),
];

/// What only builds for debugging need: they look whether what they close is open.
pub const DEBUG: &[Call] =
    if cfg!(debug_assertions) { &[Call::only(SYS_fcntl, 1, &[F_GETFD as u32])] } else { &[] };

/// What only the C library musl needs. Its signals to threads do not name their process, so that with
/// musl they reach all processes of the user.
pub const MUSL: &[Call] = if cfg!(target_env = "musl") {
    &[
        Call::only(SYS_tkill, 1, OWN_SIGNALS),
        Call::only(SYS_rt_sigaction, 0, &[SIGABRT as u32]),
        any(SYS_fstat),
        Call::without(SYS_open, 1, WRITES),
    ]
} else {
    &[]
};

/// A vCPU: it enters the guest, and carries out the guest's accesses to registers of devices.
pub const VCPU: &[Call] = &[
    Call::only(SYS_ioctl, 1, ioctls::VCPU),
    Call::only(SYS_ioctl, 1, ioctls::TAP_ACTIVE),
    // Devices that a driver starts or resets, and signals' way to the main thread.
    Call::only(SYS_epoll_ctl, 1, EPOLL),
    Call::only(SYS_timerfd_settime, 1, &[0]),
    Call::only(SYS_sendto, 3, SENDING).and_null(4),
    // Its figures.
    any(SYS_pread64),
    Call::only(SYS_getrusage, 0, &[RUSAGE_THREAD as u32]),
];

/// Threads around guest memory: they populate it, answer for what is missing, and watch.
pub const MEMORY: &[Call] = &[
    Call::only(SYS_ioctl, 1, ioctls::FAULTS),
    Call::only(SYS_ioctl, 1, ioctls::PREFAULT),
    Call::only(
        SYS_madvise,
        2,
        &[
            MADV_WILLNEED as u32,
            MADV_POPULATE_READ as u32,
            MADV_POPULATE_WRITE as u32,
            MADV_HUGEPAGE as u32,
        ],
    ),
    any(SYS_mincore),
    Call::only(
        SYS_fadvise64,
        3,
        &[POSIX_FADV_NORMAL as u32, POSIX_FADV_RANDOM as u32, POSIX_FADV_WILLNEED as u32],
    ),
    Call::only(SYS_preadv2, 5, &[RWF_NOWAIT as u32]),
    any(SYS_poll),
    Call::only(SYS_clock_nanosleep, 0, OWN_CLOCKS),
    // Images, and the tables in /proc/self/pagemap.
    Call::without(SYS_openat, 2, WRITES),
    any(SYS_lseek),
    Call::only(SYS_newfstatat, 3, STATUS),
    Call::only(SYS_statx, 2, STATUS),
    any(SYS_pread64),
    any(SYS_preadv),
    any(SYS_readv),
    // The page fault handler's connection.
    Call::only(SYS_recvfrom, 3, RECEIVING),
];

/// Pages from a pool and to it, over TCP or by RDMA: only in a process that was told to.
pub const POOL: &[Call] = &[
    // The verbs library asks for devices by netlink.
    Call::only(SYS_socket, 0, &[AF_INET as u32, AF_INET6 as u32, AF_NETLINK as u32]),
    any(SYS_bind),
    any(SYS_sendmsg),
    any(SYS_recvmsg),
    any(SYS_connect),
    any(SYS_getsockname),
    any(SYS_getsockopt),
    any(SYS_setsockopt),
    Call::only(SYS_sendto, 3, SENDING),
    Call::only(SYS_recvfrom, 3, RECEIVING),
    any(SYS_shutdown),
    Call::only(SYS_ioctl, 1, ioctls::SOCKET),
    // The verbs' devices; the library looks for them in /sys.
    Call::only(SYS_ioctl, 1, ioctls::VERBS),
    Call::only(SYS_fcntl, 1, DESCRIPTORS),
    Call::without(SYS_openat, 2, CREATES | UNUSED),
    Call::only(SYS_newfstatat, 3, STATUS),
    any(SYS_readlink),
    any(SYS_readlinkat),
    any(SYS_getdents64),
    Call::only(SYS_madvise, 2, &[MADV_DONTFORK as u32, MADV_DOFORK as u32]),
];

/// The client of the guest's agent, for `--invoke`.
pub const CLIENT: &[Call] = &[
    Call::only(SYS_socket, 0, &[AF_UNIX as u32]).and_only(1, STREAM),
    any(SYS_connect),
    Call::only(SYS_recvfrom, 3, RECEIVING),
    Call::only(SYS_sendto, 3, SENDING).and_null(4),
    any(SYS_poll),
    Call::only(SYS_setsockopt, 1, &[SOL_SOCKET as u32]),
];

/// Starting other threads.
pub const STARTS: &[Call] = &[
    // Threads, and their filters. What is made must be a thread of this process.
    Call::only(SYS_clone, 0, THREAD),
    any(SYS_set_robust_list),
    any(SYS_rseq),
    any(SYS_sched_getaffinity),
    Call::only(SYS_prctl, 0, &[PR_SET_NAME as u32, PR_SET_NO_NEW_PRIVS as u32, PR_SET_VMA as u32]),
    Call::only(SYS_seccomp, 0, &[SECCOMP_SET_MODE_FILTER]).and_only(1, &[0]),
    // The C library's own, with the first thread.
    Call::only(SYS_rt_sigaction, 0, HANDLED_SIGNALS),
];

/// A pager, beside the threads that answer faults: it reads what its snapshots are, listens, and is
/// handed machines' memory.
pub const PAGER: &[Call] = &[
    any(SYS_bind),
    any(SYS_listen),
    any(SYS_accept4),
    any(SYS_recvmsg),
    Call::only(SYS_getsockopt, 1, &[SOL_SOCKET as u32]),
    Call::only(SYS_ioctl, 1, ioctls::SOCKET),
    Call::only(SYS_eventfd2, 1, NEW),
    // The oldest of too many connections that have not handed over a machine's memory.
    Call::only(SYS_shutdown, 1, &[SHUT_RDWR as u32]),
    // The descriptor that it is handed is made one that does not block.
    Call::only(SYS_fcntl, 1, DESCRIPTORS),
    // A machine that waits for ever is ended.
    Call::only(SYS_pidfd_open, 1, &[0]),
    Call::only(SYS_pidfd_send_signal, 1, &[SIGKILL as u32]),
    Call::only(SYS_newfstatat, 3, STATUS),
    // The sockets that it made, and those that others left.
    any(SYS_unlink),
];

/// The work of a drive, on its own thread or on the main one.
pub const DRIVE: &[Call] = &[
    Call::only(SYS_epoll_ctl, 1, EPOLL),
    any(SYS_epoll_wait),
    any(SYS_preadv),
    any(SYS_pwritev),
    any(SYS_pread64),
    any(SYS_pwrite64),
    any(SYS_fdatasync),
    Call::only(SYS_timerfd_settime, 1, &[0]),
];

/// The main thread while the machine runs: it does the work of the devices, and ends it all.
pub const MAIN: &[Call] = &[
    // The signal mask stays as it is.
    Call::any(SYS_epoll_pwait).and_null(4),
    Call::only(SYS_ioctl, 1, ioctls::RUNNING),
    // Marks in a recording.
    Call::only(SYS_ioctl, 1, ioctls::FAULTS),
    Call::only(SYS_ioctl, 1, ioctls::SOCKET),
    // Connections through vsock.
    Call::only(SYS_socket, 0, &[AF_UNIX as u32]).and_only(1, STREAM),
    any(SYS_connect),
    Call::only(SYS_accept4, 3, &[SOCK_CLOEXEC as u32, (SOCK_CLOEXEC | SOCK_NONBLOCK) as u32]),
    Call::only(SYS_recvfrom, 3, RECEIVING).and_null(4),
    Call::only(SYS_sendto, 3, SENDING).and_null(4),
    any(SYS_readv),
    any(SYS_writev),
    any(SYS_shutdown),
    // Figures: /proc/self/pagemap and the like.
    Call::without(SYS_openat, 2, WRITES),
    Call::only(SYS_newfstatat, 3, &[AT_EMPTY_PATH as u32]),
    Call::only(SYS_statx, 2, STATUS),
    any(SYS_lseek),
    // The sockets that it made.
    any(SYS_unlink),
];

/// What requests of the API's clients need on top: other images for drives, log and metrics.
pub const API: &[Call] =
    &[Call::without(SYS_openat, 2, UNUSED), Call::only(SYS_ioctl, 1, ioctls::DISK)];

/// Beginning to offload pages of a machine that runs, which takes threads, too.
pub const OFFLOADS: &[Call] = &[
    Call::only(SYS_ioctl, 1, ioctls::WATCH),
    Call::only(SYS_userfaultfd, 0, NEW),
    Call::only(SYS_eventfd2, 1, NEW),
    Call::only(SYS_fcntl, 1, DESCRIPTORS),
];

/// The main thread's part of recordings: their last look.
pub const RECORDS: &[Call] = &[any(SYS_mincore)];

/// Writing the files of snapshots and traces, on a thread of its own.
pub const SAVES: &[Call] = &[
    Call::without(SYS_openat, 2, UNUSED),
    Call::only(SYS_newfstatat, 3, STATUS),
    Call::only(SYS_statx, 2, STATUS),
    any(SYS_readlink),
    any(SYS_getcwd),
    any(SYS_getdents64),
    any(SYS_lseek),
    any(SYS_pread64),
    any(SYS_pwrite64),
    any(SYS_ftruncate),
    // The memory file that a diff is laid over, by what the file systems can do.
    Call::only(SYS_copy_file_range, 5, &[0]),
    any(SYS_fsync),
    Call::only(SYS_flock, 1, &[(LOCK_EX | LOCK_NB) as u32, LOCK_UN as u32]),
    any(SYS_rename),
    Call::only(SYS_mkdir, 1, &[0o777]),
    any(SYS_unlink),
];

/// The main thread until its machine is there, on top of all other lists: it reads what a machine is, and
/// makes it.
pub const MAKES: &[Call] = &[
    // The event loop.
    Call::only(SYS_epoll_create1, 0, &[EPOLL_CLOEXEC as u32]),
    Call::only(SYS_eventfd2, 1, NEW),
    Call::only(SYS_timerfd_create, 0, &[CLOCK_MONOTONIC as u32]).and_only(1, NEW),
    Call::only(SYS_pipe2, 1, NEW),
    Call::only(SYS_fcntl, 1, DESCRIPTORS),
    // KVM, taps, userfaultfd, disks.
    Call::only(SYS_ioctl, 1, ioctls::MACHINE),
    Call::only(SYS_ioctl, 1, ioctls::WATCH),
    Call::only(SYS_ioctl, 1, ioctls::TAP),
    Call::only(SYS_ioctl, 1, ioctls::DISK),
    Call::only(SYS_userfaultfd, 0, NEW),
    // Files: configuration, drives, snapshots, logs.
    Call::without(SYS_openat, 2, UNUSED),
    // Users of shared images.
    any(SYS_flock),
    any(SYS_fstatfs),
    any(SYS_statfs),
    any(SYS_readlink),
    any(SYS_getcwd),
    any(SYS_getdents64),
    // Sockets of the API, of vsock, and of what brings pages.
    Call::only(SYS_socketpair, 0, &[AF_UNIX as u32]).and_only(1, STREAM),
    any(SYS_bind),
    any(SYS_listen),
    Call::only(SYS_getsockopt, 1, &[SOL_SOCKET as u32]),
    any(SYS_getsockname),
    any(SYS_recvmsg),
    any(SYS_sendmsg),
    Call::only(SYS_pidfd_open, 1, &[0]),
    // What the host is.
    any(SYS_uname),
    any(SYS_sysinfo),
    any(SYS_geteuid),
    any(SYS_getpgrp),
    // Its own limits, to read them.
    Call::only(SYS_prlimit64, 0, &[0]).and_null(2),
];
