//! The raw memory file: guest memory's ranges one after another, sparse where zero. Where each guest
//! page stands in it, and reading it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::chunk::{ChunkTable, chunk_len};
use crate::chunk_digest::{ChunkDigest, ChunkDigests};
use crate::class::PageClass;
use crate::error::{FormatError, SnapshotError};
use crate::image_writer::is_zero;
use crate::page::{PAGE_SIZE, PageRange};
use crate::region::{ImageId, NEVER, Region, RegionMap, Stored};
use crate::state::StateFile;

/// Positions of guest pages in the raw memory file: *flat* page numbers, from 0 and without gaps.
#[derive(Clone, Debug)]
pub struct FlatOrder {
    /// First flat page of each range, and the range.
    ranges: Vec<(u64, PageRange)>,
    pages: u64,
}

impl FlatOrder {
    /// For guest memory of these ranges (sorted and apart).
    pub fn new(memory: &[PageRange]) -> FlatOrder {
        let mut pages = 0;
        let mut ranges = Vec::with_capacity(memory.len());
        for range in memory {
            ranges.push((pages, *range));
            pages += range.pages();
        }
        FlatOrder { ranges, pages }
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Flat number of the page at frame `gfn`, if it is guest memory.
    pub fn of_frame(&self, gfn: u64) -> Option<u64> {
        let at = self.ranges.partition_point(|(_, r)| r.end() / PAGE_SIZE <= gfn);
        let (first, range) = self.ranges.get(at)?;
        Some(first + gfn.checked_sub(range.start() / PAGE_SIZE)?)
    }

    /// First flat page of guest pages that are all of one range.
    pub fn of_pages(&self, pages: &PageRange) -> Option<u64> {
        let first = self.of_frame(pages.start() / PAGE_SIZE)?;
        self.guest_pages(first, pages.pages()).map(|_| first)
    }

    /// Guest physical pages of the flat pages `first..first + count`, if they are all of one range.
    pub fn guest_pages(&self, first: u64, count: u64) -> Option<PageRange> {
        let at = self.ranges.partition_point(|(start, _)| *start <= first).checked_sub(1)?;
        let (start, range) = self.ranges.get(at)?;
        let pages = PageRange::new(
            range.start().checked_add((first - start).checked_mul(PAGE_SIZE)?)?,
            count.checked_mul(PAGE_SIZE)?,
        );
        pages.ok().filter(|p| range.contains(p))
    }

    /// First flat page of each range, after which no extent goes on.
    pub fn starts(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().map(|r| r.0)
    }
}

/// Content of guest memory in flat order.
pub trait MemorySource {
    /// Fills `buf` with whole pages from flat page `first` on.
    fn read_pages(&self, first: u64, buf: &mut [u8]) -> Result<(), SnapshotError>;

    /// The first run of pages at or after `from` that may hold anything but zero.
    fn data_from(&self, from: u64) -> Result<Option<(u64, u64)>, SnapshotError>;
}

/// A raw memory file.
#[derive(Debug)]
pub struct FlatFile {
    path: PathBuf,
    file: File,
    pages: u64,
}

impl FlatFile {
    /// Opens the memory file of a guest that has `memory`; its length must fit.
    pub fn open(path: &Path, memory: &[PageRange]) -> Result<FlatFile, SnapshotError> {
        let file = File::open(path).map_err(SnapshotError::io("open memory file", path))?;
        let found = file.metadata().map_err(SnapshotError::io("look at", path))?.len();
        let wanted = memory.iter().map(PageRange::len).sum();
        if found != wanted {
            return Err(SnapshotError::MemorySize { path: path.to_owned(), found, wanted });
        }
        Ok(FlatFile { path: path.to_owned(), file, pages: wanted / PAGE_SIZE })
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// What the file's holes tell of `memory`, without a look at content: all that is not a hole as
    /// [`PageClass::Cold`], in image 0.
    pub fn map(&self, memory: &[PageRange]) -> Result<RegionMap, SnapshotError> {
        let mut regions = Vec::new();
        let mut first = 0;
        for range in memory {
            let end = first + range.pages();
            let mut from = first;
            while let Some((start, stop)) = self.data_from(from)?.filter(|run| run.0 < end) {
                let stop = stop.min(end);
                let at = range.start() + (start - first) * PAGE_SIZE;
                if let Ok(pages) = PageRange::new(at, (stop - start) * PAGE_SIZE) {
                    let stored = Some(Stored { image: ImageId(0), page: start });
                    regions.push(Region { pages, class: PageClass::Cold, stored, rank: NEVER });
                }
                from = stop;
            }
            first = end;
        }
        RegionMap::new(regions, memory).map_err(|source| {
            let layout = "the file's holes".into();
            SnapshotError::format(&self.path)(FormatError::Layout { layout, source })
        })
    }
}

impl MemorySource for FlatFile {
    fn read_pages(&self, first: u64, buf: &mut [u8]) -> Result<(), SnapshotError> {
        self.file
            .read_exact_at(buf, first * PAGE_SIZE)
            .map_err(SnapshotError::io("read memory file", &self.path))
    }

