//! Lays a diff snapshot over the one that it was made since: a full snapshot, which takes the base's
//! place or a place of its own, whole.

use std::path::Path;

use crate::diff::{MergeReport, stage_merge};
use crate::error::SnapshotError;
use crate::flat::{FlatFile, FlatOrder};
use crate::flat_writer::FlatWriter;
use crate::manifest::{MEMORY_FILE, STATE_FILE};
use crate::page::PAGE_SIZE;
use crate::state::StateFile;
use crate::store::Files;
use crate::sums::{MemorySums, SUM_PAGES, chunks_of};
use crate::target::{memory_in, settle};

/// Merges the snapshots in the folders `base` and `diff` into `out`, which may be `base`.
///
/// # Errors
///
/// `base` is no full snapshot, `diff` is no diff or was made since another snapshot, the memory of
/// either is damaged, or the file system refuses. What was in `out` is as it was then.
pub fn merge(
    files: &dyn Files,
    base: &Path,
    diff: &Path,
    out: &Path,
) -> Result<MergeReport, SnapshotError> {
    settle(files, base)?;
    let (base_state, mut state) =
        (StateFile::read(&base.join(STATE_FILE))?, StateFile::read(&diff.join(STATE_FILE))?);
    let refuse = |why: String| SnapshotError::Merge { base: base.into(), diff: diff.into(), why };
    let tied = check(&base_state, &state).map_err(refuse)?;
    let (base_memory, diff_memory) = (memory_in(base, &base_state)?, memory_in(diff, &state)?);

    let order = FlatOrder::new(&state.memory);
    let dirty = state.dirty.clone().unwrap_or_default();
    let touched = chunks_of(&order, &dirty);
    let old = FlatFile::open(&base_memory, &base_state.memory)?;
    // Damage in what is laid over would get a new, right checksum.
    sound(&base_state, &old, &base_memory, None, &touched)?;
    let new = FlatFile::open(&diff_memory, &state.memory)?;
    sound(&state, &new, &diff_memory, Some(&dirty), &touched)?;

    let name = base_state.memory_file.as_deref().filter(|_| out == base).unwrap_or(MEMORY_FILE);
    let (to_state, to_memory) = (out.join(STATE_FILE), out.join(name));
    let mut writer = FlatWriter::at(files, &to_state, &to_memory, state.memory_bytes())?;
    let Some((staging, at)) = writer.staged_memory() else {
        let problem = "a mount, which cannot be replaced: merge into another folder with --out";
        return Err(SnapshotError::Target { path: to_memory, problem });
    };
    let mut report = stage_merge(staging, at, &base_memory, &diff_memory, Some(&state))?;
    report.tied = tied;

    let merged = FlatFile::open(writer.memory_path(), &state.memory)?;
    state.sums = Some(match base_state.sums {
        Some(mut sums) => {
            sums.renew(&merged, &order, None, &touched)?;
            sums
        }
        None => MemorySums::of(&merged, &order, None)?,
    });
    (state.dirty, state.bases) = (None, Vec::new());
    writer.finish(state)?;
    Ok(report)
}

/// Whether it is known that the diff was made since the base; what is wrong, if something is.
fn check(base: &StateFile, diff: &StateFile) -> Result<bool, String> {
    if base.dirty.is_some() {
        return Err("the base is a diff itself: lay it over its own base first".into());
    }
    if diff.dirty.is_none() {
        return Err("it holds all of memory and needs no base: restore it as it is".into());
    }
    if base.memory != diff.memory {
        return Err("they are of machines with different memory".into());
    }
    match diff.bases.as_slice() {
        [] => Ok(false),
        bases if bases.contains(&base.identity()) => Ok(true),
        [.., since] => Err(format!(
            "it was made since snapshot {since}, and this is {}: name the folder of that one",
            base.identity()
        )),
    }
}

/// Compares the checksums of `chunks`, if there are any.
fn sound(
    state: &StateFile,
    file: &FlatFile,
    path: &Path,
    held: Option<&[crate::page::PageRange]>,
    chunks: &[usize],
) -> Result<(), SnapshotError> {
    let Some(sums) = &state.sums else { return Ok(()) };
    let order = FlatOrder::new(&state.memory);
    match sums.wrong(file, &order, held, chunks)?.first() {
        None => Ok(()),
        Some(&chunk) => Err(damaged(path, &order, chunk)),
    }
}

/// What is said of a memory file that is not what it was.
pub(crate) fn damaged(path: &Path, order: &FlatOrder, chunk: usize) -> SnapshotError {
    let start = chunk as u64 * SUM_PAGES * PAGE_SIZE;
    let end = (start + SUM_PAGES * PAGE_SIZE).min(order.pages() * PAGE_SIZE);
    SnapshotError::Memory { path: path.to_owned(), start, end }
}
