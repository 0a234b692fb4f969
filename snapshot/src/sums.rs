//! Checksums of a raw memory file, kept in the state file: made while memory is written, and compared
//! by `verify`. A restore does not compare them, as it would have to read all of memory.

use crate::error::SnapshotError;
use crate::flat::{FlatOrder, MemorySource};
use crate::image_writer::is_zero;
use crate::page::{PAGE_SIZE, PageRange};

/// Pages that one checksum covers: 1 MiB of the raw memory file.
pub const SUM_PAGES: u64 = 256;
const SUM_BYTES: usize = (SUM_PAGES * PAGE_SIZE) as usize;

/// CRC-32C of each MiB of a raw memory file, of those pages in it that the snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySums(pub(crate) Vec<u32>);

impl MemorySums {
    /// Number of checksums that a guest with `pages` pages has.
    pub(crate) fn number(pages: u64) -> u64 {
        pages.div_ceil(SUM_PAGES)
    }

    /// Reads the pages `held` (all, if none are named) of a memory file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn of(
        source: &dyn MemorySource,
        order: &FlatOrder,
        held: Option<&[PageRange]>,
    ) -> Result<MemorySums, SnapshotError> {
        let mut sums = MemorySums(vec![0; MemorySums::number(order.pages()) as usize]);
        let all: Vec<usize> = (0..sums.0.len()).collect();
        sums.renew(source, order, held, &all)?;
        Ok(sums)
    }

    /// Computes the checksums of `chunks` anew.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn renew(
        &mut self,
        source: &dyn MemorySource,
        order: &FlatOrder,
        held: Option<&[PageRange]>,
        chunks: &[usize],
    ) -> Result<(), SnapshotError> {
        let mut reader = Reader::new(source, order, held);
        for &chunk in chunks {
            let crc = reader.crc(chunk as u64)?;
            if let Some(slot) = self.0.get_mut(chunk) {
                *slot = crc;
            }
        }
        Ok(())
    }

    /// Of `chunks`, those whose pages are not what they were.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn wrong(
        &self,
        source: &dyn MemorySource,
        order: &FlatOrder,
        held: Option<&[PageRange]>,
        chunks: &[usize],
    ) -> Result<Vec<usize>, SnapshotError> {
        let mut reader = Reader::new(source, order, held);
        let mut wrong = Vec::new();
        for &chunk in chunks {
            if self.0.get(chunk) != Some(&reader.crc(chunk as u64)?) {
                wrong.push(chunk);
            }
        }
        Ok(wrong)
    }

    /// Number of checksums.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Numbers of the checksums that cover any of these pages, sorted.
pub fn chunks_of(order: &FlatOrder, pages: &[PageRange]) -> Vec<usize> {
    let mut chunks = Vec::new();
    for (first, count) in runs(order, Some(pages)) {
        chunks.extend((first / SUM_PAGES) as usize..=((first + count - 1) / SUM_PAGES) as usize);
    }
    chunks.sort_unstable();
    chunks.dedup();
    chunks
}

/// Runs of flat pages, sorted: first page and number.
fn runs(order: &FlatOrder, held: Option<&[PageRange]>) -> Vec<(u64, u64)> {
    match held {
        None => vec![(0, order.pages())],
        // A state file's pages are inside its memory: that was checked when it was read.
        Some(held) => {
            let run = |pages: &PageRange| Some((order.of_pages(pages)?, pages.pages()));
            held.iter().filter_map(run).collect()
        }
    }
}

struct Reader<'a> {
    source: &'a dyn MemorySource,
    pages: u64,
    runs: Vec<(u64, u64)>,
    /// The last run of data that was found: behind its end nothing is known.
    data: Option<(u64, u64)>,
    buffer: Vec<u8>,
    zero: u32,
}

impl<'a> Reader<'a> {
    fn new(source: &'a dyn MemorySource, order: &FlatOrder, held: Option<&[PageRange]>) -> Self {
        let zero = crc32c::crc32c(&vec![0; SUM_BYTES]);
        let runs = runs(order, held);
        Reader { source, pages: order.pages(), runs, data: None, buffer: Vec::new(), zero }
    }

    fn crc(&mut self, chunk: u64) -> Result<u32, SnapshotError> {
        let start = chunk * SUM_PAGES;
        let end = (start + SUM_PAGES).min(self.pages);
        let mut crc = 0;
        let from = self.runs.partition_point(|(first, count)| first + count <= start);
        for at in from..self.runs.len() {
            let (first, count) = self.runs[at];
            let (first, last) = (first.max(start), (first + count).min(end));
            if first >= last {
                break;
            }
            if (first, last) == (start, start + SUM_PAGES) && self.is_hole(start, last)? {
                return Ok(self.zero);
            }
            self.buffer.resize(((last - first) * PAGE_SIZE) as usize, 0);
            self.source.read_pages(first, &mut self.buffer)?;
            crc = crc32c::crc32c_append(crc, &self.buffer);
        }
        Ok(crc)
    }

    fn is_hole(&mut self, start: u64, end: u64) -> Result<bool, SnapshotError> {
        if self.data.is_none_or(|(first, last)| last <= start || first > start) {
            // Without any more data: behind the last page.
            let found = self.source.data_from(start)?;
            self.data = Some(found.unwrap_or((self.pages, self.pages)));
        }
        Ok(self.data.is_some_and(|(first, _)| first >= end))
    }
}

/// The checksums of a memory file that is being written. Pages come in the order of the file.
#[derive(Debug)]
pub struct Summing {
    crcs: Vec<u32>,
    pages: u64,
    next: u64,
    gaps_are_zero: bool,
    zero: u32,
}

