//! Figures of a layout, for people and for JSON: pages, extents and bytes per class.

use serde::Serialize;

use crate::class::PageClass;
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::RegionMap;

/// What one class amounts to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// `zero`, `ro`, `rw` or `cold`; `rw-zero` for written pages of which nothing is stored.
    pub class: String,
    /// Number of pages.
    pub pages: u64,
    /// Number of extents: longest runs of such pages that are also stored one after another.
    pub extents: u64,
    /// Bytes of guest memory.
    pub bytes: u64,
    /// Share of guest memory, 0 to 1.
    pub share: f64,
}

/// Sums up the classes of a layout; their pages add up to guest memory.
pub fn class_reports(memory: &[PageRange], map: &RegionMap) -> Vec<ClassReport> {
    let total: u64 = memory.iter().map(PageRange::pages).sum();
    let mut sums = [(0, 0); 5];
    for region in map.regions() {
        let at = match (region.class, region.stored) {
            (PageClass::Zero, _) => 0,
            (PageClass::ReadOnly, _) => 1,
            (PageClass::ReadWrite, Some(_)) => 2,
            (PageClass::ReadWrite, None) => 3,
            (PageClass::Cold, _) => 4,
        };
        sums[at].0 += region.pages.pages();
        sums[at].1 += 1;
    }
    let named: u64 = sums.iter().map(|s| s.0).sum();
    sums[0].0 += total - named;
    sums[0].1 += zero_runs(memory, map);
    let names = ["zero", "ro", "rw", "rw-zero", "cold"];
    let reports = names.iter().zip(sums).map(|(name, (pages, extents))| ClassReport {
        class: (*name).into(),
        pages,
        extents,
        bytes: pages * PAGE_SIZE,
        share: if total == 0 { 0.0 } else { pages as f64 / total as f64 },
    });
    reports.collect()
}

/// Runs of pages that no region names.
fn zero_runs(memory: &[PageRange], map: &RegionMap) -> u64 {
    let mut runs = 0;
    let mut regions = map.regions().iter().peekable();
    for range in memory {
        let mut at = range.start();
        while let Some(region) = regions.next_if(|r| r.pages.end() <= range.end()) {
            runs += u64::from(region.pages.start() > at);
            at = region.pages.end();
        }
        runs += u64::from(at < range.end());
    }
    runs
}

/// One image file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// Name of the image.
    pub image: String,
    /// Its file.
    pub file: String,
    /// Number of pages.
    pub pages: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Bytes that it takes up: without holes, and of a store only what was added.
    pub stored_bytes: u64,
    /// `none` or `lz4`.
    pub compression: crate::chunk::Compression,
}
