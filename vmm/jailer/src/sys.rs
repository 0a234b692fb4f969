//! System calls that have no safe wrapper.
//!
//! UNSAFETY: each is safe here for the reason that it gives; this program has one thread.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::UnshareFlags;

/// Closes all descriptors but standard input, output and error. To be called before anything is
/// opened.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: takes numbers; nothing in this process owns a descriptor yet.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this process to a new mount namespace.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: the unsafe case is that of descriptor tables, which stay.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// Has the next process that this one starts be the first of a new PID namespace.
pub fn unshare_pids() -> io::Result<()> {
    // SAFETY: as above.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?)
}

/// Goes on in a child of this process. The parent ends at once, well.
pub fn leave_parent() -> io::Result<()> {
    // SAFETY: there is one thread, so that the child has everything that the parent had.
    match unsafe { libc::fork() } {
        0 => Ok(()),
        pid if pid > 0 => std::process::exit(0),
        _ => Err(io::Error::last_os_error()),
    }
}
