//! A machine from a snapshot.

use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use varve_devices::limiter::BucketConfig;
use varve_memory_tiers::{GuestRam, HugePages, Strategy};
use varve_snapshot::{
    MANIFEST_FILE, MEMORY_FILE, ManifestReader, STATE_FILE, SnapshotError, StateFile, check_whole,
    memory_at, memory_in, there,
};

use super::choices::Choices;
use super::state;
use crate::config::{ConfigError, Console, VmConfig};
use crate::error::VmmError;
use crate::machine::Start;
use crate::machine::lineage::Lineage;
use crate::machine::memory::MemoryRestore;
use crate::machine::recording::Record;
use crate::machine::saved::Saved;
use crate::special_files::not_special;

/// What belongs to this host and not to the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Another unix socket for the vsock device.
    pub vsock: Option<PathBuf>,
    /// Other images, by drive id.
    pub drives: Vec<(String, PathBuf)>,
    /// Other taps, by interface id.
    pub nets: Vec<(String, String)>,
    /// Where the console goes.
    pub console: Console,
    /// Another limit of the console's output.
    pub console_limiter: Option<BucketConfig>,
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
        config.console_limiter = self.console_limiter.or(config.console_limiter);
        Ok(())
    }
}

/// Where a machine is restored from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The snapshot in a folder, whatever is in there: a tiered one if it has a manifest.
    Folder(PathBuf),
    /// A state file and a raw memory file.
    Files {
        /// The state file.
        state: PathBuf,
        /// The raw memory file.
        memory: PathBuf,
    },
    /// The tiered snapshot in a folder.
    Tiered {
        /// The folder.
        dir: PathBuf,
        /// Its state file, if that is not where the snapshot says.
        state: Option<PathBuf>,
    },
    /// A state file, and another process for memory.
    Handler {
        /// The state file.
        state: PathBuf,
        /// The unix socket where the process listens.
        socket: PathBuf,
    },
}

impl Source {
    /// The files that are opened because somebody named them, or a folder of them.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Source::Folder(dir) => {
                [MANIFEST_FILE, STATE_FILE, MEMORY_FILE].map(|f| dir.join(f)).into()
            }
            Source::Files { state, memory } => vec![state.clone(), memory.clone()],
            Source::Tiered { dir, state } => {
                let state = state.clone().unwrap_or_else(|| dir.join(STATE_FILE));
                vec![dir.join(MANIFEST_FILE), state]
            }
            Source::Handler { state, .. } => vec![state.clone()],
        }
    }
}

/// What is wanted of a restore: the command line and the API both end up here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// From where.
    pub source: Source,
    /// How memory comes back.
    pub choices: Choices,
    /// What memory is made of; as the snapshot's machine's if not said.
    pub huge_pages: Option<HugePages>,
    /// Record all accesses; the choices do not count then.
    pub record: Option<Record>,
    /// What belongs to this host.
    pub overrides: Overrides,
    /// Keep track of written pages; as the snapshot's machine did if not said.
    pub track_dirty_pages: Option<bool>,
    /// The guest's clock goes on by the time that has passed since the snapshot.
    pub clock_realtime: bool,
}

/// A machine that can be built from a snapshot.
pub struct Prepared {
    /// The snapshot's configuration with what belongs to this host.
    pub config: VmConfig,
    /// Guest memory, empty.
    pub ram: Arc<GuestRam>,
    /// The saved state.
    pub start: Start,
    /// The snapshot, to which the next diff is compared.
    pub lineage: Lineage,
}

