//! What guest memory holds, written out: all of it, or pages that changed, as a raw memory file that
//! is sparse where it is zero.
//!
//! Content is read through guest memory itself, so that it does not matter which layer a page came
//! from or whether it was in place at all. That touches every page: a recording has to be sealed
//! before ([`crate::Recorder::seal`]), or it would hold all of memory.

use std::io::{self, Seek, SeekFrom, Write};

use varve_snapshot::{FlatOrder, PAGE_SIZE, PageRange, Summing, is_zero};
use vm_memory::{Bytes, GuestAddress};

use crate::ram::guest_ram::GuestRam;

/// Bytes that are read at once.
const BATCH: u64 = 1 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Saved {
    /// Pages written.
    pub written: u64,
    /// Pages that are zero and were left out.
    pub zero: u64,
}

/// Writes all of guest memory to `out`, which is empty: its regions one after another. Zero pages are
/// skipped but for the last page, so that the file has its full length. `sums` is told of all pages.
///
/// # Errors
///
/// Memory cannot be read, or the file not be written.
pub fn write_memory(
    ram: &GuestRam,
    out: &mut (impl Write + Seek),
    sums: &mut Summing,
) -> io::Result<Saved> {
    let all: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
    write_pages(ram, &all, out, false, sums)
}

/// Writes `pages` of guest memory (each range inside a region) to where they stand in a raw memory
/// file. With `zeros` zero pages are written, too, as a file that had other content needs. `sums` is told
/// of these pages.
///
/// # Errors
///
/// A range is not guest memory, memory cannot be read, or the file not be written.
pub fn write_pages(
    ram: &GuestRam,
    pages: &[PageRange],
    out: &mut (impl Write + Seek),
    zeros: bool,
    sums: &mut Summing,
) -> io::Result<Saved> {
    let memory: Vec<PageRange> = ram.regions().iter().map(|r| r.pages).collect();
    let order = FlatOrder::new(&memory);
    let mut saved = Saved::default();
    let mut buffer = vec![0; BATCH as usize];
    // Where the next write would go by itself.
    let mut position = None;
    for range in pages {
        let first = order.of_pages(range).ok_or_else(|| {
            let text = format!("pages {range:?} are not guest memory");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        for start in (range.start()..range.end()).step_by(BATCH as usize) {
            let len = BATCH.min(range.end() - start) as usize;
            let (data, _) = buffer.split_at_mut(len);
            ram.memory().read_slice(data, GuestAddress(start)).map_err(io::Error::other)?;
            let flat = first * PAGE_SIZE + (start - range.start());
            sums.add(flat / PAGE_SIZE, data);
            for (at, run, zero) in runs(data) {
                let at = flat + at as u64;
                let last = at + run.len() as u64 == order.pages() * PAGE_SIZE;
                let run = match (zero && !zeros, last) {
                    (false, _) => run,
                    (true, false) => {
                        saved.zero += run.len() as u64 / PAGE_SIZE;
                        continue;
                    }
                    // The page that gives the file its length.
                    (true, true) => {
                        saved.zero += run.len() as u64 / PAGE_SIZE - 1;
                        &run[run.len() - PAGE_SIZE as usize..]
                    }
                };
                let at = if zero && !zeros { order.pages() * PAGE_SIZE - PAGE_SIZE } else { at };
                if position != Some(at) {
                    out.seek(SeekFrom::Start(at))?;
                }
                out.write_all(run)?;
                position = Some(at + run.len() as u64);
                saved.written += run.len() as u64 / PAGE_SIZE;
            }
        }
    }
    out.flush()?;
    Ok(saved)
}

/// Runs of pages that are all zero or all not, each with its offset.
fn runs(data: &[u8]) -> impl Iterator<Item = (usize, &[u8], bool)> {
    let pages = data.as_chunks::<{ PAGE_SIZE as usize }>().0;
    let mut at = 0;
    pages.chunk_by(|a, b| is_zero(a) == is_zero(b)).map(move |run| {
        let start = at;
        at += run.len() * PAGE_SIZE as usize;
        (start, run.as_flattened(), is_zero(&run[0]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{memory, range};
    use crate::testing::{content, page_numbers, write_page};
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use varve_snapshot::{MemorySource, MemorySums, SnapshotError};

    struct FlatSource(File);

    impl MemorySource for FlatSource {
        fn read_pages(&self, first: u64, buf: &mut [u8]) -> Result<(), SnapshotError> {
            self.0.read_exact_at(buf, first * PAGE_SIZE).unwrap();
            Ok(())
        }

        fn data_from(&self, from: u64) -> Result<Option<(u64, u64)>, SnapshotError> {
            Ok(Some((from, 160)))
        }
    }

    #[test]
    fn the_file_is_memory_and_sparse_where_it_is_zero() {
        let ram = GuestRam::new(&memory(), false).unwrap();
        for page in [0, 1, 50, 95, 160, 170] {
            write_page(&ram, page << 12, &content(page << 12, 0));
        }
        let mut file = tempfile::tempfile().unwrap();
        let mut sums = Summing::new(160, true);
        let saved = write_memory(&ram, &mut file, &mut sums).unwrap();
        let written = FlatSource(file.try_clone().unwrap());
        let order = FlatOrder::new(&memory());
        assert_eq!(sums.finish(), MemorySums::of(&written, &order, None).unwrap());
        assert_eq!(saved, Saved { written: 7, zero: 153 });
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 160 << 12);
        assert!(meta.blocks() * 512 < 40 << 12, "{} blocks", meta.blocks());
        let mut flat = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut flat).unwrap();
        for (index, page) in page_numbers(&memory()).enumerate() {
            let here = &flat[index << 12..][..4096];
            let full = [0, 1, 50, 95, 160, 170].contains(&(page >> 12));
            assert!(if full { here == content(page, 0) } else { is_zero(here) }, "{page:#x}");
        }
    }

    #[test]
    fn changed_pages_go_where_they_stand_zeros_too() {
        let ram = GuestRam::new(&memory(), false).unwrap();
        write_page(&ram, 161 << 12, &[5; 4096]);
        let mut file = io::Cursor::new(vec![9; 160 << 12]);
        let mut sums = Summing::new(160, false);
        let saved = write_pages(&ram, &[range(161, 2)], &mut file, true, &mut sums).unwrap();
        assert_eq!(saved, Saved { written: 2, zero: 0 });
        let flat = file.into_inner();
        for (page, byte) in [(96, 9), (97, 5), (98, 0), (99, 9)] {
            assert!(flat[page << 12..][..4096].iter().all(|&b| b == byte), "{page}");
        }
        let nowhere = &mut io::Cursor::new(vec![]);
        let outside = write_pages(&ram, &[range(95, 2)], nowhere, true, &mut sums);
        assert!(outside.unwrap_err().to_string().contains("not guest memory"));
    }
}
