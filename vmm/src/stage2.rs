//! Filling KVM's second-level page tables ahead of the guest (KVM_PRE_FAULT_MEMORY, Linux 6.11).
//!
//! The call belongs to a vCPU, and the guest's own are busy running. The page tables are shared by
//! all vCPUs of a machine, so one more vCPU, which the guest is not told of and which never runs,
//! can fill them beside the guest; and two of them twice as fast. It counts time as the guest's own do:
//! else KVM would take the guest's clock from it ([`crate::arch::tsc`]).
//!
//! UNSAFETY: kvm-ioctls has no wrapper for the call yet.
#![allow(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use varve_memory_tiers::Stage2;
use varve_snapshot::PageRange;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::arch::kvm_error::KvmError;
use crate::arch::tsc;
use crate::arch::vcpu_state::{self, VcpuStateV1};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
const _: () = assert!(size_of::<kvm_pre_fault_memory>() == 64);

/// APIC ids of the vCPUs that never run: outside of what the machine can have.
pub const PREFAULT_VCPUS: [u8; 2] = [254, 253];

/// vCPUs for filling page tables: as many threads can fill them at a time.
#[derive(Clone)]
pub struct Prefault(Arc<[Mutex<VcpuFd>]>);

impl Prefault {
    /// Takes fresh vCPUs, which get the CPUID of the guest's vCPU `like`, because the width of addresses
    /// decides the shape of the tables, and its frequency of the time-stamp counter.
    ///
    /// # Errors
    ///
    /// If KVM refuses one of them.
    pub fn new(vcpus: Vec<VcpuFd>, like: &VcpuStateV1) -> Result<Prefault, KvmError> {
        vcpus.iter().try_for_each(|vcpu| vcpu_state::prepare(vcpu, like))?;
        Ok(Prefault(vcpus.into_iter().map(Mutex::new).collect()))
    }

    /// Has their time-stamp counters run in step with those of the guest's vCPUs, which have been written.
    /// Waits for a thread that fills page tables by one of them.
    ///
    /// # Errors
    ///
    /// If KVM does not take it.
    pub fn keep_in_step(&self) -> Result<(), KvmError> {
        self.0.iter().try_for_each(|vcpu| tsc::join(&lock(vcpu)))
    }

    /// One that nobody uses; else the first is waited for.
    fn take(&self) -> Option<MutexGuard<'_, VcpuFd>> {
        let free = self.0.iter().find_map(|vcpu| vcpu.try_lock().ok());
        free.or_else(|| Some(lock(self.0.first()?)))
    }
}

fn lock(vcpu: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
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
