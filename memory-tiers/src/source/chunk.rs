//! The chunk of an image that was read last: neighbours in it cost no second read.

use varve_snapshot::{ImageId, PAGE_SIZE, Stored};

use crate::source::page_source::{PageSource, SourceError};

/// The chunks that were read last.
#[derive(Default)]
pub(crate) struct Chunk {
    image: Option<ImageId>,
    first: u64,
    data: Vec<u8>,
}

impl Chunk {
    /// `pages` pages from `from` on, and how many pages were read for it.
    pub fn get(
        &mut self,
        source: &dyn PageSource,
        from: Stored,
        pages: u64,
    ) -> Result<(&[u8], u64), SourceError> {
        let info = source.info();
        let unit = info.chunk_pages.max(1);
        let end = self.first + self.data.len() as u64 / PAGE_SIZE;
        let mut fresh = 0;
        if self.image != Some(from.image) || from.page < self.first || from.page + pages > end {
            self.image = None;
            self.first = from.page / unit * unit;
            fresh = (from.page + pages).next_multiple_of(unit).min(info.pages) - self.first;
            self.data.resize((fresh * PAGE_SIZE) as usize, 0);
            source.read(self.first, &mut self.data)?;
            self.image = Some(from.image);
        }
        let at = ((from.page - self.first) * PAGE_SIZE) as usize;
        let data = self.data.get(at..at + (pages * PAGE_SIZE) as usize);
        Ok((data.ok_or("page out of range")?, fresh))
    }
}
