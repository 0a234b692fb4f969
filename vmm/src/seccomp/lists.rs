//! What each kind of thread may call.
//!
//! A thread has its own list and [`COMMON`]. The main thread has all of them: filters are inherited
//! and can only be narrowed, and it starts the others. No list has a call that starts another
//! program, makes memory executable, changes who the process is, or looks into another process.

use libc::*;

use super::call::Call;
use super::ioctls;

const fn any(number: c_long) -> Call {
    Call::any(number)
}

/// Signals that varve sends to its own threads: the end by abort, and a vCPU's kick, which is
/// SIGRTMIN of glibc or of musl.
const OWN_SIGNALS: &[u32] = &[SIGABRT as u32, 34, 35];

/// Signals whose handlers may be changed: these, glibc's own (cancelling threads, changing users), and
/// those that ask varve to end.
const HANDLED_SIGNALS: &[u32] =
    &[SIGABRT as u32, 32, 33, 34, 35, SIGHUP as u32, SIGINT as u32, SIGTERM as u32];

/// PR_GET_AUXV (Linux 6.4): what the kernel told the process at its start, where there is no /proc.
const GET_AUXV: u32 = 0x4155_5856;

/// Memory, locks, time, messages, and the end of a thread or of the process.
pub const COMMON: &[Call] = &[
    any(SYS_read),
    any(SYS_write),
    any(SYS_writev),
    any(SYS_close),
    // Debug builds look whether what they close is open.
    Call::only(SYS_fcntl, 1, &[F_GETFD as u32]),
    any(SYS_futex),
    any(SYS_sched_yield),
    any(SYS_restart_syscall),
    // The heap, and stacks.
    any(SYS_brk),
    any(SYS_munmap),
    any(SYS_mremap),
    Call::without(SYS_mmap, 2, PROT_EXEC as u32),
    Call::without(SYS_mprotect, 2, PROT_EXEC as u32),
    Call::only(SYS_madvise, 2, &[MADV_DONTNEED as u32, MADV_FREE as u32]),
    // Clocks, where the vDSO has none.
    any(SYS_clock_gettime),
    any(SYS_clock_nanosleep),
    any(SYS_nanosleep),
    any(SYS_getrandom),
    // Signals, panics, ends.
    any(SYS_rt_sigreturn),
    any(SYS_rt_sigprocmask),
    any(SYS_sigaltstack),
    any(SYS_gettid),
    any(SYS_getpid),
    Call::only(SYS_rt_sigaction, 0, &[SIGABRT as u32]),
    Call::only(SYS_tgkill, 2, OWN_SIGNALS),
    Call::only(SYS_tkill, 1, OWN_SIGNALS),
    Call::only(SYS_prctl, 0, &[PR_GET_NAME as u32, GET_AUXV]),
    Call::only(SYS_ioctl, 1, ioctls::TERMINAL),
    any(SYS_exit),
    any(SYS_exit_group),
];

/// A vCPU: it enters the guest, and carries out the guest's accesses to registers of devices.
pub const VCPU: &[Call] = &[
    Call::only(SYS_ioctl, 1, ioctls::VCPU),
    Call::only(SYS_ioctl, 1, ioctls::TAP_ACTIVE),
    // Devices that a driver starts or resets, and clients whose connections that closes.
    any(SYS_epoll_ctl),
    any(SYS_epoll_wait),
    any(SYS_epoll_pwait),
    any(SYS_fdatasync),
    any(SYS_shutdown),
    any(SYS_timerfd_settime),
    any(SYS_sendto),
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
    any(SYS_fadvise64),
    any(SYS_poll),
    any(SYS_ppoll),
    // Images, and the tables in /proc/self/pagemap.
    Call::only(SYS_openat, 2, &[READ_FILE]),
    Call::only(SYS_open, 1, &[READ_FILE]),
    any(SYS_lseek),
    any(SYS_fstat),
    any(SYS_statx),
    any(SYS_pread64),
    any(SYS_preadv),
    any(SYS_readv),
    // The page fault handler's connection.
    any(SYS_recvfrom),
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
    any(SYS_sendto),
    any(SYS_recvfrom),
    any(SYS_shutdown),
    Call::only(SYS_ioctl, 1, ioctls::SOCKET),
    // The verbs' devices; the library looks for them in /sys.
    Call::only(SYS_ioctl, 1, ioctls::VERBS),
    any(SYS_fcntl),
    any(SYS_open),
    any(SYS_openat),
    any(SYS_stat),
    any(SYS_newfstatat),
    any(SYS_readlink),
    any(SYS_readlinkat),
    any(SYS_getdents64),
    Call::only(SYS_madvise, 2, &[MADV_DONTFORK as u32, MADV_DOFORK as u32]),
];

/// How a file is opened that is only read.
const READ_FILE: u32 = (O_RDONLY | O_CLOEXEC) as u32;

