//! Single pages of images, verified: whole chunks are read, and the last ones remembered.

use std::collections::VecDeque;

use varve_snapshot::{ImageId, PAGE_SIZE, PageRange, Stored};

use crate::error::TierError;
use crate::source::page_source::{Sources, lost, source_of};

/// Chunks that are remembered.
const CHUNKS: usize = 64;

/// A chunk's image, its first page and its content.
type Chunk = (ImageId, u64, Vec<u8>);

/// Reads pages of images one by one.
pub(crate) struct Verified {
    sources: Sources,
    chunks: VecDeque<Chunk>,
}

impl Verified {
    pub fn new(sources: Sources) -> Verified {
        Verified { sources, chunks: VecDeque::new() }
    }

    /// Reads the page at `from`, which is guest page `pages`, into `data`.
    pub fn page(
        &mut self,
        from: Stored,
        pages: PageRange,
        data: &mut [u8],
    ) -> Result<(), TierError> {
        let source = source_of(&self.sources, from.image)?;
        let info = source.info();
        let unit = info.chunk_pages.max(1);
        let first = from.page / unit * unit;
        let at = self.chunks.iter().position(|c| (c.0, c.1) == (from.image, first));
        let at = match at {
            Some(at) => at,
            None => {
                let pages_here = unit.min(info.pages.saturating_sub(first));
                let mut chunk = vec![0; (pages_here * PAGE_SIZE) as usize];
                source.read(first, &mut chunk).map_err(|cause| lost(pages, source, cause))?;
                self.chunks.truncate(CHUNKS - 1);
                self.chunks.push_front((from.image, first, chunk));
                0
            }
        };
        let skip = ((from.page - first) * PAGE_SIZE) as usize;
        let page = self.chunks.get(at).and_then(|c| c.2.get(skip..skip + data.len()));
        data.copy_from_slice(page.ok_or_else(|| {
            TierError::Plan(format!("image {} has no page {}", info.name, from.page))
        })?);
        Ok(())
    }
}
