//! Copies extents of guest memory into images, and says where they are stored.

use std::path::Path;

use crate::chunk::Compression;
use crate::classify::{Classified, Extent};
use crate::error::SnapshotError;
use crate::flat::MemorySource;
use crate::image::Image;
use crate::image_writer::{HUGE_PAGES, ImageWriter};
use crate::page::PAGE_SIZE;
use crate::page_store::{PageStore, Placed};
use crate::region::{ImageId, Region, Stored};
use crate::report::ImageReport;
use crate::store::Staging;

/// Pages copied at a time.
const COPY_PAGES: u64 = 256;

/// Packs images from one guest's memory.
pub(crate) struct Packer<'a, 'f> {
    staging: &'a mut Staging<'f>,
    classified: &'a Classified,
    source: &'a dyn MemorySource,
    folder: &'a Path,
    chunk_pages: u32,
    images: Vec<Image>,
    reports: Vec<ImageReport>,
}

impl<'a, 'f> Packer<'a, 'f> {
    pub fn new(
        staging: &'a mut Staging<'f>,
        classified: &'a Classified,
        source: &'a dyn MemorySource,
        folder: &'a Path,
        chunk_pages: u32,
    ) -> Packer<'a, 'f> {
        let (images, reports) = (Vec::new(), Vec::new());
        Packer { staging, classified, source, folder, chunk_pages, images, reports }
    }

    /// Takes up an image that exists already.
    pub fn base(&mut self, image: Image) -> ImageId {
        self.images.push(image);
        ImageId(self.images.len() as u16 - 1)
    }

    /// Extents whose pages are where guest memory has them, in image `base`.
    pub fn in_place(&self, extents: &[Extent], base: ImageId) -> Vec<Region> {
        let regions = extents.iter().filter_map(|e| {
            let stored = (!e.empty).then_some(Stored { image: base, page: e.first });
            self.region(e, stored)
        });
        regions.collect()
    }

    /// Packs `extents` in their order into a new image. Where two of them are at most `bridge` pages
    /// apart in guest memory, the image leaves as many pages out (holes), so that both can be mapped
    /// at once, with what lies between laid over it.
    pub fn pack(
        &mut self,
        name: &str,
        extents: &[Extent],
        compression: Compression,
        bridge: u64,
    ) -> Result<Vec<Region>, SnapshotError> {
        let id = ImageId(self.images.len() as u16);
        let file = self.staging.create(&self.folder.join(name))?;
        let mut writer = ImageWriter::new(file, compression, self.chunk_pages);
        let mut regions = Vec::with_capacity(extents.len());
        let mut last: Option<&Extent> = None;
        for extent in extents {
            if extent.empty {
                regions.extend(self.region(extent, None));
                continue;
            }
            match last.and_then(|last| self.classified.gap(last, extent, bridge)) {
                Some(gap) if gap > 0 => writer.skip(self.staging, gap)?,
                _ if extent.pages >= HUGE_PAGES && compression == Compression::None => {
                    let pages = self.classified.order.guest_pages(extent.first, 1);
                    let gfn = pages.map_or(0, |p| p.start() / PAGE_SIZE);
                    writer.align_to(self.staging, gfn)?;
                }
                _ => {}
            }
            let page = writer.pages();
            self.copy(&mut writer, extent)?;
            regions.extend(self.region(extent, Some(Stored { image: id, page })));
            last = Some(extent);
        }
        let (image, stored_bytes) = writer.finish(self.staging, name)?;
        self.staging.rename_target(file, &self.folder.join(&image.entry.file));
        self.reports.push(ImageReport {
            image: name.into(),
            file: image.entry.file.clone(),
            pages: image.entry.pages,
            bytes: image.entry.bytes,
            stored_bytes,
            compression,
        });
        self.images.push(image);
        Ok(regions)
    }

    /// Takes the pages of `extents` from `store`, which other snapshots share; what it does not have
    /// yet is added. An extent becomes as many regions as it has pieces there.
    pub fn share(
        &mut self,
        name: &str,
        extents: &[Extent],
        store: &mut PageStore,
        file: String,
    ) -> Result<Vec<Region>, SnapshotError> {
        let id = ImageId(self.images.len() as u16);
        let mut regions = Vec::with_capacity(extents.len());
        for extent in extents {
            let mut bytes = vec![0; (extent.pages * PAGE_SIZE) as usize];
            self.source.read_pages(extent.first, &mut bytes)?;
            let mut first = extent.first;
            for Placed { page, count } in store.place(&bytes)? {
                let piece = Extent { first, pages: count, ..*extent };
                regions.extend(self.region(&piece, Some(Stored { image: id, page })));
                first += count;
            }
        }
        let image = store.finish(self.staging, name, file)?;
        self.reports.push(ImageReport {
            image: name.into(),
            file: image.entry.file.clone(),
            pages: image.entry.pages,
            bytes: image.entry.bytes,
            stored_bytes: store.added() * PAGE_SIZE,
            compression: Compression::None,
        });
        self.images.push(image);
        Ok(regions)
    }

    fn copy(&mut self, writer: &mut ImageWriter, extent: &Extent) -> Result<(), SnapshotError> {
        let mut buf = vec![0; (extent.pages.min(COPY_PAGES) * PAGE_SIZE) as usize];
        let end = extent.first + extent.pages;
        let mut at = extent.first;
        while at < end {
            let pages = (end - at).min(COPY_PAGES);
            let part = &mut buf[..(pages * PAGE_SIZE) as usize];
            self.source.read_pages(at, part)?;
            writer.append(self.staging, part)?;
            at += pages;
        }
        Ok(())
    }

    fn region(&self, extent: &Extent, stored: Option<Stored>) -> Option<Region> {
        // Extents never cross from one memory range into the next.
        let pages = self.classified.order.guest_pages(extent.first, extent.pages)?;
        Some(Region { pages, class: extent.class, stored, rank: extent.rank })
    }

    /// All images, in the order of their numbers, and reports of those that were written.
    pub fn finish(self) -> (Vec<Image>, Vec<ImageReport>) {
        (self.images, self.reports)
    }
}
