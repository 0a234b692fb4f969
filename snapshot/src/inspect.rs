//! A summary of a snapshot, for people and for JSON. Reads metadata alone, no page content.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::SnapshotError;
use crate::image::ImageEntry;
use crate::manifest::{MANIFEST_FILE, ManifestReader, Recorded, STATE_FILE};
use crate::page::PageRange;
use crate::report::{ClassReport, class_reports};
use crate::state::StateFile;
use crate::store::there;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The directory.
    pub path: PathBuf,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Guest memory: first byte and length of each range.
    pub memory: Vec<(u64, u64)>,
    /// The state file, if it can be read; `None` if it is elsewhere or lost.
    pub state: Option<StateSummary>,
    /// The manifest, if the snapshot is tiered.
    pub tiers: Option<TierSummary>,
}

/// What the state file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateSummary {
    /// The file.
    pub file: PathBuf,
    /// Version of varve that wrote it.
    pub vmm_version: String,
    /// Architecture of the host.
    pub arch: String,
    /// Vendor of its processor.
    pub cpu_vendor: String,
    /// Name of the memory file beside it.
    pub memory_file: Option<String>,
    /// Configuration of the machine (JSON).
    pub config: String,
    /// Name, version and length of each part's state.
    pub blobs: Vec<(String, u32, u64)>,
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierSummary {
    /// Version of varve that wrote it.
    pub vmm_version: String,
    /// Its content hash.
    pub id: String,
    /// What it was made from.
    pub recorded: Option<Recorded>,
    /// The images.
    pub images: Vec<ImageSummary>,
    /// Per layout the classes.
    pub layouts: Vec<LayoutSummary>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: String,
    /// Number of pages.
    pub pages: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Pages per chunk.
    pub chunk_pages: u32,
    /// `none` or `lz4`.
    pub compression: crate::chunk::Compression,
    /// Whether it is a store's, which other snapshots share.
    pub shared: bool,
    /// Content hash.
    pub digest: Option<String>,
}

/// One layout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayoutSummary {
    /// Its name.
    pub name: String,
    /// Number of regions in its table.
    pub regions: u64,
    /// Pages, extents, bytes and share of each class.
    pub classes: Vec<ClassReport>,
}

/// Summarises the snapshot in a directory, flat, tiered or both.
pub fn inspect(dir: &Path) -> Result<Inspection, SnapshotError> {
    let (state, manifest) = (dir.join(STATE_FILE), dir.join(MANIFEST_FILE));
    let reader = there(&manifest)?.then(|| ManifestReader::open(&manifest)).transpose()?;
    let flat = there(&state)?.then(|| StateFile::read(&state)).transpose()?;
    if reader.is_none() && flat.is_none() {
        return Err(SnapshotError::NoSnapshot { path: dir.to_owned() });
    }
    let (file, flat) = match (flat, reader.as_ref().and_then(ManifestReader::state_path)) {
        (Some(flat), _) => (state, Some(flat)),
        (None, Some(path)) if there(&path)? => {
            let read = StateFile::read(&path)?;
            (path, Some(read))
        }
        (None, _) => (state, None),
    };
    let memory: Vec<PageRange> = match (&reader, &flat) {
        (Some(reader), _) => reader.memory().to_vec(),
        (None, Some(flat)) => flat.memory.clone(),
        (None, None) => Vec::new(),
    };
    Ok(Inspection {
        path: dir.to_owned(),
        memory_bytes: memory.iter().map(PageRange::len).sum(),
        memory: memory.iter().map(|r| (r.start(), r.len())).collect(),
        state: flat.map(|s| summarise_state(file, s)),
        tiers: reader.map(|r| summarise_tiers(&manifest, &r)).transpose()?,
    })
}

fn summarise_state(file: PathBuf, state: StateFile) -> StateSummary {
    StateSummary {
        file,
        vmm_version: state.vmm_version,
        arch: state.host.arch,
        cpu_vendor: state.host.cpu_vendor,
        memory_file: state.memory_file,
        config: String::from_utf8_lossy(&state.config).into_owned(),
        blobs: state.blobs.into_iter().map(|b| (b.name, b.version, b.bytes.len() as u64)).collect(),
    }
}

fn summarise_tiers(path: &Path, reader: &ManifestReader) -> Result<TierSummary, SnapshotError> {
    let mut layouts = Vec::new();
    for name in reader.layouts() {
        let map = reader.layout(name)?;
        layouts.push(LayoutSummary {
            name: name.clone(),
            regions: map.regions().len() as u64,
            classes: class_reports(reader.memory(), &map),
        });
    }
    let image = |i: &ImageEntry| ImageSummary {
        name: i.name.clone(),
        file: i.file.clone(),
        pages: i.pages,
        bytes: i.bytes,
        chunk_pages: i.chunk_pages,
        compression: i.compression,
        shared: i.shared,
        digest: i.digest.map(|d| d.to_string()),
    };
    Ok(TierSummary {
        vmm_version: reader.vmm_version().into(),
        id: Digest::of_file(path).map_err(SnapshotError::io("read", path))?.to_string(),
        recorded: reader.recorded().cloned(),
        images: reader.images().iter().map(image).collect(),
        layouts,
    })
}
