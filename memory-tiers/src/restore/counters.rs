//! What a restore did, counted as it happens.

use std::collections::BTreeMap;

use crate::fault::histogram::Bucket;
use crate::fault::stats::{ByAccess, SourceCount, Stats};
use crate::plan::ops::Plan;
use crate::plan::strategy::Strategy;
use crate::ram::kind::PrefaultMode;

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
    /// Histogram of the time from a fault's event to the wake-up of its thread.
    pub fault_latency: Vec<Bucket>,
}

impl Stats {
    /// The counters now.
    pub fn counters(&self, plan: &Plan, mappings: Option<usize>) -> Counters {
        let ahead = |how: PrefaultMode| self.ahead[how as usize].get();
        Counters {
            strategy: plan.strategy,
            faults: self.faults_by_class(),
            faults_late: self.late.get(),
            pages: PageCounts {
                mapped: self.mapped.get(),
                copied: self.copied.get(),
                installed: self.installed.get(),
                ahead_read: ahead(PrefaultMode::Read),
                ahead_write: ahead(PrefaultMode::Write),
                ahead_cached: ahead(PrefaultMode::Cache),
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
