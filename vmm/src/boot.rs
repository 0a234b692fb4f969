//! Making a machine ready for the first instruction of a kernel.

use kvm_bindings::Msrs;
use kvm_ioctls::VcpuFd;
use varve_memory_tiers::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::acpi::{MmioSlot, Platform};
use crate::arch::cpu_config::CpuConfig;
use crate::arch::cpu_template::TemplateError;
use crate::arch::cpuid::{self, Topology};
use crate::arch::kernel::Entry;
use crate::arch::kvm_error::KvmError;
use crate::arch::protocol::BootInfo;
use crate::arch::{
    acpi, cmdline, cpu_template, kernel, layout, mptable, msr, protocol, registers, vcpu_state,
};
use crate::config::VmConfig;
use crate::error::VmmError;
use crate::kvm::KvmVm;

/// Loads the kernel with all that it is told, and returns vCPUs that stand at its entry.
pub fn load(
    config: &VmConfig,
    vm: &KvmVm,
    ram: &GuestRam,
    slots: &[MmioSlot],
) -> Result<Vec<VcpuFd>, VmmError> {
    let mem = ram.memory();
    let boot = &config.boot;
    let kernel = kernel::load(mem, &boot.kernel, boot.protocol)?;
    let initrd =
        boot.initrd.as_ref().map(|path| kernel::load_initrd(mem, &kernel, path)).transpose()?;
    let mut extra = Vec::from_iter(config.root_parameter());
    if config.boot_timer {
        extra.push(format!("varve.boot_timer={:#x}", layout::BOOT_TIMER));
    }
    if !boot.cmdline.split_whitespace().any(|p| p.starts_with("pci=")) {
        // There is no PCI bus; looking for one takes a few milliseconds.
        extra.push("pci=off".into());
    }
    let line = cmdline::build(&boot.cmdline, &extra, slots)?;
    log::debug!("kernel command line: {}", cmdline::text(&line));
    cmdline::write(mem, &line)?;
    mptable::write(mem, config.vcpus)?;
    let platform =
        Platform { vcpus: config.vcpus, virtio: slots.to_vec(), vmgenid_gsi: layout::VMGENID_GSI };
    let rsdp = acpi::write_tables(mem, &platform)?;
    let ranges: Vec<_> = ram.regions().iter().map(|r| r.pages).collect();
    let info = BootInfo {
        memory_map: &layout::memory_map(&ranges),
        initrd,
        cmdline_len: cmdline::text(&line).len(),
        rsdp,
    };
    protocol::write(mem, &kernel, &info)?;
    registers::write_tables(mem, kernel.entry)?;
    mem.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;
    create_vcpus(config, vm, kernel.entry)
}

/// `mov al, 0xfe; out 0x64, al; hlt; jmp hlt`: the keyboard controller's reset command.
///
/// On a hardware-reduced platform Linux asks EFI to reboot and, where there is none, jumps to the
/// BIOS' reset vector. There is no BIOS, but there can be what its first step amounts to.
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

fn create_vcpus(config: &VmConfig, vm: &KvmVm, entry: Entry) -> Result<Vec<VcpuFd>, VmmError> {
    let mut supported = vm.supported_cpuid()?;
    if let Some(template) = &config.cpu {
        supported = cpu_template::apply_cpuid(template, &supported)?;
    }
    let topology = Topology { vcpus: config.vcpus, smt: config.smt };
    let mut fds = Vec::with_capacity(config.vcpus.into());
    for id in 0..config.vcpus {
        let fd = vm.create_vcpu(id)?;
        let entries = cpuid::for_vcpu(&supported, id, topology);
        set_up(&fd, &entries, entry).map_err(|(what, e)| KvmError::Call(what, e))?;
        if let Some(template) = &config.cpu {
            set_template_msrs(&fd, template)?;
        }
        fds.push(fd);
    }
    Ok(fds)
}

/// The template's changes come last: they count on top of what a vCPU boots with.
fn set_template_msrs(fd: &VcpuFd, template: &CpuConfig) -> Result<(), VmmError> {
    let mut msrs = vcpu_state::read_msrs(fd, &cpu_template::msr_indices(template))?;
    cpu_template::apply_msrs(template, &mut msrs)?;
    for msr in msrs {
        let one = Msrs::from_entries(&[msr]).expect("one entry fits");
        let written = fd.set_msrs(&one).map_err(|e| KvmError::Call("KVM_SET_MSRS", e))?;
        if written == 0 {
            return Err(TemplateError::Msr(msr.index).into());
        }
    }
    Ok(())
}

type Failed = (&'static str, kvm_ioctls::Error);

/// All vCPUs get the same registers; those but the first wait for the guest to start them.
fn set_up(fd: &VcpuFd, cpuid: &kvm_bindings::CpuId, entry: Entry) -> Result<(), Failed> {
    let failed = |what| move |e| (what, e);
    fd.set_cpuid2(cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    let msrs = msr::at_boot();
    let written = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    if written != msrs.as_slice().len() {
        log::warn!("this host took only {written} of {} boot MSRs", msrs.as_slice().len());
    }
    fd.set_regs(&registers::general(entry)).map_err(failed("KVM_SET_REGS"))?;
    fd.set_fpu(&registers::fpu()).map_err(failed("KVM_SET_FPU"))?;
    let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    registers::set_system(&mut sregs, entry);
    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let mut lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    registers::set_local_interrupts(&mut lapic);
    fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}
