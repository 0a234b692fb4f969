//! Flat snapshots, as Firecracker's: a state file and a raw memory file, sparse where memory is zero.

use std::path::Path;

use varve_snapshot::{LocalFiles, PageRange, SnapshotError, Staging, is_zero};
use vm_memory::{Bytes, GuestAddress};

use super::state;
use crate::error::VmmError;
use crate::monitor::Monitor;

/// Bytes read and written at a time.
const CHUNK: u64 = 1 << 20;

/// Writes a snapshot of the paused machine: both files appear whole or not at all, the state file
/// last. What was at the two paths stays until then.
pub fn create(monitor: &Monitor, state_path: &Path, memory_path: &Path) -> Result<(), VmmError> {
    let machine = monitor.machine()?;
    let saved = machine.save()?;
    let ranges: Vec<PageRange> = machine.ram().regions().iter().map(|r| r.pages).collect();
    let beside = state_path.parent() == memory_path.parent();
    let memory_name =
        memory_path.file_name().filter(|_| beside).map(|name| name.to_string_lossy().into_owned());
    let host = machine.host_identity()?;
    let file = state::store(monitor.config()?, &saved, ranges.clone(), memory_name, None, host)?;
    let bytes = file.to_bytes().map_err(|e| VmmError::SavedState {
        name: state_path.display().to_string(),
        cause: e.to_string(),
    })?;

    let mut staging = Staging::new(&LocalFiles);
    let memory = staging.create(memory_path)?;
    let mut offset = 0;
    let mut buf = vec![0; CHUNK as usize];
    for range in ranges {
        let mut address = range.start();
        while address < range.end() {
            let part = &mut buf[..CHUNK.min(range.end() - address) as usize];
            machine.ram().memory().read_slice(part, GuestAddress(address))?;
            write_sparse(&mut staging, memory, part, offset)?;
            address += part.len() as u64;
            offset += part.len() as u64;
        }
    }
    staging.set_len(memory, offset)?;
    let state = staging.create(state_path)?;
    staging.put(state, &bytes, 0)?;
    Ok(staging.commit()?)
}

/// Writes the runs of pages that are not zero.
fn write_sparse(
    staging: &mut Staging,
    file: varve_snapshot::StagedFile,
    bytes: &[u8],
    offset: u64,
) -> Result<(), SnapshotError> {
    const PAGE: usize = varve_snapshot::PAGE_SIZE as usize;
    let mut run: Option<usize> = None;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        match (is_zero(page), run) {
            (true, Some(start)) => {
                staging.put(file, &bytes[start..at], offset + start as u64)?;
                run = None;
            }
            (false, None) => run = Some(at),
            _ => {}
        }
    }
    match run {
        Some(start) => staging.put(file, &bytes[start..], offset + start as u64),
        None => Ok(()),
    }
}
