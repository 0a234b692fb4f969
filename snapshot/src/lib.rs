//! What a varve snapshot says and how it is stored.
//!
//! This crate is pure: no guest memory, no KVM, no `unsafe`. It knows page ranges and what they
//! mean; where pages are at run time is `varve-memory-tiers`' business. The files are drawn byte by
//! byte in `docs/snapshot-format.md`.
//!
//! | to | use |
//! | --- | --- |
//! | save a machine | [`FlatWriter`], with a [`StateFile`] |
//! | record | [`Trace`], [`Trace::merge`] |
//! | see what recordings say | [`Profile`] |
//! | tier | [`tier()`] ([`classify()`] is its pure part) |
//! | restore | [`ManifestReader`]: [`RegionMap`]s and [`ImageReader`]s |
//! | know what a restored guest must see | [`LayoutContent`] |
//! | look at a snapshot, check it | [`inspect()`], [`draw_text`], [`draw_svg`], [`verify()`] |
//! | merge a diff | [`merge()`]; of memory files alone [`merge_diff`] |
//! | find a snapshot's memory file | [`memory_in`], [`memory_at`] |
//! | know where images are kept elsewhere | [`Places`] |
//! | have files appear whole | [`Staging`] |
#![forbid(unsafe_code)]

mod chunk;
mod chunk_digest;
mod class;
mod classify;
mod codec;
mod container;
mod content;
mod diff;
mod digest;
mod error;
mod flat;
mod flat_writer;
mod image;
mod image_writer;
mod inspect;
mod layouts;
mod manifest;
mod manifest_codec;
mod memmap;
mod merge;
mod output;
mod packer;
mod page;
mod page_store;
mod places;
mod profile;
mod region;
mod report;
mod state;
mod store;
mod sums;
mod target;
mod tier;
mod trace;
mod tripwires;
mod verify;

pub use chunk::{Chunk, ChunkTable, Compression, DEFAULT_CHUNK_PAGES, MAX_CHUNK_PAGES};
pub use chunk_digest::{ChunkDigest, ChunkDigests};
pub use class::PageClass;
pub use classify::{Classified, ClassifyOptions, Extent, HotIf, classify};
pub use content::LayoutContent;
pub use diff::{MergeReport, merge_diff, stage_merge};
pub use digest::Digest;
pub use error::{ChunkFault, FormatError, SnapshotError, chain};
pub use flat::{FlatFile, FlatOrder, MemorySource, Scan, check_whole, data_run, data_start, scan};
pub use flat_writer::FlatWriter;
pub use image::{Backing, Image, ImageEntry, ImageReader};
pub use image_writer::{ImageWriter, is_zero};
pub use inspect::{ImageSummary, Inspection, LayoutSummary, StateSummary, TierSummary, inspect};
pub use manifest::{
    COLD_IMAGE, FileRef, MANIFEST_FILE, MEMORY_FILE, Manifest, ManifestReader, READ_ONLY_IMAGE,
    Recorded, STATE_FILE, layout,
};
pub use memmap::{draw_svg, draw_text};
pub use merge::merge;
pub use output::{check_output, write_output};
pub use page::{PAGE_SIZE, PageRange, PageRangeError};
pub use page_store::PageStore;
pub use places::{Placed, Places};
pub use profile::{ClassShare, Input, Overlap, Profile, Stability};
pub use region::{ImageId, NEVER, Region, RegionError, RegionMap, Stored};
pub use report::{ClassReport, ImageReport, class_reports};
pub use state::{HostIdentity, SnapshotId, StateBlob, StateFile};
pub use store::{
    Files, LocalFiles, NewFile, StagedFile, Staging, TEMP_PREFIX, clean, open_beside, remove, there,
};
pub use sums::{MemorySums, SUM_PAGES, Summing, chunks_of};
pub use target::{ASIDE_PREFIX, memory_at, memory_in, settle};
pub use tier::{TierInput, TierOptions, TierReport, tier};
pub use trace::{Access, Mechanism, PageAccess, Trace};
pub use verify::{VerifyReport, verify};
