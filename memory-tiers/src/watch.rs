//! The part of guest memory whose missing pages are asked for, and which of them were given back.
//!
//! Guest memory keeps the userfaultfd for as long as it lives. If it were closed earlier, a page that
//! is missing would silently read as zero.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use varve_snapshot::PageRange;

use crate::ranges::RangeSet;
use crate::sys::uffd::{Uffd, Watch};

/// Watched memory.
#[derive(Debug)]
pub(crate) struct Watched {
    pub uffd: Uffd,
    /// Pages that were given back and so are zero, whatever their source holds. Whoever puts pages
    /// in place holds this for reading from looking here to having put them, so that a page fetched
    /// before it was given back can not come after.
    pub emptied: RwLock<RangeSet>,
    /// What is watched.
    pub pages: RwLock<RangeSet>,
}

impl Watched {
    pub fn open(watch: Watch) -> Result<Watched, crate::UffdError> {
        Ok(Watched::by(Uffd::open(watch)?))
    }

    /// What `uffd` will watch.
    pub fn by(uffd: Uffd) -> Watched {
        Watched { uffd, emptied: RwLock::default(), pages: RwLock::default() }
    }

    /// Notes that the watched ones of `pages` are zero from now on. Nothing is put in place until the
    /// guard is dropped, which must be when they are gone.
    pub fn empty(&self, pages: PageRange) -> RwLockWriteGuard<'_, RangeSet> {
        let watched = self.pages.read().unwrap_or_else(PoisonError::into_inner).within(pages);
        let mut emptied = self.emptied.write().unwrap_or_else(PoisonError::into_inner);
        watched.into_iter().for_each(|part| emptied.insert(part));
        emptied
    }

    /// Something else was laid over `pages`, which ended the watch there.
    pub fn forget(&self, pages: PageRange) {
        self.pages.write().unwrap_or_else(PoisonError::into_inner).remove(pages);
    }

    /// Watches `pages` of `ram`.
    pub fn add(
        &self,
        ram: &crate::GuestRam,
        pages: PageRange,
        watch: Watch,
    ) -> Result<(), crate::RamError> {
        let call =
            |source: io::Error| crate::RamError::Call { what: "watch", range: pages, source };
        let offset = ram.offset(pages)?;
        self.uffd.register(ram.reservation(), offset, pages.len() as usize, watch).map_err(call)?;
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(pages);
        Ok(())
    }
}
