//! What whoever restores may choose, and what the mechanisms cost. What follows is `strategy`'s.

use std::path::PathBuf;
use std::time::Duration;

use varve_snapshot::PAGE_SIZE;

use crate::plan::huge_blocks::HugeBlocks;
use crate::plan::image::{ImageInfo, Tier};
use crate::plan::strategy::Strategy;
use crate::ram::host::{mapping_budget, processors};
use crate::ram::kind::HugePages;

/// Where read-only pages are used from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadOnlyPages {
    /// As the costs say.
    #[default]
    Auto,
    /// In place: shared, never copied; each access pays the tier's latency.
    Mapped,
    /// From local memory: copied ahead of their use, as pages that will be written are.
    Copied,
}

/// The way that cold pages come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColdPages {
    /// Mapped where their image can be; needs no privilege, and nothing is verified.
    #[default]
    Mapped,
    /// Through userfaultfd, verified, whole chunks at a time.
    Paged,
}

/// What is made ready before the guest runs, rather than beside it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum PrefaultBarrier {
    /// Only what must be.
    #[default]
    Nothing,
    /// Pages that will be written.
    Written,
    /// Of all that recorded invocations touched, what comes first: 32 MiB. Nothing, if it has to come from a disk in
    /// pieces (all but `tiered`, whose images are packed): then a guest runs on what has come while the rest comes.
    First,
    /// All that recorded invocations touched.
    All,
}

impl PrefaultBarrier {
    /// What suits a method and the processors that this process may use. With one alone, whatever
    /// populates beside the guest takes its time, and a page is cheaper to make ready than to fault on. With
    /// several the guest soon catches up with whoever populates beside it, and faults beside him on what both want next;
    /// before it runs, two can populate. Other systems' methods stay as they were described.
    pub fn suited(strategy: Strategy) -> PrefaultBarrier {
        if strategy.is_baseline() {
            return PrefaultBarrier::Nothing;
        }
        if processors() == 1 { PrefaultBarrier::All } else { PrefaultBarrier::First }
    }

    /// Limit of the pages that the guest waits for.
    pub(crate) fn most(self) -> u64 {
        match self {
            PrefaultBarrier::Nothing => 0,
            PrefaultBarrier::First => (32 << 20) / PAGE_SIZE,
            PrefaultBarrier::Written | PrefaultBarrier::All => u64::MAX,
        }
    }
}

/// Time that each mechanism takes on this host, in nanoseconds. The defaults are
/// those of `varve-bench mechanisms` on one virtual x86-64 host (Linux 6.18), with memory files and
/// extents of four pages; their ratios matter, not their absolutes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Costs {
    /// One mapping laid over another.
    pub map: f64,
    /// One call that reads an extent.
    pub read_call: f64,
    /// A page made present and copied in.
    pub copy_page: f64,
    /// A page mapped from a file, ahead of its use.
    pub populate_read: f64,
    /// A page copied from a file mapping, ahead of its use.
    pub populate_write: f64,
    /// A page installed through userfaultfd ahead of its use.
    pub install_page: f64,
    /// A fault of the guest on a page of a file mapping, with the exit.
    pub read_fault: f64,
    /// The same for a write, with the copy.
    pub write_fault: f64,
    /// A fault of the guest that another thread answers.
    pub paged_fault: f64,
    /// A fresh page made present, ahead of its use.
    pub populate_fresh: f64,
    /// The same of 4 KiB of a huge page.
    pub populate_huge: f64,
    /// What a use of a page in place on shared memory costs more than in local memory, all accesses
    /// of an invocation together.
    pub remote_use: f64,
    /// The share of read-only pages that an invocation uses: the others are between them, or were for
    /// other inputs. The default is that of a new input, 0.81 to 0.84 of twelve functions in thirteen.
    pub read_only_used: f64,
    /// The share of the work beside the guest that the guest waits for.
    pub beside_share: f64,
}

impl Default for Costs {
    fn default() -> Costs {
        Costs {
            map: 2000.0,
            read_call: 800.0,
            copy_page: 2000.0,
            populate_read: 180.0,
            populate_write: 1400.0,
            install_page: 1000.0,
            read_fault: 1400.0,
            write_fault: 2700.0,
            paged_fault: 9000.0,
            populate_fresh: 1050.0,
            populate_huge: 150.0,
            remote_use: 0.0,
            read_only_used: 0.82,
            beside_share: 0.25,
        }
    }
}

