//! What the kernel is told at its entry: Linux boot parameters or PVH start info.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use varve_memory_tiers::GuestMemory;
use vm_memory::GuestAddress;

use super::kernel::{Entry, LoadedInitrd, LoadedKernel};
use super::layout;

/// Why the parameters cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("boot parameters: {0}")]
pub struct ProtocolError(String);

/// What goes into the parameters.
pub struct BootInfo<'a> {
    /// The memory map ([`layout::memory_map`]).
    pub memory_map: &'a [(u64, u64, u32)],
    /// The initrd, if there is one.
    pub initrd: Option<LoadedInitrd>,
    /// Length of the command line without its terminating zero.
    pub cmdline_len: usize,
    /// ACPI root pointer.
    pub rsdp: u64,
}

/// Writes what `kernel` expects.
pub fn write(
    mem: &GuestMemory,
    kernel: &LoadedKernel,
    info: &BootInfo,
) -> Result<(), ProtocolError> {
    match kernel.entry {
        Entry::Linux64(_) => write_linux(mem, kernel, info),
        Entry::Pvh(_) => write_pvh(mem, info),
    }
}

/// `type_of_loader`: one without an assigned number (Linux x86 boot protocol).
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the protected-mode code is at 1 MiB and above.
const LOADED_HIGH: u8 = 1;

fn write_linux(
    mem: &GuestMemory,
    kernel: &LoadedKernel,
    info: &BootInfo,
) -> Result<(), ProtocolError> {
    let mut params = boot_params::default();
    match &kernel.setup_header {
        Some(header) => params.hdr = *header,
        None => {
            // An ELF has no header of its own; these are what the kernel checks.
            params.hdr.boot_flag = 0xaa55;
            params.hdr.header = u32::from_le_bytes(*b"HdrS");
            params.hdr.kernel_alignment = 0x100_0000;
            params.hdr.loadflags = LOADED_HIGH;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = info.cmdline_len as u32;
    if let Some((address, len)) = info.initrd {
        // Both are below the 32-bit hole.
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = len as u32;
    }
    params.acpi_rsdp_addr = info.rsdp;
    let mut table = params.e820_table;
    for (slot, &(addr, size, kind)) in table.iter_mut().zip(info.memory_map) {
        slot.addr = addr;
        slot.size = size;
        slot.r#type = kind;
    }
    params.e820_table = table;
    params.e820_entries = info.memory_map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, mem).map_err(|e| ProtocolError(e.to_string()))
}

/// Magic of the start info structure, version 1 of which has a memory map.
const PVH_MAGIC: u32 = 0x336e_c578;

fn write_pvh(mem: &GuestMemory, info: &BootInfo) -> Result<(), ProtocolError> {
    let mut start = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: info.memory_map.len() as u32,
        rsdp_paddr: info.rsdp,
        ..Default::default()
    };
    let module =
        info.initrd.map(|(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() });
    if module.is_some() {
        start.nr_modules = 1;
        start.modlist_paddr = layout::PVH_MODULES;
    }
    let map: Vec<hvm_memmap_table_entry> = info
        .memory_map
        .iter()
        .map(|&(addr, size, type_)| hvm_memmap_table_entry { addr, size, type_, reserved: 0 })
        .collect();
    let mut params = BootParams::new(&start, GuestAddress(layout::PVH_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMMAP));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(|e| ProtocolError(e.to_string()))
}
