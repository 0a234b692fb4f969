//! One heap for all threads of a machine's process.
//!
//! UNSAFETY: no crate wraps glibc's `mallopt`.
#![allow(unsafe_code)]

/// Has threads that start from now on allocate from the main heap. glibc would give each one of its own: a
/// reservation of 128 MiB, and three calls that change the process's mappings, which wait for whoever
/// populates guest memory. A machine's threads allocate too seldom to be in each other's way.
pub fn share() {
    // SAFETY: the call takes two numbers, and changes what malloc does later.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
