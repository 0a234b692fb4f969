//! How a snapshot's guest memory comes back: by a plan, watched by a recorder, or by another process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_memory_tiers::{
    ExternalHandler, GuestRam, Hooks, ImageResolver, Plan, Policy, Recorder, RecorderHooks,
    Restore, ScanBy, Scanner, Sources, Stage2, Strategy, TierError, flat, open, open_flat,
};
use varve_snapshot::{ManifestReader, PageRange, RegionMap};

use super::recording::{Record, Recording, SCAN_PERIOD};
use crate::error::VmmError;
use crate::vcpu;

/// Called from any thread when a page of guest memory cannot be had.
pub type Fatal = Arc<dyn Fn(TierError) + Send + Sync>;

/// How guest memory will come back: decided, not done.
pub enum MemoryRestore {
    /// By a plan.
    Planned(Box<Plan>, Sources),
    /// Page by page, each access recorded.
    Recorded(RegionMap, Sources, Record),
    /// By a plan, and looked at from time to time in this way.
    Scanned(Box<Plan>, Sources, ScanBy, Record),
    /// By another process, which listens at this unix socket.
    Handled(PathBuf),
}

/// Guest memory coming back; answers faults for as long as it lives.
pub enum Restored {
    /// By a plan.
    Planned(Restore),
    /// Under a recording.
    Recorded(Arc<Recording>),
    /// By another process.
    Handled(ExternalHandler),
}

impl MemoryRestore {
    /// Plans the restore of a tiered snapshot, some of whose images may be elsewhere.
    pub fn tiered(
        manifest: &ManifestReader,
        policy: &Policy,
        elsewhere: &dyn ImageResolver,
    ) -> Result<MemoryRestore, VmmError> {
        let (plan, sources) = open(manifest, policy, elsewhere)?;
        Ok(MemoryRestore::Planned(Box::new(plan), sources))
    }

    /// Plans the restore of guest memory `ranges` from its raw memory file.
    pub fn flat(
        file: &Path,
        ranges: &[PageRange],
        policy: &Policy,
    ) -> Result<MemoryRestore, VmmError> {
        if !policy.strategy.restores_flat() {
            return Err(VmmError::NotTiered(policy.strategy.name()));
        }
        let (plan, sources) = open_flat(file, ranges, policy)?;
        Ok(MemoryRestore::Planned(Box::new(plan), sources))
    }

    /// A recording restore from the raw memory file.
    pub fn record(
        file: &Path,
        ranges: &[PageRange],
        record: Record,
    ) -> Result<MemoryRestore, VmmError> {
        let Some(by) = record.by.scan() else {
            let (layout, sources) = flat(file, ranges)?;
            return Ok(MemoryRestore::Recorded(layout, sources, record));
        };
        // Nothing but the guest's own accesses may bring pages in.
        let policy = Policy { stage2: false, ..Policy::new(Strategy::Lazy) };
        let (plan, sources) = open_flat(file, ranges, &policy)?;
        by.can_see(file)?;
        Ok(MemoryRestore::Scanned(Box::new(plan), sources, by, record))
    }

    /// Whether a recording tells by page faults or page tables what the guest reads and writes, so that KVM
    /// must fault pages in as the guest accesses them.
    pub fn shows_the_guests_accesses(&self) -> bool {
        matches!(self, MemoryRestore::Recorded(..) | MemoryRestore::Scanned(..))
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
            MemoryRestore::Recorded(layout, sources, record) => {
                let is_monitor = Box::new(|thread| !vcpu::is_vcpu_thread(thread));
                let hooks = RecorderHooks { on_fatal, is_monitor };
                let recorder = Recorder::start(ram, layout, sources, hooks)?;
                Restored::Recorded(Arc::new(Recording::by_faults(recorder, record)?))
            }
            MemoryRestore::Scanned(plan, sources, by, record) => {
                let hooks = Hooks { stage2: None, on_fatal };
                let restore = Restore::start(ram.clone(), *plan, sources, hooks)?;
                let scanner = Scanner::start(ram, by, SCAN_PERIOD)?;
                Restored::Recorded(Arc::new(Recording::by_looks(scanner, restore, record)?))
            }
            MemoryRestore::Handled(socket) => {
                Restored::Handled(ExternalHandler::start(&ram, &socket, on_fatal)?)
            }
        })
    }
}

impl Restored {
    /// The plan's restore, if memory comes back by one.
    pub fn planned(&self) -> Option<&Restore> {
        match self {
            Restored::Planned(restore) => Some(restore),
            Restored::Recorded(recording) => recording.restore(),
            Restored::Handled(_) => None,
        }
    }

    /// The recording, if there is one.
    pub fn recording(&self) -> Option<&Arc<Recording>> {
        match self {
            Restored::Recorded(recording) => Some(recording),
            Restored::Planned(_) | Restored::Handled(_) => None,
        }
    }

    /// How memory came back, in one word: a strategy, `record` or `uffd`.
    pub fn method(&self) -> &'static str {
        match self {
            Restored::Planned(restore) => restore.plan().strategy.name(),
            Restored::Recorded(_) => "record",
            Restored::Handled(_) => "uffd",
        }
    }
}
