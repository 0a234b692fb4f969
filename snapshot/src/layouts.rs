//! Which extents each restore method takes from which image. Pure; `tier` packs them.

use crate::class::PageClass;
use crate::classify::{Classified, Extent};
use crate::region::NEVER;

/// Regions of FaaSnap's loading set that are at most so far apart are merged (EuroSys'22, 4.3).
pub(crate) const FAASNAP_MERGE_PAGES: u64 = 32;

/// Extents to be packed, in that order, into an image of their own; and those taken from the raw
/// memory file.
pub(crate) struct Split {
    pub packed: Vec<Extent>,
    pub rest: Vec<Extent>,
}

fn by_rank(extents: &mut [Extent]) {
    extents.sort_by_key(|e| (e.rank, e.first));
}

impl Classified {
    fn extent(&self, first: usize, end: usize, class: PageClass) -> Extent {
        let rank = self.rank[first..end].iter().copied().min().unwrap_or(NEVER);
        Extent { first: first as u64, pages: (end - first) as u64, class, empty: false, rank }
    }

    fn touched(&self, at: usize) -> bool {
        self.rank[at] != NEVER
    }

    /// How many pages `next` is behind `last`, if that is at most `bridge` in one memory range.
    pub(crate) fn gap(&self, last: &Extent, next: &Extent, bridge: u64) -> Option<u64> {
        let end = last.first + last.pages;
        let gap = next.first.checked_sub(end).filter(|gap| *gap <= bridge)?;
        self.order.guest_pages(end - 1, gap + 2).map(|_| gap)
    }

    /// Everything that is not zero.
    pub(crate) fn flat(&self) -> Vec<Extent> {
        let key =
            |at: usize| (if self.zero[at] { PageClass::Zero } else { PageClass::Cold }, false);
        // The method knows no order of access.
        let cold = self.runs(key).filter(|e| e.class == PageClass::Cold);
        cold.map(|e| Extent { rank: NEVER, ..e }).collect()
    }

    /// REAP: all touched pages, zero ones too, in order of access.
    pub(crate) fn reap(&self) -> Split {
        let key = |at: usize| match (self.touched(at), self.written[at], self.zero[at]) {
            (true, true, _) => (PageClass::ReadWrite, false),
            (true, false, _) => (PageClass::ReadOnly, false),
            (false, _, false) => (PageClass::Cold, false),
            (false, _, true) => (PageClass::Zero, false),
        };
        let rest = self.runs(key).filter(|e| e.class == PageClass::Cold).collect();
        let mut touched: Vec<usize> = (0..self.rank.len()).filter(|&at| self.touched(at)).collect();
        touched.sort_by_key(|&at| (self.rank[at], at));
        let starts: Vec<u64> = self.order.starts().collect();
        let mut packed: Vec<Extent> = Vec::new();
        for at in touched {
            let class = key(at).0;
            match packed.last_mut() {
                Some(e)
                    if e.first + e.pages == at as u64
                        && e.class == class
                        && starts.binary_search(&(at as u64)).is_err() =>
                {
                    e.pages += 1;
                }
                _ => packed.push(self.extent(at, at + 1, class)),
            }
        }
        Split { packed, rest }
    }

    /// FaaSnap: touched pages that are not zero, merged over short gaps.
    pub(crate) fn faasnap(&self) -> Split {
        let loaded = |at: usize| self.touched(at) && !self.zero[at];
        let key =
            |at: usize| (if loaded(at) { PageClass::ReadOnly } else { PageClass::Zero }, false);
        let starts: Vec<u64> = self.order.starts().collect();
        let mut packed: Vec<Extent> = Vec::new();
        for run in self.runs(key).filter(|e| e.class == PageClass::ReadOnly) {
            let end = run.first + run.pages;
            let near = packed.last().copied().filter(|last| {
                run.first - (last.first + last.pages) <= FAASNAP_MERGE_PAGES
                    && !starts.iter().any(|s| (last.first + 1..=run.first).contains(s))
            });
            let first = near.map_or(run.first, |last| last.first);
            if near.is_some() {
                packed.pop();
            }
            packed.push(self.extent(first as usize, end as usize, PageClass::ReadOnly));
        }
        let mut rest = Vec::new();
        let mut inside = vec![false; self.zero.len()];
        for extent in &mut packed {
            let pages = extent.first as usize..(extent.first + extent.pages) as usize;
            if self.written[pages.clone()].contains(&true) {
                extent.class = PageClass::ReadWrite;
            }
            inside[pages].fill(true);
        }
        let key = |at: usize| {
            let cold = !inside[at] && !self.zero[at];
            (if cold { PageClass::Cold } else { PageClass::Zero }, false)
        };
        rest.extend(self.runs(key).filter(|e| e.class == PageClass::Cold));
        by_rank(&mut packed);
        Split { packed, rest }
    }

    /// The classes' extents, where all is in one image in guest layout: untouched pages between read-only
    /// ones save no mappings there, and would be made ready for nothing.
    pub(crate) fn template(&self) -> Vec<Extent> {
        self.extents_by(|at| match (self.class[at], self.zero[at]) {
            (PageClass::ReadOnly, false) if !self.touched(at) => PageClass::Cold,
            (PageClass::ReadOnly, true) if !self.touched(at) => PageClass::Zero,
            (class, _) => class,
        })
    }

    /// The extents of a class, in the order in which its image stores them: cold ones by address, hot ones
    /// in order of access, so that a guest can run on what a disk has brought while the rest comes.
    /// Those that are at most `bridge` pages apart stay together.
    pub(crate) fn tiered(&self, class: PageClass, bridge: u64) -> Vec<Extent> {
        let extents: Vec<Extent> =
            self.extents().into_iter().filter(|e| e.class == class).collect();
        if class == PageClass::Cold {
            return extents;
        }
        let together = |last: &Extent, next: &Extent| self.gap(last, next, bridge).is_some();
        let mut groups: Vec<&[Extent]> = extents.chunk_by(together).collect();
        groups.sort_by_key(|group| group.iter().map(|e| e.rank).min());
        groups.concat()
    }
}
