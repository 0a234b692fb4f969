//! What every store can do.

use std::fs::File;

use varve_memory_tiers::Tier;
use varve_snapshot::Digest;

use crate::device::{Device, DeviceImage};
use crate::error::SharedError;
use crate::folder::{Folder, Kind};
use crate::uri::Uri;

/// An image by what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Content hash of its file.
    pub digest: Digest,
    /// Length of its file.
    pub bytes: u64,
}

/// An image that is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub key: Key,
    /// New users find it; otherwise it waits for the last one to go.
    pub published: bool,
    /// How often its place was used for an image, where the store counts that.
    pub epoch: Option<u64>,
    /// Machines of this host that use it, as far as can be seen.
    pub users: usize,
}

/// What became of an image that is to be freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freed {
    /// Its memory is free.
    Yes,
    /// It is used, by whom this says.
    InUse(String),
}

/// An image in use. Whoever has it, or what is mapped from it, is a user that the store sees, until
/// the kernel ends that with the process.
#[derive(Debug)]
pub enum Attached {
    /// A file, to be mapped privately.
    File(File),
    /// Memory that is only read.
    Device(DeviceImage),
}

/// Memory that keeps images, each once. All but [`Store::attach`] and [`Store::list`] are called by one
/// process at a time, which holds the ledger.
pub trait Store {
    /// Puts an image there, unless it is: whole or not at all. `progress` is told of bytes.
    fn put(&self, key: &Key, from: &File, progress: &mut dyn FnMut(u64))
    -> Result<(), SharedError>;

    /// Opens an image for use; none if it is not there, or not any more.
    fn attach(&self, key: &Key) -> Result<Option<Attached>, SharedError>;

    /// All that is there.
    fn list(&self) -> Result<Vec<Held>, SharedError>;

    /// Keeps new users away from an image; those that it has go on.
    fn retire(&self, key: &Key) -> Result<(), SharedError>;

    /// Frees what was retired under this key, if nobody uses it.
    fn free(&self, key: &Key) -> Result<Freed, SharedError>;

    /// Removes what processes that were killed have left; how much that was.
    fn clean(&self) -> Result<usize, SharedError>;
}

/// The store that a URI names.
pub fn open(uri: &Uri) -> Result<Box<dyn Store>, SharedError> {
    Ok(match uri {
        Uri::File(dir) => Box::new(Folder::new(Kind::File, dir)),
        Uri::Numa { node, dir } => Box::new(Folder::new(Kind::Numa(*node), dir)),
        Uri::Dax(dir) => Box::new(Folder::new(Kind::Dax, dir)),
        Uri::Device { path, host, state } => Box::new(Device::open(path, *host, state)?),
    })
}

impl Uri {
    /// The kind of memory that it is, as a plan counts.
    pub fn tier(&self) -> Tier {
        if matches!(self, Uri::File(_)) { Tier::Local } else { Tier::Cxl }
    }

    /// Whether images there can be mapped privately in place.
    pub fn is_mappable(&self) -> bool {
        !matches!(self, Uri::Device { .. })
    }
}
