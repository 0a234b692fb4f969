//! The system calls on guest memory, each behind a safe interface.

pub mod device;
pub mod mmap;
pub mod numa;
pub mod pagemap;
pub mod peer;
pub mod uffd;
