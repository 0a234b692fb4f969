//! Gives every page its class, from content and traces. Pure: no files, no images; which page is
//! stored where is `tier`'s.

use std::str::FromStr;

use crate::class::PageClass;
use crate::error::SnapshotError;
use crate::flat::FlatOrder;
use crate::page::PageRange;
use crate::region::NEVER;
use crate::trace::{Access, Trace};

/// In how many recorded runs a page must be touched to count as hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HotIf {
    /// In one or more.
    #[default]
    Any,
    /// In every one.
    All,
    /// In that many.
    Runs(u32),
    /// In the first number of the second, which must be the number of runs recorded.
    Of(u32, u32),
}

impl HotIf {
    /// The number of runs, of `recorded` ones.
    pub fn runs(self, recorded: u32) -> Result<u32, SnapshotError> {
        let refuse = |why| Err(SnapshotError::Option { option: "hot-if", why });
        let k = match self {
            HotIf::Any => 1,
            HotIf::All => recorded,
            HotIf::Runs(k) => k,
            HotIf::Of(k, n) if n == recorded => k,
            HotIf::Of(_, n) => return refuse(format!("of {n}, but {recorded} runs were recorded")),
        };
        match k {
            0 => refuse("0 runs would make every page hot: ask for at least 1".into()),
            k if k > recorded => refuse(format!("{k} runs, but only {recorded} were recorded")),
            k => Ok(k),
        }
    }
}

impl FromStr for HotIf {
    type Err = String;

    fn from_str(s: &str) -> Result<HotIf, String> {
        let wrong = || format!("{s:?} is not any, all, K or K-of-N");
        let number = |s: &str| s.parse().map_err(|_| wrong());
        match (s, s.split_once("-of-")) {
            ("any", _) => Ok(HotIf::Any),
            ("all", _) => Ok(HotIf::All),
            (_, Some((k, n))) => Ok(HotIf::Of(number(k)?, number(n)?)),
            (_, None) => Ok(HotIf::Runs(number(s)?)),
        }
    }
}

/// How pages are classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassifyOptions {
    /// When a page is hot.
    pub hot_if: HotIf,
    /// Between two read-only extents that are at most so many pages apart, untouched pages become
    /// read-only too, with their content: fewer, longer extents for a few pages more. 0: never.
    pub bridge_pages: u32,
    /// Read-only extents of fewer pages become read-write: a short extent costs more to map than to
    /// copy. 0 or 1: none.
    pub min_extent_pages: u32,
}

impl Default for ClassifyOptions {
    fn default() -> ClassifyOptions {
        ClassifyOptions { hot_if: HotIf::Any, bridge_pages: 2, min_extent_pages: 1 }
    }
}

/// What each page is for, in flat order.
pub struct Classified {
    pub(crate) order: FlatOrder,
    /// The class of each page.
    pub class: Vec<PageClass>,
    /// When each page was first touched, [`NEVER`] if it was not, whether it is hot or not.
    pub rank: Vec<u32>,
    /// Whether recorded runs wrote it.
    pub written: Vec<bool>,
    /// Whether it is all zero.
    pub zero: Vec<bool>,
    /// Pages of the trace that are not guest memory.
    pub outside: u64,
    /// In how many runs a hot page was touched, at least.
    pub hot_runs: u32,
}

/// Pages of one class that follow one another in one range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First flat page.
    pub first: u64,
    /// Number of pages.
    pub pages: u64,
    /// Their class.
    pub class: PageClass,
    /// Whether nothing of them is stored, as they are all zero.
    pub empty: bool,
    /// Lowest rank of them.
    pub rank: u32,
}

