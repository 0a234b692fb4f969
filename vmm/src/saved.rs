//! A saved machine, and what of its way back concerns the processor.
//!
//! Memory comes back by `snapshot::memory`, devices by `DeviceSet`.

use kvm_bindings::CpuId;
use varve_memory_tiers::Stage2;

use crate::arch::cpu_compat;
use crate::arch::vcpu_state::{self, VcpuStateV1};
use crate::arch::vm_state::VmStateV1;
use crate::device_set::DeviceBlobs;
use crate::error::VmmError;
use crate::kvm::{KvmError, KvmVm};
use crate::snapshot::memory::MemoryRestore;

/// A saved machine.
pub struct Saved {
    /// All but memory.
    pub machine: SavedMachine,
    /// Memory.
    pub memory: MemoryRestore,
    /// How many threads fill second-level page tables at a time, too.
    pub stage2: usize,
}

/// The state of a machine, but for its memory.
#[derive(Debug)]
pub struct SavedMachine {
    /// Interrupt controllers, timer, clock.
    pub vm: VmStateV1,
    /// vCPUs, by APIC id.
    pub vcpus: Vec<VcpuStateV1>,
    /// Devices, by name.
    pub devices: DeviceBlobs,
}

/// Every feature that the guest was told of must be here.
pub fn check_processor(vm: &KvmVm, vcpus: &[VcpuStateV1]) -> Result<(), VmmError> {
    let Some(first) = vcpus.first() else { return Ok(()) };
    let missing = cpu_compat::missing(first.cpuid(), vm.supported_cpuid()?.as_slice());
    if missing.is_empty() { Ok(()) } else { Err(VmmError::OtherProcessor(missing.join("; "))) }
}

/// The means to fill second-level page tables for so many threads at a time, where this host has them.
pub fn prefault(
    vm: &KvmVm,
    vcpus: &[VcpuStateV1],
    threads: usize,
) -> Result<Option<Box<dyn Stage2>>, VmmError> {
    let Some(first) = vcpus.first().filter(|_| threads > 0) else { return Ok(None) };
    let cpuid = CpuId::from_entries(first.cpuid())
        .map_err(|_| KvmError::State("more CPUID entries than KVM takes".into()))?;
    Ok(vm.prefault(&cpuid, threads).map(|p| Box::new(p) as Box<dyn Stage2>))
}

/// Creates the vCPUs of a saved machine and gives machine and vCPUs their state.
pub fn restore_vcpus(
    vm: &KvmVm,
    state: &VmStateV1,
    vcpus: &[VcpuStateV1],
) -> Result<Vec<kvm_ioctls::VcpuFd>, VmmError> {
    let fds =
        (0u8..).zip(vcpus).map(|(id, _)| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    vm.restore(state)?;
    for (fd, state) in fds.iter().zip(vcpus) {
        vcpu_state::restore(fd, state)?;
    }
    Ok(fds)
}
