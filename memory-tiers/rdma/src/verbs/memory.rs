//! Protection domains, and memory that is registered in them.
//!
//! UNSAFETY: calls of the library on objects that live as long as their values.
#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};
use std::io;
use std::sync::Arc;

use super::abi;
use super::context::Context;
use super::handle::Handle;

/// A protection domain.
#[derive(Debug)]
pub(crate) struct ProtectionDomain {
    raw: Handle<abi::Pd>,
    context: Arc<Context>,
}

impl ProtectionDomain {
    /// A new one.
    pub fn new(context: Arc<Context>) -> io::Result<ProtectionDomain> {
        // SAFETY: the context is open.
        let raw = Handle::new(unsafe { (context.library().ibv_alloc_pd)(context.raw()) })?;
        Ok(ProtectionDomain { raw, context })
    }

    /// Its device.
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Its address for the library.
    pub(super) fn raw(&self) -> *mut abi::Pd {
        self.raw.raw()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: the domain is there; all that was made in it holds it, and so is gone.
        unsafe { (self.context.library().ibv_dealloc_pd)(self.raw()) };
    }
}

/// A range of memory that the device may use.
#[derive(Debug)]
pub(crate) struct MemoryRegion {
    raw: Handle<abi::Mr>,
    address: u64,
    local_key: u32,
    remote_key: u32,
    domain: Arc<ProtectionDomain>,
}

impl MemoryRegion {
    /// Registers `len` bytes, for what `access` says.
    ///
    /// # Safety
    ///
    /// The bytes stay mapped for as long as the region lives. All that time the device may read them,
    /// or write them if `access` says so: no reference may rule that out.
    pub unsafe fn new(
        domain: &Arc<ProtectionDomain>,
        address: *mut c_void,
        len: usize,
        access: c_uint,
    ) -> io::Result<MemoryRegion> {
        let register = domain.context.library().ibv_reg_mr;
        // SAFETY: the domain is there; the range is what the caller vouches for.
        let raw =
            Handle::new(unsafe { register(domain.raw(), address, len, access.cast_signed()) })?;
        // SAFETY: the region was just made, and nobody changes it.
        let made = unsafe { &*raw.raw() };
        let (address, local_key, remote_key) = (made.addr.addr() as u64, made.lkey, made.rkey);
        Ok(MemoryRegion { raw, address, local_key, remote_key, domain: domain.clone() })
    }

    /// Address of its first byte, as the device knows it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Key for requests of this side.
    pub fn local_key(&self) -> u32 {
        self.local_key
    }

    /// Key for requests of the other side.
    pub fn remote_key(&self) -> u32 {
        self.remote_key
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: the region is there, and nothing is made from regions.
        unsafe { (self.domain.context.library().ibv_dereg_mr)(self.raw.raw()) };
    }
}
