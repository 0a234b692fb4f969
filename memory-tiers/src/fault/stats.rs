//! What fault threads and a restore count while they work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use varve_snapshot::{PAGE_SIZE, PageClass};

use crate::fault::histogram::Histogram;
use crate::plan::image::{ImageInfo, Tier};
use crate::ram::kind::PrefaultMode;

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

    pub fn micros(&self) -> f64 {
        self.get() as f64 / 1000.0
    }
}

/// The counters while they count.
#[derive(Debug, Default)]
pub(crate) struct Stats {
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
    /// By [`PrefaultMode`].
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

impl Stats {
    pub fn new(images: usize) -> Stats {
        Stats { read: (0..images).map(|_| Count::default()).collect(), ..Stats::default() }
    }

    pub fn fault(&self, class: PageClass, write: bool) {
        self.faults[class as usize][usize::from(write)].add(1);
    }

    pub fn read(&self, image: u16, pages: u64) {
        if let Some(count) = self.read.get(usize::from(image)) {
            count.add(pages * PAGE_SIZE);
        }
    }

    pub fn ahead(&self, how: PrefaultMode, pages: u64) {
        self.ahead[how as usize].add(pages);
    }

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
