//! Where pages go that are taken out of a running machine's memory.

use crate::source::page_source::SourceError;

/// A place that keeps pages for one machine. [`BackingStore::put`], [`BackingStore::confirm`] and [`BackingStore::free`] are
/// called by one thread at a time, [`BackingStore::read`] by any.
pub trait BackingStore: Send + Sync {
    /// Keeps a batch of whole pages, and gives it a number. Done when all copies are there; if it
    /// fails, none is left.
    fn put(&self, pages: &[u8]) -> Result<u64, SourceError>;

    /// Whether all batches that were put since the last call, and not freed, are still there: asked
    /// before the pages leave guest memory.
    fn confirm(&self) -> Result<(), SourceError>;

    /// Reads pages of a batch, from `first` on. What arrives is what was put, or it is an error.
    fn read(&self, batch: u64, first: u64, buffer: &mut [u8]) -> Result<(), SourceError>;

    /// These batches are wanted no more.
    fn free(&self, batches: &[u64]);
}
