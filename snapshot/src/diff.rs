//! Merges a diff snapshot's memory file (sparse: it holds only the pages written since its base) into
//! its base's. Which pages those are was decided when it was made.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{copy_file_range, fstat};
use serde::Serialize;

use crate::error::SnapshotError;
use crate::flat::{FlatOrder, data_run};
use crate::page::PAGE_SIZE;
use crate::state::StateFile;
use crate::store::{Files, StagedFile, Staging};

/// Bytes copied at a time.
const COPY: usize = 1 << 20;

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MergeReport {
    /// Pages of the merged file.
    pub pages: u64,
    /// Pages taken from the diff.
    pub from_diff: u64,
    /// It is known that the diff was made since this base.
    pub tied: bool,
}

/// Writes `base` with the pages of `diff` laid over it to `out`, which may be `base`; whole or not at
/// all. `state` is the diff's state file, which lists its pages; without it, or if it lists none, all
/// data of the sparse file counts and its holes are the base's, as with Firecracker's diffs. (Where a
/// file system rounds data up to huge pages, only the list is right.)
pub fn merge_diff(
    files: &dyn Files,
    base: &Path,
    diff: &Path,
    state: Option<&StateFile>,
    out: &Path,
) -> Result<MergeReport, SnapshotError> {
    let mut staging = Staging::new(files);
    let at = staging.create(out)?;
    let report = stage_merge(&mut staging, at, base, diff, state)?;
    staging.commit()?;
    Ok(report)
}

/// The same into a file of `staging`, so that it appears together with others: the state file of the
/// diff (its `dirty` taken out), say, which now goes with the merged memory.
pub fn stage_merge(
    staging: &mut Staging,
    at: StagedFile,
    base: &Path,
    diff: &Path,
    state: Option<&StateFile>,
) -> Result<MergeReport, SnapshotError> {
    let open = |p: &Path| File::open(p).map_err(SnapshotError::io("open memory file", p));
    let (base_file, diff_file) = (open(base)?, open(diff)?);
    let len = |f: &File, p: &Path| match fstat(f) {
        Ok(stat) => Ok(stat.st_size as u64),
        Err(e) => Err(SnapshotError::io("look at", p)(e.into())),
    };
    let (wanted, found) = (len(&base_file, base)?, len(&diff_file, diff)?);
    if wanted != found || !wanted.is_multiple_of(PAGE_SIZE) {
        return Err(SnapshotError::MemorySize { path: diff.to_owned(), found, wanted });
    }
    staging.set_len(at, wanted)?;
    copy_data(staging, at, &base_file, base, wanted)?;
    let copied = match state.and_then(|s| s.dirty.as_ref().map(|d| (s, d))) {
        None => copy_data(staging, at, &diff_file, diff, wanted)?,
        Some((state, dirty)) => {
            if state.memory_bytes() != wanted {
                let (path, wanted) = (diff.to_owned(), state.memory_bytes());
                return Err(SnapshotError::MemorySize { path, found, wanted });
            }
            let order = FlatOrder::new(&state.memory);
            let mut copied = 0;
            for pages in dirty {
                // A state file's dirty pages are inside its memory: that was checked on reading.
                let Some(first) = order.of_pages(pages) else { continue };
                let start = first * PAGE_SIZE;
                copy_run(staging, at, &diff_file, diff, start, start + pages.len())?;
                copied += pages.len();
            }
            copied
        }
    };
    Ok(MergeReport { pages: wanted / PAGE_SIZE, from_diff: copied / PAGE_SIZE, tied: false })
}

/// Copies what is not a hole; how many bytes that was, in whole pages.
pub(crate) fn copy_data(
    staging: &mut Staging,
    at: StagedFile,
    from: &File,
    path: &Path,
    len: u64,
) -> Result<u64, SnapshotError> {
    let (mut offset, mut copied) = (0, 0);
    while let Some((start, end)) =
        data_run(from, offset, len).map_err(SnapshotError::io("find data in", path))?
    {
        let start = start / PAGE_SIZE * PAGE_SIZE;
        let end = end.next_multiple_of(PAGE_SIZE).min(len);
        copy_run(staging, at, from, path, start, end)?;
        copied += end - start;
        offset = end;
    }
    Ok(copied)
}

fn copy_run(
    staging: &mut Staging,
    at: StagedFile,
    from: &File,
    path: &Path,
    mut start: u64,
    end: u64,
) -> Result<(), SnapshotError> {
    let mut buf = Vec::new();
    while start < end {
        let shared = share(staging, at, from, start, end - start).unwrap_or(0);
        if shared > 0 {
            start += shared;
            continue;
        }
        buf.resize(COPY.min((end - start) as usize), 0);
        from.read_exact_at(&mut buf, start).map_err(SnapshotError::io("read", path))?;
        staging.put(at, &buf, start)?;
        start += buf.len() as u64;
    }
    Ok(())
}

/// Lets the file system copy, or share, the bytes where it can.
fn share(staging: &mut Staging, at: StagedFile, from: &File, start: u64, len: u64) -> Option<u64> {
    let to = staging.file(at).ok()?;
    let (mut read, mut write) = (start, start);
    let n =
        copy_file_range(from, Some(&mut read), to.file()?, Some(&mut write), len as usize).ok()?;
    Some(n as u64)
}
