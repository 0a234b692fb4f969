//! The library itself: opened once, when it is first needed, and then never closed.
//!
//! UNSAFETY: a symbol is but an address; its type is what <infiniband/verbs.h> declares for its name.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};

use super::abi::{
    Channel, Context, Cq, Device, DeviceAttr, GidEntry, Mr, Pd, PortAttr, Qp, QpAttr, QpInitAttr,
};

/// The name that goes with the stable symbol versions.
const NAME: &str = "libibverbs.so.1";

/// The functions, by their names, and how all are found in an open library.
macro_rules! library {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The library's functions.
        #[derive(Debug)]
        pub(super) struct Library {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Keeps the functions where they are.
            _opened: Opened,
        }

        impl Library {
            /// All functions, or none if one is missing.
            fn of(opened: Opened) -> Option<Library> {
                $(
                    // SAFETY: the type is what the header declares for the name, in its default
                    // version, which is what is found. An address of 0 is `None`.
                    let $name = *unsafe {
                        opened.get::<Option<unsafe extern "C" fn($($argument),*) $(-> $result)?>>(
                            stringify!($name),
                        )
                    }.ok()?;
                )*
                Some(Library { $($name: $name?,)* _opened: opened })
            }
        }
    };
}

// The last one came with IBVERBS_1.11 (rdma-core 32), all others are of IBVERBS_1.0 and 1.1.
library! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device);
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut Channel;
    ibv_destroy_comp_channel: fn(*mut Channel) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut Channel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_get_cq_event: fn(*mut Channel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, c_uint);
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    _ibv_query_gid_table: fn(*mut Context, *mut GidEntry, usize, u32, usize) -> isize;
}

impl Library {
    /// The library, if this host has it, and all that is used of it.
    pub fn get() -> Option<&'static Library> {
        // What was missing once is not looked for again: later, filters may forbid to load code.
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        LIBRARY.get_or_init(|| Library::open(NAME)).as_ref()
    }

    fn open(name: &str) -> Option<Library> {
        // Now: nothing is left to be bound after filters.
        // SAFETY: what runs as the library is loaded prepares nothing but its own state, and those
        // who install libraries of this name are trusted as much as with the C library.
        let opened = unsafe { Opened::open(Some(name), RTLD_NOW | RTLD_LOCAL) };
        Library::of(opened.ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_or_its_functions_there_is_none() {
        assert!(Library::open("libvarve-has-none.so.1").is_none());
        // One that is there, and is another.
        assert!(Library::open("libc.so.6").is_none());
    }

    #[test]
    fn it_is_opened_once() {
        let (first, second) = (Library::get(), Library::get());
        assert_eq!(first.map(std::ptr::from_ref), second.map(std::ptr::from_ref));
    }
}
