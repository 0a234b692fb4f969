//! Files that are perhaps not in memory yet: looking whether they are, having the disk begin early, and
//! how much of a file one touch brings in.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{Advice, fadvise, major, minor};
use varve_snapshot::PAGE_SIZE;

use crate::source::residency::Residency;

/// Bytes that the kernel reads ahead at once, by default.
const AHEAD: u64 = 128 << 10;

/// Pages that are looked at to judge a file by.
const SAMPLE: usize = 16;

/// Bytes that are asked for at a time; of more than what it reads ahead the kernel leaves out the rest.
pub(crate) const PIECE: u64 = AHEAD;

/// Pieces that are under way at once: enough for a disk to be busy, and few, because what the guest asks
/// for meanwhile, and was not foreseen, waits behind them.
const AT_ONCE: usize = 16;

/// Has the disk bring pieces of files, in this order; nothing happens to what is in memory already.
/// Returns when the last ones are under way.
pub(crate) fn fetch<'a>(pieces: impl IntoIterator<Item = (&'a File, u64)>) {
    let mut under_way = VecDeque::new();
    for (file, piece) in pieces {
        // Who cannot fetch ahead fetches on demand.
        let _ = fadvise(file, piece * PIECE, NonZeroU64::new(PIECE), Advice::WillNeed);
        under_way.push_back((file, (piece + 1) * PIECE - 1));
        if under_way.len() > AT_ONCE
            && let Some((file, last)) = under_way.pop_front()
        {
            let _ = file.read_at(&mut [0], last);
        }
    }
}

/// Whether most of the given pages of a file, of which some are looked at, are in memory.
pub(crate) fn in_memory(file: &File, pages: &[u64]) -> io::Result<bool> {
    let sample = sample(pages);
    Ok(sample.is_empty() || absent(file, &sample)? * 2 < sample.len())
}

/// Whether all of the given pages of a file, of which some are looked at, are in memory.
pub(crate) fn all_in_memory(file: &File, pages: &[u64]) -> io::Result<bool> {
    Ok(absent(file, &sample(pages))? == 0)
}

fn sample(pages: &[u64]) -> Vec<u64> {
    pages.iter().step_by(pages.len() / SAMPLE + 1).copied().collect()
}

/// Number of the given pages that are not in the page cache. Pages past the end of the file do not count.
fn absent(file: &File, pages: &[u64]) -> io::Result<usize> {
    let len = file.metadata()?.len() / PAGE_SIZE * PAGE_SIZE;
    let inside: Vec<u64> = pages.iter().copied().filter(|page| page * PAGE_SIZE < len).collect();
    if inside.is_empty() {
        return Ok(0);
    }
    let residency = Residency::of(file, len)?;
    let mut absent = 0;
    for page in inside {
        absent += usize::from(!residency.has(page)?);
    }
    Ok(absent)
}

/// Whether the kernel reads so far around a page of the file that a few touches of pages that nobody
/// will need keep the disk busy: beyond what it does by default.
pub(crate) fn reads_far(file: &File) -> bool {
    read_ahead(file).is_some_and(|bytes| bytes > 4 * AHEAD)
}

/// Bytes that the kernel reads ahead at once on the disk of a file, if that can be seen.
fn read_ahead(file: &File) -> Option<u64> {
    let status = file.metadata().ok()?;
    let device = format!("{}:{}", major(status.dev()), minor(status.dev()));
    // A whole disk's, a partition's, and a file system's that is on no disk.
    let places = [
        format!("/sys/dev/block/{device}/bdi"),
        format!("/sys/dev/block/{device}/../bdi"),
        format!("/sys/class/bdi/{device}"),
    ];
    let read = |place: &String| fs::read_to_string(format!("{place}/read_ahead_kb")).ok();
    let text = places.iter().find_map(read);
    text?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_dropped_is_not_in_memory() {
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&vec![7; 4 << 20]).unwrap();
        file.sync_all().unwrap();
        let pages: Vec<u64> = (0..1024).collect();
        assert!(in_memory(&file, &pages).unwrap());
        assert!(in_memory(&file, &[]).unwrap());
        // Behind the end nothing can be missing.
        assert!(in_memory(&file, &[5000]).unwrap());
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if in_memory(&file, &pages).unwrap() {
            return varve_skip::skip!("disk", "the file system keeps its files in memory");
        }
        fetch((0..(4 << 20) / PIECE).map(|piece| (&file, piece)));
        // No more than the last ones are still under way.
        let come = pages.len() - AT_ONCE * (PIECE / PAGE_SIZE) as usize;
        assert_eq!(absent(&file, &pages[..come]).unwrap(), 0);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !in_memory(&file, &pages).unwrap() {
            assert!(std::time::Instant::now() < deadline, "what was fetched does not come");
        }
    }
}
