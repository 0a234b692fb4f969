//! Intel MultiProcessor table (MP specification 1.4), for kernels without ACPI.

use varve_memory_tiers::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the floating pointer and the configuration table at the start of the reserved area.
pub fn write(mem: &GuestMemory, vcpus: u8) -> Result<(), GuestMemoryError> {
    let pointer = GuestAddress(layout::SYSTEM);
    let table = GuestAddress(layout::SYSTEM + 16);
    mem.write_slice(&floating_pointer(table.0 as u32), pointer)?;
    mem.write_slice(&configuration(vcpus), table)
}

/// Makes the bytes from `from` on add up to zero, through the byte at `checksum`.
fn seal(bytes: &mut [u8], checksum: usize) {
    bytes[checksum] = 0;
    bytes[checksum] = bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
}

/// MP specification 4.1.
fn floating_pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    seal(&mut bytes, 10);
    bytes
}

/// MP specification 4.2 and 4.3.
fn configuration(vcpus: u8) -> Vec<u8> {
    let io_apic_id = vcpus;
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { 0b11 } else { 0b01 }; // enabled, and the first one boots
        entries.extend([ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        entries.extend(0x600u32.to_le_bytes()); // signature: any P6
        entries.extend((1u32 << 9 | 1).to_le_bytes()); // features: APIC, FPU
        entries.extend([0; 8]);
    }
    let processors = u16::from(vcpus);
    entries.extend([ENTRY_BUS, 0]);
    entries.extend(*b"ISA   ");
    entries.extend([ENTRY_IO_APIC, io_apic_id, APIC_VERSION, 1]);
    entries.extend(layout::IO_APIC.to_le_bytes());
    for irq in 0..=layout::LAST_GSI as u8 {
        entries.extend([ENTRY_IO_INTERRUPT, 0, 0, 0, 0, irq, io_apic_id, irq]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0, 0, 0, 0]);
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);
    let count = processors + 2 + (layout::LAST_GSI as u16 + 1) + 2;

    let mut bytes = b"PCMP".to_vec();
    bytes.extend((44 + entries.len() as u16).to_le_bytes());
    bytes.extend([SPEC_REVISION, 0]);
    bytes.extend(*b"VARVE   ");
    bytes.extend(*b"MICROVM     ");
    bytes.extend([0; 6]); // no OEM table
    bytes.extend(count.to_le_bytes());
    bytes.extend(layout::LOCAL_APIC.to_le_bytes());
    bytes.extend([0; 4]); // no extended entries
    bytes.extend(entries);
    seal(&mut bytes, 7);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_counts_and_sums() {
        for vcpus in [1u8, 2, 32] {
            let table = configuration(vcpus);
            let len = u16::from_le_bytes([table[4], table[5]]);
            assert_eq!(usize::from(len), table.len());
            assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
            let count = u16::from_le_bytes([table[34], table[35]]);
            let (mut at, mut seen) = (44, 0);
            while at < table.len() {
                at += if table[at] == ENTRY_PROCESSOR { 20 } else { 8 };
                seen += 1;
            }
            assert_eq!((at, seen), (table.len(), count));
            assert!(layout::SYSTEM + 16 + u64::from(len) <= layout::ACPI_TABLES);
        }
        let pointer = floating_pointer(0x9fc10);
        assert_eq!(pointer.len(), 16);
        assert_eq!(pointer.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
    }
}