/// Classifies guest memory; `zero` says of each flat page whether it is all zero.
pub fn classify(
    memory: &[PageRange],
    zero: Vec<bool>,
    trace: &Trace,
    options: &ClassifyOptions,
) -> Result<Classified, SnapshotError> {
    let order = FlatOrder::new(memory);
    let hot_runs = options.hot_if.runs(trace.runs)?;
    let mut class: Vec<PageClass> =
        zero.iter().map(|&z| if z { PageClass::Zero } else { PageClass::Cold }).collect();
    let mut rank = vec![NEVER; zero.len()];
    let mut written = vec![false; zero.len()];
    let mut outside = 0;
    for page in trace.pages() {
        let Some(at) = order.of_frame(page.gfn).map(|p| p as usize).filter(|&p| p < zero.len())
        else {
            outside += 1;
            continue;
        };
        // The last rank stands for pages that were never touched.
        rank[at] = page.order.min(NEVER - 1);
        written[at] = page.access.has(Access::WRITTEN);
        if page.runs >= hot_runs {
            class[at] = match (written[at], zero[at]) {
                (true, _) => PageClass::ReadWrite,
                (false, true) => PageClass::Zero,
                (false, false) => PageClass::ReadOnly,
            };
        }
    }
    let mut all = Classified { order, class, rank, written, zero, outside, hot_runs };
    all.bridge(options.bridge_pages as usize);
    all.drop_short(options.min_extent_pages.into());
    Ok(all)
}

impl Classified {
    /// Flat ranges of the guest's memory ranges.
    fn ranges(&self) -> Vec<(usize, usize)> {
        let starts: Vec<usize> = self.order.starts().map(|s| s as usize).collect();
        let ends = starts.iter().skip(1).copied().chain([self.class.len()]);
        starts.iter().copied().zip(ends).collect()
    }

    /// Written pages inside a gap stay what they are: they will be laid over it.
    fn bridge(&mut self, longest: usize) {
        for (start, end) in self.ranges() {
            let mut last = None;
            for at in start..end {
                if self.class[at] != PageClass::ReadOnly {
                    continue;
                }
                if let Some(from) = last.replace(at + 1).filter(|&from| at - from <= longest) {
                    for class in &mut self.class[from..at] {
                        if matches!(class, PageClass::Zero | PageClass::Cold) {
                            *class = PageClass::ReadOnly;
                        }
                    }
                }
            }
        }
    }

    fn drop_short(&mut self, shortest: u64) {
        let extents = self.extents();
        for extent in extents.iter().filter(|e| e.class == PageClass::ReadOnly) {
            if extent.pages < shortest {
                let pages = extent.first as usize..(extent.first + extent.pages) as usize;
                self.class[pages].fill(PageClass::ReadWrite);
            }
        }
    }

    /// The longest extents of the classes that are listed, by address: all but [`PageClass::Zero`].
    pub fn extents(&self) -> Vec<Extent> {
        self.extents_by(|at| self.class[at])
    }

    /// The same of other classes.
    pub(crate) fn extents_by(&self, class: impl Fn(usize) -> PageClass) -> Vec<Extent> {
        // Zero pages that are bridged are part of what is stored, as holes.
        let keys = |at: usize| {
            let class = class(at);
            (class, class == PageClass::ReadWrite && self.zero[at])
        };
        self.runs(keys).filter(|e| e.class != PageClass::Zero).collect()
    }

    /// Longest runs of pages with the same key, inside the memory ranges.
    pub(crate) fn runs(
        &self,
        key: impl Fn(usize) -> (PageClass, bool),
    ) -> impl Iterator<Item = Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for (start, end) in self.ranges() {
            for at in start..end {
                let (class, empty) = key(at);
                match runs.last_mut() {
                    Some(run) if at > start && (run.class, run.empty) == (class, empty) => {
                        run.pages += 1;
                        run.rank = run.rank.min(self.rank[at]);
                    }
                    _ => {
                        let (first, rank) = (at as u64, self.rank[at]);
                        runs.push(Extent { first, pages: 1, class, empty, rank });
                    }
                }
            }
        }
        runs.into_iter()
    }
}
