//! vCPU registers at the first instruction: segments, paging, FPU, and the local APIC's pins.

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use varve_memory_tiers::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::kernel::Entry;
use super::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: bit 1 is always set, interrupts are off.
const RFLAGS: u64 = 1 << 1;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_2M: u64 = 1 << 7;

/// A descriptor's bits that differ: type and flags, in the layout of a GDT entry's upper word.
struct Descriptor {
    access: u8,
    /// Granularity, default size, long mode (high nibble of byte 6).
    flags: u8,
    limit: u32,
}

const CODE64: Descriptor = Descriptor { access: 0x9b, flags: 0b1010, limit: 0xf_ffff };
const CODE32: Descriptor = Descriptor { access: 0x9b, flags: 0b1100, limit: 0xf_ffff };
const DATA: Descriptor = Descriptor { access: 0x93, flags: 0b1100, limit: 0xf_ffff };
const TSS: Descriptor = Descriptor { access: 0x8b, flags: 0b0000, limit: 0x67 };

impl Descriptor {
    /// As a GDT entry with base 0 (Intel SDM 3A, 3.4.5).
    fn entry(&self) -> u64 {
        let limit = u64::from(self.limit);
        limit & 0xffff
            | u64::from(self.access) << 40
            | (limit >> 16) << 48
            | u64::from(self.flags) << 52
    }

    /// As the segment register `index` of the GDT.
    fn segment(&self, index: u16) -> kvm_segment {
        let bit = |byte: u8, n: u8| byte >> n & 1;
        let granular = bit(self.flags, 3);
        kvm_segment {
            base: 0,
            limit: if granular == 1 { self.limit << 12 | 0xfff } else { self.limit },
            selector: index * 8,
            type_: self.access & 0xf,
            s: bit(self.access, 4),
            dpl: self.access >> 5 & 3,
            present: bit(self.access, 7),
            avl: bit(self.flags, 0),
            l: bit(self.flags, 1),
            db: bit(self.flags, 2),
            g: granular,
            unusable: 0,
            padding: 0,
        }
    }
}

/// Writes descriptor tables and page tables for `entry`.
pub fn write_tables(mem: &GuestMemory, entry: Entry) -> Result<(), GuestMemoryError> {
    let code = code(entry);
    for (index, value) in [0, code.entry(), DATA.entry(), TSS.entry()].into_iter().enumerate() {
        mem.write_obj(value, GuestAddress(layout::GDT + 8 * index as u64))?;
    }
    mem.write_obj(0u64, GuestAddress(layout::IDT))?;
    if let Entry::Linux64(_) = entry {
        // The first gigabyte, mapped one to one by 2 MiB pages.
        mem.write_obj(layout::PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
        mem.write_obj(layout::PD | PAGE_PRESENT_WRITABLE, GuestAddress(layout::PDPT))?;
        for i in 0..512u64 {
            let page = i << 21 | PAGE_PRESENT_WRITABLE | PAGE_2M;
            mem.write_obj(page, GuestAddress(layout::PD + 8 * i))?;
        }
    }
    Ok(())
}

fn code(entry: Entry) -> Descriptor {
    match entry {
        Entry::Linux64(_) => CODE64,
        Entry::Pvh(_) => CODE32,
    }
}

/// Changes `sregs`, as KVM made them, into what `entry` expects.
pub fn set_system(sregs: &mut kvm_sregs, entry: Entry) {
    let data = DATA.segment(2);
    sregs.cs = code(entry).segment(1);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = TSS.segment(3);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = layout::IDT;
    sregs.idt.limit = 8 - 1;
    match entry {
        Entry::Linux64(_) => {
            sregs.cr0 |= CR0_PE | CR0_PG;
            sregs.cr3 = layout::PML4;
            sregs.cr4 |= CR4_PAE;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
        Entry::Pvh(_) => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
        }
    }
}

/// General registers of the boot vCPU.
pub fn general(entry: Entry) -> kvm_regs {
    let stack = layout::BOOT_STACK;
    match entry {
        Entry::Linux64(rip) => kvm_regs {
            rflags: RFLAGS,
            rip,
            rsp: stack,
            rbp: stack,
            rsi: layout::ZERO_PAGE,
            ..Default::default()
        },
        Entry::Pvh(rip) => {
            kvm_regs { rflags: RFLAGS, rip, rbx: layout::PVH_INFO, ..Default::default() }
        }
    }
}

/// FPU after reset, with all exceptions masked (Intel SDM 1, 8.1.5 and 10.2.3).
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_MASK: u32 = 0b111 << 8;

/// Connects LINT0 to the legacy interrupt controller and LINT1 to NMI, as firmware does.
pub fn set_local_interrupts(lapic: &mut kvm_lapic_state) {
    for (offset, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        let register = &mut lapic.regs[offset..offset + 4];
        let mut bytes = [0u8; 4];
        for (to, from) in bytes.iter_mut().zip(register.iter()) {
            *to = from.cast_unsigned();
        }
        let value = u32::from_le_bytes(bytes) & !DELIVERY_MASK | mode;
        for (to, from) in register.iter_mut().zip(value.to_le_bytes()) {
            *to = from.cast_signed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_known_encodings() {
        assert_eq!(CODE64.entry(), 0x00af_9b00_0000_ffff);
        assert_eq!(CODE32.entry(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.entry(), 0x00cf_9300_0000_ffff);
        assert_eq!(TSS.entry(), 0x0000_8b00_0000_0067);
        let cs = CODE64.segment(1);
        assert_eq!((cs.selector, cs.l, cs.db, cs.g, cs.limit), (8, 1, 0, 1, 0xffff_ffff));
        assert_eq!((cs.type_, cs.s, cs.present, cs.dpl), (0xb, 1, 1, 0));
    }

    #[test]
    fn local_interrupt_pins() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT0 + 2] = 1; // masked, stays so
        set_local_interrupts(&mut lapic);
        assert_eq!(lapic.regs[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 1, 0]);
        assert_eq!(lapic.regs[LVT_LINT1..LVT_LINT1 + 4], [0, 4, 0, 0]);
    }
}
