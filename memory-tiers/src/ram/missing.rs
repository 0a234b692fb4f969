//! Pages of guest memory that are missing on purpose, as guest memory sees them.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, RwLockWriteGuard};

use varve_snapshot::PageRange;

use crate::ram::ranges::RangeSet;

/// Tracks the pages that are brought in on a fault. Guest memory tells it when pages change in another
/// way, so that no stale content is brought in later.
pub(crate) trait Missing: Any + Debug + Send + Sync {
    /// A mapping was laid over `pages`, which ended the tracking there.
    fn forget(&self, pages: PageRange);

    /// Notes that `pages` are zero from now on. No page is brought in until the guard is dropped, which
    /// must be after the pages are gone.
    fn give_back(&self, pages: PageRange) -> RwLockWriteGuard<'_, RangeSet>;

    /// For a downcast to the tracker itself.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}
