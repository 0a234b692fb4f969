//! The words for pages of guest memory that plans and mappings share.

/// Bytes of a huge page: one entry of the second-lowest page table level on x86-64.
pub const HUGE_PAGE: usize = 2 << 20;

/// What guest memory is made of where nothing is laid over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePages {
    /// 4 KiB pages.
    #[default]
    Off,
    /// 2 MiB pages wherever the kernel can find them.
    Transparent,
    /// 2 MiB pages of the system's pool, taken out of it at once.
    #[serde(rename = "2M")]
    Pool,
}

/// The way that pages are made present before their first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefaultMode {
    /// Mapped for reading; a file's page stays shared.
    Read,
    /// Made private and writable.
    Write,
    /// Only the file behind is read into the page cache.
    Cache,
}
