//! The system's pools of huge pages.

use std::path::Path;

use serde::Serialize;

use super::{names, number};

/// A pool of pages of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePool {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages in it.
    pub pages: u64,
    /// Those that nobody uses.
    pub free: u64,
}

pub(super) fn pools(dir: &Path) -> Vec<HugePool> {
    let pool = |(name, path): (String, std::path::PathBuf)| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages = number(&path.join("nr_hugepages"))?;
        let free = number(&path.join("free_hugepages"))?;
        Some(HugePool { page_bytes: kib << 10, pages, free })
    };
    names(dir).into_iter().filter_map(pool).collect()
}