/// The client of the guest's agent, for `--invoke`.
pub const CLIENT: &[Call] = &[
    Call::only(SYS_socket, 0, &[AF_UNIX as u32]),
    any(SYS_connect),
    any(SYS_recvfrom),
    any(SYS_sendto),
    any(SYS_poll),
    any(SYS_ppoll),
    any(SYS_setsockopt),
];

/// Starting other threads.
pub const STARTS: &[Call] = &[
    // Threads, and their filters. What is made must be a thread of this process.
    Call::with(SYS_clone, 0, (CLONE_VM | CLONE_THREAD | CLONE_SIGHAND) as u32),
    any(SYS_set_robust_list),
    any(SYS_rseq),
    any(SYS_sched_getaffinity),
    Call::only(SYS_prctl, 0, &[PR_SET_NAME as u32, PR_SET_NO_NEW_PRIVS as u32, PR_SET_VMA as u32]),
    Call::only(SYS_seccomp, 0, &[SECCOMP_SET_MODE_FILTER]),
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
    any(SYS_getsockopt),
    any(SYS_eventfd2),
    // The oldest of too many connections that have not handed over a machine's memory.
    Call::only(SYS_shutdown, 1, &[SHUT_RDWR as u32]),
    // The descriptor that it is handed is made one that does not block.
    any(SYS_fcntl),
    // A machine that waits for ever is ended.
    any(SYS_pidfd_open),
    any(SYS_pidfd_send_signal),
    any(SYS_stat),
    any(SYS_newfstatat),
    // The sockets that it made, and those that others left.
    any(SYS_unlink),
    any(SYS_unlinkat),
];

/// The main thread, on top of all other lists: it reads what a machine is, makes it, does the work
/// of its devices, and answers the API.
pub const MAIN: &[Call] = &[
    // The event loop.
    any(SYS_epoll_create1),
    any(SYS_epoll_ctl),
    any(SYS_epoll_wait),
    any(SYS_epoll_pwait),
    any(SYS_eventfd2),
    any(SYS_timerfd_create),
    any(SYS_timerfd_settime),
    any(SYS_pipe2),
    any(SYS_fcntl),
    // KVM, taps, userfaultfd, disks, sockets.
    Call::only(SYS_ioctl, 1, ioctls::MACHINE),
    Call::only(SYS_ioctl, 1, ioctls::WATCH),
    Call::only(SYS_ioctl, 1, ioctls::TAP),
    Call::only(SYS_ioctl, 1, ioctls::DISK),
    Call::only(SYS_ioctl, 1, ioctls::SOCKET),
    any(SYS_userfaultfd),
    any(SYS_memfd_create),
    // Files: configuration, drives, snapshots, logs.
    any(SYS_open),
    any(SYS_openat),
    any(SYS_fstat),
    any(SYS_stat),
    any(SYS_lstat),
    any(SYS_newfstatat),
    any(SYS_statx),
    any(SYS_fstatfs),
    any(SYS_statfs),
    any(SYS_access),
    any(SYS_faccessat),
    any(SYS_faccessat2),
    any(SYS_readlink),
    any(SYS_readlinkat),
    any(SYS_getcwd),
    any(SYS_getdents64),
    any(SYS_pwrite64),
    any(SYS_pwritev),
    any(SYS_preadv2),
    any(SYS_pwritev2),
    any(SYS_ftruncate),
    any(SYS_fallocate),
    any(SYS_fadvise64),
    any(SYS_copy_file_range),
    any(SYS_sendfile),
    any(SYS_splice),
    any(SYS_fsync),
    any(SYS_fdatasync),
    any(SYS_flock),
    any(SYS_rename),
    any(SYS_renameat),
    any(SYS_renameat2),
    any(SYS_link),
    any(SYS_linkat),
    any(SYS_mkdir),
    any(SYS_mkdirat),
    any(SYS_unlink),
    any(SYS_unlinkat),
    any(SYS_rmdir),
    // Sockets of the API and of vsock.
    Call::only(SYS_socketpair, 0, &[AF_UNIX as u32]),
    any(SYS_bind),
    any(SYS_listen),
    any(SYS_accept),
    any(SYS_accept4),
    any(SYS_getsockopt),
    any(SYS_getsockname),
    any(SYS_getpeername),
    any(SYS_recvmsg),
    any(SYS_sendmsg),
    any(SYS_shutdown),
    any(SYS_pidfd_open),
    // What the host is.
    any(SYS_uname),
    any(SYS_sysinfo),
    any(SYS_getrusage),
    any(SYS_getuid),
    any(SYS_geteuid),
    any(SYS_getgid),
    any(SYS_getegid),
    any(SYS_getpgrp),
    any(SYS_getrlimit),
    any(SYS_prlimit64),
    any(SYS_membarrier),
];
