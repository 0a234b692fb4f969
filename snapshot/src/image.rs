//! An image: guest pages in a file, or in other storage with the file's bytes, read with every
//! touched chunk's checksum verified. What its pages are for is the manifest's; mapping a file and
//! reaching other storage is `varve-memory-tiers`'.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::chunk::{Chunk, ChunkTable, Compression, MAX_CHUNK_PAGES, chunk_len};
use crate::chunk_digest::{ChunkDigest, ChunkDigests};
use crate::codec::{Decoder, Encoder};
use crate::digest::Digest;
use crate::error::{ChunkFault, FormatError, SnapshotError};
use crate::page::PAGE_SIZE;
use crate::store::{check_plain, open_beside};

/// What the manifest says of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEntry {
    /// What it is for: `memory`, `ro`, `rw`, `cold`, `ws`, `loading`, ...; unique in a manifest.
    pub name: String,
    /// Its file, in the manifest's folder.
    pub file: String,
    /// Number of pages; the file of an uncompressed image is exactly that long.
    pub pages: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Pages per chunk, a power of two.
    pub chunk_pages: u32,
    /// How chunks are stored. Read-only images never are compressed.
    pub compression: Compression,
    /// Whether its file is a store's, which other snapshots share: it may have grown since, but what
    /// was there stays.
    pub shared: bool,
    /// Content hash of its pages (zero pages too); none of images made elsewhere.
    pub digest: Option<Digest>,
}

/// An image and its chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What the manifest says of it.
    pub entry: ImageEntry,
    /// Its chunks.
    pub chunks: ChunkTable,
    /// What proves its chunks wherever they come from; none before version 1.2 of the format, or where
    /// only the local file is read.
    pub digests: Option<ChunkDigests>,
}

impl ImageEntry {
    /// Where its file is, for a manifest in `folder`.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.file)
    }

    /// Opens its file, and checks its length.
    pub(crate) fn open(&self, folder: &Path) -> Result<File, SnapshotError> {
        let path = self.path(folder);
        check_plain(&self.file, &path)?;
        let file = open_beside(&path)?;
        let found = file.metadata().map_err(SnapshotError::io("look at image", &path))?.len();
        if found != self.bytes && !(self.shared && found > self.bytes) {
            let (image, stated) = (self.name.clone(), self.bytes);
            return Err(SnapshotError::ImageSize { image, path, found, stated });
        }
        Ok(file)
    }

    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.string(&self.name);
        out.string(&self.file);
        out.u64(self.pages);
        out.u64(self.bytes);
        out.u32(self.chunk_pages);
        out.u8(self.compression as u8);
        out.u8(self.shared.into());
        encode_digest(self.digest, out);
    }

    pub(crate) fn decode(d: &mut Decoder) -> Result<ImageEntry, FormatError> {
        let (name, file) = (d.string("name")?, d.string("file")?);
        let (pages, bytes) = (d.u64("pages")?, d.u64("bytes")?);
        let chunk_pages = d.u32("chunk pages")?;
        let number = d.u8("compression")?;
        let compression = Compression::from_number(number)
            .ok_or_else(|| d.value("compression", number.to_string(), "not one that is known"))?;
        let shared = match d.u8("shared")? {
            n @ (0 | 1) => n == 1,
            n => return Err(d.value("shared", n.to_string(), "neither 0 nor 1")),
        };
        if !chunk_pages.is_power_of_two() || chunk_pages > MAX_CHUNK_PAGES {
            let shown = chunk_pages.to_string();
            return Err(d.value("chunk pages", shown, "not a power of two up to 512"));
        }
        if pages >= u64::MAX / PAGE_SIZE {
            return Err(d.value("pages", pages.to_string(), "more than can be addressed"));
        }
        if compression == Compression::None && bytes != pages * PAGE_SIZE {
            return Err(d.value("bytes", bytes.to_string(), "not the length of the image's pages"));
        }
        if file.is_empty() || file.contains('\0') {
            return Err(d.value("file", format!("{file:?}"), "not the name of a file"));
        }
        let digest = decode_digest(d)?;
        Ok(ImageEntry { name, file, pages, bytes, chunk_pages, compression, shared, digest })
    }
}

pub(crate) fn encode_digest(digest: Option<Digest>, out: &mut Encoder) {
    out.u8(digest.is_some().into());
    out.0.extend(digest.map_or([0; 32], |d| d.0));
}

pub(crate) fn decode_digest(d: &mut Decoder) -> Result<Option<Digest>, FormatError> {
    match (d.u8("digest present")?, d.array::<32>("digest")?) {
        (1, digest) => Ok(Some(Digest(digest))),
        (0, digest) if digest == [0; 32] => Ok(None),
        (n, _) => Err(d.value("digest present", n.to_string(), "neither 1 nor 0 with no digest")),
    }
}

/// Where the bytes of an image's file are kept: the file itself, or something that stands for it.
/// Nothing that it says is trusted: what is read is verified.
pub trait Backing: fmt::Debug + Send + Sync {
    /// Fills `buf` with the bytes from `offset` on.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Backing for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }
}

/// An open image.
#[derive(Debug)]
pub struct ImageReader<B = File> {
    image: Image,
    path: PathBuf,
    backing: B,
}

impl ImageReader {
    /// Opens the image of a manifest in `folder`, and checks its length.
    pub fn open(folder: &Path, image: Image) -> Result<ImageReader, SnapshotError> {
        let backing = image.entry.open(folder)?;
        let path = image.entry.path(folder);
        Ok(ImageReader { image, path, backing })
    }

    /// Its file: of an image that is mappable, page `n` stands at byte `4096 * n`.
    pub fn file(&self) -> &File {
        &self.backing
    }
}

