//! Physical memory that is not the kernel's RAM (device registers, reserved pages), by `/dev/mem`.
#![allow(unsafe_code)] // Such memory can be reached only by mapping it.

use std::ffi::c_void;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PAGE: u64 = 4096;

/// One page of physical memory, mapped until dropped.
#[derive(Debug)]
pub struct PhysicalPage {
    base: *mut c_void,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for PhysicalPage {}
// SAFETY: shared references only read and write single bytes, as volatile accesses.
unsafe impl Sync for PhysicalPage {}

impl PhysicalPage {
    /// Maps the page of a device's registers, past all caches, for writing.
    pub fn of_device(address: u64) -> io::Result<Self> {
        Self::map(address, OFlags::RDWR | OFlags::SYNC, ProtFlags::WRITE)
    }

    /// Maps the page of reserved memory, for reading.
    pub fn of_memory(address: u64) -> io::Result<Self> {
        Self::map(address, OFlags::RDONLY, ProtFlags::READ)
    }

    fn map(address: u64, flags: OFlags, access: ProtFlags) -> io::Result<Self> {
        let memory = open("/dev/mem", flags | OFlags::CLOEXEC, Mode::empty())?;
        let start = address & !(PAGE - 1);
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping of one page, at an address that the kernel chooses; the memory behind
        // it is never this process's own, because the kernel refuses its RAM (STRICT_DEVMEM).
        let base = unsafe { mmap(null, PAGE as usize, access, MapFlags::SHARED, &memory, start)? };
        Ok(Self { base })
    }

    /// Reads the bytes at `offset` of a page that was mapped for reading, one by one.
    pub fn read<const N: usize>(&self, offset: usize) -> io::Result<[u8; N]> {
        let base = self.at(offset, N)?;
        let mut bytes = [0; N];
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: `at` has checked that all N bytes are in the page, which is mapped.
            *byte = unsafe { base.add(index).read_volatile() };
        }
        Ok(bytes)
    }

    /// Writes one byte at `offset` of a page that was mapped for writing.
    pub fn write(&self, offset: usize, value: u8) -> io::Result<()> {
        let place = self.at(offset, 1)?;
        // SAFETY: `at` has checked that the byte is in the page, which is mapped.
        unsafe { place.write_volatile(value) };
        Ok(())
    }

    /// The place of `len` bytes at `offset`, all of them in the page.
    fn at(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= PAGE as usize);
        if !inside {
            return Err(Errno::INVAL.into());
        }
        // SAFETY: the offset was found to be inside the page.
        Ok(unsafe { self.base.cast::<u8>().add(offset) })
    }
}

impl Drop for PhysicalPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this size, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base, PAGE as usize) };
    }
}

/// Where an address is in its page.
pub fn offset_in_page(address: u64) -> usize {
    (address % PAGE) as usize
}
