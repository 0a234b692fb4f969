//! A model of an overlay: what shows at each page after layers were laid over one another. It maps
//! nothing; plans are simulated and counted with it.

use std::collections::BTreeMap;

use varve_snapshot::{PAGE_SIZE, PageRange, Stored};

/// What shows at a run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Fresh zero memory.
    Zero,
    /// An image's pages, from this one on.
    Image(Stored),
    /// The content that the region map names, brought in on a fault.
    Fault,
}

impl Shown {
    /// What shows `pages` further on.
    fn skip(self, pages: u64) -> Shown {
        match self {
            Shown::Image(at) => Shown::Image(Stored { page: at.page + pages, ..at }),
            other => other,
        }
    }
}

/// What shows where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    /// By first byte: the byte after the last, and what shows.
    pieces: BTreeMap<u64, (u64, Shown)>,
}

impl Overlay {
    /// The base layer.
    pub fn new(memory: &[PageRange]) -> Overlay {
        let pieces = memory.iter().map(|r| (r.start(), (r.end(), Shown::Zero))).collect();
        Overlay { pieces }
    }

    /// Lays something over `pages`.
    pub fn lay(&mut self, pages: PageRange, shown: Shown) {
        self.split(pages.start());
        self.split(pages.end());
        let hidden: Vec<u64> =
            self.pieces.range(pages.start()..pages.end()).map(|(&s, _)| s).collect();
        hidden.iter().for_each(|start| {
            self.pieces.remove(start);
        });
        self.pieces.insert(pages.start(), (pages.end(), shown));
    }

    fn split(&mut self, at: u64) {
        let Some((&start, &(end, shown))) = self.pieces.range(..at).next_back() else { return };
        if at < end {
            self.pieces.insert(start, (at, shown));
            self.pieces.insert(at, (end, shown.skip((at - start) / PAGE_SIZE)));
        }
    }

    /// Whether all of `pages` show `shown`, which goes on through them.
    pub fn shows(&self, pages: PageRange, shown: Shown) -> bool {
        let mut at = pages.start();
        while at < pages.end() {
            let Some((&start, &(end, here))) = self.pieces.range(..=at).next_back() else {
                return false;
            };
            let skip = |shown: Shown, from: u64| shown.skip((at - from) / PAGE_SIZE);
            if at >= end || skip(here, start) != skip(shown, pages.start()) {
                return false;
            }
            at = end;
        }
        true
    }

    /// What shows at the page at `address`.
    pub fn at(&self, address: u64) -> Option<Shown> {
        let (&start, &(end, shown)) = self.pieces.range(..=address).next_back()?;
        (address < end).then(|| shown.skip((address - start) / PAGE_SIZE))
    }

    /// The mappings that the kernel makes of it, at most: neighbours of one kind of memory are one,
    /// while mappings of files that go on from each other are not on every file system.
    pub fn mappings(&self) -> usize {
        let mut count = 0;
        let mut last: Option<(u64, Shown)> = None;
        for (&start, &(end, shown)) in &self.pieces {
            let joins = !matches!(shown, Shown::Image(_)) && last == Some((start, shown));
            count += usize::from(!joins);
            last = Some((end, shown));
        }
        count
    }
}
