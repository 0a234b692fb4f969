//! Where in the emulated host's physical memory the DAX device may lie.
//!
//! Its range is cut out of plain memory by the kernel parameter `memmap=SIZE!START`, so it must be
//! memory that firmware and boot loader left alone. All quantities are MiB.

/// q35 puts this much below 4 GiB when there is less than [`LOW_IF_LESS`], and [`LOW_ELSE`] else.
const LOW_IF_LESS: u64 = 0xb00;
/// Low memory of a bigger machine.
const LOW_ELSE: u64 = 0x800;
/// Where memory goes on above the devices' window.
const HIGH: u64 = 4096;
/// Firmware tables and the initramfs are at the very top of low memory.
const TOP: u64 = 64;
/// The kernel handles persistent memory by sections of this size.
const ALIGN: u64 = 128;
/// Below lie the kernel and all that it needs first.
const BOTTOM: u64 = 512;

/// Where devices of `sizes` can start in a machine whose memory is `total`, of which the first `node0` is
/// the node with CPUs: from the top down, and apart, since the kernel takes ranges that meet for one
/// device. `None` when there is no room for them.
pub fn starts(node0: u64, total: u64, sizes: &[u64]) -> Option<Vec<u64>> {
    let low = if total < LOW_IF_LESS { total } else { LOW_ELSE };
    // Ranges of node 0, as start and end.
    let below = (BOTTOM, node0.min(low).min(low.checked_sub(TOP)?));
    let above = (HIGH, HIGH + node0.saturating_sub(low));
    [above, below].into_iter().find_map(|(start, mut end)| {
        let mut starts = Vec::new();
        for size in sizes {
            let at = end.checked_sub(*size)? / ALIGN * ALIGN;
            if at < start {
                return None;
            }
            starts.push(at);
            end = at.checked_sub(ALIGN)?;
        }
        Some(starts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dax_start(node0: u64, total: u64, dax: u64) -> Option<u64> {
        Some(starts(node0, total, &[dax])?[0])
    }

    #[test]
    fn a_small_machine_has_it_below_the_firmware_tables() {
        assert_eq!(dax_start(2560, 2560, 512), Some(1920));
        assert_eq!(dax_start(2560, 2560, 512).map(|at| at % 128), Some(0));
    }

    #[test]
    fn a_big_machine_has_it_above_the_window() {
        assert_eq!(dax_start(8192, 8192, 1024), Some(4096 + 6144 - 1024));
    }

    #[test]
    fn it_stays_within_the_node_that_has_cpus() {
        let at = dax_start(2048, 6144, 512).unwrap();
        assert!(at + 512 <= 2048 - 64, "{at}");
        let at = dax_start(1024, 2048, 256).unwrap();
        assert!(at + 256 <= 1024, "{at}");
    }

    #[test]
    fn no_room_is_said() {
        assert_eq!(dax_start(1024, 1024, 1024), None);
        assert_eq!(dax_start(32, 32, 1), None);
    }
}
