//! Flat snapshots, as Firecracker's: a state file and a raw memory file, sparse where memory is zero.
//!
//! A diff snapshot goes over the memory file that is at its place, if there is one of the right length,
//! as Firecracker's does. The first one of a machine that booted holds all pages.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use varve_devices::virtio::DeviceHandle;
use varve_devices::virtio::block::Block;
use varve_memory_tiers::{write_memory, write_pages};
use varve_snapshot::{
    FlatFile, FlatOrder, FlatWriter, LocalFiles, PageRange, SnapshotError, SnapshotId, StateFile,
    Summing, check_whole, chunks_of,
};

use super::state;
use crate::config::VmConfig;
use crate::end::EndSignal;
use crate::error::VmmError;
use crate::machine::Machine;
use crate::machine::lineage::Lineage;
use crate::metrics::{self, Metrics};
use crate::special_files::not_special;

/// A diff that was written over so many others is laid over the latest of their bases.
const MOST_BASES: usize = 256;

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
    pub end: &'a EndSignal,
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
    let ram = machine.ram();
    let ranges: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
    let (config, host) = (of.config, machine.host_identity()?);
    for drive in &config.drives {
        let settle = |handle: DeviceHandle<Block>| handle.with(|block, _| block.settle());
        let settled = machine.drive(&drive.id).map_or(Ok(()), settle);
        settled.map_err(|source| VmmError::Block { id: drive.id.clone(), source })?;
    }
    let mut file = state::store(config, &machine.save()?, ranges, host)?;
    let id = SnapshotId::random().map_err(SnapshotError::io("make an id for", state_path))?;
    file.id = Some(id);

    let mut writer = FlatWriter::at(&LocalFiles, state_path, memory_path, ram.size())?;
    let last = machine.lineage();
    let order = FlatOrder::new(&file.memory);
    let under = match (&pages, &last) {
        (Some(_), Some(last)) => under(&writer, last, memory_path)?,
        // All of memory is written, or all that is not zero.
        _ => Under::Nothing,
    };
    match (&pages, under) {
        (_, Under::Last | Under::Unknown) => writer.keep_old()?,
        (Some(_), Under::Nothing) => writer.forget_old()?,
        (None, Under::Nothing) => {}
    }
    // What is left out of a diff is zero only if no snapshot came before.
    let mut sums = Summing::new(order.pages(), pages.is_none() || last.is_none());
    let zeros = writer.holds_old();
    let io = |e| SnapshotError::io("write", memory_path)(e);
    let target = writer.memory().map_err(io)?;
    let file_of = target.file().ok_or_else(|| io(ErrorKind::Unsupported.into()))?;
    let mut target = Stoppable { file: file_of, end: of.end };
    match &pages {
        None if !zeros => write_memory(ram, &mut target, &mut sums),
        None => write_pages(ram, &file.memory, &mut target, true, &mut sums),
        Some(pages) => write_pages(ram, pages, &mut target, true, &mut sums),
    }
    .map_err(io)?;
    match (pages, last, under) {
        (Some(pages), Some(last), Under::Nothing) => {
            (file.dirty, file.bases) = (Some(pages), vec![last.id]);
            file.sums = Some(sums.finish());
        }
        (Some(pages), Some(last), Under::Last) => {
            laid_over(&mut file, last, pages, &writer, &order)?;
        }
        (Some(_), Some(_), Under::Unknown) => {}
        (None, ..) | (Some(_), None, _) => file.sums = Some(sums.finish()),
    }
    writer.finish(file.clone())?;
    machine.set_lineage(Lineage::written(&file, memory_path));
    Ok(())
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

/// What a diff is laid over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    /// It is a file of its own.
    Nothing,
    /// The memory file of the last snapshot.
    Last,
    /// A memory file that the client says is the base, and of which nothing is known.
    Unknown,
}

