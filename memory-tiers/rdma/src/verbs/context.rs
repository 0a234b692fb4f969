//! Devices that are open.
//!
//! UNSAFETY: calls of the library on a context, which is open as long as its value lives.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::sync::Arc;

use super::abi;
use super::handle::{Handle, answered, provided};
use super::library::Library;

/// An open device.
#[derive(Debug)]
pub(crate) struct Context {
    raw: Handle<abi::Context>,
    library: &'static Library,
}

impl Context {
    /// All devices of this host that can be opened, with their names; none without the library.
    pub fn all() -> Vec<(String, Arc<Context>)> {
        let Some(list) = Library::get().and_then(List::new) else { return Vec::new() };
        let open = |device| {
            let name = list.name(device)?;
            // One that is there but cannot be opened is of no use here.
            Some((name, Arc::new(list.open(device).ok()?)))
        };
        list.devices().filter_map(open).collect()
    }

    /// What the device can do.
    pub fn attributes(&self) -> io::Result<abi::DeviceAttr> {
        let mut found = abi::DeviceAttr::default();
        // SAFETY: the context is open; `found` can be written, and has room for what is.
        answered(unsafe { (self.library.ibv_query_device)(self.raw(), &mut found) })?;
        Ok(found)
    }

    /// How a port is.
    pub fn port(&self, number: u8) -> io::Result<abi::PortAttr> {
        let mut found = abi::PortAttr::default();
        // SAFETY: the context is open; `found` can be written, and has room for what is.
        answered(unsafe { (self.library.ibv_query_port)(self.raw(), number, &mut found) })?;
        Ok(found)
    }

    /// The addresses of all ports, which are at most `most`.
    pub fn gids(&self, most: usize) -> io::Result<Vec<abi::GidEntry>> {
        let mut found = vec![abi::GidEntry::default(); most];
        // SAFETY: the context is open; `found` has room for `most` entries of the size that is told.
        let count = unsafe {
            (self.library._ibv_query_gid_table)(
                self.raw(),
                found.as_mut_ptr(),
                most,
                0,
                size_of::<abi::GidEntry>(),
            )
        };
        // Less than 0 is an errno.
        let count = usize::try_from(count).map_err(|_| {
            io::Error::from_raw_os_error(i32::try_from(count.wrapping_neg()).unwrap_or_default())
        })?;
        found.truncate(count);
        Ok(found)
    }

    /// The library that opened it.
    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    /// Its address for the library.
    pub(super) fn raw(&self) -> *mut abi::Context {
        self.raw.raw()
    }

    /// The device's `ibv_poll_cq`.
    pub(super) fn poll_cq(&self) -> io::Result<abi::PollCq> {
        // SAFETY: the context is open, and its functions do not change once it is.
        provided(unsafe { (*self.raw()).ops.poll_cq })
    }

    /// The device's `ibv_req_notify_cq`.
    pub(super) fn req_notify_cq(&self) -> io::Result<abi::ReqNotifyCq> {
        // SAFETY: as above.
        provided(unsafe { (*self.raw()).ops.req_notify_cq })
    }

    /// The device's `ibv_post_send`.
    pub(super) fn post_send(&self) -> io::Result<abi::PostSend> {
        // SAFETY: as above.
        provided(unsafe { (*self.raw()).ops.post_send })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it is open; all that was made from it holds it, and so is gone.
        unsafe { (self.library.ibv_close_device)(self.raw()) };
    }
}

/// The devices of this host.
struct List {
    raw: Handle<*mut abi::Device>,
    len: usize,
    library: &'static Library,
}

impl List {
    fn new(library: &'static Library) -> Option<List> {
        let mut len = 0;
        // SAFETY: `len` can be written.
        let raw = Handle::new(unsafe { (library.ibv_get_device_list)(&mut len) }).ok()?;
        Some(List { raw, len: usize::try_from(len).unwrap_or(0), library })
    }

    /// Its devices, which live as long as the list, or as a context of theirs.
    fn devices(&self) -> impl Iterator<Item = *mut abi::Device> {
        // SAFETY: the list has `len` elements, and ends with a null pointer behind them.
        let at = |index| unsafe { *self.raw.raw().add(index) };
        (0..self.len).map(at).take_while(|device| !device.is_null())
    }

    /// What a device of the list is called.
    fn name(&self, device: *mut abi::Device) -> Option<String> {
        // SAFETY: the device is one of the list's.
        let name = unsafe { (self.library.ibv_get_device_name)(device) };
        if name.is_null() {
            return None;
        }
        // SAFETY: a name is a string that ends with 0, in the device's memory.
        Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    /// Opens a device of the list.
    fn open(&self, device: *mut abi::Device) -> io::Result<Context> {
        // SAFETY: the device is one of the list's.
        let raw = Handle::new(unsafe { (self.library.ibv_open_device)(device) })?;
        Ok(Context { raw, library: self.library })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the list is the library's. Devices that are open are kept by their contexts.
        unsafe { (self.library.ibv_free_device_list)(self.raw.raw()) };
    }
}
