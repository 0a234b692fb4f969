//! Memory that holds an object: filled once, then read by whoever holds it.
//!
//! UNSAFETY: a mapping of its own rather than the heap's, so that it is made of 2 MiB pages where
//! they can be had, and begins on a page, as registering it with a network card wants. It is private,
//! anonymous and owned by one value, which frees it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::ops::Deref;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use varve_rdma::Fixed;

const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

/// Zero bytes to be filled.
#[derive(Debug)]
pub(crate) struct Filling(Mapping);

/// Bytes that change no more.
#[derive(Debug)]
pub(crate) struct Memory(Mapping);

#[derive(Debug)]
struct Mapping {
    address: *mut c_void,
    /// Bytes in use.
    len: usize,
    /// Bytes mapped; at least one page.
    mapped: usize,
}

// SAFETY: the mapping is private memory that only its owner knows of.
unsafe impl Send for Mapping {}
// SAFETY: shared references allow reading only (`Memory`), and nothing else writes to it.
unsafe impl Sync for Mapping {}

/// Bytes of memory that `len` bytes take: whole pages, of 2 MiB if one is filled.
pub(crate) fn room_for(len: u64) -> Option<u64> {
    let page = if len < HUGE_PAGE as u64 { PAGE } else { HUGE_PAGE };
    len.max(1).checked_next_multiple_of(page as u64)
}

impl Filling {
    /// `len` zero bytes, of the system's 2 MiB pages if they fill one and it has as many free.
    pub fn new(len: usize) -> io::Result<Filling> {
        let mapped = room_for(len as u64).and_then(|room| usize::try_from(room).ok());
        let mapped = mapped.ok_or(io::ErrorKind::InvalidInput)?;
        let map = |flags| {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
            unsafe { mmap_anonymous(std::ptr::null_mut(), mapped, protection, flags) }
        };
        let pool = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        let huge = mapped.is_multiple_of(HUGE_PAGE);
        let address = match map(if huge { pool } else { MapFlags::PRIVATE }) {
            Err(_) if huge => {
                let address = map(MapFlags::PRIVATE)?;
                // SAFETY: advice on the mapping just made; content is not touched.
                let _ = unsafe { madvise(address, mapped, Advice::LinuxHugepage) };
                address
            }
            mapped => mapped?,
        };
        Ok(Filling(Mapping { address, len, mapped }))
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` mapped, initialised (zero) bytes, borrowed uniquely through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.0.address.cast(), self.0.len) }
    }

    /// Nothing will change any more.
    pub fn done(self) -> Memory {
        Memory(self.0)
    }
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` mapped bytes that nobody writes to since `Filling` was consumed.
        unsafe { std::slice::from_raw_parts(self.0.address.cast(), self.0.len) }
    }
}

// SAFETY: the mapping stays in place until it is dropped, and nobody writes to it any more.
unsafe impl Fixed for Memory {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is whole and owned; references to it have ended with its owner.
        let _ = unsafe { munmap(self.address, self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_there() {
        for len in [0, 1, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut filling = Filling::new(len).unwrap();
            assert!(filling.bytes().iter().all(|&b| b == 0));
            filling.bytes().fill(7);
            let memory = filling.done();
            assert_eq!(memory.len(), len);
            assert!(memory.iter().all(|&b| b == 7));
        }
        assert!(Filling::new(usize::MAX).is_err());
        let rooms = [0, 1, 4096, 4097, 2 << 20, (2 << 20) + 1].map(room_for);
        let wanted = [4096, 4096, 4096, 8192, 2 << 20, 4 << 20].map(Some);
        assert_eq!((rooms, room_for(u64::MAX)), (wanted, None));
    }
}
