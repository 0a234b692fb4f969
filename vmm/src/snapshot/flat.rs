//! Flat snapshots, as Firecracker's: a state file and a raw memory file, sparse where memory is zero.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use varve_memory_tiers::{write_memory, write_pages};
use varve_snapshot::{FlatWriter, LocalFiles, MEMORY_FILE, PageRange, STATE_FILE, SnapshotError};

use super::special::not_special;
use super::state;
use crate::end::EndSignal;
use crate::error::VmmError;
use crate::metrics;
use crate::monitor::Monitor;

/// How much of memory a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Full,
    /// What was written since the last snapshot, or since the machine started.
    Diff,
}

/// Writes a snapshot of the paused machine: both files appear whole or not at all, the state file
/// last. What was at the two paths stays until then, and so does the list of pages that the next
/// diff needs.
pub fn create(
    monitor: &Monitor,
    extent: Extent,
    state_path: &Path,
    memory_path: &Path,
) -> Result<(), VmmError> {
    for path in [state_path, memory_path] {
        not_special(path).map_err(SnapshotError::io("write", path))?;
    }
    let machine = monitor.machine()?;
    if let Some(recording) = machine.restored().and_then(|r| r.recording()) {
        // Saving touches all of memory.
        recording.seal()?;
    }
    let dirty = machine.take_dirty()?;
    let pages = match (extent, dirty.clone()) {
        (Extent::Full, _) => None,
        (Extent::Diff, Some(pages)) => Some(pages),
        (Extent::Diff, None) => return Err(VmmError::NotTracked),
    };
    let start = Instant::now();
    let written = write(monitor, pages, state_path, memory_path);
    if let (Err(_), Some(dirty)) = (&written, dirty) {
        machine.give_back_dirty(dirty);
    }
    if written.is_ok() {
        let latencies = &monitor.metrics().latencies;
        metrics::took(
            match extent {
                Extent::Full => &latencies.vmm_full_create_snapshot,
                Extent::Diff => &latencies.vmm_diff_create_snapshot,
            },
            start,
        );
        log::info!("{extent:?} snapshot {state_path:?} written in {:.3?}", start.elapsed());
    }
    written
}

fn write(
    monitor: &Monitor,
    pages: Option<Vec<PageRange>>,
    state_path: &Path,
    memory_path: &Path,
) -> Result<(), VmmError> {
    let machine = monitor.machine()?;
    let ram = machine.ram();
    let ranges: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
    let (config, host) = (monitor.config()?, machine.host_identity()?);
    let file = state::store(config, &machine.save()?, ranges, pages.clone(), host)?;

    let mut writer = match snapshot_folder(state_path, memory_path) {
        Some(dir) => FlatWriter::in_dir(&LocalFiles, dir, ram.size())?,
        None => FlatWriter::at(&LocalFiles, state_path, memory_path, ram.size())?,
    };
    let io = |e| SnapshotError::io("write", memory_path)(e);
    let target = writer.memory().map_err(io)?;
    let file_of = target.file().ok_or_else(|| io(ErrorKind::Unsupported.into()))?;
    let mut target = Stoppable { file: file_of, end: monitor.end() };
    match &pages {
        None => write_memory(ram, &mut target),
        Some(pages) => write_pages(ram, pages, &mut target, true),
    }
    .map_err(io)?;
    Ok(writer.finish(file)?)
}

/// A file whose writing fails once the machine has ended: a signal is not kept waiting for all of
/// memory, and what is there of the file is removed.
struct Stoppable<'a> {
    file: &'a File,
    end: &'a EndSignal,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.end.get() {
            None => self.file.write(bytes),
            Some(end) => Err(io::Error::other(format!("given up: {end}"))),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Stoppable<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The folder, if the two paths are what a snapshot in a folder of its own is made of. Such a one
/// stays whole until it is replaced, because its state file says what its memory file is called.
fn snapshot_folder<'a>(state: &'a Path, memory: &Path) -> Option<&'a Path> {
    let dir = state.parent()?;
    let usual = state.ends_with(STATE_FILE) && memory == dir.join(MEMORY_FILE);
    usual.then_some(dir)
}
