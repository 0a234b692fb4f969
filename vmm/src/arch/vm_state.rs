//! The state of the machine itself in KVM: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::kvm::KvmError;

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
        clock: fd.get_clock().map_err(call("KVM_GET_CLOCK"))?,
    })
}

/// Writes the state into a fresh machine, after its vCPUs were created.
pub fn restore(fd: &VmFd, state: &VmStateV1) -> Result<(), KvmError> {
    let VmStateV1 { pic_master, pic_slave, ioapic, pit, clock } = state;
    fd.set_pit2(pit).map_err(call("KVM_SET_PIT2"))?;
    // The guest's clock goes on where it stood; flags only describe how it was read.
    let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
    fd.set_clock(&clock).map_err(call("KVM_SET_CLOCK"))?;
    for chip in [pic_master, pic_slave, ioapic] {
        fd.set_irqchip(chip).map_err(call("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