impl<B: Backing> ImageReader<B> {
    /// The image with its bytes elsewhere; `place` names that in errors.
    pub fn over(image: Image, place: impl Into<PathBuf>, backing: B) -> ImageReader<B> {
        ImageReader { image, path: place.into(), backing }
    }

    /// What the manifest says of it.
    pub fn entry(&self) -> &ImageEntry {
        &self.image.entry
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its file can be mapped in place of its pages.
    pub fn is_mappable(&self) -> bool {
        self.image.entry.compression == Compression::None
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.image.chunks.len() as u64
    }

    /// Where its bytes are.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// The byte of the image's file at which the chunk that holds a page is stored.
    pub fn stored_at(&self, page: u64) -> u64 {
        let chunk = self.chunk_of(page);
        match &self.image.chunks {
            ChunkTable::Plain(_) => chunk * u64::from(self.image.entry.chunk_pages) * PAGE_SIZE,
            ChunkTable::Packed(chunks) => {
                let chunk = usize::try_from(chunk).ok().and_then(|at| chunks.get(at));
                chunk.map_or(0, |chunk| chunk.offset)
            }
        }
    }

    /// The chunk that holds a page: what is read, at least, to get it.
    pub fn chunk_of(&self, page: u64) -> u64 {
        page / u64::from(self.image.entry.chunk_pages)
    }

    /// Fills `buf` (whole pages) with pages from `first` on. Every chunk that it touches is read
    /// and verified whole.
    pub fn read_pages(&self, first: u64, buf: &mut [u8]) -> Result<(), SnapshotError> {
        let count = (buf.len() as u64).div_ceil(PAGE_SIZE);
        if first.checked_add(count).is_none_or(|end| end > self.image.entry.pages) {
            let (image, pages) = (self.image.entry.name.clone(), self.image.entry.pages);
            return Err(SnapshotError::OutsideImage { image, pages, first, count });
        }
        let chunk_bytes = u64::from(self.image.entry.chunk_pages) * PAGE_SIZE;
        let mut at = first * PAGE_SIZE;
        let mut rest = buf;
        let mut chunk = Vec::new();
        while !rest.is_empty() {
            let index = at / chunk_bytes;
            let inside = (at % chunk_bytes) as usize;
            let whole =
                chunk_len(index, self.image.entry.pages, self.image.entry.chunk_pages) as usize;
            let here = rest.len().min(whole - inside);
            let (now, later) = rest.split_at_mut(here);
            if here == whole {
                self.read_into(index, now)?;
            } else {
                chunk.resize(whole, 0);
                self.read_into(index, &mut chunk)?;
                now.copy_from_slice(&chunk[inside..inside + here]);
            }
            rest = later;
            at += here as u64;
        }
        Ok(())
    }

    /// Reads chunk `index` whole, verified.
    pub fn read_chunk(&self, index: u64) -> Result<Vec<u8>, SnapshotError> {
        let mut buf = vec![
            0;
            chunk_len(index, self.image.entry.pages, self.image.entry.chunk_pages)
                as usize
        ];
        self.read_into(index, &mut buf)?;
        Ok(buf)
    }

    fn read_into(&self, index: u64, buf: &mut [u8]) -> Result<(), SnapshotError> {
        self.try_read(index, buf).map_err(|cause| SnapshotError::Chunk {
            image: self.image.entry.name.clone(),
            path: self.path.clone(),
            chunk: index,
            page: index.saturating_mul(self.image.entry.chunk_pages.into()),
            cause,
        })
    }

    /// `buf` is as long as the chunk.
    fn try_read(&self, index: u64, buf: &mut [u8]) -> Result<(), ChunkFault> {
        let missing = || ChunkFault::Read("the image has no such chunk".into());
        let at = usize::try_from(index).map_err(|_| missing())?;
        match &self.image.chunks {
            ChunkTable::Plain(crcs) => {
                let crc = *crcs.get(at).ok_or_else(missing)?;
                let offset = index * u64::from(self.image.entry.chunk_pages) * PAGE_SIZE;
                self.read_stored(at, Chunk { offset, len: buf.len() as u32, crc }, buf)
            }
            ChunkTable::Packed(chunks) => {
                let chunk = *chunks.get(at).ok_or_else(missing)?;
                if chunk.len == 0 {
                    buf.fill(0);
                    return Ok(());
                }
                if chunk.len as usize == buf.len() {
                    return self.read_stored(at, chunk, buf);
                }
                let mut stored = vec![0; chunk.len as usize];
                self.read_stored(at, chunk, &mut stored)?;
                match lz4_flex::block::decompress_into(&stored, buf) {
                    Ok(n) if n == buf.len() => Ok(()),
                    Ok(n) => Err(ChunkFault::Compression(format!("to {n} bytes only"))),
                    Err(e) => Err(ChunkFault::Compression(e.to_string())),
                }
            }
        }
    }

    fn read_stored(&self, at: usize, chunk: Chunk, buf: &mut [u8]) -> Result<(), ChunkFault> {
        self.backing
            .read_exact_at(buf, chunk.offset)
            .map_err(|e| ChunkFault::Read(format!("at byte {}: {e}", chunk.offset)))?;
        let found = crc32c::crc32c(buf);
        if found != chunk.crc {
            return Err(ChunkFault::Checksum { stated: chunk.crc, found });
        }
        let Some(digests) = &self.image.digests else { return Ok(()) };
        // A sender of other bytes can make their checksum fit, but not their digest.
        let (stated, found) = (digests.get(at), ChunkDigest::of(buf));
        if stated != Some(found) {
            return Err(ChunkFault::Digest { found });
        }
        Ok(())
    }
}
