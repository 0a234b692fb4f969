//! A guest's asynchronous page faults, withheld from it while its accesses to memory are recorded.
//!
//! KVM can hand a fault that has to wait to a worker of the kernel, and let the vCPU go on meanwhile: it
//! tells the guest, which runs another task, and tells it again when the page is there. The worker asks for
//! every page as if it were to be written, so that a recorder would take reads for writes. KVM does so while
//! the guest takes such notices (MSR_KVM_ASYNC_PF_EN), or while it can halt the vCPU instead, which it cannot
//! where HLT does not exit. So both are switched off for a recording.
//!
//! The guest does not notice: what it has in the register, and writes into it later (a processor that comes
//! online again, another kernel by kexec), is kept here, and is what it reads and what snapshots say. Snapshots
//! say, too, that KVM wakes halted vCPUs on request (KVM_FEATURE_PV_UNHALT), which KVM offers to no guest whose
//! HLT does not exit.
//! Tasks that wait for a page since before the snapshot are woken, as KVM does at each restore.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_USER_SPACE_MSR, KVM_X86_DISABLE_EXITS_HLT,
    kvm_enable_cap, kvm_lapic_state,
};
use kvm_ioctls::{
    MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd,
};
use varve_memory_tiers::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::vcpu_state::VcpuStateV1;

/// MSR_KVM_ASYNC_PF_EN: whether notices are taken, how, and where they are written to.
const CONTROL: u32 = 0x4b56_4d02;
/// MSR_KVM_ASYNC_PF_INT: the interrupt that tells of pages that are there.
const VECTOR: u32 = 0x4b56_4d06;
/// Bits of [`CONTROL`]: notices are taken; pages that are there are told of by an interrupt.
const ENABLED: u64 = 1;
const BY_INTERRUPT: u64 = 1 << 3;
/// Bits that must be 0.
const RESERVED: u64 = 0x30;
/// Bits below the address at which notices are written.
const FLAGS: u64 = 0x3f;
/// From there to the number of the page that is there (`kvm_vcpu_pv_apf_data.token`).
const TOKEN: u64 = 4;
/// In place of a number: all pages that are waited for.
const ALL: u32 = !0;

/// What a vCPU was saved with, and what its guest has changed of it.
#[derive(Debug, Default)]
struct Kept {
    control: AtomicU64,
    features: AtomicU32,
}

/// What each vCPU has in the register, as its guest sees it.
#[derive(Debug)]
pub struct AsyncFaults {
    vcpus: Vec<Kept>,
    /// The guest's own accesses to the register come here.
    intercepted: bool,
}

impl AsyncFaults {
    /// Keeps KVM from faulting asynchronously in a new machine that has no vCPU yet. What this host's KVM
    /// cannot do is logged: the recording is less exact then.
    pub fn withhold(vm: &VmFd, vcpus: u8) -> AsyncFaults {
        if let Err(e) = keep_halts_inside(vm) {
            log::warn!(
                "recording: this host's KVM cannot keep HLT in the guest ({e}): more pages than the \
                 guest writes will count as written"
            );
        }
        let intercepted = intercept(vm).inspect_err(|e| {
            log::debug!("recording: MSR_KVM_ASYNC_PF_EN cannot be intercepted ({e})");
        });
        let vcpus = (0..vcpus).map(|_| Kept::default()).collect();
        AsyncFaults { vcpus, intercepted: intercepted.is_ok() }
    }

    /// Takes the register out of a state that vCPU `id` is about to get, and wakes the tasks that wait for a
    /// page since before that.
    pub fn take(&self, id: usize, state: &mut VcpuStateV1, memory: &GuestMemory) {
        let Some(kept) = self.vcpus.get(id) else { return };
        if let Some(features) = state.kvm_features() {
            kept.features.store(*features, Ordering::Relaxed);
        }
        let Some(control) = state.msr(CONTROL) else { return };
        kept.control.store(control, Ordering::Relaxed);
        state.set_msr(CONTROL, 0);
        let vector = state.msr(VECTOR).and_then(|vector| u8::try_from(vector & 0xff).ok());
        if control & (ENABLED | BY_INTERRUPT) == ENABLED | BY_INTERRUPT
            && let Some(vector) = vector.filter(|&vector| vector >= 16)
        {
            let token = (control & !FLAGS).saturating_add(TOKEN);
            match memory.write_obj(ALL, GuestAddress(token)) {
                Ok(()) => raise(state.lapic(), vector),
                // The guest chose the address, and gets no notices there from KVM either.
                Err(e) => log::debug!("asynchronous page faults of vCPU {id}: {e}"),
            }
        }
    }

