//! A vCPU's state, read from KVM and written back into a fresh vCPU.
//!
//! The orders below are KVM's, not ours to choose:
//! - reading: `KVM_GET_MP_STATE` comes first, because it lets the APIC take a pending INIT or SIPI,
//!   which changes registers;
//! - writing: CPUID first (it decides which registers and MSRs exist); the local APIC before the
//!   MSRs, because writing the TSC deadline arms its timer and needs it in TSC-deadline mode; events
//!   last, because setting registers clears pending exceptions.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::arch::kvm_error::KvmError;

/// Version of [`VcpuStateV1`] in a snapshot.
pub const VCPU_STATE_VERSION: u32 = 1;

/// Everything that KVM holds of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

impl VcpuStateV1 {
    /// The CPUID leaves that the guest was told.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Frequency of the time-stamp counter in kHz; 0 if the host did not tell it.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// The saved value of a model-specific register.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|entry| entry.index == index).map(|entry| entry.data)
    }

    /// Gives a saved model-specific register another value; without effect if it was not saved.
    pub fn set_msr(&mut self, index: u32, data: u64) {
        self.msrs.iter_mut().filter(|entry| entry.index == index).for_each(|e| e.data = data);
    }

    /// What KVM offers to the guest (CPUID leaf 0x4000_0001, EAX), if the guest was told of KVM.
    pub fn kvm_features(&mut self) -> Option<&mut u32> {
        let leaf = self.cpuid.iter_mut().find(|leaf| leaf.function == KVM_CPUID_FEATURES);
        leaf.map(|leaf| &mut leaf.eax)
    }

    /// The local APIC.
    pub fn lapic(&mut self) -> &mut kvm_lapic_state {
        &mut self.lapic
    }
}

const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// KVM takes no more MSRs than this in one call (`MAX_IO_MSRS`).
const MSRS_PER_CALL: usize = 256;
/// TSC frequencies closer than this are the same clock (KVM's own tolerance is 250 ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Call(what, e)
}

/// Reads the state of `fd`, with those of the MSRs in `indices` that it has.
pub fn save(fd: &VcpuFd, indices: &[u32]) -> Result<VcpuStateV1, KvmError> {
    Ok(VcpuStateV1 {
        mp_state: fd.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?,
        regs: fd.get_regs().map_err(call("KVM_GET_REGS"))?,
        sregs: fd.get_sregs().map_err(call("KVM_GET_SREGS"))?,
        xsave: fd.get_xsave().map_err(call("KVM_GET_XSAVE"))?,
        xcrs: fd.get_xcrs().map_err(call("KVM_GET_XCRS"))?,
        debug_regs: fd.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?,
        lapic: fd.get_lapic().map_err(call("KVM_GET_LAPIC"))?,
        msrs: read_msrs(fd, indices)?,
        cpuid: fd
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("KVM_GET_CPUID2"))?
            .as_slice()
            .to_vec(),
        tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        events: fd.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?,
    })
}

/// Gives a fresh vCPU what decides how it counts time and translates addresses: CPUID and the frequency of
/// the time-stamp counter.
///
/// # Errors
///
/// If KVM refuses one of them, or this host cannot run the counter at that frequency.
pub fn prepare(fd: &VcpuFd, state: &VcpuStateV1) -> Result<(), KvmError> {
    let cpuid = CpuId::from_entries(&state.cpuid)
        .map_err(|_| KvmError::State("more CPUID entries than KVM takes".into()))?;
    fd.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
    set_tsc_frequency(fd, state.tsc_khz)
}

/// Writes `state` into a fresh vCPU.
pub fn restore(fd: &VcpuFd, state: &VcpuStateV1) -> Result<(), KvmError> {
    prepare(fd, state)?;
    let VcpuStateV1 {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        events,
        cpuid: _,
        tsc_khz: _,
    } = state;
    fd.set_mp_state(*mp_state).map_err(call("KVM_SET_MP_STATE"))?;
    fd.set_regs(regs).map_err(call("KVM_SET_REGS"))?;
    fd.set_sregs(sregs).map_err(call("KVM_SET_SREGS"))?;
    set_xsave(fd, xsave)?;
    fd.set_xcrs(xcrs).map_err(call("KVM_SET_XCRS"))?;
    fd.set_debug_regs(debug_regs).map_err(call("KVM_SET_DEBUGREGS"))?;
    fd.set_lapic(lapic).map_err(call("KVM_SET_LAPIC"))?;
    write_msrs(fd, msrs)?;
    fd.set_vcpu_events(events).map_err(call("KVM_SET_VCPU_EVENTS"))
}

#[allow(unsafe_code)]
fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), KvmError> {
    // SAFETY: KVM reads more than `kvm_xsave` has only where the process enabled dynamic features
    // (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM), which this one never does.
    unsafe { fd.set_xsave(xsave) }.map_err(call("KVM_SET_XSAVE"))
}

/// A guest that was told a TSC frequency must keep it.
fn set_tsc_frequency(fd: &VcpuFd, saved: u32) -> Result<(), KvmError> {
    let Ok(host) = fd.get_tsc_khz() else { return Ok(()) };
    let apart = u64::from(host.abs_diff(saved)) * 1_000_000;
    if saved == 0 || apart <= u64::from(host) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    fd.set_tsc_khz(saved).map_err(|_| {
        KvmError::State(format!(
            "the snapshot's TSC runs at {saved} kHz, this host's at {host} kHz, and this host \
             cannot scale it"
        ))
    })
}

/// The values of those of the MSRs in `indices` that `fd` has.
pub fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(MSRS_PER_CALL)];
        let entries: Vec<_> =
            part.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries)
            .map_err(|_| KvmError::State("more MSRs than KVM takes".into()))?;
        let read = fd.get_msrs(&mut msrs).map_err(call("KVM_GET_MSRS"))?;
        found.extend_from_slice(&msrs.as_slice()[..read]);
        // KVM stops at the first one that this vCPU does not have: on the host's list, but not
        // enabled by this guest's CPUID.
        rest = &rest[(read + 1).min(part.len()).max(read)..];
        if read < part.len() {
            log::debug!("MSR {:#x} is not there", part[read]);
        }
    }
    // Arming the deadline timer needs the TSC to be right.
    found.sort_by_key(|entry| entry.index == IA32_TSC_DEADLINE);
    Ok(found)
}

/// Writes model-specific registers, in their order.
///
/// # Errors
///
/// If KVM does not take one of them.
pub fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    for part in entries.chunks(MSRS_PER_CALL) {
        let msrs = Msrs::from_entries(part)
            .map_err(|_| KvmError::State("more MSRs than KVM takes".into()))?;
        let written = fd.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
        if let Some(entry) = part.get(written) {
            return Err(KvmError::State(format!(
                "this host does not take MSR {:#x} = {:#x}; the snapshot is from another kind of \
                 processor or kernel",
                entry.index, entry.data
            )));
        }
    }
    Ok(())
}
