//! A saved machine, and what of its way back concerns the processor.
//!
//! Memory comes back by `snapshot::memory`, devices by `DeviceSet`.

use kvm_ioctls::VcpuFd;
use varve_memory_tiers::GuestMemory;

use crate::arch::vcpu_state::{self, VcpuStateV1};
use crate::arch::vm_state::VmStateV1;
use crate::arch::{cpu_compat, tsc};
use crate::device_set::DeviceBlobs;
use crate::error::VmmError;
use crate::kvm::KvmVm;
use crate::machine::memory::MemoryRestore;
use crate::metrics;
use crate::stage2::Prefault;
use crate::vcpu::tell_of_pause;

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
pub fn prefault(vm: &KvmVm, vcpus: &[VcpuStateV1], threads: usize) -> Option<Prefault> {
    vm.prefault(vcpus.first().filter(|_| threads > 0)?, threads)
}

/// Creates the vCPUs of a saved machine and gives machine and vCPUs their state. `helpers` are vCPUs of
/// the machine that never run.
pub fn restore_vcpus(
    vm: &KvmVm,
    memory: &GuestMemory,
    state: &VmStateV1,
    mut vcpus: Vec<VcpuStateV1>,
    helpers: Option<&Prefault>,
    metrics: &metrics::Vcpu,
) -> Result<Vec<VcpuFd>, VmmError> {
    tsc::keep_in_step(&mut vcpus, state.clock_is_stable());
    if let Some(faults) = vm.async_faults() {
        vcpus.iter_mut().enumerate().for_each(|(id, state)| faults.take(id, state, memory));
    }
    let fds =
        (0u8..).zip(&vcpus).map(|(id, _)| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    vm.restore(state)?;
    for (fd, state) in fds.iter().zip(&vcpus) {
        vcpu_state::restore(fd, state)?;
        // It stood still since it was saved.
        tell_of_pause(fd, metrics);
    }
    if let Some(helpers) = helpers {
        helpers.keep_in_step()?;
    }
    let stable = vm.set_clock(state)?;
    if state.clock_is_stable() && !stable {
        log::warn!(
            "the guest's clock is no longer stable: each time that the guest reads it is a system call \
             now. The host's own clock may not be its TSC: see \
             /sys/devices/system/clocksource/clocksource0/current_clocksource"
        );
    }
    Ok(fds)
}
