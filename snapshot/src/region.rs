//! The region map: which class each page of guest memory has, and where its content is stored.

use std::sync::Arc;

use crate::class::PageClass;
use crate::page::PageRange;

/// Index of an image in a snapshot's image table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub u16);

/// Where a region's content begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The image.
    pub image: ImageId,
    /// Page index inside the image; the region's pages follow one another there.
    pub page: u64,
}

/// Rank of pages that no recorded invocation touched.
pub const NEVER: u32 = u32::MAX;

/// A run of pages of one class whose content, if any is stored, is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The pages.
    pub pages: PageRange,
    /// Their class.
    pub class: PageClass,
    /// Their content; `None`: all zero.
    pub stored: Option<Stored>,
    /// When recorded invocations first touched one of them: a rank, lower is earlier, [`NEVER`] for
    /// none. Population follows it.
    pub rank: u32,
}

/// What is wrong with a list of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Out of order, or two that share pages.
    #[error("region {0:?} is out of order or overlaps the one before it")]
    Order(PageRange),
    /// Not inside guest memory.
    #[error("region {0:?} is not inside guest memory")]
    Outside(PageRange),
    /// Stored, though its class is stored nowhere; or not stored, though only zero and written pages
    /// may be.
    #[error("region {0:?}: class {1:?} does not allow this storage")]
    Storage(PageRange, PageClass),
}

impl Region {
    /// Whether recorded invocations touched it.
    pub fn is_hot(&self) -> bool {
        self.rank != NEVER || matches!(self.class, PageClass::ReadOnly | PageClass::ReadWrite)
    }
}

/// A partition of guest memory into regions. Pages that no region names are [`PageClass::Zero`]. Clones
/// share the regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionMap {
    regions: Arc<Vec<Region>>,
}

impl RegionMap {
    /// Checks `regions` (sorted, apart, each inside one of `memory`'s ranges, stored as their class
    /// allows).
    pub fn new(regions: Vec<Region>, memory: &[PageRange]) -> Result<RegionMap, RegionError> {
        let mut ranges = memory.iter();
        let mut range = ranges.next();
        let mut end = 0;
        for region in &regions {
            let pages = region.pages;
            if pages.start() < end {
                return Err(RegionError::Order(pages));
            }
            end = pages.end();
            while range.is_some_and(|r| r.end() <= pages.start()) {
                range = ranges.next();
            }
            if !range.is_some_and(|r| r.contains(&pages)) {
                return Err(RegionError::Outside(pages));
            }
            let fits = match region.class {
                PageClass::Zero => region.stored.is_none(),
                PageClass::ReadOnly | PageClass::ReadWrite => true,
                PageClass::Cold => region.stored.is_some(),
            };
            if !fits {
                return Err(RegionError::Storage(pages, region.class));
            }
        }
        Ok(RegionMap { regions: Arc::new(regions) })
    }

    /// The same regions with other copies of their content: `other` says where, or nothing to leave
    /// a region as it is. Regions that store nothing stay so.
    #[must_use]
    pub fn restored(mut self, mut other: impl FnMut(&Region) -> Option<Stored>) -> RegionMap {
        for region in Arc::make_mut(&mut self.regions).iter_mut().filter(|r| r.stored.is_some()) {
            region.stored = other(region).or(region.stored);
        }
        self
    }

    /// The hot regions alone.
    #[must_use]
    pub fn hot(&self) -> RegionMap {
        self.clone().only(Region::is_hot)
    }

    /// Those of these regions that are `kept`.
    #[must_use]
    pub fn only(mut self, kept: impl FnMut(&Region) -> bool) -> RegionMap {
        Arc::make_mut(&mut self.regions).retain(kept);
        self
    }

    /// The regions, by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that holds the page at guest physical address `address`, if any names it.
    pub fn find(&self, address: u64) -> Option<&Region> {
        let at = self.regions.partition_point(|r| r.pages.end() <= address);
        self.regions.get(at).filter(|r| r.pages.start() <= address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
    }

    fn region(first: u64, pages: u64, class: PageClass) -> Region {
        let stored = (class != PageClass::Zero).then_some(Stored { image: ImageId(0), page: 0 });
        Region { pages: range(first, pages), class, stored, rank: NEVER }
    }

    #[test]
    fn only_partitions_of_memory() {
        let memory = [range(0, 16), range(32, 16)];
        let map = |regions| RegionMap::new(regions, &memory);
        let ok = map(vec![
            region(0, 4, PageClass::Cold),
            region(4, 1, PageClass::ReadWrite),
            region(40, 8, PageClass::ReadOnly),
        ])
        .unwrap();
        assert_eq!(ok.find(4 * PAGE_SIZE).map(|r| r.class), Some(PageClass::ReadWrite));
        assert_eq!(ok.find(5 * PAGE_SIZE), None);
        assert_eq!(ok.find(47 * PAGE_SIZE).map(|r| r.class), Some(PageClass::ReadOnly));
        let order = [region(4, 4, PageClass::Cold), region(7, 1, PageClass::Cold)];
        assert!(matches!(map(order.to_vec()), Err(RegionError::Order(_))));
        for outside in [region(15, 2, PageClass::Cold), region(20, 1, PageClass::Cold)] {
            assert!(matches!(map(vec![outside]), Err(RegionError::Outside(_))));
        }
        let mut lost = region(0, 1, PageClass::Cold);
        lost.stored = None;
        assert!(matches!(map(vec![lost]), Err(RegionError::Storage(..))));
    }
}
