//! Writes an image page by page: chunks, checksums, compression, holes for zero pages. Which pages,
//! and in which order, is for `tier`.

use crate::chunk::{Chunk, ChunkTable, Compression};
use crate::chunk_digest::{ChunkDigest, ChunkDigests};
use crate::digest::{Digest, Hasher};
use crate::error::SnapshotError;
use crate::image::{Image, ImageEntry};
use crate::manifest::{COLD_IMAGE, READ_ONLY_IMAGE};
use crate::page::PAGE_SIZE;
use crate::store::{StagedFile, Staging};

/// Pages of a huge page.
pub(crate) const HUGE_PAGES: u64 = 512;

/// An image in the making; its file is one of a [`Staging`].
pub struct ImageWriter {
    file: StagedFile,
    compression: Compression,
    chunk_pages: u32,
    /// Pages appended so far.
    pages: u64,
    /// Byte at which the next packed chunk is stored.
    end: u64,
    /// Bytes stored, not counting holes.
    stored: u64,
    chunk: Vec<u8>,
    plain: Vec<u32>,
    packed: Vec<Chunk>,
    digests: ChunkDigests,
    hasher: Hasher,
}

impl ImageWriter {
    /// An empty image; `chunk_pages` is a power of two.
    pub fn new(file: StagedFile, compression: Compression, chunk_pages: u32) -> ImageWriter {
        ImageWriter {
            file,
            compression,
            chunk_pages,
            pages: 0,
            end: 0,
            stored: 0,
            chunk: Vec::new(),
            plain: Vec::new(),
            packed: Vec::new(),
            digests: ChunkDigests::default(),
            hasher: Hasher::default(),
        }
    }

    /// Number of pages so far: where the next one will stand.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Appends whole pages; the image page at which the first of them stands.
    pub fn append(&mut self, staging: &mut Staging, pages: &[u8]) -> Result<u64, SnapshotError> {
        let first = self.pages;
        for page in pages.chunks_exact(PAGE_SIZE as usize) {
            self.chunk.extend_from_slice(page);
            self.pages += 1;
            if self.chunk.len() as u64 == u64::from(self.chunk_pages) * PAGE_SIZE {
                self.flush(staging)?;
            }
        }
        Ok(first)
    }

    /// Leaves `pages` pages out: they read as zero and take no space.
    pub fn skip(&mut self, staging: &mut Staging, pages: u64) -> Result<(), SnapshotError> {
        (0..pages).try_for_each(|_| self.append(staging, &[0; PAGE_SIZE as usize]).map(|_| ()))
    }

    /// Before a run of at least 2 MiB: skips pages until the position is that of frame `gfn` within
    /// 2 MiB, so that the run can be mapped with huge pages.
    pub fn align_to(&mut self, staging: &mut Staging, gfn: u64) -> Result<(), SnapshotError> {
        self.skip(staging, (gfn % HUGE_PAGES + HUGE_PAGES - self.pages % HUGE_PAGES) % HUGE_PAGES)
    }

    fn flush(&mut self, staging: &mut Staging) -> Result<(), SnapshotError> {
        self.hasher.update(&self.chunk);
        match self.compression {
            Compression::None => {
                self.plain.push(crc32c::crc32c(&self.chunk));
                self.digests.push(ChunkDigest::of(&self.chunk));
                let start = self.pages * PAGE_SIZE - self.chunk.len() as u64;
                self.put_plain(staging, start)?;
            }
            Compression::Lz4 => self.put_packed(staging)?,
        }
        self.chunk.clear();
        Ok(())
    }

    /// Runs of pages that are not zero, at their place; the others stay holes.
    fn put_plain(&mut self, staging: &mut Staging, start: u64) -> Result<(), SnapshotError> {
        let mut at = start;
        let pages: Vec<&[u8]> = self.chunk.chunks(PAGE_SIZE as usize).collect();
        for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let bytes = run.len() as u64 * PAGE_SIZE;
            if !run.first().is_none_or(|page| is_zero(page)) {
                let from = (at - start) as usize;
                staging.put(self.file, &self.chunk[from..from + bytes as usize], at)?;
                self.stored += bytes;
            }
            at += bytes;
        }
        Ok(())
    }

    fn put_packed(&mut self, staging: &mut Staging) -> Result<(), SnapshotError> {
        if is_zero(&self.chunk) {
            self.packed.push(Chunk { offset: 0, len: 0, crc: 0 });
            self.digests.push(ChunkDigest::of(&[]));
            return Ok(());
        }
        let packed = lz4_flex::block::compress(&self.chunk);
        let bytes = if packed.len() < self.chunk.len() { &packed } else { &self.chunk };
        let chunk = Chunk { offset: self.end, len: bytes.len() as u32, crc: crc32c::crc32c(bytes) };
        staging.put(self.file, bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.stored += bytes.len() as u64;
        self.digests.push(ChunkDigest::of(bytes));
        self.packed.push(chunk);
        Ok(())
    }

    /// Writes what is left and sets the file's length. The image is called `name`, its file after
    /// name and content, so that files of different content never replace one another. Also: the
    /// bytes that it stores, holes left out.
    pub fn finish(
        mut self,
        staging: &mut Staging,
        name: &str,
    ) -> Result<(Image, u64), SnapshotError> {
        if !self.chunk.is_empty() {
            self.flush(staging)?;
        }
        let (bytes, chunks) = match self.compression {
            Compression::None => (self.pages * PAGE_SIZE, ChunkTable::Plain(self.plain)),
            Compression::Lz4 => (self.end, ChunkTable::Packed(self.packed)),
        };
        staging.set_len(self.file, bytes)?;
        let digest = self.hasher.finish();
        let entry = ImageEntry {
            name: name.into(),
            file: image_name(name, digest, self.compression),
            pages: self.pages,
            bytes,
            chunk_pages: self.chunk_pages,
            compression: self.compression,
            shared: false,
            digest: Some(digest),
        };
        Ok((Image { entry, chunks, digests: Some(self.digests) }, self.stored))
    }
}

/// The file of an image, named after its purpose and what it holds.
pub(crate) fn image_name(name: &str, digest: Digest, compression: Compression) -> String {
    let suffix = if compression == Compression::None { "img" } else { "lz4" };
    format!("{name}-{}.{suffix}", digest.short())
}

/// Whether a file has such a name, as an image that tiering makes.
pub(crate) fn is_image_name(file: &str) -> bool {
    const MADE: [&str; 5] = [READ_ONLY_IMAGE, "rw", COLD_IMAGE, "ws", "loading"];
    let stem = file.strip_suffix(".img").or(file.strip_suffix(".lz4")).unwrap_or_default();
    stem.rsplit_once('-').is_some_and(|(name, hash)| {
        MADE.contains(&name) && hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Whether bytes are all zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // A block at a time: branch-free inside, so that it is vectorised, and soon over if it is not.
    let (blocks, rest) = bytes.as_chunks::<256>();
    let zero = |b: &[u8]| b.iter().fold(0, |any, &byte| any | byte) == 0;
    blocks.iter().all(|b| zero(b)) && zero(rest)
}
