//! Idle pages of a machine's memory that go to a pool, and come back.

use std::sync::Arc;
use std::time::Duration;

use varve_memory_tiers::{Hooks, Offload, OffloadReport};
use varve_pool::{BackingStoreConfig, Keys, PoolBackingStore, PoolError};

use super::Machine;
use crate::error::VmmError;
use crate::machine::memory::{Fatal, Restored};
use crate::machine::offload_request::{Destination, OffloadRequest};
use crate::seccomp;

/// A machine's offloading, once it was asked for.
pub struct Offloading {
    offload: Offload,
    /// Where pages are, as it was asked for.
    store: Option<(Destination, Arc<PoolBackingStore>)>,
}

impl Machine {
    /// Begins to offload: from here on [`Machine::take_some`] is to be called. `fatal` is called when a
    /// page that is out cannot be had again.
    pub fn offload(&mut self, request: OffloadRequest, fatal: &Fatal) -> Result<(), VmmError> {
        let OffloadRequest { to, idle_ms, max_mib } = request;
        if !seccomp::reaches_pool() {
            let problem = "no use in this process, whose filters keep it from a pool: start it with \
                           --allow-pool";
            return Err(PoolError::File { path: to.keys, problem: problem.into() }.into());
        }
        let restore = match &self.restored {
            Some(Restored::Recorded(_)) => {
                let problem = "is recorded, and offloading would be seen as the guest's accesses; \
                               restore it without a recording";
                return Err(VmmError::NotOffloaded(problem));
            }
            Some(Restored::Planned(restore)) => Some(restore),
            Some(Restored::Handled(_)) | None => None,
        };
        let known = self.offloading.as_ref().and_then(|o| o.store.as_ref());
        let store = match known.filter(|(known, _)| *known == to) {
            Some((_, store)) => store.clone(),
            None => {
                let Destination { nodes, copies, keys, tenant, transport } = to.clone();
                let (tenant, key) = Keys::choose(&keys, tenant.as_ref())?;
                let config = BackingStoreConfig { nodes, copies, tenant, key, transport };
                Arc::new(PoolBackingStore::new(config)?)
            }
        };
        let offloading = match &mut self.offloading {
            Some(offloading) => offloading,
            none => {
                let fatal = fatal.clone();
                let hooks = Hooks { stage2: None, on_fatal: Box::new(move |e| fatal(e)) };
                let offload = Offload::new(self.ram.clone(), restore, hooks)?;
                none.insert(Offloading { offload, store: None })
            }
        };
        let limit = max_mib.map_or(u64::MAX, |mib| u64::from(mib) << (20 - 12));
        let idle = Duration::from_millis(idle_ms.into());
        offloading.offload.begin(store.clone(), idle, limit)?;
        offloading.store = Some((to, store));
        Ok(())
    }

    /// Whether pages are to be taken out.
    pub fn is_taking(&self) -> bool {
        self.offloading.as_ref().is_some_and(|o| o.offload.is_taking())
    }

    /// Takes some more pages out. Only while the machine is paused.
    pub fn take_some(&self) -> Result<(), VmmError> {
        self.offloading.iter().try_for_each(|o| o.offload.take_some().map_err(VmmError::from))
    }

    /// Has all pages come back.
    pub fn recall(&self) {
        self.offloading.iter().for_each(|o| o.offload.recall());
    }

    /// What was offloaded, and what became of it.
    pub fn offload_report(&self) -> OffloadReport {
        self.offloading.as_ref().map(|o| o.offload.report()).unwrap_or_default()
    }
}
