//! What `varve … --json` says, as far as the demo shows it. Fields that are not shown are ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use varve_memory_tiers::Bucket;

/// What `varve restore` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Restored {
    /// The method that was used; of `auto` the one that it chose.
    pub strategy: String,
    /// Milliseconds from the process's start until the vCPUs ran.
    pub resumed_ms: f64,
    /// Milliseconds from the process's start to the first answer.
    pub first_answer_ms: f64,
    /// Answers, in the order of the calls.
    pub invocations: Vec<Answer>,
    /// Pages that a recording saw touched, and among them written.
    pub recorded: Option<(u64, u64)>,
    /// What the restore did; not of a recording.
    pub counters: Option<Counters>,
    /// What memory consisted of at the end, by class; not of a recording.
    pub census: Option<BTreeMap<String, ClassCensus>>,
}

/// What `varve restore` says without having been asked to call anything.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Started {
    /// When the process began to work, by CLOCK_MONOTONIC.
    pub began_ns: u64,
    /// Milliseconds from then until the vCPUs ran.
    pub resumed_ms: f64,
}

/// What `GET /memory` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Memory {
    /// The method that was used.
    pub strategy: Option<String>,
    /// What the restore has done so far.
    pub counters: Option<Counters>,
    /// What memory consists of, by class.
    pub census: Option<BTreeMap<String, ClassCensus>>,
    /// What the kernel has counted for the vCPUs.
    pub vcpu_faults: VcpuFaults,
    /// Processor time.
    pub cpu: Cpu,
}

/// What the kernel counts for vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct VcpuFaults {
    /// Host faults without I/O.
    pub minor: u64,
    /// Host faults that waited for I/O.
    pub major: u64,
    /// Faults of second-level page tables.
    pub stage2: Option<u64>,
    /// Exits.
    pub exits: Option<u64>,
}

/// Processor time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Cpu {
    /// Of vCPUs' threads.
    pub vcpus_us: u64,
    /// Of the whole process.
    pub process_us: u64,
}

/// Time of a restore in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Times {
    /// Reading metadata, opening images, and planning.
    pub plan: f64,
    /// Laying mappings and watches.
    pub lay: f64,
    /// Copying before the guest ran.
    pub copy: f64,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Answer {
    /// Of the result.
    pub checksum: String,
    /// Milliseconds from request to answer.
    pub took_ms: f64,
}

/// Counters of a restore.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Counters {
    /// Faults that the monitor answered, by class.
    pub faults: BTreeMap<String, ByAccess>,
    /// Pages, by what happened to them.
    pub pages: Pages,
    /// What was read, by image.
    pub sources: Vec<Source>,
    /// Mappings that guest memory consists of.
    pub mappings: Option<u64>,
    /// Time.
    pub times: Option<Times>,
    /// How long answers to faults took.
    #[serde(default)]
    pub fault_latency: Vec<Bucket>,
}

/// Faults by access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct ByAccess {
    /// That read.
    pub read: u64,
    /// That wrote.
    pub write: u64,
}

/// Pages, by what happened to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Pages {
    /// Laid in place from an image.
    pub mapped: u64,
    /// Copied before the guest ran.
    pub copied: u64,
    /// Installed before the guest ran.
    pub installed: u64,
    /// Made present for reading, ahead of the guest.
    pub ahead_read: u64,
    /// Made private and writable, ahead of the guest.
    pub ahead_write: u64,
    /// Read into the page cache, ahead of the guest.
    pub ahead_cached: u64,
    /// Given to second-level page tables, ahead of the guest.
    pub stage2: u64,
    /// Put in place on faults.
    pub fetched: u64,
}

/// What one image gave.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Source {
    /// Its name.
    pub image: String,
    /// Where it is.
    pub tier: Option<String>,
    /// Bytes that the monitor read from it.
    pub bytes_read: u64,
}

/// Pages of one class, when the guest had answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct ClassCensus {
    /// That belong to this process alone.
    pub private: u64,
}

/// What `varve snapshot tier` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Tiered {
    /// Pages of guest memory.
    pub pages: u64,
    /// By class.
    pub classes: Vec<Class>,
    /// Image files.
    pub images: Vec<Image>,
}

/// Pages of one class.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Class {
    /// Its name.
    pub class: String,
    /// Pages.
    pub pages: u64,
    /// Runs of pages.
    pub extents: u64,
    /// Bytes.
    pub bytes: u64,
    /// Share of memory, 0 to 1.
    pub share: f64,
}

/// One image file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Image {
    /// Its name.
    pub image: String,
    /// Bytes that it takes where it is stored.
    pub stored_bytes: u64,
}

impl Counters {
    /// All faults that the monitor answered.
    pub fn all_faults(&self) -> u64 {
        self.faults.values().map(|by| by.read + by.write).sum()
    }

    /// All bytes that the monitor read.
    pub fn bytes_read(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes_read).sum()
    }
}

impl Pages {
    /// Made ready ahead of the guest, in any way.
    pub fn ahead(&self) -> u64 {
        self.ahead_read + self.ahead_write + self.ahead_cached
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn restored(first: f64) -> Restored {
        let text = r#"{"strategy":"tiered","resumed_ms":2.0,"first_answer_ms":9.0,"end":"done",
            "invocations":[{"function":"json","seed":7,"checksum":"a<b","answered_at_ms":9.0,
                "took_ms":6.0,"reply":{}},
                {"function":"json","seed":7,"checksum":"a<b","answered_at_ms":9.0,"took_ms":4.5,
                "reply":{}}],
            "recorded":null,
            "counters":{"strategy":"tiered","faults":{"cold":{"read":1,"write":2},
                "ro":{"read":3,"write":0}},"faults_late":0,
                "pages":{"mapped":100,"copied":20,"installed":0,"ahead_read":3,"ahead_write":4,
                    "ahead_cached":5,"ahead_failed":0,"stage2":6,"fetched":7,"fetched_along":0,
                    "zeroed":0},
                "sources":[{"image":"memory","tier":"local","bytes_read":0},
                    {"image":"cold","tier":"local","bytes_read":3145728}],
                "mappings":null,"times":{"plan":0.5,"lay":1.0,"copy":2.0}},
            "census":{"rw":{"pages":9,"present":9,"private":30,"mapped":0,"mapped_private":0}}}"#;
        let restored: Restored = serde_json::from_str(text).unwrap();
        Restored { first_answer_ms: first, ..restored }
    }

    #[test]
    fn sums_are_over_all_kinds() {
        let counters = restored(9.0).counters.unwrap();
        assert_eq!(counters.all_faults(), 6);
        assert_eq!(counters.bytes_read(), 3 << 20);
        assert_eq!(counters.pages.ahead(), 12);
    }

    #[test]
    fn a_recording_has_no_counters() {
        let text = r#"{"strategy":"record","resumed_ms":1.0,"first_answer_ms":2.0,
            "invocations":[],"recorded":[5,3],"counters":null,"census":null,"end":"done"}"#;
        let restored: Restored = serde_json::from_str(text).unwrap();
        assert_eq!((restored.recorded, restored.counters), (Some((5, 3)), None));
    }
}
