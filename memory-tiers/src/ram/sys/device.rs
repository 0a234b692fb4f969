//! Byte-addressable memory that is not this host's alone, mapped as it is (device-DAX).
//!
//! What other hosts write does not reach this one's caches by itself, nor the other way round: lines
//! are written back and forgotten by [`DeviceMap::flush`].
//!
//! UNSAFETY: loads and stores at addresses, and instructions on cache lines. All addresses are checked
//! against the mapping, which the value owns; content is reached by volatile accesses only.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _mm_clflush, _mm_mfence};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::null_mut;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vm_memory::VolatileSlice;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Whether the processor has CLFLUSHOPT, which does not wait for one line after another.
static CLFLUSHOPT: LazyLock<bool> = LazyLock::new(|| __cpuid_count(7, 0).ebx >> 23 & 1 != 0);

/// A part of a device, mapped shared.
#[derive(Debug)]
pub struct DeviceMap {
    address: *mut c_void,
    len: usize,
    writable: bool,
}

// SAFETY: an address range, not a reference; accesses are volatile or atomic.
unsafe impl Send for DeviceMap {}
// SAFETY: as above; who writes what when is the protocol's of those who share the device.
unsafe impl Sync for DeviceMap {}

impl DeviceMap {
    /// Maps `len` bytes of `file` from `from` on, both multiples of what the device is mapped by.
    /// Without `writable` nothing that this process does through the mapping changes the device.
    pub fn new(file: &File, from: u64, len: usize, writable: bool) -> io::Result<DeviceMap> {
        let write = if writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        let access = ProtFlags::READ | write;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, file, from) }?;
        Ok(DeviceMap { address, len, writable })
    }

    /// Bytes that are mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped; never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, at: usize, len: usize) -> io::Result<*mut c_void> {
        let end = at.checked_add(len).filter(|&end| end <= self.len);
        end.map(|_| self.address.wrapping_byte_add(at)).ok_or_else(|| {
            let text = format!("{len} bytes at {at:#x} are outside of {:#x} mapped", self.len);
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })
    }

    fn word(&self, at: usize) -> io::Result<&AtomicU64> {
        let address = self.at(at, 8)?;
        if !at.is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: eight mapped bytes, aligned, since the mapping begins on a page; borrowed from it.
        Ok(unsafe { AtomicU64::from_ptr(address.cast()) })
    }

    /// The word at a byte that is a multiple of 8, as this host's caches or the device have it.
    pub fn load(&self, at: usize) -> io::Result<u64> {
        Ok(self.word(at)?.load(Ordering::SeqCst))
    }

    /// Changes a word, in this host's caches at first.
    pub fn store(&self, at: usize, value: u64) -> io::Result<()> {
        self.may_write()?;
        self.word(at)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Copies out.
    pub fn read(&self, at: usize, buffer: &mut [u8]) -> io::Result<()> {
        self.slice(at, buffer.len())?.copy_to(buffer);
        Ok(())
    }

    /// Copies in, into this host's caches at first.
    pub fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.may_write()?;
        self.slice(at, bytes.len())?.copy_from(bytes);
        Ok(())
    }

    /// Has this host's caches write back what they hold of a range, and forget it: what was stored is
    /// on the device when this returns, and what is loaded next comes from there.
    pub fn flush(&self, at: usize, len: usize) -> io::Result<()> {
        self.at(at, len)?;
        let optimised = *CLFLUSHOPT;
        for line in (at / LINE * LINE..at + len).step_by(LINE) {
            let address = self.address.wrapping_byte_add(line);
            if optimised {
                // SAFETY: a mapped line; its content does not change.
                unsafe { asm!("clflushopt [{}]", in(reg) address, options(nostack)) };
            } else {
                // SAFETY: the same.
                unsafe { _mm_clflush(address.cast()) };
            }
        }
        // SAFETY: a fence; every x86-64 has it.
        unsafe { _mm_mfence() };
        Ok(())
    }

    fn may_write(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn slice(&self, at: usize, len: usize) -> io::Result<VolatileSlice<'_>> {
        let address = self.at(at, len)?;
        // SAFETY: mapped for as long as `self` lives, which the slice borrows.
        Ok(unsafe { VolatileSlice::new(address.cast(), len) })
    }
}

impl Drop for DeviceMap {
    fn drop(&mut self) {
        // SAFETY: the mapping is whole and owned; borrows of it have ended.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_is_flushed_is_there_for_others() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(3 << 12).unwrap();
        let map = DeviceMap::new(&file, 4096, 8192, true).unwrap();
        map.store(64, 7).unwrap();
        map.write(100, b"text").unwrap();
        map.flush(60, 100).unwrap();
        let other = DeviceMap::new(&file, 0, 3 << 12, false).unwrap();
        assert_eq!(other.load(4096 + 64).unwrap(), 7);
        let mut text = [0; 4];
        other.read(4096 + 100, &mut text).unwrap();
        assert_eq!(&text, b"text");
        file.read_exact_at(&mut text, 4096 + 100).unwrap();
        assert_eq!(&text, b"text");
    }

    #[test]
    fn nothing_outside_and_nothing_unasked() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 12).unwrap();
        let map = DeviceMap::new(&file, 0, 4096, false).unwrap();
        assert!(map.store(0, 1).is_err() && map.write(0, b"x").is_err());
        assert!(map.load(4).is_err() && map.load(4096).is_err() && map.load(usize::MAX).is_err());
        assert!(map.read(4090, &mut [0; 8]).is_err() && map.flush(4000, 100).is_err());
    }
}