impl Summing {
    /// For a guest of `pages` pages. Pages that are left out are zero (`gaps_are_zero`), or the
    /// snapshot does not hold them.
    pub fn new(pages: u64, gaps_are_zero: bool) -> Summing {
        let crcs = vec![0; MemorySums::number(pages) as usize];
        let zero = crc32c::crc32c(&vec![0; SUM_BYTES]);
        Summing { crcs, pages, next: 0, gaps_are_zero, zero }
    }

    /// Whole pages from flat page `first` on.
    pub fn add(&mut self, first: u64, bytes: &[u8]) {
        if self.gaps_are_zero {
            self.fill(first);
        }
        self.next = first;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (chunk, inside) = (self.next / SUM_PAGES, self.next % SUM_PAGES);
            let room = ((SUM_PAGES - inside) * PAGE_SIZE) as usize;
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Some(crc) = self.crcs.get_mut(chunk as usize) {
                // To see that all is zero takes less time than a checksum.
                *crc = match now.len() == SUM_BYTES && is_zero(now) {
                    true => self.zero,
                    false => crc32c::crc32c_append(*crc, now),
                };
            }
            self.next += now.len() as u64 / PAGE_SIZE;
            rest = later;
        }
    }

    fn fill(&mut self, until: u64) {
        const ZERO: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        while self.next < until {
            let chunk = (self.next / SUM_PAGES) as usize;
            let whole = self.next.is_multiple_of(SUM_PAGES) && self.next + SUM_PAGES <= until;
            let Some(crc) = self.crcs.get_mut(chunk) else { return };
            *crc = if whole { self.zero } else { crc32c::crc32c_append(*crc, &ZERO) };
            self.next += if whole { SUM_PAGES } else { 1 };
        }
    }

    /// All pages have come.
    pub fn finish(mut self) -> MemorySums {
        if self.gaps_are_zero {
            self.fill(self.pages);
        }
        MemorySums(self.crcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl MemorySource for Memory {
        fn read_pages(&self, first: u64, buf: &mut [u8]) -> Result<(), SnapshotError> {
            buf.copy_from_slice(&self.0[(first * PAGE_SIZE) as usize..][..buf.len()]);
            Ok(())
        }

        /// Every MiB that is all zero is a hole.
        fn data_from(&self, from: u64) -> Result<Option<(u64, u64)>, SnapshotError> {
            let full = |page: u64| {
                let chunk = page / SUM_PAGES * SUM_PAGES * PAGE_SIZE;
                let rest = &self.0[chunk as usize..];
                !is_zero(&rest[..rest.len().min(SUM_BYTES)])
            };
            let pages = self.0.len() as u64 / PAGE_SIZE;
            let Some(start) = (from..pages).find(|&page| full(page)) else { return Ok(None) };
            let end = (start..pages).find(|&page| !full(page)).unwrap_or(pages);
            Ok(Some((start, end)))
        }
    }

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
    }

    /// Four MiB and some pages: full, zero, zero but for one page, full, a short last one.
    fn guest() -> (Memory, FlatOrder) {
        let mut bytes = vec![0; 4 * SUM_BYTES + 5 * PAGE_SIZE as usize];
        bytes[..SUM_BYTES].fill(1);
        bytes[2 * SUM_BYTES + 4096..][..4096].fill(2);
        bytes[3 * SUM_BYTES..].fill(3);
        (Memory(bytes), FlatOrder::new(&[range(0, 600), range(1 << 20, 429)]))
    }

    #[test]
    fn what_is_written_and_what_is_read_have_the_same_sums() {
        let (memory, order) = guest();
        let read = MemorySums::of(&memory, &order, None).unwrap();
        for step in [1, 7, 256, 300] {
            let mut summing = Summing::new(order.pages(), true);
            for (at, data) in memory.0.chunks(step * 4096).enumerate() {
                // What is zero may be left out.
                if step != 7 || !is_zero(data) {
                    summing.add((at * step) as u64, data);
                }
            }
            assert_eq!(summing.finish(), read, "{step} pages at a time");
        }
        let held = [range(3, 2), range(255, 3), range((1 << 20) + 200, 2)];
        let mut summing = Summing::new(order.pages(), false);
        for pages in &held {
            let first = order.of_pages(pages).unwrap();
            summing.add(first, &memory.0[(first * 4096) as usize..][..pages.len() as usize]);
        }
        assert_eq!(summing.finish(), MemorySums::of(&memory, &order, Some(&held)).unwrap());
        assert_eq!(chunks_of(&order, &held), [0, 1, 3]);
    }

    #[test]
    fn every_changed_page_is_found() {
        let (mut memory, order) = guest();
        let mut sums = MemorySums::of(&memory, &order, None).unwrap();
        let all: Vec<usize> = (0..sums.len()).collect();
        assert_eq!(sums.wrong(&memory, &order, None, &all).unwrap(), Vec::<usize>::new());
        for page in (0..order.pages() as usize).step_by(93) {
            memory.0[page * 4096 + 17] ^= 0x20;
            let chunk = page / SUM_PAGES as usize;
            assert_eq!(sums.wrong(&memory, &order, None, &all).unwrap(), [chunk], "{page}");
            memory.0[page * 4096 + 17] ^= 0x20;
        }
        memory.0[5] ^= 1;
        sums.renew(&memory, &order, None, &[0]).unwrap();
        assert_eq!(sums, MemorySums::of(&memory, &order, None).unwrap());
    }
}
