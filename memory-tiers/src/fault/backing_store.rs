//! Where pages go that are taken out of a running machine's memory.

use crate::source::page_source::SourceError;

/// A place that keeps pages for one machine. [`Depot::put`], [`Depot::confirm`] and [`Depot::free`] are
/// called by one thread at a time, [`Depot::read`] by any.
pub trait Depot: Send + Sync {
    /// Keeps a parcel of whole pages, and gives it a number. Done when all copies are there; if it
    /// fails, none is left.
    fn put(&self, pages: &[u8]) -> Result<u64, SourceError>;

    /// Whether all parcels that were put since the last call, and not freed, are still there: asked
    /// before the pages leave guest memory.
    fn confirm(&self) -> Result<(), SourceError>;

    /// Reads pages of a parcel, from `first` on. What arrives is what was put, or it is an error.
    fn read(&self, parcel: u64, first: u64, buffer: &mut [u8]) -> Result<(), SourceError>;

    /// These parcels are wanted no more.
    fn free(&self, parcels: &[u64]);
}
