//! Flat snapshots, as Firecracker's: a state file and a raw memory file, sparse where memory is zero.
//!
//! A diff snapshot goes over the memory file that is at its place, if there is one of the right length,
//! as Firecracker's does. The first one of a machine that booted holds all pages.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use varve_devices::virtio::DeviceHandle;
use varve_devices::virtio::block::Block;
use varve_snapshot::{PageRange, SnapshotError, SnapshotId};

use super::files::PendingSnapshot;
use super::saver::Saver;
use super::state;
use crate::config::VmConfig;
use crate::end::EndSignal;
use crate::error::VmmError;
use crate::machine::Machine;
use crate::metrics::{self, Metrics};
use crate::special_files::not_special;

/// How much of memory a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Full,
    /// What was written since the last snapshot, or since the machine started.
    Diff,
}

/// The paused machine that is saved, and its process.
pub struct Saving<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Its configuration.
    pub config: &'a VmConfig,
    /// Counters of the process.
    pub metrics: &'a Metrics,
    /// Ends the saving early when the machine's end is announced.
    pub end: &'a Arc<EndSignal>,
    /// The thread that writes the files.
    pub saver: &'a Saver,
}

/// Writes a snapshot of the paused machine: both files appear whole or not at all, the state file
/// last. What was at the two paths stays until then, and so does the list of pages that the next
/// diff needs.
///
/// # Errors
///
/// If a device cannot be saved, or a file cannot be written.
pub fn create(
    of: &Saving<'_>,
    extent: Extent,
    state_path: &Path,
    memory_path: &Path,
) -> Result<(), VmmError> {
    for path in [state_path, memory_path] {
        not_special(path).map_err(SnapshotError::io("write", path))?;
    }
    let machine = of.machine;
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
    let written = write(of, pages, state_path, memory_path);
    if let (Err(_), Some(dirty)) = (&written, dirty) {
        machine.give_back_dirty(dirty);
    }
    if written.is_ok() {
        let latencies = &of.metrics.latencies;
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
    of: &Saving<'_>,
    pages: Option<Vec<PageRange>>,
    state_path: &Path,
    memory_path: &Path,
) -> Result<(), VmmError> {
    let machine = of.machine;
    let ranges: Vec<PageRange> = machine.ram().regions().iter().map(|r| r.pages).collect();
    let (config, host) = (of.config, machine.host_identity()?);
    for drive in &config.drives {
        let settle = |handle: DeviceHandle<Block>| handle.with(|block, _| block.settle());
        let settled = machine.drive(&drive.id).map_or(Ok(()), settle);
        settled.map_err(|source| VmmError::Block { id: drive.id.clone(), source })?;
    }
    let mut file = state::store(config, &machine.save()?, ranges, host)?;
    let id = SnapshotId::random().map_err(SnapshotError::io("make an id for", state_path))?;
    file.id = Some(id);
    let written = of.saver.write_snapshot(PendingSnapshot {
        file,
        pages,
        last: machine.lineage(),
        ram: machine.ram().clone(),
        end: of.end.clone(),
        state_path: state_path.to_owned(),
        memory_path: memory_path.to_owned(),
    })?;
    machine.set_lineage(written);
    Ok(())
}
