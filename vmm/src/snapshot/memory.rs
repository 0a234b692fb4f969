//! How a snapshot's guest memory comes back: by a plan, or watched by a recorder.

use std::path::Path;
use std::sync::Arc;

use varve_memory_tiers::{
    GuestRam, Hooks, Plan, Policy, Recorder, RecorderHooks, Restore, Sources, Stage2, Strategy,
    TierError, flat, open, open_flat,
};
use varve_snapshot::{MANIFEST_FILE, ManifestReader, PageRange, RegionMap};

use crate::error::VmmError;
use crate::vcpu;

/// Called from any thread when a page of guest memory cannot be had.
pub type Fatal = Arc<dyn Fn(TierError) + Send + Sync>;

/// How guest memory will come back: decided, not done.
pub enum MemoryRestore {
    /// By a plan.
    Planned(Box<Plan>, Sources),
    /// Page by page, each access recorded.
    Recorded(RegionMap, Sources),
}

/// Guest memory coming back; answers faults for as long as it lives.
pub enum Restored {
    /// By a plan.
    Planned(Restore),
    /// Under a recorder.
    Recorded(Arc<Recorder>),
}

impl MemoryRestore {
    /// Plans the restore of the snapshot in `dir` with guest memory `ranges`, whose raw memory file
    /// is `file`.
    pub fn plan(
        dir: &Path,
        ranges: &[PageRange],
        file: &Path,
        policy: &Policy,
    ) -> Result<MemoryRestore, VmmError> {
        let manifest = dir.join(MANIFEST_FILE);
        let (plan, sources) = if manifest.exists() {
            open(&ManifestReader::open(&manifest)?, policy)?
        } else if matches!(policy.strategy, Strategy::Lazy | Strategy::Eager | Strategy::Auto) {
            open_flat(file, ranges, policy)?
        } else {
            return Err(VmmError::NotTiered(policy.strategy.name()));
        };
        Ok(MemoryRestore::Planned(Box::new(plan), sources))
    }

    /// A recording restore from the raw memory file.
    pub fn record(ranges: &[PageRange], file: &Path) -> Result<MemoryRestore, VmmError> {
        let (layout, sources) = flat(file, ranges)?;
        Ok(MemoryRestore::Recorded(layout, sources))
    }

    /// Carries out what must be done before the guest runs.
    pub fn start(
        self,
        ram: Arc<GuestRam>,
        stage2: Option<Box<dyn Stage2>>,
        fatal: Fatal,
    ) -> Result<Restored, VmmError> {
        let on_fatal = Box::new(move |e| fatal(e));
        Ok(match self {
            MemoryRestore::Planned(plan, sources) => {
                let hooks = Hooks { stage2, on_fatal };
                Restored::Planned(Restore::start(ram, *plan, sources, hooks)?)
            }
            MemoryRestore::Recorded(layout, sources) => {
                let is_monitor = Box::new(|thread| !vcpu::is_vcpu_thread(thread));
                let hooks = RecorderHooks { on_fatal, is_monitor };
                Restored::Recorded(Arc::new(Recorder::start(ram, layout, sources, hooks)?))
            }
        })
    }
}

impl Restored {
    /// The plan's restore, if this is one.
    pub fn planned(&self) -> Option<&Restore> {
        match self {
            Restored::Planned(restore) => Some(restore),
            Restored::Recorded(_) => None,
        }
    }

    /// The recorder, if this is one.
    pub fn recorder(&self) -> Option<&Arc<Recorder>> {
        match self {
            Restored::Planned(_) => None,
            Restored::Recorded(recorder) => Some(recorder),
        }
    }
}
