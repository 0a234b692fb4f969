//! The part of guest memory whose missing pages are asked for, and which of them were given back or
//! taken out.
//!
//! Guest memory keeps the userfaultfd for as long as it lives. If it were closed earlier, a page that
//! is missing would silently read as zero.

use std::any::Any;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use varve_snapshot::PageRange;

use crate::fault::evicted::Evicted;
use crate::ram::error::RamError;
use crate::ram::guest_ram::GuestRam;
use crate::ram::missing::Missing;
use crate::ram::ranges::RangeSet;
use crate::ram::regions::Regions;
use crate::ram::sys::uffd::{Event, Fault, Uffd, UffdError, Watch};

/// Watched memory.
#[derive(Debug)]
pub(crate) struct Watched {
    pub uffd: Uffd,
    /// Pages for which it does not count any more what their source holds: they were given back and
    /// are zero, or were taken out later on. Whoever puts pages in place holds this for reading from
    /// looking here to having put them, so that a page fetched before it was given back can not come
    /// after.
    pub discarded: RwLock<RangeSet>,
    /// What is watched because it comes from a source.
    pub pages: RwLock<RangeSet>,
    /// Pages that are given back are told by the userfaultfd.
    tells: bool,
    /// What is watched only because pages of it were taken out: what else is missing there is zero.
    pub lazily_registered: RwLock<RangeSet>,
    /// Pages that were taken out.
    pub evicted: Evicted,
}

impl Missing for Watched {
    fn forget(&self, pages: PageRange) {
        self.pages.write().unwrap_or_else(PoisonError::into_inner).remove(pages);
        self.lazily_registered.write().unwrap_or_else(PoisonError::into_inner).remove(pages);
    }

    fn give_back(&self, pages: PageRange) -> RwLockWriteGuard<'_, RangeSet> {
        let discarded = self.empty(pages);
        self.evicted.forget(pages);
        discarded
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Watched {
    /// The tracker that `ram` keeps, if there is one.
    pub fn of(ram: &GuestRam) -> Option<Arc<Watched>> {
        ram.watched().cloned().and_then(|watched| watched.into_any().downcast().ok())
    }

    pub fn open(watch: Watch) -> Result<Watched, UffdError> {
        Ok(Watched::by(Uffd::open(watch)?, false))
    }

    /// What another process will answer for: pages that are given back are its business, too.
    pub fn by_handler() -> Result<Watched, UffdError> {
        Ok(Watched::by(Uffd::for_handler()?, true))
    }

    /// Whether [another process](Watched::by_handler) answers.
    pub fn is_handled(&self) -> bool {
        self.tells
    }

    /// What `uffd` will watch; whether it `tells` of pages that are given back.
    pub fn by(uffd: Uffd, tells: bool) -> Watched {
        let (discarded, pages, lazily_registered) = Default::default();
        Watched { uffd, discarded, pages, lazily_registered, evicted: Evicted::default(), tells }
    }

    /// Notes that the source of `pages` does not count any more. Nothing is put in place until the guard
    /// is dropped, which must be when they are gone.
    pub fn empty(&self, pages: PageRange) -> RwLockWriteGuard<'_, RangeSet> {
        let watched = self.pages.read().unwrap_or_else(PoisonError::into_inner).within(pages);
        let mut discarded = self.discarded.write().unwrap_or_else(PoisonError::into_inner);
        watched.into_iter().for_each(|part| discarded.insert(part));
        discarded
    }

    /// The next fault, if there is one now. That pages are given back, where that is told, is noted
    /// before anything can be put in place again.
    pub fn next(&self, regions: &Regions) -> io::Result<Option<Fault>> {
        // Reading it lets whoever gives pages back go on.
        let mut discarded =
            self.tells.then(|| self.discarded.write().unwrap_or_else(PoisonError::into_inner));
        match self.uffd.next()? {
            Some(Event::Fault(fault)) => return Ok(Some(fault)),
            Some(Event::Removed(start, end)) => {
                if let Some(discarded) = &mut discarded {
                    regions.guest_pages(start, end).into_iter().for_each(|p| discarded.insert(p));
                }
            }
            None => {}
        }
        Ok(None)
    }

    /// Watches `pages` of `ram`.
    pub fn add(&self, ram: &GuestRam, pages: PageRange, watch: Watch) -> Result<(), RamError> {
        self.register(ram, pages, watch)?;
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(pages);
        Ok(())
    }

    /// Watches `pages` of `ram`, which come from no source, for as long as some are taken out.
    pub fn register_lazily(&self, ram: &GuestRam, pages: PageRange) -> Result<(), RamError> {
        self.register(ram, pages, Watch::Missing)?;
        self.lazily_registered.write().unwrap_or_else(PoisonError::into_inner).insert(pages);
        Ok(())
    }

    /// The parts of `pages` that are not watched.
    pub fn not_yet(&self, pages: PageRange) -> Vec<PageRange> {
        let outside = |set: &RwLock<RangeSet>, pages| {
            set.read().unwrap_or_else(PoisonError::into_inner).outside(pages)
        };
        let parts = outside(&self.pages, pages);
        parts.into_iter().flat_map(|part| outside(&self.lazily_registered, part)).collect()
    }

    /// Ends what [`Watched::register_lazily`] began, if no page is out.
    pub fn end_lazy_registration(&self, ram: &GuestRam) -> Result<(), RamError> {
        // Nothing is taken out or put in place meanwhile.
        let _still = self.discarded.write().unwrap_or_else(PoisonError::into_inner);
        if self.evicted.counts() != (0, 0) {
            return Ok(());
        }
        let lazily_registered = std::mem::take(
            &mut *self.lazily_registered.write().unwrap_or_else(PoisonError::into_inner),
        );
        for pages in lazily_registered.ranges() {
            let call = |source: io::Error| RamError::Call { what: "unwatch", range: pages, source };
            let offset = ram.offset(pages)?;
            let ended = self.uffd.unregister(ram.reservation(), offset, pages.len() as usize);
            ended.map_err(call)?;
        }
        Ok(())
    }

    fn register(&self, ram: &GuestRam, pages: PageRange, watch: Watch) -> Result<(), RamError> {
        let call = |source: io::Error| RamError::Call { what: "watch", range: pages, source };
        let offset = ram.offset(pages)?;
        self.uffd.register(ram.reservation(), offset, pages.len() as usize, watch).map_err(call)
    }
}
