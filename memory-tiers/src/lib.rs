//! Guest memory: who owns it, what it is made of, where absent pages come from.
//!
//! This crate knows no vCPU, device or HTTP; it is tested on plain memory without a VM. The calls
//! that map memory are in `sys` and nowhere else in the project.

mod error;
mod guest_ram;
mod sys;

pub use error::RamError;
pub use guest_ram::{GuestMemory, GuestRam, RamRegion};
