//! One reservation of address space, and what may be done inside it.
//!
//! UNSAFETY: mapping calls change what is behind addresses. All of them go through [`Reservation`],
//! which owns its addresses until it is dropped, checks every range against them, and never hands
//! out a Rust reference to the memory.
#![allow(unsafe_code)]

use crate::ram::kind::{HUGE_PAGE, PrefaultMode};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;

/// Bytes of a host page.
const PAGE: usize = 4096;
/// Ranges that one read can fill (IOV_MAX of readv(2)).
const IOV_MAX: usize = 1024;

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const PRIVATE: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// A range of the process's address space, private anonymous memory where nothing else is laid.
#[derive(Debug)]
pub struct Reservation {
    address: *mut c_void,
    len: usize,
    huge: bool,
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
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), padded, READ_WRITE, PRIVATE) }?;
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
        Ok(Reservation { address, len, huge: false })
    }

    /// Reserves `len` bytes, rounded up, of the system's pool of 2 MiB pages. The pages are taken
    /// out of the pool at once, so that no later touch can fail.
    pub fn new_hugetlb(len: usize) -> io::Result<Reservation> {
        let len = len.checked_next_multiple_of(HUGE_PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), len, READ_WRITE, flags) }?;
        Ok(Reservation { address, len, huge: true })
    }

    /// First address.
    pub fn address(&self) -> *mut u8 {
        self.address.cast()
    }

    /// Whether it is made of 2 MiB pages of the system's pool.
    pub fn is_hugetlb(&self) -> bool {
        self.huge
    }

    /// Address of `offset`, if `len` bytes from there are inside and in whole pages.
    pub(super) fn at(&self, offset: usize, len: usize) -> io::Result<*mut c_void> {
        let whole = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        let end = offset.checked_add(len).filter(|&end| whole && end <= self.len);
        end.map(|_| self.address.wrapping_byte_add(offset))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Gives the memory of a range back to the host; what is laid there shows again: zero, or the
    /// file.
    pub fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        self.advise(offset, len, Advice::LinuxDontNeed)
    }

    /// Asks for transparent huge pages in a range.
    pub fn want_huge(&self, offset: usize, len: usize) -> io::Result<()> {
        self.advise(offset, len, Advice::LinuxHugepage)
    }

    /// Has a touch bring in just the page that is touched of the file that is laid in a range, and
    /// not what lies around it.
    pub fn read_alone(&self, offset: usize, len: usize) -> io::Result<()> {
        self.advise(offset, len, Advice::Random)
    }

    /// Makes a range present. Safe beside threads that use the memory: the kernel settles who
    /// brings a page in, and what is present already stays as it is.
    pub fn populate(&self, offset: usize, len: usize, how: PrefaultMode) -> io::Result<()> {
        let advice = match how {
            PrefaultMode::Read => Advice::LinuxPopulateRead,
            PrefaultMode::Write => Advice::LinuxPopulateWrite,
            PrefaultMode::Cache => Advice::WillNeed,
        };
        loop {
            match self.advise(offset, len, advice) {
                // A signal; or another thread changed the page tables meanwhile.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                done => return done,
            }
        }
    }

    fn advise(&self, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
        let address = self.at(offset, len)?;
        // SAFETY: the range is inside the reservation, private memory that is accessed by volatile
        // accessors only, for which a change of content is always possible.
        unsafe { madvise(address, len, advice) }?;
        Ok(())
    }

    /// Lays `len` bytes of `file` from `from` over a range, privately: writes go to copies.
    pub fn map_file(
        &self,
        offset: usize,
        len: usize,
        file: impl AsFd,
        from: u64,
    ) -> io::Result<()> {
        let address = self.at(offset, len)?;
        // SAFETY: replaces memory inside the reservation only, to which there are no references.
        unsafe { mmap(address, len, READ_WRITE, PRIVATE | MapFlags::FIXED, file, from) }?;
        Ok(())
    }

    /// Lays fresh zero memory over a range.
    pub fn map_zero(&self, offset: usize, len: usize) -> io::Result<()> {
        let address = self.at(offset, len)?;
        // SAFETY: replaces memory inside the reservation only, to which there are no references.
        unsafe { mmap_anonymous(address, len, READ_WRITE, PRIVATE | MapFlags::FIXED) }?;
        Ok(())
    }

    /// Reads bytes of `file` from `from` on straight into ranges (offset and length), one after
    /// another. The kernel does the copying.
    pub fn read_file(&self, ranges: &[(usize, usize)], file: &File, from: u64) -> io::Result<()> {
        let target = |&(offset, len): &(usize, usize)| {
            Ok(libc::iovec { iov_base: self.at(offset, len)?, iov_len: len })
        };
        let mut targets = ranges.iter().map(target).collect::<io::Result<Vec<_>>>()?;
        let mut at = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut rest = &mut targets[..];
        while let Some(first) = rest.first_mut() {
            if first.iov_len == 0 {
                rest = &mut rest[1..];
                continue;
            }
            let count = rest.len().min(IOV_MAX) as i32;
            // SAFETY: each target is memory of the reservation, into which the kernel may write.
            let read = unsafe { libc::preadv(file.as_raw_fd(), rest.as_ptr(), count, at) };
            let mut read = match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => continue,
                    e => return Err(e),
                },
            };
            at += read as i64;
            for target in rest.iter_mut() {
                let done = read.min(target.iov_len);
                target.iov_base = target.iov_base.wrapping_byte_add(done);
                target.iov_len -= done;
                read -= done;
            }
        }
        Ok(())
    }

    /// A volatile view of a range, for copying in and out.
    pub fn slice(&self, offset: usize, len: usize) -> io::Result<VolatileSlice<'_>> {
        let address = self.at(offset, len)?;
        // SAFETY: the range is mapped for as long as the reservation lives, which the slice borrows;
        // the slice accesses it volatilely.
        Ok(unsafe { VolatileSlice::new(address.cast(), len) })
    }

    /// For each page of a range, whether it is in memory: present, or in the page cache of the file
    /// that is laid there.
    pub fn in_core(&self, offset: usize, len: usize) -> io::Result<Vec<bool>> {
        let address = self.at(offset, len)?;
        let mut pages = vec![0u8; len / PAGE];
        // SAFETY: the range is mapped, and `pages` has a byte for each of its pages.
        if unsafe { libc::mincore(address, len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages.into_iter().map(|p| p & 1 != 0).collect())
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
    use std::io::Write;

    #[test]
    fn aligned_and_bounded() {
        let r = Reservation::new(0x3000, 1 << 21).unwrap();
        assert_eq!(r.address() as usize % (1 << 21), 0);
        r.discard(0, 0x3000).unwrap();
        assert!(r.discard(0x1000, 0x3000).is_err());
        assert!(r.discard(usize::MAX, 2).is_err());
        assert!(r.map_zero(0x800, 0x1000).is_err());
        assert!(r.slice(0x3000, 0x1000).is_err());
    }

    #[test]
    fn files_are_laid_privately() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[5; 0x2000]).unwrap();
        let r = Reservation::new(0x4000, 1 << 21).unwrap();
        r.map_file(0x1000, 0x2000, &file, 0).unwrap();
        r.populate(0x1000, 0x1000, PrefaultMode::Read).unwrap();
        r.populate(0x2000, 0x1000, PrefaultMode::Write).unwrap();
        r.slice(0x2000, 0x1000).unwrap().copy_from(&[6u8; 0x1000]);
        r.read_file(&[(0x3000, 0x1000)], &file, 0x1000).unwrap();
        let mut seen = vec![1u8; 0x4000];
        r.slice(0, 0x4000).unwrap().copy_to(&mut seen);
        for (page, byte) in [0, 5, 6, 5].into_iter().enumerate() {
            assert!(seen[page << 12..][..0x1000].iter().all(|&b| b == byte), "page {page}");
        }
        assert_eq!(r.in_core(0x1000, 0x2000).unwrap(), [true, true]);
        let short = r.read_file(&[(0, 0x1000)], &file, 0x1800).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let mut read = [0; 1];
        use std::os::unix::fs::FileExt;
        file.read_exact_at(&mut read, 0x1000).unwrap();
        assert_eq!(read, [5], "the write stayed private");
    }

    #[test]
    fn one_read_fills_many_ranges() {
        const RANGES: usize = 1500;
        let mut file = tempfile::tempfile().unwrap();
        let page = |n: usize| [n as u8 | 1; 0x1000];
        (0..2 * RANGES).for_each(|n| file.write_all(&page(n / 3)).unwrap());
        let r = Reservation::new(RANGES * 0x3000, 1 << 21).unwrap();
        let ranges: Vec<_> = (0..RANGES).rev().map(|n| (n * 0x3000, 0x2000)).collect();
        r.read_file(&ranges, &file, 0).unwrap();
        for (nth, &(offset, _)) in ranges.iter().enumerate() {
            let mut seen = [0; 0x3000];
            r.slice(offset, 0x3000).unwrap().copy_to(&mut seen);
            assert_eq!(seen[..0x1000], page(2 * nth / 3));
            assert_eq!(seen[0x1000..0x2000], page((2 * nth + 1) / 3));
            assert_eq!(seen[0x2000..], [0; 0x1000]);
        }
    }
}
