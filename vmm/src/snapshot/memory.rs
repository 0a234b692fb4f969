//! How a snapshot's guest memory comes back: by a plan, or watched by a recorder.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use varve_memory_tiers::{
    GuestRam, Hooks, Plan, Policy, Recorder, RecorderHooks, Restore, ScanBy, Scanner, Sources,
    Stage2, Strategy, TierError, flat, open, open_flat,
};
use varve_snapshot::{MANIFEST_FILE, ManifestReader, PageRange, RegionMap, Trace};

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
    /// By a plan, and looked at from time to time.
    Scanned(Box<Plan>, Sources, ScanBy),
}

/// How accesses are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordBy {
    /// Every first access is a fault: exact, in order, reads told from writes.
    Faults,
    /// Memory is looked at from time to time: cheaper, and less exact.
    Scan(ScanBy),
}

/// Time between two looks.
const SCAN_PERIOD: Duration = Duration::from_millis(50);

/// Guest memory coming back; answers faults for as long as it lives.
pub enum Restored {
    /// By a plan.
    Planned(Restore),
    /// Under a recorder.
    Recorded(Arc<Recorder>),
    /// By a plan, under a scanner until it is sealed.
    Scanned(Restore, Arc<Mutex<Option<Scanner>>>),
}

/// Marks where an invocation begins; usable from any thread.
pub type Marker = Box<dyn Fn(&str) -> Result<(), TierError> + Send>;

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
            open(&ManifestReader::open(&manifest)?, policy, &())?
        } else if matches!(policy.strategy, Strategy::Lazy | Strategy::Eager | Strategy::Auto) {
            open_flat(file, ranges, policy)?
        } else {
            return Err(VmmError::NotTiered(policy.strategy.name()));
        };
        Ok(MemoryRestore::Planned(Box::new(plan), sources))
    }

    /// A recording restore from the raw memory file.
    pub fn record(
        ranges: &[PageRange],
        file: &Path,
        by: RecordBy,
    ) -> Result<MemoryRestore, VmmError> {
        Ok(match by {
            RecordBy::Faults => {
                let (layout, sources) = flat(file, ranges)?;
                MemoryRestore::Recorded(layout, sources)
            }
            RecordBy::Scan(by) => {
                // Nothing but the guest's own accesses may bring pages in.
                let policy = Policy { stage2: false, ..Policy::new(Strategy::Lazy) };
                let (plan, sources) = open_flat(file, ranges, &policy)?;
                MemoryRestore::Scanned(Box::new(plan), sources, by)
            }
        })
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
            MemoryRestore::Scanned(plan, sources, by) => {
                let hooks = Hooks { stage2: None, on_fatal };
                let restore = Restore::start(ram.clone(), *plan, sources, hooks)?;
                let scanner = Scanner::start(ram, by, SCAN_PERIOD)?;
                Restored::Scanned(restore, Arc::new(Mutex::new(Some(scanner))))
            }
        })
    }
}

impl Restored {
    /// The plan's restore, if memory comes back by one.
    pub fn planned(&self) -> Option<&Restore> {
        match self {
            Restored::Planned(restore) | Restored::Scanned(restore, _) => Some(restore),
            Restored::Recorded(_) => None,
        }
    }

    /// The means to mark invocations, if accesses are recorded.
    pub fn marker(&self) -> Option<Marker> {
        match self {
            Restored::Planned(_) => None,
            Restored::Recorded(recorder) => {
                let recorder = recorder.clone();
                Some(Box::new(move |label| recorder.mark(label)))
            }
            Restored::Scanned(_, scanner) => {
                let scanner = scanner.clone();
                Some(Box::new(move |label| match &*lock(&scanner) {
                    Some(scanner) => scanner.mark(label),
                    None => Ok(()),
                }))
            }
        }
    }

    /// Ends the recording, if there is one: what it saw. A scanner is asked once only. To be called
    /// before anything but the guest and its devices looks at guest memory.
    pub fn seal(&self) -> Result<Option<Trace>, TierError> {
        match self {
            Restored::Planned(_) => Ok(None),
            Restored::Recorded(recorder) => recorder.seal().map(Some),
            Restored::Scanned(_, scanner) => lock(scanner).take().map(Scanner::seal).transpose(),
        }
    }
}

fn lock(scanner: &Mutex<Option<Scanner>>) -> MutexGuard<'_, Option<Scanner>> {
    scanner.lock().unwrap_or_else(PoisonError::into_inner)
}
