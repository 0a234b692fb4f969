//! The guest's memory statistics (virtio 1.2, 5.5.6.3).

use serde::Serialize;

use super::super::buffers::{ChainError, Run};

/// Number of tags that are known.
const TAGS: usize = 16;
/// Bytes of an entry: a tag of 16 and a value of 64 bits, packed.
const ENTRY: usize = 10;
/// A driver sends each tag once; entries past this many are not looked at.
const MAX_ENTRIES: usize = 64;

/// Values by tag; `None` for what the guest did not tell.
pub(super) type Values = [Option<u64>; TAGS];

/// Reads the entries that the driver sent; unknown tags are left out.
pub(super) fn parse(mut sent: Run) -> Result<Values, ChainError> {
    let mut values = Values::default();
    for _ in 0..MAX_ENTRIES {
        if sent.len() < ENTRY {
            break;
        }
        let mut entry = [0; ENTRY];
        sent.read_exact(&mut entry)?;
        let [t0, t1, v @ ..] = entry;
        if let Some(slot) = values.get_mut(usize::from(u16::from_le_bytes([t0, t1]))) {
            *slot = Some(u64::from_le_bytes(v));
        }
    }
    Ok(values)
}

/// A balloon's size and the guest's latest statistics, under the names of Firecracker's API.
///
/// Memory amounts of the guest are in bytes, faults, allocations, kills, scans and reclaims are
/// counts since the guest booted. A value that the guest's kernel does not report is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named and explained by the specification's table of tags")]
pub struct BalloonStats {
    /// Pages of 4 KiB that the balloon shall hold.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it holds.
    pub actual_pages: u32,
    /// `target_pages` in MiB.
    pub target_mib: u32,
    /// `actual_pages` in MiB, rounded down.
    pub actual_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

impl BalloonStats {
    /// From sizes in pages and the values by tag (1.2 defines the first ten, Linux the rest).
    pub(super) fn new(target_pages: u32, actual_pages: u32, values: Values) -> BalloonStats {
        let [
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free_memory,
            total_memory,
            available_memory,
            disk_caches,
            hugetlb_allocations,
            hugetlb_failures,
            oom_kill,
            alloc_stall,
            async_scan,
            direct_scan,
            async_reclaim,
            direct_reclaim,
        ] = values;
        BalloonStats {
            target_pages,
            actual_pages,
            target_mib: target_pages / super::PAGES_PER_MIB,
            actual_mib: actual_pages / super::PAGES_PER_MIB,
            swap_in,
            swap_out,
            major_faults,
            minor_faults,
            free_memory,
            total_memory,
            available_memory,
            disk_caches,
            hugetlb_allocations,
            hugetlb_failures,
            oom_kill,
            alloc_stall,
            async_scan,
            direct_scan,
            async_reclaim,
            direct_reclaim,
        }
    }
}
