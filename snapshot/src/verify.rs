//! Checks everything that a snapshot consists of, and names everything that is wrong. Repairs
//! nothing.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::content::LayoutContent;
use crate::error::{SnapshotError, chain};
use crate::flat::FlatFile;
use crate::manifest::{MANIFEST_FILE, MEMORY_FILE, Manifest, ManifestReader, STATE_FILE};
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::ImageId;
use crate::state::StateFile;

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
    /// What is wrong: file, place and cause in each. Empty: the snapshot is sound.
    pub problems: Vec<String>,
}

impl VerifyReport {
    fn note<T>(&mut self, result: Result<T, SnapshotError>) -> Option<T> {
        result.map_err(|e| self.problems.push(chain(&e))).ok()
    }
}

/// Checks the snapshot in a directory, flat, tiered or both. An error if it holds none.
pub fn verify(dir: &Path) -> Result<VerifyReport, SnapshotError> {
    let (state, manifest) = (dir.join(STATE_FILE), dir.join(MANIFEST_FILE));
    let mut report = VerifyReport::default();
    if !state.exists() && !manifest.exists() {
        return Err(SnapshotError::NoSnapshot { path: dir.to_owned() });
    }
    if state.exists() {
        verify_flat(&state, &mut report);
    }
    if manifest.exists() {
        verify_tiered(&manifest, &mut report);
    }
    Ok(report)
}

fn verify_flat(path: &Path, report: &mut VerifyReport) {
    report.files.push(path.to_owned());
    let Some(state) = report.note(StateFile::read(path)) else { return };
    // Without a name the memory file is wherever its maker put it; then only this place is known.
    let named = state.memory_file.is_some();
    let name = state.memory_file.as_deref().unwrap_or(MEMORY_FILE);
    let memory = path.with_file_name(name);
    if named || memory.exists() {
        report.note(FlatFile::open(&memory, &state.memory));
        report.files.push(memory);
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