    /// Puts the register back into the state that was read from vCPU `id`.
    pub fn give_back(&self, id: usize, state: &mut VcpuStateV1) {
        let Some(kept) = self.vcpus.get(id) else { return };
        if let Some(features) = state.kvm_features() {
            *features = kept.features.load(Ordering::Relaxed);
        }
        // Where accesses are not intercepted, what the guest has written is in KVM's own.
        if self.intercepted || state.msr(CONTROL) == Some(0) {
            state.set_msr(CONTROL, kept.control.load(Ordering::Relaxed));
        }
    }

    /// What vCPU `id` reads from register `index`; nothing if that is not one that is kept here.
    pub fn read(&self, id: usize, index: u32) -> Option<u64> {
        let kept = self.vcpus.get(id).filter(|_| index == CONTROL)?;
        Some(kept.control.load(Ordering::Relaxed))
    }

    /// vCPU `id` writes to register `index`; whether it may.
    pub fn write(&self, id: usize, index: u32, value: u64) -> bool {
        match self.vcpus.get(id) {
            Some(kept) if index == CONTROL && value & RESERVED == 0 => {
                kept.control.store(value, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }
}

fn keep_halts_inside(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..Default::default() };
    cap.args[0] = KVM_X86_DISABLE_EXITS_HLT.into();
    vm.enable_cap(&cap)
}

/// Has the guest's accesses to the register exit to the monitor (Linux 5.10).
fn intercept(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = MsrExitReason::Filter.bits().into();
    vm.enable_cap(&cap)?;
    let range = MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base: CONTROL,
        msr_count: 1,
        // A bit that is not set: not allowed. KVM reads a whole word.
        bitmap: &[0; 8],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
}

/// Makes an interrupt pending in a local APIC that is on (Intel SDM 3A, 11.8.4: IRR, and TMR, where a 0 says
/// that it is an edge).
fn raise(lapic: &mut kvm_lapic_state, vector: u8) {
    const SPURIOUS: usize = 0xf0;
    const TRIGGER_MODE: usize = 0x180;
    const REQUEST: usize = 0x200;
    const ON: u8 = 1;
    if lapic.regs[SPURIOUS + 1] as u8 & ON == 0 {
        return;
    }
    // Registers of 32 bits, 16 bytes apart.
    let byte = usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
    let bit = 1u8 << (vector % 8);
    lapic.regs[REQUEST + byte] = (lapic.regs[REQUEST + byte] as u8 | bit) as _;
    lapic.regs[TRIGGER_MODE + byte] = (lapic.regs[TRIGGER_MODE + byte] as u8 & !bit) as _;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_becomes_pending_where_the_apic_is_on() {
        let mut lapic = kvm_lapic_state::default();
        raise(&mut lapic, 0xf3);
        assert_eq!(lapic, kvm_lapic_state::default());
        lapic.regs[0xf1] = 1;
        lapic.regs[0x180 + 0x72] = 0x0c;
        raise(&mut lapic, 0xf3);
        // Vector 243: register 7, bit 19.
        assert_eq!((lapic.regs[0x272], lapic.regs[0x180 + 0x72]), (8, 4));
    }

    #[test]
    fn the_guest_sees_what_it_wrote() {
        let first = Kept { control: AtomicU64::new(9), ..Kept::default() };
        let faults = AsyncFaults { vcpus: vec![first, Kept::default()], intercepted: true };
        assert_eq!(faults.read(0, CONTROL), Some(9));
        assert!(faults.write(1, CONTROL, 0x1000 | ENABLED | BY_INTERRUPT));
        assert_eq!(faults.read(1, CONTROL), Some(0x1009));
        assert!(!faults.write(1, CONTROL, 0x1011), "a reserved bit");
        assert!(!faults.write(1, VECTOR, 0), "another register");
        assert!(!faults.write(2, CONTROL, 0), "another vCPU");
        assert_eq!((faults.read(1, CONTROL), faults.read(2, CONTROL)), (Some(0x1009), None));
    }
}