/// What is at the place of the memory file of a diff since `last`.
fn under(writer: &FlatWriter, last: &Lineage, memory: &Path) -> Result<Under, SnapshotError> {
    Ok(match writer.old() {
        None => Under::Nothing,
        Some((file, _)) if last.is_in(file) => Under::Last,
        Some((_, None)) => Under::Unknown,
        Some((_, Some(old))) => match check_whole(old, memory) {
            // Another diff, which is replaced.
            Err(SnapshotError::OnlyDiff { .. }) => Under::Nothing,
            Err(error) => return Err(error),
            // A diff that was merged has the same identity as its result, so it was ruled out before.
            Ok(()) if old.identity() == last.id => Under::Unknown,
            Ok(()) => {
                let path = memory.to_owned();
                let problem = "the memory of another snapshot than the one since which this diff is: \
                               name another file, or remove the state file of that one";
                return Err(SnapshotError::Target { path, problem });
            }
        },
    })
}

/// What the state file says of a memory file that held snapshot `last`, and now `pages` over it.
fn laid_over(
    file: &mut StateFile,
    last: Lineage,
    pages: Vec<PageRange>,
    writer: &FlatWriter,
    order: &FlatOrder,
) -> Result<(), SnapshotError> {
    let touched = chunks_of(order, &pages);
    if let Some(held) = last.held {
        // It holds what either of the two diffs holds, and fits whatever either fits.
        file.bases = last.bases;
        file.bases.push(last.id);
        let more = file.bases.len().saturating_sub(MOST_BASES);
        file.bases.drain(..more);
        file.dirty = Some(PageRange::union(held.into_iter().chain(pages).collect()));
    }
    let Some(mut sums) = last.sums else { return Ok(()) };
    let memory = FlatFile::open(writer.memory_path(), &file.memory)?;
    sums.renew(&memory, order, file.dirty.as_deref(), &touched)?;
    file.sums = Some(sums);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 4;

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first << 12, pages << 12).unwrap()
    }

    /// Writes a snapshot whose memory is `byte` in `held`, or in all pages.
    fn snapshot(state: &Path, memory: &Path, byte: u8, held: Option<PageRange>) -> StateFile {
        let mut writer = FlatWriter::at(&LocalFiles, state, memory, PAGES << 12).unwrap();
        let pages = held.unwrap_or(range(0, PAGES));
        let bytes = vec![byte; pages.len() as usize];
        writer.memory().unwrap().write_at(&bytes, pages.start()).unwrap();
        let file = StateFile {
            memory: vec![range(0, PAGES)],
            dirty: held.map(|held| vec![held]),
            id: Some(SnapshotId::random().unwrap()),
            ..StateFile::default()
        };
        writer.finish(file.clone()).unwrap();
        file
    }

    /// As Firecracker's clients make them: a diff never takes the place of pages that only its base has.
    #[test]
    fn a_diff_goes_over_what_is_at_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let base = snapshot(&at("base"), &at("base.mem"), 1, None);
        let last = Lineage::written(&base, &at("base.mem")).unwrap();
        let under = |state: &str, memory: &str| {
            let (state, memory) = (at(state), at(memory));
            let writer = FlatWriter::at(&LocalFiles, &state, &memory, PAGES << 12).unwrap();
            under(&writer, &last, &memory)
        };
        assert_eq!(under("diff", "diff.mem").unwrap(), Under::Nothing);
        assert_eq!(under("diff", "base.mem").unwrap(), Under::Last);
        assert_eq!(under("base", "base.mem").unwrap(), Under::Last);
        // A copy of which nothing is known, and one that its state file tells of.
        std::fs::copy(at("base.mem"), at("copy.mem")).unwrap();
        assert_eq!(under("diff", "copy.mem").unwrap(), Under::Unknown);
        std::fs::copy(at("base"), at("copy")).unwrap();
        assert_eq!(under("copy", "copy.mem").unwrap(), Under::Unknown);
        // A file of another length cannot be a base; another diff is replaced; another machine's memory is not.
        std::fs::write(at("short.mem"), "x").unwrap();
        assert_eq!(under("diff", "short.mem").unwrap(), Under::Nothing);
        snapshot(&at("other"), &at("other.mem"), 2, Some(range(1, 1)));
        assert_eq!(under("other", "other.mem").unwrap(), Under::Nothing);
        snapshot(&at("foreign"), &at("foreign.mem"), 3, None);
        let error = under("foreign", "foreign.mem").unwrap_err().to_string();
        assert!(error.contains("another snapshot"), "{error}");
    }
}
