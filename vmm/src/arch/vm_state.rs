//! The state of the machine itself in KVM: interrupt controllers, timer, clock.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::arch::kvm_error::KvmError;

/// Version of [`VmStateV1`] in a snapshot.
pub const VM_STATE_VERSION: u32 = 1;

/// Everything that KVM holds of a machine besides vCPUs and memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmStateV1 {
    pic_master: kvm_irqchip,
    pic_slave: kvm_irqchip,
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

fn call(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Call(what, e)
}

/// Reads the state.
pub fn save(fd: &VmFd) -> Result<VmStateV1, KvmError> {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        fd.get_irqchip(&mut chip).map_err(call("KVM_GET_IRQCHIP"))?;
        Ok::<_, KvmError>(chip)
    };
    Ok(VmStateV1 {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit: fd.get_pit2().map_err(call("KVM_GET_PIT2"))?,
        clock: with_time_of_day(fd.get_clock().map_err(call("KVM_GET_CLOCK"))?),
    })
}

/// Where the host's clock source is not the TSC, KVM does not say at what time of day it read the
/// guest's clock: just now.
fn with_time_of_day(mut clock: kvm_clock_data) -> kvm_clock_data {
    if clock.flags & KVM_CLOCK_REALTIME == 0
        && let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH)
    {
        clock.realtime = now.as_nanos() as u64;
        clock.flags |= KVM_CLOCK_REALTIME;
    }
    clock
}

impl VmStateV1 {
    /// Whether the guest's clock, once restored, goes on from where it stood or, with `realtime`, from
    /// where it would be had it not stood still.
    pub fn set_clock_mode(&mut self, realtime: bool) -> Result<(), KvmError> {
        if realtime && self.clock.flags & KVM_CLOCK_REALTIME == 0 {
            let problem = "clock_realtime: the snapshot does not say when its clock was read; load it \
                           without";
            return Err(KvmError::State(problem.into()));
        }
        // The other flags only describe how it was read.
        let realtime = if realtime { KVM_CLOCK_REALTIME } else { 0 };
        self.clock.flags = realtime | self.clock.flags & KVM_CLOCK_TSC_STABLE;
        Ok(())
    }

    /// Whether the guest read its clock without system calls when it was saved.
    pub fn clock_is_stable(&self) -> bool {
        is_stable(&self.clock)
    }
}

fn is_stable(clock: &kvm_clock_data) -> bool {
    clock.flags & KVM_CLOCK_TSC_STABLE != 0
}

/// Whether the guest can read its clock without system calls: KVM's master clock is in use.
///
/// # Errors
///
/// If KVM does not tell.
pub fn clock_is_stable(fd: &VmFd) -> Result<bool, KvmError> {
    Ok(is_stable(&fd.get_clock().map_err(call("KVM_GET_CLOCK"))?))
}

/// Sets the guest's clock. KVM decides here whether it is stable, by the counters of all vCPUs that there
/// are: to be called again after their states were restored.
///
/// # Errors
///
/// If KVM does not take it.
pub fn set_clock(fd: &VmFd, state: &VmStateV1) -> Result<(), KvmError> {
    let clock = kvm_clock_data {
        clock: state.clock.clock,
        realtime: state.clock.realtime,
        flags: state.clock.flags & KVM_CLOCK_REALTIME,
        ..Default::default()
    };
    fd.set_clock(&clock).map_err(call("KVM_SET_CLOCK"))
}

/// Writes the state into a fresh machine, after its vCPUs were created.
pub fn restore(fd: &VmFd, state: &VmStateV1) -> Result<(), KvmError> {
    let VmStateV1 { pic_master, pic_slave, ioapic, pit, clock: _ } = state;
    fd.set_pit2(pit).map_err(call("KVM_SET_PIT2"))?;
    set_clock(fd, state)?;
    for chip in [pic_master, pic_slave, ioapic] {
        fd.set_irqchip(chip).map_err(call("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
