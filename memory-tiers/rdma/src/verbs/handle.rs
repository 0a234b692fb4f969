//! What the library's functions give: objects, and the ways in which they tell that they failed.
//!
//! UNSAFETY: objects are used from whichever thread owns them.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::ptr::NonNull;

/// An object that the library made. Whoever has it gives it back when it is dropped.
pub(super) struct Handle<T>(NonNull<T>);

// SAFETY: objects belong to no thread, and all verbs may be called on them from several threads at
// once (ibv_open_device(3), <infiniband/verbs.h>: the library and its providers lock).
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above; the handle itself gives the address only.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// What a function gave that makes objects: null means that errno says why there is none.
    pub fn new(made: *mut T) -> io::Result<Handle<T>> {
        NonNull::new(made).map(Handle).ok_or_else(io::Error::last_os_error)
    }

    /// Its address.
    pub fn raw(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a function answered that gives 0, or else the errno as a value. Some providers give -1
/// instead, and set errno.
pub(super) fn answered(code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a device's own function is for a verb, if it has it.
pub(super) fn provided<T>(verb: Option<T>) -> io::Result<T> {
    verb.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_in_three_ways() {
        assert!(answered(0).is_ok());
        assert_eq!(answered(22).unwrap_err().raw_os_error(), Some(22));
        // Sets errno to ENOENT.
        assert!(std::fs::metadata("/proc/self/no such file").is_err());
        assert_eq!(answered(-1).unwrap_err().raw_os_error(), Some(2));
        assert_eq!(Handle::<u8>::new(std::ptr::null_mut()).unwrap_err().raw_os_error(), Some(2));
        assert_eq!(provided::<u8>(None).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
