//! Memory that the device may use: registered for others to read, or for reads to land in.
//!
//! UNSAFETY: a device reads and writes registered memory behind the compiler's back. What others may
//! read is never written ([`Fixed`]), and what reads land in is touched by raw copies only, after
//! the completion of the read.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::device::Domain;
use crate::error::RdmaError;
use crate::verbs::MemoryRegion;
use crate::verbs::abi::{ACCESS_LOCAL_WRITE, ACCESS_REMOTE_READ};

/// Bytes that stay where they are and as they are.
///
/// # Safety
///
/// For as long as the value lives, `bytes` is the same range, and its content does not change.
pub unsafe trait Fixed: Send + Sync {
    /// The bytes.
    fn bytes(&self) -> &[u8];
}

/// Memory that others can read over links of its domain.
#[derive(Debug)]
pub struct Registered<T: Fixed> {
    // Before the memory: it must not outlive it.
    region: MemoryRegion,
    memory: Arc<T>,
}

impl<T: Fixed> Registered<T> {
    /// Registers memory, which is pinned until this is dropped.
    pub fn new(domain: &Domain, memory: Arc<T>) -> Result<Registered<T>, RdmaError> {
        let bytes = memory.bytes();
        let (address, len) = (bytes.as_ptr().cast_mut().cast(), bytes.len());
        // SAFETY: the bytes are valid and do not change as long as `memory` lives (`Fixed`), which
        // is kept beside the region and dropped after it. Others can read only.
        let region = unsafe { MemoryRegion::new(&domain.domain, address, len, ACCESS_REMOTE_READ) };
        let region = region.map_err(RdmaError::verb("register memory to be read"))?;
        Ok(Registered { region, memory })
    }

    /// Address that the other side asks for.
    pub fn address(&self) -> u64 {
        self.region.address()
    }

    /// Key that the other side needs.
    pub fn key(&self) -> u32 {
        self.region.remote_key()
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<T> {
        &self.memory
    }
}

/// Where reads land.
#[derive(Debug)]
pub(crate) struct Staging {
    // Before the mapping: it must not outlive it.
    region: Option<MemoryRegion>,
    address: *mut c_void,
    len: usize,
}

// SAFETY: the mapping is private memory that only its owner knows of; all access is through
// `copy_out`, which takes `&mut self`.
unsafe impl Send for Staging {}
// SAFETY: shared references give numbers only.
unsafe impl Sync for Staging {}

impl Staging {
    /// `len` bytes, whole pages.
    pub fn new(domain: &Domain, len: usize) -> Result<Staging, RdmaError> {
        let what = "make a buffer";
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) };
        let address = address.map_err(|e| RdmaError::verb(what)(std::io::Error::from(e)))?;
        let mut staging = Staging { region: None, address, len };
        // SAFETY: the mapping is valid until it is dropped, after the region. Nothing refers to its
        // bytes but `copy_out`.
        let region = unsafe { MemoryRegion::new(&domain.domain, address, len, ACCESS_LOCAL_WRITE) };
        staging.region = Some(region.map_err(RdmaError::verb("register a buffer"))?);
        Ok(staging)
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Address and key for the device, of `len` bytes from `offset` if they are inside.
    pub fn part(&self, offset: usize, len: usize) -> Option<(u64, u32)> {
        let end = offset.checked_add(len)?;
        let region = self.region.as_ref().filter(|_| end <= self.len)?;
        Some((self.address.addr() as u64 + offset as u64, region.local_key()))
    }

    /// Copies what reads have brought to the start. No read may be under way.
    pub fn copy_out(&mut self, to: &mut [u8]) {
        let len = to.len().min(self.len);
        // SAFETY: `len` bytes are mapped, `to` is as long and elsewhere; the device writes no more.
        unsafe { std::ptr::copy_nonoverlapping(self.address.cast(), to.as_mut_ptr(), len) };
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.region = None;
        // SAFETY: the mapping is whole, owned, and not registered any more.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}
