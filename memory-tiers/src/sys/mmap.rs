//! One reservation of address space, and what may be done inside it.
//!
//! UNSAFETY: mapping calls change what is behind addresses. All of them go through [`Reservation`],
//! which owns its addresses until it is dropped, checks every range against them, and never hands
//! out a Rust reference to the memory.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A range of the process's address space, private anonymous memory where nothing else is laid.
#[derive(Debug)]
pub struct Reservation {
    address: *mut c_void,
    len: usize,
}

// SAFETY: the reservation is an address range, not a reference; what threads do with the memory is
// governed by the volatile accessors built on top.
unsafe impl Send for Reservation {}
// SAFETY: as above; all methods take offsets and leave synchronisation to the kernel.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `len` bytes, aligned to `align` (a power of two of at least a page), readable and
    /// writable, without committing memory.
    pub fn new(len: usize, align: usize) -> io::Result<Reservation> {
        let padded = len.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe {
            mmap_anonymous(std::ptr::null_mut(), padded, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let lead = (start as usize).next_multiple_of(align) - start as usize;
        let address = start.wrapping_byte_add(lead);
        let trim = |from: *mut c_void, len: usize| {
            if len > 0 {
                // SAFETY: both ends are parts of the mapping just made that nobody knows of.
                let _ = unsafe { munmap(from, len) };
            }
        };
        trim(start, lead);
        trim(address.wrapping_byte_add(len), align - lead);
        Ok(Reservation { address, len })
    }

    /// First address.
    pub fn address(&self) -> *mut u8 {
        self.address.cast()
    }

    /// Address of `offset`, if `len` bytes from there are inside.
    fn at(&self, offset: usize, len: usize) -> io::Result<*mut c_void> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len);
        end.map(|_| self.address.wrapping_byte_add(offset))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Gives the memory of a range back to the host; it reads as zero from now on.
    pub fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        let address = self.at(offset, len)?;
        // SAFETY: the range is inside the reservation, private anonymous memory that is accessed by
        // volatile accessors only, for which a change of content is always possible.
        unsafe { madvise(address, len, Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the owner is going, and with it the views on the memory: `GuestRam` keeps the
        // reservation alive for as long as any of them exists.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_bounded() {
        let r = Reservation::new(0x3000, 1 << 21).unwrap();
        assert_eq!(r.address() as usize % (1 << 21), 0);
        r.discard(0, 0x3000).unwrap();
        assert!(r.discard(0x1000, 0x3000).is_err());
        assert!(r.discard(usize::MAX, 2).is_err());
    }
}