impl Costs {
    /// What a read-only page of `image` costs more in place than in local memory, used or not.
    pub(crate) fn in_place(&self, image: &ImageInfo) -> f64 {
        if image.tier == Tier::Local { 0.0 } else { self.remote_use * self.read_only_used }
    }
}

/// Limit of the time for a page: longer than a pool tries all copies of a page, so that the pool's
/// error, which names them, comes first.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(20);

/// All choices of a restore.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Policy {
    /// The method.
    pub strategy: Strategy,
    /// Where read-only pages are used from (`tiered`, `template`).
    pub read_only: ReadOnlyPages,
    /// The way that cold pages come (`tiered`, `template`).
    pub cold: ColdPages,
    /// What is made ready before the guest runs.
    pub wait: PrefaultBarrier,
    /// Threads that populate beside the guest, 1 or more. Before it runs, the one that restores helps.
    pub threads: usize,
    /// Threads that answer faults, 1 or more.
    pub fault_threads: usize,
    /// Longest gap of zero pages, in pages, that a mapping may bridge (`faasnap`, and
    /// `tiered` with huge pages; the others bridge any), and that may be watched with its neighbours.
    pub bridge: u64,
    /// Mappings that the plan may use.
    pub max_mappings: usize,
    /// What guest memory is made of.
    pub huge_pages: HugePages,
    /// Mechanism 2 MiB that will mostly be written, and are waited for, become one page (`tiered`, `template`,
    /// with `huge_pages` off).
    pub huge_blocks: HugeBlocks,
    /// Whether stage-2 is filled as well.
    pub stage2: bool,
    /// Limit of the time for a page.
    pub deadline: Duration,
    /// The unix socket of a process that brings the pages that are asked for; else threads of this
    /// one do. What is cold is asked for then, and with `lazy` all that is stored.
    pub pager: Option<PathBuf>,
    /// What mechanisms cost.
    pub costs: Costs,
}

impl Policy {
    /// Whether cold pages are asked for, also where they could be mapped.
    pub(crate) fn asks_for_cold(&self) -> bool {
        self.cold == ColdPages::Paged || self.pager.is_some()
    }

    /// Threads that copy and populate while the guest waits, among them the one that restores: two at
    /// least, if there are processors for them. Other systems' methods stay as they were described.
    pub(crate) fn workers(&self) -> usize {
        let helped = !self.strategy.is_baseline() && processors() > 1;
        self.threads.max(if helped { 2 } else { 1 })
    }

    /// Most threads that populate at the same time.
    pub fn most_at_once(&self) -> usize {
        if self.wait == PrefaultBarrier::Nothing { self.threads } else { self.workers() }
    }

    /// The share of work ahead of the guest that it waits for: all of what `from` on is waited for.
    pub(crate) fn waited(&self, from: PrefaultBarrier) -> f64 {
        if self.wait >= from { 1.0 } else { self.costs.beside_share }
    }

    /// The defaults with a given method.
    pub fn new(strategy: Strategy) -> Policy {
        Policy {
            strategy,
            read_only: ReadOnlyPages::Auto,
            cold: ColdPages::Mapped,
            wait: PrefaultBarrier::Nothing,
            threads: 1,
            fault_threads: 1,
            bridge: 16,
            max_mappings: mapping_budget(),
            huge_pages: HugePages::Off,
            huge_blocks: HugeBlocks::Off,
            stage2: true,
            deadline: DEFAULT_DEADLINE,
            pager: None,
            costs: Costs::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;

    #[test]
    fn who_has_one_processor_makes_all_ready_first() {
        // Affinity is a thread's: the other tests keep theirs.
        std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let mine: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
            for many in 1..=mine.len().min(2) {
                let mut some = CpuSet::new();
                mine.iter().take(many).for_each(|&cpu| some.set(cpu));
                sched_setaffinity(None, &some).unwrap();
                let ready = if many == 1 { PrefaultBarrier::All } else { PrefaultBarrier::First };
                assert_eq!(PrefaultBarrier::suited(Strategy::Tiered), ready);
                assert_eq!(PrefaultBarrier::suited(Strategy::Auto), ready);
                assert_eq!(PrefaultBarrier::suited(Strategy::Faasnap), PrefaultBarrier::Nothing);
            }
        })
        .join()
        .unwrap();
    }
}
