//! Guest memory: who owns it, what it is made of, where absent pages come from.
//!
//! This crate knows no vCPU, device or HTTP; it is tested on plain memory without a VM. The calls
//! that map memory are in `sys` and nowhere else in the project.

mod ahead;
mod answer;
mod away;
mod bridge;
mod census;
mod chunk;
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
mod host;
mod image;
mod images;
mod kind;
mod layouts;
mod lost;
mod mispredict;
mod missing;
mod offload;
#[cfg(test)]
mod offload_tests;
mod open;
mod overlay;
mod page_states;
mod pager;
mod plan;
#[cfg(test)]
mod plan_tests;
mod planner;
mod policy;
mod populate;
mod ram_error;
mod ranges;
mod record;
mod recorder;
#[cfg(test)]
mod recorder_tests;
mod regions;
mod residency;
mod resolver;
mod save;
mod scan;
mod sending;
mod source;
mod stored;
mod strategy;
mod summary;
pub mod sys;
mod taking;
mod tally;
mod team;
#[cfg(test)]
mod testing;
mod threads;
mod verified;
mod watch;

pub use census::{Census, ClassCensus};
pub use counters::{Counters, PageCounts, Times};
pub use dense::DenseBlocks;
pub use depot::Depot;
pub use dirty::take_dirty;
pub use error::TierError;
pub use exec::{Hooks, Restore, Stage2};
pub use guest_ram::{GuestMemory, GuestRam};
pub use handler::{Handler, HandlerMapping};
pub use histogram::{Bucket, Histogram};
pub use image::{ImageInfo, Tier};
pub use kind::{Ahead, HUGE_PAGE, HugePages};
pub use lost::MappedPages;
pub use mispredict::{Mispredicted, mispredicted};
pub use offload::{Offload, OffloadError, OffloadReport, Phase};
pub use open::{flat, open, open_flat};
pub use overlay::Shown;
pub use pager::{
    CacheCounters, ChunkCache, MachineCounts, Pager, PagerCounters, Served,
    Settings as PagerSettings, SnapshotCounters,
};
pub use plan::{Action, Op, Plan, PlanError, PlanInput, Step};
pub use policy::{ColdPages, Costs, Policy, ReadOnlyPages, Wait};
pub use ram_error::RamError;
pub use recorder::{Recorder, RecorderHooks};
pub use regions::RamRegion;
pub use residency::mincore_tells;
pub use resolver::Elsewhere;
pub use save::{Saved, write_memory, write_pages};
pub use scan::{ScanBy, Scanner};
pub use source::{FileSource, ImageSource, PageSource, SourceError, Sources};
pub use strategy::{Strategy, UnknownStrategy};
pub use summary::{Cost, SourceSummary, Summary};
pub use sys::device::DeviceMap;
pub use sys::numa;
pub use sys::uffd::{UffdError, can_watch};
pub use tally::{ByAccess, SourceCount};
pub use threads::confine_threads;
