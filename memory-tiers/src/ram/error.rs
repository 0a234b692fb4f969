//! What can go wrong with guest memory.

use std::io;

use varve_snapshot::PageRange;

/// An operation on guest memory failed.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// No regions, or two that overlap or are out of order.
    #[error("guest memory region {0:?} is out of order or overlaps another")]
    Regions(PageRange),
    /// A machine without memory.
    #[error("guest memory is empty")]
    NoRegion,
    /// The address space for guest memory could not be reserved.
    #[error("cannot reserve {len:#x} bytes of address space for guest memory")]
    Reserve {
        /// Bytes asked for.
        len: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error(
        "cannot take {len:#x} bytes of 2 MiB pages for guest memory: raise vm.nr_hugepages, or \
         restore with transparent huge pages"
    )]
    HugePages {
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
    #[error("cannot release pages {range:?} to the host")]
    Discard {
        /// The pages.
        range: PageRange,
        /// The system's answer.
        source: io::Error,
    },
    /// Another call on guest memory failed.
    #[error("cannot {what} pages {range:?}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The pages.
        range: PageRange,
        /// The system's answer.
        source: io::Error,
    },
    /// Dirty logs that are not this memory's.
    #[error("{logs} dirty logs were given for {regions} regions of guest memory")]
    Logs {
        /// Logs given.
        logs: usize,
        /// Regions there are.
        regions: usize,
    },
    /// A dirty log that is too short.
    #[error("a dirty log of {words} words does not cover pages {range:?}")]
    Log {
        /// The region.
        range: PageRange,
        /// Length of the log in words.
        words: usize,
    },
    /// Guest memory is watched by one restore or recording at a time.
    #[error("guest memory is already watched by a restore or recording")]
    Watched,
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The page tables cannot be read.
    #[error("cannot read the state of guest memory")]
    PageTables(#[source] io::Error),
}
