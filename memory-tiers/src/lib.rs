//! Guest memory: its pages, their sources, and the ways to restore, record and evict them.
//!
//! The crate knows no vCPU, device or HTTP, so its tests need no VM. Modules depend downward only
//! (`vmm/tests/arrows.rs` checks it):
//!
//! ```text
//! pager    faults of other processes     offload  eviction of idle pages
//! record   access logs                   restore  carries a plan out
//! fault    answers to page faults
//! source   where stored pages come from
//! plan     what a restore will do; touches no guest memory
//! ram      guest memory, and in `ram::sys` the only calls that map memory
//! ```

mod error;
mod fault;
mod offload;
mod pager;
mod plan;
mod ram;
mod record;
mod restore;
mod source;
#[cfg(test)]
mod testing;

pub use error::TierError;
pub use fault::backing_store::BackingStore;
pub use fault::external::{ExternalHandler, HandlerMapping};
pub use fault::histogram::{Bucket, Histogram};
pub use fault::stats::{ByAccess, SourceCount};
pub use offload::control::{Offload, OffloadError, OffloadReport, Phase};
pub use pager::{
    CacheCounters, ChunkCache, MachineCounts, Pager, PagerCounters, Served,
    Settings as PagerSettings, SnapshotCounters,
};
pub use plan::huge_blocks::HugeBlocks;
pub use plan::image::{ImageInfo, Tier};
pub use plan::mispredict::{Mispredicted, mispredicted};
pub use plan::ops::{Action, Op, Plan, PlanError, PlanInput, Step};
pub use plan::overlay::Shown;
pub use plan::policy::{ColdPages, Costs, Policy, PrefaultBarrier, ReadOnlyPages};
pub use plan::strategy::{Strategy, UnknownStrategy};
pub use plan::summary::{Cost, SourceSummary, Summary};
pub use ram::dirty::take_dirty;
pub use ram::error::RamError;
pub use ram::guest_ram::{GuestMemory, GuestRam};
pub use ram::kind::{HUGE_PAGE, HugePages, PrefaultMode};
pub use ram::regions::RamRegion;
pub use ram::save::{Saved, write_memory, write_pages};
pub use ram::sys;
pub use ram::sys::device::DeviceMap;
pub use ram::sys::numa;
pub use ram::sys::uffd::{UffdError, can_watch};
pub use ram::threads::confine_threads;
pub use record::recorder::{Recorder, RecorderHooks};
pub use record::scanner::{ScanBy, Scanner};
pub use restore::census::{Census, ClassCensus};
pub use restore::counters::{Counters, PageCounts, Times};
pub use restore::execute::{Hooks, Restore, Stage2};
pub use restore::mapped::MappedPages;
pub use restore::open::{flat, open, open_flat};
pub use source::page_source::{FileSource, ImageSource, PageSource, SourceError, Sources};
pub use source::residency::mincore_tells;
pub use source::resolver::ImageResolver;
