//! What can go wrong with guest memory.

use std::io;

use varve_snapshot::PageRange;

/// An operation on guest memory failed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// No regions, or two that overlap or are out of order.
    #[error("guest memory regions must be sorted and apart: {0:?} is not")]
    Regions(PageRange),
    /// A machine without memory.
    #[error("guest memory has no region")]
    NoRegion,
    /// The address space for guest memory could not be reserved.
    #[error("cannot reserve {len:#x} bytes of address space for guest memory")]
    Reserve {
        /// Bytes asked for.
        len: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The view for devices could not be made.
    #[error("guest memory view: {0}")]
    View(String),
    /// A range that is not guest memory.
    #[error("pages {0:?} are not guest memory")]
    NotMemory(PageRange),
    /// The host did not take pages back.
    #[error("cannot give back pages {range:?}")]
    Discard {
        /// The pages.
        range: PageRange,
        /// The system's answer.
        source: io::Error,
    },
}
