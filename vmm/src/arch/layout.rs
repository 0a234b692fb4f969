//! Where everything is in the guest's physical address space and on its port and interrupt buses.
//!
//! ```text
//! 0x0000_0500  GDT                         0x0009_fc00  reserved: MP table, ACPI tables
//! 0x0000_6000  PVH start info, module,     0x000e_0000  RSDP (searched for from here)
//!              memory map                  0x000e_1000  VM generation id
//! 0x0000_7000  boot parameters             0x0010_0000  kernel and the rest of low memory
//!              ("zero page")               0xc000_0000  device window: boot timer, virtio-mmio
//! 0x0000_8ff0  boot stack                  0xfec0_0000  I/O APIC
//! 0x0000_9000  page tables (3 pages)       0xfee0_0000  local APICs
//! 0x0002_0000  command line                0xfffb_c000  KVM's identity map page and TSS
//!                                          0x1_0000_0000  high memory
//! ```

use varve_snapshot::{PAGE_SIZE, PageRange};

/// GDT for the first instruction.
pub const GDT: u64 = 0x500;
/// IDT for the first instruction (one null entry).
pub const IDT: u64 = 0x520;
/// PVH start info structure.
pub const PVH_INFO: u64 = 0x6000;
/// PVH module list (the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMMAP: u64 = 0x6080;
/// Linux boot parameters.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack at the 64-bit entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page map level 4; the two lower levels follow.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Page directory: 512 pages of 2 MiB.
pub const PD: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its terminating zero (x86 `COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory: from here to 1 MiB is reserved.
pub const SYSTEM: u64 = 0x9_fc00;
/// ACPI tables, but for the RSDP.
pub const ACPI_TABLES: u64 = 0xa_0000;
/// ACPI root pointer (in the area that a kernel without boot parameters searches).
pub const RSDP: u64 = 0xe_0000;
/// VM generation id, a page of its own.
pub const VMGENID: u64 = 0xe_1000;
/// Where a PC's processor begins after a reset, as seen from real mode (F000:FFF0).
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Kernels are loaded here and above.
pub const HIGH_RAM: u64 = 0x10_0000;

/// First byte that is not low memory: the 32-bit hole for devices.
pub const MMIO_GAP: u64 = 0xc000_0000;
/// First byte of memory above the hole.
pub const AFTER_GAP: u64 = 1 << 32;
/// Boot timer register (Firecracker's place for it).
pub const BOOT_TIMER: u64 = MMIO_GAP;
/// First virtio-mmio window; each is a page.
pub const VIRTIO_MMIO: u64 = MMIO_GAP + 0x1000;
/// I/O APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// KVM's identity map page (Intel hosts without unrestricted guest mode).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// KVM's task state segment, three pages.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First and last interrupt for devices: I/O APIC inputs that no legacy device has.
pub const FIRST_GSI: u32 = 5;
/// See [`FIRST_GSI`].
pub const LAST_GSI: u32 = 23;
/// The generation id's interrupt is the last one, so that adding a device moves no other.
pub const VMGENID_GSI: u32 = LAST_GSI;

/// Smallest guest memory: a kernel and its initrd hardly fit in less.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Largest guest memory.
pub const MAX_MEMORY: u64 = 64 << 30;

/// The runs of guest memory for `size` bytes (whole pages): one below the hole, one above.
pub fn memory_ranges(size: u64) -> Vec<PageRange> {
    debug_assert!(size.is_multiple_of(PAGE_SIZE));
    let low = size.min(MMIO_GAP);
    [(0, low), (AFTER_GAP, size - low)]
        .into_iter()
        .filter_map(|(start, len)| PageRange::new(start, len).ok())
        .collect()
}

/// Kind of a memory map entry: usable.
pub const E820_RAM: u32 = 1;
/// Kind of a memory map entry: not for the kernel's allocator.
pub const E820_RESERVED: u32 = 2;

/// The memory map that the guest is told: address, length, kind.
pub fn memory_map(ranges: &[PageRange]) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, SYSTEM, E820_RAM), (SYSTEM, HIGH_RAM - SYSTEM, E820_RESERVED)];
    for range in ranges {
        let start = range.start().max(HIGH_RAM);
        map.push((start, range.end() - start, E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let flat =
            |size| memory_ranges(size).iter().map(|r| (r.start(), r.len())).collect::<Vec<_>>();
        assert_eq!(flat(128 << 20), [(0, 128 << 20)]);
        assert_eq!(flat(MMIO_GAP), [(0, MMIO_GAP)]);
        assert_eq!(flat(4 << 30), [(0, 3 << 30), (1 << 32, 1 << 30)]);
    }

    proptest! {
        #[test]
        fn the_map_covers_memory_once(pages in MIN_MEMORY / PAGE_SIZE..=MAX_MEMORY / PAGE_SIZE) {
            let ranges = memory_ranges(pages * PAGE_SIZE);
            prop_assert_eq!(ranges.iter().map(|r| r.pages()).sum::<u64>(), pages);
            let map = memory_map(&ranges);
            for pair in map.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            prop_assert_eq!(map.iter().map(|e| e.1).sum::<u64>(), pages * PAGE_SIZE);
            prop_assert!(map.iter().all(|e| e.0 + e.1 <= MMIO_GAP || e.0 >= AFTER_GAP));
        }
    }
}
