//! A snapshot whose pages are handed out: where each page of its raw memory file is, and the images
//! that hold it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use varve_snapshot::{
    FlatFile, FlatOrder, MEMORY_FILE, ManifestReader, PageRange, RegionMap, SnapshotError, Stored,
    layout,
};

use super::cache::{Cached, ChunkCache};
use crate::error::TierError;
use crate::fault::stats::Stats;
use crate::plan::image::{ImageInfo, Tier};
use crate::plan::ops::{PlanInput, check};
use crate::plan::policy::Policy;
use crate::plan::stored::by_image;
use crate::plan::strategy::Strategy;
use crate::source::images::{infos, open_image};
use crate::source::page_source::PageSource;
use crate::source::page_source::{FileSource, Sources};
use crate::source::resolver::ImageResolver;

/// Pages of a raw memory file that come together.
const FILE_CHUNK: u64 = 16;

/// A snapshot that is served.
pub struct Served {
    pub(super) name: String,
    pub(super) order: FlatOrder,
    pub(super) layout: RegionMap,
    pub(super) by_image: Arc<Vec<(Stored, PageRange)>>,
    pub(super) images: Vec<ImageInfo>,
    pub(super) sources: Sources,
    pub(super) stats: Arc<Stats>,
}

impl Served {
    /// A tiered snapshot; what is read from images that are elsewhere, or compressed, is kept in
    /// `cache`.
    pub fn tiered(
        name: impl Into<String>,
        snapshot: &ManifestReader,
        resolver: &dyn ImageResolver,
        cache: &Arc<ChunkCache>,
    ) -> Result<Served, TierError> {
        // Each layout tells all of memory; this one names the images that are published.
        let names = snapshot.layouts();
        let tiered = names.iter().find(|l| *l == layout::TIERED).or(names.first());
        let none = || TierError::Plan("the snapshot has no layout".into());
        let layout = snapshot.layout(tiered.ok_or_else(none)?)?;
        let images = infos(snapshot, resolver);
        let mut sources: Sources = vec![None; images.len()];
        for stored in layout.regions().iter().filter_map(|r| r.stored) {
            let at = usize::from(stored.image.0);
            if let (Some(slot @ None), Some(info)) = (sources.get_mut(at), images.get(at)) {
                let source = open_image(snapshot, stored.image, info, true, resolver)?;
                *slot = Some(match info.mappable {
                    true => source,
                    false => Arc::new(Cached::new(source, cache.clone())),
                });
            }
        }
        Served::new(name.into(), snapshot.memory(), layout, images, sources)
    }

    /// A raw memory file of guest memory `memory`, by its ranges.
    pub fn flat(
        name: impl Into<String>,
        file: &Path,
        memory: &[PageRange],
    ) -> Result<Served, TierError> {
        let layout = FlatFile::open(file, memory)?.map(memory)?;
        let opened = File::open(file).map_err(SnapshotError::io("open memory file", file))?;
        let source = FileSource::new(MEMORY_FILE, Tier::Local, opened, 0, true)
            .map_err(SnapshotError::io("look at", file))?
            .with_chunks(FILE_CHUNK);
        let images = vec![PageSource::info(&source).clone()];
        Served::new(name.into(), memory, layout, images, vec![Some(Arc::new(source))])
    }

    pub(super) fn new(
        name: String,
        memory: &[PageRange],
        layout: RegionMap,
        images: Vec<ImageInfo>,
        sources: Sources,
    ) -> Result<Served, TierError> {
        let policy = Policy::new(Strategy::Eager);
        check(&PlanInput {
            memory,
            layout: &layout,
            base_image: None,
            images: &images,
            policy: &policy,
        })?;
        Ok(Served {
            name,
            order: FlatOrder::new(memory),
            by_image: Arc::new(by_image(&layout)),
            layout,
            stats: Arc::new(Stats::new(images.len())),
            images,
            sources,
        })
    }
}
