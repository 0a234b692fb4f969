//! What a plan knows of an image: its tier, its size and how its pages can be had.

use std::fmt;

/// A kind of memory that holds an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Files of this host, through its page cache.
    Local,
    /// Byte-addressable memory that hosts or machines share.
    Cxl,
    /// The memory of another host.
    Remote,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Local => "local",
            Tier::Cxl => "cxl",
            Tier::Remote => "remote",
        })
    }
}

/// What a plan has to know of an image.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ImageInfo {
    /// Its name in messages and counters.
    pub name: String,
    /// Where it is.
    pub tier: Tier,
    /// Pages in it.
    pub pages: u64,
    /// Whether it can be mapped in place: a file with each page as it is.
    pub mappable: bool,
    /// Page `n` of it stands for page `n` of guest memory (regions one after another), and is zero
    /// where guest memory is.
    pub guest_layout: bool,
    /// Pages that are read and verified together; at least 1. A fault brings in a whole chunk.
    pub chunk_pages: u64,
}
