//! What happens at a call that a filter does not allow: the kernel sends SIGSYS instead, whose
//! handler names the call and ends the process.
//!
//! UNSAFETY: a signal's handler is given pointers by the kernel.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::fmt::Write;
use std::io;
use std::mem::offset_of;

use vmm_sys_util::signal::register_signal_handler;

use crate::signal_handlers::{Line, end_process, exit_now};

/// Exit code of a process that made a forbidden call, as Firecracker's.
pub const EXIT_CODE: u8 = 148;

/// `siginfo_t` as the kernel fills it for SIGSYS (sigaction(2), `SYS_SECCOMP`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    signal: c_int,
    error: c_int,
    code: c_int,
    _pad: c_int,
    address: *mut c_void,
    call: c_int,
    arch: u32,
}
const _: () =
    assert!(offset_of!(Info, call) == 24 && size_of::<Info>() <= size_of::<libc::siginfo_t>());

/// Takes SIGSYS over.
pub fn install() -> io::Result<()> {
    register_signal_handler(libc::SIGSYS, on_sigsys)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// Everything in here must be safe in a handler: no allocation, no lock is waited for, and only calls
/// that each list has.
extern "C" fn on_sigsys(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`, which for SIGSYS has this form.
    let Info { call: number, code: info_code, .. } = unsafe { *info.cast::<Info>() };
    // SAFETY: the kernel passes the context of the interrupted thread.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // x86-64 passes the arguments of a call in rdi, rsi, rdx (and more).
    let argument = |register: c_int| registers.get(register as usize).copied().unwrap_or_default();
    let [a, b, c] = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX].map(argument);
    let name = syscall_numbers::x86_64::sys_call_name(number.into()).unwrap_or("unknown");
    let mut name_of_thread = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes (PR_GET_NAME(2const)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name_of_thread.as_mut_ptr()) };
    let thread = CStr::from_bytes_until_nul(&name_of_thread).unwrap_or_default();
    let thread = thread.to_str().unwrap_or_default();
    let mut line = Line::new();
    let _ = write!(
        line,
        "varve: seccomp: thread {thread:?} made a forbidden system call: {name} ({number}) with \
         arguments {a:#x}, {b:#x}, {c:#x}, ..."
    );
    line.end();
    // A filter of one's own may have nothing but what its author thought of.
    if super::is_own() {
        end_process(libc::SIGSYS, info_code, EXIT_CODE, &line);
    }
    line.write();
    exit_now(EXIT_CODE)
}
