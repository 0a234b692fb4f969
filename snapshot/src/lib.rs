//! What a varve snapshot says and how it is stored.
//!
//! This crate is pure: no guest memory, no KVM, no `unsafe`. It knows page ranges and what they
//! mean; where pages are at run time is `varve-memory-tiers`' business.
#![forbid(unsafe_code)]

mod class;
mod page;
mod region;

pub use class::PageClass;
pub use page::{PAGE_SIZE, PageRange, PageRangeError};
pub use region::{ImageId, NEVER, Region, RegionError, RegionMap, Stored};
