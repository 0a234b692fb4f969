//! Giving pages of guest memory back to the host, on whatever layer they lie.

use varve_snapshot::{PAGE_SIZE, PageRange};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::kind::{HUGE_PAGE, HugePages};
use crate::ram::ranges::RangeSet;

impl GuestRam {
    /// Gives pages back to the host, whatever is laid there; the guest reads them as zero
    /// afterwards. Beside a restore that is still under way, too.
    ///
    /// Over a file, fresh zero memory is laid, which neighbours join; when that would take more
    /// mappings than there is room for, the pages are zeroed in place and not given back.
    pub fn discard(&self, range: PageRange) -> Result<(), RamError> {
        self.offset(range)?;
        self.note_changed(range);
        let _nothing_comes_back = self.watched().map(|watched| watched.give_back(range));
        let mut layers = self.layers();
        let (on_file, plain) = (layers.files.within(range), layers.files.outside(range));
        for part in on_file {
            let laid = layers.fits(part) && self.lay_zero(part).is_ok();
            if laid { layers.covered(part) } else { self.zero(part)? }
        }
        for part in plain {
            self.discard_plain(part)?;
        }
        Ok(())
    }

    /// A diff snapshot has to say that the pages are zero now, and KVM logs only what is written.
    fn note_changed(&self, range: PageRange) {
        let mut views = self.memory().iter();
        let view = views.find(|v| (v.start_addr().0..=v.last_addr().0).contains(&range.start()));
        let Some(view) = view else { return };
        if let Some(bitmap) = MmapRegion::bitmap(view) {
            let offset = (range.start() - view.start_addr().0) as usize;
            bitmap.set_addr_range(offset, range.len() as usize);
        }
    }

    fn discard_plain(&self, range: PageRange) -> Result<(), RamError> {
        let failed = |source| RamError::Discard { range, source };
        let whole = if self.reservation().is_hugetlb() { whole_huge(range) } else { Some(range) };
        if let Some(whole) = whole {
            let offset = self.offset(whole)?;
            self.reservation().discard(offset, whole.len() as usize).map_err(failed)?;
        }
        let mut edges = RangeSet::default();
        edges.insert(range);
        whole.into_iter().for_each(|w| edges.remove(w));
        edges.within(range).into_iter().try_for_each(|edge| self.zero(edge))
    }

    /// Lays fresh zero memory over whatever is at `range`.
    pub(crate) fn lay_fresh(&self, range: PageRange) -> Result<(), RamError> {
        let mut layers = self.layers();
        self.lay_zero(range)?;
        layers.files.remove(range);
        if let Some(watched) = self.watched() {
            watched.forget(range);
        }
        Ok(())
    }

    /// The same, and the kernel is asked for huge pages; one that has none refuses, which changes time only.
    pub(crate) fn lay_fresh_huge(&self, range: PageRange) -> Result<(), RamError> {
        self.lay_fresh(range)?;
        let _ = self.call("use huge pages for", range, |r, o, len| r.want_huge(o, len));
        Ok(())
    }

    /// Whether there is room for the mappings that [`GuestRam::lay_over_file`] makes.
    pub(crate) fn has_room(&self, range: PageRange) -> bool {
        self.layers().fits(range)
    }

    /// Lays fresh zero memory over a part of a file.
    pub(crate) fn lay_over_file(&self, range: PageRange) -> Result<(), RamError> {
        let mut layers = self.layers();
        self.lay_zero(range)?;
        layers.covered(range);
        Ok(())
    }

    /// Lays fresh zero memory over `range`; who calls it keeps the books.
    fn lay_zero(&self, range: PageRange) -> Result<(), RamError> {
        self.call("map", range, |r, o, len| {
            r.map_zero(o, len)?;
            if self.huge_pages() == HugePages::Transparent { r.want_huge(o, len) } else { Ok(()) }
        })
    }

    fn zero(&self, range: PageRange) -> Result<(), RamError> {
        let zeros = [0u8; PAGE_SIZE as usize];
        self.call("zero", range, |r, o, len| {
            for page in (o..o + len).step_by(zeros.len()) {
                r.slice(page, zeros.len())?.copy_from(&zeros);
            }
            Ok(())
        })
    }
}

/// The whole 2 MiB pages inside `range`.
fn whole_huge(range: PageRange) -> Option<PageRange> {
    let huge = HUGE_PAGE as u64;
    let start = range.start().checked_next_multiple_of(huge)?;
    let end = range.end() / huge * huge;
    PageRange::new(start, end.checked_sub(start)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    fn range(start: u64, len: u64) -> PageRange {
        PageRange::new(start, len).unwrap()
    }

    #[test]
    fn discarded_pages_read_as_zero() {
        let ram = GuestRam::new(&[range(0, 0x10_0000)], true).unwrap();
        ram.memory().write_slice(&[9; 0x3000], GuestAddress(0x4000)).unwrap();
        ram.discard(range(0x5000, 0x1000)).unwrap();
        let mut data = [1; 0x3000];
        ram.memory().read_slice(&mut data, GuestAddress(0x4000)).unwrap();
        assert_eq!(data[..0x1000], [9; 0x1000]);
        assert_eq!(data[0x1000..0x2000], [0; 0x1000]);
        assert_eq!(data[0x2000..], [9; 0x1000]);
        assert!(matches!(ram.discard(range(0xf_f000, 0x2000)), Err(RamError::NotMemory(_))));
    }

    #[test]
    fn pool_pages_go_back_whole_and_are_zeroed_in_part() {
        let memory = [range(0, 6 << 20)];
        let ram = match GuestRam::with_pages(&memory, false, HugePages::Pool) {
            Err(e @ RamError::HugePages { .. }) => return varve_skip::skip!("hugetlb", e),
            made => made.unwrap(),
        };
        ram.memory().write_slice(&vec![9; 6 << 20], GuestAddress(0)).unwrap();
        ram.discard(range(0x1f_f000, 0x20_2000)).unwrap();
        let mut data = vec![1; 6 << 20];
        ram.memory().read_slice(&mut data, GuestAddress(0)).unwrap();
        let inside = |at: usize| (0x1f_f000..0x40_1000).contains(&at);
        assert!((0..6 << 20).all(|at| data[at] == if inside(at) { 0 } else { 9 }));
    }
}