/// Reads a snapshot and plans the restore of its memory.
///
/// # Errors
///
/// If a file of it cannot be read, or what is wanted does not fit the snapshot or this host.
pub fn prepare(wanted: Wanted) -> Result<Prepared, VmmError> {
    log::info!("restoring {:?}", wanted.source);
    let Wanted { source, choices, record, overrides, .. } = wanted;
    let (file, memory) = open(source)?;
    if let Memory::File(path) = &memory {
        check_whole(&file, path)?;
    }
    let last = Lineage::restored(&file, memory.path());
    let ranges = file.memory.clone();
    let (mut config, mut machine) = state::load(file)?;
    overrides.apply(&mut config)?;
    config.track_dirty_pages = wanted.track_dirty_pages.unwrap_or(config.track_dirty_pages);
    machine.vm.set_clock_mode(wanted.clock_realtime)?;
    let huge_pages = wanted.huge_pages.unwrap_or(config.huge_pages);
    let (otherwise, pages) = match (&memory, &record) {
        // Each page is to be seen by itself.
        (_, Some(_)) => (Strategy::Lazy, HugePages::Off),
        // As Firecracker does, but for pages that cannot be mapped from a file.
        (Memory::File(_), None) if huge_pages != HugePages::Pool => (Strategy::Lazy, huge_pages),
        (Memory::File(_), None) => (Strategy::Eager, huge_pages),
        (_, None) => (Strategy::Auto, huge_pages),
    };
    let policy = choices.policy(otherwise, pages);
    let memory = match (memory, record) {
        (Memory::File(file), None) => MemoryRestore::flat(&file, &ranges, &policy)?,
        (Memory::Tiered(manifest, _), None) => {
            let elsewhere = choices.resolver(&manifest)?;
            MemoryRestore::tiered(&manifest, &policy, &elsewhere)?
        }
        (Memory::File(file) | Memory::Tiered(_, file), Some(record)) => {
            MemoryRestore::record(&file, &ranges, record)?
        }
        (Memory::Handler(_), None) if choices.pager.is_some() => {
            let problem = "memory comes from the handler of mem_backend already: leave one out";
            return Err(ConfigError::field("restore.pager", problem).into());
        }
        (Memory::Handler(socket), None) => MemoryRestore::Handled(socket),
        (Memory::Handler(_), Some(_)) => {
            let problem = "needs the memory file; a page fault handler may record by itself";
            return Err(ConfigError::field("record", problem).into());
        }
    };
    config.huge_pages = pages;
    let ram = GuestRam::with_pages(&ranges, config.track_dirty_pages, pages)?;
    let stage2 = if policy.stage2 { policy.most_at_once() } else { 0 };
    let saved = Saved { machine, memory, stage2 };
    let start = Start::Saved(Box::new(saved));
    Ok(Prepared { config, ram: Arc::new(ram), start, lineage: last })
}

/// Has the disk begin with the start of a file, so that several that are read one after another are
/// waited for once.
fn read_soon(path: &Path) {
    const LEN: Option<NonZeroU64> = NonZeroU64::new(128 << 10);
    // Whoever waits for a reader of a pipe is not to find one that reads nothing.
    if path.is_file() {
        // Whoever cannot have it now finds out when it is read.
        let _ = File::open(path).map(|file| fadvise(file, 0, LEN, Advice::WillNeed));
    }
}

/// What holds memory.
enum Memory {
    File(PathBuf),
    /// With its raw memory file, which is there only if it was kept.
    Tiered(Box<ManifestReader>, PathBuf),
    Handler(PathBuf),
}

impl Memory {
    /// The raw memory file, if memory comes from that alone.
    fn path(&self) -> Option<&Path> {
        match self {
            Memory::File(path) => Some(path),
            Memory::Tiered(..) | Memory::Handler(_) => None,
        }
    }
}

/// Reads the state, and tells where memory is.
fn open(source: Source) -> Result<(StateFile, Memory), VmmError> {
    for path in source.files() {
        not_special(&path).map_err(SnapshotError::io("read", &path))?;
    }
    Ok(match source {
        Source::Folder(dir) if !there(&dir.join(MANIFEST_FILE))? => {
            let file = StateFile::read(&dir.join(STATE_FILE))?;
            let memory = memory_in(&dir, &file)?;
            (file, Memory::File(memory))
        }
        Source::Folder(dir) => open(Source::Tiered { dir, state: None })?,
        Source::Tiered { dir, state } => {
            let path = dir.join(MANIFEST_FILE);
            read_soon(&path);
            read_soon(state.as_deref().unwrap_or(&dir.join(STATE_FILE)));
            let manifest = ManifestReader::open(&path)?;
            // A tiered snapshot knows which state its images belong to.
            let file = match state {
                Some(path) => manifest.read_state_at(&path)?,
                None => manifest.read_state()?,
            };
            let memory = memory_in(&dir, &file)?;
            (file, Memory::Tiered(Box::new(manifest), memory))
        }
        Source::Files { state, memory } => {
            let file = StateFile::read(&state)?;
            let memory = memory_at(&file, &memory)?;
            (file, Memory::File(memory))
        }
        Source::Handler { state, socket } => (StateFile::read(&state)?, Memory::Handler(socket)),
    })
}
