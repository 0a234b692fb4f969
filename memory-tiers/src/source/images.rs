//! The images of a snapshot: what a plan has to know of each, and opening them.

use std::fs::File;
use std::sync::Arc;

use varve_snapshot::{Compression, ImageEntry, ImageId, ImageReader, MEMORY_FILE, ManifestReader};

use crate::error::TierError;
use crate::plan::image::{ImageInfo, Tier};
use crate::source::page_source::{FileSource, ImageSource, PageSource};
use crate::source::resolver::ImageResolver;

/// What is to be known of each image, wherever it is.
pub(crate) fn infos(snapshot: &ManifestReader, resolver: &dyn ImageResolver) -> Vec<ImageInfo> {
    let info = |entry| {
        let local = image_info(entry);
        resolver.info(entry, &local).unwrap_or(local)
    };
    snapshot.images().iter().map(info).collect()
}

/// The file that an image can be mapped from: another one, or the snapshot's own.
pub(crate) fn file_of(
    snapshot: &ManifestReader,
    id: ImageId,
    resolver: &dyn ImageResolver,
) -> Option<File> {
    let other = resolver.file(snapshot.entry(id).ok()?).and_then(Result::ok);
    other.or_else(|| snapshot.image_file(id).ok())
}

/// Opens an image; `verified` if it is not only mapped, or read by the kernel straight to its place.
pub(crate) fn open_image(
    snapshot: &ManifestReader,
    id: ImageId,
    info: &ImageInfo,
    verified: bool,
    resolver: &dyn ImageResolver,
) -> Result<Arc<dyn PageSource>, TierError> {
    let lost = |source| TierError::Image { image: info.name.clone(), tier: info.tier, source };
    let entry = snapshot.entry(id)?;
    let file = resolver.file(entry).transpose().map_err(|e| lost(e.into()))?;
    let verified = verified || !info.mappable;
    Ok(match file {
        Some(file) if verified => {
            let reader = ImageReader::over(snapshot.image_table(id)?, &info.name, file);
            Arc::new(ImageSource::new(reader, info.clone()))
        }
        Some(file) => Arc::new(FileSource::with_info(info.clone(), file)),
        None => {
            if info.tier != Tier::Local
                && let Some(source) =
                    resolver.open(&snapshot.image_table(id)?, info).map_err(lost)?
            {
                return Ok(source);
            }
            match verified {
                true => Arc::new(ImageSource::new(snapshot.image(id)?, info.clone())),
                false => Arc::new(FileSource::with_info(info.clone(), snapshot.image_file(id)?)),
            }
        }
    })
}

/// What a plan has to know of an image of a snapshot.
pub(crate) fn image_info(entry: &ImageEntry) -> ImageInfo {
    ImageInfo {
        name: entry.name.clone(),
        tier: Tier::Local,
        pages: entry.pages,
        mappable: entry.compression == Compression::None,
        // The raw memory file is the one that is in guest layout.
        guest_layout: entry.name == MEMORY_FILE,
        chunk_pages: entry.chunk_pages.into(),
    }
}
