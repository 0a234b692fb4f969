//! A set of addresses as ranges: what is laid where, in few words.

use std::collections::BTreeMap;

use varve_snapshot::PageRange;

/// A set of pages, kept as maximal ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// First byte of each range, and the byte after its last.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds pages; those that are in it already do no harm.
    pub fn insert(&mut self, pages: PageRange) {
        let (mut start, mut end) = (pages.start(), pages.end());
        if let Some((&s, &e)) =
            self.ranges.range(..=start).next_back().filter(|&(_, &e)| e >= start)
        {
            start = s;
            end = end.max(e);
        }
        while let Some((&s, &e)) = self.ranges.range(start..=end).next() {
            end = end.max(e);
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
    }

    /// Takes pages out.
    pub fn remove(&mut self, pages: PageRange) {
        for hit in self.within(pages) {
            let Some((&s, &e)) = self.ranges.range(..=hit.start()).next_back() else { continue };
            self.ranges.remove(&s);
            if s < hit.start() {
                self.ranges.insert(s, hit.start());
            }
            if hit.end() < e {
                self.ranges.insert(hit.end(), e);
            }
        }
    }

    /// Whether the page at `address` is in it.
    pub fn has(&self, address: u64) -> bool {
        self.ranges.range(..=address).next_back().is_some_and(|(_, &e)| address < e)
    }

    /// The parts of `pages` that are in it.
    pub fn within(&self, pages: PageRange) -> Vec<PageRange> {
        let before = self.ranges.range(..pages.start()).next_back();
        let inside = self.ranges.range(pages.start()..pages.end());
        before.into_iter().chain(inside).filter_map(|(&s, &e)| cut(s, e, pages)).collect()
    }

    /// The parts of `pages` that are not in it.
    pub fn outside(&self, pages: PageRange) -> Vec<PageRange> {
        let mut from = pages.start();
        let mut gaps = Vec::new();
        for hit in self.within(pages) {
            gaps.extend(cut(from, hit.start(), pages));
            from = hit.end();
        }
        gaps.extend(cut(from, pages.end(), pages));
        gaps
    }

    /// All of it, in order.
    pub fn ranges(&self) -> Vec<PageRange> {
        let range = |(&s, &e): (&u64, &u64)| PageRange::new(s, e - s).ok();
        self.ranges.iter().filter_map(range).collect()
    }

    /// Number of ranges.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }
}

/// The part of `start..end` in `pages`, if there is one.
fn cut(start: u64, end: u64, pages: PageRange) -> Option<PageRange> {
    let (start, end) = (start.max(pages.start()), end.min(pages.end()));
    PageRange::new(start, end.checked_sub(start)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use varve_snapshot::PAGE_SIZE;

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(first * PAGE_SIZE, pages * PAGE_SIZE).unwrap()
    }

    proptest! {
        #[test]
        fn is_the_set_of_its_pages(steps in proptest::collection::vec(
            (any::<bool>(), 0u64..40, 1u64..12), 1..40
        ), from in 0u64..40, len in 1u64..20) {
            let mut set = RangeSet::default();
            let mut model = [false; 64];
            for (add, first, pages) in steps {
                if add { set.insert(range(first, pages)) } else { set.remove(range(first, pages)) }
                for page in first..first + pages { model[page as usize] = add }
            }
            for (page, &want) in model.iter().enumerate() {
                prop_assert_eq!(set.has(page as u64 * PAGE_SIZE), want);
            }
            let runs = (0..64).filter(|&p| model[p] && (p == 0 || !model[p - 1])).count();
            prop_assert_eq!(set.len(), runs);
            let count = |parts: Vec<PageRange>| parts.iter().map(|r| r.pages()).sum::<u64>();
            let window = range(from, len);
            let want = (from..from + len).filter(|&p| model[p as usize]).count() as u64;
            prop_assert_eq!(count(set.within(window)), want);
            prop_assert_eq!(count(set.outside(window)), len - want);
        }
    }
}
