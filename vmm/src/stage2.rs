//! Filling KVM's second-level page tables ahead of the guest (KVM_PRE_FAULT_MEMORY, Linux 6.11).
//!
//! The call belongs to a vCPU, and the guest's own are busy running. The page tables are shared by
//! all vCPUs of a machine, so one more vCPU, which the guest is not told of and which never runs,
//! can fill them beside the guest; and two of them twice as fast.
//!
//! UNSAFETY: kvm-ioctls has no wrapper for the call yet.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::{CpuId, KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use varve_memory_tiers::Stage2;
use varve_snapshot::PageRange;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
const _: () = assert!(size_of::<kvm_pre_fault_memory>() == 64);

/// APIC ids of the vCPUs that never run: outside of what the machine can have.
pub const PREFAULT_VCPUS: [u8; 2] = [254, 253];

/// vCPUs for filling page tables: as many threads can fill them at a time.
pub struct Prefault(Vec<Mutex<VcpuFd>>);

impl Prefault {
    /// Takes fresh vCPUs, which get the guest's CPUID, because the width of addresses decides the
    /// shape of the tables.
    pub fn new(vcpus: Vec<VcpuFd>, cpuid: &CpuId) -> Result<Prefault, kvm_ioctls::Error> {
        vcpus.iter().try_for_each(|vcpu| vcpu.set_cpuid2(cpuid))?;
        Ok(Prefault(vcpus.into_iter().map(Mutex::new).collect()))
    }

    /// One that nobody uses; else the first is waited for.
    fn take(&self) -> Option<MutexGuard<'_, VcpuFd>> {
        let free = self.0.iter().find_map(|vcpu| vcpu.try_lock().ok());
        free.or_else(|| Some(self.0.first()?.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Stage2 for Prefault {
    fn prefault(&self, pages: PageRange) -> io::Result<()> {
        let vcpu = self.take().ok_or(io::ErrorKind::Unsupported)?;
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
