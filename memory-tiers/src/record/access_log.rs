//! What a recording knows of each page; no memory is touched here.

use std::collections::HashMap;

use varve_snapshot::{Access, FormatError, Mechanism, PAGE_SIZE, PageAccess, Trace};

/// A page's bytes.
type Content = Box<[u8; PAGE_SIZE as usize]>;

/// Where a page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    /// Not in place.
    #[default]
    Missing,
    /// In place as it was restored.
    Clean,
    /// In place, and not what was stored.
    Written,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    page: Page,
    access: Access,
    /// The first event was a write: that it was read as well is not known until it turns out that
    /// nothing was written.
    write_first: bool,
    order: u32,
    invocation: u32,
    runs: u32,
    runs_written: u32,
    /// The run that counted last.
    last_run: u32,
    last_written: u32,
}

/// All pages of a recording.
#[derive(Debug)]
pub(crate) struct Record {
    pages: Vec<Seen>,
    kept: HashMap<usize, Content>,
    labels: Vec<String>,
    accessed: u32,
}

impl Record {
    pub fn new(pages: usize) -> Record {
        let labels = vec!["resume".to_owned()];
        Record { pages: vec![Seen::default(); pages], kept: HashMap::new(), labels, accessed: 0 }
    }

    /// A new invocation; tells whether it is a run of its own, and not the first's.
    pub fn begin(&mut self, label: &str) -> bool {
        self.labels.push(label.to_owned());
        self.labels.len() > 2
    }

    /// Number of the run that is going on, from 1.
    fn run(&self) -> u32 {
        (self.labels.len() as u32).saturating_sub(1).max(1)
    }

    /// A page was missing when it was accessed, and is now in place as `page` says.
    pub fn touched(&mut self, index: usize, page: Page, write: bool, monitor: bool) {
        let (run, invocation, order) = (self.run(), self.labels.len() as u32 - 1, self.accessed);
        let Some(seen) = self.pages.get_mut(index) else { return };
        if seen.runs == 0 {
            (seen.order, seen.invocation) = (order, invocation);
            self.accessed += 1;
        }
        if seen.last_run != run {
            seen.last_run = run;
            seen.runs += 1;
        }
        seen.page = page;
        seen.write_first = write;
        if !write {
            seen.access = seen.access.with(Access::READ);
        }
        if monitor {
            seen.access = seen.access.with(Access::MONITOR);
        }
    }

    /// A page in place was written.
    pub fn written(&mut self, index: usize, monitor: bool) {
        let run = self.run();
        let Some(seen) = self.pages.get_mut(index) else { return };
        // It was made missing between the access and this; its write will be seen again.
        if seen.page == Page::Missing {
            return;
        }
        seen.page = Page::Written;
        seen.access = seen.access.with(Access::WRITTEN);
        if monitor {
            seen.access = seen.access.with(Access::MONITOR);
        }
        if seen.last_written != run {
            seen.last_written = run;
            seen.runs_written += 1;
        }
    }

    pub fn state(&self, index: usize) -> Page {
        self.pages.get(index).map_or(Page::Missing, |p| p.page)
    }

    /// The page is not in place any more.
    pub fn missing(&mut self, index: usize) {
        if let Some(seen) = self.pages.get_mut(index) {
            if seen.page == Page::Clean && seen.write_first {
                seen.access = seen.access.with(Access::READ);
            }
            seen.page = Page::Missing;
        }
    }

    /// Keeps what a page held.
    pub fn keep(&mut self, index: usize, content: Content) {
        self.kept.insert(index, content);
    }

    /// What a page held when it was made missing, if that is not what was stored. From now on only
    /// guest memory holds it.
    pub fn take_kept(&mut self, index: usize) -> Option<Content> {
        self.kept.remove(&index)
    }

    /// Pages accessed, and among them written.
    pub fn seen(&self) -> (u64, u64) {
        let written = self.pages.iter().filter(|p| p.runs_written > 0).count();
        (u64::from(self.accessed), written as u64)
    }

    /// The trace; `frames` are the pages' frame numbers, in order.
    pub fn trace(&self, frames: impl Iterator<Item = u64>) -> Result<Trace, FormatError> {
        let pages = frames.zip(&self.pages).filter(|(_, p)| p.runs > 0).map(|(gfn, p)| {
            let read = p.write_first && p.page == Page::Clean || p.runs_written == 0;
            PageAccess {
                gfn,
                order: p.order,
                access: if read { p.access.with(Access::READ) } else { p.access },
                invocation: p.invocation,
                runs: p.runs,
                runs_written: p.runs_written,
            }
        });
        Trace::new(Mechanism::UffdWp, self.run(), self.labels.clone(), pages.collect())
    }
}
