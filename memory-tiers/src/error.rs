//! What can go wrong where pages come from a source: with a restore, a recording, an offload, a pager.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use varve_snapshot::{PageRange, SnapshotError};

use crate::plan::image::Tier;
use crate::plan::ops::PlanError;
use crate::ram::error::RamError;
use crate::ram::sys::uffd::UffdError;

/// Restoring guest memory failed.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The memory itself.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// No userfaultfd.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// A page cannot be had.
    #[error("cannot read guest pages {pages:?} from {tier} image {image}")]
    Page {
        /// The guest's pages.
        pages: PageRange,
        /// The image that should have them.
        image: String,
        /// Where that is.
        tier: Tier,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A page that was offloaded cannot be had again.
    #[error("cannot read back offloaded guest pages {pages:?}")]
    Evicted {
        /// The guest's pages.
        pages: PageRange,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An image cannot be used from where it is.
    #[error("cannot use {tier} image {image}")]
    Image {
        /// The image.
        image: String,
        /// Where it is.
        tier: Tier,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A page takes too long.
    #[error(
        "guest pages {pages:?} did not come from {tier} image {image} within {} ms",
        deadline.as_millis()
    )]
    Deadline {
        /// The guest's pages.
        pages: PageRange,
        /// The image that should have them.
        image: String,
        /// Where that is.
        tier: Tier,
        /// Time waited.
        deadline: Duration,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The snapshot cannot be restored that way.
    #[error(transparent)]
    NoPlan(#[from] PlanError),
    /// A plan made for other images or other memory.
    #[error("restore plan does not match: {0}")]
    Plan(String),
    /// Page faults can no longer be answered.
    #[error("cannot answer a page fault at {address:#x}")]
    Fault {
        /// Host address.
        address: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The process that is to answer page faults is not to be reached.
    #[error("cannot hand guest memory to the page fault handler at {socket:?}")]
    Handler {
        /// Where it should listen.
        socket: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The process that answers page faults has ended.
    #[error("page fault handler at {0:?} has ended; missing pages have no source")]
    HandlerEnded(PathBuf),
    /// The process that answers page faults cannot have one.
    #[error("page fault handler at {socket:?} failed: {said}")]
    HandlerFailed {
        /// Where it listens.
        socket: PathBuf,
        /// Its words.
        said: String,
    },
    /// The kernel does not say which pages of this file are in memory to this user.
    #[error(
        "recording by mincore: the kernel does not tell user {1} which pages of {0:?} are in memory, since \
         the file is another user's and not writable; give the file to user {1}, or record by faults"
    )]
    Foreign(PathBuf, u32),
    /// The page tables cannot be read, as where there is no /proc.
    #[error(
        "recording by pagemap needs /proc/self/pagemap; record by faults, or mount /proc where this \
         process runs"
    )]
    NoPagemap(#[source] io::Error),
}
