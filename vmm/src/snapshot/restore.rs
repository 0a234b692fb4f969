//! A machine from a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use varve_memory_tiers::{GuestRam, HugePages, Policy};
use varve_snapshot::{MANIFEST_FILE, MEMORY_FILE, ManifestReader, STATE_FILE, StateFile};

use super::memory::{MemoryRestore, RecordBy};
use super::state;
use crate::config::{ConfigError, Console, VmConfig};
use crate::error::VmmError;
use crate::machine::{Saved, Start};
use crate::monitor::Monitor;

/// What belongs to this host and not to the snapshot.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Another unix socket for the vsock device.
    pub vsock: Option<PathBuf>,
    /// Other images, by drive id.
    pub drives: Vec<(String, PathBuf)>,
    /// Other taps, by interface id.
    pub nets: Vec<(String, String)>,
    /// Where the console goes.
    pub console: Console,
}

impl Overrides {
    fn apply(self, config: &mut VmConfig) -> Result<(), ConfigError> {
        let missing = |what: &str, id: &str| {
            ConfigError::field(what, format!("the snapshot's machine has no {id:?}"))
        };
        for (id, path) in self.drives {
            let drive = config.drives.iter_mut().find(|d| d.id == id);
            drive.ok_or_else(|| missing("drive", &id))?.path = path;
        }
        for (id, tap) in self.nets {
            let net = config.nets.iter_mut().find(|n| n.id == id);
            net.ok_or_else(|| missing("net", &id))?.tap = tap;
        }
        if let Some(path) = self.vsock {
            config.vsock.as_mut().ok_or_else(|| missing("vsock", "vsock"))?.uds_path = path;
        }
        config.console = self.console;
        Ok(())
    }
}

/// What is wanted of a restore.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How memory comes back.
    pub policy: Policy,
    /// Record all accesses; the policy does not count then.
    pub record: Option<RecordBy>,
    /// What belongs to this host.
    pub overrides: Overrides,
}

/// Restores the snapshot in `dir`; the machine is paused.
pub fn restore(monitor: &mut Monitor, dir: &Path, wanted: Wanted) -> Result<(), VmmError> {
    let Wanted { policy, record, overrides } = wanted;
    let manifest = dir.join(MANIFEST_FILE);
    // A tiered snapshot knows which state its images belong to.
    let file = match manifest.exists() {
        true => ManifestReader::open(&manifest)?.read_state()?,
        false => StateFile::read(&dir.join(STATE_FILE))?,
    };
    let memory_file = dir.join(file.memory_file.as_deref().unwrap_or(MEMORY_FILE));
    let ranges = file.memory.clone();
    let (mut config, machine) = state::load(file)?;
    overrides.apply(&mut config)?;
    let (memory, pages) = match record {
        Some(by) => (MemoryRestore::record(&ranges, &memory_file, by)?, HugePages::Off),
        None => (MemoryRestore::plan(dir, &ranges, &memory_file, &policy)?, policy.huge_pages),
    };
    let ram = GuestRam::with_pages(&ranges, config.track_dirty_pages, pages)?;
    let saved = Saved { machine, memory, stage2: policy.stage2 };
    monitor.adopt(config, Arc::new(ram), Start::Saved(Box::new(saved)))
}
