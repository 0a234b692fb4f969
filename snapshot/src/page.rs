//! Pages and ranges of them: the only range type that crosses crates.

use std::fmt;

/// Bytes of a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// Why two numbers are not a page range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageRangeError {
    /// Start or length is not a whole number of pages.
    #[error("{start:#x}+{len:#x} is not a whole number of 4 KiB pages")]
    Unaligned {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// No pages at all.
    #[error("the page range at {start:#x} is empty")]
    Empty {
        /// First byte.
        start: u64,
    },
    /// Past the end of the 64-bit address space.
    #[error("{start:#x}+{len:#x} wraps around")]
    Wraps {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A run of whole pages in guest physical memory; never empty, never wraps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRange {
    start: u64,
    len: u64,
}

impl PageRange {
    /// The pages at guest physical address `start`, `len` bytes of them.
    pub fn new(start: u64, len: u64) -> Result<PageRange, PageRangeError> {
        if !start.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(PageRangeError::Unaligned { start, len });
        }
        if len == 0 {
            return Err(PageRangeError::Empty { start });
        }
        start.checked_add(len).ok_or(PageRangeError::Wraps { start, len })?;
        Ok(PageRange { start, len })
    }

    /// The whole pages inside `start..start + len`, if there are any.
    pub fn inside(start: u64, len: u64) -> Option<PageRange> {
        let first = start.checked_next_multiple_of(PAGE_SIZE)?;
        let end = start.checked_add(len)? / PAGE_SIZE * PAGE_SIZE;
        PageRange::new(first, end.checked_sub(first)?).ok()
    }

    /// Guest physical address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a page range holds at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Guest physical address after the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.len / PAGE_SIZE
    }

    /// Whether `other` lies inside.
    pub fn contains(&self, other: &PageRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// The same pages as `ranges` name, sorted, apart and as few ranges as can be.
    pub fn union(mut ranges: Vec<PageRange>) -> Vec<PageRange> {
        ranges.sort_unstable();
        let mut union: Vec<PageRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match union.last_mut() {
                Some(last) if range.start <= last.end() => {
                    last.len = last.len.max(range.end() - last.start);
                }
                _ => union.push(range),
            }
        }
        union
    }

    /// The pages that both have.
    pub fn intersection(&self, other: &PageRange) -> Option<PageRange> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| PageRange { start, len: end - start })
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages() {
        let r = PageRange::new(0x1000, 0x3000).unwrap();
        assert_eq!((r.start(), r.end(), r.pages()), (0x1000, 0x4000, 3));
        assert!(matches!(PageRange::new(1, 0x1000), Err(PageRangeError::Unaligned { .. })));
        assert!(matches!(PageRange::new(0, 0x1001), Err(PageRangeError::Unaligned { .. })));
        assert!(matches!(PageRange::new(0x1000, 0), Err(PageRangeError::Empty { .. })));
        assert!(matches!(PageRange::new(!0xfff, 0x2000), Err(PageRangeError::Wraps { .. })));
    }

    #[test]
    fn inside_rounds_inwards() {
        let inside = |s, l| PageRange::inside(s, l).map(|r| (r.start(), r.len()));
        assert_eq!(inside(0x1001, 0x2fff), Some((0x2000, 0x2000)));
        assert_eq!(inside(0x1001, 0x1ffe), None);
        assert_eq!(inside(0x1000, 0x1000), Some((0x1000, 0x1000)));
        assert_eq!(inside(u64::MAX, 1), None);
        assert_eq!(inside(5, u64::MAX), None);
        assert_eq!(inside(0xfff, 0), None);
    }

    #[test]
    fn unions() {
        let r = |s: u64, e: u64| PageRange::new(s * PAGE_SIZE, (e - s) * PAGE_SIZE).unwrap();
        let all = vec![r(8, 9), r(0, 2), r(1, 4), r(4, 5), r(2, 3)];
        assert_eq!(PageRange::union(all), [r(0, 5), r(8, 9)]);
        assert_eq!(PageRange::union(vec![]), []);
    }

    #[test]
    fn intersections() {
        let r = |s: u64, e: u64| PageRange::new(s * PAGE_SIZE, (e - s) * PAGE_SIZE).unwrap();
        assert_eq!(r(0, 4).intersection(&r(2, 6)), Some(r(2, 4)));
        assert_eq!(r(0, 2).intersection(&r(2, 4)), None);
        assert!(r(0, 4).contains(&r(1, 4)) && !r(1, 4).contains(&r(0, 4)));
    }
}
