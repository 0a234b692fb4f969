//! The system calls on guest memory, each behind a safe interface.

pub mod mmap;
pub mod pagemap;
pub mod peer;
pub mod uffd;
