//! What a restore did, counted as it happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use varve_snapshot::{PAGE_SIZE, PageClass};

use crate::histogram::{Bucket, Histogram};
use crate::plan::Plan;
use crate::source::{ImageInfo, Tier};
use crate::strategy::Strategy;
use crate::sys::mmap::Ahead;

/// A number that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn add_time(&self, since: Instant) {
        self.add(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn raise(&self, to: Duration) {
        self.0.fetch_max(u64::try_from(to.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn micros(&self) -> f64 {
        self.get() as f64 / 1000.0
    }
}

/// The counters while they count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Faults answered: by class, read and write.
    pub faults: [[Count; 2]; 4],
    /// Faults that found the page there already.
    pub late: Count,
    pub fault_time: Count,
    pub fault_latency: Histogram,
    pub slowest_fault: Count,
    pub mapped: Count,
    pub copied: Count,
    pub installed: Count,
    /// By [`Ahead`].
    pub ahead: [Count; 3],
    pub ahead_failed: Count,
    pub stage2: Count,
    pub stage2_failed: Count,
    /// Pages put in place on faults from a source, and among them those that no fault asked for.
    pub fetched: Count,
    pub along: Count,
    pub zeroed: Count,
    /// Bytes read from each image.
    pub read: Vec<Count>,
    pub lay_time: Count,
    pub copy_time: Count,
    pub before_time: Count,
    pub beside_time: Count,
}

impl Tally {
    pub fn new(images: usize) -> Tally {
        Tally { read: (0..images).map(|_| Count::default()).collect(), ..Tally::default() }
    }

    pub fn fault(&self, class: PageClass, write: bool) {
        self.faults[class as usize][usize::from(write)].add(1);
    }

    pub fn read(&self, image: u16, pages: u64) {
        if let Some(count) = self.read.get(usize::from(image)) {
            count.add(pages * PAGE_SIZE);
        }
    }

    pub fn ahead(&self, how: Ahead, pages: u64) {
        self.ahead[how as usize].add(pages);
    }
}

/// Reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ByAccess {
    /// Faults that read.
    pub read: u64,
    /// Faults that the kernel reported as writes. Of a missing page this is what was asked for, which
    /// may be more than the guest wanted.
    pub write: u64,
}

/// What one image gave.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SourceCount {
    /// The image.
    pub image: String,
    /// Where it is.
    pub tier: Tier,
    /// Bytes read from it by the monitor; what is used in place is not counted.
    pub bytes_read: u64,
}

/// Pages, by what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PageCounts {
    /// Laid in place from an image.
    pub mapped: u64,
    /// Copied before the guest ran.
    pub copied: u64,
    /// Installed before the guest ran.
    pub installed: u64,
    /// Made present for reading ahead of the guest.
    pub ahead_read: u64,
    /// Made private and writable ahead of the guest.
    pub ahead_write: u64,
    /// Read into the page cache ahead of the guest.
    pub ahead_cached: u64,
    /// Could not be made ready ahead.
    pub ahead_failed: u64,
    /// Given to stage-2 ahead.
    pub stage2: u64,
    /// Put in place on faults.
    pub fetched: u64,
    /// Among them: neighbours that no fault asked for.
    pub fetched_along: u64,
    /// Answered with zeros, because they hold nothing else or were given back.
    pub zeroed: u64,
}

/// Time, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Times {
    /// Reading metadata, opening images, and planning.
    pub plan: f64,
    /// Laying mappings and watches.
    pub lay: f64,
    /// Copying and installing before the guest ran.
    pub copy: f64,
    /// Populating before the guest ran.
    pub before: f64,
    /// Populating beside the guest, all threads together.
    pub beside: f64,
    /// Answering faults, all threads together.
    pub faults: f64,
    /// The slowest answer.
    pub slowest_fault: f64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Counters {
    /// The method.
    pub strategy: Strategy,
    /// Faults answered through userfaultfd, by class. What the kernel answers by itself is counted
    /// by a census.
    pub faults: BTreeMap<&'static str, ByAccess>,
    /// Faults of these that found the page there already.
    pub faults_late: u64,
    /// Pages.
    pub pages: PageCounts,
    /// Images that were read.
    pub sources: Vec<SourceCount>,
    /// Mappings that guest memory consists of now.
    pub mappings: Option<usize>,
    /// Time, in microseconds.
    pub times: Times,
    /// How long answers to faults took, from the event to the wake-up, by how many.
    pub fault_latency: Vec<Bucket>,
}

impl Tally {
    /// Faults answered, by class.
    pub fn faults_by_class(&self) -> BTreeMap<&'static str, ByAccess> {
        let class = |c: PageClass| {
            let [read, write] = &self.faults[c as usize];
            (c.name(), ByAccess { read: read.get(), write: write.get() })
        };
        PageClass::BOTTOM_UP.into_iter().map(class).collect()
    }

    /// What was read of each image.
    pub fn sources(&self, images: &[ImageInfo]) -> Vec<SourceCount> {
        let source = |(image, bytes): (&ImageInfo, &Count)| SourceCount {
            image: image.name.clone(),
            tier: image.tier,
            bytes_read: bytes.get(),
        };
        images.iter().zip(&self.read).map(source).collect()
    }

    /// The counters now.
    pub fn counters(&self, plan: &Plan, mappings: Option<usize>) -> Counters {
        let ahead = |how: Ahead| self.ahead[how as usize].get();
        Counters {
            strategy: plan.strategy,
            faults: self.faults_by_class(),
            faults_late: self.late.get(),
            pages: PageCounts {
                mapped: self.mapped.get(),
                copied: self.copied.get(),
                installed: self.installed.get(),
                ahead_read: ahead(Ahead::Read),
                ahead_write: ahead(Ahead::Write),
                ahead_cached: ahead(Ahead::Cache),
                ahead_failed: self.ahead_failed.get(),
                stage2: self.stage2.get(),
                fetched: self.fetched.get(),
                fetched_along: self.along.get(),
                zeroed: self.zeroed.get(),
            },
            sources: self.sources(&plan.images),
            mappings,
            times: Times {
                plan: plan.took.as_secs_f64() * 1e6,
                lay: self.lay_time.micros(),
                copy: self.copy_time.micros(),
                before: self.before_time.micros(),
                beside: self.beside_time.micros(),
                faults: self.fault_time.micros(),
                slowest_fault: self.slowest_fault.micros(),
            },
            fault_latency: self.fault_latency.buckets(),
        }
    }
}
