//! Guest memory as one layout of a manifest says it is: the reference that restores are held to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::error::SnapshotError;
use crate::image::ImageReader;
use crate::manifest::ManifestReader;
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::{ImageId, RegionMap};

/// A layout with its images open.
pub struct LayoutContent {
    map: RegionMap,
    images: HashMap<ImageId, ImageReader>,
}

impl LayoutContent {
    /// Opens a layout and every image that it takes pages from.
    pub fn open(manifest: &ManifestReader, layout: &str) -> Result<LayoutContent, SnapshotError> {
        LayoutContent::of(manifest, manifest.layout(layout)?)
    }

    /// The same for any regions in the manifest's images.
    pub fn of(manifest: &ManifestReader, map: RegionMap) -> Result<LayoutContent, SnapshotError> {
        let mut images = HashMap::new();
        for stored in map.regions().iter().filter_map(|r| r.stored) {
            if let Entry::Vacant(absent) = images.entry(stored.image) {
                absent.insert(manifest.image(stored.image)?);
            }
        }
        Ok(LayoutContent { map, images })
    }

    /// Its region map.
    pub fn map(&self) -> &RegionMap {
        &self.map
    }

    /// Fills `buf`, which is as long as `pages`, with their content.
    pub fn read(&self, pages: PageRange, buf: &mut [u8]) -> Result<(), SnapshotError> {
        buf.fill(0);
        let from = self.map.regions().partition_point(|r| r.pages.end() <= pages.start());
        for region in &self.map.regions()[from..] {
            let Some(common) = region.pages.intersection(&pages) else { break };
            let Some(stored) = region.stored else { continue };
            let Some(image) = self.images.get(&stored.image) else { continue };
            let first = stored.page + (common.start() - region.pages.start()) / PAGE_SIZE;
            let at = (common.start() - pages.start()) as usize;
            let part = buf.get_mut(at..at + common.len() as usize).unwrap_or_default();
            image.read_pages(first, part)?;
        }
        Ok(())
    }
}
