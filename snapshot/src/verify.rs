//! Checks everything that a snapshot consists of, and names everything that is wrong, and what could
//! not be checked. Repairs nothing.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::content::LayoutContent;
use crate::error::{SnapshotError, chain};
use crate::flat::{FlatFile, FlatOrder, holds_only};
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestReader, STATE_FILE};
use crate::merge::damaged;
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::ImageId;
use crate::state::StateFile;
use crate::store::there;
use crate::target::memory_in;

/// Pages compared at a time.
const COMPARE_PAGES: u64 = 256;

/// What was checked, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files that were read.
    pub files: Vec<PathBuf>,
    /// Chunks whose checksums were computed.
    pub chunks: u64,
    /// Pages whose content was compared between layouts.
    pub pages_compared: u64,
    /// What is wrong: file, place and cause in each. Empty: nothing is, of what was checked.
    pub problems: Vec<String>,
    /// What was not checked, and why.
    pub unchecked: Vec<String>,
}

impl VerifyReport {
    fn note<T>(&mut self, result: Result<T, SnapshotError>) -> Option<T> {
        result.map_err(|e| self.problems.push(chain(&e))).ok()
    }
}

/// Checks the snapshot in a directory, flat, tiered or both.
///
/// # Errors
///
/// The directory holds none, or cannot be looked at.
pub fn verify(dir: &Path) -> Result<VerifyReport, SnapshotError> {
    let (state, manifest) = (dir.join(STATE_FILE), dir.join(MANIFEST_FILE));
    let mut report = VerifyReport::default();
    let (flat, tiered) = (there(&state)?, there(&manifest)?);
    if !flat && !tiered {
        return Err(SnapshotError::NoSnapshot { path: dir.to_owned() });
    }
    if flat {
        verify_flat(dir, &state, &mut report);
    }
    if tiered {
        verify_tiered(&manifest, &mut report);
    }
    Ok(report)
}

fn verify_flat(dir: &Path, path: &Path, report: &mut VerifyReport) {
    report.files.push(path.to_owned());
    let Some(state) = report.note(StateFile::read(path)) else { return };
    let Some(memory) = report.note(memory_in(dir, &state)) else { return };
    let Some(found) = report.note(there(&memory)) else { return };
    // Without a name the memory file is wherever its maker put it; then only this place is known.
    if !found && state.memory_file.is_none() {
        let place = "its memory file is in another folder";
        return report.unchecked.push(format!("{}: {place}", path.display()));
    }
    if let Some(file) = report.note(FlatFile::open(&memory, &state.memory)) {
        verify_memory(&state, &memory, &file, report);
    }
    report.files.push(memory);
}

/// Compares memory with the checksums in the state file.
fn verify_memory(state: &StateFile, path: &Path, file: &FlatFile, report: &mut VerifyReport) {
    let shown = path.display();
    let order = FlatOrder::new(&state.memory);
    let held = state.dirty.as_deref();
    if let Some(held) = held {
        match report.note(holds_only(file, &order, held)) {
            Some(true) => report.unchecked.push(format!(
                "{shown}: a diff, without its base: only the pages written since that are checked"
            )),
            Some(false) => report.unchecked.push(format!(
                "{shown}: pages that were laid under the diff's by another program have no checksum"
            )),
            None => return,
        }
    }
    let Some(sums) = &state.sums else {
        let why = "the state file has no checksums of it: only its length was checked";
        return report.unchecked.push(format!("{shown}: {why}"));
    };
    let chunks: Vec<usize> = (0..sums.len()).collect();
    let wrong = report.note(sums.wrong(file, &order, held, &chunks));
    report.chunks += sums.len() as u64;
    for chunk in wrong.unwrap_or_default() {
        report.problems.push(damaged(path, &order, chunk).to_string());
    }
}

fn verify_tiered(path: &Path, report: &mut VerifyReport) {
    report.files.push(path.to_owned());
    // Whole, for its checksums; then as a restore opens it.
    let Some(whole) = report.note(Manifest::read(path)) else { return };
    let Some(manifest) = report.note(ManifestReader::open(path)) else { return };
    if let Some(state) = manifest.state_path() {
        report.note(manifest.read_state());
        report.files.push(state);
    }
    let mut sound = true;
    for (entry, at) in whole.images.iter().zip(0..) {
        report.files.push(entry.entry.path(manifest.folder()));
        let before = report.problems.len();
        if let Some(image) = report.note(manifest.proven_image(ImageId(at))) {
            for chunk in 0..image.chunks() {
                report.note(image.read_chunk(chunk));
                report.chunks += 1;
            }
        }
        sound &= report.problems.len() == before;
    }
    if sound {
        compare_layouts(&manifest, report);
    } else {
        let why = "the layouts were not compared, because an image has a problem";
        report.unchecked.push(format!("{}: {why}", path.display()));
    }
}

/// Every layout must say the same of every page. Pages that none of them stores are zero in all.
fn compare_layouts(manifest: &ManifestReader, report: &mut VerifyReport) {
    let mut open = Vec::new();
    for name in manifest.layouts() {
        if let Some(content) = report.note(LayoutContent::open(manifest, name)) {
            open.push((name, content));
        }
    }
    let regions = open.iter().flat_map(|(_, content)| content.map().regions());
    let mut stored: Vec<PageRange> =
        regions.filter(|r| r.stored.is_some()).map(|r| r.pages).collect();
    stored.sort_unstable();
    let Some(((name, content), others)) = open.split_first() else { return };
    let mut at = 0;
    for range in stored {
        at = range.start().max(at);
        while at < range.end() {
            let len = (range.end() - at).min(COMPARE_PAGES * PAGE_SIZE);
            let Ok(pages) = PageRange::new(at, len) else { return };
            let mut wanted = vec![0; len as usize];
            let mut found = vec![0; len as usize];
            if report.note(content.read(pages, &mut wanted)).is_none() {
                return;
            }
            for (other, content) in others {
                if report.note(content.read(pages, &mut found)).is_none() {
                    return;
                }
                report.pages_compared += pages.pages();
                if let Some(byte) = wanted.iter().zip(&found).position(|(a, b)| a != b) {
                    let page = at + byte as u64 / PAGE_SIZE * PAGE_SIZE;
                    report.problems.push(format!(
                        "page {page:#x} differs between the layouts {name:?} and {other:?}"
                    ));
                }
            }
            at += len;
        }
    }
}
