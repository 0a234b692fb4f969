//! Filling KVM's second-level page tables ahead of the guest (KVM_PRE_FAULT_MEMORY, Linux 6.11).
//!
//! The call belongs to a vCPU, and the guest's own are busy running. The page tables are shared by
//! all vCPUs of a machine, so one more vCPU, which the guest is not told of and which never runs,
//! can fill them beside the guest.
//!
//! UNSAFETY: kvm-ioctls has no wrapper for the call yet.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{CpuId, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use varve_memory_tiers::Stage2;
use varve_snapshot::PageRange;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
const _: () = assert!(size_of::<kvm_pre_fault_memory>() == 64);

/// APIC id of the vCPU that never runs: outside of what the machine can have.
pub const PREFAULT_VCPU: u8 = 254;

/// A vCPU for filling page tables.
pub struct Prefault(Mutex<VcpuFd>);

impl Prefault {
    /// Takes a fresh vCPU, which gets the guest's CPUID, because the width of addresses decides the
    /// shape of the tables.
    pub fn new(vcpu: VcpuFd, cpuid: &CpuId) -> Result<Prefault, kvm_ioctls::Error> {
        vcpu.set_cpuid2(cpuid)?;
        Ok(Prefault(Mutex::new(vcpu)))
    }
}

impl Stage2 for Prefault {
    fn prefault(&self, pages: PageRange) -> io::Result<()> {
        let vcpu = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut range =
            kvm_pre_fault_memory { gpa: pages.start(), size: pages.len(), ..Default::default() };
        while range.size > 0 {
            // SAFETY: the structure is the one that the call takes, and KVM writes only to it: how
            // much is left, after a signal or an error.
            let result = unsafe { ioctl_with_mut_ref(&*vcpu, KVM_PRE_FAULT_MEMORY(), &mut range) };
            if result == 0 {
                continue;
            }
            match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e if e.raw_os_error() == Some(libc::EAGAIN) => {}
                e => return Err(e),
            }
        }
        Ok(())
    }
}
