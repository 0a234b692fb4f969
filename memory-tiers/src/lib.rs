//! Guest memory: who owns it, what it is made of, where absent pages come from.
//!
//! This crate knows no vCPU, device or HTTP; it is tested on plain memory without a VM. The calls
//! that map memory are in `sys` and nowhere else in the project.

mod ahead;
mod answer;
mod away;
mod bridge;
mod calibrate;
mod census;
mod copying;
mod counters;
mod deadline;
mod dense;
#[cfg(test)]
mod dense_tests;
mod depot;
mod dirty;
mod discard;
mod disk;
mod error;
mod exec;
#[cfg(test)]
mod exec_tests;
mod faults;
mod guest_ram;
mod handler;
mod histogram;
mod layouts;
mod lost;
mod mechanisms;
mod mispredict;
mod offload;
#[cfg(test)]
mod offload_tests;
mod open;
mod overlay;
mod pager;
mod plan;
#[cfg(test)]
mod plan_tests;
mod planner;
mod policy;
mod populate;
mod ranges;
mod record;
mod recorder;
#[cfg(test)]
mod recorder_tests;
mod regions;
mod residency;
mod save;
mod scan;
mod sending;
mod source;
mod strategy;
mod summary;
mod sys;
mod taking;
mod team;
#[cfg(test)]
mod testing;
mod threads;
mod verified;
mod watch;

pub use census::{Census, ClassCensus};
pub use counters::{ByAccess, Counters, PageCounts, SourceCount, Times};
pub use dense::DenseBlocks;
pub use depot::Depot;
pub use dirty::take_dirty;
pub use error::{RamError, TierError};
pub use exec::{Hooks, Restore, Stage2};
pub use guest_ram::{GuestMemory, GuestRam, HugePages};
pub use handler::{Handler, HandlerMapping};
pub use histogram::{Bucket, Histogram};
pub use lost::MappedPages;
pub use mechanisms::{Mechanisms, Shape};
pub use mispredict::{Mispredicted, mispredicted};
pub use offload::{Offload, OffloadError, OffloadReport, Phase};
pub use open::{Elsewhere, flat, open, open_flat};
pub use overlay::Shown;
pub use pager::{
    CacheCounters, ChunkCache, MachineCounts, Pager, PagerCounters, Served,
    Settings as PagerSettings, SnapshotCounters,
};
pub use plan::{Action, Op, Plan, PlanError, PlanInput, Step};
pub use policy::{ColdPages, Costs, Policy, ReadOnlyPages, Wait};
pub use recorder::{Recorder, RecorderHooks};
pub use regions::RamRegion;
pub use residency::mincore_tells;
pub use save::{Saved, write_memory, write_pages};
pub use scan::{ScanBy, Scanner};
pub use source::{FileSource, ImageInfo, ImageSource, PageSource, SourceError, Sources, Tier};
pub use strategy::{Strategy, UnknownStrategy};
pub use summary::{Cost, SourceSummary, Summary};
pub use sys::device::DeviceMap;
pub use sys::mmap::Ahead;
pub use sys::numa;
pub use sys::uffd::{UffdError, can_watch};
pub use threads::confine_threads;
