//! Where stored pages come from: images on tiers, behind one trait.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use varve_snapshot::{ImageId, ImageReader, PAGE_SIZE, PageRange};

use crate::error::TierError;
use crate::plan::image::{ImageInfo, Tier};

/// Why a source has no answer.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// An image whose pages can be had: read and verified, and perhaps mapped.
pub trait PageSource: Send + Sync {
    /// What it is.
    fn info(&self) -> &ImageInfo;

    /// Reads pages from `first` on into `buffer` (whole pages). What arrives is what was stored, or
    /// it is an error: never a zero in place of a page that cannot be had.
    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError>;

    /// The file and the byte at which page 0 begins, if [`ImageInfo::mappable`].
    fn file(&self) -> Option<(&File, u64)>;

    /// Whether the chunk that begins with page `first` may be long in coming, so that somebody else
    /// had better be there for other pages meanwhile.
    fn is_far(&self, first: u64) -> bool {
        let _ = first;
        self.info().tier == Tier::Remote
    }
}

/// The sources of a plan's images, by their number; those that it does not use may be missing.
pub type Sources = Vec<Option<Arc<dyn PageSource>>>;

/// The source of an image.
pub(crate) fn source_of(sources: &Sources, image: ImageId) -> Result<&dyn PageSource, TierError> {
    let source = sources.get(usize::from(image.0)).and_then(Option::as_deref);
    source.ok_or_else(|| TierError::Plan(format!("image {} is not open", image.0)))
}

/// The error for pages that a source did not give.
pub(crate) fn lost(pages: PageRange, source: &dyn PageSource, cause: SourceError) -> TierError {
    let info = source.info();
    TierError::Page { pages, image: info.name.clone(), tier: info.tier, source: cause }
}

/// An image of a snapshot: verified whenever it is read, as it is when it is mapped.
#[derive(Debug)]
pub struct ImageSource {
    info: ImageInfo,
    reader: ImageReader,
}

impl ImageSource {
    /// An open image, and what a plan has to know of it.
    pub fn new(reader: ImageReader, info: ImageInfo) -> ImageSource {
        ImageSource { info, reader }
    }
}

impl PageSource for ImageSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        Ok(self.reader.read_pages(first, buffer)?)
    }

    fn file(&self) -> Option<(&File, u64)> {
        self.info.mappable.then(|| (self.reader.file(), 0))
    }
}

/// A plain file of pages, such as the raw memory file of a flat snapshot. Nothing is verified.
#[derive(Debug)]
pub struct FileSource {
    info: ImageInfo,
    file: File,
    offset: u64,
}

impl FileSource {
    /// The pages of `file` from byte `offset` (page aligned) to its end; a partial last page does
    /// not count.
    pub fn new(
        name: impl Into<String>,
        tier: Tier,
        file: File,
        offset: u64,
        guest_layout: bool,
    ) -> io::Result<FileSource> {
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("an image at byte {offset:#x} of a file is not page aligned"),
            ));
        }
        let pages = file.metadata()?.len().saturating_sub(offset) / PAGE_SIZE;
        let info = ImageInfo {
            name: name.into(),
            tier,
            pages,
            mappable: true,
            guest_layout,
            chunk_pages: 1,
        };
        Ok(FileSource { info, file, offset })
    }

    /// A file of which all is known.
    pub(crate) fn with_info(info: ImageInfo, file: File) -> FileSource {
        FileSource { info, file, offset: 0 }
    }

    /// The same, with faults bringing in `pages` at a time.
    #[must_use]
    pub fn with_chunks(mut self, pages: u64) -> FileSource {
        self.info.chunk_pages = pages.max(1);
        self
    }
}

impl PageSource for FileSource {
    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn read(&self, first: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let at = first
            .checked_mul(PAGE_SIZE)
            .and_then(|at| at.checked_add(self.offset))
            .ok_or("page number out of range")?;
        self.file.read_exact_at(buffer, at)?;
        Ok(())
    }

    fn file(&self) -> Option<(&File, u64)> {
        Some((&self.file, self.offset))
    }
}
