//! The process at the other end of a unix socket.
//!
//! UNSAFETY: socket options that no safe wrapper offers; each is read into a value of its own size.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A descriptor of the process that listened at the socket which `stream` was connected to; it
/// becomes readable when that process ends (pidfd_open(2)).
///
/// # Errors
///
/// If the process has ended already, or if this one cannot see it: on kernels before 6.5, from a PID
/// namespace of its own.
pub fn peer_process(stream: &UnixStream) -> io::Result<OwnedFd> {
    if let Ok(fd) = option::<c_int>(stream, libc::SO_PEERPIDFD)
        && fd >= 0
    {
        // SAFETY: the kernel made this descriptor for us, and nobody else has it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let credentials: libc::ucred = option(stream, libc::SO_PEERCRED)?;
    let pid = Pid::from_raw(credentials.pid).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Reads a socket option of exactly the size of `T`, which any bytes are a value of.
fn option<T: Copy>(stream: &UnixStream, name: c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` takes `len` bytes, and no more are written.
    let done = unsafe {
        let at = value.as_mut_ptr().cast();
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, name, at, &raw mut len)
    };
    match done {
        0 if len as usize == size_of::<T>() => {
            // SAFETY: all bytes are written, and were zero before; both types here are plain numbers.
            Ok(unsafe { value.assume_init() })
        }
        0 => Err(io::ErrorKind::InvalidData.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn a_peer_that_lives_is_seen_to() {
        let (here, _there) = UnixStream::pair().unwrap();
        let process = peer_process(&here).unwrap();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)).unwrap();
        assert_eq!(ended, 0, "this process has not ended");
    }
}