    fn data_from(&self, from: u64) -> Result<Option<(u64, u64)>, SnapshotError> {
        let run = data_run(&self.file, from * PAGE_SIZE, self.pages * PAGE_SIZE)
            .map_err(SnapshotError::io("find data in", &self.path))?;
        Ok(run.map(|(start, end)| (start / PAGE_SIZE, end.div_ceil(PAGE_SIZE).min(self.pages))))
    }
}

/// Whether a memory file holds nothing but the pages `held`: all others are holes or zero. So a diff
/// snapshot's is told from one that was laid over its base. It reads as far as the first page that is
/// neither, which in the latter comes soon.
pub(crate) fn holds_only(
    file: &dyn MemorySource,
    order: &FlatOrder,
    held: &[PageRange],
) -> Result<bool, SnapshotError> {
    let mut held = held.iter().filter_map(|r| Some((order.of_pages(r)?, r.pages()))).peekable();
    let mut page = vec![0; PAGE_SIZE as usize];
    let mut at = 0;
    while let Some((start, end)) = file.data_from(at)? {
        at = start.max(at);
        while at < end {
            while held.next_if(|(first, count)| first + count <= at).is_some() {}
            match held.peek() {
                Some((first, count)) if *first <= at => at = first + count,
                _ => {
                    file.read_pages(at, &mut page)?;
                    if !is_zero(&page) {
                        return Ok(false);
                    }
                    at += 1;
                }
            }
        }
    }
    Ok(true)
}

/// Refuses the memory file of a diff snapshot to which its base's pages were not added.
///
/// # Errors
///
/// It is one, or the file cannot be read.
pub fn check_whole(state: &StateFile, memory: &Path) -> Result<(), SnapshotError> {
    let Some(held) = &state.dirty else { return Ok(()) };
    let file = FlatFile::open(memory, &state.memory)?;
    match holds_only(&file, &FlatOrder::new(&state.memory), held)? {
        true => Err(SnapshotError::OnlyDiff { path: memory.to_owned() }),
        false => Ok(()),
    }
}

/// The first run of bytes at or after `from`, and before `len`, that is not a hole (SEEK_DATA, SEEK_HOLE in
/// lseek(2)): its start and end. A file system that knows no holes says that all is data.
pub fn data_run(file: &File, from: u64, len: u64) -> std::io::Result<Option<(u64, u64)>> {
    let Some(start) = data_start(file, from, len)? else { return Ok(None) };
    match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => Ok(Some((start, end.min(len)))),
        Err(Errno::INVAL) => Ok(Some((start, len))),
        Err(e) => Err(e.into()),
    }
}

/// Where that run starts. On a tmpfs this takes no time, but to find its end all pages are looked at.
pub fn data_start(file: &File, from: u64, len: u64) -> std::io::Result<Option<u64>> {
    if from >= len {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(from)) {
        Ok(start) => Ok((start < len).then_some(start)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) => Ok(Some(from)),
        Err(e) => Err(e.into()),
    }
}

/// What one pass over guest memory tells.
pub struct Scan {
    /// Per flat page: whether it is all zero.
    pub zero: Vec<bool>,
    /// Checksums of the raw file as an image.
    pub chunks: ChunkTable,
    /// And what proves its chunks.
    pub digests: ChunkDigests,
}

/// Reads all of guest memory but holes.
pub fn scan(
    source: &dyn MemorySource,
    pages: u64,
    chunk_pages: u32,
) -> Result<Scan, SnapshotError> {
    let mut zero = vec![true; pages as usize];
    let mut crcs = Vec::new();
    let mut digests = ChunkDigests::default();
    let mut data = source.data_from(0)?;
    let mut buf = vec![0; chunk_pages as usize * PAGE_SIZE as usize];
    let (empty, empty_digest) = (crc32c::crc32c(&buf), ChunkDigest::of(&buf));
    for chunk in 0..pages.div_ceil(chunk_pages.into()) {
        let first = chunk * u64::from(chunk_pages);
        let len = chunk_len(chunk, pages, chunk_pages) as usize;
        while data.is_some_and(|(_, end)| end <= first) {
            data = source.data_from(first)?;
        }
        let hole = data.is_none_or(|(start, _)| start >= first + u64::from(chunk_pages));
        if hole && len == buf.len() {
            crcs.push(empty);
            digests.push(empty_digest);
            continue;
        }
        let read = &mut buf[..len];
        source.read_pages(first, read)?;
        crcs.push(crc32c::crc32c(read));
        digests.push(ChunkDigest::of(read));
        for (page, at) in read.chunks_exact(PAGE_SIZE as usize).zip(first as usize..) {
            zero[at] = is_zero(page);
        }
    }
    Ok(Scan { zero, chunks: ChunkTable::Plain(crcs), digests })
}
