//! Guest memory: who owns it, what it is made of, where absent pages come from.
//!
//! This crate knows no vCPU, device or HTTP; it is tested on plain memory without a VM. The calls
//! that map memory are in `sys` and nowhere else in the project.

mod bridge;
mod error;
mod guest_ram;
mod overlay;
mod plan;
#[cfg(test)]
mod plan_tests;
mod policy;
mod ranges;
mod source;
mod strategy;
mod summary;
mod sys;
mod watch;

pub use error::{RamError, TierError};
pub use guest_ram::{GuestMemory, GuestRam, HugePages, RamRegion};
pub use overlay::Shown;
pub use plan::{Action, Op, Plan, PlanError, PlanInput, Step};
pub use policy::{ColdPages, Costs, Policy, ReadOnlyPages, Wait};
pub use source::{FileSource, ImageInfo, PageSource, SourceError, Tier};
pub use strategy::{Strategy, UnknownStrategy};
pub use summary::{Cost, SourceSummary, Summary};
pub use sys::mmap::Ahead;
pub use sys::uffd::UffdError;
