//! Which pages changed: KVM's log of the guest's writes, together with the bitmap of what the monitor
//! wrote and of what was given back.
//! What kind of mapping a page has tells nothing about that.

use varve_snapshot::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend, MmapRegion};

use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;

/// The pages that are set in `logs` (one bitmap for each region of guest memory, in order, bit `n` of
/// word `n / 64` for page `n`, as KVM_GET_DIRTY_LOG fills it) or were written by the monitor, which
/// starts anew with this. The machine must stand still.
pub fn take_dirty(ram: &GuestRam, logs: &[&[u64]]) -> Result<Vec<PageRange>, RamError> {
    if logs.len() != ram.regions().len() {
        return Err(RamError::Logs { logs: logs.len(), regions: ram.regions().len() });
    }
    let mut dirty = Vec::new();
    for ((region, log), view) in ram.regions().iter().zip(logs).zip(ram.memory().iter()) {
        let own =
            MmapRegion::bitmap(view).as_ref().map(AtomicBitmap::get_and_reset).unwrap_or_default();
        let words = region.pages.pages().div_ceil(64) as usize;
        let short = log.len() < words || (!own.is_empty() && own.len() < words);
        if short {
            return Err(RamError::Log { range: region.pages, words: log.len() });
        }
        let own = own.into_iter().chain(std::iter::repeat(0));
        let bits = log.iter().zip(own).take(words).map(|(log, own)| log | own);
        runs(region.pages, bits, &mut dirty);
    }
    Ok(dirty)
}

/// Adds the runs of set bits, as pages of `range`.
fn runs(range: PageRange, words: impl Iterator<Item = u64>, out: &mut Vec<PageRange>) {
    let mut open: Option<u64> = None;
    let mut close = |open: &mut Option<u64>, end: u64| {
        if let Some(start) = open.take() {
            out.extend(PageRange::new(start, end - start));
        }
    };
    for (at, word) in words.enumerate() {
        // Most words are all clear or all set.
        let start = range.start() + at as u64 * 64 * PAGE_SIZE;
        match word {
            0 => close(&mut open, start),
            u64::MAX if start + 64 * PAGE_SIZE <= range.end() => {
                open.get_or_insert(start);
            }
            _ => {
                for bit in 0..64u64 {
                    let page = start + bit * PAGE_SIZE;
                    if page >= range.end() {
                        break;
                    }
                    if word >> bit & 1 != 0 {
                        open.get_or_insert(page);
                    } else {
                        close(&mut open, page);
                    }
                }
            }
        }
    }
    close(&mut open, range.end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::range;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    proptest! {
        #[test]
        fn runs_are_the_set_bits(words in proptest::collection::vec(
            prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 3
        ), pages in 129u64..=192) {
            let mut out = Vec::new();
            runs(range(5, pages), words.iter().copied(), &mut out);
            let bit = |n: u64| words[n as usize / 64] >> (n % 64) & 1 != 0;
            let set: Vec<u64> = (0..pages).filter(|&n| bit(n)).collect();
            let got: Vec<u64> =
                out.iter().flat_map(|r| r.start() / PAGE_SIZE - 5..r.end() / PAGE_SIZE - 5).collect();
            prop_assert_eq!(set, got);
            prop_assert!(out.windows(2).all(|w| w[0].end() < w[1].start()), "runs are maximal");
        }
    }

    #[test]
    fn the_guests_writes_and_the_monitors_together() {
        let ram = GuestRam::new(&[range(0, 70), range(256, 10)], true).unwrap();
        ram.memory().write_obj(1u64, GuestAddress(69 << 12)).unwrap();
        ram.memory().write_slice(&[1; 4097], GuestAddress(257 << 12)).unwrap();
        let logs: [&[u64]; 2] = [&[1 << 63, 1], &[0b100]];
        let dirty = take_dirty(&ram, &logs).unwrap();
        assert_eq!(dirty, [range(63, 2), range(69, 1), range(257, 2)]);
        ram.discard(range(259, 2)).unwrap();
        assert_eq!(take_dirty(&ram, &[&[0, 0], &[0]]).unwrap(), [range(259, 2)], "zero now");
        // KVM may log more than there is.
        assert_eq!(take_dirty(&ram, &[&[0, u64::MAX << 6], &[0]]).unwrap(), []);
        assert!(matches!(take_dirty(&ram, &[&[0, 0]]), Err(RamError::Logs { .. })));
        assert!(matches!(take_dirty(&ram, &[&[0], &[0]]), Err(RamError::Log { words: 1, .. })));
    }
}
