//! Time-stamp counters that run in step. KVM gives guests a clock that they read without a system call (its
//! *master clock*) only while the counters of all vCPUs do, the vCPUs that never run included.
//!
//! Counters are in step if KVM was told so: by a write of a value less than a second from what the others
//! show at that moment, or by a write of 0, which means "as the others" whatever the time
//! (`kvm_synchronize_tsc`, Linux 2.6.37 and later). Writing 0 depends on no deadline.

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::VcpuFd;

use super::vcpu_state::{VcpuStateV1, write_msrs};
use crate::arch::kvm_error::KvmError;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_ADJUST: u32 = 0x3b;
/// Written to [`IA32_TSC`]: as the vCPU whose counter was written last.
const AS_THE_OTHERS: u64 = 0;

/// Has the counter of `fd` run in step with those of the vCPUs that were written before.
///
/// # Errors
///
/// If KVM does not take the value.
pub fn join(fd: &VcpuFd) -> Result<(), KvmError> {
    write_msrs(fd, &[kvm_msr_entry { index: IA32_TSC, data: AS_THE_OTHERS, ..Default::default() }])
}

/// Prepares saved vCPUs whose counters were in step to be in step again: all but the first take the first
/// one's counter. `stable` says that KVM counted them as in step when they were saved; if it did not,
/// values less than a second apart were, as KVM itself would have it.
pub fn keep_in_step(vcpus: &mut [VcpuStateV1], stable: bool) {
    let Some((first, others)) = vcpus.split_first_mut() else { return };
    let (Some(tsc), adjust) = (first.msr(IA32_TSC), first.msr(IA32_TSC_ADJUST)) else { return };
    let second = u64::from(first.tsc_khz()) * 1000;
    for vcpu in others {
        let apart = vcpu.msr(IA32_TSC).map_or(u64::MAX, |other| other.abs_diff(tsc));
        let same = vcpu.tsc_khz() == first.tsc_khz() && vcpu.msr(IA32_TSC_ADJUST) == adjust;
        if same && (stable || apart < second) {
            vcpu.set_msr(IA32_TSC, AS_THE_OTHERS);
        }
    }
}
