//! Where guest pages are in the address space of a process: this one, or one whose pages are brought
//! from here.

use varve_snapshot::PageRange;

use crate::ram::error::RamError;

/// One run of guest memory and where it is in the process that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest physical pages.
    pub pages: PageRange,
    /// Host virtual address of the first byte.
    pub host: u64,
}

impl RamRegion {
    /// Host address after its last byte.
    pub(crate) fn host_end(&self) -> u64 {
        self.host.saturating_add(self.pages.len())
    }
}

/// Runs that are apart, in either address space.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    by_pages: Vec<RamRegion>,
    by_host: Vec<RamRegion>,
}

impl Regions {
    pub fn new(mut regions: Vec<RamRegion>) -> Regions {
        let mut by_host = regions.clone();
        by_host.sort_unstable_by_key(|r| r.host);
        regions.sort_unstable_by_key(|r| r.pages.start());
        Regions { by_pages: regions, by_host }
    }

    /// All of them, by guest address.
    pub fn all(&self) -> &[RamRegion] {
        &self.by_pages
    }

    /// Host address of pages that are all of one region.
    pub fn host(&self, pages: PageRange) -> Result<u64, RamError> {
        let at = self.by_pages.partition_point(|r| r.pages.end() <= pages.start());
        let region = self.by_pages.get(at).filter(|r| r.pages.contains(&pages));
        let region = region.ok_or(RamError::NotMemory(pages))?;
        Ok(region.host + (pages.start() - region.pages.start()))
    }

    /// Guest physical address of a host address.
    pub fn guest_address(&self, host: u64) -> Option<u64> {
        let at = self.by_host.partition_point(|r| r.host_end() <= host);
        let region = self.by_host.get(at).filter(|r| r.host <= host)?;
        Some(region.pages.start() + (host - region.host))
    }

    /// Guest pages at the host addresses `start..end`, as far as there are any.
    pub fn guest_pages(&self, start: u64, end: u64) -> Vec<PageRange> {
        let from = self.by_host.partition_point(|r| r.host_end() <= start);
        let inside = self.by_host.iter().skip(from).take_while(|r| r.host < end);
        let part = |r: &RamRegion| {
            let (first, last) = (start.max(r.host), end.min(r.host_end()));
            let pages = r.pages.start() + (first - r.host);
            PageRange::new(pages, last.checked_sub(first)?).ok()
        };
        inside.filter_map(part).collect()
    }

    /// `pages` cut where regions end, without what is in none.
    pub fn within(&self, pages: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let from = self.by_pages.partition_point(|r| r.pages.end() <= pages.start());
        let inside =
            self.by_pages.iter().skip(from).take_while(move |r| r.pages.start() < pages.end());
        inside.filter_map(move |r| {
            let start = pages.start().max(r.pages.start());
            PageRange::new(start, pages.end().min(r.pages.end()).checked_sub(start)?).ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_translate_both_ways() {
        let range = |start, len| PageRange::new(start, len).unwrap();
        let region = |start, len, host| RamRegion { pages: range(start, len), host };
        // In another order in the process than in the guest.
        let regions =
            Regions::new(vec![region(0x8000, 0x2000, 0x1000), region(0x1000, 0x3000, 0x9000)]);
        assert_eq!(regions.host(range(0x2000, 0x2000)).unwrap(), 0xa000);
        assert!(regions.host(range(0x2000, 0x3000)).is_err());
        assert!(regions.host(range(0, 0x1000)).is_err());
        assert_eq!(regions.guest_address(0x2fff), Some(0x9fff));
        assert_eq!(regions.guest_address(0x3000), None);
        assert_eq!(regions.guest_address(0xfff), None);
        assert_eq!(
            regions.guest_pages(0x2000, 0xa000),
            [range(0x9000, 0x1000), range(0x1000, 0x1000)]
        );
        assert_eq!(regions.guest_pages(0x4000, 0x8000), []);
        let within: Vec<_> = regions.within(range(0x3000, 0x6000)).collect();
        assert_eq!(within, [range(0x3000, 0x1000), range(0x8000, 0x1000)]);
    }
}
